"""The command line as a whole: every command has its help, and none costs the others anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import COMMANDS, main


@pytest.mark.parametrize('name', [command.name for command in COMMANDS])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: imagenette-zoo {name}')


@pytest.mark.slow
def test_the_help_lists_the_commands_and_loads_the_modules_of_none() -> None:
    code = 'import sys; from imagenette_zoo.cli.main import main\ntry: main(["--help"])\nfinally: print(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    listed = [line.split()[0] for line in text if line.startswith('    ') and line[4] != ' ']
    assert listed == [command.name for command in COMMANDS]
    parts = {name.split('.')[1] for name in modules.split() if name.startswith('imagenette_zoo.')}
    assert not parts & {'inference', 'training', 'study', 'report', 'sharing'}


def test_an_unknown_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['trian']) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: imagenette-zoo: argument COMMAND: invalid choice: 'trian'")
    assert error.count('\n') == 1


def test_an_unknown_flag_is_one_line_with_the_nearest_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['study', 'any', '--budgte', '3']) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: unknown option --budgte; did you mean --budget')
    assert error.count('\n') == 1


@pytest.mark.parametrize(
    'words',
    [
        ['train'], ['validate'], ['run', 'resnet18'], ['study', 'any'], ['analyse', 'any'], ['report', 'any'],
        ['passes'], ['predict', 'any.png'], ['export'], ['publish', 'any', 'me/any'], ['demo'],
    ],
)  # fmt: skip
def test_code_of_ones_own_is_imported_first(
    words: list[str], no_modules: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / 'my_idea.py'
    file.write_text('import imagenette_zoo\nraise RuntimeError("not today")\n')
    assert main([*words, '--device-modules', str(file)]) == 2
    assert capsys.readouterr().err == f'error: {file}:2: RuntimeError: not today\n'
    assert main([*words, '--import', str(tmp_path / 'no.py')]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no.py'}: can't read a Python file")
