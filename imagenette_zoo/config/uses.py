"""The options of the commands that use a trained model, but for validation's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..errors import UserError
from ..utils.files import check_place
from .fields import Options, option
from .groups import ArchitectureOptions, ComputeOptions, DataOptions, EvalInputOptions, WeightsOptions

__all__ = [
    'AverageOptions', 'CheckpointOptions', 'ExportOptions', 'HeatMapOptions', 'PassesOptions', 'PredictOptions',
    'UseOptions',
]  # fmt: skip


TABLES = ('csv', 'json', 'jsonl', 'parquet')


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
class HeatMapOptions(UseOptions):
    """Heat maps"""

    cam_layer: str | None = option(
        None,
        'the layer whose output heat maps are of, as layer3 or blocks.10.norm1 (default: the last feature map)',
        metavar='NAME',
    )


@dataclass(frozen=True)
class TableOptions(Options):
    """Table"""

    format: str | None = option(
        None,
        'write a table with a row an image: to --output, else to standard output',
        choices=TABLES,
        short=('--results-format',),
    )
    output_type: str | None = option(
        None,
        'what a row has of an image: the prob or logit of its classes, or the features that the classifier is given',
        choices=('prob', 'logit', 'features'),
    )
    output: str | None = option(
        None, 'the file of the table; its ending is the format', metavar='FILE', short=('--results-file',)
    )

    def adapt(self) -> None:
        super().adapt()
        ending = Path(self.output or '').suffix[1:]
        if not self.format and ending in TABLES:
            object.__setattr__(self, 'format', ending)

    def check(self) -> None:
        super().check()
        if self.output and Path(self.output).suffix != f'.{self.format}':
            expected = f'.{self.format}' if self.format else f'one of .{", .".join(TABLES)}'
            raise UserError(f'--output: {self.output!r} must end in {expected}')
        check_place('--output', self.output)
        if self.format == 'parquet' and not self.output:
            raise UserError('--format parquet is no text: give a file, as in --output predictions.parquet')


@dataclass(frozen=True)
class PredictOptions(TableOptions, HeatMapOptions):
    """Prediction"""

    topk: int = option(
        3, 'classes shown for each image, the most probable first; 0 in a table: all, in their own order', low=0
    )
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

    takes_onnx: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        if not self.topk and not self.format:
            raise UserError('--topk 0 is for a table of all classes: give --format, or a number above 0')
        if self.cam_layer and not self.save_figure:
            raise UserError('--cam-layer has no effect without --save-figure')


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
        if self.torchcompile not in (None, 'none', 'auto') or self.torchcompile_mode:
            raise UserError('--torchcompile: passes are compared as they are: leave it out')
        for name, ends in (('results_file', ('.json',)), ('save_figure', ('.png', '.svg'))):
            value = getattr(self, name)
            flag = '--' + name.replace('_', '-')
            if value and not value.endswith(ends):
                raise UserError(f'{flag}: {value!r} must end in {" or ".join(ends)}')
            check_place(flag, value)


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


@dataclass(frozen=True)
class AverageOptions(EvalInputOptions, ArchitectureOptions):
    """Average"""

    model: str | None = option(None, 'the model that files of weights belong to, by its name', short=('-m',))
    n: int = option(10, 'average so many, the best by the metric of each', low=1, short=('-n',))
    no_sort: bool = option(False, 'average all that are named, whatever their metric')
    no_use_ema: bool = option(False, "take the weights themselves from timm's checkpoints, not their moving average")
    output: str = option('averaged', 'the model folder that is written', metavar='DIR')

    def check(self) -> None:
        super().check()
        for name in EvalInputOptions.names() | {'num_classes', 'gp', 'model_kwargs'}:
            if not self.model and getattr(self, name):
                raise UserError(f'--{name.replace("_", "-")} needs --model: a model folder says it itself')
