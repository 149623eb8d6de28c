"""`imagenette-zoo completion`: has a shell complete commands, flags and their values."""

from __future__ import annotations

import argparse

from ..errors import require
from .command import Command

__all__ = ['COMPLETION']

SHELLS = ('bash', 'zsh', 'tcsh')


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'shell',
        choices=SHELLS,
        help='the shell; bash: eval "$(imagenette-zoo completion bash)" in ~/.bashrc; zsh: into a file _imagenette-zoo '
        'of $fpath',
    )


def _completion(args: argparse.Namespace) -> int:
    from .main import make_parser

    shtab = require('shtab', f'completion {args.shell}', 'completion')
    print(shtab.complete(make_parser(), args.shell))
    return 0


COMPLETION = Command(
    'completion', 'print what makes a shell complete commands and flags', _add_arguments, _completion, ' SHELL'
)
