"""Memory of this process: kept when it is freed, and counted."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

__all__ = ['keep_freed_memory', 'collect', 'reset_peak_memory', 'peak_memory', 'is_out_of_memory']

# mallopt(3) of glibc: each parameter's number, its default, and the most that glibc raises it to as large blocks are
# freed. Once mallopt has been called it raises nothing any more.
MALLOPT = {
    'trim_threshold': (-1, 2**17, 2**26),
    'top_pad': (-2, 2**17, 2**17),
    'mmap_threshold': (-3, 2**17, 2**25),
    'mmap_max': (-4, 2**16, 2**16),
}

_lock = threading.Lock()
_keepers = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Has glibc reuse the memory of freed tensors; afterwards it is given back to the system, as usual.

    By default every tensor above 32 MiB is mapped anew, and the system clears it page by page when it is first
    written: a third of the time of a training step on a CPU (docs/performance.md). Without glibc nothing happens.
    """
    global _keepers
    libc: Any = None
    with suppress(OSError):
        libc = ctypes.CDLL('libc.so.6')
    if not hasattr(libc, 'mallopt'):
        yield
        return
    with _lock:
        _keepers += 1
        for name, value in (('mmap_max', 0), ('trim_threshold', -1), ('top_pad', 2**26)):  # -1: never, also above 2 GiB
            libc.mallopt(MALLOPT[name][0], value)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if _keepers == 0:  # else another call still needs it
                for name, value in _usual_settings().items():
                    libc.mallopt(MALLOPT[name][0], value)
                libc.malloc_trim(0)


def _usual_settings() -> dict[str, int]:
    """The settings of glibc without ours, the user's from the environment or its own: mallopt can't be asked."""
    tunables = dict(part.partition('=')[::2] for part in os.environ.get('GLIBC_TUNABLES', '').split(':'))
    chosen = {}
    for name in MALLOPT:
        text = os.environ.get(f'MALLOC_{name.upper()}_') or tunables.get(f'glibc.malloc.{name}', '')
        with suppress(ValueError):
            chosen[name] = min(int(text, 0), 2**31 - 1)
    # glibc raises nothing where the user has chosen one.
    return {name: row[1 if chosen else 2] for name, row in MALLOPT.items()} | chosen


def collect(device: torch.device) -> None:
    """Frees the memory of earlier runs, whose learners and recorded steps refer to each other."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Starts the peak anew; where the system can't do that, it stays that of the whole process."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # what a run before this one has left
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory(device: torch.device) -> float:
    """Peak memory in MiB: of the device on CUDA, else of this process, without its mapped files where that is known.

    On Linux and CUDA it is the peak since `reset_peak_memory`.
    """
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path('/proc/self/status')
    if status.exists():
        kib = {line.split()[0]: int(line.split()[1]) for line in status.read_text().splitlines() if line.endswith('kB')}
        if 'VmHWM:' in kib and 'RssFile:' in kib:
            return (kib['VmHWM:'] - kib['RssFile:']) / 2**10
    try:
        import resource
    except ImportError:  # Windows has no such figure
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)

# the CPU, oneDNN, MPS, Windows, cuBLAS and cuDNN
FULL = ("can't allocate memory", 'std::bad_alloc', 'out of memory', 'not enough memory', '_ALLOC_FAILED')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory, of the device or the system, is full."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in FULL)
