"""Recipes and studies in YAML files: those of `hparams/` by name, and any other by its path.

A wheel has `hparams/` inside the package, a checkout beside it. A name is the file's without `.yaml`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import Mistakes, UserError, nearest
from ..utils.reading import LARGEST_YAML, PlainLoader, read_errors, read_text, yaml_reason
from .names import look_up
from .timm_options import OPTIONS

__all__ = ['find_modules', 'read_yaml', 'recipe_names', 'study_names', 'find_recipe', 'shipped', 'without_timms']

FLAGSHIP = 'mbv2_mish'
GOOD_RECIPE = 'mbv2_mish_80'  # for any model, in ten epochs
BENCHMARK = 'zoo'  # the study whose trainings come with the package
RECIPES = ('', 'leaderboard')  # folders of hparams/
SPLIT_NAMES = ('train_split', 'val_split')
OTHER_DEFAULTS = {'channels_last': False, 'decay_epochs': 90, 'device': 'cuda'}  # of timm's script, where ours differ


def read_yaml(
    path: str | Path,
    known: set[str],
    check: Callable[[str, Any], object] | None = None,
    named: Collection[str] = (),
) -> dict[str, Any]:
    """The mapping in a YAML file, its keys checked; `-` in a key counts as `_`.

    Args:
        path: The file.
        known: The keys that it may have.
        check: Looks at a key and its value, too.
        named: Keys whose values `look_up` is asked for, too: where something is wrong already or timm is loaded, and
            the file brings no code, which may have them.

    Raises:
        UserError: The file can't be read, is no YAML mapping, or has an unknown key or a wrong value; all of them are
            said, a line each, which has the line of the file.
    """
    with read_errors(path, 'a recipe'):
        text = read_text(path, LARGEST_YAML)
    try:
        root: Any = yaml.compose(text, PlainLoader)
        loaded = None if root is None else PlainLoader('').construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        raise UserError(f'{path}{f":{mark.line + 1}" if mark else ""}: {yaml_reason(error)}') from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise UserError(f'{path}: a recipe is a list of "option: value" lines')
    where = {key.value: f'{path}:{key.start_mark.line + 1}' for key, _ in root.value}
    values: dict[str, Any] = {}
    mistakes = Mistakes()
    for key, value in loaded.items():
        name = key.replace('-', '_')
        with mistakes.collected(where[key]):
            if name not in known:
                raise UserError(f'unknown option {key!r}{nearest(name, known)}')
            if name in values:
                raise UserError(f'option {key!r} is given twice')
            values[name] = value
            if check is not None:
                check(name, value)
    if 'device_modules' not in values and (mistakes.errors or 'timm' in sys.modules):
        for key, value in loaded.items():
            if key in named and isinstance(value, str) and value:
                with mistakes.collected(where[key]):
                    look_up(key, value)
    mistakes.check()
    return values


def without_timms(path: str | Path, values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values without what timm's script has beside ours: its `args.yaml` names each of its options.

    Args:
        path: The file, for messages.
        values: What it gives.
        defaults: Of our options.

    Raises:
        UserError: It asks for what only timm's script has; the line names all of it.
    """
    theirs = OPTIONS.keys() & values.keys()
    if not theirs:
        return values
    asked = [
        f'{name} {values[name]} ({OPTIONS[name][1]})'
        for name in sorted(theirs)
        if values[name] not in (OPTIONS[name][0], None)
        and not (values[name] == '' and OPTIONS[name][0] in ('', None))  # of others it turns something off
    ]
    if asked:
        raise UserError(f"{path}: only timm's script has {'; '.join(asked)}: remove it")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {
        name: value
        for name, value in given.items()
        if name not in theirs
        and value not in (None, defaults[name], OTHER_DEFAULTS.get(name))
        and (value != '' or name in SPLIT_NAMES)  # no validation: ours has one
    }


def find_modules(names: Any, folder: Path) -> Any:
    """The `device_modules` of a YAML file: a file of code is in the current folder, else beside the YAML file.

    Args:
        names: As the file has them, unchecked.
        folder: That of the file.
    """
    if isinstance(names, list):
        return [find_modules(name, folder) for name in names]
    is_beside = isinstance(names, str) and not os.path.isfile(names) and os.path.isfile(folder / names)
    return str(folder / names) if is_beside else names


def _recipe_folder() -> Path:
    """`hparams/` as installed from a wheel, else that of the source checkout."""
    package = Path(__file__).parent.parent
    installed = package / 'hparams'
    return installed if installed.is_dir() else package.parent / 'hparams'


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return list(_shipped(*RECIPES))


def study_names() -> list[str]:
    """The names of the studies that come with the package."""
    return list(_shipped('studies'))


def _shipped(*folders: str) -> dict[str, Path]:
    """The files of these folders of `hparams/` by name, which starts from the first of them."""
    root = _recipe_folder()
    files = [file for folder in folders for file in sorted(Path(root, folder).glob('*.yaml'))]
    return {file.relative_to(root / folders[0]).with_suffix('').as_posix(): file for file in files}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        UserError: There is none; the line names the nearest ones.
    """
    return shipped(name, 'recipe', *RECIPES)


def shipped(name: str | Path, kind: str, *folders: str) -> Path:
    """The file that a name means: a path, or one in these folders of `hparams/` as it comes with the package.

    Raises:
        UserError: There is none; the line names the nearest ones.
    """
    if os.path.isfile(name):  # Path's own may raise
        return Path(name)
    files = _shipped(*folders)
    for known, file in files.items():
        if str(name) in (known, f'{known}.yaml', Path('hparams', folders[0], f'{known}.yaml').as_posix()):
            return file
    names = list(files)
    raise UserError(f'no {kind} {str(name)!r}: neither a file nor one of {", ".join(names)}{nearest(str(name), names)}')
