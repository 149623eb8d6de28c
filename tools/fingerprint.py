#!/usr/bin/env python3
"""Hashes of what seeded trainings compute, to see that a change of the code changes no result.

    python tools/fingerprint.py > before.txt    # then change the code
    python tools/fingerprint.py | diff before.txt -

Each line is a training of two epochs on drawn images, on one thread. It has the SHA-256 of its final weights, of
`summary.csv`, and of `result.json` without times, versions and machine. They are equal on the same machine with the
same packages. For another checkout, name it in `PYTHONPATH`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile

import torch

import imagenette_zoo as iz

COMMON = dict(dataset='synthette', img_size=64, epochs=2, warmup_epochs=0, batch_size=50, device='cpu', workers=0)
TRAININGS = {
    'mbv2_mish': dict(model='mbv2_mish_imagenette', opt='adamw', lr=2e-3),
    'bfloat16, EMA, mixing': dict(
        model='mbv2_mish_maxblur_imagenette', amp=True, amp_dtype='bfloat16', model_ema=True, mixup=0.2, smoothing=0.1,
        reprob=0.3,
    ),
    'files': dict(model='mbv2_imagenette', loader='timm', aa='rand-m9-mstd0.5', opt='sgd', momentum=0.9),
    'two passes, accumulation': dict(model='mbv2_mish_mp2_imagenette', grad_accum_steps=2, clip_grad=1.0),
    'googlenet': dict(model='googlenet', opt='adam', lr=1e-3, drop=0.2),
    'ResNet': dict(model='resnet18', opt='lamb', sched='step', decay_epochs=1),
}  # fmt: skip
VOLATILE = ('seconds', 'per_second', 'versions', 'hardware', 'command', 'memory')


def stable(values: object) -> object:
    """The same without what differs from run to run."""
    if isinstance(values, dict):
        kept = {key: stable(value) for key, value in values.items() if not any(word in key for word in VOLATILE)}
        return {key: value for key, value in kept.items() if key not in ('output', 'experiment')}
    return [stable(value) for value in values] if isinstance(values, list) else values


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as output:
        for name, options in TRAININGS.items():
            run = iz.train(iz.Recipe(**COMMON, **options, output=output), quiet=True).folder
            result = json.dumps(stable(json.loads((run / 'result.json').read_text())), sort_keys=True)
            parts = {
                'weights': (run / 'last' / 'model.safetensors').read_bytes(),
                'summary.csv': (run / 'summary.csv').read_bytes(),
                'result.json': result.encode(),
            }
            print(f'{name}: ' + ', '.join(f'{part} {digest(data)}' for part, data in parts.items()), flush=True)


if __name__ == '__main__':
    main()
