"""Synthette: ten classes of drawn shapes and textures in Imagenette's layout, for demos and tests without a network.

Five classes are shapes in one light colour (cross, ring, square, star, triangle), five are textures of a light and a
dark colour on a random polygon (checks, dots, grid, stripes, target). Colours, place, size, rotation (up to 28° either
way), the dark background, clutter and noise are drawn independently of the class, and no class changes when it is
mirrored. So pixels alone say little: a linear model stays far below a small convolutional network.

The pixels are the same on every machine and with every library version: random numbers are the bytes of SHAKE-256 and
all geometry is integer arithmetic (rotations are Pythagorean triples). Only the PNG compression may differ.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import UserError
from ..utils.files import cache_dir, to_json, whole_folder
from ..utils.reading import read_json

__all__ = ['CLASS_NAMES', 'VERSION', 'draw', 'make']

CLASS_NAMES: tuple[str, ...] = (
    'checks',
    'cross',
    'dots',
    'grid',
    'ring',
    'square',
    'star',
    'stripes',
    'target',
    'triangle',
)
VERSION = 1  # goes up whenever a pixel changes

Mask = npt.NDArray[np.bool_]
Coordinates = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.uint8]

_MIN_SIDE, _MAX_SIDE = 200, 500
_MANIFEST = 'synthette.json'


def _directions() -> tuple[tuple[int, int, int], ...]:
    """44 exact rotations (a, b, c), a² + b² = c², anticlockwise: five Pythagorean triples, mirrored, and the axes."""
    rising = ((24, 7, 25), (12, 5, 13), (15, 8, 17), (4, 3, 5), (21, 20, 29))
    quadrant = [(1, 0, 1), *rising, *((b, a, c) for a, b, c in reversed(rising))]
    turned = [quadrant]
    for _ in range(3):
        turned.append([(-b, a, c) for a, b, c in turned[-1]])
    return tuple(direction for quarter in turned for direction in quarter)


_DIRECTIONS = _directions()
_PENTAGON = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))  # 1024 × (sin, cos) of multiples of 72°


class _Stream:
    """Random integers from the bytes of SHAKE-256 of a name: the same on every machine, for good."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = np.frombuffer(hashlib.shake_256(name.encode()).digest(4096), '<u4').tolist()
        self._next = 0

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        self._next += 1
        return int(self._numbers[self._next - 1]) % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def colour(self, low: int = 0, high: int = 255) -> npt.NDArray[np.int16]:
        return np.array([self.between(low, high) for _ in range(3)], np.int16)

    def noise(self, height: int, width: int, amplitude: int) -> npt.NDArray[np.int16]:
        """Integers in [-amplitude, amplitude], (height, width)."""
        raw = hashlib.shake_256(f'{self._name}/noise'.encode()).digest(height * width)
        numbers = np.frombuffer(raw, np.uint8).astype(np.int16).reshape(height, width)
        return numbers % (2 * amplitude + 1) - amplitude


