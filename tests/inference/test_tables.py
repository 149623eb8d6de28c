"""imagenette-zoo predict --format: what the tables hold, and that they are whole."""

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.uses import PredictOptions
from imagenette_zoo.errors import cleaned
from imagenette_zoo.inference.loading import load_trained
from tests.inference.test_predict import model_folder

FORMATS = ('csv', 'json', 'jsonl')


@pytest.fixture
def photos(folder: Path, tmp_path: Path) -> list[str]:
    """Two images, and a file between them that is none; its name has a newline and no Unicode."""
    place = tmp_path / 'photos'
    place.mkdir()
    for name in ('a.png', 'c.png'):
        (place / name).write_bytes((folder / 'val' / 'class1' / f'{ord(name[0]) - 97}.png').read_bytes())
    (place / 'b\n\udce9.png').write_bytes(b'no image')
    return [str(place / name) for name in ('a.png', 'b\n\udce9.png', 'c.png')]


def rows_of(text: str, kind: str) -> list[dict[str, object]]:
    if kind == 'csv':
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]
    return json.loads(text) if kind == 'json' else [json.loads(line) for line in text.splitlines()]  # type: ignore


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('to_file', [True, False])
def test_a_row_an_image_also_of_one_that_cannot_be_read(
    tmp_path: Path,
    photos: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    to_file: bool,
) -> None:
    monkeypatch.setattr(sys, 'stderr', io.TextIOWrapper(io.BytesIO(), errors='backslashreplace'))  # as Python's own
    model, file = str(model_folder(tmp_path / 'm')), tmp_path / f'table.{kind}'
    words = ['predict', *photos, '-m', model, '--topk', '2']
    assert main([*words, *(['--output', str(file)] if to_file else ['--format', kind])]) == 1
    printed = capsys.readouterr().out
    rows = rows_of(file.read_text() if to_file else printed, kind)
    first, bad, last = rows
    assert [Path(str(row['filename'])).name for row in rows] == ['a.png', 'b��.png', 'c.png']
    assert bad.keys() == {'filename', 'error'}
    assert 'is not an image' in str(bad['error'])
    for row, path in ((first, photos[0]), (last, photos[2])):
        [expected] = iz.predict(path, model, topk=2)
        if kind == 'csv':
            row = {'label': [row['label_0'], row['label_1']], 'prob': [float(str(row[f'prob_{n}'])) for n in range(2)]}
        assert row['label'] == [name for name, _ in expected.top]
        assert row['prob'] == pytest.approx([value for _, value in expected.top], rel=1e-5)


def test_one_class_is_no_list(tmp_path: Path, photos: list[str]) -> None:
    words = ['predict', photos[0], '-m', str(model_folder(tmp_path / 'm')), '--topk', '1', '--output']
    assert main([*words, str(tmp_path / 't.csv')]) == 0
    assert (tmp_path / 't.csv').read_text().startswith('filename,label,prob,error\n')
    assert main([*words, str(tmp_path / 't.jsonl')]) == 0
    assert isinstance(json.loads((tmp_path / 't.jsonl').read_text())['label'], str)


def test_logits_and_features(tmp_path: Path, photos: list[str]) -> None:
    name = str(model_folder(tmp_path / 'm'))
    trained = load_trained(name, PredictOptions(model=name), torch.device('cpu'))
    inputs = trained.normalize(torch.from_numpy(trained.pixels(Image.open(photos[0]).convert('RGB')))[None])
    seen: list[torch.Tensor] = []
    trained.model.get_classifier().register_forward_hook(lambda _, given, __: seen.append(given[0]))  # type: ignore
    with torch.no_grad():
        logits = trained.model(inputs)[0]

    def values(*words: str) -> dict[str, list[float]]:
        assert main(['predict', photos[0], '-m', name, *words, '--output', str(tmp_path / 't.jsonl')]) == 0
        return json.loads((tmp_path / 't.jsonl').read_text())  # type: ignore[no-any-return]

    assert values('--output-type', 'logit', '--topk', '0')['logit'] == pytest.approx(logits.tolist(), rel=1e-4)
    row = values('--output-type', 'logit')
    assert row['logit'] == pytest.approx(logits.sort(descending=True).values.tolist(), rel=1e-4)
    assert row['label'] == [trained.class_names[index] for index in logits.argsort(descending=True)]
    row = values('--output-type', 'features')
    assert row.keys() == {'filename', 'features'}
    assert row['features'] == pytest.approx(seen[0][0].tolist(), rel=1e-4, abs=1e-6)
    [found] = iz.predict(photos[0], name, output_type='features')
    np.testing.assert_allclose(found.output, seen[0][0], rtol=1e-4, atol=1e-6)


def test_parquet(tmp_path: Path, photos: list[str]) -> None:
    parquet = pytest.importorskip('pyarrow.parquet')
    file = tmp_path / 't.parquet'
    iz.predict(photos, model_folder(tmp_path / 'm'), output=str(file))
    table = parquet.read_table(file).to_pydict()
    assert list(table) == ['filename', 'label', 'prob', 'error']
    assert [len(each or ()) for each in table['prob']] == [3, 0, 3]
    assert [each is None for each in table['error']] == [True, False, True]


def test_tables_that_cannot_be(
    tmp_path: Path, photos: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    model = str(model_folder(tmp_path / 'm'))
    (tmp_path / 'folder.csv').mkdir()
    for words, part in (
        (['--output', 't.txt'], 'must end in one of .csv, .json, .jsonl, .parquet'),
        (['--output', photos[0]], 'must end in one of'),
        (['--output', 't.csv', '--format', 'json'], 'must end in .json'),
        (['--output', str(tmp_path / 'no' / 't.csv')], 'no such folder'),
        (['--output', str(tmp_path / 'folder.csv')], 'is a folder: give a file'),
        (['--format', 'parquet'], 'give a file'),
        (['--output', str(tmp_path / 't.parquet')], 'needs pyarrow: pip install "imagenette-zoo[parquet]"'),
        (['--format', 'csv', '--json'], 'give one of them'),
        (['--output-type', 'logit'], 'give --format or --output'),
    ):
        assert main(['predict', photos[0], '-m', model, *words]) == 2
        printed = capsys.readouterr()
        assert part in printed.err
        assert not printed.out
    assert {path.name for path in tmp_path.iterdir()} == {'m', 'photos', 'folder.csv'}


def test_a_name_with_spaces_of_other_kinds_stays() -> None:
    """As macOS names screenshots; what ends a line or moves the cursor does not."""
    assert cleaned('at 9.41\u202fAM\u3000\xa0.png') == 'at 9.41\u202fAM\u3000\xa0.png'
    assert cleaned('a\u2028b\x1b[2Jc\n') == 'a�b�[2Jc�'
