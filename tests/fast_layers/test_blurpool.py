"""Blur pooling by one kernel: what torch's layers compute, and those layers wherever it has to be."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import BlurPool2d

import imagenette_zoo.models  # noqa: F401  (registers them)
from imagenette_zoo.fast_layers.swap import swap
from imagenette_zoo.layers import MaxBlurPool2d
from imagenette_zoo.models.factory import to_device
from tests.conftest import needs_compiler

POOLS: dict[str, Callable[..., nn.Module]] = {
    'max': MaxBlurPool2d,
    'reflect': BlurPool2d,
    'replicate': lambda channels: BlurPool2d(channels, pad_mode='replicate'),
}
TOLERANCES = {torch.float32: {'rtol': 1e-5, 'atol': 1e-5}, torch.bfloat16: {'rtol': 1e-2, 'atol': 3e-2}}


def pair(kind: str, channels: int | None = 32) -> tuple[nn.Module, nn.Module]:
    """torch's layer, and the same with the kernel."""
    plain = POOLS[kind](channels)
    fast = copy.deepcopy(plain)
    swap(fast, torch.device('cpu'), channels_last=True)
    assert type(fast) is not type(plain)
    return plain, fast


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """With many equal neighbours, so that it matters which of them a gradient goes to."""
    torch.manual_seed(0)
    return torch.randint(-3, 4, shape).to(dtype).contiguous(memory_format=torch.channels_last)


def trained(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    return [y.detach(), *torch.autograd.grad(y, x, torch.randn(y.shape).to(y))]


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('kind', POOLS)
@pytest.mark.parametrize('channels', [16, 48])
@pytest.mark.parametrize('size', [(2, 2), (2, 3), (3, 2), (3, 3), (8, 8), (7, 12), (16, 5)])
def test_it_is_torchs(size: tuple[int, int], channels: int, kind: str, dtype: torch.dtype, calls: list[str]) -> None:
    for given in (channels, None):
        plain, fast = pair(kind, given)
        x = images(3, channels, *size, dtype=dtype)
        actual, expected = trained(fast, x), trained(plain.double(), x.double())
        for tensor, exact in zip(actual, expected, strict=True):
            assert tensor.dtype == dtype
            assert tensor.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(tensor.double(), exact, **TOLERANCES[dtype])
        with torch.no_grad():
            torch.testing.assert_close(fast(x), actual[0], rtol=0, atol=0)
    assert calls == 2 * ['blur_forward', 'blur_backward', 'blur_forward']


@needs_compiler
@pytest.mark.parametrize('kind', POOLS)
def test_the_number_of_threads_changes_nothing(kind: str) -> None:
    x, results = images(5, 32, 9, 10, dtype=torch.bfloat16), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(trained(pair(kind)[1], x))
    torch.set_num_threads(1)
    assert all(map(torch.equal, *results))


@needs_compiler
def test_nan_and_infinity_are_seen(calls: list[str]) -> None:
    plain, fast = pair('max')
    for value in (float('nan'), float('inf'), float('-inf')):
        x = images(2, 32, 6, 6)
        x[0, 3, 2, 3] = x[1, 4, 0, 0] = x[1, 5, 5, 5] = value
        torch.testing.assert_close(fast(x), plain(x), equal_nan=True)
    assert calls


@needs_compiler
def test_autocast_is_that_of_a_convolution(calls: list[str]) -> None:
    plain, fast = pair('max')
    x = torch.randn(2, 32, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        actual, expected = fast(x), plain(x)
    assert actual.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected, **TOLERANCES[torch.bfloat16])
    assert calls == ['blur_forward']
    with torch.autocast('cpu', torch.float16):  # which has no kernel
        assert torch.equal(fast(x), plain(x))
    assert calls == ['blur_forward']


@needs_compiler
@pytest.mark.parametrize('amp', [False, True])
def test_gradients_of_gradients(amp: bool) -> None:
    plain, fast = pair('max')
    x = torch.randn(2, 32, 5, 6).contiguous(memory_format=torch.channels_last)

    def second(layer: nn.Module) -> torch.Tensor:
        inputs = x.detach().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            y = layer(inputs)
        (first,) = torch.autograd.grad(y.float().square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(first.square().sum(), inputs)[0]

    actual, expected = second(fast), second(plain)
    assert (actual - expected).norm() < (2e-2 if amp else 1e-5) * expected.norm()


@needs_compiler
@pytest.mark.parametrize('case', ['contiguous', 'channels', 'float64', 'one row', 'compiled'])
def test_elsewhere_it_is_torchs_to_the_bit(case: str, calls: list[str]) -> None:
    torch._dynamo.reset()
    plain, fast = pair('max', None)
    x = images(2, 24 if case == 'channels' else 32, 1 if case == 'one row' else 6, 6)
    if case == 'contiguous':
        x = x.contiguous()
    if case == 'float64':
        x = x.double()
        plain, fast = plain.double(), fast.double()
    if case == 'compiled':
        plain, fast = (torch.compile(layer, backend='eager') for layer in (plain, fast))
    assert all(map(torch.equal, trained(fast, x), trained(plain, x)))
    assert not calls


@pytest.mark.parametrize(
    'layer',
    [
        MaxBlurPool2d(32, kernel_size=5),
        MaxBlurPool2d(32, stride=1),
        MaxBlurPool2d(32, max_kernel_size=3),
        BlurPool2d(32, pad_mode='constant'),
        BlurPool2d(32, stride=3),
        nn.MaxPool2d(2),
    ],
    ids=str,
)
def test_which_layers_stay(layer: nn.Module) -> None:
    kind = type(layer)
    swap(layer, torch.device('cpu'), channels_last=True)
    assert type(layer) is kind


@needs_compiler
@pytest.mark.parametrize('name', ['mbv2_mish_maxblur', 'mbv2_mish_blur', 'resnet34_maxblur'])
def test_models_train_with_it(name: str, calls: list[str]) -> None:
    """With the same state dict, and the same loss but for rounding."""
    torch.manual_seed(0)
    model = timm.create_model(f'{name}_imagenette')
    plain = copy.deepcopy(model).to(memory_format=torch.channels_last)
    fast = to_device(model, torch.device('cpu'), channels_last=True)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    x = torch.randn(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    losses = []
    for each in (plain, fast):
        loss = each(x).square().mean()
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
    assert calls.count('blur_forward') == calls.count('blur_backward') > 0
