"""Studies from their file to their report: what is asked for, and what is said at the end."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.report import studies
from imagenette_zoo.study.plan import Study, make_study
from imagenette_zoo.study.process import Extent, Left, Slot, Trials
from imagenette_zoo.utils.console import Console


@pytest.mark.parametrize('budget', [0, -1, True, math.nan, math.inf, '3'])
def test_a_budget_from_python_is_checked(budget: Any) -> None:
    with pytest.raises(UserError, match='is not a number of hours above 0'):
        Extent(budget=budget)


def test_runs_are_named_or_left_to_the_claims() -> None:
    with pytest.raises(UserError, match='leave --only out'):
        Extent(['a'], None, True)
    decided = Study('', {}, (1, 2), (), until_decided=True)
    assert Extent().of(decided).until_decided
    assert not Extent(['a']).of(decided).until_decided
    assert not Extent().of(Study('', {}, (1, 2), ())).until_decided


def test_a_study_file_may_ask_to_go_on_until_its_claims_are_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, 'check_packages', lambda: None)
    study = replace(make_study('', {name: Recipe() for name in 'ab'}, (1, 2, 3)), until_decided=True)
    asked: list[Extent] = []

    def train(study: Study, slot: Slot, console: Console, extent: Extent) -> Trials:
        asked.append(extent)
        raise KeyboardInterrupt

    for only in ((), ('a',)):
        with pytest.raises(KeyboardInterrupt):
            studies.carry_out(study, Slot(tmp_path), Console(quiet=True), Extent(only), train=train)
    assert [extent.until_decided for extent in asked] == [True, False]


def test_the_budget_that_is_named_is_beyond_what_is_spent(capsys: pytest.CaptureFixture[str]) -> None:
    """Trainings that were begun within the budget end beyond it."""
    trials = Trials(undecided={'a': Left('needs about 1 h', 1.0)})
    studies._print_undecided(trials, 2.0, 3.5, Console())
    assert capsys.readouterr().out.endswith('to go on: the same command with --budget 4.5\n')


def test_where_no_command_is_printed_the_reasons_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(make_study('', {name: Recipe() for name in 'ab'}, (1, 2, 3)), until_decided=True)
    left = Trials(undecided={'a': Left('needs about 1 h', 1.0)})
    monkeypatch.setattr(studies, 'missing_lines', lambda *_: ([], left))
    studies.print_commands(study, Slot(tmp_path), Extent(budget=2.0))
    captured = capsys.readouterr()
    assert captured.out == ''
    assert 'a: needs about 1 h\nto go on: the same command with --budget 1\n' in captured.err
