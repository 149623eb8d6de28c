"""Every image of a data set decoded: the bad ones, and the sizes and modes of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..config.groups import DataOptions
from ..errors import UserError
from ..utils.environment import available_cores
from .folders import load_split, passed_over_line, unlabelled_line
from .images import decode, only_size_warnings

__all__ = ['ClassReport', 'BadImage', 'CheckReport', 'check']


@dataclass(frozen=True)
class ClassReport:
    """One class of one split; sizes in pixels, None where no image could be read."""

    split: str
    name: str
    count: int
    width: tuple[int, int] | None
    height: tuple[int, int] | None
    greyscale: int
    other_modes: dict[str, int]


@dataclass(frozen=True)
class BadImage:
    """A file that can't be used, relative to the root, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """The classes of a data set, its bad images, and lines on the files that are not read."""

    root: Path
    classes: tuple[ClassReport, ...]
    bad: tuple[BadImage, ...]
    passed_over: tuple[str, ...]


_GREYSCALE_MODES = ('1', 'L', 'LA', 'La', 'I', 'F')


def check(
    root: str | Path,
    progress: Callable[[int, int], None] | None = None,
    max_megapixels: float = DataOptions.max_megapixels,
) -> CheckReport:
    """Decode every training and validation image of a data set.

    Args:
        root: Folder that holds the splits.
        progress: Called with (done, total) after each image.
        max_megapixels: Of the largest image that is read.

    Raises:
        UserError: The folders themselves are wrong, see `load_split`.
    """
    train = load_split(root)
    sets = (train, load_split(root, 'validation', classes=train.classes))
    total = sum(map(len, sets))
    done = 0
    reports: list[ClassReport] = []
    bad: list[BadImage] = []
    with only_size_warnings(max_megapixels), ThreadPoolExecutor(available_cores()) as pool:
        for images in sets:
            seen: list[list[tuple[int, int, str]]] = [[] for _ in images.classes]
            counts = Counter(images.targets)
            results = pool.map(_inspect, (images.root / path for path in images.paths))
            for path, target, result in zip(images.paths, images.targets, results, strict=True):
                if isinstance(result, str):
                    bad.append(BadImage(path, result))
                else:
                    seen[target].append(result)
                done += 1
                if progress is not None:
                    progress(done, total)
            reports += [
                _class_report(images.split, name, counts[i], seen[i]) for i, name in enumerate(images.class_names)
            ]
    left_out = (*map(passed_over_line, sets), unlabelled_line(Path(root)))
    return CheckReport(Path(root), tuple(reports), tuple(bad), tuple(filter(None, left_out)))


def _inspect(path: Path) -> tuple[int, int, str] | str:
    """Width, height and mode, or what is wrong."""
    try:
        image, mode = decode(path)
    except UserError as error:
        return str(error).removeprefix(f'image {path} ')
    return image.width, image.height, mode


def _class_report(split: str, name: str, count: int, seen: Sequence[tuple[int, int, str]]) -> ClassReport:
    modes = Counter(mode for _, _, mode in seen)
    greyscale = {mode for mode in modes if mode.split(';')[0] in _GREYSCALE_MODES}
    return ClassReport(
        split=split,
        name=name,
        count=count,
        width=_range(width for width, _, _ in seen),
        height=_range(height for _, height, _ in seen),
        greyscale=sum(modes[mode] for mode in greyscale),
        other_modes={mode: modes[mode] for mode in sorted(modes.keys() - greyscale - {'RGB'})},
    )


def _range(numbers: Iterable[int]) -> tuple[int, int] | None:
    numbers = list(numbers)
    return (min(numbers), max(numbers)) if numbers else None
