"""Runs that are killed, stopped, starved and started twice; the long version is tools/soak.py."""

import contextlib
import gc
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.models.model_folder import read_weights
from imagenette_zoo.training import interrupts, run, trainer
from imagenette_zoo.training.interrupts import StopSignals, explained
from imagenette_zoo.training.learner import Learner
from imagenette_zoo.training.meter import check_finite
from imagenette_zoo.training.result import read_result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.distributed import World
from imagenette_zoo.utils.files import ProcessLock
from imagenette_zoo.utils.signals import Stopped
from tests.conftest import changed, free_port, interrupted, make_folder, needs_linux

ROOT = Path(__file__).parents[2]
MakeRecipe = Callable[..., Recipe]
LONG = pytest.mark.long
OPTIONS: list[dict[str, Any]] = [
    dict(model_ema=True, model_ema_decay=0.9, sched_on_updates=True, mixup=0.2, reprob=0.5, opt='momentum'),
    dict(opt='adamw', grad_accum_steps=2, clip_grad=1.0, drop_path=0.1, loader='timm', workers=1),
]


def content(run: Path) -> dict[str, Any]:
    """All that must not depend on what a run went through."""
    result = json.loads((run / 'result.json').read_text())
    for name in ('seconds', 'images_per_second', 'peak_memory_mib', 'command', 'recipe'):
        del result[name]
    weights = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob('model.safetensors'))}
    return {'result': result, 'summary': (run / 'summary.csv').read_text(), 'weights': weights}


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Does something before the step of this number, counted from the start of the process."""
    step, count = Learner.step, iter(range(10**6))

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(count) == number:
            act()
        return step(*args, **kwargs)

    monkeypatch.setattr(Learner, 'step', watched)


def crash() -> None:
    raise ZeroDivisionError


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('options', [OPTIONS[0], *(pytest.param(each, marks=LONG) for each in OPTIONS[1:])])
def test_a_run_goes_on_within_an_epoch(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """24 images make six steps an epoch; with a checkpoint every two steps the last one before step 11 is at 10."""
    options = {**options, 'epochs': 3, 'batch_size': 4, 'recovery_interval': 2}
    whole = train(recipe(**options, experiment='whole'), quiet=True)
    steps: list[int] = []
    with monkeypatch.context() as patch:
        before_step(patch, 11, crash)
        with pytest.raises(ZeroDivisionError):
            train(recipe(**options), quiet=True)
    before_step(monkeypatch, 10**6, crash)
    counted = Learner.step
    monkeypatch.setattr(Learner, 'step', lambda *args: (steps.append(1), counted(*args))[1])
    halves = train(recipe(**options, resume='auto'), quiet=True)
    assert len(steps) == 18 - 10
    assert content(halves.folder) == content(whole.folder)


@pytest.mark.slow
def test_resuming_starts_what_was_never_begun_and_leaves_what_is_done(recipe: MakeRecipe) -> None:
    whole = train(recipe(experiment='whole'), quiet=True)
    first = train(recipe(resume='auto'), quiet=True)
    assert content(first.folder) == content(whole.folder)
    before = {path: path.read_bytes() for path in first.folder.rglob('*') if path.is_file()}
    again = train(recipe(resume='auto'), quiet=True)
    assert again == first
    assert before == {path: path.read_bytes() for path in first.folder.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match='was started with seed 42, not 1'):
        train(recipe(resume='auto', seed=1), quiet=True)
    with pytest.raises(UserError, match='there is nothing to resume'):
        train(recipe(resume=str(first.folder)), quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize('left', [pytest.param(['args.yaml'], marks=LONG), ['args.yaml', 'last', 'summary.csv']])
def test_a_run_that_was_killed_before_its_first_checkpoint(recipe: MakeRecipe, left: list[str]) -> None:
    whole = train(recipe(experiment='whole'), quiet=True)
    run = train(recipe(), quiet=True).folder
    for path in run.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if len(left) > 1:
        with pytest.raises(UserError, match='holds an interrupted run'):
            train(recipe(), quiet=True)
    assert content(train(recipe(resume=str(run)), quiet=True).folder) == content(whole.folder)


@pytest.mark.parametrize(('accumulated', 'saved', 'shown'), [(1, [2, 4, 0], [2, 4, 6]), (2, [4, 0], [4])])
def test_intervals_count_updates(
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accumulated: int,
    saved: list[int],
    shown: list[int],
) -> None:
    """24 images make six steps; after the last the next epoch's first is the one to go on with."""
    states: list[Mapping[str, Any]] = []
    monkeypatch.setattr(RunFolder, 'save_state', lambda _, state: states.append(state))
    intervals = dict(recovery_interval=2, log_interval=2)
    train(recipe(epochs=1, batch_size=4, grad_accum_steps=accumulated, **intervals))
    assert [state['position']['step'] for state in states] == saved
    assert re.findall(r'^epoch 1 (\d)/6: ', capsys.readouterr().out, re.MULTILINE) == [str(step) for step in shown]


