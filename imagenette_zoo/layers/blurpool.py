"""Anti-aliased max pooling.

`Making Convolutional Networks Shift-Invariant Again` - https://arxiv.org/abs/1904.11486
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BlurPool2d

from imagenette_zoo.layers.kernels import are_images, are_kernels_for, call, is_plain, triton_kernels

__all__ = ['MaxBlurPool2d', 'speed_up_blur']


class MaxBlurPool2d(BlurPool2d):
    """Max pooling split in two: the maximum at every pixel, then a binomial blur that is subsampled.

    `(N, C, H, W)` becomes `(N, C, ceil(H / stride), ceil(W / stride))`, the size that a padded strided convolution
    gives, so the layer can stand wherever timm takes an `aa_layer`. Away from the border it equals kornia's
    `MaxBlurPool2D`. At the border the maximum is taken over the pixels there are and the blur repeats the outermost
    one: a constant image stays constant and, unlike with reflection, a map may be smaller than the kernel.

    Args:
        channels: Number of channels C, or None for any.
        kernel_size: Side of the blur kernel, pixels.
        stride: Subsampling factor.
        max_kernel_size: Side of the maximum's window, pixels; an even window reaches one pixel further to the right
            and down. The default 2 with a blur of 3 sees 4 pixels, the nearest to the 3 of the usual stem pool.
        **factory_kwargs: `device` and `dtype`, for the versions of timm whose layers take them.
    """

    def __init__(
        self,
        channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 2,
        max_kernel_size: int = 2,
        **factory_kwargs: Any,
    ) -> None:
        super().__init__(channels, filt_size=kernel_size, stride=stride, pad_mode='replicate', **factory_kwargs)
        # timm pads both sides alike, which for an even kernel or another stride than 2 is a pixel too many.
        self.padding = [(kernel_size - 1) // 2, kernel_size // 2] * 2
        self.max_kernel_size = max_kernel_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, self.max_kernel_size, stride=1, padding=self.max_kernel_size // 2)
        if self.max_kernel_size % 2 == 0:  # an even window, padded on both sides, yields a row and a column too many
            x = x[:, :, 1:, 1:]
        x = F.pad(x, self.padding, mode=self.pad_mode)
        if self.channels is not None:
            return F.conv2d(x, self.filt, stride=self.stride, groups=self.channels)
        # new_ones() and not filt.expand(), which FX can't trace.
        return F.conv2d(x, self.filt * x.new_ones(x.shape[1], 1, 1, 1), stride=self.stride, groups=x.shape[1])


def speed_up_blur(model: nn.Module) -> None:
    """Makes every :class:`MaxBlurPool2d` and timm `BlurPool2d` of kernel 3 and stride 2 compute by one kernel each way.

    That is for channels-last images in float32 or bfloat16 on a CPU with a C++ compiler or a GPU with Triton; elsewhere
    such a layer is torch's. Equal but for rounding.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if (
            isinstance(layer, BlurPool2d)
            and type(layer) in _FAST
            and layer.filt.shape[-1] == 3
            and (layer.stride, layer.padding) == (2, [1] * 4)
            and layer.pad_mode in ('reflect', 'replicate')
            and getattr(layer, 'max_kernel_size', 2) == 2
        ):
            layer.__class__ = _FAST[type(layer)]


class _Fast(nn.Module):
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


class _FastBlurPool2d(_Fast, BlurPool2d):
    pass


class _FastMaxBlurPool2d(_Fast, MaxBlurPool2d):
    pass


_DEVICES = ('cpu', 'cuda')
_FAST = {BlurPool2d: _FastBlurPool2d, MaxBlurPool2d: _FastMaxBlurPool2d}


def _is_fused(x: torch.Tensor) -> bool:
    return is_plain(x, _DEVICES) and are_images(x) and min(x.shape[2:]) > 1 and are_kernels_for(x.device, x.dtype)


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """As a convolution takes its input."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


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
