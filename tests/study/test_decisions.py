"""Verdicts on claims: what decides them, what is shown of them, and what they say."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenette_zoo.study.decisions import Verdict, all_pairs, judge
from imagenette_zoo.study.plan import STAGES, Claim, Comparison, read_study
from imagenette_zoo.study.records import as_run, by_run, samples_of, study_records
from imagenette_zoo.study.sentences import sentence
from imagenette_zoo.study.statistics import LEVEL, Sample, holm

stats = pytest.importorskip('scipy.stats')

RESULTS = Path(__file__).parents[2] / 'docs' / 'results' / 'claims-cpu'
ONE_LOOK = ((4, 1.0),)
Values = list[Any]


def claim(metric: str = 'loss', bound: float = 0.0, *, ratio: bool = False, practical: float | None = None) -> Claim:
    return Claim('', '', metric, (), (Comparison('a', 'b', bound, ratio),), practical)


def judged(each: Claim, a: Sample | Values, b: Sample | Values, stages: Any = STAGES, **options: Any) -> Verdict:
    """The verdict on a claim by itself."""
    samples = {
        (each.metric, run): values if isinstance(values, Sample) else Sample(values)
        for run, values in (('a', a), ('b', b))
    }
    return judge([each], samples, stages, **options)[0]


def around(mean: float, blocks: int, spread: float = 0.1, seed: int = 0) -> list[float]:
    """Normal numbers whose mean and standard deviation are exactly these."""
    numbers = np.random.default_rng(seed).standard_normal(blocks)
    return list(mean + spread * (numbers - numbers.mean()) / numbers.std(ddof=1))


def paired(difference: float, blocks: int, spread: float = 0.1) -> tuple[list[float], list[float]]:
    """Two runs whose differences have exactly this mean and deviation."""
    other = around(1.0, blocks, 0.7, seed=1)
    return [x + y for x, y in zip(around(difference, blocks, spread), other, strict=True)], other


# --- What decides -----------------------------------------------------------------------------------------------------


def test_the_p_value_of_a_claim_is_the_least_of_its_looks_over_their_shares() -> None:
    a, b = paired(0.3, 5)
    p = [stats.ttest_rel(a[:blocks], b[:blocks]).pvalue for blocks in (3, 4, 5)]
    found = judged(claim(), a, b)
    assert found.p == pytest.approx(min(p[0] / 0.10, p[1] / 0.15, p[2] / 0.15))
    assert judged(claim(), a, b, ((5, 1.0),)).p == pytest.approx(p[2])
    assert judged(claim(), a[:4], b, ((5, 1.0),)).p == 1.0, 'the fifth block is not there'


@pytest.mark.parametrize(
    ('bound', 'ratio', 'sides'), [(0.0, False, 2), (0.2, False, 1), (-0.2, False, 1), (1.1, True, 1), (1.0, True, 2)]
)
def test_a_claim_with_a_bound_is_tested_on_one_side(bound: float, ratio: bool, sides: int) -> None:
    a, b = paired(0.3, 4)
    a, b = [each + 10 for each in a], [each + 10 for each in b]
    differences = np.log(a) - np.log(b) - math.log(bound) if ratio else np.subtract(a, b) - bound
    one_sided = stats.ttest_1samp(differences, 0, alternative='greater').pvalue
    assert judged(claim(bound=bound, ratio=ratio), a, b, ONE_LOOK).p == pytest.approx(
        sides * min(one_sided, 1 - one_sided)
    )


def test_a_verdict_stays_where_a_seed_that_failed_is_done_later() -> None:
    """Looks were made without it, so it counts after all others."""
    a, b = [10.0, 10.2, 10.1, 9.9], [0.0, None, 0.0, 0.1]
    seeds = (1, 2, 3, 4)
    before = judged(claim('top1'), Sample(a, seeds), Sample(b, seeds))
    assert (before.verdict, before.stage) == ('supported', 3)
    again = [8.0 if value is None else value for value in b]
    after = judged(claim('top1'), Sample(a, seeds), Sample(again, seeds, late=frozenset({2})))
    assert (after.verdict, after.stage, after.estimate, after.blocks) == ('supported', 3, before.estimate, 4)
    assert judged(claim('top1'), Sample(a, seeds), Sample(again, seeds)).verdict == 'undecided', 'else it would not'


def test_blocks_between_stages_and_after_the_last_do_not_count() -> None:
    a, b = paired(0.3, 7)
    seven, six = judged(claim(), a, b), judged(claim(), a[:6], b[:6])
    assert (seven.p, seven.estimate, seven.stage, seven.blocks) == (six.p, six.estimate, 6, 7)
    after = judged(claim(), a, b, ((5, 1.0),))
    assert (after.stage, after.note) == (5, 'blocks after the last stage, 5, do not count')


def test_a_verdict_stays_whatever_comes_after_it() -> None:
    a, b = paired(1.0, 4)
    assert judged(claim(), a, b).verdict == 'supported'
    later = judged(claim(), [*a, 0.0, 9.0], [*b, 9.0, 0.0])
    assert (later.verdict, later.stage) == ('supported', judged(claim(), a, b).stage)


def of_pairs(*groups: list[tuple[Values, Values]], metric: str = 'loss', stages: Any = ONE_LOOK) -> list[Verdict]:
    """A claim for each group, that the first of each pair is larger than the second."""
    samples, claims = {}, []
    for number, pairs in enumerate(groups):
        comparisons = [Comparison(f'{number}{index}a', f'{number}{index}b', 0.0) for index in range(len(pairs))]
        for each, both in zip(comparisons, pairs, strict=True):
            samples[metric, each.larger], samples[metric, each.smaller] = map(Sample, both)
        claims.append(Claim(str(number), '', metric, (), tuple(comparisons)))
    return judge(claims, samples, stages)


UP, DOWN, FLAT = paired(1.0, 4), paired(-1.0, 4), paired(0.02, 4)


def test_a_claim_needs_all_of_its_comparisons() -> None:
    cases = [[UP], [DOWN], [UP, UP], [UP, FLAT], [UP, DOWN], [DOWN, FLAT]]
    expected = ['supported', 'contradicted', 'supported', 'undecided', 'contradicted', 'contradicted']
    assert [of_pairs(case)[0].verdict for case in cases] == expected
    assert of_pairs([UP, FLAT])[0].finding.estimate == pytest.approx(0.02), 'that which keeps it open'
    assert of_pairs([UP, DOWN])[0].finding.estimate == pytest.approx(-1.0), 'that which decides'


def test_comparisons_of_a_claim_may_have_different_numbers_of_blocks() -> None:
    few, many = paired(1.0, 4), paired(0.3, 10)
    claims = [Claim('', '', 'loss', (), (Comparison('a', 'b', 0.0), Comparison('c', 'd', 0.0)))]
    samples = {('loss', run): Sample(values) for run, values in zip('abcd', (*few, *many), strict=True)}
    [found] = judge(claims, samples)
    assert [each.blocks for each in found.findings] == [4, 10]
    assert found.verdict == 'supported'


def test_holms_correction_is_over_the_claims_of_the_study() -> None:
    weak = paired(0.2, 4)
    p = stats.ttest_rel(*weak).pvalue
    assert 0.025 < p < 0.05
    assert [each.verdict for each in of_pairs([weak])] == ['supported']
    assert [each.verdict for each in of_pairs([weak], [weak])] == ['undecided', 'undecided']
    both = of_pairs([weak], [UP])
    assert [each.verdict for each in both] == ['supported', 'supported'], 'the stronger one is out of the way'
    assert [each.p_adjusted for each in both] == pytest.approx(holm(np.array([each.p for each in both])))


def test_runs_are_equal_within_what_is_practical() -> None:
    close, top1 = paired(0.1, 6, 0.3), claim('top1')
    assert judged(top1, *close).verdict == 'equal', '1 point is the default for top-1'
    assert judged(claim('top1', practical=0.2), *close).verdict == 'undecided'
    assert judged(claim('loss'), *close).verdict == 'undecided', 'nobody says what matters'
    assert judged(claim('loss', practical=1.0), *close).verdict == 'equal'
    assert judged(claim('top1', bound=0.1), *close).verdict == 'undecided', 'the bound is what matters'
    small = judged(top1, *paired(0.5, 6, 0.05))
    assert small.verdict == 'supported', 'it is so, though it hardly matters'
    p = max(stats.ttest_1samp(np.subtract(*close) + 1, 0, alternative='greater').pvalue,
            stats.ttest_1samp(np.subtract(*close) - 1, 0, alternative='less').pvalue)  # fmt: skip
    assert judged(top1, *close, ((6, 1.0),)).p == pytest.approx(p)
    [both] = of_pairs([close, close], metric='top1', stages=((6, 1.0),))
    half = stats.t.isf(LEVEL / 4, 5) * 0.3 / 6**0.5
    assert both.verdict == 'equal'
    assert [each.high for each in both.findings] == pytest.approx([0.1 + half] * 2), 'two sides of two comparisons'


@pytest.mark.parametrize('case', range(8))
def test_the_interval_excludes_the_bound_exactly_if_it_is_decided(case: int) -> None:
    """Of many claims of all kinds, decided at any stage and step of Holm's method."""
    random = np.random.default_rng(case)
    words = set()
    for _ in range(12):
        runs = {f'{index}': random.normal(80 + random.normal(0, 0.7), 0.3, random.integers(3, 9)) for index in range(8)}
        runs['7'] = runs['7'] + 5
        kinds = [(0.0, False), (0.0, False), (0.0, False), (0.4, False), (-0.4, False), (1.02, True), (1.0, True)]
        claims = []
        for bound, ratio in kinds:
            pairs = random.permutation(8)[: 2 if random.random() < 0.6 else 4].reshape(-1, 2)
            comparisons = tuple(Comparison(str(i), str(j), bound, ratio) for i, j in pairs)
            claims.append(Claim('', '', 'top1', (), comparisons))
        for found in judge(claims, {('top1', run): Sample(list(values)) for run, values in runs.items()}):
            words.add(found.verdict)
            assert (found.p_adjusted <= LEVEL) is (found.verdict != 'undecided')
            bound, low, high = found.finding.comparison.bound, found.low or 0.0, found.high or 0.0
            if found.verdict == 'supported':
                assert all(each.low is not None and each.low > bound for each in found.findings)
            elif found.verdict == 'contradicted':
                assert high < bound
            elif found.verdict == 'equal':
                assert all(-1 < (each.low or 0.0) <= (each.high or 0.0) < 1 for each in found.findings)
            else:
                assert low <= bound <= high
                assert found.claim.equal_within is None or low <= -1 or high >= 1 or len(found.findings) > 1
            assert low <= (found.estimate or 0.0) <= high
    assert words >= {'supported', 'contradicted', 'undecided'}