# --- Signals ----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('step', [pytest.param(0, marks=LONG), 3, pytest.param(5, marks=LONG)])  # of six
@pytest.mark.parametrize('options', [OPTIONS[0], *(pytest.param(each, marks=LONG) for each in OPTIONS[1:])])
def test_a_signal_stops_after_the_step(
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    number: int,
    step: int,
    options: dict[str, Any],
) -> None:
    whole = train(recipe(**options, batch_size=4, epochs=3, experiment='whole'), quiet=True)
    file = tmp_path / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(recipe(**options, batch_size=4, epochs=3))))
    with monkeypatch.context() as patch:
        before_step(patch, 6 + step, lambda: os.kill(os.getpid(), number))
        assert main(['train', '-c', str(file)]) == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run = whole.folder.parent / 'run'
    output, errors = capsys.readouterr()
    assert 'interrupted' not in errors
    accumulated = step + 1 + (step + 1) % options.get('grad_accum_steps', 1)
    stopped = f'Stopped after epoch 2, step {accumulated} of 6. Everything is saved.'
    assert f'{stopped} Continue with: imagenette-zoo train --resume {run}\n' in output
    assert main(['train', '--resume', str(run)]) == 0
    assert content(run) == content(whole.folder)


@pytest.mark.slow
def test_a_signal_while_validating_keeps_the_epoch(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(model_ema=True, model_ema_decay=0.9, model_ema_force_cpu=True)
    whole = train(recipe(**options, experiment='whole'), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, 'evaluate', lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(9)))
        with pytest.raises(Stopped):
            train(recipe(**options), quiet=True)
        before_step(patch, 0, crash)
        patch.setattr(trainer, 'evaluate', lambda *_: crash())
        with pytest.raises(ZeroDivisionError):  # of the validation: no step is taken before it
            train(recipe(**options, resume='auto'), quiet=True)
    assert content(train(recipe(**options, resume='auto'), quiet=True).folder) == content(whole.folder)


