"""`imagenette-zoo study`, `run`, `report`, `analyse` and `passes`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.fields import add_flags, given_flags
from ..config.hparams import GOOD_RECIPE
from ..config.recipe import Recipe
from ..errors import UserError
from .command import Command, one_model, positive

__all__ = ['ANALYSE', 'PASSES', 'REPORT', 'RUN', 'STUDY']

LONGEST_NAME = 100  # of a folder that nobody chose


def _add_passes(parser: argparse.ArgumentParser) -> None:
    from ..study.passes import PassesOptions

    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, PassesOptions)


def _passes(args: argparse.Namespace) -> int:
    from ..study.passes import PassesOptions, compare_passes

    options = PassesOptions(**one_model(args, given_flags(args, PassesOptions)))
    report = compare_passes(options)
    if options.save_figure:
        from ..report.passes import save_passes_figure

        save_passes_figure(report, Path(options.save_figure))
    return 0


def _add_plan(parser: argparse.ArgumentParser) -> None:
    """The arguments that `study` and `run` have in common."""
    parser.add_argument('--jobs', type=positive, default=1, metavar='N', help='trainings at the same time (default: 1)')
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
    _add_plan(parser)


def _study(args: argparse.Namespace) -> int:
    from ..report.studies import run_study_file
    from ..study.process import Slot

    slot = Slot(Path(args.output, Path(args.study).stem), args.data_dir, args.device, args.jobs)
    run_study_file(args.study, slot, only=args.only, budget=args.budget, plan_only=args.dry_run, ray=args.ray)
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', nargs='+', metavar='MODEL', help="any of timm's models or ours")
    parser.add_argument(
        '-c', '--config', default=GOOD_RECIPE, metavar='RECIPE', help=f'as in training (default: {GOOD_RECIPE})'
    )
    parser.add_argument('--seeds', type=positive, default=3, metavar='N', help='trainings of each model (default: 3)')
    _add_plan(parser)
    add_flags(parser, Recipe)


def _run(args: argparse.Namespace) -> int:
    from ..report.studies import run_models
    from ..study.plan import plain_name
    from ..study.process import Slot

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
    slot = Slot(Path(recipe.output, name), recipe.data_dir, flags.get('device'), args.jobs)
    run_models(args.models, recipe, args.seeds, slot, plan_only=args.dry_run, ray=args.ray)
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
        analysis = analyse(run, console, args.data_dir, args.device)
        console.line(
            f'{run}: top-1 {analysis.top1:.2f} % ({analysis.train_top1:.2f} % on {analysis.train_images:,} training '
            f'images), shift consistency {analysis.shift_consistency:.2f} %'
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
    from ..report.studies import report_on

    compare = tuple(args.compare) if args.compare else None
    report_on(
        args.paths,
        args.output,
        data_dir=args.data_dir,
        images=not args.no_images,
        compare=compare,
        markdown=args.markdown,
    )
    return 0


RUN = Command('run', 'train models with several seeds and report: the one-liner', _add_run, _run, ' MODEL…')
STUDY = Command('study', 'run what is missing of a study and judge its claims', _add_study, _study, ' FILE')
ANALYSE = Command(
    'analyse', "what a finished run's weights do with each image, for a report", _add_analyse, _analyse, ' RUN…'
)
REPORT = Command('report', 'write the report on a study or on any runs', _add_report, _report, ' PATH…')
PASSES = Command('passes', 'compare the passes of a MultiPass model', _add_passes, _passes, ' MODEL')
