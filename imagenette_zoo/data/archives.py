"""Archives of a data set: downloaded, checked and unpacked."""

from __future__ import annotations

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
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from ..errors import UserError, os_reason
from ..utils.files import cache_dir, whole_folder
from .constants import SIZES
from .folders import _named, _spellings, holds_splits

__all__ = [
    'fetch',
]
_ARCHIVE_SUFFIXES = ('.tgz', '.tar.gz', '.tar')
_CORRUPT = (  # what a bad archive raises; the second line is tarfile's answer to hostile headers
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, LookupError, OverflowError, RecursionError),
)
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_OFFLINE = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # what a bad connection raises


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
        raise UserError(f'{what} {place} cannot be read: {os_reason(error)}') from error
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
        raise UserError(f'archive {archive} cannot be read: {os_reason(error)}') from error
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
            f'archive {archive} is truncated or corrupt ({os_reason(error)}): download it again',
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
            raise tarfile.ExtractError(f'{member.name!r}: {os_reason(error)}') from error
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
        UserError: Unknown size, no network, wrong checksum, no room. Nothing half-made stays behind.
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
                f'cannot download {url} ({os_reason(cause)}): check the network and try again, or download it '
                f'elsewhere and give it as --data-dir {name}',
            ) from error
        except (RuntimeError, *_CORRUPT) as error:
            archive = download / name
            found = _md5(archive) if archive.is_file() else 'nothing'
            if found == md5:
                raise UserError(f'{url} cannot be unpacked ({os_reason(error)}): try again') from error
            raise UserError(f'download of {url}: expected md5 {md5}, found {found}: try again') from error
        for child in (download / Path(name).stem).iterdir():
            child.rename(folder / child.name)
        shutil.rmtree(download)
        if not holds_splits(folder):
            raise UserError(f'{url} holds no train/ and val/: try another size, or give --data-dir')
    return target
