"""A block of one's own: SimAM, attention without parameters (Yang et al., ICML 2021), in the blocks of a ResNet.

imagenette-zoo run resnet10t resnet10t_simam -c demo --import own_block.py
"""

import timm
import torch
from timm.models import register_model
from torch import nn


class SimAM(nn.Module):
    """Weighs each position of each channel by how far it stands out from the others of its channel (equation 5)."""

    def __init__(self, channels: int, regularization: float = 1e-4, **_: object) -> None:  # timm: device, dtype
        super().__init__()
        self.regularization = regularization

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = (x - x.mean((2, 3), keepdim=True)).square()
        variance = squares.sum((2, 3), keepdim=True) / max(1, x.shape[2] * x.shape[3] - 1)
        return x * torch.sigmoid(squares / (4 * (variance + self.regularization)) + 0.5)


@register_model
def resnet10t_simam(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """timm's smallest ResNet with SimAM after the convolutions of each block."""
    return timm.create_model('resnet10t', block_args={'attn_layer': SimAM}, **kwargs)
