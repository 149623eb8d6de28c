"""1×1 convolutions with a stride over few channels, as in the stems of RepVGG, MobileOne and FastViT.

For channels-last images oneDNN writes past the end of its memory in their backward pass where there are fewer than 16
channels (found with torch 2.14), after which anything may happen.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ['subsample_before']


def subsample_before(model: nn.Module) -> None:
    """Makes those convolutions leave out pixels first, on a CPU: the same result by another way.

    State dicts are unaffected.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_affected(layer):
            layer.__class__ = _SubsampledConv2d


def _is_affected(layer: nn.Conv2d) -> bool:
    pointwise = layer.kernel_size == (1, 1) and layer.padding == (0, 0)
    return pointwise and max(layer.stride) > 1 and layer.groups == 1 and layer.in_channels < 16


class _SubsampledConv2d(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.device.type != 'cpu':
            return super()._conv_forward(x, weight, bias)
        down, across = self.stride
        x = x[..., ::down, ::across].contiguous(memory_format=torch.channels_last)
        return F.conv2d(x, weight, bias)
