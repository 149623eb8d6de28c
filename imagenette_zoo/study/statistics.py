"""Tests of a study's claims on its results.

**Which test, and why.** A claim must hold for other seeds, and for other images of the same kind. Accuracies are
therefore compared with both as random effects, crossed: each seed of a run sees all images, each image all seeds. The
variance of the difference of two runs has three parts: that between the seeds of each run, and that between images of
the paired difference (each image's accuracy over the seeds of one run minus that over the other's), less
what chance adds to single answers, which is in the seeds' parts. Other metrics have the seeds' parts only. The interval
is Banerjee's (1960, Sankhyā 22, 357-358): half of its width is the root of the sum of the squares of each part's own,
by Student's t with that part's degrees of freedom. It errs at most as often as it says, whatever the runs' spreads are
and however small the level, since the distribution function of χ² with one degree of freedom is concave. With Welch's
and Satterthwaite's degrees of freedom one of 14 true null claims, corrected together, was decided in 10 to 42 % of
simulated studies with two seeds of a run, whose spread is small by chance now and then. McNemar's test would compare
two trainings, not two ideas: it knows nothing of seeds. Over the claims of a study p-values are corrected by Holm's
method (1979).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import require
from .plan import Claim, Comparison

__all__ = ['LEVEL', 'Finding', 'Interval', 'Sample', 'Verdict', 'compare', 'interval', 'judge', 'threshold']

LEVEL = 0.05
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Sample:
    """A metric of one run.

    Args:
        values: A number for each seed.
        correct: `(seeds, images)` whether each image was classified correctly; for a metric that is their fraction, %.
        exact: It is the same for every seed, as the number of parameters.
        bounds: Some of the values are only lower bounds of the true ones.
        images: Identifies the images of `correct`.
        note: What to know about the values.
    """

    values: Sequence[float]
    correct: np.ndarray | None = None
    exact: bool = False
    bounds: bool = False
    images: str = ''
    note: str = ''


@dataclass(frozen=True)
class Interval:
    """The mean of some numbers with its 95 % interval (t), None where there is only one."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half(self) -> float | None:
        """Half of its width."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Finding:
    """The result of one comparison.

    `effect` is the difference of the means, or their ratio (of geometric means); `low` and `high` bound it at
    95 %, without correction; `p` is two-sided, against the comparison's bound. `more_seeds` is how many further
    seeds of both runs would decide it with a probability of 80 % if the effect is what it seems; None where it is
    decided, or none would.
    """

    comparison: Comparison
    larger: Interval | None
    smaller: Interval | None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float = 1.0
    holds: bool = False
    more_seeds: int | None = None
    note: str = ''


@dataclass(frozen=True)
class Verdict:
    """The result of a claim: `supported`, `contradicted` or `undecided`; p before and after Holm."""

    claim: Claim
    verdict: str
    p: float
    p_adjusted: float
    findings: list[Finding]
    more_seeds: int | None  # that would decide it; None where it is decided or where none would


def _student() -> Any:
    """Student's distribution."""
    return require('scipy.stats', 'an interval', 'report').t


