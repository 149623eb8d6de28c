"""The section of a report on all runs: every metric, mean over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..study.metrics import METRICS, metric_of
from ..study.records import Record, sample
from ..training.result import THRESHOLDS
from ..utils.console import duration
from .classes import class_table
from .drawing import Numbers
from .section import MOST_CLASSES, Cell, Section, Table, metric_cell, run_cell, stat_of

__all__ = ['HOW', 'numbers', 'section']

HOW = (
    'Time to an accuracy',
    'Seconds of training and validation (epochs likewise) up to the validation that first gave the accuracy, '
    'interpolated between it and the one before, from a guess at the start. Seeds that never got there make no '
    'mean: the table says how many did. Claims then compare who was first.',
)


def numbers(records: Sequence[Record]) -> dict[str, Any]:
    """The metrics of a run, how soon it reached each threshold of top-1, and how many epochs it had."""
    metrics = {}
    for metric in METRICS:
        values = sample(records, metric)
        metrics[metric] = stat_of(values.values) if values and len(values.values) == len(records) else None
    return {
        'metrics': metrics,
        'reach': {str(top1): _reach(records, top1) for top1 in THRESHOLDS},
        'epochs': {
            'done': [record.result.epochs for record in records],
            'stopped': [record.result.stopped for record in records],
            'planned': records[0].result.recipe.get('epochs'),
        },
    }


def _reach(records: Sequence[Record], top1: float) -> dict[str, Any]:
    """How many seeds reached this top-1, and, where all did, after how long."""
    reached = [record.reach('seconds', top1)[1] for record in records]
    reach: dict[str, Any] = {'reached': sum(reached), 'of': len(reached)}
    for unit in ('seconds', 'epochs'):
        reach[unit] = stat_of([record.reach(unit, top1)[0] for record in records]) if all(reached) else None
    return reach


def section(content: Numbers) -> Section:
    """All runs, and their top-1 by class where it fits."""
    classes = list(dict.fromkeys(name for run in content['runs'] for name in run['per_class']))
    text = ['The number before a run is its place by top-1; the figures call it by that number.']
    tables = [_runs_table(content)]
    if 0 < len(classes) <= MOST_CLASSES:
        tables.append(class_table(content['runs'], classes))
    elif classes:
        text.append(f'Top-1 of each of the {len(classes)} classes is in report.json.')
    return Section('runs', 'Runs', text, tables)


def _runs_table(content: Numbers) -> Table:
    """All runs and their metrics; columns of which nothing is known are left out, and times that do not compare."""
    runs = content['runs']
    columns: list[tuple[str, list[Cell]]] = [
        ('run', [run_cell(run) for run in runs]),
        ('seeds', [_seeds_cell(run) for run in runs]),
        _metric_column(runs, 'top1'),
    ]
    if any(run['metrics']['best_top1'] != run['metrics']['top1'] for run in runs):
        columns.append(_metric_column(runs, 'best_top1'))
    if any(any(run['epochs']['stopped']) for run in runs):
        columns.append(('epochs', [_epochs_cell(run['epochs']) for run in runs]))
    one_machine = len(content['setup']['hardware']) == 1
    if one_machine:
        reached = {top1: [_reach_cell(run['reach'][str(top1)]) for run in runs] for top1 in THRESHOLDS}
        columns += [(f'time to {top1} %', cells) for top1, cells in reached.items()]
        columns.append(('training time', [_time_cell(run['metrics']['train_seconds']) for run in runs]))
    columns += [
        _metric_column(runs, metric)
        for metric in (
            *('params', 'gmacs', 'images_per_second', 'peak_memory_mib'),
            *('gap', 'shift_consistency', 'calibration_error', 'pass_similarity'),
        )
        if one_machine or not metric_of(metric).timed
    ]
    known = [(name, cells) for name, cells in columns if any(_says_something(cell) for cell in cells)]
    rows = [list(row) for row in zip(*(cells for _, cells in known), strict=True)]
    header = [name for name, _ in known]
    return Table(
        'All runs, mean over their seeds ± half of the 95 % interval; of two seeds both values',
        header,
        rows,
        True,
        header.index('top-1, %'),
    )


def _seeds_cell(run: Numbers) -> Cell:
    count = len(run['seeds'])
    return Cell(f'{count}, packaged' if run['packaged'] else str(count), count)


def _says_something(cell: Cell) -> bool:
    return cell.text not in ('–', 'not reached')


def _metric_column(runs: Sequence[Numbers], metric: str) -> tuple[str, list[Cell]]:
    known = metric_of(metric)
    label = f'{known.label},{known.unit}' if known.unit in (' %', ' points') else known.label
    return label, [metric_cell(run['metrics'][metric], metric) for run in runs]


def _time_cell(stat: Numbers | None) -> Cell:
    return Cell(duration(stat['mean']), stat['mean']) if stat else Cell('–')


def _epochs_cell(epochs: Numbers) -> Cell:
    """The epochs that the seeds had, of those that they would have had without a goal or patience."""
    done = epochs['done']
    several = f' to {max(done)}' if max(done) > min(done) else ''
    return Cell(f'{min(done)}{several} of {epochs["planned"]}', sum(done) / len(done))


def _reach_cell(reach: Numbers) -> Cell:
    """The time to a top-1 where all seeds reached it, else how many did."""
    if reach['seconds']:
        return _time_cell(reach['seconds'])
    return Cell(f'{reach["reached"]} of {reach["of"]} seeds' if reach['reached'] else 'not reached')
