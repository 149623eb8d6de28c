"""Trainings that come with the package: packed, read, and compared with runs that are trained now."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study import baselines
from imagenette_zoo.study.analysis import Analysis, analyse
from imagenette_zoo.study.baselines import MOST_BYTES, pack, read_baselines
from imagenette_zoo.study.decisions import with_pairs
from imagenette_zoo.study.estimate import dry_run
from imagenette_zoo.study.metrics import METRICS
from imagenette_zoo.study.plan import find_study, plan_models, read_study, recipe_of
from imagenette_zoo.study.process import Slot
from imagenette_zoo.study.records import Record, by_run, options_of, sample
from imagenette_zoo.study.step_times import TimedModel
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils import environment
from imagenette_zoo.utils.console import Console
from tests.report.records import make_record

STUDY = """\
options: {img_size: 32, epochs: 1, warmup_epochs: 0, batch_size: 8, lr: 0.01, workers: 0}
seeds: 3
runs:
  good: {model: test_resnet}
  bad: {model: test_resnet, model_kwargs: {act_layer: sigmoid}}
"""
BASE = 'img_size: 32\nepochs: 1\nwarmup_epochs: 0\nbatch_size: 8\nlr: 0.01\nworkers: 0\n'
QUICK = ['--device', 'cpu', '--in-process']


@pytest.fixture(scope='session')
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two models with three seeds, trained, not to be changed."""
    place = tmp_path_factory.mktemp('baselines')
    (place / 'study.yaml').write_text(STUDY)
    for trial in read_study(place / 'study.yaml').trials():
        train(
            trial.recipe.replace(output=str(place), experiment=trial.name, data_dir=str(folder), device='cpu'),
            quiet=True,
        )
        analyse(place / trial.name, Console(quiet=True))
    return place


@pytest.fixture
def there(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package comes with that study, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / 'tools'))
    import pack_baselines

    file = tmp_path / 'zoo.safetensors'
    assert pack_baselines.main([str(trained)], file) == 0
    monkeypatch.setattr(baselines, 'FILE', file)
    Path('base.yaml').write_text(BASE)
    return tmp_path


