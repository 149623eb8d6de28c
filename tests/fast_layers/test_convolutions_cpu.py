"""The gradients of depthwise convolutions on a CPU."""

import copy

import pytest
import timm
import torch
import torch.nn as nn
from torch.autograd import forward_ad

from imagenette_zoo.fast_layers.swap import swap
from tests.conftest import needs_compiler

CPU = torch.device('cpu')


def _train(layer: nn.Module, x: torch.Tensor, amp: bool = True) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


def _compare(layer: nn.Conv2d, x: torch.Tensor, amp: bool) -> None:
    """Ours are as near to float64's as torch's are."""
    exact, ours = copy.deepcopy(layer).double(), copy.deepcopy(layer)
    swap(ours, CPU, channels_last=False, phase='training')
    assert (type(ours) is nn.Conv2d) == (max(layer.stride) == 1 and max(layer.kernel_size) < 5)
    for a, b, c in zip(
        _train(exact, x.double(), False), _train(copy.deepcopy(layer), x, amp), _train(ours, x, amp), strict=True
    ):
        assert c.dtype == b.dtype
        assert c.shape == b.shape
        error = (c.double() - a).norm() / a.norm()
        assert error < (0.01 if amp else 1e-5)
        if b.isfinite().all():  # oneDNN's bfloat16 now and then is not: it reads memory that nothing wrote to
            assert error <= (b.double() - a).norm() / a.norm() * 1.5 + 2e-7


@needs_compiler
@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
@pytest.mark.parametrize('stride', [1, 2, 3, 4])
@pytest.mark.parametrize('shape', [(3, 32, 13, 12), (1, 16, 7, 30), (2, 48, 3, 3)])
def test_gradients_of_the_kernels(
    amp: bool, kernel_size: int, stride: int, shape: tuple[int, ...], calls: list[str]
) -> None:
    torch.manual_seed(0)
    for padding in {0, kernel_size // 2, kernel_size - 1}:
        if padding or min(shape[2:]) >= kernel_size:
            layer = nn.Conv2d(shape[1], shape[1], kernel_size, stride, padding, groups=shape[1])
            _compare(layer, torch.randn(shape).to(memory_format=torch.channels_last), amp)
    assert bool(calls) == (kernel_size > 3 or (amp and stride > 1))


OTHERS: dict[str, dict] = {
    'few channels': {'channels': 8},
    'multiplied': {'multiplier': 2},
    'dilated': {'dilation': 2},
    'rectangular': {'kernel_size': (5, 3)},
    'strides': {'stride': (2, 1)},
    'a point': {'kernel_size': 1},
    'large': {'kernel_size': 9, 'padding': 4},
    'contiguous': {'memory_format': torch.contiguous_format},
}


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('case', OTHERS)
def test_gradients_elsewhere(amp: bool, case: str, calls: list[str]) -> None:
    """Where no kernel applies, the gradients in float32 are torch's to the bit."""
    torch.manual_seed(0)
    options = {'kernel_size': 5, 'stride': 2, 'padding': 2, **OTHERS[case]}
    channels, multiplier = options.pop('channels', 32), options.pop('multiplier', 1)
    memory_format = options.pop('memory_format', torch.channels_last)
    layer = nn.Conv2d(channels, channels * multiplier, groups=channels, bias=False, **options)
    x = torch.randn(3, channels, 13, 12).to(memory_format=memory_format)
    _compare(layer, x, amp)
    if not amp:
        ours = copy.deepcopy(layer)
        swap(ours, CPU, channels_last=False, phase='training')
        assert all(map(torch.equal, _train(ours, x, amp), _train(copy.deepcopy(layer), x, amp)))
    assert not calls


@needs_compiler
def test_the_number_of_threads_changes_nothing(calls: list[str]) -> None:
    layer = nn.Conv2d(32, 32, 5, 2, 2, groups=32)
    swap(layer, CPU, channels_last=False, phase='training')
    x = torch.randn(7, 32, 16, 16).to(memory_format=torch.channels_last)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(_train(copy.deepcopy(layer), x)[1:3])
    torch.set_num_threads(1)
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))
    assert len(calls) == 3


def test_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = timm.create_model('mobilenetv2_050', num_classes=10)
    ours = copy.deepcopy(model)
    swap(ours, CPU, channels_last=False, phase='training')
    changed = {name for name, layer in ours.named_modules() if type(layer) is not type(model.get_submodule(name))}
    strided = {name for name, layer in model.named_modules() if name.endswith('conv_dw') and layer.stride == (2, 2)}
    assert changed == strided
    assert changed
    assert list(ours.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(_train(model, x, amp=False), _train(ours, x, amp=False), strict=True):
        assert torch.equal(a, b)
    copied = copy.deepcopy(ours)  # the moving average
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(copied.eval()(x), model.eval()(x))


@pytest.mark.parametrize('options', [{'padding': 'same'}, {'padding': 2, 'padding_mode': 'reflect'}])
def test_other_paddings_are_left_to_torch(options: dict) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 5, groups=4, **options)
    ours = copy.deepcopy(layer)
    swap(ours, CPU, channels_last=False, phase='training')
    x = torch.randn(2, 4, 9, 9)
    for a, b in zip(_train(layer, x), _train(ours, x), strict=True):
        assert torch.equal(a, b)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 5, 2, 2, groups=4)
    swap(layer, CPU, channels_last=False, phase='training')
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        loss = (layer(x) ** 3).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.long
@pytest.mark.slow
def test_compiled() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4), nn.Mish())
    swap(layer, CPU, channels_last=False, phase='training')
    x = torch.randn(2, 4, 8, 8)
    eager = _train(copy.deepcopy(layer), x)
    layer.compile(dynamic=False)
    for a, b in zip(eager, _train(layer, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@needs_compiler
def test_autocast_leaves_doubles_alone() -> None:
    for layer in (nn.Conv2d(16, 16, 3, 2, 1, groups=16), timm.layers.BlurPool2d(16)):
        theirs = layer.double()
        ours = copy.deepcopy(theirs)
        swap(ours, CPU, channels_last=True, phase='training')
        assert type(ours) is not type(theirs)
        x = torch.randn(2, 16, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(ours(x), theirs(x), check_dtype=True)


@needs_compiler
def test_a_tangent_of_the_weights() -> None:
    theirs = nn.Conv2d(16, 16, 5, 2, 2, groups=16)
    ours = copy.deepcopy(theirs)
    swap(ours, CPU, channels_last=True, phase='training')
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    tangents = []
    for layer in (ours, theirs):
        with torch.no_grad(), forward_ad.dual_level():
            weight = forward_ad.make_dual(layer.weight.detach(), torch.ones_like(layer.weight))
            y = torch.func.functional_call(layer, {'weight': weight}, (x,))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*tangents)
