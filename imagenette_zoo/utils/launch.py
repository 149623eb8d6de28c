"""The variables by which processes that train together find each other: torchrun's, made of SLURM's under `srun`."""

from __future__ import annotations

import os
import re

from ..errors import UserError

__all__ = ['check_alone', 'read_slurm', 'world_size']

PORTS = range(15000, 30000)  # below those that the system gives away


def read_slurm() -> None:
    """Sets torchrun's variables where `srun` started several processes, as timm's `init_distributed_device` does.

    What is set already stays: torchrun within a job, or `WORLD_SIZE=1` for processes that are alone. timm believes
    `SLURM_NTASKS`. The script of `sbatch` and the shell of `salloc` have that as well, and would wait for processes
    that nobody starts. So the size is srun's own `SLURM_STEP_NUM_TASKS`. Without it `SLURM_NTASKS` counts for all but
    the first process, and for the first where the place to meet is given.
    """
    own = os.environ
    rank = own.get('SLURM_PROCID')
    if rank is None or 'RANK' in own:
        return
    size = own.get('WORLD_SIZE') or own.get('SLURM_STEP_NUM_TASKS')
    if size is None and (rank != '0' or ('MASTER_ADDR' in own and 'MASTER_PORT' in own)):
        size = own.get('SLURM_NTASKS')
    if size is None or size == '1':
        return
    own.update(RANK=rank, WORLD_SIZE=size)
    own.setdefault('LOCAL_RANK', own.get('SLURM_LOCALID', '0'))
    own.setdefault('MASTER_ADDR', _first_node(own.get('SLURM_STEP_NODELIST') or own.get('SLURM_JOB_NODELIST', '')))
    step = 31 * int(own.get('SLURM_JOB_ID', 0)) + int(own.get('SLURM_STEP_ID', 0))  # several may share a node
    own.setdefault('MASTER_PORT', str(PORTS[step % len(PORTS)]))


def world_size() -> int:
    """How many processes train together, as the variables say.

    Raises:
        UserError: They say no number.
    """
    value = os.environ.get('WORLD_SIZE') or '1'
    if not value.isdecimal() or not int(value):
        raise UserError(f'WORLD_SIZE={value}: is no number of processes: start them by torchrun or srun, or unset it')
    return int(value)


def check_alone(what: str) -> None:
    """Looks whether this process is not one of several, whose variables those that it starts would inherit.

    Raises:
        UserError: It is one of several.
    """
    if (size := world_size()) > 1:
        raise UserError(f'{what} is one process, not one of {size}: set WORLD_SIZE=1 where each has its own')


def _first_node(nodes: str) -> str:
    """The first of SLURM's list, as `gpu01` of `gpu[01-03,7],cpu2`."""
    return re.sub(r'\[(\w+)[^]]*]', r'\1', nodes).partition(',')[0] or '127.0.0.1'
