"""The section of a report on the classes: two runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError, nearest
from ..study.records import Record, distinct
from ..utils.console import short
from .drawing import INK, Numbers, Picture, draw_picture, legend, names, run_label, short_label
from .section import MOST_CLASSES, Cell, Figure, Section, Table, mean_text, run_cell, stat_of

__all__ = ['class_table', 'compared', 'numbers', 'pairs', 'section']

MOST_PAIRS = 6  # beside each other; all runs are in the table of classes


def numbers(records: Sequence[Record]) -> dict[str, Any]:
    """Top-1 of a run by class, as far as all seeds have it."""
    classes = {
        name: stat_of([record.result.per_class.get(name) for record in records]) for name in records[0].result.per_class
    }
    return {name: top1 for name, top1 in classes.items() if top1}


def compared(runs: Mapping[str, Sequence[Record]], compare: tuple[str, str] | None) -> list[str]:
    """The runs beside each other: those asked for, else the best two of different models, else the best two."""
    for name in compare or ():
        if name not in runs:
            raise UserError(f'no run {name!r} to compare: expected one of {", ".join(runs)}{nearest(name, runs)}')
    if compare:
        return list(compare)
    best, *others = runs
    classes = set(runs[best][0].result.per_class)
    same = [name for name in others if set(runs[name][0].result.per_class) == classes]
    model = runs[best][0].result.model
    return [best, *[name for name in same if runs[name][0].result.model != model], *same][: 2 if same else 1]


def pairs(content: Numbers, claims: Sequence[Numbers], asked: bool) -> list[list[str]]:
    """The pairs of runs beside each other: those that are claimed, decided ones first, unless others are asked for."""
    known = {run['run'] for run in content['runs']}
    ordered = sorted(claims, key=lambda claim: claim['verdict'] == 'undecided')
    found = [[each['larger'], each['smaller']] for claim in ordered for each in claim['findings']]
    shown = [pair for pair in distinct([sorted(pair) for pair in found]) if known.issuperset(pair)]
    return shown if shown and not asked else [content['compared']]


def section(content: Numbers) -> Section:
    """Top-1 by class of the runs that are compared."""
    by_name = {run['run']: run for run in content['runs']}
    drawn: list[Figure] = []
    text = []
    for pair in content['pairs'][:MOST_PAIRS]:
        runs = sorted((by_name[name] for name in pair), key=lambda run: run['number'])
        classes = [name for name in runs[0]['per_class'] if all(name in run['per_class'] for run in runs)]
        both = ' and '.join(map(run_label, runs))
        if not classes or len(classes) > MOST_CLASSES:
            reason = f'they have {len(classes)} classes: see report.json' if classes else 'they share no class'
            text.append(f'{both}: {reason}.')
            continue
        picture = _two_runs(runs, classes, f'classes-{len(drawn) + 1}')
        caption = f'{both}: mean over seeds; whiskers: 95 % interval, from three seeds on.'
        drawn.append(Figure(picture, caption, class_table(runs, classes, halves=True)))
    if len(content['pairs']) > MOST_PAIRS:
        text.append(f'Of {len(content["pairs"])} pairs that are claimed {MOST_PAIRS} are shown, decided ones first.')
    return Section('classes', 'Class by class', text, figures=drawn)


def class_table(runs: Sequence[Numbers], classes: Sequence[str], halves: bool = False) -> Table:
    """Top-1 of each run by class; with `halves` also half of the interval."""
    rows = []
    for run in runs:
        cells = [run_cell(run)]
        for name in classes:
            stat = run['per_class'].get(name)
            text = mean_text(stat, 'top1') if halves else f'{stat["mean"]:.1f}' if stat else '–'
            cells.append(Cell(text, stat['mean'] if stat else None))
        rows.append(cells)
    return Table('Top-1 by class, %, mean over seeds', ['run', *classes], rows, sortable=not halves)


def _two_runs(runs: Sequence[Numbers], classes: Sequence[str], name: str) -> Picture:
    """Top-1 of each class, a bar for each run, with their 95 % intervals.

    Args:
        runs: One or two, out of a report's contents.
        classes: That all of them know.
        name: The figure's.
    """
    thick = 0.8 / len(runs)

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        bars = []
        for index, run in enumerate(runs):
            stats = [run['per_class'][each] for each in classes]
            rows = [row + (index - (len(runs) - 1) / 2) * thick for row in range(len(classes))]
            means = [stat['mean'] for stat in stats]
            hatch = '' if index == 0 else '////'
            bars.append(axis.barh(rows, means, thick * 0.92, color=run['colour'], hatch=hatch, alpha=0.85))
            if run['band'] == 'interval':
                ends = [(max(stat['low'], 0), min(stat['high'], 100)) for stat in stats]
                errors = [[m - low, high - m] for m, (low, high) in zip(means, ends, strict=True)]
                axis.errorbar(means, rows, xerr=[*zip(*errors, strict=True)], fmt='none', color=INK, linewidth=0.8)
            for row, mean in zip(rows, means, strict=True):
                axis.text(114, row, f'{mean:.1f}', ha='right', va='center', fontsize=8 if len(runs) > 1 else 9)
        axis.set(xlim=(0, 100), xlabel='top-1, %', ylim=(len(classes) - 0.4, -0.6))
        axis.set_yticks(range(len(classes)), [short(each, 18) for each in classes])
        axis.tick_params(axis='y', length=0)
        legend(figure, bars, [short_label(run) for run in runs])

    return draw_picture(name, f'Top-1 by class: {names(runs)}', 1.2 + (0.16 + 0.16 * len(runs)) * len(classes), draw)
