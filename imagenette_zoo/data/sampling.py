"""Which images make a batch, in which order, at which size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..utils.seeding import stream_seed

__all__ = ['EpochBatches', 'Key', 'SizeSchedule']

Key = tuple[int, int, int, int]  # (epoch, index, size in pixels, which draw of the epoch it is)


@dataclass(frozen=True)
class SizeSchedule:
    """Training at several image sizes, by timm's `ScheduledBatchSampler` (progressive resizing:
    https://arxiv.org/abs/2104.00298).

    Args:
        sizes: Image sizes in pixels, in the order in which a progressive schedule goes through them.
        epochs: Epochs that a progressive schedule takes.
        schedule: `constant`, the same mixture of sizes all the time, or `progressive`.
        weights: How often each size comes, relative to the others; None for equally often.
        spread: How far around the present size a progressive schedule chooses, in sizes.
        random_mix: Fraction of the batches of a progressive schedule whose size is any.
    """

    sizes: tuple[int, ...]
    epochs: int = 1
    schedule: str = 'constant'
    weights: Sequence[float] | None = None
    spread: float = 0.65
    random_mix: float = 0.1

    def of_epoch(self, batches: int, batch_size: int, seed: int, epoch: int) -> list[int]:
        """The image size of each batch of an epoch.

        Raises:
            UserError: This timm has no such sampler.
        """
        if len(self.sizes) == 1:
            return [self.sizes[0]] * batches
        try:
            from timm.data.scheduled_sampler import ScheduledBatchSampler
        except ImportError:
            raise UserError('--train-img-sizes: this version of timm lacks it: pip install -U timm') from None
        sampler = ScheduledBatchSampler(
            range(batches * batch_size),  # type: ignore[arg-type]
            [batch_size] * len(self.sizes),
            choice_weights=self.weights,
            seed=seed,
            choice_schedule=self.schedule,
            schedule_epochs=self.epochs if self.schedule == 'progressive' else None,
            schedule_spread=self.spread,
            schedule_random_mix=self.random_mix,
        )
        sampler.set_epoch(epoch)
        return [self.sizes[keys[0][1]] for keys in sampler]


class EpochBatches:
    """A batch sampler that shuffles by (seed, epoch) and deals each batch out to the processes.

    Every image comes once an epoch (see `draws`), but for those that the last step can't use (others every epoch): its
    images must be a multiple of `multiple` in every process, and more than one, which BatchNorm could not normalise.

    Args:
        size: Number of images.
        batch_size: Images a step of one process.
        seed: Seed of the order.
        multiple: The last, smaller batch has a multiple of so many images.
        rank: Which process this is.
        world_size: Number of processes.
        schedule: The size of each batch's images.
        balance: The class of each image, where each class is to come equally often.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        multiple: int = 1,
        rank: int = 0,
        world_size: int = 1,
        schedule: SizeSchedule = SizeSchedule((0,)),
        balance: Sequence[int] | None = None,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.global_batch = batch_size * world_size
        self.used = size - size % (multiple * world_size)
        if self.used % self.global_batch == world_size and batch_size > 1:
            self.used -= world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.schedule = schedule
        self.balance = None if balance is None else torch.tensor(balance)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return -(-self.used // self.global_batch)

    @property
    def own(self) -> int:
        """Images of an epoch in each process."""
        return self.used // self.world_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and the batch that the next pass starts at."""
        self.epoch, self.start = epoch, start

    def draws(self) -> torch.Tensor:
        """The index `(size,)` of the image of each draw of the epoch: each image once, or each class equally often.

        An image of a class comes again only when all of that class have come.
        """
        if self.balance is None:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(stream_seed(self.seed, 'balance', self.epoch) % 2**63)
        classes = self.balance.unique().tolist()
        drawn = []
        for place, target in enumerate(classes):
            own = (self.balance == target).nonzero().flatten()
            count = (self.size + place) // len(classes)
            passes = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-count // len(own)))]
            drawn.append(torch.cat([own[:0], *passes])[:count])
        return torch.cat(drawn)

    def batches(self) -> Iterator[tuple[torch.Tensor, int]]:
        """The draws `(N,)` of each batch, and the size of its images."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, 'order', self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator)[: self.used]
        img_sizes = self.schedule.of_epoch(len(self), self.batch_size, self.seed, self.epoch)
        for batch, img_size in list(zip(order.split(self.global_batch), img_sizes, strict=True))[self.start :]:
            yield batch[self.rank :: self.world_size], img_size

    def drawn(self) -> Iterator[torch.Tensor]:
        """The indices `(N,)` of the images of each batch."""
        images_of = self.draws()
        for draws, _ in self.batches():
            yield images_of[draws]

    def __iter__(self) -> Iterator[list[Key]]:
        images = self.draws().tolist()
        for batch, img_size in self.batches():
            yield [(self.epoch, images[draw], img_size, draw) for draw in batch.tolist()]
