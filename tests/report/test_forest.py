"""The forest plot: where intervals are drawn, in which unit, and what is cut off."""

from typing import Any

import pytest

from imagenette_zoo.report.forest import bars


def claim(verdict: str, *findings: dict[str, Any], metric: str = 'top1', practical: float | None = None) -> Any:
    known: dict[str, Any] = dict.fromkeys(('effect', 'low', 'high', 'counts', 'stage'))
    known |= dict(larger='a', smaller='b', bound=0.0, ratio=False, at_most=False)
    found = [{**known, 'blocks': 4, **each} for each in findings]
    return {'verdict': verdict, 'metric': metric, 'practical': practical, 'findings': found}


def test_what_is_decided_is_drawn_wholly_and_wider_intervals_are_cut_off() -> None:
    decided = claim('supported', dict(effect=12.0, low=8.0, high=16.0), practical=1.0)
    wide = claim('undecided', dict(effect=-3.0, low=-45.0, high=39.0), metric='gap')
    [[narrow], [cut]] = bars([decided, wide])
    assert narrow.ticks == ('−20', '0', '+20 points')
    assert [narrow.low, narrow.point, narrow.high] == pytest.approx([0.4, 0.6, 0.8])
    assert narrow.band == pytest.approx((-0.05, 0.05))
    assert narrow.meaning == 'a − b: +12.00 points, corrected interval +8.00 to +16.00; bound +0.00 points'
    assert (cut.low, cut.high, cut.cut, cut.band) == (-1.0, 1.0, (True, True), None)
    assert cut.ticks == narrow.ticks, 'the same unit has the same scale'


def test_the_bound_is_in_the_middle_and_right_of_it_is_what_was_claimed() -> None:
    by_three = claim('undecided', dict(effect=6.0, low=-3.0, high=15.0, bound=3.0))
    ratio = claim('supported', dict(effect=1.9, low=1.6, high=2.25, bound=1.5, ratio=True), metric='train_seconds')
    [[first], [second]] = bars([by_three, ratio])
    assert first.point is not None
    assert second.low is not None
    assert first.zero is not None
    assert second.zero is not None
    assert first.zero < 0 < first.point
    assert second.zero < 0 < second.low, 'an interval above the bound is right of it'
    assert first.ticks[1] == '+3'
    assert second.ticks == ('0.75', '1.5', '3 times')


def test_a_ratio_that_is_at_most_so_large_has_what_was_claimed_on_the_right() -> None:
    less = dict(bound=1.1, ratio=True, at_most=True, effect=1.0, low=0.99, high=1.05)
    [[bar]] = bars([claim('supported', less, metric='step_time')])
    assert (bar.label, bar.effect) == ('a / b', '1.000')
    assert bar.low is not None
    assert bar.point is not None
    assert bar.high is not None
    assert 0 < bar.low < bar.point < bar.high
    assert bar.ticks == ('1.32', '1.1', '0.917 times')
    assert 'corrected interval 0.990 to 1.050; bound 1.100' in bar.meaning


def test_what_has_no_interval_is_drawn_without() -> None:
    untested = claim('undecided', dict(effect=2.0))
    open_end = claim('supported', dict(effect=1.0, low=0.5), metric='epochs_to_50')
    first = claim('undecided', dict(counts=(3, 1)), metric='epochs_to_50')
    unknown = claim('undecided', {}, metric='loss')
    neither = claim('undecided', dict(counts=(0, 0)), metric='epochs_to_50')
    [[point], [half], [rings], [nothing], [never]] = bars([untested, open_end, first, unknown, neither])
    assert never.effect == 'neither first'
    assert point.point is not None
    assert point.low is None
    assert half.high == 1.0
    assert half.cut == (False, True)
    assert 'corrected interval +0.50 to no end' in half.meaning
    assert [ring > 0 for ring in rings.rings] == [False, True, True, True]
    assert rings.effect == 'larger in 3 of 4 blocks'
    looked_at = dict(counts=(2, 1), stage=3, bound=2.0)
    [[bounded]] = bars([claim('undecided', looked_at, metric='epochs_to_50')])
    assert bounded.effect == 'above the bound in 2 of 3 blocks'
    assert (nothing.point, nothing.low, nothing.rings, nothing.ticks) == (None, None, (), ('', '', ''))
    assert nothing.meaning.startswith('a − b: nothing is known')


def test_a_claim_that_is_small_beside_the_others_has_its_own_scale() -> None:
    large = claim('supported', dict(effect=20.0, low=15.0, high=25.0), practical=1.0)
    equal = claim('equal', dict(effect=0.1, low=-0.4, high=0.6), practical=1.0)
    [[_], [small]] = bars([large, equal])
    assert small.ticks == ('−1.5', '0', '+1.5 points')
    assert small.band is not None
    assert small.band[0] < small.low < small.high < small.band[1] < 1  # type: ignore[operator]
