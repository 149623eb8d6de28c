"""Where files are kept, and whether they can be trusted.

What is executed, unpickled or mapped must be this user's own, in a folder that nobody else can change.
"""

import errno
import getpass
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from ..errors import UserError, os_reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    'cache_dir', 'is_own', 'keep_inductor_private', 'private_folder', 'private_home', 'without_others', 'whole_folder',
    'ProcessLock', 'open_at_once', 'remove', 'write_errors', 'write_atomic', 'check_place', 'to_json', 'write_json',
    'one_at_a_time', 'or_another_cache', 'sync', 'file_stem', 'unused',
]  # fmt: skip

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DAY = 24 * 60 * 60  # seconds


def cache_dir() -> Path:
    """`$IMAGENETTE_ZOO_CACHE`, else `$XDG_CACHE_HOME/imagenette-zoo`, else `~/.cache/imagenette-zoo`."""
    return _expanded(os.environ.get('IMAGENETTE_ZOO_CACHE') or _usual_cache())


def _usual_cache() -> str:
    return os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'imagenette-zoo')


def _expanded(folder: str) -> Path:
    path = os.path.expanduser(folder)
    if path.startswith('~'):
        raise UserError(f'cache folder {folder}: no such home folder; set IMAGENETTE_ZOO_CACHE to a folder')
    return Path(path)


def is_own(status: os.stat_result) -> bool:
    """Whether something is this user's and nobody else can write to it; always where files have no such owner."""
    return not hasattr(os, 'geteuid') or (status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE)


def without_others(file: int | Path) -> None:
    """Takes from all others the right to write to a file or folder, which a umask may have given them."""
    os.chmod(file, stat.S_IMODE(os.stat(file).st_mode) & ~_OTHERS_WRITE)


def private_folder(path: Path) -> Path:
    """A folder that only this user can enter (mode 0700); it is made where there is none.

    Args:
        path: Where.

    Returns:
        The same, without symbolic links.

    Raises:
        OSError: It cannot be made, is no folder or is a link, or others own it or can write to it, or they can
            exchange it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parent = path.parent.resolve()
    folder = parent / path.name
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not (stat.S_ISDIR(status.st_mode) and is_own(status) and all(map(_is_safe, (parent, *parent.parents)))):
        raise PermissionError(errno.EPERM, 'others can change what is in this folder', str(path))
    folder.chmod(0o700)
    return folder


def _is_safe(folder: Path) -> bool:
    """Whether nobody but this user and root can rename what this user has in a folder."""
    if not hasattr(os, 'geteuid'):
        return True
    status = folder.stat()
    closed = not status.st_mode & _OTHERS_WRITE or bool(status.st_mode & stat.S_ISVTX)
    return closed and status.st_uid in (0, os.geteuid())


def private_home(name: str) -> Path:
    """A private folder for what is executed or unpickled.

    It is in `cache_dir`. Where others could change it there, as in a cache that users share, it is in the cache of this
    user's home. Where that is no better, it is a temporary one that ends with this process.

    Args:
        name: Its name.
    """
    for cache_folder in (os.environ.get('IMAGENETTE_ZOO_CACHE'), _usual_cache()):
        if cache_folder:
            with suppress(OSError, UserError):
                return private_folder(_expanded(cache_folder) / name)
    folder = Path(_temporary().name, name)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def _temporary() -> 'tempfile.TemporaryDirectory[str]':
    return tempfile.TemporaryDirectory(prefix='imagenette-zoo-', ignore_cleanup_errors=True)


def keep_inductor_private() -> None:
    """Makes inductor, and Triton under it, keep their results in `private_home`; call it before either is used.

    Their own choice is a subfolder of the system's temporary one, whose name others know. A `TORCHINDUCTOR_CACHE_DIR`
    that the user has set is left alone.
    """
    try:
        user = re.sub(r'[\\/:*?"<>|]', '_', getpass.getuser())
    except (KeyError, ImportError, OSError):  # a number without a name, as in containers: torch calls it so, too
        user = f'uid_{os.getuid()}'
    usual = Path(tempfile.gettempdir(), f'torchinductor_{user}')
    asked = os.environ.get('TORCHINDUCTOR_CACHE_DIR')
    if not asked or Path(asked) == usual:  # inductor sets the variable to its own choice, too
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(private_home('inductor'))
    try:  # precompiled headers are kept in the usual folder whatever that variable says
        private_folder(usual)
    except OSError:  # others have made it, or can write to it
        os.environ['TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS'] = '0'
        config: Any = sys.modules.get('torch._inductor.config')
        if hasattr(config, 'cpp_cache_precompile_headers'):
            config.cpp_cache_precompile_headers = False


def or_another_cache(path: Path) -> str:
    """The other remedy where something in the cache can't be written; nothing for what is elsewhere."""
    inside = cache_dir().absolute() in (path.absolute(), *path.absolute().parents)
    return ' or set IMAGENETTE_ZOO_CACHE to another folder' if inside else ''