# --- Numbers that are not as others -----------------------------------------------------------------------------------


def test_a_run_of_which_a_seed_failed_is_not_judged_better() -> None:
    a, b = paired(1.0, 6)
    failed: Values = [*a, None]
    found = judged(claim('top1'), failed, [*b, 1.0])
    assert (found.verdict, found.estimate) == ('undecided', pytest.approx(1.0))
    assert found.note == 'a failed or diverged with seed 6: a is not judged better'
    assert sentence(found).endswith(f'; {found.note}')
    assert found.more_seeds is None
    assert judged(claim('top1'), [*a, 2.0], [*b, None]).verdict == 'supported', 'the worse one failed'
    assert judged(claim('gap'), failed, [*b, 1.0]).note == 'a failed or diverged with seed 6: left out'
    assert not judged(claim('gap'), Sample(a, diverged=frozenset({2})), b).note, 'its number counts'
    assert judged(claim('top1'), b, failed).verdict == 'undecided', 'neither is it found better the other way round'
    assert judged(claim('loss'), failed, [*b, 1.0]).verdict == 'supported', 'of losses the smaller is better'
    assert judged(claim('loss'), [*b, None], [*a, 1.0]).verdict == 'undecided'
    assert judged(claim('top1'), Sample(a, diverged=frozenset({2})), b).verdict == 'undecided', 'it diverged'
    close = paired(0.1, 6, 0.3)
    assert judged(claim('top1'), close[0], Sample(close[1], diverged=frozenset({0}))).verdict == 'undecided', (
        'not equal'
    )


