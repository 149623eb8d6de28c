"""Files that anybody may have written: refused in one line, before they cost anything."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.models.model_folder import read_config
from imagenette_zoo.study.analysis import read_analysis
from imagenette_zoo.study.records import read_record
from imagenette_zoo.training.result import read_result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.utils.files import ProcessLock, write_json
from imagenette_zoo.utils.reading import from_json, read_bytes, read_errors, read_json

DAMAGED = {
    'cut off': b'{"top1": ',
    'deep': b'[' * 200_000,
    'no UTF-8': '{"top1": "é"}'.encode('latin-1'),
    'another encoding': '{"top1": 1}'.encode('utf-16'),
    'no mapping': b'5',
    'empty': b'',
}
READERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    'result': ('result.json', read_result, 'not the result of a run'),
    'metrics': ('metrics.jsonl', lambda folder: read_record(folder, 'run'), 'not the metrics of a run'),
    'analysis': ('analysis.json', read_analysis, 'not the analysis of a run'),
    'config': ('config.json', read_config, "not a model's config"),
}


@pytest.mark.parametrize('damage', DAMAGED)
@pytest.mark.parametrize('reader', READERS)
def test_a_damaged_file_is_one_line(reader: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, read, expected = READERS[reader]
    (tmp_path / name).write_bytes(DAMAGED[damage])
    (tmp_path / 'predictions.safetensors').write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b'{}')  # sound, and empty
    if reader == 'metrics':
        monkeypatch.setattr('imagenette_zoo.study.records.read_result', lambda _: None)
        if damage == 'empty':
            return  # no epochs
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f'{tmp_path / name}: {expected} (')
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('reader', READERS)
def test_a_file_that_no_such_file_is_as_large_as_is_not_read(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, read, expected = READERS[reader]
    with open(tmp_path / name, 'wb') as file:
        file.truncate(2**40)  # sparse: nothing is written
    (tmp_path / 'predictions.safetensors').write_bytes(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b'{}')
    if reader == 'metrics':
        monkeypatch.setattr('imagenette_zoo.study.records.read_result', lambda _: None)
    with pytest.raises(UserError, match=rf'{expected} \(longer than \d\d MiB\)'):
        read(tmp_path)


def test_a_recipe_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / 'mine.yaml').write_bytes('model: é'.encode('latin-1'))
    with pytest.raises(UserError, match=r'mine\.yaml: not a recipe \(not UTF-8 text\)'):
        Recipe.load(tmp_path / 'mine.yaml')


@pytest.mark.skipif(os.name != 'posix', reason='needs named pipes')
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for_and_a_device_has_no_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'state.pt')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    for name in ('state.pt', 'zero'):
        with pytest.raises(OSError, match='it is no regular file'):
            read_bytes(tmp_path / name)
    with pytest.raises(UserError, match=r'state\.pt: can.t read: it is no regular file'):
        RunFolder(tmp_path).read_state()
    os.mkfifo(tmp_path / '.lock')
    with pytest.raises(OSError, match='No such device'):
        ProcessLock(tmp_path / '.lock')


def test_what_can_not_be_read_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"none: can't read the thing: No such file"),
        read_errors(tmp_path / 'none', 'the thing'),
    ):
        read_json(tmp_path / 'none')


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    """A training that diverged has them: they are null in its files, which any program can read."""
    write_json(tmp_path / 'file', {'loss': math.nan, 'bounds': [math.inf, (-math.inf,)]})
    assert read_json(tmp_path / 'file') == {'loss': None, 'bounds': [None, [None]]}
    for text, number in (('{"loss": NaN}', 'NaN'), ('[-Infinity]', '-Infinity'), ('[1e999]', '1e999')):
        (tmp_path / 'file').write_text(text)
        with pytest.raises(ValueError, match=f'{number} is no number of JSON'):
            read_json(tmp_path / 'file')
    config = {'architecture': 'resnet18', 'num_classes': 2, 'pretrained_cfg': {'crop_pct': 0.875}}
    write_json(tmp_path / 'config.json', config)
    assert read_config(tmp_path) == config
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'pretrained_cfg': {'crop_pct': math.inf}}))
    with pytest.raises(UserError, match='Infinity is no number of JSON'):
        read_config(tmp_path)


def test_json_is_written_for_people(tmp_path: Path) -> None:
    write_json(tmp_path / 'file', {'a': [1]})
    assert (tmp_path / 'file').read_text() == json.dumps({'a': [1]}, indent=2) + '\n'
    write_json(tmp_path / 'file', {'a': [1]}, indent=None)
    assert (tmp_path / 'file').read_text() == '{"a": [1]}\n'


@dataclass
class Thing:
    name: str
    count: int
    rate: float | None
    counts: list[list[int]]
    rates: dict[str, float]
    anything: dict[str, Any]
    where: Path = field(default=Path())


SOUND = {'name': 'a', 'count': 1, 'rate': None, 'counts': [[1], []], 'rates': {'a': 1}, 'anything': {'b': [None]}}


def test_a_dataclass_out_of_json() -> None:
    assert from_json(Thing, SOUND, where=Path('x')) == Thing(**SOUND, where=Path('x'))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({'more': 1}, 'more is unknown'),
        ({'where': 'y'}, 'where is unknown'),
        ({'name': 1}, "name is '1'"),
        ({'count': True}, "count is 'True'"),
        ({'count': 1.0}, "count is '1.0'"),
        ({'rate': 'high'}, "rate is 'high'"),
        ({'rate': False}, "rate is 'False'"),
        ({'counts': [[1], [0.5]]}, 'counts is'),
        ({'counts': [1]}, 'counts is'),
        ({'rates': {'a': None}}, 'rates is'),
        ({'anything': []}, 'anything is'),
    ],
)
def test_a_field_of_another_type_is_named(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        from_json(Thing, {**SOUND, **change}, where=Path())


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match='count is missing'):
        from_json(Thing, {name: value for name, value in SOUND.items() if name != 'count'}, where=Path())
    with pytest.raises(ValueError, match='not a mapping'):
        from_json(Thing, [SOUND], where=Path())
