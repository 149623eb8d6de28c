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
import socket
import ssl
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast
from urllib.error import URLError

from ..errors import UserError, os_reason
from ..utils.files import cache_dir, one_at_a_time, or_another_cache, whole_folder
from ..utils.reading import read_text
from .constants import FAMILY
from .folders import holds_splits

__all__ = ['ARCHIVE_SUFFIXES', 'digest_of', 'extract', 'fetch', 'origin', 'unpacked']

ARCHIVE_SUFFIXES = ('.tgz', '.tar.gz', '.tar', '.zip')
# What an archive may unpack to. Photos don't get smaller by packing; flat drawings do.
MOST_TIMES = 100  # its own size,
MOST_BYTES = 2**38  # bytes: twice ImageNet,
BYTES_A_FILE = 160  # of the archive for each file or folder: the smallest images take more
FREE = (64 * 2**20, 1000)  # bytes and files that any archive may have
LONGEST_HEADER = 2**20  # bytes
_CORRUPT = (  # what a bad archive raises; the second line is tarfile's and zipfile's answer to hostile headers
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile),
    *(ValueError, LookupError, OverflowError, RecursionError, NotImplementedError),
)
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
URL = 'https://s3.amazonaws.com/fast-ai-imageclas/{}.tgz'
FASTAI_CHECKS = {  # bytes, and the MD5 of the first MiB (fastai/data/download_checks.py), all that fastai publishes
    'imagewoof2-160': (92612825, '3559b194123981a540b87132dbda412f'),
    'imagewoof2-320': (328387740, '7a1fd92672a559a85de76e4810a20c21'),
    'imagewoof2': (1343715595, '2cc1c1e36e20cb6fd24ffb978edcb487'),
    'imagewang-160': (191498213, 'dab9b1d97b95574ac64122a19bc74ca1'),
    'imagewang-320': (669826647, 'fff8ac034d60e14fcf7789845e625263'),
    'imagewang': (2900347689, '2b7776bac0fc95db72ac8a3b091a3e30'),
}
ORIGIN_FILE = 'origin.txt'  # in a data set that came from the Hub: the address of the copy
PATIENCE = 30.0  # seconds that the archives' host may be silent
_OFFLINE = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)  # what a bad connection raises


def _check_published(archive: Path, name: str, md5: str) -> None:
    """Compares an official archive with what is published of it: by torchvision, else by fastai.

    Raises:
        UserError: It is another file.
    """
    if name in FASTAI_CHECKS:
        with archive.open('rb') as file:
            start = hashlib.md5(file.read(2**20), usedforsecurity=False).hexdigest()
        stats = (FASTAI_CHECKS[name], (archive.stat().st_size, start))
        expected, found = (f'{size} bytes, md5 {md5} of the first MiB' for size, md5 in stats)
    else:
        expected, found = f'md5 {_torchvisions(name)[1]}', f'md5 {md5}'
    if found != expected:
        raise UserError(f'expected {expected}, found {found}')


def _torchvisions(name: str) -> tuple[str, str]:
    """Address and MD5 of an archive of Imagenette."""
    from torchvision.datasets import Imagenette

    size = next(size for size, archive in FAMILY['imagenette'].items() if archive == name)
    url, md5 = Imagenette._ARCHIVES[size if size == 'full' else f'{size}px']
    return url, md5


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
        md5 = digest_of(archive)
    except OSError as error:
        raise UserError(f'archive {archive} cannot be read: {os_reason(error)}') from error
    name = archive.name.removesuffix('.tgz')
    if archive.suffix == '.tgz' and any(name in sizes.values() for sizes in FAMILY.values()):
        try:
            _check_published(archive, name, md5)
        except UserError as error:
            raise UserError(f'archive {archive}: {error}: download it again') from None
    target = cache_dir() / f'archive-{md5}'
    if not os.path.isdir(target):
        with one_at_a_time(target):
            if not os.path.isdir(target):  # another process may just have made it
                with whole_folder(target) as folder:
                    extract(archive, folder)
                    check(folder)
    return target


