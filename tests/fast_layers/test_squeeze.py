"""Squeeze-and-excitation as timm computes it, its gradient in the image's memory layout."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from imagenette_zoo.fast_layers import squeeze
from imagenette_zoo.fast_layers.swap import swap

LAYERS = [SEModule, EffectiveSEModule, SqueezeExcite]


def pair(kind: type[nn.Module], **options: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    theirs = kind(32, **options)
    ours = copy.deepcopy(theirs)
    swap(ours, torch.device('cpu'), channels_last=True)
    return theirs, ours


def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 32, 9, 7).to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize('kind', LAYERS)
@pytest.mark.parametrize('amp', [False, True])
def test_values_and_gradients_are_timms(kind: type[nn.Module], amp: bool) -> None:
    results = []
    for layer in pair(kind):
        x = images()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            y = layer(x)
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
        results.append((y, *grads))
    assert type(pair(kind)[1]) is not kind
    for theirs, ours in zip(*results, strict=True):
        assert theirs.dtype == ours.dtype
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize('kind', LAYERS)
def test_the_means_gradient_is_not_spread_in_memory(kind: type[nn.Module]) -> None:
    """The gradients that meet at the image: one of its layout, and one that repeats a number."""
    for layer, repeats in zip(pair(kind), (False, True), strict=True):
        x = images()
        strides = []
        y = layer(x)
        mean = next(node for node in nodes(y.grad_fn) if 'Mean' in node.name())
        mean.register_hook(lambda grads, _, strides=strides: strides.append(grads[0].stride()))
        y.sum().backward()
        assert (strides[0][2:] == (0, 0)) is repeats


def nodes(node: torch.autograd.graph.Node) -> list[torch.autograd.graph.Node]:
    reached = [node]
    for following, _ in node.next_functions:
        reached += nodes(following) if following is not None else []
    return reached


@pytest.mark.parametrize('kind', [SEModule, SqueezeExcite])  # torch cannot differentiate the other's gate twice
def test_gradients_of_gradients(kind: type[nn.Module]) -> None:
    results = []
    for layer in pair(kind):
        x = images()
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*results)


def test_elsewhere_it_is_timms_layer() -> None:
    theirs, ours = pair(SEModule)
    x = torch.randn(3, 4, 32, 5, 5)
    torch.testing.assert_close(torch.vmap(ours)(x), torch.vmap(theirs)(x))
    torch.testing.assert_close(torch.jit.trace(ours, x[0])(x[1]), theirs(x[1]))
    assert type(pair(SEModule, add_maxpool=True)[1]) is SEModule


@pytest.mark.parametrize('name', ['efficientnet_b0', 'seresnet18d_mish_maxblur_imagenette', 'test_byobnet'])
def test_a_step_of_training_is_timms(name: str) -> None:
    torch.manual_seed(0)
    faster = timm.create_model(name, num_classes=10).to(memory_format=torch.channels_last)
    swap(faster, torch.device('cpu'), channels_last=True)
    plain = copy.deepcopy(faster)
    squeezes = [layer for layer in plain.modules() if type(layer).__module__ == squeeze.__name__]
    assert squeezes
    for layer in squeezes:
        layer.__class__ = type(layer).__base__
    x = torch.randn(4, 3, 64, 64).to(memory_format=torch.channels_last)
    for model in (plain, faster):
        torch.manual_seed(1)
        F.cross_entropy(model(x), torch.tensor([1, 2, 3, 4])).backward()
    assert faster.state_dict().keys() == plain.state_dict().keys()
    for theirs, ours in zip(plain.parameters(), faster.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
