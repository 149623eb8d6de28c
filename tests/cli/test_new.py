"""The file that an idea starts from."""

import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.utils import modules


@pytest.mark.long
@pytest.mark.slow
def test_the_file_trains_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modules, '_imported', {})
    monkeypatch.setattr(sys, 'path', [*sys.path])
    assert main(['new', 'fresh_idea.py']) == 0
    commands = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith('  imagenette-zoo')]
    assert [command[1] for command in commands] == ['train', 'run', 'run']
    small = '--train-split train[:5%] --val-split validation[:10%] --img-size 32 -b 16 --epochs 1 --device cpu'
    assert main([*commands[0][1:], *small.split(), '--warmup-epochs', '0']) == 0
    del sys.modules['fresh_idea']


@pytest.mark.parametrize(
    ('name', 'line'),
    [
        ('idea.txt', 'expected a name of letters, digits and _ that ends in .py'),
        ('my-idea.py', 'expected a name of letters'),
        ('torch.py', "torch.py: Python has a module 'torch' already ("),
        ('there.py', 'exists already: choose another name'),
        ('no/where.py', 'there is no folder no'),
    ],
)
def test_a_bad_name_is_one_line(
    name: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('there.py').write_text('')
    assert main(['new', name]) == 2
    assert line in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['there.py']
