"""The tests behind the verdicts on a study's claims: arrays in, p-values and intervals out.

**A seed is a block.** Two runs are compared by the differences of their seeds, pair by pair: what a block shares, as
the hour in which it was trained, cancels. A claim must hold for other seeds and for other images of the same kind.
The variance of a mean difference has therefore two parts: that between blocks, and for top-1 that between images of the
paired difference, less what chance adds to single answers, which is in the blocks' part. Half of an interval's width is
√(t²·s²/n + z²·v), by Student's t with n - 1 degrees of freedom (Banerjee 1960, Sankhyā 22, 357-358). Without
images that is Student's paired test: exact for normal differences, whatever the spreads of the two runs are.

**What was not always reached** is compared by an exact sign test: in how many blocks which run was first. As long as
all seeds reached it, the numbers are compared as any others.

**The level is at most spent.** `at_stages`, `claim_p` and `holm` keep the chance of a false verdict in a study at 5 %:

1. A look after n blocks may err with its share of a claim's level. The shares sum to 1, so by the union bound a claim
   errs at most with its level, however often one looks and for whatever reason one stops.
2. A claim that only asks which run is larger can err on both sides: each has half of the level. A claim with a bound
   is true or false: whichever it is, only one verdict on it is false, so each has the whole level.
3. A claim of several comparisons is supported if all of them hold: a false one would have to err by itself, so none
   needs a correction (intersection-union test; Berger 1982). It is contradicted if one is the other way: by the
   union bound each has its part of the level.
4. "Equal" means two one-sided tests (Schuirmann 1987). Where the runs differ by more than is practical, only the side
   of that difference can err, and "equal" errs only where the interval of that side misses, as "contradicted"
   does: no level is needed beside. With several comparisons its level is that of a contradiction.
5. Over the claims Holm's method (1979) bounds the chance that any of them errs, however they depend on each other. That
   a claim counts as decided, and frees its level, though its verdict is the wrong way round, is rarer still (Shaffer
   1980, Annals of Statistics 8, 1342-1347, for independent ones); the tests simulate it.

Simulated studies had a false verdict in 1 to 4 % of cases, also with skewed or t₅-distributed seeds, with spreads that
differ fivefold, and with crashes. There are more where runs are skewed (or crash) and one of each pair is several times
as spread out as the other: 14 % with fourteen claims and lognormal seeds. No test of few seeds can see that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from ..errors import require

__all__ = [
    'LEVEL', 'Interval', 'Means', 'Numbers', 'Pairs', 'Sample', 'Signs', 'at_stages', 'claim_p', 'half_width', 'holm',
    'interval', 'one_sided_p', 'pair', 'sign_p',
]  # fmt: skip

Numbers: TypeAlias = np.ndarray | float

LEVEL = 0.05
SMALLEST = -690.0  # logarithm of the smallest p-value that is told from 0
ROUNDING = 1e-9  # differences of differences below it are none


@dataclass(frozen=True)
class Sample:
    """A metric of one run.

    Args:
        values: A number for each block, None where its training failed; infinite where it was not reached.
        seeds: The blocks, in the order in which they count; 0, 1, … if not given.
        correct: `(blocks, images)` whether each image was classified correctly; for a metric that is their fraction, %.
        exact: It is the same for every seed, as the number of parameters.
        images: Identifies the images of `correct`.
        diverged: Seeds whose training diverged.
        hardware: The machine of each value, where the metric depends on it.
        late: Blocks that failed first: they count after all others, so that looks that were made stay as they were.
    """

    values: Sequence[float | None]
    seeds: Sequence[int] = ()
    correct: np.ndarray | None = None
    exact: bool = False
    images: str = ''
    diverged: frozenset[int] = frozenset()
    hardware: Sequence[dict[str, Any]] = ()
    late: frozenset[int] = frozenset()

    @property
    def blocks(self) -> dict[int, int]:
        """`{seed: index of its value}`."""
        return {seed: index for index, seed in enumerate(self.seeds or range(len(self.values)))}

    @property
    def lost(self) -> set[int]:
        """The seeds that failed or diverged."""
        return self.unknown | self.diverged

    @property
    def unknown(self) -> set[int]:
        """The seeds that have no number."""
        return {seed for seed, index in self.blocks.items() if self.values[index] is None}

    @property
    def known(self) -> list[float]:
        """The numbers of all seeds that have one."""
        return [value for value in self.values if value is not None and math.isfinite(value)]


@dataclass(frozen=True)
class Interval:
    """The mean of some numbers with its 95 % interval (t), None where there is only one, and the numbers."""

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.values)

    @property
    def half(self) -> float | None:
        """Half of its width."""
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float]) -> Interval:
    """The mean of some numbers and its 95 % interval, Student's, not corrected for anything."""
    mean, known = float(np.mean(values)), tuple(map(float, values))
    if len(known) < 2:
        return Interval(mean, None, None, known)
    half = float(half_width(LEVEL / 2, _variance(np.asarray(values, dtype=float)), len(values)))
    return Interval(mean, mean - half, mean + half, known)


