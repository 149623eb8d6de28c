"""Blur pooling."""

import torch
import triton
import triton.language as tl

from .tiles import CHANNELS, jit, load_pixel, own_tile, row_sizes, tile_grid

__all__ = ['blur_backward', 'blur_forward']

_PIXELS = tl.constexpr(32)  # of a tile: it keeps more of each than others


@triton.jit
def _inside(i, size, REFLECT: tl.constexpr):
    if REFLECT:
        i = tl.where(i < 0, -i, i)
        return tl.where(i < size, i, 2 * size - 2 - i)
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def _larger(a, b):
    return tl.where((b > a) | (b != b), b, a)  # NaN if one is


@jit
def _blur_forward(x, y, rows, height, width, eighths, MAXIMUM: tl.constexpr, REFLECT: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    down, across = (height + 1) // 2, (width + 1) // 2
    row = part * _PIXELS + tl.arange(0, _PIXELS)
    image, line, column = row // (down * across), row // across % down, row % across
    mask = (row < rows)[:, None] & inside[None, :]
    total = tl.zeros((_PIXELS, CHANNELS), tl.float32)
    for a in tl.static_range(3):
        upper = _inside(2 * line - 1 + a, height, REFLECT)
        lower = tl.minimum(upper + 1, height - 1)
        for b in tl.static_range(3):
            left = _inside(2 * column - 1 + b, width, REFLECT)
            value = load_pixel(x, image, upper, left, height, width, channels, count, mask)
            if MAXIMUM:
                right = tl.minimum(left + 1, width - 1)
                value = _larger(value, load_pixel(x, image, upper, right, height, width, channels, count, mask))
                value = _larger(value, load_pixel(x, image, lower, left, height, width, channels, count, mask))
                value = _larger(value, load_pixel(x, image, lower, right, height, width, channels, count, mask))
            total += (0.5 if a == 1 else 0.25) * (0.5 if b == 1 else 0.25) * value
    tl.store(y + row[:, None] * count + channels[None, :], total, mask)


@triton.jit
def _weights(i, size, REFLECT: tl.constexpr):
    """The weights of pixel i in the blurred pixels i // 2 and (i + 1) // 2; the second is 0 where they are one."""
    even = i % 2 == 0
    first = tl.where(even, 0.5, 0.25)
    second = tl.where(even | ((i + 1) // 2 >= (size + 1) // 2), 0.0, 0.25)
    odd_end = size % 2 == 1
    if REFLECT:
        first += tl.where(i == 1, 0.25, 0.0)
        second += tl.where((i == size - 2) & odd_end, 0.25, 0.0)
    else:
        first += tl.where(i == 0, 0.25, 0.0) + tl.where((i == size - 1) & odd_end, 0.25, 0.0)
    return first, second


@triton.jit
def _blurred_gradient(grad, image, line, column, height, width, channels, count, mask, REFLECT: tl.constexpr):
    """The gradient that the blur passes back to a pixel."""
    down, across = (height + 1) // 2, (width + 1) // 2
    upper, lower = _weights(line, height, REFLECT)
    left, right = _weights(column, width, REFLECT)
    total = tl.zeros((_PIXELS, CHANNELS), tl.float32)
    for a in tl.static_range(2):
        for b in tl.static_range(2):
            weight = (lower if a == 1 else upper) * (right if b == 1 else left)
            known = mask & (weight > 0)[:, None]
            there = load_pixel(grad, image, (line + a) // 2, (column + b) // 2, down, across, channels, count, known)
            total += weight[:, None] * there
    return total


@jit
def _blur_backward(grad, x, dx, rows, height, width, eighths, MAXIMUM: tl.constexpr, REFLECT: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    row = part * _PIXELS + tl.arange(0, _PIXELS)
    image, line, column = row // (height * width), row // width % height, row % width
    mask = (row < rows)[:, None] & inside[None, :]
    if not MAXIMUM:
        total = _blurred_gradient(grad, image, line, column, height, width, channels, count, mask, REFLECT)
    else:
        total = tl.zeros((_PIXELS, CHANNELS), tl.float32)
        for a in tl.static_range(2):
            for b in tl.static_range(2):  # the windows that the pixel is in
                upper, left = line - a, column - b
                known = mask & ((upper >= 0) & (left >= 0))[:, None]
                most = load_pixel(x, image, upper, left, height, width, channels, count, known)
                winner = tl.zeros((_PIXELS, CHANNELS), tl.int32)  # the first of its pixels that has the maximum
                for k in tl.static_range(1, 4):
                    there = (upper + k // 2 < height) & (left + k % 2 < width)
                    seen = known & there[:, None]
                    value = load_pixel(x, image, upper + k // 2, left + k % 2, height, width, channels, count, seen)
                    wins = seen & ((value > most) | (value != value))
                    winner = tl.where(wins, k, winner)
                    most = tl.where(wins, value, most)
                known = known & (winner == 2 * a + b)
                total += _blurred_gradient(grad, image, upper, left, height, width, channels, count, known, REFLECT)
    tl.store(dx + row[:, None] * count + channels[None, :], total, mask)


def blur_forward(x: torch.Tensor, maximum: bool, reflect: bool) -> torch.Tensor:
    """Blur pooling by 1/4, 1/2, 1/4 each way and a stride of 2.

    Args:
        x: `(N, C, H, W)`, channels-last.
        maximum: Whether the maximum of 2 x 2 pixels comes first.
        reflect: Whether the blur reflects at the border; else it repeats the outermost pixel.

    Returns:
        `(N, C, ceil(H / 2), ceil(W / 2))`, channels-last.
    """
    images, channels, height, width = x.shape
    shape = (images, channels, (height + 1) // 2, (width + 1) // 2)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows, channels, eighths = row_sizes(y)
    with torch.cuda.device_of(x):
        _blur_forward[tile_grid(rows, channels, _PIXELS.value)](
            x, y, rows, height, width, eighths, MAXIMUM=maximum, REFLECT=reflect
        )
    return y


def blur_backward(grad: torch.Tensor, x: torch.Tensor, maximum: bool, reflect: bool) -> torch.Tensor:
    """The gradient of x: a maximum's goes to the first of its pixels that has it, as torch's.

    Args:
        grad: Of the result, channels-last.
        x: `(N, C, H, W)`, channels-last, like the other arguments as `blur_forward` had it.
        maximum: As above.
        reflect: As above.
    """
    dx = torch.empty_like(x)
    rows, channels, eighths = row_sizes(x)
    with torch.cuda.device_of(x):
        _blur_backward[tile_grid(rows, channels, _PIXELS.value)](
            grad, x, dx, rows, *x.shape[2:], eighths, MAXIMUM=maximum, REFLECT=reflect
        )
    return dx
