"""Mish activation.

`Mish: A Self Regularized Non-Monotonic Activation Function` - https://arxiv.org/abs/1908.08681
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..kernels.runtime import are_kernels_for, call, is_plain

__all__ = ['Mish', 'much_inference']

# The numbers of elements for which the kernels are used; above them 32-bit indices end. In training the kernels are as
# fast as torch's at the lower end. In inference it is higher: nobody is to wait for a compiler to classify a picture.
FUSED_SIZES = {'training': range(2**12, 2**30), 'inference': range(2**22, 2**30)}
_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)

_much: ContextVar[bool] = ContextVar('much inference', default=False)


@contextmanager
def much_inference() -> Iterator[None]:
    """Lets inference use the kernels from the sizes of training on: much of it pays for compiling them."""
    token = _much.set(True)
    try:
        yield
    finally:
        _much.reset(token)


class Mish(nn.Mish):
    """`x * tanh(softplus(x))`, element by element, for a tensor of any shape.

    For `act_layer=` of any timm model. Costs one exponential instead of three transcendental functions in compiled
    models and, in float32 and bfloat16 on a CPU, in eager ones of at least 4,096 elements in training and 4 million in
    inference (`FUSED_SIZES`). Elsewhere, and in scripted, traced and exported models, it is torch's own, which on a GPU
    is one kernel each way, too. The eager kernels are compiled at their first use, in about two seconds, once a
    machine. Without a working compiler torch's own is used.

    Args:
        inplace: Overwrite the input, where no gradient is needed.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.mish(x, inplace=self.inplace)
        if torch.compiler.is_compiling():
            return F.mish(x, inplace=self.inplace) if _is_exporting() else _algebraic_mish(x)
        if not (is_plain(x) and _is_large(x) and _is_dense(x) and are_kernels_for(x.device, x.dtype)):
            return F.mish(x, inplace=self.inplace)
        if _is_trained(x):
            return _FusedMish.apply(x)
        return _launch('mish_forward', x, out=x if self.inplace else torch.empty_like(x))


def _algebraic_mish(x: torch.Tensor) -> torch.Tensor:
    """With e = exp(x), `tanh(log(1 + e))` is `n / (n + 2)`, n = e (e + 2).

    From 20 on the quotient is 1 in float32 and float64.
    """
    wide = _wide(x)
    e = wide.clamp(max=20).exp()
    n = e * (e + 2)
    return (wide * (n / (n + 2))).to(x.dtype)


def _algebraic_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`grad` times the derivative of `_algebraic_mish`, `n / (n + 2) + 4 x e (e + 1) / (n + 2)^2`."""
    wide = _wide(x)
    low = wide.clamp(max=20)
    e = low.exp()
    n = e * (e + 2)
    q = 1 / (n + 2)
    slope = n * q + low * (4 * e * (e + 1)) * (q * q) + (wide - wide)  # the last: nan at infinity, as torch's
    return (grad * slope).to(grad.dtype)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Half precision is computed in float32: exp(20) overflows it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class _FusedMish(torch.autograd.Function):
    """One kernel forward and one backward, which starts from the input alone."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return _launch('mish_forward', x, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        fused = is_plain(grad) and is_plain(x) and _is_dense(x) and x.dtype == grad.dtype
        if torch.is_grad_enabled() or not fused:  # create_graph: to be differentiated once more
            return _algebraic_gradient(grad, x)
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        return _launch('mish_backward', grad, x, out=torch.empty_like(x))


def _launch(kernel: str, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Runs over dense tensors of the same strides as over one row, whatever their memory format."""
    call(kernel, [out.numel()], *inputs, out)
    torch.autograd.graph.increment_version(out)  # autograd sees that it was written to
    return out


def _is_large(x: torch.Tensor) -> bool:
    return x.numel() in FUSED_SIZES['training' if _much.get() or _is_trained(x) else 'inference']


def _is_trained(x: torch.Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _is_dense(x: torch.Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and any(x.is_contiguous(memory_format=memory_format) for memory_format in _FORMATS)


def _is_exporting() -> bool:
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()  # since torch 2.7
