"""Which trainings a study gets next, and that a study which was stopped takes the same decisions again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study import adaptive
from imagenette_zoo.study.adaptive import ROUNDS, Round, State, next_round, train_until_decided
from imagenette_zoo.study.analysis import FILES
from imagenette_zoo.study.decisions import judge
from imagenette_zoo.study.plan import Claim, Comparison, Study, StudyRun, Trial, make_study
from imagenette_zoo.study.process import Trials
from imagenette_zoo.study.records import FAILED, Record, as_run, failures, keep_failure
from imagenette_zoo.study.statistics import Sample
from imagenette_zoo.utils.console import Console
from tests.report import records
from tests.report.records import make_record

pytest.importorskip('scipy')

MEANS = {'a': 60.0, 'b': 70.0, 'c': 60.05, 'd': 64.0}


def claim(larger: str, smaller: str, metric: str = 'top1', bound: float = 0.0, practical: float | None = None) -> Claim:
    name = f'{larger} > {smaller}'
    return Claim(name, name, metric, (name,), (Comparison(larger, smaller, bound),), practical)


CLAIMS = (claim('b', 'a'), claim('d', 'a'), claim('c', 'a', practical=0.2))


def value(run: str, seed: int) -> float:
    return MEANS[run] + float(np.random.default_rng([ord(run), seed]).normal(0, 0.5))


def make(claims: tuple[Claim, ...] = CLAIMS) -> Study:
    runs = {name: StudyRun(name, Recipe(experiment=None)) for name in MEANS}
    return Study('', runs, (1, 2), claims, until_decided=True)


def state(blocks: Mapping[str, int], claims: tuple[Claim, ...] = CLAIMS, **changes: object) -> State:
    samples = {('top1', run): Sample([value(run, seed) for seed in range(count)]) for run, count in blocks.items()}
    study = replace(make(claims), **changes)  # type: ignore[arg-type]
    return State(study, samples, blocks, {'a': 1.0, 'b': 1.0, 'c': 10.0, 'd': 2.0})


def test_two_blocks_of_everything_come_first() -> None:
    blocks = {'a': 4, 'b': 2, 'c': 1, 'd': 0}
    assert next_round(state(blocks), None) == (Round([], {'a': 4, 'b': 2, 'c': 2, 'd': 2}), {})


def test_the_claim_that_is_cheapest_to_decide_gets_its_next_stage() -> None:
    one, _ = next_round(state(dict.fromkeys(MEANS, 2)), None)
    assert one == Round(['b > a'], {'a': 3, 'b': 3, 'c': 2, 'd': 2})
    far = next_round(state(dict.fromkeys(MEANS, 2), tuple(reversed(CLAIMS))), None)[0]
    assert far == one, 'in whatever order they are written'


def test_as_many_claims_are_chosen_as_trainings_run_at_the_same_time() -> None:
    one, _ = next_round(state(dict.fromkeys(MEANS, 2)), None, slots=3)
    assert one == Round(['b > a', 'd > a'], {'a': 3, 'b': 3, 'c': 2, 'd': 3})


def test_claims_that_the_budget_cannot_decide_are_left_with_the_hours_they_need() -> None:
    blocks = dict.fromkeys(MEANS, 2)
    _, everything = next_round(state(blocks), 0.0)
    assert everything.keys() == {each.name for each in CLAIMS}
    hours = {name: left.hours for name, left in everything.items()}
    assert all(each is not None for each in hours.values())
    enough = hours['b > a']
    assert enough is not None
    one, left = next_round(state(blocks), enough)
    assert one is not None
    assert one.claims == ['b > a']
    assert left.keys() == {'d > a', 'c > a'}
    assert left['d > a'].reason.startswith('needs about ')


def test_a_claim_that_no_stage_would_decide_is_left_but_not_by_the_luck_of_few_blocks() -> None:
    near = claim('c', 'a', practical=0.001)
    for blocks, following in {2: 3, 3: 4, 4: 5}.items():
        one, left = next_round(state(dict.fromkeys(MEANS, blocks), (near,)), 11.0)
        assert (one, left) == (Round([near.name], {'a': following, 'b': blocks, 'c': following, 'd': blocks}), {})
    one, left = next_round(state(dict.fromkeys(MEANS, 2), (near, *CLAIMS[:1])), 30.0)
    assert one is not None
    assert one.claims == ['b > a'], 'those that seem to be decided soon come first'
    one, left = next_round(state(dict.fromkeys(MEANS, 5), (near,)), None)
    assert one is None
    assert left[near.name].hours is None
    assert left[near.name].reason.startswith('even 20 seeds would not decide it')


def test_failed_seeds_come_on_top_and_a_run_that_fails_again_is_left() -> None:
    blocks = dict.fromkeys(MEANS, 3)
    once = replace(state(blocks), study=replace(make(), failed={'d': frozenset({3})}))
    once = replace(once, samples={**once.samples, ('top1', 'd'): Sample([value('d', 0), value('d', 1)])})
    one, _ = next_round(once, None, slots=10)
    assert one is not None
    assert 'd > a' in one.claims
    assert one.blocks['d'] == 4, 'the third block of d and a is the fourth seed'
    _, left = next_round(state(blocks, failed={'a': frozenset({1, 2})}), None)
    assert left['c > a'].reason == 'a failed with seeds 1, 2'


def test_a_training_that_was_not_analysed_is_waited_for() -> None:
    lacking = state(dict.fromkeys(MEANS, 3), CLAIMS[:1])
    lacking = replace(lacking, samples={**lacking.samples, ('top1', 'b'): Sample([value('b', 0), value('b', 1)])})
    one, left = next_round(lacking, None)
    assert one is None
    assert left['b > a'].reason == 'waits for the analysis of 1 training of b: give the same command again'


def test_decided_claims_get_no_more() -> None:
    blocks = dict.fromkeys(MEANS, 20)
    one, left = next_round(state(blocks, CLAIMS[:2]), None)
    assert (one, left) == (None, {})


# --- Rounds -----------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Trains at once: what a training gives is told by its run and seed."""

    records: list[Record] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    stop_after: int | None = None
    failing: tuple[str, ...] = ()
    output: Path = Path()

    def train(self, trials: list[Trial]) -> Trials:
        done = Trials()
        for trial in trials:
            if self.stop_after is not None and len(self.trained) >= self.stop_after:
                raise KeyboardInterrupt
            self.trained.append(trial.name)
            if trial.name in self.failing:
                done.failed[trial.name] = 'no memory'
                keep_failure(self.output, trial.name, 'no memory')
                continue
            seed = trial.recipe.seed
            self.records.append(make_record(trial.run, seed, value(trial.run, seed)))
            done.done.append(trial)
        return done


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    cluster = Cluster(output=tmp_path)
    monkeypatch.setattr(records, 'IMAGES', 1000)
    monkeypatch.setattr(adaptive, 'study_records', lambda study, output: list(cluster.records))
    monkeypatch.setattr(adaptive, 'hours_spent', lambda study, output: float(len(cluster.records)))
    monkeypatch.setattr(adaptive, 'costs_of', lambda study, output: dict.fromkeys(study.runs, 1.0))
    return cluster


