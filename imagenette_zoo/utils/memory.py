"""Memory of this process: kept when it is freed, and counted."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = [
    'keep_freed_memory',
    'collect',
    'reset_peak_memory',
    'peak_memory',
    'is_out_of_memory',
]

# mallopt(3) of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Lets glibc reuse the memory of freed tensors instead of giving it back to the system.

    By default every tensor above 32 MiB is mapped anew, and the system clears it page by page when it is first
    written: a third of the time of a training step on a CPU (docs/performance.md). Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL('libc.so.6').mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never, also above 2 GiB
    mallopt(M_TOP_PAD, 64 * 2**20)


def collect(device: torch.device) -> None:
    """Frees what runs before this one have left: a learner and its recorded steps refer to each other."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()


def reset_peak_memory(device: torch.device) -> None:
    """Lets the peak begin now; where the system can't do that it stays that of the process."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)  # what a run before this one has left
        Path('/proc/self/clear_refs').write_text('5')


def peak_memory(device: torch.device) -> float:
    """MiB: of the device on CUDA, else of this process, without the files that it has mapped where that is known; since
    `reset_peak_memory`, on Linux and CUDA."""
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