def test_an_interrupt_leaves_no_process_of_the_loader(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait, each for seconds, until cycles of objects are collected."""
    before_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    before = multiprocessing.active_children()  # of other tests
    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe(loader='timm', workers=1), quiet=True)
        left = multiprocessing.active_children()
    finally:
        gc.enable()
    assert [process for process in left if process not in before] == []


def test_a_second_ctrl_c_stops_at_once(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail('not stopped')

    before_step(monkeypatch, 1, twice)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), quiet=True)
    assert not Path(recipe().output, 'run', 'state.pt').exists(), 'the first saves after its step'


# --- One writer -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_has_one_writer(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile() -> None:
        for options in ({}, {'overwrite': True}, {'resume': 'auto'}):
            with pytest.raises(UserError, match='another run is being written here'):
                train(recipe(**options), quiet=True)

    before_step(monkeypatch, 1, meanwhile)
    train(recipe(), quiet=True)
    train(recipe(overwrite=True), quiet=True)


def test_unnamed_runs_of_the_same_second_get_a_folder_each(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks for a free name before the other has taken it."""
    monkeypatch.setattr(run, 'datetime', SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5)))
    unnamed = recipe(experiment=None)
    folders = [run.open_folder(unnamed)[0] for _ in range(3)]
    for folder in folders:
        folder.start(unnamed)
        folder.unlock()
    assert run._own_name(recipe(model='local-dir:runs/x')).name == '20260102-030405-x-32'
    name = '20260102-030405-test_resnet-32'
    assert [folder.path.name for folder in folders] == [name, f'{name}-2', f'{name}-3']


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no fork')
def test_a_killed_owner_leaves_no_lock_behind_though_its_workers_live(tmp_path: Path) -> None:
    path = tmp_path / '.lock'
    code = (
        'import os, sys, time; from pathlib import Path; from imagenette_zoo.utils.files import ProcessLock\n'
        'lock = ProcessLock(Path(sys.argv[1])); child = os.fork()\n'
        'if child: print(child, flush=True)\n'
        'time.sleep(60)'
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    owner = subprocess.Popen([sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True, env=env)
    assert owner.stdout is not None
    worker = int(owner.stdout.readline())
    try:
        with pytest.raises(UserError, match='another run is being written here'):
            ProcessLock(path)
        owner.kill()
        owner.wait()
        os.kill(worker, 0)
        lock = ProcessLock(path)
        with pytest.raises(UserError, match='another run'):
            ProcessLock(path)
        lock.release()
        ProcessLock(path).release()
    finally:
        os.kill(worker, signal.SIGKILL)


# --- Disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=24m', 'tmpfs', str(disk)]
    if not shutil.which('mount') or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('no file system can be mounted here')
    yield disk
    subprocess.run(['umount', '--lazy', str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_becomes_full(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, small_disk: Path) -> None:
    options = dict(epochs=3, output=str(small_disk), checkpoint_hist=1)
    whole = train(recipe(epochs=3, checkpoint_hist=1, experiment='whole'), quiet=True)
    filler = small_disk / 'filler'

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open('wb') as file:
            while True:
                file.write(bytes(4096))
                file.flush()

    with monkeypatch.context() as patch:
        before_step(patch, 4, fill)
        with pytest.raises(UserError, match="can't write: No space left on device"):
            train(recipe(**options), quiet=True)
    assert not list((small_disk / 'run').rglob('*.tmp')), 'half-written'
    assert load_file(small_disk / 'run' / 'last' / 'model.safetensors')
    filler.unlink()
    assert content(train(recipe(**options, resume='auto'), quiet=True).folder) == content(whole.folder)


def test_a_folder_that_vanishes(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    started = recipe()
    run = Path(started.output) / 'run'
    before_step(monkeypatch, 4, lambda: shutil.rmtree(run))
    with pytest.raises(UserError, match=r"run.*: can't write: No such file or directory"):
        train(started, quiet=True)


# --- Numbers and memory -----------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
    """Makes NaN of the images of these steps."""
    step, count = Learner.step, iter(range(10**6))

    def spoilt(learner: Learner, images: torch.Tensor, *args: Any) -> torch.Tensor:
        return step(learner, images * float('nan') if next(count) in numbers else images, *args)

    monkeypatch.setattr(Learner, 'step', spoilt)


def test_a_loss_that_is_no_number_names_its_step(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {4})
    with pytest.raises(UserError, match=r'infinite or NaN in step 2 of epoch 2 at learning rate 0\.005\. .*--nan skip'):
        train(recipe(), quiet=True)
    run = Path(recipe().output) / 'run'
    assert all(tensor.isfinite().all() for tensor in load_file(run / 'last' / 'model.safetensors').values())
    assert len((run / 'summary.csv').read_text().splitlines()) == 2


def test_a_validation_that_is_no_number_has_no_step_to_skip() -> None:
    with pytest.raises(UserError, match=r'in the validation of epoch 3 at learning rate 0\.1\. Lower --lr') as caught:
        check_finite(math.nan, 2, 0.1)
    assert '--nan skip' not in str(caught.value)


def test_weights_that_are_no_numbers_are_not_saved(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of an epoch without a validation had a finite loss and infinite gradients."""
    options = dict(epochs=4, val_interval=2)
    step, count = Learner.step, iter(range(10**6))

    def diverge(learner: Learner, *args: Any) -> torch.Tensor:
        loss = step(learner, *args)
        if next(count) == 8:
            learner.model.get_classifier().weight.data.fill_(float('inf'))  # type: ignore[operator]
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Learner, 'step', diverge)
        with pytest.raises(UserError, match='weights became infinite or NaN in epoch 3 at'):
            train(recipe(**options), quiet=True)
    run = train(recipe(**options, resume='auto'), quiet=True).folder
    assert all(tensor.isfinite().all() for tensor in load_file(run / 'last' / 'model.safetensors').values())


@pytest.mark.parametrize('options', [{}, {'grad_accum_steps': 2}, {'model_ema': True, 'model_ema_decay': 0.5}])
def test_steps_without_a_number_can_be_left_out(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    spoil(monkeypatch, {4, 5})
    run = train(recipe(nan='skip', **options), quiet=True).folder
    weights = load_file(run / 'last' / 'model.safetensors')
    assert all(tensor.isfinite().all() for tensor in weights.values()), 'also the statistics of BatchNorm'
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [row['skipped_steps'] for row in rows] == [0, 2]
    assert 0 < rows[1]['train_loss'] < 10


def test_too_many_left_out_in_a_row_end_the_run(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {3, 4, 5})
    with pytest.raises(UserError, match=r'3 steps in a row had infinite or NaN gradients .* --nan-limit allows 2'):
        train(recipe(nan='skip', nan_limit=2), quiet=True)


@pytest.mark.slow
@needs_linux
def test_full_memory_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A process whose memory really ends."""
    code = (
        'import resource, sys; import imagenette_zoo.training.trainer, torch\n'
        'from imagenette_zoo.cli.main import main\n'
        "kib = int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmData')))\n"
        'resource.setrlimit(resource.RLIMIT_DATA, (kib * 1024 + 2**30,) * 2)\n'
        'sys.exit(main(sys.argv[1:]))'
    )
    words = [
        'train',
        '--model',
        'test_resnet',
        '--img-size',
        '1024',
        '-b',
        '16',
        '--epochs',
        '2',
        '--warmup-epochs',
        '0',
    ]
    words += ['--data-dir', str(folder), '--output', str(tmp_path), '--device', 'cpu', '--torchcompile', 'none']
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2, done.stderr
    assert 'error: out of memory at --batch-size 16: try --batch-size 8 --grad-accum-steps 2' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('options', 'advice'),
    [
        ({'batch_size': 50, 'grad_accum_steps': 2}, 'try --batch-size 25 --grad-accum-steps 4, which makes the same'),
        ({'batch_size': 50, 'mixup': 0.2}, 'try --batch-size 24 --grad-accum-steps 2, which makes nearly the same'),
        ({'batch_size': 18, 'mixup': 0.2}, 'try --batch-size 6 --grad-accum-steps 3, which makes the same'),
        ({'batch_size': 97}, 'try --batch-size 48 --grad-accum-steps 2, which makes nearly the same'),
        ({'batch_size': 2, 'mixup': 0.2}, 'a smaller --img-size'),
    ],
)
def test_what_is_advised_against_full_memory(recipe: MakeRecipe, options: dict[str, Any], advice: str) -> None:
    made = recipe(**options)
    text = (
        'MPS backend out of memory (…)' if 'mixup' in options else 'not enough memory: you tried to allocate 9 bytes.'
    )
    with pytest.raises(UserError, match=advice), explained(made, World(torch.device('cpu'))):
        raise RuntimeError(text)


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (
            torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
            'at --batch-size 1: a smaller --img-size',
        ),
        (MemoryError(), r'out of memory.*or --grad-checkpointing$'),
        (RuntimeError('[../third_party/gloo] Connection closed by peer'), 'another process of the group was lost'),
        (
            RuntimeError('DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that …'),
            r'a data worker was lost \(DataLoader worker \(pid 1\) is killed by signal: Bus error.*fewer --workers',
        ),
    ],
)
def test_what_torch_raises_is_explained(recipe: MakeRecipe, error: Exception, expected: str) -> None:
    with pytest.raises(UserError, match=expected), explained(recipe(batch_size=1), World(torch.device('cpu'), 0, 2)):
        raise error
    with pytest.raises(UserError, match='or --cuda-graph none'), explained(recipe(), World(torch.device('cuda'))):
        raise torch.OutOfMemoryError
    larger = recipe(validation_batch_size=2 * recipe().batch_size)
    with pytest.raises(UserError, match='or a smaller --validation-b'), explained(larger, World(torch.device('cpu'))):
        raise torch.OutOfMemoryError
    for bug in ('a bug', 'Caught RuntimeError in DataLoader worker process 0.'):
        with pytest.raises(RuntimeError, match=bug), explained(recipe(), World(torch.device('cpu'))):
            raise RuntimeError(bug)


# --- Hostile files ----------------------------------------------------------------------------------------------------


def test_a_recipe_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    lines = ['model: resnet18', 'model_kwargs:', '  a0: &a0 [x, x]']
    lines += [f'  a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]' for n in range(1, 40)]
    file = tmp_path / 'bomb.yaml'
    file.write_text('\n'.join(lines))
    with pytest.raises(UserError, match=r'bomb\.yaml:4: not valid YAML: aliases are not allowed'):
        Recipe.load(file)
    file.write_text('model: ' + 'x' * 2**20)
    with pytest.raises(UserError, match='longer than 1 MiB'):
        Recipe.load(file)


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    import zipfile

    whole, bomb = tmp_path / 'whole.pth', tmp_path / 'bomb.pth'
    torch.save({'weight': torch.zeros(2**20)}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert bomb.stat().st_size < 2**16
    with pytest.raises(UserError, match='it claims to hold more than it does'):
        read_weights(bomb)
    assert read_weights(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda state: state.clear(), 'signature'),
        (lambda state: state.update(signature=7), 'not the state of this run'),
        (lambda state: state['signature'].update(data='content:0'), 'was started with other data'),
        (lambda state: state['recipe'].update(lr=0.5), 'of a run with lr 0.5, but this one has'),
        (lambda state: state['learner']['model']['fc.bias'].fill_(torch.nan), 'are NaN or infinite'),
        (lambda state: state['history'].append(3), 'not the state of this run'),
        (lambda state: state['history'][0].update(train_seconds='long'), 'no numbers in its rows'),
        (lambda state: state['position'].update(step=99), 'step 99 of 3'),
        (lambda state: state['position'].update(step='x'), 'not the state of this run'),
        (lambda state: state['position'].update(evil=1), 'not the state of this run'),
        (lambda state: state['learner'].pop('optimizer'), 'optimizer'),
        (lambda state: state['learner'].update(model={}), 'not the state of this run'),
    ],
)
def test_states_are_checked(
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any]], Any],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 4, crash)
        with pytest.raises(ZeroDivisionError):
            train(recipe(), quiet=True)
    path = Path(recipe().output) / 'run' / 'state.pt'
    state = torch.load(path, weights_only=True)
    change(state)
    RunFolder(path.parent).save_state(state)
    assert main(['train', '--resume', str(path.parent)]) == 2
    assert expected in capsys.readouterr().err


