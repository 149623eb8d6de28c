"""BatchNorm and an activation as one layer: what timm's layer computes, and that layer wherever it has to be."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import imagenette_zoo.models  # noqa: F401  (registers them)
from imagenette_zoo.fast_layers.norm_act import _ACTIVATIONS
from imagenette_zoo.fast_layers.swap import swap
from imagenette_zoo.kernels import runtime
from imagenette_zoo.layers import Mish
from imagenette_zoo.models.factory import to_device
from tests.conftest import needs_compiler, run_without_compiler

ACTIVATIONS = [Mish, nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish]
TOLERANCES = {torch.float32: {'rtol': 1e-4, 'atol': 1e-5}, torch.bfloat16: {'rtol': 2e-2, 'atol': 2e-2}}


def layers(channels: int = 32, **options: object) -> tuple[BatchNormAct2d, BatchNormAct2d]:
    """timm's layer in float64, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = BatchNormAct2d(channels, **{'act_layer': Mish, **options})
    if theirs.affine:
        nn.init.uniform_(theirs.weight, 0.5, 2)
        nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    swap(ours, torch.device('cpu'), channels_last=True)
    assert type(ours) is not BatchNormAct2d
    return theirs.double(), ours


def images(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.randn(shape) * 3 + 1).to(dtype).contiguous(memory_format=torch.channels_last)


