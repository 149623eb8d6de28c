"""`imagenette_zoo.study` and `imagenette_zoo.report` are packages, and functions."""

import copy
import importlib
import inspect
import pickle
import sys

import pytest

import imagenette_zoo as iz


@pytest.mark.parametrize('name', ['study', 'report'])
def test_a_package_that_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagenette_zoo.report import notebook

    package = getattr(iz, name)
    monkeypatch.setattr(notebook, name, lambda *args, **kwargs: (args, kwargs))
    assert package(1, quiet=True) == ((1,), {'quiet': True})
    monkeypatch.undo()
    assert inspect.signature(package) == inspect.signature(getattr(notebook, name))


def test_it_stays_a_package() -> None:
    from imagenette_zoo.study import plan

    assert iz.study.plan is plan is importlib.import_module('imagenette_zoo.study.plan')
    assert iz.study is sys.modules['imagenette_zoo.study'] is importlib.reload(iz.study)
    assert pickle.loads(pickle.dumps(iz.study)) is copy.deepcopy(iz.study) is iz.study
    assert pickle.loads(pickle.dumps(plan.Trial)) is plan.Trial
