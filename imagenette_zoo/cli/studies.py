"""The subcommands `study`, `run`, `analyse` and `report`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from ..config.recipe import Recipe
from ..errors import UserError, nearest
from ..report.page import check_packages, write_report
from ..study.estimate import image_counts, seconds_per_epoch
from ..study.plan import Study, find_study, make_study, plain_name, read_study
from ..study.process import Slot, epochs_done
from ..study.records import Record, by_run, group_runs, samples_of, study_records
from ..study.runner import Trials, check_models, run_study, state_of
from ..study.statistics import interval, judge, threshold
from ..utils.console import Console, duration, table

__all__ = ['dry_run', 'report_command', 'run_command', 'study_command']


def study_command(
    name: str,
    slot: Slot,
    *,
    only: Sequence[str] = (),
    budget: float | None = None,
    plan_only: bool = False,
    ray: str | None = None,
) -> None:
    """Runs what is missing of a study, judges its claims and writes its report.

    Args:
        name: Its file, or the name of one that comes with the package.
        slot: Where and how; the study gets a folder of its name there.
        only: Names of runs.
        budget: Hours, instead of the study's own.
        plan_only: Only says what would be done and what it would take.
        ray: The address of a Ray cluster that the trainings are sent to.

    Raises:
        UserError: Something in the file is wrong, or a training failed.
    """
    study = read_study(find_study(name))
    for run in only:
        if run not in study.runs:
            raise UserError(f'--only: {name} has no run {run!r}{nearest(run, study.runs)}')
    _carry_out(study, slot, Console(), only=only, budget=budget, plan_only=plan_only, ray=ray)


def run_command(
    models: Sequence[str], recipe: Recipe, seeds: int, slot: Slot, *, plan_only: bool = False, ray: str | None = None
) -> None:
    """Trains models by one recipe with several seeds, and reports.

    Args:
        models: Their names.
        recipe: All other options.
        seeds: How many.
        slot: Where and how.
        plan_only: Only says what would be done and what it would take.
        ray: The address of a Ray cluster that the trainings are sent to.

    Raises:
        UserError: A model is given twice, or a training failed.
    """
    recipes = {plain_name(model): recipe.replace(model=model) for model in models}
    if len(recipes) != len(models):
        raise UserError(f'a model is given twice, or two names differ by punctuation only: {" ".join(models)}')
    study = make_study(' and '.join(models), recipes, tuple(range(1, seeds + 1)))
    _carry_out(study, slot, Console(), plan_only=plan_only, ray=ray)


def _carry_out(
    study: Study,
    slot: Slot,
    console: Console,
    *,
    only: Sequence[str] = (),
    budget: float | None = None,
    plan_only: bool = False,
    ray: str | None = None,
) -> None:
    if plan_only:
        dry_run(study, slot, console, only, budget)
        return
    if ray is not None and (budget is not None or slot.jobs > 1):
        raise UserError('--ray: --budget and --jobs are for one machine: leave them out')
    check_packages()
    if ray is None:
        found = run_study(study, slot, console, only=only, budget=budget)
    else:
        from ..study.on_ray import run_on_ray

        if study.budget is not None:
            console.line(f'the budget of {study.budget:g} h is for one machine: a Ray cluster does all of it')
        found = run_on_ray(study, slot, console, ray, only=only)
    try:
        _report(study, slot, console)
    except UserError as error:
        if found.failed:  # which are what is raised, then
            console.line(f'no report: {error}')
        _say_failures(found, slot, console)
        raise
    _say_failures(found, slot, console)


def _report(study: Study, slot: Slot, console: Console) -> None:
    records = study_records(study, slot.output)
    if not records:
        return
    console.line()
    console.line(summary(records))
    if study.claims:
        console.line()
        console.line(verdicts(study, records))
    page = write_report(slot.output / 'report', records, study=study, data_dir=slot.data_dir)
    console.line(f'\nreport: {page}')


def _say_failures(found: Trials, slot: Slot, console: Console) -> None:
    reasons: dict[str, list[str]] = {}
    for name, reason in found.left.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.line(f'not started ({reason}): {", ".join(names)}')
    if found.failed:
        shown = '; '.join(f'{name}: {reason}' for name, reason in found.failed.items())
        count = len(found.failed) + len(found.done) + len(found.left)
        raise UserError(f'{len(found.failed)} of {count} trainings failed (see {slot.output / "logs"}): {shown}')


def dry_run(
    study: Study, slot: Slot, console: Console, only: Sequence[str] = (), budget: float | None = None
) -> float:
    """Prints what would be trained and what it would take; returns the hours."""
    check_models(study)
    rows: list[tuple[str, ...]] = [('run', 'model', 'px', 'epochs', 'seeds', 'done', 'begun', 'hours to go')]
    total = 0.0
    for name, run in study.runs.items():
        if only and name not in only:
            continue
        trials = [trial for trial in study.trials() if trial.run == name]
        states = [state_of(trial, slot) for trial in trials]
        counts = image_counts(run.recipe, slot.data_dir)
        epochs = sum(
            trial.recipe.epochs - epochs_done(slot.output / trial.name)
            for trial, state in zip(trials, states, strict=True)
            if state != 'done'
        )
        recipe = run.recipe.replace(device=slot.device or run.recipe.device)
        hours = epochs * seconds_per_epoch(recipe, counts) / 3600 if epochs else 0.0
        total += hours
        size = 'own' if recipe.img_size is None else str(recipe.img_size)
        shown = [str(states.count(state)) for state in ('done', 'begun')]
        rows.append((name, recipe.model, size, str(recipe.epochs), str(len(trials)), *shown, f'{hours:.2f}'))
    console.line(table(rows))
    wall = total / min(slot.jobs, max(1, torch.cuda.device_count()))  # several on one device share it
    console.line(f'\nabout {duration(3600 * wall)} to go, by a few steps of each on this machine, without set-up')
    if (limit := budget or study.budget) is not None:
        console.line(f'the budget is {limit:g} h of training and validation, what is done included')
    for claim in study.claims:
        console.line(f'{claim.name}: {claim.sentence}  [{claim.metric}: {"; ".join(claim.order)}]')
    if study.claims and find_spec('scipy'):
        console.line(_reach(len(study.seeds), len(study.claims)))
    return wall


def _reach(seeds: int, claims: int) -> str:
    """How large a difference must be to be decided."""
    if seeds == 1:
        return 'one seed: no claim can be tested; two are the least, five a good number'
    return (
        f'{seeds} seeds, {claims} claim{"s" if claims > 1 else ""} tested together: a difference is decided from '
        f'{threshold(seeds, claims):.1f} standard errors on (of its mean over seeds); with 5 seeds from '
        f'{threshold(5, claims):.1f}, with 10 from {threshold(10, claims):.1f}'
    )


def summary(records: Sequence[Record]) -> str:
    """A line a run."""
    rows = [('run', 'seeds', 'top-1 %', 'total', 'images/s', 'M parameters')]
    for run, members in by_run(records).items():
        top1 = interval([record.result.top1 for record in members])
        half = '' if top1.half is None else f' ± {top1.half:.2f}'
        total = sum(record.result.seconds['total'] or 0.0 for record in members) / len(members)
        rate = sum(record.result.images_per_second for record in members) / len(members)
        size = f'{members[0].result.params / 1e6:.2f}'
        rows.append((run, str(len(members)), f'{top1.mean:.2f}{half}', duration(total), f'{rate:.0f}', size))
    return f'{table(rows)}\n(mean of the seeds ± 95 % interval)'


def verdicts(study: Study, records: Sequence[Record]) -> str:
    """A line a claim."""
    found = judge(study.claims, samples_of(study.claims, by_run(records)))
    lines = []
    for verdict in found:
        lines.append(f'{verdict.verdict.upper():12}  {verdict.claim.name}: {verdict.claim.sentence}')
        lines.append(f'              {verdict.claim.metric}, p = {verdict.p_adjusted:.3g} after Holm')
    return '\n'.join(lines)


def report_command(
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
    study = None
    if len(paths) == 1 and os.path.isfile(first / 'study.yaml'):
        study = read_study(first / 'study.yaml')
        records = study_records(study, first)
    else:
        records = group_runs(_run_folders(paths))
    if not records:
        raise UserError(f'{first}: no finished run in it')
    beside = len(paths) == 1 and not (first / 'result.json').is_file()
    folder = Path(output) if output else first / 'report' if beside else Path('report')
    page = write_report(
        folder,
        records,
        study=study,
        data_dir=data_dir,
        images=images,
        compare=compare,
        markdown=Path(markdown) if markdown else None,
    )
    print(summary(records))
    if study is not None and study.claims:
        print(f'\n{verdicts(study, records)}')
    print(f'\nreport: {page}')
    return page


def _run_folders(paths: Sequence[str]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if os.path.isfile(path / 'result.json'):
            found.append(path)
            continue
        inside = sorted(file.parent for file in path.glob('*/result.json'))
        if not inside:
            raise UserError(f'{path}: no finished run in it (no result.json)')
        found.extend(inside)
    return found
