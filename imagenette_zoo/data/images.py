"""Image files: opened upright and in RGB, or in the one or four channels asked for, whatever they hold."""

from __future__ import annotations

import logging
import mmap
import os
import re
import stat
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..config.groups import DataOptions
from ..errors import UserError, os_reason
from ..utils.console import printable
from ..utils.environment import available_cores
from .constants import FORMATS

__all__ = [
    'LARGEST_UPLOAD', 'Unfit', 'decode', 'decoded', 'forget_other_formats', 'image_size', 'in_threads',
    'only_size_warnings', 'open_file', 'open_image', 'prepared', 'turn_of', 'with_channels',
]  # fmt: skip

_logger = logging.getLogger(__name__)
T = TypeVar('T')
U = TypeVar('U')
LARGEST = DataOptions.max_megapixels
LARGEST_UPLOAD = (Image.MAX_IMAGE_PIXELS or 0) // 10**6  # megapixels: Pillow's own bound, for files of anybody
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


class Unfit(ValueError):
    """A whole image that can't be used; the message goes on after its name."""


def open_file(file: str | Path | IO[bytes]) -> Image.Image:
    """Pillow's `Image.open` for `FORMATS` alone, and for regular files: a pipe may keep its reader waiting for ever."""
    if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
        raise Unfit('is no regular file: remove it')
    Image.init()  # or Pillow does not know which it has, and trips over one that it has not (AVIF before 11.3)
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def forget_other_formats() -> None:
    """Leaves Pillow `FORMATS` alone for good, in this process, whoever opens a file: for servers of other libraries."""
    Image.init()  # all others are registered now, and so not later
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
    for name in Image.OPEN.keys() - FORMATS:
        del Image.OPEN[name]


def open_image(path: str | Path, largest: float = LARGEST, channels: int = 3) -> Image.Image:
    """Read an image as RGB, upright.

    Without an EXIF orientation the pixels are those of `Image.open(path).convert('RGB')`, which is timm's way; only
    values of more than 8 bits and fractions are scaled to 8 bits where Pillow would clip them.

    Args:
        path: The file.
        largest: Megapixels that it may have.
        channels: 3, or those of `with_channels`.

    Raises:
        UserError: Missing, empty, truncated, not an image of `FORMATS`, of absurd size, or without so many channels.
    """
    with only_size_warnings(largest):
        return decode(path, channels)[0]


def image_size(path: str | Path, largest: float = LARGEST) -> tuple[int, int]:
    """Width and height of an image put upright, in pixels, from its header alone but for TIFF.

    Raises:
        UserError: As `open_image`, as far as the header tells.
    """
    try:
        with only_size_warnings(largest), open_file(path) as image:
            if image.format == 'TIFF':  # Pillow turns it as it loads it, and its size before that
                image.load()
            turned = turn_of(image) in (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])
            return (image.height, image.width) if turned else image.size
    except Exception as error:
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def decoded(
    paths: Iterable[str | Path],
    use: Callable[[Image.Image], T],
    threads: int | None = None,
    largest: float = LARGEST,
    channels: int = 3,
) -> Iterator[T]:
    """What `prepared` makes of each image: in order, on all cores or in so many threads.

    Raises:
        UserError: As `prepared`, while iterating.
    """
    with only_size_warnings(largest):
        yield from in_threads(lambda path: prepared(path, use, channels), paths, threads)


def in_threads(work: Callable[[U], T], items: Iterable[U], threads: int | None = None) -> Iterator[T]:
    """`work(item)` of each item: in order, on all cores or in so many threads. Pillow lets go of the GIL while it
    decodes."""
    threads = threads or available_cores()
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 8 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def only_size_warnings(largest: float = LARGEST) -> Iterator[None]:
    """Images of more megapixels are errors; Pillow's other warnings are nothing that a user could mend."""
    former, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, int(largest * 1e6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = former


def prepared(path: str | Path, use: Callable[[Image.Image], T], channels: int = 3) -> T:
    """What `use` makes of an image as `open_image` reads it, in a block of `only_size_warnings`.

    Raises:
        UserError: As `open_image`, or `use` raised `Unfit`.
    """
    image, _ = decode(path, channels)
    try:
        return use(image)
    except Unfit as error:
        raise UserError(f'image {path} {error}') from None


def decode(path: str | Path, channels: int = 3) -> tuple[Image.Image, str]:
    """The image in so many channels and the mode of the file, in a block of `only_size_warnings`.

    Raises:
        UserError: As `open_image`.
    """
    try:
        with open_file(path) as image:
            if channels == 4:
                _keep_fourth(image)
            mode, raw = image.mode, _raw_mode(image)
            stated = _stated_maximum(image) if mode[0] in 'IF' else None
            image.load()
            turn = turn_of(image)
            image = _low_bytes(path, image, raw, channels) if raw else image
            image = _in_eight_bits(path, image, stated) if mode[0] in 'IF' else image
            return with_channels(image if turn is None else image.transpose(turn), channels), mode
    except Exception as error:  # whatever a decoder raises on hostile bytes means one thing: a bad file
        raise UserError(f'image {path} {_complaint(path, error)}') from error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of one, three or four channels: the luminance, RGB, or the four channels as they are.

    Four are in mode CMYK whatever they mean: Pillow takes the last one of RGBA for opacity and resizes by it.

    Raises:
        Unfit: It has not four channels.
    """
    if channels != 4:
        image = image.convert('RGB')
        return image.convert('L') if channels == 1 else image
    if len(image.getbands()) != 4 or image.mode not in ('RGBA', 'RGBX', 'CMYK'):
        raise Unfit(
            f'has not four channels of its own (Pillow reads it as {image.mode}), which --in-chans 4 needs: convert or '
            'remove it'
        )
    return image if image.mode == 'CMYK' else Image.frombytes('CMYK', image.size, image.tobytes())


def _keep_fourth(image: Any) -> None:
    """Has a TIFF, not yet loaded, read with the channel that Pillow leaves out where it is not said to be opacity."""
    args = _codec(image)[1]
    raw = args[0] if isinstance(args, tuple) and args else ''
    if image.format == 'TIFF' and image.mode == 'RGB' and re.fullmatch('RGBX(;16[BLN])?', raw):
        image._mode = 'RGBA'
        image.tile = [(*tile[:3], (raw.replace('X', 'A'), *tile[3][1:])) for tile in image.tile]


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to put a picture upright; `ImageOps.exif_transpose` writes the EXIF anew and so trips over any odd tag."""
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make a picture bad
        return None


# --- Values of more than 8 bits ---------------------------------------------------------------------------------------


def _in_eight_bits(path: str | Path, image: Image.Image, stated: float | None) -> Image.Image:
    """Greyscale of more than 8 bits, or of fractions, in 8 bits; those that have no larger values stay as they are."""
    fractions = image.mode == 'F'
    values = np.asarray(image if fractions else image.convert('I'), np.float32)  # Pillow knows no extrema of I;16B
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, values[finite].min(initial=0))
    low, high = float(values.min()), float(values.max())
    if low < 0:
        values, factor, why = values - low, 255 / (high - low or 1), f'from {low:.6g} to {high:.6g}: stretched'
    elif stated is not None and high <= stated:
        factor, why = 255 / stated, ''
    elif fractions and high <= 1:
        factor, why = 255, f'up to {high:.6g}: taken for 0 to 1'
    elif high <= 255:
        return image if fractions else image.convert('I')
    elif high >= 65536:
        factor, why = 255 / high, f'up to {high:.6g}: stretched'
    else:
        bits = next(bits for bits in (10, 12, 14, 16) if high < 2**bits)
        factor, why = 2.0 ** (8 - bits), f'up to {high:.6g}: taken for {bits} bits' if bits < 16 else ''
    _say_once(path, why)
    scaled = values * factor
    return Image.fromarray((np.rint(scaled) if fractions else scaled).clip(0, 255).astype(np.uint8))


