"""The forest plot of a report: the effect of each claim with its corrected interval, drawn against the claim's bound.

Each comparison has an axis of its own, with its unit. Comparisons of the same unit have the same scale, as wide as what
was decided needs: wider intervals are cut off, with an arrow. A claim that is too small for that has its own scale.
Right of the bound is what was claimed.
"""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..study.metrics import metric_of
from .drawing import INK, Numbers, Picture, draw_picture
from .section import effect_text, interval_text

__all__ = ['Bar', 'bars', 'forest_picture', 'legend_words', 'sides']

COLOURS = {'supported': '#00694d', 'contradicted': '#a84300', 'equal': '#6a3d9a', 'undecided': '#4d5560'}
NICE = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
MAGNIFIED = 5  # by more than that
FACTORS = (1.1, 1.2, 1.5, 2, 3, 5, 10, 100, 1000)
SIZE, TEXT, PLOT, HALF, LABEL = 9.9, 1.22, 6.5, 0.95, 7.55  # inches: the width of the picture, and where its parts are
LINE, BAR = 0.165, 0.22


@dataclass(frozen=True)
class Bar:
    """A comparison as it is drawn, its bound at 0 and the ends of its axis at -1 and 1.

    Args:
        label: What is subtracted or divided.
        effect: The difference or ratio, in words.
        meaning: All of it, for those who do not see it.
        point: The effect, None where it is no number.
        low: The lower end of its interval, -1 where it is cut off; None where there is no interval.
        high: The upper end.
        cut: Whether the interval is cut off at each end.
        zero: Where there is no effect, if that is not the bound.
        band: What is equal, for practice.
        rings: Of each block of which only is known which run was first.
        ticks: The words at the left end, the bound and the right end of the axis.
    """

    label: str
    effect: str
    meaning: str
    point: float | None = None
    low: float | None = None
    high: float | None = None
    cut: tuple[bool, bool] = (False, False)
    zero: float | None = None
    band: tuple[float, float] | None = None
    rings: tuple[float, ...] = ()
    ticks: tuple[str, str, str] = ('', '', '')


def bars(claims: Sequence[Numbers]) -> list[list[Bar]]:
    """The bars of each claim of a report, on common scales."""
    groups: dict[tuple[str, bool], list[Numbers]] = {}
    for claim in claims:
        groups.setdefault(_unit(claim), []).append(claim)
    reach = {unit: _reach(group) for unit, group in groups.items()}
    found = []
    for claim in claims:
        common, own = reach[_unit(claim)], _reach([claim])
        scale = own if own < common / MAGNIFIED else common
        found.append([_bar(claim, each, scale) for each in claim['findings']])
    return found


def _unit(claim: Numbers) -> tuple[str, bool]:
    """What has the same scale; the comparisons of a claim have one unit and one bound."""
    known = metric_of(claim['metric'])
    return known.difference or known.label, claim['findings'][0]['ratio']


def _distance(finding: Numbers, value: float) -> float:
    """From the bound, of logarithms for a ratio, upwards where that was claimed."""
    side = -1 if finding['at_most'] else 1
    return side * (math.log(value / finding['bound']) if finding['ratio'] else value - finding['bound'])


def _reach(claims: Sequence[Numbers]) -> float:
    """How far the axes of claims reach on both sides of the bound, a round number."""
    decided, ends, points = [0.0], [], [0.0]
    for claim in claims:
        points.append(claim['practical'] or 0.0)
        for finding in claim['findings']:
            known = [finding[end] for end in ('low', 'high') if finding[end] is not None]
            far = [abs(_distance(finding, value)) for value in known]
            ends += [max(far)] if far else []
            decided += far if claim['verdict'] != 'undecided' else []
            points += [abs(_distance(finding, finding['effect']))] if finding['effect'] is not None else []
    needed = max(1.04 * max(decided), statistics.median_low(ends or [0.0]), 1.2 * max(points))
    if claims[0]['findings'][0]['ratio']:
        return math.log(next((each for each in FACTORS if each >= math.exp(needed)), FACTORS[-1]))
    tens = 10.0 ** math.floor(math.log10(needed)) if needed else 1.0
    return next(each * tens for each in NICE if each * tens >= needed)


