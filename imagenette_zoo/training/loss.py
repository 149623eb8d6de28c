"""The loss of training, of class indices or of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..config.recipe import Recipe
from ..errors import UserError
from .own import own_loss

__all__ = ['class_weights', 'loss_function']


def class_weights(recipe: Recipe, targets: Sequence[int], classes: int) -> torch.Tensor | None:
    """The weight `(classes,)` of each class in the loss; None where none is asked for.

    `balanced` is `images / (classes · images of the class)`, whose mean over the images is 1.

    Args:
        recipe: `class_weights`.
        targets: The class of each training image.
        classes: Their number.

    Raises:
        UserError: Another number of weights than of classes, or none above 0.
    """
    given: Any = recipe.class_weights
    if given is None:
        return None
    if 'balanced' in given:
        counts = torch.bincount(torch.tensor(targets), minlength=classes)
        return (len(targets) / (classes * counts.clamp(min=1))).float()
    if len(given) != classes or not any(given):
        raise UserError(f'--class-weights: {classes} numbers are needed, one for each class, not all of them 0')
    return torch.tensor(given)


def loss_function(recipe: Recipe, weights: torch.Tensor | None = None) -> nn.Module:
    """The training loss by timm's and torch's parts, or the user's own. With mixing the targets are smoothed already.

    Args:
        recipe: The options.
        weights: `(classes,)` of each class.
    """
    if recipe.loss:
        return own_loss(recipe.loss)
    smoothing = 0.0 if recipe.mixes else recipe.smoothing
    if weights is not None:
        kind = nn.CrossEntropyLoss if weights.all() else _CrossEntropyOfSome
        return kind(weights, label_smoothing=smoothing)
    hard = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
    soft = SoftTargetCrossEntropy()
    if recipe.bce_loss:
        hard = soft = BinaryCrossEntropy(smoothing=smoothing)
    if recipe.batch_transform:
        return _LossOfEither(hard, soft, smoothing)
    return soft if recipe.mixes else hard


class _CrossEntropyOfSome(nn.CrossEntropyLoss):
    """Cross-entropy where some classes weigh 0: a batch of them alone has the loss 0, where torch divides by 0."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.is_floating_point():  # its mean is over the images
            return super().forward(logits, targets)
        losses = F.cross_entropy(logits, targets, self.weight, reduction='sum', label_smoothing=self.label_smoothing)
        assert self.weight is not None
        total = self.weight[targets].sum()
        return losses * (total > 0) / total.clamp(min=torch.finfo(total.dtype).tiny)


class _LossOfEither(nn.Module):
    """A loss of class indices, and one of probabilities, which are smoothed likewise."""

    def __init__(self, hard: nn.Module, soft: nn.Module, smoothing: float) -> None:
        super().__init__()
        self.hard, self.soft = hard, soft
        self.smoothing = smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if not targets.is_floating_point():
            return self.hard(logits, targets)  # type: ignore[no-any-return]
        if self.smoothing:
            targets = (1 - self.smoothing) * targets + self.smoothing / targets.shape[1]
        return self.soft(logits, targets)  # type: ignore[no-any-return]
