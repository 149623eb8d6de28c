"""Studies from Python: models of this process, what a study gives, and what stops it."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import own
from imagenette_zoo.report import notebook, studies
from imagenette_zoo.report.page import write_report
from imagenette_zoo.study import runner
from imagenette_zoo.study.plan import dump_study, make_study
from imagenette_zoo.training.result import read_result
from tests.conftest import changed, interrupted

pytestmark = pytest.mark.slow

pytest.importorskip('scipy')
pytest.importorskip('jinja2')


class Net(nn.Module):
    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, width, 3, stride=2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).relu().mean((2, 3)))


class Fixed(Net):
    def __init__(self) -> None:
        super().__init__(1000)


@pytest.fixture
def options(recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Of a training of one epoch, as `run` takes them, in a folder of its own; no report is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(studies, 'write_report', lambda folder, *_, **__: folder / 'report.html')
    Path('plain.yaml').write_text('warmup_epochs: 0\n')
    given = changed(recipe(epochs=1, output='runs'))
    yield {name: given[name] for name in given.keys() - {'model', 'experiment', 'output'}} | {'quiet': True}
    own.NAMED.clear()


def run(models: Any, options: dict[str, Any], **more: Any) -> iz.Study:
    return iz.run(models, **{'config': 'plain.yaml', 'seeds': 1, **options, **more})


def weights(run: Path) -> bytes:
    return (run / 'last' / 'model.safetensors').read_bytes()


@pytest.mark.long
@pytest.mark.slow
def test_models_of_this_process_are_trained_in_it(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    models = {'mine': lambda num_classes: Net(num_classes), 'resnet': 'test_resnet'}
    study = run(models, options, seeds=2, quiet=False)
    assert study.folder == Path('runs/mine+resnet')
    output = capsys.readouterr().out
    assert '4 trainings: 0 done, 4 to do, 1 at a time; in runs/mine+resnet' in output
    assert 'report: runs/mine+resnet/report/report.html' in output
    assert sorted(record.folder.name for record in study.records) == [
        'mine-seed1', 'mine-seed2', 'resnet-seed1', 'resnet-seed2'
    ]  # fmt: skip
    assert read_result(study.folder / 'resnet-seed1').code == {}
    [[name, sha256]] = read_result(study.folder / 'mine-seed1').code.items()
    assert (name, len(sha256)) == ('notebook:mine', 64)
    alone = iz.train('plain.yaml', model='test_resnet', seed=2, **options)
    assert weights(alone.folder) == weights(study.folder / 'resnet-seed2'), 'no training leaves a trace in the next'


@pytest.mark.slow
def test_a_cell_that_is_run_again(options: dict[str, Any]) -> None:
    assert [run({'mine': Net}, options).folder.name for _ in range(2)] == ['mine', 'mine-2']
    folder = run({'mine': Net}, options, experiment='again').folder
    before = (folder / 'mine-seed1' / 'result.json').stat().st_mtime_ns
    assert run({'mine': Net}, options, experiment='again').folder == folder == Path('runs/again')
    assert (folder / 'mine-seed1' / 'result.json').stat().st_mtime_ns == before
    with pytest.raises(UserError, match='again/mine-seed1: notebook:mine has changed since it was started'):
        run({'mine': lambda num_classes: Net(num_classes, width=5)}, options, experiment='again')


@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_study_goes_on(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options['epochs'] = 2
    models = {'mine': Net, 'resnet': 'test_resnet'}
    with interrupted(monkeypatch, epoch=1), pytest.raises(KeyboardInterrupt):
        run(models, options)
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=object))
    with interrupted(monkeypatch, epoch=1):
        study = run(models, options)
    where = f"'runs/mine+resnet-2', data_dir={str(options['data_dir'])!r}"
    assert f'Continue with: resume(), or imagenette_zoo.study({where}' in capsys.readouterr().out
    assert study.records == []
    assert 'mine and resnet: 0 of 2 trainings done' in repr(study)
    assert study.resume(quiet=True) is study
    assert [record.result.epochs for record in study.records] == [2, 2]
    own.NAMED.clear()  # as in another process
    with pytest.raises(UserError, match=r"mine\+resnet: mine is a model of a notebook: give it as models={'mine': …}"):
        iz.study('runs/mine+resnet')
    again = iz.study('runs/mine+resnet', models={'mine': Net}, data_dir=options['data_dir'], quiet=True)
    assert weights(again.folder / 'mine-seed1') == weights(study.folder / 'mine-seed1')


@pytest.mark.slow
def test_one_failure_does_not_stop_the_others(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'^1 of 2 trainings failed: mine-seed1: .*expected \(2, 3\).*num_classes'):
        run({'mine': Fixed, 'resnet': 'test_resnet'}, options)
    study = iz.Study.open('runs/mine+resnet')
    assert [record.run for record in study.records] == ['resnet']


def test_names_are_trained_in_processes(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def job(trial: Any, *_: object) -> None:
        raise UserError(f'{trial.recipe.model} with lr {trial.recipe.lr} has a process')

    monkeypatch.setattr(runner, 'Job', job)
    del options['lr']
    with pytest.raises(UserError, match=r'2 of 2 trainings .* test_resnet with lr 0\.5 has a process') as error:
        run('test_resnet', options, vary={'lr': [0.5, 1]}, jobs=2)
    assert 'lr=1.0' in str(error.value)


@pytest.mark.slow
def test_a_study_as_a_mapping(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        'title': 'Is <mine> better?',
        'options': {name: value for name, value in options.items() if name not in ('data_dir', 'device', 'quiet')},
        'seeds': 1,
        'runs': {'mine': {'model': Net}, 'wide': {'model': lambda num_classes: Net(num_classes, width=5)}},
        'claims': [{'claim': 'It is <larger>.', 'metric': 'params', 'order': 'wide > mine'}],
    }
    study = iz.study(content, data_dir=options['data_dir'], device='cpu', quiet=True)
    assert study.folder == Path('runs/Is__mine__better_')
    assert [(verdict.verdict, verdict.claim.sentence) for verdict in study.verdicts] == [
        ('supported', 'It is <larger>.')
    ]
    html = study._repr_html_()
    assert 'Is &lt;mine&gt; better? 2 of 2 trainings done' in html
    assert '<td>supported</td><td>It is &lt;larger&gt;.</td>' in html
    assert 'SUPPORTED' in repr(study)
    assert study.plot()._repr_png_().startswith(b'\x89PNG')
    monkeypatch.setattr(studies, 'write_report', write_report)
    page = iz.report([study.records[0].result, study.records[1].result], 'elsewhere', images=False)
    assert page == Path('elsewhere/report.html')
    assert json.loads(page.with_name('report.json').read_text())['title'] == 'Report on wide, mine'


@pytest.mark.parametrize('has_pandas', [True, False])
def test_a_studys_table(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, has_pandas: bool) -> None:
    study = run(Net, options, seeds=2)
    results = [record.result for record in study.records]
    if has_pandas:
        pytest.importorskip('pandas')
        runs, trainings = (study.table(per_seed).to_dict('records') for per_seed in (False, True))
    else:
        monkeypatch.setitem(sys.modules, 'pandas', None)
        runs, trainings = study.table(), study.table(per_seed=True)
    assert [(row['run'], row['seed'], row['top1'], row['loss']) for row in trainings] == [
        ('Net', result.seed, result.top1, result.loss) for result in results
    ]
    [row] = runs
    assert (row['run'], row['seeds'], row['params']) == ('Net', 2, results[0].params)
    assert row['loss'] == pytest.approx((results[0].loss + results[1].loss) / 2)


def test_a_run_is_opened_where_its_model_is_known(options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    result = iz.train(model=Net, **options)
    [scores] = validations = iz.validate(result.folder, quiet=True, device='cpu')
    assert scores.top1 == result.top1
    assert f'<td>{result.folder}</td>' in validations._repr_html_()
    assert f'<td>Net</td><td>{result.top1:.2f}</td>' in result._repr_html_()
    image = next(Path(options['data_dir']).rglob('*.png'))
    assert iz.predict(image, result.folder, device='cpu')[0].label in result.per_class
    with pytest.raises(UserError, match='Grad-CAM needs a feature map, and Net has none'):
        iz.predict(image, result.folder, device='cpu', save_figure='seen.png')
    assert iz.export(result.folder, 'torchscript', 'net.pt').difference < 1e-4
    own.NAMED.clear()  # as in another process
    assert main(['validate', '-m', str(result.folder)]) == 2
    line = capsys.readouterr().err
    assert "was trained with a model of a notebook, 'Net'" in line
    assert line.count('\n') == 1
    with pytest.raises(UserError, match='define Net as it was and give it as model='):
        iz.train(resume='auto', experiment=result.folder.name, data_dir=options['data_dir'])


BAD = [
    (lambda: iz.run({'resnet18': Net}), 'timm has one of this name'),
    (lambda: iz.run([Net, Net]), 'Net: is given twice'),
    (lambda: iz.run(Net(3)), 'model Net: is built already: give the class'),
    (lambda: iz.run({'mine': 3}), 'a function or class is needed'),
    (lambda: iz.run('test_resnet', seed=3), 'run has no seed: seeds=N'),
    (lambda: iz.run('test_resnet', seeds=0), 'seeds: 0 is not a number of trainings'),
    (lambda: iz.run('test_resnet', vary={'lr': '1,2'}), "vary: lr: '1,2' is not a list"),
    (lambda: iz.run('test_resnet', vary={'act_layer': [nn.SiLU, Net]}), 'is of no file that was imported'),
    (lambda: iz.run(Net, jobs=2), 'jobs=2: Net is of this process'),
    (lambda: iz.study({'runs': {'mine': {'model': Net}}, 'claims': [{'claim': 'x'}]}), 'study: a claim needs metric'),
    (lambda: iz.study({'runs': {'mine': {'lr': object()}}}), 'study: only text, numbers, lists and mappings can'),
    (lambda: iz.study('no-such-study'), "no study 'no-such-study'"),
    (lambda: iz.Study.open('nowhere'), 'nowhere/study.yaml'),
]


@pytest.mark.parametrize(('call', 'line'), BAD)
def test_bad_input_is_one_line(options: dict[str, Any], call: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert line in str(error.value)
    assert '\n' not in str(error.value)
    assert not list(Path('runs').glob('*/*/result.json'))


def test_models_that_a_package_of_the_notebook_registers_are_trained_here(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def registered_net(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return Net(kwargs['num_classes'])

    monkeypatch.setattr(runner, 'Job', None)
    monkeypatch.setitem(timm.models._registry._model_entrypoints, 'registered_net', registered_net)
    assert len(run('registered_net', options).records) == 1


def test_a_model_must_be_made_anew(options: dict[str, Any]) -> None:
    model = Net(3)
    with pytest.raises(UserError, match='model mine: is the same object at each call'):
        run({'mine': lambda num_classes: model}, options)


def test_a_thread_may_run_a_study(options: dict[str, Any]) -> None:
    """Signals can't be caught there. The model has no `get_classifier`: its last linear layer is scaled."""
    studies: list[iz.Study] = []
    thread = Thread(target=lambda: studies.append(run(Net, options, head_init_scale=0.1)))
    thread.start()
    thread.join()
    assert len(studies[0].records) == 1


def test_the_folder_of_a_study_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'evil.py').write_text('raise RuntimeError\n')
    (tmp_path / 'study.yaml').write_text('device_modules: [evil.py]\nruns: {a: {model: test_resnet}}\n')
    monkeypatch.setattr(notebook, 'carry_out', lambda *_, **__: None)
    for study in (iz.Study.open(tmp_path), iz.study(tmp_path)):
        assert {trial.recipe.device_modules for trial in study.plan.trials()} == {()}


def test_a_study_that_was_begun_stays_where_it_is(tmp_path: Path) -> None:
    study = make_study('', {'a': Recipe(), 'b': Recipe()}, (1, 2, 3))
    (tmp_path / 'study.yaml').write_text(dump_study(study))
    for given in ({'output': 'elsewhere'}, {'experiment': 'another'}):
        with pytest.raises(UserError, match='goes on in its own folder: leave output and experiment out'):
            iz.study(tmp_path, **given)
