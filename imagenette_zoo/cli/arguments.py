"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError


def _one_model(args: argparse.Namespace, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, and among them the model where it was given without one."""
    if args.run is not None and 'model' in flags:
        raise UserError(f'one model is meant: {args.run} or --model {flags["model"]}?')
    return flags if args.run is None else {'model': args.run, **flags}


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number
