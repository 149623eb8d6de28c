"""Study files, finished runs as data, and the metrics that claims are about."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imagenette_zoo.config.hparams import BENCHMARK, study_names
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study.analysis import FILES, Analysis, analyse, read_analysis
from imagenette_zoo.study.decisions import judge
from imagenette_zoo.study.metrics import METRICS, metric_of
from imagenette_zoo.study.plan import STAGES, Claim, Comparison, Study, dump_study, find_study, make_study, read_study
from imagenette_zoo.study.records import (
    CHANGES,
    FAILED,
    Record,
    as_run,
    by_run,
    group_runs,
    read_record,
    sample,
    samples_of,
)  # fmt: skip
from imagenette_zoo.study.statistics import pair
from imagenette_zoo.training.result import Result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.console import Console
from tests.conftest import make_folder

RESULTS = Path(__file__).parents[2] / 'docs' / 'results' / 'claims-cpu'

STUDY = """\
title: A question
base: mbv2_mish
options:
  epochs: 3
seeds: [1, 7]
budget: 2
runs:
  plain:
  fast: {lr: 0.01}
  sweep:
    opt: momentum
    grid: {lr: [0.1, 0.2], img-size: [64, 96]}
claims:
  - claim: Faster is better.
    metric: top1
    order: fast > plain
