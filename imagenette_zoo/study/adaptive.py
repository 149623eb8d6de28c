"""Which trainings a study needs next: those of the claim that looks cheapest to decide, until all are decided.

Two blocks of everything come first. Then, round by round, one claim gets the blocks of its next stage: the one whose
verdict would cost the fewest hours, if its runs are as they seem and even odds will do. Where that leaves hours over,
claims of few blocks are looked at as well, since those may seem hopeless by luck. What is left out is said. Since looks
are paid for (`statistics.py`), no rule that chooses them can raise the chance of a false verdict.

Rounds are written down before their trainings, so that a study that was stopped takes the same decisions again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.console import Console, counted, duration
from ..utils.files import write_json
from ..utils.reading import from_json, of_kind, read_errors, read_json
from .comparisons import UNDECIDED, Outlook, Samples
from .decisions import Test, Verdict, judge, run_tests, ways, with_pairs
from .hours import epochs_expected, hours_spent, seconds_per_epoch
from .metrics import metric_of
from .plan import Claim, Comparison, Study, Trial
from .process import Left, Trials
from .records import Record, as_run, by_run, failures, samples_of, study_records
from .sentences import sentence
from .statistics import Means

__all__ = ['FIRST_BLOCKS', 'ROUNDS', 'Round', 'State', 'costs_of', 'next_round', 'train_until_decided']

ROUNDS = 'rounds.json'  # of a study's folder
FIRST_BLOCKS = 2  # of everything
SURE_BLOCKS = 5  # from which on a claim is left that seems hopeless
MOST_FAILED = 2  # seeds of a run: its claims are left, then

Train = Callable[[list[Trial]], Trials]


@dataclass(frozen=True)
class Round:
    """Trainings that are decided on together: for which claims, and how many blocks each run shall have."""

    claims: list[str]
    blocks: dict[str, int]


@dataclass(frozen=True)
class State:
    """What a study has.

    Args:
        study: With its claims.
        samples: The numbers that they are judged by.
        blocks: How many of its first seeds each run has, done or failed.
        hours: Of a training of each run.
    """

    study: Study
    samples: Samples
    blocks: Mapping[str, int]
    hours: Mapping[str, float]

    @classmethod
    def of(cls, study: Study, records: Sequence[Record], output: Path) -> State:
        """Of what a folder has."""
        runs = by_run(records)
        plan = with_pairs(study, records)
        blocks = {name: _without_gap(study, name, runs.get(name, ())) for name in study.runs}
        return cls(plan, samples_of(plan, runs), blocks, costs_of(study, output))


def _without_gap(study: Study, run: str, records: Sequence[Record]) -> int:
    """How many seeds of a run are done or failed, up to the first that is neither."""
    known = {record.seed for record in records} | study.failed.get(run, frozenset())
    return next((place for place, seed in enumerate(study.all_seeds) if seed not in known), len(study.all_seeds))


def costs_of(study: Study, output: Path) -> dict[str, float]:
    """The hours of a training of each run, by the epochs that are done; of one that has none the mean of the others."""
    seconds, epochs = seconds_per_epoch(study, output), epochs_expected(study, output)
    hours = {name: seconds[name] * epochs[name] / 3600 for name in study.runs if name in seconds}
    mean = sum(hours.values()) / max(1, len(hours))
    return {name: hours.get(name, mean) for name in study.runs}


def next_round(state: State, left: float | None, slots: int = 1) -> tuple[Round | None, dict[str, Left]]:
    """The next trainings, and the claims that get none with the reason.

    Args:
        state: What the study has.
        left: The hours that are left, None where there is no budget.
        slots: How many trainings run at the same time: as many are chosen, if there are so many.
    """
    study = state.study
    if any(count < FIRST_BLOCKS for count in state.blocks.values()):
        return Round([], {name: max(FIRST_BLOCKS, count) for name, count in state.blocks.items()}), {}
    tests = run_tests(study.claims, state.samples, study.stages)
    usual = _usual_variances([test for test in tests if test])
    options: list[_Option] = []
    reasons: dict[str, Left] = {}
    for claim, test in zip(study.claims, tests, strict=True):
        if test is None or test.decided:
            continue
        option = _option(claim, test, state, usual)
        if isinstance(option, _Option) and left is not None and option.hours > left:
            option = option.left
        if isinstance(option, Left):
            reasons[claim.name] = option
            options += _early_look(claim, test, state)
        else:
            options.append(option)
    options.sort(key=lambda option: (option.early, option.hours))  # the first of equals is that of the study file
    chosen, blocks = [], dict(state.blocks)
    for option in options:
        if left is not None and option.hours > left:
            reasons.setdefault(option.claim, option.left)
            continue
        if sum(blocks.values()) - sum(state.blocks.values()) >= slots:
            break
        further = {name: count for name, count in option.next.items() if count > blocks[name]}
        if further:
            chosen.append(option.claim)
            reasons.pop(option.claim, None)
            blocks.update(further)
            left = None if left is None else left - option.hours
    return (Round(chosen, blocks) if chosen else None), reasons


@dataclass(frozen=True)
class _Option:
    """A claim that more trainings may decide.

    Args:
        claim: Its name.
        hours: Of all trainings that it needs; of an early one of those up to its next stage.
        next: How many blocks each run has at its next stage.
        early: It seems hopeless, by few blocks.
    """

    claim: str
    hours: float
    next: dict[str, int]
    early: bool = False

    @property
    def left(self) -> Left:
        return Left(f'needs about {duration(3600 * self.hours)}', self.hours)


def _option(claim: Claim, test: Test, state: State, usual: Mapping[tuple[str, bool], float]) -> _Option | Left:
    """The cheapest way to decide a claim if all is as it seems, or why there is none."""
    if why := _in_vain(claim, state):
        return Left(why)
    outlook = Outlook(0.0, usual.get((test.claim.metric, claim.comparisons[0].ratio)))
    blocks = {each.finding.comparison: each.finding.blocks for each in test.looks}
    found = []
    for way in ways(test, outlook):
        hours = _hours(_wanted(way, state), state)
        following = {each: _next_stage(test, each) for each, count in way.items() if count > blocks[each]}
        if hours:
            found.append(_Option(claim.name, hours, _wanted(following, state)))
    none = Left(_refusal(test) or f'even {test.stages[-1][0]} seeds would not decide it, as far as can be told now')
    return min(found, key=lambda option: option.hours, default=none)


def _early_look(claim: Claim, test: Test, state: State) -> list[_Option]:
    """The next stage of a claim that has few blocks; nothing of one that has more."""
    few = [each.finding.comparison for each in test.looks if each.finding.blocks < SURE_BLOCKS]
    wanted = _wanted({each: _next_stage(test, each) for each in few}, state)
    hours = _hours(wanted, state)
    if not hours or _in_vain(claim, state) or _refusal(test):
        return []
    return [_Option(claim.name, hours, wanted, early=True)]


def _in_vain(claim: Claim, state: State) -> str:
    """Why more trainings would not help a claim whatever they gave; nothing if they may."""
    if metric_of(claim.metric).by_steps:
        return 'its steps are timed once, so more trainings do not help'
    for run in claim.runs:
        if len(lost := state.study.failed.get(run, ())) >= MOST_FAILED:
            return f'{run} failed with seeds {", ".join(map(str, sorted(lost)))}'
        if run in state.blocks and (count := _without_number(run, claim.metric, state)) > 0:
            return f'waits for the analysis of {counted(count, "training")} of {run}: give the same command again'
    return ''


def _without_number(run: str, metric: str, state: State) -> int:
    """How many trainings of a run are done and have no number, where others have one: they were not analysed."""
    sample = state.samples.get((metric, run))
    if sample is None:
        return 0
    lost = state.study.failed.get(run, frozenset()) - sample.blocks.keys()
    return state.blocks[run] - len(sample.values) - len(lost)


def _refusal(test: Test) -> str:
    notes = [each.finding.note for each in test.looks if each.finding.note and (each.refused or not each.pairs)]
    return '; '.join(notes)


def _next_stage(test: Test, comparison: Comparison) -> int:
    """The blocks of the next look at a comparison, or of the last."""
    [blocks] = [each.finding.blocks for each in test.looks if each.finding.comparison == comparison]
    return next((stage for stage, _ in test.stages if stage > blocks), test.stages[-1][0])


def _hours(wanted: Mapping[str, int], state: State) -> float:
    return sum(max(0, count - state.blocks[run]) * state.hours[run] for run, count in wanted.items())


def _wanted(blocks: Mapping[Comparison, int], state: State) -> dict[str, int]:
    """How many seeds each run must have, so that comparisons have so many blocks: failed ones come on top."""
    wanted: dict[str, int] = {}
    for each, count in blocks.items():
        lost = state.study.failed
        further = len(lost.get(each.larger, frozenset()) | lost.get(each.smaller, frozenset()))
        for run in (each.larger, each.smaller):
            wanted[run] = min(max(wanted.get(run, 0), count + further), len(state.study.all_seeds))
    return wanted


def _usual_variances(tests: Sequence[Test]) -> dict[tuple[str, bool], float]:
    """The median variance of the differences between blocks, of each metric: one of few blocks is told by luck."""
    variances: dict[tuple[str, bool], list[float]] = {}
    for test in tests:
        for each in test.looks:
            look = each.latest
            if isinstance(look, Means) and look.blocks > 1:
                key = (test.claim.metric, each.finding.comparison.ratio)
                variances.setdefault(key, []).append(look.variance)
    return {key: float(np.median(each)) for key, each in variances.items()}


# --- Rounds -----------------------------------------------------------------------------------------------------------


@dataclass
class _Rounds:
    """The rounds of a study's folder."""

    path: Path
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def read(cls, output: Path) -> _Rounds:
        path = output / ROUNDS
        if not path.is_file():
            return cls(path)
        with read_errors(path, 'the rounds of a study'):
            rounds = [from_json(Round, values) for values in of_kind(read_json(path), list[Any])]
            if any(count < 0 for each in rounds for count in each.blocks.values()):
                raise ValueError('fewer than 0 blocks')
            return cls(path, rounds)

    def add(self, one: Round) -> None:
        self.rounds.append(one)
        write_json(self.path, [asdict(each) for each in self.rounds])