def test_a_study_is_trained_until_its_claims_are_decided(tmp_path: Path, cluster: Cluster) -> None:
    trials = train_until_decided(make(CLAIMS[:2]), tmp_path, Console(quiet=True), cluster.train)
    assert (trials.failed, trials.left, trials.undecided) == ({}, {}, {})
    assert cluster.trained[:8] == [f'{run}-seed{seed}' for seed in (1, 2) for run in MEANS]
    assert len(cluster.trained) == len(set(cluster.trained)) == len(trials.done)
    assert not any(name.startswith('c') for name in cluster.trained[8:]), 'c is in no claim'


def test_a_training_that_ends_early_costs_what_it_took(tmp_path: Path) -> None:
    study = make_study('', {name: Recipe(epochs=10) for name in ('early', 'begun', 'new')}, (1, 2))
    for name, epochs in (('early-seed1', 2), ('early-seed2', 4), ('begun-seed1', 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metrics.jsonl').write_text('{"seconds": 360}\n' * epochs)
    for name in ('early-seed1', 'early-seed2'):
        (tmp_path / name / 'result.json').write_text('{}')
    assert adaptive.costs_of(study, tmp_path) == pytest.approx({'early': 0.3, 'begun': 1.0, 'new': 0.65})


def test_a_study_without_claims_tells_its_pairs_apart(tmp_path: Path, cluster: Cluster) -> None:
    two = replace(make_study('', {name: Recipe() for name in 'ab'}, (1, 2, 3)), until_decided=True)
    trials = train_until_decided(two, tmp_path, Console(quiet=True), cluster.train)
    assert trials.undecided == {}
    assert 6 <= len(cluster.trained) < 20


@pytest.mark.parametrize('stop_after', [5, 9, 11])
def test_a_study_that_was_stopped_takes_the_same_decisions(tmp_path: Path, cluster: Cluster, stop_after: int) -> None:
    def go_on(folder: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        train_until_decided(make(), tmp_path / folder, Console(quiet=True), cluster.train, budget=40.0)
        return list(cluster.trained)

    whole = go_on('whole')
    cluster.records.clear()
    cluster.trained.clear()
    cluster.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        go_on('stopped')
    cluster.stop_after = None
    assert go_on('stopped') == whole
    first, second = (json.loads((tmp_path / folder / ROUNDS).read_text()) for folder in ('whole', 'stopped'))
    assert first == second


def test_the_budget_counts_what_is_done(tmp_path: Path, cluster: Cluster) -> None:
    trials = train_until_decided(make(), tmp_path, Console(quiet=True), cluster.train, budget=9.0)
    assert len(cluster.trained) == 8, 'two blocks of everything; no claim is decided by one training more'
    assert trials.undecided.keys() == {each.name for each in CLAIMS}
    again = train_until_decided(make(), tmp_path, Console(quiet=True), cluster.train, budget=9.0)
    assert len(cluster.trained) == 8
    assert again.undecided == trials.undecided


def test_a_training_that_fails_is_tried_once_each_time(tmp_path: Path, cluster: Cluster) -> None:
    cluster.failing = ('a-seed2',)
    trials = train_until_decided(make(CLAIMS[:1]), tmp_path, Console(quiet=True), cluster.train)
    assert trials.failed == {'a-seed2': 'no memory'}
    assert cluster.trained.count('a-seed2') == 1
    assert failures(tmp_path) == trials.failed, 'written down at once'
    cluster.failing = ()
    again = train_until_decided(make(CLAIMS[:1]), tmp_path, Console(quiet=True), cluster.train)
    assert again.failed == {}


def test_a_failure_that_is_done_by_now_or_of_another_study_is_none(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / FAILED).write_text(json.dumps({'a-seed1': 'killed since', 'z-seed1': 'another'}))
    (tmp_path / 'a-seed1').mkdir()
    for name in ('result.json', *FILES):
        (tmp_path / 'a-seed1' / name).touch()
    trials = train_until_decided(make(CLAIMS[:1]), tmp_path, Console(quiet=True), cluster.train)
    assert trials.failed == {}
    assert failures(tmp_path) == {'z-seed1': 'another'}
    found = as_run(make(CLAIMS[:1]), tmp_path)
    assert (found.failed, found.late) == ({}, {'a': frozenset({1})})


def test_a_run_that_is_not_judged_better_is_left_with_the_reason() -> None:
    lost = state(dict.fromkeys(MEANS, 3), CLAIMS[:1])
    values = [value('b', 0), value('b', 1), None]
    lost = replace(lost, samples={**lost.samples, ('top1', 'b'): Sample(values)})
    one, left = next_round(lost, None)
    assert one is None
    assert left['b > a'].reason == 'b failed or diverged with seed 2: b is not judged better'


def test_two_equal_differences_tell_no_spread_so_the_first_look_is_made() -> None:
    samples = {('top1', 'a'): Sample([60.0, 61.0]), ('top1', 'b'): Sample([70.0, 71.0])}
    one, _ = next_round(replace(state(dict.fromkeys(MEANS, 2), CLAIMS[:1]), samples=samples), None)
    assert one == Round(['b > a'], {'a': 3, 'b': 3, 'c': 2, 'd': 2})


def test_seeds_between_others_that_are_missing_are_trained(tmp_path: Path, cluster: Cluster) -> None:
    """With four seeds of each run two pairs are missing, as after trainings by hand."""
    for run, seeds in {'a': (1, 2, 3, 5), 'b': (1, 2), 'c': (1, 2), 'd': (1, 2, 4, 5)}.items():
        cluster.records += [make_record(run, seed, value(run, seed)) for seed in seeds]
    train_until_decided(make((claim('d', 'a', bound=3.2),)), tmp_path, Console(quiet=True), cluster.train)
    assert cluster.trained[:2] == ['d-seed3', 'a-seed4']


def test_a_budget_that_is_used_up_starts_nothing_also_of_a_round_that_was_begun(
    tmp_path: Path, cluster: Cluster
) -> None:
    cluster.stop_after = 5
    with pytest.raises(KeyboardInterrupt):
        train_until_decided(make(), tmp_path, Console(quiet=True), cluster.train, budget=5.0)
    cluster.stop_after = None
    trials = train_until_decided(make(), tmp_path, Console(quiet=True), cluster.train, budget=5.0)
    assert len(cluster.trained) == 5
    assert trials.left == dict.fromkeys(('b-seed2', 'c-seed2', 'd-seed2'), 'the budget of 5 h is used up')


@pytest.mark.parametrize('text', ['{}', '"abc"', '[{}]', '[{"claims": [], "blocks": {"a": -1}}]'])
def test_damaged_rounds_are_one_line(tmp_path: Path, cluster: Cluster, text: str) -> None:
    (tmp_path / ROUNDS).write_text(text)
    with pytest.raises(UserError, match='not the rounds of a study'):
        train_until_decided(make(), tmp_path, Console(quiet=True), cluster.train)


# --- What it is good for ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_trainings_decide_more_claims_where_the_claims_choose_them() -> None:
    """Six claims, of which some need three blocks and some no number: evenly spread, most blocks are wasted."""
    random = np.random.default_rng(0)
    pairs = [(0.0, 2.0), (8.0, 0.6), (3.0, 0.6), (3.0, 1.5), (1.0, 1.0), (6.0, 2.0)]
    names = [f'{letter}{number}' for number in range(len(pairs)) for letter in 'xy']
    claims = tuple(claim(f'x{number}', f'y{number}') for number in range(len(pairs)))
    study = Study('', {name: StudyRun(name, Recipe()) for name in names}, (1, 2), claims, until_decided=True)
    budget = 5 * len(names)
    decided = {'even': 0, 'adaptive': 0}
    for _ in range(40):
        values = {name: random.normal(0, 1, 20) * pairs[int(name[1])][1] for name in names}
        for number, (difference, _) in enumerate(pairs):
            values[f'x{number}'] += difference

        def count(blocks: Mapping[str, int], values: Mapping[str, np.ndarray] = values) -> int:
            samples = {('top1', name): Sample(list(values[name][:number])) for name, number in blocks.items()}
            return sum(each.verdict != 'undecided' for each in judge(claims, samples, study.stages))

        decided['even'] += count(dict.fromkeys(names, 5))
        blocks = dict.fromkeys(names, 2)
        while True:
            samples = {('top1', name): Sample(list(values[name][:number])) for name, number in blocks.items()}
            left = float(budget - sum(blocks.values()))
            one, _ = next_round(State(study, samples, blocks, dict.fromkeys(names, 1.0)), left)
            if one is None:
                break
            blocks = one.blocks
        assert sum(blocks.values()) <= budget
        decided['adaptive'] += count(blocks)
    assert decided['adaptive'] > 1.2 * decided['even'], decided
