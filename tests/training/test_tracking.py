"""Trackers: given what metrics.jsonl holds, each epoch once, and never in the way of a run."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.kernels import runtime
from imagenette_zoo.training import tracking
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.signals import Stopped
from tests.conftest import TAKES_LONG, changed
from tests.training.test_reliability import before_step, content, crash

pytest.importorskip('tensorboard')
pytest.importorskip('wandb')

ROOT = Path(__file__).parents[2]
MakeRecipe = Callable[..., Recipe]
Points = dict[str, list[tuple[int, float]]]  # (epoch, value) by metric
BOTH = {'log_tensorboard': True, 'log_wandb': True}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(tracking, 'PATIENCE', 20.0)


def logged(run: Path) -> Points:
    """The numbers that the trackers must have logged, by metrics.jsonl."""
    points: Points = {}
    for line in (run / 'metrics.jsonl').read_text().splitlines():
        row = json.loads(line)
        epoch = row.pop('epoch')
        row.update({f'eval_top1/{name}': top1 for name, top1 in row.pop('per_class', {}).items()})
        for name, value in row.items():
            points.setdefault(name, []).append((epoch, value))
    return points


def accumulator(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / 'tensorboard')).Reload()


def in_tensorboard(run: Path) -> Points:
    """The scalars that TensorBoard shows, but for those of the result."""
    events = accumulator(run)
    tags = [tag for tag in events.Tags()['scalars'] if not tag.startswith('result/')]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def rounded(points: Points) -> Points:
    """As TensorBoard keeps numbers."""
    return {name: [(epoch, float(np.float32(value))) for epoch, value in series] for name, series in points.items()}


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, record = file.read_bytes(), 7, b''
    while offset + 7 <= len(data):
        if 2**15 - offset % 2**15 < 7:
            offset += 2**15 - offset % 2**15
        _, size, kind = struct.unpack('<IHB', data[offset : offset + 7])
        record += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # the whole of a record, or its end
            yield Record.FromString(record)
            record = b''


def wandb_files(run: Path) -> list[Path]:
    return sorted((run / 'wandb').glob('offline-run-*/*.wandb'), key=lambda file: file.stat().st_mtime_ns)


def in_wandb(run: Path) -> Points:
    """The history in the newest .wandb file of a run."""
    points: Points = {}
    for record in wandb_records(wandb_files(run)[-1]):
        if record.HasField('history'):
            items = {'/'.join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert items['epoch'] == items['_step']
            for name, value in items.items():
                if not name.startswith('_') and name != 'epoch':
                    points.setdefault(name, []).append((items['_step'], value))
    return points


def equal(run: Path) -> None:
    """Both trackers hold what metrics.jsonl does, each epoch once."""
    expected = logged(run)
    assert [epoch for epoch, _ in expected['train_loss']] == list(range(len(expected['train_loss'])))
    assert in_tensorboard(run) == rounded(expected)
    assert in_wandb(run) == expected


# --- What is logged ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
def test_both_hold_the_numbers_of_metrics_jsonl_and_change_none_of_the_run(
    recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    """With timm's loader, whose augmentations draw from the generators of this process."""
    options: dict[str, Any] = dict(epochs=3, val_interval=2, loader='timm', mixup=0.2, drop_path=0.1, reprob=0.5)
    runtime._library()  # torch may warn while it is compiled
    capfd.readouterr()
    tracked = train(recipe(**options, **BOTH, wandb_tags=('a', 'b'), wandb_project='zoo'), quiet=True)
    assert capfd.readouterr() == ('', '')
    equal(tracked.folder)
    expected = logged(tracked.folder)
    assert {'train_loss', 'lr', 'eval_loss', 'eval_top1', 'eval_top5', 'eval_top1/class0'} <= expected.keys()
    assert [epoch for epoch, _ in expected['eval_top1']] == [1, 2]
    plain = train(recipe(**options, experiment='plain'), quiet=True)
    assert content(plain.folder) == content(tracked.folder)