def test_the_accuracy_of_a_diverged_seed_is_what_it_is() -> None:
    a, b = [80.0, 80.4, 80.1, 10.0], [78.0, 78.3, 78.2, 78.1]
    found = judged(claim('top1'), a, b, ONE_LOOK)
    assert (found.verdict, found.estimate) == ('undecided', pytest.approx(np.mean(a) - np.mean(b)))


NEVER = math.inf


def test_a_threshold_that_is_always_reached_is_compared_as_any_number() -> None:
    a, b = paired(1.0, 4)
    assert judged(claim('epochs_to_80'), a, b).p == pytest.approx(judged(claim(), a, b).p)


def test_a_threshold_that_is_not_always_reached_is_compared_by_who_was_first() -> None:
    late, soon = [NEVER] * 12 + [9.0], around(2.0, 13)
    four = judged(claim('epochs_to_80'), late[:4], soon[:4])
    assert four.verdict == 'undecided'
    assert four.finding.counts == (4, 0)
    assert four.finding.holds, 'whichever it was, the run that was first is known'
    assert four.p == pytest.approx(min(2 / 2**3 / 0.1, 2 / 2**4 / 0.15, 1.0))
    assert four.note == (
        'of 4 blocks it was reached in 0 by a and in 4 by b: compared by who was first, which too few blocks tell'
    )
    assert sentence(four) == 'undecided: b needs fewer epochs to 80 % than a in 4 of 4 blocks; about 6 more seeds'
    by_two = judged(claim('epochs_to_80', bound=2.0), [math.inf, 6.0, 6.0, 9.0], [5.0, 5.0, 5.0, 5.0])
    assert sentence(by_two).startswith('undecided: a − b is above 2.0 epochs in 2 of 4 blocks')
    thirteen = judged(claim('epochs_to_80'), late, soon)
    assert (thirteen.verdict, thirteen.p) == ('supported', pytest.approx(2 / 2**13 / 0.09))
    failed: Values = [*late[:12], None]
    assert judged(claim('epochs_to_80'), failed, soon).verdict == 'supported', 'a seed that failed did not reach it'


