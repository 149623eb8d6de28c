"""`imagenette-zoo study`, `run`, `report`, `analyse` and `passes`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.fields import add_flags, given_flags
from ..config.hparams import GOOD_RECIPE
from ..config.recipe import Recipe
from ..errors import UserError
from .arguments import _one_model, _positive

LONGEST_NAME = 100  # of a folder that nobody chose


def _add_passes(parser: argparse.ArgumentParser) -> None:
    from ..study.passes import PassesOptions

    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, PassesOptions)


def _passes(args: argparse.Namespace) -> int:
    from ..study.passes import PassesOptions, compare_passes

    options = PassesOptions(**_one_model(args, given_flags(args, PassesOptions)))
    report = compare_passes(options)
    if options.save_figure:
        from ..report.passes import save_passes_figure

        save_passes_figure(report, Path(options.save_figure))
    return 0


def _add_place(parser: argparse.ArgumentParser) -> None:
    """What `study` and `run` have in common."""
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


def _hours(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is not a number of hours above 0')
    return number


def _add_study(parser: argparse.ArgumentParser) -> None:
    from ..config.hparams import study_names

    names = ', '.join(study_names())
    parser.add_argument('study', metavar='FILE', help=f'a study: a YAML file, or one of {names}')
    parser.add_argument('--data-dir', metavar='DIR', help='as in training')
    parser.add_argument('--output', default='runs', metavar='DIR', help='the study gets a folder there (default: runs)')
    parser.add_argument('--device', metavar='DEVICE', help='as in training')
    parser.add_argument('--only', nargs='+', default=[], metavar='RUN', help='only these of its runs')
    parser.add_argument('--budget', type=_hours, metavar='HOURS', help="instead of the study's own budget")
    _add_place(parser)


def _study(args: argparse.Namespace) -> int:
    from ..study.runner import Place
    from .studies import study_command

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
    from ..study.plan import plain_name
    from ..study.runner import Place
    from .studies import run_command

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
    from ..study.analysis import analyse, finished_run
    from ..utils.console import Console

    console = Console()
    for run in [finished_run(name) for name in args.runs]:
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
    from .studies import report_command

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
