"""Verdicts on the claims of a study: all comparisons together, corrected as `statistics.py` says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .comparisons import (
    CONTRADICTED,
    EQUAL,
    SUPPORTED,
    UNDECIDED,
    Finding,
    Levels,
    Looks,
    Outlook,
    Samples,
    Stages,
    blocks_needed,
    count,
    finding_of,
    judged_as,
    look_at,
)
from .metrics import metric_of
from .plan import MOST_COMPARED, STAGES, STEP_TIME_STAGES, Claim, Comparison, Study
from .records import Record, by_run, validation_images
from .statistics import LEVEL, claim_p, holm

__all__ = ['Test', 'Verdict', 'all_pairs', 'judge', 'run_tests', 'unjudged', 'ways', 'with_pairs']


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
        return '; '.join(dict.fromkeys(filter(None, [self.claim.note, *(each.note for each in self.findings)])))


def all_pairs(runs: Iterable[str], against: Collection[str] = ()) -> tuple[Claim, ...]:
    """A claim for each pair of runs, that the one that is named first has the higher top-1.

    Args:
        runs: Their names, the largest first.
        against: Those of them that are baselines: only pairs of one of these and one of the others are compared, then.
    """
    return tuple(
        Claim(f'{a}, {b}', f'{a} is above {b}.', 'top1', (f'{a} > {b}',), (Comparison(a, b, 0.0),), 1.0)
        for a, b in itertools.combinations(runs, 2)
        if not against or (a in against) != (b in against)
    )


def with_pairs(study: Study, records: Iterable[Record]) -> Study:
    """The study; one without claims asks of each pair of its runs on the same images which has the higher top-1.

    Runs without a training count, too: what is corrected together must not depend on what is finished. Where there are
    baselines it asks so of each run and each baseline that has the seeds for a look.
    """
    runs = _compared(study, records)
    if study.claims or len(runs) < 2 or unjudged(study, records):
        return study
    against = {run for run, each in runs.items() if each and each[0].packaged}
    few = {run for run in against if len(runs[run]) < study.stages[0][0]}  # which would only raise the bar for others
    means = {run: sum(each.result.top1 for each in own) / len(own) for run, own in runs.items() if own}
    ranked = sorted(runs.keys() - few, key=lambda run: (-means.get(run, math.inf), list(runs).index(run)))
    return replace(study, claims=all_pairs(ranked, against))


def unjudged(study: Study, records: Iterable[Record]) -> str:
    """Why no two runs of a study are judged; nothing where they are, or where there is one run."""
    runs = _compared(study, records)
    own = {run: each for run, each in runs.items() if not (each and each[0].packaged)}
    if study.claims or len(runs) < 2:
        return ''
    images: dict[str, set[str]] = {}
    for record in (record for each in own.values() for record in each):
        kind, val = validation_images(record.result)
        images.setdefault(kind, set()).add(val or str(record.result.dataset.get('name')))
    if any(len(known) > 1 for known in images.values()):
        return 'no verdicts: the runs are on several data sets'
    if len(own) == len(runs) > MOST_COMPARED:
        return (
            f'no verdicts: each pair of up to {MOST_COMPARED} runs is judged, and these are {len(runs)}. '
            'Report on fewer, or write the claims into a study file'
        )
    return ''


def _compared(study: Study, records: Iterable[Record]) -> dict[str, list[Record]]:
    """The trainings of each run of a study, and of each that it is compared with."""
    return {**{run: [] for run in study.runs}, **by_run(records)}


@dataclass(frozen=True)
class Test:
    """A claim that is tested: its comparisons, the p-value of each verdict, and what Holm's method makes of it.

    Args:
        claim: Which.
        looks: Of each comparison.
        stages: At which it is looked at.
        p: Of each verdict.
        adjusted: The least of them after Holm.
        step: The number of claims, less those that were decided before this one: the level is divided by it.
    """

    claim: Claim
    looks: Sequence[Looks]
    stages: Stages
    p: Mapping[str, float]
    adjusted: float = 1.0
    step: int = 1

    @property
    def decided(self) -> bool:
        return self.adjusted <= LEVEL

    @property
    def levels(self) -> Levels:
        """Of its intervals."""
        return Levels.of(self.claim, LEVEL / self.step)


def run_tests(claims: Sequence[Claim], samples: Samples, stages: Stages = STAGES) -> list[Test | None]:
    """Tests the claims of a study; None for one about exact numbers, which needs no test.

    Args:
        claims: All claims of the study: they are corrected together.
        samples: `{(metric, run): numbers}`.
        stages: After how many blocks one looks, with the share of the level of each look. Each that there are blocks
            for is made: who adds seeds by hand looks again, and pays for it.
    """
    tests: dict[int, Test] = {}
    for index, claim in enumerate(claims):
        metric = metric_of(claim.metric)
        if not metric.exact:
            own = STEP_TIME_STAGES if metric.by_steps else stages
            claim = judged_as(claim, samples, own[0][0])
            looks = [look_at(claim, each, samples, own) for each in claim.comparisons]
            tests[index] = Test(claim, looks, own, _p_values(claim, looks))
    least = np.array([min(each.p.values()) for each in tests.values()])
    adjusted, ranks = holm(least), np.argsort(np.argsort(least, kind='stable'), kind='stable')
    decided = int((adjusted <= LEVEL).sum())
    for index, rank, own_p in zip(list(tests), ranks.tolist(), adjusted.tolist(), strict=True):
        tests[index] = replace(tests[index], adjusted=own_p, step=len(tests) - min(rank, decided))
    return [tests.get(index) for index in range(len(claims))]


def judge(claims: Sequence[Claim], samples: Samples, stages: Stages = STAGES) -> list[Verdict]:
    """The verdicts on the claims of a study; arguments as of `run_tests`."""
    tests = run_tests(claims, samples, stages)
    pairs = zip(claims, tests, strict=True)
    return [_verdict(test) if test else _counted(claim, samples) for claim, test in pairs]


def _p_values(claim: Claim, looks: Sequence[Looks]) -> dict[str, float]:
    """The p-value of each verdict."""
    verdicts = (SUPPORTED, CONTRADICTED, EQUAL)
    parts = (np.array([each.least(verdict) for each in looks]) for verdict in verdicts)
    return dict(zip(verdicts, map(float, claim_p(*parts, two_sided=claim.two_sided)), strict=True))


def _verdict(test: Test) -> Verdict:
    """The verdict on a claim that is tested at the level over the step of Holm's method."""
    claim, looks = test.claim, test.looks
    verdict, own = min(test.p.items(), key=lambda each: each[1])
    if not test.decided:
        verdict = UNDECIDED
    else:  # equal only where no other is reached
        verdict, own = next((each for each in test.p.items() if each[1] * test.step <= LEVEL), (verdict, own))
    findings = tuple(finding_of(each, verdict, test.levels, claim, test.stages) for each in looks)
    side, choose = (CONTRADICTED, min) if verdict == CONTRADICTED else (EQUAL if verdict == EQUAL else SUPPORTED, max)
    deciding = choose(range(len(looks)), key=lambda index: looks[index].least(side))
    more = None
    if verdict == UNDECIDED:
        blocks = {each.finding.comparison: each.finding.blocks for each in looks}
        more = min((max(n - blocks[each] for each, n in way.items()) for way in ways(test)), default=None)
    adjusted = max(test.adjusted, min(1.0, own * test.step))
    return Verdict(claim, verdict, own, adjusted, findings, findings[deciding], more, test.stages[-1][0])


