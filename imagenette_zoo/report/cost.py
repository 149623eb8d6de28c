"""The section of a report on accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..study.metrics import COSTS, metric_of
from .drawing import INK, MARKERS, MOST_LINES, PAPER, Numbers, Picture, draw_picture, legend, names, run_label
from .section import Cell, Figure, Section, Table, metric_cell, run_cell

__all__ = ['HOW', 'cost_picture', 'fronts', 'section']

HOW = (
    'Cost',
    'GMACs are multiply-accumulates of one image. Times, images/s and memory are of the machine named at the '
    'top, as busy as it was: compare them only between runs that had it to themselves. A run is on the front '
    'if no other costs less and is as good, by the means; their intervals are not looked at.',
)


def fronts(content: Numbers) -> dict[str, list[int]]:
    """The runs on the front of each cost, by number; of several machines the times do not compare."""
    comparable = COSTS if len(content['setup']['hardware']) == 1 else ('gmacs',)
    return {cost: _front(content['runs'], cost) if cost in comparable else [] for cost in COSTS}


def _front(runs: Sequence[Numbers], cost: str) -> list[int]:
    """The numbers of the runs on the Pareto front of top-1 and a cost."""
    points = sorted(
        (run['metrics'][cost]['mean'], -run['metrics']['top1']['mean'], run['number'])
        for run in runs
        if run['metrics'][cost] and run['metrics']['top1']
    )
    front: list[int] = []
    best = math.inf
    for _, loss, number in points:
        if loss < best:
            front.append(number)
            best = loss
    return front


def section(content: Numbers) -> Section | None:
    """A figure for each cost that the runs can be compared by."""
    labels = {'gmacs': 'GMACs of one image', 'train_seconds': 'training time, s'}
    drawn = []
    for cost in COSTS:
        front = content['front'][cost]
        if front:
            picture = cost_picture(content['runs'], front, cost, labels[cost], f'cost-{cost}')
            runs = ', '.join(run_label(run) for run in content['runs'] if run['number'] in front)
            caption = f'On the front: {runs}. Whiskers: 95 % interval, from three seeds on.'
            drawn.append(Figure(picture, caption, _cost_table(content, cost)))
    return Section('cost', 'Accuracy against cost', figures=drawn) if drawn else None


def _cost_table(content: Numbers, cost: str) -> Table:
    """Cost and top-1 of each run, and whether it is on the front."""
    rows = [
        [
            run_cell(run),
            metric_cell(run['metrics'][cost], cost),
            metric_cell(run['metrics']['top1'], 'top1'),
            Cell('yes' if run['number'] in content['front'][cost] else 'no'),
        ]
        for run in content['runs']
        if run['metrics'][cost]
    ]
    name = {'train_seconds': 'training time, s'}.get(cost, metric_of(cost).label)
    return Table(f'Top-1 against {name}', ['run', name, 'top-1, %', 'on the front'], rows)


def cost_picture(runs: Sequence[Numbers], front: Sequence[int], metric: str, label: str, name: str) -> Picture:
    """Top-1 against what it costs, and the front of those runs that no other beats.

    Args:
        runs: Out of a report's contents; those without the metric are left out.
        front: The numbers of the runs on the front, by rising cost.
        metric: The cost.
        label: Its axis.
        name: The figure's.
    """
    shown = [run for run in runs if run['metrics'][metric] and run['metrics']['top1']]
    named = shown if len(shown) <= MOST_LINES else [run for run in shown if run['number'] in front]

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        points = {run['number']: _point(run, metric) for run in shown}
        costs = [x for x, _ in points.values()]
        if min(costs) > 0 and max(costs) > 8 * min(costs):
            axis.set_xscale('log')
            axis.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.xaxis.set_minor_formatter(lambda value, _: f'{value:g}' if f'{value:e}'[0] in '25' else '')
        steps = [points[number] for number in front]
        axis.step(*zip(*steps, strict=True), where='post', color=INK, linestyle='--', linewidth=0.8, alpha=0.7)
        for run in shown:
            x, y = points[run['number']]
            on = run['number'] in front
            colour, marker, stat = run['colour'], MARKERS[run['style']], run['metrics']['top1']
            if run['band'] == 'interval':
                error = [[y - max(stat['low'], 0)], [min(stat['high'], 100) - y]]
                axis.errorbar(x, y, error, color=colour, linewidth=0.8, capsize=2, alpha=0.6)
            axis.plot(x, y, marker, color=colour, markerfacecolor=colour if on else PAPER, markersize=6)
        axis.margins(x=0.12, y=0.12)
        axis.set(xlabel=label, ylabel='validation top-1, %')
        axis.grid(alpha=0.25, linewidth=0.5)
        handles = [*axis.plot([], [], 'o--', color=INK), *axis.plot([], [], 'o', color=INK, mfc=PAPER)]
        words = ['on the front: nothing cheaper is as good', 'beaten by another run']
        legend(figure, handles, words)
        _number_points(axis, points)

    return draw_picture(name, f'Top-1 against {label}: {names(named)}', 3.8, draw)


def _point(run: Numbers, metric: str) -> tuple[float, float]:
    return run['metrics'][metric]['mean'], run['metrics']['top1']['mean']


def _number_points(axis: Any, points: Mapping[int, tuple[float, float]]) -> None:
    """Writes each run's number beside its point, where there is room: the nearest position that is free, if one is."""
    axis.figure.draw_without_rendering()  # settles where the points are
    scale = 72 / axis.figure.dpi
    spots = {number: axis.transData.transform(point) * scale for number, point in points.items()}
    taken = list(spots.values())
    for number, (x, y) in spots.items():
        positions = [
            (r * a, r * b) for r in (10, 20) for a, b in ((1, 0), (-1, 0), (1, 0.9), (-1, 0.9), (1, -0.9), (-1, -0.9))
        ]
        free = [(dx, dy) for dx, dy in positions if all(abs(x + dx - a) > 9 or abs(y + dy - b) > 8 for a, b in taken)]
        dx, dy = (free or positions)[0]
        taken.append((x + dx, y + dy))
        axis.annotate(str(number), points[number], (dx, dy), textcoords='offset points', ha='center', va='center')
