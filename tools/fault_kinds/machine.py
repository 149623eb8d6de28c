"""Standard streams, disks, rights, memory, signals, and what changes under a run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from faults import TRAIN, Fault, standard_streams

from .damage import (
    ANALYSE,
    CHECK,
    EXPORT,
    HALF,
    HALF_WRITES,
    PREDICT,
    PREDICT_JSON,
    PUBLISH,
    REPORT,
    RESUME,
    STUDY,
    VALIDATE,
    Faults,
    Injure,
    replaced,
    together,
)


def full(number: int) -> None:
    """A standard stream goes to a full disk."""
    _to('/dev/full', number)


def _to(path: str, number: int) -> None:
    file = os.open(path, os.O_WRONLY)
    os.dup2(file, number)
    os.close(file)
    standard_streams()


def closed(*numbers: int) -> None:
    """Standard streams are closed, as by `>&-`."""
    for number in numbers:
        os.close(number)
    standard_streams()


def gone(number: int) -> None:
    """Nobody reads a standard stream any more."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, number)
    os.close(writing)
    standard_streams()


def no_streams(rng: random.Random, world: Path) -> Faults:
    """Standard output and error that are full, closed, or that nobody reads."""
    commands = (
        TRAIN,
        PREDICT,
        PREDICT_JSON,
        VALIDATE,
        CHECK,
        REPORT,
        ANALYSE,
        PUBLISH,
        EXPORT,
        ('list',),
        ('list', '--json'),
        ('--help',),
        ('data', 'cache'),
        (*STUDY, '--dry-run'),
        ('train', '--help'),
        ('train', '--no-such'),
    )
    for command in commands:
        wrong = command[-1] == '--no-such'
        seen = dict(parts=('data', 'photos', 'model', 'runs/run', 'runs/rates'), writes=('runs/rates/*',))
        yield Fault('stdout full', command, within=(partial(full, 1),), codes=(2,), **seen)
        yield Fault(
            'stderr full', command, within=(partial(full, 2),), codes=(2,) if wrong else (0,), blind=True, **seen
        )
        yield Fault('both full', command, within=(partial(full, 1), partial(full, 2)), codes=(2,), blind=True, **seen)
        blind = dict(blind=True, codes=(2,) if wrong else (0,), **seen)
        yield Fault('stdout closed', command, within=(partial(closed, 1),), **{**blind, 'blind': True})
        yield Fault('stderr closed', command, within=(partial(closed, 2),), **blind)
        yield Fault('both closed', command, within=(partial(closed, 1, 2),), **blind)
        yield Fault('all closed', command, within=(partial(closed, 0, 1, 2),), **blind)
        yield Fault('nobody reads stdout', command, within=(partial(gone, 1),), **blind)
        yield Fault('nobody reads stderr', command, within=(partial(gone, 2),), **blind)


def limited(kind: int, most: int) -> None:
    """A limit of the system's."""
    resource.setrlimit(kind, (most, most))


def small_disk(folder: str, size: str) -> None:
    """A disk of so many bytes is where a folder was, for this process alone."""
    own_mounts()
    os.makedirs(folder, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},mode=700', 'none', folder], check=True)


