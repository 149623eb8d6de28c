"""Convolutions of a GPU that need no plans. Without a GPU their layers are made to take the CPU's tensors."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn as nn
from timm.layers import Conv2dSame

from imagenette_zoo.fast_layers import convolutions
from imagenette_zoo.fast_layers.swap import swap
from imagenette_zoo.kernels.runtime import is_plain

KERNELS = ('depthwise_forward', 'depthwise_input_gradient', 'depthwise_weight_gradient')
CUDA = torch.device('cuda')
DEVICE = CUDA if torch.cuda.is_available() else torch.device('cpu')


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the kernels and products were asked for."""
    pytest.importorskip('triton')
    from imagenette_zoo.kernels import gpu

    launches: Counter[str] = Counter()

    def spy(owner: object, name: str) -> None:
        kernel = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: launches.update([name]) or kernel(*args))

    for name in KERNELS:
        spy(gpu, name)
    spy(nn.functional, 'linear')
    if DEVICE.type == 'cpu':
        monkeypatch.setattr(convolutions, 'is_plain', lambda x, devices: is_plain(x))
        monkeypatch.setattr(convolutions, 'triton_kernels', lambda device: gpu)
        monkeypatch.setattr(convolutions, '_kernels', lambda device: gpu)
    return launches


def record(model: nn.Module) -> None:
    """Its layers as where steps are recorded."""
    swap(model, CUDA, channels_last=True, phase='recorded steps')


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
        nn.Conv2d(16, 32, 1, bias=False),
        nn.Mish(),
        nn.Conv2d(32, 32, 3, 2, 1, groups=32, bias=False),
        nn.Conv2d(32, 8, 1),
    ).to(DEVICE, memory_format=torch.channels_last)


def images(*shape: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(shape or (3, 3, 15, 18), device=DEVICE).contiguous(memory_format=torch.channels_last)


def gradients(model: nn.Module, x: torch.Tensor, amp: bool = False) -> torch.Tensor:
    x = x.clone().requires_grad_()
    with torch.autocast('cuda', torch.bfloat16, enabled=amp):
        y = model(x)
    (y.double() * torch.linspace(-1, 1, y.numel(), device=DEVICE).view_as(y)).sum().backward()
    tensors = [y.detach(), x.grad, *(parameter.grad for parameter in model.parameters())]
    return torch.cat([tensor.double().flatten() for tensor in tensors])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, 'autocast'])
def test_gradients(dtype: torch.dtype | str, launched: Counter[str]) -> None:
    """As near to float64's as torch's are."""
    if dtype == 'autocast' and DEVICE.type == 'cpu':
        pytest.skip('the GPU has its own')
    plain, amp = network(), dtype == 'autocast'
    exact, ours, x = copy.deepcopy(plain).double(), copy.deepcopy(plain), images()
    if not amp:
        plain, ours, x = plain.to(dtype), ours.to(dtype), x.to(dtype)
        exact.load_state_dict(plain.state_dict())
    record(ours)
    assert list(ours.state_dict()) == list(plain.state_dict())
    wanted, torchs = gradients(exact, x.double()), gradients(plain, x, amp)
    assert not launched
    actual = gradients(ours, x, amp)
    products = {} if dtype == torch.float32 else {'linear': 2}
    assert launched == {**dict.fromkeys(KERNELS, 2), **products}
    assert (actual - wanted).norm() < 1.5 * (torchs - wanted).norm() + 1e-6 * wanted.norm()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert a.grad.dtype == b.grad.dtype


def test_which_layers_change() -> None:
    layers = {
        'depthwise': nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False),
        'strided': nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False),
        'product': nn.Conv2d(16, 8, 1),
    }
    others = {
        'with a bias': nn.Conv2d(16, 16, 3, 1, 1, groups=16),
        'large': nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False),
        'unpadded': nn.Conv2d(16, 16, 3, 1, 0, groups=16, bias=False),
        'by words': nn.Conv2d(16, 16, 3, 1, 'same', groups=16, bias=False),
        'dilated': nn.Conv2d(16, 16, 3, 1, 1, dilation=2, groups=16, bias=False),
        'mirrored': nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False, padding_mode='reflect'),
        'multiplied': nn.Conv2d(16, 32, 3, 1, 1, groups=16, bias=False),
        'in groups': nn.Conv2d(16, 16, 3, 1, 1, groups=4, bias=False),
        'strides': nn.Conv2d(16, 16, 3, (2, 1), 1, groups=16, bias=False),
        'all channels': nn.Conv2d(16, 16, 3, 1, 1, bias=False),
        'strided product': nn.Conv2d(16, 8, 1, 2),
        'product in groups': nn.Conv2d(16, 8, 1, groups=2),
        'padded product': nn.Conv2d(16, 8, 1, padding=1),
        'derived': Conv2dSame(16, 16, 3, groups=16, bias=False),
    }
    model = nn.ModuleDict({**layers, **others}).to(DEVICE)
    later = copy.deepcopy(model)
    record(model)
    recorded = (convolutions.GpuDepthwiseConv2d, convolutions.ProductConv2d)
    assert {name for name in model if type(model[name]) in recorded} == set(layers)
    swap(later, CUDA, channels_last=True)
    assert type(later['depthwise']) is convolutions.PlannedLaterConv2d
    record(later)
    assert all(type(later[name]) is type(model[name]) for name in layers)


