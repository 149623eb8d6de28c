"""The memory layout of a model."""

from itertools import chain
from typing import TypeVar

import torch
from torch import nn

__all__ = ['to_channels_last']

Model = TypeVar('Model', bound=nn.Module)


def to_channels_last(model: Model) -> Model:
    """Puts weights of four axes into channels-last layout, in place.

    `model.to(memory_format=torch.channels_last)` fails where there are weights of five axes, as in timm's lambda
    networks.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