def test_the_recipe_and_the_result_are_told(recipe: MakeRecipe) -> None:
    result = train(recipe(**BOTH, wandb_tags=('a', 'b'), wandb_project='zoo'), quiet=True)
    numbers = {f'result/{name}': getattr(result, name) for name in tracking.RESULT}
    events = accumulator(result.folder)
    shown = {tag: events.Scalars(tag) for tag in events.Tags()['scalars'] if tag.startswith('result/')}
    assert {tag: [(event.step, event.value) for event in series] for tag, series in shown.items()} == rounded(
        {name: [(1, value)] for name, value in numbers.items()}
    )
    text = events.Tensors('recipe/text_summary')[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text) == {k: v for k, v in result.recipe.items() if v is not None}
    assert len(events.summary_metadata['_hparams_/session_start_info'].plugin_data.content) > 500
    assert '_hparams_/session_end_info' in events.summary_metadata

    records = list(wandb_records(wandb_files(result.folder)[0]))
    begun = next(record.run for record in records if record.HasField('run'))
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert {name: config[name] for name in result.recipe} == result.recipe
    assert (begun.project, begun.display_name, list(begun.tags)) == ('zoo', 'run', ['a', 'b'])
    summary = {
        '/'.join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records
        for item in record.summary.update
    }
    assert {name: summary.get(name) for name in numbers} == numbers
    assert [record.exit.exit_code for record in records if record.HasField('exit')] == [0]


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('killed', ['before it was told', 'before the state was saved', 'while nothing tracked'])
def test_after_a_resume_each_epoch_is_there_once(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    options = BOTH if killed != 'while nothing tracked' else {}
    run = Path(recipe().output) / 'run'
    kill(recipe(**options, epochs=4), monkeypatch, killed)
    former = accumulator(run) if options else None
    if former is not None:
        events = next((run / 'tensorboard').iterdir())
        shutil.copy(events, events.with_name('events.out.tfevents.9999999999.of.a.wrong.clock'))
        assert len(former.Scalars('train_loss')) == (2 if killed == 'before the state was saved' else 1)
    train(recipe(**BOTH, epochs=4, resume='auto'), quiet=True)
    equal(run)
    assert len(logged(run)['train_loss']) == 4
    assert len({next(r.run.run_id for r in wandb_records(file) if r.HasField('run')) for file in wandb_files(run)}) == 1
    assert [file.stat().st_size > 0 for file in (run / 'tensorboard').iterdir()].count(True) == 1
    if former is not None:  # a TensorBoard that is looking on
        assert [event.step for event in former.Reload().Scalars('train_loss')] == [0, 1, 2, 3]


def kill(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A training that is killed in epoch 2 of 4; 24 images make three steps an epoch."""
    with monkeypatch.context() as patch:
        if when == 'before it was told':
            epoch = tracking.Tracking.epoch
            patch.setattr(tracking.Tracking, 'epoch', lambda self, row: crash() if row['epoch'] else epoch(self, row))
        else:
            before_step(patch, 6, crash)
        if when == 'before the state was saved':
            patch.setattr('imagenette_zoo.training.run.Run.save', save_first(Path(recipe.output) / 'run'))
        with pytest.raises(ZeroDivisionError):
            train(recipe, quiet=True)


def save_first(run: Path) -> Callable[[Any], None]:
    """Saves the state of the first epoch alone."""
    from imagenette_zoo.training.run import Run

    save = Run.save
    return lambda self: None if (run / 'state.pt').exists() else save(self)


def test_the_server_is_told_only_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a wandb that says it continues a run whose steps 0 and 1 have arrived."""
    given: dict[str, Any] = {}
    steps: list[int] = []
    online = SimpleNamespace(
        id='abc', url='https://there', offline=False, dir=str(tmp_path), starting_step=2,
        log=lambda values, step, commit: steps.append(step),
    )  # fmt: skip
    (tmp_path / 'wandb').mkdir()
    (tmp_path / 'wandb' / 'run-id').write_text('abc')
    monkeypatch.setattr('wandb.init', lambda **options: (given.update(options), online)[1])
    history = [{'epoch': epoch, 'train_loss': 1.0} for epoch in range(3)]
    tracker = tracking._Wandb(Recipe(log_wandb=True), tmp_path, history)
    tracker.epoch({'epoch': 3, 'train_loss': 1.0})
    assert (given['id'], given['resume'], tracker.location, steps) == ('abc', 'allow', 'https://there', [2, 3])


def test_a_stopped_run_is_closed(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        train(recipe(**BOTH), quiet=True)
    run = Path(recipe().output) / 'run'
    equal(run)
    exits = [record.exit.exit_code for record in wandb_records(wandb_files(run)[0]) if record.HasField('exit')]
    assert exits == [128 + signal.SIGTERM]


@pytest.mark.long
@pytest.mark.slow
def test_overwriting_removes_what_the_trackers_wrote(recipe: MakeRecipe) -> None:
    run = train(recipe(**BOTH), quiet=True).folder
    train(recipe(overwrite=True), quiet=True)
    assert not (run / 'tensorboard').exists()
    assert not (run / 'wandb').exists()
    other = run.parent / 'other' / 'tensorboard'
    other.mkdir(parents=True)
    with pytest.raises(UserError, match='holds tensorboard of something else'):
        train(recipe(experiment='other'), quiet=True)


# --- Trackers without an account --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's files, unlike its database, are there at once."""
    place = tmp_path_factory.mktemp('trackers')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MLFLOW_TRACKING_URI', (place / 'mlflow').as_uri())
        patch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
        patch.setenv('DO_NOT_TRACK', 'true')
        yield


Run = tuple[Points, dict[str, Any], str]  # the numbers of a run, its options, its group


def in_trackio(project: str) -> list[Run]:
    import trackio.fragments
    from trackio.sqlite_storage import SQLiteStorage

    trackio.fragments.import_inbox_dir()
    runs = []
    for run in trackio.Api().runs(project):
        points: Points = {}
        for row in SQLiteStorage.get_logs(project, run.name, run_id=run.id):
            for name in row.keys() - {'step', 'timestamp', 'epoch'}:
                points.setdefault(name, []).append((row['step'], row[name]))
        config = dict(run.config or {})
        runs.append((points, config, config.pop('_Group')))
    return runs


def in_mlflow(project: str) -> list[Run]:
    import mlflow

    client = mlflow.MlflowClient()
    runs = []
    for run in client.search_runs([client.get_experiment_by_name(project).experiment_id]):
        history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        points = {
            name.replace('.', '/'): sorted((each.step, each.value) for each in series)
            for name, series in history.items()
        }
        runs.append((points, run.data.params, run.data.tags['group']))
    return runs


READERS = {'trackio': in_trackio, 'mlflow': in_mlflow}


@pytest.fixture
def local(_own_places: None) -> dict[str, Any]:
    """Options that log to those of them that are installed, in a project of the test's own."""
    installed = [name for name in READERS if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip('neither trackio nor mlflow is installed')
    return {**{f'log_{name}': True for name in installed}, 'wandb_project': uuid.uuid4().hex}


def read(local: dict[str, Any]) -> dict[str, list[Run]]:
    return {name: READERS[name](local['wandb_project']) for name in READERS if f'log_{name}' in local}


def test_local_trackers_hold_the_numbers_and_the_recipe(
    recipe: MakeRecipe, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, local: dict[str, Any]
) -> None:
    """And ask for no address, also where there is a token of the Hub."""
    asked: list[Any] = []
    monkeypatch.setenv('HF_TOKEN', 'hf_x')
    monkeypatch.setattr('socket.getaddrinfo', lambda *address, **_: asked.append(address))
    plain = train(recipe(experiment='plain'), quiet=True)
    capfd.readouterr()
    result = train(recipe(**local), quiet=True)
    assert capfd.readouterr() == ('', '')
    assert asked == []
    assert content(plain.folder) == content(result.folder)
    rows = list(csv.DictReader((result.folder / 'summary.csv').read_text().splitlines()))
    summary = {name: [(epoch, float(row[name])) for epoch, row in enumerate(rows)] for name in rows[0]}
    for tracker, [(points, config, group)] in read(local).items():
        numbers = {name: points.pop(f'result/{name}') for name in tracking.RESULT}
        assert numbers == {name: [(1, getattr(result, name))] for name in numbers}, tracker
        assert points == logged(result.folder), tracker
        assert {name: points[name] for name in summary if name != 'epoch'}.items() <= summary.items(), tracker
        assert {name: str(config[name]) for name in result.recipe} == {k: str(v) for k, v in result.recipe.items()}
        assert group == 'runs'


@pytest.mark.parametrize('killed', ['before it was told', pytest.param('before the state was saved', marks=TAKES_LONG)])
def test_after_a_resume_each_epoch_is_in_local_trackers_once(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, killed: str, local: dict[str, Any]
) -> None:
    """And another run of the project stays."""
    if killed == 'before the state was saved':
        monkeypatch.setenv('TRACKIO_STORAGE_MODE', 'jsonl')  # as on a network file system
    kill(recipe(epochs=4, **local), monkeypatch, killed)
    train(recipe(epochs=1, experiment='other', **local), quiet=True)
    train(recipe(epochs=4, resume='auto', **local), quiet=True)
    for tracker, runs in read(local).items():
        by_length = {len(points['train_loss']): points for points, _, _ in runs}
        assert (len(runs), sorted(by_length)) == (2, [1, 4]), tracker
        points = {name: series for name, series in by_length[4].items() if not name.startswith('result/')}
        assert points == logged(Path(recipe().output) / 'run'), tracker


@pytest.mark.long
@pytest.mark.slow
def test_an_overwritten_run_is_replaced_in_local_trackers(recipe: MakeRecipe, local: dict[str, Any]) -> None:
    """Also where a run without them came between."""
    for options in (dict(epochs=2, **local), dict(epochs=1), dict(epochs=1, **local)):
        train(recipe(overwrite=True, **options), quiet=True)
    for tracker, runs in read(local).items():
        assert [len(points['train_loss']) for points, _, _ in runs] == [1], tracker


def test_trackio_stays_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('trackio')
    monkeypatch.setenv('TRACKIO_SPACE_ID', 'me/mine')
    with pytest.raises(UserError, match='--log-trackio logs on this machine: unset TRACKIO_SPACE_ID'):
        tracking.check_trackers(Recipe(log_trackio=True))


# --- Trackers that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('package', ['tensorboard', 'wandb', 'trackio', 'mlflow'])
def test_a_missing_package_is_one_line_and_leaves_nothing(
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    package: str,
) -> None:
    for module in [name for name in sys.modules if name == package or name == 'torch.utils.tensorboard']:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    file = tmp_path / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(recipe())))
    assert main(['train', '-c', str(file), f'--log-{package}']) == 2
    expected = f'error: --log-{package} needs {package}: pip install "imagenette-zoo[{package}]"\n'
    assert capsys.readouterr().err == expected
    assert not (tmp_path / 'runs').exists()


def test_a_folder_called_wandb_is_not_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / 'wandb').mkdir()
    monkeypatch.delitem(sys.modules, 'wandb')
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    with pytest.raises(UserError, match='--log-wandb needs wandb'):
        tracking.check_trackers(Recipe(log_wandb=True))


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, 'No space left on device')


