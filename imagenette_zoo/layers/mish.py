"""Mish activation.

`Mish: A Self Regularized Non-Monotonic Activation Function` - https://arxiv.org/abs/1908.08681
"""

import torch.nn as nn

__all__ = ['Mish']


class Mish(nn.Mish):
    """`x * tanh(softplus(x))`, element by element, for a tensor of any shape.

    For `act_layer=` of any timm model.

    Args:
        inplace: Overwrite the input.
    """
