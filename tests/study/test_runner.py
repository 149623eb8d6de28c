"""Studies that are run, interrupted, broken and spread over a cluster; each training is a real process."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.report import studies
from imagenette_zoo.report.studies import report_on
from imagenette_zoo.study import on_ray, runner
from imagenette_zoo.study.adaptive import ROUNDS
from imagenette_zoo.study.cluster import Sent, collect
from imagenette_zoo.study.plan import Trial, dump_study, read_study
from imagenette_zoo.study.process import Job, Slot, check_code, environment
from imagenette_zoo.study.records import as_run
from imagenette_zoo.study.runner import state_of
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.files import ProcessLock
from imagenette_zoo.utils.modules import import_modules, imported_modules
from tests.conftest import forget_modules, make_folder

ROOT = Path(__file__).parents[2]

STUDY = """\
title: Which rate?
base: base.yaml
options: {{epochs: {epochs}}}
seeds: 2
runs:
  slow: {{lr: 0.0001}}
  fast:
claims:
  - name: rate
    claim: The larger rate is better.
    metric: top1
    order: fast > slow
"""
BASE = """\
model: test_resnet
img_size: 32
batch_size: 8
lr: 0.01
warmup_epochs: 0
workers: 0
device: cpu
recovery_interval: 1
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study in it, to be worked in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    (tmp_path / 'base.yaml').write_text(BASE)
    (tmp_path / 'rates.yaml').write_text(STUDY.format(epochs=2))
    return tmp_path


def test_images_that_are_nowhere_are_missed_once_before_any_folder_is_made(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(place / 'cache'))
    for command in (['study', 'rates.yaml'], ['run', 'test_resnet', '-c', 'base.yaml', '--device', 'cpu']):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.err.count('no Imagenette found') == 1, printed.err
        assert len(printed.err.splitlines()) == 1
        assert 'started' not in printed.out
        assert not (place / 'runs').exists()


IDEA = """\
import torch
from torch import nn


class Snake(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, x):
        return x + torch.sin(x) ** 2


class MyNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


class Picky(MyNet):
    def __init__(self, num_classes=10):
        raise KeyError('scale')


class Computes(MyNet):
    def __init__(self, num_classes=10):
        super().__init__(num_classes + int(torch.ones(3).sum()) - 3)
"""


@pytest.fixture
def idea(place: Path, no_modules: None) -> Path:
    file = place / 'my_idea.py'
    file.write_text(IDEA)
    return file


def weights(study: Path) -> dict[str, bytes]:
    return {path.parent.parent.name: path.read_bytes() for path in study.glob('*/last/model.safetensors')}


