"""The filters of crops."""

import math

import torch
import triton
import triton.language as tl

__all__ = ['resize_filter']


@triton.jit(do_not_specialize=['stored_size', 'size', 'step'])
def _resize_filter(
    start, length, step, bicubic, flip, out, stored_size, size, LINES: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    column = tl.arange(0, COLUMNS)[None, :]
    extent = tl.load(length + image * step).to(tl.float32)
    scale = extent / size
    from_start = (column - tl.load(start + image * step)).to(tl.float32)
    x = tl.abs(from_start + 0.5 - (line.to(tl.float32)[:, None] + 0.5) * scale) / tl.maximum(scale, 1.0)
    cubic = tl.where(x < 1, (1.5 * x - 2.5) * x * x + 1, tl.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    weight = tl.where(tl.load(bicubic + image) != 0, cubic, tl.maximum(1 - x, 0.0))
    weight = tl.where((from_start >= 0) & (from_start < extent) & (column < stored_size), weight, 0.0)
    weight = weight / tl.sum(weight, 1)[:, None]
    line = tl.where(tl.load(flip + image) != 0, size - 1 - line, line)[:, None]
    mask = (line >= 0) & (line < size) & (column < stored_size)
    tl.store(out + (image * size + line) * stored_size + column, weight, mask)


def resize_filter(
    start: torch.Tensor, length: torch.Tensor, stored_size: int, size: int, bicubic: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    """How much each stored pixel contributes to each pixel of a crop, as `data/augment.py` says.

    Args:
        start: `(N,)` integers, where the crops start.
        length: `(N,)` integers, how long they are.
        stored_size: Of the stored images, pixels.
        size: Of the crops when resized, pixels.
        bicubic: `(N,)` bool, by Keys' cubic instead of a triangle.
        flip: `(N,)` bool, whether the result is turned round.

    Returns:
        `(N, size, stored_size)` float16.
    """
    out = torch.empty(len(start), size, stored_size, dtype=torch.float16, device=start.device)
    lines = 8
    with torch.cuda.device_of(start):
        _resize_filter[(len(start), math.ceil(size / lines))](
            start, length, start.stride(0), bicubic.contiguous(), flip.contiguous(), out, stored_size, size,
            LINES=lines, COLUMNS=triton.next_power_of_2(stored_size),
        )  # fmt: skip
    return out