"""


def study_file(folder: Path, text: str) -> Path:
    path = folder / 'question.yaml'
    path.write_text(text)
    return path


# --- Study files ------------------------------------------------------------------------------------------------------


def test_a_study_file(tmp_path: Path) -> None:
    study = read_study(study_file(tmp_path, STUDY))
    assert (study.title, study.seeds, study.budget) == ('A question', (1, 7), 2.0)
    assert list(study.runs) == [
        'plain',
        'fast',
        *(f'sweep-lr={lr}-img_size={side}' for lr in (0.1, 0.2) for side in (64, 96)),
    ]
    plain, fast = study.runs['plain'].recipe, study.runs['fast'].recipe
    assert plain == Recipe.load('mbv2_mish', epochs=3)
    assert fast == plain.replace(lr=0.01)
    assert study.runs['sweep-lr=0.2-img_size=64'].recipe == plain.replace(opt='momentum', lr=0.2, img_size=64)
    assert [trial.name for trial in study.trials()][::6] == ['plain-seed1', 'plain-seed7'], (
        'every run before a 2nd seed'
    )
    assert study.trials()[-1].recipe.seed == 7
    assert study.claims == (
        Claim('claim 1', 'Faster is better.', 'top1', ('fast > plain',), (Comparison('fast', 'plain', 0.0),)),
    )


@pytest.mark.parametrize(
    ('order', 'extra', 'expected'),
    [
        ('fast > plain', '', [('fast', 'plain', 0.0, False)]),
        ('fast < plain', 'by: 2', [('plain', 'fast', 2.0, False)]),
        ('fast >= plain', 'margin: 1', [('fast', 'plain', -1.0, False)]),
        ('fast <= plain', 'margin: 1', [('plain', 'fast', -1.0, False)]),
        ('fast > plain', 'ratio: 1.5', [('fast', 'plain', 1.5, True)]),
        ('fast <= plain', 'ratio: 1.1', [('plain', 'fast', 1 / 1.1, True)]),
        ('[fast > plain, plain < fast]', '', [('fast', 'plain', 0.0, False)]),
    ],
)
def test_the_order_that_a_claim_expects(tmp_path: Path, order: str, extra: str, expected: list[Any]) -> None:
    text = STUDY.replace('order: fast > plain', f'order: {order}\n    {extra}'.rstrip())
    [claim] = read_study(study_file(tmp_path, text)).claims
    assert [(c.larger, c.smaller, c.bound, c.ratio) for c in claim.comparisons] == expected


@pytest.mark.parametrize(
    ('old', 'new', 'line', 'reason'),
    [
        ('epochs: 3', 'epoch: 3', 4, "unknown 'epoch'; did you mean epochs"),
        ('epochs: 3', 'epochs: three', 4, "'three' is not a whole number"),
        ('epochs: 3', 'epochs: 1\n  warmup_epochs: 1', 9, 'plain: --warmup-epochs 1 leaves nothing of --epochs 1'),
        ('fast: {lr: 0.01}', 'fast: {lr: 0.01, lr: 0.02}', 9, "'lr' is given twice"),
        ('epochs: 3', 'seed: 3', 4, 'seed: is not for study files'),
        ('base: mbv2_mish', 'base: mbv3_mish', 2, "no recipe 'mbv3_mish'"),
        ('[1, 7]', '[1, 1]', 5, 'one is given twice'),
        ('[1, 7]', 'many', 5, 'their number or a list'),
        ('budget: 2', 'budget: -2', 6, 'hours are needed'),
        ('fast: {lr: 0.01}', 'fast: {lr: -1}', 9, 'out of range'),
        ('fast: {lr: 0.01}', 'fast/er: {lr: 1}', 9, 'a run is named by'),
        ('fast: {lr: 0.01}', 'f' * 81 + ': {lr: 1}', 9, 'at most 80 letters'),
        ('fast: {lr: 0.01}', 'plain: {lr: 1}', 9, "'plain' is given twice"),
        ('[0.1, 0.2]', '[0.1, high]', 12, "'high' is not a number"),
        ('[0.1, 0.2]', '0.1', 12, 'a list of values is needed'),
        ('metric: top1', 'metric: top-1', 15, "metric: 'top-1' is not one of"),
        ('fast > plain', 'fast > slow', 16, "there is no run 'slow'"),
        ('fast > plain', 'fast plain', 16, 'is not like "a > b"'),
        ('fast > plain', 'fast >= plain', 16, '>= needs a margin'),
        ('fast > plain', 'fast >= plain\n    ratio: 1.1', 16, 'or, with <= instead of >=, a ratio above 1: at most so'),
        ('fast > plain', 'fast <= plain\n    ratio: 0.9', 16, '<= needs a ratio above 1, at most so many times'),
        ('fast > plain', '[fast > plain, fast <= plain]\n    ratio: 2', 16, 'with a ratio all are <=, or none is'),
        ('fast > plain', 'fast > fast', 16, 'compared with itself'),
        ('fast > plain', 'fast > plain\n    margin: 1', 16, 'a margin goes with >= and <='),
        ('    order: fast > plain\n', '', 14, 'a claim needs order'),
        ('metric: top1', 'metric: epochs_to_N', 15, "metric: 'epochs_to_N' is not one of"),
        ('claim: Faster is better.', 'claim:', 14, 'claim: a sentence is needed'),
        ('order: fast > plain', 'order: []', 16, 'order: at least one is needed'),
        ('runs:', 'claims: []\nruns:', 14, "'claims' is given twice"),
        ('title: A question', 'title: &a [*a]', 1, 'not valid YAML'),
        ('title: A question', '- a', 2, 'not valid YAML'),
        ('order: fast > plain', 'order: fast > plain\n    practical: 0', 17, 'practical: a number above 0 is needed'),
        ('metric: top1', 'metric: params\n    practical: 1', 16, 'practical: params is counted, not tested'),
        ('order: fast > plain', 'by: 3\n    practical: 1\n    order: fast > plain', 17, 'practical: by says the same'),
        ('budget: 2', 'stages: 5', 6, 'stages: numbers of blocks are needed, as [5]'),
        ('budget: 2', 'stages: []', 6, 'stages: numbers of blocks are needed, as [5]'),
        ('budget: 2', 'stages: [2, 4]', 6, 'stages: whole numbers from 3 blocks on are needed, each larger'),
        ('budget: 2', 'stages: [5, 4]', 6, 'stages: whole numbers from 3 blocks on are needed, each larger'),
        ('budget: 2', 'stages: [4, 4]', 6, 'stages: whole numbers from 3 blocks on are needed, each larger'),
        ('budget: 2', 'stages: [[4]]', 6, 'stages: whole numbers from 3 blocks on are needed, each larger'),
        ('budget: 2', 'stages: {4: 0.5, 8: 0.6}', 6, 'the shares sum to 1.1: they must sum to 1, the whole level'),
        ('budget: 2', 'stages: {4: 1.5, 8: -0.5}', 6, 'stages: each needs a share of the level above 0'),
        ('budget: 2', 'until_decided: maybe', 6, 'until_decided: true or false is needed'),
        ('order: fast > plain', 'fallback: top1\n    order: fast > plain', 16, 'fallback: goes with epochs_to_N'),
        (
            'metric: top1',
            'metric: epochs_to_50\n    fallback: loss',
            16,
            "fallback: 'loss' is not a metric where more",
        ),
        ('fast: {lr: 0.01}', 'fast: {lr: 0.01, stop_at: top1=90}', 14, 'epochs_to_95: fast ends at stop_at top1=90'),
    ],
)
def test_a_wrong_study_file_is_refused_with_the_line(
    tmp_path: Path, old: str, new: str, line: int, reason: str
) -> None:
    assert old in STUDY
    text = STUDY.replace(old, new, 1)
    if 'stop_at' in new:
        text = text.replace('metric: top1', 'metric: epochs_to_95')
    path = study_file(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        read_study(path)
    assert str(caught.value).startswith(f'{path}:{line}: ')


def test_names_that_nothing_has_are_said_beside_the_other_mistakes_of_a_study(tmp_path: Path) -> None:
    text = STUDY.replace('fast: {lr: 0.01}', 'fast: {model: test_vitt, opt: adamww}').replace('top1', 'top-1')
    path = study_file(tmp_path, text.replace('fast > plain', 'fastt > plane'))
    with pytest.raises(UserError) as caught:
        read_study(path, look_up=True)
    heads = [':15: metric: ', ":16: order: there is no run 'fastt'", ":16: order: there is no run 'plane'"]
    heads += [":9: unknown model 'test_vitt'; did you mean test_vit", ':9: --opt: timm ']
    for line, head in zip(caught.value.lines, heads, strict=True):
        assert line.startswith(f'{path}{head}')


@pytest.mark.parametrize('name', study_names())
def test_the_studies_that_come_with_the_package(name: str) -> None:
    study = read_study(find_study(name))
    assert study.claims or name == BENCHMARK
    for claim in study.claims:
        assert claim.comparisons


def test_words_that_are_empty_are_as_not_given(tmp_path: Path) -> None:
    text = STUDY.replace('title: A question', 'title:\nlimits:').replace('- claim:', '- name:\n    claim:')
    study = read_study(study_file(tmp_path, text))
    assert (study.title, study.limits, study.claims[0].name) == ('question', '', 'claim 1')


def test_a_study_file_that_needs_no_other(tmp_path: Path) -> None:
    text = STUDY.replace('seeds: [1, 7]', 'seeds: [1, 7]\nlimits: Small.')
    text += """  - {name: R, claim: "Yes: it is.", metric: gmacs, order: [fast > plain, plain > fast], ratio: 1.5}
  - {claim: Not worse., metric: top1, order: fast >= plain, margin: 2}
  - {claim: More., metric: top1, order: fast > plain, by: 3e-0}
  - {claim: As fast., metric: step_time, order: fast <= plain, ratio: 1.1}
  - {claim: Nearly., metric: step_time, order: fast <= plain, ratio: 1.3333333333333333}