def interval(values: Sequence[float]) -> Interval:
    """The mean of some numbers and its 95 % interval, Student's."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, len(values))
    deviation = math.sqrt(_variance(np.asarray(values)))
    half = float(_student().ppf(1 - LEVEL / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def threshold(seeds: int, tests: int) -> float:
    """How many standard errors a difference must be away from its bound for the strongest of some claims to be decided.

    Args:
        seeds: Of each run, two at least; all of the spread is between them.
        tests: The claims.
    """
    return float(_student().isf(LEVEL / tests / 2, seeds - 1))


def _variance(values: np.ndarray) -> float:
    """The variance of numbers; equal ones have none, whatever rounding makes of their mean."""
    return 0.0 if values.min() == values.max() else float(values.var(ddof=1))


def compare(comparison: Comparison, larger: Sample | None, smaller: Sample | None, tests: int = 1) -> Finding:
    """Tests whether one run exceeds another by more than the bound.

    Args:
        comparison: Which, and the bound.
        larger: The metric of the run that is expected to be larger, None where it is not there.
        smaller: That of the other.
        tests: How many are made together: decides only how many seeds more would do.
    """
    intervals = tuple(interval(each.values) if each and len(each.values) else None for each in (larger, smaller))
    if larger is None or smaller is None or None in intervals:
        missing = comparison.larger if intervals[0] is None else comparison.smaller
        return Finding(comparison, intervals[0], intervals[1], note=f'nothing is known of {missing}')
    first, second = (np.asarray(sample.values, dtype=float) for sample in (larger, smaller))
    note = '; '.join(dict.fromkeys(filter(None, (larger.note, smaller.note))))
    bound = comparison.bound
    if larger.exact and smaller.exact:
        return _counted(comparison, first[0], second[0], intervals[0], intervals[1])
    if comparison.ratio:
        if min(first.min(), second.min()) <= 0:
            return Finding(comparison, intervals[0], intervals[1], note='a ratio needs numbers above 0')
        first, second, bound = np.log(first), np.log(second), math.log(bound)
    difference = float(first.mean() - second.mean())
    back = math.exp if comparison.ratio else float
    if min(len(first), len(second)) < 2:
        lacking = 2 - min(len(first), len(second))
        note = '; '.join(filter(None, ('two seeds at least are needed', note)))
        return Finding(comparison, intervals[0], intervals[1], back(difference), more_seeds=lacking, note=note)
    spread = _Spread.of(first, second, _both_correct(larger, smaller, comparison.ratio))
    if spread.variance(len(first), len(second)) == 0:
        note = '; '.join(filter(None, ('the seeds do not differ: no test', note)))
        return Finding(comparison, intervals[0], intervals[1], back(difference), note=note)
    holds = difference > bound
    if smaller.bounds if holds else larger.bounds:
        return Finding(comparison, intervals[0], intervals[1], back(difference), holds=holds, note=f'{note}: no test')
    p = spread.p(difference - bound, len(first), len(second))
    half = spread.half(LEVEL, len(first), len(second))
    more = None if p * tests <= LEVEL else spread.more_seeds(difference - bound, len(first), len(second), tests)
    return Finding(
        comparison,
        intervals[0],
        intervals[1],
        back(difference),
        back(difference - half),
        back(difference + half),
        p,
        holds,
        more,
        note,
    )


def _counted(comparison: Comparison, first: float, second: float, *intervals: Interval | None) -> Finding:
    """A comparison of exact numbers, which need no test."""
    wanted = comparison.bound * second if comparison.ratio else comparison.bound + second
    effect = first / second if comparison.ratio else first - second
    holds = first > wanted and not math.isclose(first, wanted)
    return Finding(comparison, intervals[0], intervals[1], effect, effect, effect, 0.0, holds)


def _both_correct(first: Sample, second: Sample, ratio: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Right answers in the unit of what is compared: points of a hundred, or for logarithms fractions of the mean."""
    if first.correct is None or second.correct is None or first.images != second.images:
        return None
    units = [float(np.mean(each.values)) / 100 if ratio else 0.01 for each in (first, second)]
    return first.correct / units[0], second.correct / units[1]


