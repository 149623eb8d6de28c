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
    """Which part of the rows a program is for, its channels, how many there are, and which of its there are.

    Args:
        eighths: Of the channels: times 8 they are, as the compiler sees, a multiple of it.
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
    """Rows, channels, and channels in the kernels' terms, whose multiple by 8 tells the compiler of the alignment."""
    return x.numel() // x.shape[1], x.shape[1], x.shape[1] // ALIGNMENT


def row_parts(rows: int, channels: int, high: int, each: int = 1) -> tuple[int, int, tuple[int]]:
    """Into how many parts rows are divided, the rows of a part, whole tiles, and the grid of so many programs each."""
    tiles = math.ceil(channels / CHANNELS.value) * each
    parts = max(1, min(PROGRAMS // tiles, math.ceil(rows / high)))
    span = math.ceil(math.ceil(rows / parts) / high) * high
    parts = math.ceil(rows / span)
    return parts, span, (tiles * parts,)


def tile_grid(rows: int, channels: int, high: int = ROWS.value) -> tuple[int]:
    """The grid of tiles of so many rows."""
    return (math.ceil(channels / CHANNELS.value) * math.ceil(rows / high),)
