"""What a study will take, before it runs: each run's steps, timed on random images."""

from __future__ import annotations

import time

import torch

from ..config.recipe import Recipe
from ..data.constants import IMAGENETTE
from ..data.folders import load_split
from ..data.locate import resolve_dataset
from ..errors import UserError
from ..models import factory
from ..training.cuda_graph import REHEARSALS
from ..training.learner import Learner
from ..training.run import make_model
from ..utils.distributed import World, choose_device
from ..utils.memory import collect
from ..utils.process import restore_process

__all__ = ['image_counts', 'seconds_per_epoch']

PUBLISHED = (9469, 3925)  # training and validation images of Imagenette
STEPS = 3  # of which the first is not counted


def image_counts(recipe: Recipe, data_dir: str | None) -> tuple[int, int, int]:
    """`(training images, validation images, classes)`, those of Imagenette where the data are not at hand."""
    try:
        root = resolve_dataset(recipe.dataset, data_dir or recipe.data_dir, recipe.train_split, recipe.val_split)
        train = load_split(root, recipe.train_split)
        return len(train), len(load_split(root, recipe.val_split, train.classes)), len(train.classes)
    except UserError:
        return *PUBLISHED, len(IMAGENETTE)


@restore_process()
def seconds_per_epoch(recipe: Recipe, counts: tuple[int, int, int]) -> float:
    """The time of one epoch, validation included, on this machine: a few steps are timed, at each image size.

    Args:
        recipe: The run.
        counts: As `image_counts` gives them.

    Raises:
        UserError: The recipe names something that is not there.
    """
    train, val, classes = counts
    recipe = recipe.replace(torchcompile='none', torchcompile_mode=None, pretrained=False, initial_checkpoint=None)
    world = World(choose_device(recipe.device))
    collect(world.device)
    model = make_model(recipe, classes)
    config = factory.input_config(recipe, model, crop_mode='center')
    learner = Learner(recipe, model, world, 1)
    channels, _, side = config['input_size']
    sides = recipe.train_img_sizes or (side,)
    batch = min(recipe.batch_size, train)
    step = sum(_step_seconds(learner, batch, channels, each, classes) for each in sides) / len(sides)
    looked_at = min(recipe.validation_batch_size or recipe.batch_size, val)
    look = _look_seconds(learner, looked_at, channels, side)
    return train / batch * step + val / looked_at * look / recipe.val_interval


def _batch(learner: Learner, batch: int, channels: int, side: int) -> torch.Tensor:
    layout = torch.channels_last if learner.recipe.is_channels_last(learner.world.device) else torch.contiguous_format
    return torch.randn(batch, channels, side, side, device=learner.world.device).to(memory_format=layout)


def _step_seconds(learner: Learner, batch: int, channels: int, side: int, classes: int) -> float:
    images = _batch(learner, batch, channels, side)
    targets = torch.randint(classes, (batch,), device=learner.world.device)
    if learner.recipe.mixes:
        targets = torch.nn.functional.one_hot(targets, classes).float()
    learner.model.train()
    times = []
    for _ in range(STEPS + (REHEARSALS if learner.recorder else 0)):
        start = time.perf_counter()
        float(learner.step(images, targets, 1, True))  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


@torch.inference_mode()
def _look_seconds(learner: Learner, batch: int, channels: int, side: int) -> float:
    images = _batch(learner, batch, channels, side)
    learner.model.eval()
    times = []
    with factory.autocast(learner.recipe, learner.world.device):
        for _ in range(STEPS):
            start = time.perf_counter()
            float(learner.model(images).sum())
            times.append(time.perf_counter() - start)
    return min(times[1:])
