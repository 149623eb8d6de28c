"""The metrics of finished trainings, each declared once: what it is, how it is written, and how it is read.

To add one, add a line to `METRICS`: study files may claim it, and `report.json` has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ['COSTS', 'METRICS', 'THRESHOLD', 'TO_AN_ACCURACY', 'Metric', 'metric_of']

COSTS = ('gmacs', 'train_seconds')  # that a report weighs top-1 against


@dataclass(frozen=True)
class Metric:
    """A number of each finished training.

    Args:
        meaning: What it is, with its unit.
        label: What tables call it.
        unit: What stands behind a number, with its space.
        decimals: How many are shown.
        read: Takes it from a `Record`, which has a `result`, a `history` and an `analysis`; None where it is not known.
        scale: The value that is shown as 1.
        exact: It is the same for every seed: it is counted, not tested.
        better: Which is better, `larger` or `smaller`: a run of which a seed failed is not judged better.
        timed: It depends on the machine: values of unlike hardware are not compared.
        by_steps: Claims are judged by steps that are timed in turns, not by the trainings.
        reached: A seed may never reach it, then it is infinite: as soon as that happens runs are compared by who was
            first.
    """

    meaning: str
    label: str
    unit: str
    decimals: int
    read: Callable[..., float | None]
    scale: float = 1.0
    exact: bool = False
    better: str = ''
    timed: bool = False
    by_steps: bool = False
    reached: bool = False

    @property
    def difference(self) -> str:
        """The unit of a difference."""
        return ' points' if self.unit == ' %' else self.unit


def _at(path: str) -> Callable[..., float | None]:
    """Reads the value at a dotted path in a record."""

    def read(value: Any) -> float | None:
        for name in path.split('.'):
            if value is not None:
                value = value.get(name) if isinstance(value, dict) else getattr(value, name)
        return value

    return read


def _gap(record: Any) -> float | None:
    return record.analysis and record.analysis.train_top1 - record.analysis.top1


def _unknown(record: Any) -> None:
    """Of what no training tells."""


def _first(unit: str) -> Callable[..., float]:
    """Reads after how many epochs or seconds an accuracy was reached, infinitely many if it was not."""

    def read(record: Any, top1: float) -> float:
        spent, reached = record.reach(unit, top1)
        return spent if reached else math.inf

    return read


METRICS = {
    'top1': Metric('top-1 of the final weights on the validation images, %',
                   'top-1', ' %', 2, _at('result.top1'), better='larger'),
    'best_top1': Metric('top-1 of the best epoch, %', 'best epoch', ' %', 2, _at('result.best_top1'), better='larger'),
    'top5': Metric('top-5 of the final weights, %', 'top-5', ' %', 2, _at('result.top5'), better='larger'),
    'loss': Metric('cross-entropy of the final weights, nats', 'loss', '', 3, _at('result.loss'), better='smaller'),
    'gap': Metric('top-1 on training images, seen as the validation sees them, minus top-1, points',
                  'train−val gap', ' points', 2, _gap),
    'calibration_error': Metric('expected calibration error, %',
                                'calibration error', ' %', 2, _at('analysis.calibration_error'), better='smaller'),
    'shift_consistency': Metric('images whose prediction survives a random shift of up to 1/8 of the side, %',
                                'shift consistency', ' %', 2, _at('analysis.shift_consistency'), better='larger'),
    'pass_similarity': Metric('linear CKA between the passes of MultiPass blocks, mean over pairs',
                              'pass similarity', '', 3, _at('analysis.pass_similarity')),
    'step_time': Metric('time of a training step, by steps of the runs in turns, ms',
                        'step time', ' ms', 1, _unknown, timed=True, by_steps=True),
    'images_per_second': Metric('training images a second; claims: by steps of the runs in turns',
                                'images/s', '/s', 1, _at('result.images_per_second'), timed=True, by_steps=True),
    'train_seconds': Metric('time in training steps, s',
                            'training time', ' s', 1, _at('result.seconds.train'), timed=True),
    'total_seconds': Metric('time in training and validation, s',
                            'total time', ' s', 1, _at('result.seconds.total'), timed=True),
    'peak_memory_mib': Metric('peak memory, MiB', 'memory, MiB', ' MiB', 0, _at('result.peak_memory_mib'), timed=True),
    'params': Metric('parameters', 'parameters, M', ' M', 3, _at('result.params'), scale=1e6, exact=True),
    'gmacs': Metric('multiply-accumulates of one image, 10⁹', 'GMACs', ' GMACs', 3, _at('result.gmacs'), exact=True),
}  # fmt: skip
# For any accuracy N, as `THRESHOLD` has it; `read` takes that, too.
TO_AN_ACCURACY = {
    'epochs_to_N': Metric('epochs to N % top-1, interpolated between validations',
                          'epochs to N %', ' epochs', 2, _first('epochs'), reached=True),
    'seconds_to_N': Metric('seconds of training and validation to N % top-1, interpolated between validations',
                           'seconds to N %', ' s', 1, _first('seconds'), timed=True, reached=True),
}  # fmt: skip
THRESHOLD = re.compile(r'(epochs|seconds)_to_(\d{1,2}(?:\.\d+)?)')


def metric_of(name: str) -> Metric:
    """The metric of a name, also as in `epochs_to_85`.

    Raises:
        KeyError: There is none.
    """
    match = THRESHOLD.fullmatch(name)
    if not match:
        return METRICS[name]
    metric, top1 = TO_AN_ACCURACY[f'{match[1]}_to_N'], float(match[2])
    return replace(
        metric,
        meaning=metric.meaning.replace(' N ', f' {match[2]} '),
        label=metric.label.replace(' N ', f' {match[2]} '),
        read=lambda record: metric.read(record, top1),
    )
