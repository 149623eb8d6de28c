"""Trainings that share a process are what they are in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.study import in_process
from imagenette_zoo.training.run_folder import ANALYSIS_FILES
from tests.study.test_runner import idea, place, start, wait_for, weights  # noqa: F401  (fixtures)

OWN = ('seconds', 'images_per_second', 'peak_memory_mib', 'command')  # of a result: when and where it was made
STUDY = """\
title: Which?
options:
  {dataset: synthette, train_split: 'train[:30%]', img_size: 32, batch_size: 64, epochs: 1, warmup_epochs: 0,
   device: cpu}
seeds: 2
runs:
  one: {model: test_resnet, opt: adamw, lr: 0.001}
  wrong: {model: test_resnet, opt_kwargs: {nonsense: 1}}
  two: {model: test_vit, mixup: 0.2, model_ema: true, nan: skip}
"""


def files(study: Path) -> dict[str, Any]:
    """What is computed of each training."""
    kept = {}
    for folder in sorted(study.glob('*-seed*')):
        if (folder / 'result.json').exists():
            result = json.loads((folder / 'result.json').read_text())
            kept[folder.name] = {
                'result': {name: value for name, value in result.items() if name not in (*OWN, 'recipe')},
                **{name: (folder / name).read_bytes() for name in ('last/model.safetensors', *ANALYSIS_FILES)},
            }
    return kept


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_trainings_in_one_process_are_those_of_separate_ones(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    (place / 'which.yaml').write_text(STUDY)
    started = []
    begin = in_process._Worker.__init__

    def count(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        started.append(self.process)

    monkeypatch.setattr(in_process._Worker, '__init__', count)
    assert main(['study', 'which.yaml', '--in-process', '--output', 'together']) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: 2 of 6 trainings failed'), 'as each in a process of its own'
    assert 'wrong-seed1: FAILED: --opt sgd: ' in captured.out
    assert len(started) == 3, 'a new one after each failure'
    assert all(process.poll() is not None for process in started), 'none is left'
    assert main(['study', 'which.yaml', '--jobs', '2', '--output', 'apart']) == 2
    together, apart = files(place / 'together' / 'which'), files(place / 'apart' / 'which')
    assert sorted(together) == ['one-seed1', 'one-seed2', 'two-seed1', 'two-seed2']
    assert together == apart


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_was_stopped_goes_on(place: Path, folder: Path, number: signal.Signals) -> None:  # noqa: F811
    text = (place / 'rates.yaml').read_text().replace('seeds: 2', 'seeds: 1')
    (place / 'rates.yaml').write_text(text.replace('epochs: 2', 'epochs: 150'))
    command = ['study', 'rates.yaml', '--only', 'slow', '--in-process', '--data-dir', str(folder)]
    process = start(*command)
    run = place / 'runs' / 'rates' / 'slow-seed1'
    wait_for(run / 'state.pt', process)
    tasks = Path(f'/proc/{process.pid}/task')
    children = [child for task in tasks.iterdir() for child in (task / 'children').read_text().split()]
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
    deadline = time.time() + 30
    while any(os.path.exists(f'/proc/{child}') for child in children):
        assert time.time() < deadline, 'the training outlives its study'
        time.sleep(0.1)
    assert not (run / 'result.json').exists()
    assert main(command) == 0
    assert main([*command[:4], *command[5:], '--output', 'whole']) == 0
    assert weights(place / 'runs' / 'rates') == weights(place / 'whole' / 'rates')


def test_two_at_a_time_have_a_process_each(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Which are told what to do and are kept while that works."""
    fake = (
        'import json, sys\n'
        'print("a warning", file=sys.stderr)\n'
        'for line in sys.stdin:\n'
        '    words = json.loads(line)["command"]\n'
        '    code = int(words[0])\n'
        '    print(json.dumps({"code": code, "again": code == 0}), flush=True)\n'
        '    if code: break\n'
    )
    monkeypatch.setattr(in_process, 'WORKER', (sys.executable, '-c', fake))

    log = place / 'log'

    def done(worker: Any, code: int) -> int:
        worker.send([str(code)], log)
        while (answer := worker.code()) is None:
            time.sleep(0.01)
        return int(answer)

    with in_process.Workers() as workers:
        first, second = workers.of(0, os.environ, log), workers.of(1, os.environ, log)
        assert first is not second
        assert [done(first, 0), done(first, 0), done(second, 2)] == [0, 0, 2]
        assert workers.of(0, os.environ, log) is first
        assert workers.of(1, os.environ, log) is not second
        assert second.process.poll() == 0
        other = workers.of(0, {**os.environ, 'OMP_NUM_THREADS': '7'}, log)
        assert other is not first, 'its threads are another number'
        other.process.kill()
        while (answer := other.code()) is None:
            time.sleep(0.01)
        assert answer == -signal.SIGKILL
        idle = workers.of(0, other.variables, log)
        assert idle is not other
        assert log.read_text().startswith('a warning'), 'which is no answer'
        idle.process.kill()
        idle.process.wait()
        assert workers.of(0, other.variables, log) is not idle
    assert all(each.process.poll() is not None for each in (first, second, other, idle))


def answers(main_function: str, log: Path) -> list[Any]:
    """What the process answers to two requests, whose command line is this function."""
    script = f'from imagenette_zoo.cli import worker\n{main_function}\nworker.main = main\nworker.serve()\n'
    lines = 2 * (json.dumps({'command': ['train'], 'log': str(log)}) + '\n')
    done = subprocess.run([sys.executable, '-c', script], input=lines, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, '')
    return list(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
def test_a_process_goes_on_while_nothing_fails(tmp_path: Path) -> None:
    log = tmp_path / 'log'
    assert answers('def main(words):\n    print(words)\n    return 0', log) == 2 * [{'code': 0, 'again': True}]
    assert log.read_text() == "['train']\n['train']\n"


@pytest.mark.long
@pytest.mark.slow
def test_a_process_that_has_code_of_the_users_own_is_not_used_again(idea: Path, tmp_path: Path) -> None:  # noqa: F811
    run = 'def main(words):\n    import_modules(["my_idea.py"])\n    return 0'
    text = f'from imagenette_zoo.utils.modules import import_modules\n{run}'
    assert answers(text, tmp_path / 'log') == [{'code': 0, 'again': False}]


@pytest.mark.slow
def test_a_mistake_of_the_program_is_a_failure_with_its_traceback(tmp_path: Path) -> None:
    run = 'def main(words):\n    raise ZeroDivisionError("of ours")'
    assert answers(run, tmp_path / 'log') == [{'code': 1, 'again': False}]
    assert (tmp_path / 'log').read_text().endswith('ZeroDivisionError: of ours\n')


def test_a_cluster_has_processes_of_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert main(['study', 'rates.yaml', '--ray', '--in-process']) == 2
    assert '--ray: --in-process is for one machine' in capsys.readouterr().err
