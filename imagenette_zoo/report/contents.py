"""The numbers of a report as plain data: everything that its words, tables and figures show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config.recipe import Recipe
from ..errors import UserError, nearest
from ..study.metrics import COSTS, METRICS
from ..study.passes import BlockPasses
from ..study.plan import Study
from ..study.records import Record, by_run, distinct, options_of, sample, samples_of
from ..study.statistics import Finding, Interval, Verdict, interval, judge
from ..training.result import THRESHOLDS
from ..utils.console import plain

__all__ = [
    'THRESHOLDS',
    'COSTS',
    'contents',
    'front',
]

LEAST_FOR_A_BAND = 3  # seeds: with two, Student's interval is nine times as wide as they are apart

Runs = Mapping[str, Sequence[Record]]


def contents(
    records: Sequence[Record],
    study: Study | None = None,
    compare: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that a report on finished trainings shows, fit for JSON.

    Args:
        records: The trainings.
        study: Its claims are judged, and what of it is not finished is told.
        compare: The two runs that are shown beside each other; the best two of different models if not given.

    Raises:
        UserError: There are no trainings, or `compare` names a run that is not there.
    """
    if not records:
        raise UserError('nothing to report: no training is finished yet; train first')
    runs = _ranked(by_run(records))
    found: dict[str, Any] = {
        'title': study.title if study else f'Report on {", ".join(runs)}' if len(runs) < 4 else 'Report',
        'setup': _setup(records, runs),
        'limits': study.limits if study else '',
        'unfinished': _unfinished(records, study),
        'claims': _claims(study, runs) if study else [],
        'runs': [_run(number, name, each) for number, (name, each) in enumerate(runs.items(), 1)],
        'compared': _compared(runs, compare),
        'options': _options(runs),
    }
    comparable = COSTS if len(found['setup']['hardware']) == 1 else ('gmacs',)  # times of several machines are not
    found['front'] = {cost: front(found['runs'], cost) if cost in comparable else [] for cost in COSTS}
    return plain(found)


def front(runs: Sequence[Mapping[str, Any]], cost: str) -> list[int]:
    """The numbers of the runs that no other beats: none costs no more and is better, or costs less and is as good."""
    points = sorted(
        (run['metrics'][cost]['mean'], -run['metrics']['top1']['mean'], run['number'])
        for run in runs
        if run['metrics'][cost] and run['metrics']['top1']
    )
    found: list[int] = []
    best = math.inf
    for _, loss, number in points:
        if loss < best:
            found.append(number)
            best = loss
    return found


def _ranked(runs: Runs) -> Runs:
    """The best first; of equal ones that which came first."""

    def top1(name: str) -> float:
        numbers = sample(runs[name], 'top1')
        mean = float(np.mean(numbers.values)) if numbers else math.nan
        return mean if math.isfinite(mean) else -1.0

    return {name: runs[name] for name in sorted(runs, key=top1, reverse=True)}


