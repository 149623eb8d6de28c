"""What a verdict says, in one sentence."""

from __future__ import annotations

import math

from ..utils.console import counted, rounded
from .comparisons import CONTRADICTED, EQUAL, SUPPORTED, UNDECIDED, Finding
from .decisions import Verdict
from .metrics import Metric, metric_of

__all__ = ['amount', 'look', 'sentence', 'what_is_so']


def sentence(verdict: Verdict) -> str:
    """What is so, as `'a is 9.4 points above b (6.1 to 12.7): supported'`.

    Args:
        verdict: The verdict.
    """
    what, more = what_is_so(verdict)
    after = f' after {seen}' if (seen := look(verdict)) else ''
    if verdict.verdict == UNDECIDED:
        note = '' if more or what == verdict.finding.note else verdict.finding.note
        return f'undecided{after}: {"; ".join(filter(None, (what, more, note)))}'
    so = what if verdict.verdict == EQUAL else f'{what}: {verdict.verdict}'
    return so + (after and f', decided{after}')


def look(verdict: Verdict) -> str:
    """The look that is told where there are more seeds by now, as `'3 of 5 seeds'`; else nothing.

    Args:
        verdict: The verdict.
    """
    findings = verdict.findings if verdict.verdict in (SUPPORTED, EQUAL) else (verdict.finding,)
    if all(each.stage in (None, each.blocks) for each in findings):
        return ''
    return f'{" and ".join(dict.fromkeys(f"{each.stage} of {each.blocks}" for each in findings))} seeds'


def what_is_so(verdict: Verdict) -> tuple[str, str]:
    """What is known, as `'a is 9.4 points above b (6.1 to 12.7)'`, and what would decide an undecided claim.

    Args:
        verdict: The verdict.
    """
    metric, words = metric_of(verdict.claim.metric), _Words(verdict)
    if verdict.verdict == SUPPORTED:
        return ' and '.join(words.effect(each.told) for each in verdict.findings), ''
    if verdict.verdict == CONTRADICTED:
        return words.effect(verdict.finding.told), ''
    if verdict.verdict == EQUAL:
        pairs = (f'{words.runs(each)}{words.interval(each)}' for each in verdict.findings)
        within = amount(verdict.claim.equal_within or 0.0, metric)
        return f'{", ".join(pairs)}: equal within {within}{words.of}', ''
    return _open(verdict, words)


def _open(verdict: Verdict, words: _Words) -> tuple[str, str]:
    """What is known of a claim that is undecided, and what would decide it."""
    finding, more = verdict.finding.told, ''
    if verdict.more_seeds:
        more = f'about {counted(verdict.more_seeds, "more seed")}'
    if finding.stage is None:
        if not any(finding.values):
            return finding.note or 'nothing is known', ''
        need = f'verdicts need {finding.blocks + verdict.more_seeds} seeds' if verdict.more_seeds else ''
        few = finding.blocks < 3 and not words.unreached(finding)
        return words.values(finding) if few else f'{words.effect(finding)} so far', need
    if finding.spread == 0:
        return words.constant(finding), ''
    if finding.low is None and finding.high is None:
        return (words.effect(finding), more) if finding.counts else (finding.note, '')
    ends = [abs(end) for end in (finding.low, finding.high) if end is not None]
    small = finding.error is not None and finding.estimate is not None and not finding.comparison.ratio
    if small and verdict.claim.two_sided and abs(finding.estimate or 0.0) < (finding.error or 0.0):
        most = f'at most {words.number(max(ends))}{words.unit} either way'
        return f'no difference seen between {words.runs(finding)}{words.of}, {most}', more
    last = '' if finding.note else f'{verdict.last} seeds would not decide it'
    return words.effect(finding), more or last


def amount(value: float, metric: Metric) -> str:
    """`'1 point'`."""
    unit, value = metric.difference, value / metric.scale
    return f'{value:g}{unit.removesuffix("s") if value == 1 and unit in (" points", " epochs") else unit}'


