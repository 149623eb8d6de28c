"""MobileNetV2 for Imagenette, with Mish, anti-aliased downsampling and MultiPass bottlenecks.

timm's EfficientNet and its builder make the network. Where a stage has several passes, their blocks are wrapped.

`MobileNetV2: Inverted Residuals and Linear Bottlenecks` - https://arxiv.org/abs/1801.04381
"""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch.nn as nn
from timm.models import EfficientNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._efficientnet_builder import (
    EfficientNetBuilder,
    decode_arch_def,
    efficientnet_init_weights,
    resolve_act_layer,
    resolve_bn_args,
    round_channels,
)

from ..layers.blurpool import BlurPool2d, MaxBlurPool2d  # the package may be half imported: timm's import is ours
from ..layers.mish import Mish
from ..layers.multipass import MultiPass
from .configs import imagenette_cfg, packaged_weights

__all__ = ['MobileNetV2']

# Table 2 of the paper: repeats r, kernel k, stride s, expansion e, channels c. Stage 0 has no expansion.
_STAGES = [
    ['ds_r1_k3_s1_c16'],
    ['ir_r2_k3_s2_e6_c24'],
    ['ir_r3_k3_s2_e6_c32'],
    ['ir_r4_k3_s2_e6_c64'],
    ['ir_r3_k3_s1_e6_c96'],
    ['ir_r3_k3_s2_e6_c160'],
    ['ir_r1_k3_s1_e6_c320'],
]


class MobileNetV2(EfficientNet):
    """MobileNetV2 whose bottlenecks may take several passes over their input.

    Args:
        block_args: The stages' blocks, as timm's `decode_arch_def` gives them.
        passes: Passes of every block, by stage; an int means every stage but the first, which has no expansion.
        pass_kernel_sizes: Size of the depthwise kernel by pass, pixels; empty for the stage's own.
        pass_dilations: Dilation of the depthwise kernel by pass; empty for the stage's own.
        merge: How `MultiPass` merges, `mean` or `max`.
        split: Give each pass 1/n of the width, so that n passes cost what one does.
        **kwargs: Of timm's `EfficientNet`.

    Raises:
        ValueError: The settings of the passes contradict one another.
    """

    def __init__(
        self,
        block_args: list[list[dict[str, Any]]],
        passes: int | Sequence[int] = 1,
        pass_kernel_sizes: Sequence[int] = (),
        pass_dilations: Sequence[int] = (),
        merge: str = 'mean',
        split: bool = False,
        **kwargs: Any,
    ) -> None:
        by_stage = _passes_by_stage(passes, len(block_args))
        _check_one_setting_a_pass('pass_kernel_sizes', pass_kernel_sizes, by_stage)
        _check_one_setting_a_pass('pass_dilations', pass_dilations, by_stage)
        super().__init__(deepcopy(block_args), **kwargs)  # a copy, since timm's builder consumes the arguments
        if max(by_stage) == 1:
            return
        for n, stage in zip(by_stage, block_args, strict=True):
            for block in stage if n > 1 else []:
                block['passes'] = [_pass_args(block, n, i, pass_kernel_sizes, pass_dilations, split) for i in range(n)]
        # The same trunk once more: timm's EfficientNet takes no builder. Features keep their positions and sizes.
        given = {name: kwargs[name] for name in _BUILDER_ARGS if kwargs.get(name) is not None}
        builder = _MultiPassBuilder(merge, **{'act_layer': nn.ReLU, 'norm_layer': nn.BatchNorm2d, **given})
        self.blocks = nn.Sequential(*builder(self.conv_stem.out_channels, block_args))
        efficientnet_init_weights(self.blocks)


_BUILDER_ARGS = (
    'output_stride',
    'pad_type',
    'round_chs_fn',
    'act_layer',
    'norm_layer',
    'aa_layer',
    'se_layer',
    'drop_path_rate',
    'device',
    'dtype',
)


