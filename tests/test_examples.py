"""Each file of `examples/` trains by the command that it names."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.utils import modules

ROOT = Path(__file__).parents[1]
TINY = '--model test_resnet --img-size 32 -b 8 --epochs 4 --warmup-epochs 0 --device cpu --experiment run'


@pytest.mark.parametrize('file', ['own_optimizer.py', 'own_loss.py', 'own_augmentation.py'])
def test_an_example_trains(file: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / 'examples')
    monkeypatch.setattr(modules, '_imported', {})
    monkeypatch.setattr(sys, 'modules', dict(sys.modules))
    text = (ROOT / 'examples' / file).read_text()
    command = next(line for line in text.splitlines() if line.startswith('imagenette-zoo train '))
    words = shlex.split(command)[1:]
    assert file in words
    assert main([*words, *TINY.split(), '--data-dir', str(folder), '--output', str(tmp_path)]) == 0
    losses = [json.loads(line)['train_loss'] for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert losses[-1] < losses[0]
