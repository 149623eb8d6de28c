"""From a recipe to all that a run needs: its folder, the images, the model, the batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup, create_transform

from ..data import resolve_dataset
from ..data.augment import Augmentation, BatchTransform, Normalize
from ..data.cache import stored_side, train_pixels, train_side
from ..data.imagenette import ImageSet, load_split, with_label_noise
from ..data.loaders import Batches, CachedTrainBatches, EpochBatches, SizeSchedule, Transform, train_loader
from ..data.seeding import seed_everything
from ..errors import UserError, first_line
from . import build
from .checkpoint import RunFolder, file_stem, load_weights, model_folder, read_weights, resumed_run, unused
from .compilation import resolve
from .console import Console
from .distributed import World
from .learner import Learner
from .meter import Position
from .options import read_yaml
from .recipe import Recipe, TrackingOptions
from .tracking import check_trackers

__all__ = ['FREE_ON_RESUME', 'Data', 'Run', 'check_resumable', 'make_model', 'open_folder', 'prepare']

# A run may be continued with other values of these: they do not decide what is computed.
FREE_ON_RESUME = {
    'data_dir', 'workers', 'pin_mem', 'device', 'output', 'experiment', 'overwrite', 'resume', 'log_interval',
    'validation_batch_size', 'checkpoint_hist', 'recovery_interval', 'nan', 'nan_limit', 'cuda_graph',
    *TrackingOptions.names(),
}  # fmt: skip
NUMBERS = ('train_loss', 'lr', 'train_images', 'train_seconds', 'seconds', 'peak_memory_mib')  # in an epoch's row


@dataclass
class Data:
    """The two splits and their batches."""

    train: ImageSet
    val: ImageSet
    train_batches: Batches
    val_batches: Batches
    transform: BatchTransform


@dataclass
class Run:
    """A run that is ready to go.

    Args:
        recipe: Its options.
        folder: Where its files are kept.
        data: What it trains on.
        learner: The model and what changes it.
        config: timm's data config of the model.
        data_hash: What tells its data from others.
        history: A row for each epoch that is done.
        position: Where it is in the next one.
        setup_seconds: What it took to make it ready: reading, decoding, compiling.
    """

    recipe: Recipe
    folder: RunFolder
    data: Data
    learner: Learner
    config: dict[str, Any]
    data_hash: str
    history: list[dict[str, Any]] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    setup_seconds: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether anything of it is done."""
        return bool(self.history or self.position.step)

    @property
    def place(self) -> str:
        """Where it is, as a person says it."""
        steps = len(self.data.train_batches)
        return f'epoch {len(self.history)}' + (f', step {self.position.step} of {steps}' if self.position.step else '')

    def save(self) -> None:
        """Writes all that the run needs to go on from here; the first process does."""
        if self.learner.world.primary:
            state = {
                'learner': self.learner.state_dict(),
                'history': self.history,
                'position': asdict(self.position),
                'signature': self.signature(),
            }
            self.folder.save_state(state)

    def signature(self) -> dict[str, Any]:
        """What must be the same for the run to be continued: beside the recipe, the data and the processes."""
        return {
            'training images': len(self.data.train),
            'validation images': len(self.data.val),
            'classes': list(self.data.train.classes),
            'data': self.data_hash,
            'processes': self.learner.world.size,
        }


