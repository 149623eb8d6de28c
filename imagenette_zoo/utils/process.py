"""Global state of the caller's process, which a call leaves as it was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from .memory import keep_freed_memory
from .seeding import restore_generators

__all__ = ['restore_process']

# What `keep_inductor_private` sets.
VARIABLES = ('TORCHINDUCTOR_CACHE_DIR', 'TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS')


@contextmanager
def restore_process() -> Iterator[None]:
    """Restores random generators, the allocator, TF32, inductor's folder and the filters of warnings afterwards.

    It decorates what people call from Python, above all in a notebook. Within, freed memory is kept for reuse.
    """
    variables = {name: os.environ.get(name) for name in VARIABLES}
    matmul: Any = torch.backends.cuda.matmul
    precision = {}
    for name in ('allow_tf32', 'fp32_precision'):  # torch 2.9 brought the second; who sets it can't read the first
        with suppress(AttributeError, RuntimeError):
            precision[name] = getattr(matmul, name)
    try:
        # Threads that decode images change the filters, too, and leave those of one another.
        with restore_generators(), keep_freed_memory(), warnings.catch_warnings():
            yield
    finally:
        if torch.cuda.is_initialized():
            for name, value in precision.items():
                setattr(matmul, name, value)
        for name, variable in variables.items():
            os.environ.pop(name, None)
            if variable is not None:
                os.environ[name] = variable
