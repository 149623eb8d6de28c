"""The layers on their own and inside timm's models."""

import copy
import pickle

import kornia
import pytest
import timm
import torch
import torch.nn as nn

from imagenette_zoo.layers import BlurPool2d, MaxBlurPool2d, Mish

TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'vit_tiny_patch16_224', 'convnext_atto'])
def test_mish_in_timm_models(name: str) -> None:
    model = timm.create_model(name, act_layer=Mish)
    assert any(isinstance(layer, Mish) for layer in model.modules())
    assert not any(isinstance(layer, nn.ReLU | nn.ReLU6 | nn.GELU) for layer in model.modules())


@pytest.mark.parametrize('channels', [None, 4])
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('size', [(16, 16), (17, 22)])
def test_max_blur_pool_equals_kornia_inside(kernel_size: int, size: tuple[int, int], channels: int | None) -> None:
    x = torch.randn(2, 4, *size)
    ours = MaxBlurPool2d(channels, kernel_size=kernel_size)(x)
    theirs = kornia.filters.MaxBlurPool2D(kernel_size)(x)
    height, width = theirs.shape[-2:]
    border = kernel_size // 2
    inside = (..., slice(border, height - border), slice(border, width - border))
    assert theirs[inside].numel() > 0
    torch.testing.assert_close(ours[inside], theirs[inside])


@pytest.mark.parametrize('kernel_size', [2, 3, 4, 5, 7])
@pytest.mark.parametrize('max_kernel_size', [1, 2, 3, 4])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (12, 13)])
def test_max_blur_pool_keeps_constants_and_size(
    kernel_size: int, max_kernel_size: int, stride: int, size: tuple[int, int]
) -> None:
    pool = MaxBlurPool2d(kernel_size=kernel_size, stride=stride, max_kernel_size=max_kernel_size)
    out = pool(torch.full((1, 2, *size), -2.5))
    torch.testing.assert_close(out, torch.full((1, 2, *(-(-length // stride) for length in size)), -2.5))


def test_max_blur_pool_of_centred_window_is_timms_stem() -> None:
    """An odd window equals timm's own pair of layers, grid and all."""
    x = torch.randn(2, 4, 16, 16)
    pair = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), BlurPool2d(4, pad_mode='replicate'))
    torch.testing.assert_close(MaxBlurPool2d(max_kernel_size=3)(x), pair(x))


def test_max_blur_pool_has_no_state() -> None:
    pool = MaxBlurPool2d(8)
    assert not pool.state_dict()
    x = torch.randn(1, 8, 9, 9)
    for copied in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))):
        torch.testing.assert_close(copied(x), pool(x), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_max_blur_pool_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 12, 12).to(dtype)
    out = MaxBlurPool2d().to(dtype)(x)
    assert out.dtype == dtype
    tolerance = {} if dtype == torch.float64 else {'rtol': 1e-2, 'atol': 1e-2}
    torch.testing.assert_close(out.double(), MaxBlurPool2d().double()(x.double()), **tolerance)


def test_max_blur_pool_channels_last_and_gradient() -> None:
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    pool = MaxBlurPool2d().double()
    torch.testing.assert_close(pool(x.to(memory_format=torch.channels_last)), pool(x))
    assert torch.autograd.gradcheck(pool, x)


@pytest.mark.parametrize('channels', [None, 4])
@pytest.mark.parametrize('how', ['script', 'fx', 'export', 'compile'])
def test_max_blur_pool_compiles(how: str, channels: int | None) -> None:
    if how == 'fx' and channels is None and TORCH < (2, 8):
        pytest.skip('this torch cannot trace a number of groups')
    pool, x = MaxBlurPool2d(channels).eval(), torch.randn(2, 4, 11, 11)
    compiled = {
        'script': lambda: torch.jit.script(pool),
        'fx': lambda: torch.fx.symbolic_trace(pool),
        'export': lambda: torch.export.export(pool, (x,)).module(),
        'compile': lambda: torch.compile(pool, fullgraph=True, backend='aot_eager'),
    }[how]()
    torch.testing.assert_close(compiled(x), pool(x))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet50', 'resnet18d', 'mobilenetv2_050', 'cspresnet50', 'resnet14t'])
def test_both_layers_in_timm_models(name: str) -> None:
    """Weights of the plain model fit, the layers are where timm puts them, and odd sizes match their shortcuts."""
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=7)
    model = timm.create_model(name, num_classes=7, aa_layer=MaxBlurPool2d, act_layer=Mish)
    assert any(isinstance(layer, MaxBlurPool2d) for layer in model.modules())
    assert any(isinstance(layer, Mish) for layer in model.modules())
    if name != 'resnet14t':  # whose stem timm builds with one layer more
        model.load_state_dict(plain.state_dict())
    for size in (64, 75):
        assert model(torch.randn(2, 3, size, size)).shape == (2, 7)