@pytest.mark.long
@pytest.mark.slow
def test_a_study_is_run_skipped_continued_and_judged(
    place: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ['study', 'rates.yaml', '--data-dir', str(folder)]
    assert main([*command, '--dry-run']) == 0
    plan = capsys.readouterr().out
    assert 'rate: The larger rate is better.' in plan
    assert '1 claim tested together' in plan
    assert 'a verdict needs at least 3' in plan
    assert not (place / 'runs').exists(), 'a plan touches nothing'

    assert main([*command, '--only', 'slow']) == 0
    assert 'UNDECIDED' in capsys.readouterr().out
    study = place / 'runs' / 'rates'
    assert sorted(weights(study)) == ['slow-seed1', 'slow-seed2']
    times = {name: (study / name / 'result.json').stat().st_mtime_ns for name in weights(study)}

    (study / 'slow-seed2' / 'result.json').unlink()  # as if it had been killed before its end
    assert main([*command, '--jobs', '2']) == 0
    output = capsys.readouterr().out
    assert '4 trainings: 1 done, 3 to do, 2 at a time' in output
    assert 'slow-seed1:' not in output
    assert (study / 'slow-seed1' / 'result.json').stat().st_mtime_ns == times['slow-seed1']
    assert sorted(weights(study)) == ['fast-seed1', 'fast-seed2', 'slow-seed1', 'slow-seed2']
    assert 'rate: The larger rate is better.' in output
    assert 'rate' in (study / 'report' / 'report.md').read_text()

    (place / 'base.yaml').write_text(f'{BASE}checkpoint_hist: 3\n')  # decides nothing that is computed
    assert main(command) == 0
    assert '4 trainings: 4 done, 0 to do' in capsys.readouterr().out
    (place / 'base.yaml').write_text(f'{BASE}nan: skip\n')
    assert main(command) == 2
    assert 'was trained with nan stop, the study says skip' in capsys.readouterr().err
    (place / 'base.yaml').write_text(BASE)
    (place / 'rates.yaml').write_text(STUDY.format(epochs=2).replace('0.0001', '0.0002'))
    assert main([*command, '--only', 'fast']) == 2
    assert 'was started with lr 0.0001, not 0.0002' in capsys.readouterr().err
    (place / 'base.yaml').unlink()
    assert main(['report', 'runs/rates', '--output', 'elsewhere', '--no-images']) == 0, 'it needs no other file'


def test_a_missing_package_is_said_before_anything_is_trained(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    assert main(['study', 'rates.yaml', '--data-dir', str(folder)]) == 2
    assert 'a report needs jinja2: pip install' in capsys.readouterr().err
    assert not (place / 'runs').exists()


@pytest.mark.long
@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(
    place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        STUDY.format(epochs=1)
        .replace('  slow:', '  wrong: {opt_kwargs: {nonsense: 1}}\n  slow:')
        .replace('seeds: 2', 'seeds: 1')
    )
    (place / 'rates.yaml').write_text(text)
    assert main(['study', 'rates.yaml', '--data-dir', str(folder)]) == 2
    captured = capsys.readouterr()
    assert 'wrong-seed1: FAILED: --opt sgd: ' in captured.out
    assert captured.err.startswith('error: 1 of 3 trainings failed')
    assert 'nonsense' in captured.err
    assert sorted(weights(place / 'runs' / 'rates')) == ['fast-seed1', 'slow-seed1']
    assert as_run(read_study('rates.yaml'), place / 'runs' / 'rates').failed == {'wrong': {1}}

    def full(*_: object, **__: object) -> None:
        raise UserError('no space left')

    monkeypatch.setattr(studies, 'write_report', full)
    assert main(['study', 'rates.yaml', '--data-dir', str(folder)]) == 2
    assert capsys.readouterr().err.startswith('error: 1 of 3 trainings failed'), 'nor is it lost with the report'


@pytest.mark.parametrize(('visible', 'expected'), [(None, ['0', '1', '0']), ('3,5', ['3', '5', '3'])])
def test_trainings_share_the_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]) -> None:
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert [environment(3, slot)['CUDA_VISIBLE_DEVICES'] for slot in range(3)] == expected
    assert environment(2, 1, 'cuda:1').get('CUDA_VISIBLE_DEVICES') == visible, 'who names one has chosen'


def test_a_training_on_other_images_is_not_of_the_study(place: Path, folder: Path) -> None:
    trial = read_study('rates.yaml').trials()[0]
    train(trial.recipe.replace(data_dir=str(folder), output='runs', experiment=trial.name), quiet=True)
    there = Slot(Path('runs'), data_dir=str(folder))
    assert state_of(trial, there) == 'begun', 'it is not analysed yet'
    assert state_of(trial, replace(there, data_dir='/nowhere')) == 'begun', 'images that are not at hand tell nothing'
    other = make_folder(place / 'flowers')
    with pytest.raises(UserError, match=f'was trained on {folder.name}, the data folder is flowers'):
        state_of(trial, replace(there, data_dir=str(other)))


