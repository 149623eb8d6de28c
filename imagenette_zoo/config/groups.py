"""Groups of options that training and inference share, declared once, by timm's names.

Each group is one `Options` dataclass; `Recipe` (training) and `ValidationOptions` inherit those that they need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UserError
from .fields import Options, option

if TYPE_CHECKING:
    import torch

__all__ = ['DATASETS', 'SOURCES', 'CodeOptions', 'ValidationOptions']

DATASETS = ('imagenette', 'imagewoof', 'imagewang', 'folder', 'synthette')
SOURCES = ('hfds/', 'wds/', 'tfds/', 'torch/')  # of timm's readers


@dataclass(frozen=True)
class DataOptions(Options):
    """Data"""

    data_dir: str | None = option(
        None,
        'folder with train/ and val/, its parent, or an official archive; else $IMAGENETTE_DIR, else the cache',
        affects='location',
        metavar='DIR',
    )
    dataset: str = option(
        '',
        "data set: imagenette, for any image folder; imagewoof and imagewang, in the cache if not in --data-dir; "
        "synthette, the embedded drawn one; or one of timm's readers, as hfds/OWNER/NAME of Hugging Face, wds/NAME, "
        'tfds/NAME, torch/cifar10',
        choices=('', *DATASETS),
        prefixes=SOURCES,
    )
    train_split: str = option(
        'train', "name of the training split, or a slice of it: train[:85%] (timm's script takes the whole folder)"
    )
    val_split: str = option('validation', 'name of the validation split, or a slice of one: train[85%:]')
    input_key: str | None = option(None, "field of the images in a data set of timm's readers", metavar='NAME')
    target_key: str | None = option(None, 'field of their labels', metavar='NAME')
    class_map: str | None = option(
        None, 'text file with a class a line, in the order of their indices, for tars and the like', metavar='FILE'
    )
    train_num_samples: int | None = option(
        None, "so many of the first training images of a data set of timm's readers", low=1
    )
    loader: str = option(
        'auto',
        "cache: images decoded once, batches augmented on the device; timm: timm's transforms, image by image; auto: "
        'cache where it can do what is asked for',
        choices=('auto', 'cache', 'timm'),
    )
    workers: int = option(
        4, "processes of timm's loader; 0 loads in the main process", affects='nothing', low=0, short=('-j',)
    )
    pin_mem: bool = option(False, 'pin CPU memory in the data loader', affects='nothing')
    max_megapixels: float = option(
        200.0, 'largest image that is read, in megapixels', affects='nothing', low=1, high=2000
    )

    def check(self) -> None:
        super().check()
        for name in ('train_split', 'val_split'):
            if not getattr(self, name).strip():
                raise UserError(f'--{name.replace("_", "-")}: a name is needed, as each run trains and is validated')


@dataclass(frozen=True)
class InputOptions(Options):
    """Input"""

    img_size: int | None = option(None, 'image side in pixels (model default if not given)', low=8, high=4096)
    in_chans: int | None = option(
        None, "channels that images are read in: 1, 3 or 4 (the model's, which are 3 in training, if not given)", low=1
    )
    input_size: tuple[int, ...] | None = option(
        None, 'channels, height and width of the images, in one', low=1, high=4096, length=3, metavar='N'
    )
    crop_pct: float | None = option(
        None, 'share of the side that the evaluation crop keeps (model default if not given)', above=0, high=1
    )
    interpolation: str | None = option(
        None,
        'resize interpolation for evaluation (model default if not given)',
        choices=('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'),
    )
    mean: tuple[float, ...] | None = option(None, 'channel means of the normalisation', low=0, high=1)
    std: tuple[float, ...] | None = option(None, 'channel standard deviations of the normalisation', above=0)

    @property
    def channels(self) -> int | None:
        """Of the images, where they are asked for."""
        return self.in_chans or (self.input_size[0] if self.input_size else None)

    @property
    def side(self) -> int | None:
        """Of the images in pixels, where it is asked for; the width where they are no squares."""
        return self.img_size or (self.input_size[2] if self.input_size else None)

    def check(self) -> None:
        super().check()
        if self.channels not in (None, 1, 3, 4):
            flag = '--in-chans' if self.in_chans else '--input-size'
            raise UserError(f'{flag}: images of {self.channels} channels: expected 1, 3 or 4')
        if self.input_size:
            shown, size = ' '.join(map(str, self.input_size)), self.input_size[1:]
            if min(size) < 8:
                raise UserError(f'--input-size {shown}: {min(size)} px are too few: expected at least 8')
            if self.channels != self.input_size[0] or (self.img_size and (self.img_size, self.img_size) != size):
                raise UserError(
                    f'--input-size {shown} contradicts --in-chans or --img-size: leave them out, it says both'
                )
        for name in ('mean', 'std'):
            value = getattr(self, name)
            channels = self.channels or 3
            if value is not None and len(value) not in (1, channels):
                number = {1: 'one is', 3: 'one or three (a channel each) are', 4: 'one or four (a channel each) are'}
                raise UserError(f'--{name}: {len(value)} values given, {number[channels]} needed')


@dataclass(frozen=True)
class EvalInputOptions(InputOptions):
    """Input"""

    crop_mode: str | None = option(
        None,
        'how images become square: squash, border or center (model default if not given)',
        choices=('squash', 'border', 'center'),
    )


@dataclass(frozen=True)
class ComputeOptions(Options):
    """Device and speed"""

    device: str = option('auto', 'auto (CUDA where there is one), cpu, cuda, cuda:1, mps', affects='record')
    amp: bool = option(False, 'automatic mixed precision')
    amp_dtype: str = option('float16', 'type that mixed precision computes in', choices=('float16', 'bfloat16'))
    channels_last: bool | None = option(
        None, "channels-last memory layout (default: on a CPU; --no-channels-last: torch's own)"
    )
    torchcompile: str | None = option(
        'auto',
        'compile the model with this backend (inductor when no backend is named; none: do not; auto: in training on a '
        'GPU, where the run is long enough to earn back the time that compiling takes)',
        const='inductor',
        metavar='BACKEND',
    )
    torchcompile_mode: str | None = option(
        None,
        'mode of torch.compile',
        choices=('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'),
    )
    log_swaps: bool = option(False, 'list the layers that were replaced by faster ones', affects='nothing')

    eager: ClassVar[tuple[str | None, ...]] = (None, 'none', 'auto')  # backends with which nothing is compiled

    def check(self) -> None:
        super().check()
        if self.torchcompile_mode and self.torchcompile in self.eager:
            raise UserError('--torchcompile-mode has no effect without --torchcompile')

    def is_channels_last(self, device: torch.device) -> bool:
        """Whether models and images on this device are in channels-last layout."""
        return device.type == 'cpu' if self.channels_last is None else self.channels_last


OWN_OPTION = {  # arguments of models that are not for model_kwargs
    'num_classes': '--num-classes',
    'in_chans': '--in-chans',
    'global_pool': '--gp',
    'pretrained': '--pretrained',
    'drop_rate': '--drop',
    'drop_path_rate': '--drop-path',
    'drop_block_rate': '--drop-block',
    'bn_momentum': '--bn-momentum',
    'bn_eps': '--bn-eps',
}


@dataclass(frozen=True)
class CodeOptions(Options):
    """Code of your own"""

    device_modules: tuple[str, ...] = option(
        (),
        'code of your own that is imported first: files or modules with models, layers, optimizers, losses',
        affects='location',
        short=('--import',),
        metavar='FILE.py|MODULE',
    )


@dataclass(frozen=True)
class ArchitectureOptions(CodeOptions):
    """Model details"""

    model_kwargs: dict[str, Any] = option(
        {}, 'further arguments of the model, as in passes=2 merge=max act_layer=my_file:MyActivation'
    )
    num_classes: int | None = option(None, 'number of classes (that of the data if not given)', low=1)
    gp: str | None = option(None, 'global pooling: avg, max, avgmax, catavgmax, fast…; token or map of a ViT')

    def check(self) -> None:
        super().check()
        if twice := [name for name in self.model_kwargs if name in OWN_OPTION]:
            raise UserError(f'--model-kwargs {twice[0]}: has an option of its own, {OWN_OPTION[twice[0]]}')


@dataclass(frozen=True)
class WeightsOptions(Options):
    """Weights"""

    checkpoint: str | None = option(None, "weights for the model: a file, also one of timm's", metavar='PATH')
    pretrained: bool = option(False, 'take the published weights')
    use_ema: bool = option(False, 'take the moving average of the weights from a timm checkpoint')

    def check(self) -> None:
        super().check()
        if self.pretrained and self.checkpoint:
            raise UserError('--pretrained and --checkpoint both name the weights: give one of them')
        if self.use_ema and not self.checkpoint:
            raise UserError('--use-ema has no effect without --checkpoint')


@dataclass(frozen=True)
class ValidationOptions(ComputeOptions, EvalInputOptions, ArchitectureOptions, WeightsOptions, DataOptions):
    """Validation"""

    model: tuple[str, ...] = option(
        (),
        "models to validate, one or several: a run's folder or its best/, local-dir:FOLDER, FILE.onnx, hf-hub:NAME, "
        "or a model's name (with --checkpoint or --pretrained, if its weights don't come with the package)",
        short=('-m',),
        metavar='MODEL',
    )
    batch_size: int | None = option(None, 'images a step (if not given: 64 on a CPU, else 256)', low=1, short=('-b',))
    reparam: bool = option(False, 'fuse blocks and norms for inference first (imagenette_zoo.fuse)')
    shift_consistency: bool = option(
        False, 'also report the share of images whose prediction survives a random shift of up to 1/8 of the side'
    )
    metrics_avg: str | None = option(
        None,
        'also report precision, recall and F1, averaged over the classes in this way',
        choices=('micro', 'macro', 'weighted'),
    )
    knn: bool = option(
        False, 'also report top-1 by the nearest training images in feature space (evaluation crop, cosine)'
    )
    knn_k: int = option(200, 'neighbours that vote', low=1)
    knn_t: float = option(0.1, 'temperature of their votes', above=0)
    linear_probe: bool = option(
        False, 'also report top-1 of a linear classifier on the features of the training images (evaluation crop)'
    )
    results_file: str | None = option(None, 'write the results to this .json or .csv file', metavar='FILE')
    seed: int = option(42, 'seed of the random shifts', low=0, high=2**32 - 1)

    takes_onnx: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        if self.checkpoint and len(self.model) > 1:
            raise UserError('--checkpoint goes with one --model')
        if self.results_file and not self.results_file.endswith(('.json', '.csv')):
            raise UserError(f'--results-file: {self.results_file!r} must end in .json or .csv')
        for name in ('knn_k', 'knn_t'):
            if not self.knn and getattr(self, name) != getattr(ValidationOptions, name):
                raise UserError(f'--{name.replace("_", "-")} has no effect without --knn')
