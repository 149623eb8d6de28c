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
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from ..errors import UserError, os_reason
from ..utils.files import cache_dir, whole_folder
from .constants import SIZES
from .folders import holds_splits

__all__ = ['ARCHIVE_SUFFIXES', 'fetch', 'unpacked']

ARCHIVE_SUFFIXES = ('.tgz', '.tar.gz', '.tar')
_CORRUPT = (  # what a bad archive raises; the second line is tarfile's answer to hostile headers
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, LookupError, OverflowError, RecursionError),
)
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_OFFLINE = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # what a bad connection raises


def _published(size: str) -> tuple[str, str]:
    """Address and MD5 of an official archive, from torchvision."""
    from torchvision.datasets import Imagenette

    url, md5 = Imagenette._ARCHIVES[_torchvision_size(size)]
    return url, md5


def _torchvision_size(size: str) -> str:
    return size if size == 'full' else f'{size}px'


def unpacked(archive: Path, check: Callable[[Path], object]) -> Path:
    """The folder in the user cache that an archive is unpacked to, once, under a name made from its content.

    Args:
        archive: The file.
        check: Called with the new folder; where it raises nothing is kept.

    Raises:
        UserError: The archive is damaged or hostile, or there is no room; one that `check` raised.
    """
    try:
        if archive.stat().st_size == 0:
            raise UserError(f'archive {archive} is empty (0 bytes): download it again')
        md5 = _md5(archive)
    except OSError as error:
        raise UserError(f'archive {archive} cannot be read: {os_reason(error)}') from error
    for size, name in SIZES.items():
        if archive.name == f'{name}.tgz' and md5 != (expected := _published(size)[1]):
            raise UserError(f'archive {archive}: expected md5 {expected}, found {md5}: download it again')
    target = cache_dir() / f'archive-{md5}'
    if not os.path.isdir(target):
        with whole_folder(target) as folder:
            _extract(archive, folder)
            check(folder)
    return target


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
            # From Python 3.10.12 on. Alone it would let links and some `..` through; see CVE-2025-4517 for such links.
            tar.extraction_filter = getattr(tarfile, 'data_filter', lambda member, _: member)
            for member in tar:
                name, member.name = member.name, _safe_name(archive, member)
                room -= member.size
                if room < 0:
                    raise UserError(
                        f'archive {archive} unpacks to more than the free space in {folder.parent} '
                        f'({name!r} no longer fits): make room or set IMAGENETTE_ZOO_CACHE to another folder',
                    )
                try:
                    if member.isdir():  # without that filter only this user could enter it
                        (folder / member.name).mkdir(parents=True, exist_ok=True)
                    else:
                        tar.extract(member, folder, set_attrs=False)
                except OSError as error:
                    if error.errno in _BAD_NAME:
                        raise tarfile.ExtractError(f'{name!r}: {os_reason(error)}') from error
                    raise
            _read_end(tar)
    except _CORRUPT as error:
        raise UserError(
            f'archive {archive} is truncated or corrupt ({os_reason(error)}): download it again',
        ) from error


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


def _safe_name(archive: Path, member: tarfile.TarInfo) -> str:
    parts = [part for part in re.split(r'[/\\]', member.name) if part not in ('', '.')]
    if member.name.startswith(('/', '\\')) or any(re.match('[A-Za-z]:', part) for part in parts):
        problem = 'an absolute path'
    elif '..' in parts:
        problem = 'a path with ".."'
    elif not (member.isreg() or member.isdir()):
        problem = 'a link' if member.issym() or member.islnk() else 'a device or special file'
    elif member.size < 0:
        problem = 'a file of negative size'
    else:
        return '/'.join(parts)
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
            received = _md5(archive) if archive.is_file() else 'nothing'
            if received == md5:
                raise UserError(f'{url} cannot be unpacked ({os_reason(error)}): try again') from error
            raise UserError(f'download of {url}: expected md5 {md5}, found {received}: try again') from error
        for child in (download / Path(name).stem).iterdir():
            child.rename(folder / child.name)
        shutil.rmtree(download)
        if not holds_splits(folder):
            raise UserError(f'{url} holds no train/ and val/: try another size, or give --data-dir')
    return target
