"""The section of a report on the confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..study.records import Record
from ..utils.console import short
from .drawing import MOST_CELLS, WIDTH, Numbers, Picture, draw_picture, heat_map, names, run_label
from .section import MOST_FIGURES, Cell, Figure, Section, Table

__all__ = ['confusion_matrix', 'numbers', 'section']


def numbers(records: Sequence[Record]) -> dict[str, Any] | None:
    """How often each class was taken for each, in % of its images, mean over the seeds that were analysed."""
    analyses = [record.analysis for record in records if record.analysis]
    analyses = [analysis for analysis in analyses if analysis.class_names == analyses[0].class_names]
    if not analyses:
        return None
    counts = np.array([analysis.confusion for analysis in analyses], dtype=float)
    percent = 100 * counts / np.maximum(counts.sum(2, keepdims=True), 1)
    return {'classes': analyses[0].class_names, 'percent': percent.mean(0).round(4).tolist(), 'seeds': len(analyses)}


def section(content: Numbers) -> Section:
    """A matrix for each run, the first twelve."""
    title = 'Confusion matrices'
    runs = [run for run in content['runs'] if run['confusion']]
    if not runs:
        return Section('confusion', title, ['No training was looked at image by image.'])
    drawable = [run for run in runs if len(run['confusion']['classes']) <= MOST_CELLS]
    drawn = []
    for run in drawable[:MOST_FIGURES]:
        picture = confusion_matrix(run, f'confusion-{run["number"]}')
        drawn.append(Figure(picture, run_label(run), _matrix_table(run['confusion'])))
    text = ['In % of the images of each true class, mean over seeds.']
    if len(drawn) < len(runs):
        text.append(f'Of {len(runs)} runs {len(drawn)} are shown; all are in report.json.')
    return Section('confusion', title, text, figures=drawn)


def _matrix_table(confusion: Numbers) -> Table:
    """A confusion matrix, a row for each true class."""
    rows = [
        [Cell(name), *(Cell(f'{value:.1f}') for value in row)]
        for name, row in zip(confusion['classes'], confusion['percent'], strict=True)
    ]
    return Table('% of each true class that were taken for …', ['true class', *confusion['classes']], rows)


def confusion_matrix(run: Numbers, name: str) -> Picture:
    """How often each class was taken for each, in % of its images."""
    classes, percent = run['confusion']['classes'], run['confusion']['percent']

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        # The root makes room for the small numbers, which are those of interest.
        heat_map(axis, percent, 'Blues', (0, 100), lambda value: f'{value:.0f}' if value >= 0.5 else '', math.sqrt)
        labels = [short(each, 18) for each in classes]
        axis.set_xticks(range(len(classes)), labels, rotation=90)
        axis.set_yticks(range(len(classes)), labels)
        axis.set(xlabel='predicted', ylabel='true class')

    size = 1.3 + 0.37 * len(classes) if len(classes) <= 10 else WIDTH
    return draw_picture(name, f'Confusion matrix in % of the true class: {names([run])}', size, draw)