def _bar(claim: Numbers, finding: Numbers, reach: float) -> Bar:
    metric, ratio, bound = claim['metric'], finding['ratio'], finding['bound']
    no_effect = 1.0 if ratio else 0.0
    label = f'{finding["larger"]} {"/" if ratio else "−"} {finding["smaller"]}'
    known = finding['effect'] is not None
    effect = effect_text(finding['effect'], metric, ratio) if known else ''
    rings: tuple[float, ...] = ()
    if finding['counts'] and not known:
        more, fewer = finding['counts']
        step = min(0.1, 0.95 / max(more, fewer, 1))
        left, right = (more, fewer) if finding['at_most'] else (fewer, more)
        rings = tuple(step * place for place in (*range(-left, 0), *range(1, right + 1)))
        how, blocks = 'larger' if bound == no_effect else 'above the bound', finding['stage'] or finding['blocks']
        effect = f'{how} in {more} of {blocks} blocks' if more or fewer else 'neither first'
    drawn = known and (finding['low'] is not None or finding['high'] is not None)
    low, high = (
        sign * math.inf if finding[end] is None else _distance(finding, finding[end]) / reach
        for sign, end in zip((-1, 1), ('high', 'low') if finding['at_most'] else ('low', 'high'), strict=True)
    )
    meaning = f'{label}: {effect or "nothing is known"}{interval_text(finding, metric) if drawn else ""}'
    zero = _distance(finding, no_effect) / reach
    practical = claim['practical']
    return Bar(
        label,
        effect,
        f'{meaning}; bound {effect_text(bound, metric, ratio)}',
        max(-1.0, min(1.0, _distance(finding, finding['effect']) / reach)) if known else None,
        max(low, -1.0) if drawn else None,
        min(high, 1.0) if drawn else None,
        (low < -1, high > 1) if drawn else (False, False),
        zero if bound != no_effect and abs(zero) < 1 else None,
        (max(-1.0, -practical / reach), min(1.0, practical / reach)) if practical and known else None,
        rings,
        ('', '', 'a ring is a block' if rings else '') if not known else _ticks(metric, finding, reach),
    )


def _ticks(metric: str, finding: Numbers, reach: float) -> tuple[str, str, str]:
    known, bound = metric_of(metric), finding['bound']
    if finding['ratio']:
        ends = (1, 0, -1) if finding['at_most'] else (-1, 0, 1)
        left, middle, right = (f'{bound * math.exp(side * reach):.3g}' for side in ends)
        return left, middle, f'{right} times'
    left, middle, right = (
        f'{(bound + side * reach) / known.scale:+.3g}'.replace('-', '−') if bound + side * reach else '0'
        for side in (-1, 0, 1)
    )
    return left, middle, f'{right}{known.difference}'


def sides(claims: Sequence[Numbers]) -> tuple[str, str]:
    """What is left and right of the bounds."""
    return ('← the other way', 'as claimed →') if _claimed(claims) else ('← second higher', 'first higher →')


def legend_words(claims: Sequence[Numbers]) -> str:
    """What the lines mean."""
    drawn = [bar for claim in claims for bar in claim['bars']]
    words = ['Lines: corrected intervals', f'upright: {"what was claimed" if _claimed(claims) else "no difference"}']
    words += ['dotted: no difference'] * any(bar.zero is not None for bar in drawn)
    words += ['grey: too little to matter'] * any(bar.band for bar in drawn)
    return f'{"; ".join(words)}.'


def _claimed(claims: Sequence[Numbers]) -> bool:
    """Whether a sentence of the study is among the claims, not only pairs of runs."""
    return any(claim['title'] for claim in claims)


def forest_picture(claims: Sequence[Numbers], summary: str) -> Picture:
    """All claims with their verdicts as one picture, for Markdown.

    Args:
        claims: In words, as `describe_claims` gives them.
        summary: How many are decided.
    """
    rows, head = list(map(_Row, claims)), 0.3
    height = head + sum(row.height for row in rows)

    def draw(figure: Any) -> None:
        figure.set_layout_engine('none')
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set(xlim=(0, SIZE), ylim=(height, 0))
        axis.axis('off')
        axis.text(0.05, 0.2, summary, fontsize=9.5, weight='bold')
        for side, words in zip((-1, 1), sides(claims), strict=True):
            axis.text(PLOT + side * HALF, 0.2, words, fontsize=7.5, ha='left' if side < 0 else 'right')
        top = head
        for row in rows:
            axis.plot([0, SIZE], [top, top], color=INK, linewidth=0.4, alpha=0.3)
            row.draw(axis, top + 0.04)
            top += row.height

    title = 'Verdicts: ' + '; '.join(f'{claim["verdict"]}: {claim["what_is_so"]}' for claim in claims)
    return draw_picture('verdicts', title, height, draw, SIZE)


