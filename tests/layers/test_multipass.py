"""MultiPass: what it merges, and that its one-block form computes the same."""

import copy
import logging
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import BlurPool2d, SqueezeExcite
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.resnet import BasicBlock
from timm.utils import reparameterize_model

from imagenette_zoo.layers import MaxBlurPool2d, Mish, MultiPass, WideInvertedResidual, multipass
from imagenette_zoo.models.factory import model_cost
from imagenette_zoo.models.mobilenetv2 import MobileNetV2

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def train(model: nn.Module, channels: int, size: int) -> None:
    """A few real steps, so that weights and running statistics are those of a trained network."""
    weight = next(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for _ in range(4):
        x = torch.randn(4, channels, size, size, dtype=weight.dtype) * 2 + 1
        optimizer.zero_grad()
        out = model(x)
        (out - torch.randn_like(out)).square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize('merge', ['mean', 'max'])
def test_merges(merge: str) -> None:
    blocks = [nn.Conv2d(3, 4, 1) for _ in range(3)]
    x = torch.randn(2, 3, 5, 5)
    outputs = torch.stack([block(x) for block in blocks])
    expected = outputs.mean(0) if merge == 'mean' else outputs.amax(0)
    torch.testing.assert_close(MultiPass(blocks, merge)(x), expected)


@pytest.mark.parametrize('merge', ['mean', 'max'])
@pytest.mark.parametrize('block', [InvertedResidual, partial(BasicBlock, act_layer=nn.ReLU)])
def test_merges_in_training(merge: str, block: Any) -> None:
    """Blocks that end in an in-place activation keep what their gradient needs, and the input is left alone."""
    multi_pass, x = MultiPass([block(8, 8), block(8, 8)], merge), torch.randn(2, 8, 6, 6)
    before = x.clone()
    multi_pass(x).sum().backward()
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert all(weight.grad is not None for weight in multi_pass.parameters())


@pytest.mark.slow
@pytest.mark.parametrize('merge', ['mean', 'max'])
@pytest.mark.parametrize('block', [InvertedResidual, DepthwiseSeparableConv])
def test_compiles(block: type[nn.Module], merge: str) -> None:
    multi_pass, x = MultiPass([block(8, 8), block(8, 8)], merge).eval(), torch.randn(1, 8, 6, 6)
    expected = multi_pass(x)
    for layer in (multi_pass, multi_pass.fuse()):
        torch.testing.assert_close(torch.jit.script(layer)(x), expected)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend='aot_eager')(x), expected)


def test_rejects() -> None:
    with pytest.raises(ValueError, match='at least one'):
        MultiPass([])
    with pytest.raises(ValueError, match="'median'"):
        MultiPass([nn.Identity()], merge='median')


def test_feature_info_is_that_of_the_first_pass() -> None:
    multi_pass = MultiPass([InvertedResidual(8, 16, exp_ratio=2.0) for _ in range(2)])
    fused: Any = multi_pass.eval().fuse()
    assert fused.feature_info('bottleneck') == multi_pass.feature_info('bottleneck') == {'module': '', 'num_chs': 16}
    info = multi_pass.feature_info('expansion')
    assert multi_pass.get_submodule(info['module']).in_channels == info['num_chs'] == 16