def trained(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output and all gradients, for others than ones at the output."""
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.manual_seed(2)
    grads = torch.autograd.grad(y, (x, *layer.parameters()), torch.randn(y.shape).to(y))
    return [y.detach(), *grads]


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_activations_are_timms(act: type[nn.Module], dtype: torch.dtype, calls: list[str]) -> None:
    theirs, ours = layers(act_layer=act)
    assert type(ours.act) is act
    x = images(4, 32, 9, 7, dtype=dtype)
    for actual, exact in zip(trained(ours, x), trained(theirs, x.double()), strict=True):
        scale = exact.abs().max().clamp(min=1)
        torch.testing.assert_close(actual.double() / scale, exact / scale, **TOLERANCES[dtype])
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x).double(), theirs.eval()(x.double()), **TOLERANCES[dtype])
    assert calls == ['norm_stats', 'norm_act_forward', 'norm_act_backward', 'norm_act_forward']


@needs_compiler
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_activations_of_special_values(act: type[nn.Module]) -> None:
    """Value and slope are torch's; one pixel's gradient of the bias is the slope."""
    number, function = _ACTIVATIONS[act]
    special = [0.0, -0.0, 6.0, 1e-30, 20.0, -20.0, 87.0, -87.0, 88.0, -88.0, 1e4, -1e4, 1e38, -1e38, float('nan')]
    x = torch.tensor([*special, *torch.linspace(-8.2, 8.2, 33)])
    assert len(x) % runtime.LANES == 0
    zeros, ones, y, dx, dweight, dbias = (torch.full_like(x, value) for value in (0, 1, 0, 0, 0, 0))
    runtime.call('norm_act_forward', (1, len(x), number), x, y, ones, zeros)
    runtime.call('norm_act_backward', (1, len(x), number), ones, x, dx, ones, zeros, zeros, ones, dweight, dbias)
    exact = x.double().requires_grad_()
    expected = function(exact)
    expected.sum().backward()
    torch.testing.assert_close(y.double(), expected.detach(), rtol=1e-5, atol=1e-6, equal_nan=True)
    numbers = ~x.isnan()  # what a kinked one does with NaN is a matter of torch's version
    torch.testing.assert_close(dbias[numbers].double(), exact.grad[numbers], rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize('shape', [(4, 32, 9, 7), (64, 16, 40, 33), (2, 960, 4, 4), (2, 32, 1, 1), (3, 40960, 1, 2)])
def test_training_is_timms(dtype: torch.dtype, shape: tuple[int, ...], calls: list[str]) -> None:
    """Odd sizes, several chunks of rows, more channels than a chunk has elements."""
    theirs, ours = layers(shape[1])
    x = images(*shape, dtype=dtype)
    actual, expected = trained(ours, x), trained(theirs, x.double())
    assert calls == ['norm_stats', 'norm_act_forward', 'norm_act_backward']
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32, torch.float32]
    assert actual[0].is_contiguous(memory_format=torch.channels_last)
    for tensor, exact in zip(actual, expected, strict=True):
        scale = exact.abs().max().clamp(min=1)
        torch.testing.assert_close(tensor.double() / scale, exact / scale, **TOLERANCES[dtype])
    torch.testing.assert_close(ours.running_mean.double(), theirs.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=1e-5)
    assert ours.num_batches_tracked == 1


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES)
def test_evaluation_is_timms(dtype: torch.dtype, calls: list[str]) -> None:
    theirs, ours = layers()
    nn.init.normal_(ours.running_mean)
    nn.init.uniform_(ours.running_var, 0.5, 9)
    theirs.load_state_dict(ours.state_dict())
    theirs.eval()
    ours.eval()
    x = images(4, 32, 9, 7, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).double(), theirs(x.double()), **TOLERANCES[dtype])
    assert calls == ['norm_act_forward']


@needs_compiler
def test_a_large_mean_costs_no_digits() -> None:
    """The variance is not a difference of large numbers."""
    theirs, ours = layers()
    x = images(8, 32, 16, 16) + 1000
    torch.testing.assert_close(ours(x).double(), theirs(x.double()), rtol=1e-3, atol=1e-3)


@needs_compiler
def test_the_number_of_threads_changes_nothing() -> None:
    x = images(8, 32, 40, 40, dtype=torch.bfloat16)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(trained(layers()[1], x))
    torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@needs_compiler
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_nan_is_seen(act: type[nn.Module], calls: list[str]) -> None:
    for dtype in TOLERANCES:
        x = images(2, 32, 4, 4, dtype=dtype)
        x[0, 3, 1, 1] = float('nan')
        y = layers(act_layer=act)[1](x)
        assert y[:, 3].isnan().all()
        assert y[:, 4:].isfinite().all()
    assert calls


@needs_compiler
@pytest.mark.parametrize('act', ACTIVATIONS)
def test_gradients_of_gradients(act: type[nn.Module]) -> None:
    theirs, ours = layers(16, act_layer=act)
    x = images(2, 16, 3, 3)

    def second(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, *layer.parameters()))

    for actual, exact in zip(second(ours, x), second(theirs, x.double()), strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=2e-3, atol=2e-3)


@needs_compiler
def test_gradients_of_gradients_of_a_layer_used_twice() -> None:
    theirs, ours = layers(16)
    x = images(2, 16, 3, 3)
    gradients = []
    for layer in (ours, theirs):
        y = layer(layer(x.to(layer.weight)))
        gradients.append(torch.autograd.grad(y.square().sum(), layer.parameters(), create_graph=True))
    for actual, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_hooks_that_change_saved_tensors(calls: list[str]) -> None:
    """Half as many bytes: the kernel must not take them for float32."""
    x = images(4, 32, 8, 8).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.bfloat16(), lambda tensor: tensor):
        y = layers()[1](x)
    y.sum().backward()
    assert 'norm_act_backward' not in calls


@needs_compiler
def test_defaults_of_another_kind(calls: list[str]) -> None:
    expected = trained(layers()[1], images(4, 32, 8, 8))
    layer, x = layers()[1], images(4, 32, 8, 8).requires_grad_()
    torch.manual_seed(2)
    grad = torch.randn(x.shape)
    with torch.device('meta'):
        y = layer(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        actual = [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), grad)]
        layer(x)
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, actual, expected))
    assert calls.count('norm_act_forward') == 3


@needs_compiler
def test_one_tensor_of_the_images_size_is_saved() -> None:
    saved: list[torch.Tensor] = []
    x = images(4, 32, 16, 16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layers()[1](x)
    assert [tensor.data_ptr() for tensor in saved if tensor.numel() > 32] == [x.data_ptr()]


@needs_compiler
def test_a_trained_bias_in_evaluation(calls: list[str]) -> None:
    theirs, ours = layers()
    x = images(4, 32, 8, 8)
    for layer in (theirs, ours):
        layer.eval().weight.requires_grad_(False)
        layer(x.to(layer.weight)).sum().backward()
    torch.testing.assert_close(ours.bias.grad.double(), theirs.bias.grad, rtol=1e-4, atol=1e-4)
    assert calls == ['mish_forward', 'mish_backward']


@needs_compiler
def test_checkpointing_and_frozen_weights(calls: list[str]) -> None:
    x = images(4, 32, 8, 8)
    expected = trained(layers()[1], x)
    again = trained(layers()[1], x)
    assert all(map(torch.equal, expected, again))
    layer = layers()[1]
    layer.weight.requires_grad_(False)
    x.requires_grad_()
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert calls.count('norm_act_backward') == 3


OTHERWISE: dict[str, Callable[[nn.Module, torch.Tensor], tuple[nn.Module, torch.Tensor]]] = {
    'contiguous': lambda layer, x: (layer, x.contiguous()),
    'float64': lambda layer, x: (layer.double(), x.double()),
    'fine-tuned in eval mode': lambda layer, x: (layer.eval(), x),
    'cumulative average': lambda layer, x: (_set(layer, momentum=None), x),
    'no statistics': lambda layer, x: (layers(track_running_stats=False)[1], x),
    'no weights': lambda layer, x: (layers(affine=False)[1], x),
    'no count of batches': lambda layer, x: (_set(layer, num_batches_tracked=None), x),
    'statistics taken away': lambda layer, x: (_set(layer, running_mean=None, running_var=None), x),
    'channels': lambda layer, x: (layers(24)[1], x[:, :24].contiguous(memory_format=torch.channels_last)),
    'hook': lambda layer, x: (_hooked(layer), x),
    'backward hook': lambda layer, x: (_hooked(layer, 'register_full_backward_pre_hook'), x),
    'another activation': lambda layer, x: (_set(layer, act=nn.GELU()), x),
    'dropout': lambda layer, x: (_set(layer, drop=nn.Dropout(0.0)), x),
    'compiled': lambda layer, x: (torch.compile(layer, backend='eager'), x),
}


def _set(layer: nn.Module, **values: object) -> nn.Module:
    for name, value in values.items():
        setattr(layer, name, value)
    return layer


def _hooked(layer: nn.Module, how: str = 'register_forward_hook') -> nn.Module:
    getattr(layer.act, how)(lambda *_: None)
    layer.act.inplace = False  # which torch would refuse
    return layer


@needs_compiler
@pytest.mark.parametrize('case', OTHERWISE)
def test_elsewhere_it_is_timms_layer(case: str, calls: list[str]) -> None:
    torch._dynamo.reset()
    layer, x = OTHERWISE[case](layers()[1], images(4, 32, 5, 5))
    plain = copy.deepcopy(getattr(layer, '_orig_mod', layer))
    plain.__class__ = BatchNormAct2d
    if case == 'compiled':
        plain = torch.compile(plain, backend='eager')
    for actual, expected in zip(trained(layer, x), trained(plain, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert not calls


def test_a_single_value_is_refused_as_by_torch() -> None:
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        layers()[1](images(1, 32, 1, 1))


def test_which_layers_are_fused() -> None:
    def fused(**options: object) -> bool:
        layer = BatchNormAct2d(16, **options)
        swap(layer, torch.device('cpu'), channels_last=True)
        return type(layer) is not BatchNormAct2d

    assert all(fused(act_layer=act) for act in ACTIVATIONS)
    assert fused(act_layer=nn.GELU, apply_act=False)
    assert not fused(act_layer=nn.GELU)
    assert not fused(act_layer=Mish, drop_layer=nn.Dropout)


@needs_compiler
@pytest.mark.parametrize(
    'name', ['mbv2_mish_imagenette', 'mbv2_mish_mp2_imagenette', 'mbv2_mish_maxblur_imagenette', 'efficientnet_b0']
)
def test_a_step_of_training_is_torchs(name: str, calls: list[str]) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(name).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(plain)
    swap(fused, torch.device('cpu'), channels_last=True)
    x, targets = images(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    for model in (plain, fused):
        F.cross_entropy(model(x), targets).backward()
    assert sum(call.startswith('norm') for call in calls) == 3 * sum(
        type(n) is BatchNormAct2d and n.num_features % 16 == 0 for n in plain.modules()
    )
    assert fused.state_dict().keys() == plain.state_dict().keys()
    largest = max(parameter.grad.abs().max() for parameter in plain.parameters())
    for theirs, ours in zip(plain.parameters(), fused.parameters(), strict=True):
        scale = theirs.grad.abs().max().clamp(min=1e-3 * largest)  # a bias before another norm: rounding alone
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=0, atol=1e-2)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.slow
def test_no_compiler(tmp_path: Path) -> None:
    """A machine without one: silently timm's layer."""
    script = """if True:
        import torch
        from timm.layers import BatchNormAct2d
        from imagenette_zoo.layers import Mish
        from imagenette_zoo.fast_layers.swap import swap
        x = torch.randn(4, 32, 8, 8).to(memory_format=torch.channels_last)
        layer = BatchNormAct2d(32, act_layer=Mish)
        expected = layer(x)
        swap(layer, torch.device('cpu'), channels_last=True)
        assert torch.equal(layer(x), expected)
        """
    run_without_compiler(script, tmp_path)


@needs_compiler
@pytest.mark.parametrize(('device', 'phase'), [('cpu', 'always'), ('cuda', 'recorded steps')])
def test_torchs_own_layer(device: str, phase: str, calls: list[str]) -> None:
    theirs = nn.BatchNorm2d(32)
    ours = copy.deepcopy(theirs)
    swap(ours, torch.device(device), channels_last=True, phase=phase)
    x = images(4, 32, 9, 7)
    for actual, exact in zip(trained(ours, x), trained(theirs.double(), x.double()), strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var.float())
    assert calls == ['norm_stats', 'norm_act_forward', 'norm_act_backward']
    theirs.float().load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x)), "in evaluation it is torch's to the bit"