def _unbroken(text: re.Match[str]) -> str:
    return text[0].replace(' ', '\N{NO-BREAK SPACE}')


class _Row:
    """A claim in the picture, its texts in lines."""

    def __init__(self, claim: Numbers) -> None:
        self.claim = claim
        self.weight, most = ('normal', 60) if claim['verdict'] == 'undecided' else ('bold', 54)
        self.what_is_so = textwrap.wrap(re.sub(r'\(\S+ to \S+\)', _unbroken, claim['what_is_so']), most)
        self.title = [textwrap.shorten(claim['title'], 70, placeholder=' …')] * bool(claim['title'])
        self.aside = textwrap.wrap(claim['aside'], 18)
        self.labels = []
        for bar in claim['bars']:
            effect = re.sub('.*', _unbroken, bar.effect)
            self.labels.append(textwrap.wrap(f'{bar.label} {effect}', 36, break_on_hyphens=False))
        self.lanes = [max(BAR, LINE * len(lines)) for lines in self.labels]
        texts = max(len(self.what_is_so) + len(self.title), 1 + len(self.aside))
        self.height = max(LINE * texts, sum(self.lanes), sum(self.lanes[:-1]) + BAR + 0.15) + 0.1

    def draw(self, axis: Any, top: float) -> None:
        claim, colour = self.claim, COLOURS[self.claim['verdict']]

        def write(x: float, y: float, lines: Iterable[str], size: float, **style: Any) -> None:
            for number, text in enumerate(lines):
                axis.text(x, y + LINE * (number + 0.75), text, fontsize=size, **style)

        write(0.05, top, [f'{claim["symbol"]} {claim["verdict"]}'], 9, color=colour, weight='bold')
        write(0.05, top + LINE, self.aside, 7.5, alpha=0.75)
        write(TEXT, top, self.what_is_so, 9, weight=self.weight)
        write(TEXT, top + LINE * len(self.what_is_so), self.title, 8, alpha=0.75)
        lane = top
        for bar, lines, height in zip(claim['bars'], self.labels, self.lanes, strict=True):
            _draw_bar(axis, lane, bar, colour)
            write(LABEL, lane, lines, 7.5)
            lane += height
        below = lane - self.lanes[-1] + BAR + 0.08
        for place, words, align in zip((-1, 0, 1), claim['bars'][-1].ticks, ('left', 'center', 'right'), strict=True):
            axis.text(PLOT + HALF * place, below, words, fontsize=6.5, ha=align, alpha=0.8)


def _draw_bar(axis: Any, top: float, bar: Bar, colour: str) -> None:
    middle, end = top + 0.1, top + 0.2

    def at(place: float) -> float:
        return PLOT + HALF * place

    if bar.band:
        axis.fill_between([at(each) for each in bar.band], top, end, color=INK, alpha=0.15, linewidth=0)
    axis.plot([at(-1), at(1)], [end] * 2, color=INK, linewidth=0.4, alpha=0.5)
    axis.plot([at(0)] * 2, [top, end], color=INK, linewidth=0.9)
    if bar.zero is not None:
        axis.plot([at(bar.zero)] * 2, [top, end], color=INK, linewidth=0.7, linestyle=':')
    if bar.low is not None and bar.high is not None:
        axis.plot([at(bar.low), at(bar.high)], [middle] * 2, color=colour, linewidth=2, solid_capstyle='butt')
        for cut, side, marker in zip(bar.cut, (-1, 1), '<>', strict=True):
            axis.plot([at(side)] * cut, [middle] * cut, marker, color=colour, markersize=5)
    if bar.point is not None:
        axis.plot(at(bar.point), middle, 'o', color=colour, mfc='none' if bar.low is None else colour, markersize=5)
    axis.plot([at(each) for each in bar.rings], [middle] * len(bar.rings), 'o', color=colour, mfc='none', markersize=4)