# Arguments common to the passes, and one dict a pass of what differs.
FUSABLE: dict[str, tuple[type[nn.Module], dict[str, Any], list[dict[str, Any]]]] = {
    'skip': (InvertedResidual, {'out_chs': 8}, [{}, {}]),
    'one pass': (InvertedResidual, {'out_chs': 8}, [{}]),
    'no skip': (InvertedResidual, {'out_chs': 12}, [{}, {}, {}]),
    'noskip': (InvertedResidual, {'out_chs': 8, 'noskip': True}, [{}, {}]),
    'stride 2': (InvertedResidual, {'out_chs': 12, 'stride': 2}, [{}, {}]),
    'mixed kernels': (InvertedResidual, {'out_chs': 8}, [{'dw_kernel_size': k} for k in (3, 5, 7)]),
    'largest kernel first': (InvertedResidual, {'out_chs': 8}, [{'dw_kernel_size': k} for k in (7, 3)]),
    'mixed kernels, stride 2': (InvertedResidual, {'out_chs': 8, 'stride': 2}, [{'dw_kernel_size': k} for k in (3, 5)]),
    'mixed dilations': (InvertedResidual, {'out_chs': 8}, [{'dilation': d} for d in (1, 2, 3)]),
    'mixed dilations, stride 2': (InvertedResidual, {'out_chs': 8, 'stride': 2}, [{'dilation': d} for d in (1, 2)]),
    'common dilation': (InvertedResidual, {'out_chs': 8, 'dilation': 2}, [{'dw_kernel_size': k} for k in (3, 5)]),
    'kernels and dilations': (
        InvertedResidual,
        {'out_chs': 8},
        [{'dw_kernel_size': 5, 'dilation': 2}, {'dw_kernel_size': 3, 'dilation': 4}],
    ),
    'different widths': (InvertedResidual, {'out_chs': 8}, [{'exp_ratio': 2.0}, {'exp_ratio': 4.0}]),
    'split': (InvertedResidual, {'out_chs': 8, 'exp_ratio': 2.0}, [{}, {}, {}]),
    'drop path': (InvertedResidual, {'out_chs': 8, 'drop_path_rate': 0.3}, [{}, {}]),
    'blur': (InvertedResidual, {'out_chs': 8, 'stride': 2, 'aa_layer': BlurPool2d}, [{}, {}]),
    'max blur': (InvertedResidual, {'out_chs': 8, 'stride': 2, 'aa_layer': MaxBlurPool2d}, [{}, {}]),
    'average pool': (InvertedResidual, {'out_chs': 8, 'stride': 2, 'aa_layer': nn.AvgPool2d}, [{}, {}]),
    'relu6': (InvertedResidual, {'out_chs': 8, 'act_layer': nn.ReLU6}, [{}, {}]),
    'tanh': (InvertedResidual, {'out_chs': 8, 'act_layer': 'tanh'}, [{}, {}]),
    'separable': (DepthwiseSeparableConv, {'out_chs': 8}, [{}, {}, {}]),
    'separable, no skip': (DepthwiseSeparableConv, {'out_chs': 12}, [{}, {}]),
    'separable, stride 2': (DepthwiseSeparableConv, {'out_chs': 8, 'stride': 2}, [{}, {}]),
    'separable, mixed': (DepthwiseSeparableConv, {'out_chs': 8}, [{'dw_kernel_size': 3}, {'dw_kernel_size': 5}]),
}


def multi_pass_of(kind: type[nn.Module], common: dict[str, Any], passes: list[dict[str, Any]]) -> MultiPass:
    defaults = {'act_layer': Mish, **({'exp_ratio': 6.0} if kind is InvertedResidual else {})}
    return MultiPass([kind(8, **{**defaults, **common, **args}) for args in passes])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('case', FUSABLE)
