"""Signals, lost processes, full memory: each ends a run in one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from ..config.recipe import Recipe
from ..data.loaders import is_lost_worker, kill_workers, lost_worker
from ..errors import UserError, first_line
from ..utils.console import in_ipython
from ..utils.distributed import World
from ..utils.memory import is_out_of_memory
from ..utils.signals import Stopped
from ..utils.streams import complain

__all__ = ['StopSignals', 'explained', 'smaller_batch']
PATIENCE = 3.0  # seconds in which a second signal is to end a run from within
REPEATED = 2.0  # seconds within which torchrun passes on the Ctrl-C that a terminal sends to all


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; a second one stops at once.

    Use as a context manager around a run. Outside of Python's main thread signals can't be caught: nothing happens.
    Where that thread is busy outside of Python, as in a driver that hangs, a second signal ends the process.
    A thread answers the first at once, however long the step takes.

    Args:
        world: The processes that must stop together.
        explain: Says what is saved where the process has to be ended.
    """

    def __init__(self, world: World, explain: Callable[[], str] = str) -> None:
        self.world = world
        self.explain = explain
        self.requested: int | None = None
        self._since = 0.0
        self._at_once = False
        self._former: dict[int, object] = {}
        self._left = threading.Event()
        self._writer: int | None = None
        self._former_writer = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._receive)
            if not in_ipython():  # whose process has more than this run
                reader, self._writer = os.pipe()
                os.set_blocking(self._writer, False)
                self._former_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
                self._watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
                self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        if error and error[0] is not None:  # else they wait until cycles of objects are collected
            kill_workers()
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._writer is not None:
            signal.set_wakeup_fd(self._former_writer)
            self._left.set()
            os.close(self._writer)
            self._watcher.join(PATIENCE)  # a thread that prints while Python ends would abort it

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.requested is not None and not _repeated(number, self._since):
            kill_workers()
            raise KeyboardInterrupt
        if self.requested is None:
            self.requested, self._since = number, time.monotonic()
            if self._at_once:
                raise Stopped(number)

    def stop_requested(self) -> bool:
        """Whether any of the processes was asked to stop; all must ask."""
        return self.world.any_rank(self.requested is not None)

    def stop(self) -> None:
        """Ends the run here.

        Raises:
            Stopped: Always.
        """
        raise Stopped(self.requested or signal.SIGTERM)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """While nothing is computed that would have to be saved a signal need not wait."""
        if self.stop_requested():
            self.stop()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _watch(self, reader: int) -> None:
        """Answers the first signal; ends the process `PATIENCE` after a second one if the run was not left by then."""
        since = 0.0
        with open(reader, 'rb', buffering=0) as signals:
            while number := int.from_bytes(signals.read(1), 'big'):
                if number not in (signal.SIGINT, signal.SIGTERM) or (since and _repeated(number, since)):
                    continue
                if not since and not self._at_once and self.world.primary:
                    if sys.stderr.isatty():  # behind the bar
                        complain('')
                    complain('stopping after this step; again to stop now')
                if since and not self._left.wait(PATIENCE):
                    kill_workers()
                    complain(self.explain() or 'Stopped at once. What was saved last stays.')
                    os._exit(128 + number)
                since = since or time.monotonic()


def _repeated(number: int, since: float) -> bool:
    """Whether a signal is the one that came at `since` once more: torchrun passes it on, and a job gets SIGTERM from
    SLURM and from what runs in it."""
    if number == signal.SIGTERM and not {'SLURM_JOB_ID', 'SUBMITIT_EXECUTOR'}.isdisjoint(os.environ):
        return True
    return 'TORCHELASTIC_RUN_ID' in os.environ and time.monotonic() - since < REPEATED


@contextmanager
def explained(recipe: Recipe, world: World) -> Iterator[None]:
    """Turns torch's errors for full memory, a failing compiler or a lost process into one line, and each Ctrl-C into
    `Stopped`."""
    try:
        yield
    except KeyboardInterrupt as request:
        raise (request if isinstance(request, Stopped) else Stopped(signal.SIGINT)) from None
    except MemoryError as error:
        raise _out_of_memory(recipe, world) from error
    except ValueError as error:
        if 'more than 1 value per channel' not in str(error):
            raise
        raise UserError(
            f'--batch-size {recipe.batch_size}: BatchNorm needs more than one number a channel: give a larger '
            f'--batch-size or --img-size'
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UserError(f'--torchcompile {recipe.torchcompile}: {first_line(error)}') from error
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _out_of_memory(recipe, world) from error
        if is_lost_worker(error):
            raise lost_worker(error) from error
        if world.size > 1 and (isinstance(error, dist.DistError) or 'gloo' in str(error)):
            raise UserError(
                f'another process of the group was lost ({first_line(error)[:120]}); the same command with '
                f'--resume continues from the last checkpoint'
            ) from error
        raise


def smaller_batch(recipe: Recipe) -> tuple[int, int]:
    """The batch size and the batches an update that make the same updates in less memory.

    Where none does they make nearly the same. Where there is no smaller batch its size is 0.
    """
    size, pairs = recipe.batch_size, 2 if recipe.mixes else 1  # mixing pairs the images
    parts = next((n for n in (2, 3, 4) if size % (n * pairs) == 0), 2)
    return size // (parts * pairs) * pairs, parts * recipe.grad_accum_steps


def _out_of_memory(recipe: Recipe, world: World) -> UserError:
    smaller, parts = smaller_batch(recipe)
    same = smaller * parts == recipe.batch_size * recipe.grad_accum_steps
    advice = (
        f'try --batch-size {smaller} --grad-accum-steps {parts}, which makes '
        f'{"" if same else "nearly "}the same updates but for BatchNorm'
        if smaller
        else 'a smaller --img-size takes less'
    )
    also = ['--grad-checkpointing']
    if world.device.type == 'cuda' and recipe.cuda_graph != 'none':
        also.append('--cuda-graph none')  # keeps the memory of a step for itself
    if world.device.type == 'cuda' and recipe.loader != 'timm':
        also.append('--loader timm')  # the images are not on the GPU then
    if (recipe.validation_batch_size or 0) > recipe.batch_size:
        also.append('a smaller --validation-batch-size')
    return UserError(f'out of memory at --batch-size {recipe.batch_size}: {advice}, or {" or ".join(also)}')
