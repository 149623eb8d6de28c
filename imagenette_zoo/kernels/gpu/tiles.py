"""The rows of channels that images are, one row a pixel, and the tiles of them that programs are for."""

import math

import torch
import triton
import triton.language as tl

__all__ = ['ALIGNMENT', 'CHANNELS', 'ROWS', 'jit', 'load_pixel', 'own_tile', 'row_parts', 'row_sizes', 'tile_grid']

ALIGNMENT = 8  # channels are a multiple of it: 16 bytes in half precision, which a thread reads at once
CHANNELS = tl.constexpr(32)  # of a tile
ROWS = tl.constexpr(128)
PROGRAMS = 528  # that add up rows at a time: four for each of an H200's multiprocessors
_AS_THEY_COME = ['rows', 'span', 'parts', 'height', 'width', 'eighths']  # not compiled anew for each number

jit = triton.jit(do_not_specialize=_AS_THEY_COME)


@triton.jit
def own_tile(eighths):
    """The part of the rows that a program is for, its channels, the number of all channels, and which of its exist.

    Args:
        eighths: The number of channels divided by 8: so the compiler sees that it is a multiple of 8.
    """
    count = eighths * 8
    tiles = (count + CHANNELS - 1) // CHANNELS  # side by side, and all in a grid's first dimension, the long one
    channels = tl.program_id(0) % tiles * CHANNELS + tl.arange(0, CHANNELS)
    return tl.program_id(0) // tiles, channels, count, channels < count


@triton.jit
def load_pixel(x, image, line, column, height, width, channels, count, mask):
    row = (image * height + line) * width + column
    return tl.load(x + row[:, None] * count + channels[None, :], mask, 0.0).to(tl.float32)


def row_sizes(x: torch.Tensor) -> tuple[int, int, int]:
    """The numbers of rows, of channels, and of channels divided by 8, as the kernels take it."""
    return x.numel() // x.shape[1], x.shape[1], x.shape[1] // ALIGNMENT


def row_parts(rows: int, channels: int, high: int, each: int = 1) -> tuple[int, int, tuple[int]]:
    """Divides rows into parts of whole tiles: the number of parts, the rows of a part, and the grid of programs."""
    tiles = math.ceil(channels / CHANNELS.value) * each
    parts = max(1, min(PROGRAMS // tiles, math.ceil(rows / high)))
    span = math.ceil(math.ceil(rows / parts) / high) * high
    parts = math.ceil(rows / span)
    return parts, span, (tiles * parts,)


def tile_grid(rows: int, channels: int, high: int = ROWS.value) -> tuple[int]:
    """The grid of tiles of so many rows."""
    return (math.ceil(channels / CHANNELS.value) * math.ceil(rows / high),)
