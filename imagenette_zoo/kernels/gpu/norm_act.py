"""BatchNorm with its activation."""

import torch
import triton
import triton.language as tl

from .tiles import CHANNELS, ROWS, jit, own_tile, row_parts, row_sizes, tile_grid

__all__ = ['norm_act_backward', 'norm_act_forward', 'norm_stats']


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
def _keep(sums, part, channels, count, inside, first, second):
    """The two sums of each channel over a part of the rows."""
    address = sums + part * 2 * count + channels
    tl.store(address, tl.sum(first, 0), inside)
    tl.store(address + count, tl.sum(second, 0), inside)


@triton.jit
def _added_up(sums, parts, channels, count, inside):
    """The two sums of each channel over all parts of the rows."""
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(0, parts, ROWS):
        part = start + tl.arange(0, ROWS)[:, None]
        address = sums + part * 2 * count + channels[None, :]
        mask = (part < parts) & inside[None, :]
        first += tl.load(address, mask, 0.0)
        second += tl.load(address + count, mask, 0.0)
    return tl.sum(first, 0), tl.sum(second, 0)


@jit
def _norm_sums(x, sums, rows, span, eighths):
    """Of each channel's differences from its first pixel, and of their squares."""
    part, channels, count, inside = own_tile(eighths)
    origin = tl.load(x + channels, inside, 0.0).to(tl.float32)
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), ROWS):
        row = begin + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & inside[None, :]
        value = tl.load(x + row * count + channels[None, :], mask, 0.0).to(tl.float32)
        value = tl.where(mask, value - origin[None, :], 0.0)
        first += value
        second += value * value
    _keep(sums, part, channels, count, inside, first, second)


@jit
def _norm_finish(
    x, sums, weight, bias, running_mean, running_var, batches, stats, momentum, eps, rows, parts, eighths
):  # fmt: skip
    _part, channels, count, inside = own_tile(eighths)
    first, second = _added_up(sums, parts, channels, count, inside)
    offset = first / rows
    var = second / rows - offset * offset
    var = tl.where(var < 0, 0.0, var)
    mean = tl.load(x + channels, inside, 0.0).to(tl.float32) + offset
    inverse = 1 / tl.sqrt(var + eps)
    scale = tl.load(weight + channels, inside, 0.0) * inverse
    tl.store(stats + channels, scale, inside)
    tl.store(stats + count + channels, tl.load(bias + channels, inside, 0.0) - mean * scale, inside)
    tl.store(stats + 2 * count + channels, mean, inside)
    tl.store(stats + 3 * count + channels, inverse, inside)
    old = tl.load(running_mean + channels, inside, 0.0)
    tl.store(running_mean + channels, old + momentum * (mean - old), inside)
    old = tl.load(running_var + channels, inside, 0.0)
    tl.store(running_var + channels, old + momentum * (var * (rows / (rows - 1)) - old), inside)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@jit
