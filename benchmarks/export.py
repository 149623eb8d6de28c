"""Speed of an exported model on a CPU: onnxruntime beside PyTorch as trained, fused or compiled."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from common import in_turns, ratio, report
from in_process import rate

import imagenette_zoo as iz
from imagenette_zoo.layers.layout import to_channels_last
from imagenette_zoo.utils.files import keep_inductor_private

BATCHES = (1, 16)

Network = Callable[[torch.Tensor], Any]


def export(args: argparse.Namespace) -> None:
    """Images a second of each model in evaluation, alone and in batches, on as many threads for all."""
    import onnxruntime

    if args.device != 'cpu':
        raise SystemExit('export: compares on the CPU: give --device cpu')
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    for name in args.models:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        weights, file = Path(args.scratch, f'{name}.pth'), Path(args.scratch, f'{name}.onnx')
        calm(model, args)
        torch.save(model.state_dict(), weights)
        given = dict(checkpoint=str(weights), num_classes=10, img_size=args.img_size)
        exported = iz.export(name, 'onnx', file, data_dir=str(args.data_dir), **given)
        session = onnxruntime.InferenceSession(file, settings, providers=['CPUExecutionProvider'])
        to_channels_last(model)  # PyTorch's fastest on a CPU, as for the other benchmarks
        fused = iz.fuse(model)
        keep_inductor_private()
        networks: dict[str, Network] = {
            'onnxruntime': lambda x, session=session: session.run(None, {'images': x.numpy()}),
            'PyTorch': model,
            'PyTorch, fused': fused,
            'PyTorch, fused and compiled': torch.compile(fused, dynamic=False),
        }

        contestants = {
            f'{label}, batch {batch}': lambda network=network, batch=batch, label=label: images_per_second(
                network, batch, torch.contiguous_format if label == 'onnxruntime' else torch.channels_last, args
            )
            for batch in BATCHES
            for label, network in networks.items()
        }
        series = in_turns(contestants, args.rounds)
        ratios = {
            f'onnxruntime / {other}': ratio(series, f'onnxruntime, batch {batch}', other)
            for batch in BATCHES
            for other in contestants
            if other.startswith('PyTorch') and other.endswith(f' {batch}')
        }
        details = {'largest_difference': exported.difference, 'onnxruntime': onnxruntime.__version__}
        options = argparse.Namespace(**{**vars(args), 'amp': False})
        report(f'export-{name}', 'images/s', series, ratios, options, details)
        torch.compiler.reset()


def images_per_second(network: Network, batch: int, layout: torch.memory_format, args: argparse.Namespace) -> float:
    images = torch.randn(batch, 3, args.img_size, args.img_size).contiguous(memory_format=layout)
    with torch.inference_mode():
        network(images)  # compiles
        return 1e9 * rate(lambda: network(images), batch, args)


@torch.no_grad()
def calm(model: torch.nn.Module, args: argparse.Namespace) -> None:
    """Gives the norms of an untrained model statistics, without which its logits are huge and no export is exact."""
    model.train()
    for _ in range(10):
        model(torch.randn(8, 3, args.img_size, args.img_size))
    model.eval()
