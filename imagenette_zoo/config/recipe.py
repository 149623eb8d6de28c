"""Every option of training, declared once, by timm's names and with timm's defaults: the groups that training alone
has, and `Recipe`, which is all of them.

Where an option exists in timm's `train.py` it has that script's name, meaning and default, so that a recipe in
`hparams/` drives both. Our own are `label_noise`, `class_weights`, `balanced`, `stop_at`, `patience`, `retry`, `loss`,
`batch_transform`, `loader`, `max_megapixels`, `overwrite`, `nan`, `nan_limit`, `cuda_graph`, `log_swaps`,
`log_tensorboard`, `log_trackio`, `log_mlflow` and the values `dataset: synthette`, `device: auto`. The two of timm's
newest schedules, `lr_decay_fn` and `lr_stable_timescale`, are no flags of its script.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UserError
from ..utils.modules import is_reference
from .fields import Options, option
from .groups import ArchitectureOptions, ComputeOptions, DataOptions, InputOptions
from .hparams import find_modules, find_recipe, read_yaml, without_timms
from .names import NAMES
from .precedence import resolve
from .timm_options import OPTIONS

__all__ = ['Recipe']


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
        None,
        'images a validation step (the training batch size if not given)',
        affects='rounding',
        low=1,
        short=('-vb',),
    )
    grad_accum_steps: int = option(1, 'batches whose gradients one step adds up', low=1)
    label_noise: int = option(
        0, "percentage of noisy training labels, from the data set's official noisy_….csv: 0, 1, 5, 25, 50"
    )

    balanced: bool = option(False, 'draw images so that each class comes equally often in an epoch')
    stop_at: str | None = option(
        None,
        'end after the validation that reaches this, as in top1=90 (also top5, loss); the schedule stays the same',
        metavar='METRIC=VALUE',
    )
    patience: int = option(0, 'end after so many epochs without a better eval-metric; 0 is never', low=0)
    retry: bool = option(
        False,
        'where memory is full before anything is saved, start again with a smaller batch and grad-accum-steps for the '
        'same updates',
        affects='recovery',
    )

    @property
    def goal(self) -> tuple[str, float] | None:
        """The metric and the value that the training ends at."""
        name, _, value = (self.stop_at or '').partition('=')
        return (name, float(value)) if name else None

    def check(self) -> None:
        super().check()
        if self.label_noise not in (0, 1, 5, 25, 50):
            raise UserError(f'--label-noise: {self.label_noise} is not one of 0, 1, 5, 25, 50')
        if self.stop_at and not re.fullmatch(r'(top[15]|loss)=\d+(\.\d+)?', self.stop_at):
            raise UserError(f'--stop-at: {self.stop_at!r} is not METRIC=VALUE with top1, top5 or loss, as in top1=90')
        if self.goal and self.goal[0] != 'loss' and self.goal[1] > 100:
            raise UserError(f'--stop-at {self.stop_at}: is more than 100 %, which no training reaches')


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """Optimizer"""

    opt: str = option('sgd', "optimizer, by timm's name, or a class of your own: my_file:MyOptimizer")
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
        "schedule, by timm's name (constant, wsd and rsqrt need a timm that has them), or your own: a function (step, "
        'total) -> factor on lr, or a class called with (optimizer, total), to which no warm-up is added',
        choices=('cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'constant', 'wsd', 'rsqrt', 'none'),
        references=True,
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
        if self.lr_noise is not None and not 1 <= len(self.lr_noise) <= 2:
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
    mixup_off_epoch: int = option(0, 'epochs after which there is no mixing any more; 0 is never', low=0)
    batch_transform: str | None = option(
        None,
        'augmentation of your own, the last of all: a torch.nn.Module called with (images, targets, generator)',
        choices=(),
        references=True,
    )
    smoothing: float = option(0.1, 'label smoothing (none with --loss, which may smooth itself)', low=0, high=0.99)
    class_weights: tuple[float, ...] | None = option(
        None,
        'weight of each class in the loss, in the order of the classes, or balanced: inverse to their training images',
        choices=('balanced',),
        low=0,
        metavar='balanced|X',
    )
    bce_loss: bool = option(False, 'binary cross-entropy instead of cross-entropy')
    loss: str | None = option(
        None,
        'training loss of your own: a function, or a torch.nn.Module, of (logits, targets)',
        choices=(),
        references=True,
    )
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
        if self.loss and self.bce_loss:
            raise UserError('--loss and --bce-loss are both losses: give one of them')
        if self.class_weights and (self.loss or self.bce_loss):
            other = '--loss' if self.loss else '--bce-loss'
            raise UserError(f'--class-weights weighs cross-entropy, not {other}: leave one of them out')
        words: Sequence[Any] = self.class_weights or ()
        if 'balanced' in words and len(words) > 1:
            raise UserError('--class-weights: give balanced, or a number for each class')
        if self.loss and self.smoothing not in (0.0, AugmentationOptions.smoothing):
            raise UserError(
                f'--smoothing {self.smoothing:g} has no effect with --loss, which may smooth itself: --smoothing 0'
            )


@dataclass(frozen=True)
class DistillationOptions(Options):
    """Distillation"""

    kd_model_name: str | None = option(
        None,
        "trained model that teaches this one: a run's folder or its best/, local-dir:FOLDER, hf-hub:NAME, or a name "
        'that has published weights',
        metavar='TEACHER',
    )
    kd_distill_type: str = option(
        'logit',
        'what is taught: logit; feature, those before the classifier; token, for models with a distillation head',
        choices=('logit', 'feature', 'token'),
    )
    kd_loss_type: str = option('kl', 'loss between the logits', choices=('kl',))
    kd_temperature: float = option(4.0, 'temperature of both softmaxes, for logit and token', above=0)
    distill_loss_weight: float | None = option(
        None, "weight of the teacher's loss (1 - task-loss-weight where only that is given, else 1)", low=0
    )
    task_loss_weight: float | None = option(None, "weight of the classes' loss (1 if not given)", low=0)
    kd_student_feature_dim: int | None = option(None, "width of the student's features (its own if not given)", low=1)
    kd_teacher_feature_dim: int | None = option(None, "width of the teacher's features (its own if not given)", low=1)
    kd_token_distill_type: str = option(
        'soft', "what the distillation head learns: the teacher's soft or hard decisions", choices=('soft', 'hard')
    )

    def check(self) -> None:
        super().check()
        if self.distill_loss_weight is None and (self.task_loss_weight or 0) > 1:
            raise UserError(
                f'--task-loss-weight {self.task_loss_weight:g}: the teacher would have the rest to 1, which is '
                f'negative: give --distill-loss-weight, too'
            )
        if self.kd_model_name and self.distill_loss_weight == self.task_loss_weight == 0:
            raise UserError('--task-loss-weight 0 and --distill-loss-weight 0: nothing would teach: raise one of them')


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

    seed: int = option(42, 'seed of everything random', affects='seed', low=0, high=2**32 - 1)
    output: str = option('runs', 'folder that runs are kept in', affects='location', metavar='DIR')
    experiment: str | None = option(
        None, 'name of the run (date, model and size if not given)', affects='location', metavar='NAME'
    )
    overwrite: bool = option(False, 'replace the run that is in the folder', affects='location')
    resume: str | None = option(
        None,
        'continue the interrupted run in this folder; without a value that of --experiment, which starts if there '
        'is nothing to continue',
        affects='location',
        const='auto',
        metavar='RUN',
    )
    eval_metric: str = option('top1', 'metric that decides which epoch is best', choices=('top1', 'top5', 'loss'))
    val_interval: int = option(1, 'epochs between validations', low=1)
    checkpoint_hist: int = option(10, 'number of best epochs whose weights are kept', affects='record', low=1)
    recovery_interval: int = option(
        0, 'updates between checkpoints within an epoch; 0 keeps only those at its end', affects='recovery', low=0
    )
    nan: str = option(
        'stop',
        'what an infinite or NaN loss does: stop the run, or skip the step and go on',
        affects='divergence',
        choices=('stop', 'skip'),
    )
    nan_limit: int = option(10, 'most steps in a row that --nan skip leaves out', affects='divergence', low=1)
    log_interval: int = option(
        50, 'updates between plain progress lines where there is no terminal', affects='nothing', low=1
    )
    sync_bn: bool = option(False, 'BatchNorm statistics over all processes (CUDA, under torchrun)')
    cuda_graph: str = option(
        'auto',
        'record training steps as CUDA graphs, which saves launch time (auto: on one GPU, where possible; none: never)',
        affects='rounding',
        choices=('auto', 'none'),
    )

    def check(self) -> None:
        super().check()
        if self.resume and self.overwrite:
            raise UserError('--resume continues a run and --overwrite replaces it: give one of them')
        if self.experiment and (Path(self.experiment).name != self.experiment or self.experiment in ('.', '..')):
            raise UserError(
                f'--experiment: {self.experiment!r} is not a plain folder name: give the folder above it by --output'
            )


@dataclass(frozen=True)
class TrackingOptions(Options):
    """Tracking"""

    log_tensorboard: bool = option(False, "log to TensorBoard: event files in the run's folder", affects='nothing')
    log_wandb: bool = option(False, 'log to Weights & Biases; WANDB_MODE=offline sends nothing', affects='nothing')
    log_trackio: bool = option(False, 'log to trackio, on this machine', affects='nothing')
    log_mlflow: bool = option(False, 'log to MLflow, where its own variables say', affects='nothing')
    wandb_project: str | None = option(
        None, 'project of the run in wandb and trackio, experiment in MLflow', affects='nothing', metavar='NAME'
    )
    wandb_tags: tuple[str, ...] = option((), 'tags of the run in wandb', affects='nothing', metavar='TAG')
    wandb_resume_id: str | None = option(
        None,
        "run in wandb that is continued (the one that the run's folder names if not given)",
        affects='nothing',
        metavar='ID',
    )


@dataclass(frozen=True)
class Recipe(
    TrackingOptions,
    RunOptions,
    EmaOptions,
    SizeScheduleOptions,
    DistillationOptions,
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

    `Recipe(model='mbv2_mish_imagenette', epochs=5)` starts from timm's defaults, `load` from a file.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another.
    """

    eager: ClassVar[tuple[str | None, ...]] = (None, 'none')  # auto may compile
    layers: ClassVar[tuple[dict[str, Any], ...]]  # of an instance: what a recipe's file gives, what is given above it
    notes: ClassVar[tuple[str, ...]] = ()  # of an instance: a line on each option that gave way

    def __new__(cls, *_: Any, **values: Any) -> Any:
        recipe = super().__new__(cls, **values)
        object.__setattr__(recipe, 'layers', ({}, values))
        return recipe

    def adapt(self) -> None:
        super().adapt()
        given = {name: getattr(self, name) for name in self.layers[-1]}
        values, notes = resolve([given], self.defaults())
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._keep(({}, given), notes)

    @classmethod
    def of(cls, *layers: Mapping[str, Any]) -> Recipe:
        """A recipe of several layers: what a higher one gives wins over what a lower one chose for it.

        Raises:
            UserError: As `Recipe`.
        """
        typed = tuple({name: cls.check_value(name, value) for name, value in layer.items()} for layer in layers)
        values, notes = resolve(typed, cls.defaults())
        recipe = cls(**values)
        recipe._keep(typed, notes)
        return recipe

    def _keep(self, layers: tuple[dict[str, Any], ...], notes: Sequence[str]) -> None:
        object.__setattr__(self, 'layers', layers)
        object.__setattr__(self, 'notes', tuple(notes))

    def check(self) -> None:
        super().check()
        warms_up = self.sched != 'none' and not is_reference(self.sched) and not self.warmup_prefix
        if warms_up and self.warmup_epochs >= self.epochs:
            raise UserError(
                f'--warmup-epochs {self.warmup_epochs} leaves nothing of --epochs {self.epochs}: '
                f'lower the warm-up (--warmup-epochs 0) or train longer'
            )
        if self.torchcompile_mode in ('reduce-overhead', 'max-autotune') and self.grad_accum_steps > 1:
            raise UserError(
                f'--torchcompile-mode {self.torchcompile_mode}: its CUDA graphs overwrite the gradients that '
                f'--grad-accum-steps {self.grad_accum_steps} adds up: leave one of them out'
            )
        if self.balanced and self.class_weights:
            raise UserError('--balanced and --class-weights both make up for rare classes: give one of them')
        if self.mixes and self.batch_size % 2:
            raise UserError(f'--batch-size {self.batch_size}: mixup and cutmix need an even batch')
        for name in ('color_jitter', 'grayscale_prob', 'aa') if self.channels in (1, 4) and not self.no_aug else ():
            if getattr(self, name):
                raise UserError(
                    f'--{name.replace("_", "-")} {getattr(self, name)}: is for images of three channels, not '
                    f'{self.channels}: leave it out'
                )
        if self.scale[1] > 1:
            raise UserError(f'--scale: {self.scale[1]:g} is more than the whole image (1)')

    @classmethod
    def load(cls, name: str | Path, **overrides: Any) -> Recipe:
        """The recipe of this name or file, with some options replaced.

        Raises:
            UserError: There is no such recipe, or an option in it is unknown or wrong.
        """
        path = find_recipe(name)
        values = cls.read(path, () if 'device_modules' in overrides else NAMES - overrides.keys())
        try:
            return cls.of(values, overrides)
        except UserError as error:
            if overrides:
                raise
            raise UserError(f'{path}: {error}') from None

    @classmethod
    def read(cls, path: Path, named: Collection[str] = ()) -> dict[str, Any]:
        """What a recipe's file gives.

        Args:
            path: The file.
            named: As `read_yaml` takes it.

        Raises:
            UserError: An option in it is unknown or wrong; all that are wrong are said.
        """
        is_run = path.name == 'args.yaml'  # which names no code that is to be imported
        values = read_yaml(path, cls.names() | OPTIONS.keys(), cls._check_given, () if is_run else named)
        values = without_timms(path, values, cls.defaults())
        modules = values.pop('device_modules', ())
        return values if is_run else {**values, 'device_modules': find_modules(modules, path.parent)}

    @classmethod
    def _check_given(cls, name: str, value: Any) -> None:
        """Looks at a value of a file, which may be of timm's script: an option that it leaves open is not given."""
        if name not in OPTIONS and value not in (None, ''):
            cls.check_value(name, value)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some options changed, as a layer above the others."""
        return self.of(*self.layers, changes)

    def varied(self, **changes: Any) -> Recipe:
        """A copy with some options changed, as if they had been given with the highest layer."""
        return self.of(*self.layers[:-1], {**self.layers[-1], **changes})

    def training_shapes(self, input_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """The shapes `(C, H, W)` of the images that it trains with; it validates with those of `input_size`."""
        return [(input_size[0], size, size) for size in self.train_img_sizes or ()] or [input_size]

    def for_data(self, images: int, classes: int, processes: int = 1) -> Recipe:
        """The recipe, whose own batch size and number of classes give way to those of the training set."""
        most = images // processes
        most -= most % 2 if self.mixes else 0
        changes = {'batch_size': min(self.batch_size, most or 1)}
        changes |= {} if self.num_classes is None else {'num_classes': classes}
        return self.replace(**{name: value for name, value in changes.items() if not self.insists_on(name)})

    def retried(self, batch_size: int, grad_accum_steps: int) -> Recipe:
        """The recipe with the smaller batch of a run, if `retry` made it so; else as it is."""
        images = self.batch_size * self.grad_accum_steps
        if not self.retry or batch_size >= self.batch_size or batch_size * grad_accum_steps != images:
            return self
        return self.replace(batch_size=batch_size, grad_accum_steps=grad_accum_steps)

    def insists_on(self, name: str) -> bool:
        """Whether an option was given, not only by a recipe."""
        return any(name in layer for layer in self.layers[1:])