def test_a_threshold_that_too_few_reach_is_judged_by_the_fallback() -> None:
    """By whichever run reached it in less than half of the first blocks, and by those blocks alone."""
    never, sooner = math.inf, replace(claim('epochs_to_50'), fallback='top1')
    epochs = {'a': [never, never, 4.0, never], 'b': [2.0, 2.1, 1.9, 2.0]}
    top1 = {'a': around(48.0, 4), 'b': around(59.0, 4, seed=1)}

    def verdict(each: Claim, epochs: dict[str, list[float]]) -> Verdict:
        samples = {('epochs_to_50', run): Sample(values) for run, values in epochs.items()}
        return judge([each], samples | {('top1', run): Sample(values) for run, values in top1.items()})[0]

    found = verdict(sooner, epochs)
    assert (found.verdict, found.claim.metric) == ('supported', 'top1')
    assert found.estimate == pytest.approx(11.0)
    assert sentence(found).startswith('b is 11.0 points above a (')
    assert found.note.startswith(
        'epochs to 50 %: of the first 3 blocks it was reached in 1 by a and in 3 by b, too few'
    )
    assert verdict(replace(sooner, practical=20.0), epochs).claim.equal_within == 1.0, '20 are epochs, not points'
    flipped = verdict(sooner, {'a': epochs['b'], 'b': epochs['a']})
    assert (flipped.claim.metric, flipped.verdict) == ('top1', 'supported'), 'whichever run it is'
    later = verdict(sooner, {**epochs, 'a': [4.0, 4.1, never, never]})
    assert later.claim.metric == 'epochs_to_50', 'later blocks change nothing'
    assert verdict(replace(sooner, fallback=None), epochs).verdict == 'undecided'
    two = verdict(sooner, {run: values[:2] for run, values in epochs.items()})
    assert two.claim.metric == 'epochs_to_50', 'before the first look nothing is chosen'


