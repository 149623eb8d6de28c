"""Study files, the statistics of their claims, and the metrics these are about."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imagenette_zoo.config.hparams import study_names
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study.analysis import FILES, Analysis, analyse, read_analysis
from imagenette_zoo.study.metrics import METRICS
from imagenette_zoo.study.plan import Claim, Comparison, dump_study, find_study, read_study
from imagenette_zoo.study.records import Record, by_run, group_runs, read_record, sample, samples_of
from imagenette_zoo.study.statistics import Sample, compare, interval, judge
from imagenette_zoo.training.result import Result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.console import Console
from tests.conftest import make_folder

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
        ('[fast > plain, plain < fast]', '', [('fast', 'plain', 0.0, False)] * 2),
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
        ('epochs: 3', 'epochs: 1', 8, 'plain: --warmup-epochs 1 leaves nothing of --epochs 1'),
        ('epochs: 3', 'seed: 3', 4, 'seed: not of a study'),
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
        ('fast > plain', 'fast > fast', 16, 'compared with itself'),
        ('fast > plain', 'fast > plain\n    margin: 1', 16, 'a margin goes with >= and <='),
        ('    order: fast > plain\n', '', 14, 'a claim needs order'),
        ('metric: top1', 'metric: epochs_to_N', 15, "metric: 'epochs_to_N' is not one of"),
        ('claim: Faster is better.', 'claim:', 14, 'claim: a sentence is needed'),
        ('order: fast > plain', 'order: []', 16, 'order: at least one is needed'),
        ('runs:', 'claims: []\nruns:', 14, "'claims' is given twice"),
        ('title: A question', 'title: &a [*a]', 1, 'not valid YAML'),
        ('title: A question', '- a', 2, 'not valid YAML'),
    ],
)
def test_a_wrong_study_file_is_refused_with_the_line(
    tmp_path: Path, old: str, new: str, line: int, reason: str
) -> None:
    assert old in STUDY
    path = study_file(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        read_study(path)
    assert str(caught.value).startswith(f'{path}:{line}: ')


@pytest.mark.parametrize('name', study_names())
def test_the_studies_that_come_with_the_package(name: str) -> None:
    study = read_study(find_study(name))
    assert study.claims
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
"""
    study = read_study(study_file(tmp_path, text))
    again = read_study(study_file(tmp_path, dump_study(study)))
    assert again.runs == study.runs
    assert (again.title, again.limits, again.seeds, again.budget) == ('A question', 'Small.', (1, 7), 2.0)
    assert again.claims == study.claims
    assert again.claims[-1].comparisons[0].bound == 3.0, 'text in YAML'
    assert 'base' not in dump_study(study)


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    found = interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(4.302653 * 1.527525 / 3**0.5, rel=1e-6)  # the 97.5 % point for two degrees
    assert interval([3.0]).half is None


def test_seeds_alone_have_banerjees_interval() -> None:
    first, second = [80.1, 81.0, 80.4], [78.0, 79.9]
    found = compare(Comparison('a', 'b', 0.5), Sample(first), Sample(second))
    widths = [interval(values).half or 0 for values in (first, second)]
    assert found.effect == pytest.approx(1.55)
    assert (found.high or 0) - 1.55 == pytest.approx(1.55 - (found.low or 0)) == pytest.approx(np.hypot(*widths))
    ratio = compare(Comparison('a', 'b', 1.5, ratio=True), Sample([20.0, 22.0]), Sample([10.0, 11.0]))
    assert ratio.effect == pytest.approx(2.0)
    assert ratio.holds


def test_p_is_the_level_whose_interval_ends_at_the_bound() -> None:
    """As Student's, where only one run has a spread; never 0."""
    from scipy import stats

    spread = [1.0, 1.3, 0.9]
    for bound in (0.9, 0.5, 1.2, -1e6):
        found = compare(Comparison('a', 'b', bound), Sample(spread), Sample([0.0, 0.0]))
        assert found.p == pytest.approx(stats.ttest_1samp(spread, bound).pvalue, rel=1e-5)
        assert found.p > 0


def trained(
    random: np.random.Generator, easiness: np.ndarray, seeds: int, level: float, seed_deviation: float = 0.04
) -> Sample:
    """Right and wrong answers of a model: images are easy or hard to all models and to this one, seeds good or bad."""
    own = random.normal(0, 1, len(easiness))
    logits = level + easiness + own + random.normal(0, seed_deviation, (seeds, 1))
    correct = random.random((seeds, len(easiness))) < 1 / (1 + np.exp(-logits))
    return Sample(100 * correct.mean(1), correct)


