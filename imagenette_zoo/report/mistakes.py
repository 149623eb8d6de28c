"""The images that trainings got wrong, the worst first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config.groups import DataOptions
from ..data.folders import ImageSet
from ..data.images import open_image
from ..data.locate import load_splits
from ..errors import UserError
from ..study.records import Record

__all__ = ['Mistake', 'find_images', 'thumbnail', 'worst_mistakes']

SIDE = 96  # pixels


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    Args:
        index: Its place in the order of the validation images.
        true: Its class.
        predicted: What it was taken for, most often and most surely.
        wrong: By how many trainings it was classified wrongly.
        trainings: How many looked at it.
        confidence: The probability, in %, that those which were wrong gave to their answers, mean over them.
    """

    index: int
    true: str
    predicted: str
    wrong: int
    trainings: int
    confidence: float


def worst_mistakes(records: Sequence[Record], most: int = 24) -> tuple[list[Mistake], list[Record]]:
    """The images with the largest probability of wrong answers, mean over all trainings that looked at the same images.

    Returns:
        The mistakes, and the trainings that they are from: the most that looked at the same images.
    """
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.analysis:
            key = (record.analysis.targets.numpy().tobytes(), *record.analysis.class_names)
            groups.setdefault(key, []).append(record)
    if not groups:
        return [], []
    group = max(groups.values(), key=len)
    analyses = [record.analysis for record in group if record.analysis]
    names, targets = analyses[0].class_names, analyses[0].targets.numpy()
    predicted = np.stack([analysis.predictions.numpy() for analysis in analyses])
    confidence = np.stack([analysis.confidence.numpy() for analysis in analyses]).astype(float)
    confidence = np.nan_to_num(confidence)  # a training that diverged is sure of nothing
    wrong = predicted != targets
    blame = np.where(wrong, confidence, 0.0).mean(0)
    found = []
    for index in np.argsort(-blame, kind='stable')[:most]:
        mask = wrong[:, index]
        if mask.any():
            weights = np.bincount(predicted[mask, index], confidence[mask, index], len(names))
            mean = 100 * float(confidence[mask, index].mean())
            true, taken = names[targets[index]], names[int(weights.argmax())]
            found.append(Mistake(int(index), true, taken, int(mask.sum()), len(group), mean))
    return found, group


def find_images(records: Sequence[Record], data_dir: str | None = None) -> ImageSet | None:
    """The validation images that trainings looked at, or None where they are not at hand."""
    tried = set()
    for record in records:
        recipe = {name: record.result.recipe.get(name) for name in ('dataset', 'train_split', 'val_split', 'data_dir')}
        dataset, train, val, own = (str(value or '') for value in recipe.values())
        place = '' if dataset == 'synthette' else data_dir or own
        if record.analysis and (dataset, train, val, place) not in tried:
            tried.add((dataset, train, val, place))
            try:
                _, images = load_splits(DataOptions(place, dataset, train or 'train', val or 'validation'))
            except (UserError, OSError):
                continue
            if list(images.targets) == record.analysis.targets.tolist():
                return images
    return None


def thumbnail(images: ImageSet, index: int) -> str | None:
    """An image, small, as a `data:` address; None where it can't be read."""
    try:
        image = open_image(images.root / images.paths[index])
    except UserError:
        return None
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
