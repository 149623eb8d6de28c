"""Image files: opened upright and in RGB, whatever they hold."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image, UnidentifiedImageError

from ..errors import UserError, os_reason
from ..utils.environment import available_cores
from .constants import FORMATS

__all__ = ['decode', 'decoded', 'forget_other_formats', 'image_size', 'only_size_warnings', 'open_file', 'open_image']

T = TypeVar('T')
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
        UserError: Missing, empty, truncated, not an image of `FORMATS`, or of absurd size.
    """
    with only_size_warnings():
        return decode(path)[0]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image put upright, in pixels, from its header alone but for TIFF.

    Raises:
        UserError: As `open_image`, as far as the header tells.
    """
    try:
        with only_size_warnings(), open_file(path) as image:
            if image.format == 'TIFF':  # Pillow turns it as it loads it, and its size before that
                image.load()
            turned = _turn(image) in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
            return (image.height, image.width) if turned else image.size
    except Exception as error:
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def decoded(paths: Iterable[str | Path], use: Callable[[Image.Image], T], threads: int | None = None) -> Iterator[T]:
    """Calls `use` with each image as `open_image` reads it: the results in order, on all cores or in so many threads.

    Raises:
        UserError: As `open_image`, while iterating.
    """
    threads = threads or available_cores()  # Pillow lets go of the GIL while it decodes
    waiting: deque[Future[T]] = deque()
    with only_size_warnings(), ThreadPoolExecutor(threads) as pool:
        for path in paths:
            waiting.append(pool.submit(lambda path: use(decode(path)[0]), path))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def only_size_warnings() -> Iterator[None]:
    """Pillow's warning of an absurd size is an error; its others are nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        yield


def decode(path: str | Path) -> tuple[Image.Image, str]:
    """RGB image and the mode of the file, in a block of `only_size_warnings`.

    Raises:
        UserError: As `open_image`.
    """
    try:
        with open_file(path) as image:
            mode = image.mode
            image.load()
            turn = _turn(image)
            return _to_rgb(image if turn is None else image.transpose(turn)), mode
    except Exception as error:  # whatever a decoder raises on hostile bytes means one thing: a bad file
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to put a picture upright; `ImageOps.exif_transpose` writes the EXIF anew and so trips over any odd tag."""
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
        return f'cannot be read: {os_reason(error)}'
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f'is too large: expected at most {Image.MAX_IMAGE_PIXELS} pixels; shrink or remove it'
    return f'is truncated or corrupt ({os_reason(error)}): replace or remove it'
