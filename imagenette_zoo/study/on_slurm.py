"""The trainings of a study as jobs of SLURM, which submitit sends (https://github.com/facebookincubator/submitit).

A job is the command of `lines.py`. All nodes see the study's folder, as they do on such clusters. A job whose time ends
is queued again and goes on, to the same bits.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line, nearest, require
from ..utils.console import Console
from ..utils.signals import sigterm_interrupts
from .cluster import Sent, check_extent, collect
from .lines import words_of
from .plan import Study, Trial
from .process import PROGRAM, WHOLE, Extent, Slot, Trials, reason, start_process
from .runner import POLL_SECONDS, SAY_SECONDS, check_models, in_rounds, opened
from .step_times import time_study

__all__ = ['run_on_slurm']

MINUTES = 60  # of a job, where nothing else is said: submitit's 5 are few
TIMEOUTS = 1000  # of a job: each goes on from where the last one ended
GRACE = 600.0  # seconds in which SLURM ends a job after SIGTERM
# submitit's own names of what any cluster has; the others are SLURM's.
COMMON = (
    'name', 'timeout_min', 'mem_gb', 'nodes', 'cpus_per_task', 'gpus_per_node', 'tasks_per_node', 'stderr_to_stdout'
)  # fmt: skip


def run_on_slurm(
    study: Study,
    slot: Slot,
    console: Console,
    extent: Extent = WHOLE,
    *,
    cluster: str,
    options: Mapping[str, Any],
) -> Trials:
    """Trains what is missing of a study by jobs of SLURM.

    Args:
        study: What is to be trained.
        slot: `output` and `data_dir` are folders that all nodes see.
        console: Where it is printed.
        extent: How much of it; a budget holds between the rounds of `until_decided` only.
        cluster: submitit's name of it: `slurm`, or `local` for processes on this machine, which all start at once.
        options: Of the jobs: submitit's common ones, and those of sbatch, such as `partition`.

    Raises:
        UserError: submitit is missing or there is no SLURM, an option is wrong; a folder holds something else.
        KeyboardInterrupt: Ctrl-C; the jobs are cancelled, what they saved stays.
    """
    check_extent('--slurm', study, slot, extent, console)
    options = {key.removeprefix('slurm_'): value for key, value in options.items()}
    submitit = require('submitit', '--slurm', 'slurm')
    executor = _executor(submitit, slot, cluster, options)
    check_models(study, console)
    where = 'as SLURM jobs' if cluster == 'slurm' else 'as local jobs'
    saved = 'The jobs are cancelled; what they saved stays.'

    def train(trials: list[Trial]) -> Trials:
        return collect(trials, slot, console, lambda waiting: _send(executor, waiting, slot), where, saved)

    with opened(study, slot, console, extent.only) as chosen, sigterm_interrupts():
        time_study(study, slot, console)
        return in_rounds(study, slot, console, extent, chosen, train, options.get('array_parallelism', len(study.runs)))


def _executor(submitit: Any, slot: Slot, cluster: str, options: Mapping[str, Any]) -> Any:
    """What sends the jobs.

    Raises:
        UserError: There is no SLURM, or an option is wrong.
    """
    known = {*COMMON, *submitit.SlurmExecutor._valid_parameters()}
    for key, value in options.items():
        if key not in known:
            raise UserError(f'--slurm-options {key}: neither sbatch nor submitit has it{nearest(key, known)}')
        if key in ('nodes', 'tasks_per_node', 'ntasks_per_node') and value != 1:
            raise UserError(f'--slurm-options {key}={value}: a training of a study is one process: leave it out')
        computed_with = key in ('time', 'timeout_min', 'array_parallelism')
        if computed_with and (type(value) is not int or value < 1):
            raise UserError(f'--slurm-options {key}={value}: is not a whole number above 0')
    given = {'name': slot.output.name, 'timeout_min': MINUTES, **options}
    named = {name if name in COMMON else f'slurm_{name}': value for name, value in given.items()}
    try:
        folder = slot.output.absolute() / 'slurm'
        executor = submitit.AutoExecutor(folder, cluster, **{f'{cluster}_max_num_timeout': TIMEOUTS})
    except (RuntimeError, OSError) as error:
        raise UserError(f'--slurm: {first_line(error)}; --slurm local tries it on this machine') from None
    try:
        executor.update_parameters(**named)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f'--slurm-options: {first_line(error)}') from None
    return executor


def _send(executor: Any, trials: list[Trial], slot: Slot) -> Sent:
    """Sends trainings as one array of jobs; those that are left are cancelled."""
    if not trials:
        return
    commands = [_Job([*PROGRAM, *words_of(trial, slot)], _log_of(trial, slot)) for trial in trials]
    for command in commands:
        command.log.parent.mkdir(exist_ok=True)
        command.log.write_bytes(b'')
    try:
        jobs = list(zip(executor.submit_array(commands), trials, strict=True))
    except (RuntimeError, OSError) as error:  # of sbatch
        raise UserError(f'--slurm: the jobs were not taken: {str(error).strip().splitlines()[-1]}') from None
    news = time.monotonic()
    try:
        while jobs:
            time.sleep(POLL_SECONDS)
            for job, trial in [each for each in jobs if each[0].done()]:
                jobs.remove((job, trial))
                yield trial, _why(job, _log_of(trial, slot))
                news = time.monotonic()
            if time.monotonic() - news >= SAY_SECONDS:
                yield None
                news = time.monotonic()
    finally:
        for job, _ in jobs:
            job.cancel(check=False)


def _log_of(trial: Trial, slot: Slot) -> Path:
    return slot.output.absolute() / 'logs' / f'{trial.name}.log'


def _why(job: Any, log: Path) -> str:
    """Why a job that ended failed; nothing if it did not."""
    try:
        code = job.result()
    except Exception:  # submitit's, or what the job raised
        return f'job {job.job_id} ended without a result ({job.state.lower()})'
    return reason(code, log) if code else ''


class _Job:
    """A command as a job that can be queued again: `checkpoint` is what submitit calls when the time ends.

    Args:
        words: The command.
        log: What it prints is appended to this file.
    """

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.words = words
        self.log = log

    def __call__(self) -> int:
        """Carries it out; returns its exit code."""
        from submitit import JobEnvironment

        # SLURM sends its signal to all processes of a job. Of this one the command hears what to do.
        number = signal.Signals[f'SIG{JobEnvironment.USR_SIG}']
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        with open(self.log, 'ab') as log:
            self.process = start_process(self.words, os.environ, subprocess.DEVNULL, log)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        while (code := self.process.poll()) is None:
            time.sleep(POLL_SECONDS)
        if code == 128 + signal.SIGTERM:  # SLURM's own: it ends the job soon, or has it queued again
            time.sleep(GRACE)
        return code

    def checkpoint(self) -> Any:
        """Makes the command save and stop; returns what continues it."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            with suppress(ChildProcessError):  # it was waited for
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(_Job(self.words, self.log))
