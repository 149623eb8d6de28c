"""Two runs that a claim compares: their pairs at each look, and what that comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from .metrics import Metric, metric_of
from .plan import Claim, Comparison
from .statistics import Interval, Means, Pairs, Sample, Signs, at_stages, interval, pair, sign_p

__all__ = [
    'CONTRADICTED', 'EQUAL', 'SUPPORTED', 'UNDECIDED', 'Finding', 'Levels', 'Looks', 'Outlook', 'Samples', 'Stages',
    'blocks_needed', 'count', 'finding_of', 'judged_as', 'look_at',
]  # fmt: skip

Samples: TypeAlias = Mapping[tuple[str, str], Sample]
Stages: TypeAlias = Sequence[tuple[int, float]]

SUPPORTED, CONTRADICTED, EQUAL, UNDECIDED = 'supported', 'contradicted', 'equal', 'undecided'
DEVIATIONS = 0.84  # 80 % of normal numbers are below their mean and so many deviations
NO_SPREAD = (
    'no test: the difference is the same in all blocks, so its spread is not known: are the seeds used, or is the task '
    'too easy?'
)
USUAL = 3.0  # degrees of freedom of a usual variance beside that of few blocks; of top-1 2.91 were found


@dataclass(frozen=True)
class Finding:
    """The result of one comparison.

    Args:
        comparison: Which, and the bound.
        larger: The mean of the run that is expected to be larger, with its own 95 % interval, not corrected; or None.
        smaller: That of the other.
        values: The numbers of both, block by block.
        estimate: The difference of the means, or their ratio (of geometric means); the median where it was not always
            reached.
        low: The lower end of the interval that decided: of its look's share of the level, after Holm. It is above the
            bound exactly if the comparison is decided to hold. None where there is no end.
        high: The upper end.
        p: In the direction of the estimate, over all looks, before Holm.
        blocks: How many both runs have.
        stage: After how many of them the look was that is shown; None before the first.
        spread: The standard deviation of the difference between blocks, of logarithms for a ratio.
        error: The standard error of that difference.
        counts: In how many blocks the difference was above and below the bound, where only that counts.
        of_all: The estimate of all blocks.
        more_seeds: How many further seeds of both would decide it, with a probability of 80 % if all is as it seems;
            None where it is decided, or no stage would.
        note: What to know about it.
    """

    comparison: Comparison
    larger: Interval | None = None
    smaller: Interval | None = None
    values: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p: float = 1.0
    blocks: int = 0
    stage: int | None = None
    spread: float | None = None
    error: float | None = None
    counts: tuple[int, int] | None = None
    of_all: float | None = None
    more_seeds: int | None = None
    note: str = ''

    @property
    def holds(self) -> bool:
        """Whether the difference is as expected, decided or not."""
        if self.estimate is None:  # beyond all numbers, where one run never reached it
            return self.counts is not None and self.counts[0] > self.counts[1]
        return self.estimate > self.comparison.bound

    @property
    def shown(self) -> list[tuple[float, ...]]:
        """The numbers of both in the blocks that the estimate is of."""
        return [values[: self.stage] for values in self.values]

    @property
    def told(self) -> Finding:
        """As it is spoken of: of a ratio that is at most so large the other way round."""
        if not self.comparison.at_most:
            return self
        names = Comparison(self.comparison.smaller, self.comparison.larger, 1 / self.comparison.bound, ratio=True)
        values = (self.estimate, self.high, self.low, self.of_all)
        estimate, low, high, of_all = (None if each is None else 1 / each for each in values)
        return replace(
            self,
            comparison=names,
            larger=self.smaller,
            smaller=self.larger,
            values=self.values[::-1],
            estimate=estimate,
            low=low,
            high=high,
            of_all=of_all,
            counts=self.counts and self.counts[::-1],
        )


@dataclass(frozen=True)
class Levels:
    """The levels of a claim's intervals on their low and their high side, at a look that has the whole level."""

    low: float
    high: float
    equal: float

    @classmethod
    def of(cls, claim: Claim, level: float) -> Levels:
        """As `claim_p` corrects, of a claim that is tested at this level."""
        sides, count = 2 if claim.two_sided else 1, len(claim.comparisons)
        return cls(level / sides, level / (sides * count), level if count == 1 else level / (sides * count))