class _MultiPassBuilder(EfficientNetBuilder):
    """timm's builder, but a block with `passes` in its arguments becomes a `MultiPass` of such blocks."""

    in_chs: int

    def __init__(self, merge: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.merge = merge

    def _make_block(self, ba: dict[str, Any], block_idx: int, block_count: int) -> nn.Module:
        passes = ba.pop('passes', None)
        if passes is None:
            return super()._make_block(ba, block_idx, block_count)
        in_chs, blocks = self.in_chs, []
        for changes in passes:
            self.in_chs = in_chs  # making a block moves it on to the block's output
            dilation = ba['dilation'] * changes['dilation']  # the stage's own comes from output_stride
            blocks.append(super()._make_block({**ba, **changes, 'dilation': dilation}, block_idx, block_count))
        return MultiPass(blocks, self.merge)


def _passes_by_stage(passes: int | Sequence[int], stages: int) -> tuple[int, ...]:
    by_stage = (1, *[passes] * (stages - 1)) if isinstance(passes, int) else tuple(passes)
    if len(by_stage) != stages:
        raise ValueError(f'passes must be one int or one for each of the {stages} stages, not {passes!r}')
    if not all(isinstance(n, int) and n >= 1 for n in by_stage):
        raise ValueError(f'passes must be at least 1, not {passes!r}')
    return by_stage


def _check_one_setting_a_pass(name: str, settings: Sequence[int], by_stage: tuple[int, ...]) -> None:
    numbers = {n for n in by_stage if n > 1}
    if settings and not numbers:
        raise ValueError(f'{name} {tuple(settings)} has no effect without passes')
    if settings and numbers != {len(settings)}:
        counts = ' and '.join(map(str, sorted(numbers)))
        raise ValueError(f'{name} must name one for each pass, but {tuple(settings)} are {len(settings)} for {counts}')


def _pass_args(
    block: dict[str, Any], n: int, i: int, kernel_sizes: Sequence[int], dilations: Sequence[int], split: bool
) -> dict[str, Any]:
    """The arguments of a block that pass i of n changes; its dilation is relative to the stage's."""
    args = {'dilation': dilations[i] if dilations else 1}
    if kernel_sizes:
        args['dw_kernel_size'] = kernel_sizes[i]
    if split:
        if 'exp_ratio' not in block:
            raise ValueError('split needs an expansion to split, which stage 0 does not have: give it 1 pass')
        args['exp_ratio'] = block['exp_ratio'] / n
    return args


def _create_mobilenetv2(
    variant: str,
    pretrained: bool = False,
    channel_multiplier: float = 1.0,
    depth_multiplier: float = 1.0,
    **kwargs: Any,
) -> MobileNetV2:
    round_chs_fn = partial(round_channels, multiplier=channel_multiplier)
    return build_model_with_cfg(
        MobileNetV2,
        variant,
        pretrained,
        feature_cfg={'flatten_sequential': True, **kwargs.pop('feature_cfg', {})},
        block_args=decode_arch_def(_STAGES, depth_multiplier=depth_multiplier),
        num_features=max(1280, round_chs_fn(1280)),
        round_chs_fn=round_chs_fn,
        norm_layer=kwargs.pop('norm_layer', None) or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        act_layer=resolve_act_layer(kwargs, 'relu6'),
        **kwargs,
    )


def _cfg(description: str, **kwargs: Any) -> dict[str, Any]:
    return {
        **imagenette_cfg(description),
        'first_conv': 'conv_stem',
        'classifier': 'classifier',
        'paper_ids': 'arXiv:1801.04381',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'mbv2_imagenette': _cfg('MobileNetV2 with ReLU6, the control', **packaged_weights('mbv2_imagenette')),
        'mbv2_mish_imagenette': _cfg('MobileNetV2 with Mish', **packaged_weights('mbv2_mish_imagenette')),
        'mbv2_mish_blur_imagenette': _cfg(
            'MobileNetV2 with Mish, blurred before it is subsampled', **packaged_weights('mbv2_mish_blur_imagenette')
        ),
        'mbv2_mish_maxblur_imagenette': _cfg(
            'MobileNetV2 with Mish, max-blur-pooled where it is subsampled',
            **packaged_weights('mbv2_mish_maxblur_imagenette'),
        ),
        'mbv2_mish_mp2_imagenette': _cfg('MobileNetV2 with Mish and two passes a bottleneck'),
        'mbv2_mish_mp3_imagenette': _cfg('MobileNetV2 with Mish and three passes a bottleneck, of kernels 3, 5 and 7'),
    }
)


@register_model
def mbv2_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with ReLU6, the control."""
    return _create_mobilenetv2('mbv2_imagenette', pretrained, **kwargs)


@register_model
def mbv2_mish_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with Mish."""
    model_args = dict(act_layer=Mish)
    return _create_mobilenetv2('mbv2_mish_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def mbv2_mish_blur_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with Mish, blurred before it is subsampled."""
    model_args = dict(act_layer=Mish, aa_layer=BlurPool2d)
    return _create_mobilenetv2('mbv2_mish_blur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def mbv2_mish_maxblur_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with Mish, max-blur-pooled where it is subsampled."""
    model_args = dict(act_layer=Mish, aa_layer=MaxBlurPool2d)
    return _create_mobilenetv2('mbv2_mish_maxblur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def mbv2_mish_mp2_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with Mish and two passes a bottleneck."""
    model_args = dict(act_layer=Mish, passes=2)
    return _create_mobilenetv2('mbv2_mish_mp2_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def mbv2_mish_mp3_imagenette(pretrained: bool = False, **kwargs: Any) -> MobileNetV2:
    """MobileNetV2 with Mish and three passes a bottleneck, of kernels 3, 5 and 7."""
    model_args = dict(act_layer=Mish, passes=3, pass_kernel_sizes=(3, 5, 7))
    return _create_mobilenetv2('mbv2_mish_mp3_imagenette', pretrained, **dict(model_args, **kwargs))
