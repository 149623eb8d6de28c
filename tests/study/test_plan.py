"""Studies without a file: models, and options that take several values."""

import re
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study.plan import (
    LONGEST_NAME,
    default_name,
    dump_study,
    parse_vary,
    plan_models,
    plan_study,
    read_study,
)  # fmt: skip
from imagenette_zoo.study.process import Slot, commands

BASE = Recipe(epochs=3, warmup_epochs=0, batch_size=8, model_kwargs={'passes': 2})


def planned(*words: str, models: tuple[str, ...] = ('resnet18',), recipe: Recipe = BASE) -> dict[str, Recipe]:
    return {name: run.recipe for name, run in plan_models(models, recipe, 2, parse_vary(words)).runs.items()}


@pytest.mark.parametrize(
    ('models', 'words', 'expected'),
    [
        (('resnet18', 'vgg11'), (), {'resnet18': {}, 'vgg11': {'model': 'vgg11'}}),
        (('my_idea:MyNet',), (), {'MyNet': {'model': 'my_idea:MyNet'}}),
        (('a:Net', 'b:Net', 'c:Other'), (), {'a_Net': {'model': 'a:Net'}, 'b_Net': {'model': 'b:Net'},
                                             'Other': {'model': 'c:Other'}}),
        ((), ('model=resnet18,vgg11',), {'resnet18': {}, 'vgg11': {'model': 'vgg11'}}),
        (('resnet18',), ('lr=1e-3,0.003',), {'lr=0.001': {'lr': 0.001}, 'lr=0.003': {'lr': 0.003}}),
        (('resnet18',), ('batch-size=4, 8',), {'batch_size=4': {'batch_size': 4}, 'batch_size=8': {}}),
        (('resnet18',), ('amp=true,false',), {'amp=True': {'amp': True}, 'amp=False': {}}),
        (('resnet18',), ('gp=1,avg',), {'gp=1': {'gp': '1'}, 'gp=avg': {'gp': 'avg'}}),
        (('resnet18',), ('aa=None,v0',), {'aa=None': {}, 'aa=v0': {'aa': 'v0'}}),
        (('resnet18',), ('scale=(0.1,1),[0.5, 1]',), {'scale=0.1x1.0': {'scale': (0.1, 1.0)},
                                                      'scale=0.5x1.0': {'scale': (0.5, 1.0)}}),
        (('resnet18',), ('act-layer=mish,my_idea:Snake',), {
            'act_layer=mish': {'model_kwargs': {'passes': 2, 'act_layer': 'mish'}},
            'act_layer=Snake': {'model_kwargs': {'passes': 2, 'act_layer': 'my_idea:Snake'}},
        }),
        (('resnet18',), ('act_layer=a:Snake,b:Snake',), {
            f'act_layer={name}_Snake': {'model_kwargs': {'passes': 2, 'act_layer': f'{name}:Snake'}} for name in 'ab'
        }),
        (('resnet18',), ('passes=1,True',), {'passes=1': {'model_kwargs': {'passes': 1}},
                                             'passes=True': {'model_kwargs': {'passes': True}}}),
        (('resnet18', 'vgg11'), ('opt=sgd,adamw', 'lr=1,2'), {
            f'{model}-opt={opt}-lr={float(lr)}': {'model': model, 'opt': opt, 'lr': lr}
            for model in ('resnet18', 'vgg11') for opt in ('sgd', 'adamw') for lr in (1, 2)
        }),
        (('resnet18',), ('warmup_epochs=0,4', 'epochs=5'), {
            f'warmup_epochs={warmup}-epochs=5': {'warmup_epochs': warmup, 'epochs': 5} for warmup in (0, 4)
        }),
    ],
)  # fmt: skip
def test_each_combination_is_a_run_named_by_what_differs(
    models: tuple[str, ...], words: tuple[str, ...], expected: dict[str, dict[str, Any]]
) -> None:
    found = planned(*words, models=models)
    assert found == {name: BASE.replace(**{'model': 'resnet18', **changes}) for name, changes in expected.items()}
    assert list(found) == list(expected)


