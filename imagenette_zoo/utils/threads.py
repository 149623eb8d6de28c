"""OpenMP's threads: how long they spin while they wait, and whether the machine has processors for them.

This module does not import torch, so that it can set what torch's OpenMP reads when it is loaded.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ['Processors', 'spin_briefly']

SPINS = 6000  # docs/performance.md, "On a busy machine"
STAT = Path('/proc/stat')
SOON = 0.5  # seconds: what is seen in less says little


def spin_briefly() -> None:
    """Has GNU's OpenMP give its processors back to other processes sooner; to be called before torch is imported.

    By default a thread spins for some 300,000 rounds before it sleeps. On a busy machine that is time which the thread
    that it waits for does not get. What the user has set stays.
    """
    if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
        os.environ['GOMP_SPINCOUNT'] = str(SPINS)


class Processors:
    """Watches how many processors this process has, or could have, from now on."""

    def __init__(self) -> None:
        self.began = self._now()

    def free(self) -> float | None:
        """Processors that were idle or this process's own, on average; None where that is not known."""
        elapsed, *times = (now - then for now, then in zip(self._now(), self.began, strict=True))
        return sum(times) / elapsed if elapsed > SOON and STAT.exists() else None

    def crowded(self, threads: int) -> str:
        """A line that says so if so many threads have not enough processors, else nothing."""
        free = self.free()
        if free is None or threads == 1 or free > threads - 0.5:
            return ''
        return (
            f'this machine is busy: {free:.1f} processors are left for {threads} threads, which then hinder each '
            f'other. OMP_NUM_THREADS={max(1, round(free))} may be faster'
        )

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """The time, that of idle processors and that of this process, in seconds."""
        try:
            idle = sum(map(int, STAT.read_text().split(maxsplit=6)[4:6])) / os.sysconf('SC_CLK_TCK')
        except (OSError, ValueError, IndexError):
            idle = 0.0
        return time.monotonic(), idle, sum(os.times()[:4])
