"""The Triton kernels: what torch's layers compute. Without a GPU Triton's interpreter runs them, on the CPU."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType

import pytest
import torch
import torch.nn as nn
from timm.layers import BlurPool2d

from imagenette_zoo.data.augment import _filter
from imagenette_zoo.fast_layers.norm_act import _ACTIVATIONS
from imagenette_zoo.layers import MaxBlurPool2d

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
TOLERANCES = {torch.float32: {'rtol': 1e-4, 'atol': 1e-4}, torch.bfloat16: {'rtol': 2e-2, 'atol': 3e-2}}
TOLERANCES_16 = {**TOLERANCES, torch.float16: {'rtol': 3e-3, 'atol': 4e-3}}
SPECIAL = [0.0, -0.0, 6.0, 1e-30, 20.0, -20.0, 87.0, -87.0, 88.0, -88.0, 1e4, -1e4, 1e38, -1e38, float('nan')]

@pytest.fixture
def gpu() -> ModuleType:
    pytest.importorskip('triton')
    from imagenette_zoo.kernels import gpu

    return gpu


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return (torch.randn(shape) * 3 + 1).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def norm(gpu: ModuleType, x: torch.Tensor) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d, torch.Tensor]:
    """torch's layer in float64, a layer with the running statistics of the kernel, and the kernel's statistics."""
    torch.manual_seed(1)
    channels = x.shape[1]
    exact, ours = (nn.BatchNorm2d(channels, momentum=0.3, eps=1e-3).to(DEVICE) for _ in range(2))
    nn.init.uniform_(exact.weight, 0.5, 2)
    nn.init.normal_(exact.bias)
    running = ours.running_mean, ours.running_var, ours.num_batches_tracked
    stats = gpu.norm_stats(x, exact.weight.detach(), exact.bias.detach(), *running, ours.momentum, ours.eps)
    return exact.double(), ours, stats


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize(
    ('shape', 'act'),
    [
        *itertools.product([(3, 24, 5, 7)], _ACTIVATIONS),
        *itertools.product([(2, 8, 1, 1), (2, 960, 4, 4), (9, 48, 40, 33)], [nn.Identity]),
    ],
)
def test_norm_act_is_torchs(gpu: ModuleType, shape: tuple[int, ...], act: type, dtype: torch.dtype) -> None:
    """Few and many rows, channels that fill no tile."""
    number, function = _ACTIVATIONS[act]
    x = images(*shape, dtype=dtype)
    exact, ours, stats = norm(gpu, x)
    y = gpu.norm_act_forward(x, stats, number)
    torch.manual_seed(2)
    grad = torch.randn(shape).to(y).contiguous(memory_format=torch.channels_last)
    dx, dweight, dbias = gpu.norm_act_backward(grad, x, stats, number)
    wide = x.double().requires_grad_()
    expected = function(exact(wide))
    gradients = torch.autograd.grad(expected, (wide, exact.weight, exact.bias), grad.double())
    for got, want in zip((y, dx, dweight, dbias), (expected.detach(), *gradients), strict=True):
        size = want.abs().max().clamp(min=1)
        torch.testing.assert_close(got.double() / size, want / size, **TOLERANCES[dtype])
    assert y.dtype == dx.dtype == dtype
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        got, want = getattr(ours, name), getattr(exact, name)
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-4, atol=1e-5)


def test_a_large_mean_costs_no_digits(gpu: ModuleType) -> None:
    x = images(8, 16, 9, 9) + 3000
    exact, _, stats = norm(gpu, x)
    torch.testing.assert_close(gpu.norm_act_forward(x, stats, 0), exact(x.double()).float(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('act', _ACTIVATIONS)
def test_activations_of_special_values(gpu: ModuleType, act: type) -> None:
    """Value and slope are torch's; one pixel's gradient of the bias is the slope."""
    number, function = _ACTIVATIONS[act]
    x = torch.tensor([*SPECIAL, *torch.linspace(-8.2, 8.2, 33)], device=DEVICE)[None, :, None, None]
    stats = torch.ones(4, x.shape[1], device=DEVICE)
    stats[1:3] = 0
    exact = x.double().requires_grad_()
    expected = function(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    y = gpu.norm_act_forward(x, stats, number)
    _, _, dbias = gpu.norm_act_backward(torch.ones_like(x), x, stats, number)
    torch.testing.assert_close(y.double(), expected.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)
    numbers = ~x.isnan().flatten()
    torch.testing.assert_close(dbias[numbers].double(), slope.flatten()[numbers], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('size', [(2, 2), (2, 3), (3, 2), (3, 3), (8, 8), (7, 12), (16, 5)])
@pytest.mark.parametrize('kind', ['max', 'reflect', 'replicate'])
def test_blur_is_torchs(gpu: ModuleType, kind: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    pool: nn.Module = MaxBlurPool2d(24) if kind == 'max' else BlurPool2d(24, pad_mode=kind)
    torch.manual_seed(0)  # with many equal neighbours, so that it matters which of them a gradient goes to
    x = torch.randint(-3, 4, (3, 24, *size)).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
    arguments = kind == 'max', kind == 'reflect'
    y = gpu.blur_forward(x, *arguments)
    grad = torch.randn(y.shape).to(y).contiguous(memory_format=torch.channels_last)
    wide = x.double().requires_grad_()
    expected = pool.to(DEVICE).double()(wide)
    torch.testing.assert_close(y.double(), expected.detach(), **TOLERANCES[dtype])
    dx = gpu.blur_backward(grad, x, *arguments)
    torch.testing.assert_close(dx.double(), torch.autograd.grad(expected, wide, grad.double())[0], **TOLERANCES[dtype])
    assert y.dtype == dx.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == 'cpu', reason='no GPU')
def test_many_rows(gpu: ModuleType) -> None:
    """More tiles than a grid's other dimensions may have."""
    x = torch.ones(2, 8, 2100, 2100, device=DEVICE).contiguous(memory_format=torch.channels_last)
    y = gpu.blur_forward(x, True, False)
    assert y.eq(1).all()
    assert float(gpu.blur_backward(y, x, True, False).sum()) == pytest.approx(y.numel(), rel=1e-5)
    assert gpu.norm_act_forward(x, torch.ones(4, 8, device=DEVICE), 0).eq(2).all()


