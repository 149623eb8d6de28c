"""Compiled models and when they pay, training at several sizes, memory that is kept."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.training import compilation, learner
from imagenette_zoo.training.compilation import resolve
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.memory import peak_memory
from tests.conftest import TAKES_LONG, needs_compiler

MakeRecipe = Callable[..., Recipe]
CPU = torch.device('cpu')
needs_sizes = pytest.mark.skipif(
    not hasattr(timm.data, 'scheduled_sampler'), reason='this timm has no ScheduledBatchSampler'
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / 'last' / 'model.safetensors')


def resolved(
    capsys: pytest.CaptureFixture[str], images: int, device: str = 'cuda', **options: Any
) -> tuple[str | None, str]:
    recipe = Recipe(**{'model': 'mbv2_mish_imagenette', 'img_size': 128, 'epochs': 500, **options})
    model = timm.create_model(recipe.model, num_classes=10, **recipe.model_kwargs)
    own = resolve(recipe, model, images, torch.device(device), Console())
    return own.torchcompile, capsys.readouterr().out


def test_auto_compiles_where_the_run_earns_it_back_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('torch.utils._triton.has_triton', lambda: True)
    backend, output = resolved(capsys, images=9469)
    assert backend == 'inductor'
    assert 'torchcompile auto: on' in output
    assert resolved(capsys, images=100) == (None, '')
    assert resolved(capsys, images=9469, img_size=32) == (None, ''), 'small images take less time'
    assert resolved(capsys, images=9469, device='cpu') == (None, ''), 'a CPU has better kernels than the compiler'
    assert resolved(capsys, images=9469, torchcompile='none') == (None, '')
    assert resolved(capsys, images=100, torchcompile='inductor') == ('inductor', '')
    monkeypatch.setattr('torch.utils._triton.has_triton', lambda: False)
    assert resolved(capsys, images=9469) == (None, ''), 'no compiler'


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'model_ema': True, 'model_ema_decay': 0.9},
        {'grad_accum_steps': 2},
        {'mixup': 0.2, 'cutmix': 1.0},
        {'amp': True, 'amp_dtype': 'bfloat16'},
    ],
)
def test_compiled_training_is_the_same_training(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """One compile for training and one for evaluation; a last, smaller batch is run by the plain model."""
    common = dict(model='test_vit', img_size=160, batch_size=10, **options)
    plain = train(recipe(**common, experiment='plain', torchcompile='none'), quiet=True)
    shapes = []
    compile_model = torch.compile

    def spy(model: torch.nn.Module, **kwargs: object) -> object:
        fast = compile_model(model, **kwargs)
        fast.register_forward_pre_hook(lambda _, args: shapes.append(len(args[0])))
        return fast

    monkeypatch.setattr(torch, 'compile', spy)
    torch._dynamo.utils.counters.clear()
    compiled = train(recipe(**common, experiment='compiled', torchcompile='aot_eager'), quiet=True)
    tolerance = dict(rel=1e-2) if 'amp' in options else dict(rel=1e-3)
    assert compiled.loss == pytest.approx(plain.loss, **tolerance)
    assert set(shapes) == {10}, 'a last, smaller batch would be compiled for itself'
    assert torch._dynamo.utils.counters['frames']['ok'] <= 2, 'training and evaluation'


@pytest.mark.long
@pytest.mark.slow
def test_compiling_changes_nothing_before_the_first_step(recipe: MakeRecipe) -> None:
    """The trial step of BatchNorm's statistics and the gradients leaves no trace."""
    # in this layout both have torch's BatchNorm: a compiled model never has the faster layer
    common = dict(model='test_resnet', drop=0.5, channels_last=False)
    plain = train(recipe(**common, experiment='plain', torchcompile='none'), quiet=True)
    eager = train(recipe(**common, experiment='eager', torchcompile='eager'), quiet=True)
    a, b = weights(plain.folder), weights(eager.folder)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.slow
