"""SIGTERM: cleaned up after as Ctrl-C is, within a command and not beyond it."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from imagenette_zoo.data import cache
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils import files
from imagenette_zoo.utils.signals import Stopped, sigterm_interrupts

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='signals of POSIX')


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is as in a program in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, 'fsync', lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped) as stopped, sigterm_interrupts():
        files.write_atomic(tmp_path / 'a', b'1')
    assert stopped.value.exit_code == 143
    assert list(tmp_path.iterdir()) == []


def test_a_command_ends_with_143_and_leaves_the_signal_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, 'entries', lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert main(['data', 'cache']) == 143
    assert capsys.readouterr().err.split() == ['interrupted']
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures('ctrl_c')
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_what_a_library_makes_of_a_signal_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def entries() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise UserError('model.safetensors: damaged') from None

    monkeypatch.setattr(cache, 'entries', entries)
    assert main(['data', 'cache']) == 128 + number
    assert capsys.readouterr().err.split() == ['interrupted']


@pytest.mark.usefixtures('ctrl_c')
def test_an_interruption_within_another_is_the_same() -> None:
    with sigterm_interrupts() as signals, sigterm_interrupts(), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    assert signals == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_process_that_was_forked_within_ends_at_once() -> None:
    with sigterm_interrupts():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


@pytest.mark.parametrize(('number', 'expected'), [
    (errno.EMFILE, 'error: the system: Too many open files; raise ulimit -n'),
    (errno.ENOSPC, 'error: the system: No space left on device'),
])  # fmt: skip
def test_the_limits_of_the_system_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, expected: str
) -> None:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache, 'entries', fail)
    assert main(['data', 'cache']) == 2
    assert capsys.readouterr().err == f'{expected}\n'
