"""Whole runs of our scripts and timm's, in turns: throughput, memory, validation, time to an accuracy."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, competing, in_turns, ratio, report, run_process, subset
from step import VARIANTS

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError

RECIPE = ROOT / 'hparams' / 'mbv2_mish.yaml'
EPOCHS = 2  # the last is measured
TIMMS_MISH = ['--model', 'mobilenetv2_100', '--model-kwargs', 'act_layer=mish']  # mbv2_mish_imagenette without our Mish
FIRST_STEP = r'Train: 0 \[\s*0/|epoch 1 1/'  # timm's line, and ours
CACHES = ('IMAGENETTE_ZOO_CACHE', 'TORCHINDUCTOR_CACHE_DIR', 'TRITON_CACHE_DIR')


def _options(args: argparse.Namespace, model: str, data: Path) -> list[str | Path]:
    """The arguments that both scripts are given."""
    precision = ['--amp', '--amp-dtype', 'bfloat16'] if args.amp else []
    sizes = ['--img-size', str(args.img_size), '-b', str(args.batch_size)]
    return ['-c', RECIPE, '--model', model, '--data-dir', data, *sizes, '--device', args.device, *precision]


def ablation(args: argparse.Namespace) -> None:
    """Steps on a resident batch: what each thing adds, and where the time goes."""
    details: dict[str, Any] = {}

    def rate(variant: str) -> float:
        words = [ROOT / 'benchmarks' / 'step.py', variant, '--model', args.models[0], '--device', args.device]
        words += ['--img-size', args.img_size, '--batch-size', args.batch_size, '--steps', args.steps]
        output, _, _ = run_process(words)
        details[variant] = json.loads(output.splitlines()[-1])
        return details[variant]['images_per_second']

    series = in_turns({variant: lambda variant=variant: rate(variant) for variant in VARIANTS}, args.rounds)
    ratios = {f'{variant} / torch': ratio(series, variant, 'torch') for variant in VARIANTS[1:]}
    report('ablation', 'images/s', series, ratios, argparse.Namespace(**{**vars(args), 'amp': False}), details)


def _training(args: argparse.Namespace) -> tuple[Callable[..., float], Callable[..., float], dict[str, list[float]]]:
    """What trains by timm's script and by ours, each giving images/s of the last of two epochs, and what fills with the
    memory of each whole run."""
    data = subset(args.data_dir, Path(args.scratch) / 'train-data', args.images // 10, 2)
    memory: dict[str, list[float]] = {}
    number = iter(range(10**6))

    def timms(model: str, *more: str) -> float:
        words = [args.timm_dir / 'train.py', '--device-modules', 'imagenette_zoo', *_options(args, model, data)]
        words += TIMMS_MISH if model == 'mbv2_mish_imagenette' else []
        words += ['--epochs', str(EPOCHS), '--warmup-epochs', '0', '--output', Path(args.scratch) / 'timm', *more]
        words += ['--log-interval', '1', '-j', str(args.workers)]
        output, _, peak = run_process(words, args.timm_dir, device=args.device)
        memory.setdefault(' '.join([model, 'timm', *more]), []).append(peak)
        # "Train: 1 [  14/15 (100%)]  Loss: ...  Time: 1.946s,   32.88/s  (2.018s,   31.71/s)  LR: ...": the mean so far
        return float(re.findall(rf'Train: {EPOCHS - 1} \[.*?\(\s*[\d.]+s,\s*([\d.]+)/s\)', output)[-1])

    def ours(model: str, **variables: str) -> float:
        name = f'run{next(number)}'
        words: Sequence[Any] = [ROOT / 'train.py', *_options(args, model, data), '--epochs', EPOCHS]
        words = [*words, '--warmup-epochs', '0', '--output', args.scratch, '--experiment', name]
        _, _, peak = run_process(words, device=args.device, variables=variables)
        memory.setdefault(f'{model} ours', []).append(peak)
        folder = Path(args.scratch) / name
        row = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
        shutil.rmtree(folder)
        return row['train_images'] / row['train_seconds']

    return timms, ours, memory


def start(args: argparse.Namespace) -> None:
    """Seconds from the start of the process to the end of the first training step, of all images: of our script and
    timm's, of ours also with nothing decoded or compiled, and of an earlier checkout of ours."""
    number = iter(range(10**6))
    model = args.models[0]

    def seconds(script: Path, checkout: Path, *more: str, cold: bool = False, until: str = FIRST_STEP) -> float:
        name = f'start{next(number)}'
        words: list[Any] = [script, *_options(args, model, args.data_dir), *more, '--log-interval', '1']
        words += ['--output', args.scratch, '--experiment', name]
        caches = {variable: str(Path(args.scratch) / f'{name}-{variable}') for variable in CACHES} if cold else {}
        elapsed = run_process(words, checkout, variables=caches, until=until)[1]
        for folder in caches.values():  # gigabytes, which would push the warm cache out of memory
            shutil.rmtree(folder, ignore_errors=True)
        return elapsed

    more = ['--device-modules', 'imagenette_zoo', '-j', str(args.workers)]
    more += TIMMS_MISH if model == 'mbv2_mish_imagenette' else []
    ours = {'ours': ROOT, **({'ours, earlier': args.earlier} if args.earlier else {})}
    contestants = {'timm': lambda: seconds(args.timm_dir / 'train.py', args.timm_dir, *more)}
    for name, root in ours.items():
        # decodes, and compiles the kernels
        seconds(root / 'train.py', root, '--epochs', '1', '--warmup-epochs', '0', until='')
        contestants[name] = lambda root=root: seconds(root / 'train.py', root)
        contestants[f'{name}, the first time'] = lambda root=root: seconds(root / 'train.py', root, cold=True)
    series = in_turns(contestants, args.rounds)
    pairs = [('timm', 'ours'), ('timm', 'ours, the first time')]
    if args.earlier:
        pairs += [('ours, earlier', 'ours'), ('ours, earlier, the first time', 'ours, the first time')]
    ratios = {f'{one} / {other}': ratio(series, one, other) for one, other in pairs}
    report(f'start-{model}', 'seconds', series, ratios, args)


