"""Mish activation.

`Mish: A Self Regularized Non-Monotonic Activation Function` - https://arxiv.org/abs/1908.08681
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..kernels.runtime import are_kernels_for, call, is_plain
from ..utils.files import keep_inductor_private

__all__ = ['Mish', 'much_inference']

# Elements from which on the kernels are used, and at which their 32-bit indices end. In training they are as fast as
# torch's at the first of these; a person who classifies a picture or two is not to wait for a compiler.
FUSED_SIZES = {'training': range(2**12, 2**30), 'inference': range(2**22, 2**30)}
_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)

Kernel = Callable[..., None]
_kernels: dict[tuple[torch.device, torch.dtype, int], tuple[Kernel, Kernel] | None] = {}
_lock = threading.Lock()
_much: ContextVar[bool] = ContextVar('much inference', default=False)
_logger = logging.getLogger(__name__)


@contextmanager
def much_inference() -> Iterator[None]:
    """Within it the kernels are worth compiling from the sizes of training on, also for inference."""
    token = _much.set(True)
    try:
        yield
    finally:
        _much.reset(token)


class Mish(nn.Mish):
    """`x * tanh(softplus(x))`, element by element, for a tensor of any shape.

    For `act_layer=` of any timm model. Costs one exponential instead of three transcendental functions in compiled
    models and, from 4,096 elements in training and 4 million in inference on (`FUSED_SIZES`), in eager ones
    on a CPU; elsewhere, and in scripted, traced and exported models, it is torch's own, which on a GPU is one kernel
    each way, too. The eager kernels are compiled at their first use: those of `cpu.cpp` (float32 and bfloat16) in
    about two seconds, once a machine; others by inductor in about 14 s, and 4 s in later processes. Without a working
    compiler torch's own is used.

    Args:
        inplace: Overwrite the input, where no gradient is needed.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.mish(x, inplace=self.inplace)
        if torch.compiler.is_compiling():
            return F.mish(x, inplace=self.inplace) if _is_exporting() else _algebraic_mish(x)
        kernels = _kernels_for(x) if is_plain(x) and _is_large(x) and _is_dense(x) else None
        if kernels is None:
            return F.mish(x, inplace=self.inplace)
        if _is_trained(x):
            return _FusedMish.apply(x, kernels)
        return _launch(kernels[0], x, out=x if self.inplace else torch.empty_like(x))


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
    def forward(ctx: Any, x: torch.Tensor, kernels: tuple[Kernel, Kernel]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.kernel = kernels[1]
        return _launch(kernels[0], x, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        fused = is_plain(grad) and is_plain(x) and _is_dense(x) and x.dtype == grad.dtype
        if torch.is_grad_enabled() or not fused:  # create_graph: to be differentiated once more
            return _algebraic_gradient(grad, x), None
        if grad.stride() != x.stride():
            grad = torch.empty_like(x).copy_(grad)
        return _launch(ctx.kernel, grad, x, out=torch.empty_like(x)), None


def _launch(kernel: Kernel, *inputs: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Runs over dense tensors of the same strides as over one row, whatever their memory format."""
    kernel(*(tensor.as_strided((tensor.numel(),), (1,)) for tensor in (*inputs, out)))
    return out


def _is_large(x: torch.Tensor) -> bool:
    return x.numel() in FUSED_SIZES['training' if _much.get() or _is_trained(x) else 'inference']


def _is_trained(x: torch.Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _is_dense(x: torch.Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and any(x.is_contiguous(memory_format=memory_format) for memory_format in _FORMATS)


def _kernels_for(x: torch.Tensor) -> tuple[Kernel, Kernel] | None:
    """The forward and the backward kernel, compiled once; None where that failed."""
    key = (x.device, x.dtype, torch.get_num_threads())
    if key not in _kernels:
        with _lock:
            if key not in _kernels:
                _kernels[key] = _compile(x.device, x.dtype)
    return _kernels[key]


def _compile(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, Kernel] | None:
    """By `cpu.cpp` where it can, else by inductor without dynamo: no guards, so no further compile and nothing for
    `torch._dynamo.reset()` to undo.

    The examples have one size, so that the kernels do not depend on the tensor that came first.
    """
    if are_kernels_for(device, dtype):
        return partial(_call, 'mish_forward'), partial(_call, 'mish_backward')
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            x = torch.linspace(-30, 30, 2**22, device=device).to(dtype)
            grad, out = x + 1, torch.empty_like(x)
            forward = _inductor(lambda x, out: out.copy_(_algebraic_mish(x)), x, out)
            backward = _inductor(lambda grad, x, out: out.copy_(_algebraic_gradient(grad, x)), grad, x, out)
            x, grad, out = x[:-1], grad[:-1], out[:-1]  # at another size: a miscompiled kernel is worse than none
            forward(x, out)
            torch.testing.assert_close(out, F.mish(x), rtol=0.02, atol=0.02)
            backward(grad, x, out)
            torch.testing.assert_close(out, torch.ops.aten.mish_backward(grad, x), rtol=0.02, atol=0.02)
            return forward, backward
    except Exception:  # no compiler, a full disk, ...: torch's own is always right
        _logger.debug('no fused Mish for %s on %s', dtype, device, exc_info=True)
        return None


def _call(name: str, *tensors: torch.Tensor) -> None:
    call(name, [tensors[0].numel()], *tensors)
    torch.autograd.graph.increment_version(tensors[-1])  # autograd sees that it was written to


def _inductor(function: Callable[..., torch.Tensor], *examples: torch.Tensor) -> Kernel:
    keep_inductor_private()
    import torch._inductor.config as config  # here: slow to import
    from torch._inductor.compile_fx import compile_fx
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode='symbolic')(*examples)
    symbolic = [node.meta['val'] for node in graph.graph.nodes if node.op == 'placeholder']
    # no pool of processes for two kernels; what is slow, the C++ compile, is cached apart from the graph
    with config.patch({'compile_threads': 1, 'fx_graph_cache': False}):
        kernel: Any = compile_fx(graph, symbolic)
    return kernel


def _is_exporting() -> bool:
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()  # since torch 2.7
