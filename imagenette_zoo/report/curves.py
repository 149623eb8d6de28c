"""The section of a report on the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..study.records import Record
from .drawing import (
    LINES,
    MARKERS,
    MOST_LINES,
    Numbers,
    Picture,
    draw_figure,
    draw_picture,
    legend,
    names,
    run_label,
    run_styles,
    short_label,
)  # fmt: skip
from .section import Cell, Figure, Section, Table, stat_of

__all__ = ['best_curves', 'learning_curves', 'numbers', 'panels', 'section']

LEAST_FOR_A_BAND = 3  # seeds: with two, Student's interval is nine times as wide as they are apart
MOST_EPOCHS = 25  # in a table


def numbers(records: Sequence[Record]) -> dict[str, Any]:
    """Validation top-1 of a run after each epoch that all seeds were validated after, with the bounds of its band."""
    seeds = [
        {epoch: row['eval_top1'] for epoch, row in enumerate(record.history, 1) if 'eval_top1' in row}
        for record in records
    ]
    curve = []
    for epoch in sorted(set.intersection(*map(set, seeds))):
        top1 = stat_of([seed[epoch] for seed in seeds])
        if top1 and len(records) < LEAST_FOR_A_BAND:
            top1['low'], top1['high'] = min(top1['values']), max(top1['values'])
        if top1:
            curve.append({'epoch': epoch, **{key: top1[key] for key in ('mean', 'low', 'high', 'values')}})
    band = 'interval' if len(records) >= LEAST_FOR_A_BAND else 'range' if len(records) > 1 else None
    return {'band': band, 'curve': curve}


def panels(runs: Sequence[str], claims: Sequence[Numbers]) -> list[list[str]]:
    """The runs of each figure, six at most: those that a claim compares are in one.

    Args:
        runs: Their names, in the order of the report.
        claims: Out of a report's contents.
    """
    groups: list[set[str]] = []

    def add(wanted: set[str]) -> None:
        fits = [group for group in groups if len(group | wanted) <= MOST_LINES]
        if fits:
            min(fits, key=lambda group: len(wanted - group)).update(wanted)
        else:
            groups.append(wanted)

    for claim in claims:
        pairs = [{each[which] for which in ('larger', 'smaller')} & set(runs) for each in claim['findings']]
        whole = set().union(*pairs)
        for wanted in [whole] if len(whole) <= MOST_LINES else pairs:
            add(wanted)
    alone = [run for run in runs if not any(run in group for group in groups)]
    for start in range(0, len(alone), MOST_LINES):
        add(set(alone[start : start + MOST_LINES]))
    return [[run for run in runs if run in group] for group in groups if group]


def section(content: Numbers) -> Section | None:
    """The curves of all runs, six in a figure."""
    by_name = {run['run']: run for run in content['runs'] if run['curve']}
    if not by_name:
        return None
    limits = _limits(list(by_name.values()))
    drawn: list[Figure] = []
    for panel in content['panels']:
        some = [by_name[name] for name in panel if name in by_name]
        if not some:
            continue
        picture = learning_curves(some, f'curves-{len(drawn) + 1}', limits)
        drawn.append(Figure(picture, _band_words(some), _curve_table(some)))
    return Section('curves', 'Learning curves', figures=drawn)


def _limits(runs: Sequence[Numbers]) -> tuple[float, float]:
    """Of top-1, in figures of these runs."""
    ends = ('mean', 'low', 'high')
    values = [row[end] for run in runs for row in run['curve'] for end in ends if row[end] is not None]
    return max(0.0, min(values) - 2), min(100.0, max(values) + 2)


def best_curves(content: Numbers) -> Any:
    """The curves of the best six runs, as a figure of matplotlib's."""
    runs = [run for run in content['runs'] if run['curve']][:MOST_LINES]
    names = [run['run'] for run in runs]
    styles = run_styles(names, [names])
    runs = [{**run, **dict(zip(('colour', 'style'), styles[run['run']], strict=True))} for run in runs]
    return draw_figure(_height(runs), lambda figure: _draw(figure, runs, _limits(runs)))


def _curve_table(runs: Sequence[Numbers]) -> Table:
    """Validation top-1 by epoch, of epochs evenly spread where there are many."""
    curves = [{row['epoch']: row for row in run['curve']} for run in runs]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    step = -(-len(epochs) // MOST_EPOCHS)
    rows = []
    for epoch in epochs[::-1][:: max(step, 1)][::-1]:  # the last one always
        cells = [Cell(str(epoch), epoch)]
        for curve in curves:
            row = curve.get(epoch)
            bounds = f' ({row["low"]:.2f} to {row["high"]:.2f})' if row and row['low'] != row['high'] else ''
            cells.append(Cell(f'{row["mean"]:.2f}{bounds}' if row else '–'))
        rows.append(cells)
    return Table('Validation top-1 by epoch, %: mean and band', ['epoch', *map(run_label, runs)], rows)


def _band_words(runs: Sequence[Numbers]) -> str:
    """The meaning of the bands of some runs."""
    words = {
        'interval': 'with three seeds or more the 95 % interval of the mean',
        'range': 'with two seeds what lies between them',
        None: 'with one seed there is none',
    }
    kinds = {run['band'] for run in runs}
    return 'The bands: ' + '; '.join(text for kind, text in words.items() if kind in kinds) + '.'


def learning_curves(runs: Sequence[Numbers], name: str, limits: tuple[float, float]) -> Picture:
    """Validation top-1 by epoch, with a band over seeds, of six runs at most.

    Args:
        runs: Out of a report's contents.
        name: The figure's.
        limits: Of top-1, the same for the figures that are to be compared.
    """

    title = f'Validation top-1 by epoch: {names(runs)}'
    return draw_picture(name, title, _height(runs), lambda figure: _draw(figure, runs, limits))


def _height(runs: Sequence[Numbers]) -> float:
    return 3.0 + 0.2 * len(runs)


def _draw(figure: Any, runs: Sequence[Numbers], limits: tuple[float, float]) -> None:
    axis = figure.add_subplot()
    for run in runs:
        rows = run['curve']
        epochs = [row['epoch'] for row in rows]
        colour, style = run['colour'], run['style']
        axis.plot(
            epochs,
            [row['mean'] for row in rows],
            color=colour,
            linestyle=LINES[style],
            marker=MARKERS[style],
            markersize=4,
            markevery=max(1, len(rows) // 8),
        )
        if run['band'] and rows:
            bounds = ([row[end] for row in rows] for end in ('low', 'high'))
            axis.fill_between(epochs, *bounds, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlabel='epochs', ylabel='validation top-1, %', ylim=limits)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25, linewidth=0.5)
    legend(figure, axis.lines, [short_label(run) for run in runs])
