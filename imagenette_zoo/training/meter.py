"""Progress and losses of an epoch, without waiting for the device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from ..errors import UserError
from ..utils.distributed import World
from .learner import Learner

__all__ = ['Meter', 'Position', 'check_finite']

NEVER = 2**31 - 1

SKIP = '--nan skip leaves such steps out. '


@dataclass
class Position:
    """How far the epoch is that is under way, at the last update that was waited for.

    Args:
        step: Batches that are done.
        sums: Of each process, the sum of its images' losses without those that are not finite, and the images in it.
        images: All images, in this process.
        skipped: Updates that were left out.
        seconds: The time that they took.
    """

    step: int = 0
    sums: list[list[float]] = field(default_factory=list)
    images: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """The mean loss of the images, NaN where none was finite."""
        scored = sum(images for _, images in self.sums)
        return sum(loss for loss, _ in self.sums) / scored if scored else math.nan


class Meter:
    """Adds up the losses of an epoch from a position on.

    Args:
        position: Where the epoch goes on; it is brought up to date.
        epoch: Which one it is; the first is 0, in messages 1.
        world: The processes; all must call `check` and `flush` at the same steps.
        stops: Whether a loss that is not finite is an error.
    """

    def __init__(self, position: Position, epoch: int, world: World, stops: bool) -> None:
        self.position = position
        self.epoch = epoch
        self.world = world
        self.stops = stops
        self.images = position.images
        self.skipped = position.skipped
        self._begin = time.perf_counter() - position.seconds
        self._step = self._first_step = position.step
        self._rates: list[float] = []
        self._sums = torch.tensor(position.sums[world.rank] if position.sums else [0.0, 0.0], device=world.device)
        self._first_bad = torch.tensor(NEVER, device=world.device)

    def add(self, loss: torch.Tensor, images: int, lr: float) -> None:
        """Counts a batch: its mean loss, its images in this process, the learning rate that it is trained at."""
        loss = loss.float()  # that of a CPU in bfloat16 would count in bfloat16
        finite = loss.isfinite()
        self._sums += torch.stack([torch.where(finite, loss, 0.0), finite]) * images
        self._first_bad = torch.where(finite, self._first_bad, self._first_bad.clamp(max=self._step))
        self._rates.append(lr)
        self._step += 1
        self.images += images

    @property
    def mean(self) -> float:
        """The mean loss so far, in this process. Waits for the device."""
        loss, scored = self._sums.tolist()
        return loss / scored if scored else math.nan

    def check(self) -> None:
        """Waits for the device.

        Raises:
            UserError: A loss was not finite, here or in another process, and that is an error.
        """
        if not self.stops:
            return
        first = int(self._first_bad)
        here = first != NEVER
        if self.world.any_rank(here):
            step = first if here else self._step - 1
            epoch = f'epoch {self.epoch + 1}'
            where = f'step {step + 1} of {epoch}' if here else f'{epoch}, in another process'
            raise _not_finite(f'the loss became infinite or NaN in {where}', self._rates[step - self._first_step], SKIP)

    def flush(self, learner: Learner) -> None:
        """Waits for the device and brings the position up to date: a run that is saved now can go on from it.

        Raises:
            UserError: As `check`, or the weights are not finite, which the next loss would show.
        """
        self.check()
        if self.stops and not learner.is_finite():
            raise _not_finite(f'weights became infinite or NaN in epoch {self.epoch + 1}', learner.lr, SKIP)
        position = self.position
        position.sums = self.world.gather(self._sums).tolist()
        position.step, position.images, position.skipped = self._step, self.images, self.skipped
        position.seconds = time.perf_counter() - self._begin


def check_finite(loss: float, epoch: int, lr: float) -> None:
    """Looks at the loss of a validation.

    Raises:
        UserError: It is not finite.
    """
    if not math.isfinite(loss):
        raise _not_finite(f'the loss became infinite or NaN in the validation of epoch {epoch + 1}', lr)


def _not_finite(what: str, lr: float, more: str = '') -> UserError:
    return UserError(
        f'{what} at learning rate {lr:.3g}. Lower --lr, lengthen the warm-up, or set --clip-grad. {more}The last good '
        f'checkpoint stays.'
    )