def busy(args: argparse.Namespace) -> None:
    """Training images/s of our script and timm's while other processes compete for the processors."""
    timms, ours, _ = _training(args)
    model = args.models[0]
    contestants = {
        'ours': lambda: ours(model),
        "ours, OpenMP's own wait": lambda: ours(model, GOMP_SPINCOUNT='300000'),
        'ours, one thread': lambda: ours(model, OMP_NUM_THREADS='1'),
        'timm': lambda: timms(model),
    }
    ours(model)  # decodes, and compiles the kernels
    series: dict[str, list[float]] = {}
    for others in args.competitors:
        with competing(others):
            found = in_turns(contestants, args.rounds)
        series |= {f'{name}, {others} competing': rates for name, rates in found.items()}
    ratios = {
        f'ours / {name}, {others} competing': ratio(series, f'ours, {others} competing', f'{name}, {others} competing')
        for others in args.competitors
        for name in list(contestants)[1:]
    }
    report(f'busy-{model}', 'images/s', series, ratios, args)


def train(args: argparse.Namespace) -> None:
    """Training images/s of the last of two epochs, and the memory of the whole run, for each model."""
    timms, ours, memory = _training(args)
    for model in args.models:
        contestants = {'ours': lambda model=model: ours(model), 'timm': lambda model=model: timms(model)}
        if args.timm_compiled:
            contestants['timm --torchcompile'] = lambda model=model: timms(model, '--torchcompile')
        series = in_turns(contestants, args.rounds)
        ratios = {f'ours / {name}': ratio(series, 'ours', name) for name in list(series)[1:]}
        report(f'train-{model}', 'images/s', series, ratios, args)
        spent = {name: memory[f'{model} {name}'] for name in series}
        if not all(map(all, spent.values())):
            print('memory: cannot be measured on this machine\n', flush=True)
            continue
        ratios = {f'ours / {name}': ratio(spent, 'ours', name) for name in list(series)[1:]}
        report(f'memory-{model}', 'MiB', spent, ratios, args)


