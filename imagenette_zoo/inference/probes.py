"""How much the features of a model tell of the classes: nearest neighbours and a linear classifier."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..config.groups import ComputeOptions
from ..data.folders import ImageSet
from ..data.loaders import Batches
from ..models import factory
from ..utils.console import Console
from ..utils.distributed import World
from .evaluate import features_of
from .loading import TrainedModel, not_finite

__all__ = ['all_features', 'knn', 'linear_probe']

IMAGES = 1024  # that are compared at once
ITERATIONS = 500


def all_features(
    trained: TrainedModel, batches: Batches, images: ImageSet, options: ComputeOptions, world: World, console: Console
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `(N, features)` and targets `(N,)` of every image, gathered from all processes, on the CPU.

    Args:
        trained: The model.
        batches: This process's part of the images.
        images: All of them.
        options: Precision.
        world: The processes.
        console: Where the progress is shown.

    Raises:
        UserError: They are no numbers.
    """
    parts, targets = [], []
    with console.progress('features', len(batches)) as progress, factory.autocast(options, world.device):
        for pixels, target in batches:
            parts.append(features_of(trained, trained.normalize(pixels)).float().cpu())
            targets.append(target.cpu())
            progress.advance(len(pixels))
    rows = world.gather_rows(torch.cat(parts), len(images))
    if not rows.isfinite().all():
        raise not_finite(trained.name)
    return rows, world.gather_rows(torch.cat(targets), len(images))


def knn(
    train: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, classes: int, k: int = 200, t: float = 0.1
) -> torch.Tensor:
    """Predicted classes `(M,)` by a vote of the k nearest training images, as lightly takes it.

    Each votes with `exp(similarity / t)`, where the similarity is the cosine (Wu et al. 2018,
    https://arxiv.org/abs/1805.01978, section 3.4), divided by the largest vote, which no temperature makes infinite.

    Args:
        train: Features of training images, `(N, features)`.
        targets: Their classes, `(N,)`.
        rows: Features of the images to classify, `(M, features)`.
        classes: How many there are.
        k: Neighbours, at most all.
        t: Temperature.
    """
    train, predictions = functional.normalize(train, dim=1), []
    for part in functional.normalize(rows, dim=1).split(IMAGES):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)))
        weights = ((similarity - similarity[:, :1]) / t).exp()
        votes = torch.zeros(len(part), classes).scatter_add_(1, targets[nearest], weights)
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


@torch.enable_grad()
def linear_probe(train: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor, classes: int) -> torch.Tensor:
    """Predicted classes `(M,)` by logistic regression on standardised features.

    It minimises the mean cross-entropy plus `|W|² / 2N` by L-BFGS: scikit-learn's `LogisticRegression` with C = 1.

    Args:
        train: Features of training images, `(N, features)`.
        targets: Their classes, `(N,)`.
        rows: Features of the images to classify, `(M, features)`.
        classes: How many there are.
    """
    mean, std = train.double().mean(0), train.double().std(0, correction=0).clamp(min=1e-6)
    train, rows = ((each.double() - mean) / std for each in (train, rows))
    weight = torch.zeros(classes, train.shape[1], dtype=torch.double, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn='strong_wolfe')

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(train @ weight.T + bias, targets) + weight.square().sum() / (2 * len(train))
        value.backward()
        return value

    optimizer.step(loss)
    return (rows @ weight.T + bias).detach().argmax(1)
