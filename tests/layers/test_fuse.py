"""Fusion of whole models: what is folded, what must not be, and that nothing but the last rounding changes."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, BlurPool2d, Conv2dSame, ScaledStdConv2d, StdConv2d, convert_sync_batchnorm
from timm.layers import freeze_batch_norm_2d as freeze
from timm.models import register_notrace_module
from torch.nn.modules.batchnorm import _BatchNorm

from imagenette_zoo import fuse
from imagenette_zoo.layers import MultiPass, WideInvertedResidual
from imagenette_zoo.models.factory import model_cost
from tests.conftest import ZOO

TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-4}  # float32 itself is 1e-4 away from float64 on some
TIMM = [
    'resnet18',
    'resnet50d',
    'efficientnet_b0',
    'mobilenetv3_small_100',
    'convnext_atto',
    'regnety_002',
    'repvgg_a0',
    'mobileone_s0',
    'vit_tiny_patch16_224',
]
SMALL_MP2 = ('mbv2_mish_mp2_imagenette', {'channel_multiplier': 0.35})


def images(size: int = 48, batch: int = 2, channels: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def randomise_norms(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Gives norms weights unlike their initial ones and the statistics of `x`: a wrong fold then shows."""
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def create(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith('vit'):
        settings['img_size'] = 48
    return randomise_norms(timm.create_model(name, **settings).double(), images(batch=4))


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(layer, _BatchNorm) for layer in model.modules())


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < TOLERANCE[expected.dtype]


def assert_depends_on_norms(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> None:
    """Otherwise a comparison of outputs says nothing of how norms were folded."""
    changed = copy.deepcopy(model)
    norms = [layer for layer in changed.modules() if isinstance(layer, _BatchNorm)]
    norms[len(norms) // 2].running_mean += 0.1
    assert (changed(x) - expected).abs().max() > 1e-6 * expected.abs().max()


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


FUSED = 'mbv2_mish_mp2_imagenette', 'googlenet', 'resnet18', 'repvgg_a0'  # one of each kind


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [*FUSED, *(pytest.param(name, marks=pytest.mark.long) for name in ZOO + TIMM if name not in FUSED)]
)
def test_models(name: str) -> None:
    model, x = create(name), images()
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    if norms_of(model):
        assert_depends_on_norms(model, x, expected)
    model.train()
    fused = fuse(model)
    assert type(fused) is type(model)
    assert model.training
    assert not any(layer.training for layer in fused.modules())
    assert norms_of(fused) == 0
    assert_same(fused(x), expected)

    model.eval()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    theirs = {value.data_ptr() for value in after.values()}
    assert not theirs & {value.data_ptr() for value in fused.state_dict().values()}

    again = fuse(fused)
    assert list(again.state_dict()) == list(fused.state_dict())
    torch.testing.assert_close(again(x), fused(x), rtol=0, atol=0)

    model.float()
    fused = fuse(model)
    assert {weight.dtype for weight in fused.parameters()} == {torch.float32}
    assert_same(fused(x.float()), model(x.float()))


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        pytest.param('mbv2_mish_mp2_imagenette', marks=pytest.mark.long),
        pytest.param('resnet34_mp2_imagenette', marks=pytest.mark.long),
        'googlenet',
        'repvgg_a0',
    ],
)
def test_methods_of_timm_remain(name: str) -> None:
    model, x = create(name), images(64)
    fused = fuse(model)
    assert_same(fused.forward_features(x), model.forward_features(x))
    for actual, expected in zip(fused.forward_intermediates(x)[1], model.forward_intermediates(x)[1], strict=True):
        assert_same(actual, expected)
    assert fused.feature_info == model.feature_info
    assert fused.pretrained_cfg == model.pretrained_cfg
    fused.reset_classifier(7)
    assert fused.double()(x).shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('mbv2_mish_mp2_imagenette', {}),
        ('mbv2_mish_mp2_imagenette', {'feature_cls': 'getter'}),
        ('resnet34_maxblur_imagenette', {}),
        ('resnet18', {'feature_cls': 'fx'}),
        ('efficientnet_b0', {'feature_cls': 'hook'}),
        ('efficientnet_b0', {'feature_location': 'expansion'}),
        ('repvgg_a0', {'feature_cls': 'hook'}),
    ],
)
def test_features_only(name: str, settings: dict[str, Any]) -> None:
    model, x = create(name, features_only=True, **settings), images()
    fused = fuse(model)
    assert norms_of(fused) < norms_of(model)
    for actual, expected in zip(fused(x), model(x), strict=True):
        assert_same(actual, expected)
    assert fused.feature_info.channels() == model.feature_info.channels()