@contextmanager
def one_at_a_time(target: Path, lock_stays: bool = False) -> Iterator[None]:
    """Lets one process of a machine at a time make a file or folder; look whether it is there by now.

    A killed process holds no lock. Where there can be none, as on some network disks, nobody waits.

    Args:
        target: What is made.
        lock_stays: Whether the lock's file stays. Without it two may now and then work at once, as where nobody waits.
    """
    import filelock  # which torch and huggingface_hub need as well

    lock = filelock.FileLock(target.with_name(f'{target.name}.lock'))
    with suppress(OSError, NotImplementedError):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                if not lock_stays:
                    os.unlink(lock.lock_file)
            lock.release()


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` once the block has ended without an error.

    Its files are on the disk before it has that name.
    Another process may do the same at the same time: whoever ends first wins and the other's work is thrown away.

    Raises:
        UserError: The folder can't be written, or its disk is full.
    """
    temporary = target.with_name(f'.{target.name}.{uuid4().hex}')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f'cannot write to {target.parent}: {os_reason(error)}; make it writable{or_another_cache(target)}',
        ) from error
    try:
        yield temporary
        with ThreadPoolExecutor(8) as pool:  # else after a power cut its files might be empty
            list(pool.map(sync, [temporary, *temporary.rglob('*')]))
        _rename(temporary, target)
        sync(target.parent)
    except OSError as error:
        raise UserError(
            f'cannot fill {target}: {os_reason(error)}; make room there{or_another_cache(target)}',
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.rename(target)
    except OSError:
        if not os.path.isdir(target):
            raise
        if not any(target.iterdir()):  # Windows does not rename to the name of an empty folder
            target.rmdir()
            temporary.rename(target)


def remove(path: Path) -> None:
    """Removes a folder with all that is in it, or whatever else has its name, as far as that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:  # a pipe would keep rmtree waiting
            path.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Removes the folders that processes killed more than a day ago left beside `target`."""
    pattern = re.compile(re.escape(f'.{target.name}.') + '[0-9a-f]{32}')
    for path in target.parent.iterdir():
        if pattern.fullmatch(path.name):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _DAY:
                    remove(path)


def open_at_once(path: str | Path, flags: int) -> int:
    """Opens a file as `open` does, whose `opener` it can be; the other end of a pipe is not waited for."""
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0), 0o666)


class ProcessLock:
    """A lock on a file that belongs to this process alone: not to those it forks, and to nobody once it is killed.

    Where there is `fcntl` it is a POSIX record lock. One of `flock` would outlive a killed run by the seconds that
    its data workers need to notice.

    Args:
        path: The file; it is made, and stays.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file can't be written.
    """

    held: ClassVar[set[Path]] = set()  # by this process, which the system would let have it twice

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if self.path in self.held:
            raise _busy(path)
        if fcntl is None:
            import filelock

            self._file: Any = filelock.FileLock(path)
            try:
                self._file.acquire(timeout=0)
            except filelock.Timeout:
                raise _busy(path) from None
        else:
            self._file = open(path, 'ab', opener=open_at_once)  # noqa: SIM115  (until the release)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self._file.close()
                raise _busy(path) from None
        self.held.add(self.path)

    @classmethod
    def is_held(cls, path: Path) -> bool:
        """Whether a process holds the lock on a file, asked without taking it."""
        if not os.path.isfile(path):
            return False
        if path.resolve() in cls.held:  # opening the file would give it back
            return True
        if fcntl is None or not hasattr(fcntl, 'F_GETLK'):
            try:
                cls(path).release()
            except UserError:
                return True
            return False
        write, none = fcntl.F_WRLCK, fcntl.F_UNLCK
        # struct flock: Linux has type, whence, start, length, process; the BSDs have the type behind the numbers
        linux = sys.platform == 'linux'
        question = struct.pack('hhqqi', write, 0, 0, 0, 0) if linux else struct.pack('qqihh', 0, 0, 0, write, 0)
        with open(path, 'rb') as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
        kind = struct.unpack('hhqqi', answer)[0] if linux else struct.unpack('qqihh', answer)[3]
        return bool(kind != none)

    def release(self) -> None:
        """Lets others have it."""
        self.held.discard(self.path)
        if fcntl is None:
            self._file.release()
        else:
            self._file.close()


def _busy(path: Path) -> UserError:
    return UserError(f'{path.parent}: another run is being written here: wait for it, or choose another --experiment')


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns the failures of a disk into a line that says which file and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't write: {os_reason(error)}") from None


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment it is the old one or the new one, whole, also after a power cut.

    Raises:
        UserError: The disk is full, or the folder is gone or can't be written.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    with write_errors(path):
        try:
            with open(temporary, 'wb') as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C, too
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def check_place(option: str, path: str | None) -> None:
    """Raises `UserError` where no file can be written at the end, before anything is computed; None is no file."""
    if path and not os.path.isdir(Path(path).absolute().parent):
        raise UserError(f'{option} {path}: no such folder')
    if path and os.path.isdir(path):
        raise UserError(f'{option} {path}: is a folder: give a file')


def to_json(values: Any, indent: int | None = None) -> str:
    """Values as JSON that any program reads: null stands for NaN and infinity, which JSON has not."""
    return json.dumps(_finite(values), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, values: Any, indent: int | None = 2) -> None:
    """Writes a JSON file as `write_atomic` and `to_json` do.

    Raises:
        UserError: As `write_atomic`.
    """
    write_atomic(path, (to_json(values, indent) + '\n').encode())


def sync(path: Path) -> None:
    """Waits until the bytes of a file, or the names in a folder, are on the disk."""
    if os.name == 'posix':  # elsewhere a folder can't be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_stem(model: str) -> str:
    """A model's name, or the last part of where it is, as a part of a file's name."""
    return re.sub(r'[^A-Za-z0-9_]', '_', Path(model.rpartition(':')[2]).name) or 'model'


def unused(path: Path) -> Path:
    """The path, with a number appended where it exists already."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f'{path.name}-{number}')
    return free
