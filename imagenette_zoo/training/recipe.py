"""Every option of training and validation, declared once, by timm's names and with timm's defaults.

Where an option exists in timm's ``train.py`` it has that script's name, meaning and default, so that a recipe in
``hparams/`` drives both. Our own are ``label_noise``, ``loader``, ``overwrite``, ``nan``, ``nan_limit``,
``cuda_graph``, ``log_tensorboard``, ``shift_consistency`` and the values ``dataset: synthette`` and ``device: auto``.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..data import DATASETS
from ..errors import UserError
from .options import Options, nearest, option, read_yaml

if TYPE_CHECKING:
    import torch

__all__ = ['Recipe', 'ValidationOptions', 'find_recipe', 'recipe_names', 'shipped', 'study_names']

FLAGSHIP = 'mbv2_mish'
GOOD_RECIPE = 'mbv2_mish_80'  # for any model, in ten epochs
RECIPES = ('', 'leaderboard')  # folders of hparams/


@dataclass(frozen=True)
class DataOptions(Options):
    """Data"""

    data_dir: str | None = option(
        None,
        'folder with train/ and val/, its parent, or an official archive; else $IMAGENETTE_DIR, else the cache',
        metavar='DIR',
    )
    dataset: str = option(
        '',
        'what is trained on: imagenette or any image folder, or synthette, the embedded drawn data set',
        choices=('', *DATASETS),
    )
    train_split: str = option(
        'train', "name of the training split, or a slice of it: train[:85%] (timm's script takes the whole folder)"
    )
    val_split: str = option('validation', 'name of the validation split, or a slice of one: train[85%:]')
    loader: str = option(
        'auto',
        "cache: images decoded once, batches augmented on the device; timm: timm's transforms, image by image; auto: "
        'cache where it can do what is asked for',
        choices=('auto', 'cache', 'timm'),
    )
    workers: int = option(4, "processes of timm's loader; 0 loads in the main process", low=0, short=('-j',))
    pin_mem: bool = option(False, 'pin CPU memory in the data loader')


@dataclass(frozen=True)
class InputOptions(Options):
    """Input"""

    img_size: int | None = option(None, 'image side in pixels (model default if not given)', low=8, high=4096)
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

    def check(self) -> None:
        super().check()
        for name in ('mean', 'std'):
            value = getattr(self, name)
            if value is not None and len(value) not in (1, 3):
                raise UserError(f'--{name}: {len(value)} values given, one or three (a channel each) are needed')


@dataclass(frozen=True)
class ComputeOptions(Options):
    """Device and speed"""

    device: str = option('auto', 'auto (CUDA where there is one), cpu, cuda, cuda:1, mps')
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
    'global_pool': '--gp',
    'pretrained': '--pretrained',
    'drop_rate': '--drop',
    'drop_path_rate': '--drop-path',
    'drop_block_rate': '--drop-block',
    'bn_momentum': '--bn-momentum',
    'bn_eps': '--bn-eps',
}


@dataclass(frozen=True)
class ArchitectureOptions(Options):
    """Model details"""

    model_kwargs: dict[str, Any] = option({}, 'further arguments of the model, as in passes=2 merge=max')
    num_classes: int | None = option(None, 'number of classes (that of the data if not given)', low=1)
    gp: str | None = option(None, 'global pooling: avg, max, avgmax, catavgmax, fast…; token or map of a ViT')

    def check(self) -> None:
        super().check()
        if self.model_kwargs.get('in_chans', 3) != 3:
            raise UserError(f'--model-kwargs in_chans={self.model_kwargs["in_chans"]}: images have three channels')
        if twice := [name for name in self.model_kwargs if name in OWN_OPTION]:
            raise UserError(f'--model-kwargs {twice[0]}: has an option of its own, {OWN_OPTION[twice[0]]}')


@dataclass(frozen=True)
class ModelOptions(Options):
    """Model"""

    model: str = option('resnet50', "architecture: any of timm's models or ours (imagenette-zoo list)")
    pretrained: bool = option(False, 'start from the published weights')
    initial_checkpoint: str | None = option(None, 'start from the weights in this file or folder', metavar='PATH')
    drop: float = option(0.0, 'dropout rate before the classifier', low=0, high=0.99)
    drop_path: float | None = option(None, 'drop-path rate (stochastic depth)', low=0, high=0.99)
    drop_block: float | None = option(None, 'drop-block rate', low=0, high=0.99)
    bn_momentum: float | None = option(None, 'BatchNorm momentum', above=0, high=1)
    bn_eps: float | None = option(None, 'BatchNorm epsilon', above=0)
    head_init_scale: float | None = option(None, 'factor on the initial weights of the classifier', low=0)
    head_init_bias: float | None = option(None, 'initial bias of the classifier')
    grad_checkpointing: bool = option(False, 'recompute activations in the backward pass to save memory')

    def check(self) -> None:
        super().check()
        if self.pretrained and self.initial_checkpoint:
            raise UserError('--pretrained and --initial-checkpoint both name the starting weights: give one of them')


@dataclass(frozen=True)
class ScheduleLengthOptions(Options):
    """Length and batch"""

    epochs: int = option(300, 'passes over the training set', low=1)
    batch_size: int = option(128, 'images a training step (of each process)', low=1, short=('-b',))
    validation_batch_size: int | None = option(
        None, 'images a validation step (the training batch size if not given)', low=1, short=('-vb',)
    )
    grad_accum_steps: int = option(1, 'batches whose gradients one step adds up', low=1)
    label_noise: int = option(
        0, "percentage of noisy training labels, from the data set's official noisy_imagenette.csv: 0, 1, 5, 25, 50"
    )

    def check(self) -> None:
        super().check()
        if self.label_noise not in (0, 1, 5, 25, 50):
            raise UserError(f'--label-noise: {self.label_noise} is not one of 0, 1, 5, 25, 50')


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """Optimizer"""

    opt: str = option('sgd', "optimizer, by timm's name")
    opt_eps: float | None = option(None, 'epsilon of the optimizer', low=0)
    opt_betas: tuple[float, ...] | None = option(None, 'betas of the optimizer', low=0, high=1)
    opt_kwargs: dict[str, Any] = option({}, 'further arguments of the optimizer')
    momentum: float = option(0.9, 'momentum', low=0, high=1)
    weight_decay: float = option(2e-5, 'weight decay', low=0)
    clip_grad: float | None = option(None, 'bound on the gradient (no clipping if not given)', above=0)
    clip_mode: str = option('norm', 'how the gradient is clipped', choices=('norm', 'value', 'agc'))
    layer_decay: float | None = option(None, 'factor between the learning rates of successive layers', above=0, high=1)
    layer_decay_min_scale: float = option(0.0, 'smallest factor of layer-decay', low=0, high=1)
    layer_decay_no_opt_scale: float | None = option(
        None, 'layers whose factor is below this are not trained', low=0, high=1
    )


@dataclass(frozen=True)
class LearningRateOptions(Options):
    """Learning-rate schedule"""

    sched: str = option(
        'cosine',
        "schedule, by timm's name (constant, wsd and rsqrt need a timm that has them)",
        choices=('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'constant', 'wsd', 'rsqrt', 'none'),
    )
    sched_on_updates: bool = option(False, 'step the schedule every update instead of every epoch')
    lr: float | None = option(None, 'learning rate (lr-base scaled by the batch if not given)', above=0)
    lr_base: float = option(0.1, 'learning rate at a batch of lr-base-size images', above=0)
    lr_base_size: int = option(256, 'batch size that lr-base is meant for', low=1)
    lr_base_scale: str | None = option(
        None, 'how lr-base scales with the batch (by the optimizer if not given)', choices=('linear', 'sqrt')
    )
    lr_noise: tuple[float, ...] | None = option(None, 'span of learning-rate noise as shares of the run', low=0, high=1)
    lr_noise_pct: float = option(0.67, 'bound on the learning-rate noise', above=0)
    lr_noise_std: float = option(1.0, 'standard deviation of the learning-rate noise', low=0)
    lr_cycle_mul: float = option(1.0, 'factor between the lengths of successive cycles', above=0)
    lr_cycle_decay: float = option(0.5, 'factor between the learning rates of successive cycles', above=0)
    lr_cycle_limit: int = option(1, 'number of cycles', low=1)
    lr_k_decay: float = option(1.0, 'k-decay of the cosine and poly schedules', above=0)
    warmup_lr: float = option(1e-5, 'learning rate at the start of the warm-up', low=0)
    min_lr: float = option(0.0, 'learning rate at the end', low=0)
    warmup_epochs: int = option(5, 'epochs of warm-up', low=0)
    warmup_prefix: bool = option(False, 'the warm-up comes before the schedule instead of being its first part')
    cooldown_epochs: int = option(0, 'epochs at min-lr after the schedule', low=0)
    decay_milestones: tuple[int, ...] = option((90, 180, 270), 'epochs of decay of the multistep schedule', low=0)
    decay_epochs: float | None = option(
        None,
        "epochs between decays of the step schedule, epochs or share of wsd's decay (timm's if not given)",
        above=0,
    )
    lr_decay_fn: str | None = option(None, 'shape of the decay of the wsd and rsqrt schedules')
    lr_stable_timescale: float | None = option(None, 'time scale of the rsqrt schedule, epochs', above=0)
    decay_rate: float = option(0.1, 'factor of a decay', above=0, short=('--dr',))
    patience_epochs: int = option(10, 'patience of the plateau schedule', low=0)

    def check(self) -> None:
        super().check()
        if list(self.decay_milestones) != sorted(set(self.decay_milestones)):
            raise UserError('--decay-milestones must increase')
        if self.lr_noise is not None and len(self.lr_noise) > 2:
            raise UserError('--lr-noise takes one value or two')


@dataclass(frozen=True)
class AugmentationOptions(Options):
    """Augmentation and regularisation"""

    no_aug: bool = option(False, 'no training augmentation; overrides the other augmentation options')
    train_crop_mode: str | None = option(
        None, 'random crop: rrc (random-resized), rkrc, rkrr (both keep the ratio)', choices=('rrc', 'rkrc', 'rkrr')
    )
    scale: tuple[float, ...] = option((0.08, 1.0), 'area of the random-resized crop', above=0, length=2)
    ratio: tuple[float, ...] = option((3 / 4, 4 / 3), 'aspect ratio of the random-resized crop', above=0, length=2)
    hflip: float = option(0.5, 'probability of a horizontal flip', low=0, high=1)
    vflip: float = option(0.0, 'probability of a vertical flip', low=0, high=1)
    color_jitter: float = option(0.4, 'strength of the colour jitter', low=0)
    color_jitter_prob: float | None = option(None, 'probability of any colour jitter', low=0, high=1)
    grayscale_prob: float | None = option(None, 'probability of a conversion to grey', low=0, high=1)
    gaussian_blur_prob: float | None = option(None, 'probability of a Gaussian blur', low=0, high=1)
    aa: str | None = option(None, 'AutoAugment policy, as in rand-m9-mstd0.5, v0, original, augmix-m5-w4')
    reprob: float = option(0.0, 'probability of random erasing', low=0, high=1)
    remode: str = option('pixel', 'what random erasing fills in', choices=('const', 'rand', 'pixel'))
    recount: int = option(1, 'most rectangles that random erasing fills', low=1)
    mixup: float = option(0.0, 'mixup alpha; 0 is no mixup', low=0)
    cutmix: float = option(0.0, 'cutmix alpha; 0 is no cutmix', low=0)
    cutmix_minmax: tuple[float, ...] | None = option(
        None, 'smallest and largest share of the side that cutmix replaces', low=0, high=1, length=2
    )
    mixup_prob: float = option(1.0, 'probability of mixup or cutmix', low=0, high=1)
    mixup_switch_prob: float = option(0.5, 'probability of cutmix where both are on', low=0, high=1)
    mixup_mode: str = option('batch', 'what shares one mixing factor', choices=('batch', 'pair', 'elem'))
    mixup_off_epoch: int = option(0, 'epoch from which there is no mixing; 0 is never', low=0)
    smoothing: float = option(0.1, 'label smoothing', low=0, high=0.99)
    bce_loss: bool = option(False, 'binary cross-entropy instead of cross-entropy')
    train_interpolation: str = option(
        'random', 'resize interpolation in training', choices=('random', 'bilinear', 'bicubic', 'lanczos', 'nearest')
    )

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    def check(self) -> None:
        super().check()
        for name in ('scale', 'ratio', 'cutmix_minmax'):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] > bounds[1]:
                raise UserError(
                    f'--{name.replace("_", "-")}: {bounds[0]:g} is above {bounds[1]:g}, the smaller comes first'
                )
        if self.cutmix_minmax is not None and self.cutmix_minmax[0] == self.cutmix_minmax[1]:
            raise UserError(f'--cutmix-minmax: {self.cutmix_minmax[0]:g} is not below {self.cutmix_minmax[1]:g}')
        if self.mixup_off_epoch and not self.mixes:
            raise UserError('--mixup-off-epoch has no effect without --mixup or --cutmix')


@dataclass(frozen=True)
class SizeScheduleOptions(Options):
    """Scheduled image sizes"""

    train_img_sizes: tuple[int, ...] | None = option(
        None, 'train at several image sides in pixels, one for each batch (img-size if not given)', low=8, high=4096
    )
    train_size_probs: tuple[float, ...] | None = option(
        None, 'how often each of train-img-sizes comes (equally often if not given)', low=0
    )
    train_size_schedule: str = option(
        'constant',
        'progressive goes from the first of train-img-sizes to the last',
        choices=('constant', 'progressive'),
    )
    train_size_schedule_spread: float = option(
        0.65, 'how far around the present size a progressive schedule chooses, in sizes', low=0
    )
    train_size_random_mix: float = option(
        0.1, 'share of the batches of a progressive schedule that have any of the sizes', low=0, high=1
    )

    def check(self) -> None:
        super().check()
        sizes, probs = self.train_img_sizes, self.train_size_probs
        if sizes is None and (probs is not None or self.train_size_schedule != 'constant'):
            raise UserError('--train-size-probs and --train-size-schedule have no effect without --train-img-sizes')
        if sizes is not None and len(set(sizes)) != len(sizes):
            raise UserError('--train-img-sizes: a size is given twice')
        if sizes is not None and len(sizes) < 2 and self.train_size_schedule == 'progressive':
            raise UserError('--train-size-schedule progressive needs at least two of --train-img-sizes')
        if sizes is not None and probs is not None and (len(probs) != len(sizes) or not sum(probs)):
            raise UserError(
                f'--train-size-probs: {len(sizes)} numbers are needed, one for each size, not all of them 0'
            )


@dataclass(frozen=True)
class EmaOptions(Options):
    """Moving average of the weights (EMA)"""

    model_ema: bool = option(False, 'keep a moving average of the weights, and evaluate it')
    model_ema_decay: float = option(0.9998, 'decay of the moving average', low=0, high=1)
    model_ema_warmup: bool = option(False, 'let the decay rise during the first steps')
    model_ema_force_cpu: bool = option(False, 'keep the moving average on the CPU')

    def check(self) -> None:
        super().check()
        if not self.model_ema and (self.model_ema_warmup or self.model_ema_force_cpu):
            raise UserError('--model-ema-warmup and --model-ema-force-cpu have no effect without --model-ema')


@dataclass(frozen=True)
class RunOptions(Options):
    """Run"""

    seed: int = option(42, 'seed of everything random', low=0, high=2**32 - 1)
    output: str = option('runs', 'folder that runs are kept in', metavar='DIR')
    experiment: str | None = option(None, 'name of the run (date, model and size if not given)', metavar='NAME')
    overwrite: bool = option(False, 'replace the run that is in the folder')
    resume: str | None = option(
        None,
        'continue an interrupted run: its folder, or without a value the one that --experiment names, which is '
        'started if there is nothing to continue',
        const='auto',
        metavar='RUN',
    )
    eval_metric: str = option('top1', 'metric that decides which epoch is best', choices=('top1', 'top5', 'loss'))
    val_interval: int = option(1, 'epochs between validations', low=1)
    checkpoint_hist: int = option(10, 'number of best epochs whose weights are kept', low=1)
    recovery_interval: int = option(
        0, 'updates between checkpoints within an epoch; 0 keeps only those at its end', low=0
    )
    nan: str = option(
        'stop', 'what an infinite or NaN loss does: stop the run, or skip the step and go on', choices=('stop', 'skip')
    )
    nan_limit: int = option(10, 'most steps in a row that --nan skip leaves out', low=1)
    log_interval: int = option(50, 'updates between plain progress lines where there is no terminal', low=1)
    sync_bn: bool = option(False, 'BatchNorm statistics over all processes (CUDA, under torchrun)')
    cuda_graph: str = option(
        'auto',
        'record a training step as a CUDA graph, which spares the time of its launches (auto: on one GPU, where it can '
        'be; none: do not)',
        choices=('auto', 'none'),
    )

    def check(self) -> None:
        super().check()
        if self.resume and self.overwrite:
            raise UserError('--resume continues a run and --overwrite replaces it: give one of them')
        if self.experiment and (Path(self.experiment).name != self.experiment or self.experiment in ('.', '..')):
            raise UserError(
                f'--experiment: {self.experiment!r} is not a plain folder name; --output says where it goes'
            )


@dataclass(frozen=True)
class TrackingOptions(Options):
    """Tracking"""

    log_tensorboard: bool = option(False, "log to TensorBoard: event files in the run's folder")
    log_wandb: bool = option(False, 'log to Weights & Biases; WANDB_MODE=offline sends nothing')
    wandb_project: str | None = option(None, 'project of the run in wandb', metavar='NAME')
    wandb_tags: tuple[str, ...] = option((), 'tags of the run in wandb', metavar='TAG')
    wandb_resume_id: str | None = option(
        None, "run in wandb that is continued (the one that the run's folder names if not given)", metavar='ID'
    )


@dataclass(frozen=True)
class Recipe(
    TrackingOptions,
    RunOptions,
    EmaOptions,
    SizeScheduleOptions,
    AugmentationOptions,
    LearningRateOptions,
    OptimizerOptions,
    ScheduleLengthOptions,
    ComputeOptions,
    InputOptions,
    ArchitectureOptions,
    ModelOptions,
    DataOptions,
):
    """Everything that decides a training run.

    ``Recipe(model='mbv2_mish_imagenette', epochs=5)`` starts from timm's defaults, :meth:`load` from a file.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another.
    """

    eager: ClassVar[tuple[str | None, ...]] = (None, 'none')  # auto may compile

    def check(self) -> None:
        super().check()
        if self.sched != 'none' and not self.warmup_prefix and self.warmup_epochs >= self.epochs:
            raise UserError(
                f'--warmup-epochs {self.warmup_epochs} leaves nothing of --epochs {self.epochs}: '
                f'lower the warm-up (--warmup-epochs 0) or train longer'
            )
        if self.torchcompile_mode in ('reduce-overhead', 'max-autotune') and self.grad_accum_steps > 1:
            raise UserError(
                f'--torchcompile-mode {self.torchcompile_mode}: its CUDA graphs overwrite the gradients that '
                f'--grad-accum-steps {self.grad_accum_steps} adds up: leave one of them out'
            )
        if self.mixes and self.batch_size % 2:
            raise UserError(f'--batch-size {self.batch_size}: mixup and cutmix need an even batch')
        if self.scale[1] > 1:
            raise UserError(f'--scale: {self.scale[1]:g} is more than the whole image (1)')

    @classmethod
    def load(cls, name: str | Path, **overrides: Any) -> Recipe:
        """The recipe of this name or file, with some options replaced.

        Raises:
            UserError: There is no such recipe, or an option in it is unknown or wrong.
        """
        path = find_recipe(name)
        values = read_yaml(path, cls.names())
        try:
            cls(**values)
        except UserError as error:
            if not overrides:
                raise UserError(f'{path}: {error}') from None
        return cls(**{**values, **overrides})

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some options changed."""
        unknown = set(changes) - self.names()
        if unknown:
            name = sorted(unknown)[0]
            raise UserError(f'unknown option {name!r}{nearest(name, self.names())}')
        return dataclasses.replace(self, **changes)


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
class ValidationOptions(ComputeOptions, InputOptions, ArchitectureOptions, WeightsOptions, DataOptions):
    """Validation"""

    model: tuple[str, ...] = option(
        (),
        "what is validated, one or several: a run's folder or its best/, local-dir:FOLDER, hf-hub:NAME, or a "
        'model name with --checkpoint or --pretrained',
        short=('-m',),
        metavar='MODEL',
    )
    batch_size: int | None = option(None, 'images a step (if not given: 64 on a CPU, else 256)', low=1, short=('-b',))
    reparam: bool = option(False, 'fuse blocks and norms for inference first (imagenette_zoo.fuse)')
    shift_consistency: bool = option(
        False, 'also report the share of images whose prediction survives a random shift of up to 1/8 of the side'
    )
    results_file: str | None = option(None, 'write the results to this .json or .csv file', metavar='FILE')
    seed: int = option(42, 'seed of the random shifts', low=0, high=2**32 - 1)

    def check(self) -> None:
        super().check()
        if self.checkpoint and len(self.model) > 1:
            raise UserError('--checkpoint goes with one --model')
        if self.results_file and not self.results_file.endswith(('.json', '.csv')):
            raise UserError(f'--results-file: {self.results_file!r} must end in .json or .csv')


