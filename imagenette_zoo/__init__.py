"""Imagenette zoo: models for timm, and the trainer and benchmark that go with them.

`import imagenette_zoo` registers the zoo's models with timm: at once where timm is imported, else as soon as it is. All
else is loaded when it is first asked for, so that a command which needs no model answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.after_import import after_import
from .version import __version__

if TYPE_CHECKING:
    from .config.recipe import Recipe
    from .inference.predict import predict
    from .inference.validate import validate
    from .layers.fuse import fuse
    from .models import ModelInfo, list_models
    from .report.notebook import Study, report, run, study
    from .sharing.export import export
    from .training.result import Result
    from .training.trainer import train

__all__ = [
    'ModelInfo', 'Recipe', 'Result', 'Study', '__version__', 'export', 'fuse', 'list_models', 'predict', 'report',
    'run', 'study', 'train', 'validate',
]  # fmt: skip

_HOME_OF = {
    'ModelInfo': 'imagenette_zoo.models',
    'Recipe': 'imagenette_zoo.config.recipe',
    'Result': 'imagenette_zoo.training.result',
    'Study': 'imagenette_zoo.report.notebook',
    'export': 'imagenette_zoo.sharing.export',
    'fuse': 'imagenette_zoo.layers.fuse',
    'list_models': 'imagenette_zoo.models',
    'predict': 'imagenette_zoo.inference.predict',
    'run': 'imagenette_zoo.report.notebook',
    'train': 'imagenette_zoo.training.trainer',
    'validate': 'imagenette_zoo.inference.validate',
}
_MODULES = ('errors', 'layers', 'models', 'report', 'study')  # the last two are functions, too
after_import('timm', lambda: import_module(f'{__name__}.models'))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f'{__name__}.{name}')
    if name not in _HOME_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})