def test_ties_decide_nothing() -> None:
    neither = judged(claim('seconds_to_80'), [NEVER] * 6, [NEVER] * 6, ((6, 1.0),))
    assert (neither.verdict, neither.p, neither.estimate, neither.low) == ('undecided', 1.0, None, None)
    some = judged(claim('seconds_to_80'), [NEVER] * 6, [5.0] * 3 + [NEVER] * 3, ((6, 1.0),))
    assert some.p == pytest.approx(2 / 2**3)
    assert 'reached in 0 by a and in 3 by b' in some.note
    assert sentence(judged(claim('epochs_to_60'), [NEVER] * 4, [NEVER] * 4)) == (
        'undecided: neither a nor b reached 60 % in 4 seeds; a lower threshold would tell more'
    )
    two = judged(claim('epochs_to_60'), [NEVER] * 2, [NEVER] * 2)
    assert sentence(two) == 'undecided: neither a nor b reached 60 % in 2 seeds so far; verdicts need 3 seeds'
    tied = judged(claim('epochs_to_60'), [NEVER, 3.0, NEVER], [NEVER, 3.0, NEVER])
    assert sentence(tied).startswith('undecided: neither a nor b was first to 60 % in 3 seeds; of 3 blocks it was ')


def test_times_of_unlike_machines_are_refused_by_name() -> None:
    a, b = paired(1.0, 6)
    machine = {'cpu': 'Test CPU', 'threads': 2}
    same = Sample(a, hardware=[machine] * 6), Sample(b, hardware=[machine] * 6)
    assert judged(claim('train_seconds'), *same).verdict == 'supported'
    other = Sample(b, hardware=[machine] * 5 + [{**machine, 'threads': 1}])
    found = judged(claim('train_seconds'), same[0], other)
    assert (found.verdict, found.estimate) == ('undecided', None)
    assert found.note == 'training time is not compared: threads 2 (a) and 1 (b)'
    assert sentence(found) == f'undecided: {found.note}'


def test_the_hour_that_a_block_shares_cancels() -> None:
    hours = [100.0, 160.0, 80.0, 240.0]
    slower = [2.0 * hour * noise for hour, noise in zip(hours, (1.01, 0.99, 1.02, 1.0), strict=True)]
    found = judged(claim('train_seconds', 1.5, ratio=True), slower, hours, ONE_LOOK)
    assert (found.verdict, found.estimate) == ('supported', pytest.approx(2.01, abs=0.01))


@pytest.mark.parametrize(
    ('first', 'second', 'bound', 'ratio', 'verdict'),
    [
        (2.0, 1.0, 0.0, False, 'supported'),
        (1.0, 1.0, 0.0, False, 'contradicted'),
        (1.0, 1.0, -0.5, False, 'supported'),
        (2e6, 1e6, 2.0, True, 'contradicted'),
        (1.1e6, 1e6, 1.1, True, 'contradicted'),
        (14.1, 7.0, 2.0, True, 'supported'),
    ],
)
def test_what_is_counted_is_certain(first: float, second: float, bound: float, ratio: bool, verdict: str) -> None:
    found = judged(claim('params', bound, ratio=ratio), [first], [second])
    assert (found.p_adjusted, found.verdict) == (0.0, verdict)


def test_what_is_counted_takes_no_level_from_what_is_tested() -> None:
    a, b = paired(0.2, 4)
    samples = {
        ('loss', 'a'): Sample(a),
        ('loss', 'b'): Sample(b),
        ('gmacs', 'a'): Sample([2.0]),
        ('gmacs', 'b'): Sample([1.0]),
    }
    both = judge([claim('gmacs'), claim()], samples, ONE_LOOK)
    assert both[1].p_adjusted == pytest.approx(both[1].p)


def test_what_can_not_be_judged_is_undecided_and_says_why() -> None:
    assert sentence(judge([claim()], {('loss', 'b'): Sample([1.0])})[0]) == 'undecided: nothing is known of a'
    assert judge([claim('gmacs')], {})[0].verdict == 'undecided'
    assert judged(claim(ratio=True, bound=2.0), [1.0, 0.0, 2.0], [1.0] * 3).note == 'a ratio needs numbers above 0'
    assert judge([], {}) == []


