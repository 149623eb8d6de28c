"""The package's front: what importing it costs and gives."""

import inspect
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm

import imagenette_zoo
from imagenette_zoo.errors import first_line
from imagenette_zoo.models import FAMILIES
from tests.conftest import ZOO

ROOT = Path(__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    code = f'import sys; {statement}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_import_adds_little_to_timms() -> None:
    """Only our own layers and models, the names of the classes, and what is small: no training and no other library."""
    added = modules_after('import imagenette_zoo') - modules_after('import timm')
    ours = {name for name in added if name.split('.')[0] == 'imagenette_zoo'}
    assert {'imagenette_zoo.layers', 'imagenette_zoo.models'} <= ours
    parts = {'kernels', 'layers', 'models', 'version', 'data', 'errors', 'utils'}
    assert {name.split('.')[1] for name in ours if '.' in name} == parts
    assert {name.split('.')[0] for name in added - ours} <= {'torch'}
    assert len(added - ours) < 10


@pytest.mark.slow
def test_training_is_loaded_when_asked_for() -> None:
    assert {'Recipe', 'Result', 'train', 'validate', 'list_models'} <= set(dir(imagenette_zoo))
    with pytest.raises(AttributeError, match='no attribute'):
        _ = imagenette_zoo.trian
    assert 'imagenette_zoo.config.recipe' in modules_after('import imagenette_zoo; imagenette_zoo.Recipe')


@pytest.mark.parametrize('name', ZOO)
def test_entry_points_are_ordinary_functions(name: str) -> None:
    entry_point = timm.models.model_entrypoint(name)
    assert pickle.loads(pickle.dumps(entry_point)) is entry_point
    assert inspect.getsource(entry_point).count(f'def {name}(pretrained') == 1  # as are grep and go-to-definition
    description = timm.models.get_pretrained_cfg(name).description
    if name != 'googlenet':  # has the weights of another
        assert entry_point.__doc__ == f'{description}.'


def test_no_file_bears_the_name_of_one_of_timms() -> None:
    """timm keys its registry by file name."""
    files = [family.__name__.rpartition('.')[2] for family in FAMILIES]
    assert {name for file in files for name in timm.list_models(module=file)} == set(ZOO)


def test_models_pickle() -> None:
    model = timm.create_model('mbv2_mish_mp2_imagenette', channel_multiplier=0.35)
    assert list(pickle.loads(pickle.dumps(model)).state_dict()) == list(model.state_dict())


def test_an_error_without_a_message_has_a_line_too() -> None:
    assert first_line(ValueError('\nwhat\nwhere')) == 'what'
    assert first_line(AssertionError()) == 'AssertionError'


@pytest.mark.slow
def test_the_table_of_the_docs_is_that_of_the_models() -> None:
    page = (ROOT / 'docs' / 'models.md').read_text()
    table = re.findall(r'^\| `(\w+)` \| (.*) \| (\d+\.\d\d) \| (\d+\.\d\d) \|$', page, re.MULTILINE)
    models = imagenette_zoo.list_models()
    assert table == [(m.name, m.description, f'{m.parameters / 1e6:.2f}', f'{m.gmacs:.2f}') for m in models]


@pytest.mark.slow
def test_a_wheel_has_all_that_is_needed(tmp_path: Path) -> None:
    """Recipes, studies, templates, the kernels' source and the packaged weights, outside of a checkout."""
    pytest.importorskip('setuptools', minversion='77')
    source, place = tmp_path / 'source', tmp_path / 'installed'
    source.mkdir()
    for name in ('imagenette_zoo', 'hparams'):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    [wheel] = tmp_path.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(place)
    code = (
        'import timm, imagenette_zoo\n'
        'from importlib import resources\n'
        'from imagenette_zoo.config.hparams import recipe_names, study_names\n'
        'from imagenette_zoo.config.recipe import Recipe\n'
        'print(imagenette_zoo.__file__, len([Recipe.load(name) for name in recipe_names()]), *study_names())\n'
        'timm.create_model("mbv2_mish_imagenette", pretrained=True)\n'
        'print(len(resources.files("imagenette_zoo.kernels").joinpath("cpu.cpp").read_bytes()))\n'
        'print(*sorted(file.name for file in resources.files("imagenette_zoo.report").joinpath("templates").iterdir()))'
    )
    script = [sys.executable, '-c', code]
    done = subprocess.run(script, cwd=place, capture_output=True, text=True, check=True).stdout.splitlines()
    file, count, *studies = done[0].split()
    assert file == str(place / 'imagenette_zoo' / '__init__.py')
    assert int(count) == len(list((ROOT / 'hparams').glob('*.yaml'))) + len(
        list((ROOT / 'hparams').glob('leaderboard/*.yaml'))
    )
    assert set(studies) == {file.stem for file in (ROOT / 'hparams' / 'studies').glob('*.yaml')}
    assert int(done[1]) == (ROOT / 'imagenette_zoo' / 'kernels' / 'cpu.cpp').stat().st_size
    assert done[2].split() == ['report.html', 'report.md', 'table.md']
