"""Which layers are replaced by faster ones, where and when: one table and one walk over the model.

A faster layer is a subclass of the one that it replaces, with the same attributes and state dict. So a layer is
replaced by changing its class alone.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import BatchNormAct2d, BlurPool2d, EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from ..layers.blurpool import MaxBlurPool2d
from ..layers.mish import Mish
from . import blurpool, convolutions, norm_act, squeeze

__all__ = ['Phase', 'Swap', 'swap']

Phase = Literal['always', 'training', 'recorded steps']
_PHASES: tuple[Phase, ...] = ('always', 'training', 'recorded steps')  # each with what the ones before it have
_logger = logging.getLogger(__name__)


class Swap(NamedTuple):
    """A layer that was replaced.

    Args:
        name: Its name in the model.
        before: Its type then.
        after: Its type now.
    """

    name: str
    before: type[nn.Module]
    after: type[nn.Module]


class _When(NamedTuple):
    device: str | None = None  # of this type, None: any
    channels_last: bool = False  # only where the model is
    phase: Phase = 'always'  # from this one on

    def holds(self, device: torch.device, channels_last: bool, phase: Phase) -> bool:
        return (
            self.device in (None, device.type)
            and self.channels_last <= channels_last
            and _PHASES.index(self.phase) <= _PHASES.index(phase)
        )


class _Faster(NamedTuple):
    type: type[nn.Module]
    when: _When = _When()
    applies: Callable[[Any], bool] = lambda layer: True


_CPU = _When('cpu', channels_last=True)
_CPU_TRAINING = _When('cpu', phase='training')
_GPU = _When('cuda')
# Unrecorded, the more launches cost more than they save.
_GPU_RECORDED = _When('cuda', channels_last=True, phase='recorded steps')
_GPU_DEPTHWISE = _Faster(convolutions.GpuDepthwiseConv2d, _GPU_RECORDED, convolutions.has_gpu_kernel)

# By the type of a layer, exactly: what is derived from it may compute something else. The first that applies is taken.
_TABLE: dict[type[nn.Module], list[_Faster]] = {
    nn.Mish: [_Faster(Mish)],
    nn.BatchNorm2d: [_Faster(norm_act.Norm2d, when) for when in (_CPU, _GPU_RECORDED)],
    BatchNormAct2d: [_Faster(norm_act.NormAct2d, when, norm_act.has_known_act) for when in (_CPU, _GPU_RECORDED)],
    BlurPool2d: [_Faster(blurpool.FastBlurPool2d, when, blurpool.is_halving) for when in (_CPU, _GPU_RECORDED)],
    MaxBlurPool2d: [_Faster(blurpool.FastMaxBlurPool2d, when, blurpool.is_halving) for when in (_CPU, _GPU_RECORDED)],
    SEModule: [_Faster(squeeze.FastSEModule, _CPU, squeeze.has_only_mean)],
    EffectiveSEModule: [_Faster(squeeze.FastEffectiveSEModule, _CPU, squeeze.has_only_mean)],
    SqueezeExcite: [_Faster(squeeze.FastSqueezeExcite, _CPU, squeeze.has_only_mean)],
    nn.Conv2d: [
        _Faster(convolutions.SubsampledConv2d, _CPU, convolutions.has_few_strided_channels),
        _Faster(convolutions.CpuDepthwiseConv2d, _CPU_TRAINING, convolutions.has_slow_gradients),
        _GPU_DEPTHWISE,
        _Faster(convolutions.ProductConv2d, _GPU_RECORDED, convolutions.is_product),
        _Faster(convolutions.PlannedLaterConv2d, _GPU, convolutions.is_depthwise),
    ],
    convolutions.PlannedLaterConv2d: [_GPU_DEPTHWISE],
}


def swap(
    model: nn.Module,
    device: torch.device,
    channels_last: bool,
    phase: Phase = 'always',
    log: Callable[[str], object] | None = None,
) -> list[Swap]:
    """Makes the layers of a model faster ones, in place; state dicts are unaffected.

    Args:
        model: The model, on its device.
        device: Where it computes.
        channels_last: Whether it is in channels-last layout.
        phase: `training` adds layers that are faster only there, `recorded steps` those that are so in CUDA graphs.
        log: Takes a line that counts them; else the debug log does.

    Returns:
        The layers that were replaced. Faster ones stay, so a model may be walked over for one phase after the other.
    """
    swaps = []
    for name, layer in model.named_modules():
        for faster, when, applies in _TABLE.get(type(layer), ()):
            if when.holds(device, channels_last, phase) and applies(layer):
                swaps.append(Swap(name, type(layer), faster))
                layer.__class__ = faster
                break
    (log or _logger.debug)(f'faster layers{"" if phase == "always" else f" in {phase}"}: {_counted(swaps)}')
    return swaps


def _counted(swaps: list[Swap]) -> str:
    """`52 timm.BatchNormAct2d -> NormAct2d, 17 torch.Conv2d -> SubsampledConv2d`."""
    pairs = Counter(
        f'{each.before.__module__.partition(".")[0]}.{each.before.__name__} -> {each.after.__name__}' for each in swaps
    )
    return ', '.join(f'{count} {pair}' for pair, count in pairs.items()) or 'none'
