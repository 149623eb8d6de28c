"""Images decoded once, into memory-mapped uint8 files.

An entry is a folder of the user cache: `rows.bin`, a row for each image of a split, and `meta.json`. Its name is made
of the files' paths, sizes and times and of what was done to the pixels, so other files or parameters are another
entry. It appears whole or not at all; one process makes it, others wait. What other users made, or can write to, is not
read: who truncates a mapped file ends the process that has it mapped.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import filelock  # which torch and huggingface_hub need as well
import numpy as np
import PIL
import timm
from PIL import Image

from ..errors import UserError, os_reason
from ..utils.environment import available_cores
from ..utils.files import cache_dir, is_own, remove, to_json, whole_folder, without_others
from ..utils.reading import of_kind, open_regular, parse_json, read_json
from .folders import ImageSet
from .images import decoded, image_size
from .processes import NoProcesses, in_processes, worth_processes

__all__ = [
    'Entry', 'Watcher', 'clear', 'content_hash', 'entries', 'eval_pixels', 'files_hash', 'home', 'names_hash',
    'stored_size', 'train_pixels', 'train_size',
]  # fmt: skip

FORMAT = 3
DIGEST = 16  # bytes
BLOCK = 32 * 2**20  # bytes that have a checksum of their own
WRITTEN_BEHIND = 64 * 2**20  # bytes that are on their way to the disk while the next images are decoded


class Watcher(Protocol):
    """Shows how it goes; `imagenette_zoo.utils.console.Console` is one."""

    def line(self, text: str) -> None:
        """Says something."""

    def progress(self, title: str, steps: int, log_interval: int | None = None) -> AbstractContextManager[Any]:
        """A bar with a method `advance(images)`."""


def train_size(images: ImageSet, img_size: int, watcher: Watcher) -> tuple[int, np.ndarray]:
    """The size in pixels of stored training images, and the images' own sizes.

    Half as large again as the largest crop, so that a crop of 44 % of the area is not enlarged; at least 224, so that
    smaller crops share an entry; never larger than the largest image.

    Returns:
        The size and `(N, 2)` int32 heights and widths.

    Raises:
        UserError: An image can't be read, or the cache can't be written.
    """
    def size(path: Path) -> np.ndarray:
        width, height = image_size(path, images.max_megapixels)
        return np.array([height, width], np.int32)

    rows = _rows(images, 'sizes', {}, (2,), np.dtype(np.int32), lambda paths, _: map(size, paths), watcher)
    sizes = np.array(rows)
    return min(stored_size(img_size), int(sizes.max())), sizes


def stored_size(img_size: int) -> int:
    """The size in pixels that training images are stored at where they are not smaller."""
    return max(224, 32 * math.ceil(1.5 * img_size / 32))


def train_pixels(images: ImageSet, size: int, watcher: Watcher) -> np.ndarray:
    """`(N, size, size, channels)` uint8: every image whole, squashed to a square.

    Raises:
        UserError: An image can't be read, or the cache can't be written.
    """

    def squash(image: Image.Image) -> np.ndarray:
        image = image.resize((size, size), Image.Resampling.BICUBIC) if image.size != (size, size) else image
        return np.asarray(image).reshape(shape)

    def rows(paths: Sequence[Path], threads: int) -> Iterator[np.ndarray]:
        return decoded(paths, squash, threads, images.max_megapixels, images.channels)

    shape = (size, size, images.channels)
    parameters = {'side': size} if images.channels == 3 else {'side': size, 'channels': images.channels}
    return _rows(images, 'train', parameters, shape, np.dtype(np.uint8), rows, watcher)


def eval_pixels(
    images: ImageSet,
    transform: Callable[[Image.Image], np.ndarray],
    parameters: dict[str, Any],
    watcher: Watcher,
) -> np.ndarray:
    """`(N, H, W, C)` uint8: what timm's evaluation transform makes of every image.

    Args:
        images: The split.
        transform: From an image to `(C, H, W)` uint8.
        parameters: Those that the transform was made from, `input_size` `(C, H, W)` among it.
        watcher: Shows how it goes.

    Raises:
        UserError: An image can't be read, or the cache can't be written.
    """
    channels, height, width = parameters['input_size']

    def rows(paths: Sequence[Path], threads: int) -> Iterator[np.ndarray]:
        def pixels(image: Image.Image) -> np.ndarray:
            return np.asarray(transform(image)).transpose(1, 2, 0)

        return decoded(paths, pixels, threads, images.max_megapixels, channels)

    shape = (height, width, channels)
    return _rows(images, 'eval', {**parameters, 'timm': timm.__version__}, shape, np.dtype(np.uint8), rows, watcher)


def content_hash(images: ImageSet, watcher: Watcher) -> str:
    """BLAKE2b of the names, labels and bytes of all images of a split, wherever they are.

    Raises:
        UserError: An image can't be read, or the cache can't be written.
    """

    def rows(paths: Sequence[Path], threads: int) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(_digest_row, paths)

    digests = _rows(images, 'content', {}, (DIGEST,), np.dtype(np.uint8), rows, watcher)
    return hashlib.blake2b(names_hash(images).encode() + digests.tobytes(), digest_size=DIGEST).hexdigest()


def names_hash(images: ImageSet) -> str:
    """BLAKE2b of the names and labels of all images of a split."""
    text = json.dumps([images.classes, images.paths, images.targets])
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).hexdigest()


def files_hash(*sets: ImageSet) -> str:
    """BLAKE2b of the names of all images of some splits: which images they are, whatever size they have."""
    text = json.dumps([images.paths for images in sets])
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).hexdigest()


def _digest_row(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f'image {path} cannot be read: {error.strerror}') from error
    return np.frombuffer(hashlib.blake2b(data, digest_size=DIGEST).digest(), np.uint8)


# The state of the rows that this process has read whole, by folder: the next training need not do so again.
_checked: dict[Path, tuple[Any, ...]] = {}

# Makes the rows of some files, in order, in so many threads.
Make = Callable[[Sequence[Path], int], Iterable[np.ndarray]]

# --- Entries ----------------------------------------------------------------------------------------------------------


def _rows(
    images: ImageSet,
    kind: str,
    parameters: dict[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    make: Make,
    watcher: Watcher,
) -> np.ndarray:
    """`(N, *shape)`: the entry's rows, which `make` yields where there are none yet."""
    # As text, so that what is read from JSON equals it.
    what = {'kind': kind, **{name: str(value) for name, value in parameters.items()}, 'pillow': PIL.__version__}
    folder = home() / _key(images, what)
    meta = {
        'host': platform.node(), 'data': str(images.root.absolute()), 'split': images.split, 'what': what,
        'shape': [len(images), *shape], 'dtype': dtype.name,
    }  # fmt: skip
    rows = _open(folder)
    if rows is None:
        with _only_one(folder, watcher):
            rows = _open(folder)  # another process may just have made it
            if rows is None:
                _make(folder, meta, [images.root / path for path in images.paths], make, watcher)
                _remove_superseded(folder, meta)
                rows = _open(folder)
    if rows is None:
        raise UserError(
            f'{folder}: was changed by others while it was made: set IMAGENETTE_ZOO_CACHE to another folder'
        )
    with suppress(OSError):
        os.utime(folder)
    return rows


