"""`imagenette-zoo runs`: the runs in a folder, by what their files say."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config.hparams import read_yaml
from ..config.recipe import Recipe
from ..data.locate import root_name
from ..errors import UserError
from ..utils.console import table
from ..utils.files import ProcessLock, to_json
from ..utils.reading import parse_json, read_json, read_text
from .command import Command

__all__ = ['RUNS', 'RunRow', 'list_runs']

DEEPEST = 3  # folders, as in runs/STUDY/RUN
STATES = ('finished', 'running', 'stopped', 'damaged')


@dataclass(frozen=True)
class RunRow:
    """A run as its folder has it; None and 0 stand for what is not known.

    Args:
        run: Its folder.
        state: One of `STATES`.
        model: As its recipe names it.
        data: The name of its images.
        img_size: Their side; None: that of the model.
        epochs: Those of its recipe, and
        epochs_done: so many of them are done.
        seed: Its seed.
        top1: The latest, in %.
        changed: When it was last written, in seconds of `time.time`.
    """

    run: str
    state: str
    model: str = ''
    data: str = ''
    img_size: int | None = None
    epochs: int = 0
    epochs_done: int = 0
    seed: int | None = None
    top1: float | None = None
    changed: float = 0.0


def list_runs(folder: Path) -> list[RunRow]:
    """The runs in a folder and in those that it has, or itself if it is one.

    Raises:
        UserError: There is no such folder.
    """
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: there is no such folder; give another one: imagenette-zoo runs DIR')
    return [_row(each) for each in _run_folders(folder, DEEPEST)]


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if os.path.isfile(folder / 'args.yaml'):
        yield folder
    elif depth:
        for each in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if each.is_dir() and not each.name.startswith('.'):
                yield from _run_folders(Path(each), depth - 1)


def _row(folder: Path) -> RunRow:
    files = [folder / name for name in ('result.json', 'metrics.jsonl', 'args.yaml')]
    changed = max(os.path.getmtime(file) for file in files if os.path.isfile(file))
    try:
        if os.path.isfile(files[0]):
            result = read_json(files[0])
            recipe, data, top1 = result['recipe'], result['dataset'].get('name'), result['top1']
            size, done, state = result['img_size'], result['epochs'], 'finished'
        else:
            recipe = read_yaml(files[2], Recipe.names())
            rows = [parse_json(line) for line in read_text(files[1]).splitlines()] if files[1].is_file() else []
            splits = recipe.get('train_split', 'train'), recipe.get('val_split', 'validation')
            data = root_name(recipe['dataset'], recipe['data_dir'], *splits)
            size, done = recipe['img_size'], len(rows)
            top1 = next((row['eval_top1'] for row in reversed(rows) if 'eval_top1' in row), None)
            state = 'running' if ProcessLock.is_held(folder / '.lock') else 'stopped'
        data = data or Path(recipe['data_dir'] or '').name or recipe['dataset'] or 'imagenette'
        top1 = None if top1 is None else float(top1)
        return RunRow(
            str(folder), state, str(recipe['model']), str(data), size and int(size), int(recipe['epochs']), int(done),
            int(recipe['seed']), top1, changed,
        )  # fmt: skip
    except (OSError, UserError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return RunRow(str(folder), 'damaged', changed=changed)


def _date(seconds: float) -> str:
    """`'2026-01-31T12:00:00+01:00'`, in local time."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec='seconds')


def _age(seconds: float) -> str:
    """`'5 s'`, `'12 min'`, `'3 h'`, `'9 d'`."""
    for unit, length, most in (('s', 1, 60), ('min', 60, 60), ('h', 3600, 48)):
        if seconds < length * most:
            return f'{max(0, seconds) // length:.0f} {unit}'
    return f'{seconds // 86400:.0f} d'


ORDERS: dict[str, Callable[[RunRow], Any]] = {  # the first of them is the default
    'age': lambda row: -row.changed,
    'top1': lambda row: -1.0 if row.top1 is None else -row.top1,
    'run': lambda row: row.run,
    'model': lambda row: (row.model, row.run),
    'state': lambda row: (STATES.index(row.state), row.run),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'folder', nargs='?', default='runs', metavar='DIR', help='searched with its subfolders (default: runs)'
    )
    parser.add_argument(
        '--match',
        default='*',
        metavar='PATTERN',
        help="only runs whose name or model matches this, as in 'resnet*'",
    )
    parser.add_argument('--state', choices=STATES, help='only these')
    parser.add_argument(
        '--sort', choices=tuple(ORDERS), default='age', help='order, the newest or best first (default: age)'
    )
    parser.add_argument('--json', action='store_true', help='print JSON')


def _runs(args: argparse.Namespace) -> int:
    folder = Path(args.folder)
    rows = [
        row
        for row in list_runs(folder)
        if args.state in (None, row.state)
        and any(fnmatchcase(name, args.match) for name in (row.model, row.run, Path(row.run).name))
    ]
    rows.sort(key=ORDERS[args.sort])
    if args.json:
        print(to_json([{**asdict(row), 'changed': _date(row.changed)} for row in rows], indent=2))
    elif not rows:
        print(f'no such runs in {folder}')
    else:
        header = ('run', 'model', 'data', 'px', 'epochs', 'seed', 'top-1 %', 'state', 'age')
        print(table([header, *(_cells(row, folder) for row in rows)]))
    return 0


def _cells(row: RunRow, folder: Path) -> tuple[str, ...]:
    name = os.path.relpath(row.run, folder) if Path(row.run) != folder else row.run
    of_epochs = str(row.epochs) if row.epochs == row.epochs_done else f'{row.epochs_done} of {row.epochs}'
    if row.state == 'damaged':
        of_epochs = ''
    size, seed = ('' if value is None else str(value) for value in (row.img_size, row.seed))
    top1 = '' if row.top1 is None else f'{row.top1:.2f}'
    return (name, row.model, row.data, size, of_epochs, seed, top1, row.state, _age(time.time() - row.changed))


RUNS = Command('runs', 'list the runs in a folder and how far they are', _add_arguments, _runs, ' [DIR]')
