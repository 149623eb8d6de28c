#!/usr/bin/env python3
"""Training steps of a compiled MobileNetV2 with our Mish, with torch's and with ReLU6, in turns in one run.

python benchmarks/compiled_mish.py --results-file docs/results/compiled_mish.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import imagenette_zoo  # noqa: F401  (registers the models)
from imagenette_zoo.layers import Mish
from imagenette_zoo.training.build import hardware, versions
from imagenette_zoo.training.checkpoint import write_atomic
from imagenette_zoo.training.console import table

ACTIVATIONS = {'ours': Mish, 'torch': nn.Mish, 'relu6': nn.ReLU6}


def training_step(activation: type[nn.Module], images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    """One step of forward, backward and SGD on a resident batch."""
    model = timm.create_model('mbv2_imagenette', act_layer=activation)
    model.to(images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    fast = torch.compile(model, dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(fast(images), targets).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Images/s of every round, by activation; the rounds take turns, since the machine's speed drifts."""
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (args.batch_size,), device=device)
    steps = {}
    for name, activation in ACTIVATIONS.items():
        torch.manual_seed(0)
        steps[name] = training_step(activation, images, targets)
        for _ in range(2):  # compiles, warms up
            steps[name]()
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            rates[name].append(args.steps * args.batch_size / (time.perf_counter() - start))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--img-size', type=int, default=128)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--steps', type=int, default=1, help='steps a round')
    parser.add_argument('--results-file', type=Path)
    args = parser.parse_args()
    rates = measure(args)
    ratios = [ours / torchs for ours, torchs in zip(rates['ours'], rates['torch'], strict=True)]
    rows = [('activation', 'images/s min', 'median', 'max')]
    for name, values in rates.items():
        rows.append((name, *(f'{value:.1f}' for value in (min(values), statistics.median(values), max(values)))))
    print(table(rows))
    print(f'ours / torch, median of pairs: {statistics.median(ratios):.3f}')
    if args.results_file:
        result: dict[str, Any] = {
            'images_per_second': rates, 'median_ratio_ours_to_torch': statistics.median(ratios),
            'img_size': args.img_size, 'batch_size': args.batch_size, 'versions': versions(),
            'hardware': hardware(torch.device('cuda' if torch.cuda.is_available() else 'cpu')),
        }  # fmt: skip
        write_atomic(args.results_file, (json.dumps(result, indent=2) + '\n').encode())


if __name__ == '__main__':
    main()
