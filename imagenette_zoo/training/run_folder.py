"""A run's folder: model folders in timm's Hub layout, the state to resume from, the metrics. Every file is atomic.

`runs/NAME/` holds `args.yaml`, `summary.csv` (timm's columns), `metrics.jsonl`, `last/`, `best/` and
`checkpoints/epoch-N/` (each loads with `timm.create_model('local-dir:…')`), `state.pt`, and `result.json`, which is
written last: a folder that has one holds a finished run. In files epochs count from 0, as timm's do, in print from 1.
`.saved` is there once there was a state, `.lock` is held by the process that writes there. `code/` has copies of the
user's own modules and their hashes. `tensorboard/` and `wandb/` are their own packages' to write, where they track the
run; `trackio/` and `mlflow/` name the run there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..config.hparams import read_yaml
from ..config.recipe import Recipe
from ..errors import UserError, first_line, os_reason
from ..models.model_folder import check_zip, link_model_folder, save_model_folder
from ..models.own import NOTEBOOK, code_of
from ..utils.files import ProcessLock, to_json, unused, write_atomic, write_errors, write_json
from ..utils.memory import is_out_of_memory
from ..utils.modules import imported_modules
from ..utils.reading import open_regular, read_errors, read_json

__all__ = ['ANALYSIS_FILES', 'resumed_run', 'RunFolder']

ANALYSIS_FILES = ('analysis.json', 'predictions.safetensors')  # what `imagenette-zoo analyse` adds to a run
OWN_FILES = ('result.json', 'state.pt', 'args.yaml', 'summary.csv', 'metrics.jsonl', *ANALYSIS_FILES)  # first its mark
KEPT_FOLDERS = ('trackio', 'mlflow')  # by which a tracker replaces the former run
OWN_FOLDERS = ('last', 'best', 'checkpoints', 'tensorboard', 'wandb', 'code', *KEPT_FOLDERS)

SAVED = '.saved'  # it is there once a state was written, so that a removed state is noticed
NO_COMMENT = bytes(2)  # how an archive ends that has none: with its length
CHECKSUM = b'imagenette-zoo SHA-256 '
COMMENT = len(CHECKSUM) + 64  # bytes


def resumed_run(resume: str, output: str, experiment: str | None) -> Path:
    """The folder of the run that `--resume` means: the one it names, or with `auto` that of the experiment, which
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