def _special() -> Any:
    return require('scipy.special', 'a verdict', 'report')


def _variance(values: np.ndarray) -> float:
    """The variance of numbers; equal ones have none, whatever rounding makes of their differences."""
    equal = np.ptp(values) <= ROUNDING * max(1.0, np.abs(values).max())
    return 0.0 if equal else float(values.var(ddof=1))


# --- Tests ------------------------------------------------------------------------------------------------------------


def half_width(level: Numbers, variance: Numbers, blocks: int, images: Numbers = 0.0) -> np.ndarray:
    """How far a bound must be from a mean difference to be missed with this probability at most, on one side.

    Args:
        level: Below ½.
        variance: Of the difference between blocks, `s²`.
        blocks: Their number.
        images: The variance of the mean difference between images.
    """
    special = _special()
    return np.sqrt(special.stdtrit(blocks - 1, level) ** 2 * variance / blocks + special.ndtri(level) ** 2 * images)


def one_sided_p(excess: Numbers, variance: Numbers, blocks: int, images: Numbers = 0.0) -> np.ndarray:
    """The p-value of a mean excess over a bound, against a true one of 0 or less: its interval ends at the bound.

    1 where all blocks are equal: their spread is not known, so there is no test. Arguments as of `half_width`.
    """
    excess, variance, images = np.broadcast_arrays(*np.atleast_1d(excess, variance, images))
    if not images.any():
        with np.errstate(divide='ignore', invalid='ignore'):
            p = _special().stdtr(blocks - 1, -excess / np.sqrt(variance / blocks))
        return np.where(variance > 0, p, 1.0)
    low, high = np.full(excess.shape, SMALLEST), np.full(excess.shape, math.log(0.5))
    for _ in range(50):
        middle = (low + high) / 2
        beyond = half_width(np.exp(middle), variance, blocks, images) > np.abs(excess)
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    tail = np.exp(high)
    return np.where(variance > 0, np.where(excess > 0, tail, 1 - tail), 1.0)


def sign_p(more: int, fewer: int) -> float:
    """The p-value of so many signs one way and the other, if both are as likely: of at least as many the one way."""
    return float(_special().bdtrc(more - 1, more + fewer, 0.5)) if more else 1.0


@dataclass(frozen=True)
class Means:
    """A mean difference over blocks."""

    blocks: int
    estimate: float
    variance: float
    images: float = 0.0

    @classmethod
    def of(cls, differences: np.ndarray, answers: np.ndarray | None = None) -> Means:
        """Of `(blocks,)` differences and, where they are known, `(blocks, images)` differences of answers."""
        blocks = len(differences)
        images = 0.0
        if answers is not None and blocks > 1:
            between = answers.mean(0).var(ddof=1) - answers.var(0, ddof=1).mean() / blocks
            images = max(0.0, float(between)) / answers.shape[1]
        return cls(blocks, float(differences.mean()), _variance(differences) if blocks > 1 else 0.0, images)

    @property
    def error(self) -> float:
        """The standard error."""
        return math.sqrt(self.variance / self.blocks + self.images)

    def above(self, bound: float) -> float:
        """The p-value against a true difference of the bound or less."""
        return float(one_sided_p(self.estimate - bound, self.variance, self.blocks, self.images)[0])

    def below(self, bound: float) -> float:
        """The p-value against a true difference of the bound or more."""
        return float(one_sided_p(bound - self.estimate, self.variance, self.blocks, self.images)[0])

    def half(self, level: float) -> float:
        """Half of the width of the interval that misses with this level on each side."""
        return float(half_width(level, self.variance, self.blocks, self.images)) if self.variance else math.inf

    def bounds(self, low_level: float, high_level: float) -> tuple[float, float]:
        """The interval that misses with these levels on its sides."""
        return self.estimate - self.half(low_level), self.estimate + self.half(high_level)


