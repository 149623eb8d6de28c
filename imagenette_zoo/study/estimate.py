"""The plan of a study before it runs: its hours, by timed steps on random images, and what it can decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

import torch

from ..config.recipe import Recipe
from ..utils.console import Console, counted, duration, table
from ..utils.process import restore_process
from .adaptive import State, next_round
from .baselines import baselines_of
from .comparisons import UNDECIDED
from .decisions import judge, unjudged, with_pairs
from .hours import epochs_expected, hours_spent
from .metrics import metric_of
from .plan import STEP_TIME_BLOCKS, Claim, Study
from .power import TOP1_IMAGES, power, top1_spreads
from .process import WHOLE, Extent, Slot, epochs_done
from .records import study_records
from .runner import check_models, state_of
from .step_times import TimedModel, image_counts

__all__ = ['dry_run', 'seconds_per_epoch']

STEPS = 3
POINTS = (2, 4, 8)  # of top-1 that a claim may differ by


def dry_run(study: Study, slot: Slot, console: Console, extent: Extent = WHOLE) -> float:
    """Prints what would be trained, what it would take and what that can decide; returns the hours.

    Args:
        study: The study, as its folder has it.
        slot: Where and how.
        console: Where it is printed.
        extent: How much of it.
    """
    until_decided = extent.until_decided
    check_models(study, console)
    console.line(
        f'timing {STEPS} steps of training and of validation of each run on random images, at each of its image sizes'
    )
    hours: dict[str, float] = {}  # of a seed
    rows: list[tuple[str, ...]] = [('run', 'model', 'px', 'epochs', 'seeds', 'done', 'begun', 'time a seed', 'to go')]
    total = 0.0
    done = {}
    expected = epochs_expected(study, slot.output)
    for name, run in study.runs.items():
        if extent.only and name not in extent.only:
            continue
        trials = [trial for trial in study.trials() if trial.run == name]
        states = [state_of(trial, slot) for trial in trials]
        done[name] = states.count('done')
        recipe = run.recipe.replace(device=slot.device or run.recipe.device)
        seconds = seconds_per_epoch(recipe, image_counts(run.recipe, slot.data_dir))
        hours[name] = expected[name] * seconds / 3600
        epochs = sum(
            max(0.0, expected[name] - epochs_done(slot.output / trial.name))
            for trial, state in zip(trials, states, strict=True)
            if state != 'done' and trial.seed in study.seeds
        )
        total += epochs * seconds / 3600
        size = '-'.join(map(str, recipe.train_img_sizes or (recipe.side or 'own',)))
        seeds = 'open' if until_decided else str(len(study.seeds))
        to_go = '' if until_decided else duration(epochs * seconds)
        shown = (str(done[name]), str(states.count('begun')), duration(3600 * hours[name]), to_go)
        rows.append((name, recipe.model, size, str(recipe.epochs), seeds, *shown))
    console.line(table(rows))
    jobs = min(slot.jobs, max(1, torch.cuda.device_count()))  # several on one device take turns
    if not until_decided:
        how = 'estimated from a few steps of each on this machine, without set-up'
        console.line(f'\nabout {duration(3600 * total / jobs)} to go, {how}')
    limit = extent.hours(study)
    spent = hours_spent(study, slot.output)
    if limit is not None:
        console.line(f'the budget is {limit:g} h of training and validation; {duration(3600 * spent)} of it are done')
    left = math.inf if limit is None else max(0.0, limit - spent)
    if find_spec('scipy') and not extent.only:
        _print_reach(study, slot, console, hours, done, left, until_decided=until_decided)
    return total / jobs


def _print_reach(
    study: Study,
    slot: Slot,
    console: Console,
    hours: Mapping[str, float],
    done: Mapping[str, int],
    left: float,
    *,
    until_decided: bool,
) -> None:
    """What the hours that are left can decide, claim by claim; without claims of all pairs."""
    known = baselines_of(study) if study.against else []
    claims = with_pairs(study, known).claims
    if not claims:
        if why := unjudged(study, known):
            console.line(f'\n{why}')
        return
    tested = sum(not metric_of(claim.metric).exact for claim in claims)
    seems = _as_it_seems(study, slot)
    points = [f'{number} points' for number in POINTS]
    seen = ('as it seems',) if any(seems.values()) else ()
    rows: list[tuple[str, ...]] = [('claim', 'metric', 'time a block', 'blocks', *points, *seen)]
    for claim in claims:
        metric = metric_of(claim.metric)
        own = [run for run in claim.runs if run in study.runs]  # the others are baselines
        cost = sum(hours[run] for run in own)
        chances = ['–'] * len(POINTS)
        if metric.exact or metric.by_steps:
            blocks, cost_text = ('counted' if metric.exact else str(STEP_TIME_BLOCKS)), ''
        else:
            names = own if until_decided else study.runs
            most = study.stages[-1][0] if until_decided else len(study.seeds)
            count = next(
                (n for n in range(most, 0, -1) if sum(max(0, n - done[run]) * hours[run] for run in names) <= left), 0
            )
            blocks, cost_text = str(count), duration(3600 * cost)
            if claim.metric == 'top1' and not claim.comparisons[0].ratio:
                chances = [_chance(each, count, tested, claim, study) for each in POINTS]
        words = (seems.get(_subject(claim, study), ''),) if seen else ()
        rows.append((claim.name, metric.label, cost_text, blocks, *chances, *words))
    console.line(f'\n{table(rows)}')
    alone = 'if it alone gets all hours left' if until_decided else 'with these seeds'
    by_steps = any(metric_of(claim.metric).by_steps for claim in claims)
    steps = f'; for a step time {STEP_TIME_BLOCKS}, of steps' if by_steps else ''
    console.line(
        f'blocks: seeds that both runs of a claim have, {alone}; a verdict needs at least {study.stages[0][0]}{steps}\n'
        f'2 points: chance to find a true difference in top-1 of 2 points beyond the bound, with '
        f'{counted(tested, "claim" if study.claims else "pair")} tested together and spreads as small networks have on '
        'Imagenette'
    )
    if study.claims:
        console.line('\n'.join(f'{claim.name}: {claim.sentence}  [{"; ".join(claim.order)}]' for claim in claims))


def _chance(points: int, blocks: int, tested: int, claim: Claim, study: Study) -> str:
    if blocks < study.stages[0][0]:
        return '0 %'
    chance = power(
        points, top1_spreads(), blocks, tested, images=TOP1_IMAGES, stages=study.stages, two_sided=claim.two_sided
    )
    return f'{100 * chance:.0f} %'


def _as_it_seems(study: Study, slot: Slot) -> dict[str | frozenset[str], str]:
    """What is known of the claims by the trainings that are done, in words."""
    if study.against:  # baselines get no further seeds
        return {}
    study = replace(study, until_decided=True)  # as if there were as many seeds as it takes
    records = study_records(study, slot.output)
    state = State.of(study, records, slot.output)
    if not records or min(state.blocks.values()) < 2:
        return {}
    _, reasons = next_round(state, 0.0)
    words = {name: reason.reason for name, reason in reasons.items()}
    verdicts = judge(state.study.claims, state.samples, state.study.stages)
    return {
        _subject(each.claim, study): words.get(each.claim.name, '') if each.verdict == UNDECIDED else each.verdict
        for each in verdicts
    }


def _subject(claim: Claim, study: Study) -> str | frozenset[str]:
    """What tells a claim from others: its name, or its runs where pairs are judged, whichever comes first."""
    return claim.name if study.claims else frozenset((claim.comparisons[0].larger, claim.comparisons[0].smaller))


@restore_process()
def seconds_per_epoch(recipe: Recipe, counts: tuple[int, int, int]) -> float:
    """The time of one epoch, validation included, on this machine: a few steps are timed, at each image size.

    Args:
        recipe: The run.
        counts: As `image_counts` gives them.

    Raises:
        UserError: The recipe names something that is not there.
    """
    train, val, _ = counts
    model = TimedModel(recipe, counts)
    model.warm_up()
    step = sum(min(model.step(shape) for _ in range(STEPS)) for shape in model.shapes) / len(model.shapes)
    model.val_step()
    val_step = min(model.val_step() for _ in range(STEPS))
    return train / model.batch * step + val / model.val_batch * val_step / recipe.val_interval
