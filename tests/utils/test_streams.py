"""Standard output and error: there in any case, harmless, and never lost without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.data import cache
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.streams import Output, complain

needs_full = pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')


@needs_full
@pytest.mark.parametrize('words', [['list'], ['list', '--json'], ['data', 'cache'], ['list', '--help'], ['--version']])
def test_results_that_can_not_be_written_are_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open('/dev/full', 'w') as full:
        monkeypatch.setattr('sys.stdout', full)
        assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: standard output: can't write the results: No space left on device; ")
    assert error.count('\n') == 1


@needs_full
def test_a_full_disk_behind_the_lines_of_a_run_is_told_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with open('/dev/full', 'w') as full:
        output = Output(full)
        monkeypatch.setattr('sys.stdout', output)
        console = Console()
        console.line('epoch 0')
        console.line('epoch 1')
        with pytest.raises(UserError, match='No space left'):
            output.check()


def test_a_reader_that_has_gone_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, 'w') as pipe:
        monkeypatch.setattr('sys.stdout', pipe)
        assert main(['list', '--json']) == 0
    assert capsys.readouterr().err == ''


def test_what_strangers_name_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(sys.stdout)
    output.write('a\x1b]0;title\x07\n\tb \udce9 می\u200cخواهم\r')
    complain('error: \x1b[2J\nerror: forged')
    assert capsys.readouterr() == ('a�]0;title�\n\tb \\udce9 می\u200cخواهم�', 'error: �[2J�error: forged\n')


@pytest.mark.slow
@pytest.mark.parametrize('closed', ['>&-', '>&- 2>&-', '<&- >&- 2>&-'])
def test_closed_streams_are_as_dev_null(closed: str, tmp_path: Path) -> None:
    """No file of ours gets their numbers: what is printed would be written into it."""
    code = (
        'import imagenette_zoo.cli, os, sys\n'
        f'number = os.open({str(tmp_path / "file")!r}, os.O_RDWR | os.O_CREAT)\n'
        'print("a line"); print("a line", file=sys.stderr); sys.stdout.flush()\n'
        'sys.exit(number < 3)'
    )
    assert subprocess.run(['sh', '-c', f'exec "$@" {closed}', 'sh', sys.executable, '-c', code]).returncode == 0
    assert (tmp_path / 'file').read_bytes() == b''


def test_an_exception_that_nobody_can_catch_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Leaves:
        def __del__(self) -> None:
            raise KeyError('limbo')

    before = sys.unraisablehook
    monkeypatch.setattr(cache, 'entries', lambda: [each for each in [Leaves()] if not each])
    assert main(['data', 'cache']) == 0
    assert capsys.readouterr().err == "warning: ignored: KeyError: 'limbo'\n"
    assert sys.unraisablehook is before
