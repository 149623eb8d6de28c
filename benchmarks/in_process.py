"""Benchmarks within one process: the input pipeline, the loop, fusion, Mish."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from common import in_turns, ratio, report
from timm.data import create_dataset, create_loader
from torch import nn

from imagenette_zoo import fuse
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.layers import Mish
from imagenette_zoo.layers.mish import much_inference
from imagenette_zoo.models.factory import to_device
from imagenette_zoo.training.cuda_graph import WARM_UP_STEPS
from imagenette_zoo.training.run import Run, open_folder, prepare
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.distributed import World

PIPELINE = 8  # times the images, else half epochs: batches made ahead before the clock starts must not count


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == 'cuda':
        torch.cuda.synchronize()


def rate(run: Callable[[], object], work: float, args: argparse.Namespace) -> float:
    """10^9 units of work a second, of which one run does `work`."""
    run()
    wait(args.device)
    start = time.perf_counter()
    for _ in range(args.steps):
        run()
    wait(args.device)
    return args.steps * work / (time.perf_counter() - start) / 1e9


def ready_run(args: argparse.Namespace, **options: Any) -> Run:
    """A run of the flagship's recipe, ready to go; its folder is a temporary one."""
    recipe = Recipe.load(
        'mbv2_mish', data_dir=str(args.data_dir), device=args.device, img_size=args.img_size, epochs=100,
        batch_size=args.batch_size, output=str(args.scratch), overwrite=True, experiment='in-process',
        amp=args.amp, **{'amp_dtype': 'bfloat16', **options},
    )  # fmt: skip
    folder, state, _ = open_folder(recipe)
    run = prepare(recipe, folder, state, World(torch.device(args.device)), Console(quiet=True))
    folder.unlock()
    return run