def test_a_bit_of_a_state_that_changed_is_noticed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({'learner': torch.arange(999.0), 'environment': {}})
    data = (tmp_path / 'state.pt').read_bytes()
    assert torch.load(tmp_path / 'state.pt', weights_only=True).keys() == folder.parse_state(data).keys()
    for place in (*range(0, len(data), 97), len(data) - 150, len(data) - 95, len(data) - 80, len(data) - 1):
        changed_one = bytearray(data)
        changed_one[place] ^= 4
        with pytest.raises(UserError, match=r'state\.pt: damaged, .* start again: imagenette-zoo train -c'):
            folder.parse_state(bytes(changed_one))


def test_full_memory_is_no_damaged_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({'learner': torch.zeros(3), 'environment': {}})
    monkeypatch.setattr(torch, 'load', lambda *_, **__: bytearray(2**62))
    with pytest.raises(MemoryError):
        folder.parse_state((tmp_path / 'state.pt').read_bytes())


def test_a_long_file_that_is_no_state_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / 'state.pt', 'wb') as file:
        file.truncate(2**37)  # nothing but holes, more than there is memory
    with pytest.raises(UserError, match=r'state\.pt: damaged, .* start again: imagenette-zoo train -c'):
        RunFolder(tmp_path).read_state()


