"""The machine, the versions and the command that a result is from."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ['available_cores', 'versions', 'hardware', 'changes', 'this_command', 'this_program']


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    numbers = {'python': platform.python_version()}
    for name in ('imagenette-zoo', 'torch', 'torchvision', 'timm', 'numpy', 'pillow'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            numbers[name] = metadata.version(name)
    return numbers


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The machine that a result is from, and of how many processes where it is of several."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return {
        'device': device.type,
        'cpu': cpu,
        'cores': available_cores(),
        'threads': torch.get_num_threads(),
        'gpu': gpu,
        **({'processes': processes} if processes > 1 else {}),
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """The values that differ, by name, as `'torch 2.10.0 then, 2.11.0 now'`.

    Args:
        then: As they were.
        now: As they are.
        but: Names that are passed over.
    """
    names = [name for name in sorted(then.keys() | now.keys()) if name not in but]
    return [f'{name} {then.get(name)} then, {now.get(name)} now' for name in names if then.get(name) != now.get(name)]


def this_program() -> list[str]:
    """How this process was started, without its arguments."""
    program = Path(sys.argv[0])
    return ['python', '-m', program.parent.name] if program.name == '__main__.py' else [program.name]


def this_command() -> str:
    """The command line of this process."""
    return shlex.join([*this_program(), *sys.argv[1:]])