def home() -> Path:
    """Where this user's entries are; in a cache of another user they have a folder of their own."""
    folder = cache_dir()
    with suppress(OSError):
        if hasattr(os, 'geteuid') and folder.stat().st_uid != os.geteuid():
            return folder / f'decoded-{os.geteuid()}'
    return folder / 'decoded'


def _key(images: ImageSet, what: dict[str, Any]) -> str:
    parts = [FORMAT, str(images.root.absolute()), what]  # as JSON, which escapes what is no Unicode
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16)
    for path in images.paths:
        try:
            stat = os.stat(images.root / path)
        except OSError as error:
            raise UserError(f'image {images.root / path} cannot be read: {error.strerror}') from error
        # who writes into a file can set its time of modification, but not that of its last change
        digest.update(os.fsencode(f'{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0'))
    return digest.hexdigest()


def _open(folder: Path) -> np.ndarray | None:
    """The mapped rows, or None where there is no whole entry of this user's own."""
    try:
        with open_regular(folder / 'meta.json') as described, open_regular(folder / 'rows.bin') as file:
            status = os.fstat(file.fileno())
            if not (is_own(status) and is_own(os.fstat(described.fileno()))):
                return None
            meta = parse_json(described.read().decode())
            shape, dtype = tuple(meta['shape']), np.dtype(meta['dtype'])
            now = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, meta['checksum']
            whole = status.st_size == math.prod(shape) * dtype.itemsize
            if not whole or (_checked.get(folder) != now and _checksum(file) != meta['checksum']):
                return None
            _checked[folder] = now
            return np.memmap(file, dtype, 'c', shape=shape)  # 'c': private, so that torch may take it for writable
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(file: BinaryIO) -> str:
    """A hash of the CRC-32 of each block of a file, which all cores read: a bit that changed is noticed."""
    if not os.fstat(file.fileno()).st_size:
        return ''
    data = np.memmap(file, np.uint8, 'r')
    with ThreadPoolExecutor(available_cores()) as pool:
        checksums = pool.map(lambda start: zlib.crc32(data[start : start + BLOCK].data), range(0, len(data), BLOCK))
        return hashlib.sha256(str(list(checksums)).encode()).hexdigest()


