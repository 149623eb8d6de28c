"""Channels-last layout of weights of four axes."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from imagenette_zoo.cli.main import main
from imagenette_zoo.layers.layout import to_channels_last


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_resnet', 'test_vit'])
def test_it_is_torchs(name: str) -> None:
    model = timm.create_model(name)
    theirs = copy.deepcopy(model).to(memory_format=torch.channels_last).state_dict()
    ours = to_channels_last(model).state_dict()
    assert [(key, value.stride()) for key, value in ours.items()] == [(k, v.stride()) for k, v in theirs.items()]
    assert all(map(torch.equal, ours.values(), theirs.values()))


def test_weights_of_five_axes_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv3d(2, 4, 3))
    strides = model[1].weight.stride()
    assert to_channels_last(model) is model
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.stride() == strides


def test_a_lambda_network_trains_and_validates(folder: Path, tmp_path: Path) -> None:
    """Its positions are embedded by a `Conv3d`."""
    data = ['--data-dir', str(folder), '--img-size', '32', '--device', 'cpu', '--workers', '0', '-b', '24']
    run = ['--epochs', '1', '--warmup-epochs', '0', '--model-ema', '--output', str(tmp_path), '--experiment', 'run']
    assert main(['train', *data, *run, '--model', 'lambda_resnet26t']) == 0
    assert main(['validate', *data, '--model', str(tmp_path / 'run')]) == 0
