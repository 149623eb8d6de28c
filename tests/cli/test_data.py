"""The list of models."""

import json

import pytest
import timm

from imagenette_zoo.cli.main import main
from tests.conftest import ZOO


@pytest.mark.parametrize(
    ('words', 'names'),
    [
        ([], ZOO),
        (['googlenet'], ['googlenet']),
        (['resnet*_mp2*', 'googl'], ['resnet34_mp2_imagenette', 'googlenet']),
        (['50d'], ['resnet50d_mish_maxblur_imagenette']),
    ],
)
def test_patterns_choose_models(words: list[str], names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['list', *words]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == names
    assert main(['list', '--json', *words]) == 0
    infos = json.loads(capsys.readouterr().out)
    assert [info['name'] for info in infos] == names
    assert infos[0].keys() == {'name', 'parameters', 'gmacs', 'description'}


def test_all_that_timm_has_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['list', 'resnet18*', '--timm']) == 0
    assert capsys.readouterr().out.split() == timm.list_models('resnet18*')
    assert main(['list', 'mbv2', '--timm', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == sorted(name for name in ZOO if 'mbv2' in name)


def test_no_such_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['list', 'vgg*']) == 2
    assert capsys.readouterr().err == 'error: no model matches vgg*; --timm searches all of timm\n'