@contextmanager
def _only_one(folder: Path, watcher: Watcher) -> Iterator[None]:
    """Lets one process at a time make an entry. A killed one leaves no lock behind."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f'{folder}.lock')
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            watcher.line('another process is decoding these images: waiting for it')
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter where a disk has no locks
        raise UserError(
            f'cannot write to {folder.parent}: {os_reason(error)}; set IMAGENETTE_ZOO_CACHE to a folder that can be '
            f'written, or use --loader timm, which needs none'
        ) from error
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, meta: dict[str, Any], paths: Sequence[Path], make: Make, watcher: Watcher) -> None:
    if folder.exists():
        watcher.line(f'{folder}: was damaged or changed by others; the images are decoded again')
        remove(folder)
    for left_over in folder.parent.glob(f'.{folder.name}.*'):  # of a process that was killed; this one has the lock
        remove(left_over)
    size = math.prod(meta['shape']) * np.dtype(meta['dtype']).itemsize
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(
            f'the decoded images need {size / 2**20:.0f} MiB and {folder.parent} has {free / 2**20:.0f} MiB free: make '
            f'room, set IMAGENETTE_ZOO_CACHE to another folder, or use --loader timm, which needs none'
        )
    start, count = time.perf_counter(), meta['shape'][0]
    pixels = meta['what']['kind'] in ('train', 'eval')
    title = 'decoding' if pixels else 'reading'
    with whole_folder(folder) as temporary:
        path = temporary / 'rows.bin'
        writing, disk, bar = path.open('wb'), ThreadPoolExecutor(1), watcher.progress(title, count, 2000)
        with writing as file, disk, bar as progress:
            _make_own(temporary)
            _make_own(path)
            written, synced, sync = 0, 0, disk.submit(file.flush)
            for rows in _write(file, paths, make, size // count):
                for _ in range(rows):
                    progress.advance(1)
                written += rows * (size // count)
                if written - synced >= WRITTEN_BEHIND and sync.done():
                    sync.result()  # a failure is raised only once
                    synced, sync = written, disk.submit(os.fsync, file.fileno())
            sync.result()
        with path.open('rb', buffering=0) as whole, (temporary / 'meta.json').open('w') as file:
            file.write(to_json({**meta, 'checksum': _checksum(whole)}))
        without_others(temporary / 'meta.json')
    if pixels:
        seconds = time.perf_counter() - start
        watcher.line(f'decoded {count:,} images once, in {seconds:.1f} s, {size / 2**20:.0f} MiB: {folder}')


def _write(file: BinaryIO, paths: Sequence[Path], make: Make, size: int) -> Iterator[int]:
    """Writes the rows of so many bytes; yields how many more have been written."""
    cores = available_cores()

    def part(first: int, step: int) -> Iterator[None]:
        for index, row in zip(range(first, len(paths), step), make(paths[first::step], 1), strict=True):
            data = np.ascontiguousarray(row).data.cast('B')
            while data:
                data = data[os.pwrite(file.fileno(), data, (index + 1) * size - len(data)) :]
            yield

    if worth_processes(len(paths), cores):
        with suppress(NoProcesses):
            yield from in_processes(part, len(paths), cores)
            return
    for row in make(paths, cores):
        file.write(np.ascontiguousarray(row).data)
        yield 1


def _make_own(path: Path) -> None:
    without_others(path)
    if not is_own(path.stat()):
        raise UserError(
            f'{path.parent}: files written there belong to another user, but decoded images must be your own: set '
            f'IMAGENETTE_ZOO_CACHE to a folder on another disk, or use --loader timm, which needs none'
        )


def _remove_superseded(folder: Path, meta: dict[str, Any]) -> None:
    """Removes what this machine made of the same split before its files changed; others may share the cache."""
    for entry in entries():
        same = (entry.host, entry.data, entry.split, entry.what) == tuple(
            meta[n] for n in ('host', 'data', 'split', 'what')
        )
        if same and entry.folder != folder:
            remove(entry.folder)


@dataclass(frozen=True)
class Entry:
    """One entry: where it is, of what data on which machine, what was done to the pixels, `(N, …)` shape, bytes, last
    use (epoch s)."""

    folder: Path
    host: str
    data: str
    split: str
    what: dict[str, str]
    shape: tuple[int, ...]
    size: int
    used: float


def entries() -> list[Entry]:
    """The whole entries of the user cache, last used first."""
    whole = []
    for path in home().glob('[!.]*/meta.json'):  # not those that are being made
        try:
            meta, folder = read_json(path), path.parent
            size = (folder / 'rows.bin').stat().st_size
            what, shape = of_kind(meta['what'], dict[str, str]), tuple(of_kind(meta['shape'], list[int]))
            host, data, split, _ = of_kind(
                [meta.get('host', platform.node()), meta['data'], meta['split'], what['kind']], list[str]
            )
            whole.append(Entry(folder, host, data, split, what, shape, size, folder.stat().st_mtime))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # torn, or removed at this moment
    return sorted(whole, key=lambda entry: -entry.used)


def clear() -> tuple[int, Sequence[str]]:
    """Removes every entry that no process is making, torn ones and left-overs included.

    Returns:
        Bytes freed, and the names of what was left: a process is making it, or it is another user's.

    Raises:
        UserError: The folder can't be written, and nothing was freed.
    """
    freed, left = 0, []
    refused: OSError | None = None
    try:
        names = sorted({path.name.strip('.').split('.')[0] for path in home().iterdir()}) if home().is_dir() else []
        for name in names:
            lock = filelock.FileLock(home() / f'{name}.lock')
            try:
                with suppress(NotImplementedError):
                    lock.acquire(timeout=0)
            except filelock.Timeout:
                left.append(name)
                continue
            except OSError as error:  # another user's
                refused = error
                left.append(name)
                continue
            for folder in [home() / name, *home().glob(f'.{name}.*')]:
                size = sum(path.stat().st_size for path in folder.glob('*'))
                remove(folder)
                freed += 0 if folder.exists() else size
            if (home() / name).exists():
                left.append(name)
            with suppress(OSError):  # before the release: who gets the lock next sees that its file is gone
                (home() / f'{name}.lock').unlink(missing_ok=True)
            lock.release()
    except OSError as error:
        refused = error
    if refused and not freed:
        raise UserError(f'cannot clear {home()}: {refused.strerror}') from refused
    return freed, left
