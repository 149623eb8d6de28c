"""`imagenette-zoo validate`, `predict` and `average`."""

from __future__ import annotations

import argparse

from ..config.fields import add_flags, given_flags
from ..config.groups import ValidationOptions
from ..config.uses import AverageOptions, PredictOptions
from ..errors import UserError
from ..utils.files import to_json
from ..utils.streams import complain
from .command import LOADING, Command

__all__ = ['AVERAGE', 'PREDICT', 'VALIDATE']


def _add_validate(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, ValidationOptions)


def _validate_starts(args: argparse.Namespace) -> str:
    options = ValidationOptions(**given_flags(args, ValidationOptions))
    return f'validate: {", ".join(options.model)}{LOADING}'


def _validate(args: argparse.Namespace) -> int:
    from ..inference.validate import validate

    validate(ValidationOptions(**given_flags(args, ValidationOptions)))
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='an image, a folder, or a glob pattern in quotes')
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_flags(parser, PredictOptions)


def _predict_starts(args: argparse.Namespace) -> str:
    options = PredictOptions(**given_flags(args, PredictOptions))
    if options.output_type and not options.format:
        raise UserError(f'--output-type {options.output_type} is for a table: give --format or --output')
    if args.json and options.format:
        raise UserError(f'--json and --format {options.format}: give one of them')
    return f'predict: {", ".join(args.images[:3])}{", …" * (len(args.images) > 3)} by {options.model}{LOADING}'


def _predict(args: argparse.Namespace) -> int:
    from ..utils.memory import keep_freed_memory

    with keep_freed_memory():
        return _print_predictions(args)


def _print_predictions(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..inference.predict import describe, predict_each
    from ..inference.tables import to_table, write_table
    from ..utils.console import Console

    options, console = PredictOptions(**given_flags(args, PredictOptions)), Console()
    predictions, errors = [], []
    for prediction in predict_each(args.images, options, console):
        predictions.append(prediction)
        if prediction.error:
            errors.append(prediction.error)
            with tqdm.external_write_mode():
                complain(f'warning: {prediction.error}')
        elif not args.json and not options.format:
            console.line(describe(prediction))
    if args.json:
        print(to_json([each.as_json() for each in predictions], indent=2))
    elif options.output:
        write_table(predictions, options)
        console.line(f'predictions: {options.output}')
    elif options.format:
        print(to_table(predictions, options).decode(), end='')
    if options.save_figure and (options.output or not (args.json or options.format)):
        console.line(f'\nfigures: {options.save_figure}')
    if errors:
        complain(f"error: {len(errors)} of {len(predictions)} images can't be read")
    return 1 if errors else 0


def _add_average(parser: argparse.ArgumentParser) -> None:
    sources = 'a run, for its checkpoints/epoch-N; a model folder; a file of weights, with --model'
    parser.add_argument('sources', nargs='+', metavar='RUN|FILE', help=sources)
    add_flags(parser, AverageOptions)


def _average_starts(args: argparse.Namespace) -> str:
    AverageOptions(**given_flags(args, AverageOptions))
    return f'average: {", ".join(args.sources[:3])}{", …" * (len(args.sources) > 3)}{LOADING}'


def _average(args: argparse.Namespace) -> int:
    from ..inference.average import average
    from ..utils.console import Console

    average(args.sources, AverageOptions(**given_flags(args, AverageOptions)), Console())
    return 0


VALIDATE = Command('validate', 'validate one model or several', _add_validate, _validate, starts=_validate_starts)
PREDICT = Command(
    'predict',
    'classify images with a trained model, and show where it looks',
    _add_predict,
    _predict,
    ' IMAGE…',
    _predict_starts,
)
AVERAGE = Command(
    'average',
    'average the weights of checkpoints into a model',
    _add_average,
    _average,
    ' RUN…|FILE…',
    _average_starts,
)
