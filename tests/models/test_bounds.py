"""A model whose config is anybody's is no larger than its weights, and that is known before memory is taken for it."""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from imagenette_zoo.cli.main import main
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import load_folder, save_model_folder
from tests.conftest import needs_local_dir

CHANGES = [
    ({'num_classes': 3_000_000}, 'num_classes is 3,000,000'),
    ({'num_classes': 9_000}, 'the checkpoint of another model'),
    ({'model_args': {'depth_multiplier': 1e5}}, 'depth_multiplier is 100,000'),
    ({'model_args': {'depth_multiplier': 500.0}}, 'far more tensors'),
    ({'model_args': {'head_conv': [[10**12]]}}, 'head_conv is 1,000,000,000,000'),
    ({'model_args': {'in_chans': 9_999}}, 'the checkpoint of another model: conv_stem.weight'),
    ({'model_args': {'round_chs': list(range(5000))}}, 'more than 1,000 numbers'),
]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    model = timm.create_model('mobilenetv2_050', num_classes=3)
    config = factory.model_config(model, timm.data.resolve_data_config(model=model), ['a', 'b', 'c'], {})
    save_model_folder(tmp_path / 'm', config, model.state_dict())
    return tmp_path / 'm'


def change(made: Path, values: dict[str, Any]) -> None:
    config = json.loads((made / 'config.json').read_text())
    for name, value in values.items():
        config[name] = {**config[name], **value} if name == 'pretrained_cfg' else value
    if 'num_classes' in values:
        del config['label_names']
    (made / 'config.json').write_text(json.dumps(config))


@pytest.fixture
def no_memory(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer takes memory."""
    former = nn.Module.register_parameter

    def register(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        assert parameter is None or parameter.is_meta
        former(self, name, parameter)

    monkeypatch.setattr(nn.Module, 'register_parameter', register)


@pytest.mark.usefixtures('no_memory')
@pytest.mark.parametrize(('values', 'part'), CHANGES)
def test_a_config_of_a_huge_model_is_refused_before_it_is_made(
    made: Path, values: dict[str, Any], part: str
) -> None:
    change(made, values)
    with pytest.raises(UserError, match=part) as error:
        load_folder(made)
    assert len(str(error.value).splitlines()) == 1


@needs_local_dir
@pytest.mark.usefixtures('no_memory')
@pytest.mark.parametrize('weights', [True, False])
def test_so_is_one_that_timm_opens(made: Path, weights: bool) -> None:
    if not weights:
        (made / 'model.safetensors').unlink()
    change(made, {'model_args': {'depth_multiplier': 1000.0}})
    with pytest.raises(UserError, match='far more tensors'):
        factory.build_model(f'local-dir:{made}', pretrained=weights, num_classes=3)


@pytest.mark.parametrize('asked', [None, '1'])
def test_timm_loads_weights_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str | None
) -> None:
    """Before 1.0.26 it loads what a config names as a pickle, whose code would run."""
    mark = tmp_path / 'mark'

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    torch.save({'weight': Runs()}, made / 'evil.bin')
    loads = lambda *_, **__: torch.load(made / 'evil.bin')  # noqa: E731
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_path', loads)
    if asked:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', asked)
    before = dict(os.environ)
    with pytest.raises(UserError):
        factory.build_model(f'local-dir:{made}', pretrained=True)
    assert not mark.exists()
    assert dict(os.environ) == before
    with monkeypatch.context() as context:
        context.setattr('torch.load', partial(torch.load, weights_only=False))
        context.delenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', raising=False)
        with pytest.raises(UserError):
            factory.build_model(f'local-dir:{made}', pretrained=True)
        assert not mark.exists(), 'whoever calls it'
        loads()
    assert mark.exists(), 'the file would do it'


def test_afterwards_models_of_any_size_can_be_made(made: Path) -> None:
    change(made, {'model_args': {'depth_multiplier': 500.0}})
    with pytest.raises(UserError, match='far more tensors'):
        load_folder(made)
    timm.create_model('resnet18')


def test_a_sound_folder_is_opened_with_its_weights_and_the_callers_random_numbers(made: Path) -> None:
    torch.manual_seed(1)
    factory.build_model('mobilenetv2_050', num_classes=3)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert load_folder(made).num_classes == 3
    assert torch.equal(torch.rand(3), expected)


# --- How images are prepared ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('values', 'part'),
    [
        ({'crop_pct': 1e-9}, 'crop_pct is 1e-09: .* resized to more than 8,192 px'),
        ({'crop_pct': 0.001}, 'crop_pct is 0.001'),
        ({'test_crop_pct': 1e-5}, 'crop_pct is 1e-05'),
        ({'crop_pct': -1}, 'crop_pct is -1'),
        ({'crop_pct': 1e9}, 'crop_pct is 1000000000'),
        ({'crop_pct': 'all'}, 'crop_pct is all'),
        ({'input_size': [3, 10**6, 10**6]}, 'images of 1,000,000 px: expected at most 2,048'),
        ({'test_input_size': [3, 4096, 64]}, 'images of 4,096 px'),
        ({'input_size': [3, -5, 0]}, 'input_size is'),
        ({'input_size': [3, 1.5, 32]}, 'input_size is'),
        ({'std': [0, 0, 0]}, 'std is'),
        ({'std': [1, 1, 1e-300]}, 'std is'),
        ({'mean': [1e300, 0, 0]}, 'mean is'),
        ({'mean': [None, 0, 0]}, 'mean is'),
    ],
)
def test_a_config_that_makes_gigabytes_of_a_photo_or_no_numbers(
    made: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], part: str
) -> None:
    change(made, {'pretrained_cfg': values})
    assert main(['predict', __file__, '-m', str(made)]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert re.search(part, message)


@pytest.mark.parametrize('flags', [('--crop-pct', '1e-8'), ('--crop-pct', '0.001'), ('--std', '1e-9')])
def test_so_do_flags(made: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]) -> None:
    assert main(['predict', __file__, '-m', str(made), *flags]) == 2
    assert flags[0].strip('-').replace('-', '_') in capsys.readouterr().err


def test_a_training_is_no_way_round(
    recipe: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = recipe(crop_pct=1e-8).as_dict()
    flags = ['--data-dir', options['data_dir'], '--output', str(tmp_path), '--model', options['model']]
    assert main(['train', *flags, '--img-size', '32', '--crop-pct', '1e-8', '-b', '8']) == 2
    assert 'crop_pct is 1e-08' in capsys.readouterr().err