def test_fuses_exactly(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    multi_pass = multi_pass_of(*FUSABLE[case]).to(dtype)
    train(multi_pass, channels=8, size=11)
    before = copy.deepcopy(multi_pass.state_dict())
    fused = multi_pass.fuse()
    assert isinstance(fused, WideInvertedResidual)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
    x = torch.randn(2, 8, 11, 13, dtype=dtype)
    with torch.no_grad():
        assert relative_error(fused(x), multi_pass(x)) < TOLERANCE[dtype]
    assert all(torch.equal(value, before[name]) for name, value in multi_pass.state_dict().items())


class PReLUs(nn.PReLU):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()


NOT_FUSABLE: dict[str, tuple[Any, str]] = {
    'max': (lambda: MultiPass([InvertedResidual(8, 8), InvertedResidual(8, 8)], 'max'), 'not linear'),
    'BasicBlock': (lambda: MultiPass([BasicBlock(8, 8), BasicBlock(8, 8)]), 'BasicBlock has no exact'),
    'EdgeResidual': (lambda: MultiPass([EdgeResidual(8, 8), EdgeResidual(8, 8)]), 'EdgeResidual has no exact'),
    'mixed blocks': (lambda: MultiPass([InvertedResidual(8, 8), DepthwiseSeparableConv(8, 8)]), 'DepthwiseSeparable'),
    'squeeze-excite': (lambda: MultiPass([InvertedResidual(8, 8, se_layer=SqueezeExcite)]), 'squeeze'),
    'same padding': (
        lambda: MultiPass([InvertedResidual(8, 8, stride=2, pad_type='same')]),
        'Conv2dSame is not a plain convolution',
    ),
    'group norm': (lambda: MultiPass([InvertedResidual(8, 8, norm_layer='groupnorm1')]), 'no running statistics'),
    'different activations': (
        lambda: MultiPass([InvertedResidual(8, 8, act_layer=act) for act in (nn.ReLU, nn.ReLU6)]),
        'different activations',
    ),
    'learned activation': (lambda: MultiPass([InvertedResidual(8, 8, act_layer=PReLUs)]), 'parameters of its own'),
    'activated output': (lambda: MultiPass([DepthwiseSeparableConv(8, 8, pw_act=True)]), 'ends in an activation'),
    'grouped': (lambda: MultiPass([InvertedResidual(8, 8, group_size=2)]), 'not depthwise'),
    'different blurs': (
        lambda: MultiPass(
            [InvertedResidual(8, 8, stride=2, aa_layer=partial(BlurPool2d, filt_size=k)) for k in (3, 5)]
        ),
        'different anti-aliasing',
    ),
    'skip in one pass': (
        lambda: MultiPass([InvertedResidual(8, 8), InvertedResidual(8, 8, noskip=True)]),
        'skip connection',
    ),
}


@pytest.mark.parametrize('case', NOT_FUSABLE)
def test_says_why_it_does_not_fuse(case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, reason = NOT_FUSABLE[case]
    multi_pass = make().eval()
    x = torch.randn(1, 8, 8, 8)
    expected = multi_pass(x)
    multipass._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert multi_pass.fuse() is multi_pass
        multi_pass.fuse()  # a second one of its kind is not worth a second line
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    torch.testing.assert_close(multi_pass(x), expected, rtol=0, atol=0)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    'mp2': ('mbv2_mish_mp2_imagenette', {'drop_path_rate': 0.2}),
    'mp3': ('mbv2_mish_mp3_imagenette', {}),
    'mp3 split': ('mbv2_mish_mp3_imagenette', {'split': True}),
    'all stages': ('mbv2_imagenette', {'passes': (3, 2, 2, 1, 2, 2, 2)}),
    'blur': ('mbv2_mish_blur_imagenette', {'passes': 2}),
    'max blur': ('mbv2_mish_maxblur_imagenette', {'passes': 2, 'pass_dilations': (1, 2)}),
    'output stride': ('mbv2_mish_mp3_imagenette', {'output_stride': 8}),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', MODELS)
def test_models_fuse_exactly(case: str) -> None:
    torch.manual_seed(0)
    name, settings = MODELS[case]
    model = timm.create_model(name, channel_multiplier=0.5, **settings).double()
    train(model, channels=3, size=48)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for dtype, tolerance in reversed(TOLERANCE.items()):
        model.to(dtype)
        fused = reparameterize_model(model)
        assert not any(isinstance(layer, MultiPass) for layer in fused.modules())
        assert any(isinstance(layer, MultiPass) for layer in model.modules())
        with torch.no_grad():
            assert relative_error(fused(x.to(dtype)), model(x.to(dtype))) < tolerance


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_a_model_of_full_width_fuses_exactly(seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model('mbv2_mish_mp2_imagenette').eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(reparameterize_model(model)(x), model(x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ('name', 'settings', 'reason'),
    [
        ('mbv2_mish_mp2_imagenette', {'merge': 'max', 'channel_multiplier': 0.35}, 'not linear'),
        ('resnet34_mp2_imagenette', {}, 'BasicBlock has no exact wide form'),
    ],
)
def test_models_that_do_not_fuse_stay(
    name: str, settings: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    multipass._warn_once.cache_clear()
    model = timm.create_model(name, **settings).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(reparameterize_model(model)(x), model(x), rtol=0, atol=0)
    ours = [record.message for record in caplog.records if record.name == multipass.__name__]
    assert [reason in message for message in ours] == [True]


@pytest.mark.parametrize('n', [2, 3])
def test_split_costs_what_one_pass_does(n: int) -> None:
    plain, split, full = (
        model_cost(timm.create_model('mbv2_mish_imagenette', **settings), (3, 64, 64))[1]
        for settings in ({}, {'passes': n, 'split': True}, {'passes': n})
    )
    assert split == pytest.approx(plain, rel=0.01)
    assert full > 0.8 * n * plain


@pytest.mark.parametrize('name', ['resnet34_mp2_imagenette', 'resnet50_maxblur_imagenette'])
def test_split_resnets_cost_about_what_one_pass_does(name: str) -> None:
    plain, split, full = (
        model_cost(timm.create_model(name, **settings), (3, 64, 64))[1]
        for settings in ({'passes': 1}, {'passes': 2, 'split': True}, {'passes': 2})
    )
    assert split < 1.2 * plain
    assert full > 1.8 * plain


@pytest.mark.parametrize('name', ['mbv2_mish_mp2_imagenette', 'resnet34_mp2_imagenette'])
def test_passes_start_from_different_weights(name: str) -> None:
    multi_passes = [layer for layer in timm.create_model(name).modules() if isinstance(layer, MultiPass)]
    assert len(multi_passes) == 16
    for multi_pass in multi_passes:
        first, second = (block.state_dict() for block in multi_pass.passes)
        weights = [key for key, value in first.items() if value.ndim == 4]
        assert weights
        assert not any(torch.equal(first[key], second[key]) for key in weights)
        assert not {id(weight) for weight in multi_pass.passes[0].parameters()} & {
            id(weight) for weight in multi_pass.passes[1].parameters()
        }


@pytest.mark.parametrize(
    ('name', 'settings', 'of_kind'),
    [
        ('mbv2_mish_mp2_imagenette', {'passes': 1}, 'mbv2_mish_imagenette'),
        ('mbv2_mish_mp3_imagenette', {'passes': [1] * 7, 'pass_kernel_sizes': ()}, 'mbv2_mish_imagenette'),
        ('resnet34_mp2_imagenette', {'passes': 1}, 'resnet34'),
    ],
)
def test_one_pass_is_the_plain_block(name: str, settings: dict[str, Any], of_kind: str) -> None:
    model = timm.create_model(name, **settings).eval()
    plain = timm.create_model(of_kind, num_classes=10).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)


def passes_of(stage: nn.Module) -> set[int]:
    return {len(block.passes) if isinstance(block, MultiPass) else 1 for block in stage.children()}


def test_the_class_alone_takes_passes() -> None:
    """Without what `create_model` would give it."""
    stages = [['ds_r1_k3_s1_c16'], ['ir_r2_k3_s2_e6_c24']]
    model = MobileNetV2(decode_arch_def(stages), passes=2, num_classes=3)
    assert [passes_of(stage) for stage in model.blocks] == [{1}, {2}]
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_passes_by_stage() -> None:
    model = timm.create_model('mbv2_imagenette', passes=(1, 1, 2, 1, 3, 1, 1))
    assert [passes_of(stage) for stage in model.blocks] == [{1}, {1}, {2}, {1}, {3}, {1}, {1}]
    model = timm.create_model('resnet34_mp2_imagenette', passes=(1, 2, 1, 3))
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [passes_of(stage) for stage in stages] == [{1}, {2}, {1}, {3}]


def test_kernels_and_dilations_by_pass() -> None:
    model = timm.create_model('mbv2_mish_mp3_imagenette', pass_dilations=(3, 2, 1))
    convs = [block.conv_dw for block in model.blocks[3][1].passes]
    assert [conv.kernel_size[0] for conv in convs] == [3, 5, 7]
    assert [conv.dilation[0] for conv in convs] == [3, 2, 1]
    dilated = timm.create_model('mbv2_mish_mp2_imagenette', output_stride=16, pass_dilations=(1, 2))
    assert [block.conv_dw.dilation[0] for block in dilated.blocks[5][1].passes] == [2, 4]


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('mbv2_imagenette', {'passes': (2, 2)}, '7 stages'),
        ('mbv2_imagenette', {'passes': 0}, 'at least 1'),
        ('mbv2_imagenette', {'passes': (1, 1, 2, 0, 1, 1, 1)}, 'at least 1'),
        ('mbv2_imagenette', {'passes': 2, 'merge': 'sum'}, "'sum'"),
        ('mbv2_mish_mp3_imagenette', {'passes': 2}, 'are 3 for 2'),
        ('mbv2_mish_mp3_imagenette', {'passes': (1, 1, 2, 3, 1, 1, 1)}, 'are 3 for 2 and 3'),
        ('mbv2_mish_mp2_imagenette', {'pass_dilations': (1, 2, 3)}, 'pass_dilations'),
        ('mbv2_mish_imagenette', {'pass_kernel_sizes': (5,)}, 'no effect without passes'),
        ('mbv2_imagenette', {'passes': (2, 1, 1, 1, 1, 1, 1), 'split': True}, 'split needs an expansion'),
        ('resnet34_mp2_imagenette', {'passes': (2, 2)}, '4 stages'),
        ('resnet34_mp2_imagenette', {'passes': 0}, '1 or more'),
        ('resnet34_mp2_imagenette', {'merge': 'sum'}, "'sum'"),
    ],
)
def test_contradictory_passes_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **settings)
