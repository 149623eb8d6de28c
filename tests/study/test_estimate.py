"""The plan of a study before it runs."""

from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.study import adaptive, estimate
from imagenette_zoo.study.decisions import all_pairs
from imagenette_zoo.study.plan import make_study
from imagenette_zoo.study.process import Slot
from tests.report.records import make_record

pytest.importorskip('scipy')


def test_what_is_known_of_a_pair_is_told_whichever_is_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also that more seeds than the study has would decide it."""
    study = make_study('', {'worse': Recipe(), 'better': Recipe()}, (1, 2))
    values = {'worse': (60.0, 61.0), 'better': (70.0, 71.5)}
    records = [make_record(run, seed, each[seed - 1]) for run, each in values.items() for seed in (1, 2)]
    monkeypatch.setattr(estimate, 'study_records', lambda study, output: records)
    monkeypatch.setattr(adaptive, 'costs_of', lambda study, output: {'worse': 1.0, 'better': 1.0})
    seems = estimate._as_it_seems(study, Slot(tmp_path))
    (claim,) = all_pairs(study.runs)
    assert seems[estimate._subject(claim, study)].startswith('needs about ')
