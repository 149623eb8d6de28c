"""Training steps of several runs, timed in turns: what else the machine does at a time slows all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from ..config.recipe import Recipe
from ..data.constants import IMAGENETTE
from ..data.locate import load_splits
from ..errors import UserError
from ..models import factory
from ..models.own import code_of
from ..training.compilation import resolve
from ..training.cuda_graph import WARM_UP_STEPS
from ..training.distillation import load_teacher
from ..training.learner import Learner
from ..training.run import compile_steps, make_model
from ..utils import environment
from ..utils.console import Console
from ..utils.distributed import World, choose_device
from ..utils.files import write_json
from ..utils.memory import collect
from ..utils.process import restore_process
from .metrics import metric_of
from .plan import STEP_TIME_BLOCKS, StepTimes, Study
from .process import Slot
from .records import STEP_TIMES, decisive_options

__all__ = ['TimedModel', 'image_counts', 'time_steps', 'time_study']

PUBLISHED = (9469, 3925)  # training and validation images of Imagenette
WARM_UP = 2  # steps that are not counted
BLOCK_SECONDS = 2.0  # of a run in a block, at least
BLOCK_STEPS = 3  # at least


class TimedModel:
    """The training and validation steps of a run, on random images.

    Args:
        recipe: The run.
        counts: As `image_counts` gives them.
        console: Where the training of the run would say whether it compiles. Without one nothing is compiled.

    Raises:
        UserError: The recipe names something that is not there.
    """

    def __init__(self, recipe: Recipe, counts: tuple[int, int, int], console: Console | None = None) -> None:
        train, val, self.classes = counts
        recipe = recipe.replace(pretrained=False, initial_checkpoint=None)
        if console is None:
            recipe = recipe.replace(torchcompile='none', torchcompile_mode=None)
        world = World(choose_device(recipe.device))
        collect(world.device)
        model = make_model(recipe, self.classes)
        config = factory.input_config(recipe, model, crop_mode='center')
        teacher = load_teacher(recipe, config, world.device) if recipe.kd_model_name else None
        own = resolve(recipe, model, train, world.device, console or Console(quiet=True))
        self.learner = Learner(own, model, world, 1, teacher=teacher)
        if own.torchcompile and console is not None:
            compile_steps(recipe, self.learner, config, console)
        self.shape = config['input_size']
        self.shapes = recipe.training_shapes(config['input_size'])
        self.batch = min(recipe.batch_size, train)
        self.val_batch = min(recipe.validation_batch_size or recipe.batch_size, val)

    def warm_up(self) -> None:
        """Makes the steps that are slower than others, at each image size."""
        for shape in self.shapes:
            for _ in range(WARM_UP + (WARM_UP_STEPS if self.learner.graphed_step else 0)):
                self.step(shape)

    def step(self, shape: tuple[int, int, int]) -> float:
        """The seconds of a batch: its forward and backward pass, with its share of the update."""
        parts = self.learner.recipe.grad_accum_steps
        seconds = 0.0
        for part in range(parts):
            images, targets = self._images(self.batch, shape), self._targets()
            self.learner.model.train()
            start = time.perf_counter()
            batch = self.learner.transform(images, targets, 0, 0)
            float(self.learner.step(*batch, fraction=1 / parts, update=part == parts - 1))  # waits for the device
            seconds += time.perf_counter() - start
        return seconds / parts

    @torch.inference_mode()
    def val_step(self) -> float:
        """The seconds of a validation step."""
        images = self._images(self.val_batch, self.shape)
        self.learner.model.eval()
        with factory.autocast(self.learner.recipe, self.learner.world.device):
            start = time.perf_counter()
            float(self.learner.model(images).sum())
            return time.perf_counter() - start

    def block(self) -> float:
        """The mean seconds of a training step over some, equally many of each image size."""
        seconds: list[float] = []
        while len(seconds) < BLOCK_STEPS or sum(seconds) < BLOCK_SECONDS:
            seconds += [self.step(shape) for shape in self.shapes]
        return sum(seconds) / len(seconds)

    def _targets(self) -> torch.Tensor:
        targets = torch.randint(self.classes, (self.batch,), device=self.learner.world.device)
        return torch.nn.functional.one_hot(targets, self.classes).float() if self.learner.recipe.mixes else targets

    def _images(self, batch: int, shape: tuple[int, int, int]) -> torch.Tensor:
        device = self.learner.world.device
        layout = torch.channels_last if self.learner.recipe.is_channels_last(device) else torch.contiguous_format
        return torch.randn(batch, *shape, device=device).to(memory_format=layout)


def image_counts(recipe: Recipe, data_dir: str | None) -> tuple[int, int, int]:
    """`(training images, validation images, classes)`, those of Imagenette where the data are not at hand."""
    try:
        train, val = load_splits(recipe.replace(data_dir=data_dir or recipe.data_dir))
        return len(train), len(val), len(train.classes)
    except UserError:
        return *PUBLISHED, len(IMAGENETTE)


@restore_process()
def time_steps(
    recipes: Mapping[str, Recipe], data_dir: str | None = None, console: Console | None = None
) -> StepTimes:
    """Times training steps of several runs, block by block; in each block the runs take turns in a random order.

    Args:
        recipes: Of the runs by name, all on one device.
        data_dir: As `--data-dir`; only numbers of images and classes are needed.
        console: Where it is said what is compiled.

    Raises:
        UserError: A recipe names something that is not there.
    """
    console = console or Console(quiet=True)
    models = {name: TimedModel(recipe, image_counts(recipe, data_dir), console) for name, recipe in recipes.items()}
    for model in models.values():
        model.warm_up()
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order = random.Random(0)
    for _ in range(STEP_TIME_BLOCKS):
        for name in order.sample(list(models), len(models)):
            seconds[name].append(models[name].block())
    device = next(iter(models.values())).learner.world.device
    return StepTimes(seconds, {name: model.batch for name, model in models.items()}, environment.hardware(device))


def time_study(study: Study, slot: Slot, console: Console) -> None:
    """Times the steps that claims of a study ask for, once; all of them again where a run is missing or has changed.

    Raises:
        UserError: A step can't be made.
    """
    claims = [claim for claim in study.claims if metric_of(claim.metric).by_steps]
    names = dict.fromkeys(run for claim in claims for run in claim.runs)
    code = {name: code_of(study.runs[name].recipe.model) for name in names}
    known = study.step_times or StepTimes({}, {}, {})
    if all(name in known.seconds and known.code.get(name, code[name]) == code[name] for name in names):
        return
    console.line(
        f'timing training steps of {", ".join(names)} in turns on this machine, '
        f'for {", ".join(each.name for each in claims)}'
    )
    recipes = {name: study.runs[name].recipe for name in names}
    if slot.device:
        recipes = {name: recipe.replace(device=slot.device) for name, recipe in recipes.items()}
    options = {name: decisive_options(study.runs[name].recipe) for name in names}
    times = time_steps(recipes, slot.data_dir, console)
    write_json(slot.output / STEP_TIMES, asdict(replace(times, options=options, code=code)))