def prepare(recipe: Recipe, folder: RunFolder, state: bytes | None, world: World, console: Console) -> Run:
    """Makes a run ready; the folder is touched last, when everything else has turned out well.

    Args:
        recipe: Its options.
        folder: Its folder, and ``state`` what it goes on from, as :func:`open_folder` gave them.
        state: None starts it.
        world: This process's place.
        console: Who is told.

    Raises:
        UserError: Anything that the recipe names is wrong or missing.
    """
    world.share(lambda: check_trackers(recipe))
    train_images, val_images = _load_images(recipe, world)
    if shared := len(set(train_images.paths) & set(val_images.paths)):
        console.line(f'note: {shared:,} of the {len(val_images):,} validation images are training images, too')
    seed_everything(recipe.seed, 'model')
    start = recipe if state is None else recipe.replace(pretrained=False, initial_checkpoint=None)
    model = make_model(start, len(train_images.classes))
    config = build.input_config(recipe, model, crop_mode='center')
    data = _load_batches(recipe, train_images, val_images, config, world, console)
    sets = (train_images, val_images)
    data_hash = build.data_hash(recipe, sets, config['input_size'][-1], console)
    world.check_agreed('the images', [data_hash, *map(len, sets), train_images.classes])  # else all would wait forever
    for side in recipe.train_img_sizes or ():
        build.probe(model, recipe.model, (config['input_size'][0], side, side))
    build.probe(model, recipe.model, config['input_size'])
    own = resolve(recipe, model, len(train_images), world.device, console)
    updates = -(-len(data.train_batches) // recipe.grad_accum_steps)
    learner = Learner(own, model, world, updates, console.line)
    if own.torchcompile:
        _compile(recipe, learner, config, console)
    run = Run(recipe, folder, data, learner, config, data_hash)
    if state is not None:
        _resume(run, state)
    elif world.primary:
        folder.start(recipe)
    return run


def _compile(recipe: Recipe, learner: Learner, config: dict[str, Any], console: Console) -> None:
    """Compiles the model now, so that one which can't be compiled fails before anything is written."""
    channels, _, side = config['input_size']
    try:
        seconds = learner.compile(recipe.train_img_sizes or (side,), channels)
        console.line(f'compiled in {seconds:.1f} s')
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        reason = first_line(error)
        if recipe.torchcompile != 'auto' or learner.world.size > 1:
            raise UserError(f'--torchcompile {recipe.torchcompile}: {reason}') from error
        console.line(f'torchcompile auto: off after all ({reason})')
        learner.give_up_compiling()


def open_folder(recipe: Recipe) -> tuple[RunFolder, bytes | None, bool]:
    """The folder of the run, the state to go on from where there is one, and whether nothing is left to be done.

    Raises:
        UserError: It is in use, holds another run, or was started with another recipe.
    """
    if not recipe.resume:
        named = Path(recipe.output, recipe.experiment) if recipe.experiment else None
        folder = RunFolder(named or unused(_own_name(recipe)), own_name=named is None)
        if not recipe.overwrite:
            folder.check_unused()
        return folder, None, False
    folder = RunFolder(resumed_run(recipe.resume, recipe.output, recipe.experiment))
    if not folder.started:
        folder.check_unused()
        return folder, None, False
    folder.lock()
    try:
        check_resumable(recipe, folder)
        return folder, folder.read_state(), folder.finished
    except UserError:
        folder.unlock()
        raise


def check_alike(recipe: Recipe, first: Mapping[str, Any]) -> None:
    """Looks whether this process trains what the first one does.

    Raises:
        UserError: An option that decides what is trained differs.
    """
    together = FREE_ON_RESUME - {'recovery_interval', 'nan', 'nan_limit'}
    for option, value, other in _differing(recipe, first, together):
        raise UserError(f'{option} is {value} in this process and {other} in the first: give all the same')


def _differing(
    recipe: Recipe, other: Mapping[str, Any], free: Collection[str] = FREE_ON_RESUME
) -> Iterator[tuple[str, Any, Any]]:
    """The options that are not free to differ and do, with both values."""
    for option, value in recipe.as_dict().items():
        if option not in free and value != other[option]:
            yield option, value, other[option]


def check_resumable(recipe: Recipe, folder: RunFolder) -> None:
    started = Recipe(**read_yaml(folder['args.yaml'], Recipe.names()))
    if recipe.resume != 'auto' and recipe.experiment not in (None, folder.path.name, started.experiment):
        raise UserError(
            f'--resume goes on with {folder.path}, in its own folder: leave --experiment {recipe.experiment} out; to '
            f'start another run from its weights: --initial-checkpoint {folder.path}'
        )
    if folder.finished and recipe.resume != 'auto':
        raise UserError(f'{folder.path}: this run is finished; there is nothing to resume')
    for option, value, then in _differing(recipe, started.as_dict()):
        raise UserError(
            f'{folder.path}: was started with {option} {then}, not {value}: leave the option out to resume, or start '
            f'another run'
        )


def _own_name(recipe: Recipe) -> Path:
    """A folder named by time, model and size, as timm's script names it."""
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = '-'.join([stamp, file_stem(recipe.model), *([str(recipe.img_size)] if recipe.img_size else [])])
    return Path(recipe.output, name)


def _resume(run: Run, data: bytes) -> None:
    """Takes up the state of the interrupted run."""
    state = run.folder.parse_state(data)
    try:
        for name, value in run.signature().items():
            if state['signature'][name] != value:
                raise UserError(f'{run.folder.path}: was started with other {name}: it can only go on with the same')
        run.history.extend(state['history'])
        if [row['epoch'] for row in run.history] != list(range(len(run.history))):
            raise ValueError('not a row an epoch')
        if not all(isinstance(row[name], (int, float)) for row in run.history for name in NUMBERS):
            raise ValueError('no numbers in its rows')
        run.position = Position(**state['position'])
        if not 0 <= run.position.step <= len(run.data.train_batches):
            raise ValueError(f'step {run.position.step} of {len(run.data.train_batches)}')
        if run.position.step and [len(sums) for sums in run.position.sums] != [2] * run.learner.world.size:
            raise ValueError('no loss of each process')
        run.learner.load_state_dict(state['learner'])
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f'{run.folder["state.pt"]}: not the state of this run ({reason})') from None


