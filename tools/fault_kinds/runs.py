"""States, runs, studies and the cache."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from faults import TRAIN, Fault
from safetensors.torch import load_file

from .damage import (
    ANALYSE,
    HALF,
    HALF_WRITES,
    PUBLISH,
    REPORT,
    RESUME,
    STUDY,
    STUDY_PARTS,
    THINGS,
    Faults,
    Injure,
    RunsCode,
    damaged,
    instead,
    replaced,
    saved,
)
from .models import NUMBERS


def states(rng: random.Random, world: Path) -> Faults:
    """`state.pt` of an interrupted run: damaged, foreign, of another run, gone."""
    path = world / 'runs' / 'half' / 'state.pt'
    sound = path.read_bytes()
    yield Fault('state: as it was', RESUME, parts=HALF, writes=HALF_WRITES, codes=(0,), after=_half_as_new(world))
    for _ in range(40):
        how, data = damaged(sound, rng)
        yield Fault(f'state: {how}', RESUME, replaced('runs/half/state.pt', data), codes=(2,), parts=HALF, writes=LOCK)
    for _ in range(10):  # of the weights themselves, which lie in the middle
        at, bit = rng.randrange(len(sound) // 4, len(sound) * 3 // 4), rng.randrange(8)
        data = sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :]
        yield Fault(
            f'state: bit {bit} of byte {at}',
            RESUME,
            replaced('runs/half/state.pt', data),
            codes=(2,),
            parts=HALF,
            writes=LOCK,
        )
    state = torch.load(path, weights_only=True)
    foreign = {
        'without a checksum': saved(state), 'the finished run': (world / 'runs/run/state.pt').read_bytes(),
        'plain weights': saved({'state_dict': load_file(world / 'model' / 'model.safetensors')}),
        'a list': saved([1]),
        'runs code': saved(RunsCode()), 'empty': saved({}), 'an old checkpoint': saved({'epoch': 3, 'optimizer': {}}),
    }  # fmt: skip
    for name, data in foreign.items():
        yield Fault(f'state: {name}', RESUME, replaced('runs/half/state.pt', data), codes=(2,), parts=HALF, writes=LOCK)
    for kind in THINGS:
        yield Fault(f'state: {kind}', RESUME, instead('runs/half/state.pt', kind), codes=(2,), parts=HALF, writes=LOCK)
    for flags in (
        ('--lr', '0.5'),
        ('--seed', '7'),
        ('-b', '4'),
        ('--opt', 'adamw'),
        ('--img-size', '40'),
        ('--model', 'test_vit'),
        ('--mixup', '0.2'),
        ('--model-ema',),
        ('--epochs', '1'),
        ('--train-split', 'train[:90%]'),
    ):
        yield Fault(f'resumed with {flags}', (*RESUME, *flags), codes=(2,), parts=HALF, writes=LOCK)
    for name in ('args.yaml', 'metrics.jsonl', 'summary.csv', '.saved', 'last/config.json', 'last/model.safetensors'):
        for kind in ('nothing', 'a folder', 'text', 'an empty file'):
            yield Fault(
                f'{name} of a run: {kind}', RESUME, instead(f'runs/half/{name}', kind), parts=HALF, writes=HALF_WRITES
            )


LOCK = ('runs/half/.lock',)


def _half_as_new(world: Path) -> Callable[[Path, str], str]:
    def look(world: Path, out: str) -> str:
        return '' if (world / 'runs' / 'half' / 'result.json').exists() else 'no result'

    return look


def runs(rng: random.Random, world: Path) -> Faults:
    """The files of a finished run: damaged, foreign, gone."""
    folder = world / 'runs' / 'run'
    files = ('result.json', 'metrics.jsonl', 'summary.csv', 'args.yaml', 'best/config.json', 'best/model.safetensors')
    commands = (
        REPORT, ('validate', '--model', 'runs/run', '--device', 'cpu'), ANALYSE, ('train', '--from', 'runs/run',
        '--experiment', 'new'),
        PUBLISH, ('predict', 'photos', '--model', 'runs/run'), ('export', 'runs/run', '--output', 'exported.pt2'),
    )  # fmt: skip
    for number in range(60):
        name = files[number % len(files)]
        how, data = damaged((folder / name).read_bytes(), rng)
        yield Fault(f'{name}: {how}', rng.choice(commands), replaced(f'runs/run/{name}', data))
    for name in files:
        for kind in rng.sample(THINGS, 4):
            yield Fault(f'{name}: {kind}', rng.choice(commands), instead(f'runs/run/{name}', kind))
    sound = json.loads((folder / 'result.json').read_text())
    for _ in range(30):
        key, value = rng.choice(list(sound)), rng.choice(NUMBERS)
        data = json.dumps({**sound, key: value}).encode()
        yield Fault(
            f'result.json: {key} = {str(value)[:30]!r}',
            rng.choice(commands[:5]),
            replaced('runs/run/result.json', data),
        )
    for key in list(sound)[:8]:
        data = json.dumps({name: value for name, value in sound.items() if name != key}).encode()
        yield Fault(f'result.json without {key}', REPORT, replaced('runs/run/result.json', data))


def studies(rng: random.Random, world: Path) -> Faults:
    """A study with results: its file changed, its runs changed, gone or exchanged."""
    text = (world / 'rates.yaml').read_text()
    report = ('report', 'runs/rates', '--data-dir', 'data')
    inside = world / 'runs' / 'rates'
    trained = sorted(path.parent.relative_to(inside) for path in inside.rglob('result.json'))
    changes = {
        'another claim': text.replace('fast > slow', 'slow > fast'),
        'another title': text.replace('Which rate?', '\x1b[2JWhich'),
        'a margin': text.replace('order: fast', 'margin: 1, order: fast'),
        'fewer seeds': text.replace('seeds: 2', 'seeds: 1'),
        'a run renamed': text.replace('slow', 'slower'),
        'no claims': text.split('claims')[0],
        'an unknown metric': text.replace('top1', 'top9'),
        'an unknown run': text.replace('fast > slow', 'fast > nobody'),
        'a claim twice': text + text.splitlines(True)[-1],
    }
    for name, changed in changes.items():
        yield Fault(
            f'study file: {name}',
            (*STUDY, '--dry-run'),
            replaced('rates.yaml', changed.encode()),
            parts=STUDY_PARTS,
            writes=('runs/rates/*',),
        )
    for number in range(20):
        name = rng.choice(('result.json', 'metrics.jsonl', 'args.yaml', 'analysis.json', 'predictions.safetensors'))
        path = f'runs/rates/{trained[number % len(trained)]}/{name}'
        if number % 2:
            how, data = damaged((world / path).read_bytes(), rng)
            yield Fault(
                f'{name} of a study: {how}', report, replaced(path, data), parts=STUDY_PARTS, writes=('runs/rates/*',)
            )
        else:
            kind = rng.choice(THINGS)
            yield Fault(
                f'{name} of a study: {kind}', report, instead(path, kind), parts=STUDY_PARTS, writes=('runs/rates/*',)
            )
    for kind in ('nothing', 'text', 'a folder', 'a link to itself'):
        yield Fault(
            f'study.yaml in its folder: {kind}',
            report,
            instead('runs/rates/study.yaml', kind),
            parts=STUDY_PARTS,
            writes=('runs/rates/*',),
        )
        yield Fault(
            f'a run of a study: {kind}',
            report,
            instead(f'runs/rates/{trained[0]}', kind),
            parts=STUDY_PARTS,
            writes=('runs/rates/*',),
        )


def caches(rng: random.Random, world: Path) -> Faults:
    """Decoded images and compiled kernels: noise, damage, others' rights, files instead of folders."""
    first = (*TRAIN[:-1], 'first', '--epochs', '1')

    def everywhere(change: Callable[[Path], object], pattern: str) -> Injure:
        def injure(world: Path) -> None:
            for path in sorted(world.parent.glob(f'cache/{pattern}')):
                change(path)

        return injure

    def spoil(path: Path, seed: int, how: str) -> None:
        data, draw = path.read_bytes(), random.Random(seed)
        path.write_bytes(damaged(data, draw)[1] if how == 'damaged' else _noise(data, draw, how))

    for number in range(36):
        how = ('damaged', '3000 bytes', 'one bit')[number % 3]
        pattern = ('decoded/*/rows.bin', 'decoded/*/meta.json', 'decoded/*/rows.bin')[number % 2]
        spoiled = everywhere(partial(spoil, seed=rng.randrange(10**6), how=how), pattern)
        yield Fault(f'cache: {pattern} {how}', TRAIN, spoiled, first=first, codes=(0,), same=True, parts=('data',))
    for number in range(9):
        how = ('damaged', 'one bit', '3000 bytes')[number % 3]
        spoiled = everywhere(partial(spoil, seed=rng.randrange(10**6), how=how), 'kernels/*.so')
        yield Fault(f'kernels: {how}', TRAIN, spoiled, codes=(0,), same=True, parts=('data',))
    rights = {'0777': 0o777, '0000': 0, '0444': 0o444}
    for name, mode in rights.items():
        for pattern in ('decoded', 'kernels', 'decoded/*', 'kernels/*.so', 'decoded/*/rows.bin'):
            yield Fault(
                f'cache: {pattern} of mode {name}',
                TRAIN,
                everywhere(partial(os.chmod, mode=mode), pattern),
                first=first,
                codes=(0, 2),
                same=True,
                parts=('data',),
            )
    for pattern in ('decoded', 'kernels', 'decoded/*', 'decoded/*/rows.bin', 'kernels/*.so'):
        for kind in ('nothing', 'a folder', 'text', 'a link to itself', '/dev/null', 'a fifo'):
            changed = everywhere(lambda path, kind=kind: instead(path.name, kind)(path.parent), pattern)
            yield Fault(f'cache: {pattern} is {kind}', TRAIN, changed, first=first, same=True, parts=('data',))

    def exchange(world: Path) -> None:
        one, other = (world / 'data' / 'train' / 'class0' / name for name in ('0.png', '1.png'))
        status = one.stat()
        data = other.read_bytes()
        one.write_bytes(data[: status.st_size].ljust(status.st_size, b'\0'))
        os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))

    for number in range(6):
        flags = (('--seed', str(number)),)[0]
        yield Fault(
            f'an image exchanged, of the same size and time {number}',
            (*TRAIN, *flags),
            exchange,
            first=first,
            codes=(0,),
            parts=('data',),
            after=_other_images,
        )
    for words in (('data', 'cache', '--list'), ('data', 'cache', '--clear')):
        for kind in ('nothing', 'text', 'a folder', 'a link to itself', 'a fifo'):
            for pattern in ('decoded', 'decoded/*', 'decoded/*/meta.json'):
                changed = everywhere(lambda path, kind=kind: instead(path.name, kind)(path.parent), pattern)
                yield Fault(f'cache: {pattern} is {kind}', words, changed, first=first, parts=('data',))


def _noise(data: bytes, rng: random.Random, how: str) -> bytes:
    at = rng.randrange(len(data))
    if how == 'one bit':
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data[:at] + rng.randbytes(min(3000, len(data) - at)) + data[at + 3000 :]


def _other_images(world: Path, out: str) -> str:
    one, other = (
        json.loads((world / 'runs' / name / 'result.json').read_text())['dataset']['hash'] for name in ('first', 'new')
    )
    return 'the exchanged image was not noticed' if one == other else ''
