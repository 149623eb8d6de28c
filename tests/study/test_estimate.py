"""The plan of a study before it runs."""

import re
from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.study import adaptive, estimate
from imagenette_zoo.study.decisions import all_pairs
from imagenette_zoo.study.plan import make_study
from imagenette_zoo.study.process import Slot
from imagenette_zoo.utils.console import Console
from tests.report.records import make_record

pytest.importorskip('scipy')


def test_the_time_of_short_runs_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study('', {name: Recipe(epochs=2, warmup_epochs=0) for name in 'ab'}, (1, 2, 3))
    for name, value in (('check_models', None), ('image_counts', (1, 1, 1)), ('seconds_per_epoch', 1.5)):
        monkeypatch.setattr(estimate, name, lambda *_, value=value: value)
    estimate.dry_run(study, Slot(tmp_path), Console())
    out = capsys.readouterr().out
    assert 'time a seed' in out
    assert 'time a block' in out
    assert [line.split()[-4:] for line in out.splitlines() if line.startswith(('a  ', 'b  '))] == [
        ['3.0', 's', '9.0', 's']
    ] * 2
    assert re.search(r'^a, b .* 6\.0 s +3 ', out, re.MULTILINE)
    assert 'as it seems' not in out, 'nothing is known yet'


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