def test_one_study_a_folder(place: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / 'runs' / 'rates'
    path.mkdir(parents=True)
    lock = ProcessLock(path / '.lock')
    assert main(['study', 'rates.yaml', '--data-dir', str(folder)]) == 2
    assert 'another run is being written here' in capsys.readouterr().err
    lock.release()
    (path / '.lock').unlink()
    (path / '.lock').mkdir()
    assert main(['study', 'rates.yaml', '--data-dir', str(folder)]) == 2
    assert f"{Path('runs', 'rates')}: can't write" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_a_budget_ends_what_is_started(place: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['study', 'rates.yaml', '--data-dir', str(folder), '--budget', '0.000001']) == 0
    output = capsys.readouterr().out
    assert 'not started (the budget of 1e-06 h is used up): fast-seed1, slow-seed2, fast-seed2' in output
    assert sorted(weights(place / 'runs' / 'rates')) == ['slow-seed1']


def start(*words: str) -> Any:
    return subprocess.Popen(
        [sys.executable, '-m', 'imagenette_zoo', *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: Any) -> None:
    while not path.exists():
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not shutil.which('pgrep'), reason='no pgrep')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_study_that_was_stopped_goes_on(place: Path, folder: Path, number: signal.Signals) -> None:
    """Stopped in the middle of a training, it ends with the same weights."""
    command = ['study', 'rates.yaml', '--only', 'slow', '--data-dir', str(folder), '--output', str(place / 'runs')]
    (place / 'rates.yaml').write_text(STUDY.format(epochs=150).replace('seeds: 2', 'seeds: 1'))
    process = start(*command)
    run = place / 'runs' / 'rates' / 'slow-seed1'
    wait_for(run / 'state.pt', process)
    trainings = ['pgrep', '-f', f'train -c {place / "runs"}']
    assert subprocess.run(trainings, capture_output=True).returncode == 0
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), output
    deadline = time.time() + 30
    while subprocess.run(trainings, capture_output=True).returncode == 0:
        assert time.time() < deadline, 'a training outlives its study'
        time.sleep(0.1)
    assert not (run / 'result.json').exists(), 'the training outlived its study to its end'
    assert main(command) == 0
    [recipe] = [trial.recipe for trial in read_study('rates.yaml').trials() if trial.run == 'slow']
    whole = train(recipe.replace(data_dir=str(folder), output='whole', experiment='slow-seed1'), quiet=True)
    assert weights(place / 'runs' / 'rates') == weights(whole.folder.parent)


class Pretended(Job):
    """A training that takes three looks at it and does nothing; `act` is called at each."""

    act = staticmethod(lambda: None)

    def __init__(self, trial: Trial, slot: Slot, number: int) -> None:
        self.trial, self.number, self.looks = trial, number, 0
        self.folder, self.log = slot.output / trial.name, slot.output / 'log'

    def poll(self) -> int | None:
        self.act()
        self.looks += 1
        return 1 if self.looks > 3 else None


def overview(place: Path) -> runner._Overview:
    study = read_study(place / 'rates.yaml')
    trials = study.trials()
    states = {trial.name: 'new' for trial in trials}
    return runner._Overview(study, trials, states, Slot(place), Console(), None, Pretended)


def test_without_a_terminal_there_is_a_line_a_minute(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, 'POLL_SECONDS', 0.0)
    monkeypatch.setattr(runner, 'SAY_SECONDS', 0.0)
    overview(place).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:5] == ['started slow-seed1', *['slow-seed1: 0 of 2 epochs'] * 3]
    monkeypatch.setattr(runner, 'SAY_SECONDS', 60.0)
    overview(place).run()
    assert 'slow-seed1: 0 of 2 epochs' not in capsys.readouterr().out


def test_a_study_that_is_stopped_says_how_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, 'POLL_SECONDS', 0.0)
    monkeypatch.setattr(Pretended, 'act', staticmethod(stop))
    monkeypatch.setattr(sys, 'argv', ['/bin/imagenette-zoo', 'study', 'rates.yaml'])
    with pytest.raises(KeyboardInterrupt) as stopped:
        overview(place).run()
    line = (
        'Stopped with 0 of 4 trainings done. Everything is saved. Continue with: imagenette-zoo study rates.yaml'
    )
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert stopped.value.message == line  # type: ignore[attr-defined]