def _norm_forward(x, y, stats, rows, eighths, KIND: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    scale = tl.load(stats + channels, inside, 0.0)[None, :]
    shift = tl.load(stats + count + channels, inside, 0.0)[None, :]
    row = part * ROWS + tl.arange(0, ROWS)[:, None]
    mask = (row < rows) & inside[None, :]
    index = row * count + channels[None, :]
    value = tl.load(x + index, mask, 0.0).to(tl.float32)
    tl.store(y + index, _activation(value * scale + shift, KIND), mask)


@jit
def _norm_backward_sums(grad, x, stats, sums, rows, span, eighths, KIND: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    scale = tl.load(stats + channels, inside, 0.0)[None, :]
    shift = tl.load(stats + count + channels, inside, 0.0)[None, :]
    mean = tl.load(stats + 2 * count + channels, inside, 0.0)[None, :]
    first = tl.zeros((ROWS, CHANNELS), tl.float32)
    second = tl.zeros((ROWS, CHANNELS), tl.float32)
    start = part * span
    for begin in range(start, tl.minimum(start + span, rows), ROWS):
        row = begin + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & inside[None, :]
        index = row * count + channels[None, :]
        value = tl.load(x + index, mask, 0.0).to(tl.float32)
        dz = _gradient(tl.load(grad + index, mask, 0.0).to(tl.float32), value * scale + shift, KIND)
        dz = tl.where(mask, dz, 0.0)
        first += dz
        second += dz * (value - mean)
    _keep(sums, part, channels, count, inside, first, second)


@jit
def _norm_backward_finish(sums, stats, terms, dweight, dbias, rows, parts, eighths):
    """With dz of the activation's input dx is `scale dz + terms[0] x + terms[1]`."""
    _part, channels, count, inside = own_tile(eighths)
    dz, product = _added_up(sums, parts, channels, count, inside)
    scale = tl.load(stats + channels, inside, 0.0)
    mean = tl.load(stats + 2 * count + channels, inside, 0.0)
    inverse = tl.load(stats + 3 * count + channels, inside, 0.0)
    slope = -scale * product * inverse * inverse / rows
    tl.store(terms + channels, slope, inside)
    tl.store(terms + count + channels, -scale * dz / rows - slope * mean, inside)
    tl.store(dweight + channels, product * inverse, inside)
    tl.store(dbias + channels, dz, inside)


@jit
def _norm_backward(grad, x, dx, stats, terms, rows, eighths, KIND: tl.constexpr):
    part, channels, count, inside = own_tile(eighths)
    scale = tl.load(stats + channels, inside, 0.0)[None, :]
    shift = tl.load(stats + count + channels, inside, 0.0)[None, :]
    slope = tl.load(terms + channels, inside, 0.0)[None, :]
    constant = tl.load(terms + count + channels, inside, 0.0)[None, :]
    row = part * ROWS + tl.arange(0, ROWS)[:, None]
    mask = (row < rows) & inside[None, :]
    index = row * count + channels[None, :]
    value = tl.load(x + index, mask, 0.0).to(tl.float32)
    dz = _gradient(tl.load(grad + index, mask, 0.0).to(tl.float32), value * scale + shift, KIND)
    tl.store(dx + index, scale * dz + slope * value + constant, mask)


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
    """The statistics that BatchNorm needs of a batch; updates the running ones and the count of batches.

    Args:
        x: `(N, C, H, W)`, channels-last.
        weight: `(C,)` float32.
        bias: `(C,)` float32.
        running_mean: `(C,)` float32, which is updated.
        running_var: `(C,)` float32, which is updated by the unbiased variance.
        batches: The number of batches, a single int64, which is updated.
        momentum: The weight of the batch in the running statistics.
        eps: Added to the variance.

    Returns:
        `(4, C)` float32: the channels' scale and shift, by which x is normalised, their mean, and the inverse of
        their standard deviation.
    """
    rows, channels, eighths = row_sizes(x)
    parts, span, grid = row_parts(rows, channels, ROWS.value)
    sums = x.new_empty(parts, 2, channels, dtype=torch.float32)
    stats = x.new_empty(4, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _norm_sums[grid](x, sums, rows, span, eighths)
        _norm_finish[tile_grid(1, channels)](
            x, sums, weight, bias, running_mean, running_var, batches, stats, momentum, eps, rows, parts, eighths
        )
    return stats


def norm_act_forward(x: torch.Tensor, stats: torch.Tensor, kind: int) -> torch.Tensor:
    """Normalises images and applies the activation of a number, as `fast_layers/norm_act.py` counts them.

    Args:
        x: `(N, C, H, W)`, channels-last.
        stats: As `norm_stats` returns them.
        kind: The activation's number.
    """
    y = torch.empty_like(x)
    rows, channels, eighths = row_sizes(x)
    with torch.cuda.device_of(x):
        _norm_forward[tile_grid(rows, channels)](x, y, stats, rows, eighths, KIND=kind)
    return y


def norm_act_backward(
    grad: torch.Tensor, x: torch.Tensor, stats: torch.Tensor, kind: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of x, weight and bias.

    Args:
        grad: Of the activation, laid out like x.
        x: `(N, C, H, W)`, channels-last.
        stats: As `norm_stats` returns them.
        kind: The activation's number.
    """
    rows, channels, eighths = row_sizes(x)
    parts, span, grid = row_parts(rows, channels, ROWS.value)
    sums = x.new_empty(parts, 2, channels, dtype=torch.float32)
    dx = torch.empty_like(x)
    terms, (dweight, dbias) = torch.empty_like(stats[:2]), torch.empty_like(stats[:2])
    with torch.cuda.device_of(x):
        _norm_backward_sums[grid](grad, x, stats, sums, rows, span, eighths, KIND=kind)
        _norm_backward_finish[tile_grid(1, channels)](sums, stats, terms, dweight, dbias, rows, parts, eighths)
        _norm_backward[tile_grid(rows, channels)](grad, x, dx, stats, terms, rows, eighths, KIND=kind)
    return dx, dweight, dbias
