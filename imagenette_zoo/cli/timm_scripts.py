"""`imagenette-zoo timm`: a script of a timm checkout, which knows the zoo's models."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ..errors import UserError
from ..utils.after_import import after_import
from .command import Command

__all__ = ['TIMM', 'await_timm']

AT_START = Path(__file__).parent / 'at_start'
PREFIX, MODULES = 'IMAGENETTE_ZOO_PREFIX', 'IMAGENETTE_ZOO_MODULES'  # variables for the processes that are started


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--import',
        '--device-modules',
        dest='modules',
        action='append',
        default=[],
        metavar='FILE.py|MODULE',
        help='code of your own that is imported as soon as timm is; give it once for each file',
    )
    parser.add_argument(
        'script', metavar='SCRIPT.py', help='of a checkout of timm: train.py, validate.py, inference.py, benchmark.py…'
    )
    rest = parser.add_argument('args', nargs=argparse.REMAINDER, metavar='…', help='what the script is given')
    rest.required = False


def _timm(args: argparse.Namespace) -> int:
    """Becomes `python SCRIPT.py …`: by the environment that process, and those that it starts, know the zoo."""
    _check(args.script, 'a script of a checkout of timm, as in imagenette-zoo timm pytorch-image-models/validate.py')
    modules = [os.path.abspath(name) if _is_file(name) else name for name in args.modules]
    for name in filter(_is_file, modules):
        _check(name, 'a Python file')
    path = [str(AT_START), *filter(None, [os.environ.get('PYTHONPATH')])]
    own = {PREFIX: sys.prefix, MODULES: json.dumps(modules), 'PYTHONPATH': os.pathsep.join(path)}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, args.script, *args.args], {**os.environ, **own})


def _is_file(name: str) -> bool:
    return name.endswith('.py') or os.sep in name


def _check(name: str, expected: str) -> None:
    if not os.path.isfile(name):
        what = 'is a folder' if os.path.isdir(name) else 'there is no such file'
    elif not name.endswith('.py'):
        what = 'does not end in .py'
    else:
        return
    raise UserError(f'{name}: {what}: expected {expected}')


def await_timm() -> None:
    """Has the user's own modules imported as soon as timm is. That of the zoo's models waits since this package was
    imported."""
    after_import('timm', _import_own)


def _import_own() -> None:
    from ..utils.modules import import_modules  # here: many of the processes that are started don't use timm
    from ..utils.streams import complain

    try:
        import_modules(json.loads(os.environ[MODULES]))
    except UserError as error:
        for line in error.lines:
            complain(f'error: {line}')
        raise SystemExit(2) from None


TIMM = Command(
    'timm',
    "run a script of a timm checkout that knows the zoo's models",
    _add_arguments,
    _timm,
    ' [--import FILE.py] SCRIPT.py',
)
