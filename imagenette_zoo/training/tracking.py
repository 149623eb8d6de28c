"""Trackers that people already use: TensorBoard, Weights & Biases, trackio and MLflow get what `metrics.jsonl` holds.

A row of the history is logged at the step of its epoch, by its names. The accuracy of a class is `eval_top1/CLASS`, a
number of the result is `result/top1`. A tracker that is opened gets the whole history of the run. So each epoch is
there exactly once, whatever was lost or logged too early when a run was killed, and also if tracking begins late.

No tracker can hurt a run. It is called between the epochs, each of which seeds its own random numbers. One that raises
or does not answer is left out from then on.
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar
from unittest import mock

import yaml

from ..config.recipe import Recipe
from ..errors import UserError, first_line
from ..utils.console import Console
from ..utils.files import write_atomic

__all__ = ['Tracking', 'check_trackers']

T = TypeVar('T')
Row = Mapping[str, Any]

WANDB_PATIENCE = 30.0  # seconds that wandb may take to reach its server, at the start and at the end
PATIENCE = 45.0  # seconds for anything: above wandb's own and the 10 it adds to them, since it says why it failed
PROJECT = 'imagenette-zoo'  # of runs for which none is given, where a tracker needs one
COMPARED = ('eval_top1', 'eval_top5', 'eval_loss', 'train_loss')  # columns of TensorBoard's table of runs
RESULT = ('top1', 'best_top1', 'best_epoch', 'top5', 'loss', 'params', 'gmacs', 'images_per_second', 'peak_memory_mib')


class Tracker(Protocol):
    """A tracker of one run, which gets the history when it is made."""

    option: ClassVar[str]
    location: str  # where a person finds the run

    @staticmethod
    def check() -> None:
        """Raises `UserError` where it can't be used."""

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row]) -> None: ...

    def epoch(self, row: Row) -> None:
        """Takes an epoch's row of the history."""

    def result(self, values: Mapping[str, float], epochs: int) -> None:
        """Takes the numbers of the result."""

    def close(self, exit_code: int) -> None:
        """Ends it."""


def check_trackers(recipe: Recipe) -> None:
    """Looks whether the trackers that a recipe asks for can be used, without writing anything.

    Raises:
        UserError: A package is missing; wandb is to send the run and has no key.
    """
    for kind in _kinds(recipe):
        kind.check()


class Tracking:
    """All trackers of a run; use as a context manager around its epochs.

    Args:
        recipe: Its options.
        folder: Its folder.
        history: Its rows so far.
        console: Prints where the trackers are and which of them failed.
        primary: Whether this is the process that calls them; the others do nothing.
    """

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row], console: Console, primary: bool) -> None:
        self._kinds = _kinds(recipe) if primary else []
        self._make = (recipe, folder, history)
        self._console = console
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> Tracking:
        for kind in self._kinds:
            tracker = self._try(kind.option, functools.partial(kind, *self._make))
            if tracker is not None:
                self._open[kind.option] = tracker
                self._console.line(f'{_flag(kind.option)}: {tracker.location}')
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        exit_code = 0 if error is None else getattr(error, 'exit_code', 1)
        self._call_all(lambda tracker: tracker.close(exit_code))

    def epoch(self, row: Row) -> None:
        """Logs an epoch's row of the history."""
        self._call_all(lambda tracker: tracker.epoch(row))

    def result(self, result: Mapping[str, Any]) -> None:
        """Logs the content of `result.json`."""
        values = {f'result/{name}': result[name] for name in RESULT if result[name] is not None}
        self._call_all(lambda tracker: tracker.result(values, result['epochs']))

    def _call_all(self, act: Callable[[Tracker], None]) -> None:
        for option, tracker in list(self._open.items()):
            self._try(option, functools.partial(act, tracker))

    def _try(self, option: str, act: Callable[[], T]) -> T | None:
        try:
            with redirect_stdout(io.StringIO()):  # they greet
                return _within(PATIENCE, act)
        except (Exception, SystemExit) as error:  # libraries of others, networks and disks
            self._open.pop(option, None)
            reason = first_line(error)
            self._console.line(f'{_flag(option)}: failed, the run does without it ({reason})')
            return None


def _kinds(recipe: Recipe) -> list[type[Tracker]]:
    return [kind for kind in TRACKERS if getattr(recipe, kind.option)]


def _flag(option: str) -> str:
    return '--' + option.replace('_', '-')


def _within(seconds: float, act: Callable[[], T]) -> T:
    """Calls `act` in a thread and passes on its result or its error; if it takes too long, it is left to itself.

    Raises:
        TimeoutError: It takes longer.
    """
    outcome: futures.Future[T] = futures.Future()

    def work() -> None:
        try:
            outcome.set_result(act())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not futures.wait([outcome], seconds).done:
        raise TimeoutError(f'no answer in {seconds:.0f} s')
    return outcome.result()


