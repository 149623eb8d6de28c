"""Convolutions where oneDNN and cuDNN are slow or wrong (docs/performance.md).

On a CPU: oneDNN's gradients of depthwise convolutions take up to 90 times as long as these where there is a stride, in
bfloat16, and where the kernel is larger than 3×3. In the backward pass of channels-last 1×1 convolutions with a stride
over fewer than 16 channels, as in the stems of RepVGG, MobileOne and FastViT, oneDNN writes past the end of its memory
(seen with torch 2.14), after which anything may happen.

On a GPU: for each shape of a batch cuDNN plans a convolution before it runs it. On an H200 that takes some 100 ms for a
depthwise one in bfloat16 and 250 for its gradients, ten times a ResNet's.
"""

import logging
import threading
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.runtime import LANES, are_images, are_kernels_for, call, is_plain, triton_kernels

__all__ = [
    'CpuDepthwiseConv2d', 'GpuDepthwiseConv2d', 'PlannedLaterConv2d', 'ProductConv2d', 'SubsampledConv2d',
    'has_few_strided_channels', 'has_gpu_kernel', 'has_slow_gradients', 'is_depthwise', 'is_product',
]  # fmt: skip

_KERNEL_SIZES = (3, 5, 7)  # of the kernels that cpu.cpp knows
_FEW = 100  # batches: for more a plan, which halves the time of the flagship's, pays
_HALVES = (torch.bfloat16, torch.float16)
_without_cudnn = threading.Lock()
_logger = logging.getLogger(__name__)


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Whether each group is of one channel."""
    return layer.groups == layer.in_channels > 1


def has_few_strided_channels(layer: nn.Conv2d) -> bool:
    """Whether oneDNN writes past the end of its memory."""
    pointwise = layer.kernel_size == (1, 1) and layer.padding == (0, 0)
    return pointwise and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 16


class SubsampledConv2d(nn.Conv2d):
    """A strided 1×1 convolution that leaves out pixels first, on a CPU: the same result by another way."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.device.type != 'cpu':
            return super()._conv_forward(x, weight, bias)
        down, across = self.stride
        x = x[..., ::down, ::across]
        simple = x.ndim == 4 and (torch.compiler.is_compiling() or is_plain(x))  # under vmap there is no other layout
        x = x.contiguous(memory_format=torch.channels_last if simple else torch.contiguous_format)
        return F.conv2d(x, weight, bias)


def has_slow_gradients(layer: nn.Conv2d) -> bool:
    """Whether it is a depthwise convolution whose gradients oneDNN is slow at."""
    simple = layer.padding_mode == 'zeros' and not isinstance(layer.padding, str)
    return is_depthwise(layer) and simple and (max(layer.stride) > 1 or max(layer.kernel_size) > 3)


class CpuDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with other gradients on a CPU, equal but for rounding.

    They are `cpu.cpp`'s in float32 and under bfloat16 autocast, for channels-last images. Where there is no compiler,
    the gradients that oneDNN is slow at in bfloat16 are computed in float32.
    """

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not (is_plain(x) and is_plain(weight)) or x.ndim != 4:
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled('cpu') and x.dtype is not torch.float64:  # which it leaves alone
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        wanted = torch.bfloat16 if max(self.kernel_size) <= 3 else x.dtype
        if x.dtype != wanted or x.dtype not in (torch.float32, torch.bfloat16):
            return super()._conv_forward(x, weight, bias)
        y = _CpuDepthwise.apply(x, weight, self.stride, self.padding, self.dilation, self.groups)
        return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


class _CpuDepthwise(torch.autograd.Function):
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
        and weight.shape[2] == weight.shape[3] in _KERNEL_SIZES
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
    images, channels, *image_size = x.shape
    kernel = weight.shape[-1]
    taps = weight.float().view(channels, kernel * kernel).t().contiguous()
    dx, dw = torch.empty_like(x), torch.empty_like(taps)
    sizes = (images, channels, *image_size, *grad.shape[2:], kernel, stride, padding)
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


class PlannedLaterConv2d(nn.Conv2d):
    """A convolution that on a GPU is torch's own for its first batches without gradients, then cuDNN's."""

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


def is_product(layer: nn.Conv2d) -> bool:
    """Whether it is a product of matrices."""
    return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1


class ProductConv2d(nn.Conv2d):
    """A 1×1 convolution of channels-last images as a product, in half precision on a GPU."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        known = is_plain(x, ('cuda',)) and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not known or _dtype(x) not in _HALVES:  # float32's products are by default more exact, and slower
            return super()._conv_forward(x, weight, bias)
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


def has_gpu_kernel(layer: nn.Conv2d) -> bool:
    """Whether it is a 3×3 depthwise convolution on a GPU where Triton's kernels work."""
    return (
        layer.groups == layer.in_channels == layer.out_channels > 1
        and layer.kernel_size == (3, 3)
        and layer.stride in ((1, 1), (2, 2))
        and layer.padding == layer.dilation == (1, 1)
        and layer.padding_mode == 'zeros'
        and layer.bias is None
        and _kernels(layer.weight.device) is not None
    )


@cache
def _kernels(device: torch.device) -> Any:
    """The package `gpu`, its depthwise convolutions checked on this device; None where they don't work."""
    gpu = triton_kernels(device)
    try:
        if gpu is not None:
            gpu.check_depthwise(device)
        return gpu
    except Exception:  # torch's own is always right
        _logger.debug('no Triton kernels for depthwise convolutions', exc_info=True)
        return None


class GpuDepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution by Triton's kernels, for channels-last images with channels in multiples of 8."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        known = is_plain(x, ('cuda',)) and are_images(x) and is_plain(weight, ('cuda',)) and x.numel() > 0
        if not known or x.shape[1] != self.in_channels or not _is_for(dtype := _dtype(x), weight):
            return super()._conv_forward(x, weight, bias)
        return _GpuDepthwise.apply(x.to(dtype), weight, self.stride[0])


def _is_for(dtype: torch.dtype, weight: torch.Tensor) -> bool:
    return dtype != torch.float64 and (dtype == weight.dtype or torch.is_autocast_enabled('cuda'))


def _dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that a convolution computes in."""
    autocast = torch.is_autocast_enabled('cuda') and x.dtype is not torch.float64
    return torch.get_autocast_dtype('cuda') if autocast else x.dtype


class _GpuDepthwise(torch.autograd.Function):
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
