"""A command as the command line knows it, and the arguments that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

__all__ = ['Command', 'one_model', 'positive']


@dataclass(frozen=True)
class Command:
    """A subcommand of `imagenette-zoo`; the table of `main.py` has a row for each.

    Args:
        name: Its word on the command line.
        help: What it does.
        add_arguments: Adds its arguments to its parser.
        run: Carries it out; returns the exit code.
        usage: Its positional arguments, as its usage line shows them.
        imports: Whether it imports the user's own code first, so that it has `--device-modules`.
    """

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    usage: str = ''
    imports: bool = True


def one_model(args: argparse.Namespace, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, with the model among them where it was given without a flag."""
    if args.run is not None and 'model' in flags:
        raise UserError(f'one model is meant: {args.run} or --model {flags["model"]}?')
    return flags if args.run is None else {'model': args.run, **flags}


def positive(text: str) -> int:
    """A whole number above 0, as argparse's `type`."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number
