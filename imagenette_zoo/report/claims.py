"""The section of a report on the claims of a study: what was expected, what was found, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..study.comparisons import UNDECIDED, Finding
from ..study.decisions import Verdict, judge
from ..study.metrics import metric_of
from ..study.plan import Study
from ..study.records import Record, samples_of
from ..study.sentences import amount, look, what_is_so
from ..study.statistics import LEVEL
from ..utils.console import counted
from .drawing import Numbers
from .forest import Bar, bars
from .section import effect_text, interval_numbers, interval_text, mean_text

__all__ = ['HOW', 'claims_summary', 'describe_claims', 'numbers']

SYMBOLS = {'supported': '✓', 'contradicted': '✗', 'equal': '=', 'undecided': '?'}
_VERDICTS = (
    'Runs with the same seed are a pair. A claim is tested on the differences of its pairs by Student’s t, which holds '
    'whatever the spreads of the runs are. Final top-1 must hold for other images, too: the variance between images of '
    'the paired difference is added to that between seeds. It takes three seeds at least. Seeds are looked at in '
    'stages, and each look spends its share of the level. The p-values of all claims are corrected together by '
    f'Holm’s method: with a p after Holm of {LEVEL:g} or less a claim is decided. Chance alone thus decides a claim in '
    'one study of twenty at most, however many seeds are added. In more it may where seeds are skewed and also spread '
    'very unequally. Equal means that the difference is smaller than what '
    'matters. All else is undecided, which is not the same as no effect. Intervals are those that decided, so they are '
    'wider than single 95 % intervals. A claim of several comparisons is supported if all hold. Parameters and GMACs '
    'are counted: no test is needed.'
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
    what, more = what_is_so(verdict)
    return {
        'name': claim.name,
        'sentence': claim.sentence,
        'metric': claim.metric,
        'order': claim.order,
        'note': claim.note or ('' if more or verdict.verdict != UNDECIDED else verdict.finding.note),
        'practical': claim.equal_within,
        'verdict': verdict.verdict,
        'what_is_so': what,
        'look': look(verdict),
        'what_would_decide': more,
        'p': verdict.p,
        'p_adjusted': verdict.p_adjusted,
        'more_seeds': verdict.more_seeds,
        'last_stage': verdict.last,
        'findings': [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    """A comparison as it is spoken of; `at_most` where the ratio is expected to be below its bound."""
    rest = ('low', 'high', 'of_all', 'p', 'blocks', 'stage', 'counts', 'more_seeds', 'note')
    told = finding.told
    return {
        **asdict(told.comparison),
        'at_most': finding.comparison.at_most,
        'holds': finding.holds,
        'larger_mean': interval_numbers(told.larger) if told.larger else None,
        'smaller_mean': interval_numbers(told.smaller) if told.smaller else None,
        'effect': told.estimate,
        **{name: getattr(told, name) for name in rest},
    }


def claims_summary(content: Numbers) -> str:
    """How many claims, or pairs of runs, are decided."""
    claims = content['claims']
    verdicts = [claim['verdict'] for claim in claims]
    counts = {verdict: verdicts.count(verdict) for verdict in SYMBOLS if verdict in verdicts}
    words = ', '.join(f'{number} {verdict}' for verdict, number in counts.items() if verdict != 'undecided')
    decided = f'{len(claims) - counts.get("undecided", 0)} decided{f" ({words})" if words else ""}'
    undecided = f', {counts["undecided"]} undecided' if 'undecided' in counts else ''
    pairs = 'pair of runs' if len(claims) == 1 else 'pairs of runs'
    what = f'{len(claims)} {pairs}' if all(map(_is_pair, claims)) else counted(len(claims), 'claim')
    return f'{what}: {decided}{undecided}.'


def _is_pair(claim: Numbers) -> bool:
    """Whether it is no sentence of the study's, but only asks which of two runs is above."""
    finding, *others = claim['findings']
    return not others and claim['name'] == f'{finding["larger"]}, {finding["smaller"]}'


def describe_claims(content: Numbers) -> list[dict[str, Any]]:
    """The claims and their verdicts in words, decided ones first."""
    order = list(SYMBOLS)
    pairs = zip(content['claims'], bars(content['claims']), strict=True)
    return [_describe(*each) for each in sorted(pairs, key=lambda each: order.index(each[0]['verdict']))]


def _describe(claim: Numbers, drawn: Sequence[Bar]) -> dict[str, Any]:
    """A claim in words: `facts` and each of `findings` are pairs of label and text."""
    metric = claim['metric']
    exact = metric_of(metric).exact
    facts = [
        ('metric', metric_of(metric).meaning),
        ('p after Holm', 'counted, not estimated' if exact else _p(claim['p_adjusted'])),
        ('undecided' if claim['verdict'] == UNDECIDED else 'decided', claim['look'] and f'after {claim["look"]}'),
        ('what would decide it', claim['what_would_decide']),
        ('note', claim['note']),
    ]
    return {
        **{name: claim[name] for name in ('verdict', 'what_is_so', 'note')},
        'aside': '; '.join(filter(None, [claim['look'] and f'after {claim["look"]}', claim['what_would_decide']])),
        'title': '' if _is_pair(claim) else f'{claim["name"]}: {claim["sentence"]}',
        'symbol': SYMBOLS[claim['verdict']],
        'bars': drawn,
        'facts': [(label, text) for label, text in facts if text],
        'findings': [_describe_finding(finding, metric) for finding in claim['findings']],
    }


def _p(p: float) -> str:
    return 'below 0.001' if p < 0.001 else f'{p:.3f}'


def _describe_finding(finding: Numbers, metric: str) -> list[tuple[str, str]]:
    known, what = metric_of(metric), 'ratio' if finding['ratio'] else 'difference'
    lines = [('expected', _expected(finding, metric))]
    for which in ('larger', 'smaller'):
        stat = finding[f'{which}_mean']
        if stat is None:
            lines.append((finding[which], 'never reached' if finding['counts'] else 'nothing is known'))
        else:
            count = counted(stat['count'], 'block' if known.by_steps else 'seed')
            lines.append((finding[which], f'{mean_text(stat, metric)}{known.unit}, {count}'))
    if finding['effect'] is not None:
        effect = effect_text(finding['effect'], metric, finding['ratio'])
        lines.append((what, f'{effect}{interval_text(finding, metric)}'))
        of_all = '' if finding['of_all'] is None else effect_text(finding['of_all'], metric, finding['ratio'])
        if of_all not in ('', effect):
            lines.append((f'{what} of all {finding["blocks"]} seeds', of_all))
    if finding['stage'] is not None:
        lines.append(
            ('p', f'{_p(finding["p"])}, the difference {"as expected" if finding["holds"] else "the other way"}')
        )
    if finding['note']:
        lines.append(('note', finding['note']))
    return lines


def _expected(finding: Numbers, metric: str) -> str:
    larger, smaller, bound = finding['larger'], finding['smaller'], finding['bound']
    if finding['ratio']:
        return f'{larger} {"≤" if finding["at_most"] else ">"} {bound:g} × {smaller}'
    by = amount(abs(bound), metric_of(metric))
    if bound < 0:
        return f'{larger} ≥ {smaller}, or below it by less than {by}'
    return f'{larger} > {smaller}{f" by more than {by}" if bound else ""}'
