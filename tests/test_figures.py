"""The picture of README is the one that `make figures` makes."""

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_readme_shows_the_verdicts_and_heat_maps_of_today() -> None:
    pytest.importorskip('matplotlib')
    spec = importlib.util.spec_from_file_location('figures', ROOT / 'tools' / 'figures.py')
    assert spec is not None
    assert spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    made, committed = (
        np.asarray(Image.open(file).convert('RGB').reduce(16)).astype(int)
        for file in (io.BytesIO(figures.front()), ROOT / 'docs' / 'front.png')
    )
    assert made.shape == committed.shape
    assert np.abs(made - committed).max() < 32, 'run make figures'
