"""Trainings as jobs that submitit sends, by its local executor: there is no SLURM here."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.study import on_slurm
from imagenette_zoo.study.on_slurm import _Job, _send
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.process import Slot
from tests.conftest import needs_linux
from tests.study.test_runner import STUDY, place, start, wait_for, weights  # noqa: F401  (fixtures)

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ('option', 'reason'),
    [
        ('partitoin=gpu', 'partitoin: neither sbatch nor submitit has it; did you mean partition'),
        ('time=1:00:00', 'time=1:00:00: is not a whole number'),
        ('array_parallelism=0', 'array_parallelism=0: is not a whole number above 0'),
        ('nodes=2', 'nodes=2: a training of a study is one process: leave it out'),
        ('cpus_per_task=many', ': Parameter "cpus_per_task" expected type'),
    ],
)
def test_a_wrong_option_of_the_jobs_is_one_line(place: Path, option: str, reason: str, capsys: Capture) -> None:  # noqa: F811
    pytest.importorskip('submitit')
    assert main(['study', 'rates.yaml', '--slurm', 'local', '--slurm-options', option]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: --slurm-options')
    assert reason in error
    assert error.count('\n') == 1
    assert not list(place.glob('runs/*/*-seed*'))


def test_sbatch_gets_the_options(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """There is no SLURM here: what would be sent is looked at."""
    submitit = pytest.importorskip('submitit')
    monkeypatch.setattr(submitit.SlurmExecutor, 'affinity', classmethod(lambda cls: 2))
    options = {'partition': 'gpu', 'time': 30, 'gpus_per_node': 1, 'account': 'me', 'mem_gb': 16}

    def script(options: dict[str, Any]) -> str:
        executor = on_slurm._executor(submitit, Slot(place / 'runs' / 'rates'), 'slurm', options)
        return str(executor._executor._make_submission_file_text('command', 'id'))

    text = script(options)
    for line in ('partition=gpu', 'time=30', 'gpus-per-node=1', 'account=me', 'mem=16GB', 'job-name=rates'):
        assert f'#SBATCH --{line}\n' in text
    assert '#SBATCH --signal=USR2@90\n' in text
    assert 'time=60\n' in script({})


def test_without_slurm_or_submitit_the_line_says_what_to_do(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    if sys.modules.get('submitit') or pytest.importorskip('submitit'):
        monkeypatch.setenv('PATH', str(place))
        assert main(['study', 'rates.yaml', '--slurm']) == 2
        assert 'Could not detect "srun"' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'submitit', None)
    assert main(['study', 'rates.yaml', '--slurm']) == 2
    assert '--slurm needs submitit: pip install "imagenette-zoo[slurm]"' in capsys.readouterr().err
    assert not list(place.glob('runs/*/*-seed*'))


class Cluster:
    """Jobs that never end, but for the first."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.cancelled: list[int] = []

    def submit_array(self, commands: list[_Job]) -> list[Any]:
        for number, command in enumerate(commands):
            assert command.words[3:5] == ['study', str(command.log.parents[1])]
            self.jobs.append(
                SimpleNamespace(
                    job_id=str(number),
                    state='NODE_FAIL',
                    done=lambda number=number: number == 0,
                    result=lambda: exec('raise RuntimeError("no result")'),
                    cancel=lambda check, number=number: self.cancelled.append(number),
                )
            )
        return self.jobs


def test_a_lost_job_is_a_failure_and_the_others_are_cancelled_when_it_ends(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster, slot = Cluster(), Slot(place / 'runs' / 'rates')
    slot.output.mkdir(parents=True)
    trials = read_study('rates.yaml').trials()
    monkeypatch.setattr(on_slurm, 'SAY_SECONDS', 0.0)
    sent = _send(cluster, trials, slot)
    assert next(sent) == (trials[0], 'job 0 ended without a result (node_fail)')
    assert next(sent) is None
    sent.close()
    assert cluster.cancelled == [1, 2, 3]


def test_ctrl_c_cancels_the_jobs_and_says_so(
    place: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    cluster = Cluster()
    monkeypatch.setattr(on_slurm, 'require', lambda *_: None)
    monkeypatch.setattr(on_slurm, '_executor', lambda *_: cluster)
    monkeypatch.setattr(on_slurm.time, 'sleep', stop)
    monkeypatch.setattr(sys, 'argv', ['imagenette-zoo', 'study', 'rates.yaml', '--slurm'])
    assert main(['study', 'rates.yaml', '--slurm']) == 130
    assert capsys.readouterr().out.splitlines()[-2:] == [
        '4 trainings: 0 done, 4 sent as SLURM jobs',
        'Stopped with 0 of 4 trainings done. The jobs are cancelled; what they saved stays. '
        'Continue with: imagenette-zoo study rates.yaml --slurm',
    ]
    assert cluster.cancelled == [0, 1, 2, 3]


@needs_linux
def test_the_signal_to_all_processes_of_a_job_does_not_end_its_command(tmp_path: Path) -> None:
    pytest.importorskip('submitit')
    assert _Job(['sh', '-c', 'kill -USR2 $$; exit 7'], tmp_path / 'log')() == 7


@needs_linux
def test_a_job_whose_time_is_up_waits_until_its_command_has_saved(tmp_path: Path) -> None:
    pytest.importorskip('submitit')
    log = tmp_path / 'log'
    job = _Job(['sh', '-c', 'trap "sleep 0.3; echo saved; exit 143" TERM; while :; do sleep 0.05; done'], log)

    def end(*_: object) -> None:
        again = job.checkpoint()
        assert log.read_text() == 'saved\n'
        assert (again.function.words, again.function.log) == (job.words, log)
        raise SystemExit

    former = signal.signal(signal.SIGUSR2, end)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    try:
        with pytest.raises(SystemExit):
            job()
    finally:
        signal.signal(signal.SIGUSR2, former)


@pytest.mark.slow
@pytest.mark.long
@needs_linux
def test_a_job_whose_time_is_up_goes_on_to_the_same_bits(place: Path, folder: Path) -> None:  # noqa: F811
    """The signal comes in the middle of a training; the job saves, is queued again, and ends."""
    pytest.importorskip('submitit')
    text = STUDY.format(epochs=30).replace('seeds: 2', 'seeds: 1')
    (place / 'rates.yaml').write_text(text.replace('  fast:\n', '').split('claims:')[0])
    study = place / 'runs' / 'rates'
    process = start('study', 'rates.yaml', '--data-dir', str(folder), '--slurm', 'local')
    wait_for(study / 'slow-seed1' / 'state.pt', process)
    [job] = (path.name.partition('_')[0] for path in (study / 'slurm').glob('*_submitted.pkl'))
    listed = subprocess.run(['ps', '-o', 'pid=', '--ppid', job], capture_output=True, text=True, check=True)
    [task] = map(int, listed.stdout.split())
    children = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(task)], capture_output=True, text=True, check=True)
    for pid in (task, *map(int, children.stdout.split())):  # SLURM sends it to all processes of a job
        os.kill(pid, signal.SIGUSR2)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert '[1/1] slow-seed1: top-1 ' in output
    assert f'Requeued job {job}' in next((study / 'slurm').glob('*.out')).read_text()
    log = (study / 'logs' / 'slow-seed1.log').read_text()
    assert 'Everything is saved' in log
    assert 'continued at epoch' in log
    alone = ['--only', 'slow', '--seed', '1', '--output', 'here']
    assert main(['study', 'rates.yaml', '--data-dir', str(folder), *alone]) == 0
    assert weights(study) == weights(place / 'here' / 'rates')