def _recipe_folder() -> Path:
    """``hparams/`` as installed from a wheel, else that of the source checkout."""
    package = Path(__file__).parent.parent
    installed = package / 'hparams'
    return installed if installed.is_dir() else package.parent / 'hparams'


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return list(_shipped(*RECIPES))


def study_names() -> list[str]:
    """The names of the studies that come with the package."""
    return list(_shipped('studies'))


def _shipped(*folders: str) -> dict[str, Path]:
    """The files of these folders of ``hparams/`` by name, which starts from the first of them."""
    root = _recipe_folder()
    files = [file for folder in folders for file in sorted(Path(root, folder).glob('*.yaml'))]
    return {file.relative_to(root / folders[0]).with_suffix('').as_posix(): file for file in files}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises:
        UserError: There is none; the line names the nearest ones.
    """
    return shipped(name, 'recipe', *RECIPES)


def shipped(name: str | Path, kind: str, *folders: str) -> Path:
    """The file that a name means: a path, or one in these folders of ``hparams/`` as it comes with the package.

    Raises:
        UserError: There is none; the line names the nearest ones.
    """
    if os.path.isfile(name):  # Path's own may raise
        return Path(name)
    files = _shipped(*folders)
    for known, file in files.items():
        if str(name) in (known, f'{known}.yaml', Path('hparams', folders[0], f'{known}.yaml').as_posix()):
            return file
    names = list(files)
    raise UserError(f'no {kind} {str(name)!r}: neither a file nor one of {", ".join(names)}{nearest(str(name), names)}')
