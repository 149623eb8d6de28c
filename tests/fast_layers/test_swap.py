"""One table of faster layers and one walk."""

import re
from pathlib import Path

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import imagenette_zoo
from imagenette_zoo.cli.main import main
from imagenette_zoo.fast_layers.convolutions import CpuDepthwiseConv2d, PlannedLaterConv2d
from imagenette_zoo.fast_layers.norm_act import NormAct2d
from imagenette_zoo.fast_layers.swap import Swap, swap
from imagenette_zoo.layers import Mish

CPU = torch.device('cpu')


def network() -> nn.Sequential:
    norm = BatchNormAct2d(16, act_layer=nn.Mish)
    return nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1, groups=16), norm, nn.Mish(), nn.Conv2d(16, 16, 1))


def test_it_lists_what_it_swaps() -> None:
    model = network()
    assert swap(model, CPU, channels_last=True) == [
        Swap('1', BatchNormAct2d, NormAct2d),
        Swap('1.act', nn.Mish, Mish),
        Swap('2', nn.Mish, Mish),
    ]
    assert swap(model, CPU, channels_last=True, phase='training') == [Swap('0', nn.Conv2d, CpuDepthwiseConv2d)]
    assert swap(model, CPU, channels_last=True, phase='training') == []


@pytest.mark.parametrize(
    ('device', 'channels_last', 'phase', 'names'),
    [
        ('cpu', False, 'always', {'1.act', '2'}),
        ('cpu', False, 'training', {'0', '1.act', '2'}),
        ('cuda', True, 'always', {'0', '1.act', '2'}),
        ('cuda', False, 'recorded steps', {'0', '1.act', '2'}),
        ('cuda', True, 'recorded steps', {'0', '1', '1.act', '2', '3'}),
        ('mps', True, 'training', {'1.act', '2'}),
    ],
)
def test_where_and_when(device: str, channels_last: bool, phase: str, names: set[str]) -> None:
    swaps = swap(network(), torch.device(device), channels_last, phase)
    assert {each.name for each in swaps} == names
    assert (Swap('0', nn.Conv2d, PlannedLaterConv2d) in swaps) == (device == 'cuda')


def test_layers_of_derived_types_stay() -> None:
    """They may compute something else."""
    derived = [type(kind.__name__, (kind,), {}) for kind in (nn.Conv2d, BatchNormAct2d, nn.Mish)]
    model = nn.Sequential(derived[0](16, 16, 3, 2, 1, groups=16), derived[1](16, act_layer=derived[2]))
    for device in ('cpu', 'cuda'):
        assert swap(model, torch.device(device), channels_last=True, phase='recorded steps') == []


def test_nothing_else_in_the_package_changes_a_class() -> None:
    root = Path(imagenette_zoo.__file__).parent
    modules = {path.name for path in root.rglob('*.py') if re.search(r"__class__\s*=|'__class__'", path.read_text())}
    assert modules == {'swap.py'}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('given', [False, True])
def test_they_are_logged_where_asked_for(
    given: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, flags = 'mbv2_mish_maxblur_imagenette', ['--log-swaps'] if given else []
    data = ['--data-dir', str(folder), '--img-size', '32', '--device', 'cpu', '--workers', '0', '-b', '8', *flags]
    run = ['--epochs', '1', '--warmup-epochs', '0', '--output', str(tmp_path), '--experiment', 'run']
    assert main(['train', *data, '--model', model, *run]) == 0
    always = 'faster layers: 52 timm.BatchNormAct2d -> NormAct2d, 4 imagenette_zoo.MaxBlurPool2d -> FastMaxBlurPool2d\n'
    training = 'faster layers in training: none\n'
    output = capsys.readouterr().out
    assert (output.count(always), output.count(training), output.count('faster layers')) == (given, given, 2 * given)
    assert main(['validate', *data, '--model', str(tmp_path / 'run')]) == 0
    output = capsys.readouterr().out
    assert (output.count(always), output.count('faster layers')) == (given, given)
