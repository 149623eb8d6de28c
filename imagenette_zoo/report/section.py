"""The parts that every section of a report is made of: means with intervals, numbers in words, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..study.metrics import metric_of
from ..study.statistics import Interval, interval
from ..utils.console import rounded
from .drawing import Numbers, Picture, run_label

__all__ = [
    'MOST_CLASSES', 'MOST_FIGURES', 'Cell', 'Figure', 'Section', 'Table', 'effect_text', 'interval_numbers',
    'interval_text', 'listed', 'mean_text', 'metric_cell', 'run_cell', 'stat_of',
]  # fmt: skip

MOST_FIGURES = 12  # of a kind; the rest is in report.json
MOST_CLASSES = 60  # in a table or figure


@dataclass(frozen=True)
class Cell:
    """A cell: its text, what it is sorted by, None where there is nothing, and the colour of the run that it names."""

    text: str
    value: float | str | None = None
    colour: str = ''


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header.

    Args:
        caption: What is in it.
        header: The columns.
        rows: Their cells.
        sortable: Whether a reader may sort it.
        sorted_by: The column that it is sorted by, downwards.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    sortable: bool = False
    sorted_by: int | None = None


@dataclass(frozen=True)
class Figure:
    """A picture (None where there are only numbers), its caption, and the numbers behind it."""

    picture: Picture | None
    caption: str
    table: Table


@dataclass(frozen=True)
class Shown:
    """A mistake as it is shown."""

    true: str
    predicted: str
    confidence: float
    wrong: str
    name: str
    thumbnail: str | None


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    mistakes: list[Shown] = field(default_factory=list)


def stat_of(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, 95 % interval and the numbers themselves; None where one of them is missing."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None
    return interval_numbers(interval(known))


def interval_numbers(bounds: Interval) -> dict[str, Any]:
    """A mean with its interval, fit for JSON."""
    return {name: getattr(bounds, name) for name in ('mean', 'low', 'high', 'half', 'count', 'values')}


def _number_text(value: float, metric: str) -> str:
    """`'2.237'` for 2,236,682 parameters."""
    known = metric_of(metric)
    return rounded(value / known.scale, known.decimals)


def effect_text(value: float, metric: str, ratio: bool, *, unit: bool = True) -> str:
    """A difference or ratio of two runs, `'+1.23 points'`."""
    known = metric_of(metric)
    if ratio:
        return rounded(value, 3)
    return rounded(value / known.scale, known.decimals, '+') + (known.difference if unit else '')


def interval_text(finding: Numbers, metric: str) -> str:
    """`', corrected interval +0.50 to +1.96'`; nothing where there is none, or no need of one."""
    low, high = (
        'no end' if finding[end] is None else effect_text(finding[end], metric, finding['ratio'], unit=False)
        for end in ('low', 'high')
    )
    return '' if low == high or metric_of(metric).exact else f', corrected interval {low} to {high}'


def mean_text(stat: Numbers | None, metric: str) -> str:
    """`'91.20 ± 0.31'`, of two seeds `'91.05, 91.35'`: an interval by two is too wide to tell anything."""
    if stat is None or stat['mean'] is None:
        return '–'
    chance = stat['half'] is not None and not metric_of(metric).exact
    if chance and stat['count'] == 2:
        return ', '.join(_number_text(value, metric) for value in stat['values'])
    return _number_text(stat['mean'], metric) + (f' ± {_number_text(stat["half"], metric)}' if chance else '')


def metric_cell(stat: Numbers | None, metric: str) -> Cell:
    """A mean with its interval, sorted by the mean."""
    return Cell(mean_text(stat, metric), stat['mean'] if stat else None)


def listed(values: Iterable[object]) -> str:
    """`'1, 2 and 3'`."""
    words = [str(value) for value in values]
    return ', '.join(words[:-1]) + ' and ' + words[-1] if len(words) > 1 else ''.join(words)


def run_cell(run: Numbers) -> Cell:
    """The header of a run's row."""
    return Cell(run_label(run), run['run'], run['colour'])