def _load_images(recipe: Recipe, world: World) -> tuple[ImageSet, ImageSet]:
    root = resolve_dataset(recipe.dataset, recipe.data_dir, recipe.train_split, recipe.val_split)
    train_images = load_split(root, recipe.train_split)
    val_images = load_split(root, recipe.val_split, train_images.classes)
    classes = len(train_images.classes)
    if recipe.num_classes not in (None, classes):
        raise UserError(
            f'--num-classes {recipe.num_classes} disagrees with the {classes} classes of {root}: '
            f'--num-classes {classes} is theirs'
        )
    if world.size > len(val_images):
        raise UserError(f'{world.size} processes for {len(val_images)} validation images: start fewer')
    if recipe.label_noise:
        train_images = with_label_noise(train_images, recipe.label_noise)
    return train_images, val_images


def make_model(recipe: Recipe, classes: int) -> Any:
    """The recipe's model, with its starting weights."""
    model = build.build_model(
        recipe.model,
        pretrained=recipe.pretrained,
        num_classes=classes,
        drop_rate=recipe.drop,
        drop_path_rate=recipe.drop_path,
        drop_block_rate=recipe.drop_block,
        global_pool=recipe.gp,
        bn_momentum=recipe.bn_momentum,
        bn_eps=recipe.bn_eps,
        **recipe.model_kwargs,
    )
    if recipe.initial_checkpoint:
        folder = model_folder(recipe.initial_checkpoint)
        path = folder / 'model.safetensors' if folder else Path(recipe.initial_checkpoint)
        load_weights(model, read_weights(path), path)
    _scale_head(model, recipe)
    return model


@torch.no_grad()
def _scale_head(model: Any, recipe: Recipe) -> None:
    """Changes the classifier's weights as the recipe asks."""
    scale, bias = recipe.head_init_scale, recipe.head_init_bias
    if scale is None and bias is None:
        return
    head = model.get_classifier()
    if not isinstance(getattr(head, 'weight', None), torch.Tensor) or head.bias is None:
        raise UserError(f'--head-init-scale, --head-init-bias: the classifier of {recipe.model} is no plain layer')
    if scale is not None:
        head.weight.mul_(scale)
        head.bias.mul_(scale)
    if bias is not None:
        head.bias.fill_(bias)


def _load_batches(
    recipe: Recipe,
    train_images: ImageSet,
    val_images: ImageSet,
    config: dict[str, Any],
    world: World,
    console: Console,
) -> Data:
    mixup = _make_mixup(recipe, len(train_images.classes))
    normalize = Normalize(config['mean'], config['std'], world.device, recipe.is_channels_last(world.device))
    reprob = 0.0 if recipe.no_aug else recipe.reprob
    transform = BatchTransform(normalize, reprob, recipe.remode, recipe.recount, mixup)
    train_batches = _train_batches(recipe, train_images, config, world, console, multiple=2 if mixup else 1)
    batch_size = recipe.validation_batch_size or recipe.batch_size
    val_batches = build.eval_batches(recipe, val_images, config, batch_size, world, console)
    return Data(train_images, val_images, train_batches, val_batches, transform)


