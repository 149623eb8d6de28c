"""ResNets for Imagenette whose stem pool is anti-aliased or whose blocks take several passes.

`Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385
`Bag of Tricks for Image Classification with Convolutional Neural Networks` (ResNet-D) -
https://arxiv.org/abs/1812.01187
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch.nn as nn
from timm.models import ResNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck

from ..layers.blurpool import MaxBlurPool2d  # the package may be half imported: timm's import is ours
from ..layers.mish import Mish
from ..layers.multipass import MultiPass
from .configs import imagenette_cfg

__all__ = ['ZooResNet']


class ZooResNet(ResNet):
    """timm's ResNet with a choice of stem pool and of passes.

    Args:
        block: `BasicBlock` or `Bottleneck` of timm.
        layers: Blocks by stage.
        stem_pool: Class of the layer that stands for the stem's 3 x 3 max pool, called like timm's
            `aa_layer` with `channels` and `stride=2`.
        passes: Passes of every block, by stage or for all.
        merge: How `MultiPass` merges, `mean` or `max`.
        split: Give each pass 1/n of the inner width, so that n passes cost about what one does.
        **kwargs: Of timm's `ResNet`.

    Raises:
        ValueError: `passes` has not one whole number of at least 1 a stage.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        stem_pool: Callable[..., nn.Module] | None = None,
        passes: int | Sequence[int] = 1,
        merge: str = 'mean',
        split: bool = False,
        **kwargs: Any,
    ) -> None:
        by_stage = (passes,) * len(layers) if isinstance(passes, int) else tuple(passes)
        if len(by_stage) != len(layers) or not all(isinstance(n, int) and n >= 1 for n in by_stage):
            raise ValueError(f'passes must be 1 or more, one int or one for each of {len(layers)} stages: {passes!r}')
        super().__init__(tuple(_multi_pass(block, n, merge, split) for n in by_stage), layers, **kwargs)
        if stem_pool is not None:
            pool = stem_pool(channels=self.feature_info[0]['num_chs'], stride=2)
            self.maxpool = pool.to(next(self.parameters()))


def _multi_pass(block: type[nn.Module], n: int, merge: str, split: bool) -> Callable[..., nn.Module]:
    """Stands for a block class of timm: makes a `MultiPass` of n blocks, or with n = 1 the block itself."""
    if n == 1:
        return block
    make = partial(_make_multi_pass, block, n, merge, split)
    make.expansion = block.expansion  # type: ignore[attr-defined]
    return make


def _make_multi_pass(block: type[nn.Module], n: int, merge: str, split: bool, *args: Any, **kwargs: Any) -> MultiPass:
    if split:  # timm's names for the inner width: of BasicBlock's first convolution, of Bottleneck's 3 x 3
        kwargs |= {'reduce_first': n} if block is BasicBlock else {'base_width': kwargs.get('base_width', 64) / n}
    # Copies: timm hands over the downsampling and drop-path modules ready-made, and initialises weights afterwards.
    return MultiPass([block(*deepcopy(args), **deepcopy(kwargs)) for _ in range(n)], merge)


def _create_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    return build_model_with_cfg(ZooResNet, variant, pretrained, **kwargs)


def _cfg(description: str, **kwargs: Any) -> dict[str, Any]:
    return {
        **imagenette_cfg(description),
        'first_conv': 'conv1',
        'classifier': 'fc',
        'paper_ids': 'arXiv:1512.03385',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        'resnet34_maxblur_imagenette': _cfg('ResNet-34 with a max-blur stem pool'),
        'resnet50_maxblur_imagenette': _cfg('ResNet-50 with a max-blur stem pool'),
        'resnet50d_mish_maxblur_imagenette': _cfg(
            'ResNet-50-D with Mish and a max-blur stem pool', first_conv='conv1.0', paper_ids='arXiv:1812.01187'
        ),
        'seresnet18d_mish_maxblur_imagenette': _cfg(
            'ResNet-18-D of 2, 2, 3, 1 blocks with squeeze-excite and Mish, max-blur-pooled where it is subsampled',
            first_conv='conv1.0',
            paper_ids=('arXiv:1812.01187', 'arXiv:1709.01507'),
        ),
        'resnet34_mp2_imagenette': _cfg('ResNet-34 with two passes a block'),
    }
)

_RESNET34 = {'block': BasicBlock, 'layers': (3, 4, 6, 3)}
_RESNET50 = {'block': Bottleneck, 'layers': (3, 4, 6, 3)}
_DEEP = {'stem_width': 32, 'stem_type': 'deep', 'avg_down': True}  # ResNet-D
_SERESNET18D = {**_DEEP, 'block': BasicBlock, 'layers': (2, 2, 3, 1), 'block_args': {'attn_layer': 'se'}}

# The stem pool's maximum over 2 and blur of 3 pixels sees 4, one more than the 3 x 3 max pool it stands for. A blur of
# 3 is also what Imagenette's leaderboard reports a gain with.


@register_model
def resnet34_maxblur_imagenette(pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    """ResNet-34 with a max-blur stem pool."""
    model_args = dict(**_RESNET34, stem_pool=MaxBlurPool2d)
    return _create_resnet('resnet34_maxblur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet50_maxblur_imagenette(pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    """ResNet-50 with a max-blur stem pool."""
    model_args = dict(**_RESNET50, stem_pool=MaxBlurPool2d)
    return _create_resnet('resnet50_maxblur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet50d_mish_maxblur_imagenette(pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    """ResNet-50-D with Mish and a max-blur stem pool."""
    model_args = dict(**_RESNET50, **_DEEP, stem_pool=MaxBlurPool2d, act_layer=Mish)
    return _create_resnet('resnet50d_mish_maxblur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def seresnet18d_mish_maxblur_imagenette(pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    """ResNet-18-D of 2, 2, 3, 1 blocks with squeeze-excite and Mish, max-blur-pooled where it is subsampled."""
    model_args = dict(**_SERESNET18D, stem_pool=MaxBlurPool2d, aa_layer=MaxBlurPool2d, act_layer=Mish)
    return _create_resnet('seresnet18d_mish_maxblur_imagenette', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet34_mp2_imagenette(pretrained: bool = False, **kwargs: Any) -> ZooResNet:
    """ResNet-34 with two passes a block."""
    model_args = dict(**_RESNET34, passes=2)
    return _create_resnet('resnet34_mp2_imagenette', pretrained, **dict(model_args, **kwargs))