def test_a_compile_that_fails_in_the_middle_leaves_no_trace(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two sizes fails; BatchNorm has seen the first."""
    loss = learner.Learner._loss

    def broken(self: learner.Learner, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] == 64 and not images.any():
            raise RuntimeError('no compiler today')
        return loss(self, images, *rest)

    common = dict(model='test_resnet', epochs=1, train_img_sizes=(32, 64))
    plain = train(recipe(**common, experiment='plain', torchcompile='none'), quiet=True)
    monkeypatch.setattr(compilation, '_saved', lambda *_: 1e9)
    monkeypatch.setattr(compilation, '_may_gain', lambda _: True)
    monkeypatch.setattr(learner, 'compiled', lambda model, *_: model)
    monkeypatch.setattr(learner.Learner, '_loss', broken)
    tried = train(recipe(**common, experiment='tried'), quiet=True)
    assert all(map(torch.equal, *(weights(result.folder).values() for result in (plain, tried))))


class _Slow(torch.nn.Module):
    """As slow as a compiled model may be."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.3)
        return self.model(images)


def test_a_compiled_model_that_is_slower_is_named(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner, 'compiled', lambda model, *_: _Slow(model))
    train(recipe(model='test_resnet', epochs=1, device='cpu', torchcompile='inductor'))
    assert '--torchcompile makes steps slower here' in capsys.readouterr().out


@pytest.mark.parametrize('rate', [89.0, 91.0])
def test_a_compiled_model_that_is_hardly_slower_is_not_named(
    rate: float, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner, 'compiled', lambda model, *_: model)
    monkeypatch.setattr(learner.Learner, 'compile', lambda *_: (0.1, {'compiled': rate, 'eager': 100.0}))
    train(recipe(model='test_resnet', epochs=1, device='cpu', torchcompile='inductor'))
    assert ('slower here: 89 images/s, without it at least 100' in capsys.readouterr().out) is (rate == 89)


def test_auto_goes_on_without_a_compiler_that_fails(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> object:
        raise RuntimeError('no compiler today')

    monkeypatch.setattr(compilation, '_saved', lambda *_: 1e9)
    monkeypatch.setattr(compilation, '_may_gain', lambda _: True)
    monkeypatch.setattr(learner.Learner, 'compile', broken)
    result = train(recipe(epochs=1))
    assert 'torchcompile auto: off after all (no compiler today)' in capsys.readouterr().out
    assert result.folder.joinpath('result.json').is_file()
    with pytest.raises(UserError, match='--torchcompile inductor: no compiler today'):
        train(recipe(epochs=1, experiment='asked', torchcompile='inductor'), quiet=True)
    assert not (result.folder.parent / 'asked').exists()


@needs_sizes
@pytest.mark.parametrize('loader', ['cache', pytest.param('timm', marks=TAKES_LONG)])
def test_training_at_several_sizes(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    """Progressive: the first epoch is small, the last large; validation has its own size; it can be resumed."""
    seen: list[list[int]] = []
    step, after = learner.Learner.step, learner.Learner.after_last_update

    def spy(self: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen[-1].append(images.shape[-1])
        return step(self, images, *rest)

    def end(self: Any) -> None:
        seen.append([])
        after(self)

    monkeypatch.setattr(learner.Learner, 'step', spy)
    monkeypatch.setattr(learner.Learner, 'after_last_update', end)
    seen.append([])
    options = dict(
        epochs=4,
        loader=loader,
        train_img_sizes=(24, 40),
        train_size_schedule='progressive',
        train_size_schedule_spread=0.0,
        train_size_random_mix=0.0,
    )
    result = train(recipe(**options), quiet=True)
    assert [set(sizes) for sizes in seen[:4]] == [{24}, {24}, {40}, {40}]
    assert result.img_size == 32
    config = json.loads((result.folder / 'best' / 'config.json').read_text())
    assert config['pretrained_cfg']['input_size'] == [3, 32, 32]
    assert result.seconds['setup'] > 0


@pytest.mark.long
@pytest.mark.slow
@needs_sizes
def test_each_size_is_compiled_once(recipe: MakeRecipe) -> None:
    torch._dynamo.utils.counters.clear()
    options = dict(epochs=3, train_img_sizes=(24, 28, 32, 36, 40, 44), torchcompile='aot_eager', model='test_resnet')
    train(recipe(**options), quiet=True)
    counters = torch._dynamo.utils.counters
    assert counters['frames']['ok'] <= 6 + 2, 'six sizes and the evaluation'
    assert not [reason for reason in counters.get('unimplemented', {}) if 'limit' in reason]


TENSOR = 'torch.ones(2**25)'  # 128 MiB
LARGE = 'p = libc.malloc(9 << 28); libc.memset(p, 1, 9 << 28); libc.free(p)'  # 2.25 GiB


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('code', [TENSOR, LARGE], ids=['tensor', 'above 2 GiB'])
def test_freed_memory_is_kept(code: str) -> None:
    """A second piece of memory of the same size costs no more page faults; without the call it costs them all again."""
    code = (
        'import ctypes, resource, sys, timm, torch\n'  # as in a training, whose heap has grown
        'from contextlib import nullcontext\n'
        'from imagenette_zoo.utils.memory import keep_freed_memory\n'
        'torch.set_num_threads(1)\n'
        'libc = ctypes.CDLL(None)\n'
        'libc.malloc.restype = ctypes.c_void_p\n'
        'libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t\n'
        'libc.malloc.argtypes = libc.memset.argtypes[2:]\n'
        'libc.free.argtypes = libc.memset.argtypes[:1]\n'
        'with keep_freed_memory() if sys.argv[1] == "keep" else nullcontext():\n'
        '    for _ in range(4):\n'
        '        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
        f'        {code}\n'
        'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n'
    )

    def faults(word: str) -> int:
        return int(subprocess.run([sys.executable, '-c', code, word], capture_output=True, check=True).stdout)

    usual = faults('leave')
    if usual < 100:
        pytest.skip('this system hands out memory without page faults')
    assert faults('keep') < usual / 4


def test_mapped_files_are_no_memory_of_the_process(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / 'file'
    path.write_bytes(bytes(2**27))
    before = peak_memory(CPU)
    mapped = np.memmap(path, np.uint8, 'c')
    assert int(mapped.sum()) == 0
    assert peak_memory(CPU) - before < 64


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='the peak can not be reset')
def test_the_memory_of_a_run_is_not_that_of_the_one_before_it() -> None:
    code = (
        'import torch\nfrom imagenette_zoo.utils.memory import keep_freed_memory, peak_memory, reset_peak_memory\n'
        'kept = keep_freed_memory()\nkept.__enter__()\ncpu = torch.device("cpu")\nbefore = peak_memory(cpu)\n'
        'blocks = [torch.ones(2**24) for _ in range(8)]\ndel blocks\nprint(peak_memory(cpu) - before)\n'
        'reset_peak_memory(cpu)\nprint(peak_memory(cpu) - before)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert first > 500
    assert second < 100


@needs_compiler
@pytest.mark.parametrize('amp', [pytest.param(False, marks=TAKES_LONG), True])
def test_training_on_a_cpu_uses_the_kernels(recipe: MakeRecipe, calls: list[str], amp: bool) -> None:
    options = {'amp': True, 'amp_dtype': 'bfloat16'} if amp else {}
    model = {'model': 'mbv2_mish_mp3_imagenette', 'channels_last': True}  # its depthwise kernels are of 3, 5 and 7
    train(recipe(**model, img_size=64, epochs=1, loader='cache', **options), quiet=True)
    assert set(calls) == {
        'crop_resize', 'look_up', 'norm_stats', 'norm_act_forward', 'norm_act_backward', 'depthwise_backward',
    }  # fmt: skip