def _polygon(x: Coordinates, y: Coordinates, radius: int, stream: _Stream) -> Mask:
    """A random convex polygon about the origin: an intersection of eight half-planes at 0.7–1 of the radius."""
    inside = np.ones(np.broadcast_shapes(x.shape, y.shape), bool)
    for sector in range(8):
        a, b, c = _DIRECTIONS[(sector * len(_DIRECTIONS) // 8 + stream.below(5)) % len(_DIRECTIONS)]
        inside &= 100 * (a * x + b * y) <= c * radius * stream.between(70, 100)
    return inside


def _cross(u: Coordinates, v: Coordinates, size: int) -> Mask:
    arm = size * 5 // 16
    u, v = np.abs(u), np.abs(v)
    return ((u <= arm) & (v <= size)) | ((v <= arm) & (u <= size))


def _ring(u: Coordinates, v: Coordinates, size: int) -> Mask:
    distance = u * u + v * v
    return (distance <= size * size) & (distance >= (size * 9 // 16) ** 2)


def _square(u: Coordinates, v: Coordinates, size: int) -> Mask:
    return np.maximum(np.abs(u), np.abs(v)) <= size * 13 // 16


def _star(u: Coordinates, v: Coordinates, size: int) -> Mask:
    """A pentagram: the points inside at least four of the five lines that join its tips."""
    inner = size * 316  # 1024 × cos 72° of the radius
    votes = np.zeros(u.shape, np.int8)
    for sine, cosine in _PENTAGON:
        votes += -(sine * u + cosine * v) <= inner
    return votes >= 4


def _triangle(u: Coordinates, v: Coordinates, size: int) -> Mask:
    return (2 * v >= -size) & (97 * np.abs(u) + 56 * v <= 56 * size)  # 97 / 56 is √3 to four digits


def _checks(u: Coordinates, v: Coordinates, period: int) -> Mask:
    period = period * 3 // 2
    return ((u // period + v // period) & 1).astype(bool)


def _dots(u: Coordinates, v: Coordinates, period: int) -> Mask:
    period = 2 * period
    u, v = 2 * (u % period) - period, 2 * (v % period) - period
    return 10 * (u * u // 100 + v * v // 100) <= 4 * (period * period // 100)


def _grid(u: Coordinates, v: Coordinates, period: int) -> Mask:
    period = 2 * period
    return (10 * (u % period) < 3 * period) | (10 * (v % period) < 3 * period)


def _stripes(u: Coordinates, v: Coordinates, period: int) -> Mask:
    return ((u // period) & 1).astype(bool)


def _target(u: Coordinates, v: Coordinates, period: int) -> Mask:
    edges = np.array([(i * period) ** 2 for i in range(1, 9)], np.int32)
    return (np.searchsorted(edges, u * u + v * v, side='right') & 1).astype(bool)


_SHAPES: dict[str, Callable[[Coordinates, Coordinates, int], Mask]] = {
    'cross': _cross,
    'ring': _ring,
    'square': _square,
    'star': _star,
    'triangle': _triangle,
}
_TEXTURES: dict[str, Callable[[Coordinates, Coordinates, int], Mask]] = {
    'checks': _checks,
    'dots': _dots,
    'grid': _grid,
    'stripes': _stripes,
    'target': _target,
}


def _background(width: int, height: int, stream: _Stream) -> npt.NDArray[np.int16]:
    """A colour that drifts to another from edge to edge, with clutter: (H, W, 3)."""
    near = stream.colour(0, 100)
    far = np.clip(near + np.array([stream.between(-30, 30) for _ in range(3)]), 0, 255).astype(np.int16)
    ramp = np.arange(width, dtype=np.int32)[None, :, None]
    if stream.below(2):
        near, far = far, near
    row = near + ramp * (far.astype(np.int32) - near) // width
    canvas = np.repeat(row.astype(np.int16), height, axis=0)
    short = min(width, height)
    for _ in range(stream.between(2, 6)):
        radius = stream.between(short // 30, short // 12)
        _paint_clutter(canvas, stream.below(width), stream.below(height), radius, stream)
    return canvas


def _window(
    canvas: npt.NDArray[np.int16],
    centre_x: int,
    centre_y: int,
    radius: int,
) -> tuple[npt.NDArray[np.int16], Coordinates, Coordinates]:
    """The part of the canvas within `radius` px of a centre, and its coordinates (1, w) and (h, 1) about it."""
    height, width = canvas.shape[:2]
    left, right = max(centre_x - radius, 0), min(centre_x + radius + 1, width)
    top, bottom = max(centre_y - radius, 0), min(centre_y + radius + 1, height)
    x = np.arange(left - centre_x, right - centre_x, dtype=np.int32)[None, :]
    y = np.arange(top - centre_y, bottom - centre_y, dtype=np.int32)[:, None]
    return canvas[top:bottom, left:right], x, y


def _paint_clutter(canvas: npt.NDArray[np.int16], centre_x: int, centre_y: int, radius: int, stream: _Stream) -> None:
    part, x, y = _window(canvas, centre_x, centre_y, radius)
    part[_polygon(x, y, radius, stream)] = stream.colour()


def draw(name: str, seed: int, split: str, index: int) -> Pixels:
    """Draw one image.

    Args:
        name: One of `CLASS_NAMES`.
        seed: The data set's seed.
        split: `train` or `val`.
        index: Number within split and class.

    Returns:
        RGB pixels, uint8, (H, W, 3), sides of 200–500 px.
    """
    stream = _Stream(f'synthette/{VERSION}/{seed}/{split}/{name}/{index}')
    width, height = stream.between(_MIN_SIDE, _MAX_SIDE), stream.between(_MIN_SIDE, _MAX_SIDE)
    canvas = _background(width, height, stream)

    radius = min(width, height) * stream.between(28, 48) // 100
    centre_x = width // 2 + stream.between(-width, width) // 8
    centre_y = height // 2 + stream.between(-height, height) // 8
    part, x, y = _window(canvas, centre_x, centre_y, radius)
    a, b, c = _DIRECTIONS[stream.between(-3, 3)]
    u, v = a * x + b * y, a * y - b * x  # rotated, in units of 1/c px
    colour = stream.colour(160, 255)
    if name in _SHAPES:
        part[_SHAPES[name](u, v, c * radius)] = colour
    else:
        outline = _polygon(x, y, radius, stream)
        period = c * radius * stream.between(22, 34) // 100
        pattern = _TEXTURES[name](u + stream.below(2 * period), v + stream.below(2 * period), period)
        part[outline] = stream.colour(0, 80)
        part[outline & pattern] = colour

    cell = stream.between(3, 8)
    noise = stream.noise(-(-height // cell), -(-width // cell), stream.between(4, 24))
    canvas += noise.repeat(cell, 0)[:height].repeat(cell, 1)[:, :width, None]
    return np.clip(canvas, 0, 255).astype(np.uint8)


def make(
    root: Path | None = None,
    seed: int = 0,
    train_per_class: int = 150,
    val_per_class: int = 40,
    workers: int | None = None,
) -> Path:
    """Draw the data set, unless it is there already. An interrupted call leaves nothing that counts as whole.

    Args:
        root: Folder for `train/` and `val/`; default: one in the user cache, named after version, seed and counts.
        seed: The same seed gives the same pixels on every machine.
        train_per_class: Training images a class, at least 1.
        val_per_class: Validation images a class, at least 1.
        workers: Threads that draw; default: one a core, at most 8. The result does not depend on it.

    Returns:
        The folder that holds `train/` and `val/`.

    Raises:
        UserError: Counts below 1, a folder that can't be written or that holds something else.
    """
    if min(train_per_class, val_per_class) < 1:
        raise UserError(
            f'synthette: {train_per_class} training and {val_per_class} validation images a class asked '
            'for: expected at least 1 of each'
        )
    counts = {'train': train_per_class, 'val': val_per_class}
    wanted = {'synthette': VERSION, 'seed': seed, **counts}
    target = root or cache_dir() / f'synthette-v{VERSION}-seed{seed}-{train_per_class}x{val_per_class}'
    if _manifest(target) == wanted:
        return target
    if os.path.exists(target) and (not os.path.isdir(target) or os.listdir(target)):
        raise UserError(f'{target} exists and is not the synthette asked for ({wanted}): remove it or name another')
    with whole_folder(target) as folder:
        for split in counts:
            for name in CLASS_NAMES:
                (folder / split / name).mkdir(parents=True)

        def save(job: tuple[str, str, int]) -> None:
            split, name, index = job
            Image.fromarray(draw(name, seed, split, index)).save(
                folder / split / name / f'{index:04}.png',
                compress_level=1,
            )

        jobs = [(split, name, i) for split, count in counts.items() for name in CLASS_NAMES for i in range(count)]
        with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(save, jobs):
                pass
        (folder / _MANIFEST).write_text(to_json(wanted))
    return target


def _manifest(root: Path) -> object:
    try:
        return read_json(root / _MANIFEST)
    except (OSError, ValueError):
        return None
