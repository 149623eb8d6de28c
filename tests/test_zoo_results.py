"""The CSV, the table and the picture of the zoo's benchmark are what its trainings say, all of them or a few."""

from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.study.plan import find_study, read_study
from imagenette_zoo.study.records import Record
from tests.report.records import make_record


@pytest.fixture
def records() -> list[Record]:
    """Three seeds of one model, and one of another."""
    recipe = Recipe(img_size=96, crop_pct=0.875, interpolation='bicubic').as_dict()
    seeds = [make_record('resnet18', seed, 100 * (48 + seed) / 60, img_size=96, recipe=recipe) for seed in (1, 2, 3)]
    return [*seeds, make_record('resnet34', 1, 85.0, img_size=96, recipe=recipe, params=21_300_000, gmacs=3.6)]


def test_a_part_of_the_benchmark_is_shown_with_what_is_missing(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / 'tools'))
    import zoo_results

    assert zoo_results.csv_name() == 'results-imagenette-96.csv'
    lines = zoo_results.csv_text(records).splitlines()
    assert lines[0].startswith('model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation,seeds,')
    assert lines[1:] == [
        'resnet34,96,85.000,15.000,99.000,1.000,21.30,0.875,bicubic,1,,',
        'resnet18,96,83.333,16.667,99.000,1.000,11.18,0.875,bicubic,3,79.193,87.474',
    ]
    rows = list(zoo_results.table_rows(records))
    assert rows[0] == ['1', '`resnet34`', '85.00', '1', '21.300', '3.600', 'yes']
    assert rows[1][2:4] == ['83.33 ± 4.14', '3']
    names = set(read_study(find_study('zoo')).runs)
    assert {row[1].strip('`') for row in rows if row[2] == 'not trained yet'} == names - {'resnet18', 'resnet34'}
    assert len(rows) == len(names)
    assert b'<svg' in zoo_results.picture(records)
    assert b'<svg' in zoo_results.picture([])
    assert len(list(zoo_results.table_rows([]))) == len(names)
    assert len(zoo_results.csv_text([]).splitlines()) == 1