def validate(args: argparse.Namespace) -> None:
    """Images/s of the validation of the flagship with random weights: the pass over the images, and whole processes."""
    import timm
    from safetensors.torch import save_file

    folder = Path(args.scratch) / 'weights'
    folder.mkdir(exist_ok=True)
    checkpoint = folder / 'model.safetensors'
    model = timm.create_model('mbv2_mish_imagenette')
    save_file(model.state_dict(), checkpoint)
    data = subset(args.data_dir, Path(args.scratch) / 'val-data', 2, args.val_images // 10)
    images = sum(1 for _ in (data / 'val').rglob('*.*'))
    seconds: dict[str, list[float]] = {}
    both: list[Any] = ['--checkpoint', checkpoint, '--data-dir', data, '-b', '256']
    both += ['--img-size', args.img_size, '--channels-last', '--device', args.device]
    both += ['--amp', '--amp-dtype', 'bfloat16'] if args.amp else []

    def timms() -> float:
        words = [args.timm_dir / 'validate.py', *TIMMS_MISH, '--num-classes', '10', *both]
        words += ['--dataset', 'ImageFolder', '--split', 'validation', '--log-freq', '1', '-j', args.workers]
        output, elapsed, _ = run_process(words, args.timm_dir)
        seconds.setdefault('timm', []).append(elapsed)
        # "Test: [  3/4]  Time: 0.9s (0.990s,  258.55/s)  Loss: ...": mean seconds a batch, images/s of the last one
        times = re.findall(r'Test: \[.*?\(\s*([\d.]+)s,', output)
        return images / (float(times[-1]) * len(times))

    def ours(*more: str) -> float:
        path = Path(args.scratch) / 'validation.json'
        words = [ROOT / 'validate.py', '--model', 'mbv2_mish_imagenette', *both, '--results-file', path, *more]
        _, elapsed, _ = run_process(words)
        seconds.setdefault(' '.join(['ours', *more]), []).append(elapsed)
        return json.loads(path.read_text())['images_per_second']

    ours()  # decodes, and compiles the kernels
    first = seconds.pop('ours')[0]
    contestants = {'timm': timms, 'ours': ours, 'ours --reparam': lambda: ours('--reparam')}
    series = in_turns(contestants, args.rounds)
    ratios = {f'{name} / timm': ratio(series, name, 'timm') for name in ('ours', 'ours --reparam')}
    report('validate', 'images/s', series, ratios, args)
    whole = {f'timm / {name}': ratio(seconds, 'timm', name) for name in ('ours', 'ours --reparam')}
    whole['timm / ours, first time'] = statistics.median(seconds['timm']) / first
    report('validate-process', 'seconds', {**seconds, 'ours, first time': [first]}, whole, args)


def accuracy(args: argparse.Namespace) -> None:
    """Seconds from the start of the process, nothing decoded or compiled before, to the accuracy asked for, for each
    seed; of the flagship timm's script has timm's own, with its own Mish. A run is stopped when it is there."""
    recipe = Recipe.load(args.recipe)
    if (
        recipe.train_img_sizes
        and 'timm' in args.order
        and not (args.timm_dir / 'timm/data/scheduled_sampler.py').exists()
    ):
        raise UserError(f'--timm-dir {args.timm_dir}: {args.recipe} needs a timm with scheduled sizes, from 1.0.29 on')
    seconds: dict[str, list[float | None]] = {name: [] for name in args.order}
    curves: dict[str, list[Any]] = {name: [] for name in args.order}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name in args.order:
            folder = Path(args.scratch) / f'accuracy-{name}-{seed}'
            words: list[Any] = ['-c', args.recipe, '--data-dir', args.data_dir, '--device', args.device]
            words += ['--output', args.scratch, '--experiment', folder.name, '--seed', seed]
            words += ['--amp', '--amp-dtype', 'bfloat16'] if args.amp else []
            cold = {variable: f'{folder}-{variable}' for variable in CACHES}
            if name == 'timm':
                words = [args.timm_dir / 'train.py', '--device-modules', 'imagenette_zoo', *words, '-j', args.workers]
                words += TIMMS_MISH if recipe.model == 'mbv2_mish_imagenette' else []
            else:
                words = [ROOT / 'train.py', *words]
            curve: list[dict[str, float]] = []
            curves[name].append(curve)
            checkout = args.timm_dir if name == 'timm' else None
            run_process(words, checkout, lambda *times, f=folder, c=curve: _note(f, c, args.target, *times), cold)
            there = (row['seconds'] for row in curve if row['top1'] >= args.target)
            seconds[name].append(next(there, None))
        ratios = {'timm / ours': ratio(seconds, 'timm', 'ours')} if len(seconds) == 2 else {}
        report(f'to-{args.target:g}', 'seconds', seconds, ratios, args, curves)


def loaders(args: argparse.Namespace) -> None:
    """Final top-1 with images from the cache, augmented as batches, and with timm's transforms, over seeds."""
    accuracies: dict[str, list[float]] = {'cache': [], 'timm': []}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for loader, top1 in accuracies.items():
            words: list[Any] = [
                ROOT / 'train.py',
                *_options(args, args.models[0], args.data_dir),
                '--epochs',
                args.epochs,
            ]
            words += ['--seed', seed, '--loader', loader, '--output', args.scratch, '--experiment', f'{loader}-{seed}']
            run_process([*words, '-j', args.workers])
            result = json.loads((Path(args.scratch) / f'{loader}-{seed}' / 'result.json').read_text())
            top1.append(result['top1'])
            print(f'{loader}, seed {seed}: {top1[-1]:.2f} %', flush=True)
        report('loaders', 'top-1 %', accuracies, {}, args, _paired(accuracies))


def distillation(args: argparse.Namespace) -> None:
    """Final top-1 of a student that is taught, by timm's script and ours, over seeds; both have the same options."""
    accuracies: dict[str, list[float]] = {name: [] for name in args.order}
    losses: dict[str, list[float]] = {name: [] for name in args.order}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for name, top1 in accuracies.items():
            folder = Path(args.scratch) / f'taught-{name}-{seed}'
            words: list[Any] = _options(args, args.models[0], args.data_dir)
            words += ['--kd-model-name', args.teacher, '--kd-distill-type', args.distill_type, '-j', args.workers]
            words += ['--epochs', args.epochs, '--seed', seed, '--output', args.scratch, '--experiment', folder.name]
            if name == 'timm':
                words += TIMMS_MISH if args.models[0] == 'mbv2_mish_imagenette' else []
                run_process([args.timm_dir / 'train.py', '--device-modules', 'imagenette_zoo', *words], args.timm_dir)
            else:
                run_process([ROOT / 'train.py', *words])
            rows = list(csv.DictReader((folder / 'summary.csv').read_text().splitlines()))
            top1.append(float(rows[-1]['eval_top1']))
            losses[name].append(float(rows[-1]['train_loss']))
            print(f'{name}, seed {seed}: {top1[-1]:.2f} %, training loss {losses[name][-1]:.3f}', flush=True)
        details = {'training loss of the last epoch': losses, **(_paired(accuracies) if len(args.order) == 2 else {})}
        report('distillation', 'top-1 %', accuracies, {}, args, details)


def _paired(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The differences between two series, seed by seed."""
    (one, first), (other, second) = accuracies.items()
    differences = [a - b for a, b in zip(first, second, strict=True)]
    details: dict[str, Any] = {f'{one} - {other}, points': differences}
    if len(differences) > 1:
        details['standard error'] = statistics.stdev(differences) / len(differences) ** 0.5
    return details


def _note(folder: Path, curve: list[dict[str, float]], target: float, seconds: float, processor_seconds: float) -> bool:
    """Notes when each epoch's validation appears in a run's summary; whether one has reached the target."""
    summary = folder / 'summary.csv'
    lines = summary.read_text().splitlines() if summary.exists() else []
    accuracies = [float(row['eval_top1']) for row in csv.DictReader(lines) if row['eval_top1']]
    for top1 in accuracies[len(curve) :]:
        curve.append({'seconds': seconds, 'processor_seconds': processor_seconds, 'top1': top1})
        print(f'{folder.name}: {top1:.2f} % after {seconds:.0f} s, {processor_seconds:.0f} s of processors', flush=True)
    return any(row['top1'] >= target for row in curve)