def test_what_is_planned_can_be_read_again(tmp_path: Path) -> None:
    vary = parse_vary(['act_layer=mish,my_idea:Snake', 'lr=1e-5,3e-3', 'scale=(0.1,1),(0.5,1)', 'aa=None,v0'])
    study = plan_models(['resnet18', 'my_idea:Net'], Recipe(device_modules=('my_idea.py',)), 3, vary)
    file = tmp_path / 'study.yaml'
    file.write_text(dump_study(study))
    again = read_study(file)
    assert (again.title, again.seeds) == (study.title, (1, 2, 3))
    assert {run.recipe.device_modules for run in again.runs.values()} == {()}, 'what a result names is not imported'
    assert {name: run.recipe.replace(device_modules=('my_idea.py',)) for name, run in again.runs.items()} == {
        name: run.recipe for name, run in study.runs.items()
    }


def test_what_is_varied_is_given_as_the_flags_are() -> None:
    chosen = Recipe.load('mbv2_mish_80').train_img_sizes
    [run] = plan_models(['resnet18'], Recipe.load('mbv2_mish_80', lr=1), 1, {'img_size': [64]}).runs.values()
    assert (chosen, run.recipe.train_img_sizes) == ((96, 128), None)
    flags = Recipe.load('mbv2_mish_80', train_img_sizes=(32, 48))
    [run] = plan_models(['resnet18'], flags, 1, {'img_size': [64]}).runs.values()
    assert run.recipe.train_img_sizes == (32, 48)


def test_each_layer_of_a_study_wins_over_those_below(tmp_path: Path) -> None:
    text = """
base: mbv2_mish_80
options: {img_size: 64}
runs:
  plain:
  sizes: {train_img_sizes: [40, 64]}
  small: {img_size: 48}
  both: {img_size: 48, train_img_sizes: [96, 128]}
  opt: {opt: adamw, grid: {epochs: [1, 20]}}
"""
    file = tmp_path / 'study.yaml'
    file.write_text(text)
    study = read_study(file)
    sizes = {name: run.recipe.train_img_sizes for name, run in study.runs.items()}
    short = study.runs['opt-epochs=1'].recipe
    assert list(sizes.values()) == [None, (40, 64), None, (96, 128), None, None]
    assert (short.opt_kwargs, short.warmup_epochs) == ({}, 0)
    file.write_text(dump_study(study))
    assert {name: run.recipe for name, run in read_study(file).runs.items()} == {
        name: run.recipe for name, run in study.runs.items()
    }


