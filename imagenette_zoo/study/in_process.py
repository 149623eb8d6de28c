"""Trainings of a study that share a process, one after the other.

With `--in-process` each slot has a process of its own, which does the commands of one training after those of another
(`cli/worker.py`). Models that no other process can make, as a notebook's, are trained by this one.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..models.own import is_of_this_process
from ..training.trainer import train_by
from ..utils.console import Console
from .analysis import analyse
from .plan import Study, Trial
from .process import PROGRAM, Job, Slot, start_process

__all__ = ['TrainedHere', 'Workers', 'needs_this_process', 'train_here']

WORKER = (sys.executable, '-m', 'imagenette_zoo.cli.worker')
PATIENCE = 10.0  # seconds that an idle process gets to end


class Workers:
    """The processes that train one after the other, by the number of their slot; use as a context manager."""

    def __init__(self) -> None:
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.end()

    def start(self, trial: Trial, slot: Slot, number: int) -> Job:
        """Starts a training in the process of its slot."""
        return _TrainedByWorker(trial, slot, number, self)

    def of(self, number: int, variables: Mapping[str, str], log: Path) -> _Worker:
        """The process of a slot; where there is none that is ready, with these variables of the environment, a new one,
        what it has to say at its start in a log."""
        worker = self._workers.get(number)
        if worker is None or not worker.is_ready() or worker.variables != variables:
            if worker is not None:
                worker.end()
            worker = self._workers[number] = _Worker(variables, log)
        return worker


class _Worker:
    """A process that carries out a command when it is sent one."""

    def __init__(self, variables: Mapping[str, str], log: Path) -> None:
        self.variables = variables
        with open(log, 'ab') as file:
            self.process = start_process(WORKER, variables, subprocess.PIPE, subprocess.PIPE, file)
        self.goes_on = True

    def is_ready(self) -> bool:
        """Whether it waits for the next command."""
        return self.goes_on and self.process.poll() is None

    def send(self, words: Sequence[str], log: Path) -> None:
        """Asks for a command of `imagenette-zoo`, whose output is appended to a log."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({'command': words, 'log': str(log)}).encode() + b'\n')

    def code(self) -> int | None:
        """The exit code of that command, or how the process ended; None while it runs."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 0)[0]:
            return None
        answer = self.process.stdout.readline()
        if answer:
            values = json.loads(answer)
            self.goes_on = values['again']
            return int(values['code'])
        self.goes_on = False
        return self.process.wait() or 1

    def end(self) -> None:
        """Ends it, once it is idle."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class _TrainedByWorker(Job):
    """A training by the process of its slot."""

    def __init__(self, trial: Trial, slot: Slot, number: int, workers: Workers) -> None:
        self._workers = workers
        super().__init__(trial, slot, number)

    def _start(self, command: Sequence[str]) -> None:
        self._worker = self._workers.of(self.number, self._environment, self.log)
        self.process = self._worker.process
        self._worker.send(command[len(PROGRAM) :], self.log)

    def _code(self) -> int | None:
        return self._worker.code()


def needs_this_process(study: Study, slot: Slot) -> bool:
    """Whether a model of a study can be made by this process alone, so that all its trainings are done here.

    Raises:
        UserError: Several are to run at the same time.
    """
    own = [run.recipe.model for run in study.runs.values() if is_of_this_process(run.recipe.model)]
    if own and slot.jobs > 1:
        raise UserError(
            f'jobs={slot.jobs}: {own[0]} is of this process, which trains one after the other: leave jobs out, or put '
            f'the model into a file for device_modules'
        )
    return bool(own)


class TrainedHere(Job):
    """A training that is done once this is made. Its epochs have bars where there is a terminal or a notebook."""

    def __init__(self, trial: Trial, slot: Slot, number: int) -> None:
        self.trial = trial
        self.number = number
        self.folder = slot.output / trial.name
        train_here(trial, slot, Console(bars_only=True))

    def poll(self) -> int:
        return 0


def train_here(trial: Trial, slot: Slot, console: Console) -> None:
    """Trains in this process, or goes on with what is in the folder, and analyses the weights."""
    place = {'output': slot.output, 'experiment': trial.name, 'resume': 'auto'}
    given = {name: value for name in ('data_dir', 'device') if (value := getattr(slot, name))}
    train_by(trial.recipe.replace(**place, **given), console)
    analyse(slot.output / trial.name, console, slot.data_dir, slot.device)
