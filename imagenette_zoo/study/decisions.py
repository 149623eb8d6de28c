"""Verdicts on the claims of a study: all comparisons together, corrected as `statistics.py` says."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .comparisons import (
    CONTRADICTED,
    EQUAL,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Levels,
    Looks,
    Samples,
    Stages,
    count,
    finding_of,
    further_seeds,
    look_at,
)
from .metrics import metric_of
from .plan import STAGES, Claim, Comparison
from .statistics import LEVEL, claim_p, holm

__all__ = ['Verdict', 'all_pairs', 'judge']


@dataclass(frozen=True)
class Verdict:
    """The result of a claim.

    Args:
        claim: Which.
        verdict: `supported`, `contradicted`, `equal` (within what is practical) or `undecided`.
        p: Of this verdict over all looks; the smallest of all verdicts where it is undecided.
        p_adjusted: After Holm: at most 0.05 exactly if it is decided.
        findings: Of each comparison.
        finding: The one that decided, or that keeps the claim from being decided.
        more_seeds: How many further seeds would decide it; None where it is decided or where no stage would.
        last: The blocks of the last stage.
    """

    claim: Claim
    verdict: str
    p: float
    p_adjusted: float
    findings: tuple[Finding, ...]
    finding: Finding
    more_seeds: int | None
    last: int

    @property
    def estimate(self) -> float | None:
        """The difference or ratio that decided."""
        return self.finding.estimate

    @property
    def low(self) -> float | None:
        """The lower end of its corrected interval."""
        return self.finding.low

    @property
    def high(self) -> float | None:
        """The upper end."""
        return self.finding.high

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return self.finding.blocks

    @property
    def stage(self) -> int | None:
        """After how many blocks it was decided, or last looked at; None before the first look."""
        return self.finding.stage

    @property
    def note(self) -> str:
        """What to know about it."""
        return '; '.join(dict.fromkeys(each.note for each in self.findings if each.note))


def all_pairs(runs: Iterable[str], metric: str = 'top1', practical: float | None = 1.0) -> tuple[Claim, ...]:
    """A claim for each pair of runs, that the one that is named first is larger.

    Args:
        runs: Their names, the largest first.
        metric: By what they are compared.
        practical: The least difference that matters.
    """
    return tuple(
        Claim(f'{a}, {b}', f'{a} is above {b}.', metric, (f'{a} > {b}',), (Comparison(a, b, 0.0),), practical)
        for a, b in itertools.combinations(runs, 2)
    )


def judge(claims: Sequence[Claim], samples: Samples, stages: Stages = STAGES) -> list[Verdict]:
    """The verdicts on the claims of a study.

    Args:
        claims: All claims of the study: they are corrected together.
        samples: `{(metric, run): numbers}`.
        stages: After how many blocks one looks, with the share of the level of each look. Each that there are blocks
            for is made: who adds seeds by hand looks again, and pays for it.
    """
    exact = [metric_of(claim.metric).exact for claim in claims]
    looks = {
        index: [look_at(claim, each, samples, stages) for each in claim.comparisons]
        for index, claim in enumerate(claims)
        if not exact[index]
    }
    p = {index: _p_values(claims[index], each) for index, each in looks.items()}
    least = np.array([min(each.values()) for each in p.values()])
    adjusted, ranks = holm(least), np.argsort(np.argsort(least, kind='stable'), kind='stable')
    decided = int((adjusted <= LEVEL).sum())
    verdicts = {}
    for index, rank, own in zip(looks, ranks.tolist(), adjusted.tolist(), strict=True):
        step = len(looks) - min(rank, decided)
        verdicts[index] = _verdict(claims[index], looks[index], p[index], own, step, stages)
    return [verdicts.get(index) or _counted(claim, samples) for index, claim in enumerate(claims)]


def _p_values(claim: Claim, looks: Sequence[Looks]) -> dict[str, float]:
    """The p-value of each verdict."""
    verdicts = (SUPPORTED, CONTRADICTED, EQUAL)
    parts = (np.array([each.least(verdict) for each in looks]) for verdict in verdicts)
    return dict(zip(verdicts, map(float, claim_p(*parts, two_sided=claim.two_sided)), strict=True))


def _verdict(
    claim: Claim, looks: Sequence[Looks], p: Mapping[str, float], adjusted: float, step: int, stages: Stages
) -> Verdict:
    """The verdict on a claim that is tested at the level over the step of Holm's method."""
    verdict, own = min(p.items(), key=lambda each: each[1])
    if adjusted > LEVEL:
        verdict = UNDECIDED
    else:  # equal only where no other is reached
        verdict, own = next((each for each in p.items() if each[1] * step <= LEVEL), (verdict, own))
    levels = Levels.of(claim, LEVEL / step)
    findings = tuple(finding_of(each, verdict, levels, claim, stages) for each in looks)
    side, choose = (CONTRADICTED, min) if verdict == CONTRADICTED else (EQUAL if verdict == EQUAL else SUPPORTED, max)
    deciding = choose(range(len(looks)), key=lambda index: looks[index].least(side))
    more = _more_seeds(looks, findings, levels, stages) if verdict == UNDECIDED else None
    adjusted = max(adjusted, min(1.0, own * step))
    return Verdict(claim, verdict, own, adjusted, findings, findings[deciding], more, stages[-1][0])


def _more_seeds(looks: Sequence[Looks], findings: Sequence[Finding], levels: Levels, stages: Stages) -> int | None:
    """How many further seeds would decide a claim: one comparison the other way would do, or else it takes all."""

    def all_of(needed: Iterable[int | None]) -> int | None:
        numbers = list(needed)
        known = [each for each in numbers if each is not None]
        return max(known, default=None) if known == numbers else None

    against = [each.more_seeds for each in findings if each.estimate is not None and not each.holds]
    open_ones = [each for each in zip(looks, findings, strict=True) if each[0].least(SUPPORTED) > levels.low]
    ways = [
        *against,
        None if against else all_of(finding.more_seeds for _, finding in open_ones),
        all_of(further_seeds(each, EQUAL, levels, stages) for each in looks),
    ]
    return min((each for each in ways if each is not None), default=None)


def _counted(claim: Claim, samples: Samples) -> Verdict:
    """The verdict on a claim about exact numbers, which needs no test."""
    findings = tuple(count(claim, each, samples) for each in claim.comparisons)
    unknown = [each for each in findings if each.estimate is None]
    against = [each for each in findings if each.estimate is not None and not each.holds]
    verdict = CONTRADICTED if against else UNDECIDED if unknown else SUPPORTED
    p = 1.0 if verdict == UNDECIDED else 0.0
    return Verdict(claim, verdict, p, p, findings, [*against, *unknown, *findings][0], None, 0)