@pytest.mark.slow
@pytest.mark.parametrize('seeds', [2, 3, 5])
def test_without_an_effect_few_claims_are_decided(seeds: int) -> None:
    """At most 5 %, other images and other seeds each time."""
    random = np.random.default_rng(seeds)
    decided = 0
    claim = Claim('', '', 'top1', (), (Comparison('a', 'b', 0.0),))
    for _ in range(400):
        easiness = random.normal(1.5, 2.5, 400)
        samples = {('top1', run): trained(random, easiness, seeds, 0.0) for run in 'ab'}
        decided += judge([claim], samples)[0].verdict != 'undecided'
    assert decided <= 0.05 * 400


@pytest.mark.slow
@pytest.mark.parametrize('metric', ['loss', 'top1'])
def test_chance_decides_a_claim_in_one_study_of_twenty_at_most(metric: str) -> None:
    """Fourteen claims without an effect; Welch's degrees of freedom decide one in 10 and 24 of 40 studies."""
    random = np.random.default_rng(0)
    claims = [Claim('', '', metric, (), (Comparison(f'{i}a', f'{i}b', 0.0),)) for i in range(14)]
    wrong = 0
    for _ in range(40):
        easiness = random.normal(1.5, 2.5, 2000)
        samples = {
            (metric, f'{i}{run}'): trained(random, easiness, 2, 0.0, 0.3)
            if metric == 'top1'
            else Sample(list(random.normal(80, *((0.2, 5) if run == 'a' else (2.0, 2)))))
            for i in range(14)
            for run in 'ab'
        }
        wrong += any(verdict.verdict != 'undecided' for verdict in judge(claims, samples))
    assert wrong <= 6  # of 5 % in one case of 300 more


def test_an_effect_of_two_points_is_found_with_five_seeds() -> None:
    random = np.random.default_rng(0)
    claim = Claim('', '', 'top1', (), (Comparison('a', 'b', 0.0),))
    verdicts, effects = [], []
    for _ in range(100):
        easiness = random.normal(1.5, 2.5, 3925)
        samples = {('top1', run): trained(random, easiness, 5, level) for run, level in (('a', 0.185), ('b', 0.0))}
        [verdict] = judge([claim], samples)
        verdicts.append(verdict.verdict)
        effects.append(verdict.findings[0].effect)
    assert 1.8 < np.mean(effects) < 2.1
    assert verdicts.count('supported') >= 80
    assert 'contradicted' not in verdicts


def test_more_images_do_not_stand_in_for_seeds_nor_seeds_for_images() -> None:
    """Equal answers of all seeds leave the images, equal accuracies of all images leave the seeds."""
    random = np.random.default_rng(0)
    row = random.random(200) < 0.8
    other = row.copy()
    other[:3] = ~other[:3]
    same = compare(
        Comparison('a', 'b', 0.0), Sample([80.0] * 5, np.stack([row] * 5)), Sample([81.0] * 5, np.stack([other] * 5))
    )
    assert same.p > 0.05
    assert same.more_seeds is None, 'no number of seeds would do'
    spread = Sample([70.0, 90.0]), Sample([65.0, 84.0])
    assert compare(Comparison('a', 'b', 0.0), *spread).p > 0.05
    assert (compare(Comparison('a', 'b', 0.0), *spread).more_seeds or 0) > 5


def verdicts_of(*groups: list[tuple[list[float], list[float]]]) -> list[str]:
    """A claim for each group, that the first of each pair is larger than the second."""
    samples, claims = {}, []
    for number, pairs in enumerate(groups):
        comparisons = []
        for index, (first, second) in enumerate(pairs):
            names = f'{number}{index}a', f'{number}{index}b'
            comparisons.append(Comparison(*names, 0.0))
            samples.update(
                {('loss', name): Sample(values) for name, values in zip(names, (first, second), strict=True)}
            )
        claims.append(Claim(str(number), '', 'loss', (), tuple(comparisons)))
    return [verdict.verdict for verdict in judge(claims, samples)]


HIGH, LOW, NEAR = [5.0, 5.1, 4.9, 5.05], [1.0, 1.1, 0.9, 1.05], [1.0, 1.2, 0.8, 1.1]


def test_a_claim_needs_all_of_its_comparisons() -> None:
    assert verdicts_of([(HIGH, LOW)]) == ['supported']
    assert verdicts_of([(LOW, HIGH)]) == ['contradicted']
    assert verdicts_of([(HIGH, LOW), (HIGH, NEAR)]) == ['supported']
    assert verdicts_of([(HIGH, LOW), (NEAR, LOW)]) == ['undecided']
    assert verdicts_of([(HIGH, LOW), (LOW, HIGH)]) == ['contradicted']


