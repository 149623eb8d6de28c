"""A model's variants as rows of a table, and how a row becomes a model of timm's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.nn as nn
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model

from ..data.constants import IMAGENETTE

__all__ = ['INPUT_SIZE', 'LABEL_NAMES', 'Variant', 'imagenette_cfg', 'packaged_weights', 'register_variants']

LABEL_NAMES = tuple(IMAGENETTE.values())
INPUT_SIZE = (3, 224, 224)  # of models without weights


@dataclass(frozen=True)
class Variant:
    """A row.

    Args:
        name: The model's name in timm's registry.
        description: One line for tables.
        settings: Arguments for the model that differ from its family's defaults.
        cfg: Entries of timm's pretrained config that differ from the family's.
    """

    name: str
    description: str
    settings: dict[str, Any] = field(default_factory=dict)
    cfg: dict[str, Any] = field(default_factory=dict)


def packaged_weights(name: str) -> dict[str, Any]:
    """Entries of timm's pretrained config of a model whose weights come with this package.

    They were trained on images squeezed to squares, so photos are to be squeezed, too.

    Args:
        name: The model's name; its file is made by `tools/pack_weights.py`.
    """
    return {'file': str(Path(__file__).parent / 'weights' / f'{name}.safetensors'), 'crop_mode': 'squash'}


def imagenette_cfg(variant: Variant, **family: Any) -> dict[str, Any]:
    """timm's pretrained config of a model for Imagenette."""
    return {
        'num_classes': len(LABEL_NAMES),
        'label_names': LABEL_NAMES,
        'input_size': INPUT_SIZE,
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'license': 'apache-2.0',
        'description': variant.description,
        **family,
        **variant.cfg,
    }


def register_variants(variants: Iterable[Variant], create: Callable[..., nn.Module], namespace: dict[str, Any]) -> None:
    """Makes an entry point of every row, puts it in a module and registers it with timm.

    Args:
        variants: The rows.
        create: `create(name, pretrained, **settings)` builds a model.
        namespace: `globals()` of the module that owns the rows; its `default_cfgs` is what timm reads.
    """
    for variant in variants:
        entry_point = _entry_point(variant, create)
        # timm's registry finds a model's config by these, and pickle finds the function.
        entry_point.__name__ = entry_point.__qualname__ = variant.name
        entry_point.__module__ = namespace['__name__']
        entry_point.__doc__ = f'{variant.description}.'
        namespace[variant.name] = register_model(entry_point)


def _entry_point(variant: Variant, create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(variant.name, pretrained, **{**variant.settings, **kwargs})

    return entry_point
