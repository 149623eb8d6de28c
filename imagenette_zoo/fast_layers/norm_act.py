"""BatchNorm and the activation after it as one layer.

As two layers they read and write a convolution's output thirteen times in a training step, as one nine times (two
reads and a write forward; four reads and two writes backward). One saves one tensor for the backward pass, two save
two. The arithmetic is that of `cpu.cpp` and `gpu`.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

from ..kernels.runtime import are_images, are_kernels_for, call, is_plain, triton_kernels
from ..layers.mish import Mish

__all__ = ['Norm2d', 'NormAct2d', 'has_known_act']

# By the type of the activation: its number in cpu.cpp, and torch's function.
_ACTIVATIONS: dict[type[nn.Module], tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    nn.Identity: (0, lambda x: x),
    nn.ReLU: (1, F.relu),
    nn.ReLU6: (2, F.relu6),
    Mish: (3, F.mish),
    nn.Mish: (3, F.mish),
    nn.SiLU: (4, F.silu),
    nn.Hardswish: (5, F.hardswish),
}
_DEVICES = ('cpu', 'cuda')
_NONE = nn.Identity()


def has_known_act(layer: BatchNormAct2d) -> bool:
    """Whether the kernels know its activation: none, ReLU, ReLU6, Mish, SiLU or Hardswish."""
    return type(layer.act) in _ACTIVATIONS and type(layer.drop) is nn.Identity


class Norm2d(nn.BatchNorm2d):
    """BatchNorm in training, by one kernel each way where it can.

    It can for channels-last images in float32 or bfloat16 on a CPU with a C++ compiler, where channels are a multiple
    of 16, and on a GPU with Triton, in float16, too, where they are a multiple of 8. Elsewhere it is torch's layer.

    On a CPU results do not depend on the number of threads. torch's do, and its variance of many pixels is 1e-3 off.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not self._is_fused(x):
            return super().forward(x)
        if not self.training:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            return _normalized(x, torch.stack((scale, self.bias - self.running_mean * scale)), self._kind)
        with torch.no_grad():
            stats = _statistics(x, self)
        return _NormAct.apply(x, self.weight, self.bias, stats, self.eps, self._kind)

    @property
    def _kind(self) -> type[nn.Module]:
        act: nn.Module = getattr(self, 'act', _NONE)
        return type(act)

    def _is_fused(self, x: torch.Tensor) -> bool:
        return (
            is_plain(x, _DEVICES)
            and are_images(x)
            and x.shape[1] == self.num_features
            and self.affine
            and all(is_plain(tensor, _DEVICES) for tensor in (self.weight, self.bias))
            and self.track_running_stats
            and not any(buffer is None for buffer in self._buffers.values())
            and self.momentum is not None
            and all(tensor.dtype is torch.float32 for tensor in (self.weight, self.bias, self.running_mean))
            and x.numel() > x.shape[1]  # torch says what is wrong with a single value
            and (self.training or not (torch.is_grad_enabled() and _is_any_trained(x, self.weight, self.bias)))
            # in evaluation torch's norm alone is as exact and faster, on a GPU also an activation as a second launch
            and (self.training or (isinstance(self, NormAct2d) and not x.is_cuda))
            and self._kind in _ACTIVATIONS
            and type(getattr(self, 'drop', _NONE)) is nn.Identity
            and not any(_has_hooks(getattr(self, name, _NONE)) for name in ('act', 'drop'))
            and are_kernels_for(x.device, x.dtype)
        )


class NormAct2d(Norm2d, BatchNormAct2d):
    """timm's BatchNorm with its activation as one layer, on a CPU also in evaluation; else as `Norm2d`."""


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
        stats: torch.Tensor,
        eps: float,
        kind: type[nn.Module],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.stats = stats  # not given to hooks, which may change its type
        ctx.eps, ctx.kind = eps, kind
        return _normalized(x, stats, kind)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        fused = is_plain(grad, _DEVICES) and is_plain(x, _DEVICES) and grad.dtype == x.dtype
        if torch.is_grad_enabled() or not fused:  # create_graph: to be differentiated once more
            return *_plain_gradients(grad, x, weight, bias, ctx.eps, ctx.kind), None, None, None
        grad, x = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, x))
        return *_gradients(grad, x, ctx.stats, ctx.kind), None, None, None


def _plain_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, kind: type[nn.Module]
) -> tuple[torch.Tensor, ...]:
    """The gradients by torch's own operators, which can be differentiated."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        inputs = [  # views, as x may depend on weight and bias
            tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
            for tensor in (x, weight, bias)
        ]
        y = _ACTIVATIONS[kind][1](F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True, eps=eps))
        return torch.autograd.grad(y, inputs, grad, create_graph=create_graph)


def _statistics(x: torch.Tensor, layer: Norm2d) -> torch.Tensor:
    """`(4, C)` of a batch `(N, C, H, W)`: scale and shift that normalise its channels, their mean and the inverse of
    their standard deviation. Updates the layer's running statistics."""
    if (gpu := _gpu(x)) is not None:
        running = layer.running_mean, layer.running_var, layer.num_batches_tracked
        return gpu.norm_stats(x, layer.weight, layer.bias, *running, layer.momentum, layer.eps)
    mean = x.new_empty(x.shape[1], dtype=torch.float32)
    var = torch.empty_like(mean)
    call('norm_stats', _sizes(x), x, mean, var)
    layer.num_batches_tracked.add_(1)
    layer.running_mean.lerp_(mean, layer.momentum)
    size = x.numel() // x.shape[1]
    layer.running_var.lerp_(var * (size / (size - 1)), layer.momentum)
    inverse = (var + layer.eps).rsqrt_()
    scale = layer.weight * inverse
    return torch.stack((scale, layer.bias - mean * scale, mean, inverse))


def _normalized(x: torch.Tensor, stats: torch.Tensor, kind: type[nn.Module]) -> torch.Tensor:
    """`act(stats[0] * x + stats[1])` of `(N, C, H, W)` by channel, act of type `kind`."""
    if (gpu := _gpu(x)) is not None:
        return gpu.norm_act_forward(x, stats, _ACTIVATIONS[kind][0])
    y = torch.empty_like(x)
    call('norm_act_forward', (*_sizes(x), _ACTIVATIONS[kind][0]), x, y, *stats[:2])
    return y


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, kind: type[nn.Module]
) -> tuple[torch.Tensor, ...]:
    """The gradients of x, weight and bias, by the result of `_statistics`."""
    if (gpu := _gpu(x)) is not None:
        return gpu.norm_act_backward(grad, x, stats, _ACTIVATIONS[kind][0])
    dx, (dweight, dbias) = torch.empty_like(x), torch.empty_like(stats[:2])
    call('norm_act_backward', (*_sizes(x), _ACTIVATIONS[kind][0]), grad, x, dx, *stats, dweight, dbias)
    return dx, dweight, dbias


def _gpu(x: torch.Tensor) -> Any:
    return triton_kernels(x.device) if x.is_cuda else None


def _sizes(x: torch.Tensor) -> tuple[int, int]:
    """Pixels of all images, and channels."""
    return x.numel() // x.shape[1], x.shape[1]
