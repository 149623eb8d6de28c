"""The plan of a study and its hours before it runs: each run's steps, timed on random images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from importlib.util import find_spec

import torch

from ..config.recipe import Recipe
from ..data.constants import IMAGENETTE
from ..data.locate import load_splits
from ..errors import UserError
from ..models import factory
from ..training.cuda_graph import WARM_UP_STEPS
from ..training.learner import Learner
from ..training.run import make_model
from ..utils.console import Console, duration, table
from ..utils.distributed import World, choose_device
from ..utils.memory import collect
from ..utils.process import restore_process
from .plan import Study
from .power import TOP1_IMAGES, power, top1_spreads
from .process import Slot, epochs_done
from .runner import check_models, state_of

__all__ = ['dry_run', 'image_counts', 'seconds_per_epoch']

PUBLISHED = (9469, 3925)  # training and validation images of Imagenette
STEPS = 3  # of which the first is not counted


def dry_run(study: Study, slot: Slot, console: Console, only: Sequence[str] = (), budget: float | None = None) -> float:
    """Prints what would be trained and what it would take; returns the hours."""
    check_models(study, console)
    rows: list[tuple[str, ...]] = [('run', 'model', 'px', 'epochs', 'seeds', 'done', 'begun', 'hours to go')]
    total = 0.0
    for name, run in study.runs.items():
        if only and name not in only:
            continue
        trials = [trial for trial in study.trials() if trial.run == name]
        states = [state_of(trial, slot) for trial in trials]
        counts = image_counts(run.recipe, slot.data_dir)
        epochs = sum(
            trial.recipe.epochs - epochs_done(slot.output / trial.name)
            for trial, state in zip(trials, states, strict=True)
            if state != 'done'
        )
        recipe = run.recipe.replace(device=slot.device or run.recipe.device)
        hours = epochs * seconds_per_epoch(recipe, counts) / 3600 if epochs else 0.0
        total += hours
        size = '-'.join(map(str, recipe.train_img_sizes or (recipe.img_size or 'own',)))
        shown = [str(states.count(state)) for state in ('done', 'begun')]
        rows.append((name, recipe.model, size, str(recipe.epochs), str(len(trials)), *shown, f'{hours:.2f}'))
    console.line(table(rows))
    wall = total / min(slot.jobs, max(1, torch.cuda.device_count()))  # several on one device take turns
    console.line(f'\nabout {duration(3600 * wall)} to go, by a few steps of each on this machine, without set-up')
    if (limit := budget or study.budget) is not None:
        console.line(f'the budget is {limit:g} h of training and validation, what is done included')
    for claim in study.claims:
        console.line(f'{claim.name}: {claim.sentence}  [{claim.metric}: {"; ".join(claim.order)}]')
    if (tests := len(study.claims) or math.comb(len(study.runs), 2)) and find_spec('scipy'):
        console.line(_reach(study, tests))
    return wall


def _reach(study: Study, tests: int) -> str:
    """The chances that differences of top-1 are decided by so many tests together, without claims of all pairs."""
    seeds = len(study.seeds)
    what = f'{tests} {"claim" if study.claims else "pair"}{"s" if tests > 1 else ""} tested together'

    def chances(count: int) -> str:
        each = (
            f'{power(points, top1_spreads(), count, tests, images=TOP1_IMAGES, stages=study.stages):.0%} for {points}'
            for points in (2, 4, 8)
        )
        return f'{count} seeds decide a difference in top-1 with a chance of {", ".join(each)} points'

    least = study.stages[0][0]
    if seeds < least:
        return f'{what}: {seeds} seed{"s" if seeds > 1 else ""} can decide nothing, {least} are the least; {chances(5)}'
    return f'{what}: {chances(seeds)}' + (f'; {chances(10)}' if seeds < 10 else '')


def image_counts(recipe: Recipe, data_dir: str | None) -> tuple[int, int, int]:
    """`(training images, validation images, classes)`, those of Imagenette where the data are not at hand."""
    try:
        train, val = load_splits(recipe.replace(data_dir=data_dir or recipe.data_dir))
        return len(train), len(val), len(train.classes)
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
    channels, _, size = config['input_size']
    sizes = recipe.train_img_sizes or (size,)
    batch = min(recipe.batch_size, train)
    step = sum(_step_seconds(learner, batch, channels, each, classes) for each in sizes) / len(sizes)
    val_batch = min(recipe.validation_batch_size or recipe.batch_size, val)
    val_step = _val_step_seconds(learner, val_batch, channels, size)
    return train / batch * step + val / val_batch * val_step / recipe.val_interval


def _batch(learner: Learner, batch: int, channels: int, size: int) -> torch.Tensor:
    layout = torch.channels_last if learner.recipe.is_channels_last(learner.world.device) else torch.contiguous_format
    return torch.randn(batch, channels, size, size, device=learner.world.device).to(memory_format=layout)


def _step_seconds(learner: Learner, batch: int, channels: int, size: int, classes: int) -> float:
    images = _batch(learner, batch, channels, size)
    targets = torch.randint(classes, (batch,), device=learner.world.device)
    if learner.recipe.mixes:
        targets = torch.nn.functional.one_hot(targets, classes).float()
    learner.model.train()
    times = []
    for _ in range(STEPS + (WARM_UP_STEPS if learner.graphed_step else 0)):
        start = time.perf_counter()
        float(learner.step(*learner.transform(images, targets, 0, 0)))  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


@torch.inference_mode()
def _val_step_seconds(learner: Learner, batch: int, channels: int, size: int) -> float:
    images = _batch(learner, batch, channels, size)
    learner.model.eval()
    times = []
    with factory.autocast(learner.recipe, learner.world.device):
        for _ in range(STEPS):
            start = time.perf_counter()
            float(learner.model(images).sum())
            times.append(time.perf_counter() - start)
    return min(times[1:])
