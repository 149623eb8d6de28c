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


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM raises `Stopped`. Outside of Python's main thread signals can't be caught: nothing
    happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() != process:  # one that was forked within
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped(number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
