"""MultiPass: several residual blocks look at the same input and their outputs are merged.

In training n passes cost n times as much as one. For inference `MultiPass.fuse()` turns n inverted residuals
(`MobileNetV2` - https://arxiv.org/abs/1801.04381) into one of n times the width that computes the same function:
with `f_i(x) = P_i a(D_i a(E_i x))`, the mean of `x + f_i(x)` is `x + [P_1 .. P_n]/n a(D a(E x))`, where E stacks the
expansions and D the depthwise convolutions.
"""

import copy
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BlurPool2d
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual

from .fuse import fold_norm, why_not_folded

__all__ = ['MultiPass', 'WideInvertedResidual']

_logger = logging.getLogger(__name__)


class MultiPass(nn.Module):
    """Runs several blocks on one input and merges what they return.

    `(N, C, H, W)` goes to every pass; their outputs must have one shape, which is the output's.

    Args:
        passes: The blocks, initialised independently of one another: equal ones would stay equal.
        merge: `mean` or `max`, element by element.

    Raises:
        ValueError: There is no pass, or `merge` is unknown.
    """

    def __init__(self, passes: Sequence[nn.Module], merge: str = 'mean') -> None:
        super().__init__()
        if not passes:
            raise ValueError('MultiPass needs at least one block')
        if merge not in ('mean', 'max'):
            raise ValueError(f"merge must be 'mean' or 'max', not {merge!r}")
        self.passes = nn.ModuleList(passes)
        self.merge = merge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = [block(x) for block in self.passes]
        merged = outs[0]
        for out in outs[1:]:
            merged = torch.maximum(merged, out) if self.merge == 'max' else merged + out
        return merged if self.merge == 'max' else merged / len(self.passes)

    def extra_repr(self) -> str:
        return f'merge={self.merge!r}'

    def feature_info(self, location: str) -> dict[str, Any]:
        """The entry that timm's EfficientNet builder asks of every block: that of the first pass."""
        first: Any = self.passes[0]
        info = first.feature_info(location)
        return {**info, 'module': f'passes.0.{info["module"]}'} if info['module'] else info

    def fuse(self) -> nn.Module:
        """Returns one block that computes what all passes do in eval mode, found by timm's `reparameterize_model`.

        Where that can't be done exactly (only a mean of plain inverted residuals can), logs the reason and returns
        `self`.
        """
        try:
            return _fuse(tuple(self.passes), self.merge)
        except _NotFusableError as reason:
            _warn_once(f'MultiPass is not fused: {reason}')
            return self


class WideInvertedResidual(nn.Module):
    """Inverted residual whose normalisation is folded into its convolutions: what `MultiPass.fuse()` returns.

    `(N, C, H, W)` becomes `(N, C_out, H / stride, W / stride)`.

    Args:
        expand: Point-wise convolution with its activation; identity for a depthwise-separable block.
        depthwise: Depthwise convolution with its activation and anti-aliasing.
        project: Point-wise convolution.
        has_skip: Add the input to the output.
    """

    def __init__(self, expand: nn.Module, depthwise: nn.Module, project: nn.Module, has_skip: bool) -> None:
        super().__init__()
        self.expand = expand
        self.depthwise = depthwise
        self.project = project
        self.has_skip = has_skip

    def feature_info(self, location: str) -> dict[str, Any]:
        """The entry that timm asks of every block; only the output can be named."""
        return {'module': '', 'num_chs': self.project.out_channels}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.has_skip else y


