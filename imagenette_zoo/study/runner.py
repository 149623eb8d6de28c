"""Runs what is missing of a study, each training in processes of its own, and goes on when one fails."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..config.groups import ArchitectureOptions, DataOptions
from ..config.recipe import ModelOptions, Recipe
from ..data.locate import resolve_dataset
from ..errors import Mistakes, UserError, nearest
from ..models.own import own_function, resolved
from ..training.learner import check_parts
from ..training.result import Result, read_result
from ..training.run import check_resumable, make_model
from ..training.run_folder import RunFolder
from ..utils.console import Console, counted, duration, in_ipython
from ..utils.environment import this_command
from ..utils.files import write_atomic
from ..utils.launch import check_alone
from ..utils.modules import import_modules
from ..utils.seeding import restore_generators
from ..utils.signals import Stopped, sigterm_interrupts
from .adaptive import train_until_decided
from .analysis import FILES
from .changes import note_changes
from .hours import epochs_expected, hours_spent, seconds_per_epoch
from .in_process import TrainedHere, Workers, needs_this_process
from .plan import Study, Trial, dump_study
from .process import WHOLE, Extent, Job, Slot, Trials, epochs_done, outcome, reason
from .records import check_recipe, distinct, keep_failure
from .step_times import time_study

__all__ = ['check_models', 'in_rounds', 'interrupted', 'opened', 'run_study', 'state_of']

POLL_SECONDS = 0.2  # between checks of what runs
SAY_SECONDS = 60.0  # between lines where there is no terminal
PATIENCE = 60.0  # seconds that a training gets to save what it has
BUILD_OPTIONS = ModelOptions.names() | ArchitectureOptions.names()  # that decide what is built
CLASSES = 10  # of a model that is built only to see whether it can be


def state_of(trial: Trial, slot: Slot) -> str:
    """`done`, `begun` or `new`.

    Raises:
        UserError: Its folder holds a training by another recipe, or on other images.
    """
    folder = RunFolder(slot.output / trial.name)
    if not folder.started:
        folder.check_unused()
        folder.unlock()
        return 'new'
    check_resumable(trial.recipe.replace(resume='auto'), folder)
    if folder.finished:
        result = read_result(folder.path)
        check_recipe(result, trial)
        _check_images(result, trial, slot)
    return 'done' if folder.finished and all(folder[name].is_file() for name in FILES) else 'begun'


def _check_images(result: Result, trial: Trial, slot: Slot) -> None:
    """Raises `UserError` where a finished training is not on the images that are at hand now."""
    recipe = trial.recipe
    now = _data_name(recipe, slot.data_dir or recipe.data_dir)
    then = result.dataset.get('name')
    if now and then and now != then:
        raise UserError(
            f'{result.folder}: was trained on {then}, the data folder is {now}: give the former --data-dir, or start '
            f'anew elsewhere (--output)'
        )


def _data_name(recipe: Recipe, data_dir: str | None) -> str | None:
    """The name of the data folder; None where it is not at hand."""
    try:
        root = resolve_dataset(recipe.dataset, data_dir, recipe.train_split, recipe.val_split, options=recipe)
        return Path(os.path.abspath(root)).name
    except UserError:
        return None


def run_study(study: Study, slot: Slot, console: Console, extent: Extent = WHOLE) -> Trials:
    """Trains what is missing of a study.

    Args:
        study: What is to be trained.
        slot: Where and how.
        console: Where it is printed.
        extent: How much of it.

    Raises:
        UserError: A folder holds something else, or another process runs this study.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was computed is saved.
    """
    budget = extent.hours(study)
    check_models(study, console)
    here = needs_this_process(study, slot)
    _check_data(study, slot, extent.only)
    with opened(study, slot, console, extent.only) as chosen, sigterm_interrupts(), Workers() as workers:
        start: Callable[[Trial, Slot, int], Job] = TrainedHere if here else workers.start if slot.in_process else Job

        def train(trials: list[Trial]) -> Trials:
            states = {trial.name: state_of(trial, slot) for trial in trials}
            return _Overview(study, trials, states, slot, console, budget, start).run()

        time_study(study, slot, console)
        return in_rounds(study, slot, console, extent, chosen, train, slot.jobs)


def in_rounds(
    study: Study,
    slot: Slot,
    console: Console,
    extent: Extent,
    chosen: list[Trial],
    train: Callable[[list[Trial]], Trials],
    slots: int,
) -> Trials:
    """Trains what was chosen, or with `until_decided` what the claims need, round by round."""
    if extent.until_decided:
        return train_until_decided(study, slot.output, console, train, budget=extent.hours(study), slots=slots)
    return train(chosen)


def _check_data(study: Study, slot: Slot, only: Sequence[str]) -> None:
    """Raises `UserError` where the images of trainings that are to come are not at hand."""
    recipes = {
        repr([getattr(each.base, name) for name in sorted(DataOptions.names())]): each.base
        for each in study.trials()
        if (not only or each.run in only)
        and each.seed in study.seeds
        and not (slot.output / each.name / 'result.json').is_file()
    }
    for recipe in recipes.values():
        place = slot.data_dir or recipe.data_dir
        resolve_dataset(recipe.dataset, place, recipe.train_split, recipe.val_split, options=recipe)


@contextlib.contextmanager
def opened(study: Study, slot: Slot, console: Console, only: Sequence[str]) -> Iterator[list[Trial]]:
    """Holds a study's folder: its trainings with the seeds that it names, of the runs in `only`, or of all.

    Raises:
        UserError: A folder holds something else, or another process runs this study.
    """
    check_alone(f'{slot.output}: a study')
    if (slot.output / 'args.yaml').exists():
        raise UserError(f'{slot.output}: holds a run, not a study: choose another --output or --experiment')
    try:
        slot.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{slot.output}: can't make the study's folder: {error.strerror}") from None
    folder = RunFolder(slot.output)
    folder.lock()
    try:
        for trial in study.trials():
            state_of(trial, slot)
        note_changes(study, slot.output, console)
        write_atomic(slot.output / 'study.yaml', dump_study(study).encode())
        yield [each for each in study.trials() if (not only or each.run in only) and each.seed in study.seeds]
    finally:
        folder.unlock()


def check_models(study: Study, console: Console) -> None:
    """Imports the code that the runs name, and looks whether it has what they name and whether their models can be
    built.

    Raises:
        UserError: A module can't be imported; a run names something that nothing has, or its model does not take an
            argument.
    """
    for modules in distinct([run.recipe.device_modules for run in study.runs.values()]):
        import_modules(modules, console.line)
    deciding = sorted(Recipe.names() - Recipe.may_differ('on resume'))  # others may look like module:attribute
    built = set()
    mistakes = Mistakes()
    for run in study.runs.values():
        recipe = run.recipe
        with mistakes.collected(run.name):
            check_parts(recipe)
            for name in deciding:
                resolved(getattr(recipe, name))
            configuration = repr([getattr(recipe, name) for name in sorted(BUILD_OPTIONS)])
            if configuration not in built:
                _check_build(recipe)
            built.add(configuration)
    mistakes.check()


def _check_build(recipe: Recipe) -> None:
    """Raises `UserError` where the recipe's model can't be built; one from the Hub is not looked for."""
    if own_function(recipe.model) is None and ':' in recipe.model:
        return
    recipe = recipe.replace(pretrained=False, initial_checkpoint=None)
    with restore_generators():
        try:
            with torch.device('meta'):  # which computes nothing
                make_model(recipe, CLASSES)
        except UserError:  # some models compute when they are made
            try:
                make_model(recipe, CLASSES)
            except UserError as error:
                raise UserError(f'{error}{_meant(recipe, str(error))}') from None


def _meant(recipe: Recipe, reason: str) -> str:
    """The names most like that of an argument which a model does not take, or nothing."""
    unknown = next((key for key in recipe.model_kwargs if f"'{key}'" in reason or f' no {key}:' in reason), None)
    if unknown is None:
        return ''
    known = Recipe.names()
    with contextlib.suppress(Exception):
        known |= inspect.signature(type(make_model(recipe.replace(model_kwargs={}), CLASSES))).parameters.keys()
    return nearest(unknown, difflib.get_close_matches(unknown, known, 2, 0.7))


class _Overview:
    """The loop over the trainings, and what is printed of it."""

    def __init__(
        self,
        study: Study,
        trials: list[Trial],
        states: dict[str, str],
        slot: Slot,
        console: Console,
        budget: float | None,
        start: Callable[[Trial, Slot, int], Job],
    ) -> None:
        self.study = study
        self.slot = slot
        self.console = console
        self.budget = budget
        self.start = start
        self.trials = Trials(done=[trial for trial in trials if states[trial.name] == 'done'])
        self.waiting = deque(trial for trial in trials if states[trial.name] != 'done')
        self.running: list[Job] = []
        self.total = len(trials)
        self.epochs = {trial.name: trial.recipe.epochs for trial in trials}
        self.said = time.monotonic()

    def run(self) -> Trials:
        self._print_start()
        shown = sum(self._epochs_done(name) for name in self.epochs)
        with self.console.progress('epochs', sum(self.epochs.values()), done=shown) as progress:
            try:
                while self.waiting or self.running:
                    self._fill()
                    time.sleep(POLL_SECONDS)
                    for job in list(self.running):
                        self._check(job)
                    if not self.console.live and time.monotonic() - self.said >= SAY_SECONDS:
                        self._say_progress()
                    if self.console.live:
                        now = sum(self._epochs_done(name) for name in self.epochs)
                        progress.bar.set_postfix_str(', '.join(job.trial.name for job in self.running))
                        progress.bar.update(now - shown)
                        shown = now
            except KeyboardInterrupt as request:
                raise interrupted(request, self.trials, self.total, self._stop(), self.console) from None
            except BaseException:
                self._stop()
                raise
        return self.trials

    def _print_start(self) -> None:
        done = len(self.trials.done)
        self.console.line(
            f'{counted(self.total, "training")}: {done} done, {len(self.waiting)} to do, {self.slot.jobs} at a time; '
            f'in {self.slot.output}'
        )

    def _say_progress(self) -> None:
        """A line on what runs, where no bar shows it."""
        running = [
            f'{job.trial.name}: {self._epochs_done(job.trial.name)} of {counted(job.trial.recipe.epochs, "epoch")}'
            for job in self.running
        ]
        self._line(f'{", ".join(running)}{self._left()}')

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        self.console.line(text)

    def _fill(self) -> None:
        """Starts trainings while there is room and budget."""
        while self.waiting and len(self.running) < self.slot.jobs:
            if self.budget is not None and hours_spent(self.study, self.slot.output) >= self.budget:
                for trial in self.waiting:
                    self.trials.left[trial.name] = f'the budget of {self.budget:g} h is used up'
                self.waiting.clear()
                return
            number = min(set(range(self.slot.jobs)) - {job.number for job in self.running})
            if not self.console.live:
                self._line(f'started {self.waiting[0].name}{self._left()}')
            trial = self.waiting.popleft()
            try:
                self.running.append(self.start(trial, self.slot, number))
            except (OSError, UserError) as error:
                self._failed(trial.name, error)
                self.console.line(f'{trial.name}: FAILED: {error}')

    def _check(self, job: Job) -> None:
        name = job.trial.name
        try:
            code = job.poll()
            if code is None:
                return
            self.running.remove(job)
            if code:
                raise UserError(reason(code, job.log))
            text = outcome(job.folder)
            self.trials.done.append(job.trial)
        except (OSError, UserError) as error:
            self.running = [other for other in self.running if other is not job]
            self._failed(name, error)
            text = f'FAILED: {error}'
        finished = len(self.trials.done) + len(self.trials.failed)
        self._line(f'[{finished}/{self.total}] {name}: {text}{self._left()}')

    def _failed(self, name: str, error: Exception) -> None:
        self.trials.failed[name] = str(error)
        keep_failure(self.slot.output, name, str(error))

    def _epochs_done(self, name: str) -> int:
        """Of a training that is finished all, though it may have ended early."""
        folder = self.slot.output / name
        return self.epochs[name] if (folder / 'result.json').is_file() else epochs_done(folder)

    def _left(self) -> str:
        """The time that is left, by the epochs that are done, of the same run where there are any."""
        rates = seconds_per_epoch(self.study, self.slot.output)
        if not rates:
            return ''
        mean = sum(rates.values()) / len(rates)
        trials = [*(job.trial for job in self.running), *self.waiting]
        epochs = epochs_expected(self.study, self.slot.output)
        left = [
            max(0.0, epochs[trial.run] - self._epochs_done(trial.name)) * rates.get(trial.run, mean) for trial in trials
        ]
        return f'; about {duration(sum(left) / self.slot.jobs)} left' if sum(left) > 0 else ''

    def _stop(self) -> str:
        """Makes the running trainings save and stop, and says what is saved."""
        processes = [job.process for job in self.running if job.process is not None]
        saved = 'Everything is saved.'
        if processes:
            self.console.line(f'stopping {counted(len(processes), "training")} after this step; again to stop now')
        for process in processes:
            process.terminate()
        try:
            for process in processes:
                process.wait(PATIENCE)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            for process in processes:
                process.kill()
            saved = 'What was saved last stays.'
        return saved


def interrupted(request: KeyboardInterrupt, trials: Trials, total: int, saved: str, console: Console) -> Stopped:
    """What ends a study that was asked to stop, after a line on what is saved and how to go on."""
    stopped = request if isinstance(request, Stopped) else Stopped(signal.SIGINT)
    done = f'{len(trials.done)} of {counted(total, "training")} done'
    stopped.message = f'Stopped with {done}. {saved} Continue with: {this_command()}'
    if not in_ipython():  # whose caller says how
        console.line(stopped.message)
    return stopped
