"""Code of a user's own: the files and packages that the user names are imported, and what they define is found by name.

Nothing is imported because a model folder, a state or a result names it: `resolve` looks only into what is imported.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, first_line, nearest
from .reading import read_bytes, read_errors

__all__ = [
    'UserModule', 'absolute_files', 'import_modules', 'imported_modules', 'in_a_line', 'is_foreign', 'is_reference',
    'other_module', 'owner', 'reference_to', 'resolve',
]  # fmt: skip

PLUGINS = 'imagenette_zoo.plugins'  # the entry points of installed packages
OPEN = ('imagenette_zoo.layers', 'timm.layers', 'torch.nn')  # whose layers may be named without an import
REFERENCE = re.compile(r'(?!hf_hub:)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*')
LARGEST_FILE = 16 * 2**20  # bytes of code


@dataclass(frozen=True)
class UserModule:
    """A module that the user named, or that an installed package brings.

    Args:
        name: As in `name:attribute`.
        sha256: The hash of its file, or of all Python files of a package and their names.
        file: Its file; None for a package of several files.
    """

    name: str
    sha256: str
    file: Path | None = None

    @property
    def label(self) -> str:
        """What a message calls it."""
        return self.file.name if self.file else self.name

    def __str__(self) -> str:
        return f'{self.label} ({self.sha256[:12]})'


_imported: dict[str, UserModule] = {}


def imported_modules() -> dict[str, UserModule]:
    """What has been imported by this process, by name."""
    return dict(_imported)


def import_modules(names: Sequence[str], log: Callable[[str], object] | None = None) -> list[UserModule]:
    """Imports a user's own modules, and those that installed packages bring as entry points `imagenette_zoo.plugins`.

    A file is imported again where it has changed.

    Args:
        names: Files (`my_idea.py`) or modules on Python's path or in the current folder (`my_package.layers`).
        log: Takes a line on each module that was imported.

    Raises:
        UserError: A file does not exist, raises, has the name of another module, or replaces a model of timm's.
    """
    modules = []
    for point in entry_points(group=PLUGINS):
        try:
            modules.append(_import_package(point.module, log))
        except UserError as error:
            of = f' of {point.dist.name}' if point.dist else ''
            raise UserError(f'plugin {point.name}{of}: {error}') from None
    for name in names:
        modules.append(_import_file(Path(name), log) if _is_file(name) else _import_package(name, log))
    return modules


def absolute_files(names: Sequence[str]) -> list[str]:
    """The same names for any current folder."""
    return [os.path.abspath(os.path.expanduser(name)) if _is_file(name) else name for name in names]


def _is_file(name: str) -> bool:
    return name.endswith('.py') or '/' in name or '\\' in name


def _import_file(path: Path, log: Callable[[str], object] | None) -> UserModule:
    path = path.expanduser().absolute()
    with read_errors(path, 'a Python file'):
        data = read_bytes(path, LARGEST_FILE)
    module = UserModule(path.stem, hashlib.sha256(data).hexdigest(), path)
    before = _imported.get(module.name)
    if before == module:
        return module
    if not module.name.isidentifier() or path.suffix != '.py':
        raise UserError(f'{path}: a file that is imported is named by letters, digits and _, and ends in .py')
    if before is not None and before.file != path:
        raise UserError(f'{path}: {before.file or before.name} has the same name: rename one of them')
    if before is None and (other := other_module(module.name, path)):
        raise UserError(f'{path}: Python has a module {module.name!r} already ({other}): rename the file')
    spec: Any = importlib.util.spec_from_file_location(module.name, path)
    created = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # for what it imports from beside it
    with _imports(module.name, str(path)):
        sys.modules[module.name] = created
        exec(compile(data, path, 'exec'), created.__dict__)
    return _take(module, log)


def other_module(name: str, path: Path) -> str | None:
    """Where a module of this name is that others may import: loaded, of Python's, or installed. None: nowhere."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], '__file__', None)
        return None if origin and Path(origin).absolute() == path else origin or 'built in'
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    origin = spec.origin or 'built in'
    installed = tuple(map(sysconfig.get_path, ('stdlib', 'platstdlib', 'purelib', 'platlib')))
    return None if os.path.isabs(origin) and not origin.startswith(installed) else origin  # else on PYTHONPATH


def _import_package(name: str, log: Callable[[str], object] | None) -> UserModule:
    if name in _imported:
        return _imported[name]
    if '' not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    with _imports(name, name):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
                raise
            file = f'{name}.py'
            hint = f'give the file: {file}' if Path(file).exists() else 'a file ends in .py; a package is installed'
            raise UserError(f'--device-modules {name}: there is no module {name!r}: {hint}') from None
        except (ImportError, ValueError) as error:
            raise UserError(f'--device-modules {name}: {first_line(error)}') from None
    return _take(_described(name, module), log)