def test_holms_correction_is_over_the_claims_of_the_study() -> None:
    weak = ([1.4, 1.7, 1.3], [0.6, 0.8, 0.5])
    p = compare(Comparison('a', 'b', 0.0), *map(Sample, weak)).p
    assert 0.025 < p < 0.05
    assert verdicts_of([weak]) == ['supported']
    assert verdicts_of([weak], [weak]) == ['undecided', 'undecided']
    assert verdicts_of([weak], [(HIGH, LOW)]) == ['supported', 'supported'], 'the stronger one is out of the way'


def test_how_many_seeds_would_decide() -> None:
    """Simulated with as many seeds, most studies are decided; with half of them few are."""
    random = np.random.default_rng(1)
    pilot = Sample([80.0, 81.0, 82.0]), Sample([79.0, 80.0, 81.0])
    claim = Claim('', '', 'loss', (), (Comparison('a', 'b', 0.0),))
    [verdict] = judge([claim], {('loss', run): sample for run, sample in zip('ab', pilot, strict=True)})
    assert verdict.more_seeds is not None

    def decided(seeds: int) -> float:
        found = [
            compare(claim.comparisons[0], *(Sample(list(random.normal(mean, 1, seeds))) for mean in (81, 80))).p < 0.05
            for _ in range(200)
        ]
        return sum(found) / len(found)

    assert 0.7 < decided(3 + verdict.more_seeds) < 0.95
    assert decided((3 + verdict.more_seeds) // 3) < 0.6
    against = Comparison('b', 'a', 0.0), Comparison('b', 'c', 0.0)
    samples = {('loss', run): sample for run, sample in zip('abc', (*pilot, pilot[0]), strict=True)}
    [two] = judge([Claim('', '', 'loss', (), against)], samples)
    assert (two.more_seeds or 0) > verdict.more_seeds, 'either of two would do, each is tested more strictly'


def test_ratios_of_accuracies_are_of_these_images_too() -> None:
    random = np.random.default_rng(0)
    easiness = random.normal(1.5, 2.5, 400)
    first, second = (trained(random, easiness, 5, level) for level in (0.3, 0.0))
    ratio, difference = Comparison('a', 'b', 1.01, ratio=True), Comparison('a', 'b', np.mean(second.values) / 100)
    found = compare(ratio, first, second).p
    assert found == pytest.approx(compare(difference, first, second).p, rel=0.1)
    assert found > 1.3 * compare(ratio, Sample(first.values), Sample(second.values)).p


def test_seeds_also_average_out_what_chance_adds_to_answers() -> None:
    """Of two models that are right by chance only, all images alike: more seeds decide what 400 images would not."""
    random = np.random.default_rng(0)
    comparison = Comparison('a', 'b', 0.0)

    def samples(seeds: int) -> list[Sample]:
        answers = [random.random((seeds, 400)) < level for level in (0.82, 0.80)]
        return [Sample(100 * correct.mean(1), correct) for correct in answers]

    asked = [found.more_seeds for found in (compare(comparison, *samples(4)) for _ in range(50)) if found.p > 0.05]
    assert np.mean([more is not None for more in asked]) > 0.8
    middle = int(np.median([more for more in asked if more is not None]))
    assert sum(compare(comparison, *samples(4 + middle)).p < 0.05 for _ in range(50)) > 25


def test_what_can_not_be_judged_is_undecided() -> None:
    comparison = Comparison('a', 'b', 0.0)
    assert compare(comparison, None, Sample([1.0])).note == 'nothing is known of a'
    one = compare(comparison, Sample([1.0]), Sample([2.0, 2.1]))
    assert (one.p, one.more_seeds) == (1.0, 1)
    assert compare(comparison, Sample([1.0, 1.0]), Sample([2.0, 2.0])).p == 1.0, 'equal seeds prove nothing'
    equal = Sample([80.1] * 6), Sample([80.09] * 6)
    assert compare(comparison, *equal).p == 1.0, 'rounding is no spread'
    never = compare(comparison, Sample([5.0] * 3, note='none got there'), Sample([5.0] * 3))
    assert never.note == 'the seeds do not differ: no test; none got there'


@pytest.mark.parametrize(
    ('first', 'second', 'bound', 'ratio', 'holds'),
    [
        (2.0, 1.0, 0.0, False, True),
        (1.0, 1.0, 0.0, False, False),
        (1.0, 1.0, -0.5, False, True),
        (2e6, 1e6, 2.0, True, False),
        (1.1e6, 1e6, 1.1, True, False),
        (14.1, 7.0, 2.0, True, True),
    ],
)
def test_what_is_counted_is_certain(first: float, second: float, bound: float, ratio: bool, holds: bool) -> None:
    samples = Sample([first], exact=True), Sample([second], exact=True)
    found = compare(Comparison('a', 'b', bound, ratio), *samples)
    assert (found.p, found.holds) == (0.0, holds)


@pytest.mark.parametrize(
    ('larger', 'smaller', 'bound', 'decided'),
    [
        (Sample([8.0, 8.0, 8.0], bounds=True), Sample([7.8, 7.9, 7.8]), 1.0, False),  # the difference may be larger
        (Sample([8.0, 8.0, 8.0], bounds=True), Sample([6.4, 6.5, 6.6]), 2.0, False),
        (Sample([8.0, 8.0, 8.0], bounds=True), Sample([4.4, 4.5, 4.6]), 2.0, True),  # and so it is more than enough
        (Sample([150.0, 151.0, 149.0]), Sample([100.0, 100.0, 100.0], bounds=True), 0.0, False),
        (Sample([50.0, 51.0, 49.0]), Sample([100.0, 100.0, 100.0], bounds=True), 0.0, True),
    ],
)
def test_a_threshold_that_was_not_reached_decides_one_way_only(
    larger: Sample, smaller: Sample, bound: float, decided: bool
) -> None:
    found = compare(Comparison('a', 'b', bound), larger, smaller)
    assert (found.p < 0.05) is decided


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
    found = sample([run, record([30.0, 90.0, 95.0])], 'epochs_to_80')
    assert found is not None
    assert found.note == 'run: 1 of 2 did not reach 80 %, they count as the end'


def test_every_metric_is_read_from_a_record() -> None:
    run = record([30.0, 70.0, 50.0])
    of_the_analysis = {'gap': 10.0, 'calibration_error': 4.5, 'shift_consistency': 90.0, 'pass_similarity': 0.25}
    expected = {
        'top1': 50.0, 'best_top1': 70.0, 'top5': 99.0, 'loss': 0.5, **of_the_analysis, 'images_per_second': 100.0,
        'train_seconds': 24.0, 'total_seconds': 30.0, 'peak_memory_mib': 500.0, 'params': 1000.0, 'gmacs': 0.1,
    }  # fmt: skip
    analysis: Any = SimpleNamespace(top1=50.0, train_top1=60.0, **of_the_analysis)
    assert {name: replace(run, analysis=analysis).metric(name) for name in METRICS} == expected
    unknown = dict.fromkeys(of_the_analysis)
    assert {name: run.metric(name) for name in METRICS} == {**expected, **unknown}
    assert {name for name, metric in METRICS.items() if metric.exact} == {'params', 'gmacs'}


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
        'test_resnet lr=0.01': [1, 2], 'test_resnet lr=0.5': [1], 'test_resnet lr=0.5 nan=skip': [1], 'test_vit': [1],
    }  # fmt: skip
    with pytest.raises(UserError, match='the same run with the same seed'):
        group_runs([folders[0], folders[0].parent / '..' / folders[0].parent.name / 'a'])
    file = folders[1] / 'result.json'
    result = json.loads(file.read_text())
    del result['recipe']['cuda_graph']  # as of a version before there was the option
    file.write_text(json.dumps(result))
    assert len(by_run(group_runs(folders[:2]))) == 1


def test_runs_with_other_code_are_other_runs(tmp_path: Path) -> None:
    codes: dict[str, dict[str, str]] = {'a': {'idea.py': 'a' * 64}, 'b': {'idea.py': 'b' * 64}, 'c': {}}
    for name, code in codes.items():
        (tmp_path / name).mkdir()
        result = replace(record([50.0]).result, code=code)
        (tmp_path / name / 'result.json').write_text(json.dumps(result.as_json()))
        (tmp_path / name / 'metrics.jsonl').write_text('')
    found = group_runs([tmp_path / name for name in codes])
    assert [each.run for each in found] == [f'model code=idea.py {letter * 12}' for letter in 'ab'] + ['model']


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

    records = [looked_at('a', 1, 30), looked_at('a', 2, 31), looked_at('b', 1, 10), looked_at('b', 2, 11)]
    claim = Claim('', '', 'top1', (), (Comparison('a', 'b', 0.0),))
    samples = samples_of([claim], by_run(records))
    assert samples['top1', 'a'].values == [75.0, 77.5]
    correct = samples['top1', 'a'].correct
    assert correct is not None
    assert correct.sum(1).tolist() == [30, 31]
    assert judge([claim], samples)[0].verdict == 'supported'