class _Words:
    """The numbers of a verdict in words; all of them with as many decimals."""

    def __init__(self, verdict: Verdict) -> None:
        self.metric = metric_of(verdict.claim.metric)
        self.unit = self.metric.difference
        label = self.metric.label.partition(',')[0]  # without its unit
        self.of = '' if verdict.claim.metric == 'top1' or label in self.unit else f' in {label}'
        shown = [value for each in verdict.findings for value in (each.estimate, each.low, each.high) if value]
        fewer = max(self.metric.decimals - (not self.metric.exact), min(self.metric.decimals, 1))
        lost = any(round(abs(value) / self.metric.scale, fewer) == 0 for value in shown)
        self.decimals = self.metric.decimals if lost else fewer

    def runs(self, finding: Finding) -> str:
        return f'{finding.comparison.larger} and {finding.comparison.smaller}'

    def number(self, value: float) -> str:
        return rounded(value / self.metric.scale, self.decimals)

    def seeds(self, finding: Finding) -> str:
        """`'5 seeds'`: those that the estimate is of."""
        return counted(finding.stage or finding.blocks, 'block' if self.metric.by_steps else 'seed')

    def unreached(self, finding: Finding) -> bool:
        """Whether neither run ever reached the threshold."""
        return self.metric.reached and not any(math.isfinite(each) for values in finding.shown for each in values)

    def effect(self, finding: Finding) -> str:
        """`'a is 9.4 points above b (6.1 to 12.7)'`."""
        larger, smaller = finding.comparison.larger, finding.comparison.smaller
        if self.metric.exact and finding.values[0] == finding.values[1]:
            return f'{self.runs(finding)} are equal{self.of}'
        threshold = self.metric.label.rpartition(' to ')[2]  # of what is reached
        if self.unreached(finding):
            return f'neither {larger} nor {smaller} reached {threshold} in {self.seeds(finding)}'
        if finding.counts == (0, 0):
            return f'neither {larger} nor {smaller} was first to {threshold} in {self.seeds(finding)}'
        if finding.counts is not None:
            more, fewer = finding.counts
            blocks, bound, ratio = finding.stage or finding.blocks, finding.comparison.bound, finding.comparison.ratio
            if bound != (1.0 if ratio else 0.0):
                side, most = ('above', more) if more >= fewer else ('below', fewer)
                value = f'{larger} / {smaller}' if ratio else f'{larger} − {smaller}'
                limit = rounded(bound, 2) if ratio else f'{self.number(bound)}{self.unit}'
                return f'{value} is {side} {limit} in {most} of {blocks} blocks'
            larger, smaller, most = (larger, smaller, more) if more >= fewer else (smaller, larger, fewer)
            return f'{smaller} needs fewer {self.metric.label} than {larger} in {most} of {blocks} blocks'
        estimate = finding.estimate or 0.0
        if finding.comparison.ratio:
            return f'{larger} is {rounded(estimate, 2)} times {smaller}{self.of}{self.interval(finding)}'
        flipped = estimate < 0
        if flipped:
            larger, smaller = smaller, larger
        difference = f'{self.number(abs(estimate))}{self.unit}'
        how = f'{larger} is {difference} above {smaller}{self.of}'
        if self.metric.reached:
            how = f'{smaller} reaches {threshold} {difference} sooner than {larger}'
        return how + self.interval(finding, flipped=flipped)

    def interval(self, finding: Finding, *, flipped: bool = False) -> str:
        """`' (6.1 to 12.7)'`."""
        low, high = (-math.inf if finding.low is None else finding.low), finding.high
        high = math.inf if high is None else high
        if low == high or (math.isinf(low) and math.isinf(high)):
            return ''
        if flipped:
            low, high = -high, -low
        first, last = (rounded(each, 2) if finding.comparison.ratio else self.number(each) for each in (low, high))
        if math.isinf(low) or math.isinf(high):
            return f' (at most {last})' if math.isinf(low) else f' (at least {first})'
        return f' ({first} to {last})'

    def values(self, finding: Finding) -> str:
        """`'a 80.1 and 80.4, b 79.0 and 79.5'`."""
        runs = (finding.comparison.larger, finding.comparison.smaller)
        parts = (
            f'{run} {" and ".join(map(self._value, values))}' for run, values in zip(runs, finding.values, strict=True)
        )
        return ', '.join(parts) + self.of

    def constant(self, finding: Finding) -> str:
        """`'in all 5 seeds a has 100.00 % and b 90.00 %'`: runs whose difference is always the same."""
        first, second = finding.comparison.larger, finding.comparison.smaller
        lows, highs = ([self._value(end(values)) for values in finding.shown] for end in (min, max))
        if lows != highs:
            parts = zip((first, second), lows, highs, strict=True)
            ranges = ', '.join(f'{run} {low} to {high}{self.metric.unit}' for run, low, high in parts)
            return f'{self.effect(finding)} in all {self.seeds(finding)} ({ranges})'
        values = f'{lows[0]}{self.metric.unit}', f'{lows[1]}{self.metric.unit}'
        runs = f'{first} and {second} have {values[0]}'
        if values[0] != values[1]:
            runs = f'{first} has {values[0]} and {second} {values[1]}'
        return f'in all {self.seeds(finding)} {runs}{self.of}'

    def _value(self, value: float) -> str:
        return rounded(value / self.metric.scale, self.metric.decimals) if math.isfinite(value) else 'never'