def ways(test: Test, outlook: Outlook | None = None) -> list[dict[Comparison, int]]:
    """The ways in which a claim would be decided: how many blocks comparisons would need, where they need more.

    One comparison the other way would do, or else it takes all.

    Args:
        test: The claim.
        outlook: As `blocks_needed` has it.
    """
    known = [(each, each.latest) for each in test.looks]
    against = [each for each, look in known if look is not None and look.estimate <= each.bound]
    open_ones = [each for each in test.looks if each.least(SUPPORTED) > test.levels.low]
    candidates = [
        *([(each, CONTRADICTED)] for each in against),
        [] if against else [(each, SUPPORTED) for each in open_ones],
        [(each, EQUAL) for each in test.looks],
    ]
    found = []
    for candidate in candidates:
        needed = {
            each.finding.comparison: blocks_needed(each, verdict, test.levels, test.stages, outlook)
            for each, verdict in candidate
        }
        blocks = {comparison: count for comparison, count in needed.items() if count is not None}
        if blocks and len(blocks) == len(needed):
            found.append(blocks)
    return found


def _counted(claim: Claim, samples: Samples) -> Verdict:
    """The verdict on a claim about exact numbers, which needs no test."""
    findings = tuple(count(claim, each, samples) for each in claim.comparisons)
    unknown = [each for each in findings if each.estimate is None]
    against = [each for each in findings if each.estimate is not None and not each.holds]
    verdict = CONTRADICTED if against else UNDECIDED if unknown else SUPPORTED
    p = 1.0 if verdict == UNDECIDED else 0.0
    return Verdict(claim, verdict, p, p, findings, [*against, *unknown, *findings][0], None, 0)
