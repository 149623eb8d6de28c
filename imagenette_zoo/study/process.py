"""One training of a study as processes: where it runs, its commands, and what became of them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import math
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from ..config.recipe import Recipe
from ..errors import UserError
from ..training.result import read_result
from ..utils.console import duration
from ..utils.environment import available_cores
from ..utils.files import write_atomic
from ..utils.modules import absolute_files, imported_modules
from ..utils.reading import open_regular, read_bytes, read_errors
from .plan import Study, Trial, differing

__all__ = [
    'PROGRAM', 'WHOLE', 'Extent', 'Job', 'Left', 'Slot', 'Trials', 'check_code', 'commands', 'environment',
    'epochs_done', 'outcome', 'reason', 'start_process',
]  # fmt: skip

PROGRAM = (sys.executable, '-m', 'imagenette_zoo')
PR_SET_PDEATHSIG = 1
LIBC: Any = ctypes.CDLL(None) if sys.platform == 'linux' else None


@dataclass(frozen=True)
class Slot:
    """Where and how the trainings of a study run.

    Args:
        output: The study's folder: a folder for each training, and what was printed under `logs/`.
        data_dir: As `--data-dir`.
        device: As `--device`.
        jobs: How many run at the same time.
        in_process: Whether a process trains one after the other.
    """

    output: Path
    data_dir: str | None = None
    device: str | None = None
    jobs: int = 1
    in_process: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.jobs, bool) or not isinstance(self.jobs, int) or self.jobs < 1:
            raise UserError(f'jobs: {self.jobs!r} is not a number of trainings from 1 on')

    def absolute(self) -> Slot:
        """The same for any current folder."""
        data_dir = self.data_dir and os.path.abspath(os.path.expanduser(self.data_dir))
        return replace(self, output=Path(os.path.abspath(self.output)), data_dir=data_dir)

    def flags(self, modules: Sequence[str]) -> list[str]:
        """The flags of a training that say where it runs, and by which code of the user's own."""
        given = {'--data-dir': self.data_dir, '--device': self.device}
        words = [word for name, value in given.items() if value for word in (name, value)]
        return [*words, *(['--device-modules', *absolute_files(modules)] if modules else [])]


@dataclass(frozen=True)
class Extent:
    """How much of a study is trained.

    Args:
        only: Names of runs; all if none is given.
        budget: Hours of training and validation, what is done included, after which no further training is started;
            the study's own if not given.
        until_decided: As many seeds as the claims need, those first that are cheapest to decide; else those that the
            study names.

    Raises:
        UserError: The budget is no number of hours, or the runs are both named and left to the claims.
    """

    only: Sequence[str] = ()
    budget: float | None = None
    until_decided: bool = False

    def __post_init__(self) -> None:
        hours = self.budget
        if hours is not None and not (type(hours) in (int, float) and 0 < hours < math.inf):
            raise UserError(f'budget: {hours!r} is not a number of hours above 0')
        if self.until_decided and self.only:
            raise UserError('--until-decided: chooses the runs itself: leave --only out')

    def of(self, study: Study) -> Extent:
        """The same, and until the claims are decided where the study says so and no runs were named."""
        return replace(self, until_decided=True) if study.until_decided and not self.only else self

    def hours(self, study: Study) -> float | None:
        """The budget of a study, None where there is none."""
        return self.budget or study.budget


WHOLE = Extent()


@dataclass
class Trials:
    """The trainings of a study afterwards: `failed` and `left` by name, with the reason.

    `undecided` has the claims that get no more trainings, with the reason, where those were asked for.
    """

    done: list[Trial] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    undecided: dict[str, Left] = field(default_factory=dict)

    def add(self, others: Trials) -> None:
        """Adds what was trained after these."""
        done = {trial.name for trial in others.done}
        self.done += others.done
        self.failed = {name: why for name, why in self.failed.items() if name not in done} | others.failed
        self.left = others.left


@dataclass(frozen=True)
class Left:
    """Why no more trainings are made for a claim: the hours that it needs, or None where no number would do."""

    reason: str
    hours: float | None = None