"""
    study = read_study(study_file(tmp_path, text))
    again = read_study(study_file(tmp_path, dump_study(study)))
    assert again.runs == study.runs
    assert (again.title, again.limits, again.seeds, again.budget) == ('A question', 'Small.', (1, 7), 2.0)
    assert again.claims == study.claims
    assert again.claims[3].comparisons[0].bound == 3.0, 'text in YAML'
    assert 'ratio: 1.1\n' in dump_study(study)
    assert 'base' not in dump_study(study)
    assert 'stages' not in dump_study(study), 'the default'


@pytest.mark.parametrize(
    ('text', 'stages'),
    [
        ('[5]', ((5, 1.0),)),
        ('[4, 8]', ((4, 0.5), (8, 0.5))),
        ('{3: 0.1, 4: 0.2, 10: 0.7}', ((3, 0.1), (4, 0.2), (10, 0.7))),
    ],
)
def test_a_study_says_when_it_is_looked_at_and_what_is_practical(
    tmp_path: Path, text: str, stages: tuple[tuple[int, float], ...]
) -> None:
    changed = STUDY.replace('budget: 2', f'stages: {text}').replace('order:', 'practical: 0.5\n    order:')
    study = read_study(study_file(tmp_path, changed))
    again = read_study(study_file(tmp_path, dump_study(study)))
    assert study.stages == again.stages == stages
    assert study.claims[0].equal_within == again.claims[0].equal_within == 0.5
    plain = read_study(study_file(tmp_path, STUDY))
    assert plain.stages == STAGES
    assert (plain.claims[0].practical, plain.claims[0].equal_within) == (None, 1.0)


def test_a_study_may_go_on_with_the_seeds_that_follow(tmp_path: Path) -> None:
    study = replace(read_study(study_file(tmp_path, STUDY)), until_decided=True)
    assert study.all_seeds == (1, 7, *range(8, 26)), 'up to the last stage'
    again = read_study(study_file(tmp_path, dump_study(study)))
    assert (again.seeds, again.until_decided) == ((1, 7), True)
    assert len(again.trials()) == 20 * len(study.runs)
    (tmp_path / 'study.yaml').write_text(dump_study(study))
    plain = read_study(study_file(tmp_path, STUDY))
    assert not plain.until_decided
    assert as_run(plain, tmp_path).until_decided, 'its folder has the seeds that followed'


# --- Runs as data -----------------------------------------------------------------------------------------------------


def record(top1: list[float], run: str = 'run', seed: int = 1) -> Record:
    """A run with these accuracies, ten seconds an epoch."""
    history = [
        {'epoch': epoch, 'train_loss': 1.0, 'train_seconds': 8.0, 'seconds': 10.0, 'eval_top1': value}
        for epoch, value in enumerate(top1)
    ]
    names = [f'class {number}' for number in range(10)]
    result = Result(
        'model', top1[-1], max(top1), 0, 99.0, 0.5, dict.fromkeys(names, top1[-1]), len(top1), 64, seed, 1000, 0.1,
        {'total': 10.0 * len(top1), 'train': 8.0 * len(top1)}, 100.0, 500.0, {'model': 'model', 'seed': seed},
        {}, {}, {}, '',
    )  # fmt: skip
    return Record(run, Path(f'{run}-{seed}'), result, history, None)


def test_the_time_to_an_accuracy_is_interpolated() -> None:
    run = record([30.0, 50.0, 70.0])
    assert run.metric('epochs_to_60') == pytest.approx(2.5)
    assert run.metric('seconds_to_60') == pytest.approx(25.0)
    assert run.metric('epochs_to_20') == pytest.approx(0.5), 'from a guess, 10 %'
    assert run.metric('epochs_to_70') == pytest.approx(3.0)
    assert run.reach('epochs', 80) == (3.0, False)
    found = sample([run, record([30.0, 90.0, 95.0], seed=2)], 'epochs_to_80')
    assert found is not None
    assert found.values == pytest.approx([math.inf, 1 + 50 / 60])


def test_seeds_are_blocks_in_the_order_of_the_study() -> None:
    runs = [record([value], seed=seed) for seed, value in ((1, 10.0), (2, 20.0), (7, 70.0))]
    upwards = sample(runs, 'top1')
    assert upwards is not None
    assert (upwards.seeds, upwards.values) == ([1, 2, 7], [10.0, 20.0, 70.0])
    found = sample(runs, 'top1', seeds=[7, 5, 3, 1], failed=[3])
    assert found is not None
    assert (found.seeds, found.values, found.lost) == ([7, 3, 1, 2], [70.0, None, 10.0, 20.0], {3}), (
        '5 is not there yet'
    )
    broken = replace(runs[0], result=replace(runs[0].result, loss=math.nan))
    for metric, values in (('top1', [10.0, 20.0]), ('loss', [None, 0.5])):
        diverged = sample([broken, runs[1]], metric)
        assert diverged is not None
        assert (diverged.values, diverged.lost) == (values, {1})
    assert sample(runs, 'gap') is None


def test_a_seed_waits_for_its_analysis_where_others_have_theirs() -> None:
    """Without its answers nothing would be known of how much the images matter, and a verdict would come too soon."""
    names = ('mish-seed1', 'mish-seed2', 'mish-seed3')
    runs = [read_record(RESULTS / name, 'mish') for name in names]
    whole = sample(runs, 'top1')
    found = sample([runs[0], replace(runs[1], analysis=None), runs[2]], 'top1')
    assert whole is not None
    assert whole.correct is not None
    assert found is not None
    assert found.correct is not None
    assert (found.seeds, found.values) == ([1, 3], [whole.values[0], whole.values[2]])
    assert (found.correct == whole.correct[[0, 2]]).all()
    none = sample([replace(each, analysis=None) for each in runs], 'top1')
    assert none is not None
    assert (none.correct, none.seeds) == (None, [1, 2, 3])


def test_the_same_images_are_the_same_wherever_they_lie() -> None:
    """Else nothing would be known of how much they matter, without a word."""
    runs = [read_record(RESULTS / f'mish-seed{seed}', 'mish') for seed in (1, 2, 3)]
    assert all(run.analysis for run in runs)
    moved = [runs[0], *(replace(run, analysis=replace(run.analysis, data='/val')) for run in runs[1:])]  # type: ignore[type-var]
    whole, found = sample(runs, 'top1'), sample(moved, 'top1')
    assert whole is not None
    assert found is not None
    assert found.correct is not None
    assert (found.correct == whole.correct).all()
    pairs = pair(whole, found)
    assert pairs.correct is not None
    others = replace(runs[1].analysis, targets=runs[1].analysis.targets.flip(0))  # type: ignore[union-attr, type-var]
    with pytest.raises(UserError, match='their analyses are of unlike images'):
        sample([runs[0], replace(runs[1], analysis=others)], 'top1')


def test_times_know_their_machine() -> None:
    run = record([50.0])
    run = replace(run, result=replace(run.result, hardware={'threads': 2}))
    found = sample([run], 'train_seconds')
    assert found is not None
    assert found.hardware == [{'threads': 2}]
    assert {name for name, metric in METRICS.items() if metric.timed} == {
        'step_time', 'images_per_second', 'train_seconds', 'total_seconds', 'peak_memory_mib',
    }  # fmt: skip
    assert metric_of('seconds_to_85').timed
    assert not metric_of('epochs_to_85').timed
    assert metric_of('epochs_to_85').label == 'epochs to 85 %'


def test_every_metric_is_read_from_a_record() -> None:
    run = record([30.0, 70.0, 50.0])
    of_the_analysis = {'gap': 10.0, 'calibration_error': 4.5, 'shift_consistency': 90.0, 'pass_similarity': 0.25}
    expected = {
        'top1': 50.0, 'best_top1': 70.0, 'top5': 99.0, 'loss': 0.5, **of_the_analysis, 'images_per_second': 100.0,
        'step_time': None,
        'train_seconds': 24.0, 'total_seconds': 30.0, 'peak_memory_mib': 500.0, 'params': 1000.0, 'gmacs': 0.1,
    }  # fmt: skip
    analysis: Any = SimpleNamespace(top1=50.0, train_top1=60.0, **of_the_analysis)
    assert {name: replace(run, analysis=analysis).metric(name) for name in METRICS} == expected
    unknown = dict.fromkeys(of_the_analysis)
    assert {name: run.metric(name) for name in METRICS} == {**expected, **unknown}
    assert {name for name, metric in METRICS.items() if metric.exact} == {'params', 'gmacs'}


@pytest.mark.long
@pytest.mark.slow
def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    options = dict(epochs=1, warmup_epochs=0)
    folders = [
        train(recipe(experiment=name, **options, **own), quiet=True).folder
        for name, own in {
            'a': {'seed': 1, 'checkpoint_hist': 1}, 'b': {'seed': 2}, 'c': {'seed': 1, 'lr': 0.5},
            'd': {'seed': 1, 'model': 'test_vit'}, 'e': {'seed': 1, 'lr': 0.5, 'nan': 'skip'},
        }.items()
    ]  # fmt: skip
    found = group_runs(folders)
    assert {run: [each.seed for each in records] for run, records in by_run(found).items()} == {
        'test_resnet lr=0.01': [1, 2], 'c': [1], 'e': [1], 'd': [1],
    }  # fmt: skip
    with pytest.raises(UserError, match='the same run with the same seed'):
        group_runs([folders[0], folders[0].parent / '..' / folders[0].parent.name / 'a'])
    file = folders[1] / 'result.json'
    result = json.loads(file.read_text())
    del result['recipe']['cuda_graph']  # as of a version before there was the option
    file.write_text(json.dumps(result))
    assert len(by_run(group_runs(folders[:2]))) == 1


def write_run(folder: Path, **changes: Any) -> Path:
    """The files of a run that was never trained."""
    folder.mkdir(parents=True)
    result = replace(record([50.0]).result, **changes)
    (folder / 'result.json').write_text(json.dumps(result.as_json()))
    (folder / 'metrics.jsonl').write_text('')
    return folder


def test_runs_with_other_code_are_other_runs(tmp_path: Path) -> None:
    codes: list[dict[str, str]] = [{'idea.py': 'a' * 64}, {'idea.py': 'b' * 64}, {}]
    folders = [
        write_run(tmp_path / f'{name}{number}', code=code, seed=seed)
        for number, code in enumerate(codes)
        for seed, name in enumerate('xy')
    ]
    names = [f'model code=idea.py {letter * 12}' for letter in 'ab'] + ['model']
    assert [each.run for each in group_runs(folders)] == [name for name in names for _ in range(2)]


def test_a_run_has_the_name_of_its_folders_where_they_agree(tmp_path: Path) -> None:
    ways: list[dict[str, Any]] = [{'recipe': {'lr': lr}} for lr in (0.1, 0.2, 0.3)]
    folders = {
        'mish-seed1': {'seed': 1, **ways[0]}, 'mish-seed2': {'seed': 2, **ways[0]}, 'relu': {'seed': 1, **ways[1]},
        'more/relu-seed3': {'seed': 3, **ways[2]},
    }  # fmt: skip
    found = group_runs([write_run(tmp_path / 'runs' / name, **changes) for name, changes in folders.items()])
    assert [(each.run, each.seed) for each in found] == [
        ('mish', 1), ('mish', 2), ('runs/relu', 1), ('more/relu', 3),
    ]  # fmt: skip
    models: dict[str, dict[str, Any]] = {'1-x': {'model': 'a'}, '2-x': {'model': 'a', 'seed': 2}, 'a': {'model': 'b'}}
    changes = {name: {**own, 'recipe': {'model': own['model']}} for name, own in models.items()}
    found = group_runs([write_run(tmp_path / 'own' / name, **each) for name, each in changes.items()])
    assert [each.run for each in found] == ['a', 'a', 'b'], 'a folder has the name of another model'


@pytest.mark.slow
def test_runs_on_other_images_are_other_runs(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    other = make_folder(tmp_path / 'flowers')
    folders = [
        train(recipe(experiment=name, epochs=1, **own), quiet=True).folder
        for name, own in {'a': {}, 'b': {'data_dir': str(other)}}.items()
    ]
    assert len(by_run(group_runs(folders))) == 2


def test_the_analysis_of_a_run(recipe: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    run = train(recipe(epochs=2, warmup_epochs=0, experiment='looked-at'), quiet=True)
    assert read_analysis(run.folder) is None
    made = analyse(run.folder, Console(quiet=True))
    found = read_analysis(run.folder)
    assert isinstance(found, Analysis)
    assert found.top1 == made.top1 == run.top1
    assert 100 * found.correct.double().mean().item() == pytest.approx(run.top1)
    assert torch.equal(found.predictions, made.predictions)
    assert sum(map(sum, found.confusion)) == len(found.targets) == 12
    right = found.correct
    assert torch.equal(found.confidence[right], found.true_probability[right])
    assert bool((found.confidence[~right] >= found.true_probability[~right]).all())
    whole = read_record(run.folder, 'name')
    assert whole.metric('gap') == pytest.approx(found.train_top1 - run.top1)
    assert whole.metric('pass_similarity') is None

    path = run.folder / 'analysis.json'
    values = json.loads(path.read_text())
    for damage in ({'top1': 'high'}, {'confusion': [[1]]}, {'class_names': []}, {'more': 1}, {'passes': [{}]}):
        path.write_text(json.dumps({**values, **damage}))
        with pytest.raises(UserError, match='not the analysis of a run'):
            read_analysis(run.folder)
    path.write_text(json.dumps(values))
    (run.folder / 'predictions.safetensors').write_bytes(b'torn')
    with pytest.raises(UserError, match='not the analysis of a run'):
        read_analysis(run.folder)


def test_other_images_than_those_of_the_run_are_not_analysed(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    run = train(recipe(epochs=1), quiet=True).folder
    other = make_folder(tmp_path / 'other', val=5)
    with pytest.raises(UserError, match=r'has 15 validation images, .* validated on 12: give the former --data-dir'):
        analyse(run, Console(quiet=True), str(other))
    assert read_analysis(run) is None


def test_the_analysis_is_overwritten_with_its_run(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    for name in (*FILES, 'notes.txt'):
        (tmp_path / name).touch()
    run = RunFolder(tmp_path)
    run.start(recipe(overwrite=True))
    run.unlock()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith('.')} == {'args.yaml', 'notes.txt'}


def test_accuracies_are_compared_over_the_same_images(recipe: Callable[..., Recipe]) -> None:
    """The samples of a claim about top-1 hold each image's answers."""
    base = record([50.0])
    count = 40

    def looked_at(run: str, seed: int, right: int) -> Record:
        targets = torch.zeros(count, dtype=torch.int16)
        predictions = (torch.arange(count) >= right).to(torch.int16)
        share = 100 * right / count
        analysis = Analysis(
            share, share, 1, 0.0, 0.0, ['a', 'b'], [[right, count - right], [0, 0]], [], '', targets, predictions,
            torch.ones(count).half(), torch.ones(count).half(),
        )  # fmt: skip
        return replace(base, run=run, result=replace(base.result, seed=seed), analysis=analysis)

    records = [looked_at('a', seed, 30 + seed) for seed in (0, 1, 2)]
    records += [looked_at('b', seed, 10 + 2 * seed) for seed in (0, 1, 2)]
    claim = Claim('', '', 'top1', (), (Comparison('a', 'b', 0.0),))
    plan = Study('', {}, (0, 1, 2), (claim,))
    samples = samples_of(plan, by_run(records))
    assert samples['top1', 'a'].values == [75.0, 77.5, 80.0]
    correct = samples['top1', 'a'].correct
    assert correct is not None
    assert correct.sum(1).tolist() == [30, 31, 32]
    assert judge([claim], samples, ((3, 1.0),))[0].verdict == 'supported'
    failed = samples_of(replace(plan, failed={'a': frozenset({3})}), by_run(records))['top1', 'a']
    assert (failed.values[-1], failed.lost) == (None, {3})
    assert failed.correct is not None
    assert failed.correct.shape == (4, 40)


