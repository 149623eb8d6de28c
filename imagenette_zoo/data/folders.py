"""The images of a folder by class, their labels, and parts of them."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from glob import escape, glob
from pathlib import Path

from ..config.groups import DataOptions
from ..errors import UserError, os_reason
from ..utils.console import printable
from ..utils.reading import of_kind, open_regular, read_errors, read_json
from .constants import IMAGE_EXTENSIONS, IMAGENETTE, IMAGEWOOF, NOISE_LEVELS, NOT_THE_USERS, UNLABELLED

__all__ = [
    'ORDER_FILE', 'ImageSet', 'SPLITS', 'evenly', 'holds_splits', 'is_hidden', 'list_images', 'load_split',
    'parse_slice', 'passed_over_line', 'spellings', 'unlabelled_line', 'with_label_noise',
]  # fmt: skip

SPLITS = ('train', 'val')
ORDER_FILE = '.classes.json'  # in a split that was read by a reader of timm: its classes in the order of their indices
NAMES = IMAGENETTE | IMAGEWOOF


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
        class_names: what a person calls them: names of Imagenette's and Imagewoof's WNIDs, else the folder names.
        passed_over: files of the split that are not read, relative to `root`: their names end in no image's ending,
            they are no regular files, or they lie in no class folder.
        max_megapixels: of the largest image that is read.
        channels: that they are read in: 1, 3 or 4.
    """

    root: Path
    split: str
    paths: tuple[str, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    passed_over: tuple[str, ...] = field(default=(), repr=False)
    max_megapixels: float = DataOptions.max_megapixels
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)


def load_split(
    root: str | Path,
    split: str = 'train',
    classes: Sequence[str] | None = None,
    max_megapixels: float = DataOptions.max_megapixels,
) -> ImageSet:
    """List one split of an image folder: `<root>/<split>/<class>/**/<image>`.

    Classes and files are in natural order (`img2` before `img10`, whatever the case), which is timm's, so that class
    indices agree with timm's scripts; for WNIDs that is plain sorted order. Hidden files and folders are left out.

    Args:
        root: Folder that holds the splits, see `find_root`.
        split: `train`, `validation` (or `val`: both mean `val/` or `validation/`), or any folder's name; a slice of it
            in per cent, as `train[:85%]` and `train[85%:]`: so much of each class, drawn by the names of the files, so
            that slices which meet at a number have no image in common and miss none.
        classes: The training classes, where this is another split: its indices follow them and it may lack some.
        max_megapixels: Of the largest image that will be read.

    Raises:
        UserError: No such split, no images, an empty training class, or a class that `classes` lacks.
    """
    root = Path(root)
    split, part, (start, stop) = parse_slice(split)
    if split in ('.', '..') or Path(split).name != split.rstrip('/'):
        place = root / Path(split).parent
        raise UserError(f'split {split!r}: expected the name of a folder in {root}; else give --data-dir {place}')
    folder = next((root / name for name in spellings(split) if os.path.isdir(root / name)), None)
    if folder is None:
        raise UserError(f'data folder {root} has no {split}/: expected {" or ".join(spellings(split))} in it')
    try:
        passed_over: list[str] = []
        names = _class_folders(folder, passed_over)
        files = {
            name: _images_below(f'{folder}{os.sep}{name}', f'{folder.name}/{name}', passed_over) for name in names
        }
    except OSError as error:
        raise UserError(f'data folder {folder} cannot be read: {os_reason(error)}') from error
    if not any(files.values()):
        others = _others([path for path in passed_over if path.count('/') > 1], '')
        raise UserError(f'{folder} holds no images{others}: expected <class>/<image>, one folder a class')
    if part:
        for name, paths in files.items():
            drawn = sorted(paths, key=lambda path: hashlib.md5(os.fsencode(path), usedforsecurity=False).digest())
            files[name] = drawn[len(paths) * start // 100 : len(paths) * stop // 100]
        if not any(files.values()):
            raise UserError(f'{folder}: its classes are too small for {split}{part}: take a larger slice')
    if classes is None:
        empty = [name for name in names if not files[name]]
        if empty and split not in spellings('val'):
            if part:
                raise UserError(f'class folder {folder / empty[0]} has no images in {split}{part}: take a larger slice')
            others = _others(passed_over, f'{folder.name}/{empty[0]}/')
            raise UserError(f'class folder {folder / empty[0]} holds no images{others}: add some or remove the folder')
        classes = _stated_order(folder, names) or names
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
        class_names=tuple(NAMES.get(name, name) for name in classes),
        passed_over=tuple(sorted(passed_over, key=_natural_key)),
        max_megapixels=max_megapixels,
    )


def _stated_order(folder: Path, names: Sequence[str]) -> list[str] | None:
    """The classes in the order that a file beside them states, if there is one."""
    path = folder / ORDER_FILE
    if not os.path.isfile(path):
        return None
    with read_errors(path, 'a list of the classes', ': remove it'):
        order: list[str] = of_kind(read_json(path), list[str])
        if len(set(order)) < len(order) or not set(names) <= set(order):
            raise ValueError('a class is missing or there twice')
        return order


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


