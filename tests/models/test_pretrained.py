"""The weights that come with the package."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.groups import ValidationOptions
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.loading import open_model
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import load_folder, save_model_folder
from tests.conftest import make_folder

ROOT = Path(__file__).parents[2]
PACKAGED = sorted((ROOT / 'imagenette_zoo' / 'models' / 'weights').glob('*.safetensors'))
NAMES = [path.stem for path in PACKAGED]
NAME = 'mbv2_mish_imagenette'


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError('no network is needed')

    monkeypatch.setattr(socket, 'create_connection', refuse)
    monkeypatch.setattr(socket.socket, 'connect', refuse)


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / 'docs' / 'results' / 'pretrained' / f'{name}.json').read_text())


def pretrained(**settings: Any) -> Any:
    return timm.create_model(NAME, pretrained=True, **settings).eval()


def images(channels: int = 3, size: int = 128) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_other_classes_are_no_published_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """timm would make a new, random classifier."""
    words = ['--pretrained', '--num-classes', '3', '--data-dir', str(folder)]
    assert main(['validate', '--model', NAME, *words]) == 2
    assert f'--num-classes 3: {NAME} has 10 classes: leave the option out' in capsys.readouterr().err


def test_which_models_have_weights() -> None:
    assert NAME in NAMES
    assert timm.list_models('*_imagenette*', pretrained=True) == NAMES


@pytest.mark.parametrize('path', PACKAGED, ids=NAMES)
def test_weights_are_those_of_the_file(path: Path) -> None:
    assert path.stat().st_size <= 6 * 2**20
    stored = safetensors.torch.load_file(path)
    state = timm.create_model(path.stem, pretrained=True).state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key].to(state[key].dtype)) for key in state)
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}


@pytest.mark.parametrize('name', NAMES)
def test_config_is_that_of_the_training_run(name: str) -> None:
    cfg, run = timm.get_pretrained_cfg(name), results(name)['run']
    size = run['img_size']
    assert cfg.input_size == (3, size, size)
    assert (cfg.test_input_size, cfg.test_crop_pct, cfg.crop_mode) == (None, None, 'squash')
    config = timm.data.resolve_model_data_config(timm.create_model(name), use_test_size=True)
    for key in ('crop_pct', 'interpolation'):
        assert config[key] == results(name)['packaged'][key]
    assert (run['recipe']['mean'], run['recipe']['std']) == (None, None)  # the model's own, then
    assert list(cfg.label_names) == list(run['per_class'])
    assert cfg.license == 'apache-2.0'


@pytest.mark.parametrize('name', ['resnet10t', 'hf-hub:me/mine'])
def test_weights_out_of_reach_are_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(UserError, match=f'^model {name}: the Hub cannot be reached, and its cache has no such weights'):
        factory.build_model(name, pretrained=True)


def test_another_number_of_classes() -> None:
    model, other = pretrained(), pretrained(num_classes=37)
    torch.testing.assert_close(other.forward_features(images()), model.forward_features(images()))
    assert other(images()).shape == (2, 37)


def test_one_channel() -> None:
    """timm adds the colours' filters up: a grey image gives what its three equal channels give."""
    grey = images(1)
    expected = pretrained()(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(pretrained(in_chans=1)(grey), expected, rtol=1e-3, atol=1e-3)


def test_features() -> None:
    features = pretrained(features_only=True)(images())
    expected = pretrained().forward_intermediates(images(), indices=5, intermediates_only=True)
    for feature, intermediate in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, intermediate)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('name', NAMES)
def test_accuracy_is_the_documented_one(name: str, imagenette_dir: Path) -> None:
    documented = results(name)
    assert abs(documented['float32']['top1'] - documented['packaged']['top1']) <= 0.05
    [scores] = iz.validate(name, imagenette_dir, pretrained=True, device='cpu', quiet=True)
    assert scores.top1 == pytest.approx(documented['packaged']['top1'], abs=0.05)
    assert scores.dataset == documented['packaged']['dataset']


def test_fine_tuning_starts_from_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / 'data')
    command = f'train -c finetune --data-dir {folder} --device cpu --epochs 1 --warmup-epochs 0 --lr 1e-9'
    command += f' --batch-size 8 --img-size 64 --output {tmp_path} --experiment tuned'
    assert main(command.split()) == 0
    before = pretrained().state_dict()
    after = safetensors.torch.load_file(tmp_path / 'tuned' / 'last' / 'model.safetensors')
    assert after['classifier.weight'].shape == (3, 1280)
    torch.testing.assert_close(after['conv_stem.weight'], before['conv_stem.weight'])
    torch.testing.assert_close(after['conv_head.weight'], before['conv_head.weight'])
    config = json.loads((tmp_path / 'tuned' / 'last' / 'config.json').read_text())
    assert 'file' not in config['pretrained_cfg']
    assert config['pretrained_cfg']['input_size'] == [3, 64, 64]
    assert config['pretrained_cfg']['crop_mode'] == 'center'  # by which it was validated


def test_only_these_weights_are_shown_squeezed_images(tmp_path: Path) -> None:
    """Neither a checkpoint of the same architecture nor a folder whose config says nothing of it."""
    model = timm.create_model(NAME)
    config = {'architecture': NAME, 'num_classes': 10, 'pretrained_cfg': {'num_classes': 10}}
    save_model_folder(tmp_path, config, model.state_dict())
    options = {
        'squash': ValidationOptions(model=(NAME,), pretrained=True),
        'center': ValidationOptions(model=(NAME,), checkpoint=str(tmp_path / 'model.safetensors')),
    }
    for crop_mode, each in options.items():
        assert factory.input_config(each, open_model(NAME, each, 10))['crop_mode'] == crop_mode
    assert factory.input_config(options['center'], load_folder(tmp_path))['crop_mode'] == 'center'


@pytest.mark.parametrize('command', ['predict', 'export'])
def test_without_a_model_named_it_is_this_one(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / 'data', train=1, val=1)
    if command == 'predict':
        assert main(['predict', str(folder / 'val'), '--device', 'cpu', '--json']) == 0
        [prediction, *_] = json.loads(capsys.readouterr().out)
        assert {top['class'] for top in prediction['top']} < {*timm.get_pretrained_cfg(NAME).label_names}
        return
    file = tmp_path / 'model.pt'
    assert main(['export', '--to', 'torchscript', '--output', str(file), '--data-dir', str(folder)]) == 0
    torch.testing.assert_close(torch.jit.load(file)(images()), pretrained()(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.slow
def test_weights_of_another_config_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / 'last').mkdir()
    (tmp_path / 'result.json').write_text('{}')
    cfg = {**timm.get_pretrained_cfg(NAME).to_dict(), 'crop_pct': 0.9}
    (tmp_path / 'last' / 'config.json').write_text(json.dumps({'architecture': NAME, 'pretrained_cfg': cfg}))
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'pack_weights.py', tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1] == f'error: {NAME}: crop_pct is 0.9 in the run and 0.875 in the pretrained config'
    )
