from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache."""
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def no_imagenette_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