def hang(*_: Any, **__: Any) -> None:
    time.sleep(9)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ('option', 'method', 'act', 'reason'),
    [
        ('log_tensorboard', '__init__', fail, 'No space left'),
        ('log_tensorboard', 'epoch', fail, 'No space left'),
        ('log_tensorboard', 'result', sys.exit, 'SystemExit'),
        ('log_wandb', 'epoch', hang, 'no answer in 1 s'),
        ('log_wandb', 'close', fail, 'No space left'),
    ],
)
def test_a_tracker_that_fails_is_left_out(
    recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    method: str,
    act: Callable[..., None],
    reason: str,
) -> None:
    kind = next(kind for kind in tracking.TRACKERS if kind.option == option)
    with monkeypatch.context() as patch:
        patch.setattr(kind, method, lambda *args: act())
        patch.setattr(tracking, 'PATIENCE', 1.0 if act is hang else 20.0)
        failed = train(recipe(**{option: True}))
    lines = [line for line in capsys.readouterr().out.splitlines() if 'failed' in line]
    assert len(lines) == 1
    assert lines[0].startswith(f'--{option.replace("_", "-")}: failed, the run does without it (')
    assert reason in lines[0]
    assert content(train(recipe(experiment='plain'), quiet=True).folder) == content(failed.folder)