@needs_compiler
def test_torchs_own_layer_is_exact_on_any_number_of_threads() -> None:
    """torch's kernel adds up many numbers in single precision: here it is 1e-5 off, differently on two threads."""
    x, results = images(32, 16, 56, 56), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        layer = to_device(nn.BatchNorm2d(16, momentum=1.0), torch.device('cpu'), channels_last=True)
        results.append([*trained(layer, x), layer.running_mean, layer.running_var])
    torch.set_num_threads(1)
    exact = nn.BatchNorm2d(16, momentum=1.0).double()
    wanted = [*trained(exact, x.double()), exact.running_mean, exact.running_var]
    for actual, *others, want in zip(*results, wanted, strict=True):
        assert (actual.double() - want).abs().max() < 2e-6 * want.abs().max()
        assert all(torch.equal(actual, other) for other in others)


@needs_compiler
@pytest.mark.parametrize('training', [False, True])
def test_a_tangent_of_the_weights(training: bool) -> None:
    plain, fast = (layer.train(training) for layer in layers())
    tangents = []
    for layer in (fast, plain.float()):
        with torch.no_grad(), forward_ad.dual_level():
            weight = forward_ad.make_dual(layer.weight.detach(), torch.ones_like(layer.weight))
            y = torch.func.functional_call(layer, {'weight': weight}, (images(4, 32, 5, 5),))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    assert tangents[1] is not None
    torch.testing.assert_close(*tangents)
