"""The filters of crops."""

import math

import torch
import triton
import triton.language as tl

__all__ = ['resize_filter']


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