def test_a_state_that_was_removed_is_missed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_state() is None, 'nothing was saved yet'
    folder.save_state({})
    (tmp_path / 'state.pt').unlink()
    with pytest.raises(UserError, match=r"state\.pt: is gone, .* start again: imagenette-zoo train -c .* --overwrite"):
        folder.read_state()


@pytest.mark.slow
def test_what_differs_on_resume_is_said(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 4, crash)
        with pytest.raises(ZeroDivisionError):
            train(recipe(), quiet=True)
    threads = torch.get_num_threads()
    monkeypatch.setattr('torch.get_num_threads', lambda: threads + 1)
    train(recipe(resume='auto'))
    line = f'the weights will differ from those of an uninterrupted run: threads {threads} then, {threads + 1} now'
    assert line in capsys.readouterr().out


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(number: int) -> None:
    def again() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9)

    with StopSignals(World(torch.device('cpu'))) as stop:
        os.kill(os.getpid(), number)
        assert stop.requested == number
        with pytest.raises(KeyboardInterrupt):
            again()


@pytest.mark.parametrize('left', [False, True])
def test_a_second_signal_ends_a_process_that_hangs_outside_of_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: bool
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, '_exit', codes.append)
    monkeypatch.setattr(interrupts, 'PATIENCE', 0.01)
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGCHLD, signal.SIGTERM, signal.SIGCHLD, signal.SIGTERM]))
    os.close(writer)
    stop = StopSignals(World(torch.device('cpu')), lambda: 'All up to epoch 1 is saved.')
    if left:
        stop._left.set()
    stop._watch(reader)
    assert codes == ([] if left else [128 + signal.SIGTERM])
    lines = ['stopping after this step; again to stop now', *([] if left else ['All up to epoch 1 is saved.'])]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize('saving', [False, True], ids=['in a step', 'while it is saved'])