def pipeline(args: argparse.Namespace) -> None:
    """Training batches, normalised, on the device: timm's loader against ours; nothing is trained."""
    run = ready_run(args, torchcompile='none')
    config = run.config
    theirs = create_loader(
        create_dataset('', root=str(args.data_dir), split='train', is_training=True),
        input_size=config['input_size'],
        batch_size=args.batch_size,
        is_training=True,
        scale=run.recipe.scale,
        hflip=run.recipe.hflip,
        color_jitter=run.recipe.color_jitter,
        interpolation=run.recipe.train_interpolation,
        mean=config['mean'],
        std=config['std'],
        num_workers=args.workers,
        device=torch.device(args.device),
        persistent_workers=True,
    )
    epochs = itertools.count()
    total = PIPELINE * (args.images or len(run.data.train) // 2)

    def our_batches() -> Iterable[torch.Tensor]:
        while True:
            run.data.train_batches.set_epoch(next(epochs))
            for images, targets in run.data.train_batches:
                yield run.data.transform(images, targets)[0]

    def their_batches() -> Iterable[torch.Tensor]:
        while True:
            for images, _ in theirs:
                yield images

    def rate(batches: Callable[[], Iterable[torch.Tensor]]) -> float:
        images, start = 0, 0.0
        for step, batch in enumerate(batches()):
            if step == args.skipped:  # workers have started
                wait(args.device)
                start = time.perf_counter()
            images += len(batch) if step > args.skipped else 0
            if images >= total:
                break
        wait(args.device)
        return images / (time.perf_counter() - start)

    contestants = {"timm's loader": lambda: rate(their_batches), 'ours': lambda: rate(our_batches)}
    series = in_turns(contestants, args.rounds)
    report('pipeline', 'images/s', series, {'ours / timm': ratio(series, 'ours', "timm's loader")}, args)


def loop(args: argparse.Namespace) -> None:
    """The training loop on real batches against the same steps on one resident batch."""
    run = ready_run(args, torchcompile='none')
    epochs = itertools.count()

    def real() -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            run.data.train_batches.set_epoch(next(epochs))
            for images, targets in run.data.train_batches:
                if len(images) == args.batch_size:
                    yield run.data.transform(images, targets)

    batches = iter(real())
    images, targets = next(batches)
    run.learner.model.train()

    def rate(source: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        wait(args.device)
        start = time.perf_counter()
        for x, y in itertools.islice(source, args.steps):
            run.learner.step(x, y)
        wait(args.device)
        return args.steps * args.batch_size / (time.perf_counter() - start)

    rate(batches)
    contestants = {
        'resident batch': lambda: rate(itertools.repeat((images, targets))),
        'real batches': lambda: rate(batches),
    }
    series = in_turns(contestants, args.rounds)
    report('loop', 'images/s', series, {'real / resident': ratio(series, 'real batches', 'resident batch')}, args)


def recorded(args: argparse.Namespace) -> None:
    """Training steps on a resident batch on a GPU, eager and recorded as a CUDA graph, for each model."""
    _beside_eager('recorded', {'cuda_graph': 'auto'}, args)


def compiled(args: argparse.Namespace) -> None:
    """Training steps on a resident batch, eager and compiled by inductor, for each model."""
    _beside_eager('compiled', {'torchcompile': 'inductor'}, args)


def _beside_eager(way: str, options: dict[str, str], args: argparse.Namespace) -> None:
    eager = {'torchcompile': 'none', 'cuda_graph': 'none'}
    for model in args.models:
        contestants = {'eager': _steps(args, model=model, **eager), way: _steps(args, model=model, **eager | options)}
        series = in_turns(contestants, args.rounds)
        report(f'{way}-{model}', 'images/s', series, {f'{way} / eager': ratio(series, way, 'eager')}, args)


def _steps(args: argparse.Namespace, **options: str) -> Callable[[], float]:
    """Images/s of training steps on a resident batch, which have been taken before."""
    run = ready_run(args, **options)
    run.data.train_batches.set_epoch(0)
    images, targets = run.data.transform(*next(iter(run.data.train_batches)))
    run.learner.model.train()
    for _ in range(WARM_UP_STEPS):
        run.learner.step(images, targets)
    return lambda: 1e9 * rate(lambda: run.learner.step(images, targets), args.batch_size, args)


def fused(args: argparse.Namespace) -> None:
    """`mbv2_mish_mp3_imagenette` in evaluation, as trained and fused: as timm makes it, and as our scripts run it."""
    device = torch.device(args.device)
    model = timm.create_model('mbv2_mish_mp3_imagenette').eval()
    networks = {'as trained': model, 'fused': fuse(model)}
    placed = {f'{way}, validate.py': to_device(deepcopy(each), device, True) for way, each in networks.items()}
    networks = {way: each.to(device, memory_format=torch.channels_last) for way, each in networks.items()} | placed
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    def images_per_second(way: str) -> float:
        many = much_inference() if way in placed else nullcontext()
        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=args.amp), many:
            return 1e9 * rate(lambda: networks[way](images), args.batch_size, args)

    series = in_turns({way: partial(images_per_second, way) for way in networks}, args.rounds)
    ratios = {
        'fused / as trained': ratio(series, 'fused', 'as trained'),
        'in validate.py': ratio(series, 'fused, validate.py', 'as trained, validate.py'),
    }
    report('fused', 'images/s', series, ratios, args)


def layout(args: argparse.Namespace) -> None:
    """Models in evaluation in channels-last layout, which our scripts take on a CPU, and in torch's own."""
    device = torch.device(args.device)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    series, ratios = {}, {}

    def images_per_second(model: nn.Module, batch: torch.Tensor) -> float:
        with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=args.amp):
            return 1e9 * rate(lambda: model(batch), args.batch_size, args)

    for name in args.models:
        ways = {name: torch.contiguous_format, f'{name}, channels-last': torch.channels_last}
        contestants = {}
        for way, memory_format in ways.items():
            model = timm.create_model(name, num_classes=10).eval()
            model = to_device(model, device, memory_format == torch.channels_last)
            batch = images.contiguous(memory_format=memory_format)
            contestants[way] = partial(images_per_second, model, batch)
        series |= in_turns(contestants, args.rounds)
        ratios[name] = ratio(series, f'{name}, channels-last', name)
    report('layout', 'images/s', series, ratios, args)


