"""A model's logits on every image, and how they hold when the images are shifted."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from ..config.groups import ComputeOptions, ValidationOptions
from ..data.augment import Normalize, shift_batch
from ..data.folders import ImageSet
from ..data.loaders import Batches
from ..errors import UserError
from ..layers.mish import much_inference
from ..models import factory
from ..utils.console import Console
from ..utils.distributed import World
from ..utils.seeding import stream_seed
from .loading import TrainedModel
from .metrics import Scores

__all__ = ['evaluate', 'features_of', 'shift_consistency']


@much_inference()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    normalize: Normalize,
    images: ImageSet,
    options: ComputeOptions,
    world: World,
    console: Console,
    fast: nn.Module | None = None,
    fast_size: int = 0,
    fill: bool = True,
) -> Scores:
    """Logits of every validation image, gathered from all processes.

    Args:
        model: The model; it is put into eval mode.
        batches: This process's part of the images.
        normalize: Pixels to the model's input, on the model's device.
        images: The validation images.
        options: Precision.
        world: The processes, and which of them this one is.
        console: Where the progress is shown.
        fast: The same model compiled for batches of `fast_size` images.
        fast_size: Their size.
        fill: Whether the model may be shown images twice, so that the last batch has the size of the others.
    """
    model.train().eval()  # before timm 1.0.29 LeViT's forget the biases of other weights only when they are trained
    start = time.perf_counter()
    logits, targets = [], []
    inputs = torch.empty(0)
    with console.progress('validation', len(batches)) as progress, factory.autocast(options, world.device):
        for pixels, target in batches:
            inputs = _filled(normalize(pixels), inputs) if fill else normalize(pixels)
            runner = fast if fast is not None and len(inputs) == fast_size else model
            # a copy: a compiled model may write into its last output again
            logits.append(runner(inputs)[: len(pixels)].float().clone())
            targets.append(target)
            progress.advance(len(pixels))
    return Scores(
        world.gather_rows(torch.cat(logits).cpu(), len(images)),
        world.gather_rows(torch.cat(targets), len(images)),
        images.class_names,
        time.perf_counter() - start,
    )


def _filled(inputs: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
    """On a GPU a last, smaller batch is filled up with the one before: planning for another size takes longer."""
    if not inputs.is_cuda or len(inputs) >= len(former):
        return inputs
    former[: len(inputs)] = inputs
    return former


@torch.inference_mode()
def features_of(trained: TrainedModel, inputs: torch.Tensor) -> torch.Tensor:
    """What the classifier is given for a batch, `(N, features)`: timm's `forward_head(…, pre_logits=True)`.

    Raises:
        UserError: The model does not tell it.
    """
    model: Any = trained.model
    features = None
    if factory.has_parts(model):
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
    if not isinstance(features, torch.Tensor):
        raise UserError(
            f"{trained.name}: doesn't tell the features before its classifier (forward_head): take another model"
        )
    return features.flatten(1)


def shift_consistency(
    model: nn.Module,
    batches: Batches,
    normalize: Normalize,
    scores: Scores,
    options: ValidationOptions,
    console: Console,
) -> float:
    """Fraction of images, in %, whose prediction stays under a random whole-pixel shift.

    The shift is up to 1/8 of the image size in each direction; the border is filled with the mirrored image. After
    Zhang 2019, https://arxiv.org/abs/1904.11486, section 4.2.
    """
    generator = torch.Generator().manual_seed(stream_seed(options.seed, 'shift') % 2**63)
    same = start = 0
    shifted = torch.empty(0)
    with (
        console.progress('shifted', len(batches)) as progress,
        torch.inference_mode(),
        factory.autocast(options, normalize.mean.device),
    ):
        for pixels, _ in batches:
            limit = pixels.shape[-1] // 8
            offsets = torch.randint(-limit, limit + 1, (len(pixels), 2), generator=generator)
            shifted = _filled(shift_batch(normalize(pixels), offsets, limit), shifted)
            predictions = model(shifted)[: len(pixels)].float().argmax(1).cpu()
            same += int((predictions == scores.predictions[start : start + len(pixels)]).sum())
            start += len(pixels)
            progress.advance(len(pixels))
    return 100 * same / start
