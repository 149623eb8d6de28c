"""The tests behind verdicts: exact cases by hand, and how often they err and find in simulated studies."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from imagenette_zoo.study.plan import STAGES
from imagenette_zoo.study.power import TOP1_IMAGES, power, top1_spreads
from imagenette_zoo.study.statistics import (
    LEVEL,
    Means,
    Sample,
    Signs,
    at_stages,
    claim_p,
    half_width,
    holm,
    interval,
    one_sided_p,
    pair,
    sign_p,
)

stats = pytest.importorskip('scipy.stats')

# --- By hand ----------------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    found = interval([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(4.302653 * 1.527525 / 3**0.5, rel=1e-6)  # the 97.5 % point for two degrees
    assert interval([3.0]).half is None


def test_without_images_it_is_students_paired_test() -> None:
    first, second = [80.1, 81.0, 80.4, 80.9], [78.0, 79.9, 79.1, 78.2]
    means = Means.of(pair(Sample(first), Sample(second)).differences)
    for bound in (0.0, 1.5, 2.5, -1e6):
        differences = np.subtract(first, second) - bound
        assert means.above(bound) == pytest.approx(stats.ttest_1samp(differences, 0, alternative='greater').pvalue)
        assert means.below(bound) == pytest.approx(stats.ttest_1samp(differences, 0, alternative='less').pvalue)
        assert means.above(bound) > 0
    low, high = means.bounds(0.01, 0.02)
    assert means.above(low) == pytest.approx(0.01)
    assert means.below(high) == pytest.approx(0.02)


def test_images_add_their_variance_at_their_own_quantile() -> None:
    """√(t²·s²/n + z²·v) with s² = 4, n = 4, v = 0.25 at 2.5 %: t₃ = 3.18245, z = 1.95996."""
    assert half_width(0.025, 4.0, 4, 0.25) == pytest.approx((3.182446**2 + 1.959964**2 / 4) ** 0.5, rel=1e-6)
    means = Means(4, 3.0, 4.0, 0.25)
    for level in (0.3, 0.025, 1e-6):
        assert means.above(means.bounds(level, level)[0]) == pytest.approx(level, rel=1e-6)
    assert means.below(0.0) == pytest.approx(1 - means.above(0.0))


def test_the_variance_between_images_is_less_what_chance_adds_to_answers() -> None:
    """Two blocks, three images: the means of their differences are 1, 0, ½, of which one has a variance of ½."""
    answers = np.array([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert Means.of(answers.mean(1), answers).images == pytest.approx((0.25 - 0.5 / 3 / 2) / 3)
    constant = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert Means.of(constant.mean(1), constant).images == 0


def test_equal_blocks_are_no_test() -> None:
    assert Means.of(np.array([1.0, 1.0, 1.0])).above(0.0) == 1.0
    rounded = pair(Sample([80.1, 80.3, 80.7]), Sample([80.0, 80.2, 80.6])).differences
    assert len(set(rounded)) > 1
    assert Means.of(rounded).above(0.0) == 1.0, 'rounding is no spread'
    assert Means.of(rounded).bounds(0.1, 0.1) == (-np.inf, np.inf)


def test_signs_are_counted_exactly() -> None:
    assert [sign_p(4, 0), sign_p(3, 1), sign_p(0, 4), sign_p(0, 0)] == pytest.approx([1 / 16, 5 / 16, 1, 1])
    signs = Signs.of(np.array([2.0, np.inf, 1.0, np.nan, -np.inf, np.inf]))  # one tie: neither reached it
    assert signs.count(0.0) == (4, 1)
    assert signs.above(0.0) == pytest.approx(6 / 32)
    assert signs.estimate == 2.0
    assert Signs.of(np.arange(1.0, 7.0)).bounds(0.016, 0.11) == (1.0, 5.0)
    assert Signs.of(np.arange(1.0, 7.0)).bounds(0.01, 0.01) == (-np.inf, np.inf)


def test_pairs_are_the_blocks_that_both_have_in_the_order_of_the_study() -> None:
    first, second = Sample([5.0, None, 7.0, 9.0], seeds=[4, 3, 2, 1]), Sample([1.0, 2.0, 3.0], seeds=[1, 3, 4])
    assert pair(first, second).differences.tolist() == [2.0, 8.0], 'seeds 4 and 1: 3 failed, 2 is missing'
    never = pair(first, second, reached=True)
    assert never.differences.tolist() == [2.0, np.inf, 8.0], 'what failed was not reached'
    assert isinstance(never.first(1), Means)
    assert isinstance(never.first(2), Signs)
    assert pair(first, second, ratio=True).differences == pytest.approx(np.log([5 / 3, 9.0]))


def test_the_least_p_over_its_share_is_that_of_all_looks() -> None:
    assert at_stages(np.array([0.01, 0.02]), np.array([0.1, 0.4])) == pytest.approx(0.05)
    assert at_stages(np.array([0.5, 0.9]), np.array([0.1, 0.4])) == 1.0
    assert sum(share for _, share in STAGES) == pytest.approx(1.0)


def test_a_claim_needs_all_comparisons_to_hold_and_one_to_fall() -> None:
    above, below, within = np.array([0.01, 0.02]), np.array([0.9, 0.003]), np.array([0.001, 0.004])
    assert claim_p(above, below, within, two_sided=False) == pytest.approx((0.02, 2 * 0.003, 2 * 0.004))
    assert claim_p(above, below, within, two_sided=True) == pytest.approx((0.04, 4 * 0.003, 4 * 0.004))
    assert claim_p(above[:1], below[:1], within[:1], two_sided=True) == pytest.approx((0.02, 1.0, 0.001))


def test_holms_method() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([[0.5, 0.001], [0.02, 0.9]])) == pytest.approx(np.array([[0.5, 0.002], [0.04, 0.9]]))


# --- Simulated studies ------------------------------------------------------------------------------------------------

BLOCKS, SHARES = zip(*STAGES, strict=True)
STUDIES = 2000
RUNS = 9
PRACTICAL = 1.0


@dataclass(frozen=True)
class Simulated:
    """A claim: pairs of runs; by how much the true differences exceed the bound; the verdicts that are false then."""

    pairs: tuple[tuple[int, int], ...]
    excess: tuple[float, ...] = (0.0,)
    two_sided: bool = True
    false: tuple[int, ...] = (0, 1)  # of supported, contradicted, equal


PLAIN = [Simulated(((0, 1),)), Simulated(((0, 2),)), Simulated(((5, 6),)), Simulated(((7, 8),))]
AT_WHAT_IS_PRACTICAL = [Simulated((each,), (PRACTICAL,), false=(1, 2)) for each in ((3, 4), (1, 2))]
AT_A_BOUND = [Simulated((each,), two_sided=False, false=(0,)) for each in ((1, 3), (2, 5))]
JUST_ABOVE_A_BOUND = [Simulated((each,), (1e-9,), two_sided=False, false=(1,)) for each in ((4, 3), (6, 5))]
COMPOSITE = [
    Simulated(((0, 4), (4, 6)), (0.0, 0.0)),
    Simulated(((1, 7), (2, 8), (3, 6)), (0.0, 20.0, 20.0)),
    Simulated(((3, 0), (5, 0)), (0.0, 20.0), two_sided=False, false=(0,)),
    Simulated(((3, 7), (5, 8)), (PRACTICAL, 0.0), false=(0, 1, 2)),
]
NOT_COMPOSITE = [*PLAIN, *AT_WHAT_IS_PRACTICAL, *AT_A_BOUND, *JUST_ABOVE_A_BOUND]
ALL = [*NOT_COMPOSITE, *COMPOSITE]

Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def skewed(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A long tail downwards."""
    return np.exp(0.5**2 / 2) - random.lognormal(0, 0.5, shape)