@dataclass(frozen=True)
class _Spread:
    """The variances that a difference of two means has: of one seed of each run, and of all images."""

    seeds: tuple[float, float]
    images: float = 0.0
    images_freedom: float = math.inf

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, correct: tuple[np.ndarray, np.ndarray] | None) -> _Spread:
        seeds = (_variance(first), _variance(second))
        if correct is None:
            return cls(seeds)
        count = correct[0].shape[1]
        paired = correct[0].mean(0) - correct[1].mean(0)
        chance = sum(float(each.var(0, ddof=1).mean()) / len(each) for each in correct)
        return cls(seeds, max(0.0, float(paired.var(ddof=1)) - chance) / count, count - 1)

    def _parts(self, first: int, second: int) -> list[tuple[float, float]]:
        """Pairs of variance and its degrees of freedom, with so many seeds."""
        parts = [(self.seeds[0] / first, first - 1), (self.seeds[1] / second, second - 1)]
        return [part for part in (*parts, (self.images, self.images_freedom)) if part[0]]

    def variance(self, first: int, second: int) -> float:
        return sum(part for part, _ in self._parts(first, second))

    def half(self, level: float, first: int, second: int) -> float:
        """Half of the width of the interval that misses with this probability at most."""
        variances, freedoms = np.array(self._parts(first, second)).T
        return math.sqrt(float(variances @ _student().isf(level / 2, freedoms) ** 2))

    def p(self, difference: float, first: int, second: int) -> float:
        """The level whose interval ends at the difference, two-sided."""
        low, high = -300.0, 0.0  # its logarithm
        while high - low > 1e-7:
            middle = (low + high) / 2
            low, high = (
                (middle, high) if self.half(math.exp(middle), first, second) > abs(difference) else (low, middle)
            )
        return math.exp(high)

    def more_seeds(self, difference: float, first: int, second: int, tests: int) -> int | None:
        student = _student()

        def decided(more: int) -> bool:
            now = first + more, second + more
            power = float(student.ppf(POWER, min(now) - 1)) * math.sqrt(self.variance(*now))
            return abs(difference) >= self.half(LEVEL / tests, *now) + power

        more = 1 + bisect_left(range(1, MOST_SEEDS + 1), True, key=decided)
        return more if more <= MOST_SEEDS else None


def judge(claims: Sequence[Claim], samples: Mapping[tuple[str, str], Sample]) -> list[Verdict]:
    """The verdicts on the claims of a study.

    A claim with several comparisons is supported if all of them are (its p-value is the largest), and contradicted if
    one is (its p-value is the smallest of those that point the other way, times the number of all).

    Args:
        claims: All claims of the study: they are corrected together.
        samples: `{(metric, run): numbers}`.
    """
    weighed = [_weigh(claim, samples, len(claims)) for claim in claims]
    verdicts = []
    for claim, (p, findings, more), level in zip(claims, weighed, _holm([p for p, _, _ in weighed]), strict=True):
        holds = not _against(findings)
        word = 'undecided' if level > LEVEL else 'supported' if holds else 'contradicted'
        verdicts.append(Verdict(claim, word, p, level, findings, more if word == 'undecided' else None))
    return verdicts


def _weigh(
    claim: Claim, samples: Mapping[tuple[str, str], Sample], claims: int
) -> tuple[float, list[Finding], int | None]:
    """`(p-value, findings, further seeds that would decide it)` of one claim out of so many."""
    findings = _findings(claim, samples, claims)
    if _against(findings):  # one of them suffices
        findings = _findings(claim, samples, claims * len(findings))
        against = _against(findings)
        p = min(1.0, len(findings) * min(each.p for each in against))
        return p, findings, min((each.more_seeds for each in against if each.more_seeds), default=None)
    open_ones = [each.more_seeds for each in findings if each.p * claims > LEVEL]
    known = [more for more in open_ones if more is not None]
    return max(each.p for each in findings), findings, max(known) if known and known == open_ones else None


def _findings(claim: Claim, samples: Mapping[tuple[str, str], Sample], tests: int) -> list[Finding]:
    findings = []
    for each in claim.comparisons:
        larger, smaller = (samples.get((claim.metric, run)) for run in (each.larger, each.smaller))
        findings.append(compare(each, larger, smaller, tests))
    return findings


def _against(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that contradict their comparison."""
    return [finding for finding in findings if not finding.holds and finding.effect is not None]


def _holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's method: the smallest times their number, the next times one less, and so on."""
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted
