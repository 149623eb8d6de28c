"""From options to batches, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, create_transform

from ..config.groups import DataOptions
from ..config.recipe import Recipe
from ..errors import UserError
from ..utils.console import Console
from ..utils.distributed import World
from .augment import Augmentation, BatchTransform, Normalize
from .cache import content_hash, eval_pixels, names_hash, stored_size, train_pixels, train_size
from .folders import ImageSet, with_label_noise
from .images import Unfit
from .loaders import Batches, CachedEvalBatches, CachedTrainBatches, Transform, eval_loader, train_loader
from .locate import load_splits
from .sampling import EpochBatches, SizeSchedule

__all__ = [
    'Data', 'data_hash', 'eval_batches', 'eval_transform', 'fixed_crops', 'load_data', 'load_images', 'train_batches',
    'uses_cache',
]  # fmt: skip

LARGEST_CACHE = 16 * 2**30  # bytes of decoded images that auto keeps
MOST_ELONGATED = 100  # times as long as wide that an image may be,
LARGEST_RESIZED = 100e6  # and pixels that it may have once its shorter side is resized


def eval_transform(config: dict[str, Any]) -> Transform:
    """timm's evaluation transform, to `(C, H, W)` uint8. It raises `Unfit` for an image that it would make huge."""
    transform = create_transform(
        input_size=config['input_size'],
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        mean=config['mean'],  # what a border is filled with
        use_prefetcher=True,
    )
    return partial(_bounded, transform, max(config['input_size'][1:]) / config['crop_pct'])


def _bounded(transform: Transform, side: float, image: Image.Image) -> Any:
    """The transform of an image whose shorter side it resizes to `side`, if that makes no gigabytes of it."""
    most = min(MOST_ELONGATED, LARGEST_RESIZED / side**2)
    if max(image.size) > most * min(image.size):
        raise Unfit(
            f'is {image.width} × {image.height} px: expected at most {most:.3g} times as long as wide; crop or remove '
            'it'
        )
    return transform(image)


def uses_cache(options: DataOptions, images: ImageSet, img_size: int, console: Console) -> bool:
    """Whether decoded images are to be kept; says so where `auto` means not for their size.

    Args:
        options: `loader`.
        images: The images.
        img_size: The size in pixels that they are kept at, at most.
        console: Where that is printed.
    """
    memory = len(images) * img_size**2 * images.channels
    if options.loader == 'auto' and memory > LARGEST_CACHE:
        console.line(
            f'{len(images):,} images of {images.root / images.split} would take up to {memory / 2**30:.0f} GiB '
            f'decoded, so they are decoded in every epoch; --loader cache keeps them in any case'
        )
        return False
    return options.loader != 'timm'


def data_hash(options: DataOptions, sets: Sequence[ImageSet], img_size: int, console: Console) -> str:
    """A hash of the images: of their bytes where they are decoded into the cache, else of their names."""
    if all(uses_cache(options, images, stored_size(img_size), Console(quiet=True)) for images in sets):
        return 'content:' + '+'.join(content_hash(images, console) for images in sets)
    return 'names:' + '+'.join(map(names_hash, sets))


def eval_batches(
    options: DataOptions, images: ImageSet, config: dict[str, Any], batch_size: int, world: World, console: Console
) -> Batches:
    """This process's part of the images as timm's evaluation transform makes them, from the cache or the files."""
    transform, images = eval_transform(config), replace(images, channels=config['input_size'][0])
    if uses_cache(options, images, max(config['input_size'][1:]), console):
        names = ['input_size', 'interpolation', 'crop_pct', 'crop_mode']
        names += ['mean'] if config['crop_mode'] == 'border' else []
        pixels = eval_pixels(images, transform, {name: config[name] for name in names}, console)
        targets = torch.tensor(images.targets)
        return CachedEvalBatches(torch.from_numpy(pixels), targets, batch_size, world.device, world.rank, world.size)
    return eval_loader(images, transform, batch_size, options.workers, options.pin_mem, world.rank, world.size)


@dataclass
class Data:
    """The two splits and their batches."""

    train: ImageSet
    val: ImageSet
    train_batches: Batches
    val_batches: Batches
    transform: BatchTransform


def load_images(recipe: Recipe, world: World) -> tuple[ImageSet, ImageSet]:
    """The training images, with the labels that the recipe asks for, and the validation images.

    Raises:
        UserError: They are not there, or do not fit the recipe or the number of processes.
    """
    train, val = load_splits(recipe)
    classes = len(train.classes)
    if recipe.num_classes not in (None, classes) and recipe.insists_on('num_classes'):
        raise UserError(
            f'--num-classes {recipe.num_classes} disagrees with the {classes} classes of {train.root}: '
            f'give --num-classes {classes}'
        )
    if world.size > len(val):
        raise UserError(f'more processes ({world.size}) than validation images ({len(val)}): start fewer')
    return with_label_noise(train, recipe.label_noise), val


