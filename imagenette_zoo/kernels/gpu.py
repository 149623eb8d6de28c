"""What training on a GPU gains by, in Triton: BatchNorm with its activation, blur pooling, depthwise convolutions, the
filters of crops.

Images are channels-last: rows of channels, one row a pixel. Where Triton is missing, importing this fails.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = [
    'blur_backward',
    'blur_forward',
    'check',
    'check_depthwise',
    'depthwise_forward',
    'depthwise_input_gradient',
    'depthwise_weight_gradient',
    'norm_act_backward',
    'norm_act_forward',
    'norm_stats',
    'resize_filter',
]

ALIGNMENT = 8  # channels are a multiple of it: 16 bytes in half precision, which a thread reads at once
_CHANNELS = tl.constexpr(32)  # of a tile
_ROWS = tl.constexpr(128)
_PIXELS = tl.constexpr(32)  # of a tile of blur pooling, which keeps more of each
_SPOTS = tl.constexpr(64)  # of a tile of a depthwise convolution
_PROGRAMS = 528  # that add up rows at a time: four for each of an H200's multiprocessors
_AS_THEY_COME = ['rows', 'span', 'parts', 'height', 'width', 'eighths']  # not compiled anew for each number

_jit = triton.jit(do_not_specialize=_AS_THEY_COME)


@triton.jit
def _activation(z, KIND: tl.constexpr):  # NaN stays, as torch's
    if KIND == 1:
        z = tl.where(z <= 0, 0.0, z)
    elif KIND == 2:
        z = _relu6(z)
    elif KIND == 3:
        e = tl.exp(tl.minimum(z, 20.0, tl.PropagateNan.ALL))
        n = e * (e + 2)
        z = z * (n / (n + 2))
    elif KIND == 4:
        z = z * tl.sigmoid(z)
    elif KIND == 5:
        z = z * (_relu6(z + 3) * (1 / 6))
    return z


@triton.jit
def _relu6(z):
    return tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))


@triton.jit
def _gradient(grad, z, KIND: tl.constexpr):
    if KIND == 1:
        grad = tl.where(z > 0, grad, 0.0)
    elif KIND == 2:
        grad = tl.where((z > 0) & (z < 6), grad, 0.0)
    elif KIND == 3:
        low = tl.minimum(z, 20.0, tl.PropagateNan.ALL)
        e = tl.exp(low)
        n = e * (e + 2)
        q = 1 / (n + 2)
        grad = grad * (n * q + low * (4 * e * (e + 1)) * (q * q))
    elif KIND == 4:
        s = tl.sigmoid(z)
        grad = grad * (s + z * (s * (1 - s)))
    elif KIND == 5:
        grad = tl.where(z <= -3, 0.0, tl.where(z >= 3, grad, grad * (z * (1 / 3) + 0.5)))
    return grad


@triton.jit
def _tile(eighths):
    """Which part of the rows a program is for, its channels, how many there are, and which of its there are.

    Args:
        eighths: Of the channels: times 8 they are, as the compiler sees, a multiple of it.
    """
    count = eighths * 8
    tiles = (count + _CHANNELS - 1) // _CHANNELS  # side by side, and all in a grid's first dimension, the long one
    channels = tl.program_id(0) % tiles * _CHANNELS + tl.arange(0, _CHANNELS)
    return tl.program_id(0) // tiles, channels, count, channels < count


@triton.jit
def _keep(sums, part, channels, count, inside, first, second):
    """The two sums of each channel over a part of the rows."""
    place = sums + part * 2 * count + channels
    tl.store(place, tl.sum(first, 0), inside)
    tl.store(place + count, tl.sum(second, 0), inside)


@triton.jit
def _added_up(sums, parts, channels, count, inside):
    """The two sums of each channel over all parts of the rows."""
    first = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    second = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    for start in range(0, parts, _ROWS):
        part = start + tl.arange(0, _ROWS)[:, None]
        place = sums + part * 2 * count + channels[None, :]
        mask = (part < parts) & inside[None, :]
        first += tl.load(place, mask, 0.0)
        second += tl.load(place + count, mask, 0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@_jit
def _norm_sums(x, sums, rows, span, eighths):
    """Of each channel's differences from its first pixel, and of their squares."""
    part, channels, count, inside = _tile(eighths)
    origin = tl.load(x + channels, inside, 0.0).to(tl.float32)
    first = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    second = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), _ROWS):
        row = begin + tl.arange(0, _ROWS)[:, None]
        mask = (row < rows) & inside[None, :]
        value = tl.load(x + row * count + channels[None, :], mask, 0.0).to(tl.float32)
        value = tl.where(mask, value - origin[None, :], 0.0)
        first += value
        second += value * value
    _keep(sums, part, channels, count, inside, first, second)


