"""A command as the command line knows it, and the arguments that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

__all__ = ['LOADING', 'Command', 'one_model', 'positive']

LOADING = '; loading PyTorch'  # how the first line of a command ends


@dataclass(frozen=True)
class Command:
    """A subcommand of `imagenette-zoo`; the table of `main.py` has a row for each.

    Args:
        name: Its word on the command line.
        help: What it does.
        add_arguments: Adds its arguments to its parser.
        run: Carries it out; returns the exit code.
        starts: Says in a line what it is about to do, or raises what is wrong about it, before slow packages are
            imported. None for a command that needs none of them.
        usage: Its positional arguments, as its usage line shows them.
        is_log: Whether its standard output tells what it does, so that this line is there, too. Else it is a result,
            and the line is for a terminal only.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    usage: str = ''
    starts: Callable[[argparse.Namespace], str] | None = None
    is_log: bool = False


def one_model(args: argparse.Namespace, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, with the model among them where it was given without a flag."""
    if args.run is not None and 'model' in flags:
        raise UserError(f'{args.run} and --model {flags["model"]}: one model is expected: leave one of them out')
    return flags if args.run is None else {'model': args.run, **flags}


def positive(text: str) -> int:
    """A whole number above 0, as argparse's `type`."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number