class _Branches(nn.Module):
    """Concatenates the channels of what several convolutions make of one input."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([conv(x) for conv in self.convs], dim=1)


@lru_cache
def _warn_once(message: str) -> None:
    """A model has many blocks that are alike."""
    _logger.warning(message)


class _NotFusableError(Exception):
    """Says why passes have no exact single block."""


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise _NotFusableError(reason)


@torch.no_grad()
def _fuse(passes: Sequence[Any], merge: str) -> WideInvertedResidual:
    """Builds the wide block in float64, so that only the last rounding differs from the passes."""
    _require(merge == 'mean', f'merge={merge!r} is not linear')
    kind = type(passes[0])
    _require(
        kind in (InvertedResidual, DepthwiseSeparableConv) and all(type(block) is kind for block in passes),
        f'{" and ".join(sorted({type(block).__name__ for block in passes}))} has no exact wide form',
    )
    _require(all(block.conv_s2d is None for block in passes), 'a pass starts with space-to-depth')
    _require(all(isinstance(block.se, nn.Identity) for block in passes), 'a pass has squeeze-and-excitation')
    _require(len({block.has_skip for block in passes}) == 1, 'only some passes have a skip connection')

    aa = _widen_anti_aliasing([block.aa for block in passes], sum(block.conv_dw.out_channels for block in passes))
    if kind is InvertedResidual:
        expand, depthwise, project = zip(*map(_inverted_residual_layers, passes), strict=True)
        expand_block: nn.Module = nn.Sequential(_stack_pointwise(expand), _common_activation([p.bn1 for p in passes]))
        depthwise_block = nn.Sequential(_stack_depthwise(depthwise), _common_activation([p.bn2 for p in passes]), aa)
    else:
        _require(not any(block.has_pw_act for block in passes), 'a pass ends in an activation')
        depthwise, project = zip(*map(_separable_layers, passes), strict=True)
        expand_block = nn.Identity()
        # A depthwise convolution each beats one grouped convolution with n outputs a channel, which CPU kernels handle
        # badly: batch 16, 32 channels, 64 px, n = 2, 1 / 2 threads of an EPYC: 7.4 / 4.7 against 11.6 / 7.4 ms, and in
        # channels-last 3.6 / 2.9 against 11.9 / 6.9 ms.
        depthwise_block = nn.Sequential(_Branches(depthwise), _common_activation([p.bn1 for p in passes]), aa)
    block = WideInvertedResidual(expand_block, depthwise_block, _mean_of_projections(project), passes[0].has_skip)
    return block.to(passes[0].conv_dw.weight).train(passes[0].training)


def _inverted_residual_layers(block: InvertedResidual) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    return (
        _fold_norm(block.conv_pw, block.bn1),
        _fold_norm(block.conv_dw, block.bn2),
        _fold_norm(block.conv_pwl, block.bn3),
    )


def _separable_layers(block: DepthwiseSeparableConv) -> tuple[nn.Conv2d, nn.Conv2d]:
    return _fold_norm(block.conv_dw, block.bn1), _fold_norm(block.conv_pw, block.bn2)


def _fold_norm(conv: Any, norm: Any) -> nn.Conv2d:
    """The convolution, in float64 on the CPU, that equals `norm(conv(x))` in eval mode but for the activation."""
    _require(type(conv) is nn.Conv2d, f'{type(conv).__name__} is not a plain convolution')
    reason = why_not_folded(conv, norm)
    _require(not reason, reason)
    return fold_norm(conv, norm)


def _common_activation(norms: Sequence[nn.Module]) -> nn.Module:
    """The activation that follows each of the normalisations."""
    activations = [getattr(norm, 'act', nn.Identity()) for norm in norms]
    _require(_alike(activations), 'the passes have different activations')
    _require(not any(act.state_dict() for act in activations), 'the activation has parameters of its own')
    return copy.deepcopy(activations[0])


def _widen_anti_aliasing(aa_layers: Sequence[nn.Module], channels: int) -> nn.Module:
    """The wide block's anti-aliasing layer, where the passes' treats every channel alike."""
    aa = copy.deepcopy(aa_layers[0])
    _require(_alike(aa_layers), 'the passes have different anti-aliasing layers')
    if isinstance(aa, BlurPool2d):
        aa.channels, aa.filt = channels, aa.filt[:1].repeat(channels, 1, 1, 1)
    else:
        _require(isinstance(aa, nn.Identity | nn.AvgPool2d), f'{type(aa).__name__} may depend on the channel')
    return aa


def _alike(layers: Sequence[nn.Module]) -> bool:
    """Whether layers without parameters have the same type and settings."""
    # vars() as well, since many of timm's layers, BlurPool2d among them, don't print their settings.
    # The number of channels may differ, as the passes' widths may.
    settings = [
        {name: value for name, value in vars(layer).items() if name[0] != '_' and name != 'channels'}
        for layer in layers
    ]
    return all(repr(layer) == repr(layers[0]) for layer in layers) and all(each == settings[0] for each in settings)


def _stack_pointwise(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    _require(all(conv.kernel_size == (1, 1) and conv.groups == 1 for conv in convs), 'an expansion is not point-wise')
    return _conv(torch.cat([conv.weight for conv in convs]), torch.cat([conv.get_parameter('bias') for conv in convs]))


def _mean_of_projections(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    _require(all(conv.kernel_size == (1, 1) and conv.groups == 1 for conv in convs), 'a projection is not point-wise')
    bias = torch.stack([conv.get_parameter('bias') for conv in convs]).mean(0)
    return _conv(torch.cat([conv.weight for conv in convs], dim=1) / len(convs), bias)


def _stack_depthwise(convs: Sequence[nn.Conv2d]) -> nn.Conv2d:
    """One depthwise convolution over all passes' channels, smaller kernels zero-padded to the largest.

    The padded zeros cost less than keeping the kernel sizes apart, which needs a split, a concatenation and n small
    convolutions. Kernels 3, 5, 7 on the shapes of `mbv2_mish_mp3_imagenette` at 128 and 224 px, one layer of each, ms
    on 1 / 2 threads of an EPYC, apart against padded: batch 1, 6.4 / 7.9 against 7.3 / 5.7, channels-last 8.1 / 6.6
    against 6.0 / 3.6; batch 16, 225 / 131 against 237 / 144, channels-last 86 / 55 against 67 / 35.
    """
    _require(all(conv.groups == conv.in_channels for conv in convs), 'a convolution is not depthwise')
    _require(len({conv.stride for conv in convs}) == 1, 'the passes have different strides')
    _require(all(_is_centred(conv) for conv in convs), 'a depthwise convolution is not centred')
    dilation = math.gcd(*(conv.dilation[0] for conv in convs))
    kernel_size = max((conv.kernel_size[0] - 1) * conv.dilation[0] // dilation + 1 for conv in convs)
    weight = torch.cat([_spread(conv.weight, conv.dilation[0] // dilation, kernel_size) for conv in convs])
    return _conv(
        weight,
        torch.cat([conv.get_parameter('bias') for conv in convs]),
        stride=convs[0].stride,
        padding=dilation * (kernel_size - 1) // 2,
        dilation=dilation,
        groups=len(weight),
    )


def _is_centred(conv: nn.Conv2d) -> bool:
    """Whether the kernel is square, odd and centred on the pixels 0, stride, 2 stride, ..."""
    size, dilation = conv.kernel_size[0], conv.dilation[0]
    return (
        conv.kernel_size == (size, size)
        and size % 2 == 1
        and conv.dilation == (dilation, dilation)
        and conv.padding == (dilation * (size - 1) // 2,) * 2
        and conv.padding_mode == 'zeros'
    )


def _spread(weight: torch.Tensor, step: int, size: int) -> torch.Tensor:
    """Lays a kernel's taps `step` apart in the middle of a `size` x `size` kernel of zeros."""
    spread = weight.new_zeros(*weight.shape[:2], *((taps - 1) * step + 1 for taps in weight.shape[2:]))
    spread[..., ::step, ::step] = weight
    return F.pad(spread, [(size - spread.shape[-1]) // 2] * 4)


def _conv(weight: torch.Tensor, bias: torch.Tensor, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """A convolution of the given weight `(C_out, C_in / groups, k, k)` and bias `(C_out,)`."""
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels * groups, out_channels, size, groups=groups, dtype=weight.dtype, **geometry)
    conv.weight.copy_(weight)
    conv.get_parameter('bias').copy_(bias)
    return conv