@pytest.mark.slow
def test_run_is_a_study_in_one_line(place: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['--data-dir', str(folder), '-c', 'base.yaml', '--epochs', '1', '--experiment', 'two', '--device', 'cpu']
    assert main(['run', 'test_resnet', 'test_vit3', '--seeds', '1', '--img-size', '160', *words]) == 0
    output = capsys.readouterr().out
    assert sorted(weights(place / 'runs' / 'two')) == ['test_resnet-seed1', 'test_vit3-seed1']
    assert f'report: {Path("runs", "two", "report", "report.html")}' in output
    assert main(['report', 'runs/two', '--output', 'again', '--no-images']) == 0
    assert 'test_vit3' in (place / 'again' / 'report.md').read_text()
    assert main(['run', 'test_resnet', '--seed', '3', *words]) == 2
    assert '--seed: not of this command: --seeds N' in capsys.readouterr().err
    assert main(['run', 'test_resnet', *words, '--experiment', '../elsewhere']) == 2
    assert 'is not a plain folder name' in capsys.readouterr().err
    assert main(['report', str(folder)]) == 2


RUN = ['run', '-c', 'base.yaml', '--seeds', '1', '--import', 'my_idea.py', '--output', 'runs', '--epochs']


@pytest.mark.slow
@pytest.mark.long
def test_an_idea_is_run_killed_and_finished_and_then_nothing_is_done(
    place: Path, folder: Path, idea: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*RUN, '40', 'test_resnet', '--jobs', '2', '--data-dir', str(folder)]
    command += ['--vary', 'act_layer=relu6,my_idea:Snake']
    study = place / 'runs' / 'test_resnet-act_layer'
    process = start(*command)
    wait_for(study / 'act_layer=Snake-seed1' / 'state.pt', process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    lock = study / 'act_layer=Snake-seed1' / '.lock'
    while True:  # its trainings save and stop
        with contextlib.suppress(UserError):
            ProcessLock(lock).release()
            break
        time.sleep(0.1)
    assert not list(study.glob('*/result.json'))

    assert main(command) == 0
    output = capsys.readouterr().out
    assert '2 trainings: 0 done, 2 to do, 2 at a time' in output
    assert 'act_layer=Snake      1' in output, 'in the table'
    assert 'my_idea.py ' + hashlib.sha256(IDEA.encode()).hexdigest()[:12] in (study / 'report/report.md').read_text()
    before = weights(study)
    assert sorted(before) == ['act_layer=Snake-seed1', 'act_layer=relu6-seed1']
    assert main(command) == 0
    assert '2 trainings: 2 done, 0 to do' in capsys.readouterr().out
    assert weights(study) == before


def test_other_code_than_that_of_a_training_is_refused(
    place: Path, folder: Path, idea: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*RUN, '1', 'test_resnet', '--vary', 'act_layer=my_idea:Snake', '--data-dir', str(folder)]
    recipe = Recipe.load(
        'base.yaml', epochs=1, model_kwargs={'act_layer': 'my_idea:Snake'}, device_modules=('my_idea.py',)
    )
    where = Path('runs', 'test_resnet-act_layer')
    trial = recipe.replace(seed=1, output=str(where), experiment='act_layer=Snake-seed1', data_dir=str(folder))
    run = train(trial, quiet=True).folder
    idea.write_text(f'{IDEA}\n# better')
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {run}: my_idea.py has changed since it was started (SHA-256 ')
    remedy = re.findall(r'give --device-modules (\S+\.py)', error)
    assert not (where / 'study.yaml').exists(), 'nothing was begun'
    forget_modules()
    assert main(['run', *command[1:], '--device-modules', *remedy, '--dry-run']) == 2, 'there are two of them'
    assert 'has the same name: rename one of them' in capsys.readouterr().err
    forget_modules()
    command[command.index('my_idea.py')] = remedy[0]
    assert main([*command, '--dry-run']) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[5:7] == ['0', '1'], 'it is begun'


def test_code_that_changes_while_a_study_runs_is_not_mixed_in(idea: Path) -> None:
    import_modules(['my_idea.py'])
    check_code()
    idea.write_text(f'{IDEA}\n# better')
    with pytest.raises(UserError, match=f'{idea}: has changed since the study was started: undo that'):
        check_code()
    [trial, *_] = read_study('rates.yaml').trials()
    with pytest.raises(UserError, match='has changed'):
        Job(trial, Slot(Path('runs')), 0)


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['my_idea:MyNt'], "MyNt: my_idea:MyNt: my_idea.py has no 'MyNt'; did you mean MyNet?"),
        (['my_ide:MyNet'], "MyNet: my_ide:MyNet: no module 'my_ide' was imported (my_idea.py was)"),
        (['resnt18'], "resnt18: unknown model 'resnt18'; did you mean resnet18"),
        (['test_resnet', '--vary', 'act_layer=relu,my_idea:Snak'], 'act_layer=Snak: my_idea:Snak: my_idea.py has no '),
        (['test_resnet', '--vary', 'lrr=1,2'], "unexpected keyword argument 'lrr'; did you mean lr?"),
        (['test_resnet', '--vary', 'act_layr=relu'], "unexpected keyword argument 'act_layr'; did you mean act_layer"),
        (['test_resnet', '--vary', 'act_layer=sillu'], 'act_layer=sillu: model test_resnet: no such value'),
        (['my_idea:MyNet', '--vary', 'act_layer=relu'], 'act_layer=relu: model my_idea:MyNet: takes no act_layer'),
        (['my_idea:Picky'], "Picky: model my_idea:Picky: my_idea.py:25: KeyError: 'scale'"),
        (['my_idea:MyNet', '--opt-kwargs', 'kind=my_idea:No'], 'MyNet: my_idea:No: my_idea.py has no '),
    ],
)
@pytest.mark.parametrize('dry', [[], ['--dry-run']])
def test_what_no_model_or_module_has_is_one_line_before_anything_runs(
    idea: Path, words: list[str], line: str, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, '1', *words, *dry]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert line in error
    assert not Path('runs').exists()


