"""A study from its file to its report, as the commands `study`, `run` and `report` do it."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from ..errors import UserError, nearest
from ..study.baselines import all_records, check
from ..study.cluster import check_extent
from ..study.decisions import judge, unjudged, with_pairs
from ..study.estimate import dry_run
from ..study.hours import hours_spent
from ..study.lines import missing_lines
from ..study.plan import Study, begun_study, check_comparable, find_study, is_begun, read_study
from ..study.process import WHOLE, Extent, Slot, Trials
from ..study.records import Record, as_run, by_run, group_runs, same_hardware, samples_of
from ..study.runner import run_study
from ..study.sentences import sentence
from ..utils.console import Console, duration, table
from ..utils.environment import this_program
from .page import check_packages, write_report
from .section import mean_text, stat_of

__all__ = [
    'carry_out', 'print_commands', 'report_on', 'study_of_file', 'summary', 'summary_rows', 'verdicts', 'with_modules',
]  # fmt: skip


def study_of_file(name: str, modules: Sequence[str] = (), only: Sequence[str] = ()) -> Study:
    """A study as a command names it.

    Args:
        name: Its file, its folder, or the name of one that comes with the package.
        modules: Code of the user's own, instead of the study's.
        only: Names of runs that it must have.

    Raises:
        UserError: Something in the file is wrong.
    """
    study = begun_study(Path(name)) if is_begun(name) else read_study(find_study(name), look_up=not modules)
    study = with_modules(study, modules)
    for run in only:
        if run not in study.runs:
            raise UserError(f'--only: {name} has no run {run!r}{nearest(run, study.runs)}')
    return study


def with_modules(study: Study, modules: Sequence[str]) -> Study:
    """A study with other code of the user's own, if any is given."""
    if not modules:
        return study
    runs = study.runs.values()
    named = {run.name: replace(run, recipe=run.recipe.replace(device_modules=modules)) for run in runs}
    return replace(study, runs=named)


def carry_out(
    study: Study,
    slot: Slot,
    console: Console,
    extent: Extent = WHOLE,
    *,
    plan_only: bool = False,
    train: Callable[[Study, Slot, Console, Extent], Trials] = run_study,
) -> None:
    """Runs what is missing of a study, judges its claims and writes its report.

    Args:
        study: The study.
        slot: Where and how; `output` is its folder.
        console: Where it is printed.
        extent: How much of it.
        plan_only: Only prints the plan and its hours.
        train: Trains what is missing: on this machine, or sent to others.

    Raises:
        UserError: A training failed; the report on the others is written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was computed is saved.
    """
    extent = extent.of(study)
    study = _prepared(study, slot, console, extent)
    if plan_only:
        dry_run(study, slot, console, extent)
        return
    check_packages()
    trials = train(study, slot, console, extent)
    try:
        _report(study, slot, console)
    except UserError as error:
        if trials.failed:  # which are what is raised, then
            console.line(f'no report: {error}')
        _print_failures(trials, slot, console)
        raise
    _print_undecided(trials, extent.hours(study), hours_spent(as_run(study, slot.output), slot.output), console)
    _print_failures(trials, slot, console)


def print_commands(study: Study, slot: Slot, extent: Extent) -> None:
    """Prints a command for each training that is missing, and all else to standard error."""
    with redirect_stdout(sys.stderr):
        console, extent = Console(), extent.of(study)
        study = _prepared(study, slot, console, extent)
        check_extent('--print-commands', study, replace(slot, jobs=1), extent, console)
        lines, trials = missing_lines(study, slot, console, extent)
        if not lines:
            _print_undecided(trials, extent.hours(study), hours_spent(study, slot.output), console)
            console.line('no training is missing: the same command without --print-commands judges')
    program = this_program()
    if program[0] == 'python':  # elsewhere another one may be found by this name
        program[0] = sys.executable
    for words in lines:
        print(shlex.join([*program, *words]))


def _prepared(study: Study, slot: Slot, console: Console, extent: Extent) -> Study:
    """A study as its folder has it, after its notes."""
    if study.against and (extent.until_decided or study.until_decided):
        raise UserError(
            '--until-decided: baselines that come with the package get no further seeds: leave --against out and name '
            'their models beside yours'
        )
    for line in [*_notes(study), *check(study, slot)]:
        console.line(line)
    if extent.until_decided:
        check_comparable(study, '--until-decided')
        study = replace(study, until_decided=True)
    return as_run(study, slot.output)


def _notes(study: Study) -> list[str]:
    """A line on each option that gave way, with the runs if they are not all."""
    runs: dict[str, list[str]] = {}
    for run in study.runs.values():
        for note in run.recipe.notes:
            runs.setdefault(note, []).append(run.name)
    return [note if len(names) == len(study.runs) else f'{", ".join(names)}: {note}' for note, names in runs.items()]


def _print_undecided(trials: Trials, budget: float | None, spent: float, console: Console) -> None:
    """Says which claims get no more trainings, and why; `spent` hours are done."""
    if trials.undecided:
        of = '' if budget is None else f' ({spent:.2g} of {budget:g} h are spent)'
        console.line(f'\nnot decided{of}:')
        for name, left in trials.undecided.items():
            console.line(f'  {name}: {left.reason}')
    if more := [left.hours for left in trials.undecided.values() if left.hours is not None]:
        console.line(f'to go on: the same command with --budget {math.ceil(10 * (spent + min(more))) / 10:g}')