@dataclass(frozen=True)
class Looks:
    """A comparison at all looks, in the unit of what is tested: logarithms for a ratio.

    Args:
        finding: What is known without a test.
        bound: Of the difference.
        practical: The least difference that matters, or None.
        pairs: The blocks of both runs; None where they can not be compared.
        made: What the blocks give at each look.
        shares: Of the level, of each look.
        p: For each verdict the p-value at each look.
        refused: Verdicts that are not given, whatever the numbers.
    """

    finding: Finding
    bound: float = 0.0
    practical: float | None = None
    pairs: Pairs | None = None
    made: Sequence[Means | Signs] = ()
    shares: np.ndarray = field(default_factory=lambda: np.ones(0))
    p: Mapping[str, np.ndarray] = field(default_factory=dict)
    refused: Sequence[str] = ()

    @property
    def latest(self) -> Means | Signs | None:
        """What all blocks give, None where there are none."""
        return self.pairs.first(self.finding.blocks) if self.pairs and self.finding.blocks else None

    def least(self, verdict: str) -> float:
        """The p-value of a verdict over all looks."""
        known = self.made and verdict not in self.refused
        return float(at_stages(self.p[verdict], self.shares)) if known else 1.0

    def best(self, verdict: str) -> int:
        """The look at which a verdict is nearest."""
        return int(np.argmin(self.p[verdict] / self.shares))


def judged_as(claim: Claim, samples: Samples, blocks: int) -> Claim:
    """A claim, by its fallback where too few reached the threshold: a run in less than half of the first blocks.

    Which run that is makes no difference, and later blocks change nothing: the choice favours no verdict.

    Args:
        claim: The claim.
        samples: The numbers of its runs.
        blocks: Of the first look.
    """
    if claim.fallback is None:
        return claim
    for each in claim.comparisons:
        known = [samples.get((claim.metric, run)) for run in (each.larger, each.smaller)]
        larger, smaller = (sample or Sample(()) for sample in known)
        values = pair(larger, smaller, reached=True).values[:, :blocks]
        reached = np.isfinite(values).sum(1)
        if values.shape[1] == blocks and 2 * reached.min() < blocks:
            swapped = tuple(Comparison(each.smaller, each.larger, 0.0) for each in claim.comparisons)
            words = f'in {reached[0]} by {each.larger} and in {reached[1]} by {each.smaller}'
            note = (
                f'{metric_of(claim.metric).label}: of the first {blocks} blocks it was reached {words}, too few: '
                f'{metric_of(claim.fallback).label} is judged instead'
            )
            return replace(claim, metric=claim.fallback, comparisons=swapped, practical=None, note=note)
    return claim


def look_at(claim: Claim, comparison: Comparison, samples: Samples, stages: Stages) -> Looks:
    """Compares two runs at all stages that they have the blocks for."""
    metric, ratio = metric_of(claim.metric), comparison.ratio
    runs = {run: samples.get((claim.metric, run)) for run in (comparison.larger, comparison.smaller)}
    finding = Finding(comparison, _mean(runs[comparison.larger]), _mean(runs[comparison.smaller]))
    if reason := _incomparable(metric, ratio, runs):
        return Looks(replace(finding, note=reason))
    larger, smaller = known = [sample for sample in runs.values() if sample]
    pairs = pair(larger, smaller, ratio=ratio, reached=metric.reached)
    blocks = len(pairs.differences)
    used = [stage for stage in stages if stage[0] <= blocks]
    made = [pairs.first(count) for count, _ in used]
    bound, practical = math.log(comparison.bound) if ratio else comparison.bound, claim.equal_within
    p = {
        SUPPORTED: [each.above(bound) for each in made],
        CONTRADICTED: [each.below(bound) for each in made],
        EQUAL: [1.0 if practical is None else max(each.above(-practical), each.below(practical)) for each in made],
    }
    first, second = (tuple(row) for row in pairs.values.tolist())
    notes = [note for run, sample in zip(runs, known, strict=True) if (note := _lost(metric, run, sample))]
    if not blocks and not notes:
        notes = [f'{" and ".join(runs)} have no seed in common']
    return Looks(
        replace(finding, values=(first, second), blocks=blocks, note='; '.join(notes)),
        bound,
        practical,
        pairs,
        made,
        np.array([share for _, share in used]),
        {verdict: np.array(values) for verdict, values in p.items()},
        _refused(metric, larger, smaller),
    )


def _mean(sample: Sample | None) -> Interval | None:
    return interval(sample.known) if sample and sample.known else None


