"""The report: verdicts first, the same bytes for the same input, nothing that isn't escaped, legible in a browser."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data.folders import load_split
from imagenette_zoo.errors import UserError
from imagenette_zoo.report.page import write_report
from imagenette_zoo.study.analysis import Analysis
from imagenette_zoo.study.passes import BlockPasses
from imagenette_zoo.study.plan import Claim, Comparison, Study, make_study
from imagenette_zoo.study.records import Record, by_run, samples_of
from imagenette_zoo.study.statistics import judge
from imagenette_zoo.training.result import Result
from tests.conftest import make_folder

pytest.importorskip('matplotlib')
pytest.importorskip('scipy')
pytest.importorskip('jinja2')

CLASSES = ('tench', 'church', 'golf ball')
IMAGES = 60
HOSTILE = '$x_1$ <script>alert(1)</script> | [a](http://evil) & "q" _b_'
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def make_analysis(top1: float, seed: int, classes: tuple[str, ...], passes: list[BlockPasses]) -> Analysis:
    random = np.random.RandomState(seed)
    targets = np.arange(IMAGES) % len(classes)
    wrong = random.permutation(IMAGES) >= round(top1 / 100 * IMAGES)
    predictions = np.where(wrong, (targets + 1 + random.randint(0, len(classes) - 1, IMAGES)) % len(classes), targets)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (targets, predictions), 1)
    return Analysis(
        top1=top1,
        train_top1=top1 + 5,
        train_images=100,
        shift_consistency=top1 + 1,
        calibration_error=4.5,
        class_names=list(classes),
        confusion=confusion.tolist(),
        passes=passes,
        data='folder/val',
        targets=torch.tensor(targets, dtype=torch.int16),
        predictions=torch.tensor(predictions, dtype=torch.int16),
        confidence=torch.tensor(random.uniform(0.4, 1.0, IMAGES), dtype=torch.float16),
        true_probability=torch.tensor(random.uniform(0.0, 0.4, IMAGES), dtype=torch.float16),
    )


def make_record(
    run: str,
    seed: int,
    top1: float,
    *,
    model: str = 'resnet18',
    analysed: bool = True,
    classes: tuple[str, ...] = CLASSES,
    passes: list[BlockPasses] | None = None,
    data_dir: str = '/nowhere',
    **changes: Any,
) -> Record:
    """A training that was never run: top-1 rises to `top1` in four epochs of 10 s."""
    history = [
        {'epoch': epoch, 'train_loss': 1.0, 'train_seconds': 8.0, 'seconds': 10.0, 'eval_top1': top1 * (epoch + 1) / 4}
        for epoch in range(4)
    ]
    values: dict[str, Any] = dict(
        model=model,
        top1=top1,
        best_top1=top1,
        best_epoch=3,
        top5=99.0,
        loss=0.5,
        per_class={name: top1 - place for place, name in enumerate(classes)},
        epochs=4,
        img_size=64,
        seed=seed,
        params=11_181_642,
        gmacs=1.8,
        seconds={'setup': 1.0, 'total': 40.0, 'train': 32.0 + seed, 'eval': 8.0, 'to_80': 40.0},
        images_per_second=100.0 + seed,
        peak_memory_mib=500.0,
        recipe=Recipe(model=model, data_dir=data_dir, seed=seed).as_dict(),
        dataset={'name': 'imagenette2-160', 'train': 9469, 'val': IMAGES, 'hash': 'x'},
        versions={'python': '3.11', 'torch': '2.9'},
        hardware={'device': 'cpu', 'cpu': 'Test CPU', 'cores': 2, 'threads': 2, 'gpu': None},
        command='train',
    )
    result = Result(**{**values, **changes})
    return Record(
        run, Path('runs', run), result, history, make_analysis(top1, seed, classes, passes or []) if analysed else None
    )


def make_records(**changes: Any) -> list[Record]:
    """Three seeds of two runs, of which one is far better."""
    blocks = [
        BlockPasses('blocks.1', ['kernel 3'] * 2, True, [[1, 0.25], [0.25, 1]], [[1, 0.1], [0.1, 1]], [3.5, -1.25])
    ]
    return [
        record
        for seed in (1, 2, 3)
        for record in (
            make_record('good', seed, 90.0 + seed / 3, **changes),
            make_record('bad', seed, 70.0 + seed / 2, model='mobile', gmacs=0.3, passes=blocks, **changes),
        )
    ]


def make_claims(*parts: tuple[str, str, str]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f'C{number}',
            f'Sentence {number} says so.',
            metric,
            (f'{larger} > {smaller}',),
            (Comparison(larger, smaller, 0.0),),
        )
        for number, (metric, larger, smaller) in enumerate(parts, 1)
    )


@pytest.fixture(scope='module')
def study() -> Study:
    plan = make_study('Which is better?', {'good': Recipe(), 'bad': Recipe(model='mobile')}, (1, 2, 3))
    claims = make_claims(('top1', 'good', 'bad'), ('top1', 'bad', 'good'), ('train_seconds', 'good', 'bad'))
    return Study(plan.title, plan.runs, plan.seeds, claims)


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory, study: Study) -> Path:
    """A report on all of it, not to be changed."""
    return write_report(tmp_path_factory.mktemp('report'), make_records(), study=study).parent


def text_of(page: str) -> str:
    """What a reader sees of a page, roughly."""
    body = re.sub(r'<(style|script|title)\b.*?</\1>', ' ', page, flags=re.DOTALL)
    return ' '.join(re.sub(r'<[^>]+>', ' ', body).split())


@pytest.mark.slow
def test_verdicts_come_first_and_are_those_of_the_statistics(written: Path, study: Study) -> None:
    page = (written / 'report.html').read_text()
    expected = judge(study.claims, samples_of(study.claims, by_run(make_records())))
    assert [verdict.verdict for verdict in expected] == ['supported', 'contradicted', 'undecided']
    found = re.findall(
        r'<div class="verdict"><span aria-hidden="true">(.)</span> (\w+)</div>\s*<h3>(C\d): Sentence', page
    )
    assert found == [('✓', 'supported', 'C1'), ('✗', 'contradicted', 'C2'), ('?', 'undecided', 'C3')]
    assert page.index('id="claims"') < page.index('id="runs"') < page.index('<svg') < page.index('id="how"')
    numbers = json.loads((written / 'report.json').read_text())
    for claim, verdict in zip(numbers['claims'], expected, strict=True):
        assert claim['p_adjusted'] == pytest.approx(verdict.p_adjusted)
        assert claim['more_seeds'] == verdict.more_seeds
        assert claim['findings'][0]['effect'] == pytest.approx(verdict.findings[0].effect)
        assert claim['findings'][0]['low'] == pytest.approx(verdict.findings[0].low)
    effect = expected[0].findings[0]
    assert effect.low is not None
    assert effect.high is not None
    for text in (text_of(page), (written / 'report.md').read_text()):
        assert f'{effect.effect:+.2f} points, 95 % interval {effect.low:+.2f} to {effect.high:+.2f}' in text
        assert 'no number of seeds up to 1,000' in text
        assert re.search(r'good:? 90\.56 ± 2\.39 %, 3 seeds', text)


def test_more_seeds_are_asked_for_where_they_would_decide(tmp_path: Path, study: Study) -> None:
    records = [
        make_record(run, seed, 80 + high + 2 * (-1) ** seed, analysed=False)
        for run, high in (('good', 3.0), ('bad', 0.0))
        for seed in (1, 2, 3)
    ]
    write_report(tmp_path, records, study=study)
    [more] = {claim['more_seeds'] for claim in json.loads((tmp_path / 'report.json').read_text())['claims'][:2]}
    assert f'about {more} more seeds of each run' in (tmp_path / 'report.md').read_text()


@pytest.mark.slow
def test_one_seed_decides_nothing_and_the_report_says_what_is_missing(tmp_path: Path, study: Study) -> None:
    page = write_report(tmp_path, make_records()[:1], study=study).read_text()
    text = text_of(page)
    assert 'undecided' in text
    assert 'it cannot be judged before all of its runs are known' in text
    assert 'Not finished yet: 5 trainings: bad-seed1, good-seed2' in text
    pair = write_report(tmp_path, make_records()[:2], study=study).read_text()
    assert 'at least 1 more seed of each run' in text_of(pair)


@pytest.mark.slow
def test_same_input_same_bytes(written: Path, tmp_path: Path, study: Study) -> None:
    write_report(tmp_path, make_records(), study=study)
    files = sorted(path.relative_to(written) for path in written.rglob('*') if path.is_file())
    assert {'report.html', 'report.md', 'report.json', 'figures/curves-1.svg', 'figures/passes-2.png'} <= set(
        map(str, files)
    )
    for file in files:
        assert (written / file).read_bytes() == (tmp_path / file).read_bytes(), file


@pytest.mark.slow
def test_nothing_is_left_of_an_earlier_report_with_more_runs(tmp_path: Path) -> None:
    write_report(tmp_path, make_records())
    (tmp_path / 'figures' / 'mine.png').write_bytes(b'kept')
    write_report(tmp_path, make_records()[:1])
    names = {path.name for path in (tmp_path / 'figures').iterdir()}
    assert 'confusion-1.png' in names
    assert 'mine.png' in names
    assert 'confusion-2.png' not in names


@pytest.mark.slow
def test_only_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    figures = tmp_path / 'figures'
    figures.mkdir()
    mine, stale = {'passes.png', 'curves-final.png'}, 'curves-9.png'
    for name in (*mine, stale):
        (figures / name).write_bytes(b'kept')
    write_report(tmp_path, make_records()[:1])
    assert (figures / stale).exists(), 'there was no report'
    write_report(tmp_path, make_records()[:1])
    assert not (figures / stale).exists()
    assert all((figures / name).read_bytes() == b'kept' for name in mine)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    control = 'bell\x07 \ud800'  # a terminal's bell, and what a file name that is no UTF-8 becomes
    records = [
        make_record(HOSTILE, seed, 80.0 + seed, model=HOSTILE, classes=(HOSTILE, control, '_c')) for seed in (1, 2, 3)
    ]
    study = make_study(HOSTILE, {HOSTILE: Recipe()}, (1, 2, 3))
    claim = Claim(HOSTILE, HOSTILE, 'top1', (HOSTILE,), (Comparison(HOSTILE, 'bad', 0.0),))
    study = Study(study.title, study.runs, study.seeds, (claim,))
    page = write_report(tmp_path, records, study=study).read_text()
    assert page.count('<script') == 1
    assert '<script>alert' not in page
    assert page.count('$x_1$ &lt;script&gt;alert(1)&lt;/script&gt; |') > 10
    assert '\x07' not in page
    for path in (tmp_path / 'figures').glob('*.svg'):
        tree = xml.etree.ElementTree.parse(path)
        assert not [element for element in tree.iter() if element.tag.endswith('script')], path
    assert '$x_1$' in ''.join(xml.etree.ElementTree.parse(tmp_path / 'figures' / 'curves-1.svg').getroot().itertext())
    markdown = (tmp_path / 'report.md').read_text()
    assert '<script' not in markdown
    assert r'\$x_1\$ &lt;script>alert(1)&lt;/script> \| \[a\](http://evil) &amp; "q" \_b\_' in markdown
    rows = [line for line in markdown.splitlines() if line.startswith('| 1 · ')]
    columns = [len(re.findall(r'(?<!\\)\|', line)) for line in rows]
    assert len(columns) >= 4
    heads = [line for line in markdown.splitlines() if line.startswith('| run |')]
    assert columns == [len(re.findall(r'(?<!\\)\|', line)) for line in heads]


def test_page_fetches_nothing(written: Path) -> None:
    page = (written / 'report.html').read_text()
    addresses = re.findall(r'(?:src|href|data|action|poster|srcset)="([^"]*)"', page)
    assert [each for each in addresses if not each.startswith(('#', 'data:'))] == []
    assert not re.search(r'url\((?!#)|@import|<link(?! rel="icon" href="data:,")', page)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_references_lead_somewhere(written: Path) -> None:
    page = (written / 'report.html').read_text()
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert sorted(ids) == sorted(set(ids))
    referred = set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]*)', page))
    assert referred <= set(ids)
    assert 'claims' in referred
    assert '#010203' not in page
    assert 'currentColor' in page


def test_without_analyses_the_rest_is_told(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_records(analysed=False)).read_text()
    text = text_of(page)
    assert '6 trainings of 6 were not looked at image by image' in text
    assert text.count('No training was looked at image by image.') == 2
    assert 'shift consistency' not in text
    assert 'id="passes"' not in page
    assert 'id="claims"' not in page
    assert '90.67 ± 0.83' in text


def test_where_some_are_not_analysed_their_runs_have_a_dash(tmp_path: Path) -> None:
    write_report(tmp_path, [*make_records()[1::2], make_record('good', 1, 90.0, analysed=False)])
    markdown = (tmp_path / 'report.md').read_text()
    assert '1 training of 4 were not looked at' in markdown
    [row] = [line for line in markdown.splitlines() if line.startswith('| 1 · good | 1 | 90.00 |')]
    assert '| – |' in row


def test_times_to_an_accuracy_say_who_did_not_get_there(tmp_path: Path) -> None:
    records = [make_record('some', seed, top1) for seed, top1 in ((1, 86.0), (2, 79.0), (3, 82.0))]
    records += [make_record('none', 1, 60.0), make_record('all', 1, 86.0)]  # 64.5 % after 30 s, 86 % after 40 s
    write_report(tmp_path, records)
    header, _, *rows = [line for line in (tmp_path / 'report.md').read_text().splitlines() if line.startswith('|')]
    assert 'time to 80 % | time to 85 % | training time' in header
    assert '| 37.2 s | 39.5 s |' in rows[0]
    assert '| 2 of 3 seeds | 1 of 3 seeds |' in rows[1]
    assert '| not reached | not reached |' in rows[2]


@pytest.mark.slow
def test_runs_of_before_an_option_was_there(tmp_path: Path) -> None:
    records = make_records()
    for record in records:
        if record.run == 'good':
            del record.result.recipe['train_img_sizes']
    write_report(tmp_path, records)
    assert 'train_img_sizes' not in (tmp_path / 'report.md').read_text(), 'None, as in the others'


def test_what_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    records = [make_record('a', 1, 50.0, loss=float('nan'), gmacs=None, seconds={'train': None}, per_class={})]
    page = write_report(tmp_path, records).read_text()
    assert 'nan' not in text_of(page).lower()
    numbers = json.loads((tmp_path / 'report.json').read_text())
    assert numbers['runs'][0]['metrics']['loss'] is None
    assert 'GMACs |' not in (tmp_path / 'report.md').read_text()


def test_a_training_that_diverged_is_reported_too(tmp_path: Path) -> None:
    nan = float('nan')
    blocks = [BlockPasses('blocks.1', ['kernel 3'] * 2, True, [[nan] * 2] * 2, [[nan] * 2] * 2, [0.0, 0.0])]
    records = [make_record('a', seed, 33.0, passes=blocks, loss=nan) for seed in (1, 2)]
    for record in records:
        assert record.analysis
        record.analysis.confidence.fill_(nan)
    plan = make_study('x', {'a': Recipe(), 'b': Recipe()}, (1, 2))
    study = Study(plan.title, plan.runs, plan.seeds, make_claims(('loss', 'a', 'b')))
    page = write_report(tmp_path, [*records, make_record('b', 1, 80.0), make_record('b', 2, 81.0)], study=study)
    assert 'undecided' in text_of(page.read_text())
    assert 'id="passes"' not in page.read_text()
    assert len(json.loads((tmp_path / 'report.json').read_text())['mistakes']) > 0


def test_means_in_json_are_over_seeds(tmp_path: Path) -> None:
    write_report(tmp_path, make_records(analysed=False))
    good, bad = json.loads((tmp_path / 'report.json').read_text())['runs']
    assert good['metrics']['top1']['mean'] == pytest.approx(90 + 2 / 3)
    assert good['metrics']['top1']['values'] == pytest.approx([90 + seed / 3 for seed in (1, 2, 3)])
    assert bad['curve'][1]['mean'] == pytest.approx(35.5)
    assert bad['per_class']['church']['mean'] == pytest.approx(70.0)


def test_front_has_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    points = {
        'cheap': (1.0, 60.0),
        'dear': (4.0, 90.0),
        'beaten': (4.5, 85.0),
        'twin': (4.0, 89.0),
        'worse': (2.0, 55.0),
        'as good': (4.2, 90.0),
    }
    records = [make_record(run, 1, top1, gmacs=cost, analysed=False) for run, (cost, top1) in points.items()]
    write_report(tmp_path, records)
    numbers = json.loads((tmp_path / 'report.json').read_text())
    names = {run['number']: run['run'] for run in numbers['runs']}
    assert [names[number] for number in numbers['front']['gmacs']] == ['cheap', 'dear']
    assert (tmp_path / 'figures' / 'cost-train_seconds.png').is_file()
    records[0].result.hardware['threads'] = 1
    write_report(tmp_path, records)
    assert not (tmp_path / 'figures' / 'cost-train_seconds.png').exists(), 'times of two machines do not compare'


@pytest.mark.slow
def test_best_two_of_different_models_are_beside_each_other_unless_told(tmp_path: Path) -> None:
    records = [
        make_record('first', 1, 90.0, model='a'),
        make_record('second', 1, 88.0, model='a'),
        make_record('third', 1, 80.0, model='b'),
    ]

    def compared(**options: Any) -> list[str]:
        write_report(tmp_path, records, images=False, **options)
        return json.loads((tmp_path / 'report.json').read_text())['compared']

    assert compared() == ['first', 'third']
    assert compared(compare=('third', 'second')) == ['third', 'second']
    with pytest.raises(UserError, match=r'secnd.*did you mean second'):
        compared(compare=('first', 'secnd'))


def test_confusion_and_passes_are_means_over_seeds(written: Path) -> None:
    records = make_records()
    bad = json.loads((written / 'report.json').read_text())['runs'][1]
    matrices = np.array([record.analysis.confusion for record in records if record.analysis and record.run == 'bad'])
    assert bad['confusion']['percent'] == pytest.approx((matrices / (IMAGES / 3) * 100).mean(0), abs=1e-3)
    assert bad['passes']['blocks'][0]['cka'][0][1] == 0.25
    assert (
        '| blocks.1 | kernel 3, kernel 3 | 1–2: 0.250 | 1–2: 0.100 | 1: +3.50, 2: −1.25 |'
        in (written / 'report.md').read_text()
    )


def test_worst_mistakes_are_those_that_most_are_surest_of(tmp_path: Path) -> None:
    records = [make_record('a', seed, 100.0) for seed in (1, 2)]
    for record, wrong in zip(records, ({4: 0.9, 7: 0.5}, {4: 0.8, 9: 1.0}), strict=True):
        assert record.analysis
        for index, confidence in wrong.items():
            record.analysis.predictions[index] = 2 - record.analysis.targets[index] // 2  # of 1 and 0: 2
            record.analysis.confidence[index] = confidence
    write_report(tmp_path, records, images=False)
    found = json.loads((tmp_path / 'report.json').read_text())['mistakes']
    assert [(each['name'], each['wrong']) for each in found] == [
        ('validation image 4', '2 of 2'),
        ('validation image 9', '1 of 2'),
        ('validation image 7', '1 of 2'),
    ]
    assert found[0]['confidence'] == pytest.approx(85, abs=0.1)
    assert (found[0]['true'], found[0]['predicted']) == ('church', 'golf ball')


@pytest.fixture
def of_a_folder(tmp_path: Path) -> Callable[..., list[Record]]:
    """Trainings that looked at a folder of 60 images in the folder's order."""
    root = make_folder(tmp_path / 'data', val=IMAGES // 3)

    def make(**changes: Any) -> list[Record]:
        record = make_record('a', 1, 80.0, classes=('class0', 'class1', 'class2'), data_dir=str(root), **changes)
        assert record.analysis
        targets = torch.tensor(load_split(root, 'validation').targets, dtype=torch.int16)
        record.analysis.targets.copy_(targets)
        return [record]

    return make


@pytest.mark.slow
def test_thumbnails_are_of_the_images_that_were_taken_for_others(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    records = of_a_folder()
    page = write_report(tmp_path / 'out', records).read_text()
    assert page.count('data:image/jpeg;base64,') == 24
    first = json.loads((tmp_path / 'out' / 'report.json').read_text())['mistakes'][0]
    true = first['name'].split('/')[1]
    assert (tmp_path / 'data' / first['name']).is_file()
    assert first['true'] == true != first['predicted']
    moved = tmp_path / 'elsewhere'
    (tmp_path / 'data').rename(moved)
    assert 'data:image/jpeg' not in write_report(tmp_path / 'out', records).read_text()
    assert page == write_report(tmp_path / 'out', records, data_dir=str(moved)).read_text()


@pytest.mark.slow
def test_a_report_to_give_away_has_no_image_and_needs_none(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    records = of_a_folder()
    page = write_report(tmp_path / 'out', records, images=False).read_bytes()
    assert b'data:image' not in page
    assert b'validation image' in page
    shutil.rmtree(tmp_path / 'data')
    assert page == write_report(tmp_path / 'out', records, images=False).read_bytes()


def test_other_images_than_were_looked_at_are_not_shown(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    other = make_folder(tmp_path / 'other', val=5)
    page = write_report(tmp_path / 'out', of_a_folder(), data_dir=str(other)).read_text()
    assert 'data:image/jpeg' not in page
    assert 'are not those that were looked at' in text_of(page)


@pytest.mark.slow
def test_many_runs_and_many_classes(tmp_path: Path) -> None:
    classes = tuple(f'class {number}' for number in range(70))
    records = [make_record(f'run{n}', s, 50.0 + n + s / 9, gmacs=1.0 + n) for n in range(14) for s in (1, 2)]
    records += [make_record('wide', 1, 30.0, classes=classes)]
    write_report(tmp_path, records, images=False)
    names = {path.name for path in (tmp_path / 'figures').iterdir()}
    assert {'curves-1.svg', 'curves-3.svg', 'confusion-12.svg'} <= names
    assert not {'curves-4.svg', 'confusion-13.svg', 'confusion-15.svg'} & names
    assert 'Of 15 runs 12 are shown' in (tmp_path / 'report.md').read_text()
    assert len(json.loads((tmp_path / 'report.json').read_text())['runs'][14]['confusion']['percent']) == 70


def test_without_a_package_the_user_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    with pytest.raises(UserError, match=r'needs matplotlib: pip install "imagenette-zoo\[report\]"'):
        write_report(tmp_path / 'out', make_records())
    assert not (tmp_path / 'out').exists()


def test_a_name_that_no_file_can_have_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['report', 'a' * 300]) == 2
    assert capsys.readouterr().err.startswith(f'error: {"a" * 300}: ')  # Python 3.13 finds nothing there


def test_nothing_to_report_and_nowhere_to_write_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='nothing to report'):
        write_report(tmp_path, [])
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r"file.*can't write a report here"):
        write_report(tmp_path / 'file', make_records()[:1])


PROBE = """<script>
addEventListener('load', () => {
  const table = document.querySelector('#runs table.sortable');
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent === 'time to 80 %');
  const shown = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent[0]).join('');
  const state = () => heads[column].getAttribute('aria-sort');
  const found = {start: shown(), state: [state()], sorted: []};
  for (let click = 0; click < 2; click++) {
    heads[column].querySelector('button').click();
    found.sorted.push(shown());
    found.state.push(state());
  }
  document.querySelectorAll('details').forEach(each => { each.open = true; });
  const page = document.documentElement;
  found.overflow = page.scrollWidth - innerWidth;
  found.width = innerWidth;
  found.wide = [...document.querySelectorAll('.scroll')].some(each => each.scrollWidth > each.clientWidth);
  const widths = [...document.querySelectorAll('svg')].map(each => each.getBoundingClientRect().width);
  found.letter = Math.min(...widths) / 360;
  parent.document.title = JSON.stringify(found);
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
@pytest.mark.parametrize('width', [400, 1400])
def test_in_a_browser(tmp_path: Path, study: Study, width: int) -> None:
    """Sorting works, nothing overflows, no errors; in a frame, as Chromium's windows are never narrow."""
    records = [*make_records(), make_record('x' * 80, 1, 85.0, analysed=False)]
    page = write_report(tmp_path, records, study=study).read_text()
    (tmp_path / 'probe.html').write_text(page.replace('</body>', PROBE + '</body>'))
    frame = f'<iframe src="probe.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (tmp_path / 'frame.html').write_text(f'<!DOCTYPE html><title></title>{frame}')
    flags = ('--headless=new', '--no-sandbox', '--disable-gpu', '--allow-file-access-from-files')
    ours = ('--dump-dom', '--enable-logging=stderr', '--v=0', '--virtual-time-budget=5000')
    place = (f'--user-data-dir={tmp_path / "profile"}', f'--window-size={width + 100},1000')
    command = [str(BROWSER), *flags, *ours, *place, (tmp_path / 'frame.html').as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r'<title>(\{.*?\})</title>', done.stdout)
    assert title, done.stderr[-2000:]
    found = json.loads(title[1])
    # 1 good, 2 x, 3 bad: good reaches 80 % first; bad never does, and stays at the end.
    assert found['start'] == '123'
    assert found['sorted'] == ['213', '123']
    assert found['state'] == ['none', 'descending', 'ascending']
    assert found['width'] == width
    assert found['overflow'] <= 0
    assert found['wide'] or width > 400
    assert found['letter'] >= 0.9  # times 9 pixels
    assert [line for line in done.stderr.splitlines() if 'CONSOLE' in line] == []