def run_outside(recipe: Recipe, tmp_path: Path, env: dict[str, str], code: str = '') -> Any:
    """Trains in a process of its own, whose home has no key of wandb."""
    file = tmp_path / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(recipe)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith('WANDB_')}
    env = {**kept, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'HOME': str(tmp_path), **env}
    code = f'import sys; {code}\nfrom imagenette_zoo.cli.main import main\nsys.exit(main(sys.argv[1:]))'
    command = [sys.executable, '-c', code, 'train', '-c', str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=100)


@pytest.mark.long
@pytest.mark.slow
def test_without_the_network_the_run_goes_on_and_ends(recipe: MakeRecipe, tmp_path: Path) -> None:
    code = 'from imagenette_zoo.training import tracking; tracking.WANDB_PATIENCE = 1.0'
    env = {'WANDB_BASE_URL': 'http://127.0.0.1:9', 'WANDB_API_KEY': 'a' * 40}
    done = run_outside(recipe(log_wandb=True), tmp_path, env, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('--log-wandb: failed, the run does without it') == 1
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith('wandb')]
    assert (tmp_path / 'runs' / 'run' / 'result.json').is_file()


@pytest.mark.long
@pytest.mark.slow
def test_wandb_without_a_key_is_one_line_and_leaves_nothing(recipe: MakeRecipe, tmp_path: Path) -> None:
    done = run_outside(recipe(log_wandb=True), tmp_path, {})
    assert done.returncode == 2
    assert done.stderr.startswith('error: --log-wandb: No API key configured.')
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_who_tracks_nothing_needs_neither_package(recipe: MakeRecipe, tmp_path: Path) -> None:
    done = run_outside(recipe(), tmp_path, {}, "sys.modules['wandb'] = sys.modules['tensorboard'] = None")
    assert done.returncode == 0, done.stderr


def test_only_the_first_process_tells(tmp_path: Path) -> None:
    from imagenette_zoo.utils.console import Console

    with tracking.Tracking(Recipe(**BOTH), tmp_path, [], Console(quiet=True), primary=False) as told_by_others:
        told_by_others.epoch({'epoch': 0, 'train_loss': 1.0})
    assert not list(tmp_path.iterdir())