def _imported(option: str, module: str, name: str) -> Any:
    """Imports a module and checks that it has a name: a folder named like a missing package is an empty module."""
    try:
        imported = importlib.import_module(module)
        getattr(imported, name)
    except (ImportError, AttributeError):
        package = option.removeprefix('log_')
        raise UserError(f'{_flag(option)} needs {package}: pip install "imagenette-zoo[{package}]"') from None
    return imported


def _former_id(folder: Path, tracker: str) -> str | None:
    """The id that a tracker has given the run, as its folder keeps it."""
    kept = folder / tracker / 'run-id'
    return kept.read_text(encoding='utf-8').strip() if kept.is_file() else None


def _keep_id(folder: Path, tracker: str, run_id: str) -> None:
    (folder / tracker).mkdir(exist_ok=True)
    write_atomic(folder / tracker / 'run-id', run_id.encode())


def _metrics(row: Row) -> dict[str, float]:
    """The numbers of an epoch by their names."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != 'epoch'}
    return {**numbers, **{f'eval_top1/{name}': top1 for name, top1 in row.get('per_class', {}).items()}}


def _empty(former: set[Path], present: Path) -> None:
    """Removes the content of an interrupted run's event files, so that TensorBoard goes on to the present one.

    It reads them in the order of their names, which begin with a time. It stays at a file that vanishes, so those
    before the present one are only emptied. Where clocks disagree some come after it: they are removed, since
    TensorBoard would stay there.
    """
    for path in former:
        if path.name < present.name:
            os.truncate(path, 0)
        else:
            path.unlink()


class _TensorBoard:
    """Event files in `tensorboard/`."""

    option: ClassVar[str] = 'log_tensorboard'

    @staticmethod
    def check() -> None:
        _imported(_TensorBoard.option, 'torch.utils.tensorboard', 'SummaryWriter')

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row]) -> None:
        tensorboard = importlib.import_module('torch.utils.tensorboard')
        self.location = f'tensorboard --logdir {folder.parent}'
        path = folder / 'tensorboard'
        former = set(path.glob('events.out.tfevents.*'))
        self._writer = tensorboard.SummaryWriter(str(path), purge_step=0)  # for a TensorBoard that has read the former
        _empty(former, *set(path.glob('events.out.tfevents.*')) - former)
        self._add_recipe(recipe)
        left = sum(row['seconds'] for row in history)
        for row in history:
            left -= row['seconds']
            self._add(row, time.time() - left)  # as if it had not been interrupted
        self._writer.flush()

    def _add_recipe(self, recipe: Recipe) -> None:
        options = {name: value for name, value in recipe.as_dict().items() if value is not None}
        text = yaml.safe_dump(options, sort_keys=False)
        self._writer.add_text('recipe', ''.join(f'    {line}\n' for line in text.splitlines()))
        plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in options.items()}
        hparams = importlib.import_module('torch.utils.tensorboard.summary').hparams
        # not add_hparams: it makes a second file, and TensorBoard does not return to the first
        experiment, begin, self._end = hparams(plain, dict.fromkeys(COMPARED, 0.0))
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(begin)

    def _add(self, row: Row, moment: float | None = None) -> None:
        for name, value in _metrics(row).items():
            self._writer.add_scalar(name, value, row['epoch'], moment)

    def epoch(self, row: Row) -> None:
        self._add(row)
        self._writer.flush()

    def result(self, values: Mapping[str, float], epochs: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epochs - 1)
        self._writer.file_writer.add_summary(self._end)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, its files in `wandb/`, where all that was logged stays if it fails."""

    option: ClassVar[str] = 'log_wandb'

    @staticmethod
    def check() -> None:
        wandb = _imported(_Wandb.option, 'wandb', 'Settings')
        try:
            wandb.setup(settings=wandb.Settings(silent=True))  # so it does not ask for a key either
            wandb.login(verify=False)
        except (wandb.Error, ValueError) as error:  # no key; a variable WANDB_… that is wrong
            reason = ' '.join(str(error).split())[:160]
            raise UserError(f'--log-wandb: {reason} (WANDB_MODE=offline needs no key)') from None

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row]) -> None:
        wandb = importlib.import_module('wandb')
        former = _former_id(folder, 'wandb')
        self._run = wandb.init(
            project=recipe.wandb_project,
            name=folder.name,
            dir=str(folder),
            tags=recipe.wandb_tags,
            config=recipe.as_dict(),
            allow_val_change=True,
            id=recipe.wandb_resume_id or former,
            resume='must' if recipe.wandb_resume_id else 'allow',
            reinit='create_new',
            settings=wandb.Settings(
                silent=True,
                console='off',
                init_timeout=WANDB_PATIENCE,
                finish_timeout=WANDB_PATIENCE,
                finish_timeout_raises=True,
            ),
        )
        if self._run.id != former:
            _keep_id(folder, 'wandb', self._run.id)
        offline = f'offline, wandb sync {Path(self._run.dir).parent} sends it'
        self.location = offline if self._run.offline else self._run.url or 'disabled'
        for row in history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        if row['epoch'] >= self._run.starting_step:  # else its server has it
            self._run.log({'epoch': row['epoch'], **_metrics(row)}, step=row['epoch'], commit=True)

    def result(self, values: Mapping[str, float], epochs: int) -> None:
        self._run.summary.update(values)

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code)


