"""Studies from their file to their report: what is asked for, and what is said at the end."""

import math
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.report import studies
from imagenette_zoo.report.studies import carry_out
from imagenette_zoo.study.plan import make_study
from imagenette_zoo.study.process import Left, Slot, Trials
from imagenette_zoo.utils.console import Console


@pytest.mark.parametrize('budget', [0, -1, True, math.nan, math.inf, '3'])
def test_a_budget_from_python_is_checked(tmp_path: Path, budget: Any) -> None:
    study = make_study('', {'a': Recipe(), 'b': Recipe()}, (1, 2))
    with pytest.raises(UserError, match='is not a number of hours above 0'):
        carry_out(study, Slot(tmp_path), Console(quiet=True), budget=budget, until_decided=True)


def test_the_budget_that_is_named_is_beyond_what_is_spent(capsys: pytest.CaptureFixture[str]) -> None:
    """Trainings that were begun within the budget end beyond it."""
    trials = Trials(undecided={'a': Left('needs about 1 h', 1.0)})
    studies._print_undecided(trials, 2.0, 3.5, Console())
    assert capsys.readouterr().out.endswith('to go on: the same command with --budget 4.5\n')
