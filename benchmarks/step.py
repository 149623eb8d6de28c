"""One process of the ablation: training steps on a resident batch, as timm's script takes them and with each thing
of ours added. Prints one line of JSON: images/s, page faults a step, share of the time in the system, and where the
time of a step goes by operator."""

from __future__ import annotations

import argparse
import json
import resource
import time

import timm
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import imagenette_zoo  # noqa: F401  (registers the models)
from imagenette_zoo.layers import Mish
from imagenette_zoo.layers.layout import to_channels_last
from imagenette_zoo.models.factory import to_device
from imagenette_zoo.utils.files import keep_inductor_private
from imagenette_zoo.utils.memory import keep_freed_memory

VARIANTS = ('torch', 'memory', 'memory+mish', 'memory+mish+compile', 'memory+mish+norm')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('variant', choices=VARIANTS)
    parser.add_argument('--model', default='mbv2_mish_imagenette')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--img-size', type=int, default=128)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=10)
    args = parser.parse_args()
    if 'memory' in args.variant:
        keeper = keep_freed_memory()
        keeper.__enter__()  # until the process ends
    model = timm.create_model(args.model, num_classes=10)
    if 'mish' not in args.variant:
        model = with_torchs_mish(model)
    if 'norm' in args.variant:
        model = to_device(model, torch.device(args.device), channels_last=True)
    to_channels_last(model.to(args.device))
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.randint(0, 10, (args.batch_size,), device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    keep_inductor_private()
    network = torch.compile(model, dynamic=False) if 'compile' in args.variant else model

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), targets).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(3):  # until the memory has settled
        step()
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(args.steps):
        step()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if images.is_cuda else [])]
    with profile(activities=activities) as profiler:
        step()
    attribute = 'self_device_time_total' if images.is_cuda else 'self_cpu_time_total'
    operators = sorted(((getattr(e, attribute) / 1e3, e.key) for e in profiler.key_averages()), reverse=True)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    result = {
        'images_per_second': args.steps * args.batch_size / seconds,
        'page_faults_a_step': (after.ru_minflt - before.ru_minflt) / args.steps,
        'system_share': system / (system + user),
        'first_step_seconds': first,
        'operators_ms': {key: round(ms, 2) for ms, key in operators[:12]},
    }
    print(json.dumps(result))


def with_torchs_mish(module: nn.Module) -> nn.Module:
    """The same model with `torch.nn.Mish` where ours is."""
    for name, child in module.named_children():
        if isinstance(child, Mish):
            setattr(module, name, nn.Mish(inplace=child.inplace))
        else:
            with_torchs_mish(child)
    return module


if __name__ == '__main__':
    main()
