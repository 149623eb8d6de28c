"""Blur pooling by one kernel each way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from timm.layers import BlurPool2d

from ..kernels.runtime import are_images, are_kernels_for, call, is_plain, triton_kernels
from ..layers.blurpool import MaxBlurPool2d

__all__ = ['FastBlurPool2d', 'FastMaxBlurPool2d', 'is_halving']


def is_halving(layer: BlurPool2d) -> bool:
    """Whether its kernel is 3, its stride 2, and the maximum's window, if it has one, 2."""
    return (
        layer.filt.shape[-1] == 3
        and (layer.stride, layer.padding) == (2, [1] * 4)
        and layer.pad_mode in ('reflect', 'replicate')
        and getattr(layer, 'max_kernel_size', 2) == 2
    )


class _Fast(nn.Module):
    """Computes by one kernel each way: channels-last images in float32 or bfloat16, on a CPU with a C++ compiler or a
    GPU with Triton. Elsewhere such a layer is torch's. Equal but for rounding."""

    pad_mode: str
    filt: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = super().forward
        known = not torch.compiler.is_compiling() and x.device.type in _DEVICES  # meta has no autocast
        if not known or not _is_fused(cast := _autocast(x)):
            return plain(x)

        def uncast(x: torch.Tensor) -> torch.Tensor:
            return plain(x.to(self.filt.dtype)).to(x.dtype)

        return _Blur.apply(cast, isinstance(self, MaxBlurPool2d), self.pad_mode == 'reflect', uncast)


class FastBlurPool2d(_Fast, BlurPool2d):
    """timm's blur pooling."""


class FastMaxBlurPool2d(_Fast, MaxBlurPool2d):
    """Ours, with the maximum before the blur."""


_DEVICES = ('cpu', 'cuda')


def _is_fused(x: torch.Tensor) -> bool:
    return is_plain(x, _DEVICES) and are_images(x) and min(x.shape[2:]) > 1 and are_kernels_for(x.device, x.dtype)


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """As a convolution takes its input."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device) and x.dtype is not torch.float64  # which it leaves alone
    return x.to(torch.get_autocast_dtype(device)) if autocast else x


class _Blur(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, maximum: bool, reflect: bool, plain: Any) -> torch.Tensor:
        images, channels, height, width = x.shape
        ctx.sizes, ctx.plain = (images, channels, height, width, maximum, reflect), plain
        ctx.save_for_backward(x)
        if x.is_cuda:
            return triton_kernels(x.device).blur_forward(x, maximum, reflect)
        shape = (images, channels, (height + 1) // 2, (width + 1) // 2)
        y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        call('blur_forward', ctx.sizes, x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        create_graph = torch.is_grad_enabled()
        if create_graph or not (is_plain(grad, _DEVICES) and is_plain(x, _DEVICES) and grad.dtype == x.dtype):
            with torch.enable_grad():
                inputs = x if x.requires_grad else x.detach().requires_grad_()
                (dx,) = torch.autograd.grad(ctx.plain(inputs), inputs, grad, create_graph=create_graph)
                return dx, None, None, None
        grad, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x))
        if x.is_cuda:
            return triton_kernels(x.device).blur_backward(grad, x, *ctx.sizes[4:]), None, None, None
        dx = torch.empty_like(x)
        call('blur_backward', ctx.sizes, grad, x, dx)
        return dx, None, None, None