def crashing(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One seed in ten ends far below."""
    return random.standard_normal(shape) - 20 * (random.random(shape) < 0.1) + 2


def unequal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Every other run has five times the spread."""
    return random.standard_normal(shape) * np.where(np.arange(RUNS) % 2, 5.0, 1.0)[:, None]


NOISES: dict[str, Noise] = {
    'normal': lambda random, shape: random.standard_normal(shape),
    'small next to what is practical': lambda random, shape: 0.2 * random.standard_normal(shape),
    'unequal': unequal,
    'skewed': skewed,
    't5': lambda random, shape: random.standard_t(5, shape),
    'crashing': crashing,
    'an hour that a block shares': lambda random, shape: (
        random.standard_normal(shape) + 5 * random.standard_normal((shape[0], 1, shape[2]))
    ),
}


def verdict_p(values: np.ndarray, claims: list[Simulated]) -> np.ndarray:
    """`(studies, claims, looks, verdicts)` the p-values when all looks up to that one were made."""
    p = []
    for claim in claims:
        excesses = [
            values[:, i] - values[:, j] + excess for (i, j), excess in zip(claim.pairs, claim.excess, strict=True)
        ]
        bounds = [0.0, -PRACTICAL, PRACTICAL]
        parts = np.ones((3, len(values), len(excesses), len(BLOCKS)))
        for place, excess in enumerate(excesses):
            for look, (blocks, share) in enumerate(STAGES):
                mean, variance = excess[:, :blocks].mean(1), excess[:, :blocks].var(1, ddof=1)
                above, within_low = (one_sided_p(mean - bound, variance, blocks) for bound in bounds[:2])
                below, within_high = (one_sided_p(bound - mean, variance, blocks) for bound in bounds[::2])
                within = np.maximum(within_low, within_high) if claim.two_sided else np.ones(len(values))
                parts[:, :, place, look] = np.array([above, below, within]) / share
        parts = np.minimum(1.0, np.minimum.accumulate(parts, -1))
        each = claim_p(*np.moveaxis(parts, 3, 2), two_sided=claim.two_sided)
        p.append(np.stack(each, -1))
    return np.stack(p, 1)


def errs(p: np.ndarray, claims: list[Simulated]) -> np.ndarray:
    """`(studies,)` whether a verdict that is given by the p-values `(studies, claims, verdicts)` is false."""
    decided = holm(p.min(-1)) <= LEVEL
    false = np.array([[verdict in claim.false for verdict in range(3)] for claim in claims])
    return (decided & np.take_along_axis(false[None], p.argmin(-1)[..., None], -1)[..., 0]).any(1)


def adaptively(p: np.ndarray, claims: list[Simulated], steps: int) -> np.ndarray:
    """Whether a study errs at any time: the open claim that is nearest to a verdict gets its next look."""
    looks = np.zeros(p.shape[:2], int)
    wrong = np.zeros(len(p), bool)
    for _ in range(steps):
        now = np.take_along_axis(p, looks[..., None, None], 2)[:, :, 0]
        wrong |= errs(now, claims)
        waits = (holm(now.min(-1)) > LEVEL) & (looks < len(BLOCKS) - 1)
        nearest = np.where(waits, now.min(-1), 2.0).argmin(1)
        looks[np.arange(len(p)), nearest] += waits[np.arange(len(p)), nearest]
    return wrong


@pytest.mark.parametrize('kind', NOISES)
@pytest.mark.parametrize(
    'claims',
    [ALL, *(pytest.param(some, marks=pytest.mark.slow) for some in (COMPOSITE, AT_A_BOUND, PLAIN[:1], NOT_COMPOSITE))],
)
def test_at_most_one_study_in_twenty_has_a_false_verdict_however_it_is_looked_at(
    kind: str, claims: list[Simulated]
) -> None:
    """All differences are where a verdict on them is false most easily; one looks at all stages, or adaptively."""
    random = np.random.default_rng(list(NOISES).index(kind))
    p = verdict_p(NOISES[kind](random, (STUDIES, RUNS, BLOCKS[-1])), claims)
    assert errs(p[:, :, -1], claims).mean() <= LEVEL
    assert adaptively(p, claims, 30).mean() <= LEVEL
    at_any_time = np.any([errs(p[:, :, look], claims) for look in range(len(BLOCKS))], axis=0)
    assert at_any_time.mean() <= LEVEL


def test_looking_again_and_again_at_the_whole_level_errs_too_often() -> None:
    """What the shares are for; else this simulation could not tell."""
    claims = PLAIN[:1]
    p = verdict_p(NOISES['normal'](np.random.default_rng(0), (STUDIES, RUNS, BLOCKS[-1])), claims)
    naive = np.minimum.accumulate(p, 2)[:, :, -1] * min(SHARES)
    assert errs(naive, claims).mean() > 2 * LEVEL


def test_one_look_spends_the_whole_level() -> None:
    """With normal seeds the level is exact."""
    random = np.random.default_rng(0)
    differences = random.standard_normal((20_000, 5))
    p = one_sided_p(differences.mean(1), differences.var(1, ddof=1), 5)
    assert (p <= LEVEL).mean() == pytest.approx(LEVEL, abs=2 * (LEVEL / 20_000) ** 0.5)


@pytest.mark.parametrize('chance', [0.2, 0.5, 0.9])
@pytest.mark.parametrize('early', [True, False])
def test_a_threshold_that_is_reached_by_chance_is_seldom_judged(chance: float, early: bool) -> None:
    """Two runs that reach it with the same chance, then early or at any time: none is first, whatever one sees."""
    random = np.random.default_rng(0)
    level = LEVEL / 2
    wrong = 0
    for _ in range(500):
        times = 2 + (0.1 if early else 2.0) * random.random((2, 20))
        values = np.where(random.random((2, 20)) < chance, times, np.inf)
        pairs = pair(Sample(values[0].tolist()), Sample(values[1].tolist()), reached=True)
        looks = [pairs.first(blocks) for blocks in BLOCKS]
        p = [[each.above(0.0) for each in looks], [each.below(0.0) for each in looks]]
        wrong += bool((at_stages(np.array(p), np.array(SHARES)) <= level).any())
    assert wrong <= LEVEL * 500


# --- Power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('difference', 'expected'), [(2.0, (0.07, 0.25, 0.43)), (4.0, (0.34, 0.76, 0.89))])
def test_the_power_of_a_difference_in_top1_at_the_first_of_fourteen_claims(
    difference: float, expected: tuple[float, ...]
) -> None:
    """With the spreads that were found, after 4, 6 and 8 blocks; within two standard errors of 2,000 studies."""
    for blocks, chance in zip((4, 6, 8), expected, strict=True):
        found = power(difference, top1_spreads(), blocks, 14, images=TOP1_IMAGES)
        assert found == pytest.approx(chance, abs=2 * (chance * (1 - chance) / 2000) ** 0.5)


def test_power_is_what_the_noncentral_t_distribution_says() -> None:
    for blocks, spread in ((4, 1.0), (8, 2.0)):
        exact = stats.nct.sf(stats.t.isf(0.025, blocks - 1), blocks - 1, 2.0 * blocks**0.5 / spread)
        assert power(2.0, spread, blocks) == pytest.approx(exact, abs=0.01)
        assert power(2.0, spread, blocks, two_sided=False) > exact + 0.02
    assert power(2.0, 1.0, 4, stages=STAGES) < power(2.0, 1.0, 4) < power(2.0, 1.0, 20, stages=STAGES)
    assert power(-2.0, 1.0, 4) == power(2.0, 1.0, 4)