def _report(study: Study, slot: Slot, console: Console) -> None:
    study = as_run(study, slot.output)
    records = all_records(study, slot.output)
    if not records:
        return
    console.line()
    console.line(summary(records))
    if judged := verdicts(study, records):
        console.line(f'\n{judged}')
    page = write_report(slot.output / 'report', records, study=with_pairs(study, records), data_dir=slot.data_dir)
    console.line(f'\nreport: {page}')


def _print_failures(trials: Trials, slot: Slot, console: Console) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in trials.left.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.line(f'not started ({reason}): {", ".join(names)}')
    if trials.failed:
        shown = '; '.join(f'{name}: {reason}' for name, reason in trials.failed.items())
        count = len(trials.failed) + len(trials.done) + len(trials.left)
        logs = slot.output / 'logs'
        see = f' (see {logs})' if logs.is_dir() else ''
        raise UserError(f'{len(trials.failed)} of {count} trainings failed{see}: {shown}')


def summary(records: Sequence[Record]) -> str:
    """A line a run."""
    two = ', of two seeds both values' if any(len(each) == 2 for each in by_run(records).values()) else ''
    left_out = '' if same_hardware(records) else '; times are left out: the runs are from unlike machines'
    return f'{table(summary_rows(records))}\n(mean of the seeds ± 95 % interval{two}{left_out})'


def summary_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """A row a run, after a header; with times where all are from the same hardware."""
    timed = same_hardware(records)
    rows: list[tuple[str, ...]] = [
        ('run', 'seeds', 'top-1 %', *(('total', 'images/s') if timed else ()), 'M parameters')
    ]
    for run, members in by_run(records).items():
        top1 = mean_text(stat_of([record.result.top1 for record in members]), 'top1')
        total = sum(record.result.seconds.get('total') or 0.0 for record in members) / len(members)
        rate = sum(record.result.images_per_second for record in members) / len(members)
        packaged = members[0].packaged
        times = ('–', '–') if packaged else (duration(total), f'{rate:.0f}')
        seeds = f'{len(members)}, packaged' if packaged else str(len(members))
        rows.append((run, seeds, top1, *(times if timed else ()), f'{members[0].result.params / 1e6:.2f}'))
    return rows


def verdicts(study: Study, records: Sequence[Record]) -> str:
    """What is so, a line for each pair of runs; after each claim of the study, where it has some."""
    plan = with_pairs(study, records)
    lines = list(filter(None, [unjudged(study, records)]))
    for verdict in judge(plan.claims, samples_of(plan, by_run(records)), plan.stages):
        if study.claims:
            lines.append(f'{verdict.verdict.upper():12}  {verdict.claim.name}: {verdict.claim.sentence}')
        lines.append(f'{"":14}{sentence(verdict)}' if study.claims else sentence(verdict))
    return '\n'.join(lines if study.claims else dict.fromkeys(lines))  # one run may be unknown in several pairs


def report_on(
    paths: Sequence[str],
    output: str | None,
    *,
    data_dir: str | None = None,
    images: bool = True,
    compare: tuple[str, str] | None = None,
    markdown: str | None = None,
) -> Path:
    """Writes the report on a study or on any finished runs.

    Args:
        paths: A study's folder, or runs, or folders of runs.
        output: Where the report goes; beside the study, else `report/`.
        data_dir: Where the images are; as in training if not given.
        images: Whether it shows images of the data set.
        compare: Two runs whose classes are shown beside each other.
        markdown: Where the Markdown goes instead of the report's folder.

    Raises:
        UserError: There is no finished run, or one is damaged.
    """
    first = Path(paths[0])
    if len(paths) == 1 and os.path.isfile(first / 'study.yaml'):
        study = as_run(read_study(first / 'study.yaml'), first)
        records = all_records(study, first)
    else:
        records = group_runs(_run_folders(paths))
        study = Study('', {}, tuple(sorted({record.seed for record in records})))
    if not records:
        raise UserError(f'{first}: no finished run in it')
    beside = len(paths) == 1 and not (first / 'result.json').is_file()
    folder = Path(output) if output else first / 'report' if beside else Path('report')
    page = write_report(
        folder,
        records,
        study=with_pairs(study, records),
        data_dir=data_dir,
        images=images,
        compare=compare,
        markdown=Path(markdown) if markdown else None,
    )
    print(summary(records))
    if judged := verdicts(study, records):
        print(f'\n{judged}')
    print(f'\nreport: {page}')
    return page


def _run_folders(paths: Sequence[str]) -> list[Path]:
    folders = []
    for path in map(Path, paths):
        if os.path.isfile(path / 'result.json'):
            folders.append(path)
            continue
        inside = sorted(file.parent for file in path.glob('*/result.json'))
        if not inside:
            raise UserError(f'{path}: no finished run in it (no result.json)')
        folders.extend(inside)
    return folders