def load_data(
    recipe: Recipe, train: ImageSet, val: ImageSet, config: dict[str, Any], world: World, console: Console
) -> Data:
    """The batches of both splits, for a model of this data config.

    Raises:
        UserError: As `train_batches`.
    """
    shapes = recipe.training_shapes(config['input_size'])
    mixup = _make_mixup(recipe, len(train.classes), min(side for shape in shapes for side in shape[1:]))
    normalize = Normalize(config['mean'], config['std'], world.device, recipe.is_channels_last(world.device))
    reprob = 0.0 if recipe.no_aug else recipe.reprob
    transform = BatchTransform(normalize, reprob, recipe.remode, recipe.recount, mixup)
    training = train_batches(recipe, train, config, world, console, multiple=2 if mixup else 1)
    batch_size = recipe.validation_batch_size or recipe.batch_size
    return Data(train, val, training, eval_batches(recipe, val, config, batch_size, world, console), transform)


def train_batches(
    recipe: Recipe, images: ImageSet, config: dict[str, Any], world: World, console: Console, multiple: int = 1
) -> Batches:
    """The training batches, from the cache or from the files, of a `multiple` of images each: mixing pairs them.

    Raises:
        UserError: The batch is larger than the training set; `--loader cache` can't do what is asked for; the model is
            for images of other channels; an image can't be read.
    """
    total = recipe.batch_size * world.size
    if total > len(images):
        shown = f'{recipe.batch_size} in each of {world.size} processes' if world.size > 1 else str(total)
        raise UserError(
            f'--batch-size {shown} is larger than the training set of {len(images)} images: choose a smaller one'
        )
    img_sizes = recipe.train_img_sizes or (config['input_size'][-1],)
    schedule = SizeSchedule(
        img_sizes,
        recipe.epochs,
        recipe.train_size_schedule,
        recipe.train_size_probs,
        recipe.train_size_schedule_spread,
        recipe.train_size_random_mix,
    )
    balance = images.targets if recipe.balanced else None
    sampler = EpochBatches(
        len(images), recipe.batch_size, recipe.seed, multiple, world.rank, world.size, schedule, balance
    )
    schedule.of_epoch(len(sampler), recipe.batch_size, recipe.seed, 0)  # a timm that lacks it fails now
    channels = config['input_size'][0]
    if channels != (recipe.channels or 3):
        raise UserError(f'model {recipe.model}: is for images of {channels} channels: give --in-chans {channels}')
    images = replace(images, channels=channels)
    missing = _not_batched(recipe, config)
    if missing and recipe.loader == 'cache':
        raise UserError(f'--loader cache: cannot do {missing}: use --loader timm')
    if not missing and uses_cache(recipe, images, stored_size(max(img_sizes)), console):
        stored, sizes = train_size(images, max(img_sizes), console)
        pixels = torch.from_numpy(train_pixels(images, stored, console))
        return CachedTrainBatches(
            pixels, torch.from_numpy(sizes), torch.tensor(images.targets), _augmentation(recipe), sampler, world.device
        )
    shapes = recipe.training_shapes(config['input_size'])
    transforms = {shape[2]: _train_transform(recipe, config, shape) for shape in shapes}
    return train_loader(images, transforms, sampler, recipe.workers, recipe.pin_mem)


def fixed_crops(recipe: Recipe, images: ImageSet, config: dict[str, Any]) -> Batches | None:
    """All training images in order, as they come in every epoch; None where an epoch has other pixels than the next."""
    if not recipe.no_aug or recipe.mixes or recipe.batch_transform or recipe.train_img_sizes:
        return None
    shape = config['input_size']
    transform = _train_transform(recipe, config, shape)
    return eval_loader(
        replace(images, channels=shape[0]), transform, recipe.batch_size, recipe.workers, recipe.pin_mem
    )


def _not_batched(recipe: Recipe, config: dict[str, Any]) -> str:
    """The option that only timm's per-image transforms can follow, or nothing."""
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


def _train_transform(recipe: Recipe, config: dict[str, Any], input_size: tuple[int, int, int]) -> Transform:
    """timm's training transform, to `(C, H, W)` uint8."""
    try:
        transform = create_transform(
            input_size=input_size,
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
    whole = recipe.no_aug or recipe.train_crop_mode not in (None, 'rrc')  # resized before it is cropped
    return partial(_bounded, transform, max(input_size[1:])) if whole else transform


def _make_mixup(recipe: Recipe, classes: int, side: int) -> Mixup | None:
    """timm's mixing for images whose smallest side in pixels is this."""
    if not recipe.mixes:
        return None
    if recipe.cutmix_minmax is not None:
        low, high = recipe.cutmix_minmax
        if int(side * low) >= int(side * high):
            raise UserError(f'--cutmix-minmax {low:g} {high:g}: less than a pixel apart at {side} px: take more')
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        recipe.cutmix_minmax,
        recipe.mixup_prob,
        recipe.mixup_switch_prob,
        recipe.mixup_mode,
        label_smoothing=0.0 if recipe.loss else recipe.smoothing,
        num_classes=classes,
    )