def digest_of(path: Path, algorithm: str = 'md5') -> str:
    """The digest of a file, in hexadecimal digits."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def extract(archive: Path, folder: Path) -> None:
    """Writes an archive's plain files and folders below `folder`.

    Raises:
        UserError: It is damaged, holds anything else, or more than is plausible; what was written stays.
    """
    allowance = _Allowance(archive, folder)
    try:
        if archive.name.lower().endswith('.zip'):
            with zipfile.ZipFile(archive) as zipped:
                for info in zipped.infolist():
                    name = _safe_name(archive, info.filename, _zip_problem(info))
                    allowance.take(info.filename, info.file_size)
                    with _bad_names(info.filename):
                        if info.filename.endswith(('/', '\\')):
                            (folder / name).mkdir(parents=True, exist_ok=True)
                        else:
                            (folder / name).parent.mkdir(parents=True, exist_ok=True)
                            with zipped.open(info) as source, (folder / name).open('xb') as target:
                                shutil.copyfileobj(source, target, 1 << 20)
        else:
            stream = _TarBytes(archive, allowance.size + 2048 * allowance.count)  # with their headers
            with closing(stream), tarfile.open(fileobj=cast(BinaryIO, stream), mode='r:') as tar:
                # From Python 3.10.12 on. Alone it would let links and some `..` through; see CVE-2025-4517 for such.
                tar.extraction_filter = getattr(tarfile, 'data_filter', lambda member, _: member)
                for member in tar:
                    name, member.name = member.name, _safe_name(archive, member.name, _tar_problem(member))
                    allowance.take(name, member.size)
                    with _bad_names(name):
                        if member.isdir():  # without that filter only this user could enter it
                            (folder / member.name).mkdir(parents=True, exist_ok=True)
                        else:
                            tar.extract(member, folder, set_attrs=False)
                _read_end(stream)
    except _CORRUPT as error:
        raise UserError(
            f'archive {archive} is truncated or corrupt ({os_reason(error)}): download it again',
        ) from error


class _Allowance:
    """How much of an archive may still be unpacked.

    Args:
        archive: The file.
        folder: Where it is unpacked.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.room = shutil.disk_usage(folder).free
        size = archive.stat().st_size
        self.size = min(FREE[0] + MOST_TIMES * size, MOST_BYTES)
        self.count = FREE[1] + size // BYTES_A_FILE

    def take(self, name: str, size: int) -> None:
        """Counts a file or folder. Raises `UserError` where it is one too many or too large."""
        self.count -= 1
        self.size -= size
        self.room -= size
        if self.count < 0 or self.size < 0:
            what = 'more files' if self.count < 0 else 'more data'
            raise _bomb(self.archive, f'{what} than its size allows for images (from {name!r} on)')
        if self.room < 0:
            raise UserError(
                f'archive {self.archive} unpacks to more than the free space in {self.folder.parent} ({name!r} no '
                f'longer fits): make room there{or_another_cache(self.folder)}',
            )


def _bomb(archive: Path, what: str) -> UserError:
    return UserError(
        f'archive {archive} unpacks to {what}: nothing was unpacked; get the archive from its publisher, or unpack it '
        'yourself and give the folder'
    )


@contextmanager
def _bad_names(name: str) -> Iterator[None]:
    """What the system says of a file's name is said of the archive."""
    try:
        yield
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise tarfile.ExtractError(f'{name!r}: {os_reason(error)}') from error
        raise


class _TarBytes:
    """The bytes of a tar file, of a compressed one, too, and no more than it may have: tarfile keeps headers of any
    length in memory."""

    def __init__(self, archive: Path, most: int) -> None:
        packed = archive.open('rb')
        is_gzip = packed.peek(2)[:2] == b'\x1f\x8b'
        self.file: BinaryIO = gzip.open(packed) if is_gzip else packed  # type: ignore[assignment]  # noqa: SIM115
        self.close, self.seek, self.tell = packed.close, self.file.seek, self.file.tell
        self.archive, self.left = archive, most

    def read(self, size: int) -> bytes:
        if size > LONGEST_HEADER:
            raise tarfile.ReadError(f'a header of {size:,} bytes')
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _bomb(self.archive, 'more data than its size allows for images')
        return data


def _read_end(file: _TarBytes) -> None:
    """Read what follows the last member: zeros, else the archive is damaged.

    tarfile takes a damaged header for the end, and the compressor's checksum comes after everything else. A whole
    archive ends with two blocks of zeros, of which tarfile has read one.
    """
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError('unexpected end of data')
    while block:
        if any(block):
            raise tarfile.ReadError('bad header')
        block = file.read(1 << 20)