@pytest.mark.slow
def test_the_same_trainings_are_the_same_bytes(there: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pack_baselines

    again = there / 'again.safetensors'
    assert pack_baselines.main([str(trained)], again) == 0
    assert again.read_bytes() == (there / 'zoo.safetensors').read_bytes()
    assert '6 trainings of 2 runs' in capsys.readouterr().out
    part = there / 'part'
    shutil.copytree(trained, part)
    (part / 'good-seed2' / 'analysis.json').unlink()
    shutil.rmtree(part / 'bad-seed3')
    assert pack_baselines.main([str(part)], there / 'part.safetensors') == 0
    assert capsys.readouterr().out.endswith('not finished: good-seed2, bad-seed3\n')
    assert len(read_baselines(there / 'part.safetensors')) == 4
    read = read_baselines()
    own = iz.Study.open(trained).records
    assert [(each.run, each.seed, each.packaged) for each in read] == [
        (run, seed, True) for run in ('good', 'bad') for seed in (1, 2, 3)
    ]
    known = {(each.run, each.seed): each for each in own}
    for record in read:
        other = known[record.run, record.seed]
        assert options_of(record.result) == options_of(other.result)
        assert record.analysis is not None
        assert other.analysis is not None
        assert torch.equal(record.analysis.predictions, other.analysis.predictions)
        assert record.analysis.confusion == other.analysis.confusion
        for name, metric in METRICS.items():
            expected = None if metric.timed or name == 'pass_similarity' else other.metric(name)
            assert record.metric(name) == expected, name
        assert record.metric('epochs_to_1') == other.metric('epochs_to_1')
        assert record.metric('seconds_to_1') is None


@pytest.mark.slow
def test_own_seeds_are_judged_against_what_came_with_the_package(
    there: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['run', 'test_resnet', *QUICK, '-c', 'base.yaml', '--data-dir', str(folder), '--experiment', 'mine']
    assert main([*words, '--against', 'zoo']) == 0
    text = capsys.readouterr().out
    assert re.search(r'zoo:good +3, packaged +[\d.]+ ± [\d.]+ +– +– ', text)
    assert re.search(r'zoo:bad .*test_resnet|test_resnet .*zoo:bad', text), 'a verdict'
    trainings = sorted(path.parent.name for path in Path('runs/mine').glob('*/result.json'))
    assert trainings == [f'test_resnet-seed{seed}' for seed in (1, 2, 3)], 'baselines are not trained again'
    page = Path('runs/mine/report/report.md').read_text()
    assert 'zoo:good, zoo:bad came with the package: trained before, on ' in page
    numbers = json.loads(Path('runs/mine/report/report.json').read_text())
    for run in numbers['runs']:
        timed = {name: stat for name, stat in run['metrics'].items() if METRICS[name].timed and stat}
        assert bool(timed) != run['packaged'], run['run']
    verdicts = iz.Study.open('runs/mine').verdicts
    assert {frozenset(each.claim.runs) for each in verdicts} == {
        frozenset(('test_resnet', f'zoo:{name}')) for name in ('good', 'bad')
    }
    assert [each.stage for each in verdicts] == [3, 3]


def record(run: str = 'small', seed: int = 1, top1: float = 80.0, **changes: Any) -> Record:
    """A training by a recipe that is the same for all."""
    made = make_record(run, seed, top1, **{'model': run, **changes})
    versions = {**environment.versions(), **changes.get('versions', {})}
    dataset: dict[str, Any] = {'name': 'imagenette2', 'train': 9469, 'val': 60, 'hash': 'content:a', 'files': 'f'}
    dataset |= changes.get('dataset', {})
    return replace(made, result=replace(made.result, versions=versions, dataset=dataset))


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Three seeds of two models, packed."""
    monkeypatch.setattr(baselines, 'FILE', tmp_path / 'zoo.safetensors')
    made = [record(run, seed, top1 + seed / 3) for run, top1 in (('good', 90.0), ('bad', 60.0)) for seed in (1, 2, 3)]
    (tmp_path / 'zoo.safetensors').write_bytes(pack(made))
    return made


def joined(own: list[Record], monkeypatch: pytest.MonkeyPatch, *against: str) -> list[Record]:
    """Finished trainings of one's own with the baselines."""
    plan = plan_models(['mine'], Recipe(), 3, against=against)
    monkeypatch.setattr(baselines, 'study_records', lambda *_: own)
    return baselines.all_records(plan, Path())


def test_each_run_is_compared_with_each_baseline_and_no_other(
    baseline: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [record('mine', seed, 75.0 + seed / 4) for seed in (1, 2, 3)]
    records = joined(own, monkeypatch, 'zoo')
    plan = with_pairs(plan_models(['mine'], Recipe(), 3, against=['zoo']), records)
    assert [claim.runs for claim in plan.claims] == [('zoo:good', 'mine'), ('mine', 'zoo:bad')]
    assert plan.stages == ((3, 1.0),), 'one look: baselines get no further seeds'
    few = [each for each in records if (each.run, each.seed) != ('zoo:bad', 3)]
    assert [claim.runs for claim in with_pairs(replace(plan, claims=()), few).claims] == [('zoo:good', 'mine')]
    one = joined(own, monkeypatch, 'zoo:bad')
    assert by_run(one).keys() == {'mine', 'zoo:bad'}


def test_answers_of_baselines_are_paired_image_by_image(
    baseline: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [record('mine', seed, 75.0 + seed / 4) for seed in (1, 2, 3)]
    own = [replace(each, analysis=replace(each.analysis, data='elsewhere/val')) for each in own if each.analysis]
    runs = by_run(joined(own, monkeypatch, 'zoo'))
    mine, good = sample(runs['mine'], 'top1'), sample(runs['zoo:good'], 'top1')
    assert mine is not None
    assert good is not None
    assert mine.images == good.images, 'the folder has another name, the images are the same'
    analysed = [each.analysis for each in baseline if each.run == 'good']
    assert good.correct is not None
    assert np.array_equal(good.correct, np.stack([each.correct.numpy() for each in analysed if each]))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'recipe': Recipe(model='mine', img_size=128).as_dict()}, 'img_size 128, there None'),
        ({'recipe': Recipe(model='mine', epochs=20).as_dict()}, 'epochs 20, there 300'),
        ({'recipe': Recipe(model='mine', pretrained=True).as_dict()}, 'pretrained True, there False'),
        ({'dataset': {'files': 'g', 'name': 'woof'}}, 'other images (woof: 9469 and 60, there imagenette2: '),
        ({'versions': {'torch': '3.0.0'}}, 'torch 3.0.0, there '),
        ({'versions': {'imagenette-zoo': '1.0.0'}}, 'imagenette-zoo 1.0.0, there '),
    ],
)
def test_what_does_not_compare_is_refused_in_a_line(
    baseline: list[Record], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError) as error:
        joined([record('mine', **changes)], monkeypatch, 'zoo')
    assert error.value.lines == [str(error.value)]
    assert f'mine does not compare with the baselines of the package: {line}' in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'recipe': Recipe(model='mine', lr=0.5).as_dict()}, 'mine differs from them: lr 0.5, there None.'),
        ({'dataset': {'hash': 'content:b', 'name': 'big'}}, 'the same photos in other files (big, there imagenette2).'),
        ({'versions': {'timm': '99.0'}}, 'mine differs from them: timm 99.0, there '),
    ],
)
def test_what_compares_with_a_difference_is_named_in_the_report(
    baseline: list[Record], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], line: str
) -> None:
    records = joined([record('mine', **changes)], monkeypatch, 'zoo')
    assert line in baselines.about(records)[1]
    assert len(baselines.about(joined([record('mine')], monkeypatch, 'zoo'))) == 1


