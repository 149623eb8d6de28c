"""The command line as a whole: every command has its help, and none costs the others anything."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import COMMANDS, main, make_parser
from imagenette_zoo.errors import UserError

# Run in one process, which prints a line for each: its exit code, and whether torch or timm was imported for it.
LIGHT = '''
import contextlib, io, json, sys
from imagenette_zoo.cli.main import main
for words in json.loads(sys.argv[1]):
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    print(code, len(sink.getvalue()) > 20, sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)), *words)
'''


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: imagenette-zoo {name}')


def test_help_lists_and_mistakes_import_neither_torch_nor_timm(tmp_path: Path) -> None:
    recipe, study = tmp_path / 'recipe.yaml', tmp_path / 'study.yaml'
    recipe.write_text('epochs: many\n')
    study.write_text('runs:\n  a: {epochs: many}\n')
    good = [
        ['--help'], ['--version'], ['list'], ['list', 'resnet*'], ['list', '--json'], ['runs', str(tmp_path)],
        ['new', str(tmp_path / 'idea.py')], ['data', 'check', '--help'], *([name, '--help'] for name in COMMANDS),
    ]  # fmt: skip
    bad = [
        [], ['trian'], ['data', 'clear'], ['list', 'nothing'], ['train', '--epochs', 'x'], ['train', '--epohcs', '3'],
        ['train', '-c', str(recipe)], ['study', str(study)], ['study', 'nothing'], ['run'],
        ['run', 'resnet18', '--vary', 'lr=x'], ['validate', '--batch-size', '0'], ['predict', 'a.png', '--topk', '0'],
        ['export', '--to', 'any'], ['runs', str(tmp_path / 'no')],
    ]  # fmt: skip
    words = [sys.executable, '-c', LIGHT, json.dumps(good + bad)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    expected = [f'{code} True [] {" ".join(each)}'.rstrip() for code, some in ((0, good), (2, bad)) for each in some]
    assert [line.rstrip() for line in done.stdout.splitlines()] == expected


def test_without_a_command_the_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in text if line.startswith('    ') and line[4] != ' ']
    assert listed == list(COMMANDS)


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['trian'], "imagenette-zoo: no command 'trian'; did you mean train?"),
        (['data', 'fecth'], "imagenette-zoo data: no action 'fecth'; did you mean fetch?"),
        (['data', 'clear'], "imagenette-zoo data: no action 'clear'; did you mean cache --clear?"),
        (['qqq'], "imagenette-zoo: no command 'qqq'; imagenette-zoo --help lists all"),
        (['study', 'any', '--budgte', '3'], 'unknown option --budgte; did you mean --budget'),
        (['data'], 'imagenette-zoo data: the following arguments are required: ACTION; imagenette-zoo data --help'),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_that_there_is(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {line}')
    assert error.count('\n') == 1


def test_all_mistakes_of_a_file_are_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, study = tmp_path / 'recipe.yaml', tmp_path / 'study.yaml'
    recipe.write_text('epohcs: 3\nlr: high\nmixup: 0.2\nbatch_size: 0\n')
    assert main(['train', '-c', str(recipe)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {recipe}:1: unknown option 'epohcs'; did you mean epochs?",
        f"error: {recipe}:2: --lr: 'high' is not a number",
        f'error: {recipe}:4: --batch-size: 0 is out of range, it must be at least 1',
    ]
    study.write_text(
        'budgte: 3\nbase: recipe.yaml\nruns:\n  a: {lr: x}\n  b:\n    grid: {lr: [y, 0.1], epochs: [1, 2]}\n'
        '  c: {mixup_off_epoch: 2}\n'  # right with its base
        'claims:\n  - {claim: One., metric: top1, order: a > b}\n  - {claim: Two., metric: top9, order: a > a}\n'
    )
    assert main(['study', str(study)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(': ')[1:3] for line in lines] == [
        [f'{study}:1', 'a study'], *([f'{study}:2', f'{recipe}:{n}'] for n in (1, 2, 4)),
        [f'{study}:4', '--lr'], [f'{study}:6', '--lr'],
        [f'{study}:9', 'order'], [f'{study}:10', 'metric'], [f'{study}:10', 'order'],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['train', '--epochs', '9'], 'train: mbv2_mish_imagenette, 9 epochs by recipe mbv2_mish; loading PyTorch'),
        (['train', '--model', 'resnet18', '--epochs', '7'], 'train: resnet18, 7 epochs; loading PyTorch'),
        (['train', '--resume', 'runs/a'], 'train: continues runs/a; loading PyTorch'),
        (['train', '--from', 'runs/a'], 'train: repeats runs/a; loading PyTorch'),
        (
            ['run', 'resnet18', 'resnet34', '--seeds', '4'],
            'run: resnet18 and resnet34: 2 runs with 4 seeds each by recipe mbv2_mish_80; loading PyTorch',
        ),
        (
            ['run', 'resnet18', 'resnet34', '--until-decided'],
            'run: resnet18 and resnet34: 2 runs with 3 seeds or more each by recipe mbv2_mish_80; loading PyTorch',
        ),
        (['run', 'resnet18'], 'run: resnet18: 1 run with 3 seeds by recipe mbv2_mish_80; loading PyTorch'),
    ],
)
def test_the_first_line_says_what_is_done(
    words: list[str], line: str, tmp_path: Path, no_modules: None, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / 'no.py')  # whose import is the next thing, and fails
    assert main([*words, '--device-modules', missing]) == 2
    output = capsys.readouterr()
    assert output.out == f'{line}\n'
    assert 'no.py' in output.err


def test_a_result_has_its_first_line_on_a_terminal_only(
    tmp_path: Path, no_modules: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('a.png').touch()
    words = ['predict', 'a.png', '--model', 'runs/a', '--device-modules', str(tmp_path / 'no.py')]
    assert main(words) == 2
    assert 'predict' not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.out == ''
    assert output.err.startswith('predict: a.png by runs/a; loading PyTorch\nerror: ')


def test_only_the_first_of_several_processes_has_a_first_line(
    tmp_path: Path, no_modules: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('RANK', '1')
    assert main(['train', '--model', 'resnet18', '--device-modules', str(tmp_path / 'no.py')]) == 2
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('columns', ['20', '80'])
def test_help_fits_narrow_terminals(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('COLUMNS', columns)
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, '--help'])
    assert main([]) == 2
    assert '\x1b' not in capsys.readouterr().out


def test_the_c_locale_can_print_everything() -> None:
    env = {'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii', 'NO_COLOR': '1', 'PYTHONPATH': ':'.join(filter(None, sys.path))}
    words = [sys.executable, '-m', 'imagenette_zoo']
    for argv in (['list'], ['train', '--help'], ['train', '-c', 'é']):
        done = subprocess.run([*words, *argv], capture_output=True, env=env)
        assert (done.stdout + done.stderr).isascii()
        assert b'Traceback' not in done.stderr


def test_completion_of_a_shell_knows_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('shtab')
    for shell in ('bash', 'zsh', 'tcsh'):
        assert main(['completion', shell]) == 0
        script = capsys.readouterr().out
        assert all(word in script for word in ('imagenette', 'predict', 'warmup-epochs', 'clear', 'bicubic'))


def test_completion_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert main(['completion', 'bash']) == 2
    assert capsys.readouterr().err == (
        'error: completion bash needs shtab: pip install "imagenette-zoo[completion]"\n'
    )


def test_an_unknown_word_elsewhere_is_not_taken_for_a_command() -> None:
    with pytest.raises(UserError, match="unexpected argument 'resnet18'"):
        make_parser().parse_args(['train', 'resnet18'])
    assert isinstance(make_parser(), argparse.ArgumentParser)


@pytest.mark.parametrize(
    'words',
    [
        ['train'], ['validate'], ['run', 'resnet18'], ['study', 'claims'], ['analyse', 'any'], ['report', 'any'],
        ['passes'], ['predict', 'any.png'], ['average', 'any'], ['export'], ['publish', 'any', 'me/any'], ['demo'],
    ],
)  # fmt: skip
def test_code_of_ones_own_is_imported_first(
    words: list[str],
    no_modules: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('any.png').touch()
    file = tmp_path / 'my_idea.py'
    file.write_text('import imagenette_zoo\nraise RuntimeError("not today")\n')
    assert main([*words, '--device-modules', str(file)]) == 2
    assert capsys.readouterr().err == f'error: {file}:2: RuntimeError: not today\n'
    assert main([*words, '--import', str(tmp_path / 'no.py')]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'no.py'}: can't read a Python file")
