"""The loss of training, of class indices or of probabilities."""

from __future__ import annotations

import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..config.recipe import Recipe
from .own import own_loss

__all__ = ['loss_function']


def loss_function(recipe: Recipe) -> nn.Module:
    """The training loss by timm's parts, or the user's own. With mixing the targets are smoothed already."""
    if recipe.loss:
        return own_loss(recipe.loss)
    smoothing = 0.0 if recipe.mixes else recipe.smoothing
    hard = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
    soft = SoftTargetCrossEntropy()
    if recipe.bce_loss:
        hard = soft = BinaryCrossEntropy(smoothing=smoothing)
    if recipe.batch_transform:
        return _LossOfEither(hard, soft, smoothing)
    return soft if recipe.mixes else hard


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