def train_until_decided(
    study: Study, output: Path, console: Console, train: Train, *, budget: float | None = None, slots: int = 1
) -> Trials:
    """Trains what the claims of a study need, round by round.

    Args:
        study: The study; each pair of its runs is a claim where it has none.
        output: Its folder.
        console: Where it is printed.
        train: Trains some of its trials; `keep_failure` has those that failed.
        budget: Hours of training and validation, what is done included.
        slots: How many trainings run at the same time.

    Returns:
        All that was trained; `undecided` says why the others get no more.
    """
    study = replace(study, until_decided=True)
    rounds = _Rounds.read(output)
    names = {trial.name for trial in study.trials()}
    total = Trials(failed={name: why for name, why in failures(output).items() if name in names})
    decided: set[str] = set()
    tried: set[str] = set()
    again = rounds.rounds[-1:]  # it may not be complete
    while True:
        study = as_run(study, output)
        records = study_records(study, output)
        state = State.of(study, records, output)
        decided = _print_new(state, decided, console)
        left = None if budget is None else budget - hours_spent(study, output)
        one, total.undecided = next_round(state, 0.0 if total.left else left, slots)
        if again:
            one = again.pop()
        elif one is None or total.left:
            return total
        else:
            rounds.add(one)
        done = {(record.run, record.seed) for record in records if record.analysis is not None}
        wanted = {(run, seed) for run, count in one.blocks.items() for seed in study.all_seeds[:count]} - done
        trials = [each for each in study.trials() if (each.run, each.seed) in wanted and each.name not in tried]
        if trials and left is not None and left <= 0:
            total.left = {trial.name: f'the budget of {budget:g} h is used up' for trial in trials}
        elif trials:
            what = ', '.join(one.claims) if one.claims else f'the first {FIRST_BLOCKS} seeds of each run'
            console.line(f'\nround {len(rounds.rounds)}, for {what}: {", ".join(trial.name for trial in trials)}')
            tried.update(trial.name for trial in trials)
            total.add(train(trials))


def _print_new(state: State, before: set[str], console: Console) -> set[str]:
    """Says which claims were decided since, and returns all that are."""
    judged: list[Verdict] = judge(state.study.claims, state.samples, state.study.stages)
    for verdict in judged:
        if verdict.verdict != UNDECIDED and verdict.claim.name not in before:
            console.line(f'decided: {verdict.claim.name}: {sentence(verdict)}')
    return {verdict.claim.name for verdict in judged if verdict.verdict != UNDECIDED}
