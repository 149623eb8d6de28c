"""The zoo's models: what timm's own suite asks of every model, and what each one equals."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
import torchvision
from timm.models import FeatureInfo, get_notrace_functions, get_notrace_modules, group_parameters
from timm.models.resnet import BasicBlock, ResNet
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import imagenette_zoo
from imagenette_zoo.layers import BlurPool2d, MaxBlurPool2d, Mish
from imagenette_zoo.models import catalog
from imagenette_zoo.models.factory import model_cost, to_device
from tests.conftest import EACH_OF_THE_ZOO, ZOO

SIZE = 64


def create(name: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **settings).eval()


def images(size: int = SIZE, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of float32 in another order."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def randomise_norms(model: nn.Module) -> nn.Module:
    """Gives batch norms weights unlike their initial ones and images' statistics: logits then depend on the image."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(batch=8, channels=next(model.parameters()).shape[1]))
    for norm in norms:
        norm.momentum = momentum
    model.eval()
    x = images(batch=2, channels=next(model.parameters()).shape[1])
    spread = model(x).std(0).mean()
    assert spread > 1e-3, 'logits that hardly depend on the image can show no difference'
    return model


def test_all_of_the_table_is_registered() -> None:
    assert set(timm.list_models('*imagenette*')) == set(ZOO) - {'googlenet'}
    assert len(ZOO) == 12
    assert timm.is_model('googlenet')


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_config_fits_the_model(name: str) -> None:
    model = create(name)
    cfg = timm.get_pretrained_cfg(name)
    assert cfg == timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert cfg.num_classes == model.num_classes == (1000 if name == 'googlenet' else 10)
    assert (cfg.input_size[1], cfg.crop_pct) == (224, 0.875)
    state = model.state_dict()
    assert f'{cfg.first_conv}.weight' in state
    assert f'{cfg.classifier}.weight' in state
    if name != 'googlenet':
        assert (cfg.label_names[0], cfg.label_names[-1], len(cfg.label_names)) == ('tench', 'parachute', 10)
        assert cfg.interpolation == 'bicubic'
        assert cfg.license == 'apache-2.0'
        assert cfg.description


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_forward_and_heads(name: str) -> None:
    model = create(name, num_classes=7)
    x = images(model.default_cfg['input_size'][-1])
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *model.default_cfg['pool_size'])
    assert model(x).shape == (1, 7)
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (1, model.head_hidden_size)
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(x))

    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(x), pre_logits)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(5, 'avg')
    assert model(x).shape == (1, 5)
    assert create(name, num_classes=0, global_pool='')(x).shape == features.shape


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = create(name, num_classes=42).train()
    out = model(images(batch=2))
    assert out.shape == (2, 42)
    out.mean().backward()
    assert not [key for key, weight in model.named_parameters() if weight.grad is None]


@pytest.mark.parametrize(('name', 'reentrant'), [*((name, False) for name in ZOO), ('googlenet', True)])
def test_gradient_checkpointing_changes_nothing(name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.layers.config, '_USE_REENTRANT_CKPT', reentrant)
    model = create(name).train()
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    x = images(batch=2)
    for each in (model, twin):
        each(x).square().mean().backward()
    for (key, weight), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, rtol=1e-3, atol=1e-5, msg=key)


