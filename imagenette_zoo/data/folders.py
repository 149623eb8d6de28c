"""The images of a folder by class, their labels, and parts of them."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

from ..errors import UserError, os_reason
from .constants import IMAGE_EXTENSIONS, IMAGENETTE, NOISE_LEVELS

__all__ = [
    'ImageSet', 'SPLITS', 'evenly', 'holds_splits', 'list_images', 'load_split', 'parse_slice', 'spellings',
    'with_label_noise',
]  # fmt: skip

SPLITS = ('train', 'val')


def holds_splits(folder: Path, splits: Sequence[str] = SPLITS) -> bool:
    """Whether a folder has all of these splits, named as `load_split` takes them, but no slices."""
    return all(any(os.path.isdir(folder / name) for name in spellings(split)) for split in splits)


def spellings(split: str) -> tuple[str, ...]:
    """The names that a split's folder may have, the usual one first."""
    return ('val', 'validation') if split in ('val', 'validation') else (split,)


@dataclass(frozen=True)
class ImageSet:
    """The images of one split and their labels.

    Attributes:
        root: folder that holds the splits.
        split: the split's folder name, e.g. `train`.
        paths: image files relative to `root`, POSIX style.
        targets: class index of each image.
        classes: folder names, in the order of their indices.
        class_names: what a person calls them: names of Imagenette's WNIDs, else the folder names.
    """

    root: Path
    split: str
    paths: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def load_split(root: str | Path, split: str = 'train', classes: Sequence[str] | None = None) -> ImageSet:
    """List one split of an image folder: `<root>/<split>/<class>/**/<image>`.

    Classes and files are in natural order (`img2` before `img10`, whatever the case), which is timm's, so that class
    indices agree with timm's scripts; for WNIDs that is plain sorted order. Hidden files and folders are passed over.

    Args:
        root: Folder that holds the splits, see `find_root`.
        split: `train`, `validation` (or `val`: both mean `val/` or `validation/`), or any folder's name; a slice of it
            in per cent, as `train[:85%]` and `train[85%:]`: so much of each class, drawn by the names of the files, so
            that slices which meet at a number have no image in common and miss none.
        classes: The training classes, where this is another split: its indices follow them and it may lack some.

    Raises:
        UserError: No such split, no images, an empty training class, or a class that `classes` lacks.
    """
    root = Path(root)
    split, part, (start, stop) = parse_slice(split)
    folder = next((root / name for name in spellings(split) if os.path.isdir(root / name)), None)
    if folder is None:
        raise UserError(f'data folder {root} has no {split}/: expected {" or ".join(spellings(split))} in it')
    try:
        names = _class_folders(folder)
        files = {name: _images_below(f'{folder}{os.sep}{name}', f'{folder.name}/{name}') for name in names}
    except OSError as error:
        raise UserError(f'data folder {folder} cannot be read: {os_reason(error)}') from error
    if not any(files.values()):
        raise UserError(f'{folder} holds no images: expected <class>/<image>, one folder a class')
    if part:
        for name, paths in files.items():
            drawn = sorted(paths, key=lambda path: hashlib.md5(os.fsencode(path), usedforsecurity=False).digest())
            files[name] = drawn[len(paths) * start // 100 : len(paths) * stop // 100]
        if not any(files.values()):
            raise UserError(f'{folder}: its classes are too small for {split}{part}: take more per cent')
    if classes is None:
        empty = [name for name in names if not files[name]]
        if empty and split not in spellings('val'):
            if part:
                raise UserError(f'class folder {folder / empty[0]} gives {split}{part} no images: take more per cent')
            raise UserError(f'class folder {folder / empty[0]} holds no images: add some or remove the folder')
        classes = names
    else:
        unknown = [name for name in names if files[name] and name not in classes]
        if unknown:
            raise UserError(
                f'class {unknown[0]!r} is in {folder} but not among the training classes: add it there or remove it',
            )
    index = {name: i for i, name in enumerate(classes)}
    listed = sorted(
        ((path, index[name]) for name, paths in files.items() for path in paths),
        key=lambda item: _natural_key(item[0]),
    )
    return ImageSet(
        root=root,
        split=folder.name + part,
        paths=tuple(path for path, _ in listed),
        targets=tuple(target for _, target in listed),
        classes=tuple(classes),
        class_names=tuple(IMAGENETTE.get(name, name) for name in classes),
    )


def parse_slice(split: str) -> tuple[str, str, tuple[int, int]]:
    """`train[10%:85%]` as `('train', '[10%:85%]', (10, 85))`, `train` as `('train', '', (0, 100))`."""
    name, bracket, part = split.partition('[')
    if not bracket:
        return split, '', (0, 100)
    numbers = re.fullmatch(r'(?:(\d{1,3})%)?:(?:(\d{1,3})%)?\]', part)
    start, stop = (int(numbers[1] or 0), int(numbers[2] or 100)) if numbers else (0, 0)
    if not start < stop <= 100:
        raise UserError(f'split {split!r}: a slice is like {name}[:85%] or {name}[85%:]')
    return name, bracket + part, (start, stop)


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith('.') and entry.is_dir()]
    return sorted(names, key=_natural_key)


