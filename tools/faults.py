"""Faults one by one: a small world is copied, one thing in it is broken, a command runs, all promises are looked at.

`tools/soak.py faults` runs it; `fault_kinds.py` lists the faults.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import stat
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagenette_zoo.cli.main import main as cli_main
from imagenette_zoo.training import trainer
from imagenette_zoo.utils import streams

HANGS = 150  # seconds: no command on so few images takes so long, even on a busy machine
MEMORY = 3 * 2**30  # bytes that a command may ask for
RESIDENT = 1200  # MiB that it may use
LEFTOVER = re.compile(r'.*\.tmp|\..*\.[0-9a-f]{32}|tmp[a-z0-9_]{8}')
HIDDEN = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029'  # turn text around, or end lines
LOADED = [  # by the commands when they need them, which takes seconds
    *(f'imagenette_zoo.{name}' for name in (
        'cli.main', 'training.trainer', 'inference.validate', 'inference.predict', 'sharing.export', 'sharing.publish',
        'study.analysis', 'study.runner', 'report.studies', 'study.passes',
    )),
    'matplotlib.figure', 'matplotlib.style', 'matplotlib.backends.backend_agg', 'matplotlib.backends.backend_svg',
    'torch.utils.cpp_extension', 'torchvision', 'timm.data', 'fault_kinds', 'encodings.utf_8_sig',
]  # fmt: skip
SERVER: Any = multiprocessing.get_context('forkserver')
STARTING = threading.Lock()

TRAIN = (
    'train', '--model', 'test_resnet', '--img-size', '32', '-b', '8', '--epochs', '2', '--warmup-epochs', '0',
    '--device', 'cpu', '--data-dir', 'data', '--opt', 'momentum', '--lr', '0.02', '--experiment', 'new',
)  # fmt: skip
RECIPE = """\
model: test_resnet
img_size: 32
batch_size: 8
epochs: 1
warmup_epochs: 0
device: cpu
data_dir: data
opt: momentum
lr: 0.02
mean: [0.5, 0.5, 0.5]
"""
STUDY = """\
title: Which rate?
base: recipe.yaml
seeds: 2
runs:
  slow: {lr: 0.002}
  fast: {lr: 0.02}
claims:
  - {name: C1, claim: The faster rate is better., metric: top1, order: fast > slow}
