"""Depthwise convolutions whose bfloat16 gradients are as fast on a CPU as their float32 ones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['speed_up_depthwise']


def speed_up_depthwise(model: nn.Module) -> None:
    """Makes training with bfloat16 autocast on a CPU compute in float32 what oneDNN is slow at in bfloat16.

    That is, of depthwise convolutions, the gradient of the input where they have a stride and of the weights where the
    kernel is larger than 3: 2 to 100 times slower in bfloat16 (docs/performance.md). State dicts are unaffected.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1 and _is_slow(layer.stride, layer.weight):
            layer.__class__ = _DepthwiseConv2d


def _is_slow(stride: tuple[int, ...], weight: torch.Tensor) -> bool:
    return max(stride) > 1 or max(weight.shape[2:]) > 3


class _DepthwiseConv2d(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        half = torch.bfloat16
        wanted = x.device.type == 'cpu' and torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == half
        if not wanted or self.padding_mode != 'zeros' or isinstance(self.padding, str):
            return super()._conv_forward(x, weight, bias)
        y = _Convolution.apply(x.to(half), weight.to(half), self.stride, self.padding, self.dilation, self.groups)
        return y if bias is None else y + bias.to(half).view(-1, 1, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *geometry: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry

        def gradient(which: int, wide: bool) -> torch.Tensor | None:
            if not ctx.needs_input_grad[which]:
                return None
            inputs = [tensor.float() if wide else tensor for tensor in (grad, x, weight)]
            mask = [which == 0, which == 1, False]
            gradients = torch.ops.aten.convolution_backward(
                *inputs, None, stride, padding, dilation, False, [0, 0], groups, mask
            )
            return gradients[which].to(x.dtype)

        return gradient(0, max(stride) > 1), gradient(1, max(weight.shape[2:]) > 3), None, None, None, None
