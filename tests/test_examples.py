"""Each file of `examples/` trains by the command that it names."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from imagenette_zoo.cli.main import main
from imagenette_zoo.utils import modules

ROOT = Path(__file__).parents[1]
TINY = '--model test_resnet --img-size 32 -b 8 --epochs 4 --warmup-epochs 0 --device cpu --experiment run'


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / 'examples')
    monkeypatch.setattr(modules, '_imported', {})
    monkeypatch.setattr(sys, 'modules', dict(sys.modules))


def command(file: str) -> list[str]:
    """The command in the docstring of an example."""
    [line] = [line for line in (ROOT / 'examples' / file).read_text().splitlines() if line.startswith('imagenette-zoo')]
    return shlex.split(line)[1:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('file', 'names'),
    [
        ('own_activation.py', ['act_layer=relu6', 'act_layer=mish', 'act_layer=TanhExp']),
        ('own_block.py', ['resnet10t', 'resnet10t_simam']),
    ],
)
def test_an_example_is_compared(
    file: str, names: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = '-c demo --img-size 32 -b 8 --epochs 1 --warmup-epochs 0 --device cpu --seeds 1 --dry-run'
    assert main([*command(file), *small.split(), '--data-dir', str(folder), '--output', str(tmp_path)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3 : 3 + len(names)]] == names


def test_activation() -> None:
    x = torch.linspace(-20, 20, 1001, dtype=torch.float64)
    modules.import_modules(['own_activation.py'])
    torch.testing.assert_close(modules.resolve('own_activation:TanhExp')()(x), x * torch.tanh(torch.exp(x)))


@pytest.mark.parametrize('file', ['own_optimizer.py', 'own_loss.py', 'own_augmentation.py'])
def test_an_example_trains(file: str, folder: Path, tmp_path: Path) -> None:
    assert main([*command(file), *TINY.split(), '--data-dir', str(folder), '--output', str(tmp_path)]) == 0
    losses = [json.loads(line)['train_loss'] for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert losses[-1] < losses[0]
