"""Metrics computed from the logits of a whole validation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

__all__ = ['Scores']


@dataclass(frozen=True)
class Scores:
    """Logits and targets of every validation image, and the metrics that follow from them.

    Args:
        logits: `(N, classes)` float32, on the CPU.
        targets: `(N,)` class indices.
        class_names: A name for each class.
        seconds: Duration of the evaluation.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    class_names: Sequence[str]
    seconds: float = 0.0

    @cached_property
    def predictions(self) -> torch.Tensor:
        """`(N,)` predicted class indices."""
        return self.logits.argmax(1)

    @cached_property
    def top1(self) -> float:
        """Fraction of images whose first guess is right, in %."""
        return 100 * (self.predictions == self.targets).double().mean().item()

    @cached_property
    def top5(self) -> float:
        """Fraction of images with the right class among the first five guesses, in %."""
        best = self.logits.topk(min(5, self.logits.shape[1]), dim=1).indices
        return 100 * (best == self.targets[:, None]).any(1).double().mean().item()

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return torch.nn.functional.cross_entropy(self.logits.double(), self.targets).item()

    @cached_property
    def confusion(self) -> torch.Tensor:
        """`(classes, classes)` counts: row = true class, column = predicted class."""
        classes = self.logits.shape[1]
        return torch.bincount(self.targets * classes + self.predictions, minlength=classes**2).view(classes, classes)

    @cached_property
    def per_class(self) -> dict[str, float]:
        """Top-1 of each class that has images, in %."""
        counts = self.confusion.sum(1).tolist()
        hits = self.confusion.diagonal().tolist()
        return {
            name: 100 * hit / count for name, hit, count in zip(self.class_names, hits, counts, strict=True) if count
        }

    def averages(self, how: str) -> dict[str, float]:
        """Precision, recall and F1 in %, as scikit-learn defines them and timm's script names them.

        Args:
            how: `micro` counts all images together, `macro` is the mean over the classes that have images or
                predictions, `weighted` that by their images. Where nothing is divided by nothing it is 0.
        """
        confusion = self.confusion.double()
        parts = torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])
        if how == 'micro':
            parts = parts.sum(1, keepdim=True)
        hits, predicted, images = parts[:, parts.any(0)]
        weights = images if how == 'weighted' else torch.ones_like(images)
        values = {
            'precision': hits / predicted.clamp(min=1),
            'recall': hits / images.clamp(min=1),
            'f1_score': 2 * hits / (predicted + images),
        }
        return {
            f'{how}_{name}': 100 * (each * weights).sum().item() / weights.sum().item() for name, each in values.items()
        }

    def calibration_error(self, bins: int = 15) -> float:
        """Expected calibration error, in %: the mean gap between confidence and accuracy over equal-width bins
        of confidence, weighted by their images (Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3)."""
        confidence = self.logits.double().softmax(1).amax(1)
        correct = (self.predictions == self.targets).double()
        index = (confidence * bins).ceil().long().clamp(1, bins) - 1
        gap = torch.zeros(bins, dtype=torch.double).index_add_(0, index, correct - confidence)
        return 100 * gap.abs().sum().item() / len(self.targets)
