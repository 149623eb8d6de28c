"""The report on a study or on any runs: one page that needs no network, the same as Markdown, and its numbers."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..errors import UserError, cleaned, require
from ..study import baselines
from ..study.decisions import unjudged
from ..study.metrics import COSTS, METRICS
from ..study.plan import Study
from ..study.records import Record, by_run, sample
from ..utils.console import printable
from ..utils.files import write_atomic
from . import claims, classes, confusion, cost, curves, forest, mistakes, passes, runs, setup
from .drawing import Numbers, Picture, run_styles

__all__ = ['check_packages', 'escape_markdown', 'report_numbers', 'write_report']

TEMPLATES = Path(__file__).parent / 'templates'
NEEDED = ('matplotlib', 'scipy', 'jinja2')
OWN_FIGURE = re.compile(rf'((curves|confusion|passes)-\d+|cost-({"|".join(COSTS)})|classes(-\d+)?|verdicts)\.(png|svg)')


def check_packages() -> None:
    """Raises `UserError` where a package that reports need is missing."""
    for package in NEEDED:
        require(package, 'a report', 'report')


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    study: Study | None = None,
    data_dir: str | None = None,
    images: bool = True,
    compare: tuple[str, str] | None = None,
    markdown: Path | None = None,
) -> Path:
    """Writes `report.html`, `report.md`, `report.json` and `figures/`: the same bytes for the same input.

    Args:
        folder: Where to; it is made.
        records: Finished trainings.
        study: They are its trainings: its claims are judged.
        data_dir: Where the images are; as in training if not given.
        images: Whether the page shows images of the data set. A report that is given away must not, and then says
            the same wherever it is written, whether or not the images are at hand.
        compare: Two runs that are shown beside each other; the best two of different models if not given.
        markdown: Where the Markdown goes instead of `report.md`; it points to the figures from there.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: There are no trainings, a run to compare is not there, a package is missing, or the folder can't be
            written.
    """
    check_packages()
    content = report_numbers(records, study, compare)
    worst = mistakes.section([record for record in records if not record.packaged], data_dir, images)
    content['mistakes'] = mistakes.numbers(worst)
    sections = [
        section
        for section in (
            runs.section(content),
            curves.section(content),
            cost.section(content),
            classes.section(content),
            confusion.section(content),
            worst,
            passes.section(content),
        )
        if section
    ]
    described = claims.describe_claims(content)
    view = {
        'title': content['title'],
        'about': setup.about(content),
        'notes': setup.notes(content),
        'claims': described,
        'claims_summary': claims.claims_summary(content),
        'sides': forest.sides(described),
        'legend': forest.legend_words(described),
        'at': lambda place: round(150 + 145 * place, 1),
        'sections': sections,
        'how': _how(content),
        'options': setup.options_table(content),
    }
    markdown = markdown or folder / 'report.md'
    view['figures'] = quote(Path(os.path.relpath(folder / 'figures', markdown.parent)).as_posix())
    pictures = [each.picture for section in sections for each in section.figures if each.picture]
    pictures += [forest.forest_picture(described, view['claims_summary'])] if described else []
    _write(folder, markdown, content, view, pictures)
    return folder / 'report.html'


# --- Numbers and words ------------------------------------------------------------------------------------------------


def report_numbers(
    records: Sequence[Record], study: Study | None = None, compare: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Everything that a report on finished trainings shows, fit for JSON, but the mistakes.

    Args:
        records: The trainings.
        study: Its claims are judged, and its trainings that are not finished are listed.
        compare: The two runs that are shown beside each other; the best two of different models if not given.

    Raises:
        UserError: There are no trainings, or `compare` names a run that is not there.
    """
    if not records:
        raise UserError('nothing to report: no training is finished yet; train first')
    ranked = _ranked(by_run(records))
    judged = claims.numbers(study, ranked) if study else []
    panels = curves.panels(list(ranked), judged)
    styles = run_styles(list(ranked), panels)
    content: dict[str, Any] = {
        'title': (study and study.title) or (f'Report on {", ".join(ranked)}' if len(ranked) < 4 else 'Report'),
        'setup': setup.numbers(records, ranked),
        'timed_elsewhere': setup.timed_elsewhere(records, study),
        'limits': study.limits if study else '',
        'changes': list(study.changes) if study else [],
        'unjudged': unjudged(study, records) if study else '',
        'unfinished': setup.unfinished(records, study),
        'packaged': baselines.about(records),
        'claims': judged,
        'runs': [_run(number, name, each, *styles[name]) for number, (name, each) in enumerate(ranked.items(), 1)],
        'panels': panels,
        'compared': classes.compared(ranked, compare),
        'options': setup.options(ranked),
    }
    content['pairs'] = classes.pairs(content, judged, compare is not None)
    content['front'] = cost.fronts(content)
    return printable(content)


