"""The commands of `--print-commands`: any scheduler may start them, anywhere, again and again."""

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.errors import UserError
from imagenette_zoo.study import lines, records
from imagenette_zoo.study.adaptive import ROUNDS
from imagenette_zoo.study.plan import begun_study
from imagenette_zoo.study.records import as_run, failures
from imagenette_zoo.training.run_folder import RunFolder
from tests.study.test_runner import IDEA, STUDY, place, start, wait_for, weights  # noqa: F401  (fixtures)

Capture = pytest.CaptureFixture[str]
HOLD = '''
import pathlib, sys
from imagenette_zoo.utils.files import ProcessLock
lock = ProcessLock(pathlib.Path(sys.argv[1]))
print('held', flush=True)
sys.stdin.read()
'''


@pytest.fixture
def printed(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> list[list[str]]:  # noqa: F811
    """The words of each line, of a study whose folder has a space in its name; then we are elsewhere."""
    monkeypatch.setattr(sys, 'argv', ['/bin/imagenette-zoo'])
    (place / 'rates.yaml').write_text(STUDY.format(epochs=2).replace('seeds: 2', 'seeds: 1'))
    assert main(['study', 'rates.yaml', '--print-commands', '--output', 'the runs', '--data-dir', str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith('imagenette-zoo study ') for line in lines), 'nothing else is there'
    (place / 'elsewhere').mkdir()
    monkeypatch.chdir(place / 'elsewhere')
    return [shlex.split(line)[1:] for line in lines]


def test_a_line_is_for_one_training_and_any_folder(
    place: Path,  # noqa: F811
    folder: Path,
    no_modules: None,
    printed: list[list[str]],
    capsys: Capture,
) -> None:
    study = str(place / 'the runs' / 'rates')
    where = ['--data-dir', str(folder)]
    assert printed == [['study', study, '--only', run, '--seed', '1', *where] for run in ('slow', 'fast')]
    os.chdir(place)
    (place / 'my_idea.py').write_text(IDEA)
    words = ['run', 'test_resnet', '-c', 'base.yaml', '--vary', 'lr=0.1,0.2', '--seeds', '1', '--device', 'cpu']
    assert main([*words, '--import', 'my_idea.py', '--print-commands']) == 0
    line = shlex.split(capsys.readouterr().out.splitlines()[0])[1:]
    study = str(place / 'runs' / 'test_resnet-lr')
    flags = ['--device', 'cpu', '--device-modules', str(place / 'my_idea.py')]
    assert line == ['study', study, '--only', 'lr=0.1', '--seed', '1', *flags]


def test_a_line_that_fails_is_judged_as_failed(
    place: Path,  # noqa: F811
    printed: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise UserError('the loss became infinite')

    monkeypatch.setattr(lines, 'train_here', fail)
    assert main(printed[0]) == 2
    study = place / 'the runs' / 'rates'
    assert failures(study) == {'slow-seed1': 'the loss became infinite'}
    assert as_run(begun_study(study), study).failed == {'slow': frozenset({1})}


def test_failures_that_come_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = records._ever_failed

    def slowly(output: Path) -> dict[str, str]:
        known = read(output)
        time.sleep(0.05)
        return known

    monkeypatch.setattr(records, '_ever_failed', slowly)
    names = [f'a-seed{seed}' for seed in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: records.keep_failure(tmp_path, name, 'why'), names))
    assert sorted(failures(tmp_path)) == names


def test_lines_of_a_module_name_their_interpreter(
    place: Path,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """The `python` of another shell may be one without the package."""
    monkeypatch.setattr(sys, 'argv', ['/there/imagenette_zoo/__main__.py'])
    (place / 'rates.yaml').write_text(STUDY.format(epochs=2))
    assert main(['study', 'rates.yaml', '--print-commands', '--data-dir', str(folder)]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[0])[:4] == [sys.executable, '-m', 'imagenette_zoo', 'study']


@pytest.mark.long
@pytest.mark.slow
def test_lines_end_interrupted_trainings_and_are_left_where_they_are_done(
    place: Path,  # noqa: F811
    folder: Path,
    printed: list[list[str]],
    capsys: Capture,
) -> None:
    study = place / 'the runs' / 'rates'
    for words in printed:
        assert main(words) == 0
    whole = weights(study)
    assert sorted(whole) == ['fast-seed1', 'slow-seed1']
    times = {path: path.stat().st_mtime_ns for path in study.glob('*/*')}
    capsys.readouterr()
    assert main(printed[0]) == 0, 'once more'
    assert capsys.readouterr().out.splitlines()[1].startswith(f'{study / "slow-seed1"}: top-1 ')
    assert times == {path: path.stat().st_mtime_ns for path in study.glob('*/*')}

    command = [*printed[0][:2], '--data-dir', str(folder)]  # the folder is the study
    assert main([*command, '--print-commands']) == 0
    captured = capsys.readouterr()
    assert captured.out == ''
    assert 'no training is missing' in captured.err
    assert main(command) == 0
    assert '2 trainings: 2 done, 0 to do' in capsys.readouterr().out
    assert (study / 'report' / 'report.html').is_file()
    (study / 'fast-seed1' / 'analysis.json').unlink()  # as if it had been killed
    assert main([*command, '--print-commands']) == 0
    assert [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()] == [printed[1]]
    assert main(printed[1]) == 0
    assert weights(study) == whole


@pytest.mark.parametrize('begun', [False, True])
def test_a_line_that_is_started_twice_says_so(
    place: Path,  # noqa: F811
    printed: list[list[str]],
    capsys: Capture,
    begun: bool,
) -> None:
    study = place / 'the runs' / 'rates'
    other = RunFolder(study / 'slow-seed1')
    other.path.mkdir()
    if begun:
        [trial] = [each for each in begun_study(study).trials() if each.name == 'slow-seed1']
        other.start(trial.recipe)
        other.unlock()
    held = subprocess.Popen(  # the lock is a process's
        [sys.executable, '-c', HOLD, str(other['.lock'])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert held.stdout is not None
    held.stdout.readline()
    try:
        assert main(printed[0]) == 2
    finally:
        held.communicate()
    assert 'another run is being written here: wait for it' in capsys.readouterr().err
    assert other.started == begun
    assert failures(study) == {}, 'it goes on'


def test_lines_of_a_round_are_those_of_the_next_until_they_are_done(
    place: Path,  # noqa: F811
    folder: Path,
    capsys: Capture,
) -> None:
    words = ['study', 'rates.yaml', '--until-decided', '--print-commands', '--data-dir', str(folder)]
    for _ in range(2):
        assert main(words) == 0
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) == 4, 'two seeds of each run come first'
        assert 'round 1, for the first 2 seeds of each run' in captured.err
    assert (place / 'runs' / 'rates' / ROUNDS).read_text().count('claims') == 1


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--seed', '1'], '--seed: is of one run: name it with --only RUN'),
        (['--seed', '9', '--only', 'slow'], '--seed 9: the study has no such seed: expected one of 1, 2'),
        (['--seed', '1', '--only', 'slow', '--dry-run'], '--seed: does one training: leave --dry-run out'),
        (['--seed', '1', '--only', 'slow', '--jobs', '2'], '--seed: does one training: leave --jobs out'),
        (['--seed', '1', '--ray'], 'not allowed with argument'),
        (['--print-commands', '--in-process'], '--print-commands: --in-process is for one machine: leave it out'),
        (['--slurm-options', 'time=3'], '--slurm-options: are of --slurm: add that, or leave them out'),
    ],
)
def test_what_does_not_go_together_is_one_line(place: Path, words: list[str], reason: str, capsys: Capture) -> None:  # noqa: F811
    assert main(['study', 'rates.yaml', *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count('\n') == 1
    assert not list(place.glob('runs/*/*-seed*'))


def test_a_training_of_a_study_is_one_process(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert main(['study', 'rates.yaml', '--only', 'slow', '--seed', '1']) == 2
    assert 'one process, not one of 4: set WORLD_SIZE=1' in capsys.readouterr().err
    assert main(['study', 'rates.yaml', '--print-commands']) == 2
    assert 'rates: a study is one process, not one of 4: set WORLD_SIZE=1' in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_a_line_that_is_killed_goes_on_to_the_same_bits(
    place: Path,  # noqa: F811
    folder: Path,
    capsys: Capture,
) -> None:
    (place / 'rates.yaml').write_text(STUDY.format(epochs=30))
    words = ['study', 'rates.yaml', '--only', 'slow', '--seed', '2', '--data-dir', str(folder), '--output']
    killed = start(*words, 'here')
    wait_for(place / 'here' / 'rates' / 'slow-seed2' / 'state.pt', killed)
    killed.terminate()
    assert 'Everything is saved' in killed.communicate()[0]
    assert killed.returncode == 143
    for output in ('here', 'there'):
        assert main([*words, output]) == 0
    here, there = weights(place / 'here' / 'rates'), weights(place / 'there' / 'rates')
    assert here == there
    assert len(here) == 1
