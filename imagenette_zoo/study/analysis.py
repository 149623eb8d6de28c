"""The final weights of a finished run on each image, in more detail than training records."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..config.groups import ArchitectureOptions, ValidationOptions
from ..config.recipe import Recipe
from ..config.uses import PassesOptions
from ..data.folders import evenly, load_split
from ..errors import UserError, first_line
from ..inference.evaluate import evaluate, shift_consistency
from ..inference.loading import load_trained, run_images, run_of
from ..layers import MultiPass
from ..training.result import read_result
from ..training.run_folder import ANALYSIS_FILES as FILES
from ..utils.console import Console
from ..utils.distributed import World, choose_device
from ..utils.files import write_atomic, write_json
from ..utils.process import restore_process
from ..utils.reading import from_json, read_bytes, read_errors, read_json
from .passes import BlockPasses, compare_passes

__all__ = ['FILES', 'TENSORS', 'Analysis', 'analyse', 'finished_run', 'read_analysis']

TRAINING_IMAGES = 2000  # that the training accuracy is measured on
PASSES_IMAGES = 500
TENSORS = {
    'targets': torch.int16,
    'predictions': torch.int16,
    'confidence': torch.float16,
    'true_probability': torch.float16,
}


@dataclass(frozen=True)
class Analysis:
    """The final weights of a run, image by image; the content of `analysis.json` and `predictions.safetensors`.

    Accuracies are in %. `train_top1` is that on `train_images` training images, evenly spread, seen as the
    validation sees them. `confusion` has a row for each true class. `passes` has the blocks of a MultiPass model.
    The tensors are `(N,)`, in the order of the validation images: the true class, the class predicted, its
    probability and that of the true class.
    """

    top1: float
    train_top1: float
    train_images: int
    shift_consistency: float
    calibration_error: float
    class_names: list[str]
    confusion: list[list[int]]
    passes: list[BlockPasses]
    data: str
    targets: torch.Tensor = field(repr=False)
    predictions: torch.Tensor = field(repr=False)
    confidence: torch.Tensor = field(repr=False)
    true_probability: torch.Tensor = field(repr=False)

    @property
    def correct(self) -> torch.Tensor:
        """`(N,)` whether each image was classified correctly."""
        return self.targets == self.predictions

    @property
    def images(self) -> str:
        """Identifies the images, wherever they lie: their classes."""
        classes = json.dumps(self.class_names).encode() + self.targets.numpy().tobytes()
        return hashlib.sha256(classes).hexdigest()

    @property
    def pass_similarity(self) -> float | None:
        """Linear CKA between passes, mean over the pairs of all blocks."""
        pairs = [value for block in self.passes for row, line in enumerate(block.cka) for value in line[row + 1 :]]
        return sum(pairs) / len(pairs) if pairs else None


def finished_run(name: str) -> Path:
    """The folder of the finished run whose last weights a name on the command line means.

    Raises:
        UserError: It means something else, or the run is damaged.
    """
    path = Path(name.removeprefix('local-dir:'))
    run, absolute = run_of(path), Path(os.path.abspath(path))
    if run is None or absolute not in (run, run / 'last'):
        raise UserError(f'{name}: only the last weights of a finished run are analysed: give its folder, as runs/NAME')
    folder = path if absolute == run else run
    read_result(folder)
    return folder


@restore_process()
def analyse(folder: Path, console: Console, data_dir: str | None = None, device: str | None = None) -> Analysis:
    """Analyses the final weights of a finished run and writes the result into its folder.

    Args:
        folder: The run's folder.
        console: Where the progress is shown.
        data_dir: Where the images are; as in training if not given.
        device: As `--device`; as in training if not given.

    Raises:
        UserError: The run is not finished or damaged, or its images are not there.
    """
    recipe = Recipe.load(folder / 'args.yaml')
    instead = {'data_dir': data_dir or recipe.data_dir, 'device': device or recipe.device}
    recipe = recipe.replace(**instead, torchcompile='none', torchcompile_mode=None)
    shared = (ValidationOptions.names() & Recipe.names()) - {'model', 'pretrained'} - ArchitectureOptions.names()
    given = {name: getattr(recipe, name) for name in shared}
    given['batch_size'] = batch_size = recipe.validation_batch_size or recipe.batch_size
    options = ValidationOptions(**given)
    world = World(choose_device(options.device))
    root = run_images(str(folder), recipe, recipe.train_split, options.val_split)
    train_images = load_split(root, recipe.train_split, None, recipe.max_megapixels)
    images = load_split(root, options.val_split, train_images.classes, recipe.max_megapixels)
    if (count := read_result(folder).dataset.get('val')) not in (None, len(images)):
        raise UserError(
            f'{images.root} has {len(images)} validation images, {folder} was validated on {count}: give the '
            'former --data-dir'
        )
    some = evenly(train_images, TRAINING_IMAGES)
    channels_last = options.is_channels_last(world.device)
    trained = load_trained(str(folder / 'last'), options, world.device, channels_last, images)
    model, normalize = trained.model, trained.normalize
    batches = trained.batches(images, options, batch_size, world, console)
    scores = evaluate(model, batches, normalize, images, options, world, console)
    probabilities = scores.logits.softmax(1)
    train_batches = trained.batches(some, options, batch_size, world, console)
    passes = []
    if any(isinstance(module, MultiPass) and len(module.passes) > 1 for module in model.modules()):
        asked = {name: value for name, value in given.items() if name in PassesOptions.names()}
        passes = compare_passes(
            PassesOptions(**{**asked, 'model': str(folder / 'last'), 'images': PASSES_IMAGES}), quiet=True
        ).blocks
    analysis = Analysis(
        top1=scores.top1,
        train_top1=evaluate(model, train_batches, normalize, some, options, world, console).top1,
        train_images=len(some),
        shift_consistency=shift_consistency(model, batches, normalize, scores, options, console),
        calibration_error=scores.calibration_error(),
        class_names=list(images.class_names),
        confusion=scores.confusion.tolist(),
        passes=passes,
        data=f'{Path(os.path.abspath(images.root)).name}/{images.split}',
        targets=scores.targets.to(torch.int16),
        predictions=scores.predictions.to(torch.int16),
        confidence=probabilities.amax(1).half(),
        true_probability=probabilities.gather(1, scores.targets[:, None])[:, 0].half(),
    )
    tensors = {name: getattr(analysis, name) for name in TENSORS}
    write_atomic(folder / FILES[1], safetensors.torch.save(tensors))
    values = {name: value for name, value in asdict(analysis).items() if name not in TENSORS}
    write_json(folder / FILES[0], values, indent=None)  # last: a folder that has it has all
    return analysis


def read_analysis(folder: Path) -> Analysis | None:
    """The analysis that `analyse` wrote into a run's folder; None where there is none.

    Raises:
        UserError: It is damaged.
    """
    paths = [folder / name for name in FILES]
    if not paths[0].is_file():
        return None
    expected = 'the analysis of a run', ': remove it to have it made again'
    with read_errors(paths[1], *expected):
        data = read_bytes(paths[1])
        try:
            tensors = safetensors.torch.load(data)
        except Exception as error:  # a damaged file is reported in many ways
            raise ValueError(first_line(error)[:80]) from None
    with read_errors(paths[0], *expected):
        return _checked(read_json(paths[0]), tensors)


def _checked(values: Any, tensors: dict[str, torch.Tensor]) -> Analysis:
    passes = [from_json(BlockPasses, block) for block in values['passes']]
    analysis = from_json(Analysis, {**values, 'passes': passes}, **tensors)
    classes, count = len(analysis.class_names), len(analysis.targets)
    if classes == 0:
        raise ValueError('no class names')
    for name, kind in TENSORS.items():
        if tensors[name].dtype != kind or tensors[name].shape != (count,):
            raise ValueError(name)
    for name in ('targets', 'predictions'):
        if count == 0 or int(tensors[name].min()) < 0 or int(tensors[name].max()) >= classes:
            raise ValueError(name)
    if [len(row) for row in analysis.confusion] != [classes] * classes:
        raise ValueError('confusion')
    for block in passes:
        if {len(row) for row in (*block.cka, *block.cosine, block.top1_lost)} != {len(block.kinds)}:
            raise ValueError('passes')
    return analysis
