"""Random streams that depend on what they are for, and on nothing that ran before.

Image `i` of epoch `e` and step `t` of epoch `e` each start from a seed made of those numbers. So the same
augmentations come out with 0 or 4 workers, and a resumed run needs no random state from the one it continues.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ['cpu_states', 'restore_generators', 'seed_everything', 'stream_seed']


def stream_seed(*parts: int | str) -> int:
    """A 64-bit seed for the stream that these parts name."""
    text = '/'.join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')


def seed_everything(*parts: int | str) -> None:
    """Seeds Python's, NumPy's and torch's generators with the stream that these parts name."""
    seed = stream_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would format a stack trace for every call made before CUDA is initialised.
    torch.default_generator.manual_seed(seed % 2**63)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed % 2**63)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed % 2**63)


def cpu_states() -> tuple[Any, ...]:
    """The states of Python's, NumPy's and torch's generators on the CPU, to be compared."""
    numpy, torchs = np.random.get_state(legacy=False)['state'], torch.default_generator.get_state().numpy()
    return random.getstate(), numpy['key'].tobytes(), numpy['pos'], torchs.tobytes()


@contextmanager
def restore_generators() -> Iterator[None]:
    """Restores the states of Python's, NumPy's and torch's generators afterwards."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    used_cuda = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used_cuda else (), device_type='cuda'):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        if torch.cuda.is_initialized() and not used_cuda:
            torch.cuda.manual_seed_all(torch.initial_seed())  # as `torch.manual_seed` has it when CUDA starts