@pytest.mark.parametrize('settings', [{}, {'feature_cls': 'getter'}], ids=['list', 'getter'])
@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_features_only(name: str, settings: dict[str, Any]) -> None:
    model = create(name, features_only=True, **settings)
    x = images(96)
    outputs = model(x)
    assert model.feature_info.reduction() == [2, 4, 8, 16, 32]
    for out, channels, reduction in zip(
        outputs, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert out.shape == (1, channels, 96 // reduction, 96 // reduction)
    chosen = create(name, features_only=True, out_indices=(1, 3), **settings)
    torch.testing.assert_close(chosen(x), [outputs[1], outputs[3]])


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_forward_intermediates(name: str) -> None:
    model, x = randomise_norms(create(name)), images(96)
    info = FeatureInfo(model.feature_info, tuple(range(5)))
    final, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    for out, channels, reduction in zip(intermediates, info.channels(), info.reduction(), strict=True):
        assert out.shape == (1, channels, 96 // reduction, 96 // reduction)
    some = model.forward_intermediates(x, indices=[1, 3], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(some, [intermediates[1], intermediates[3]])
    model.prune_intermediate_layers([1, 3])
    torch.testing.assert_close(model.forward_intermediates(x, indices=[1, 3], intermediates_only=True), some)
    assert count(model) < 0.7 * count(create(name))


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_torchscript(name: str) -> None:
    model, x = randomise_norms(create(name, scriptable=True)), images()
    assert_same(torch.jit.script(model)(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mbv2_mish_mp3_imagenette', 'resnet50_maxblur_imagenette', 'googlenet'])
def test_torchscript_of_features(name: str) -> None:
    model, x = create(name, features_only=True, scriptable=True), images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
@torch.no_grad()  # with gradients Mish is our kernel, which rounds otherwise
def test_fx(name: str) -> None:
    model, x = randomise_norms(create(name)), images()
    settings = {
        'leaf_modules': get_notrace_modules(),
        'autowrap_functions': get_notrace_functions(),
        'param_shapes_constant': True,
    }
    last = get_graph_node_names(model, tracer_kwargs=settings)[1][-1]
    traced = create_feature_extractor(model, [last], tracer_kwargs=settings)
    (out,) = traced(x).values()
    torch.testing.assert_close(out, model(x), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_export(name: str) -> None:
    model, x = randomise_norms(create(name)), images()
    assert_same(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_compile(name: str) -> None:
    model, x = randomise_norms(create(name)), images()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
        assert_same(compiled(x), model(x))


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_image_channels_and_dropout(name: str) -> None:
    model = create(name, in_chans=1, drop_rate=0.5)
    x = images(channels=1)
    torch.testing.assert_close(model(x), model(x))
    model.train()
    features = model.forward_features(images(batch=2, channels=1))
    assert not torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in ZOO if name != 'googlenet'])
def test_drop_path(name: str) -> None:
    model = create(name, drop_path_rate=0.9)
    torch.testing.assert_close(model(images()), model(images()))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # ResNet's last norms start at zero: there would be nothing to drop
    x = images(batch=4)
    assert not torch.equal(model(x), settle_dropping(model)(x))


def settle_dropping(model: nn.Module) -> nn.Module:
    """Only drop-path in training mode."""
    for layer in model.modules():
        layer.training = isinstance(layer, timm.layers.DropPath)
    return model


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_every_parameter_has_a_group(name: str) -> None:
    model = create(name)
    for coarse, fewest in ((False, 8), (True, 5)):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(map(len, groups.values())) == len(list(model.parameters()))
        assert len(groups) >= fewest


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'timm_name', 'settings'),
    [
        ('mbv2_imagenette', 'mobilenetv2_100', {}),
        ('mbv2_mish_imagenette', 'mobilenetv2_100', {'act_layer': 'mish'}),
        ('mbv2_mish_blur_imagenette', 'mobilenetv2_100', {'act_layer': 'mish', 'aa_layer': 'blur'}),
        ('mbv2_mish_mp2_imagenette', 'mobilenetv2_100', {'act_layer': 'relu', 'passes': 1, 'output_stride': 8}),
        ('mbv2_imagenette', 'mobilenetv2_100', {'bn_eps': 1e-2, 'bn_momentum': 0.01, 'in_chans': 1}),
        ('mbv2_imagenette', 'mobilenetv2_140', {'channel_multiplier': 1.4}),
    ],
)
def test_equals_timms_mobilenet(name: str, timm_name: str, settings: dict[str, Any]) -> None:
    theirs = dict(settings)
    ours = {key: theirs.pop(key) for key in ('passes', 'channel_multiplier') if key in theirs}
    model = randomise_norms(create(name, **ours, **{key: value for key, value in theirs.items() if key != 'aa_layer'}))
    plain = create(timm_name, num_classes=10, **theirs)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    for training in (False, True):
        x = images(batch=2, channels=settings.get('in_chans', 3))
        torch.testing.assert_close(model.train(training)(x), plain.train(training)(x), rtol=0, atol=0)
    for key, value in model.state_dict().items():  # the momentum, too
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=0, atol=0)


@pytest.mark.parametrize(('name', 'layer'), [('blur', BlurPool2d), ('maxblur', MaxBlurPool2d)])
def test_anti_aliased_mobilenet(name: str, layer: type[nn.Module]) -> None:
    """Same weights; every strided depthwise convolution becomes a dense one and a blur."""
    model, plain = create(f'mbv2_mish_{name}_imagenette'), create('mbv2_mish_imagenette')
    plain.load_state_dict(model.state_dict())
    strided = [key for key, conv in plain.blocks.named_modules() if getattr(conv, 'stride', 1) == (2, 2)]
    assert len(strided) == 4
    assert all(model.blocks.get_submodule(key).stride == (1, 1) for key in strided)
    assert sum(isinstance(module, layer) for module in model.modules()) == 4


@pytest.mark.parametrize('name', [name for name in ZOO if '_maxblur_' in name and name.startswith('resnet')])
@torch.no_grad()
def test_max_blur_resnet_differs_from_timms_in_the_stem_pool(name: str) -> None:
    model = randomise_norms(create(name))
    base = name.split('_')[0]
    plain = create(base, num_classes=10, **({'act_layer': 'mish'} if '_mish_' in name else {}))
    assert isinstance(model, ResNet)
    plain.load_state_dict(model.state_dict())
    x = images()
    assert not torch.allclose(model(x), plain(x))
    model.maxpool = plain.maxpool
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    assert any(isinstance(layer, Mish) for layer in model.modules()) == ('_mish_' in name)


def test_the_leaderboards_resnet_is_timms_from_the_same_parts() -> None:
    """No weights of its own, and no strided convolution but the stem's first."""
    model = randomise_norms(create('seresnet18d_mish_maxblur_imagenette'))
    parts = {'stem_width': 32, 'stem_type': 'deep', 'avg_down': True, 'block_args': {'attn_layer': 'se'}}
    plain = ResNet(BasicBlock, (2, 2, 3, 1), num_classes=10, act_layer=Mish, aa_layer=MaxBlurPool2d, **parts)
    plain.load_state_dict(model.state_dict())
    plain.maxpool, x = MaxBlurPool2d(stride=2), images(batch=2)
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), plain.train(training)(x), rtol=0, atol=0)
    assert [name for name, layer in model.named_modules() if getattr(layer, 'stride', 1) == (2, 2)] == ['conv1.0']
    assert sum(isinstance(layer, MaxBlurPool2d) for layer in model.modules()) == 4


def test_max_blur_pool_makes_a_resnet_less_sensitive_to_shifts() -> None:
    """The reason for the layer: its stem's output changes less with the image's shift by one pixel pair."""
    plain, blurred = (nn.MaxPool2d(3, stride=2, padding=1), MaxBlurPool2d())
    x = images(SIZE + 1)
    change = [(pool(x[..., 1:]) - pool(x[..., :-1])).square().mean() for pool in (plain, blurred)]
    assert change[1] < 0.5 * change[0]


@pytest.fixture(scope='module')
def torchvision_googlenet() -> torchvision.models.GoogLeNet:
    torch.manual_seed(0)
    model = torchvision.models.googlenet(num_classes=1000, aux_logits=True, init_weights=False)
    return randomise_norms(model).eval()


@pytest.mark.parametrize('transform_input', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_googlenet_equals_torchvisions(
    torchvision_googlenet: torchvision.models.GoogLeNet, training: bool, transform_input: bool
) -> None:
    theirs = copy.deepcopy(torchvision_googlenet).double()
    theirs.transform_input, theirs.dropout.p = transform_input, 0.0
    ours = create('googlenet', transform_input=transform_input).double()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith('aux')})
    x = images(75, batch=2).double()
    expected = theirs.train(training)(x)
    # In float64, since batch norm over few pixels magnifies how either rounds the constants of transform_input.
    assert_same(ours.train(training)(x), expected.logits if training else expected)