class RunFolder:
    """Where a run's files are kept.

    Args:
        path: The folder.
        own_name: Its name is made up: a new run takes another where this one is taken by then.
    """

    def __init__(self, path: Path, own_name: bool = False) -> None:
        self.path = path
        self.own_name = own_name
        self._lock: ProcessLock | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # another process gets the path, not the lock
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

    def recipe(self) -> Recipe:
        """The recipe that the run was started with.

        Raises:
            UserError: It is damaged.
        """
        return Recipe(**read_yaml(self['args.yaml'], Recipe.names()))

    def lock(self) -> None:
        """Makes this process the only one to write here, until it ends or `unlock`.

        Raises:
            UserError: Another process writes here.
        """
        if self._lock is None:
            with write_errors(self.path):
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
        code = _read_code(recipe.model)  # which may be the copies in the folder
        with write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while self.own_name:  # runs that start in the same second
                try:
                    self.path.mkdir()
                    self.own_name = False
                except FileExistsError:
                    self.path = unused(self.path)
            self.path.mkdir(exist_ok=True)
        if self._lock is None:
            self.lock()
            if not recipe.overwrite:
                self._check_empty()  # another run may have come and gone since
        with write_errors(self.path):
            for name in (*OWN_FILES, SAVED):
                self[name].unlink(missing_ok=True)
            for name in OWN_FOLDERS:
                if name not in KEPT_FOLDERS and self[name].is_dir():
                    shutil.rmtree(self[name])
        self._keep_code(recipe.model, code)
        write_atomic(self['args.yaml'], text)

    def lengthen(self, recipe: Recipe) -> None:
        """Makes a finished run one that goes on for the epochs of this recipe.

        Raises:
            UserError: It can't be written.
        """
        text = _as_yaml(recipe)
        with write_errors(self.path):
            for name in ('result.json', *ANALYSIS_FILES):  # first its mark: without it the same run is finished again
                self[name].unlink(missing_ok=True)
        write_atomic(self['args.yaml'], text)

    def _keep_code(self, model: str, files: Mapping[str, bytes]) -> None:
        """Writes `code/`: a copy of each file of the user's own, and `modules.json` with the hash of each module."""
        hashes = code_of(model)
        if not hashes:
            return
        with write_errors(self.path):
            self['code'].mkdir(exist_ok=True)
        for name, data in files.items():
            write_atomic(self['code'] / name, data)
        write_json(self['code'] / 'modules.json', hashes)

    def code_flags(self) -> list[str]:
        """The flags that import the run's code: the copies of its files, and modules by name."""
        names = [name for name in self.code() if not name.startswith(NOTEBOOK)]
        own = [str(self['code'] / name) if name.endswith('.py') else name for name in names]
        return ['--device-modules', *own] if own else []

    def code(self) -> dict[str, str]:
        """The SHA-256 of each module of the user's own that the run was started with, by file or name.

        Raises:
            UserError: The record of it is damaged.
        """
        path = self['code'] / 'modules.json'
        if not os.path.isfile(path):
            return {}
        with read_errors(path, 'the record of the code of a run'):
            return {str(name): str(sha256) for name, sha256 in read_json(path).items()}

    def check_code(self, model: str) -> None:
        """Looks whether the user's own code is that which the run of a model was started with.

        Raises:
            UserError: It has changed, or was not imported.
        """
        now = code_of(model)
        for name, then in self.code().items():
            copy = self['code'] / name
            remedy = f'give --device-modules {copy if name.endswith(".py") else name}'
            if name.startswith(NOTEBOOK):
                remedy = f'define {name.removeprefix(NOTEBOOK)} as it was and give it as model='
            if name not in now:
                raise UserError(f'{self.path}: was started with code of {name} (SHA-256 {then[:12]}): {remedy}')
            if now[name] != then:
                raise UserError(
                    f'{self.path}: {name} has changed since it was started (SHA-256 {then[:12]} then, {now[name][:12]} '
                    f'now): {remedy}, or start another run'
                )

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Writes `state.pt`, which `read_state` and `parse_state` read: torch's archive, its checksum as comment."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        comment = _checksum(buffer.getbuffer())
        buffer.seek(-len(NO_COMMENT), os.SEEK_END)
        buffer.write(len(comment).to_bytes(len(NO_COMMENT), 'little') + comment)
        write_atomic(self['state.pt'], buffer.getvalue())
        if not os.path.exists(self[SAVED]):
            write_atomic(self[SAVED], b'')

    def read_state(self) -> bytes | None:
        """The content of `state.pt`; None where nothing was saved yet.

        Raises:
            UserError: It can't be read, is no archive, or was removed.
        """
        try:
            with open_regular(self['state.pt']) as file:
                if not zipfile.is_zipfile(file):  # which looks at its end: it may be long
                    raise self._damaged('it is no archive, or torn')
                file.seek(0)
                return file.read()
        except FileNotFoundError:
            if os.path.exists(self[SAVED]) and not self.finished:
                raise UserError(
                    f"{self['state.pt']}: is gone, so this run can't go on: put it back, or start again: {self.again}"
                ) from None
            return None
        except OSError as error:
            raise UserError(f"{self['state.pt']}: can't read: {error.strerror}") from None

    def parse_state(self, data: bytes) -> dict[str, Any]:
        """The state in the content that `read_state` returned.

        Raises:
            UserError: It is torn, or a bit of it is another.
        """
        archive, comment = memoryview(data)[: -COMMENT - len(NO_COMMENT)], data[-COMMENT:]
        checked = comment.startswith(CHECKSUM)
        try:
            if checked and comment != _checksum(archive, NO_COMMENT):
                raise ValueError('its checksum is another')
            check_zip(io.BytesIO(data))
            state = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
            if not isinstance(state, dict):
                raise TypeError('not a state')
            if 'environment' in state and not checked:
                raise ValueError('its checksum is missing')
            return state
        except Exception as error:  # torch reports a damaged file in many ways
            if checked and is_out_of_memory(error):
                raise
            raise self._damaged(first_line(error)[:80]) from None

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self['state.pt']}: damaged, it can't be resumed from ({reason}): put a copy back, or start again: "
            f'{self.again}'
        )

    @property
    def again(self) -> str:
        """The command that starts the run again."""
        path = Path(os.path.abspath(self.path))
        place = ['--output', str(path.parent), '--experiment', path.name, *RunFolder(path).code_flags()]
        return shlex.join(['imagenette-zoo', 'train', '-c', str(path / 'args.yaml'), *place, '--overwrite'])

    def save_metrics(self, history: list[dict[str, Any]]) -> None:
        """Writes `summary.csv` and `metrics.jsonl`: a row an epoch."""
        columns = ('epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr')
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction='ignore', restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(history)
        write_atomic(self['summary.csv'], text.getvalue().encode())
        write_atomic(self['metrics.jsonl'], ''.join(to_json(row) + '\n' for row in history).encode())

    def save_model(
        self,
        config: Mapping[str, Any],
        state_dict: Mapping[str, torch.Tensor],
        epoch: int,
        ranking: list[int],
    ) -> None:
        """Writes `last/`, and its second names among the best epochs.

        Args:
            config: The model's `config.json`.
            state_dict: Its weights.
            epoch: The epoch that they are from.
            ranking: The epochs to keep, best first.
        """
        with write_errors(self.path):  # not made anew where it has vanished
            self['checkpoints'].mkdir(exist_ok=True)
        save_model_folder(self['last'], config, state_dict)
        if epoch in ranking:
            link_model_folder(self['last'], self['checkpoints'] / f'epoch-{epoch}')
        if ranking and (best := self['checkpoints'] / f'epoch-{ranking[0]}').is_dir():
            # also an earlier one: an interrupted run may come to other numbers the second time
            link_model_folder(best, self['best'])
        keep = {f'epoch-{kept}' for kept in ranking}
        with write_errors(self['checkpoints']):
            for folder in self['checkpoints'].glob('epoch-*'):
                if folder.name not in keep:
                    shutil.rmtree(folder)

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Writes `result.json`, which ends the run."""
        write_json(self['result.json'], result)


def _checksum(*parts: bytes | memoryview) -> bytes:
    """The comment of a torch archive that has these parts and no comment."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return CHECKSUM + digest.hexdigest().encode()


def _read_code(model: str) -> dict[str, bytes]:
    """The files of the user's own code, by name; none where the model and the recipe need none."""
    files = [module.file for module in imported_modules().values() if module.file is not None] if code_of(model) else []
    try:
        return {file.name: file.read_bytes() for file in files}
    except OSError as error:
        raise UserError(f"{error.filename}: can't read: {os_reason(error)}") from None


def _as_yaml(recipe: Recipe) -> bytes:
    """The content of `args.yaml`, all options: a recipe to train from again.

    Raises:
        UserError: A value is no plain one.
    """
    options = recipe.replace(overwrite=False, resume=None, wandb_resume_id=None).as_dict()
    del options['device_modules']  # what is imported is what the user names, never what a run does
    for name, value in options.items():
        try:
            yaml.safe_dump(value)
            json.dumps(value)  # as in config.json, which has no sets and bytes
        except (yaml.YAMLError, TypeError, ValueError):
            shown = ' '.join(str(value).split())[:80]
            raise UserError(f"{name}: {shown} can't be saved in args.yaml: give numbers, text or lists") from None
    return yaml.safe_dump(options, sort_keys=False).encode()
