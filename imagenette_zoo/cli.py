"""The command line: ``imagenette-zoo COMMAND``, and the doors ``train.py`` and ``validate.py``."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .training.options import Parser, add_flags, given_flags
from .training.recipe import FLAGSHIP, GOOD_RECIPE, Recipe, ValidationOptions, recipe_names
from .version import __version__

__all__ = ['main', 'train_main', 'validate_main']

UNUSABLE = (errno.EACCES, errno.ENAMETOOLONG)  # what the system says of a name that no command has looked at
LONGEST_NAME = 100  # of a folder that nobody chose


def main(argv: Sequence[str] | None = None) -> int:
    """``imagenette-zoo``: runs a command; what the user can mend is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt as request:
        print('\ninterrupted', file=sys.stderr)
        return getattr(request, 'exit_code', 130)
    except BrokenPipeError:  # as in `imagenette-zoo list | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None or error.errno not in UNUSABLE:
            raise
        print(f'error: {error.filename}: {error.strerror}', file=sys.stderr)
        return 2


def train_main(argv: Sequence[str] | None = None) -> int:
    """``train.py``. Returns the exit code."""
    return main(['train', *(sys.argv[1:] if argv is None else argv)])


def validate_main(argv: Sequence[str] | None = None) -> int:
    """``validate.py``. Returns the exit code."""
    return main(['validate', *(sys.argv[1:] if argv is None else argv)])


def _main(argv: Sequence[str]) -> int:
    parser = Parser(prog='imagenette-zoo', description='Train, validate and compare models on Imagenette.')
    parser.add_argument('--version', action='version', version=f'imagenette-zoo {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (add, _, text) in COMMANDS.items():
        words = USAGE.get(name, '')
        add(commands.add_parser(name, help=text, description=text, usage=f'imagenette-zoo {name}{words} [options]'))
    args = _parse(parser, commands, argv)
    return COMMANDS[args.command][1](args)


def _parse(parser: Parser, commands: Any, argv: Sequence[str]) -> argparse.Namespace:
    """Parses with the parser of the command, so that a wrong flag's nearest names are that command's."""
    if argv and argv[0] in commands.choices:
        args = commands.choices[argv[0]].parse_args(argv[1:])
        args.command = argv[0]
        return args
    return parser.parse_args(argv)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-c',
        '--config',
        metavar='RECIPE',
        help=f'a YAML file, or one of {", ".join(recipe_names())}; flags override it '
        f'(without it and without --model: {FLAGSHIP})',
    )
    parser.add_argument(
        '--from', dest='from_run', metavar='RUN', help='repeat a finished run; says what differs; flags override it'
    )
    add_flags(parser, Recipe)


def _train(args: argparse.Namespace) -> int:
    from .training.checkpoint import resumed_run
    from .training.result import read_result
    from .training.trainer import train

    flags = given_flags(args, Recipe)
    if args.from_run is not None:
        if args.config is not None or 'resume' in flags:
            raise UserError('--from repeats a run, with flags for what is to differ: leave --config and --resume out')
        then = read_result(Path(args.from_run))
        train(Recipe.load(then.folder / 'args.yaml', **{'experiment': None, **flags}), repeats=then)
        return 0
    base = args.config
    if base is None and 'resume' in flags:
        run = resumed_run(flags['resume'], flags.get('output', Recipe.output), flags.get('experiment'))
        file = run / 'args.yaml'
        base = file if os.path.isfile(file) else None
    if base is None and 'model' not in flags:
        base = FLAGSHIP
    train(Recipe.load(base, **flags) if base else Recipe(**flags))
    return 0


def _add_validate(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, ValidationOptions)


def _validate(args: argparse.Namespace) -> int:
    from .training.evaluation import validate

    validate(ValidationOptions(**given_flags(args, ValidationOptions)))
    return 0


def _add_passes(parser: argparse.ArgumentParser) -> None:
    from .study.passes import PassesOptions

    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, PassesOptions)


def _passes(args: argparse.Namespace) -> int:
    from .study.passes import PassesOptions, compare_passes

    compare_passes(PassesOptions(**_one_model(args, given_flags(args, PassesOptions))))
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    from .sharing.predict import PredictOptions

    parser.add_argument('images', nargs='+', metavar='IMAGE', help='an image, a folder, or a glob pattern in quotes')
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_flags(parser, PredictOptions)


def _predict(args: argparse.Namespace) -> int:
    import json

    from .sharing.predict import PredictOptions, describe, predict_each
    from .training.console import Console

    options, console = PredictOptions(**given_flags(args, PredictOptions)), Console()
    found = []
    for prediction in predict_each(args.images, options, console):
        if args.json:
            found.append(prediction.as_json())
        else:
            console.line(describe(prediction))
    if args.json:
        print(json.dumps(found, indent=2))
    elif options.save_figure:
        console.line(f'\nfigures: {options.save_figure}')
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    from .sharing.export import ExportOptions

    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, ExportOptions)


