"""The processes that train together, as `torchrun` or `srun` starts them; alone without them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError, first_line
from .launch import read_slurm, world_size

__all__ = ['World', 'choose_device', 'join']

T = TypeVar('T')


@dataclass(frozen=True)
class World:
    """The processes that train together, as this one sees them."""

    device: torch.device
    rank: int = 0
    size: int = 1
    control: Any = None  # a group on the CPU: its messages do not wait for a GPU

    @property
    def primary(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def gather_rows(self, rows: torch.Tensor, total: int) -> torch.Tensor:
        """Puts rows that were dealt out by `rank::size` together again: `(n, …)` on the CPU to `(total, …)`."""
        if self.size == 1:
            return rows
        parts: list[torch.Tensor | None] = [None] * self.size
        dist.all_gather_object(parts, rows)
        whole = rows.new_empty((total, *rows.shape[1:]))
        for rank, part in enumerate(parts):
            assert part is not None
            whole[rank :: self.size] = part
        return whole

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        """This tensor of every process: `(processes, …)`."""
        if self.size == 1:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return torch.stack(parts)

    def any_rank(self, here: bool) -> bool:
        """Whether something is the case in any of the processes; all must ask."""
        if self.size == 1:
            return here
        flag = torch.tensor(here, dtype=torch.uint8)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return bool(flag)

    def broadcast(self, make: Callable[[], T]) -> T:
        """The result of `make` in the first process, in all of them: only that one needs to see the run's folder.

        Raises:
            UserError: In all of them, where `make` raised it.
        """
        if self.size == 1:
            return make()
        parts: list[T | UserError | None] = [None]
        if self.primary:
            try:
                parts = [make()]
            except UserError as error:
                parts = [error]
        dist.broadcast_object_list(parts, group=self.control)
        if isinstance(parts[0], UserError):
            raise parts[0]
        return parts[0]  # type: ignore[return-value]

    def check_agreed(self, what: str, value: object) -> None:
        """Looks whether all have the same value.

        Raises:
            UserError: In all of them, where they have not.
        """
        if self.any_rank(value != self.broadcast(lambda: value)):
            raise UserError(f'{what} differ from process to process: all must have the same')

    def leave(self) -> None:
        """Ends the group."""
        if self.size > 1:
            dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: There is no such device on this machine.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and 'LOCAL_RANK' in os.environ:
        name = f'cuda:{_own_gpu()}'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == 'meta':
            raise NotImplementedError('it has no numbers')
    except (RuntimeError, AssertionError, NotImplementedError):
        here = ', '.join(['auto', 'cpu', *(['cuda'] if torch.cuda.is_available() else [])])
        raise UserError(f'--device {name}: not on this machine; here there is {here}') from None
    if device.type == 'cuda':  # unlike timm's scripts without cuDNN's trials, which take 17 s or more a shape
        torch.backends.cuda.matmul.allow_tf32 = True
    return device


def _own_gpu() -> int:
    """Which of the GPUs that this process sees is its own."""
    alone = 'SLURM_STEP_ID' in os.environ and torch.cuda.device_count() == 1  # by --gpus-per-task: each sees its own
    return 0 if alone else int(os.environ['LOCAL_RANK'])


def join(device_name: str) -> World:
    """Joins the other processes that `torchrun` or `srun` started.

    Raises:
        UserError: There is no such device on this machine, or the others did not come.
    """
    read_slurm()
    size = world_size()
    device = choose_device(device_name)
    if size == 1:
        return World(device)
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(dist.rendezvous('env://'))
    except (dist.DistError, ValueError) as error:  # ValueError: a variable is missing
        raise UserError(
            f'the {size} processes did not meet ({first_line(error)[:120]}): start all by torchrun or srun, or set '
            f'WORLD_SIZE=1 for one alone'
        ) from None
    store = dist.PrefixStore(_agree(store, rank, size), store)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', store=store, rank=rank, world_size=size)
    control = dist.new_group(backend='gloo') if device.type == 'cuda' else None
    return World(device, rank, size, control)


def _agree(store: dist.Store, rank: int, size: int) -> str:
    """A new name that the processes of this start agree on.

    torchrun keeps one store over all restarts (https://github.com/pytorch/pytorch/issues/135712). The addresses of
    dead processes are still in it, and a process that reads one of them waits for it forever. The first process answers
    all that have asked, also the dead, until all of the living have confirmed its name.
    """
    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f'ask/{rank}', mine)
        name = store.get(f'answer/{mine}').decode()
        store.set(f'{name}/{rank}', 'heard')
        return name
    silent = set(range(1, size))
    while silent:
        for other in tuple(silent):
            if store.check([f'ask/{other}']):
                store.set(f'answer/{store.get(f"ask/{other}").decode()}', mine)
            if store.check([f'{mine}/{other}']):
                silent.remove(other)
        time.sleep(0.01)
    return mine