def own_mounts() -> None:
    """What is mounted from here on is not seen by others."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), 'unshare')
    subprocess.run(['mount', '--make-rprivate', '/'], check=True)


def may_mount() -> bool:
    """Whether this user may mount disks."""
    test = ['unshare', '-m', 'mount', '-t', 'tmpfs', 'none', '/mnt']
    return os.geteuid() == 0 and subprocess.run(test, capture_output=True, check=False).returncode == 0


def disks(rng: random.Random, world: Path) -> Faults:
    """Disks that are full, and files that may not grow; what was there stays, and the run goes on afterwards."""
    for _ in range(40):
        most = int(10 ** rng.uniform(2, 6.6))
        again = dict(then=(*TRAIN, '--resume'), same=True, parts=('data',))
        yield Fault(
            f'files of at most {most} bytes: train',
            TRAIN,
            within=(partial(limited, resource.RLIMIT_FSIZE, most),),
            blind=most < 3000,
            **again,
        )
        yield Fault(
            f'files of at most {most} bytes: resume',
            RESUME,
            within=(partial(limited, resource.RLIMIT_FSIZE, most),),
            then=RESUME,
            parts=HALF,
            writes=HALF_WRITES,
            blind=most < 3000,
        )
    for command in (PREDICT, VALIDATE, REPORT, ANALYSE, PUBLISH, EXPORT, (*VALIDATE, '--results-file', 'exported.csv')):
        for most in (3000, 50_000, 1_000_000):
            yield Fault(
                f'files of at most {most} bytes',
                command,
                within=(partial(limited, resource.RLIMIT_FSIZE, most),),
                writes=('exported*',),
            )
    if may_mount():
        for _ in range(16):
            size = f'{int(2 ** rng.uniform(2, 13.5))}k'
            yield Fault(
                f'a disk of {size} for the run', TRAIN, within=(partial(small_disk, 'runs', size),), parts=('data',)
            )
            yield Fault(
                f'a disk of {size} for the cache',
                TRAIN,
                within=(partial(small_disk, '../cache', size),),
                parts=('data',),
            )
            yield Fault(
                f'a disk of {size} for an archive',
                ('data', 'check', '--data-dir', 'data.tgz'),
                within=(partial(small_disk, '../cache', size),),
                parts=(),
            )


def other_user() -> None:
    """Continues as a user who is not root, where this is root."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
        os.environ['HOME'] = '/nonexistent'


def rights(rng: random.Random, world: Path) -> Faults:
    """Files and folders that may not be read or written."""

    def without(name: str, mode: int) -> Injure:
        def injure(world: Path) -> None:
            if os.geteuid() == 0:
                for path in (world.parent, world, *world.parent.rglob('*')):
                    os.chown(path, 65534, 65534, follow_symlinks=False)
            (world / name).chmod(mode)

        return injure

    cases = (
        ('data', 0, TRAIN), ('data/train', 0, TRAIN), ('data/train/class0', 0, TRAIN), ('data/train/class0/0.png', 0,
        TRAIN),
        ('data/val/class1/0.png', 0, VALIDATE), ('data/train/class0/0.png', 0, CHECK), ('data/train/class0', 0, CHECK),
        ('photos', 0, PREDICT), ('photos/a.png', 0, PREDICT_JSON), ('photos/a.png', 0, ('predict', 'photos/a.png',
        *PREDICT[2:])),
        ('model', 0, PREDICT), ('model/config.json', 0, PREDICT), ('model/model.safetensors', 0, VALIDATE),
        ('runs', 0o555, TRAIN), ('runs/run', 0o555, ANALYSE), ('runs/run', 0, REPORT), ('runs/run/result.json', 0,
        REPORT),
        ('runs/run/args.yaml', 0, ('train', '--from', 'runs/run')), ('recipe.yaml', 0, ('train', '-c', 'recipe.yaml')),
        ('rates.yaml', 0, (*STUDY, '--dry-run')), ('data.tgz', 0, ('data', 'check', '--data-dir', 'data.tgz')),
        ('../cache', 0o555, TRAIN), ('../cache', 0, TRAIN), ('../cache/kernels', 0, TRAIN),  ('.',
        0o555, REPORT),
        ('.', 0o555, PUBLISH), ('runs/run', 0o555, PUBLISH), ('weights.pth', 0, (*TRAIN, '--initial-checkpoint',
        'weights.pth')),
        ('../tmp', 0o555, TRAIN), ('model', 0o444, PREDICT), ('data/train', 0o444, TRAIN), ('photos', 0o444, PREDICT),
    )  # fmt: skip
    for name, mode, command in cases:
        injure = without(name, mode)
        if name == 'weights.pth':
            injure = together(replaced(name, b'x'), injure)
        yield Fault(f'{name} of mode {mode:o}', command, injure, within=(other_user,))