@pytest.mark.parametrize('kind', ['max', 'reflect'])
def test_blur_sees_nan_and_infinity(gpu: ModuleType, kind: str) -> None:
    x = images(1, 8, 8, 8)
    x[0, 0, 2, 3], x[0, 1, 4, 4] = float('nan'), float('inf')
    pool = MaxBlurPool2d(8) if kind == 'max' else BlurPool2d(8)
    y = gpu.blur_forward(x, kind == 'max', kind == 'reflect')
    torch.testing.assert_close(y, pool.to(DEVICE)(x), equal_nan=True)
    grad = torch.zeros_like(y)
    grad[0, 2, 1, 1] = float('inf')
    dx = gpu.blur_backward(grad, images(1, 8, 8, 8), kind == 'max', kind == 'reflect')
    assert dx[0, 2].isinf().any()
    dx[0, 2, 1:5, 1:5] = 0
    assert dx.eq(0).all()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('dtype', TOLERANCES_16)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('shape', [(3, 24, 5, 8), (2, 8, 1, 1), (1, 40, 2, 3), (2, 8, 40, 33), (1, 776, 3, 3)])
def test_depthwise_is_torchs(
    gpu: ModuleType, shape: tuple[int, ...], stride: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few and many rows, in one part and in several, channels that fill no tile."""
    if shape[1] == 8:
        monkeypatch.setattr(gpu.tiles, 'PROGRAMS', 9)
    x = images(*shape, dtype=dtype)
    torch.manual_seed(1)
    weight = torch.randn(shape[1], 1, 3, 3, device=DEVICE)
    inputs = [tensor.double().requires_grad_() for tensor in (x, weight)]
    wanted = nn.functional.conv2d(*inputs, None, stride, 1, groups=shape[1])
    taps = weight.flatten(1).t().contiguous()
    y = gpu.depthwise_forward(x, taps, stride)
    grad = torch.randn_like(y)
    dx = gpu.depthwise_input_gradient(grad, taps, stride, shape[2:])
    dweight = gpu.depthwise_weight_gradient(grad, x, stride)
    gradients = torch.autograd.grad(wanted, inputs, grad.double())
    for got, want in zip((y, dx, dweight), (wanted.detach(), *gradients), strict=True):
        size = want.abs().max().clamp(min=1)
        torch.testing.assert_close(got.double() / size, want / size, **TOLERANCES_16[dtype])
    assert (y.dtype, dx.dtype, dweight.dtype) == (dtype, dtype, torch.float32)


def test_depthwise_sees_nan_and_infinity(gpu: ModuleType) -> None:
    x = images(1, 8, 6, 6)
    x[0, 0, 2, 3], x[0, 1, 5, 5] = float('nan'), float('inf')
    y = gpu.depthwise_forward(x, torch.ones(9, 8, device=DEVICE), 1)
    assert y[0, 0, 1:4, 2:5].isnan().all()
    assert y[0, 1, 4:, 4:].isinf().all()
    assert int((~y.isfinite()).sum()) == 9 + 4
    assert gpu.depthwise_weight_gradient(torch.ones_like(y), x, 1)[0].isnan().any()


def test_resize_filter(gpu: ModuleType) -> None:
    start, length = torch.tensor([[0, 48], [5, 20], [40, 8], [1, 47], [47, 1]], device=DEVICE).unbind(1)
    bicubic, flip = (torch.tensor(values, device=DEVICE).bool() for values in ([0, 1, 0, 1, 1], [0, 0, 1, 1, 0]))
    for size in (16, 37, 48):
        wanted = _filter(start, length, 48, size, bicubic, flip)
        filters = gpu.resize_filter(start, length, 48, size, bicubic, flip)
        torch.testing.assert_close(filters.float(), wanted, rtol=1e-3, atol=1e-3)


@pytest.fixture
def one_by_one(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == 'cpu':  # the interpreter is for one thread
        monkeypatch.setattr(gpu, 'ThreadPoolExecutor', partial(ThreadPoolExecutor, 1))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['depthwise_forward', 'depthwise_input_gradient', 'depthwise_weight_gradient'])
def test_the_check_sees_a_wrong_depthwise_kernel(
    gpu: ModuleType, one_by_one: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpu.check_depthwise(DEVICE)
    kernel = getattr(gpu, name)
    monkeypatch.setattr(gpu, name, lambda *args: kernel(*args).roll(1, 0))
    with pytest.raises(AssertionError):
        gpu.check_depthwise(DEVICE)


def test_the_check_sees_a_wrong_kernel(gpu: ModuleType, one_by_one: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):  # wherever a model is first run
        gpu.check(DEVICE)
    forward = gpu.norm_act_forward
    monkeypatch.setattr(gpu, 'norm_act_forward', lambda x, stats, kind: forward(x, stats, 1))
    with pytest.raises(AssertionError):
        gpu.check(DEVICE)