@_jit
def _norm_finish(
    x, sums, weight, bias, running_mean, running_var, batches, found, momentum, eps, rows, parts, eighths
):  # fmt: skip
    _part, channels, count, inside = _tile(eighths)
    first, second = _added_up(sums, parts, channels, count, inside)
    offset = first / rows
    var = second / rows - offset * offset
    var = tl.where(var < 0, 0.0, var)
    mean = tl.load(x + channels, inside, 0.0).to(tl.float32) + offset
    inverse = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight + channels, inside, 0.0) * inverse
    tl.store(found + channels, scale, inside)
    tl.store(found + count + channels, tl.load(bias + channels, inside, 0.0) - mean * scale, inside)
    tl.store(found + 2 * count + channels, mean, inside)
    tl.store(found + 3 * count + channels, inverse, inside)
    old = tl.load(running_mean + channels, inside, 0.0)
    tl.store(running_mean + channels, old + momentum * (mean - old), inside)
    old = tl.load(running_var + channels, inside, 0.0)
    tl.store(running_var + channels, old + momentum * (var * (rows / (rows - 1)) - old), inside)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@_jit
def _norm_forward(x, y, found, rows, eighths, KIND: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    scale = tl.load(found + channels, inside, 0.0)[None, :]
    shift = tl.load(found + count + channels, inside, 0.0)[None, :]
    row = part * _ROWS + tl.arange(0, _ROWS)[:, None]
    mask = (row < rows) & inside[None, :]
    place = row * count + channels[None, :]
    value = tl.load(x + place, mask, 0.0).to(tl.float32)
    tl.store(y + place, _activation(value * scale + shift, KIND), mask)


@_jit
def _norm_backward_sums(grad, x, found, sums, rows, span, eighths, KIND: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    scale = tl.load(found + channels, inside, 0.0)[None, :]
    shift = tl.load(found + count + channels, inside, 0.0)[None, :]
    mean = tl.load(found + 2 * count + channels, inside, 0.0)[None, :]
    first = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    second = tl.zeros((_ROWS, _CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), _ROWS):
        row = begin + tl.arange(0, _ROWS)[:, None]
        mask = (row < rows) & inside[None, :]
        place = row * count + channels[None, :]
        value = tl.load(x + place, mask, 0.0).to(tl.float32)
        dz = _gradient(tl.load(grad + place, mask, 0.0).to(tl.float32), value * scale + shift, KIND)
        dz = tl.where(mask, dz, 0.0)
        first += dz
        second += dz * (value - mean)
    _keep(sums, part, channels, count, inside, first, second)


@_jit
def _norm_backward_finish(sums, found, terms, dweight, dbias, rows, parts, eighths):
    """With dz of the activation's input dx is `scale dz + terms[0] x + terms[1]`."""
    _part, channels, count, inside = _tile(eighths)
    dz, product = _added_up(sums, parts, channels, count, inside)
    scale = tl.load(found + channels, inside, 0.0)
    mean = tl.load(found + 2 * count + channels, inside, 0.0)
    inverse = tl.load(found + 3 * count + channels, inside, 0.0)
    slope = -scale * product * inverse * inverse / rows
    tl.store(terms + channels, slope, inside)
    tl.store(terms + count + channels, -scale * dz / rows - slope * mean, inside)
    tl.store(dweight + channels, product * inverse, inside)
    tl.store(dbias + channels, dz, inside)


@_jit
def _norm_backward(grad, x, dx, found, terms, rows, eighths, KIND: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    scale = tl.load(found + channels, inside, 0.0)[None, :]
    shift = tl.load(found + count + channels, inside, 0.0)[None, :]
    slope = tl.load(terms + channels, inside, 0.0)[None, :]
    constant = tl.load(terms + count + channels, inside, 0.0)[None, :]
    row = part * _ROWS + tl.arange(0, _ROWS)[:, None]
    mask = (row < rows) & inside[None, :]
    place = row * count + channels[None, :]
    value = tl.load(x + place, mask, 0.0).to(tl.float32)
    dz = _gradient(tl.load(grad + place, mask, 0.0).to(tl.float32), value * scale + shift, KIND)
    tl.store(dx + place, scale * dz + slope * value + constant, mask)


def norm_stats(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    batches: torch.Tensor,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """What BatchNorm needs of a batch; the running statistics and the count of batches follow.

    Args:
        x: `(N, C, H, W)`, channels-last.
        weight: `(C,)` float32.
        bias: `(C,)` float32.
        running_mean: `(C,)` float32, which is updated.
        running_var: `(C,)` float32, which is updated by the unbiased variance.
        batches: The number of batches, a single int64, which is updated.
        momentum: The batch's share of the running statistics.
        eps: Added to the variance.

    Returns:
        `(4, C)` float32: the channels' scale and shift, by which x is normalised, their mean, and the inverse of
        their standard deviation.
    """
    rows, channels, eighths = _sizes(x)
    parts, span, grid = _parts(rows, channels, _ROWS.value)
    sums = x.new_empty(parts, 2, channels, dtype=torch.float32)
    found = x.new_empty(4, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _norm_sums[grid](x, sums, rows, span, eighths)
        _norm_finish[_tiles(1, channels)](
            x, sums, weight, bias, running_mean, running_var, batches, found, momentum, eps, rows, parts, eighths
        )
    return found


def norm_act_forward(x: torch.Tensor, found: torch.Tensor, kind: int) -> torch.Tensor:
    """The activation of that number (`norm_act.py` counts them) of normalised images.

    Args:
        x: `(N, C, H, W)`, channels-last.
        found: As `norm_stats` found it.
        kind: The activation's number.
    """
    y = torch.empty_like(x)
    rows, channels, eighths = _sizes(x)
    with torch.cuda.device_of(x):
        _norm_forward[_tiles(rows, channels)](x, y, found, rows, eighths, KIND=kind)
    return y


def norm_act_backward(
    grad: torch.Tensor, x: torch.Tensor, found: torch.Tensor, kind: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias.

    Args:
        grad: Of the activation, laid out like x.
        x: `(N, C, H, W)`, channels-last.
        found: As `norm_stats` found it.
        kind: The activation's number.
    """
    rows, channels, eighths = _sizes(x)
    parts, span, grid = _parts(rows, channels, _ROWS.value)
    sums = x.new_empty(parts, 2, channels, dtype=torch.float32)
    dx = torch.empty_like(x)
    terms, (dweight, dbias) = torch.empty_like(found[:2]), torch.empty_like(found[:2])
    with torch.cuda.device_of(x):
        _norm_backward_sums[grid](grad, x, found, sums, rows, span, eighths, KIND=kind)
        _norm_backward_finish[_tiles(1, channels)](sums, found, terms, dweight, dbias, rows, parts, eighths)
        _norm_backward[_tiles(rows, channels)](grad, x, dx, found, terms, rows, eighths, KIND=kind)
    return dx, dweight, dbias


def _sizes(x: torch.Tensor) -> tuple[int, int, int]:
    """Rows, channels, and channels in the kernels' terms, whose multiple by 8 tells the compiler of the alignment."""
    return x.numel() // x.shape[1], x.shape[1], x.shape[1] // ALIGNMENT


def _parts(rows: int, channels: int, high: int, each: int = 1) -> tuple[int, int, tuple[int]]:
    """Into how many parts rows are divided, the rows of a part, whole tiles, and the grid of so many programs each."""
    tiles = math.ceil(channels / _CHANNELS.value) * each
    parts = max(1, min(_PROGRAMS // tiles, math.ceil(rows / high)))
    span = math.ceil(math.ceil(rows / parts) / high) * high
    parts = math.ceil(rows / span)
    return parts, span, (tiles * parts,)


def _tiles(rows: int, channels: int, high: int = _ROWS.value) -> tuple[int]:
    """The grid of tiles of so many rows."""
    return (math.ceil(channels / _CHANNELS.value) * math.ceil(rows / high),)


@triton.jit
def _inside(i, size, REFLECT: tl.constexpr):
    if REFLECT:
        i = tl.where(i < 0, -i, i)
        return tl.where(i < size, i, 2 * size - 2 - i)
    return tl.minimum(tl.maximum(i, 0), size - 1)


@triton.jit
def _larger(a, b):
    return tl.where((b > a) | (b != b), b, a)  # NaN if one is


@_jit
def _blur_forward(x, y, rows, height, width, eighths, MAXIMUM: tl.constexpr, REFLECT: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    down, across = (height + 1) // 2, (width + 1) // 2
    row = part * _PIXELS + tl.arange(0, _PIXELS)
    image, line, column = row // (down * across), row // across % down, row % across
    mask = (row < rows)[:, None] & inside[None, :]
    found = tl.zeros((_PIXELS, _CHANNELS), tl.float32)
    for a in tl.static_range(3):
        upper = _inside(2 * line - 1 + a, height, REFLECT)
        lower = tl.minimum(upper + 1, height - 1)
        for b in tl.static_range(3):
            left = _inside(2 * column - 1 + b, width, REFLECT)
            value = _pixel(x, image, upper, left, height, width, channels, count, mask)
            if MAXIMUM:
                right = tl.minimum(left + 1, width - 1)
                value = _larger(value, _pixel(x, image, upper, right, height, width, channels, count, mask))
                value = _larger(value, _pixel(x, image, lower, left, height, width, channels, count, mask))
                value = _larger(value, _pixel(x, image, lower, right, height, width, channels, count, mask))
            found += (0.5 if a == 1 else 0.25) * (0.5 if b == 1 else 0.25) * value
    tl.store(y + row[:, None] * count + channels[None, :], found, mask)


@triton.jit
def _pixel(x, image, line, column, height, width, channels, count, mask):
    row = (image * height + line) * width + column
    return tl.load(x + row[:, None] * count + channels[None, :], mask, 0.0).to(tl.float32)


@triton.jit
def _weights(i, size, REFLECT: tl.constexpr):
    """What pixel i gives to the blurred pixels i // 2 and (i + 1) // 2; the second 0 where they are one."""
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
    """What the blur hands back to a pixel."""
    down, across = (height + 1) // 2, (width + 1) // 2
    upper, lower = _weights(line, height, REFLECT)
    left, right = _weights(column, width, REFLECT)
    found = tl.zeros((_PIXELS, _CHANNELS), tl.float32)
    for a in tl.static_range(2):
        for b in tl.static_range(2):
            weight = (lower if a == 1 else upper) * (right if b == 1 else left)
            known = mask & (weight > 0)[:, None]
            there = _pixel(grad, image, (line + a) // 2, (column + b) // 2, down, across, channels, count, known)
            found += weight[:, None] * there
    return found


@_jit
def _blur_backward(grad, x, dx, rows, height, width, eighths, MAXIMUM: tl.constexpr, REFLECT: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    row = part * _PIXELS + tl.arange(0, _PIXELS)
    image, line, column = row // (height * width), row // width % height, row % width
    mask = (row < rows)[:, None] & inside[None, :]
    if not MAXIMUM:
        found = _blurred_gradient(grad, image, line, column, height, width, channels, count, mask, REFLECT)
    else:
        found = tl.zeros((_PIXELS, _CHANNELS), tl.float32)
        for a in tl.static_range(2):
            for b in tl.static_range(2):  # the windows that the pixel is in
                upper, left = line - a, column - b
                known = mask & ((upper >= 0) & (left >= 0))[:, None]
                most = _pixel(x, image, upper, left, height, width, channels, count, known)
                winner = tl.zeros((_PIXELS, _CHANNELS), tl.int32)  # the first of its pixels that has the maximum
                for k in tl.static_range(1, 4):
                    there = (upper + k // 2 < height) & (left + k % 2 < width)
                    seen = known & there[:, None]
                    value = _pixel(x, image, upper + k // 2, left + k % 2, height, width, channels, count, seen)
                    wins = seen & ((value > most) | (value != value))
                    winner = tl.where(wins, k, winner)
                    most = tl.where(wins, value, most)
                known = known & (winner == 2 * a + b)
                found += _blurred_gradient(grad, image, upper, left, height, width, channels, count, known, REFLECT)
    tl.store(dx + row[:, None] * count + channels[None, :], found, mask)


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
    rows, channels, eighths = _sizes(y)
    with torch.cuda.device_of(x):
        _blur_forward[_tiles(rows, channels, _PIXELS.value)](
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
    rows, channels, eighths = _sizes(x)
    with torch.cuda.device_of(x):
        _blur_backward[_tiles(rows, channels, _PIXELS.value)](
            grad, x, dx, rows, *x.shape[2:], eighths, MAXIMUM=maximum, REFLECT=reflect
        )
    return dx


@_jit
def _depthwise_forward(x, taps, y, rows, height, width, eighths, STRIDE: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    row = part * _SPOTS + tl.arange(0, _SPOTS)
    image, upper, left = row // (down * across), row // across % down * STRIDE - 1, row % across * STRIDE - 1
    mask = (row < rows)[:, None] & inside[None, :]
    corner = x + ((image * height + upper) * width + left)[:, None] * count + channels[None, :]
    found = tl.zeros((_SPOTS, _CHANNELS), tl.float32)
    for a in tl.static_range(3):
        for b in tl.static_range(3):
            seen = _is_in(upper + a, height) & _is_in(left + b, width)
            value = tl.load(corner + (a * width + b) * count, mask & seen[:, None], 0.0).to(tl.float32)
            found += value * tl.load(taps + (3 * a + b) * count + channels, inside, 0.0)[None, :]
    tl.store(y + row[:, None] * count + channels[None, :], found, mask)


@triton.jit
def _is_in(i, size):
    return (i >= 0) & (i < size)


@_jit
def _depthwise_input_gradient(grad, taps, dx, rows, height, width, eighths, STRIDE: tl.constexpr):
    part, channels, count, inside = _tile(eighths)
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    row = part * _SPOTS + tl.arange(0, _SPOTS)
    image, line, column = row // (height * width), row // width % height, row % width
    mask = (row < rows)[:, None] & inside[None, :]
    found = tl.zeros((_SPOTS, _CHANNELS), tl.float32)
    for a in tl.static_range(3):
        i = line + 1 - a
        for b in tl.static_range(3):
            j = column + 1 - b
            seen = _is_in(i, down * STRIDE) & _is_in(j, across * STRIDE) & (i % STRIDE == 0) & (j % STRIDE == 0)
            known = mask & seen[:, None]
            value = _pixel(grad, image, i // STRIDE, j // STRIDE, down, across, channels, count, known)
            found += value * tl.load(taps + (3 * a + b) * count + channels, inside, 0.0)[None, :]
    tl.store(dx + row[:, None] * count + channels[None, :], found, mask)


@_jit
def _depthwise_weight_gradient(grad, x, sums, rows, height, width, span, eighths, STRIDE: tl.constexpr):
    """A line of each channel's kernel, added up over a part of the rows of grad."""
    part, channels, count, inside = _tile(eighths)
    a, part = part % 3, part // 3
    down, across = (height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1
    first = tl.zeros((_SPOTS, _CHANNELS), tl.float32)
    second = tl.zeros((_SPOTS, _CHANNELS), tl.float32)
    third = tl.zeros((_SPOTS, _CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), _SPOTS):
        row = begin + tl.arange(0, _SPOTS)
        image, i, j = row // (down * across), row // across % down * STRIDE - 1 + a, row % across * STRIDE - 1
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(grad + row[:, None] * count + channels[None, :], mask, 0.0).to(tl.float32)
        mask = mask & _is_in(i, height)[:, None]
        first += value * _pixel(x, image, i, j, height, width, channels, count, mask & (j >= 0)[:, None])
        second += value * _pixel(x, image, i, j + 1, height, width, channels, count, mask)
        third += value * _pixel(x, image, i, j + 2, height, width, channels, count, mask & (j + 2 < width)[:, None])
    place = sums + (3 * part + a) * 3 * count + channels
    tl.store(place, tl.sum(first, 0), inside)
    tl.store(place + count, tl.sum(second, 0), inside)
    tl.store(place + 2 * count, tl.sum(third, 0), inside)


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
    rows, channels, eighths = _sizes(y)
    with torch.cuda.device_of(x):
        _depthwise_forward[_tiles(rows, channels, _SPOTS.value)](
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
    rows, channels, eighths = _sizes(dx)
    with torch.cuda.device_of(grad):
        _depthwise_input_gradient[_tiles(rows, channels, _SPOTS.value)](
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
    rows, channels, eighths = _sizes(grad)
    parts, span, grid = _parts(rows, channels, _SPOTS.value, 3)
    sums = x.new_empty(parts, 9, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _depthwise_weight_gradient[grid](grad, x, sums, rows, *x.shape[2:], span, eighths, STRIDE=stride)
    found = x.new_empty(channels, 1, 3, 3, dtype=torch.float32)
    torch.sum(sums, 0, out=found.view(channels, 9).t())
    return found


@triton.jit(do_not_specialize=['side', 'size', 'step'])
def _resize_filter(start, length, step, bicubic, flip, out, side, size, LINES: tl.constexpr, SIDE: tl.constexpr):
    image = tl.program_id(0)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    place = tl.arange(0, SIDE)[None, :]
    extent = tl.load(length + image * step).to(tl.float32)
    scale = extent / size
    from_start = (place - tl.load(start + image * step)).to(tl.float32)
    x = tl.abs(from_start + 0.5 - (line.to(tl.float32)[:, None] + 0.5) * scale) / tl.maximum(scale, 1.0)
    cubic = tl.where(x < 1, (1.5 * x - 2.5) * x * x + 1, tl.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    weight = tl.where(tl.load(bicubic + image) != 0, cubic, tl.maximum(1 - x, 0.0))
    weight = tl.where((from_start >= 0) & (from_start < extent) & (place < side), weight, 0.0)
    weight = weight / tl.sum(weight, 1)[:, None]
    line = tl.where(tl.load(flip + image) != 0, size - 1 - line, line)[:, None]
    tl.store(out + (image * size + line) * side + place, weight, (line >= 0) & (line < size) & (place < side))


def resize_filter(
    start: torch.Tensor, length: torch.Tensor, side: int, size: int, bicubic: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    """How much each stored pixel contributes to each pixel of a crop, as `data/augment.py` says.

    Args:
        start: `(N,)` integers, where the crops start.
        length: `(N,)` alike, how long they are.
        side: Of the stored images, pixels.
        size: Of the result, pixels.
        bicubic: `(N,)` bool, by Keys' cubic instead of a triangle.
        flip: `(N,)` bool, whether the result is turned round.

    Returns:
        `(N, size, side)` float16.
    """
    out = torch.empty(len(start), size, side, dtype=torch.float16, device=start.device)
    lines = 8
    with torch.cuda.device_of(start):
        _resize_filter[(len(start), math.ceil(size / lines))](
            start, length, start.stride(0), bicubic.contiguous(), flip.contiguous(), out, side, size,
            LINES=lines, SIDE=triton.next_power_of_2(side),
        )  # fmt: skip
    return out


def check(device: torch.device) -> None:
    """Raises where a kernel does not compile or gives something else than it should: torch's own is always right.

    In bfloat16, as most will train: for another type all is compiled once more. What most models need is compiled here,
    side by side: a cold start is four times as long one after the other.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.linspace(-3, 3, 70 * ALIGNMENT, device=device).view(2, 5, 7, ALIGNMENT).sin()
        x = x.bfloat16().permute(0, 3, 1, 2).requires_grad_()
        ones, zeros = torch.ones(ALIGNMENT, device=device), torch.zeros(ALIGNMENT, device=device)
        wanted = torch.nn.functional.mish(torch.nn.functional.batch_norm(x, None, None, ones, zeros, True))
        (gradient,) = torch.autograd.grad(wanted, x, x)
    batches = torch.zeros((), dtype=torch.long, device=device)
    statistics = x.detach(), ones, zeros, zeros.clone(), ones.clone(), batches, 0.1, 1e-5
    x, anything = x.detach(), torch.ones(4, ALIGNMENT, device=device)
    one = torch.ones(1, dtype=torch.long, device=device)
    with ThreadPoolExecutor() as pool:
        jobs: list[Future[Any]] = [
            pool.submit(norm_stats, *statistics),
            *(pool.submit(norm_act_forward, x, anything, kind) for kind in (0, 3)),
            *(pool.submit(norm_act_backward, x, x, anything, kind) for kind in (0, 3)),
            pool.submit(blur_backward, torch.ones_like(x[:, :, :3, :4]), x, True, False),
            pool.submit(blur_forward, torch.ones_like(x), True, False),
            pool.submit(resize_filter, one - 1, one, 1, 1, one.bool(), one.bool()),
        ]
        found, *_, spread, blurred, filters = [job.result() for job in jobs]
    torch.testing.assert_close(norm_act_forward(x, found, 3), wanted.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm_act_backward(x, x, found, 3)[0], gradient, rtol=0.05, atol=0.05)
    torch.testing.assert_close(filters, torch.ones_like(filters))
    torch.testing.assert_close(blurred, torch.ones_like(blurred))  # of ones
    torch.testing.assert_close(spread.float().sum(), torch.tensor(float(blurred.numel()), device=device))


def check_depthwise(device: torch.device) -> None:
    """As `check`, for depthwise convolutions."""
    channels = 2 * ALIGNMENT
    with ThreadPoolExecutor() as pool, torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-3, 3, 70 * channels).view(2, 5, 7, channels).sin().permute(0, 3, 1, 2)
        weight = torch.linspace(-2, 2, 9 * channels).view(channels, 1, 3, 3).cos()
        taps = weight.view(channels, 9).t().contiguous().to(device)
        jobs: list[tuple[Future[Any], torch.Tensor]] = []
        for stride in (1, 2):
            inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
            y = torch.nn.functional.conv2d(inputs[0], inputs[1], None, stride, 1, groups=channels)
            dx, dweight = torch.autograd.grad(y, inputs, y)
            here, grad = (t.detach().to(device, torch.bfloat16, memory_format=torch.channels_last) for t in (x, y))
            jobs += [
                (pool.submit(depthwise_forward, here, taps, stride), y.detach()),
                (pool.submit(depthwise_input_gradient, grad, taps, stride, (5, 7)), dx),
                (pool.submit(depthwise_weight_gradient, grad, here, stride), dweight),
            ]
        for job, wanted in jobs:
            found = job.result().float().cpu()
            torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
