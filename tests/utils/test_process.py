"""Functions that are called from Python leave the process as it was."""

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import imagenette_zoo as iz
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.config.uses import PassesOptions, PredictOptions
from imagenette_zoo.inference.predict import predict_each
from imagenette_zoo.sharing.publish import PublishOptions, publish
from imagenette_zoo.study.analysis import analyse
from imagenette_zoo.study.estimate import seconds_per_epoch
from imagenette_zoo.study.passes import compare_passes
from imagenette_zoo.study.step_times import image_counts
from imagenette_zoo.utils import memory
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.process import restore_process
from imagenette_zoo.utils.seeding import seed_everything
from tests.conftest import TAKES_LONG, interrupted

QUIET = Console(quiet=True)
CALLS: dict[str, Callable[[Recipe, Path, str], object]] = {
    'train': lambda recipe, run, data: iz.train(recipe, quiet=True),
    'validate': lambda recipe, run, data: iz.validate(run, data, device='cpu', quiet=True),
    'predict': lambda recipe, run, data: iz.predict(f'{data}/val', run, device='cpu'),
    'export': lambda recipe, run, data: iz.export(run, 'torchscript', run / 'model.pt', data_dir=data),
    'publish': lambda recipe, run, data: publish(str(run), 'someone/model', PublishOptions(dry_run=True), quiet=True),
    'passes': lambda recipe, run, data: compare_passes(PassesOptions(model=str(run), data_dir=data), quiet=True),
    'analyse': lambda recipe, run, data: analyse(run, QUIET),
    'estimate': lambda recipe, run, data: seconds_per_epoch(recipe, image_counts(recipe, data)),
}


def drawn() -> list[object]:
    """The next numbers of Python's, NumPy's and torch's generators."""
    return [random.random(), np.random.rand(), torch.rand(()).item(), np.random.randn(), torch.randn(()).item()]


def seed_as_a_user() -> None:
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    random.gauss(0, 1)  # half of a pair is left for the next, as with NumPy
    np.random.randn()


@pytest.fixture(scope='module')
def make(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    output = tmp_path_factory.mktemp('runs')

    def make(experiment: str, **changes: object) -> Recipe:
        options = {
            'model': 'mbv2_mish_mp2_imagenette', 'model_kwargs': {'channel_multiplier': 0.35}, 'data_dir': str(folder),
            'img_size': 32, 'epochs': 1, 'batch_size': 8, 'lr': 1e-4, 'warmup_epochs': 0, 'workers': 0, 'device': 'cpu',
        }  # fmt: skip
        return Recipe(**{**options, 'output': str(output), 'experiment': experiment, **changes})

    return make


@pytest.fixture(scope='module')
def run(make: Callable[..., Recipe]) -> Path:
    return Path(iz.train(make('run'), quiet=True).folder)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=TAKES_LONG if name in ('analyse', 'passes') else []) for name in CALLS]
)
def test_generators_are_as_before(name: str, make: Callable[..., Recipe], run: Path, folder: Path) -> None:
    seed_as_a_user()
    expected = drawn()
    seed_as_a_user()
    CALLS[name](make(name), run, str(folder))
    assert drawn() == expected


def test_generators_are_as_before_when_it_raises(make: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    seed_as_a_user()
    expected = drawn()
    seed_as_a_user()
    with interrupted(monkeypatch, 0), pytest.raises(KeyboardInterrupt):
        iz.train(make('broken'), quiet=True)
    assert drawn() == expected


@pytest.mark.long
@pytest.mark.slow
def test_random_numbers_do_not_follow_from_the_recipe(make: Callable[..., Recipe]) -> None:
    np.random.seed(1)
    expected = np.random.rand(2).tolist()
    np.random.seed(1)
    numbers = []
    for seed in (1, 2):
        iz.train(make(f'seed{seed}', seed=seed), quiet=True)
        numbers.append(np.random.rand())
    assert numbers == expected


def test_generators_are_as_before_between_predictions(run: Path, folder: Path) -> None:
    seed_as_a_user()
    expected = [drawn() for _ in range(3)]
    seed_as_a_user()
    predictions = predict_each([folder / 'val'], PredictOptions(model=str(run), device='cpu'), QUIET)
    numbers = [drawn() for _, _ in zip(range(2), predictions, strict=False)]
    del predictions
    assert [*numbers, drawn()] == expected


def test_environment_filters_and_the_rest_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR')
    monkeypatch.setenv('TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS', '1')
    seed_as_a_user()
    environment, filters, state = dict(os.environ), list(warnings.filters), torch.get_rng_state()

    @restore_process()
    def call() -> None:
        os.environ['TORCHINDUCTOR_CACHE_DIR'] = os.environ['TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS'] = '0'
        warnings.simplefilter('ignore')
        seed_everything(1)
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            call()
        assert (dict(os.environ), list(warnings.filters)) == (environment, filters)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='the resident size is not known')
def test_memory_that_the_user_frees_is_given_back(make: Callable[..., Recipe]) -> None:
    """Also after a call within a call, but not before the outer one has ended: it would be slow."""
    code = (
        'import ctypes, sys, torch, imagenette_zoo as iz\n'
        'from imagenette_zoo.utils.memory import keep_freed_memory\n'
        'try: ctypes.CDLL("libc.so.6").mallopt\n'
        'except (OSError, AttributeError): sys.exit("no glibc")\n'
        'def resident_after_a_gib(count):\n'
        '    tensors = [torch.ones(2**28 // count) for _ in range(count)]\n'
        '    del tensors\n'
        '    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20\n'
        f'recipe = iz.Recipe(**{make("memory").as_dict()})\n'
        'before = resident_after_a_gib(1)\n'
        'with keep_freed_memory():\n'
        '    iz.train(recipe, quiet=True)\n'
        '    within = resident_after_a_gib(1)\n'
        'print(before, within, resident_after_a_gib(1), resident_after_a_gib(32))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if 'no glibc' in done.stderr:
        pytest.skip('no glibc')
    before, within, *after = map(int, done.stdout.split())
    assert within - before > 900
    assert max(after) - before < 400  # the libraries that training loads


def test_the_users_own_settings_of_glibc_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(('MALLOC_', 'GLIBC_'))]:
        monkeypatch.delenv(name)
    usual = {'trim_threshold': 2**26, 'top_pad': 2**17, 'mmap_threshold': 2**25, 'mmap_max': 2**16}
    assert memory._usual_settings() == usual
    monkeypatch.setenv('MALLOC_MMAP_MAX_', '0x10')
    monkeypatch.setenv('GLIBC_TUNABLES', f'glibc.malloc.check=3:glibc.malloc.top_pad={2**40}:glibc.pthread.rseq')
    fixed = {'trim_threshold': 2**17, 'mmap_threshold': 2**17, 'mmap_max': 16, 'top_pad': 2**31 - 1}
    assert memory._usual_settings() == fixed