def _safe_name(archive: Path, name: str, problem: str) -> str:
    """The name of a member below the folder, if it is one and has no other problem."""
    parts = [part for part in re.split(r'[/\\]', name) if part not in ('', '.')]
    if name.startswith(('/', '\\')) or any(re.match('[A-Za-z]:', part) for part in parts):
        problem = 'an absolute path'
    elif '..' in parts:
        problem = 'a path with ".."'
    if problem:
        raise UserError(
            f'archive {archive} holds {problem} ({name!r}): expected plain files and folders only; '
            'nothing was unpacked, get the archive from its publisher',
        )
    return '/'.join(parts)


def _tar_problem(member: tarfile.TarInfo) -> str:
    if not (member.isreg() or member.isdir()):
        return 'a link' if member.issym() or member.islnk() else 'a device or special file'
    if member.issparse():
        return 'a sparse file'
    return 'a file of negative size' if member.size < 0 else ''


def _zip_problem(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not packed by a Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return 'a link' if kind == stat.S_IFLNK else 'a device or special file'
    if info.flag_bits & 1:
        return 'an encrypted file'
    known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return '' if known else 'a file that is packed in a way that few programs can unpack'


def fetch(size: str, dataset: str = 'imagenette') -> Path:
    """Download a data set into the user cache, compare it with what is published of it, and unpack it.

    Where the archive's host cannot be reached, the images come from a copy on the Hugging Face Hub, see `origin`.

    Args:
        size: `160`, `320` (pixels of the shorter side) or `full`.
        dataset: `imagenette`, `imagewoof` or `imagewang`.

    Returns:
        The folder that holds `train/` and `val/`; at once if it is there already.

    Raises:
        UserError: Unknown size or data set, no network, wrong checksum, no room. Nothing half-made stays behind.
    """
    for what, value, known in (('data set', dataset, FAMILY), ('size', size, FAMILY['imagenette'])):
        if value not in known:
            raise UserError(f'{what} {value!r} is unknown: expected one of {", ".join(known)}')
    name = FAMILY[dataset][size]
    target = cache_dir() / name
    if holds_splits(target):
        return target
    if os.path.exists(target):
        raise UserError(f'{target} exists but does not hold train/ and val/: remove it and fetch again')
    url = URL.format(name) if name in FASTAI_CHECKS else _torchvisions(name)[0]
    with one_at_a_time(target):
        if holds_splits(target):  # another process may just have fetched it
            return target
        with whole_folder(target) as folder:
            try:
                _fetch_archive(url, folder, name)
            except _OFFLINE as error:
                cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
                _fetch_copy(url, os_reason(cause), folder, dataset, size)
    return target


def origin(root: Path) -> str | None:
    """The copy on the Hub that `fetch` has taken a data set from; None where it was the archive."""
    return read_text(root / ORIGIN_FILE).strip() if (root / ORIGIN_FILE).is_file() else None


def _fetch_archive(url: str, folder: Path, name: str) -> None:
    """Fills a folder with what an official archive holds.

    Raises:
        OSError: It cannot be downloaded; one of `_OFFLINE`.
        UserError: It is another file.
    """
    from torchvision.datasets.utils import download_url

    archive = folder / f'{name}.tgz'
    # torchvision prints and draws its progress bar even where nobody watches
    watched = sys.stderr if sys.stderr.isatty() else io.StringIO()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with redirect_stdout(watched), redirect_stderr(watched):
            download_url(url, str(folder), archive.name)
    finally:
        socket.setdefaulttimeout(before)
    try:
        _check_published(archive, name, digest_of(archive))
    except UserError as error:
        raise UserError(f'download of {url}: {error}: try again') from None
    content = folder / 'content'
    content.mkdir()
    extract(archive, content)
    archive.unlink()
    if not holds_splits(content / name):
        raise UserError(f'{url} holds no train/ and val/: try another size, or give --data-dir')
    for child in (content / name).iterdir():
        child.rename(folder / child.name)
    shutil.rmtree(content)


def _fetch_copy(url: str, reason: str, folder: Path, dataset: str, size: str) -> None:
    """Fills a folder with the images of a copy on the Hub, and names it in a file."""
    from .hub_copies import write_copy  # needs timm

    downloads = folder / 'downloads'
    downloads.mkdir()
    try:
        address = write_copy(dataset, size, folder, downloads)
    except UserError as error:
        raise UserError(
            f'cannot download {url} ({reason}); {error}: check the network and try again, or download it elsewhere and '
            f'give it as --data-dir {url.rpartition("/")[2]}'
        ) from error
    for left in (*folder.glob('*.tgz'), downloads):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    (folder / ORIGIN_FILE).write_text(f'{address}\n', encoding='utf-8')
