"""The package's front: what importing it costs and gives."""

import pickle
import subprocess
import sys

import pytest
import timm

import imagenette_zoo
from imagenette_zoo.errors import first_line
from imagenette_zoo.models import googlenet, mobilenetv2, resnets


def modules_after(statement: str) -> set[str]:
    code = f'import sys; {statement}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_adds_little_to_timms() -> None:
    """Only our own layers and models, the names of the classes, and what is small: no training and no other library."""
    added = modules_after('import imagenette_zoo') - modules_after('import timm')
    ours = {name for name in added if name.split('.')[0] == 'imagenette_zoo'}
    assert {'imagenette_zoo.layers', 'imagenette_zoo.models'} <= ours
    assert {name.split('.')[1] for name in ours if '.' in name} == {'layers', 'models', 'version', 'data', 'errors'}
    assert {name.split('.')[0] for name in added - ours} <= {'torch'}
    assert len(added - ours) < 10


def test_training_is_loaded_when_asked_for() -> None:
    assert {'Recipe', 'Result', 'train', 'validate', 'list_models'} <= set(dir(imagenette_zoo))
    with pytest.raises(AttributeError, match='no attribute'):
        _ = imagenette_zoo.trian
    assert 'imagenette_zoo.training.recipe' in modules_after('import imagenette_zoo; imagenette_zoo.Recipe')


@pytest.mark.parametrize('family', [mobilenetv2, resnets, googlenet])
def test_entry_points_are_ordinary_functions(family: object) -> None:
    for variant in family.VARIANTS:  # type: ignore[attr-defined]
        entry_point = timm.models.model_entrypoint(variant.name)
        assert pickle.loads(pickle.dumps(entry_point)) is entry_point
        assert entry_point.__doc__.startswith(variant.description)
        assert variant.name in family.__all__  # type: ignore[attr-defined]


def test_no_file_bears_the_name_of_one_of_timms() -> None:
    """timm keys its registry by file name."""
    for family in (mobilenetv2, resnets, googlenet):
        module = family.__name__.split('.')[-1]
        assert set(timm.list_models(module=module)) == {variant.name for variant in family.VARIANTS}


def test_models_pickle() -> None:
    model = timm.create_model('mbv2_mish_mp2_imagenette', channel_multiplier=0.35)
    assert list(pickle.loads(pickle.dumps(model)).state_dict()) == list(model.state_dict())


def test_an_error_without_a_message_has_a_line_too() -> None:
    assert first_line(ValueError('\nwhat\nwhere')) == 'what'
    assert first_line(AssertionError()) == 'AssertionError'
