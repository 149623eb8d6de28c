"""Puts a run's final weights into the package, in float16, and writes down what they reach.

    python tools/pack_weights.py runs/NAME --data-dir DIR

Writes imagenette_zoo/models/weights/MODEL.safetensors and docs/results/pretrained/MODEL.json. Nothing is written where
float16 changes the accuracy by more than 0.05 points, the file is larger than 6 MiB, or the model's pretrained config
is not that of the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import timm

import imagenette_zoo as iz
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils.files import write_atomic, write_json

ROOT = Path(__file__).parents[1]
MOST_POINTS, MOST_BYTES = 0.05, 6 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a finished run')
    parser.add_argument('--data-dir', metavar='DIR', help='as in training')
    args = parser.parse_args()
    try:
        pack(args.run, args.data_dir)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def pack(run: Path, data_dir: str | None) -> None:
    """Packs the weights of `run/last`, the final epoch's.

    Raises:
        UserError: There is no finished run, or its weights must not be packed, and why.
    """
    if not (run / 'result.json').is_file():
        raise UserError(f'{run}: no finished run (no result.json)')
    config = json.loads((run / 'last' / 'config.json').read_text())
    name, trained = config['architecture'], config['pretrained_cfg']
    ours = timm.get_pretrained_cfg(name).to_dict()
    for key in ('input_size', 'pool_size', 'mean', 'std', 'crop_pct', 'interpolation', 'num_classes', 'label_names'):
        there, here = (list(v) if isinstance(v := cfg.get(key), tuple) else v for cfg in (trained, ours))
        if there != here:
            raise UserError(f'{name}: {key} is {there} in the run and {here} in the pretrained config')

    weights = safetensors.torch.load_file(run / 'last' / 'model.safetensors')
    # Of convolutions and the classifier; BatchNorm's are few and reach further than float16 does.
    packed = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    data = safetensors.torch.save(packed, metadata={'format': 'pt'})
    if len(data) > MOST_BYTES:
        raise UserError(f'{name}: {len(data) / 2**20:.1f} MiB, more than {MOST_BYTES / 2**20:.0f}')
    [full] = iz.validate(str(run / 'last'), data_dir, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.safetensors')
        file.write_bytes(data)
        [half] = iz.validate(name, data_dir, checkpoint=str(file), quiet=True)
    print(f'{name}: {full.top1:.2f} % top-1 in float32, {half.top1:.2f} % in float16, {len(data) / 2**20:.2f} MiB')
    if abs(full.top1 - half.top1) > MOST_POINTS:
        raise UserError(f'{name}: float16 changes the accuracy by more than {MOST_POINTS} points')

    write_atomic(ROOT / 'imagenette_zoo' / 'models' / 'weights' / f'{name}.safetensors', data)
    results = {
        'run': json.loads((run / 'result.json').read_text()),
        'float32': asdict(full),
        'packaged': {**asdict(half), 'bytes': len(data)},
    }
    path = ROOT / 'docs' / 'results' / 'pretrained' / f'{name}.json'
    write_json(path, results)


if __name__ == '__main__':
    sys.exit(main())