def _incomparable(metric: Metric, ratio: bool, runs: Mapping[str, Sample | None]) -> str:
    """Why runs can not be compared, or nothing."""
    for run, sample in runs.items():
        if sample is None or not sample.values:
            return _unknown(metric, run)
    known = {run: sample for run, sample in runs.items() if sample}
    if metric.timed and (unlike := _unlike(known)):
        return f'{metric.label} is not compared: {unlike}'
    if ratio and min((value for sample in known.values() for value in sample.known), default=1.0) <= 0:
        return 'a ratio needs numbers above 0'
    return ''


def _unknown(metric: Metric, run: str) -> str:
    if metric.by_steps:
        return f'the steps of {run} were not timed: the command of the study times them'
    return f'nothing is known of {run}'


def _unlike(runs: Mapping[str, Sample]) -> str:
    """How the machines differ that the values are from, as `'threads 1 (a) and 2 (b)'`, or nothing."""
    machines = [(run, machine) for run, sample in runs.items() for machine in sample.hardware if machine]
    for run, machine in machines:
        other, first = machines[0]
        for name in dict.fromkeys([*first, *machine]):
            if first.get(name) != machine.get(name):
                return f'{name} {first.get(name)} ({other}) and {machine.get(name)} ({run})'
    return ''


def _refused(metric: Metric, larger: Sample, smaller: Sample) -> list[str]:
    """The verdicts that would call a run better, or as good, of which a seed failed."""
    if not metric.better:
        return []
    lost = {SUPPORTED: larger.lost, CONTRADICTED: smaller.lost}
    if metric.better == 'smaller':
        lost = {SUPPORTED: smaller.lost, CONTRADICTED: larger.lost}
    refused = [verdict for verdict, seeds in lost.items() if seeds]
    return [*refused, EQUAL] if refused else []


def _lost(metric: Metric, run: str, sample: Sample) -> str:
    """What to know about the seeds that failed, or nothing; one that diverged may have a number all the same."""
    seeds = sample.lost if metric.better else sample.unknown
    if not seeds:
        return ''
    so = f'{run} is not judged better' if metric.better else 'they did not reach it' if metric.reached else 'left out'
    return f'{run} failed or diverged with {_seeds(seeds)}: {so}'


def _seeds(seeds: Iterable[int]) -> str:
    numbers = [str(seed) for seed in sorted(seeds)]
    return f'seed{"s" if len(numbers) > 1 else ""} {", ".join(numbers)}'


def count(claim: Claim, comparison: Comparison, samples: Samples) -> Finding:
    """A comparison of exact numbers, which needs no test."""
    runs = {run: samples.get((claim.metric, run)) for run in (comparison.larger, comparison.smaller)}
    finding = Finding(comparison, _mean(runs[comparison.larger]), _mean(runs[comparison.smaller]))
    if finding.larger is None or finding.smaller is None:
        return replace(finding, note=_unknown(metric_of(claim.metric), list(runs)[0 if finding.larger is None else 1]))
    first, second = finding.larger.mean, finding.smaller.mean
    estimate = first / second if comparison.ratio else first - second
    if math.isclose(first, comparison.bound * second if comparison.ratio else comparison.bound + second):
        estimate = comparison.bound  # whatever rounding makes of it
    return replace(finding, values=((first,), (second,)), estimate=estimate, low=estimate, high=estimate, p=0.0)