def mish(args: argparse.Namespace) -> None:
    """Mish forward and backward on 25 Mi elements, against torch's and against copying as many bytes."""
    dtype = torch.bfloat16 if args.amp else torch.float32
    x = torch.randn(25 * 2**20, device=args.device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    target = torch.empty_like(grad)

    def step(activation: nn.Module) -> None:
        x.grad = None
        activation(x).backward(grad)

    def copies() -> None:  # forward reads x and writes y, backward reads x and grad and writes one: five thirds of this
        with torch.no_grad():
            target.copy_(grad)

    ours, torchs = Mish(), nn.Mish()
    contestants = {
        'ours': lambda: rate(lambda: step(ours), 5 * x.nbytes, args),
        "torch's": lambda: rate(lambda: step(torchs), 5 * x.nbytes, args),
        'copy': lambda: rate(copies, 2 * x.nbytes, args),
    }
    series = in_turns(contestants, args.rounds)
    ratios = {'ours / torch': ratio(series, 'ours', "torch's"), 'ours / copy': ratio(series, 'ours', 'copy')}
    report('mish', 'GB/s', series, ratios, args)


def batchnorm(args: argparse.Namespace) -> None:
    """A plain BatchNorm2d in training, channels-last, beside torch's: images/s by size, and how far from float64."""
    series, ratios = {}, {}
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        x = torch.randn(32, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn_like(x)
        layers = {'ours': _batchnorm(channels, ours=True), 'torch': _batchnorm(channels, ours=False)}
        shape = f'{channels}×{size}×{size}'
        contestants = {
            f'{name} {shape}': partial(rate, partial(_norm_step, layer, x, grad), 32e9, args)
            for name, layer in layers.items()
        }
        series |= in_turns(contestants, args.rounds)
        ratios[f'ours / torch, {shape}'] = ratio(series, *contestants)
    threads, errors = torch.get_num_threads(), {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        errors |= {f'{name}, {count} threads': _norm_errors(name == 'ours') for name in ('torch', 'ours')}
    torch.set_num_threads(threads)
    for name, each in errors.items():
        print(f'{name}: ' + ', '.join(f'{what} {error:.1e}' for what, error in each.items()))
    report('batchnorm', 'images/s', series, ratios, args, {'largest error over largest value, 128×16×112×112': errors})


def _batchnorm(channels: int, ours: bool) -> nn.Module:
    layer = nn.BatchNorm2d(channels, momentum=1.0)  # its statistics are the last batch's
    return to_device(layer, torch.device('cpu'), channels_last=True) if ours else layer


def _norm_step(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
    x.grad = None
    layer(x).backward(grad)


def _norm_errors(ours: bool) -> dict[str, float]:
    """Of one training step on normal numbers, beside the same in float64."""
    torch.manual_seed(0)
    x = torch.randn(128, 16, 112, 112).contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    values = []
    for layer in (_batchnorm(16, ours), _batchnorm(16, ours=False).double()):
        dtype = layer.weight.dtype
        inputs = x.detach().to(dtype).requires_grad_()
        y = layer(inputs)
        y.backward(grad.to(dtype))
        values.append((y.detach(), inputs.grad, layer.weight.grad, layer.running_var))
    names = ('output', 'gradient of the input', 'gradient of the weight', 'variance')
    pairs = zip(names, *values, strict=True)
    return {name: float((a.double() - b).abs().max() / b.abs().max()) for name, a, b in pairs}


def machine(args: argparse.Namespace) -> None:
    """The speed of the hardware: copying memory and multiplying matrices."""
    dtype = torch.bfloat16 if args.amp else torch.float32
    source = torch.randn(64 * 2**20, device=args.device)
    target = torch.empty_like(source)
    matrix = torch.randn(2048, 2048, device=args.device, dtype=dtype)

    contestants = {
        'copy, GB/s': lambda: rate(lambda: target.copy_(source), 2 * source.nbytes, args),
        'matrix product, GFLOP/s': lambda: rate(lambda: matrix @ matrix, 2 * 2048**3, args),
    }
    report('machine', '10^9 a second', in_turns(contestants, args.rounds), {}, args)


def decode(args: argparse.Namespace) -> None:
    """Filling the cache with all training images."""
    import os

    from imagenette_zoo.data.cache import train_pixels, train_size
    from imagenette_zoo.data.folders import load_split

    images = load_split(args.data_dir, 'train')

    def seconds(number: list[int] = [0]) -> float:  # noqa: B006  (counts the calls)
        number[0] += 1
        os.environ['IMAGENETTE_ZOO_CACHE'] = str(Path(args.scratch) / f'decode-{number[0]}')
        start = time.perf_counter()
        size, _ = train_size(images, args.img_size, Console(quiet=True))
        train_pixels(images, size, Console(quiet=True))
        return time.perf_counter() - start

    before = os.environ.get('IMAGENETTE_ZOO_CACHE')
    series = in_turns({f'{len(images)} images': seconds}, args.rounds)
    os.environ.pop('IMAGENETTE_ZOO_CACHE')
    if before:
        os.environ['IMAGENETTE_ZOO_CACHE'] = before
    report('decode', 'seconds', series, {}, args)
