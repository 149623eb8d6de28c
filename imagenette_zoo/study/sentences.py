"""What a verdict says, in one sentence."""

from __future__ import annotations

import math

from ..utils.console import counted
from .comparisons import CONTRADICTED, EQUAL, SUPPORTED, UNDECIDED, Finding
from .decisions import Verdict
from .metrics import Metric, metric_of

__all__ = ['amount', 'sentence', 'what_is_so']


def sentence(verdict: Verdict) -> str:
    """What is so, as `'a is 9.4 points above b (6.1 to 12.7): supported'`.

    Args:
        verdict: The verdict.
    """
    what, more = what_is_so(verdict)
    if verdict.verdict == UNDECIDED:
        note = '' if more or what == verdict.finding.note else verdict.finding.note
        return f'undecided: {"; ".join(filter(None, (what, more, note)))}'
    return what if verdict.verdict == EQUAL else f'{what}: {verdict.verdict}'


def what_is_so(verdict: Verdict) -> tuple[str, str]:
    """What is known, as `'a is 9.4 points above b (6.1 to 12.7)'`, and what would decide an undecided claim.

    Args:
        verdict: The verdict.
    """
    metric, words = metric_of(verdict.claim.metric), _Words(verdict)
    if verdict.verdict == SUPPORTED:
        return ' and '.join(map(words.effect, verdict.findings)), ''
    if verdict.verdict == CONTRADICTED:
        return words.effect(verdict.finding), ''
    if verdict.verdict == EQUAL:
        pairs = (f'{words.runs(each)}{words.interval(each)}' for each in verdict.findings)
        within = amount(verdict.claim.equal_within or 0.0, metric)
        return f'{", ".join(pairs)}: equal within {within}{words.of}', ''
    return _open(verdict, words)


def _open(verdict: Verdict, words: _Words) -> tuple[str, str]:
    """What is known of a claim that is undecided, and what would decide it."""
    finding, more = verdict.finding, ''
    if verdict.more_seeds:
        more = f'about {counted(verdict.more_seeds, "more seed")}'
    if finding.stage is None:
        if not any(finding.values):
            return finding.note or 'nothing is known', ''
        need = f'verdicts need {finding.blocks + verdict.more_seeds} seeds' if verdict.more_seeds else ''
        return words.values(finding) if finding.blocks < 3 else f'{words.effect(finding)} so far', need
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
        text = f'{value / self.metric.scale:,.{self.decimals}f}'
        return (text if text.strip('-0.,') else text.lstrip('-')).replace('-', '−')

    def effect(self, finding: Finding) -> str:
        """`'a is 9.4 points above b (6.1 to 12.7)'`."""
        larger, smaller = finding.comparison.larger, finding.comparison.smaller
        if self.metric.exact and finding.values[0] == finding.values[1]:
            return f'{self.runs(finding)} are equal{self.of}'
        if finding.counts is not None:
            more, fewer = finding.counts
            larger, smaller, most = (larger, smaller, more) if more >= fewer else (smaller, larger, fewer)
            blocks = finding.stage or finding.blocks
            return f'{smaller} needs fewer {self.metric.label} than {larger} in {most} of {blocks} blocks'
        estimate = finding.estimate or 0.0
        if finding.comparison.ratio:
            return f'{larger} is {estimate:.2f} times {smaller}{self.of}{self.interval(finding)}'
        flipped = estimate < 0
        if flipped:
            larger, smaller = smaller, larger
        how = f'{larger} is {self.number(abs(estimate))}{self.unit} above {smaller}{self.of}'
        return how + self.interval(finding, flipped=flipped)

    def interval(self, finding: Finding, *, flipped: bool = False) -> str:
        """`' (6.1 to 12.7)'`."""
        low, high = (-math.inf if finding.low is None else finding.low), finding.high
        high = math.inf if high is None else high
        if low == high or (math.isinf(low) and math.isinf(high)):
            return ''
        if flipped:
            low, high = -high, -low
        first, last = (f'{each:.2f}' if finding.comparison.ratio else self.number(each) for each in (low, high))
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

    def _value(self, value: float) -> str:
        return self.number(value) if math.isfinite(value) else 'never'