@pytest.mark.parametrize(
    ('a', 'b', 'said'),
    [
        ([100.0] * 5, [100.0] * 5, 'in all 5 seeds a and b have 100.00 %'),
        ([100.0] * 5, [90.0] * 5, 'in all 5 seeds a has 100.00 % and b 90.00 %'),
        ([80.0, 81.0, 82.0], [78.0, 79.0, 80.0],
         'a is 2.0 points above b in all 3 seeds (a 80.00 to 82.00 %, b 78.00 to 80.00 %)'),
    ],
)  # fmt: skip
def test_blocks_without_spread_are_told_with_the_reason_why_there_is_no_test(a: Values, b: Values, said: str) -> None:
    found = judged(claim('top1'), a, b)
    assert sentence(found) == (
        f'undecided: {said}; no test: the difference is the same in all blocks, so its spread is not known: are the '
        'seeds used, or is the task too easy?'
    )
    later = judged(claim('top1'), [*a, *a, 70.0], [*b, *b, 20.0], ((len(a), 1.0),))
    assert sentence(later).startswith(f'undecided after {len(a)} of {2 * len(a) + 1} seeds: {said}; no test: ')


# --- Images -----------------------------------------------------------------------------------------------------------


def trained(
    random: np.random.Generator, easiness: np.ndarray, seeds: int, level: float, seed_deviation: float = 0.04
) -> Sample:
    """Right and wrong answers of a model: images are easy or hard to all models and to this one, seeds good or bad."""
    own = random.normal(0, 1, len(easiness))
    logits = level + easiness + own + random.normal(0, seed_deviation, (seeds, 1))
    correct = random.random((seeds, len(easiness))) < 1 / (1 + np.exp(-logits))
    return Sample(list(100 * correct.mean(1)), correct=correct)


@pytest.mark.slow
@pytest.mark.parametrize('seeds', [3, 5])
def test_without_an_effect_few_claims_are_decided_for_other_images(seeds: int) -> None:
    """At most 5 %, other images and other seeds each time."""
    random = np.random.default_rng(seeds)
    decided = 0
    for _ in range(400):
        easiness = random.normal(1.5, 2.5, 400)
        samples = [trained(random, easiness, seeds, 0.0) for _ in range(2)]
        decided += judged(claim('top1', practical=1e-9), *samples, ((seeds, 1.0),)).verdict != 'undecided'
    assert decided <= 0.05 * 400


@pytest.mark.slow
def test_an_effect_of_two_points_is_found_with_five_seeds() -> None:
    random = np.random.default_rng(0)
    verdicts, effects = [], []
    for _ in range(100):
        easiness = random.normal(1.5, 2.5, 3925)
        found = judged(claim('top1'), *(trained(random, easiness, 5, level) for level in (0.185, 0.0)), ((5, 1.0),))
        verdicts.append(found.verdict)
        effects.append(found.estimate)
    assert 1.8 < np.mean(effects) < 2.1
    assert verdicts.count('supported') >= 80
    assert 'contradicted' not in verdicts


def test_seeds_do_not_stand_in_for_images() -> None:
    """Two models that differ in three images of 200 are not told apart by any number of seeds."""
    random = np.random.default_rng(0)
    row = random.random(200) < 0.8
    correct = np.stack([row] * 20), np.stack([row] * 20)
    correct[1][:, :3] = ~row[:3]
    for each in correct:  # a little chance
        each[np.arange(20), random.integers(3, 200, 20)] ^= True
    samples = [Sample(list(100 * each.mean(1)), correct=each) for each in correct]
    found = judged(claim('top1'), *samples)
    assert found.verdict == 'undecided'
    assert judged(claim('top1'), *(list(each.values) for each in samples)).verdict != 'undecided', 'if these were all'


def test_ratios_of_accuracies_are_of_these_images_too() -> None:
    random = np.random.default_rng(0)
    easiness = random.normal(1.5, 2.5, 400)
    a, b = (trained(random, easiness, 5, level) for level in (0.3, 0.0))
    one = ((5, 1.0),)
    p = judged(claim('top1', 1.01, ratio=True), a, b, one).p
    assert p == pytest.approx(judged(claim('top1', np.mean(b.values) / 100), a, b, one).p, rel=0.1)
    assert p > 1.3 * judged(claim('top1', 1.01, ratio=True), list(a.values), list(b.values), one).p


# --- What it says -----------------------------------------------------------------------------------------------------


