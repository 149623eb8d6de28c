"""Drawn images: the models whose weights come with the package know them."""

from pathlib import Path

import numpy as np
import pytest

import imagenette_zoo as iz
from imagenette_zoo.data.drawings import DRAWINGS


@pytest.mark.parametrize('name', DRAWINGS)
def test_a_drawing_is_taken_for_its_class(name: str, tmp_path: Path) -> None:
    DRAWINGS[name]().save(tmp_path / 'drawn.png')
    for model in ('mbv2_mish_imagenette', 'mbv2_mish_maxblur_imagenette'):
        [found] = iz.predict(tmp_path / 'drawn.png', model, device='cpu')
        assert found.label == name
        assert found.probability > 0.8


def test_a_drawing_is_the_same_each_time() -> None:
    for draw in DRAWINGS.values():
        assert np.array_equal(draw(), draw())
