"""The values that each kernel of `cpu.cpp` has to give, by torch's own operators.

A miscompiled kernel is worse than none. The numbers are the same on every machine, and none lies where a rounding
would decide which way an activation bends.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ['CHECKS', 'Case', 'check']

_ACTIVATIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [  # as norm_act.py counts them
    lambda x: x, F.relu, F.relu6, F.mish, F.silu, F.hardswish,
]  # fmt: skip
_DTYPES = (torch.float32, torch.bfloat16)
_TOLERANCES = {torch.float32: (3e-4, 3e-4), torch.bfloat16: (0.02, 0.02), torch.uint8: (0, 1)}  # relative, absolute


class Case(NamedTuple):
    """A call of a kernel, and the values that it has to write, by the index of the tensor."""

    sizes: Sequence[int]
    tensors: Sequence[torch.Tensor]
    wanted: dict[int, torch.Tensor]


def check(run: Callable[..., None]) -> None:
    """Raises where a kernel gives something else than torch.

    Args:
        run: Runs one, given its name, its sizes and its tensors.
    """
    for name, (dtypes, cases) in CHECKS.items():
        for dtype in dtypes:
            for sizes, tensors, wanted in cases(dtype):
                run(name, sizes, *tensors)
                for index, expected in wanted.items():
                    rtol, atol = _TOLERANCES[tensors[index].dtype]
                    torch.testing.assert_close(tensors[index].float(), expected, rtol=rtol, atol=atol)


def _spread(*shape: int, dtype: torch.dtype, start: float = 0.0) -> torch.Tensor:
    """Numbers from -4 to 4, made without the random generators that a training uses."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device='cpu')
    return ((steps * 0.6180339887498949 + start).frac() * 8 - 4).view(shape).to(dtype)


def _images(*shape: int, dtype: torch.dtype, start: float = 0.0) -> torch.Tensor:
    return _spread(*shape, dtype=dtype, start=start).contiguous(memory_format=torch.channels_last)


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device='cpu')


def _mish_forward(dtype: torch.dtype) -> Iterator[Case]:
    x = torch.linspace(-30, 30, 1001, dtype=torch.float32, device='cpu').to(dtype)
    yield Case([len(x)], [x, torch.empty_like(x)], {1: F.mish(x.float())})


def _mish_backward(dtype: torch.dtype) -> Iterator[Case]:
    x = torch.linspace(-30, 30, 1001, dtype=torch.float32, device='cpu').to(dtype)
    grad = _spread(len(x), dtype=dtype)
    wanted = torch.ops.aten.mish_backward(grad.float(), x.float())
    yield Case([len(x)], [grad, x, torch.empty_like(x)], {2: wanted})


_ROWS, _CHANNELS = 1100, 32  # more than one chunk of cpu.cpp


def _norm_stats(dtype: torch.dtype) -> Iterator[Case]:
    x = _spread(_ROWS, _CHANNELS, dtype=dtype)
    var, mean = torch.var_mean(x.float(), 0, correction=0)
    yield Case(x.shape, [x, _empty(_CHANNELS), _empty(_CHANNELS)], {1: mean, 2: var})


def _norm_act_forward(dtype: torch.dtype) -> Iterator[Case]:
    x = _spread(33, _CHANNELS, dtype=dtype)
    scale, shift = _spread(2, _CHANNELS, dtype=torch.float32, start=0.3)
    for number, act in enumerate(_ACTIVATIONS):
        wanted = act(x.float() * scale + shift)
        yield Case([*x.shape, number], [x, torch.empty_like(x), scale, shift], {1: wanted})


def _norm_act_backward(dtype: torch.dtype) -> Iterator[Case]:
    x, grad = (_spread(_ROWS, _CHANNELS, dtype=dtype, start=start) for start in (0.0, 0.4))
    weight, bias = _spread(2, _CHANNELS, dtype=torch.float32, start=0.3)
    var, mean = torch.var_mean(x.float(), 0, correction=0)
    inverse = (var + 1e-5).rsqrt()
    stats = [weight * inverse, bias - mean * weight * inverse, mean, inverse]
    inputs = [tensor.float().requires_grad_() for tensor in (x, weight.detach(), bias.detach())]
    normalized = F.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True)
    for number, act in enumerate(_ACTIVATIONS):
        wanted = torch.autograd.grad(act(normalized), inputs, grad.float(), retain_graph=True)
        tensors = [grad, x, torch.empty_like(x), *stats, _empty(_CHANNELS), _empty(_CHANNELS)]
        yield Case([*x.shape, number], tensors, dict(zip((2, 7, 8), wanted, strict=True)))