@pytest.mark.parametrize('in_chans', [3, 1])
def test_googlenet_loads_torchvisions_weights(
    torchvision_googlenet: torchvision.models.GoogLeNet, tmp_path: Path, in_chans: int
) -> None:
    """Auxiliary classifiers and all, for images normalised as the config says."""
    path = tmp_path / 'googlenet.pth'
    torch.save(torchvision_googlenet.state_dict(), path)
    overlay = {'file': str(path)}
    model = create('googlenet', pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans)
    assert create('googlenet', pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)(images()).shape == (1, 5)
    pixels = torch.rand(2, in_chans, SIZE, SIZE)
    cfg = timm.get_pretrained_cfg('googlenet.tv_in1k')
    theirs = copy.deepcopy(torchvision_googlenet)
    theirs.transform_input = True
    normalise = torchvision.transforms.functional.normalize
    expected = theirs(normalise(pixels.expand(-1, 3, -1, -1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_same(model(normalise(pixels, cfg.mean[:in_chans], cfg.std[:in_chans])), expected)


@pytest.mark.parametrize('prune_head', [True, False])
def test_a_pruned_googlenet_takes_a_head_of_its_width(prune_head: bool) -> None:
    model = create('googlenet')
    model.prune_intermediate_layers([3], prune_head=prune_head)
    assert model(images()).shape == (1, 832, SIZE // 16, SIZE // 16)
    model.reset_classifier(7, 'avg')
    assert model(images()).shape == (1, 7)


def test_a_googlenet_from_the_meta_device_transforms_its_input() -> None:
    model = create('googlenet', transform_input=True)
    with torch.device('meta'):
        empty = timm.create_model('googlenet', transform_input=True).eval()
    empty.to_empty(device='cpu').transform_input.init_non_persistent_buffers()  # as timm's does for all layers
    empty.load_state_dict(model.state_dict())
    torch.testing.assert_close(empty(images()), model(images()))


def test_googlenet_refuses_to_transform_grey_images() -> None:
    with pytest.raises(ValueError, match='3 channels'):
        create('googlenet', transform_input=True, in_chans=1)


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_a_model_costs_the_same_where_it_was_made_fast(name: str) -> None:
    model = create(name)
    cost = model_cost(model, (3, SIZE, SIZE))
    assert cost[1] is not None
    assert model_cost(to_device(model, torch.device('cpu'), channels_last=True), (3, SIZE, SIZE)) == cost


def test_model_cost() -> None:
    """Known figures, and the model is left as it is."""
    model = create('resnet34', num_classes=1000).train()
    before = copy.deepcopy(model.state_dict())
    parameters, gmacs = model_cost(model, (3, 224, 224))
    assert parameters == 21_797_672
    assert math.isclose(gmacs, 3.66, abs_tol=0.02)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    vit = create('vit_tiny_patch16_224')
    assert math.isclose(model_cost(vit, (3, 224, 224))[1], 1.26, abs_tol=0.1)


@pytest.mark.slow
def test_list_models() -> None:
    infos = imagenette_zoo.list_models()
    assert infos == catalog.count_models(), 'python tools/zoo_models.py > imagenette_zoo/config/zoo_models.py'
    assert [info.name for info in infos] == ZOO
    by_name = {info.name: info for info in infos}
    assert by_name['mbv2_imagenette'].parameters == 2_236_682
    assert math.isclose(by_name['mbv2_imagenette'].gmacs, 0.2995, abs_tol=1e-4)
    assert math.isclose(by_name['googlenet'].gmacs, 1.497, abs_tol=2e-3)
    for info in infos:
        assert info.description
        assert '\n' not in info.description
    assert by_name['googlenet'].parameters == count(create('googlenet', num_classes=10))


@pytest.mark.skipif(
    'dtype' not in inspect.signature(timm.models.ResNet.__init__).parameters,
    reason='this timm takes no device and dtype',
)
@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_weights_and_buffers_are_made_where_and_as_asked_for(name: str) -> None:
    model = timm.create_model(name, dtype=torch.bfloat16)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}
    assert {tensor.device.type for tensor in timm.create_model(name, device='meta').parameters()} == {'meta'}