def memory(rng: random.Random, world: Path) -> Faults:
    """Little memory, few open files, a tiny /dev/shm, workers that die."""
    for most in (8, 12, 16, 24, 32, 64):
        for command in (TRAIN, PREDICT, CHECK, VALIDATE, REPORT):
            yield Fault(
                f'{most} open files', command, within=(partial(limited, resource.RLIMIT_NOFILE, most),), blind=most < 12
            )
    workers = (*TRAIN, '--loader', 'timm', '-j', '2')
    for number in range(12):
        yield Fault(
            f'a worker is killed {number}',
            workers,
            during=partial(kill_a_worker, wait=rng.uniform(0, 2)),
            parts=('data',),
        )
    if may_mount():
        for size in ('4k', '16k', '64k', '256k', '1m'):
            for command in (workers, TRAIN, (*VALIDATE, '--loader', 'timm', '-j', '2')):
                yield Fault(f'/dev/shm of {size}', command, within=(partial(small_disk, '/dev/shm', size),))


def kill_a_worker(process: Any, world: Path, wait: float) -> None:
    """SIGKILL for the first process that a command has started, a moment after it did."""
    until = time.monotonic() + 20
    while process.is_alive() and time.monotonic() < until:
        with contextlib.suppress(OSError, IndexError, ValueError):
            child = int(Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()[0])
            time.sleep(wait / 10)
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.005)


def interrupt(process: Any, world: Path, numbers: Sequence[int], wait: float, gap: float) -> None:
    """Sends signals to a command."""
    time.sleep(wait)
    for number in numbers:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        time.sleep(gap)


def signals(rng: random.Random, world: Path) -> Faults:
    """Signals at any instant; a run goes on afterwards and comes to the same weights."""
    resume = (*TRAIN, '--resume')
    for number in range(48):
        chosen = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[number % 3]
        several = [chosen] * rng.choice((1, 1, 2, 3))
        during = partial(interrupt, numbers=several, wait=rng.uniform(0.05, 2.5), gap=rng.uniform(0, 0.2))
        flags = ('--loader', 'timm', '-j', '1') if number % 8 == 7 else ()
        codes = (0, 130, 143, -9) if chosen == signal.SIGKILL else (0, 130, 143)
        yield Fault(
            f'{chosen.name} during train {number}',
            (*TRAIN, *flags),
            during=during,
            codes=codes,
            then=(*resume, *flags),
            same=not flags,
            parts=('data',),
            writes=('*.tmp',) if chosen == signal.SIGKILL else (),
        )
    for number, command in enumerate((PREDICT, VALIDATE, CHECK, REPORT, ANALYSE, PUBLISH, EXPORT, PREDICT_JSON) * 5):
        chosen = (signal.SIGINT, signal.SIGTERM)[number % 2]
        during = partial(interrupt, numbers=[chosen], wait=rng.uniform(0.05, 1.0), gap=0.01)
        yield Fault(f'{chosen.name} during {command[0]} {number}', command, during=during, codes=(0, 130, 143))


def moving(rng: random.Random, world: Path) -> Faults:
    """What a run uses is changed or removed while it runs."""

    def later(wait: float, change: Injure) -> Callable[[Any, Path], None]:
        def act(process: Any, world: Path) -> None:
            time.sleep(wait)
            with contextlib.suppress(OSError):
                change(world)

        return act

    changes: dict[str, Injure] = {
        'the data removed': lambda world: shutil.rmtree(world / 'data'),
        'the run removed': lambda world: shutil.rmtree(world / 'runs' / 'new'),
        'an image cut': lambda world: os.truncate(world / 'data' / 'val' / 'class0' / '0.png', 100),
        'an image removed': lambda world: (world / 'data' / 'train' / 'class0' / '0.png').unlink(),
        'the cache removed': lambda world: shutil.rmtree(world.parent / 'cache'),
        'the state removed': lambda world: (world / 'runs' / 'new' / 'state.pt').unlink(),
        'another args.yaml': lambda world: (world / 'runs' / 'new' / 'args.yaml').write_text('x: 1\n'),
        'the temporary folder removed': lambda world: shutil.rmtree(world.parent / 'tmp'),
    }
    for name, change in changes.items():
        for number in range(5):
            flags = ('--loader', 'timm', '-j', '1') if number == 4 else ()
            yield Fault(
                f'{name} while it trains {number}',
                (*TRAIN, *flags),
                during=later(rng.uniform(0.05, 2), change),
                parts=('data',),
                writes=('data', 'data/*', '../*'),
            )
