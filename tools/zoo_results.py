"""The benchmark of the zoo, as its trainings in the package say it: a CSV, the table and the picture of docs/models.md.

`tools/figures.py` writes them. Models that are not trained yet are named.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from imagenette_zoo.report.cost import cost_picture
from imagenette_zoo.report.drawing import draw_picture
from imagenette_zoo.report.page import report_numbers
from imagenette_zoo.report.section import mean_text
from imagenette_zoo.study.plan import Study, find_study, read_study
from imagenette_zoo.study.records import Record, by_run
from imagenette_zoo.study.statistics import interval

HEAD = ('', 'model', 'top-1 %', 'seeds', 'M parameters', 'GMACs', 'on the front')
COLUMNS = (  # those of timm's result files, the number of seeds, and the ends of the 95 % interval of top1
    'model', 'img_size', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'crop_pct', 'interpolation', 'seeds',
    'top1_low', 'top1_high',
)  # fmt: skip


def benchmark() -> Study:
    return read_study(find_study('zoo'))


def csv_name() -> str:
    """Of the file in docs/results, after the pixels."""
    return f'results-imagenette-{next(iter(benchmark().runs.values())).recipe.img_size}.csv'


def csv_text(records: Sequence[Record]) -> str:
    """A row a model that is trained, the best first; of one seed there is no interval."""
    rows: list[tuple[float, list[str]]] = []
    for name, each in by_run(records).items():
        first, top1 = each[0].result, interval([record.result.top1 for record in each])
        top5 = interval([record.result.top5 for record in each]).mean
        errors = [f'{value:.3f}' for value in (top1.mean, 100 - top1.mean, top5, 100 - top5)]
        ends = ['' if end is None else f'{end:.3f}' for end in (top1.low, top1.high)]
        crop = [f'{first.recipe["crop_pct"]:.3f}', str(first.recipe['interpolation'])]
        size = [f'{first.params / 1e6:.2f}', *crop, str(len(each)), *ends]
        rows.append((-top1.mean, [name, str(first.img_size), *errors, *size]))
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([COLUMNS, *(row for _, row in sorted(rows))])
    return text.getvalue()


def _content(records: Sequence[Record]) -> dict[str, Any]:
    return report_numbers([replace(record, packaged=False) for record in records])


def table_rows(records: Sequence[Record]) -> Iterator[list[str]]:
    """The models, the best first, with their number in the picture; then those that are not trained yet."""
    content = _content(records) if records else {'runs': []}
    for run in content['runs']:
        known = [mean_text(run['metrics'][name], name) for name in ('params', 'gmacs')]
        front = 'yes' if run['number'] in content['front']['gmacs'] else ''
        top1 = mean_text(run['metrics']['top1'], 'top1')
        yield [str(run['number']), f'`{run["run"]}`', top1, str(len(run['seeds'])), *known, front]
    known_runs = by_run(records)
    for name in (name for name in benchmark().runs if name not in known_runs):
        yield ['', f'`{name}`', 'not trained yet', '', '', '', '']


def picture(records: Sequence[Record]) -> bytes:
    """Top-1 against GMACs, as SVG."""
    if not records:
        words = 'not trained yet'
        return draw_picture('models', words, 1.0, lambda figure: figure.text(0.5, 0.5, words, ha='center')).svg
    content = _content(records)
    return cost_picture(content['runs'], content['front']['gmacs'], 'gmacs', 'GMACs of one image', 'models').svg
