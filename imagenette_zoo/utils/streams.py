"""The standard streams of a command: there in any case, and what could not be written to them is noticed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ..errors import UserError, cleaned, os_reason

__all__ = ['Output', 'brief_leftovers', 'complain', 'open_missing', 'silence']


def open_missing() -> None:
    """Opens `/dev/null` for the standard streams that this process was started without, as by `>&-`.

    Else the next file that is opened would get the number of one, and what is printed would be written into it.
    """
    for number, name, mode in ((0, 'stdin', 'r'), (1, 'stdout', 'w'), (2, 'stderr', 'w')):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False, errors='backslashreplace'))  # noqa: SIM115


def complain(line: str) -> None:
    """Prints a line to standard error, where that can be written."""
    with suppress(OSError):
        print(cleaned(line), file=sys.stderr, flush=True)


@contextmanager
def brief_leftovers() -> Iterator[None]:
    """Within the block an exception that nobody can catch is a line, not a traceback: one in a destructor, or in the
    start of a thread while a signal is handled."""
    former = sys.unraisablehook
    sys.unraisablehook = lambda each: complain(f'warning: ignored: {each.exc_type.__name__}: {each.exc_value}')
    try:
        yield
    finally:
        sys.unraisablehook = former


def silence(stream: TextIO) -> None:
    """Sends what is still to be written to a stream, and all that follows, to nowhere."""
    with suppress(OSError):  # not a file
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class Output:
    """Standard output that cleans what is printed and remembers whether it could be written.

    Args:
        stream: The stream that it stands for.

    Attributes:
        failure: The first error of the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):  # file names may be no Unicode
            stream.reconfigure(errors='backslashreplace')
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As a stream's."""
        with self._remembered():
            return self.stream.write(cleaned(text, keep='\n\t'))

    def flush(self) -> None:
        """As a stream's."""
        with self._remembered():
            self.stream.flush()

    @contextmanager
    def _remembered(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            silence(self.stream)
            raise

    def check(self) -> None:
        """Looks whether all that was printed could be written.

        Raises:
            UserError: It could not. A reader that has gone, as in `| head`, wanted no more: that is no error.
        """
        with suppress(OSError):
            self.flush()
        if self.failure is not None and not isinstance(self.failure, BrokenPipeError):
            reason = os_reason(self.failure)
            raise UserError(f"standard output: can't write the results: {reason}; make room or write them elsewhere")
