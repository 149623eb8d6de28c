"""Everything in README and docs that is made of result files: pages, pictures and tables.

- The pages of the committed studies, as docs/claims.md; the verdicts of docs/own-ideas.md and of docs/training.md.
- README's picture: the verdicts of docs/claims.md beside heat maps of weights in the package on drawn images.
- The picture of docs/studies.md: one claim of the committed trainings, look by look.
- The picture of docs/models.md and docs/results/results-imagenette-96.csv: the benchmark of the zoo.
- docs/leaderboard.md, and the tables that `tables.py` makes.

As in: python tools/figures.py
"""

import io
import tempfile
from pathlib import Path
from typing import Any

import leaderboard
import torch
import zoo_results
from PIL import Image
from tables import headline, put, tables

from imagenette_zoo.config.uses import UseOptions
from imagenette_zoo.data.drawings import DRAWINGS
from imagenette_zoo.inference.loading import load_trained
from imagenette_zoo.inference.predict import Prediction, look_at, under_heat
from imagenette_zoo.report.drawing import draw_picture
from imagenette_zoo.report.studies import report_on
from imagenette_zoo.study.baselines import read_baselines
from imagenette_zoo.study.comparisons import Looks
from imagenette_zoo.study.decisions import Test, run_tests
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.records import as_run, by_run, samples_of, study_records
from imagenette_zoo.study.statistics import LEVEL, Means
from imagenette_zoo.utils.files import write_atomic

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'docs' / 'results'
PAGES = {'claims-cpu': 'claims'}  # whose page has another name than its results
PICTURES = {'own-ideas', 'taught'}  # of whose report only the verdicts are shown
HEADLINES = {'headline', 'headline-gpu'}  # with the study's own numbers beside ours
CLAIM, COMPARISON = 'C5', 1
MODEL = 'mbv2_mish_maxblur_imagenette'
DPI, TEXT, COLUMN = 150, 7.5, 2.1  # inches: of the verdicts without what is compared in numbers, and of the heat maps


def main(root: Path = ROOT) -> None:
    """Writes all of it below `root`, which has README.md and docs/."""
    docs = root / 'docs'
    for file in sorted(RESULTS.glob('*/study.yaml')):
        if file.parent.name in PICTURES:
            write_verdicts(docs, file.parent.name)
        else:
            write_page(docs, file.parent.name)
    write_atomic(docs / 'front.png', front(docs))
    write_atomic(docs / 'studies.svg', studies())
    write_atomic(docs / 'leaderboard.md', leaderboard.page().encode())
    records = read_baselines()
    write_atomic(docs / 'results' / zoo_results.csv_name(), zoo_results.csv_text(records).encode())
    write_atomic(docs / 'models.svg', zoo_results.picture(records))
    made = tables()
    for page in (root / 'README.md', *docs.glob('*.md')):
        write_atomic(page, put(page.read_text(), made).encode())


def write_page(docs: Path, name: str) -> None:
    """The page of a study from its results: `docs/PAGE.md`, and `docs/PAGE/` with its figures."""
    page = docs / PAGES.get(name, name)
    markdown = Path(f'{page}.md')
    report_on([str(docs / 'results' / name)], str(page), images=False, markdown=str(markdown))
    if name in HEADLINES:
        title = "Top-1 by class, %, mean over seeds, beside the study's numbers:"
        text = f'{markdown.read_text()}\n{title}\n\n{headline(docs / "results" / name)}'
        write_atomic(markdown, text.encode())


def write_verdicts(docs: Path, name: str) -> None:
    """The verdicts of a study as `docs/NAME.png`, and its numbers as `docs/results/NAME.json`."""
    with tempfile.TemporaryDirectory() as folder:
        report_on([str(docs / 'results' / name)], folder, images=False)
        for made, target in (('figures/verdicts.png', f'{name}.png'), ('report.json', f'results/{name}.json')):
            write_atomic(docs / target, (Path(folder) / made).read_bytes())


def front(docs: Path = ROOT / 'docs') -> bytes:
    """The verdicts of docs/claims.md beside heat maps."""
    verdicts = Image.open(docs / 'claims' / 'figures' / 'verdicts.png', formats=['PNG']).convert('RGB')
    trained = load_trained(MODEL, UseOptions(model=MODEL), torch.device('cpu'))
    pixels = torch.stack([torch.from_numpy(trained.pixels(draw())) for draw in DRAWINGS.values()])
    predictions = look_at(trained, pixels, heat_maps=True)
    height = verdicts.height / DPI
    column = draw_picture('front', 'Heat maps', height, lambda figure: _draw_heat_maps(figure, predictions), COLUMN)
    beside = Image.open(io.BytesIO(column.png), formats=['PNG']).convert('RGB')
    picture = Image.new('RGB', (int(TEXT * DPI) + beside.width, verdicts.height))
    picture.paste(verdicts, (0, 0))
    picture.paste(beside, (int(TEXT * DPI), 0))
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, 'PNG', optimize=True)
    return file.getvalue()


def _draw_heat_maps(figure: Any, predictions: list[Prediction]) -> None:
    axes = iter(figure.subplots(2 * len(predictions)))
    for prediction in predictions:
        words = f'{prediction.label} {100 * prediction.probability:.0f} %', 'where the model looked'
        for pixels, text in zip((prediction.seen, under_heat(prediction)), words, strict=True):
            axis = next(axes)
            axis.imshow(pixels)
            axis.set_title(text, weight='bold' if pixels is prediction.seen else 'normal')
            axis.set_axis_off()


def studies() -> bytes:
    folder = RESULTS / 'claims-cpu'
    study = as_run(read_study(folder / 'study.yaml'), folder)
    samples = samples_of(study, by_run(study_records(study, folder)))
    [test] = [each for each in run_tests(study.claims, samples, study.stages) if each and each.claim.name == CLAIM]
    looks = test.looks[COMPARISON]
    names = looks.finding.comparison.larger, looks.finding.comparison.smaller
    title = f'Top-1 of {names[0]} less that of {names[1]} at each look, with intervals'
    return draw_picture('studies', title, 3.8, lambda figure: _draw(figure, test, looks, names)).svg


def _draw(figure: Any, test: Test, looks: Looks, names: tuple[str, str]) -> None:
    axis = figure.add_subplot()
    assert looks.pairs is not None
    differences = looks.pairs.differences
    axis.axhline(looks.bound, color='0.3', linewidth=1)
    axis.plot(range(1, len(differences) + 1), differences, 'o', color='0.6', markersize=4, label='the blocks')
    for share, look in zip(looks.shares, looks.made, strict=True):
        assert isinstance(look, Means)
        for level, width, colour, label in (
            (test.levels.high * share, 2, 'C0', 'corrected for all looks and claims: it decides'),
            (LEVEL / 2, 6, 'C1', '95 % interval of one look at one claim'),
        ):
            low, high = look.bounds(level, level)
            first = label if look is looks.made[0] else None
            axis.plot([look.blocks + 0.15] * 2, [low, high], color=colour, linewidth=width, label=first)
    axis.set(
        xlabel='blocks (seeds of both runs)',
        ylabel=f'{names[0]} − {names[1]}, points',
        xticks=range(1, len(differences) + 1),
        ylim=(-30, 30),
    )
    figure.legend(loc='outside lower center', fontsize='small')


if __name__ == '__main__':
    main()
