"""Shared by the tests: tiny image folders, the real data set where it is at hand."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.kernels import runtime
from imagenette_zoo.models.catalog import model_names
from imagenette_zoo.training import trainer
from imagenette_zoo.utils import modules

ZOO = model_names()
QUICK = ('mbv2_mish_maxblur_imagenette', 'resnet34_mp2_imagenette', 'googlenet')  # one of each family
TAKES_LONG = [pytest.mark.slow, pytest.mark.long]
EACH_OF_THE_ZOO = [pytest.param(name, marks=[] if name in QUICK else TAKES_LONG) for name in ZOO]

needs_local_dir = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split('.')[:3]) < (1, 0, 26),
    reason='timm before 1.0.26 cannot load safetensors from local-dir',
)

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get('CXX', 'c++'), 'g++', 'clang++'))), reason='no C++ compiler'
)


needs_linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc, or all of 127.0.0.0/8')


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return int(sock.getsockname()[1])


def run_without_compiler(script: str, place: Path) -> None:
    """Runs a Python script as on a machine that has no C++ compiler and has never had one; it may say nothing."""
    environment = {
        **os.environ, 'PATH': str(place), 'CXX': str(place / 'c++'), 'OMP_NUM_THREADS': '1',
        'IMAGENETTE_ZOO_CACHE': str(place), 'TORCHINDUCTOR_CACHE_DIR': str(place),
        'PYTHONPATH': str(Path(__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the C++ kernels that run."""
    runtime._library()  # which is compiled and checked now, not in the test
    names, run = [], runtime._run

    def spy(library: object, name: str, *arguments: object) -> None:
        names.append(name)
        run(library, name, *arguments)

    monkeypatch.setattr(runtime, '_run', spy)
    return names


@pytest.fixture(autouse=True, scope='session')
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the user's cache. What inductor compiled serves all workers of a session."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('IMAGENETTE_ZOO_CACHE', str(own / 'cache'))
        patch.setenv('TORCHINDUCTOR_CACHE_DIR', str(shared / 'inductor'))
        patch.setenv('TRACKIO_DIR', str(own / 'trackio'))  # which it reads when something imports it
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def imagenette_dir() -> Path:
    """The real data set; skips without it."""
    if not os.environ.get('IMAGENETTE_DIR'):
        pytest.skip('IMAGENETTE_DIR is not set')
    return Path(os.environ['IMAGENETTE_DIR'])


def make_folder(root: Path, classes: int = 3, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """An image folder whose classes are told apart by their mean colour; sizes 40 to 60 px."""
    rng = np.random.RandomState(seed)
    for split, count in (('train', train), ('val', val)):
        for index in range(classes):
            folder = root / split / f'class{index}'
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.randint(40, 61, 2)
                pixels = rng.randint(0, 120, (height, width, 3))
                pixels[..., index % 3] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


@pytest.fixture(scope='session')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image folder, not to be changed."""
    return make_folder(tmp_path_factory.mktemp('data'))


@pytest.fixture
def no_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test starts without code of the user's own, and leaves none."""
    monkeypatch.setattr(modules, '_imported', {})
    monkeypatch.setattr(sys, 'path', [*sys.path])
    yield
    forget_modules()


def forget_modules() -> None:
    """As in a new process: code of the user's own is not imported."""
    for name in modules.imported_modules():
        sys.modules.pop(name, None)
        del modules._imported[name]


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a recipe that trains in a second: `recipe(epochs=3)`."""
    return recipe_maker(folder, tmp_path)


def recipe_maker(folder: Path, place: Path) -> Callable[..., Recipe]:
    """As `recipe`, for fixtures of a module."""

    def make(**changes: object) -> Recipe:
        defaults: dict[str, object] = dict(
            model='test_resnet',
            data_dir=str(folder),
            img_size=32,
            epochs=2,
            batch_size=8,
            lr=0.01,
            warmup_epochs=0,
            workers=0,
            device='cpu',
            output=str(place / 'runs'),
            experiment='run',
        )
        return Recipe(**{**defaults, **changes})

    return make


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, epoch: int) -> Iterator[None]:
    """A run within is interrupted when it comes to this epoch."""
    train_epoch = trainer._train_epoch

    def stop(number: int, *args: object) -> object:
        if number == epoch:
            raise KeyboardInterrupt
        return train_epoch(number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, '_train_epoch', stop)
        yield


def changed(recipe: Recipe) -> dict[str, object]:
    """The options that differ from their defaults, as plain values."""
    default = Recipe().as_dict()
    return {name: value for name, value in recipe.as_dict().items() if value != default[name]}
