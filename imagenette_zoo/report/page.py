"""The report on a study or on any runs: one page that needs no network, the same as Markdown, and its numbers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import UserError, require
from ..study.plan import Study
from ..study.records import Record
from ..utils.console import plain
from ..utils.files import write_atomic
from . import figures, wording
from .contents import COSTS, contents
from .figures import Picture
from .mistakes import find_images, thumbnail, worst_mistakes
from .wording import Table

__all__ = ['check_packages', 'escape_markdown', 'write_report']

TEMPLATES = Path(__file__).parent / 'templates'
NEEDED = ('matplotlib', 'scipy', 'jinja2')
MOST_FIGURES = 12  # of a kind; the rest is in report.json
MOST_CLASSES = 60  # in a table or figure
OWN_FIGURE = re.compile(rf'((curves|confusion|passes)-\d+|cost-({"|".join(COSTS)})|classes)\.(png|svg)')


@dataclass(frozen=True)
class Figure:
    """A picture (None where there are only numbers), what to know about it, and the numbers behind it."""

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
        study: What they are of: its claims are judged.
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
    content = contents(records, study, compare)
    mistakes = _mistakes(records, data_dir, images)
    content['mistakes'] = plain(
        [{name: value for name, value in asdict(each).items() if name != 'thumbnail'} for each in mistakes.mistakes]
    )
    sections = [section for section in _sections(content, mistakes) if section]
    view = {
        'title': content['title'],
        'about': wording.about(content),
        'notes': wording.notes(content),
        'claims': [wording.describe_claim(claim) for claim in content['claims']],
        'claims_summary': wording.claims_summary(content),
        'sections': sections,
        'how': wording.how(content),
        'options': wording.options_table(content),
    }
    markdown = markdown or folder / 'report.md'
    view['figures'] = quote(Path(os.path.relpath(folder / 'figures', markdown.parent)).as_posix())
    pictures = [each.picture for section in sections for each in section.figures if each.picture]
    _write(folder, markdown, content, view, pictures)
    return folder / 'report.html'


# --- Sections ---------------------------------------------------------------------------------------------------------


def _sections(content: dict[str, Any], mistakes: Section) -> Iterator[Section | None]:
    yield _runs(content)
    yield _curves(content)
    yield _cost(content)
    yield _compared(content)
    yield _confusion(content)
    yield mistakes
    yield _passes(content)


def _classes(content: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for run in content['runs'] for name in run['per_class']))


def _runs(content: dict[str, Any]) -> Section:
    classes = _classes(content)
    text = ['The number before a run is its place by top-1; the figures call it by that number.']
    tables = [wording.runs_table(content)]
    if 0 < len(classes) <= MOST_CLASSES:
        tables.append(wording.class_table(content['runs'], classes))
    elif classes:
        text.append(f'Top-1 of each of the {len(classes)} classes is in report.json.')
    return Section('runs', 'Runs', text, tables)


def _curves(content: dict[str, Any]) -> Section | None:
    runs = [run for run in content['runs'] if run['curve']]
    if not runs:
        return None
    values = [
        row[end] for run in runs for row in run['curve'] for end in ('mean', 'low', 'high') if row[end] is not None
    ]
    limits = (max(0.0, min(values) - 2), min(100.0, max(values) + 2))
    found: list[Figure] = []
    for place in range(0, len(runs), figures.MOST_LINES):
        some = runs[place : place + figures.MOST_LINES]
        picture = figures.learning_curves(some, f'curves-{len(found) + 1}', limits)
        found.append(Figure(picture, wording.band_words(some), wording.curve_table(some)))
    return Section('curves', 'Learning curves', figures=found)


def _cost(content: dict[str, Any]) -> Section | None:
    labels = {'gmacs': 'GMACs of one image', 'train_seconds': 'training time, s'}
    found = []
    for cost in COSTS:
        front = content['front'][cost]
        if front:
            picture = figures.cost(content['runs'], front, cost, labels[cost], f'cost-{cost}')
            numbers = ', '.join(wording.run_label(run) for run in content['runs'] if run['number'] in front)
            caption = f'On the front: {numbers}. Whiskers: 95 % interval, from three seeds on.'
            found.append(Figure(picture, caption, wording.cost_table(content, cost)))
    return Section('cost', 'Accuracy against cost', figures=found) if found else None


def _compared(content: dict[str, Any]) -> Section | None:
    by_name = {run['run']: run for run in content['runs']}
    runs = [by_name[name] for name in content['compared']]
    classes = [name for name in runs[0]['per_class'] if all(name in run['per_class'] for run in runs)]
    title = 'Class by class: ' + ' and '.join(map(wording.run_label, runs))
    if not classes or len(classes) > MOST_CLASSES:
        reason = f'There are {len(classes)} classes: see report.json.' if classes else 'They share no class.'
        return Section('classes', title, [reason])
    caption = 'Mean over seeds; whiskers: 95 % interval, from three seeds on.'
    picture = figures.two_runs(runs, classes, 'classes')
    return Section(
        'classes', title, figures=[Figure(picture, caption, wording.class_table(runs, classes, halves=True))]
    )


def _confusion(content: dict[str, Any]) -> Section:
    title = 'Confusion matrices'
    runs = [run for run in content['runs'] if run['confusion']]
    if not runs:
        return Section('confusion', title, ['No training was looked at image by image.'])
    drawable = [run for run in runs if len(run['confusion']['classes']) <= figures.MOST_CELLS]
    found = []
    for run in drawable[:MOST_FIGURES]:
        picture = figures.confusion_matrix(run, f'confusion-{run["number"]}')
        found.append(Figure(picture, wording.run_label(run), wording.matrix_table(run['confusion'])))
    text = ['In % of the images of each true class, mean over seeds.']
    if len(found) < len(runs):
        text.append(f'Of {len(runs)} runs {len(found)} are shown; all are in report.json.')
    return Section('confusion', title, text, figures=found)


def _passes(content: dict[str, Any]) -> Section | None:
    runs = [run for run in content['runs'] if run['passes']]
    if not runs:
        return None
    text = ['How alike the passes of each MultiPass block are (CKA; 1: no new information), and what each is worth.']
    if len(runs) > MOST_FIGURES:
        text.append(f'Of {len(runs)} runs {MOST_FIGURES} are shown; all are in report.json.')
    found = []
    for run in runs[:MOST_FIGURES]:
        blocks = run['passes']['blocks']
        picture = figures.pass_similarity(run, f'passes-{run["number"]}') if len(blocks) <= figures.MOST_CELLS else None
        found.append(Figure(picture, wording.run_label(run), wording.passes_table(run['passes'])))
    return Section('passes', 'Passes of MultiPass blocks', text, figures=found)


def _mistakes(records: Sequence[Record], data_dir: str | None, wanted: bool) -> Section:
    title = 'The worst mistakes'
    found, looked = worst_mistakes(records)
    if not found:
        reason = 'No image was classified wrongly.' if looked else 'No training was looked at image by image.'
        return Section('mistakes', title, [reason])
    images = find_images(looked, data_dir) if wanted else None
    text = [
        'The images with the largest probability of a wrong answer, mean over '
        f'{f"{len(looked)} trainings" if len(looked) > 1 else "one training"}: the true class → what it was taken for.'
    ]
    if len(looked) < sum(record.analysis is not None for record in records):
        text.append('The other trainings looked at other images.')
    if wanted and not images:
        text.append('The images are not at hand, or are not those that were looked at: give --data-dir to see them.')
    shown = []
    for each in found:
        name = images.paths[each.index] if images else f'validation image {each.index}'
        picture = thumbnail(images, each.index) if images else None
        wrong = f'{each.wrong} of {each.trainings}'
        shown.append(Shown(plain(each.true), plain(each.predicted), each.confidence, wrong, plain(name), picture))
    return Section('mistakes', title, text, mistakes=shown)


# --- Files ------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, markdown: Path, content: dict[str, Any], view: dict[str, Any], pictures: Sequence[Picture]
) -> None:
    files = {f'{picture.name}.{end}': getattr(picture, end) for picture in pictures for end in ('png', 'svg')}
    place = folder / 'figures'
    try:
        place.mkdir(parents=True, exist_ok=True)
        earlier = (folder / 'report.json').is_file()
        for path in place.iterdir():
            if earlier and OWN_FIGURE.fullmatch(path.name) and path.name not in files:
                path.unlink()
    except OSError as error:
        raise UserError(f"{place}: can't write a report here: {error.strerror}") from None
    for name, data in files.items():
        write_atomic(place / name, data)
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
    return environment.get_template(template).render(view)


def escape_markdown(value: object) -> object:
    """Text as Markdown shows it: nothing in it is markup, nor ends a cell of a table."""
    if not isinstance(value, str):
        return value
    text = ' '.join(value.split()).replace('&', '&amp;').replace('<', '&lt;')
    return re.sub(r'[\\`*\[\]$|~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])', lambda match: '\\' + match[0], text)
