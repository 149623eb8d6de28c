"""Ways to break a file, and the commands that meet it."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from faults import TRAIN, Fault

Injure = Callable[[Path], object]
Faults = Iterator[Fault]

PREDICT = ('predict', 'photos', '--model', 'model', '--device', 'cpu')
PREDICT_JSON = (*PREDICT, '--json')
VALIDATE = ('validate', '--model', 'model', '--data-dir', 'data', '--device', 'cpu', '-j', '0')
CHECK = ('data', 'check', '--data-dir', 'data')
PUBLISH = ('publish', 'runs/run', 'me/it', '--dry-run')
REPORT = ('report', 'runs/run', '--data-dir', 'data')
ANALYSE = ('analyse', 'runs/run', '--data-dir', 'data', '--device', 'cpu')
EXPORT = ('export', 'model', '--output', 'exported.pt2')
RESUME = (*TRAIN[:-1], 'half', '--resume')
HALF = ('data', 'runs/half')
HALF_WRITES = ('runs/half', 'runs/half/*')
STUDY = ('study', 'rates.yaml', '--data-dir', 'data')
STUDY_PARTS = ('data', 'runs/rates')


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A damaged form of a file's content, and what was done to it."""
    at = rng.randrange(len(data)) if data else 0
    pick = rng.randrange(8)
    if pick == 0:
        return f'cut at {at}', data[:at]
    if pick in (1, 2):
        bit = rng.randrange(8)
        return f'bit {bit} of byte {at} flipped', data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if pick == 3:
        noise = rng.randbytes(rng.randint(1, 3000))
        return f'{len(noise)} bytes of noise at {at}', data[:at] + noise + data[at + len(noise) :]
    if pick == 4:
        return f'zeros from {at} on', data[:at] + bytes(len(data) - at)
    if pick == 5:
        count = rng.randint(1, 500)
        return f'{count} bytes missing at {at}', data[:at] + data[at + count :]
    if pick == 6:
        return 'twice', data + data
    return 'noise', rng.randbytes(rng.choice((1, 100, 10_000)))


def replaced(name: str, data: bytes) -> Injure:
    """A file has other content; a link to it keeps leading there."""

    def injure(world: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            (world / name).unlink()
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_bytes(data)

    return injure


def instead(name: str, kind: str) -> Injure:
    """Something else is where a file or folder should be."""

    def injure(world: Path) -> None:
        path = world / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        {
            'nothing': lambda: None,
            'a folder': lambda: path.mkdir(parents=True),
            'an empty file': lambda: path.write_bytes(b''),
            'a fifo': lambda: os.mkfifo(path),
            'a link to nothing': lambda: path.symlink_to('nowhere'),
            'a link to itself': lambda: path.symlink_to(path.name),
            '/dev/zero': lambda: path.symlink_to('/dev/zero'),
            '/dev/null': lambda: path.symlink_to('/dev/null'),
            'text': lambda: path.write_text('<html>404 not found</html>\n'),
            '1 GB of holes': lambda: _holes(path, 10**9),
            'a pickle that runs code': lambda: path.write_bytes(pickle.dumps(RunsCode())),
        }[kind]()

    return injure


THINGS = (
    'nothing', 'a folder', 'an empty file', 'a fifo', 'a link to nothing', 'a link to itself', '/dev/zero',
    '/dev/null', 'text', '1 GB of holes', 'a pickle that runs code',
)  # fmt: skip


def _holes(path: Path, size: int) -> None:
    with open(path, 'wb') as file:
        file.truncate(size)


class RunsCode:
    """A pickle of it leaves a file `ran`, which is noticed as made."""

    def __reduce__(self) -> Any:
        return os.system, ('touch ran',)


def together(*acts: Injure) -> Injure:
    """Several injuries."""

    def injure(world: Path) -> None:
        for act in acts:
            act(world)

    return injure


def saved(values: Any, **options: Any) -> bytes:
    """A value as torch saves it."""
    buffer = io.BytesIO()
    torch.save(values, buffer, **options)
    return buffer.getvalue()