def _depthwise_backward(dtype: torch.dtype) -> Iterator[Case]:
    x = _images(2, 16, 9, 11, dtype=dtype)
    for kernel, stride in ((3, 1), (3, 2), (3, 4), (5, 1), (5, 2), (7, 1), (7, 2)):  # each number of taps
        taps = _spread(kernel * kernel, 16, dtype=dtype, start=0.2).float()
        weight = taps.t().reshape(16, 1, kernel, kernel)
        out = [(size - 1) // stride + 1 for size in x.shape[2:]]
        grad = _images(2, 16, *out, dtype=dtype, start=0.4)
        geometry = [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], 16, [True, True, False]
        dx, dw, _ = torch.ops.aten.convolution_backward(grad.float(), x.float(), weight, None, *geometry)
        sizes = (*x.shape, *out, kernel, stride, kernel // 2)
        tensors = [grad, x, taps, torch.empty_like(x), torch.empty_like(taps)]
        yield Case(sizes, tensors, {3: dx, 4: dw.view(16, kernel * kernel).t()})


def _blurred(x: torch.Tensor, maximum: int, reflect: int) -> torch.Tensor:
    if maximum:
        x = F.max_pool2d(x, 2, stride=1, padding=1)[:, :, 1:, 1:]
    line = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float32, device='cpu')
    weight = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), 'reflect' if reflect else 'replicate'), weight, stride=2, groups=x.shape[1])


def _blur_forward(dtype: torch.dtype) -> Iterator[Case]:
    for maximum, reflect in product((0, 1), (0, 1)):
        x = _images(2, 16, 7, 8, dtype=dtype)
        wanted = _blurred(x.float(), maximum, reflect)
        y = torch.empty_like(wanted, dtype=dtype, memory_format=torch.channels_last)
        yield Case([*x.shape, maximum, reflect], [x, y], {1: wanted})


def _blur_backward(dtype: torch.dtype) -> Iterator[Case]:
    for maximum, reflect in product((0, 1), (0, 1)):
        x, grad = _images(2, 16, 7, 8, dtype=dtype), _images(2, 16, 4, 4, dtype=dtype, start=0.4)
        inputs = x.float().requires_grad_()
        (wanted,) = torch.autograd.grad(_blurred(inputs, maximum, reflect), inputs, grad.float())
        yield Case([*x.shape, maximum, reflect], [grad, x, torch.empty_like(x)], {2: wanted})


_CROPS = [  # height and width of a crop, whether its filter is cubic: each number of taps to 11 pixels, and many
    (8, 9, False), (20, 16, False), (24, 22, False), (13, 11, True), (14, 13, True), (24, 24, True),
]  # fmt: skip


def _crop_resize(dtype: torch.dtype) -> Iterator[Case]:
    stored_size, size = 24, (10, 11)
    pixels = ((_spread(6, stored_size, stored_size, 3, dtype=torch.float32) + 4) * 31.8).to(dtype)
    index = torch.tensor([3, 1, 5, 0, 2, 4], dtype=torch.int64, device='cpu')
    boxes = torch.tensor([[(24 - h) // 2, 24 - w, h, w] for h, w, _ in _CROPS], dtype=torch.int64, device='cpu')
    bicubic = torch.tensor([cubic for *_, cubic in _CROPS], dtype=torch.bool, device='cpu')
    flips = torch.tensor([[n % 2, n % 3] for n in range(6)], dtype=torch.bool, device='cpu')
    wanted = []
    for image, (top, left, height, width), cubic, flip in zip(index, boxes, bicubic, flips, strict=True):
        crop = pixels[image, top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        resized = F.interpolate(crop, size, mode='bicubic' if cubic else 'bilinear', antialias=True)
        wanted.append(resized.clamp(0, 255)[0].flip([axis + 1 for axis in (0, 1) if flip[axis]]).permute(1, 2, 0))
    out = torch.empty(6, *size, 3, dtype=dtype, device='cpu')
    yield Case([6, stored_size, *size], [pixels, index, boxes, flips, bicubic, out], {5: torch.stack(wanted)})


def _look_up(dtype: torch.dtype) -> Iterator[Case]:
    pixels = torch.arange(768, device='cpu').mul(7).remainder(256).view(256, 3).to(dtype)
    table = _spread(256, 3, dtype=torch.float32) * 1000
    yield Case([256], [pixels, table, _empty(256, 3)], {2: table.gather(0, pixels.long())})


CHECKS: dict[str, tuple[Sequence[torch.dtype], Callable[[torch.dtype], Iterator[Case]]]] = {
    'mish_forward': (_DTYPES, _mish_forward),
    'mish_backward': (_DTYPES, _mish_backward),
    'norm_stats': (_DTYPES, _norm_stats),
    'norm_act_forward': (_DTYPES, _norm_act_forward),
    'norm_act_backward': (_DTYPES, _norm_act_backward),
    'depthwise_backward': (_DTYPES, _depthwise_backward),
    'blur_forward': (_DTYPES, _blur_forward),
    'blur_backward': (_DTYPES, _blur_backward),
    'crop_resize': ((torch.uint8,), _crop_resize),
    'look_up': ((torch.uint8,), _look_up),
}
