"""Kills, starves and feeds garbage to what should survive it; prints what came out and writes it as JSON.

    python tools/soak.py kill       SIGKILL at random instants, half of them while a file is being written
    python tools/soak.py fuzz       damaged files for every parser (needs hypothesis)
    python tools/soak.py endure     200 epochs: memory, files, threads and disk must not grow
    python tools/soak.py faults     more than 1,000 faults of many kinds, each in a small world of its own (faults.py)

Exits with 1 where a promise is broken. docs/reliability.md says what is promised.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from faults import LOADED, SERVER, faults
from PIL import Image
from safetensors.torch import save

from imagenette_zoo.cli.main import main as cli_main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data.folders import load_split, with_label_noise
from imagenette_zoo.data.images import image_size, open_image
from imagenette_zoo.data.locate import find_root
from imagenette_zoo.errors import UserError, UserErrors
from imagenette_zoo.models.model_folder import read_config, read_weights
from imagenette_zoo.study.analysis import FILES, TENSORS, read_analysis
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.records import read_record
from imagenette_zoo.training.result import Result, read_result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.utils.environment import hardware, versions
from imagenette_zoo.utils.files import write_json

ROOT = Path(__file__).parent.parent
RECIPES = {
    'EMA, mixup, images from the cache': dict(
        opt='momentum', lr=0.02, sched_on_updates=True, model_ema=True, model_ema_decay=0.9, mixup=0.2, drop=0.1,
        reprob=0.25, train_img_sizes=[32, 40],
    ),
    "AdamW, accumulation, plateau, timm's loader with two workers": dict(
        opt='adamw', lr=0.003, grad_accum_steps=2, clip_grad=1.0, sched='plateau', patience_epochs=2, loader='timm',
        workers=2, drop_path=0.1,
    ),
}  # fmt: skip


ROW = 0.002  # MiB of metrics that an epoch may leave
NASTY = [b'\xff' * 8, b'\0' * 8, b'9' * 12, b'-1', b'[[', b'{', b'NaN', b'&a [*a]', b'!!python/object/apply:os.system']


def make_images(root: Path, classes: int = 3, train: int = 16, val: int = 4) -> Path:
    """An image folder of noise of different colours."""
    rng = np.random.RandomState(0)
    for split, count in (('train', train), ('val', val)):
        for index in range(classes):
            folder = root / split / f'class{index}'
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.randint(0, 120, (48, 52, 3))
                pixels[..., index % 3] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


# --- Kills ------------------------------------------------------------------------------------------------------------


def kill(kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Kills runs again and again; when they have come to their end they must equal undisturbed ones."""
    data = make_images(scratch / 'data')
    rng = random.Random(seed)
    rows = []
    for number, (name, options) in enumerate(RECIPES.items()):
        recipe = dict(
            model='test_resnet', img_size=32, epochs=40, batch_size=8, warmup_epochs=0, device='cpu',
            torchcompile='none', data_dir=str(data), output=str(scratch), recovery_interval=2, checkpoint_hist=3,
            **options,
        )  # fmt: skip
        file = scratch / f'recipe{number}.yaml'
        file.write_text(yaml.safe_dump(recipe))
        whole = scratch / f'whole{number}'
        _process(file, whole.name).join()
        wanted = _content(whole)
        survived, while_writing, sound, lives = 0, 0, 0, 0
        while survived < kills:
            lives += 1
            folder = scratch / f'killed{number}-{lives}'
            while not (folder / 'result.json').exists():
                process = _process(file, folder.name)
                if survived < kills:
                    writing = _kill_somewhere(process, folder, rng, in_a_write=survived % 2 == 1)
                    survived += writing is not None
                    while_writing += writing is True
                process.join()
                if process.exitcode not in (0, -9):
                    raise SystemExit(f'{folder}: ended with {process.exitcode} after {survived} kills')
            sound += _content(folder) == wanted
        rows.append({
            'recipe': name, 'kills': survived, 'of them while a file was written': while_writing, 'runs': lives,
            'runs equal to the undisturbed one': sound,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return {'rows': rows, 'kept': all(row['runs'] == row['runs equal to the undisturbed one'] for row in rows)}


def _process(recipe: Path, experiment: str) -> Any:
    process = SERVER.Process(target=_train, args=(str(recipe), experiment))
    process.start()
    return process


def _train(recipe: str, experiment: str) -> None:
    multiprocessing.set_start_method('fork', force=True)  # of data workers, as without the server
    torch.set_num_threads(1)
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        code = cli_main(['train', '-c', recipe, '--experiment', experiment, '--resume'])
    os._exit(code)


def _kill_somewhere(process: Any, folder: Path, rng: random.Random, in_a_write: bool) -> bool | None:
    """SIGKILL; returns whether a file was being written, or None where the process was faster."""
    until = time.monotonic() + (rng.uniform(0, 6) if not in_a_write else 60)
    writes, wanted, was_there = 0, rng.randint(1, 40), False
    while process.is_alive() and time.monotonic() < until:
        if in_a_write:
            there = _being_written(folder)
            writes += there and not was_there
            was_there = there
            if there and writes >= wanted:
                break
        else:
            time.sleep(0.001)
    if not process.is_alive():
        return None
    process.kill()
    process.join()
    return _being_written(folder)


def _being_written(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(name.endswith('.tmp') for name in os.listdir(folder))
    return False


def _content(folder: Path) -> dict[str, Any]:
    """All that must not depend on what a run went through."""
    result = json.loads((folder / 'result.json').read_text())
    for name in ('seconds', 'images_per_second', 'peak_memory_mib', 'command', 'recipe'):
        del result[name]
    weights = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('model.safetensors'))}
    return {'result': result, 'summary': (folder / 'summary.csv').read_text(), 'weights': weights}


# --- Damaged files ----------------------------------------------------------------------------------------------------


def parsers(scratch: Path) -> dict[str, tuple[str, bytes, Callable[[Path], Any]]]:
    """Each parser: a name for its file, a sound file, and the call that reads it."""
    result = Result(
        'm', 50.0, 50.0, 0, 90.0, 1.0, {'a': 50.0}, 1, 32, 42, 10, None, {'total': 1.0, 'to_80': None}, 1.0, 1.0,
        {'lr': 0.1}, {'name': 'x', 'train': 1}, {'torch': '2'}, {'device': 'cpu'}, 'train.py',
    )  # fmt: skip
    data = make_images(scratch / 'noisy', train=2, val=1)
    images = load_split(data)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(['path', 'noisy_labels_0', 'noisy_labels_5', 'is_valid'])
    writer.writerows([path, path.split('/')[1], path.split('/')[1], False] for path in images.paths)
    weights = {'conv.weight': torch.randn(4, 3, 3, 3), 'bn.running_mean': torch.zeros(4)}
    checkpoint, old, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({'state_dict': weights, 'epoch': 3}, checkpoint)
    run = RunFolder(scratch / 'saved')
    run.path.mkdir()
    run.save_state({'state_dict': weights, 'environment': {'threads': 1}})
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    with tarfile.open(fileobj=archive, mode='w:gz') as tar:
        tar.add(data, 'set')
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (24, 32, 3)).astype(np.uint8))

    def encoded(kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    def run_folder(path: Path) -> Any:
        return read_result(path.parent)

    def state(path: Path) -> Any:
        data = path.read_bytes()
        values = RunFolder(path.parent).parse_state(data)
        assert data == run['state.pt'].read_bytes(), 'a damaged state was read'
        return values

    def noise(path: Path) -> Any:
        shutil.copyfile(path, data / 'noisy_imagenette.csv')
        return with_label_noise(images, 5)

    def beside(name: str, sound: bytes, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        """Reads a damaged file of a run together with a sound one."""

        def reader(path: Path) -> Any:
            whole = scratch / f'beside {name}'
            whole.mkdir(exist_ok=True)
            (whole / name).write_bytes(sound)
            shutil.copyfile(path, whole / path.name)
            return read(whole)

        return reader

    def both(path: Path) -> Any:
        with contextlib.suppress(UserError):
            image_size(path)
        return open_image(path)

    config = {
        'architecture': 'resnet18',
        'num_classes': 2,
        'pretrained_cfg': {'mean': [0.5] * 3},
        'label_names': ['a', 'b'],
    }
    row = {
        'epoch': 0,
        'train_loss': 1.0,
        'train_seconds': 1.0,
        'seconds': 2.0,
        'eval_top1': 50.0,
        'per_class': {'a': 1.0},
    }
    block = {
        'name': 'b',
        'kinds': ['kernel 3'],
        'residual': True,
        'cka': [[1.0]],
        'cosine': [[1.0]],
        'top1_lost': [0.5],
    }
    looked_at = {
        'top1': 50.0, 'train_top1': 60.0, 'train_images': 4, 'shift_consistency': 90.0, 'calibration_error': 1.0,
        'class_names': ['a', 'b'], 'confusion': [[1, 1], [0, 2]], 'passes': [block], 'data': 'set/val',
    }  # fmt: skip
    tensors = save({name: torch.tensor([0, 1, 1, 0]).to(kind) for name, kind in TENSORS.items()})
    facts = json.dumps(looked_at).encode()
    of_a_run = json.dumps(result.as_json()).encode()
    recipe = yaml.safe_dump(Recipe(model='resnet18', model_kwargs={'a': [1, {'b': 2}]}).as_dict()).encode()
    return {
        'recipe': ('recipe.yaml', recipe, Recipe.load),
        'result': ('result.json', of_a_run, run_folder),
        'metrics': (
            'metrics.jsonl',
            f'{json.dumps(row)}\n'.encode() * 2,
            beside('result.json', of_a_run, lambda whole: read_record(whole, 'run')),
        ),
        'analysis': (FILES[0], facts, beside(FILES[1], tensors, read_analysis)),
        'predictions': (FILES[1], tensors, beside(FILES[0], facts, read_analysis)),
        'study': ('study.yaml', (ROOT / 'hparams' / 'studies' / 'claims-cpu.yaml').read_bytes(), read_study),
        'model config': ('config.json', json.dumps(config).encode(), lambda path: read_config(path.parent)),
        'noisy labels': ('noise.csv', table.getvalue().encode(), noise),
        'safetensors': ('model.safetensors', save(weights), read_weights),
        'torch checkpoint': ('model.pth', checkpoint.getvalue(), read_weights),
        'torch checkpoint, old format': ('old.pth', old.getvalue(), read_weights),
        'state of a run': ('state.pt', run['state.pt'].read_bytes(), state),
        'JPEG': ('image.jpg', encoded('JPEG', quality=80), both),
        'PNG': ('image.png', encoded('PNG'), both),
        'archive': ('set.tgz', archive.getvalue(), find_root),
    }


def fuzz(inputs: int, seed: int, scratch: Path, names: list[str] | None = None) -> dict[str, Any]:
    """Damages a sound file of each kind in many ways; each must be read or refused with a line."""
    os.environ['IMAGENETTE_ZOO_CACHE'] = str(scratch / 'cache')
    rows = []
    known = parsers(scratch)
    if unknown := set(names or ()) - known.keys():
        raise SystemExit(f'--parsers: {", ".join(unknown)}: expected some of {", ".join(known)}')
    for name, (file_name, sound, parse) in known.items():
        if names and name not in names:
            continue
        path = scratch / name.replace(' ', '-') / file_name
        path.parent.mkdir()
        path.write_bytes(sound)
        parse(path)  # what is not damaged is read
        rows.append({'parser': name, **_fuzz_one(path, sound, parse, inputs, seed)})
        left = sorted(entry.name for entry in path.parent.iterdir())
        assert left == [file_name], f'{name}: left {left}'
        print(json.dumps(rows[-1]), flush=True)
    return {'rows': rows, 'kept': True}


def _fuzz_one(path: Path, sound: bytes, parse: Callable[[Path], Any], inputs: int, seed: int) -> dict[str, float]:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    counts = {'inputs': 0, 'read': 0, 'refused': 0, 'slowest, seconds': 0.0}
    positions = st.integers(0, len(sound))
    edit = st.one_of(
        st.tuples(st.just('flip'), positions, st.integers(1, 255)),
        st.tuples(st.just('cut'), positions, st.integers(1, 64)),
        st.tuples(st.just('put'), positions, st.binary(max_size=16)),
        st.tuples(st.just('set'), positions, st.sampled_from(NASTY)),
        st.tuples(st.just('twice'), positions, st.integers(1, 256)),
        st.tuples(st.just('end'), positions, st.just(0)),
    )
    edits_or_noise = st.one_of(st.binary(max_size=200), *[st.lists(edit, min_size=1, max_size=6)] * 9)

    def damage(edits: Any) -> None:
        path.write_bytes(edits if isinstance(edits, bytes) else _edited(sound, edits))
        start = time.perf_counter()
        try:
            parse(path)
            counts['read'] += 1
        except UserError as error:
            counts['refused'] += 1
            lines = error.lines if isinstance(error, UserErrors) else [str(error)]
            if any('\n' in line.strip() for line in lines):
                raise AssertionError(f'more than a line: {error}') from error
        counts['inputs'] += 1
        counts['slowest, seconds'] = max(counts['slowest, seconds'], time.perf_counter() - start)

    careless = settings(
        max_examples=inputs, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seeded(seed)(careless(given(edits_or_noise)(damage)))()
    return counts


def _edited(data: bytes, edits: list[tuple[str, int, Any]]) -> bytes:
    for kind, at, what in edits:
        at = min(at, len(data))
        if kind == 'flip' and at < len(data):
            data = data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
        elif kind == 'cut':
            data = data[:at] + data[at + what :]
        elif kind == 'put':
            data = data[:at] + what + data[at:]
        elif kind == 'set':
            data = data[:at] + what + data[at + len(what) :]
        elif kind == 'twice':
            data = data[: at + what] + data[at:]
        elif kind == 'end':
            data = data[:at]
    return data


# --- A long run -------------------------------------------------------------------------------------------------------


def endure(epochs: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Trains for many epochs and samples this process after each."""
    data = make_images(scratch / 'data')
    rows = []
    for loader in ('cache', 'timm'):
        samples: list[dict[str, float]] = []
        command = [
            'train', '--model', 'test_resnet', '--img-size', '32', '--epochs', str(epochs), '-b', '8', '--opt', 'adamw',
            '--lr', '0.001', '--warmup-epochs', '0', '--device', 'cpu', '--data-dir', str(data),
            '--output', str(scratch), '--experiment', loader, '--seed', str(seed), '--loader', loader, '-j', '2',
            '--checkpoint-hist', '3', '--model-ema', '--recovery-interval', '2',
        ]  # fmt: skip
        with _sampled(samples), contextlib.redirect_stdout(io.StringIO()):
            torch.set_num_threads(1)
            code = cli_main(command)
        settled = samples[len(samples) // 4 :]
        slope = np.polyfit([s['epoch'] for s in settled], [s['memory'] for s in settled], 1)[0]
        early, late = settled[: len(settled) // 2], settled[len(settled) // 2 :]
        kept = ('files', 'threads', 'children', 'disk')
        last = {k: {'most at first': max(s[k] for s in early), 'least at last': min(s[k] for s in late)} for k in kept}
        rows.append({
            'loader': loader, 'exit code': code, 'epochs': epochs, 'KiB an epoch': round(float(slope) * 1024, 1),
            'memory at the end, MiB': round(settled[-1]['memory']), **last,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    sound = all(
        row['exit code'] == 0
        and row['KiB an epoch'] * epochs < 16 * 1024  # a short run has not settled
        and all(row[key]['least at last'] <= row[key]['most at first'] + (key == 'disk') * ROW * epochs for key in kept)
        for row in rows
    )
    return {'rows': rows, 'kept': sound}


@contextlib.contextmanager
def _sampled(samples: list[dict[str, float]]) -> Iterator[None]:
    """Samples this process at the same point of every epoch."""
    save_metrics = RunFolder.save_metrics

    def watched(folder: RunFolder, history: list[dict[str, Any]]) -> None:
        save_metrics(folder, history)
        samples.append({'epoch': len(history), **_footprint(folder.path)})

    RunFolder.save_metrics = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        RunFolder.save_metrics = save_metrics  # type: ignore[method-assign]


def _footprint(folder: Path) -> dict[str, float]:
    status = Path('/proc/self/status').read_text()
    fields = {line.split(':')[0]: line.split()[1] for line in status.splitlines() if len(line.split()) > 1}
    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
    return {
        'memory': int(fields['RssAnon']) / 1024,
        'threads': int(fields['Threads']),
        'files': len(os.listdir('/proc/self/fd')),
        'children': len(children),
        'disk': sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 2**20,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('kill', 'fuzz', 'endure', 'faults'))
    parser.add_argument('--kills', type=int, default=50, help='of each recipe')
    parser.add_argument('--inputs', type=int, default=10_000, help='of each parser')
    parser.add_argument('--parsers', nargs='+', help='of fuzz')
    parser.add_argument('--epochs', type=int, default=200, help='of endure')
    parser.add_argument('--only', nargs='+', default=[], metavar='KIND', help='of faults')
    parser.add_argument('--each', type=int, metavar='N', help='so many of each kind of faults, drawn')
    parser.add_argument('--jobs', type=int, default=2, help='faults at the same time')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', type=Path, metavar='FILE', help='where the result goes (default: in --results-dir)')
    parser.add_argument('--results-dir', type=Path, default=ROOT / 'docs' / 'results' / 'reliability')
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ['IMAGENETTE_ZOO_CACHE'] = str(scratch / 'cache')
        if args.what == 'kill':
            outcome = kill(args.kills, args.seed, scratch)
        elif args.what == 'fuzz':
            outcome = fuzz(args.inputs, args.seed, scratch, args.parsers)
        elif args.what == 'faults':
            outcome = faults(args.seed, scratch, args.only, args.each, args.jobs)
        else:
            outcome = endure(args.epochs, args.seed, scratch)
    outcome.update(seed=args.seed, seconds=time.perf_counter() - start, versions=versions())
    outcome['hardware'] = hardware(torch.device('cpu'))
    name = f'{args.what}-some' if args.parsers or args.only else args.what
    file = args.json or args.results_dir / f'{name}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, outcome)
    print('kept' if outcome['kept'] else 'BROKEN')
    return 0 if outcome['kept'] else 1


if __name__ == '__main__':
    SERVER.set_forkserver_preload(LOADED)
    sys.exit(main())