def _images_below(folder: str, relative: str) -> list[str]:
    """Paths of a folder's images, with `relative` instead of the folder."""
    paths = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith('.'):
                continue
            if _is_image(name):
                paths.append(f'{relative}/{name}')
            elif entry.is_dir():
                paths += _images_below(entry.path, f'{relative}/{name}')
    return paths


def list_images(patterns: Iterable[str | Path]) -> list[Path]:
    """The images that are meant by files, folders (with all below them) and glob patterns (`**` for any depth).

    In the order given, each in natural order; no file twice. A file that is named may end in anything.

    Raises:
        UserError: Nothing there, nothing that is an image, or a folder that can't be read.
    """
    paths: dict[Path, None] = {}
    for pattern in map(str, patterns):
        if os.path.isfile(pattern):
            paths[Path(pattern)] = None
            continue
        try:
            if os.path.isdir(pattern):
                images = _images_below(pattern, Path(pattern).as_posix())
            else:
                images = [path for path in glob(pattern, recursive=True) if _is_image(path) and os.path.isfile(path)]
        except OSError as error:
            raise UserError(f'folder {pattern} cannot be read: {os_reason(error)}') from error
        if not images:
            what = 'is no file or folder and matches no image' if not os.path.isdir(pattern) else 'holds no images'
            raise UserError(f'{pattern} {what}: expected {", ".join(sorted(IMAGE_EXTENSIONS))}')
        paths.update(dict.fromkeys(map(Path, sorted(images, key=_natural_key))))
    return list(paths)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def _natural_key(text: str) -> tuple[list[str | int], str]:
    """timm's order (`timm.utils.misc.natural_key`), with the text itself to break ties."""
    pieces: list[str | int] = list(re.split(r'(\d+)', text.lower()))
    pieces[1::2] = [int(piece) for piece in pieces[1::2]]
    return pieces, text


def evenly(images: ImageSet, count: int) -> ImageSet:
    """So many of the images (0 is all), spread evenly over the split, whose classes come one after another."""
    if not 0 < count < len(images):
        return images
    chosen = [index * len(images) // count for index in range(count)]
    return replace(
        images,
        split=f'{images.split}[{count} images]',
        paths=tuple(images.paths[index] for index in chosen),
        targets=tuple(images.targets[index] for index in chosen),
    )


def with_label_noise(images: ImageSet, percent: int) -> ImageSet:
    """The training images with the labels of the data set's official `noisy_imagenette.csv`.

    Args:
        images: The training split.
        percent: 0, 1, 5, 25 or 50: the column `noisy_labels_<percent>`. 0 keeps the labels and needs no file.

    Raises:
        UserError: Unknown percentage, no such file, a column, a label or an image that it should have and has not.
    """
    if percent not in NOISE_LEVELS:
        raise UserError(f'label noise {percent} is unknown: expected one of {", ".join(map(str, NOISE_LEVELS))} (%)')
    if percent == 0:
        return images
    csv_path = images.root / 'noisy_imagenette.csv'
    labels = _noisy_labels(csv_path, f'noisy_labels_{percent}')
    unlisted = [path for path in images.paths if path not in labels]
    if unlisted:
        raise UserError(
            f'{csv_path} has no training label for {unlisted[0]} (and {len(unlisted) - 1} more): label noise works '
            'with the training images of Imagenette v2 under their original names',
        )
    index = {name: i for i, name in enumerate(images.classes)}
    unknown = sorted({labels[path] for path in images.paths} - index.keys())
    if unknown:
        raise UserError(
            f'{csv_path} holds the label {unknown[0]!r}, which is no class of {images.root / images.split}: '
            'use the file that came with this data set',
        )
    return replace(images, targets=tuple(index[labels[path]] for path in images.paths))


def _noisy_labels(csv_path: Path, column: str) -> dict[str, str]:
    """Training image → label."""
    try:
        with csv_path.open(newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            missing = [name for name in ('path', column, 'is_valid') if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f'{csv_path} has no column {missing[0]!r}: download it again with the data set')
            return {row['path']: row[column] or '' for row in reader if row['is_valid'] != 'True'}
    except FileNotFoundError as error:
        raise UserError(
            f'label noise needs {csv_path}, which does not exist: it is part of the official archives, copy it there',
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{csv_path} cannot be read: {os_reason(error)}') from error
