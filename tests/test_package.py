"""The package's front: what importing it costs and gives."""

import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import timm

import imagenette_zoo
from imagenette_zoo.data.drawings import DRAWINGS
from imagenette_zoo.errors import first_line
from imagenette_zoo.models import FAMILIES
from tests.conftest import ZOO

ROOT = Path(__file__).parents[1]


def modules_after(statement: str) -> set[str]:
    code = f'import sys; {statement}; print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.long
@pytest.mark.slow
def test_import_adds_little_to_timms() -> None:
    """Only our own layers and models, the names of the classes, and what is small: no training and no other library."""
    assert not {'timm', 'torch', 'numpy'} & modules_after('import imagenette_zoo')
    added = modules_after('import imagenette_zoo, timm') - modules_after('import timm')
    ours = {name for name in added if name.split('.')[0] == 'imagenette_zoo'}
    assert {'imagenette_zoo.layers', 'imagenette_zoo.models'} <= ours
    parts = {'config', 'kernels', 'layers', 'models', 'version', 'data', 'errors', 'utils'}
    assert {name.split('.')[1] for name in ours if '.' in name} == parts
    assert {name.split('.')[0] for name in added - ours} <= {'torch'}
    assert len(added - ours) < 10


@pytest.mark.slow
def test_training_is_loaded_when_asked_for() -> None:
    assert {'Recipe', 'Result', 'train', 'validate', 'list_models'} <= set(dir(imagenette_zoo))
    with pytest.raises(AttributeError, match='no attribute'):
        _ = imagenette_zoo.trian
    assert 'imagenette_zoo.config.recipe' in modules_after('import imagenette_zoo; imagenette_zoo.Recipe')
    modules_after('import imagenette_zoo as iz; iz.layers.Mish, iz.errors.UserError, iz.models.FAMILIES')


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


def contents(wheel: Path) -> dict[str, int]:
    """The files of a wheel but for its own list of them, with their checksums."""
    with zipfile.ZipFile(wheel) as file:
        return {info.filename: info.CRC for info in file.infolist() if not info.filename.endswith('/RECORD')}


@pytest.mark.long
@pytest.mark.slow
def test_wheel_and_sdist_are_whole_and_work_in_an_empty_environment(tmp_path: Path) -> None:
    """Commands, recipes, studies, templates, kernels and weights, outside of a checkout."""
    pytest.importorskip('build')
    source, place = tmp_path / 'source', tmp_path / 'elsewhere'
    left = shutil.ignore_patterns('.*', '__pycache__', 'build', 'dist', 'runs', '*.egg-info', 'results')
    shutil.copytree(ROOT, source, symlinks=True, ignore=left)
    build = [sys.executable, '-m', 'build', '--no-isolation', '--outdir']
    for outdir, *options in (['of_sdist'], ['of_checkout', '--wheel']):
        subprocess.run([*build, tmp_path / outdir, *options, source], cwd=tmp_path, check=True, capture_output=True)
    [wheel] = (tmp_path / 'of_sdist').glob('*.whl')
    assert contents(wheel) == contents(tmp_path / 'of_checkout' / wheel.name)

    venv.create(tmp_path / 'venv')
    python = tmp_path / 'venv' / 'bin' / 'python'
    pip = [sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel]
    subprocess.run(pip, check=True)
    [site] = (tmp_path / 'venv' / 'lib').glob('python*/site-packages')
    (site / 'others.pth').write_text(sysconfig.get_path('purelib'))  # torch, timm and all that, not installed anew
    place.mkdir()
    DRAWINGS['golf ball']().save(place / 'drawn.png')
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = python.with_name('imagenette-zoo')
    assert 'mbv2_mish_maxblur_imagenette' in run(command, 'list')
    assert json.loads(run(command, 'predict', 'drawn.png', '--json'))[0]['class'] == 'golf ball'
    code = (
        'import imagenette_zoo\n'
        'from importlib import resources\n'
        'from imagenette_zoo.config.hparams import recipe_names, study_names\n'
        'from imagenette_zoo.config.recipe import Recipe\n'
        'print(imagenette_zoo.__file__, len([Recipe.load(name) for name in recipe_names()]), *study_names())\n'
        'print(len(resources.files("imagenette_zoo.kernels").joinpath("cpu.cpp").read_bytes()))\n'
        'print(*sorted(file.name for file in resources.files("imagenette_zoo.models.weights").iterdir()))\n'
        'print(*sorted(file.name for file in resources.files("imagenette_zoo.report").joinpath("templates").iterdir()))'
    )
    first, kernels, weights, templates = run(python, '-c', code).splitlines()
    file, count, *studies = first.split()
    assert file == str(site / 'imagenette_zoo' / '__init__.py')
    hparams = ROOT / 'hparams'
    assert int(count) == len([*hparams.glob('*.yaml'), *hparams.glob('leaderboard/*.yaml')])
    assert set(studies) == {file.stem for file in (hparams / 'studies').glob('*.yaml')}
    assert int(kernels) == (ROOT / 'imagenette_zoo' / 'kernels' / 'cpu.cpp').stat().st_size
    assert weights.split() == sorted(file.name for file in (ROOT / 'imagenette_zoo' / 'models' / 'weights').iterdir())
    assert templates.split() == ['report.html', 'report.md', 'table.md']