def finding_of(looks: Looks, verdict: str, levels: Levels, claim: Claim, stages: Stages) -> Finding:
    """What a comparison came to, with the interval of the look that decided it, or else of the last.

    Args:
        looks: The comparison.
        verdict: That on the claim.
        levels: Of the claim's intervals.
        claim: The claim.
        stages: All of the study.
    """
    finding = looks.finding
    if looks.pairs is None or not finding.blocks:
        return finding
    low_level, high_level, index = levels.low, levels.high, len(looks.made) - 1
    held, against = looks.least(SUPPORTED) <= low_level, looks.least(CONTRADICTED) <= high_level
    if verdict == EQUAL:
        low_level, high_level, index = levels.equal, levels.equal, looks.best(EQUAL)
    elif held or against:
        index = looks.best(CONTRADICTED if against and (verdict == CONTRADICTED or not held) else SUPPORTED)
    whole = looks.pairs.first(finding.blocks)
    look = looks.made[index] if looks.made else whole
    low, high, notes = -math.inf, math.inf, [finding.note]
    if looks.made:
        low, high = look.bounds(low_level * looks.shares[index], high_level * looks.shares[index])
    if isinstance(look, Signs) and not look.differences:
        notes.append('a lower threshold would tell more')
    elif isinstance(look, Signs):
        decisive = bool(looks.made) and sign_p(len(look.differences), 0) <= low_level * looks.shares[index]
        notes.append(_reached(finding, look.blocks, decisive))
    elif looks.made and not look.variance:
        notes.append(NO_SPREAD)
    if finding.blocks > stages[-1][0]:
        notes.append(f'blocks after the last stage, {stages[-1][0]}, do not count')
    side = SUPPORTED if look.estimate > looks.bound else CONTRADICTED
    needed = None if held or against or verdict == EQUAL else blocks_needed(looks, side, levels, stages)
    back = math.exp if finding.comparison.ratio else float
    ends = [back(each) if math.isfinite(each) else None for each in (look.estimate, low, high, whole.estimate)]
    return replace(
        finding,
        estimate=ends[0],
        low=ends[1],
        high=ends[2],
        of_all=ends[3],
        p=min(1.0, (2 if claim.two_sided else 1) * looks.least(side)),
        stage=look.blocks if looks.made else None,
        spread=math.sqrt(look.variance) if isinstance(look, Means) and look.blocks > 1 else None,
        error=look.error if isinstance(look, Means) and look.blocks > 1 else None,
        counts=look.count(looks.bound) if isinstance(look, Signs) else None,
        more_seeds=None if needed is None else needed - finding.blocks,
        note='; '.join(filter(None, notes)),
    )


def _reached(finding: Finding, blocks: int, decisive: bool) -> str:
    """How often each run reached what it did not always reach."""
    names = (finding.comparison.larger, finding.comparison.smaller)
    reached = [sum(map(math.isfinite, values[:blocks])) for values in finding.values]
    words = ' and '.join(f'in {number} by {name}' for number, name in zip(reached, names, strict=True))
    note = f'of {blocks} blocks it was reached {words}: compared by who was first'
    return note if decisive else f'{note}, which too few blocks tell'


@dataclass(frozen=True)
class Outlook:
    """How looks to come are foreseen: like the last one, if all is as it seems.

    Args:
        deviations: As many standard errors must lie between the estimate and what the look needs: 0 for even odds.
        variance: Of the difference between blocks, as others of the study have it; None where that is not asked for.
    """

    deviations: float = DEVIATIONS
    variance: float | None = None


def blocks_needed(
    looks: Looks, verdict: str, levels: Levels, stages: Stages, outlook: Outlook | None = None
) -> int | None:
    """After how many blocks a look would give a verdict, if all is as it seems; None if none would.

    Args:
        looks: A comparison.
        verdict: Which.
        levels: Of the claim's intervals.
        stages: All of the study.
        outlook: How it is foreseen, also from two blocks. By default with a probability of 80 %, by looks.
    """
    blocks = looks.finding.blocks
    latest = looks.latest
    if latest is None or verdict in looks.refused:
        return None
    no_spread = isinstance(latest, Means) and not latest.variance and not (outlook and outlook.variance)
    if not looks.made and (outlook is None or blocks < 2 or no_spread):
        return max(blocks, stages[0][0])  # before that nothing is known
    level = {SUPPORTED: levels.low, CONTRADICTED: levels.high, EQUAL: levels.equal}[verdict]
    look = looks.made[-1] if outlook is None else latest
    outlook = outlook or Outlook()
    if isinstance(look, Means) and outlook.variance is not None:
        own = blocks - 1
        look = replace(look, variance=(USUAL * outlook.variance + own * look.variance) / (USUAL + own))
    for count, share in stages:
        if count > blocks and _would_do(look, looks, verdict, level * share, count, outlook.deviations):
            return count
    return None


def _would_do(look: Means | Signs, looks: Looks, verdict: str, level: float, blocks: int, deviations: float) -> bool:
    """Whether a verdict is likely after so many blocks if they are like those of a look."""
    if isinstance(look, Signs):
        if verdict == EQUAL:
            return False
        signs = [round(each * blocks / look.blocks) for each in look.count(looks.bound)]
        return sign_p(*(signs if verdict == SUPPORTED else reversed(signs))) <= level
    distance = look.estimate - looks.bound
    if verdict == EQUAL:
        distance = -math.inf if looks.practical is None else looks.practical - abs(look.estimate)
    elif verdict == CONTRADICTED:
        distance = -distance
    ahead = replace(look, blocks=blocks)
    return distance >= ahead.half(level) + deviations * ahead.error
