"""The drawn data set: its layout, its guarantee of equal pixels, and its difficulty."""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from imagenette_zoo.cli import data
from imagenette_zoo.data import check, folders, images, synthette
from imagenette_zoo.data.locate import resolve_dataset
from imagenette_zoo.errors import UserError

pytestmark = pytest.mark.usefixtures('cache')


def test_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = synthette.make(tmp_path / 'set', train_per_class=3, val_per_class=2)
    assert root == tmp_path / 'set'
    train, val = folders.load_split(root), folders.load_split(root, 'validation')
    assert train.classes == val.classes == train.class_names == tuple(sorted(synthette.CLASS_NAMES))
    assert train.classes == synthette.CLASS_NAMES
    assert len(synthette.CLASS_NAMES) == 10
    assert (len(train), len(val)) == (30, 20)
    assert train.paths[0] == 'train/checks/0000.png'
    report = check.check(root)
    assert report.bad == ()
    for entry in report.classes:
        assert entry.width is not None
        assert entry.height is not None
        assert min(*entry.width, *entry.height) >= 200
        assert max(*entry.width, *entry.height) <= 500


# SHA-256 of decoded pixels. If this changes, every demo's figures change: raise synthette.VERSION.
DIGEST = 'b61e40014e36f4114d7512c38bbff63ef92589383619ad792de2570c1448f193'


def digest(root: Path) -> str:
    """SHA-256 over the relative path, size and decoded RGB pixels of every image below `root`, in order."""
    total = hashlib.sha256()
    for path in sorted(path.relative_to(root).as_posix() for path in root.rglob('*.png')):
        image = images.open_image(root / path)
        total.update(f'{path}\0{image.width}x{image.height}\0'.encode())
        total.update(image.tobytes())
    return total.hexdigest()


def test_pixels_are_the_same_everywhere(tmp_path: Path) -> None:
    one = synthette.make(tmp_path / 'one', train_per_class=2, val_per_class=1, workers=1)
    assert digest(one) == DIGEST
    assert digest(synthette.make(tmp_path / 'four', 0, 2, 1, workers=4)) == DIGEST
    assert digest(synthette.make(tmp_path / 'seed', 1, 2, 1)) != DIGEST


def test_digest_sees_pixels_names_and_nothing_else(tmp_path: Path) -> None:
    root = synthette.make(tmp_path / 'set', train_per_class=1, val_per_class=1)
    before = digest(root)
    image = root / 'train' / 'ring' / '0000.png'
    Image.open(image).save(image, compress_level=9)
    assert digest(root) == before
    pixels = np.array(Image.open(image))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(image)
    assert digest(root) != before
    Image.fromarray(synthette.draw('ring', 0, 'train', 0)).save(image)
    assert digest(root) == before
    image.rename(image.with_name('0001.png'))
    assert digest(root) != before


def test_every_image_differs() -> None:
    drawn = {
        synthette.draw(name, seed, split, i).tobytes()
        for name in ('ring', 'dots')
        for seed in (0, 1)
        for split in ('train', 'val')
        for i in (0, 1)
    }
    assert len(drawn) == 16


def test_second_call_returns_what_is_there(cache: Path) -> None:
    root = synthette.make(train_per_class=1, val_per_class=1)
    assert root.parent == cache
    (root / 'mark').touch()
    assert synthette.make(train_per_class=1, val_per_class=1) == root
    assert (root / 'mark').exists()
    others = {synthette.make(seed=1, train_per_class=1, val_per_class=1), synthette.make(None, 0, 2, 1)}
    assert len(others | {root}) == 3


def test_interrupted_call_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def interrupted(name: str, seed: int, split: str, index: int) -> np.ndarray:
        drawn.append(name)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return np.zeros((8, 8, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(synthette, 'draw', interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthette.make(train_per_class=1, val_per_class=1, workers=1)
    assert list(cache.iterdir()) == []
    root = synthette.make(train_per_class=1, val_per_class=1)
    assert check.check(root).bad == ()
    assert len(folders.load_split(root)) == 10


def test_calls_at_the_same_time(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        roots = set(pool.map(lambda _: synthette.make(train_per_class=2, val_per_class=1, workers=1), range(4)))
    assert len(roots) == 1
    assert list(cache.iterdir()) == list(roots)
    root = roots.pop()
    assert digest(root) == DIGEST


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='expected at least 1'):
        synthette.make(train_per_class=0)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').touch()
    with pytest.raises(UserError, match='remove it or name another') as error:
        synthette.make(tmp_path / 'mine', train_per_class=1, val_per_class=1)
    assert '\n' not in str(error.value)
    assert (tmp_path / 'mine' / 'thesis.txt').exists()


def read_pixels(split: folders.ImageSet, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3 · size · size) in [-1, 1] and (N,)."""
    pixels = [
        np.asarray(images.open_image(split.root / path).resize((size, size), Image.Resampling.BOX))
        for path in split.paths
    ]
    return torch.from_numpy(np.stack(pixels)).flatten(1).float() / 127.5 - 1, torch.tensor(split.targets)


@pytest.mark.long
@pytest.mark.slow
def test_default_set_is_too_hard_for_a_linear_model(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = resolve_dataset('synthette')
    assert root.parent == cache
    train, target = read_pixels(folders.load_split(root), 32)
    val, val_target = read_pixels(folders.load_split(root, 'validation'), 32)
    assert len(train) >= 1000
    best = 0.0
    for weight_decay in (0.1, 1.0):
        torch.manual_seed(0)
        model = torch.nn.Linear(train.shape[1], 10)
        torch.nn.init.zeros_(model.weight)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
        for _ in range(15):
            for batch in torch.randperm(len(train)).split(64):
                optimiser.zero_grad()
                F.cross_entropy(model(train[batch]), target[batch]).backward()
                optimiser.step()
        assert (model(train).argmax(1) == target).float().mean() > 0.5  # it has learned what it can
        best = max(best, (model(val).argmax(1) == val_target).float().mean().item())
    assert 0.1 < best < 0.6

    assert data.check_command(None, 'synthette') == 0
    table = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f'all 10 classes train {len(train)} 200-500 200-500 0') for line in table)
    shutil.rmtree(root)