def test_a_verdict_says_what_is_so() -> None:
    found = judged(claim('top1'), *paired(9.4, 4, 0.6))
    assert sentence(found) == f'a is 9.4 points above b ({found.low:.1f} to {found.high:.1f}): supported'
    other = judged(claim('top1'), *paired(-9.4, 4, 0.6))
    assert sentence(other) == f'b is 9.4 points above a ({found.low:.1f} to {found.high:.1f}): contradicted'
    equal = judged(claim('top1'), *paired(0.1, 6, 0.3))
    assert sentence(equal) == f'a and b (−{-(equal.low or 0):.1f} to {equal.high:.1f}): equal within 1 point'
    slower = judged(
        claim('train_seconds', 1.5, ratio=True), [20.0, 21.0, 20.5, 20.2], [10.0, 10.1, 10.4, 10.2], ONE_LOOK
    )
    assert sentence(slower).startswith('a is 2.01 times b in training time (1.9')
    loss = judged(claim('loss'), *paired(-0.5, 4, 0.02))
    assert sentence(loss).startswith('b is 0.50 above a in loss (0.')
    late, soon = [3.1, 3.2, 3.3, 3.25], [1.2, 1.3, 1.45, 1.4]
    assert sentence(judged(claim('epochs_to_60'), late, soon)).startswith('b reaches 60 % 1.9 epochs sooner than a (1.')
    assert sentence(judged(claim('epochs_to_60'), soon, late)).startswith('a reaches 60 % 1.9 epochs sooner than b (1.')


def test_a_verdict_of_fewer_seeds_than_there_are_names_its_look() -> None:
    a, b = [60.0, 61.0, 60.5, 40.0, 41.0], [50.0, 51.1, 50.4, 50.0, 51.0]
    found = judged(claim('top1'), a, b)
    assert sentence(found) == 'a is 10.0 points above b (9.2 to 10.8): supported, decided after 3 of 5 seeds'
    assert found.finding.of_all == pytest.approx(2.0)
    assert 'after' not in sentence(judged(claim('top1'), a[:3], b[:3]))
    close = paired(0.1, 7, 0.3)
    equal = judged(claim('top1'), *close, ((6, 1.0),))
    assert sentence(equal).endswith(': equal within 1 point, decided after 6 of 7 seeds')
    assert sentence(judged(claim(), *paired(0.6, 7, 1.0))).startswith('undecided after 6 of 7 seeds: a is ')
    pairs: list[tuple[Values, Values]] = [(a, b), paired(1.0, 4)]
    assert sentence(of_pairs(pairs, stages=((3, 0.5), (4, 0.5)))[0]).endswith('decided after 3 of 5 and 4 of 4 seeds')


def test_a_ratio_that_is_at_most_so_large_is_told_of_the_run_that_is_claimed() -> None:
    """`a <= b` with a ratio of 1.1 expects b to be more than 1 / 1.1 times a."""
    less = Claim('', '', 'step_time', ('a <= b',), (Comparison('b', 'a', 1 / 1.1, True),))
    noise = np.random.default_rng(0).normal(1, 0.01, (2, 10))
    same = judged(less, list(100 * noise[0]), list(100 * noise[1]))
    assert same.verdict == 'supported'
    told = same.finding.told
    assert (told.comparison.larger, told.comparison.bound) == ('a', pytest.approx(1.1))
    ends = f'{told.low:.2f} to {told.high:.2f}'
    assert sentence(same) == f'a is {told.estimate:.2f} times b in step time ({ends}): supported'
    assert 0.98 < (told.low or 0) < (told.estimate or 0) < (told.high or 0) < 1.02
    slower = judged(less, list(150 * noise[0]), list(100 * noise[1]))
    assert sentence(slower).startswith('a is 1.51 times b in step time (1.50 to 1.52)')
    assert slower.verdict == 'contradicted'


def test_numbers_are_rounded_half_up() -> None:
    a, b = [83.04, 83.05, 83.06, 83.05], [80.0] * 4
    assert sentence(judged(claim('top1'), a, b)).startswith('a is 3.1 points above b (')


