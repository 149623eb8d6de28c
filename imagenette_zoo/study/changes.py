"""Changes of a study file after results were seen: said, kept with the study, and told by its reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..utils.console import Console
from ..utils.files import write_json
from .metrics import metric_of
from .plan import STEP_TIME_BLOCKS, Claim, Study, dump_claim
from .records import CHANGES, as_run, study_before

__all__ = ['note_changes']

ERROR = 'what is chosen by looking may err in more than 5 % of studies'


def note_changes(study: Study, output: Path, console: Console) -> None:
    """Compares a study with the one that its folder holds; says and keeps what was changed after results were seen.

    Raises:
        UserError: The folder's study is damaged.
    """
    before = study_before(output)
    if before is None:
        return
    before = as_run(before, output)
    seen = {
        name: [seed for seed in before.all_seeds if (output / f'{name}-seed{seed}' / 'result.json').is_file()]
        for name in before.runs
    }
    new = [change for change in _changes(before, study, seen) if change not in before.changes]
    if new:
        write_json(output / CHANGES, [*before.changes, *new])
    for change in new:
        console.line(f'warning: {change}')


def _changes(before: Study, now: Study, seen: Mapping[str, list[int]]) -> list[str]:
    timed = before.step_times.seconds if before.step_times else {}

    def blocks(claim: Claim) -> int:
        metric = metric_of(claim.metric)
        if metric.exact:  # which is not a matter of chance
            return 0
        if metric.by_steps:
            return STEP_TIME_BLOCKS if timed.keys() >= set(claim.runs) else 0
        own = [run for run in claim.runs if ':' not in run]  # the others are baselines
        return min((len(seen.get(run, ())) for run in own), default=0)

    first = min(before.stages[0][0], now.stages[0][0])
    claims = {claim.name: claim for claim in before.claims}
    others = {claim.name: claim for claim in now.claims}
    looks = {name: count for name, claim in claims.items() if (count := blocks(claim)) >= first}
    most = max(map(len, seen.values()), default=0)
    changes = []
    staged = {name for name in looks if not metric_of(claims[name].metric).by_steps}
    if before.stages != now.stages and (staged or (not claims and most >= first)):  # without claims: pairs of runs
        changes.append(
            f'the stages were changed from {_stages(before)} to {_stages(now)} after {most} blocks were '
            f'seen: both may spend the level, so up to 10 % of such studies have a false verdict instead of 5 %'
        )
    known = [seed for seed in before.all_seeds if any(seed in seeds for seeds in seen.values())]
    moved = {then for then, after in zip(before.all_seeds, now.all_seeds, strict=False) if then != after}
    if moved & {*known} and most >= first:
        after = _listed(now.all_seeds[: len(known)])
        changes.append(
            f'the seeds were changed from {_listed(known)} to {after} after {most} blocks were seen: {ERROR}'
        )
    if before.against != now.against and most >= first:
        then, after = (', '.join(each.against) or 'none' for each in (before, now))
        changes.append(f'the baselines were changed from {then} to {after} after {most} blocks were seen: {ERROR}')
    if not claims:  # pairs of runs
        for name in before.runs:
            if name not in now.runs and len(seen[name]) >= first:
                changes.append(f'the run {name} was removed after {len(seen[name])} blocks were seen: {ERROR}')
    for name, count in looks.items():
        if name not in others:
            changes.append(f'the claim {name} was removed after {count} blocks of its runs were seen: {ERROR}')
        elif _tested(others[name]) != _tested(claims[name]):
            changes.append(
                f'the claim {name} was changed after {count} blocks of its runs were seen '
                f'({_difference(claims[name], others[name])}): {ERROR}'
            )
    for name, claim in others.items():
        if name not in claims and blocks(claim) >= first:
            changes.append(f'the claim {name} was added after {blocks(claim)} blocks of its runs were seen: {ERROR}')
    return changes


def _tested(claim: Claim) -> Claim:
    """What decides about a claim: all but its words."""
    return replace(claim, sentence='', order=(), practical=claim.equal_within)


def _difference(before: Claim, now: Claim) -> str:
    """What of a claim is another now, as `'by 3.0, now 2.0'`."""
    then, values = dump_claim(before), dump_claim(now)
    keys = dict.fromkeys(key for key in (*then, *values) if key != 'claim' and then.get(key) != values.get(key))
    return '; '.join(f'{key} {_shown(then.get(key))}, now {_shown(values.get(key))}' for key in keys)


def _shown(value: object) -> str:
    return 'none' if value is None else ', '.join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(seeds: Sequence[int]) -> str:
    return ', '.join(map(str, seeds))


def _stages(study: Study) -> str:
    return ', '.join(f'{blocks} ({share:.0%})' for blocks, share in study.stages)
