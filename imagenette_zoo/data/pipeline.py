"""From options to batches, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import Mixup, create_transform

from ..config.groups import DataOptions
from ..config.recipe import Recipe
from ..errors import UserError
from ..utils.console import Console
from ..utils.distributed import World
from . import pipeline
from .augment import Augmentation, BatchTransform, Normalize
from .cache import content_hash, eval_pixels, names_hash, stored_side, train_pixels, train_side
from .folders import ImageSet, load_split, with_label_noise
from .loaders import (
    Batches,
    CachedEvalBatches,
    CachedTrainBatches,
    EpochBatches,
    SizeSchedule,
    Transform,
    eval_loader,
    train_loader,
)
from .locate import resolve_dataset

__all__ = [
    'eval_transform',
    'uses_cache',
    'data_hash',
    'eval_batches',
    'Data',
]

LARGEST_CACHE = 16 * 2**30  # bytes of decoded images that auto keeps


def eval_transform(config: dict[str, Any]) -> Transform:
    """timm's evaluation transform, to `(3, H, W)` uint8."""
    return create_transform(
        input_size=config['input_size'],
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        mean=config['mean'],  # what a border is filled with
        use_prefetcher=True,
    )


def uses_cache(options: DataOptions, images: ImageSet, side: int, console: Console) -> bool:
    """Whether decoded images are to be kept; says so where `auto` means not for their size.

    Args:
        options: `loader`.
        images: The images.
        side: The side in pixels that they are kept at, at most.
        console: Who is told.
    """
    size = len(images) * side**2 * 3
    if options.loader == 'auto' and size > LARGEST_CACHE:
        console.line(
            f'{len(images):,} images of {images.root / images.split} would take up to {size / 2**30:.0f} GiB decoded: '
            f'they are decoded every epoch (--loader cache keeps them all the same)'
        )
        return False
    return options.loader != 'timm'


def data_hash(options: DataOptions, sets: Sequence[ImageSet], side: int, console: Console) -> str:
    """What tells these data from others: of their bytes where they are decoded into the cache, else of their names."""
    if all(uses_cache(options, images, stored_side(side), Console(quiet=True)) for images in sets):
        return 'content:' + '+'.join(content_hash(images, console) for images in sets)
    return 'names:' + '+'.join(map(names_hash, sets))


def eval_batches(
    options: DataOptions,
    images: ImageSet,
    config: dict[str, Any],
    batch_size: int,
    world: World,
    console: Console,
) -> Batches:
    """This process's share of the images as timm's evaluation transform makes them, from the cache or the files."""
    transform = eval_transform(config)
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
    val_batches = pipeline.eval_batches(recipe, val_images, config, batch_size, world, console)
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
        UserError: The batch is larger than the training set; `--loader cache` can't do what is asked for; an image
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
    if not missing and pipeline.uses_cache(recipe, images, stored_side(max(sides)), console):
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
    """timm's training transform, to `(3, H, W)` uint8."""
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