def test_two_signals_say_how_to_go_on(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], saving: bool
) -> None:
    def again() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        if saving:
            save = RunFolder.save_state
            calls = iter(range(9))
            patch.setattr(RunFolder, 'save_state', lambda *args: again() if next(calls) else save(*args))
        before_step(patch, 4, again if saving else lambda: (again(), again()))
        with pytest.raises(KeyboardInterrupt):
            train(recipe())
    run = Path(recipe().output) / 'run'
    output, errors = capsys.readouterr()
    assert f'Stopped at once. All up to epoch 1 is saved. Continue with: imagenette-zoo train --resume {run}' in output
    assert errors.count('stopping after this step; again to stop now') == 1
    assert train(resume=str(run), quiet=True).epochs == 2


def test_a_signal_before_anything_is_saved_says_so(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted(monkeypatch, epoch=0), pytest.raises(KeyboardInterrupt):
        train(recipe())
    assert 'Stopped before anything was saved. The same command starts again.' in capsys.readouterr().out
    assert train(recipe(), quiet=True).epochs == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda values: values.pop('top1'), 'top1 is missing'),
        (lambda values: values.update(evil=1), 'evil is unknown'),
        (lambda values: values.update(top1='high'), "top1 is 'high'"),
        (lambda values: values.update(per_class={'a': None}), 'per_class is'),
    ],
)
def test_results_are_checked(recipe: MakeRecipe, change: Callable[[dict[str, Any]], Any], expected: str) -> None:
    run = train(recipe(epochs=1), quiet=True)
    assert read_result(run.folder) == run
    values = json.loads((run.folder / 'result.json').read_text())
    change(values)
    (run.folder / 'result.json').write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf'result\.json: not the result of a run \({expected}'):
        read_result(run.folder)


# --- Doing it again ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_can_be_repeated_from_its_folder(recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(recipe(), quiet=True).folder
    assert main(['train', '--from', str(run), '--experiment', 'again']) == 0
    output = capsys.readouterr().out
    assert f'repeats {run}: nothing differs' in output
    assert content(run.parent / 'again') == content(run)

    values = json.loads((run / 'result.json').read_text())
    values['versions']['torch'] = '1.0'
    (run / 'result.json').write_text(json.dumps(values))
    other = make_folder(run.parent.parent / 'other', seed=1)
    assert main(['train', '--from', str(run), '--experiment', 'third', '--lr', '0.02', '--data-dir', str(other)]) == 0
    output = capsys.readouterr().out
    assert f'torch 1.0 then, {metadata.version("torch")} now' in output
    assert 'lr 0.01 then, 0.02 now' in output
    assert 'the data: other images now' in output or 'the data: 24 and 12 images of other now' in output
    assert 'repeated: top-1' in output
    assert main(['train', '--from', str(run / 'last')]) == 2
    assert "can't read the result of a run" in capsys.readouterr().err
    assert main(['train', '--from', str(run), '--resume', str(run)]) == 2


# --- Several processes ------------------------------------------------------------------------------------------------


