"""Imagenette zoo: models for timm, and the trainer and benchmark that go with them.

`import imagenette_zoo` registers the zoo's models with timm. Training is loaded when it is first asked for, so that the
import costs little more than timm's own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagenette_zoo.models import ModelInfo, list_models
from imagenette_zoo.version import __version__

if TYPE_CHECKING:
    from imagenette_zoo.layers.fuse import fuse
    from imagenette_zoo.sharing.export import export
    from imagenette_zoo.sharing.predict import predict
    from imagenette_zoo.training.evaluation import validate
    from imagenette_zoo.training.recipe import Recipe
    from imagenette_zoo.training.result import Result
    from imagenette_zoo.training.trainer import train

__all__ = [
    'ModelInfo',
    'Recipe',
    'Result',
    '__version__',
    'export',
    'fuse',
    'list_models',
    'predict',
    'train',
    'validate',
]

_HOME_OF = {
    'Recipe': 'imagenette_zoo.training.recipe',
    'Result': 'imagenette_zoo.training.result',
    'export': 'imagenette_zoo.sharing.export',
    'fuse': 'imagenette_zoo.layers.fuse',
    'predict': 'imagenette_zoo.sharing.predict',
    'train': 'imagenette_zoo.training.trainer',
    'validate': 'imagenette_zoo.training.evaluation',
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
