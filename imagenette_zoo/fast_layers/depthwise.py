"""Depthwise convolutions whose gradients are fast on a CPU.

oneDNN's are not where they have a stride, in bfloat16, and where the kernel is larger than 3×3: up to 90 times slower
than these (docs/performance.md).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.runtime import LANES, are_kernels_for, call, is_plain

__all__ = ['speed_up_depthwise']

_SIDES = (3, 5, 7)  # of the kernels that cpu.cpp knows


def speed_up_depthwise(model: nn.Module) -> None:
    """Gives those depthwise convolutions other gradients on a CPU, equal but for rounding.

    That is `cpu.cpp`'s in float32 and under bfloat16 autocast, for channels-last images. Where there is no compiler
    bfloat16 layers compute in float32 what oneDNN is slow at. State dicts are unaffected.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1 and _is_slow(layer):
            layer.__class__ = _DepthwiseConv2d


def _is_slow(layer: nn.Conv2d) -> bool:
    simple = layer.padding_mode == 'zeros' and not isinstance(layer.padding, str)
    return simple and (max(layer.stride) > 1 or max(layer.kernel_size) > 3)


class _DepthwiseConv2d(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not is_plain(x) or x.ndim != 4:
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        wanted = torch.bfloat16 if max(self.kernel_size) <= 3 else x.dtype
        if x.dtype != wanted or x.dtype not in (torch.float32, torch.bfloat16):
            return super()._conv_forward(x, weight, bias)
        y = _Convolution.apply(x, weight, self.stride, self.padding, self.dilation, self.groups)
        return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *geometry: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if _is_fused(grad, x, weight, ctx.geometry):
            return *_fused_gradients(grad, x, weight, ctx.geometry), None, None, None, None
        return *_wide_gradients(grad, x, weight, ctx.geometry, ctx.needs_input_grad[:2]), None, None, None, None


def _is_fused(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Any) -> bool:
    stride, padding, dilation, _ = geometry
    return (
        not torch.is_grad_enabled()
        and all(is_plain(tensor) for tensor in (grad, x, weight))
        and x.dtype == grad.dtype == weight.dtype
        and x.ndim == 4
        and x.shape[1] % LANES == 0
        and weight.shape[0] == x.shape[1]
        and weight.shape[2] == weight.shape[3] in _SIDES
        and stride[0] == stride[1]
        and padding[0] == padding[1]
        and tuple(dilation) == (1, 1)
        and x.is_contiguous(memory_format=torch.channels_last)
        and are_kernels_for(x.device, x.dtype)
    )


def _fused_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    (stride, _), (padding, _), *_ = geometry
    images, channels, *sides = x.shape
    side = weight.shape[-1]
    taps = weight.float().view(channels, side * side).t().contiguous()
    dx, dw = torch.empty_like(x), torch.empty_like(taps)
    sizes = (images, channels, *sides, *grad.shape[2:], side, stride, padding)
    grad = grad.contiguous(memory_format=torch.channels_last)
    call('depthwise_backward', sizes, grad, x, taps, dx, dw)
    return dx, dw.t().reshape(weight.shape).to(weight.dtype)


def _wide_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Any, needed: tuple[bool, ...]
) -> tuple[torch.Tensor | None, ...]:
    """oneDNN's, in float32 where it is slow in bfloat16."""
    stride, padding, dilation, groups = geometry

    def gradient(which: int, wide: bool) -> torch.Tensor | None:
        if not needed[which]:
            return None
        inputs = [tensor.float() if wide else tensor for tensor in (grad, x, weight)]
        mask = [which == 0, which == 1, False]
        gradients = torch.ops.aten.convolution_backward(
            *inputs, None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        return gradients[which].to(x.dtype)

    return gradient(0, max(stride) > 1), gradient(1, max(weight.shape[2:]) > 3)