def test_a_model_that_computes_when_it_is_made_is_planned(idea: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = torch.get_rng_state()
    assert main([*RUN, '1', 'my_idea:Computes', 'my_idea:MyNet', '--dry-run']) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:5]] == ['Computes', 'MyNet']
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_is_imported_because_a_result_names_it(
    place: Path, folder: Path, no_modules: None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.load('base.yaml', epochs=1, data_dir=str(folder), output='runs/rates', experiment='slow-seed1')
    run = train(recipe.replace(lr=0.0001, seed=1), quiet=True).folder
    study = run.parent
    for there in (study, run):
        (there / 'strange.py').write_text('raise SystemExit("imported")')
    (study / 'study.yaml').write_text('device_modules: [strange.py]\n' + dump_study(read_study('rates.yaml')))
    with open(run / 'args.yaml', 'a') as file:
        file.write('device_modules: [strange.py]\n')
    assert main(['analyse', str(run)]) == 0
    assert main(['train', '--from', str(run), '--experiment', 'again']) == 0
    assert main(['train', '--resume', str(run)]) == 2
    assert 'this run is finished' in capsys.readouterr().err
    with pytest.raises(UserError, match='was trained with epochs 1, the study says 2'):  # not: imported
        report_on([str(study)], None)
    assert not imported_modules()


def test_code_goes_to_a_node_and_comes_home(
    place: Path, folder: Path, idea: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_modules(['my_idea.py'])
    recipe = Recipe.load('base.yaml', epochs=1, model='my_idea:MyNet', seed=1, device_modules=('my_idea.py',))
    trial = Trial('MyNet', recipe, 1)
    packed = on_ray._packed(trial)
    idea.unlink()  # the node has it not
    forget_modules()

    def run(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=main(command[3:]))

    names = {name: getattr(subprocess, name) for name in ('DEVNULL', 'STDOUT')}
    monkeypatch.setattr(on_ray, 'subprocess', SimpleNamespace(run=run, **names))  # others start processes, too
    files, why = on_ray._train_there(trial, Slot(Path(), data_dir=str(folder)), packed)
    assert not why
    assert files['code/my_idea.py'] == IDEA.encode()
    cluster = SimpleNamespace(get=lambda _: (files, ''), exceptions=SimpleNamespace(RayError=ConnectionError))
    files['code/../../strange.py'] = b''
    assert on_ray._bring_home(cluster, None, trial, Slot(place)) == ''
    home = place / trial.name
    assert RunFolder(home).code() == {'my_idea.py': hashlib.sha256(IDEA.encode()).hexdigest()}
    assert (home / 'code' / 'my_idea.py').read_text() == IDEA
    assert not (place / 'strange.py').exists()


def test_a_package_that_a_node_lacks_is_named(place: Path, no_modules: None) -> None:
    (place / 'my_package').mkdir()
    (place / 'my_package' / '__init__.py').touch()
    import_modules(['my_package'])
    recipe = Recipe.load('base.yaml', device_modules=('my_package',))
    packed = on_ray._packed(Trial('a', recipe, 1))
    assert packed == {'my_package': None}
    assert on_ray._unpacked(packed, place / 'one') == ('my_package',)
    with pytest.raises(UserError, match='--device-modules no_package: is not installed on the node'):
        on_ray._unpacked({'no_package': None}, place / 'two')


def test_what_can_not_be_brought_home_is_one_failure(place: Path) -> None:
    """A node with another version of the package: its result is not one of ours."""
    [trial, *_] = read_study('rates.yaml').trials()
    for names in (on_ray.RETURNED, on_ray.RETURNED[1:]):
        files = dict.fromkeys((*names, 'log'), b'{}')
        cluster = SimpleNamespace(get=lambda _, f=files: (f, ''), exceptions=SimpleNamespace(RayError=ConnectionError))

        def send(_: object, cluster: Any = cluster) -> Sent:
            yield trial, on_ray._bring_home(cluster, None, trial, Slot(place))

        found = collect([trial], Slot(place), Console(quiet=True), send, 'there', '')
        assert (list(found.failed), found.done) == ([trial.name], [])
        assert not (place / trial.name).exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_cluster_that_loses_a_node(place: Path, folder: Path, idea: Path) -> None:
    """Two nodes train with the user's own code; one is killed, with all its processes, before its training is done."""
    pytest.importorskip('ray')
    from ray.cluster_utils import Cluster

    (place / 'base.yaml').write_text(f'{BASE}model_kwargs: {{act_layer: my_idea:Snake}}\n')
    (place / 'rates.yaml').write_text('device_modules: my_idea.py\n' + STUDY.format(epochs=2))
    study = read_study('rates.yaml')
    assert len(study.trials()) == 4
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, 'include_dashboard': False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        process = start('study', 'rates.yaml', '--data-dir', str(folder), '--ray', cluster.address)
        deadline = time.time() + 120
        while 'imagenette_zoo' not in str(there := _below(nodes[0])):
            assert time.time() < deadline, 'nothing was sent there'
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        output = process.communicate(timeout=240)[0]
    finally:
        cluster.shutdown()
    assert process.returncode == 0, output
    assert 'FAILED' not in output
    assert main(['study', 'rates.yaml', '--data-dir', str(folder), '--output', 'here']) == 0
    assert weights(place / 'runs' / 'rates') == weights(place / 'here' / 'rates')
    assert len(weights(place / 'here' / 'rates')) == 4


@pytest.mark.slow
@pytest.mark.long
def test_until_decided_on_a_cluster_is_as_on_one_machine(place: Path, folder: Path) -> None:
    """The command is killed while trainings are under way, and goes on to the same rounds, weights and verdict."""
    pytest.importorskip('ray')
    from ray.cluster_utils import Cluster

    (place / 'rates.yaml').write_text(STUDY.format(epochs=6).replace('0.0001', '1e-9'))
    words = ('study', 'rates.yaml', '--data-dir', str(folder), '--until-decided')
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, 'include_dashboard': False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    try:
        killed = start(*words, '--ray', cluster.address)
        deadline = time.time() + 240
        while not list(place.glob('runs/rates/*/result.json')):
            assert time.time() < deadline, 'nothing came home'
            assert killed.poll() is None, killed.communicate()[0]
            time.sleep(0.05)
        killed.kill()
        killed.communicate()
        done = weights(place / 'runs' / 'rates')
        assert 0 < len(done) < 4
        output = start(*words, '--ray', cluster.address).communicate(timeout=300)[0]
    finally:
        cluster.shutdown()
    assert main([*words, '--jobs', '2', '--output', 'here']) == 0
    there, here = place / 'runs' / 'rates', place / 'here' / 'rates'
    assert done.items() <= weights(there).items(), 'what came home is not trained again'
    assert weights(there) == weights(here)
    assert (there / ROUNDS).read_bytes() == (here / ROUNDS).read_bytes()
    assert 'decided: rate: fast is' in output
    assert len(weights(here)) > 4


def _below(node: Any) -> dict[int, str]:
    """The processes below a node's raylet with their commands, parents first."""
    open_ones = [node.all_processes['raylet'][0].process.pid]
    found = {}
    for pid in open_ones:
        listed = subprocess.run(['pgrep', '-P', str(pid)], capture_output=True, text=True).stdout.split()
        open_ones.extend(map(int, listed))
        with contextlib.suppress(OSError):
            found[pid] = Path(f'/proc/{pid}/cmdline').read_text()
    return found
