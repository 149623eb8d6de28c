"""Small data sets like Imagenette."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenette_zoo.data import constants
from imagenette_zoo.errors import UserError

WNIDS = list(constants.IMAGENETTE)


def gradient(width: int = 20, height: int = 12) -> np.ndarray:
    """RGB pixels that tell left from right and top from bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 250, height, dtype=np.uint8)[:, None]
    return pixels


def make_imagenette(root: Path, classes: list[str] = WNIDS[:2], count: int = 2, val: str = 'val') -> Path:
    for split in ('train', val):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(gradient(20 + i)).save(root / split / name / f'{name}_{i}.JPEG')
    return root


def make_archive(path: Path, folder: Path, name: str = 'imagenette2-160') -> Path:
    with tarfile.open(path, 'w:gz' if path.suffix in ('.tgz', '.gz') else 'w') as tar:
        tar.add(folder, name)
    return path


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert '\n' not in str(error.value)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def bad_image(path: Path, kind: str) -> None:
    data = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data, 'png' if path.suffix == '.png' else 'jpeg')
    content = data.getvalue()
    path.write_bytes({'half': content[: len(content) // 2], 'empty': b'', 'text': b'<html>'}[kind])
