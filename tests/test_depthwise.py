"""Depthwise convolutions under bfloat16 autocast on a CPU."""

import copy

import pytest
import timm
import torch
import torch.nn as nn

from imagenette_zoo.layers.depthwise import speed_up_depthwise


def _train(layer: nn.Module, x: torch.Tensor, amp: bool = True) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
@pytest.mark.parametrize('stride', [1, 2, 3])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('multiplier', [1, 2])
def test_gradients_are_those_of_torch(kernel_size: int, stride: int, bias: bool, multiplier: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(
        8, 8 * multiplier, kernel_size, stride, kernel_size // 2, groups=8, bias=bias, dilation=1 + (kernel_size == 3)
    )
    exact, ours = copy.deepcopy(layer), copy.deepcopy(layer)
    speed_up_depthwise(ours)
    assert (type(ours) is nn.Conv2d) == (stride == 1 and kernel_size < 5)
    x = torch.randn(3, 8, 13, 12).to(memory_format=torch.channels_last)
    for a, b, c in zip(_train(exact, x, amp=False), _train(layer, x), _train(ours, x), strict=True):
        assert c.dtype == b.dtype
        assert c.shape == b.shape
        error = (c.float() - a).norm() / a.norm()
        assert error < 0.01
        assert error <= (b.float() - a).norm() / a.norm() * 1.5


def test_nothing_else_changes() -> None:
    torch.manual_seed(0)
    model = timm.create_model('mobilenetv2_050', num_classes=10)
    ours = copy.deepcopy(model)
    speed_up_depthwise(ours)
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
    speed_up_depthwise(ours)
    x = torch.randn(2, 4, 9, 9)
    for a, b in zip(_train(layer, x), _train(ours, x), strict=True):
        assert torch.equal(a, b)


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 5, 2, 2, groups=4)
    speed_up_depthwise(layer)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        loss = (layer(x) ** 3).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_compiled() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(4, 4, 5, 2, 2, groups=4), nn.Mish())
    speed_up_depthwise(layer)
    x = torch.randn(2, 4, 8, 8)
    eager = _train(copy.deepcopy(layer), x)
    layer.compile(dynamic=False)
    for a, b in zip(eager, _train(layer, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