def _train_batches(
    recipe: Recipe,
    images: ImageSet,
    config: dict[str, Any],
    world: World,
    console: Console,
    multiple: int,  # mixing pairs the images
) -> Batches:
    """The training batches, from the cache or from the files.

    Raises:
        UserError: The batch is larger than the training set; ``--loader cache`` can't do what is asked for; an image
            can't be read.
    """
    total = recipe.batch_size * world.size
    if total > len(images):
        shown = f'{recipe.batch_size} in each of {world.size} processes' if world.size > 1 else str(total)
        raise UserError(
            f'--batch-size {shown} is larger than the training set of {len(images)} images: choose a smaller one'
        )
    sides = recipe.train_img_sizes or (config['input_size'][-1],)
    schedule = SizeSchedule(
        sides,
        recipe.epochs,
        recipe.train_size_schedule,
        recipe.train_size_probs,
        recipe.train_size_schedule_spread,
        recipe.train_size_random_mix,
    )
    sampler = EpochBatches(len(images), recipe.batch_size, recipe.seed, multiple, world.rank, world.size, schedule)
    schedule.of_epoch(len(sampler), recipe.batch_size, recipe.seed, 0)  # a timm that lacks it fails now
    missing = _not_batched(recipe, config)
    if missing and recipe.loader == 'cache':
        raise UserError(f'--loader cache: can not do {missing}: use --loader timm')
    if not missing and build.uses_cache(recipe, images, stored_side(max(sides)), console):
        side, sizes = train_side(images, max(sides), console)
        pixels = torch.from_numpy(train_pixels(images, side, console))
        return CachedTrainBatches(
            pixels, torch.from_numpy(sizes), torch.tensor(images.targets), _augmentation(recipe), sampler, world.device
        )
    transforms = {side: _train_transform(recipe, config, side) for side in sides}
    return train_loader(images, transforms, sampler, recipe.workers, recipe.pin_mem)


def _not_batched(recipe: Recipe, config: dict[str, Any]) -> str:
    """What the recipe asks for that only timm's per-image transforms can do, or nothing."""
    if recipe.no_aug:
        return '--no-aug'
    if recipe.aa:
        return '--aa'
    if recipe.gaussian_blur_prob:
        return '--gaussian-blur-prob'
    if recipe.train_crop_mode not in (None, 'rrc'):
        return f'--train-crop-mode {recipe.train_crop_mode}'
    if recipe.train_interpolation not in ('random', 'bilinear', 'bicubic'):
        return f'--train-interpolation {recipe.train_interpolation}'
    _, height, width = config['input_size']
    return '' if height == width else f'images of {height}×{width}'


def _augmentation(recipe: Recipe) -> Augmentation:
    return Augmentation(
        recipe.scale,
        recipe.ratio,
        recipe.hflip,
        recipe.vflip,
        recipe.train_interpolation,
        recipe.color_jitter,
        1.0 if recipe.color_jitter_prob is None else recipe.color_jitter_prob,
        recipe.grayscale_prob or 0.0,
    )


def _train_transform(recipe: Recipe, config: dict[str, Any], side: int) -> Transform:
    """timm's training transform, to ``(3, H, W)`` uint8."""
    channels, height, width = config['input_size']
    try:
        return create_transform(
            input_size=(channels, side, side) if height == width else config['input_size'],
            is_training=True,
            no_aug=recipe.no_aug,
            interpolation=config['interpolation'] if recipe.no_aug else recipe.train_interpolation,
            train_crop_mode=recipe.train_crop_mode,
            scale=recipe.scale,
            ratio=recipe.ratio,
            hflip=recipe.hflip,
            vflip=recipe.vflip,
            color_jitter=recipe.color_jitter,
            color_jitter_prob=recipe.color_jitter_prob,
            grayscale_prob=recipe.grayscale_prob or 0.0,
            gaussian_blur_prob=recipe.gaussian_blur_prob or 0.0,
            auto_augment=recipe.aa,
            mean=config['mean'],
            std=config['std'],
            use_prefetcher=True,
        )
    except (AssertionError, ValueError, KeyError) as error:
        named = f'--aa {recipe.aa}: not a policy that timm knows' if recipe.aa else 'augmentation'
        raise UserError(f'{named} ({error})') from None


def _make_mixup(recipe: Recipe, classes: int) -> Mixup | None:
    if not recipe.mixes:
        return None
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        recipe.cutmix_minmax,
        recipe.mixup_prob,
        recipe.mixup_switch_prob,
        recipe.mixup_mode,
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )
