"""Changes of a study file after results were seen: said, kept with the study, and told by its reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..utils.console import Console
from ..utils.files import write_json
from .plan import Claim, Study
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
    known = list(as_run(before, output).changes)
    seen = {name: sum((output / f'{name}-seed{seed}' / 'result.json').is_file() for seed in before.all_seeds)
            for name in before.runs}  # fmt: skip
    new = [change for change in _changes(before, study, seen) if change not in known]
    if new:
        write_json(output / CHANGES, known + new)
    for change in new:
        console.line(f'warning: {change}')


def _changes(before: Study, now: Study, seen: Mapping[str, int]) -> list[str]:
    def blocks(claim: Claim) -> int:
        return min(seen.get(run, 0) for each in claim.comparisons for run in (each.larger, each.smaller))

    first = before.stages[0][0]
    claims = {claim.name: claim for claim in before.claims}
    others = {claim.name: claim for claim in now.claims}
    looks = {name: count for name, claim in claims.items() if (count := blocks(claim)) >= first}
    changes = []
    if looks and before.stages != now.stages:
        changes.append(
            f'the stages were changed from {_stages(before)} to {_stages(now)} after {max(looks.values())} blocks were '
            f'seen: both may spend the level, so up to 10 % of such studies have a false verdict instead of 5 %'
        )
    for name, count in looks.items():
        if name not in others or _tested(others[name]) != _tested(claims[name]):
            changes.append(
                f'the claim {name} was {"changed" if name in others else "removed"} after {count} blocks of its runs '
                f'were seen: {ERROR}'
            )
    for name, claim in others.items():
        if claims and name not in claims and blocks(claim) >= first:
            changes.append(f'the claim {name} was added after {blocks(claim)} blocks of its runs were seen: {ERROR}')
    return changes


def _tested(claim: Claim) -> Claim:
    """What decides about a claim: all but its words."""
    return replace(claim, sentence='', order=())


def _stages(study: Study) -> str:
    return ', '.join(f'{blocks} ({share:.0%})' for blocks, share in study.stages)