def _described(name: str, module: ModuleType) -> UserModule:
    file = getattr(module, '__file__', None)
    if not hasattr(module, '__path__') and file:
        path = Path(file)
        return UserModule(name, hashlib.sha256(path.read_bytes()).hexdigest(), path if path.suffix == '.py' else None)
    digest = hashlib.sha256()
    for folder in map(Path, getattr(module, '__path__', ())):
        for path in sorted(folder.rglob('*.py')):
            digest.update(f'{path.relative_to(folder).as_posix()} {path.stat().st_size}\n'.encode())
            digest.update(path.read_bytes())
    return UserModule(name, digest.hexdigest())


@contextmanager
def _imports(name: str, label: str) -> Iterator[None]:
    """Surrounds an import: what it raises is one line, and what it registers replaces no model of another module."""
    import timm  # here: to name an option or a module needs none of it

    before = {model: timm.models.model_entrypoint(model) for model in timm.list_models()}
    former = sys.modules.get(name)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # what it prints is no result
            warnings.filterwarnings('ignore', message='Overwriting', category=UserWarning)
            yield
            taken = [model for model in before if timm.models.model_entrypoint(model) is not before[model]]
            taken = [model for model in taken if before[model].__module__.partition('.')[0] != name.partition('.')[0]]
            for model in taken:
                timm.models.register_model(before[model])
        if taken:
            raise UserError(f'{label}: registers a model {taken[0]!r}, which timm has already: choose another name')
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        if former is not None:
            sys.modules[name] = former
        if isinstance(error, UserError):
            raise
        raise UserError(f'{_place(error, label)}: {type(error).__name__}: {first_line(error)}') from error


def _place(error: BaseException, file: str) -> str:
    """The file, with the line of it that raised."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f'{file}:{error.lineno}'
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f'{file}:{lines[-1]}' if lines else file


def in_a_line(error: BaseException) -> str:
    """What code of the user's own raised, in one line with its place: `my_idea.py:12: ValueError: …`, or
    `cell:12: ValueError: …` of a notebook."""
    files = {str(module.file): module.label for module in _imported.values() if module.file}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get('__name__') == '__main__':
            file = Path(frame.f_code.co_filename)
            files[str(file)] = file.name if os.path.isfile(file) else 'cell'
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    place = f'{files[frames[-1].filename]}:{frames[-1].lineno}: ' if frames else ''
    return f'{place}{type(error).__name__}: {first_line(error)}'


def _take(module: UserModule, log: Callable[[str], object] | None) -> UserModule:
    _imported[module.name] = module
    if log is not None:
        log(f'imported {module}')
    return module


# --- By name ----------------------------------------------------------------------------------------------------------


def is_reference(value: object) -> bool:
    """Whether a value is `module:attribute`."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def owner(module: str) -> UserModule | None:
    """The imported module that a module is, or is a part of."""
    parts = module.split('.')
    names = ('.'.join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((_imported[name] for name in names if name in _imported), None)


def resolve(reference: str) -> Any:
    """What `module:attribute` means: a part of an imported module, or a layer of the zoo's, timm's or torch's.

    Raises:
        UserError: The module was not imported, or has nothing of that name.
    """
    name, _, attributes = reference.partition(':')
    own = owner(name)
    if own is None and name not in OPEN:
        where = ', '.join(module.label for module in _imported.values()) or 'nothing'
        raise UserError(
            f'{reference}: no module {name!r} was imported ({where} was): give --device-modules {name}.py'
        )
    try:
        value: Any = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{reference}: {first_line(error)}') from None
    for attribute in attributes.split('.'):
        if not hasattr(value, attribute):
            label = own.label if own and own.name == name else name
            public = [each for each in dir(value) if not each.startswith('_')]
            raise UserError(f'{reference}: {label} has no {attribute!r}{nearest(attribute, public)}')
        value = getattr(value, attribute)
        if isinstance(value, ModuleType) and own is not None and owner(value.__name__) is not own:
            raise UserError(f'{reference}: is of {value.__name__}, not of {own.label}: name what that defines')
    if own is None and not _is_layer(value):
        raise UserError(f'{reference}: is no layer (a class of torch.nn.Module)')
    return value


def _is_layer(value: Any) -> bool:
    from torch import nn

    return isinstance(value, type) and issubclass(value, nn.Module)


def is_foreign(value: Any) -> bool:
    """Whether a user's module has this from elsewhere, as `from os import system`; layers may be so."""
    value = getattr(value, 'func', value)  # of a partial function
    if _is_layer(value):
        return False
    return owner(getattr(value, '__module__', None) or type(value).__module__) is None


def reference_to(value: Any) -> str | None:
    """`module:attribute` of a function or class, if `resolve` finds it by that; else None."""
    module, name = getattr(value, '__module__', None), getattr(value, '__qualname__', None)
    if not module or not name:
        return None
    for candidate in (module, *OPEN):
        reference = f'{candidate}:{name}'
        try:
            if is_reference(reference) and resolve(reference) is value:
                return reference
        except UserError:
            continue
    return None
