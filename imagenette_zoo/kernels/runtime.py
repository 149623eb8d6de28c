"""The C++ kernels of `cpu.cpp`, compiled once on a machine in about two seconds, and kept in the user's cache; and
whether those of `gpu` can be used."""

import ctypes
import hashlib
import logging
import os
import platform
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from ..utils.files import is_own, keep_inductor_private, open_at_once, private_home, sync, without_others
from .checks import check

__all__ = ['LANES', 'are_images', 'are_kernels_for', 'call', 'is_plain', 'triton_kernels']

LANES = 16  # elements that are computed at a time
FLAGS = ['-ffp-contract=fast']  # besides inductor's
_NAMES = {torch.float32: 'float', torch.bfloat16: 'bfloat16', torch.uint8: 'uint8'}
_lock = threading.Lock()
_process = os.getpid()
_logger = logging.getLogger(__name__)


def is_plain(x: torch.Tensor, devices: Sequence[str] = ('cpu',)) -> bool:
    """Whether a kernel may be run on a tensor: eager, without a transform, mode or subclass that would miss it.

    Args:
        x: The tensor.
        devices: The types of device that there is such a kernel for.
    """
    return (
        not torch.compiler.is_compiling()  # these three first: not to ask a tracer for more
        and not torch.jit.is_tracing()
        and type(x) in (torch.Tensor, nn.Parameter)
        and x.device.type in devices
        and x.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        and torch._C._has_storage(x)
        and not (x.is_nested or x.is_neg())
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch.autograd.forward_ad.unpack_dual(x).tangent is None
        and os.getpid() == _process  # OpenMP's threads do not survive a fork
    )


def are_images(x: torch.Tensor) -> bool:
    """Whether a tensor is `(N, C, H, W)`, channels-last, with channels in whole vectors and indices that fit."""
    fits = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    if x.is_cuda:
        return fits and x.shape[1] % 8 == 0 and x.numel() < 2**31
    return fits and x.shape[1] % LANES == 0


def are_kernels_for(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `call`, or on a GPU `triton_kernels`, can be used; the first time this compiles them."""
    if device.type == 'cuda':
        return dtype in (torch.float32, torch.bfloat16, torch.float16) and triton_kernels(device) is not None
    return device.type == 'cpu' and dtype in _NAMES and _library() is not None


@cache
def triton_kernels(device: torch.device) -> Any:
    """The package `gpu`, checked on this device; None without CUDA or a Triton that works."""
    if torch.version.cuda is None:
        return None
    try:
        keep_inductor_private()
        from . import gpu  # here: Triton is slow to import, and may be missing

        gpu.check(device)
        return gpu
    except Exception:  # no compiler for the launchers, an old GPU, ...: torch's own is always right
        _logger.debug('no Triton kernels', exc_info=True)
        return None


def call(name: str, sizes: Sequence[int], *tensors: torch.Tensor) -> None:
    """Runs a kernel over dense tensors on all of torch's threads.

    Args:
        name: The kernel; the first tensor's dtype says which of its two.
        sizes: As the kernel takes them.
        *tensors: Those that it reads and writes.
    """
    _run(_library(), name, sizes, *tensors)


def _run(library: ctypes.CDLL | None, name: str, sizes: Sequence[int], *tensors: torch.Tensor) -> None:
    function = getattr(library, f'{name}_{_NAMES[tensors[0].dtype]}')
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    function((ctypes.c_int64 * len(sizes))(*sizes), torch.get_num_threads(), *pointers)


def _library() -> ctypes.CDLL | None:
    with _lock:
        return _compile()


@cache
def _compile() -> ctypes.CDLL | None:
    """The library, compiled for this processor and checked; None where that failed."""
    try:
        source = resources.files(__package__).joinpath('cpu.cpp').read_bytes()
        keep_inductor_private()
        folder, key = private_home('kernels'), _key(source)
        for path in folder.glob(f'{key}-*.so'):
            try:
                return _loaded(path)
            except Exception:  # torn by a crash, another user's, or made by another system's compiler
                _logger.debug('%s is compiled anew', path, exc_info=True)
            with suppress(OSError):
                path.unlink()
        return _built(source, folder, key)
    except Exception:  # no compiler, a full disk, ...: torch's own is always right
        _logger.debug('no C++ kernels', exc_info=True)
        return None


def _key(source: bytes) -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: slow to import

    key = hashlib.sha256(source)
    key.update(f'{get_cpp_compiler()} {torch.__version__} {FLAGS} {_processor()}'.encode())
    return key.hexdigest()[:32]


def _built(source: bytes, folder: Path, key: str) -> ctypes.CDLL:
    """Compiles, loads and checks the library; then it is kept, with its length and checksum in its name.

    Inductor's own cache would first compile half a dozen programs to learn what the processor can do; its flags name
    this processor anyway.
    """
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        Path(temporary, 'cpu.cpp').write_bytes(source)
        options = CppTorchOptions(extra_flags=FLAGS)
        builder = CppBuilder('kernels', str(Path(temporary, 'cpu.cpp')), options, temporary)
        builder.build()
        built = Path(builder.get_target_file_path())
        without_others(built)
        data = built.read_bytes()
        named = built.rename(built.with_name(f'{key}-{len(data)}-{hashlib.sha256(data).hexdigest()}.so'))
        library = _loaded(named)
        with suppress(OSError):  # what cannot be kept can be used
            sync(named)  # else a power failure may leave its name without its bytes
            os.replace(named, folder / named.name)
            sync(folder)
    return library


def _loaded(path: Path) -> ctypes.CDLL:
    """The library, if it is this user's own, whole, and computes what torch does.

    The file is opened once, checked and loaded: nobody can exchange it in between.
    """
    file = open_at_once(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0) | getattr(os, 'O_NOFOLLOW', 0))
    try:
        _, size, digest = path.stem.split('-')
        status = os.fstat(file)
        if not is_own(status):
            raise PermissionError(f'{path} can be changed by other users')
        with open(file, 'rb', closefd=False) as opened:
            if status.st_size != int(size) or hashlib.sha256(opened.read()).hexdigest() != digest:
                raise ValueError(f'{path} is not as it was written')
        link = Path(f'/proc/self/fd/{file}')
        library = ctypes.CDLL(str(link if link.exists() else path))
    except BaseException:
        os.close(file)
        raise
    # The file stays open: were its number another library's, the loader would take that for this one.
    with ThreadPoolExecutor(1) as other:  # where no autocast, mode or hook of this thread reaches
        other.submit(check, partial(_run, library)).result()
    return library


def _processor() -> str:
    """The kind of this processor: machines of several kinds may share a cache."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features', 'CPU '))}))