def test_an_undecided_claim_says_how_large_the_difference_can_be_and_what_would_decide() -> None:
    nothing = judged(claim('top1'), *paired(0.2, 4, 1.0))
    assert nothing.more_seeds is None
    assert sentence(nothing) == (
        f'undecided: no difference seen between a and b, at most {nothing.high:.1f} points either way'
    )
    some = judged(claim('top1'), *paired(2.0, 4, 1.0))
    assert sentence(some) == (
        f'undecided: a is 2.0 points above b (−{-(some.low or 0):.1f} to {some.high:.1f}); '
        f'about {some.more_seeds} more seeds'
    )
    hopeless = judged(claim('loss'), *paired(0.6, 4, 1.0))
    assert sentence(hopeless).endswith('; 20 seeds would not decide it')
    two = judged(claim('top1'), [80.1, 80.4], [79.0, 79.5])
    assert sentence(two) == 'undecided: a 80.10 and 80.40, b 79.00 and 79.50; verdicts need 3 seeds'
    assert (two.estimate, two.low, two.stage, two.more_seeds) == (pytest.approx(1.0), None, None, 1)
    one = judged(claim('top1'), [80.1], [79.0], ((5, 1.0),))
    assert sentence(one) == 'undecided: a 80.10, b 79.00; verdicts need 5 seeds'
    four = judged(claim('top1'), *paired(1.0, 4), ((5, 1.0),))
    assert sentence(four) == 'undecided: a is 1.0 points above b so far; verdicts need 5 seeds'


def test_so_many_more_seeds_decide_most_studies() -> None:
    """If the difference and the spread are what they seem: about 80 %; at the stage before fewer."""
    random = np.random.default_rng(1)
    pilot = judged(claim(), *paired(1.5, 4, 1.0))
    needed = 4 + (pilot.more_seeds or 0)
    shares = dict(STAGES)
    before = max(blocks for blocks in shares if blocks < needed)

    def decided(blocks: int) -> float:
        found = [judged(claim(), list(random.normal(1.5, 1, blocks)), [0.0] * blocks, ((blocks, shares[blocks]),))
                 for _ in range(200)]  # fmt: skip
        return sum(each.verdict == 'supported' for each in found) / len(found)

    assert decided(needed) > 0.7
    assert decided(before) < 0.8
    either = [Comparison('b', 'a', 0.0), Comparison('b', 'c', 0.0)]
    a, b = paired(1.5, 4, 1.0)
    samples = {('loss', run): Sample(values) for run, values in zip('abc', (a, b, a), strict=True)}
    [two] = judge([Claim('', '', 'loss', (), tuple(either))], samples)
    assert (two.more_seeds or 0) >= (pilot.more_seeds or 0), 'either would do, each is tested more strictly'


def test_runs_without_a_study_are_compared_in_pairs() -> None:
    claims = all_pairs(['best', 'good', 'bad'])
    assert [each.order for each in claims] == [('best > good',), ('best > bad',), ('good > bad',)]
    random = np.random.default_rng(0)
    samples = {('top1', run): Sample(list(random.normal(mean, 0.2, 4)))
               for run, mean in (('best', 90.0), ('good', 85.0), ('bad', 60.0))}  # fmt: skip
    found = judge(claims, samples)
    assert [each.verdict for each in found] == ['supported'] * 3
    assert found[0].claim.equal_within == 1.0


# --- Results of before ------------------------------------------------------------------------------------------------


def test_results_of_before_are_judged() -> None:
    study = as_run(read_study(RESULTS / 'study.yaml'), RESULTS)
    runs = by_run(study_records(study, RESULTS))
    found = {each.claim.name: each for each in judge(study.claims, samples_of(study, runs))}
    decided = {name: each.verdict for name, each in found.items() if each.verdict != 'undecided'}
    against = dict.fromkeys(('C2, MobileNetV2', 'C3, time', 'C5', 'C7, MobileNetV2', 'C8, accuracy'), 'contradicted')
    assert decided == {**against, 'C1': 'supported', 'C8, cost': 'supported'}
    assert {each.stage for each in found.values()} == {4, 5, 6, 10, 13}
    assert sentence(found['C2, MobileNetV2']) == 'mish-maxblur is 11.8 points above mish (8.3 to 15.3): contradicted'
    assert 'in 2 by relu and in 13 by mish' in found['C1'].note
    unlike = Claim('', '', 'train_seconds', (), (Comparison('relu', 'mish', 0.0),))
    [refused] = judge([unlike], samples_of(replace(study, claims=(unlike,)), runs))
    assert refused.note == 'training time is not compared: threads 1 (relu) and 2 (relu)'