def _class_folders(folder: Path, passed_over: list[str]) -> list[str]:
    """Names of the classes; those of the files beside them are appended to `passed_over`."""
    names = []
    for entry in _entries(str(folder)):
        if entry.is_dir():
            names.append(entry.name)
        else:
            passed_over.append(f'{folder.name}/{entry.name}')
    return sorted(names, key=_natural_key)


def _images_below(folder: str, relative: str, passed_over: list[str] | None = None) -> list[str]:
    """Paths of a folder's images, with `relative` instead of the folder; other files are appended to `passed_over`."""
    paths = []
    for entry in _entries(folder):
        path = f'{relative}/{entry.name}'
        if entry.is_dir():
            paths += _images_below(entry.path, path, passed_over)
        elif _is_image(entry.name) and (entry.is_file() or not os.path.exists(entry.path)):  # a link that leads nowhere
            paths.append(path)
        elif passed_over is not None:
            passed_over.append(path)
    return paths


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not is_hidden(entry.name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out without a word: it is hidden, or a system's and no user's."""
    return name.startswith('.') or name.lower() in NOT_THE_USERS


def _others(paths: Sequence[str], start: str) -> str:
    """`' but 3 other files, as notes.txt'` for those of the paths that start so, or nothing."""
    others = [path for path in paths if path.startswith(start)]
    return f' but {len(others):,} other file(s), as {posixpath.basename(others[0])}' if others else ''


def passed_over_line(images: ImageSet) -> str:
    """How many files of a split are not read, by their endings, and one of each; nothing where there are none."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for path in images.passed_over:
        ending = os.path.splitext(path)[1].lower()[:10] or 'without ending'
        if _is_image(path):
            ending = 'in no class folder' if path.count('/') == 1 else 'no regular file'
        counts[ending] += 1
        first.setdefault(ending, path)
    named = ', '.join(f'{count:,} {ending} ({first[ending]})' for ending, count in counts.most_common(5))
    more = ', …' if len(counts) > 5 else ''
    return printable(f'{counts.total():,} file(s) of {images.split} skipped: {named}{more}') if counts else ''  # type: ignore[no-any-return]


def unlabelled_line(root: Path) -> str:
    """That a data set's `unsup/` is not used, where it has one as Imagewang does."""
    folder = root / UNLABELLED
    return f'{folder} is left out: its images have no labels that may be used' if os.path.isdir(folder) else ''


def list_images(patterns: Iterable[str | Path], passed_over: list[str] | None = None) -> list[Path]:
    """The images that are meant by files, folders (with all below them) and glob patterns (`**` for any depth).

    In the order given, each in natural order; no file twice. A file that is named may end in anything. Other files of
    folders are appended to `passed_over`.

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
                images = _images_below(pattern, Path(pattern).as_posix(), passed_over)
            else:
                images = [path for path in glob(pattern, recursive=True) if _is_image(path) and os.path.isfile(path)]
        except OSError as error:
            raise UserError(f'folder {pattern} cannot be read: {os_reason(error)}') from error
        if not images and escape(pattern) == pattern and not os.path.lexists(pattern):
            raise UserError(f'{pattern}: no such file')
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
    """The training images with the labels of the data set's official `noisy_imagenette.csv` or `noisy_imagewoof.csv`.

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
    family = 'imagewoof' if IMAGEWOOF.keys() >= set(images.classes) else 'imagenette'
    csv_path = images.root / f'noisy_{family}.csv'
    labels = _noisy_labels(csv_path, f'noisy_labels_{percent}')
    unlisted = [path for path in images.paths if path not in labels]
    if unlisted:
        raise UserError(
            f'{csv_path} has no training label for {unlisted[0]} (and {len(unlisted) - 1} more): label noise works '
            'with the training images of Imagenette v2 and Imagewoof v2 under their original names',
        )
    index = {name: i for i, name in enumerate(images.classes)}
    unknown = sorted({labels[path] for path in images.paths} - index.keys())
    if unknown:
        raise UserError(
            f'{csv_path} holds the label {unknown[0]!r}, which is no class of {images.root / images.split}: '
            'use the file that came with this data set',
        )
    return replace(images, targets=tuple(index[labels[path]] for path in images.paths))


def _posix(path: str) -> str:
    """A relative path as those of an `ImageSet` are: `./train\\a` is `train/a`."""
    return posixpath.normpath(path.replace('\\', '/'))


def _noisy_labels(csv_path: Path, column: str) -> dict[str, str]:
    """Training image → label."""
    try:
        with open_regular(csv_path) as raw, io.TextIOWrapper(raw, 'utf-8-sig', newline='') as file:
            reader = csv.DictReader(file)
            missing = [name for name in ('path', column, 'is_valid') if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f'{csv_path} has no column {missing[0]!r}: download it again with the data set')
            rows = [row for row in reader if row['is_valid'] != 'True']
            return {_posix(row['path'] or ''): row[column] or '' for row in rows}
    except FileNotFoundError as error:
        raise UserError(
            f'label noise needs {csv_path}, which does not exist: it is part of the official archives, copy it there',
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{csv_path} cannot be read: {os_reason(error)}') from error
