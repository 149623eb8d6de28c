"""The section of a report on the claims of a study: what was expected, what was found, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..study.comparisons import Finding
from ..study.decisions import Verdict, judge
from ..study.metrics import metric_of
from ..study.plan import Study
from ..study.records import Record, samples_of
from ..study.statistics import LEVEL
from .drawing import Numbers
from .section import count, interval_numbers, mean_text, signed

__all__ = ['HOW', 'claims_summary', 'describe_claim', 'numbers']

SYMBOLS = {'supported': '✓', 'contradicted': '✗', 'equal': '=', 'undecided': '?'}
_VERDICTS = (
    'Runs with the same seed are a pair. A claim is tested on the differences of its pairs by Student’s t, which holds '
    'whatever the spreads of the runs are. Final top-1 must hold for other images, too: the variance between images of '
    'the paired difference is added to that between seeds. It takes three seeds at least. Seeds are looked at in '
    'stages, and each look spends its share of the level. The p-values of all claims are corrected together by '
    f'Holm’s method: what stays at or below {LEVEL:g} is decided. Chance alone thus decides a claim in one study of '
    'twenty at most, however many seeds are added. Equal means that the difference is smaller than what matters. All '
    'else is undecided, which is not the same as no effect. Intervals are those that decided, so they are wider than '
    'single 95 % intervals. A claim of several comparisons is supported if all hold. Parameters and GMACs are '
    'counted: no test is needed.'
)
_MORE_SEEDS = (
    'How many more seeds would decide a claim: as many as give the test a power of 80 %, if the difference and the '
    'spread are what they seem. More seeds do not help where the images are too few.'
)
HOW = [('Verdicts', _VERDICTS), ('More seeds', _MORE_SEEDS)]  # headings and paragraphs


def numbers(study: Study, runs: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """The verdict on each claim of a study.

    Args:
        study: Its claims are judged.
        runs: The trainings of each run.
    """
    return [_claim(verdict) for verdict in judge(study.claims, samples_of(study, runs), study.stages)]


def _claim(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        'name': claim.name,
        'sentence': claim.sentence,
        'metric': claim.metric,
        'order': claim.order,
        'verdict': verdict.verdict,
        'p': verdict.p,
        'p_adjusted': verdict.p_adjusted,
        'more_seeds': verdict.more_seeds,
        'last_stage': verdict.last,
        'findings': [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    rest = ('low', 'high', 'p', 'holds', 'more_seeds', 'note')
    return {
        **asdict(finding.comparison),
        'larger_mean': interval_numbers(finding.larger) if finding.larger else None,
        'smaller_mean': interval_numbers(finding.smaller) if finding.smaller else None,
        'effect': finding.estimate,
        **{name: getattr(finding, name) for name in rest},
    }


def claims_summary(content: Numbers) -> str:
    """How many claims of each verdict."""
    verdicts = [claim['verdict'] for claim in content['claims']]
    counts = ', '.join(f'{verdicts.count(verdict)} {verdict}' for verdict in SYMBOLS if verdict in verdicts)
    return f'{count(len(verdicts), "claim")}: {counts}.'


def describe_claim(claim: Numbers) -> dict[str, Any]:
    """A claim and its verdict in words: `facts` and each of `findings` are pairs of label and text."""
    metric = claim['metric']
    exact = metric_of(metric).exact
    facts = [
        ('metric', metric_of(metric).meaning),
        ('p after Holm', 'counted, not estimated' if exact else _p(claim['p_adjusted'])),
        ('what would decide it', _remedy(claim)),
    ]
    return {
        **{name: claim[name] for name in ('name', 'sentence', 'verdict')},
        'symbol': SYMBOLS[claim['verdict']],
        'facts': [(label, text) for label, text in facts if text],
        'findings': [_describe_finding(finding, metric) for finding in claim['findings']],
    }


def _p(p: float) -> str:
    return 'below 0.001' if p < 0.001 else f'{p:.3f}'


def _remedy(claim: Numbers) -> str:
    """How many more seeds would decide an undecided claim."""
    if claim['verdict'] != 'undecided':
        return ''
    findings = claim['findings']
    if any(finding[mean] is None for finding in findings for mean in ('larger_mean', 'smaller_mean')):
        return 'it cannot be judged before all of its runs are known'
    if any(finding['effect'] is None for finding in findings):
        return 'other numbers: with these it cannot be judged'
    untested = [finding for finding in findings if finding['low'] is None]
    if any(finding['more_seeds'] is None for finding in untested):
        return 'other numbers: the note says why these cannot be tested'
    if untested:
        most = max(finding['more_seeds'] for finding in untested)
        return f'at least {count(most, "more seed")} of each run, before it can be tested at all'
    if claim['more_seeds'] is None:
        return f'no number of seeds up to {claim["last_stage"]:,}, if the effect is what it seems'
    return f'about {count(claim["more_seeds"], "more seed")} of each run, if the effect is what it seems'


def _describe_finding(finding: Numbers, metric: str) -> list[tuple[str, str]]:
    lines = [('expected', _expected(finding, metric))]
    for which in ('larger', 'smaller'):
        stat = finding[f'{which}_mean']
        if stat is None:
            lines.append((finding[which], 'nothing is known'))
        else:
            lines.append(
                (finding[which], f'{mean_text(stat, metric)}{metric_of(metric).unit}, {count(stat["count"], "seed")}')
            )
    if finding['effect'] is not None:
        lines.append(('ratio' if finding['ratio'] else 'difference', _effect(finding, metric)))
    if finding['low'] is not None and not metric_of(metric).exact:
        lines.append(
            ('p', f'{_p(finding["p"])}, the difference {"as expected" if finding["holds"] else "the other way"}')
        )
    if finding['note']:
        lines.append(('note', finding['note']))
    return lines


def _expected(finding: Numbers, metric: str) -> str:
    larger, smaller, bound = finding['larger'], finding['smaller'], finding['bound']
    if finding['ratio']:
        return f'{larger} > {bound:g} × {smaller}'
    known = metric_of(metric)
    amount = f'{abs(bound) / known.scale:g}{known.difference}'
    if bound < 0:
        return f'{larger} ≥ {smaller}, or below it by less than {amount}'
    return f'{larger} > {smaller}{f" by more than {amount}" if bound else ""}'


def _effect(finding: Numbers, metric: str) -> str:
    """`'+1.23 points, corrected interval +0.50 to +1.96'`."""
    known = metric_of(metric)

    def write(value: float) -> str:
        return f'{value:,.3f}' if finding['ratio'] else signed(f'{value / known.scale:+,.{known.decimals}f}')

    effect = f'{write(finding["effect"])}{"" if finding["ratio"] else known.difference}'
    if finding['low'] is None or known.exact:
        return effect
    return f'{effect}, corrected interval {write(finding["low"])} to {write(finding["high"])}'