@pytest.mark.parametrize('is_given', [False, True])
def test_a_batch_that_a_study_gives_is_given_to_its_trainings(tmp_path: Path, is_given: bool) -> None:
    options = {'batch_size': 64} if is_given else {}
    study = plan_study({'base': 'finetune', 'options': options, 'seeds': 1, 'runs': {'a': {}}})
    [training, _] = commands(study.trials()[0], Slot(tmp_path))
    assert ('--batch-size' in training) is is_given


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (('lr',), "--vary: 'lr' is not KEY=V1,V2; models come before it"),
        (('=1,2',), "--vary: '=1,2' is not KEY=V1,V2"),
        (('lr=',), '--vary lr: a value is empty: expected lr=V1,V2'),
        (('lr=1,',), '--vary lr: a value is empty'),
        (('act_layer=',), '--vary act_layer: a value is empty'),
        (('lr=1,2', 'lr=3'), '--vary lr: is given twice: give all its values at once'),
        (('batch-size=4', 'batch_size=8'), '--vary batch_size: is given twice'),
        (('lr=1e-3,0.001',), '--vary lr: 0.001 is given twice'),
        (('act_layer=mish,mish',), '--vary act_layer: mish is given twice'),
        (('lr=1,high',), "--lr: 'high' is not a number"),
        (('lr=1,-1',), '--lr: -1 is out of range'),
        (('sched=cosine,cosin',), 'did you mean cosine?'),
        (('epochs=2,3', 'warmup_epochs=2'), 'epochs=2-warmup_epochs=2: --warmup-epochs 2 leaves nothing of --epochs 2'),
        (('drop_rate=0.1,0.2',), 'drop_rate=0.1: --model-kwargs drop_rate: has an option of its own, --drop'),
        (('seed=1,2',), "--vary seed: can't be varied: --seeds N"),
        (('data-dir=a,b',), "--vary data_dir: can't be varied: give --data-dir for all runs"),
        (('device_modules=a.py,b.py',), "can't be varied: give --device-modules for all runs"),
        (('model=vgg11,resnet18',), "there are two runs 'resnet18': a model is given twice"),
        (('block=a/b,a?b',), "there are two runs 'block=a_b'"),
        (('act_layer=mish,' + 'x' * 80,), 'a run is named by at most 80 letters'),
        (('lr=' + ','.join(map(str, range(1, 1100))),), 'more than 1000 runs'),
    ],
)
def test_what_can_not_be_varied_is_one_line(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        planned(*words)
    assert '\n' not in str(caught.value)


def test_one_look_has_the_whole_level_and_needs_three_seeds(tmp_path: Path) -> None:
    study = plan_models(['resnet18', 'resnet34'], Recipe(), 3, one_look=True)
    assert study.stages == ((3, 1.0),)
    file = tmp_path / 'study.yaml'
    file.write_text(dump_study(study))
    assert read_study(file).stages == study.stages, 'more seeds are a change of the stages later'
    with pytest.raises(UserError, match='--one-look: 2 seeds decide nothing: give --seeds 3 or more'):
        plan_models(['resnet18'], Recipe(), 2, one_look=True)
    with pytest.raises(UserError, match='--seeds 99999999999: expected at most 1000'):
        plan_models(['resnet18'], Recipe(), 99999999999)


def test_one_look_needs_runs_to_compare_and_an_end() -> None:
    with pytest.raises(UserError, match='--one-look: nothing to compare: without claims it needs 2 to 6 runs, not 1: '):
        plan_models(['resnet18'], Recipe(), 3, one_look=True)
    assert len(plan_models(['resnet18'], Recipe(), 3, {'lr': [0.1, 0.2]}, one_look=True).runs) == 2
    with pytest.raises(UserError, match='--one-look and --until-decided exclude each other'):
        plan_models(['resnet18', 'resnet34'], Recipe(), 3, one_look=True, until_decided=True)


def test_without_a_model_there_is_no_study() -> None:
    with pytest.raises(UserError, match='no model is named: give one or several'):
        planned('lr=1,2', models=())


def test_the_folder_is_named_by_models_and_keys() -> None:
    assert default_name(['resnet18', 'my_idea:Net'], {'lr': [1], 'act_layer': []}) == 'resnet18+Net-lr+act_layer'
    assert default_name([], {'model': ['vgg11']}) == 'vgg11'
    with pytest.raises(UserError, match='choose one with --experiment NAME'):
        default_name(['m' * LONGEST_NAME], {'lr': []})


def test_a_study_names_code_beside_itself_beside_its_base_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / 'studies'
    folder.mkdir()
    here = tmp_path / 'here'
    here.mkdir()
    monkeypatch.chdir(here)
    (folder / 'beside.py').touch()
    (here / 'mine.py').touch()
    (folder / 'base.yaml').write_text('device_modules: beside.py\n')
    file = folder / 'question.yaml'
    file.write_text('base: base.yaml\ndevice-modules: [mine.py, a.package]\nruns:\n  a:\n')
    study = read_study(file)
    assert study.runs['a'].recipe.device_modules == (str(folder / 'beside.py'), 'mine.py', 'a.package')
    assert 'beside' not in dump_study(study)
    file.write_text('device_modules: {a: b}\nruns:\n  a:\n')
    with pytest.raises(UserError, match=r'question\.yaml:1: --device-modules: '):
        read_study(file)


@pytest.mark.parametrize('jobs', [0, -1, True, 1.5])
def test_a_number_of_jobs_from_python_is_checked(tmp_path: Path, jobs: Any) -> None:
    with pytest.raises(UserError, match='is not a number of trainings from 1 on'):
        Slot(tmp_path, jobs=jobs)
