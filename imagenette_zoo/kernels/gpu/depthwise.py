"""Depthwise convolutions."""

import math

import torch
import triton
import triton.language as tl

from .tiles import CHANNELS, jit, load_pixel, own_tile, row_parts, row_sizes, tile_grid

__all__ = ['depthwise_forward', 'depthwise_input_gradient', 'depthwise_weight_gradient']

_SPOTS = tl.constexpr(64)  # of a tile


@jit
def _depthwise_forward(x, taps, y, rows, height, width, eighths, STRIDE: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    row = part * _SPOTS + tl.arange(0, _SPOTS)
    image, upper, left = row // (down * across), row // across % down * STRIDE - 1, row % across * STRIDE - 1
    mask = (row < rows)[:, None] & inside[None, :]
    corner = x + ((image * height + upper) * width + left)[:, None] * count + channels[None, :]
    total = tl.zeros((_SPOTS, CHANNELS), tl.float32)
    for a in tl.static_range(3):
        for b in tl.static_range(3):
            seen = _is_in(upper + a, height) & _is_in(left + b, width)
            value = tl.load(corner + (a * width + b) * count, mask & seen[:, None], 0.0).to(tl.float32)
            total += value * tl.load(taps + (3 * a + b) * count + channels, inside, 0.0)[None, :]
    tl.store(y + row[:, None] * count + channels[None, :], total, mask)


@triton.jit
def _is_in(i, size):
    return (i >= 0) & (i < size)


@jit
def _depthwise_input_gradient(grad, taps, dx, rows, height, width, eighths, STRIDE: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    row = part * _SPOTS + tl.arange(0, _SPOTS)
    image, line, column = row // (height * width), row // width % height, row % width
    mask = (row < rows)[:, None] & inside[None, :]
    total = tl.zeros((_SPOTS, CHANNELS), tl.float32)
    for a in tl.static_range(3):
        i = line + 1 - a
        for b in tl.static_range(3):
            j = column + 1 - b
            seen = _is_in(i, down * STRIDE) & _is_in(j, across * STRIDE) & (i % STRIDE == 0) & (j % STRIDE == 0)
            known = mask & seen[:, None]
            value = load_pixel(grad, image, i // STRIDE, j // STRIDE, down, across, channels, count, known)
            total += value * tl.load(taps + (3 * a + b) * count + channels, inside, 0.0)[None, :]
    tl.store(dx + row[:, None] * count + channels[None, :], total, mask)


@jit
def _depthwise_weight_gradient(grad, x, sums, rows, height, width, span, eighths, STRIDE: tl.constexpr):
    """A line of each channel's kernel, added up over a part of the rows of grad."""
    part, channels, count, inside = own_tile(eighths)
    a, part = part % 3, part // 3
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    first = tl.zeros((_SPOTS, CHANNELS), tl.float32)
    second = tl.zeros((_SPOTS, CHANNELS), tl.float32)
    third = tl.zeros((_SPOTS, CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), _SPOTS):
        row = begin + tl.arange(0, _SPOTS)
        image, i, j = row // (down * across), row // across % down * STRIDE - 1 + a, row % across * STRIDE - 1
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(grad + row[:, None] * count + channels[None, :], mask, 0.0).to(tl.float32)
        mask = mask & _is_in(i, height)[:, None]
        first += value * load_pixel(x, image, i, j, height, width, channels, count, mask & (j >= 0)[:, None])
        second += value * load_pixel(x, image, i, j + 1, height, width, channels, count, mask)
        third += value * load_pixel(x, image, i, j + 2, height, width, channels, count, mask & (j + 2 < width)[:, None])
    address = sums + (3 * part + a) * 3 * count + channels
    tl.store(address, tl.sum(first, 0), inside)
    tl.store(address + count, tl.sum(second, 0), inside)
    tl.store(address + 2 * count, tl.sum(third, 0), inside)


def depthwise_forward(x: torch.Tensor, taps: torch.Tensor, stride: int) -> torch.Tensor:
    """A depthwise convolution by kernels of 3 x 3 and a padding of 1.

    Args:
        x: `(N, C, H, W)`, channels-last.
        taps: `(9, C)` float32, the kernels.
        stride: Both ways.

    Returns:
        `(N, C, ceil(H / stride), ceil(W / stride))`, channels-last.
    """
    images, channels, height, width = x.shape
    shape = (images, channels, math.ceil(height / stride), math.ceil(width / stride))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows, channels, eighths = row_sizes(y)
    with torch.cuda.device_of(x):
        _depthwise_forward[tile_grid(rows, channels, _SPOTS.value)](
            x, taps, y, rows, height, width, eighths, STRIDE=stride
        )
    return y


def depthwise_input_gradient(
    grad: torch.Tensor, taps: torch.Tensor, stride: int, size: tuple[int, int]
) -> torch.Tensor:  # fmt: skip
    """The gradient of x.

    Args:
        grad: Of the result, channels-last.
        taps: As `depthwise_forward` had them.
        stride: As above.
        size: Of x, `(H, W)`.
    """
    shape = (*grad.shape[:2], *size)
    dx = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    rows, channels, eighths = row_sizes(dx)
    with torch.cuda.device_of(grad):
        _depthwise_input_gradient[tile_grid(rows, channels, _SPOTS.value)](
            grad, taps, dx, rows, *size, eighths, STRIDE=stride
        )
    return dx


def depthwise_weight_gradient(grad: torch.Tensor, x: torch.Tensor, stride: int) -> torch.Tensor:
    """The gradient of the kernels, `(C, 1, 3, 3)` float32.

    Args:
        grad: Of the result, channels-last.
        x: As `depthwise_forward` had it.
        stride: As above.
    """
    rows, channels, eighths = row_sizes(grad)
    parts, span, grid = row_parts(rows, channels, _SPOTS.value, 3)
    sums = x.new_empty(parts, 9, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _depthwise_weight_gradient[grid](grad, x, sums, rows, *x.shape[2:], span, eighths, STRIDE=stride)
    dweight = x.new_empty(channels, 1, 3, 3, dtype=torch.float32)
    torch.sum(sums, 0, out=dweight.view(channels, 9).t())
    return dweight