"""


@dataclass(frozen=True)
class Fault:
    """One thing that is broken, and the command that meets it.

    Args:
        what: In a few words, by which it is found again.
        command: The words after `imagenette-zoo`; paths are relative to the world's copy.
        injure: Breaks something in the copy, which it is given.
        within: What is done in the command's process before it starts; each must be known by name to other processes.
        during: What is done while it runs: given its process and the copy.
        codes: Exit codes that keep the promise; None: 0 and 2, and 1 for `predict`.
        writes: Patterns of the files that the command may write or change.
        first: A command that runs before the fault.
        then: A command that must end with 0 after it.
        same: Whether the run `new` must have come to the weights that it comes to without a fault, once it ends with 0.
        after: Looks at the copy and at standard output; says what is wrong with it.
        parts: Of the world.
        blind: Standard error can't be looked at.
        large: It may use more memory than others.
    """

    what: str
    command: Sequence[str]
    injure: Callable[[Path], object] | None = None
    within: tuple[Callable[[], object], ...] = ()
    during: Callable[[Any, Path], object] | None = None
    codes: tuple[int, ...] | None = None
    writes: tuple[str, ...] = ()
    first: Sequence[str] = ()
    then: Sequence[str] = ()
    same: bool = False
    after: Callable[[Path, str], str] | None = None
    parts: tuple[str, ...] = ('data', 'photos', 'model', 'runs/run')
    blind: bool = False
    large: bool = False


# What each command writes, by its first word.
WRITES = {
    'train': ('runs', 'runs/new', 'runs/new/*'),
    'export': ('exported*',),
    'publish': ('hub', 'hub/*'),
    'report': ('report', 'report/*'),
    'analyse': ('runs/run/analysis.json', 'runs/run/predictions.safetensors'),
    'study': ('runs/rates/study.yaml', 'runs/rates/report*', 'runs/rates/*.json', 'runs/rates/*.yaml', 'runs/rates'),
}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int | None
    out: str
    err: str
    seconds: float
    mebibytes: float


# --- The world --------------------------------------------------------------------------------------------------------


def make_world(root: Path) -> str:
    """Makes the small world in a folder; returns the hash of the weights of the run `new`, which stays undisturbed.

    It has `data/`, `photos/`, `model/`, `runs/run` (finished), `runs/half` (interrupted), `runs/rates` (a study with
    results), `rates.yaml`, `recipe.yaml`, `data.tgz`, `data.zip`, `weights.pth`, and the cache of one who has trained.
    """
    world = root / 'world'
    rng = np.random.RandomState(0)
    for split, count in (('train', 6), ('val', 3)):
        for index in range(3):
            folder = world / 'data' / split / f'class{index}'
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.randint(0, 120, (40, 44, 3))
                pixels[..., index] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    (world / 'photos').mkdir()
    for name in ('a.png', 'b.jpg', 'c.webp'):
        Image.fromarray(rng.randint(0, 255, (50, 60, 3)).astype(np.uint8)).save(world / 'photos' / name)
    with tarfile.open(world / 'data.tgz', 'w:gz') as tar:
        tar.add(world / 'data', 'set')
    with zipfile.ZipFile(world / 'data.zip', 'w') as zipped:
        for path in sorted((world / 'data').rglob('*.png')):
            zipped.write(path, Path('set') / path.relative_to(world / 'data'))
    (world / 'rates.yaml').write_text(STUDY)
    (root / 'cache').mkdir(mode=0o700)
    (root / 'tmp').mkdir()
    run = [*TRAIN[:-1], 'run', '--seed', '1', '--val-split', 'train']
    (world / 'recipe.yaml').write_text(RECIPE)
    commands = [(run, ()), (TRAIN, ()), ([*TRAIN[:-1], 'half'], (interrupt_second_epoch,)), *map(_plain, _study())]
    for words, within in commands:
        ran = run_command(words, root, within)
        if ran.code != (130 if within else 0):
            raise SystemExit(f'{" ".join(words)}: ended with {ran.code}: {ran.err}')
    shutil.copytree(world / 'runs' / 'run' / 'best', world / 'model')
    wanted = weights_hash(world)
    shutil.rmtree(world / 'runs' / 'new')
    shutil.rmtree(root / 'cache' / 'decoded')
    return wanted


def _plain(words: Sequence[str]) -> tuple[Sequence[str], tuple[Callable[[], object], ...]]:
    return words, ()


def _study() -> Iterable[Sequence[str]]:
    """The commands that a study consists of; by itself it would start each as a program of its own, which is slow."""
    for run, rate in (('slow', '0.002'), ('fast', '0.02')):
        for seed in '1', '2':
            name = f'{run}-seed{seed}'
            place = ['--output', 'runs/rates', '--experiment', name]
            yield ['train', '-c', 'recipe.yaml', '--lr', rate, '--seed', seed, *place]
            yield ['analyse', f'runs/rates/{name}']
    yield ['study', 'rates.yaml', '--data-dir', 'data']


def interrupt_second_epoch() -> None:
    """In the process that is to be interrupted."""
    train_epoch = trainer._train_epoch

    def stopped(number: int, *args: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return train_epoch(number, *args)

    trainer._train_epoch = stopped


def weights_hash(world: Path) -> str:
    """Of the last weights of the run `new`."""
    return hashlib.sha256((world / 'runs' / 'new' / 'last' / 'model.safetensors').read_bytes()).hexdigest()


# --- One command ------------------------------------------------------------------------------------------------------


def run_command(
    words: Sequence[str],
    root: Path,
    within: tuple[Callable[[], object], ...] = (),
    during: Callable[[Any, Path], object] | None = None,
) -> Ran:
    """Runs a command in `root/world`, in a process of its own with all modules loaded."""
    start = time.monotonic()
    process = SERVER.Process(target=_run_here, args=(list(words), str(root), within))
    with STARTING:  # else another thread, as it starts one, may take the exit code of this one away
        process.start()
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    if during is not None:
        during(process, root / 'world')
    process.join(HANGS)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    seconds = time.monotonic() - start
    texts = (path.read_bytes() if path.exists() else b'' for path in (root / 'stdout', root / 'stderr'))
    out, err = (text.decode(errors='backslashreplace') for text in texts)
    peak = root / 'peak'
    mebibytes = float(peak.read_text() or 0) if peak.exists() else 0.0
    process.close()
    return Ran(code, out, err, seconds, mebibytes)


def _run_here(words: list[str], root: str, within: tuple[Callable[[], object], ...]) -> None:
    os.chdir(f'{root}/world')
    os.environ.update(IMAGENETTE_ZOO_CACHE=f'{root}/cache', TMPDIR=f'{root}/tmp', HF_HUB_OFFLINE='1')
    os.environ.pop('IMAGENETTE_DIR', None)
    tempfile.tempdir = None  # as TMPDIR says
    multiprocessing.set_start_method('fork', force=True)  # of data workers, as without the server
    torch.set_num_threads(1)
    peak = os.open(f'{root}/peak', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        file = os.open(f'{root}/{name}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    standard_streams()
    space = int(_status('VmSize')) * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    code = 1
    try:
        for act in within:
            act()
        code = cli_main(words)
    except SystemExit as request:  # after the help
        code = int(request.code or 0)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        os.pwrite(peak, f'{int(_status("VmHWM")) / 1024:.0f}'.encode(), 0)
    try:
        sys.stdout.flush()
    except OSError:
        code = 120  # as Python says at its exit
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _status(field: str) -> str:
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(field))


def standard_streams() -> None:
    """As a program that starts has them; what is missing is opened as the import of the command line does it."""
    for name, number in (('stdout', 1), ('stderr', 2)):
        try:
            stream = open(number, 'w', errors='backslashreplace', closefd=False)  # noqa: SIM115
        except OSError:
            stream = None
        setattr(sys, name, stream)
    streams.open_missing()


# --- The promises -----------------------------------------------------------------------------------------------------


def broken_promises(fault: Fault, ran: Ran, before: dict[str, Any], root: Path) -> list[str]:
    """What the command did that it must not do."""
    broken = []
    command = fault.command[0]
    codes = fault.codes or ((0, 1, 2) if command == 'predict' else (0, 2))
    if ran.code is None:
        return [f'hangs for more than {HANGS} s']
    if ran.code not in codes:
        broken.append(f'exit code {ran.code}, not {" or ".join(map(str, codes))}')
    if 'Traceback (most recent call last)' in ran.err + ran.out:
        broken.append('a traceback')
    for name, text in (('output', ran.out), ('error', ran.err)):
        if odd := sorted({c for c in text if (unicodedata.category(c) == 'Cc' and c not in '\n\t') or c in HIDDEN}):
            broken.append(f'standard {name} has control characters: {odd}')
    lines = [line for line in ran.err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('error: ')]
    checks_images = fault.command[:2] == ('data', 'check') and 'bad image(s)' in ran.err
    if ran.code == 2 and not fault.blind and not checks_images and (len(errors) != 1 or lines[-1] != errors[0]):
        broken.append(f'{len(errors)} lines of error, or not the last')
    if ran.code == 0 and errors:
        broken.append('exit code 0 with an error')
    if '--json' in fault.command and ran.code in (0, 1) and not fault.blind:
        broken += _json_complaint('standard output', ran.out)
    broken += _lost_or_left(fault, before, root, killed=ran.code == -9)
    if ran.mebibytes > RESIDENT and not fault.large:
        broken.append(f'{ran.mebibytes:.0f} MiB')
    return broken


def _json_complaint(name: str, text: str) -> list[str]:
    try:
        json.loads(text, parse_constant=_no_json)
    except ValueError as error:
        return [f'{name} is no JSON: {error}']
    return []


def _no_json(name: str) -> Any:
    raise ValueError(name)


def _lost_or_left(fault: Fault, before: dict[str, Any], root: Path, killed: bool) -> list[str]:
    after = snapshot(root / 'world')
    patterns = (*WRITES.get(fault.command[0], ()), *fault.writes)
    broken = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path) and not any(fnmatch.fnmatchcase(path, each) for each in patterns):
            how = 'made' if path not in before else 'lost' if path not in after else 'changed'
            broken.append(f'{how}: {path!a}')
    for folder in () if killed else ('world', 'cache', 'tmp'):
        for path, _ in _entries(root / folder) if (root / folder).exists() else ():
            if LEFTOVER.fullmatch(path.rpartition('/')[2]) and not (folder == 'world' and path in before):
                broken.append(f'left: {folder}/{path!a}')
    for path in after.keys() - before.keys():
        if path.endswith('.json') and after[path][0] == 'file':
            broken += _json_complaint(path, (root / 'world' / path).read_text())
    return broken


def snapshot(folder: Path) -> dict[str, Any]:
    """All that is in a folder: what it is, and its content."""
    return {path: _content(entry) for path, entry in _entries(folder)}


def _entries(folder: Path, start: str = '') -> Iterable[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield start + entry.name, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path), f'{start}{entry.name}/')


def _content(entry: os.DirEntry[str]) -> tuple[Any, ...]:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(status.st_mode):
        if status.st_blocks == 0 and status.st_size > 2**20:  # all holes
            return 'file', status.st_size
        with open(entry.path, 'rb') as file:
            return 'file', hashlib.sha256(file.read()).digest()
    if stat.S_ISLNK(status.st_mode):
        return 'link', os.readlink(entry.path)
    return (stat.S_IFMT(status.st_mode),)


# --- All of them ------------------------------------------------------------------------------------------------------


def inject(fault: Fault, root: Path, source: Path, wanted: str) -> tuple[Ran, list[str]]:
    """Makes a copy of the world, breaks it, runs the command; returns how it ended and the promises it broke."""
    shutil.rmtree(root, ignore_errors=True)
    (root / 'tmp').mkdir(parents=True)
    shutil.copytree(source / 'cache', root / 'cache')
    world = root / 'world'
    for path in (source / 'world').iterdir():
        if path.name != 'runs' and (path.is_file() or path.name in fault.parts):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, _parent(world / path.name))
    for part in fault.parts:
        if part.startswith('runs/'):
            shutil.copytree(source / 'world' / part, _parent(world / part))
    if fault.first and (ran := run_command(fault.first, root)).code != 0:
        return ran, [f'without the fault: exit code {ran.code}: {ran.err}']
    if fault.injure is not None:
        fault.injure(world)
    before = snapshot(world)
    ran = run_command(fault.command, root, fault.within, fault.during)
    broken = broken_promises(fault, ran, before, root)
    if fault.after is not None and (wrong := fault.after(world, ran.out)):
        broken.append(wrong)
    code = ran.code
    if fault.then:
        again = run_command(fault.then, root)
        code = again.code
        if code != 0:
            broken.append(f'afterwards: exit code {code}: {again.err[-300:]}')
    if fault.same and code == 0 and weights_hash(world) != wanted:
        broken.append('other weights')
    return ran, broken


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def faults(seed: int, scratch: Path, only: Sequence[str], each: int | None, jobs: int) -> dict[str, Any]:
    """Injects the faults of all kinds, or of some, or a few of each.

    Args:
        seed: Of all that is drawn.
        scratch: An empty folder.
        only: Names of kinds; none: all.
        each: Faults of each kind, drawn; None: all.
        jobs: Faults at the same time.
    """
    from fault_kinds import KINDS, SOUND

    if unknown := set(only) - KINDS.keys():
        raise SystemExit(f'--only: {", ".join(sorted(unknown))}: expected some of {", ".join(KINDS)}')
    scratch.chmod(0o755)  # other users look into it
    source = scratch / 'whole'
    (source / 'world').mkdir(parents=True)
    wanted = make_world(source)
    free = list(range(jobs))
    lock = threading.Lock()

    def one(fault: Fault) -> tuple[Fault, Ran, list[str]]:
        with lock:
            slot = free.pop()
        try:
            return fault, *inject(fault, scratch / str(slot), source, wanted)
        except Exception:  # the others go on
            return fault, Ran(None, '', '', 0, 0), [f'could not be injected: {traceback.format_exc()}']
        finally:
            with lock:
                free.append(slot)

    for command in SOUND:  # what is not broken is done
        parts = ('data', 'photos', 'model', 'runs/run', 'runs/half', 'runs/rates')
        _, ran, complaints = one(Fault('nothing', command, codes=(0,), parts=parts, writes=('runs/*',)))
        if complaints:
            raise SystemExit(f'{" ".join(command)}: without a fault: {"; ".join(complaints)}: {ran.err}')
    rows = []
    for kind, make in KINDS.items():
        if only and kind not in only:
            continue
        rng = random.Random(f'{seed} {kind}')
        all_of_it = list(make(rng, source / 'world'))
        some = all_of_it if each is None else rng.sample(all_of_it, min(each, len(all_of_it)))
        start = time.monotonic()
        codes: Counter[str] = Counter()
        slowest, most, broken = (0.0, ''), 0.0, []
        with ThreadPoolExecutor(jobs) as pool:
            for fault, ran, complaints in pool.map(one, some):
                codes[ENDS.get(ran.code, 'otherwise')] += 1
                slowest, most = max(slowest, (round(ran.seconds, 1), fault.what)), max(most, ran.mebibytes)
                for complaint in complaints:
                    broken.append(f'{fault.what} [{" ".join(fault.command)[:120]}]: {complaint}')
                    print(f'BROKEN {kind}: {ascii(broken[-1])[1:-1]}\n    {ran.err[-1500:]!a}', flush=True)
        rows.append({
            'kind': kind, 'faults': len(some), **{end: codes[end] for end in (*ENDS.values(), 'otherwise')},
            'slowest, seconds': slowest[0], 'slowest': slowest[1], 'most memory, MiB': round(most), 'broken': broken,
        })  # fmt: skip
        print(json.dumps({**rows[-1], 'broken': len(broken), 'seconds': round(time.monotonic() - start)}), flush=True)
    return {
        'rows': rows, 'faults': sum(row['faults'] for row in rows), 'kept': not any(row['broken'] for row in rows)
    }  # fmt: skip


ENDS: dict[int | None, str] = {
    0: 'survived', 1: 'done but for a part', 2: 'refused in a line', 130: 'interrupted', 143: 'stopped', -9: 'killed',
}  # fmt: skip
