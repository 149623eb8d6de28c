"""Where files are kept, and whether they can be trusted.

What is executed, unpickled or mapped must be this user's own, in a folder that nobody else can change.
"""

import errno
import os
import stat
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = ['cache_dir', 'is_own', 'keep_inductor_private', 'private_folder', 'private_home', 'without_others']

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_dir() -> Path:
    """`$IMAGENETTE_ZOO_CACHE`, else `$XDG_CACHE_HOME/imagenette-zoo`, else `~/.cache/imagenette-zoo`."""
    return _expanded(os.environ.get('IMAGENETTE_ZOO_CACHE') or _usual_cache())


def _usual_cache() -> str:
    return os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'imagenette-zoo')


def _expanded(place: str) -> Path:
    found = os.path.expanduser(place)
    if found.startswith('~'):
        raise UserError(f'cache folder {place}: no such home folder; set IMAGENETTE_ZOO_CACHE to a folder')
    return Path(found)


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
        OSError: It cannot be made, is no folder or is a link, or others own it or can write to it, or they can put
            another in its place.
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

    It is in :func:`cache_dir`; where others could change it there, as in a cache that users share, in the cache of this
    user's home; and where that is no better, a temporary one that ends with this process.

    Args:
        name: Its name.
    """
    for place in (os.environ.get('IMAGENETTE_ZOO_CACHE'), _usual_cache()):
        if place:
            with suppress(OSError, UserError):
                return private_folder(_expanded(place) / name)
    folder = Path(_temporary().name, name)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@cache
def _temporary() -> 'tempfile.TemporaryDirectory[str]':
    return tempfile.TemporaryDirectory(prefix='imagenette-zoo-', ignore_cleanup_errors=True)


def keep_inductor_private() -> None:
    """Has inductor, and Triton under it, keep what it compiles in :func:`private_home`; to be called before either is
    used.

    By itself it is a folder of the system's temporary one, whose name others know. A `TORCHINDUCTOR_CACHE_DIR` that the
    user has set is left alone.
    """
    asked = os.environ.get('TORCHINDUCTOR_CACHE_DIR')
    own = os.path.join(tempfile.gettempdir(), 'torchinductor_')  # inductor sets the variable to its own choice, too
    if not asked or asked.startswith(own):
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = str(private_home('inductor'))
    # Precompiled headers are kept in the temporary folder whatever that variable says.
    os.environ['TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS'] = '0'
    config: Any = sys.modules.get('torch._inductor.config')
    if hasattr(config, 'cpp_cache_precompile_headers'):
        config.cpp_cache_precompile_headers = False