@dataclass(frozen=True)
class Signs:
    """Differences over blocks of which only the order counts; ties, where neither run reached it, are left out."""

    blocks: int
    differences: tuple[float, ...]

    @classmethod
    def of(cls, differences: np.ndarray) -> Signs:
        """Of `(blocks,)` differences, NaN where there is none."""
        return cls(len(differences), tuple(sorted(differences[~np.isnan(differences)].tolist())))

    @property
    def estimate(self) -> float:
        """The median, NaN where there is none."""
        middle = self.differences[(len(self.differences) - 1) // 2 : len(self.differences) // 2 + 1]
        return sum(middle) / len(middle) if middle else math.nan

    def count(self, bound: float) -> tuple[int, int]:
        """How many are above and below a bound."""
        return sum(each > bound for each in self.differences), sum(each < bound for each in self.differences)

    def above(self, bound: float) -> float:
        """The p-value against a true median of the bound or less."""
        return sign_p(*self.count(bound))

    def below(self, bound: float) -> float:
        """The p-value against a true median of the bound or more."""
        return sign_p(*reversed(self.count(bound)))

    def bounds(self, low_level: float, high_level: float) -> tuple[float, float]:
        """The interval that misses with these levels on its sides."""
        low = _last_beyond(self.differences, low_level)
        high = _last_beyond([-each for each in reversed(self.differences)], high_level)
        return low, -high


def _last_beyond(ordered: Sequence[float], level: float) -> float:
    """The largest of some numbers below which a true median would be refused."""
    refused = [each for index, each in enumerate(ordered) if sign_p(len(ordered) - index, index) <= level]
    return refused[-1] if refused else -math.inf


# --- Pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """The blocks that two runs have.

    Args:
        values: `(2, blocks)` their numbers.
        differences: `(blocks,)`; of logarithms for a ratio; NaN where neither run reached it.
        correct: `(blocks, images)` of both, whether each image was classified correctly; or None.
        ratio: Logarithms are subtracted.
    """

    values: np.ndarray
    differences: np.ndarray = field(repr=False)
    correct: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    ratio: bool = False

    def first(self, blocks: int) -> Means | Signs:
        """What the first blocks give."""
        differences = self.differences[:blocks]
        if not np.isfinite(differences).all():
            return Signs.of(differences)
        if self.correct is None:
            return Means.of(differences)
        units = self.values[:, :blocks].mean(1) / 100 if self.ratio else (0.01, 0.01)
        first, second = (rows[:blocks] / unit for rows, unit in zip(self.correct, units, strict=True))
        return Means.of(differences, first - second)


def pair(larger: Sample, smaller: Sample, *, ratio: bool = False, reached: bool = False) -> Pairs:
    """Pairs the blocks of two runs, in the order of the first, late ones last; one that failed in either is left out.

    Args:
        larger: The run that is subtracted from.
        smaller: The run that is subtracted.
        ratio: Logarithms are subtracted: the numbers must be above 0.
        reached: A training that failed has not reached it.
    """
    first, second = larger.blocks, smaller.blocks
    numbers = {
        seed: [
            math.inf if value is None and reached else value
            for value in (larger.values[first[seed]], smaller.values[second[seed]])
        ]
        for seed in first
        if seed in second
    }
    used = [seed for seed, both in numbers.items() if None not in both]
    used.sort(key=lambda seed: seed in larger.late | smaller.late)  # which keeps the order else
    values = np.array([numbers[seed] for seed in used], dtype=float).reshape(-1, 2).T
    with np.errstate(invalid='ignore'):  # infinity less infinity: a tie
        differences = np.subtract(*(np.log(values) if ratio else values))
    correct = None
    if larger.correct is not None and smaller.correct is not None and larger.images == smaller.images:
        correct = larger.correct[[first[seed] for seed in used]], smaller.correct[[second[seed] for seed in used]]
    return Pairs(values, differences, correct, ratio)


# --- Corrections ------------------------------------------------------------------------------------------------------


def at_stages(p: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The p-value of a comparison out of those of its looks, `(…, looks)`: the least of p over its share."""
    return np.minimum(1.0, (p / shares).min(-1, initial=1.0))


def claim_p(
    above: np.ndarray, below: np.ndarray, within: np.ndarray, *, two_sided: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The p-values of the verdicts supported, contradicted and equal on a claim.

    Each comparison may have been looked at more or less often: the least over its looks is taken before the largest
    over the comparisons, since a false claim has one comparison that is false at all looks.

    Args:
        above: `(…, comparisons)` p-values against differences of the bound or less.
        below: Against those of the bound or more.
        within: Against those of what is practical or more; 1 where it does not matter.
        two_sided: The claim only asks which run is larger.
    """
    count = above.shape[-1]
    sides = 2 if two_sided else 1
    together = 1 if count == 1 else sides * count
    p = sides * above.max(-1), sides * count * below.min(-1), together * within.max(-1)
    return tuple(np.minimum(1.0, each) for each in p)  # type: ignore[return-value]


def holm(p: np.ndarray) -> np.ndarray:
    """p-values `(…, claims)` adjusted by Holm's method: the least times their number, the next times one less, …"""
    order = np.argsort(p, -1, kind='stable')
    steps = p.shape[-1] - np.arange(p.shape[-1])
    adjusted = np.empty(p.shape)
    ascending = np.maximum.accumulate(np.take_along_axis(p, order, -1) * steps, -1)
    np.put_along_axis(adjusted, order, np.minimum(1.0, ascending), -1)
    return adjusted