def commands(trial: Trial, slot: Slot) -> list[list[str]]:
    """The commands that make up a training, as a person can give them as well; its recipe is written for them."""
    recipe = slot.output / 'recipes' / f'{trial.run}.yaml'
    recipe.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(
        recipe, yaml.safe_dump(differing(trial.recipe.as_dict(), Recipe().as_dict()), sort_keys=False).encode()
    )
    of_data = {'--batch-size': 'batch_size', '--num-classes': 'num_classes'}  # a recipe's would give way to the data
    given = {flag: str(getattr(trial.recipe, name)) for flag, name in of_data.items() if trial.recipe.insists_on(name)}
    words = [word for pair in given.items() for word in pair]
    words += ['--seed', str(trial.seed), '--output', str(slot.output), '--experiment', trial.name, '--resume']
    flags = slot.flags(trial.recipe.device_modules)
    return [
        [*PROGRAM, 'train', '-c', str(recipe), *words, *flags],
        [*PROGRAM, 'analyse', str(slot.output / trial.name), *flags],
    ]


def check_code() -> None:
    """Looks whether the user's own files are still those that were imported, for what starts now would read them anew.

    Raises:
        UserError: One has changed.
    """
    for module in imported_modules().values():
        if module.file is not None:
            with read_errors(module.file, 'a Python file'):
                data = read_bytes(module.file)
            if hashlib.sha256(data).hexdigest() != module.sha256:
                raise UserError(
                    f'{module.file}: has changed since the study was started: undo that, or start another study '
                    f'(--output, --experiment)'
                )


class Job:
    """A training under way: its commands one after the other, what they print in a log."""

    process: subprocess.Popen[bytes] | None = None  # none where this process trains

    def __init__(self, trial: Trial, slot: Slot, number: int) -> None:
        self.trial = trial
        self.number = number
        self.folder = slot.output / trial.name
        self.log = slot.output / 'logs' / f'{trial.name}.log'
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b'')
        self._commands = deque(commands(trial, slot))
        self._environment = environment(slot.jobs, number, slot.device or trial.recipe.device)
        self._start_next()

    def _start_next(self) -> None:
        check_code()
        self._start(self._commands.popleft())

    def _start(self, command: Sequence[str]) -> None:
        with open(self.log, 'ab') as log:
            self.process = start_process(command, self._environment, subprocess.DEVNULL, log)

    def _code(self) -> int | None:
        """The exit code of the command that was started last; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def poll(self) -> int | None:
        """None while it runs, then its exit code."""
        code = self._code()
        if code == 0 and self._commands:
            self._start_next()
            return None
        return code


def start_process(
    words: Sequence[str],
    variables: Mapping[str, str],
    stdin: int,
    stdout: int | BinaryIO,
    stderr: int | BinaryIO = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """Starts a process that ends with this one."""
    return subprocess.Popen(
        words,
        bufsize=0,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=variables,
        start_new_session=True,  # Ctrl-C is for the one who runs the study, who passes it on
        preexec_fn=_end_with_parent if LIBC else None,
    )


def environment(jobs: int, number: int, device: str = 'auto') -> dict[str, str]:
    """The environment of job `number` of several: they divide the cores, and the GPUs unless `device` names one."""
    own = {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    if jobs > 1:
        own['OMP_NUM_THREADS'] = os.environ.get('OMP_NUM_THREADS', str(max(1, available_cores() // jobs)))
        if (count := torch.cuda.device_count()) > 1 and ':' not in device:
            visible = os.environ.get('CUDA_VISIBLE_DEVICES') or ','.join(map(str, range(count)))
            own['CUDA_VISIBLE_DEVICES'] = visible.split(',')[number % count]
    return {**os.environ, **own}


def _end_with_parent() -> None:
    """In the child: if the study is killed its trainings save and stop, too."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def epochs_done(folder: Path) -> int:
    """How many epochs of a training are done."""
    with contextlib.suppress(OSError), open_regular(folder / 'metrics.jsonl') as file:
        return file.read().count(b'\n')
    return 0


def outcome(folder: Path) -> str:
    """A training that is done, in words."""
    result = read_result(folder)
    return f'top-1 {result.top1:.2f} % in {duration(result.seconds.get("total") or 0.0)}'


def reason(code: int, log: Path) -> str:
    """Why a training ended with this exit code, as its log tells."""
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('error: ')]
        if errors:
            return errors[-1].removeprefix('error: ')
        if lines:
            return lines[-1][:200]
    return 'its log is empty'
