"""The time that the trainings of a study have taken so far, by their `metrics.jsonl`."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..utils.reading import parse_json, read_text
from .plan import Study

__all__ = ['epoch_seconds', 'epochs_expected', 'hours_spent', 'seconds_per_epoch']


def epoch_seconds(folder: Path) -> list[float]:
    """The seconds of each epoch of a training, validation included."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = read_text(folder / 'metrics.jsonl')
        return [float(parse_json(line)['seconds']) for line in text.splitlines()]
    return []


def hours_spent(study: Study, output: Path) -> float:
    """The hours that the epochs of all trainings of a study have taken."""
    return sum(sum(epoch_seconds(output / trial.name)) for trial in study.trials()) / 3600


def epochs_expected(study: Study, output: Path) -> dict[str, float]:
    """The epochs of a training of each run: the mean of those that ended, perhaps early; else those of its recipe."""
    ended: dict[str, list[int]] = {name: [] for name in study.runs}
    for trial in study.trials():
        folder = output / trial.name
        if (folder / 'result.json').is_file() and (seconds := epoch_seconds(folder)):
            ended[trial.run].append(len(seconds))
    return {name: sum(each) / len(each) if each else study.runs[name].recipe.epochs for name, each in ended.items()}


def seconds_per_epoch(study: Study, output: Path) -> dict[str, float]:
    """The mean time of an epoch of each run, where one is done."""
    seconds: dict[str, list[float]] = {}
    for trial in study.trials():
        seconds.setdefault(trial.run, []).extend(epoch_seconds(output / trial.name))
    return {run: sum(each) / len(each) for run, each in seconds.items() if each}