def _stated_maximum(image: Image.Image) -> float | None:
    """The largest value that a greyscale file, not yet loaded, says it may have, where it is not what its type can
    hold."""
    if image.format == 'PPM':  # whose maximum Pillow makes 65535
        return 65535 if _codec(image)[0] == 'ppm' else None
    tags = getattr(image, 'tag_v2', {})
    bits, stated = tags.get(258, (16,)), tags.get(341, tags.get(281))  # BitsPerSample, SMaxSampleValue, MaxSampleValue
    stated = stated[0] if isinstance(stated, tuple) and stated else stated
    if stated is None and image.mode != 'F' and bits[0] < 16:
        stated = 2 ** bits[0] - 1
    return float(stated) if isinstance(stated, (int, float)) and 0 < stated < 65535 else None


def _codec(image: Image.Image) -> tuple[str, Any]:
    """How Pillow decodes an image that is not yet loaded: the codec's name and arguments."""
    tiles = getattr(image, 'tile', None)
    return (tiles[0][0], tiles[0][3]) if tiles else ('', None)


def _raw_mode(image: Image.Image) -> str:
    """How colours of 16 bits lie in a file, of which Pillow takes the high byte; nothing for other images."""
    args = _codec(image)[1]
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) and re.fullmatch('RGB[AX]?;16[BLN]', raw) else ''


def _low_bytes(path: str | Path, image: Image.Image, raw: str, channels: int) -> Image.Image:
    """Colours of 16 bits, scaled by their range where it has fewer bits."""

    def values_of(image: Image.Image) -> np.ndarray:
        return np.asarray(image if channels == 4 else image.convert('RGB'))

    high = values_of(image)
    if high.max() >= 64:  # 15 or 16 bits
        return image
    little = raw[-1] == 'L' or (raw[-1] == 'N' and sys.byteorder == 'little')
    with open_file(path) as again:  # in the other byte order, so that Pillow takes the low byte
        if channels == 4:
            _keep_fourth(again)
        first, *others = again.tile  # type: ignore[attr-defined]
        args, swapped = first[3], raw[:-1] + ('B' if little else 'L')
        args = swapped if isinstance(args, str) else (swapped, *args[1:])
        again.tile = [(*first[:3], args), *others]  # type: ignore[attr-defined]
        again.load()
        values = high.astype(np.uint16) << 8 | values_of(again)
    most = int(values.max())
    bits = next(bits for bits in (8, 10, 12, 14) if most < 2**bits)
    _say_once(path, f'up to {most}: taken for {bits} bits')
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


_said = mmap.mmap(-1, 1)  # shared with the processes that are forked to decode


def _say_once(path: str | Path, why: str) -> None:
    """Says how the values of an image are understood, for the first of all."""
    if why and not _said[0]:
        _said[0] = 1
        name = printable(str(path))
        _logger.warning('image %s: its values go %s; other images of unknown range are treated alike', name, why)


def _complaint(path: str | Path, error: Exception) -> str:
    if isinstance(error, Unfit):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        if os.path.getsize(path) == 0:
            return 'is empty (0 bytes): replace or remove it'
        return f'is not an image of a known format ({", ".join(FORMATS)}): convert, replace or remove it'
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return f'cannot be read: {os_reason(error)}'
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        or_else = ', or raise --max-megapixels' if most >= LARGEST else ''  # not where it was uploaded
        return f'is too large: expected at most {most:g} megapixels; shrink or remove it{or_else}'
    return f'is truncated or corrupt ({os_reason(error)}): replace or remove it'
