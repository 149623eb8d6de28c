"""Max-blur pooling: a maximum, then a blur, then every second pixel.

`Making Convolutional Networks Shift-Invariant Again` - https://arxiv.org/abs/1904.11486
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BlurPool2d

__all__ = ['MaxBlurPool2d']


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
