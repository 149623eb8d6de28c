"""Convolutions of a GPU that need none of cuDNN's plans.

For each shape of a batch cuDNN plans a convolution before it runs it: on an H200 some 100 ms for a depthwise one in
bfloat16 and 250 for its gradients, ten times a ResNet's (docs/performance.md).
"""

import logging
import threading
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.runtime import are_images, is_plain, triton_kernels

__all__ = ['plan_later', 'speed_up_convolutions']

_FEW = 100  # batches: for more a plan, which halves the time of the flagship's, pays
_HALVES = (torch.bfloat16, torch.float16)
_without_cudnn = threading.Lock()
_logger = logging.getLogger(__name__)


def plan_later(model: nn.Module) -> None:
    """Makes depthwise convolutions on a GPU torch's own for their first batches without gradients, then cuDNN's.

    State dicts are unaffected.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.groups == layer.in_channels > 1:
            layer.__class__ = _PlannedLater


def speed_up_convolutions(model: nn.Module) -> None:
    """For recorded steps: makes 3×3 depthwise convolutions Triton's, and in half precision 1×1 convolutions products.

    That is for channels-last images, of depthwise ones with channels in multiples of 8. State dicts are unaffected.

    Args:
        model: The model, on its GPU; such layers are changed in place.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and type(layer) in _PLAIN]
    depthwise = [layer for layer in layers if _is_depthwise(layer)]
    if depthwise and _kernels(depthwise[0].weight.device) is not None:
        for layer in depthwise:
            layer.__class__ = _Depthwise
    for layer in layers:
        if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1:
            layer.__class__ = _Product


def _is_depthwise(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.kernel_size == (3, 3)
        and layer.stride in ((1, 1), (2, 2))
        and layer.padding == layer.dilation == (1, 1)
        and layer.padding_mode == 'zeros'
        and layer.bias is None
    )


@cache
def _kernels(device: torch.device) -> Any:
    """The module `gpu`, its depthwise convolutions checked on this device; None where they don't work."""
    gpu = triton_kernels(device)
    try:
        if gpu is not None:
            gpu.check_depthwise(device)
        return gpu
    except Exception:  # torch's own is always right
        _logger.debug('no Triton kernels for depthwise convolutions', exc_info=True)
        return None


class _PlannedLater(nn.Conv2d):
    _batches = 0

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        known = is_plain(x, ('cuda',)) and x.numel() < 2**31
        if not known or torch.is_grad_enabled() or self._batches >= _FEW:
            return super()._conv_forward(x, weight, bias)
        self._batches += 1
        with _without_cudnn:
            enabled = torch.backends.cudnn.enabled
            torch.backends.cudnn.enabled = False  # alone: torch's context manager would set the precision, too
            try:
                return super()._conv_forward(x, weight, bias)
            finally:
                torch.backends.cudnn.enabled = enabled


_PLAIN = (nn.Conv2d, _PlannedLater)


class _Product(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        known = is_plain(x, ('cuda',)) and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not known or _dtype(x) not in _HALVES:  # float32's products are by default more exact, and slower
            return super()._conv_forward(x, weight, bias)
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class _Depthwise(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        known = is_plain(x, ('cuda',)) and are_images(x) and is_plain(weight, ('cuda',)) and x.numel() > 0
        if not known or x.shape[1] != self.in_channels or not _is_for(dtype := _dtype(x), weight):
            return super()._conv_forward(x, weight, bias)
        return _Convolution.apply(x.to(dtype), weight, self.stride[0])


def _is_for(dtype: torch.dtype, weight: torch.Tensor) -> bool:
    return dtype != torch.float64 and (dtype == weight.dtype or torch.is_autocast_enabled('cuda'))


def _dtype(x: torch.Tensor) -> torch.dtype:
    """What a convolution computes in."""
    return torch.get_autocast_dtype('cuda') if torch.is_autocast_enabled('cuda') else x.dtype


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.taps = weight.detach().flatten(1).t().float().contiguous()
        ctx.stride = stride
        return triton_kernels(x.device).depthwise_forward(x, ctx.taps, stride)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        plain = is_plain(grad, ('cuda',)) and is_plain(x, ('cuda',))
        if not plain or torch.is_grad_enabled():  # create_graph: to be differentiated once more
            geometry = [ctx.stride] * 2, [1, 1], [1, 1], False, [0, 0], len(weight), [True, True, False]
            dx, dweight, _ = torch.ops.aten.convolution_backward(grad, x, weight.to(x.dtype), None, *geometry)
            return dx, dweight.to(weight.dtype), None
        gpu = triton_kernels(x.device)
        grad, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x))  # hooks may change x
        dx = gpu.depthwise_input_gradient(grad, ctx.taps, ctx.stride, x.shape[2:])
        return dx, gpu.depthwise_weight_gradient(grad, x, ctx.stride).to(weight.dtype), None
