#!/usr/bin/env python3
"""Speed, measured side by side with timm's scripts: prints a table for each benchmark and writes its result file.

python benchmarks/run.py --timm-dir TIMM --data-dir DIR                 most of them, on the CPU or a GPU
python benchmarks/run.py --only pipeline fused --data-dir DIR           some of them
python benchmarks/run.py --only accuracy --timm-dir TIMM --data-dir DIR seconds to 80 % by seed, 80 min on two cores
python benchmarks/run.py --only loaders --data-dir DIR                  top-1 with our loader and timm's, over seeds
python benchmarks/run.py --only distillation --timm-dir TIMM --data-dir DIR   top-1 of a taught student over seeds
python benchmarks/run.py --only export --device cpu --data-dir DIR      onnxruntime beside PyTorch, eager and compiled
python benchmarks/run.py --only recorded --device cuda --data-dir DIR   steps as CUDA graphs beside eager ones
python benchmarks/run.py --only compiled --amp --data-dir DIR           compiled steps beside eager ones
python benchmarks/run.py --only layout --img-size 224 --data-dir DIR    evaluation channels-last and not
python benchmarks/run.py --only busy --timm-dir TIMM --data-dir DIR     training while other processes compete
python benchmarks/run.py --only start --timm-dir TIMM --data-dir DIR    seconds to the first step of a training
python benchmarks/run.py --only batchnorm --device cpu --data-dir DIR   BatchNorm: images/s, and how far from float64

TIMM is a checkout of timm, DIR a folder with train/ and val/.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import against_timm
import export
import in_process
import torch
from common import ROOT

from imagenette_zoo.data.locate import find_root
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils.environment import available_cores
from imagenette_zoo.utils.memory import keep_freed_memory
from imagenette_zoo.utils.signals import sigterm_interrupts

BENCHMARKS = {
    'machine': in_process.machine,
    'decode': in_process.decode,
    'pipeline': in_process.pipeline,
    'loop': in_process.loop,
    'recorded': in_process.recorded,
    'compiled': in_process.compiled,
    'fused': in_process.fused,
    'layout': in_process.layout,
    'mish': in_process.mish,
    'batchnorm': in_process.batchnorm,
    'export': export.export,
    'ablation': against_timm.ablation,
    'train': against_timm.train,
    'start': against_timm.start,
    'busy': against_timm.busy,
    'validate': against_timm.validate,
    'accuracy': against_timm.accuracy,
    'loaders': against_timm.loaders,
    'distillation': against_timm.distillation,
}
# long, or of one device, or in need of the extra [onnx]
NOT_ALL = {
    'accuracy', 'batchnorm', 'busy', 'distillation', 'loaders', 'export', 'recorded', 'compiled', 'layout', 'start',
}  # fmt: skip
NEED_TIMM = {'train', 'busy', 'start', 'validate', 'accuracy', 'distillation'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, required=True, help='folder with train/ and val/')
    parser.add_argument('--timm-dir', type=Path, help='checkout of timm')
    parser.add_argument('--only', nargs='+', choices=BENCHMARKS, default=[n for n in BENCHMARKS if n not in NOT_ALL])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--amp', action='store_true', help='bfloat16')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--models', nargs='+', default=['mbv2_mish_imagenette', 'resnet50', 'mbv2_imagenette'])
    parser.add_argument('--competitors', type=int, nargs='+', default=[0, 2], help='for busy: processes')
    parser.add_argument('--earlier', type=Path, metavar='DIR', help='for start: another checkout of this repository')
    parser.add_argument('--timm-compiled', action='store_true', help='train: also with --torchcompile')
    parser.add_argument('--img-size', type=int, default=128)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--images', type=int, default=960, help='training images an epoch or a round')
    parser.add_argument('--val-images', type=int, default=0, help='validation images; 0 is all')
    parser.add_argument('--steps', type=int, default=10, help='steps a round')
    parser.add_argument('--skipped', type=int, default=4, help='first batches of a pipeline that are not counted')
    parser.add_argument('--workers', type=int, default=available_cores(), help="workers of timm's loader")
    parser.add_argument('--recipe', type=Path, default=ROOT / 'hparams' / 'mbv2_mish_80.yaml', help='for accuracy')
    parser.add_argument('--target', type=float, default=80.0, help='top-1 that accuracy waits for, %%')
    parser.add_argument('--order', nargs='+', choices=('timm', 'ours'), default=['timm', 'ours'], help='for accuracy')
    parser.add_argument('--seeds', type=int, default=3, help='for accuracy, distillation and loaders')
    parser.add_argument('--first-seed', type=int, default=0, help='likewise')
    parser.add_argument('--epochs', type=int, default=3, help='for distillation and loaders')
    parser.add_argument('--teacher', default='mbv2_mish_maxblur_imagenette', help='for distillation: TEACHER of both')
    parser.add_argument('--distill-type', choices=('logit', 'feature'), default='logit', help='for distillation')
    parser.add_argument('--results-dir', type=Path, default=Path('benchmark-results'))
    args = parser.parse_args()
    if args.device != 'cuda' and args.only == ['recorded']:
        parser.error('recorded: needs --device cuda')
    if args.device != 'cuda' and 'recorded' in args.only:
        print('recorded is left out: it needs --device cuda')
        args.only.remove('recorded')
    need_timm = NEED_TIMM if 'timm' in args.order else NEED_TIMM - {'accuracy', 'distillation'}
    if args.timm_dir is None and (missing := [name for name in args.only if name in need_timm]):
        parser.error(f'{", ".join(missing)}: give --timm-dir, a checkout of timm')
    if args.timm_dir is not None and not (args.timm_dir / 'timm' / 'version.py').is_file():
        repository = 'https://github.com/huggingface/pytorch-image-models'
        parser.error(f'--timm-dir {args.timm_dir}: is no checkout of timm: git clone {repository}')
    args.files = {}  # what this run has written, by benchmark
    args.load_before = os.getloadavg()
    print(f'{torch.get_num_threads()} threads, load {args.load_before[0]:.2f}', flush=True)
    # Here both sides keep it; the scripts that are run as processes do as they do.
    with keep_freed_memory(), tempfile.TemporaryDirectory() as scratch:
        args.scratch = scratch
        if 'IMAGENETTE_ZOO_CACHE' not in os.environ:  # a cold start, and nothing is left behind
            os.environ['IMAGENETTE_ZOO_CACHE'] = str(Path(scratch) / 'cache')
        os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(Path(scratch) / 'inductor'))
        args.data_dir = find_root(args.data_dir)
        for name in args.only:
            BENCHMARKS[name](args)


if __name__ == '__main__':
    try:
        with sigterm_interrupts():
            main()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as request:
        sys.exit(getattr(request, 'exit_code', 130))
