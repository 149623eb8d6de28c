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
    parser = make_parser()
    _show_values(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _show_values(parser: argparse.ArgumentParser) -> None:
    """Makes the values of options, which are checked elsewhere, known as choices."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _show_values(command)
        else:
            action.choices = action.choices or getattr(action, 'values', None) or None


COMPLETION = Command(
    'completion', 'print what makes a shell complete commands and flags', _add_arguments, _completion, ' SHELL'
)
