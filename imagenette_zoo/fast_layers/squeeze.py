"""Squeeze-and-excitation whose backward pass keeps to channels-last on a CPU.

torch spreads the gradient of a mean over the pixels in another memory layout than the image has, and adding it to the
image's other gradient then takes several times as long as it has to (docs/log.md).
"""

from typing import Any

import torch
from timm.layers import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from ..kernels.runtime import is_plain

__all__ = ['FastEffectiveSEModule', 'FastSEModule', 'FastSqueezeExcite', 'has_only_mean']


def has_only_mean(layer: nn.Module) -> bool:
    """Whether it squeezes by the mean, without the maximum."""
    return not getattr(layer, 'add_maxpool', False)


class FastSEModule(SEModule):
    """timm's `SEModule` with that backward pass; values and gradients are timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_plain(x):
            return super().forward(x)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(_Mean.apply(x))))))


class FastEffectiveSEModule(EffectiveSEModule):
    """timm's `EffectiveSEModule` with that backward pass; values and gradients are timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc(_Mean.apply(x))) if is_plain(x) else super().forward(x)


class FastSqueezeExcite(SqueezeExcite):
    """timm's `SqueezeExcite` with that backward pass; values and gradients are timm's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_plain(x):
            return super().forward(x)
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(_Mean.apply(x)))))


class _Mean(torch.autograd.Function):
    """The mean of the pixels of `(N, C, H, W)`; its gradient is a view of one number a channel."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        _, _, height, width = ctx.shape
        return (grad / (height * width)).expand(ctx.shape)