def _export(args: argparse.Namespace) -> int:
    from .sharing.export import ExportOptions, export_model

    export_model(ExportOptions(**_one_model(args, given_flags(args, ExportOptions))))
    return 0


def _one_model(args: argparse.Namespace, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags, and among them the model where it was given without one."""
    if args.run is not None and 'model' in flags:
        raise UserError(f'one model is meant: {args.run} or --model {flags["model"]}?')
    return flags if args.run is None else {'model': args.run, **flags}


def _add_place(parser: argparse.ArgumentParser) -> None:
    """What ``study`` and ``run`` have in common."""
    parser.add_argument(
        '--jobs', type=_positive, default=1, metavar='N', help='trainings at the same time (default: 1)'
    )
    parser.add_argument('--dry-run', action='store_true', help='only print the plan with the estimated hours')
    parser.add_argument(
        '--ray',
        nargs='?',
        const='local',
        metavar='ADDRESS',
        help='send the trainings to a Ray cluster (no address: one on this machine is started); needs the extra [ray]',
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number above 0')
    return number


def _hours(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number of hours above 0')
    return number


def _add_study(parser: argparse.ArgumentParser) -> None:
    from .training.recipe import study_names

    names = ', '.join(study_names())
    parser.add_argument('study', metavar='FILE', help=f'a study: a YAML file, or one of {names}')
    parser.add_argument('--data-dir', metavar='DIR', help='as in training')
    parser.add_argument('--output', default='runs', metavar='DIR', help='the study gets a folder there (default: runs)')
    parser.add_argument('--device', metavar='DEVICE', help='as in training')
    parser.add_argument('--only', nargs='+', default=[], metavar='RUN', help='only these of its runs')
    parser.add_argument('--budget', type=_hours, metavar='HOURS', help="instead of the study's own budget")
    _add_place(parser)


def _study(args: argparse.Namespace) -> int:
    from .study.commands import study_command
    from .study.runner import Place

    place = Place(Path(args.output, Path(args.study).stem), args.data_dir, args.device, args.jobs)
    study_command(args.study, place, only=args.only, budget=args.budget, plan_only=args.dry_run, ray=args.ray)
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', metavar='MODEL', help="any of timm's models or ours")
    parser.add_argument(
        '-c', '--config', default=GOOD_RECIPE, metavar='RECIPE', help=f'as in training (default: {GOOD_RECIPE})'
    )
    parser.add_argument('--seeds', type=_positive, default=3, metavar='N', help='trainings of each model (default: 3)')
    _add_place(parser)
    add_flags(parser, Recipe)


def _run(args: argparse.Namespace) -> int:
    from .study.commands import run_command
    from .study.plan import plain_name
    from .study.runner import Place

    flags = given_flags(args, Recipe)
    foreign = {
        'model': 'give its name',
        'seed': '--seeds N',
        'resume': 'it always does',
        'overwrite': 'remove the folder',
    }
    for name, instead in foreign.items():
        if name in flags:
            raise UserError(f'--{name}: not of this command: {instead}')
    name = flags.get('experiment') or '+'.join(map(plain_name, args.models))
    if len(name) > LONGEST_NAME:
        raise UserError('so many models make a long name: choose one with --experiment NAME')
    recipe = Recipe.load(args.config, **flags).replace(experiment=None)
    place = Place(Path(recipe.output, name), recipe.data_dir, flags.get('device'), args.jobs)
    run_command(args.models, recipe, args.seeds, place, plan_only=args.dry_run, ray=args.ray)
    return 0


def _add_analyse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', metavar='RUN', help='the folder of a finished run')
    parser.add_argument('--data-dir', metavar='DIR', help='as in training')
    parser.add_argument('--device', metavar='DEVICE', help='as in training')


def _analyse(args: argparse.Namespace) -> int:
    from .study.analysis import analyse
    from .training.console import Console
    from .training.result import read_result

    console = Console()
    for run in map(Path, args.runs):
        read_result(run)
        found = analyse(run, console, args.data_dir, args.device)
        console.line(
            f'{run}: top-1 {found.top1:.2f} % ({found.train_top1:.2f} % on {found.train_images:,} training images), '
            f'shift consistency {found.shift_consistency:.2f} %'
        )
    return 0


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'paths', nargs='+', metavar='PATH', help="a study's folder, or finished runs, or folders of them"
    )
    parser.add_argument('--output', metavar='DIR', help="where it goes (default: the study's folder, else report/)")
    parser.add_argument('--data-dir', metavar='DIR', help='as in training')
    parser.add_argument('--compare', nargs=2, metavar='RUN', help='two runs whose classes are shown beside each other')
    parser.add_argument('--markdown', metavar='FILE', help='where the Markdown goes (default: beside the page)')
    parser.add_argument('--no-images', action='store_true', help='show no images of the data set')


def _report(args: argparse.Namespace) -> int:
    from .study.commands import report_command

    compare = tuple(args.compare) if args.compare else None
    report_command(
        args.paths,
        args.output,
        data_dir=args.data_dir,
        images=not args.no_images,
        compare=compare,
        markdown=args.markdown,
    )
    return 0


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('source', metavar='RUN|FOLDER', help="a finished run, or a model folder, as a run's best/")
    parser.add_argument('repo_id', metavar='REPO_ID', help='OWNER/NAME on the Hugging Face Hub')
    parser.add_argument('--private', action='store_true', help='if the repository is made, make it private')
    parser.add_argument('--revision', metavar='BRANCH', help='publish on this branch (default: main)')
    parser.add_argument('--license', metavar='ID', help="the weights' licence (default: what the model's config says)")
    parser.add_argument('--output', metavar='DIR', help='where the folder is written (default: hub/REPO_ID)')
    parser.add_argument('--overwrite', action='store_true', help='replace what the repository has')
    parser.add_argument('--dry-run', action='store_true', help='write and check the folder, send nothing')


def _publish(args: argparse.Namespace) -> int:
    import dataclasses

    from .sharing.publish import PublishOptions, publish

    options = {field.name: getattr(args, field.name) for field in dataclasses.fields(PublishOptions)}
    publish(args.source, args.repo_id, PublishOptions(**options))
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    from .demo import DEFAULT

    parser.add_argument(
        'models',
        nargs='*',
        default=[*DEFAULT],
        metavar='MODEL',
        help="a run, a model folder, hf-hub:NAME or a model's name; two are shown side by side (default: "
        f'{" and ".join(DEFAULT)})',
    )
    parser.add_argument('--port', type=_positive, metavar='N', help='on this port (default: the first free from 7860)')


def _demo(args: argparse.Namespace) -> int:
    from .demo import serve

    serve(args.models, args.port)
    return 0


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--json', action='store_true', help='print JSON')


def _list(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from . import list_models
    from .training.console import table

    models = list_models()
    if args.json:
        print(json.dumps([dataclasses.asdict(model) for model in models], indent=2))
        return 0
    rows = [(m.name, f'{m.parameters / 1e6:.2f}', '–' if m.gmacs is None else f'{m.gmacs:.2f}') for m in models]
    lines = table([('model', 'M parameters', 'GMACs'), *rows]).splitlines()
    for line, text in zip(lines, ['', *(m.description for m in models)], strict=True):
        print(f'{line}  {text}'.rstrip())
    return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(prog='imagenette-zoo data', dest='action', required=True, metavar='ACTION')
    fetch = actions.add_parser('fetch', help='download Imagenette into the user cache')
    from .data.imagenette import SIZES

    fetch.add_argument('--size', choices=SIZES, default='160', help='shorter side (default: 160)')
    check = actions.add_parser('check', help='decode every image and count the classes')
    check.add_argument('--data-dir', metavar='DIR', help='as in training')
    check.add_argument('--dataset', default='', metavar='NAME', help='as in training')
    cache = actions.add_parser('cache', help='list or remove the decoded images in the user cache')
    what = cache.add_mutually_exclusive_group()
    what.add_argument('--list', action='store_true', help='list them (the default)')
    what.add_argument('--clear', action='store_true', help='remove them all')


def _data(args: argparse.Namespace) -> int:
    from .data.commands import cache_command, check_command, fetch_command

    if args.action == 'fetch':
        return fetch_command(args.size)
    if args.action == 'cache':
        return cache_command(args.clear)
    return check_command(args.data_dir, args.dataset)


USAGE = {
    'run': ' MODEL…',
    'study': ' FILE',
    'analyse': ' RUN…',
    'report': ' PATH…',
    'passes': ' MODEL',
    'predict': ' IMAGE…',
    'export': ' [MODEL]',
    'publish': ' RUN|FOLDER REPO_ID',
    'demo': ' [MODEL…]',
    'data': ' ACTION',
}
COMMANDS: dict[str, tuple[Callable[[Any], None], Callable[[Any], int], str]] = {
    'train': (_add_train, _train, 'train a model by a recipe'),
    'validate': (_add_validate, _validate, 'validate one model or several'),
    'run': (_add_run, _run, 'train models with several seeds and report: the one-liner'),
    'study': (_add_study, _study, 'run what is missing of a study and judge its claims'),
    'analyse': (_add_analyse, _analyse, "what a finished run's weights do with each image, for a report"),
    'report': (_add_report, _report, 'write the report on a study or on any runs'),
    'passes': (_add_passes, _passes, 'compare the passes of a MultiPass model'),
    'predict': (_add_predict, _predict, 'what a trained model takes images for, and where it sees it'),
    'export': (_add_export, _export, 'write a trained model for other programs: ONNX, torch.export, TorchScript'),
    'publish': (_add_publish, _publish, 'put a trained model on the Hugging Face Hub'),
    'demo': (_add_demo, _demo, 'a page that classifies your images and shows why'),
    'list': (_add_list, _list, 'list the models of the zoo'),
    'data': (_add_data, _data, 'fetch and check the data, list and clear its cache'),
}
