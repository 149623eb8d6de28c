"""A run's folder: model folders in timm's Hub layout, the state to resume from, the metrics. Every file is atomic.

``runs/NAME/`` holds ``args.yaml``, ``summary.csv`` (timm's columns), ``metrics.jsonl``, ``last/``, ``best/`` and
``checkpoints/epoch-N/`` (each loads with ``timm.create_model('local-dir:…')``), ``state.pt``, and ``result.json``,
which is written last: a folder that has one holds a finished run. ``.lock`` is held by the process that writes there.
``tensorboard/`` and ``wandb/`` are their own packages' to write, where they track the run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import filelock
import safetensors
import safetensors.torch
import timm
import torch
import yaml
from timm.models import clean_state_dict
from torch import nn

from ..errors import UserError, first_line
from .options import nearest
from .recipe import Recipe

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    'ANALYSIS_FILES',
    'ProcessLock',
    'RunFolder',
    'file_stem',
    'link_model_folder',
    'load_weights',
    'model_folder',
    'read_weights',
    'resumed_run',
    'save_model_folder',
    'unused',
    'write_atomic',
]

ANALYSIS_FILES = ('analysis.json', 'predictions.safetensors')  # what `imagenette-zoo analyse` adds to a run
OWN_FILES = ('result.json', 'state.pt', 'args.yaml', 'summary.csv', 'metrics.jsonl', *ANALYSIS_FILES)  # first its mark
OWN_FOLDERS = ('last', 'best', 'checkpoints', 'tensorboard', 'wandb')


class ProcessLock:
    """A lock on a file that belongs to this process alone: not to those it forks, and to nobody once it is killed.

    Where there is ``fcntl`` it is a POSIX record lock. One of ``flock`` would outlive a killed run by the seconds that
    its data workers need to notice.

    Args:
        path: The file; it is made, and stays.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file can't be written.
    """

    held: ClassVar[set[Path]] = set()  # by this process, which the system would let have it twice

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if self.path in self.held:
            raise _busy(path)
        if fcntl is None:
            self._file: Any = filelock.FileLock(path)
            try:
                self._file.acquire(timeout=0)
            except filelock.Timeout:
                raise _busy(path) from None
        else:
            self._file = open(path, 'ab')  # noqa: SIM115  (until the release)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self._file.close()
                raise _busy(path) from None
        self.held.add(self.path)

    def release(self) -> None:
        """Lets others have it."""
        self.held.discard(self.path)
        if fcntl is None:
            self._file.release()
        else:
            self._file.close()


def _busy(path: Path) -> UserError:
    return UserError(f'{path.parent}: another run is being written here: wait for it, or choose another --experiment')


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turns the failures of a disk into a line that says which file and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't write: {error.strerror or error}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment it is the old one or the new one, whole, also after a power cut.

    Raises:
        UserError: The disk is full, or the folder is gone or can't be written.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    with _one_line(path):
        try:
            with open(temporary, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == 'posix':  # elsewhere a folder can't be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_model_folder(folder: Path, config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> None:
    """Writes ``config.json`` and ``model.safetensors``, timm's Hub layout.

    Raises:
        UserError: The disk is full, or the folder can't be written.
    """
    with _one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    layout = torch.contiguous_format
    tensors = {  # copies: safetensors refuses two names for one memory, which some models have
        name: tensor.detach().to('cpu', copy=True, memory_format=layout) for name, tensor in state_dict.items()
    }
    write_atomic(folder / 'config.json', (json.dumps(config, indent=2) + '\n').encode())
    write_atomic(folder / 'model.safetensors', safetensors.torch.save(tensors, metadata={'format': 'pt'}))


def link_model_folder(source: Path, target: Path) -> None:
    """The same model folder under a second name: hard links where the file system has them, else copies."""
    with _one_line(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ('config.json', 'model.safetensors'):
            temporary = target / f'.{name}.tmp'
            temporary.unlink(missing_ok=True)
            try:
                os.link(source / name, temporary)
            except OSError:
                shutil.copyfile(source / name, temporary)
            os.replace(temporary, target / name)
            temporary.unlink(missing_ok=True)  # it stays where both were links to the same file already
        _sync_folder(target)


def read_weights(path: Path, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """The state dict in a file: safetensors, or a torch checkpoint (also timm's) loaded without executing anything.

    Raises:
        UserError: There is no such file, it is truncated, it is no checkpoint, or it holds more than weights.
    """
    if not os.path.isfile(path):  # Path's own may raise
        raise UserError(f'{path}: no such checkpoint file')
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        _check_zip(path)
        # What timm's trainer saves has its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f'{path}: not a file of plain weights (a pickle that runs code, or not a checkpoint): '
            f'refused; save it as safetensors'
        ) from None
    except Exception as error:  # both libraries report a damaged file in many ways
        reason = first_line(error)
        raise UserError(f'{path}: truncated or not a checkpoint ({reason})') from None
    state = checkpoint
    if isinstance(checkpoint, dict):
        keys = ('state_dict_ema', 'model_ema', 'state_dict', 'model') if use_ema else ('state_dict', 'model')
        state = next((checkpoint[key] for key in keys if isinstance(checkpoint.get(key), dict)), checkpoint)
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UserError(f'{path}: holds no weights')
    return clean_state_dict(state)


def _check_zip(file: Path | io.BytesIO) -> None:
    """Refuses a file whose parts claim to be larger than it is: torch never compresses them, and would believe it."""
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > size:
                raise ValueError('it claims to hold more than it does')


def load_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Loads a state dict into a model, all of it.

    Raises:
        UserError: It belongs to another model: the first key or shape that disagrees is named.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    wrong = [name for name in own if name in state_dict and own[name].shape != state_dict[name].shape]
    if not missing and not unexpected and not wrong:
        model.load_state_dict(dict(state_dict))
        return
    if wrong and not missing and not unexpected:
        name = wrong[0]
        detail = f'{name} is {tuple(state_dict[name].shape)} there and {tuple(own[name].shape)} here'
    else:
        detail = f'{len(missing)} weights are missing and {len(unexpected)} are not its own'
        if unexpected:
            detail += f', as {unexpected[0]}{nearest(unexpected[0], missing)}'
    raise UserError(f'{source}: the checkpoint of another model: {detail}')


def resumed_run(resume: str, output: str, experiment: str | None) -> Path:
    """The folder of the run that ``--resume`` means: the one it names, or with ``auto`` that of the experiment, which
    need not exist yet.

    Raises:
        UserError: There is no run.
    """
    if resume == 'auto' and experiment is None:
        raise UserError('--resume: say which run: --resume runs/NAME, or --experiment NAME')
    path = Path(output, str(experiment)) if resume == 'auto' else Path(resume)
    path = path.parent if path.name == 'state.pt' else path
    if resume != 'auto' and not os.path.isfile(path / 'args.yaml'):
        raise UserError(f'{path}: no run to resume here (no args.yaml)')
    return path


def model_folder(name: str | Path) -> Path | None:
    """The model folder that a name means: a run's ``best/``, the folder itself, or None if it is no folder.

    Raises:
        UserError: It is a folder, but without a model, and no model of timm's is named so.
    """
    path = Path(str(name).removeprefix('local-dir:'))
    for folder in (path / 'best', path):
        if os.path.isfile(folder / 'config.json'):  # Path's own may raise
            return folder
    if str(name).startswith('local-dir:') or (os.path.isdir(path) and not timm.is_model(str(name))):
        raise UserError(f'{path}: no model folder (no config.json in it or in its best/)')
    return None


def file_stem(model: str) -> str:
    """A model's name, or the last part of where it is, as a part of a file's name."""
    return re.sub(r'[^A-Za-z0-9_]', '_', Path(model.rpartition(':')[2]).name) or 'model'


def unused(path: Path) -> Path:
    """The path, with a number behind it where something is there."""
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f'{path.name}-{number}')
    return found


class RunFolder:
    """Where a run's files are kept.

    Args:
        path: The folder.
        own_name: Nobody chose it: a new run takes another where it is taken by then.
    """

    def __init__(self, path: Path, own_name: bool = False) -> None:
        self.path = path
        self.own_name = own_name
        self._lock: ProcessLock | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # what another process gets: the place, not the lock
        return RunFolder, (self.path,)

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    @property
    def finished(self) -> bool:
        """Whether it holds the result of a run."""
        return os.path.isfile(self['result.json'])

    @property
    def started(self) -> bool:
        """Whether it holds a run, be it one that was killed before its first checkpoint."""
        return os.path.isfile(self['args.yaml'])

    def check_unused(self) -> None:
        """Looks whether a new run may be written here, without touching anything.

        Raises:
            UserError: It holds a run already, or another run is being written.
        """
        if os.path.exists(self['.lock']):
            self.lock()
        try:
            self._check_empty()
        except UserError:
            self.unlock()
            raise

    def _check_empty(self) -> None:
        if self.finished:
            raise UserError(
                f'{self.path}: holds a finished run: choose another --experiment, or --overwrite to replace it'
            )
        own = [name for name in (*OWN_FILES[1:], *OWN_FOLDERS) if os.path.exists(self[name])]
        if own == ['args.yaml'] or not own:
            return
        if self.started:
            raise UserError(
                f'{self.path}: holds an interrupted run: --resume {self.path} continues it, --overwrite replaces it'
            )
        raise UserError(
            f'{self.path}: holds {own[0]} of something else: choose another --experiment, or --overwrite to remove it'
        )

    def lock(self) -> None:
        """Makes this process the only one to write here, until it ends or :meth:`unlock`.

        Raises:
            UserError: Another process writes here.
        """
        if self._lock is None:
            with _one_line(self.path):
                self._lock = ProcessLock(self['.lock'])

    def unlock(self) -> None:
        """Lets others write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(self, recipe: Recipe) -> None:
        """Makes the folder for a new run; what is there of an earlier one is removed.

        Raises:
            UserError: Another process writes here, or it can't be written.
        """
        text = _as_yaml(recipe)  # first: an option that can't be written is not to cost an earlier run
        with _one_line(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self.own_name:  # runs that start in the same second
                try:
                    self.path.mkdir()
                    break
                except FileExistsError:
                    self.path = unused(self.path)
            self.path.mkdir(exist_ok=True)
        if self._lock is None:
            self.lock()
            if not recipe.overwrite:
                self._check_empty()  # another run may have come and gone since
        with _one_line(self.path):
            for name in OWN_FILES:
                self[name].unlink(missing_ok=True)
            for name in OWN_FOLDERS:
                if self[name].is_dir():
                    shutil.rmtree(self[name])
        write_atomic(self['args.yaml'], text)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Writes ``state.pt``, what :meth:`parse_state` gives back."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomic(self['state.pt'], buffer.getvalue())

    def read_state(self) -> bytes | None:
        """The content of ``state.pt``; None where nothing was saved yet.

        Raises:
            UserError: It can't be read.
        """
        try:
            return self['state.pt'].read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self['state.pt']}: can't read: {error.strerror}") from None

    def parse_state(self, data: bytes) -> dict[str, Any]:
        """The state in what :meth:`read_state` gave.

        Raises:
            UserError: It is torn.
        """
        try:
            _check_zip(io.BytesIO(data))
            state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
            if not isinstance(state, dict):
                raise TypeError('not a state')
            return state
        except Exception as error:  # torch reports a damaged file in many ways
            reason = first_line(error)[:80]
            raise UserError(
                f"{self['state.pt']}: damaged, it can't be resumed from ({reason}); --overwrite starts again"
            ) from None

    def save_metrics(self, history: list[dict[str, Any]]) -> None:
        """Writes ``summary.csv`` and ``metrics.jsonl``: a row an epoch."""
        columns = ('epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr')
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction='ignore', restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(history)
        write_atomic(self['summary.csv'], text.getvalue().encode())
        write_atomic(self['metrics.jsonl'], ''.join(json.dumps(row) + '\n' for row in history).encode())

    def save_model(
        self,
        config: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        epoch: int,
        ranking: list[int],
    ) -> None:
        """Writes ``last/``, and its second names among the best epochs.

        Args:
            config: The model's ``config.json``.
            state_dict: Its weights.
            epoch: The epoch that they are from.
            ranking: The epochs to keep, best first.
        """
        with _one_line(self.path):  # not made anew where it has vanished
            self['checkpoints'].mkdir(exist_ok=True)
        save_model_folder(self['last'], config, state_dict)
        if epoch in ranking:
            link_model_folder(self['last'], self['checkpoints'] / f'epoch-{epoch}')
        if ranking and (best := self['checkpoints'] / f'epoch-{ranking[0]}').is_dir():
            # also an earlier one: an interrupted run may come to other numbers the second time
            link_model_folder(best, self['best'])
        keep = {f'epoch-{kept}' for kept in ranking}
        with _one_line(self['checkpoints']):
            for folder in self['checkpoints'].glob('epoch-*'):
                if folder.name not in keep:
                    shutil.rmtree(folder)

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Writes ``result.json``, which ends the run."""
        write_atomic(self['result.json'], (json.dumps(result, indent=2) + '\n').encode())


def _as_yaml(recipe: Recipe) -> bytes:
    """The content of ``args.yaml``, all options: a recipe to train from again.

    Raises:
        UserError: A value is no plain one.
    """
    options = recipe.replace(overwrite=False, resume=None, wandb_resume_id=None).as_dict()
    for name, value in options.items():
        try:
            yaml.safe_dump(value)
        except yaml.YAMLError:
            shown = ' '.join(str(value).split())[:80]
            raise UserError(f"{name}: can't write down {shown}: numbers, words, lists and mappings can be") from None
    return yaml.safe_dump(options, sort_keys=False).encode()
