"""`imagenette-zoo train`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.fields import add_flags, given_flags
from ..config.hparams import FLAGSHIP, recipe_names
from ..config.recipe import Recipe
from ..errors import UserError
from ..utils.console import counted
from .command import LOADING, Command

__all__ = ['TRAIN']


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-c',
        '--config',
        metavar='RECIPE',
        help=f'a YAML file, or one of {", ".join(recipe_names())}; flags override it '
        f'(without it and without --model: {FLAGSHIP})',
    )
    parser.add_argument(
        '--from', dest='from_run', metavar='RUN', help='repeat a finished run and say what differs; flags override it'
    )
    add_flags(parser, Recipe)


def _starts(args: argparse.Namespace) -> str:
    flags = given_flags(args, Recipe)
    if args.from_run is not None:
        if args.config is not None or 'resume' in flags:
            raise UserError('--from repeats a run with its own recipe and your flags: leave --config and --resume out')
        return f'train: repeats {args.from_run}{LOADING}'
    if args.config is None and 'resume' in flags:
        return f'train: continues {flags.get("experiment") or flags["resume"]}{LOADING}'
    name = args.config or (None if 'model' in flags else FLAGSHIP)
    recipe = Recipe(**flags) if name is None else Recipe.load(name, **flags)
    how = counted(recipe.epochs, 'epoch') + (f' by recipe {name}' if name else '')
    return f'train: {recipe.model}, {how}{LOADING}'


def _train(args: argparse.Namespace) -> int:
    from ..training.result import read_result
    from ..training.trainer import train

    flags = given_flags(args, Recipe)
    if args.from_run is not None:
        then = read_result(Path(args.from_run))
        train(Recipe.load(then.folder / 'args.yaml', **{'experiment': None, **flags}), repeats=then)
        return 0
    train(args.config, **flags)
    return 0


TRAIN = Command('train', 'train a model by a recipe', _add_arguments, _train, starts=_starts, is_log=True)