@pytest.mark.slow
@pytest.mark.parametrize('name', [SMALL_MP2[0], 'repvgg_a0', pytest.param('mobileone_s0', marks=pytest.mark.long)])
def test_only_the_last_rounding_differs(name: str) -> None:
    model = create(name).float()
    exact = fuse(copy.deepcopy(model).double()).float().state_dict()
    assert all(torch.equal(value, exact[key]) for key, value in fuse(model).state_dict().items())


def test_hooks_are_kept() -> None:
    model, x = create(SMALL_MP2[0], **SMALL_MP2[1]), images()
    seen: list[torch.Tensor] = []
    model.blocks[2][0].register_forward_hook(lambda _layer, _inputs, out: seen.append(out))
    model(x)
    fuse(model)(x)
    assert_same(seen[1], seen[0])


def test_multi_pass_becomes_one_block() -> None:
    model = create(SMALL_MP2[0], **SMALL_MP2[1])
    fused = fuse(model)
    assert not any(isinstance(layer, MultiPass) for layer in fused.modules())
    assert sum(isinstance(layer, WideInvertedResidual) for layer in fused.modules()) == 16


@pytest.mark.slow
@pytest.mark.parametrize('name', [SMALL_MP2[0], 'resnet18', 'repvit_m0_9'])
@pytest.mark.parametrize('memory_format', [torch.channels_last, torch.contiguous_format])
def test_keeps_the_memory_format(name: str, memory_format: torch.memory_format) -> None:
    model = create(name).float().to(memory_format=memory_format)
    x = images(dtype=torch.float32).to(memory_format=memory_format)
    fused = fuse(model)
    weights = [weight for weight in fused.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)
    assert fused.forward_features(x).is_contiguous(memory_format=memory_format)
    assert_same(fused(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize('name', [SMALL_MP2[0], 'repvgg_a0', 'repvit_m0_9'])
def test_keeps_the_dtype(name: str) -> None:
    """Also where timm makes a merged layer in the default dtype."""
    model, x = create(name), images()
    expected = model(x)
    assert_same(fuse(model)(x), expected)
    fused = fuse(model.bfloat16())
    assert {value.dtype for value in fused.state_dict().values()} == {torch.bfloat16}
    assert fused(x.bfloat16()).dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32


def test_keeps_different_dtypes() -> None:
    model = nn.Sequential(chain_of(nn.Conv2d(4, 4, 1)).bfloat16(), chain_of(nn.Conv2d(4, 4, 1, bias=False))).eval()
    model[1][1].double()
    fused = fuse(model)
    assert [value.dtype for value in fused.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2


def chain_of(conv: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(conv, norm or nn.BatchNorm2d(conv.out_channels), nn.ReLU())


CHAINS: dict[str, Callable[[], nn.Module]] = {
    'bias': lambda: chain_of(nn.Conv2d(4, 6, 3)),
    'no bias': lambda: chain_of(nn.Conv2d(4, 6, 3, bias=False)),
    'grouped': lambda: chain_of(nn.Conv2d(4, 6, 3, groups=2, padding='same')),
    'depthwise': lambda: chain_of(nn.Conv2d(4, 8, 5, groups=4, dilation=2, stride=(2, 1))),
    'reflected': lambda: chain_of(nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect')),
    'circular': lambda: chain_of(nn.Conv2d(4, 6, (3, 5), padding=(1, 2), padding_mode='circular')),
    'same padding': lambda: chain_of(Conv2dSame(4, 6, 3, stride=2)),
    'not affine': lambda: chain_of(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)),
    'large eps': lambda: chain_of(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.5)),
    'activation': lambda: chain_of(nn.Conv2d(4, 6, 3), BatchNormAct2d(6, act_layer=nn.SiLU)),
    'learned activation': lambda: chain_of(nn.Conv2d(4, 6, 3), BatchNormAct2d(6, act_layer='prelu')),
    'synchronised': lambda: chain_of(nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)),
}


@pytest.mark.parametrize('case', CHAINS)
@pytest.mark.parametrize('variant', ['plain', 'frozen'])
def test_convolutions_and_norms(case: str, variant: str) -> None:
    torch.manual_seed(0)
    model = CHAINS[case]().double()
    x = images(11, channels=4)
    if case == 'synchronised':  # trains on GPUs only
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    else:
        randomise_norms(model, x)
    model.eval()
    if variant == 'frozen':
        model = freeze(model).double()
    fused = fuse(model)
    assert type(fused[0]) is type(model[0])
    assert not hasattr(fused[1], 'running_mean')
    assert_same(fused(x), model(x))


def test_synchronised_norms_with_activation() -> None:
    model, x = create('resnet18', norm_layer='batchnorm2d'), images()
    mobile = create(SMALL_MP2[0], **SMALL_MP2[1])
    for each in (model, mobile):
        expected = each(x)
        fused = fuse(convert_sync_batchnorm(each))
        assert norms_of(fused) == 0
        assert_same(fused(x), expected)


class OutputUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class NormCalledTwice(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(self.conv(x)))


class ConvCalledTwice(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.conv(x + 1)


class WeightUsedDirectly(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) * self.conv.weight.mean()


class StatisticsUsedDirectly(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + F.relu(x) * self.norm.running_mean.mean()


class NormFirst(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class SomethingBetween(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).relu())


class ReachedByALink(OutputUsedTwice):
    """A second way to a layer that isn't one of the module's children."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.conv, self.norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class NormAlwaysInTraining(OutputUsedTwice):
    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class SharedByTwoNames(OutputUsedTwice):
    def __init__(self) -> None:
        super().__init__()
        self.same = self.conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class UsesTheOutputAgain(OutputUsedTwice):
    """The part of it that can be traced looks like a convolution with its norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return z + y if z.sum() > 0 else z - y


@register_notrace_module
class MisleadsTracing(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y if isinstance(x, torch.Tensor) else self.norm(y)


def hooked() -> nn.Module:
    model = chain_of(nn.Conv2d(4, 4, 1))
    model[0].register_forward_hook(lambda _layer, _inputs, out: out * 2)
    return model


def weight_normalised() -> nn.Module:
    return chain_of(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)))


UNFOLDABLE: dict[str, Callable[[], nn.Module]] = {
    'output used twice': OutputUsedTwice,
    'norm called twice': NormCalledTwice,
    'convolution called twice': ConvCalledTwice,
    'weight used directly': WeightUsedDirectly,
    'statistics used directly': StatisticsUsedDirectly,
    'norm first': NormFirst,
    'something between': SomethingBetween,
    'link': ReachedByALink,
    'two names': SharedByTwoNames,
    'always in training': NormAlwaysInTraining,
    'not to be traced': lambda: nn.Sequential(MisleadsTracing()),
    'nested use': lambda: nn.Sequential(UsesTheOutputAgain()),
    'hook': hooked,
    'weight norm': weight_normalised,
    'standardised': lambda: chain_of(StdConv2d(4, 4, 3)),
    'scaled and standardised': lambda: chain_of(ScaledStdConv2d(4, 4, 3)),
    'transposed': lambda: chain_of(nn.ConvTranspose2d(4, 4, 3)),
    'batch statistics': lambda: chain_of(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    'instance norm': lambda: chain_of(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)),
    'dropout': lambda: chain_of(nn.Conv2d(4, 4, 3), BatchNormAct2d(4, drop_layer=nn.Dropout)),
}


@pytest.mark.parametrize('case', UNFOLDABLE)
def test_leaves_what_it_must(case: str) -> None:
    torch.manual_seed(0)
    x = images(9, channels=4)
    model = randomise_norms(UNFOLDABLE[case]().double(), x)
    fused = fuse(model)
    assert list(fused.state_dict()) == list(model.state_dict())
    assert_same(fused(x), model(x))


def test_shared_weights_are_not_scaled_twice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(chain_of(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1)).double()
    model[1].weight = model[0][0].weight
    x = images(9, channels=4)
    randomise_norms(model, x)
    fused = fuse(model)
    assert norms_of(fused) == 0
    assert_same(fused(x), model(x))


class DataDependent(nn.Module):
    """Its forward can't be traced, nor can its second block's; the first block's can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList([chain_of(nn.Conv2d(4, 4, 3)), UsesTheOutputAgain()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x))
        if x.mean() > 100:
            return x
        for block in self.blocks:
            x = block(x)
        return x


def test_children_of_what_cannot_be_traced_are_fused() -> None:
    torch.manual_seed(0)
    x = images(13, channels=4)
    model = randomise_norms(DataDependent().double(), x)
    fused = fuse(model)
    assert isinstance(fused.stem_norm, nn.BatchNorm2d)
    assert isinstance(fused.blocks[0][1], nn.Identity)
    assert isinstance(fused.blocks[1].norm, nn.BatchNorm2d)
    assert_same(fused(x), model(x))


def test_what_cannot_be_traced_hides_nothing_else() -> None:
    """The layers around a part that can't be traced are fused, and so is what is in that part."""
    torch.manual_seed(0)
    x = images(15, channels=4)
    model = randomise_norms(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), DataDependent()).double(), x)
    fused = fuse(model)
    assert norms_of(model) - norms_of(fused) == 2
    assert_same(fused(x), model(x))


@register_notrace_module
class NotTraced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = chain_of(nn.Conv2d(4, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class OddModel(nn.Module):
    """Keeps what it computes, has an optional argument and returns what no graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = NotTraced()
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        self.last = self.body(x) if mask is None else x * mask
        return type('Output', (), {'logits': self.last})()


def test_odd_models() -> None:
    torch.manual_seed(0)
    x = images(9, channels=4)
    model = randomise_norms(OddModel().double(), x)
    fused = fuse(model)
    assert isinstance(fused.last, torch.Tensor), 'tracing left its traces'
    assert norms_of(fused) == 0
    assert_same(fused(x).logits, model(x).logits)


def test_optional_arguments_have_their_defaults() -> None:
    class Model(OutputUsedTwice):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y if mask is None else self.norm(y) * mask

    x = images(9, channels=4)
    model = randomise_norms(Model().double(), x)
    assert_same(fuse(model)(x), model(x))


@pytest.mark.parametrize('frozen', [False, True])
def test_requires_gradients_as_before(frozen: bool) -> None:
    model = chain_of(nn.Conv2d(4, 4, 1, bias=False)).requires_grad_(not frozen)
    assert {weight.requires_grad for weight in fuse(model).parameters()} == {not frozen}


@pytest.mark.long
@pytest.mark.slow
def test_compiles(caplog: pytest.LogCaptureFixture) -> None:
    model, x = create(SMALL_MP2[0], aa_layer=BlurPool2d, **SMALL_MP2[1]).float(), images(dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        fused = fuse(model)
    assert not caplog.messages
    expected = fused(x)
    assert_same(expected, model(x))
    assert_same(torch.jit.script(fused)(x), expected)
    assert_same(torch.jit.trace(fused, x)(x), expected)
    assert_same(torch.compile(fused, fullgraph=True, backend='aot_eager')(x), expected)


def test_validation_counts_the_fused_model() -> None:
    model = create('resnet18').float()
    plain, fused = (model_cost(each, (3, 64, 64)) for each in (model, fuse(model)))
    assert fused[1] == plain[1]
    assert fused[0] == plain[0] - sum(norm.weight.numel() for norm in model.modules() if isinstance(norm, _BatchNorm))