def test_others_are_left_to_torch(launched: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that fill no vector, images in another layout, a sample of no batch, no image: to the bit torch's."""
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    for shape, memory_format in (
        ((2, 20, 5, 5), torch.channels_last),
        ((2, 16, 5, 5), torch.contiguous_format),
        ((16, 5, 5), torch.contiguous_format),
        ((0, 16, 5, 5), torch.channels_last),
    ):
        layer = nn.Conv2d(shape[-3], shape[-3], 3, 1, 1, groups=shape[-3], bias=False).to(DEVICE)
        ours = copy.deepcopy(layer)
        x = torch.ones(shape, device=DEVICE).cumsum(-1).sin().to(memory_format=memory_format)
        record(ours)
        assert type(ours) is not nn.Conv2d
        assert torch.equal(gradients(ours, x), gradients(layer, x))
    ours, plain = network(), network()
    record(ours)
    x = images()
    actual, wanted = (torch.func.vmap(model)(x[None]) for model in (ours, plain))
    torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match='channels'):
        ours[1](images(2, 32, 5, 5))
    assert not launched


def test_gradients_of_many_at_once() -> None:
    ours, plain = network()[1], network()[1]
    record(ours)
    x = images(2, 16, 6, 5).requires_grad_()
    grads = torch.randn(3, 2, 16, 6, 5, device=DEVICE)
    actual, wanted = (torch.autograd.grad(model(x), x, grads, is_grads_batched=True)[0] for model in (ours, plain))
    torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-3)


def test_saved_images_may_come_back_in_another_layout() -> None:
    ours, plain = network(), network()
    record(ours)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.contiguous(), lambda tensor: tensor):
        actual = gradients(ours, images())
    wanted = gradients(plain, images())
    assert (actual - wanted).norm() < 1e-3 * wanted.norm()


def test_second_derivatives() -> None:
    layer = nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False).to(DEVICE)
    ours = copy.deepcopy(layer)
    record(ours)
    results = []
    for each in (layer, ours):
        x = images(2, 16, 6, 5).requires_grad_()
        (gradient,) = torch.autograd.grad((each(x) ** 3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append(torch.cat([x.grad.flatten(), each.weight.grad.flatten()]))
    torch.testing.assert_close(results[1] / results[0].norm(), results[0] / results[0].norm(), rtol=1e-4, atol=1e-5)


def test_the_first_batches_need_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, '_FEW', 2)
    planned, forward = [], nn.Conv2d._conv_forward

    def spy(self: nn.Conv2d, *args: torch.Tensor) -> torch.Tensor:
        planned.append(torch.backends.cudnn.enabled)
        return forward(self, *args)

    monkeypatch.setattr(nn.Conv2d, '_conv_forward', spy)
    ours, plain = network(), network()
    swap(ours, CUDA, channels_last=True)
    x = images()
    wanted = plain(x)
    planned.clear()
    ours(x).sum().backward()
    assert planned == [True] * 5, 'in training they are'
    for each in (False, False, True):
        planned.clear()
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), wanted, rtol=1e-3, atol=1e-3)
        assert planned == [True, each, True, each, True]


def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from imagenette_zoo.kernels import gpu

    monkeypatch.undo()
    monkeypatch.setattr(convolutions, 'triton_kernels', lambda device: gpu)
    monkeypatch.setattr(gpu, 'check_depthwise', lambda device: 1 / 0)
    convolutions._kernels.cache_clear()
    model = network()
    record(model)
    convolutions._kernels.cache_clear()
    assert [type(layer).__name__ for layer in model] == [
        'Conv2d', 'PlannedLaterConv2d', 'ProductConv2d', 'Mish', 'PlannedLaterConv2d', 'ProductConv2d',
    ]  # fmt: skip