def _stat(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, 95 % interval and the numbers themselves; None where one of them is missing."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None
    return {**_interval(interval(known)), 'values': known}


def _interval(found: Interval) -> dict[str, Any]:
    return {'mean': found.mean, 'low': found.low, 'high': found.high, 'half': found.half, 'count': found.count}




def _setup(records: Sequence[Record], runs: Runs) -> dict[str, Any]:
    results = [record.result for record in records]
    names = distinct([name for result in results for name in result.versions])
    return {
        'trainings': len(records),
        'runs': len(runs),
        'seeds': sorted({record.seed for record in records}),
        'seeds_each': sorted({len(each) for each in runs.values()}),
        'analysed': sum(record.analysis is not None for record in records),
        'datasets': distinct([{k: result.dataset.get(k) for k in ('name', 'train', 'val')} for result in results]),
        'img_sizes': sorted({result.img_size for result in results}),
        'epochs': sorted({result.epochs for result in results}),
        'hardware': distinct([result.hardware for result in results]),
        'versions': {
            name: distinct([result.versions[name] for result in results if name in result.versions]) for name in names
        },
    }


def _unfinished(records: Sequence[Record], study: Study | None) -> list[str]:
    done = {(record.run, record.seed) for record in records}
    return [trial.name for trial in study.trials() if (trial.run, trial.recipe.seed) not in done] if study else []


def _options(runs: Runs) -> dict[str, Any]:
    """What all runs have in common beside the defaults, and what tells them apart."""
    recipes = {name: options_of(each[0].result) for name, each in runs.items()}
    keys = distinct([key for recipe in recipes.values() for key in recipe])
    apart = [key for key in keys if len(distinct([recipe.get(key) for recipe in recipes.values()])) > 1]
    first, defaults = next(iter(recipes.values())), Recipe().as_dict()
    common = {key: first.get(key) for key in keys if key not in apart and first.get(key) != defaults.get(key)}
    return {
        'common': common,
        'apart': {name: {key: recipe.get(key) for key in apart} for name, recipe in recipes.items()},
    }




def _claims(study: Study, runs: Runs) -> list[dict[str, Any]]:
    return [_claim(verdict) for verdict in judge(study.claims, samples_of(study.claims, runs))]


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
        'findings': [_finding(finding) for finding in verdict.findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    comparison = finding.comparison
    return {
        'larger': comparison.larger,
        'smaller': comparison.smaller,
        'bound': comparison.bound,
        'ratio': comparison.ratio,
        'larger_mean': _interval(finding.larger) if finding.larger else None,
        'smaller_mean': _interval(finding.smaller) if finding.smaller else None,
        'effect': finding.effect,
        'low': finding.low,
        'high': finding.high,
        'p': finding.p,
        'holds': finding.holds,
        'more_seeds': finding.more_seeds,
        'note': finding.note,
    }




def _run(number: int, name: str, records: Sequence[Record]) -> dict[str, Any]:
    metrics = {}
    for metric in METRICS:
        numbers = sample(records, metric)
        metrics[metric] = _stat(numbers.values) if numbers else None
    return {
        'number': number,
        'run': name,
        'model': records[0].result.model,
        'seeds': [record.seed for record in records],
        'metrics': metrics,
        'reach': {str(top1): _reach(records, top1) for top1 in THRESHOLDS},
        'per_class': _per_class(records),
        'band': 'interval' if len(records) >= LEAST_FOR_A_BAND else 'range' if len(records) > 1 else None,
        'curve': _curve(records),
        'confusion': _confusion(records),
        'passes': _passes(records),
    }


def _reach(records: Sequence[Record], top1: float) -> dict[str, Any]:
    """How many seeds reached this top-1, and, where all did, after how long."""
    reached = [record.reach('seconds', top1)[1] for record in records]
    found: dict[str, Any] = {'reached': sum(reached), 'of': len(reached)}
    for unit in ('seconds', 'epochs'):
        found[unit] = _stat([record.reach(unit, top1)[0] for record in records]) if all(reached) else None
    return found


def _per_class(records: Sequence[Record]) -> dict[str, Any]:
    found = {
        name: _stat([record.result.per_class.get(name) for record in records]) for name in records[0].result.per_class
    }
    return {name: stat for name, stat in found.items() if stat}


def _curve(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Validation top-1 after each epoch that all seeds were validated after, with the bounds of its band."""
    seeds = [
        {epoch: row['eval_top1'] for epoch, row in enumerate(record.history, 1) if 'eval_top1' in row}
        for record in records
    ]
    found = []
    for epoch in sorted(set.intersection(*map(set, seeds))):
        stat = _stat([seed[epoch] for seed in seeds])
        if stat and len(records) < LEAST_FOR_A_BAND:
            stat['low'], stat['high'] = min(stat['values']), max(stat['values'])
        if stat:
            found.append({'epoch': epoch, **{key: stat[key] for key in ('mean', 'low', 'high', 'values')}})
    return found


def _confusion(records: Sequence[Record]) -> dict[str, Any] | None:
    """How often each class was taken for each, in % of its images, mean over the seeds that were looked at."""
    looked = [record.analysis for record in records if record.analysis]
    looked = [analysis for analysis in looked if analysis.class_names == looked[0].class_names]
    if not looked:
        return None
    counts = np.array([analysis.confusion for analysis in looked], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(2, keepdims=True), 1)
    return {'classes': looked[0].class_names, 'percent': shares.mean(0).round(4).tolist(), 'seeds': len(looked)}


def _passes(records: Sequence[Record]) -> dict[str, Any] | None:
    """The blocks of a MultiPass model, mean over the seeds that were looked at."""
    looked = [record.analysis.passes for record in records if record.analysis and record.analysis.passes]
    looked = [blocks for blocks in looked if all(map(_is_finite, blocks))]  # those of a training that diverged are not
    looked = [blocks for blocks in looked if list(map(_kinds, blocks)) == list(map(_kinds, looked[0]))]
    if not looked:
        return None
    blocks = []
    for same in zip(*looked, strict=True):
        means = {
            key: np.mean([getattr(block, key) for block in same], axis=0).tolist()
            for key in ('cka', 'cosine', 'top1_lost')
        }
        blocks.append({'name': same[0].name, 'kinds': same[0].kinds, 'residual': same[0].residual, **means})
    return {'blocks': blocks, 'seeds': len(looked)}


def _is_finite(block: BlockPasses) -> bool:
    return bool(np.isfinite([*block.cka, *block.cosine, block.top1_lost]).all())


def _kinds(block: BlockPasses) -> tuple[str, list[str]]:
    return block.name, block.kinds


def _compared(runs: Runs, compare: tuple[str, str] | None) -> list[str]:
    """The runs beside each other: those asked for, else the best two of different models, else the best two."""
    for name in compare or ():
        if name not in runs:
            raise UserError(f'no run {name!r} to compare: expected one of {", ".join(runs)}{nearest(name, runs)}')
    if compare:
        return list(compare)
    best, *others = runs
    classes = set(runs[best][0].result.per_class)
    same = [name for name in others if set(runs[name][0].result.per_class) == classes]
    model = runs[best][0].result.model
    return [best, *[name for name in same if runs[name][0].result.model != model], *same][: 2 if same else 1]
