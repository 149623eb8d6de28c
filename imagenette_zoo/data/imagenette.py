"""Imagenette and other image folders: find, unpack, download, list, label, open and check.

Everything here takes paths and gives plain data; no tensors. What a user can mend is a `UserError`.
"""

import csv
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import ssl
import sys
import tarfile
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from glob import glob
from http.client import HTTPException
from pathlib import Path
from typing import IO, TypeVar
from urllib.error import URLError
from uuid import uuid4

from PIL import Image, UnidentifiedImageError

from ..errors import UserError
from ..utils.files import cache_dir

__all__ = [
    'FORMATS',
    'IMAGENETTE',
    'IMAGE_EXTENSIONS',
    'NOISE_LEVELS',
    'SIZES',
    'BadImage',
    'CheckReport',
    'ClassReport',
    'ImageSet',
    'available_cores',
    'check',
    'decoded',
    'evenly',
    'fetch',
    'find_root',
    'forget_other_formats',
    'image_size',
    'list_images',
    'load_split',
    'open_file',
    'open_image',
    'whole_folder',
    'with_label_noise',
]

IMAGENETTE: dict[str, str] = {
    'n01440764': 'tench',
    'n02102040': 'English springer',
    'n02979186': 'cassette player',
    'n03000684': 'chain saw',
    'n03028079': 'church',
    'n03394916': 'French horn',
    'n03417042': 'garbage truck',
    'n03425413': 'gas pump',
    'n03445777': 'golf ball',
    'n03888257': 'parachute',
}
IMAGE_EXTENSIONS = frozenset(
    {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.gif', '.ppm', '.pgm'},
)
# Pillow tells a format by a file's content, whatever its name, and starts Ghostscript for PostScript. These it decodes
# itself. Not ICO, ICNS, IPTC and others that hold a file of another format. TGA, which has no signature, is tried last.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'DIB', 'PPM', 'TIFF', 'JPEG2000', 'AVIF', 'TGA')
NOISE_LEVELS = (0, 1, 5, 25, 50)  # percent, columns of noisy_imagenette.csv
SIZES: dict[str, str] = {  # shorter side in pixels, as published → name of the archive and of the folder in it
    '160': 'imagenette2-160',
    '320': 'imagenette2-320',
    'full': 'imagenette2',
}

T = TypeVar('T')

_SPLITS = ('train', 'val')
_ARCHIVE_SUFFIXES = ('.tgz', '.tar.gz', '.tar')
_DAY = 24 * 60 * 60  # seconds
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {  # value of that tag → what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CORRUPT = (  # what a bad archive raises; the second line is tarfile's answer to hostile headers
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, LookupError, OverflowError, RecursionError),
)
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_OFFLINE = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # what a bad connection raises


