"""A study of two runs, and the report on it."""

from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.report.page import write_report
from imagenette_zoo.study.plan import Study, make_study


@pytest.fixture(scope='session')
def study() -> Study:
    from tests.report.records import make_claims

    plan = make_study('Which is better?', {'good': Recipe(), 'bad': Recipe(model='mobile')}, (1, 2, 3))
    claims = make_claims(('top1', 'good', 'bad'), ('top1', 'bad', 'good'), ('train_seconds', 'good', 'bad'))
    return Study(plan.title, plan.runs, plan.seeds, claims)


@pytest.fixture(scope='session')
def written(tmp_path_factory: pytest.TempPathFactory, study: Study) -> Path:
    """A report on all of it, not to be changed."""
    from tests.report.records import make_records

    return write_report(tmp_path_factory.mktemp('report'), make_records(), study=study).parent
