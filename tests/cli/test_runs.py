"""The list of runs."""

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.cli.runs import _age, list_runs
from imagenette_zoo.utils.files import ProcessLock


def make_run(folder: Path, model: str, age: float, top1: float | None = None, rows: int = 0, data: str = '') -> None:
    """A run's files, as far as the list looks at them: with a `top1` it is finished."""
    recipe = {'model': model, 'epochs': 3, 'seed': 7, 'img_size': None, 'dataset': '', 'data_dir': data or None}
    folder.mkdir(parents=True)
    (folder / 'args.yaml').write_text(json.dumps(recipe))
    if rows:
        scores = [{'epoch': n, **({'eval_top1': 10.0 * n} if n else {})} for n in range(rows)]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in scores))
    if top1 is not None:
        result = {'recipe': recipe, 'dataset': {'name': 'pets'}, 'top1': top1, 'img_size': 64, 'epochs': 3}
        (folder / 'result.json').write_text(json.dumps(result))
    for file in folder.iterdir():
        os.utime(file, (time.time() - age,) * 2)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / '.cache'))
    make_run(tmp_path / 'old', 'resnet18', 50 * 3600, top1=61.5)
    make_run(tmp_path / 'study' / 'a-seed1', 'mbv2_mish_imagenette', 3700, top1=80.25)
    make_run(tmp_path / 'study' / 'a-seed2', 'mbv2_mish_imagenette', 130, rows=2, data='/data/pets-160')
    make_run(tmp_path / 'new', 'resnet34', 5)
    make_run(tmp_path / 'torn', 'resnet34', 9)
    (tmp_path / 'torn' / 'args.yaml').write_text('model: [')
    os.utime(tmp_path / 'torn' / 'args.yaml', (time.time() - 9,) * 2)
    (tmp_path / 'study' / 'logs').mkdir()
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The names in the list that a command prints."""
    assert main(['runs', *map(str, words)]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_a_row_says_what_a_run_is_and_how_far(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['runs', str(runs)]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ['run', 'model', 'data', 'px', 'epochs', 'seed', 'top-1', '%', 'state', 'age']
    assert [' '.join(row[:-2]) for row in rows] == [
        'new resnet34 imagenette 0 of 3 7 stopped',
        'torn damaged',
        'study/a-seed2 mbv2_mish_imagenette pets-160 2 of 3 7 10.00 stopped',
        'study/a-seed1 mbv2_mish_imagenette pets 64 3 7 80.25 finished',
        'old resnet18 pets 64 3 7 61.50 finished',
    ]
    assert [' '.join(row[-2:]) for row in rows[2:]] == ['2 min', '1 h', '2 d']


def test_rows_are_chosen_and_sorted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, runs, '--match', 'resnet*', '--state', 'finished') == ['old']
    assert listed(capsys, runs, '--match', 'a-seed*') == ['study/a-seed2', 'study/a-seed1']
    assert listed(capsys, runs, '--sort', 'top1')[:3] == ['study/a-seed1', 'old', 'study/a-seed2']
    assert listed(capsys, runs, '--sort', 'run')[0] == 'new'
    assert listed(capsys, runs / 'study' / 'a-seed1') == [str(runs / 'study' / 'a-seed1')]
    assert main(['runs', str(runs), '--match', 'no']) == 0
    assert capsys.readouterr().out == f'no such runs in {runs}\n'


def test_json_has_every_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['runs', str(runs), '--json', '--state', 'finished']) == 0
    first, _ = json.loads(capsys.readouterr().out)
    changed = datetime.fromisoformat(first.pop('changed'))
    assert changed.timestamp() == pytest.approx(time.time() - 3700, abs=60)
    assert changed.tzinfo is not None
    assert first == {
        'run': str(runs / 'study' / 'a-seed1'), 'state': 'finished', 'model': 'mbv2_mish_imagenette', 'data': 'pets',
        'img_size': 64, 'epochs': 3, 'epochs_done': 3, 'seed': 7, 'top1': 80.25,
    }  # fmt: skip


def test_the_data_of_a_stopped_run_are_named_as_those_of_a_finished_one(runs: Path) -> None:
    data = runs / '.data' / 'imagenette2-160'
    for split in ('train', 'val'):
        (data / split / 'n01').mkdir(parents=True)
    make_run(runs / 'later', 'resnet18', 1, data=str(data.parent))
    assert [row.data for row in list_runs(runs / 'later')] == ['imagenette2-160']


def test_a_run_that_another_process_writes_is_running(runs: Path) -> None:
    lock = runs / 'new' / '.lock'
    code = (
        'import sys, pathlib; from imagenette_zoo.utils.files import ProcessLock\n'
        'lock = ProcessLock(pathlib.Path(sys.argv[1])); print("held", flush=True); sys.stdin.read()'
    )
    words = [sys.executable, '-c', code, str(lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b'held\n'
        assert {row.run: row.state for row in list_runs(runs)}[str(runs / 'new')] == 'running'
    assert {row.run: row.state for row in list_runs(runs)}[str(runs / 'new')] == 'stopped', 'its lock stays behind'
    own = ProcessLock(lock)
    assert ProcessLock.is_held(lock), 'and asking does not give it back'
    own.release()


def test_what_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['runs', str(tmp_path / 'no')]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no'}: there is no such folder")


@pytest.mark.parametrize(('seconds', 'text'), [(-3, '0 s'), (59, '59 s'), (90, '1 min'), (7200, '2 h'), (2e5, '2 d')])
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert _age(seconds) == text