# --- Places -----------------------------------------------------------------------------------------------------------


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` once the block has ended without an error.

    Another process may do the same at the same time: whoever ends first wins and the other's work is thrown away.

    Raises:
        UserError: the place can't be written or is full.
    """
    temporary = target.with_name(f'.{target.name}.{uuid4().hex}')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f'cannot write to {target.parent}: {_reason(error)}; make it writable or set IMAGENETTE_ZOO_CACHE to a '
            'folder that is',
        ) from error
    try:
        yield temporary
        _settle(temporary, target)
    except OSError as error:
        raise UserError(
            f'cannot fill {target}: {_reason(error)}; make room there or set IMAGENETTE_ZOO_CACHE to another folder',
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not os.path.isdir(target):
            raise
        if not any(target.iterdir()):  # Windows does not rename to the name of an empty folder
            target.rmdir()
            temporary.rename(target)


def _remove_leftovers(target: Path) -> None:
    """Remove what processes that were killed more than a day ago left beside `target`."""
    pattern = re.compile(re.escape(f'.{target.name}.') + '[0-9a-f]{32}')
    for path in target.parent.iterdir():
        if pattern.fullmatch(path.name):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _DAY:
                    shutil.rmtree(path, ignore_errors=True)


def find_root(data_dir: str | Path | None, *splits: str) -> Path:
    """The folder that holds the splits: `train/` and `val/` (or `validation/`) where no others are asked for.

    Args:
        data_dir: that folder, its parent, or an archive (`.tgz`, `.tar.gz`, `.tar`), which is unpacked once into the
            user cache. None stands for `$IMAGENETTE_DIR`, else what `fetch` put into the user cache, the largest first.
        *splits: what it must hold, as `load_split` takes them.

    Raises:
        UserError: nothing there, not a data set, several data sets, or a bad archive.
    """
    needed = tuple(dict.fromkeys(_slice(split)[0] for split in splits)) or _SPLITS
    if data_dir is not None and str(data_dir):
        return _root_at(Path(os.path.expanduser(data_dir)), 'data folder', needed)
    variable = os.environ.get('IMAGENETTE_DIR')
    if variable:
        return _root_at(Path(os.path.expanduser(variable)), 'IMAGENETTE_DIR', needed)
    for folder in reversed(SIZES.values()):
        if holds_splits(cache_dir() / folder):
            return cache_dir() / folder
    raise UserError(
        'no Imagenette found: run "imagenette-zoo data fetch --size 160" (100 MB), or give --data-dir, or set '
        'IMAGENETTE_DIR, or use --dataset synthette',
    )


def _root_at(place: Path, what: str, splits: Sequence[str]) -> Path:
    wanted = _named(splits)
    if os.path.isfile(place):
        if not place.name.lower().endswith(_ARCHIVE_SUFFIXES):
            raise UserError(
                f'{what} {place} is a file and no archive: expected a folder with {wanted}, or one of '
                f'{", ".join(_ARCHIVE_SUFFIXES)}',
            )
        return _unpacked(place, splits)
    if not os.path.isdir(place):
        raise UserError(f'{what} {place} does not exist: give the folder that holds {wanted}')
    if holds_splits(place, splits):
        return place
    try:
        children = sorted(child for child in place.iterdir() if os.path.isdir(child) and not child.name.startswith('.'))
    except OSError as error:
        raise UserError(f'{what} {place} cannot be read: {_reason(error)}') from error
    roots = [child for child in children if holds_splits(child, splits)]
    roots = [root for root in roots if holds_splits(root)] or roots
    if len(roots) == 1:
        return roots[0]
    if roots:
        raise UserError(
            f'{what} {place} holds {len(roots)} data sets ({", ".join(root.name for root in roots)}): give one of them',
        )
    missing = [split for split in splits if not holds_splits(place, [split])]
    if len(missing) < len(splits):
        there = next(split for split in splits if split not in missing)
        lacks = ' (or '.join(f'{name}/' for name in _spellings(missing[0])) + ')' * (len(_spellings(missing[0])) - 1)
        raise UserError(f'{what} {place} has {_spellings(there)[0]}/ but no {lacks}: add it or give another folder')
    if not any(place.iterdir()):
        raise UserError(f'{what} {place} is empty: expected a folder that holds {wanted}')
    found = ', '.join(child.name for child in children[:5]) or 'no folders'
    raise UserError(
        f'{what} {place} holds no {wanted} (found: {found}): give the folder that does, or (to train) '
        '--train-split and --val-split',
    )


def holds_splits(folder: Path, splits: Sequence[str] = _SPLITS) -> bool:
    """Whether a folder has all of these splits, named as `load_split` takes them, but no slices."""
    return all(any(os.path.isdir(folder / name) for name in _spellings(split)) for split in splits)


def _named(splits: Sequence[str]) -> str:
    return ' and '.join(f'{_spellings(split)[0]}/' for split in splits)


def _spellings(split: str) -> tuple[str, ...]:
    return ('val', 'validation') if split in ('val', 'validation') else (split,)


def _reason(error: BaseException) -> str:
    """What went wrong in a few words, on one line."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ' '.join(text.split())


# --- Archives and download --------------------------------------------------------------------------------------------


def _published(size: str) -> tuple[str, str]:
    """Address and MD5 of an official archive, from torchvision."""
    from torchvision.datasets import Imagenette

    url, md5 = Imagenette._ARCHIVES[_torchvision_size(size)]
    return url, md5


def _torchvision_size(size: str) -> str:
    return size if size == 'full' else f'{size}px'


def _unpacked(archive: Path, splits: Sequence[str]) -> Path:
    """Unpack an archive once into the user cache, under a name made from its content."""
    try:
        if archive.stat().st_size == 0:
            raise UserError(f'archive {archive} is empty (0 bytes): download it again')
        found = _md5(archive)
    except OSError as error:
        raise UserError(f'archive {archive} cannot be read: {_reason(error)}') from error
    for size, name in SIZES.items():
        if archive.name == f'{name}.tgz' and found != (expected := _published(size)[1]):
            raise UserError(f'archive {archive}: expected md5 {expected}, found {found}: download it again')
    target = cache_dir() / f'archive-{found}'
    if not os.path.isdir(target):
        with whole_folder(target) as folder:
            _extract(archive, folder)
            try:
                _root_at(folder, 'archive', splits)
            except UserError as error:
                message = str(error).replace(str(folder), str(archive))
                raise UserError(message) from None
    try:
        return _root_at(target, 'unpacked archive', splits)
    except UserError as error:
        raise UserError(
            f'{target}, unpacked from {archive}, does not hold {_named(splits)}: ask for other splits, or remove it to '
            'unpack it again',
        ) from error


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _extract(archive: Path, folder: Path) -> None:
    """Write an archive's plain files and folders below `folder`; refuse everything else."""
    room = shutil.disk_usage(folder).free
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = folder.joinpath(*_safe_parts(archive, member))
                room -= member.size
                if room < 0:
                    raise UserError(
                        f'archive {archive} unpacks to more than the free space in {folder.parent} '
                        f'({member.name!r} no longer fits): make room or set IMAGENETTE_ZOO_CACHE to another folder',
                    )
                _extract_member(tar, member, path)
            _read_end(tar)
    except _CORRUPT as error:
        raise UserError(
            f'archive {archive} is truncated or corrupt ({_reason(error)}): download it again',
        ) from error


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    try:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = path.open('wb')
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise tarfile.ExtractError(f'{member.name!r}: {_reason(error)}') from error
        raise
    with sink:
        source = tar.extractfile(member)
        assert source is not None  # a plain file, see _safe_parts
        shutil.copyfileobj(source, sink, 1 << 20)
    if path.stat().st_size != member.size:
        raise tarfile.ReadError('unexpected end of data')


def _read_end(tar: tarfile.TarFile) -> None:
    """Read what follows the last member: zeros, else the archive is damaged.

    tarfile takes a damaged header for the end, and the compressor's checksum comes after everything else. A whole
    archive ends with two blocks of zeros, of which tarfile has read one.
    """
    assert tar.fileobj is not None
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError('unexpected end of data')
    while block:
        if any(block):
            raise tarfile.ReadError('bad header')
        block = tar.fileobj.read(1 << 20)


def _safe_parts(archive: Path, member: tarfile.TarInfo) -> tuple[str, ...]:
    parts = tuple(part for part in re.split(r'[/\\]', member.name) if part not in ('', '.'))
    if member.name.startswith(('/', '\\')) or any(re.match('[A-Za-z]:', part) for part in parts):
        problem = 'an absolute path'
    elif '..' in parts:
        problem = 'a path with ".."'
    elif not (member.isreg() or member.isdir()):
        problem = 'a link' if member.issym() or member.islnk() else 'a device or special file'
    elif member.size < 0:
        problem = 'a file of negative size'
    else:
        return parts
    raise UserError(
        f'archive {archive} holds {problem} ({member.name!r}): expected plain files and folders only; '
        'nothing was unpacked, get the archive from its publisher',
    )


def fetch(size: str) -> Path:
    """Download Imagenette into the user cache with torchvision's downloader, which verifies the checksum.

    Args:
        size: `160`, `320` (pixels of the shorter side) or `full`.

    Returns:
        The folder that holds `train/` and `val/`; at once if it is there already.

    Raises:
        UserError: unknown size, no network, wrong checksum, no room. Nothing half-made stays behind.
    """
    if size not in SIZES:
        raise UserError(f'size {size!r} is unknown: expected one of {", ".join(SIZES)}')
    target = cache_dir() / SIZES[size]
    if holds_splits(target):
        return target
    if os.path.exists(target):
        raise UserError(f'{target} exists but does not hold train/ and val/: remove it and fetch again')
    from torchvision.datasets import Imagenette

    url, md5 = _published(size)
    name = url.rsplit('/', 1)[-1]
    with whole_folder(target) as folder:
        download = folder / 'download'
        try:
            # torchvision prints and draws its progress bar even where nobody watches
            watched = sys.stderr if sys.stderr.isatty() else io.StringIO()
            with redirect_stdout(watched), redirect_stderr(watched):
                Imagenette(str(download), split='val', size=_torchvision_size(size), download=True)
        except _OFFLINE as error:
            cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
            raise UserError(
                f'cannot download {url} ({_reason(cause)}): check the network and try again, or download it elsewhere '
                f'and give it as --data-dir {name}',
            ) from error
        except (RuntimeError, *_CORRUPT) as error:
            archive = download / name
            found = _md5(archive) if archive.is_file() else 'nothing'
            if found == md5:
                raise UserError(f'{url} cannot be unpacked ({_reason(error)}): try again') from error
            raise UserError(f'download of {url}: expected md5 {md5}, found {found}: try again') from error
        for child in (download / Path(name).stem).iterdir():
            child.rename(folder / child.name)
        shutil.rmtree(download)
        if not holds_splits(folder):
            raise UserError(f'{url} holds no train/ and val/: try another size, or give --data-dir')
    return target


# --- Lists of images --------------------------------------------------------------------------------------------------


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
        root: folder that holds the splits, see `find_root`.
        split: `train`, `validation` (or `val`: both mean `val/` or `validation/`), or any folder's name; a slice of it
            in per cent, as `train[:85%]` and `train[85%:]`: so much of each class, drawn by the names of the files, so
            that slices which meet at a number have no image in common and miss none.
        classes: the training classes, where this is another split: its indices follow them and it may lack some.

    Raises:
        UserError: no such split, no images, an empty training class, or a class that `classes` lacks.
    """
    root = Path(root)
    split, part, (start, stop) = _slice(split)
    folder = next((root / name for name in _spellings(split) if os.path.isdir(root / name)), None)
    if folder is None:
        raise UserError(f'data folder {root} has no {split}/: expected {" or ".join(_spellings(split))} in it')
    try:
        found = _class_folders(folder)
        files = {name: _images_below(f'{folder}{os.sep}{name}', f'{folder.name}/{name}') for name in found}
    except OSError as error:
        raise UserError(f'data folder {folder} cannot be read: {_reason(error)}') from error
    if not any(files.values()):
        raise UserError(f'{folder} holds no images: expected <class>/<image>, one folder a class')
    if part:
        for name, paths in files.items():
            drawn = sorted(paths, key=lambda path: hashlib.md5(os.fsencode(path), usedforsecurity=False).digest())
            files[name] = drawn[len(paths) * start // 100 : len(paths) * stop // 100]
        if not any(files.values()):
            raise UserError(f'{folder}: its classes are too small for {split}{part}: take more per cent')
    if classes is None:
        empty = [name for name in found if not files[name]]
        if empty and split not in _spellings('val'):
            if part:
                raise UserError(f'class folder {folder / empty[0]} gives {split}{part} no images: take more per cent')
            raise UserError(f'class folder {folder / empty[0]} holds no images: add some or remove the folder')
        classes = found
    else:
        unknown = [name for name in found if files[name] and name not in classes]
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


def _slice(split: str) -> tuple[str, str, tuple[int, int]]:
    """`train[10%:85%]` as `('train', '[10%:85%]', (10, 85))`, `train` as `('train', '', (0, 100))`."""
    name, bracket, part = split.partition('[')
    if not bracket:
        return split, '', (0, 100)
    found = re.fullmatch(r'(?:(\d{1,3})%)?:(?:(\d{1,3})%)?\]', part)
    start, stop = (int(found[1] or 0), int(found[2] or 100)) if found else (0, 0)
    if not start < stop <= 100:
        raise UserError(f'split {split!r}: a slice is like {name}[:85%] or {name}[85%:]')
    return name, bracket + part, (start, stop)


def _class_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith('.') and entry.is_dir()]
    return sorted(names, key=_natural_key)


def _images_below(folder: str, relative: str) -> list[str]:
    """Paths of a folder's images, with `relative` in the folder's place."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith('.'):
                continue
            if _is_image(name):
                found.append(f'{relative}/{name}')
            elif entry.is_dir():
                found += _images_below(entry.path, f'{relative}/{name}')
    return found


def list_images(places: Iterable[str | Path]) -> list[Path]:
    """The images that are meant by files, folders (with all below them) and glob patterns (`**` for any depth).

    In the order of the places, each in natural order; no file twice. A file that is named may end in anything.

    Raises:
        UserError: nothing there, a place without an image, or a folder that can't be read.
    """
    found: dict[Path, None] = {}
    for place in map(str, places):
        if os.path.isfile(place):
            found[Path(place)] = None
            continue
        try:
            if os.path.isdir(place):
                images = _images_below(place, Path(place).as_posix())
            else:
                images = [path for path in glob(place, recursive=True) if _is_image(path) and os.path.isfile(path)]
        except OSError as error:
            raise UserError(f'folder {place} cannot be read: {_reason(error)}') from error
        if not images:
            what = 'is no file or folder and matches no image' if not os.path.isdir(place) else 'holds no images'
            raise UserError(f'{place} {what}: expected {", ".join(sorted(IMAGE_EXTENSIONS))}')
        found.update(dict.fromkeys(map(Path, sorted(images, key=_natural_key))))
    return list(found)


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS


def _natural_key(text: str) -> tuple[list[str | int], str]:
    """timm's order (`timm.utils.misc.natural_key`), with the text itself to settle ties."""
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
        images: the training split.
        percent: 0, 1, 5, 25 or 50: the column `noisy_labels_<percent>`. 0 keeps the labels and needs no file.

    Raises:
        UserError: unknown percentage, no such file, a column, a label or an image that it should have and has not.
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
        raise UserError(f'{csv_path} cannot be read: {_reason(error)}') from error


# --- Images -----------------------------------------------------------------------------------------------------------


def open_file(file: str | Path | IO[bytes]) -> Image.Image:
    """Pillow's `Image.open` for `FORMATS` alone."""
    Image.init()  # or Pillow does not know which it has, and trips over one that it has not (AVIF before 11.3)
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def forget_other_formats() -> None:
    """Leaves Pillow `FORMATS` alone for good, in this process, whoever opens a file: for servers of other libraries."""
    Image.init()  # all others are registered now, and so not later
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    for name in Image.OPEN.keys() - FORMATS:
        del Image.OPEN[name]


def open_image(path: str | Path) -> Image.Image:
    """Read an image as RGB, upright.

    Without an EXIF orientation the pixels are those of `Image.open(path).convert('RGB')`, which is timm's way; only
    16-bit greyscale is scaled to 8 bits where Pillow would clip it.

    Raises:
        UserError: missing, empty, truncated, not an image of `FORMATS`, or of absurd size.
    """
    with _only_size_warnings():
        return _decode(path)[0]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image put upright, in pixels, from its header alone but for TIFF.

    Raises:
        UserError: as `open_image`, as far as the header tells.
    """
    try:
        with _only_size_warnings(), open_file(path) as image:
            if image.format == 'TIFF':  # Pillow turns it as it loads it, and its size before that
                image.load()
            turned = _turn(image) in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
            return (image.height, image.width) if turned else image.size
    except Exception as error:
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def decoded(paths: Iterable[str | Path], use: Callable[[Image.Image], T], threads: int | None = None) -> Iterator[T]:
    """What `use` makes of each image of `open_image`, in order, on all cores or in so many threads.

    Raises:
        UserError: as `open_image`, while iterating.
    """
    threads = threads or available_cores()  # Pillow lets go of the GIL while it decodes
    waiting: deque[Future[T]] = deque()
    with _only_size_warnings(), ThreadPoolExecutor(threads) as pool:
        for path in paths:
            waiting.append(pool.submit(lambda path: use(_decode(path)[0]), path))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextmanager
def _only_size_warnings() -> Iterator[None]:
    """Pillow's warning of an absurd size is an error; its others are nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        yield


def _decode(path: str | Path) -> tuple[Image.Image, str]:
    """RGB image and the mode of the file."""
    try:
        with open_file(path) as image:
            mode = image.mode
            image.load()
            turn = _turn(image)
            return _to_rgb(image if turn is None else image.transpose(turn)), mode
    except Exception as error:  # whatever a decoder raises on hostile bytes means one thing: a bad file
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts a picture upright; `ImageOps.exif_transpose` writes the EXIF anew and so trips over any odd tag."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make a picture bad
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):
        image = image.convert('I')  # from I;16B too, whose extrema Pillow does not know
        high = image.getextrema()[1]
        if isinstance(high, (int, float)) and high > 255:
            image = image.point(lambda value: value * (1 / 256)).convert('L')
    return image.convert('RGB')


def _complaint(path: str | Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        if os.path.getsize(path) == 0:
            return 'is empty (0 bytes): replace or remove it'
        return f'is not an image that is read ({", ".join(FORMATS)}): convert, replace or remove it'
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return f'cannot be read: {_reason(error)}'
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f'is too large: expected at most {Image.MAX_IMAGE_PIXELS} pixels; shrink or remove it'
    return f'is truncated or corrupt ({_reason(error)}): replace or remove it'


@dataclass(frozen=True)
class ClassReport:
    """What `check` found in one class of one split; sizes in pixels, None where no image could be read."""

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
    """What `check` found."""

    root: Path
    classes: tuple[ClassReport, ...]
    bad: tuple[BadImage, ...]


_GREYSCALE_MODES = ('1', 'L', 'LA', 'La', 'I', 'F')


def check(root: str | Path, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Decode every training and validation image of a data set.

    Args:
        root: folder that holds the splits.
        progress: called with (done, total) after each image.

    Raises:
        UserError: the folders themselves are wrong, see `load_split`.
    """
    train = load_split(root)
    sets = (train, load_split(root, 'validation', classes=train.classes))
    total = sum(map(len, sets))
    done = 0
    reports: list[ClassReport] = []
    bad: list[BadImage] = []
    with _only_size_warnings(), ThreadPoolExecutor(available_cores()) as pool:
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
    return CheckReport(Path(root), tuple(reports), tuple(bad))


def _inspect(path: Path) -> tuple[int, int, str] | str:
    """Width, height and mode, or what is wrong."""
    try:
        image, mode = _decode(path)
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
    found = list(numbers)
    return (min(found), max(found)) if found else None
