"""SIGTERM ends what runs as Ctrl-C does, so that nothing half written is left."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['Stopped', 'sigterm_interrupts']


class Stopped(KeyboardInterrupt):
    """A command was asked to stop, by Ctrl-C or by SIGTERM.

    Args:
        number: The signal.

    Attributes:
        message: What is saved, and how it is continued, where anything is.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number
        self.message = ''

    @property
    def explained(self) -> bool:
        """Whether it was said already what is saved."""
        return bool(self.message)

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows instead of a traceback."""
        return [self.message or 'interrupted']


class _Raises:
    """A signal's handler that raises `Stopped`, and keeps which signals came."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.came: list[int] = []

    def __call__(self, number: int, _: object) -> None:
        if os.getpid() == self.process:
            self.came.append(number)
            raise Stopped(number)
        if number == signal.SIGINT:  # one that was forked within
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@contextmanager
def sigterm_interrupts() -> Iterator[list[int]]:
    """Within the block SIGTERM raises `Stopped`, as Ctrl-C does where it would raise `KeyboardInterrupt`.

    Outside of Python's main thread signals can't be caught: nothing happens.

    Yields:
        The signals that came. What a library makes of the exception may be another one.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, _Raises) and handler.process == os.getpid():
        yield handler.came
        return
    handler = _Raises()
    if threading.current_thread() is not threading.main_thread():
        yield handler.came
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        numbers.append(signal.SIGINT)
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield handler.came
    finally:
        for number, each in former.items():
            signal.signal(number, each)