def _run(number: int, name: str, records: Sequence[Record], colour: str, style: int) -> dict[str, Any]:
    """The numbers of one run, the `number`th by top-1, and how it is drawn."""
    return {
        'number': number,
        'run': name,
        'colour': colour,
        'style': style,
        'model': records[0].result.model,
        'packaged': records[0].packaged,
        'seeds': [record.seed for record in records],
        **runs.numbers(records),
        'per_class': classes.numbers(records),
        **curves.numbers(records),
        'confusion': confusion.numbers(records),
        'passes': passes.numbers(records),
    }


def _ranked(unordered: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    """The best run first; of equal ones that which came first."""

    def top1(name: str) -> float:
        values = sample(unordered[name], 'top1')
        mean = float(np.mean(values.known)) if values and values.known else math.nan
        return mean if math.isfinite(mean) else -1.0

    return {name: unordered[name] for name in sorted(unordered, key=top1, reverse=True)}


def _how(content: Numbers) -> list[tuple[str, str]]:
    """How the numbers were computed: the heading of each paragraph, and the paragraph."""
    paragraphs = [
        (
            'Means and intervals',
            'A number is the mean over the seeds of a run; ± is half of the 95 % interval of that mean '
            "(Student's t). With one seed there is no interval; of two both values are shown. An interval says how "
            'well the mean is known, not how far apart two seeds may be.',
        )
    ]
    if content['claims']:
        paragraphs += claims.HOW
    paragraphs += [runs.HOW, cost.HOW]
    if content['setup']['analysed']:
        known = (METRICS[metric] for metric in ('gap', 'shift_consistency', 'calibration_error'))
        words = '; '.join(f'{metric.label}: {metric.meaning.removesuffix(", %")}' for metric in known)
        paragraphs.append(('Image by image', f'Of the final weights: {words}.'))
    if any(run['passes'] for run in content['runs']):
        paragraphs.append(passes.HOW)
    if common := content['options']['common']:
        options = ', '.join(f'{name} {setup.option_value(value)}' for name, value in common.items())
        paragraphs.append(('Options', f'All runs have in common, beside the defaults: {options}.'))
    return paragraphs


# --- Files ------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, markdown: Path, content: dict[str, Any], view: dict[str, Any], pictures: Sequence[Picture]
) -> None:
    files = {f'{picture.name}.{end}': getattr(picture, end) for picture in pictures for end in ('png', 'svg')}
    figures = folder / 'figures'
    try:
        figures.mkdir(parents=True, exist_ok=True)
        earlier = (folder / 'report.json').is_file()
        for path in figures.iterdir():
            if earlier and OWN_FIGURE.fullmatch(path.name) and path.name not in files:
                path.unlink()
    except OSError as error:
        raise UserError(f"{figures}: can't write a report here: {error.strerror}") from None
    for name, data in files.items():
        write_atomic(figures / name, data)
    numbers = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomic(folder / 'report.json', f'{numbers}\n'.encode())
    text = _rendered('report.md', view, finalize=escape_markdown)  # all that is put in
    write_atomic(markdown, (re.sub(r'\n{3,}', '\n\n', text).strip() + '\n').encode())
    write_atomic(folder / 'report.html', _rendered('report.html', view, autoescape=True).encode())


def _rendered(template: str, view: dict[str, Any], **options: Any) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, **options
    )
    environment.filters['breakable'] = _breakable
    return environment.get_template(template).render(view)


def _breakable(text: str) -> str:
    """Text for a page, whose longest names may be broken between their words, not only where a line ends."""
    import markupsafe

    def with_breaks(name: re.Match[str]) -> str:
        return re.sub(r'(?<=\w)([_=/]+)(?=\w)', r'\1<wbr>', name[0])

    return markupsafe.Markup(re.sub(r'\S{25,}', with_breaks, str(markupsafe.escape(text))))


def escape_markdown(value: object) -> object:
    """Text as Markdown shows it: nothing in it is markup, nor ends a cell of a table."""
    if not isinstance(value, str):
        return value
    text = ' '.join(cleaned(value, keep='\n').split()).replace('&', '&amp;').replace('<', '&lt;')
    return re.sub(r'[\\`*\[\]$|~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])', lambda match: '\\' + match[0], text)
