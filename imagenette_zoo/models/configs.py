"""Entries that the zoo's models share in timm's pretrained configs."""

from pathlib import Path
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data.constants import LABEL_NAMES

__all__ = ['INPUT_SIZE', 'imagenette_cfg', 'packaged_weights']

INPUT_SIZE = (3, 224, 224)  # of models without weights


def imagenette_cfg(description: str) -> dict[str, Any]:
    """Entries of timm's pretrained config of a model for Imagenette.

    Args:
        description: The first line of the entry point's docstring, without the stop.
    """
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
        'description': description,
    }


def packaged_weights(name: str) -> dict[str, Any]:
    """Entries of timm's pretrained config of a model whose weights come with this package.

    They were trained on images squeezed to squares, so photos are to be squeezed, too.

    Args:
        name: The model's name; its file is made by `tools/pack_weights.py`.
    """
    return {'file': str(Path(__file__).parent / 'weights' / f'{name}.safetensors'), 'crop_mode': 'squash'}