class _Trackio:
    """A run of trackio, in trackio's own folder. One that is opened again is written anew."""

    option: ClassVar[str] = 'log_trackio'

    @staticmethod
    def check() -> None:
        _imported(_Trackio.option, 'trackio', 'Run')
        for variable in ('TRACKIO_SPACE_ID', 'TRACKIO_SERVER_URL'):  # there a former run can't be removed
            if os.environ.get(variable):
                raise UserError(f'--log-trackio logs on this machine: unset {variable}; "trackio sync" sends a project')

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row]) -> None:
        trackio = importlib.import_module('trackio')
        project = recipe.wandb_project or PROJECT
        self.location = f'trackio show --project {shlex.quote(project)}'
        if former := _former_id(folder, 'trackio'):
            importlib.import_module('trackio.fragments').import_inbox_dir()  # what network file systems keep aside
            importlib.import_module('trackio.api').Run(project, folder.name, former).delete()
        # where there is a token it asks the Hub who the user is, and waits for the answer without end
        with mock.patch.object(importlib.import_module('huggingface_hub.constants'), 'HF_HUB_OFFLINE', True):
            self._run = trackio.init(
                project=project,
                name=folder.name,
                group=folder.parent.name,
                config=recipe.as_dict(),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        _keep_id(folder, 'trackio', self._run.id)
        for row in history:
            self.epoch(row)

    def epoch(self, row: Row) -> None:
        self._run.log({'epoch': row['epoch'], **_metrics(row)}, step=row['epoch'])

    def result(self, values: Mapping[str, float], epochs: int) -> None:
        self._run.log(dict(values), step=epochs - 1)

    def close(self, exit_code: int) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, where its own variables say. One that is opened again replaces the former."""

    option: ClassVar[str] = 'log_mlflow'

    @staticmethod
    def check() -> None:
        _imported(_MLflow.option, 'mlflow', 'MlflowClient')

    def __init__(self, recipe: Recipe, folder: Path, history: Sequence[Row]) -> None:
        mlflow = importlib.import_module('mlflow')
        logging.getLogger('mlflow').setLevel(logging.WARNING)
        self._entities = importlib.import_module('mlflow.entities')
        self._client = mlflow.MlflowClient()
        uri = mlflow.get_tracking_uri()
        self.location = uri if uri.startswith('http') else f'mlflow ui --backend-store-uri {shlex.quote(uri)}'
        experiment = mlflow.set_experiment(recipe.wandb_project or PROJECT).experiment_id
        if former := _former_id(folder, 'mlflow'):
            with suppress(mlflow.MlflowException):  # it is not there
                self._client.delete_run(former)
        run = self._client.create_run(experiment, run_name=folder.name, tags={'group': folder.parent.name})
        self._id = run.info.run_id
        _keep_id(folder, 'mlflow', self._id)
        params = [self._entities.Param(name, str(value)) for name, value in recipe.as_dict().items()]
        for start in range(0, len(params), 100):  # as many as a server takes at once
            self._client.log_batch(self._id, params=params[start : start + 100])
        for row in history:
            self.epoch(row)

    def _add(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        named = {re.sub(r'[^\w: -]', '.', name): value for name, value in values.items()}  # a/b would be in a folder a
        self._client.log_batch(self._id, [self._entities.Metric(name, named[name], now, step) for name in named])

    def epoch(self, row: Row) -> None:
        self._add(_metrics(row), row['epoch'])

    def result(self, values: Mapping[str, float], epochs: int) -> None:
        self._add(values, epochs - 1)

    def close(self, exit_code: int) -> None:
        self._client.set_terminated(self._id, 'FAILED' if exit_code else 'FINISHED')


TRACKERS: tuple[type[Tracker], ...] = (_TensorBoard, _Wandb, _Trackio, _MLflow)
