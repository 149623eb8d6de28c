"""BatchNorm and the activation after it as one layer on a CPU.

Apart they read and write what a convolution puts out thirteen times in a training step, as one nine times
(two reads and a write forward; four reads and two writes backward) and save one tensor instead of two. The arithmetic
is that of `kernels.cpp`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from imagenette_zoo.layers.kernels import LANES, are_kernels_for, call, is_plain
from imagenette_zoo.layers.mish import Mish

__all__ = ['fuse_norm_act']

# By the type of the activation: its number in kernels.cpp, and torch's function.
_ACTIVATIONS: dict[type[nn.Module], tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    nn.Identity: (0, lambda x: x),
    nn.ReLU: (1, F.relu),
    nn.ReLU6: (2, F.relu6),
    Mish: (3, F.mish),
    nn.SiLU: (4, F.silu),
    nn.Hardswish: (5, F.hardswish),
}


def fuse_norm_act(model: nn.Module) -> None:
    """Makes every timm `BatchNormAct2d` whose activation is among a few compute both at once where it can.

    Those are none, ReLU, ReLU6, Mish, SiLU and Hardswish. It can for channels-last images in float32 or bfloat16 on a
    CPU with a C++ compiler, where channels are a multiple of 16; elsewhere such a layer is timm's. State dicts are
    unaffected; results do not depend on the number of threads.

    Args:
        model: The model; such layers are changed in place.
    """
    for layer in model.modules():
        if type(layer) is BatchNormAct2d and type(layer.act) in _ACTIVATIONS and type(layer.drop) is nn.Identity:
            layer.__class__ = _NormAct2d


class _NormAct2d(BatchNormAct2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not self._is_fused(x):
            return super().forward(x)
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return _normalized(x, scale, self.bias - self.running_mean * scale, type(self.act))
        with torch.no_grad():
            mean, var = _statistics(x)
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            size = x.numel() // x.shape[1]
            self.running_var.lerp_(var * (size / (size - 1)), self.momentum)
        return _NormAct.apply(x, self.weight, self.bias, mean, (var + self.eps).rsqrt_(), self.eps, type(self.act))

    def _is_fused(self, x: torch.Tensor) -> bool:
        return (
            is_plain(x)
            and x.ndim == 4
            and x.shape[1] % LANES == 0
            and x.is_contiguous(memory_format=torch.channels_last)
            and self.affine
            and self.track_running_stats
            and self.momentum is not None
            and all(tensor.dtype is torch.float32 for tensor in (self.weight, self.bias, self.running_mean))
            and x.numel() > x.shape[1]  # torch says what is wrong with a single value
            and (self.training or not (torch.is_grad_enabled() and _is_any_trained(x, self.weight, self.bias)))
            and type(self.act) in _ACTIVATIONS
            and type(self.drop) is nn.Identity
            and not any(_has_hooks(layer) for layer in (self.act, self.drop))
            and are_kernels_for(x.device, x.dtype)
        )


def _has_hooks(layer: nn.Module) -> bool:
    forward = layer._forward_hooks or layer._forward_pre_hooks
    return bool(forward or layer._backward_hooks or layer._backward_pre_hooks)


def _is_any_trained(*tensors: torch.Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)


class _NormAct(torch.autograd.Function):
    """`act(weight * (x - mean) * inverse + bias)`, where mean and inverse are those of x and act is of type `kind`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor,
        inverse: torch.Tensor,
        eps: float,
        kind: type[nn.Module],
    ) -> torch.Tensor:
        scale = weight * inverse
        shift = bias - mean * scale
        ctx.save_for_backward(x, weight, bias)
        ctx.channels = scale, shift, mean, inverse  # not given to hooks, which may change their types
        ctx.eps, ctx.kind = eps, kind
        return _normalized(x, scale, shift, kind)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        fused = is_plain(grad) and is_plain(x) and grad.dtype == x.dtype
        if torch.is_grad_enabled() or not fused:  # create_graph: to be differentiated once more
            return *_plain_gradients(grad, x, weight, bias, ctx.eps, ctx.kind), None, None, None, None
        grad, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x))
        dx = torch.empty_like(x)
        dweight, dbias = (torch.empty_like(ctx.channels[0]) for _ in range(2))
        call('norm_act_backward', (*_sizes(x), _ACTIVATIONS[ctx.kind][0]), grad, x, dx, *ctx.channels, dweight, dbias)
        return dx, dweight, dbias, None, None, None, None


def _plain_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, kind: type[nn.Module]
) -> tuple[torch.Tensor, ...]:
    """By torch's own operators, which can be differentiated."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [  # views, as x may depend on weight and bias
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
            for tensor in (x, weight, bias)
        ]
        y = _ACTIVATIONS[kind][1](F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True, eps=eps))
        return torch.autograd.grad(y, inputs, grad, create_graph=create_graph)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each channel of `(N, C, H, W)`."""
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    var = torch.empty_like(mean)
    call('norm_stats', _sizes(x), x, mean, var)
    return mean, var


def _normalized(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, kind: type[nn.Module]) -> torch.Tensor:
    """`act(scale * x + shift)` of `(N, C, H, W)`, scale and shift by channel, act of type `kind`."""
    y = torch.empty_like(x)
    call('norm_act_forward', (*_sizes(x), _ACTIVATIONS[kind][0]), x, y, scale, shift)
    return y


def _sizes(x: torch.Tensor) -> tuple[int, int]:
    """Pixels of all images, and channels."""
    return x.numel() // x.shape[1], x.shape[1]
