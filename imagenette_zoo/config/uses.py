"""The options of the commands that use a trained model, but for validation's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import UserError
from .fields import option
from .groups import ArchitectureOptions, ComputeOptions, DataOptions, EvalInputOptions, WeightsOptions

__all__ = ['CheckpointOptions', 'ExportOptions', 'PassesOptions', 'PredictOptions', 'UseOptions']


@dataclass(frozen=True)
class CheckpointOptions(EvalInputOptions, ArchitectureOptions):
    """Weights"""

    checkpoint: str | None = option(None, "weights for the model: a file, also one of timm's", metavar='PATH')
    use_ema: bool = option(False, 'take the moving average of the weights from a timm checkpoint')

    def check(self) -> None:
        super().check()
        if self.use_ema and not self.checkpoint:
            raise UserError('--use-ema has no effect without --checkpoint')


@dataclass(frozen=True)
class UseOptions(CheckpointOptions):
    """Weights"""

    model: str = option(
        'mbv2_mish_imagenette',
        "a run's folder or its best/, local-dir:FOLDER, hf-hub:NAME, or the name of a model that has published weights",
        short=('-m',),
    )

    pretrained: ClassVar[None] = None  # a name alone means the weights that are published under it


@dataclass(frozen=True)
class PredictOptions(UseOptions):
    """Prediction"""

    topk: int = option(3, 'classes shown for each image, the most probable first', low=1)
    save_figure: str | None = option(
        None,
        'show where the model sees its class (Grad-CAM): a .png or .svg file, or a folder with a figure for each image',
        metavar='FILE|DIR',
    )
    # Small: eight are no faster on two cores, and a large batch has the kernels of Mish compiled, also for few images.
    batch_size: int = option(2, 'images a step', low=1, short=('-b',))
    device: str = option('auto', 'auto (CUDA where there is one), cpu, cuda, cuda:1, mps')
    max_megapixels: float = option(
        DataOptions.max_megapixels, 'largest image that is read, in megapixels', low=1, high=2000
    )


@dataclass(frozen=True)
class PassesOptions(ComputeOptions, EvalInputOptions, ArchitectureOptions, WeightsOptions, DataOptions):
    """Comparison"""

    model: str = option('', "a run's folder or its best/, local-dir:FOLDER, hf-hub:NAME, or a name, as in validation")
    batch_size: int = option(64, 'images a step', low=1, short=('-b',))
    images: int = option(1000, 'validation images that are looked at, evenly spread; 0 is all', low=0)
    results_file: str | None = option(None, 'write the results to this .json file', metavar='FILE')
    save_figure: str | None = option(None, 'write a heat map to this .png or .svg file', metavar='FILE')

    def check(self) -> None:
        super().check()
        for name, ends in (('results_file', ('.json',)), ('save_figure', ('.png', '.svg'))):
            value = getattr(self, name)
            flag = '--' + name.replace('_', '-')
            if value and not value.endswith(ends):
                raise UserError(f'{flag}: {value!r} must end in {" or ".join(ends)}')
            if value and not Path(value).absolute().parent.is_dir():
                raise UserError(f'{flag} {value}: no such folder')


@dataclass(frozen=True)
class ExportOptions(UseOptions):
    """Export"""

    to: str = option('onnx', 'format', choices=('onnx', 'torch-export', 'torchscript'))
    output: str | None = option(
        None, 'the file (default: the name of the run or model, here, with .onnx, .pt2 or .pt)', metavar='FILE'
    )
    data_dir: str | None = option(
        None, "images to check it with (else its run's own, else as in training, else synthette's)", metavar='DIR'
    )
