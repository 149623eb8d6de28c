"""`imagenette-zoo study`, `run`, `report`, `analyse` and `passes`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.fields import Pairs, add_flags, given_flags
from ..config.groups import CodeOptions, DataOptions
from ..config.hparams import BENCHMARK, GOOD_RECIPE, recipe_names
from ..config.recipe import Recipe
from ..config.uses import PassesOptions
from ..errors import UserError
from ..utils.console import Console, counted, headed
from .command import LOADING, Command, one_model, positive

if TYPE_CHECKING:  # which is slow to import
    from ..study.plan import Study
    from ..study.process import Slot

__all__ = ['ANALYSE', 'PASSES', 'REPORT', 'RUN', 'STUDY']

DEVICES = 'auto (CUDA where there is one), cpu, cuda, cuda:1 or mps (default: that of the recipe)'


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, DataOptions, ('data_dir',))
    parser.set_defaults(data_dir=None)


def _add_passes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('run', nargs='?', metavar='MODEL', help='the same as --model')
    add_flags(parser, PassesOptions)


def _passes_options(args: argparse.Namespace) -> PassesOptions:
    return PassesOptions(**one_model(args, given_flags(args, PassesOptions)))


def _passes(args: argparse.Namespace) -> int:
    from ..study.passes import compare_passes

    options = _passes_options(args)
    report = compare_passes(options)
    if options.save_figure:
        from ..report.passes import save_passes_figure

        save_passes_figure(report, Path(options.save_figure))
    return 0


def _add_plan(parser: argparse.ArgumentParser) -> Any:
    """The arguments that `study` and `run` have in common; returns the group of those that exclude each other."""
    parser.add_argument('--jobs', type=positive, default=1, metavar='N', help='trainings at the same time (default: 1)')
    parser.add_argument(
        '--in-process',
        action='store_true',
        help='train one after the other in a process (--jobs: in N of them), which starts once; the results are the '
        'same; with code of your own each training has a process, as without it',
    )
    parser.add_argument(
        '--until-decided',
        action='store_true',
        help='train with as many seeds as the claims need (run: each pair), those first that are cheapest to decide',
    )
    parser.add_argument(
        '--budget',
        type=_hours,
        metavar='HOURS',
        help="of training and validation, what is done included (default: the study's own)",
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='only print the plan, its hours by a few steps of each run that are timed now, and what it can decide',
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        '--ray',
        nargs='?',
        const='local',
        metavar='ADDRESS',
        help='send the trainings to a Ray cluster (no address: one on this machine is started); needs the extra [ray]',
    )
    where.add_argument(
        '--slurm',
        nargs='?',
        const='slurm',
        choices=('slurm', 'local'),
        help='send the trainings as jobs to SLURM, by submitit (local: processes of this machine, to try); needs the '
        'extra [slurm]',
    )
    parser.add_argument(
        '--slurm-options',
        nargs='+',
        action=Pairs,
        default={},
        metavar='KEY=VALUE',
        help="of the jobs, by sbatch's or submitit's names: partition=gpu time=120 (minutes) gpus_per_node=1 mem_gb=32",
    )
    where.add_argument(
        '--print-commands',
        action='store_true',
        help='only print a command for each missing training (with --until-decided: of the next round), which any '
        'scheduler may start, again and again, where the folder of the study is',
    )
    return where


def _carry_out(study: Study, slot: Slot, args: argparse.Namespace) -> None:
    """Does with a study what the arguments of `_add_plan` say."""
    from ..report.studies import carry_out, print_commands
    from ..study.on_ray import run_on_ray
    from ..study.on_slurm import run_on_slurm
    from ..study.process import Extent
    from ..study.runner import run_study

    extent = Extent(getattr(args, 'only', ()), args.budget, args.until_decided)
    if args.slurm_options and not args.slurm:
        raise UserError('--slurm-options: are of --slurm: add that, or leave them out')
    if args.print_commands and not args.dry_run:
        print_commands(study, slot, extent)
        return
    train = run_study
    if args.ray:
        train = partial(run_on_ray, address=args.ray)
    elif args.slurm:
        train = partial(run_on_slurm, cluster=args.slurm, options=args.slurm_options)
    carry_out(study, slot, Console(), extent, plan_only=args.dry_run, train=train)


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
    parser.add_argument(
        'study', metavar='FILE', help=f'a study: a YAML file, the folder of one that was begun, or one of {names}'
    )
    _add_data_dir(parser)
    parser.add_argument('--output', metavar='DIR', help='the study gets a folder there (default: runs)')
    parser.add_argument('--device', metavar='DEVICE', help=DEVICES)
    parser.add_argument('--only', nargs='+', default=[], metavar='RUN', help='only these of its runs')
    _add_plan(parser).add_argument(
        '--seed',
        type=int,
        metavar='N',
        help='only do the training of the run of --only with this seed, in this process',
    )
    add_flags(parser, CodeOptions)


def _study_starts(args: argparse.Namespace) -> str:
    from ..study.plan import find_study, is_begun, read_study

    if args.seed is not None and len(args.only) != 1:
        raise UserError('--seed: is of one run: name it with --only RUN')
    of_several = {name: getattr(args, name) for name in ('dry_run', 'until_decided', 'in_process', 'budget')}
    of_several['jobs'] = args.jobs > 1
    if args.seed is not None and (given := [name for name, value in of_several.items() if value]):
        raise UserError(f'--seed: does one training: leave --{given[0].replace("_", "-")} out')
    begun = is_begun(args.study)
    if begun and args.output:
        raise UserError(f'--output: the study goes on in {args.study}: leave it out')
    file = Path(args.study, 'study.yaml') if begun else find_study(args.study)
    study = read_study(file, look_up=not begun and not given_flags(args, CodeOptions))
    if args.seed is not None:
        return f'study: {headed(study.title)} {args.only[0]} with seed {args.seed}{LOADING}'
    return f'study: {headed(study.title)} {_size(study, args.until_decided)}{LOADING}'


def _size(study: Study, until_decided: bool) -> str:
    more = ' or more' if until_decided or study.until_decided else ''
    each = ' each' if len(study.runs) > 1 else ''
    return f'{counted(len(study.runs), "run")} with {counted(len(study.seeds), "seed")}{more}{each}'


def _study(args: argparse.Namespace) -> int:
    from ..report.studies import study_of_file
    from ..study.lines import train_one
    from ..study.plan import is_begun
    from ..study.process import Slot

    folder = Path(args.study) if is_begun(args.study) else Path(args.output or 'runs', Path(args.study).stem)
    slot = Slot(folder, args.data_dir, args.device, args.jobs, args.in_process)
    study = study_of_file(args.study, given_flags(args, CodeOptions).get('device_modules', ()), args.only)
    if args.seed is None:
        _carry_out(study, slot, args)
    else:
        train_one(study, args.only[0], args.seed, slot, Console())
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'models', nargs='*', metavar='MODEL', help="any of timm's models, ours or your own (my_idea:MyNet)"
    )
    parser.add_argument(
        '-c',
        '--config',
        metavar='RECIPE',
        help=f'a YAML file, or one of {", ".join(recipe_names())}; flags override it (default: {GOOD_RECIPE}, or with '
        '--against that of the baselines)',
    )
    parser.add_argument('--seeds', type=positive, default=3, metavar='N', help='trainings of each run (default: 3)')
    parser.add_argument(
        '--one-look',
        action='store_true',
        help='compare the runs once, when all seeds are done: decides more, but no further seeds can follow',
    )
    parser.add_argument(
        '--against',
        nargs='+',
        action='extend',
        default=[],
        metavar=f'{BENCHMARK}[:MODEL]',
        help=f'compare with models that came with the package and are not trained again: {BENCHMARK} with all, '
        f'{BENCHMARK}:resnet18 with that; the runs take their recipe',
    )
    parser.add_argument(
        '--vary',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=V1,V2',
        help='a run for each value, and for each combination: of an option, as in lr=1e-3,3e-3, or of an argument of '
        'the model, as in act_layer=relu6,mish,my_idea:Snake',
    )
    _add_plan(parser)
    add_flags(parser, Recipe)


def _run_starts(args: argparse.Namespace) -> str:
    from ..study.plan import INSTEAD, parse_vary, plan_models, recipe_of

    flags = given_flags(args, Recipe)
    for name, instead in {'model': 'give its name', **INSTEAD}.items():
        if name in flags:
            raise UserError(f'--{name}: not of this command: {instead}')
    recipe, vary = recipe_of(args.config, args.against, **flags), parse_vary(args.vary)
    study = plan_models(args.models, recipe, args.seeds, vary, args.one_look, args.until_decided, args.against)
    name = args.config or (f'of the study {BENCHMARK}' if args.against else GOOD_RECIPE)
    return f'run: {study.title}: {_size(study, args.until_decided)} by recipe {name}{LOADING}'


def _run(args: argparse.Namespace) -> int:
    from ..study.plan import default_name, parse_vary, plan_models, recipe_of
    from ..study.process import Slot

    flags = given_flags(args, Recipe)
    vary = parse_vary(args.vary)
    name = flags.get('experiment') or default_name(args.models, vary)
    recipe = recipe_of(args.config, args.against, **flags).varied(experiment=None)
    slot = Slot(Path(recipe.output, name), recipe.data_dir, flags.get('device'), args.jobs, args.in_process)
    study = plan_models(args.models, recipe, args.seeds, vary, args.one_look, args.until_decided, args.against)
    _carry_out(study, slot, args)
    return 0


def _add_analyse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', metavar='RUN', help='the folder of a finished run')
    _add_data_dir(parser)
    parser.add_argument('--device', metavar='DEVICE', help=DEVICES)
    add_flags(parser, CodeOptions)


def _analyse(args: argparse.Namespace) -> int:
    from ..study.analysis import analyse, finished_run

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
    _add_data_dir(parser)
    parser.add_argument('--compare', nargs=2, metavar='RUN', help='two runs whose classes are shown beside each other')
    parser.add_argument('--markdown', metavar='FILE', help='where the Markdown goes (default: beside the page)')
    parser.add_argument('--no-images', action='store_true', help='show no images of the data set')
    add_flags(parser, CodeOptions)


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


RUN = Command(
    'run', 'train models with several seeds and report: the one-liner', _add_run, _run, ' MODEL…', _run_starts, True
)
STUDY = Command(
    'study', 'run what is missing of a study and judge its claims', _add_study, _study, ' FILE', _study_starts, True
)
ANALYSE = Command(
    'analyse',
    "what a finished run's weights do with each image, for a report",
    _add_analyse,
    _analyse,
    ' RUN…',
    lambda args: f'analyse: {", ".join(args.runs)}{LOADING}',
)
REPORT = Command(
    'report',
    'write the report on a study or on any runs',
    _add_report,
    _report,
    ' PATH…',
    lambda args: f'report: {", ".join(args.paths)}{LOADING}',
)
PASSES = Command(
    'passes',
    'compare the passes of a MultiPass model',
    _add_passes,
    _passes,
    ' MODEL',
    lambda args: f'passes: {_passes_options(args).model}{LOADING}',
)
