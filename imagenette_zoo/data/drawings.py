"""Two drawn images of things that Imagenette's models know, to try and show a model without anybody's photo."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = ['DRAWINGS']

SIDE = 320
GRASS = np.array([75, 135, 45])
CLOTH = np.array([[205, 40, 45], [240, 235, 225], [35, 70, 160], [240, 235, 225]])
DARK = (45, 45, 50)


def golf_ball() -> Image.Image:
    """A golf ball in the grass, lit from the upper left."""
    rng = np.random.default_rng(0)
    lawn = _noise(SIDE, 2, 26, rng) + _noise(SIDE, 12, 14, rng)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    image = _image((GRASS + lawn[..., None]) * (0.92 + 0.35 * y[..., None]))
    for _ in range(1500):
        _blade(image, (0, SIDE), (0, SIDE), 8, 1, rng)
    pixels = np.asarray(image).astype(float)
    pixels *= 1 - 0.65 * np.exp(-(((x - 0.06) / 0.34) ** 2) - ((y - 0.28) / 0.09) ** 2)[..., None]  # its shadow
    u, v = x / 0.3, y / 0.3
    ball = u * u + v * v < 1
    pixels[ball] = _dimpled(np.stack([u[ball], v[ball], np.sqrt(1 - u[ball] ** 2 - v[ball] ** 2)], 1))[:, None]
    image = _image(pixels)
    for _ in range(260):
        _blade(image, (64, 256), (256, 272), 20, 2, rng)
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _dimpled(normals: npt.NDArray[np.float64], dimples: int = 380, radius: float = 0.082) -> npt.NDArray[np.float64]:
    """The brightness of a sphere of unit radius with dimples in a spiral, from its normals `(N, 3)`."""
    number = np.arange(dimples)
    polar, around = np.arccos(1 - (2 * number + 1) / dimples), math.pi * (1 + 5**0.5) * number
    centres = np.stack([np.cos(around) * np.sin(polar), np.sin(around) * np.sin(polar), np.cos(polar)], 1)
    nearest = centres[(normals @ centres.T).argmax(1)]
    off = normals - nearest
    tilted = normals - 2.2 * off * (np.linalg.norm(off, axis=1, keepdims=True) < radius)
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    light = np.array([-0.45, -0.65, 0.62])
    light /= np.linalg.norm(light)
    halfway = light + np.array([0, 0, 1])
    gloss = (tilted @ halfway / np.linalg.norm(halfway)).clip(0, 1) ** 40
    return np.asarray(80 + 150 * (tilted @ light).clip(0, 1) + 60 * gloss)


def _blade(
    image: Image.Image,
    across: tuple[int, int],
    down: tuple[int, int],
    length: int,
    width: int,
    rng: np.random.Generator,
) -> None:
    x, y = int(rng.integers(*across)), int(rng.integers(*down))
    tip = x + int(rng.integers(-6, 7)), y - int(rng.integers(length, 2 * length))
    ImageDraw.Draw(image).line([(x, y), tip], tuple(map(int, GRASS + rng.integers(-35, 45))), width)


def parachute() -> Image.Image:
    """A round parachute with somebody below it, before clouds."""
    large, gores = 2 * SIDE, 10  # drawn twice as large, for smooth edges
    y = np.mgrid[:large, :large][0][..., None] / large
    clouds = _noise(large, 60, 18, np.random.default_rng(1))[..., None]
    image = _image([95, 150, 215] + y * [70, 55, 20] + clouds * [1, 0.7, 0.3])
    draw = ImageDraw.Draw(image)

    def at(x: float, y: float) -> tuple[float, float]:
        return large * (0.5 + x), large * y

    def seam(place: float, down: float) -> tuple[float, float]:
        """A point of the canopy: from left (-1) to right (1), and from its top (0) to its edge (1)."""
        x = 0.33 * math.sin(place * math.pi / 2) * math.sin(down * math.pi / 2)
        return at(x, 0.4 - 0.28 * math.cos(down * math.pi / 2))

    seams = [2 * number / gores - 1 for number in range(gores + 1)]
    steps = [step / 20 for step in range(21)]
    for number, (left, right) in enumerate(pairwise(seams)):
        hem = [seam(left + (right - left) * step, 1) for step in steps]
        hem = [(x, y - large * 0.018 * math.sin(math.pi * step)) for (x, y), step in zip(hem, steps, strict=True)]
        outline = [*(seam(left, down) for down in steps), *hem, *(seam(right, down) for down in reversed(steps))]
        lit = CLOTH[number % len(CLOTH)] * (1.05 - 0.35 * abs((left + right) / 2 + 0.35))
        draw.polygon(outline, tuple(map(int, lit.clip(0, 255))))
    for place in seams:
        draw.line([seam(place, 1), at(0.01 * place, 0.74)], DARK, 2)
    draw.ellipse([at(-0.018, 0.735), at(0.018, 0.775)], DARK)
    draw.rounded_rectangle([at(-0.028, 0.77), at(0.028, 0.86)], 16, DARK)
    for side in (-1, 1):
        draw.line([at(side * 0.014, 0.85), at(side * 0.022, 0.94)], DARK, 12)
        draw.line([at(side * 0.026, 0.785), at(side * 0.04, 0.72)], DARK, 8)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


DRAWINGS: dict[str, Callable[[], Image.Image]] = {'golf ball': golf_ball, 'parachute': parachute}


def with_fourth(image: Image.Image) -> Image.Image:
    """A drawn image with its luminance as a fourth channel, for models that take four."""
    return Image.merge('RGBA', (*image.convert('RGB').split(), image.convert('L')))


def _noise(side: int, cell: int, amplitude: float, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Normal noise, smooth over cells: `(side, side)`."""
    coarse = rng.normal(0, amplitude, (side // cell + 1, side // cell + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def _image(pixels: npt.ArrayLike) -> Image.Image:
    return Image.fromarray(np.asarray(pixels).clip(0, 255).astype(np.uint8))