def test_before_a_training_it_is_said_what_does_not_compare(baseline: list[Record], folder: Path) -> None:
    other = plan_models(['test_resnet'], Recipe(data_dir=str(folder), img_size=64, epochs=3), 3, against=['zoo'])
    with pytest.raises(UserError) as error:
        baselines.check(other, Slot(Path('runs')))
    differing = [line.split(': ')[1].split(' ')[0] for line in error.value.lines]
    assert differing == ['epochs', 'img_size', 'other']
    nowhere = Recipe(data_dir='nowhere', lr=0.5)
    assert baselines.check(plan_models(['test_resnet'], nowhere, 3, against=['zoo']), Slot(Path('runs'))) == [
        'note: test_resnet differs from the baselines of the package: lr 0.5, there None'
    ]


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['--against', 'zoo:godo'], "--against zoo:godo: no baseline 'godo' (good, bad); did you mean good?"),
        (['--against', 'runs/zoo'], "--against: 'runs/zoo' is neither zoo nor zoo:MODEL"),
        (['--against', 'zoo', '--until-decided'], 'baselines that come with the package get no further seeds'),
    ],
)
def test_bad_input_is_one_line_with_code_2(
    baseline: list[Record], capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main(['run', 'test_resnet', *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count('\n') == 1


def test_without_baselines_it_is_said_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(baselines, 'FILE', tmp_path / 'none')
    assert main(['run', 'test_resnet', '--against', 'zoo']) == 2
    assert 'this version comes without baselines: train them with imagenette-zoo study zoo' in capsys.readouterr().err
    (tmp_path / 'none').write_bytes(b'12345678 is no such file')
    assert main(['run', 'test_resnet', '--against', 'zoo']) == 2
    assert 'none: not a file of baselines' in capsys.readouterr().err


def test_runs_take_the_recipe_of_the_baselines_unless_one_is_named() -> None:
    benchmark = read_study(find_study('zoo'))
    taken = recipe_of(None, ['zoo'], lr=0.5)
    assert (taken.img_size, taken.epochs, taken.opt, taken.lr) == (96, 10, 'adamw', 0.5)
    expected = next(iter(benchmark.runs.values())).recipe.as_dict() | {'model': taken.model, 'lr': 0.5}
    assert taken.as_dict() == expected
    assert recipe_of('mbv2_mish', ['zoo']).epochs == 5
    assert recipe_of(None, []) == Recipe.load('mbv2_mish_80')


def test_a_study_file_may_claim_something_of_a_baseline_but_no_times(tmp_path: Path) -> None:
    file = tmp_path / 'study.yaml'
    claims = 'claims: [{{claim: So., metric: {}, order: mine > zoo:good}}]\n'
    text = f'against: zoo:good\nruns:\n  mine: {{{{model: resnet18}}}}\n{claims}'
    file.write_text(text.format('top1'))
    study = read_study(file)
    assert study.against == ('zoo:good',)
    assert study.claims[0].runs == ('mine', 'zoo:good')
    for metric in ('step_time', 'images_per_second', 'train_seconds', 'seconds_to_80'):
        file.write_text(text.format(metric))
        with pytest.raises(UserError, match=f':4: metric: {metric}: nothing is known of the times of zoo:good'):
            read_study(file)


def test_a_dry_run_knows_the_pairs(baseline: list[Record], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = Recipe(img_size=32, epochs=1, warmup_epochs=0, device='cpu')
    plan = plan_models(['test_resnet'], recipe, 3, against=['zoo'])
    dry_run(plan, Slot(tmp_path / 'runs'), Console())
    text = capsys.readouterr().out
    assert 'test_resnet, zoo:good' in text
    assert 'zoo:good, zoo:bad' not in text


def test_the_package_has_room_for_twenty_two_models_with_three_seeds() -> None:
    random = np.random.RandomState(0)
    targets = torch.tensor(np.sort(random.randint(0, 10, 3925)), dtype=torch.int16)
    one = record('model', classes=tuple(f'class number {index}' for index in range(10)))
    history = [{**one.history[0], 'eval_top1': 100 * random.rand(), 'train_loss': random.rand()} for _ in range(10)]

    def answers() -> Analysis:
        assert one.analysis is not None
        return replace(one.analysis, targets=targets, predictions=torch.tensor(random.randint(0, 10, 3925)).short())

    records = [
        replace(record(f'mbv2_with_a_long_name_{model}_imagenette', seed), history=history, analysis=answers())
        for model in range(22)
        for seed in (1, 2, 3)
    ]
    assert len(pack(records)) < MOST_BYTES / 2


def test_trainings_by_unlike_recipes_are_not_packed() -> None:
    other = record('other', recipe=Recipe(lr=0.5).as_dict())
    with pytest.raises(UserError, match=r'lr None then, 0.5 now'):
        pack([record(), other])
    with pytest.raises(UserError, match='was not looked at image by image'):
        pack([replace(record(), analysis=None)])


@pytest.mark.parametrize('name', read_study(find_study('zoo')).runs)
@pytest.mark.long
@pytest.mark.slow
def test_each_model_of_the_benchmark_makes_a_step_at_its_pixels(name: str) -> None:
    recipe = read_study(find_study('zoo')).runs[name].recipe.replace(device='cpu', batch_size=2)
    assert TimedModel(recipe, (2, 2, 10)).step(96) > 0


def test_the_benchmark_has_every_model_of_the_zoo_and_its_cheapest_come_first_with_each_seed() -> None:
    study = read_study(find_study('zoo'))
    from tests.conftest import ZOO

    assert set(ZOO) <= study.runs.keys()
    assert all(name == run.recipe.model for name, run in study.runs.items())
    names = list(study.runs)
    assert [(trial.run, trial.seed) for trial in study.trials()] == [(n, s) for s in (1, 2, 3) for n in names]


def test_in_the_package_is_what_the_benchmark_says() -> None:
    """The recipe of its trainings, if there are some, is that of the study now."""
    study = read_study(find_study('zoo'))
    for each in read_baselines():
        options = study.runs[each.run].recipe.as_dict()
        assert all(value == options[name] for name, value in each.result.recipe.items())
