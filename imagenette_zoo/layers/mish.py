"""Mish activation.

`Mish: A Self Regularized Non-Monotonic Activation Function` - https://arxiv.org/abs/1908.08681
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ['Mish']


class Mish(nn.Mish):
    """`x * tanh(softplus(x))`, element by element, for a tensor of any shape.

    For `act_layer=` of any timm model. In a compiled model it costs one exponential instead of three transcendental
    functions; elsewhere, and in scripted, traced and exported models, it is torch's own.

    Args:
        inplace: Overwrite the input.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.mish(x, inplace=self.inplace)
        if torch.compiler.is_compiling() and not _is_exporting():
            return _algebraic_mish(x)
        return F.mish(x, inplace=self.inplace)


def _algebraic_mish(x: torch.Tensor) -> torch.Tensor:
    """With e = exp(x), `tanh(log(1 + e))` is `n / (n + 2)`, n = e (e + 2).

    From 20 on the quotient is 1 in float32 and float64. Half precision is computed in float32: exp(20) overflows it.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    e = wide.clamp(max=20).exp()
    n = e * (e + 2)
    return (wide * (n / (n + 2))).to(x.dtype)


def _is_exporting() -> bool:
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()  # since torch 2.7