def test_the_seeds_that_failed_are_those_that_are_recorded_and_not_done_since(tmp_path: Path) -> None:
    study = make_study('', {'a': Recipe(), 'b': Recipe()}, (1, 2, 3))
    assert as_run(study, tmp_path) == study
    (tmp_path / FAILED).write_text(json.dumps({'a-seed1': 'no memory', 'a-seed2': 'no disk', 'c-seed1': ''}))
    (tmp_path / 'a-seed2').mkdir()
    (tmp_path / 'a-seed2' / 'result.json').write_text('{}')
    assert as_run(study, tmp_path).failed == {'a': {1}}
    for text in ('[', '[]', '{"a-seed1": 3}', '[["a-seed1", "x"]]'):
        (tmp_path / FAILED).write_text(text)
        with pytest.raises(UserError, match='not the failures of a study'):
            as_run(study, tmp_path)
    (tmp_path / FAILED).unlink()
    for text in ('"abc"', '{"a": 1}', '[1]'):
        (tmp_path / CHANGES).write_text(text)
        with pytest.raises(UserError, match='not the changes of a study'):
            as_run(study, tmp_path)


def test_seeds_that_follow_are_seeds() -> None:
    study = replace(make_study('', {'a': Recipe()}, (2**32 - 1, 1)), until_decided=True)
    assert study.all_seeds[:4] == (2**32 - 1, 1, 0, 2)
    assert len(study.all_seeds) == len(set(study.all_seeds)) == 20
    assert all(trial.recipe.seed == trial.seed for trial in study.trials())