def torchrun(recipe: Recipe, file: Path, *launcher: str, env: dict[str, str] | None = None, **flags: Any) -> Any:
    """Starts two processes on this recipe."""
    file.write_text(yaml.safe_dump(changed(recipe)))
    words = [f'--{name}={value}' for name, value in flags.items()]
    command = [sys.executable, '-m', 'torch.distributed.run', *(launcher or ['--standalone', '--nproc-per-node=2'])]
    return subprocess.Popen(
        [*command, '-m', 'imagenette_zoo', 'train', '-c', str(file), '--resume', *words],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(*processes: Any) -> list[str]:
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), '\n'.join(outputs)
    return outputs


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(recipe: MakeRecipe, tmp_path: Path) -> None:
    """A model without batch statistics, 20 epochs of one step: the losses are a curve of 20 steps."""
    options = dict(model='test_vit', img_size=None, epochs=20, lr=0.05, opt='momentum', val_interval=20)
    alone = train(recipe(**options, batch_size=24, experiment='alone'), quiet=True)
    finished(torchrun(recipe(**options, batch_size=12, experiment='two'), tmp_path / 'tiny.yaml'))

    def losses(run: Path) -> list[float]:
        return [json.loads(line)['train_loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()]

    one, two = losses(alone.folder), losses(tmp_path / 'runs' / 'two')
    assert len(one) == 20
    assert abs(one[0] - one[-1]) > 0.05, 'nothing was learned'
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-4


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> tuple[Callable[..., Recipe], Path]:
    """A recipe for two processes, and the folder of an undisturbed run of it."""
    output = tmp_path_factory.mktemp('two')

    def make(**changes: Any) -> Recipe:
        defaults = dict(
            model='test_resnet', data_dir=str(folder), img_size=32, epochs=12, batch_size=4, lr=0.01, warmup_epochs=0,
            workers=0, device='cpu', output=str(output), experiment='whole', recovery_interval=1,
        )  # fmt: skip
        return Recipe(**{**defaults, **changes})

    finished(torchrun(make(), output / 'whole.yaml'))
    return make, output / 'whole'


@pytest.mark.long
@pytest.mark.slow
@needs_linux
def test_a_killed_worker_under_torchrun_is_started_again(
    two_processes: tuple[Callable[..., Recipe], Path], tmp_path: Path
) -> None:
    make, whole = two_processes
    agent = torchrun(
        make(output=str(tmp_path)), tmp_path / 'r.yaml', '--standalone', '--nproc-per-node=2', '--max-restarts=3',
        experiment='killed',
    )  # fmt: skip
    run = tmp_path / 'killed'
    for epochs in (2, 5):  # the second while the first is barely made good
        while not (run / 'summary.csv').exists() or len((run / 'summary.csv').read_text().splitlines()) <= epochs:
            time.sleep(0.02)
            assert agent.poll() is None, agent.communicate()[0]
        workers = Path(f'/proc/{agent.pid}/task/{agent.pid}/children').read_text().split()
        os.kill(int(workers[epochs % 2]), signal.SIGKILL)
        time.sleep(2)
    finished(agent)
    assert content(run) == content(whole)


@pytest.mark.long
@pytest.mark.slow
@needs_linux
def test_two_nodes_without_a_common_disk(two_processes: tuple[Callable[..., Recipe], Path], tmp_path: Path) -> None:
    make, whole = two_processes

    def outputs_of_both() -> list[str]:
        nodes = []
        port = free_port()
        for rank in (0, 1):
            folder = tmp_path / f'node{rank}'
            folder.mkdir(exist_ok=True)
            launcher = ['--nnodes=2', f'--node-rank={rank}', '--nproc-per-node=1', '--master-addr=127.0.0.1']
            launcher += [f'--master-port={port}', f'--local-addr=127.0.0.{rank + 1}']
            env = {'IMAGENETTE_ZOO_CACHE': str(folder / 'cache')}
            nodes.append(torchrun(make(output=str(folder)), folder / 'r.yaml', *launcher, env=env))
        return finished(*nodes)

    outputs = outputs_of_both()
    (tmp_path / 'node0' / 'whole' / 'result.json').unlink()
    assert 'continued' in outputs_of_both()[0], 'only the first has the state'
    assert content(tmp_path / 'node0' / 'whole') == content(whole)
    assert not (tmp_path / 'node1' / 'whole').exists(), 'one writer'
    assert 'epoch  1 of 12' in outputs[0]
    assert 'epoch  1 of 12' not in outputs[1]
    for rank in (0, 1):
        assert list((tmp_path / f'node{rank}' / 'cache' / 'decoded').glob('*/rows.bin')), 'each decodes for itself'


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('other', [{'seed': 1}, {'train': 6}, {'classes': 2}], ids=['pixels', 'images', 'classes'])
def test_processes_with_other_images(recipe: MakeRecipe, tmp_path: Path, other: dict[str, int]) -> None:
    """With fewer of them one would wait for the other forever."""
    folder = make_folder(tmp_path / 'other', **other)
    nodes, port = [], free_port()
    for rank, data_dir in enumerate((recipe().data_dir, str(folder))):
        launcher = ['--nnodes=2', f'--node-rank={rank}', '--nproc-per-node=1', '--master-addr=127.0.0.1']
        launcher += [f'--master-port={port}']
        nodes.append(torchrun(recipe(data_dir=data_dir), tmp_path / f'{rank}.yaml', *launcher))
    for output in [node.communicate(timeout=100)[0] for node in nodes]:
        assert 'error: the images differ from process to process: all must have the same' in output
    assert not Path(recipe().output, 'run', 'args.yaml').exists()


@pytest.mark.long
@pytest.mark.slow
def test_processes_of_srun_train_as_those_of_torchrun(
    two_processes: tuple[Callable[..., Recipe], Path], tmp_path: Path
) -> None:
    """Two tasks of a step on one node, and beside them what an sbatch script starts without srun: alone."""
    make, whole = two_processes
    (tmp_path / 'r.yaml').write_text(yaml.safe_dump(changed(make(output=str(tmp_path)))))
    words = [sys.executable, '-m', 'imagenette_zoo', 'train', '-c', str(tmp_path / 'r.yaml')]
    job = {
        'SLURM_JOB_ID': str(free_port()), 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0', 'SLURM_LOCALID': '0',
        'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1',
    }  # fmt: skip
    step = {'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': 'localhost'}

    def task(variables: dict[str, str], *more: str) -> Any:
        env = {**os.environ, **job, **variables}
        return subprocess.Popen([*words, *more], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    ranks = ({'SLURM_PROCID': str(rank), 'SLURM_LOCALID': str(rank)} for rank in (0, 1))
    outputs = finished(*(task({**step, **rank}) for rank in ranks))
    assert content(tmp_path / 'whole') == content(whole)
    assert outputs[0].startswith('train: test_resnet')
    assert outputs[1] == '', 'one talks'
    finished(task({}, '--experiment', 'alone', '--epochs', '1'))
    assert 'processes' not in read_result(tmp_path / 'alone').hardware


def test_a_second_sigterm_is_of_the_scheduler_in_a_job_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ('SLURM_JOB_ID', 'SUBMITIT_EXECUTOR', 'TORCHELASTIC_RUN_ID'):
        monkeypatch.delenv(variable, raising=False)

    def stops_at_once(number: int) -> bool:
        with StopSignals(World(torch.device('cpu'))) as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.requested == signal.SIGTERM
            try:
                os.kill(os.getpid(), number)
            except KeyboardInterrupt:
                return True
        return False

    assert stops_at_once(signal.SIGTERM)
    monkeypatch.setenv('SLURM_JOB_ID', '1')
    assert not stops_at_once(signal.SIGTERM)
    assert stops_at_once(signal.SIGINT)


@pytest.mark.long
@pytest.mark.slow
def test_a_signal_stops_all_processes_together(
    two_processes: tuple[Callable[..., Recipe], Path], tmp_path: Path
) -> None:
    make, whole = two_processes
    agent = torchrun(make(output=str(tmp_path)), tmp_path / 'r.yaml')
    run = tmp_path / 'whole'
    while not (run / 'state.pt').exists():
        time.sleep(0.02)
        assert agent.poll() is None, agent.communicate()[0]
    agent.terminate()
    output = agent.communicate(timeout=60)[0]
    assert f'Everything is saved. Continue with: imagenette-zoo train --resume {run}' in output
    finished(torchrun(make(output=str(tmp_path)), tmp_path / 'r.yaml'))
    assert content(run) == content(whole)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_with_a_compiled_model(recipe: MakeRecipe, tmp_path: Path) -> None:
    compiled = recipe(batch_size=4, torchcompile='inductor', experiment='compiled')
    finished(torchrun(compiled, tmp_path / 'tiny.yaml'))
    finished(torchrun(recipe(batch_size=4, torchcompile='none', experiment='plain'), tmp_path / 'tiny.yaml'))
    losses = [read_result(tmp_path / 'runs' / name).loss for name in ('compiled', 'plain')]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# --- The long version -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'words',
    [
        pytest.param(['kill', '--kills=2'], marks=pytest.mark.long),
        pytest.param(['fuzz', '--inputs=40'], marks=pytest.mark.long),
        pytest.param(['endure', '--epochs=12'], marks=pytest.mark.long),
        pytest.param(['faults', '--each=2'], marks=[needs_linux, pytest.mark.long, pytest.mark.timeout(1200)]),
        pytest.param(['faults'], marks=[needs_linux, pytest.mark.long, pytest.mark.timeout(2 * 60 * 60)]),
    ],
)
def test_the_long_version_runs(words: list[str], tmp_path: Path) -> None:
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, ROOT / 'tools' / 'soak.py', *words, '--results-dir', tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / f'{words[0]}.json').read_text())['kept'] is True
