"""Work for many processes that have this one's memory: Python's lock lets sixteen threads decode no faster than two."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ..errors import UserError

__all__ = ['NoProcesses', 'in_processes', 'worth_processes']

AT_LEAST = 1000  # images: fewer are done before the processes are there
REPORT_EVERY = 16  # items


class NoProcesses(Exception):
    """The system allows no more of them."""


def worth_processes(items: int, cores: int) -> bool:
    """Whether so much work is done sooner by processes than by threads, and they can be had."""
    own = not multiprocessing.current_process().daemon  # which may not have any
    return items >= AT_LEAST and cores > 4 and sys.platform == 'linux' and own


def in_processes(work: Callable[[int, int], Iterable[object]], items: int, processes: int) -> Iterator[int]:
    """Runs `work(k, processes)` in process k of as many, for the items k, k + processes, and so on.

    Args:
        work: Does a part and yields once an item. What it makes it writes where others see it.
        items: How many there are.
        processes: In how many processes.

    Yields:
        Numbers of items that have been done.

    Raises:
        UserError: One that `work` raised, or that a process is gone.
        OSError: One that `work` raised.
        NoProcesses: They could not be started; nothing was done.
    """
    context = multiprocessing.get_context('fork')
    started: list[multiprocessing.process.BaseProcess] = []
    waiting: list[Any] = []
    left = items
    try:
        with _uninterrupted():
            for k in range(processes):
                here, there = context.Pipe(duplex=False)
                arguments = work, k, processes, os.getpid(), here, there
                process = context.Process(target=_run, args=arguments, daemon=True)
                try:
                    process.start()
                except OSError as error:
                    raise NoProcesses from error
                there.close()
                started.append(process)
                waiting.append(here)
        while waiting:
            for connection in cast(list[Any], wait(waiting)):
                try:
                    report = connection.recv()
                except EOFError:
                    waiting.remove(connection)
                    continue
                if isinstance(report, Exception):
                    raise report
                left -= report
                yield report
        if left:
            raise UserError(f'a process ended with {left} of {items} images to do: probably memory was full, free some')
    finally:
        for one in started:
            one.kill()
        for one in started:
            one.join()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals come before or after, so that no process is forgotten. Warns of no fork beside threads: the new processes
    take no lock that one of this process's may hold."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _run(
    work: Callable[[int, int], Iterable[object]],
    k: int,
    processes: int,
    parent: int,
    here: Connection,
    there: Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    here.close()
    done = 0
    try:
        for _ in work(k, processes):
            done += 1
            if done == REPORT_EVERY:
                there.send(done)
                done = 0
            if os.getppid() != parent:  # it was killed
                return
        there.send(done)
    except Exception as error:
        there.send(error if isinstance(error, UserError | OSError) else RuntimeError(traceback.format_exc()))
