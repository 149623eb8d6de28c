"""An activation of one's own: TanhExp, x·tanh(eˣ) (Liu and Di 2020, arXiv 2003.09855).

imagenette-zoo run mbv2_mish_imagenette --vary act_layer=relu6,mish,own_activation:TanhExp --import own_activation.py
"""

import torch
from torch import nn


class TanhExp(nn.Module):
    """timm's models make their activations by `act_layer(inplace=…)`."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tanh(torch.exp(x.clamp(max=3)))  # from 3 on tanh is 1 in single precision
