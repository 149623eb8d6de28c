"""The section of a report on the images that trainings got wrong, the worst first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..config.groups import DataOptions
from ..data.folders import ImageSet
from ..data.images import open_image
from ..data.locate import load_splits
from ..errors import UserError
from ..study.records import Record
from ..utils.console import printable
from .section import Section, Shown

__all__ = ['Mistake', 'find_images', 'numbers', 'section', 'thumbnail', 'worst_mistakes']

THUMBNAIL = 96  # pixels


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    Args:
        index: Its position in the order of the validation images.
        true: Its class.
        predicted: The class that it was taken for, most often and most surely.
        wrong: By how many trainings it was classified wrongly.
        trainings: How many were analysed on it.
        confidence: The probability, in %, that those which were wrong gave to their answers, mean over them.
    """

    index: int
    true: str
    predicted: str
    wrong: int
    trainings: int
    confidence: float


def section(records: Sequence[Record], data_dir: str | None, wanted: bool) -> Section:
    """The worst mistakes with their thumbnails.

    Args:
        records: The trainings.
        data_dir: Where the images are; as in training if not given.
        wanted: Whether images of the data set are shown.
    """
    title = 'The worst mistakes'
    worst, analysed = worst_mistakes(records)
    if not worst:
        reason = 'No image was classified wrongly.' if analysed else 'No training was looked at image by image.'
        return Section('mistakes', title, [reason])
    images = find_images(analysed, data_dir) if wanted else None
    text = [
        'The images with the largest probability of a wrong answer, mean over '
        f'{f"{len(analysed)} trainings" if len(analysed) > 1 else "one training"}: the true class → what it was taken '
        'for.'
    ]
    if len(analysed) < sum(record.analysis is not None for record in records):
        text.append('The other trainings looked at other images.')
    if wanted and not images:
        text.append('The images are not at hand, or are not those that were looked at: give --data-dir to see them.')
    shown = []
    for each in worst:
        name = images.paths[each.index] if images else f'validation image {each.index}'
        picture = thumbnail(images, each.index) if images else None
        wrong = f'{each.wrong} of {each.trainings}'
        true, predicted = printable(each.true), printable(each.predicted)
        shown.append(Shown(true, predicted, each.confidence, wrong, printable(name), picture))
    return Section('mistakes', title, text, mistakes=shown)


def numbers(section: Section) -> list[dict[str, Any]]:
    """The mistakes of the section without their thumbnails, fit for JSON."""
    return printable(
        [{name: value for name, value in asdict(each).items() if name != 'thumbnail'} for each in section.mistakes]
    )


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
    worst = []
    for index in np.argsort(-blame, kind='stable')[:most]:
        mask = wrong[:, index]
        if mask.any():
            weights = np.bincount(predicted[mask, index], confidence[mask, index], len(names))
            mean = 100 * float(confidence[mask, index].mean())
            true, taken = names[targets[index]], names[int(weights.argmax())]
            worst.append(Mistake(int(index), true, taken, int(mask.sum()), len(group), mean))
    return worst, group


def find_images(records: Sequence[Record], data_dir: str | None = None) -> ImageSet | None:
    """The validation images that trainings looked at, or None where they are not at hand."""
    tried = set()
    for record in records:
        recipe = {name: record.result.recipe.get(name) for name in ('dataset', 'train_split', 'val_split', 'data_dir')}
        dataset, train, val, own = (str(value or '') for value in recipe.values())
        folder = '' if dataset == 'synthette' else data_dir or own
        if record.analysis and (dataset, train, val, folder) not in tried:
            tried.add((dataset, train, val, folder))
            try:
                _, images = load_splits(DataOptions(folder, dataset, train or 'train', val or 'validation'))
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
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
