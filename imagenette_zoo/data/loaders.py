"""Batches of uint8 images, from files by timm's per-image transforms or from the cache of decoded images.

Both are reproducible whatever the number of workers and whatever ran before.
"""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import starmap
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..utils.environment import available_cores
from ..utils.seeding import seed_everything, stream_seed
from .augment import Augmentation, crop_resize, recolor
from .folders import ImageSet
from .images import open_image

__all__ = [
    'Batches',
    'CachedEvalBatches',
    'CachedTrainBatches',
    'EpochBatches',
    'FileBatches',
    'SizeSchedule',
    'eval_loader',
    'train_loader',
]

Transform = Callable[[Any], np.ndarray]
Key = tuple[int, int, int]  # (epoch, index, side)
PIXELS_TOGETHER = 2**25  # that a GPU crops at a time: 0.2 GB in float16
T = TypeVar('T')


class Batches:
    """Batches `((N, 3, H, W) uint8, (N,) int64)`, on the CPU or on the training device."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Images of a pass over a training set, in this process."""
        raise NotImplementedError

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the order and the augmentations of the next pass over a training set, and the batch it starts at."""
        raise NotImplementedError


# --- Which images, in which order, at which size ----------------------------------------------------------------------


@dataclass(frozen=True)
class SizeSchedule:
    """Training at several image sizes, by timm's `ScheduledBatchSampler` (progressive resizing:
    https://arxiv.org/abs/2104.00298).

    Args:
        sides: Image sides in pixels, in the order in which a progressive schedule goes through them.
        epochs: Epochs that a progressive schedule takes.
        schedule: `constant`, the same mixture of sizes all the time, or `progressive`.
        weights: How often each side comes, relative to the others; None for equally often.
        spread: How far around the present side a progressive schedule chooses, in sides.
        random_mix: Share of the batches of a progressive schedule whose side is any.
    """

    sides: tuple[int, ...]
    epochs: int = 1
    schedule: str = 'constant'
    weights: Sequence[float] | None = None
    spread: float = 0.65
    random_mix: float = 0.1

    def of_epoch(self, batches: int, batch_size: int, seed: int, epoch: int) -> list[int]:
        """The side of each batch of an epoch.

        Raises:
            UserError: This timm has no such sampler.
        """
        if len(self.sides) == 1:
            return [self.sides[0]] * batches
        try:
            from timm.data.scheduled_sampler import ScheduledBatchSampler
        except ImportError:
            raise UserError('--train-img-sizes: this timm does not have it: upgrade timm') from None
        sampler = ScheduledBatchSampler(
            range(batches * batch_size),  # type: ignore[arg-type]
            [batch_size] * len(self.sides),
            choice_weights=self.weights,
            seed=seed,
            choice_schedule=self.schedule,
            schedule_epochs=self.epochs if self.schedule == 'progressive' else None,
            schedule_spread=self.spread,
            schedule_random_mix=self.random_mix,
        )
        sampler.set_epoch(epoch)
        return [self.sides[keys[0][1]] for keys in sampler]


class EpochBatches:
    """A batch sampler that shuffles by (seed, epoch) and deals each batch out to the processes.

    Every image comes once an epoch, but for those that the last step can't use (others every epoch): its images
    must be a multiple of `multiple` in every process, and more than one, which BatchNorm could not normalise.

    Args:
        size: Number of images.
        batch_size: Images a step of one process.
        seed: Seed of the order.
        multiple: What the size of the last, smaller batch must be a multiple of.
        rank: Which process this is.
        world_size: Number of processes.
        schedule: The side of each batch's images.
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

    def batches(self) -> Iterator[tuple[torch.Tensor, int]]:
        """The indices `(N,)` of each batch's images, and their side."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, 'order', self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator)[: self.used]
        sides = self.schedule.of_epoch(len(self), self.batch_size, self.seed, self.epoch)
        for batch, side in list(zip(order.split(self.global_batch), sides, strict=True))[self.start :]:
            yield batch[self.rank :: self.world_size], side

    def __iter__(self) -> Iterator[list[Key]]:
        for batch, side in self.batches():
            yield [(self.epoch, index, side) for index in batch.tolist()]


# --- From the cache ---------------------------------------------------------------------------------------------------


@dataclass
class CachedTrainBatches(Batches):
    """Augmented batches from decoded images.

    On the CPU threads prepare them ahead. On a GPU that has room for all images they are kept there, and so is all
    that a batch is made from: no step waits for the host.

    Args:
        pixels: `(M, S, S, 3)` uint8, see `cache.train_pixels`.
        sizes: `(M, 2)` the images' own heights and widths.
        targets: Their classes.
        augmentation: What happens to them.
        sampler: Which of them make a batch.
        device: Where the training takes place.
    """

    pixels: torch.Tensor
    sizes: torch.Tensor
    targets: torch.Tensor
    augmentation: Augmentation
    sampler: EpochBatches
    device: torch.device

    def __post_init__(self) -> None:
        self.pixels, self.targets = _resident(self.pixels, self.targets, self.device)

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def size(self) -> int:
        return self.sampler.own

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.sampler.set_epoch(epoch, start)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        place = self.pixels.device
        draws = self.augmentation.draw(self.sizes, self.pixels.shape[1], self.sampler.seed, self.sampler.epoch)
        draws = draws.to(place)

        def crops(index: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
            index = index.to(place, non_blocking=True)
            return crop_resize(self.pixels, index, draws.of(index), (side, side)), index

        batches = self.sampler.batches()
        made: Iterator[tuple[torch.Tensor, torch.Tensor]]
        if self.pixels.is_cuda:
            made = starmap(crops, _together(batches, PIXELS_TOGETHER // self.pixels.shape[1] ** 2))
        else:
            made = _ahead(crops, batches, available_cores())
        for images, index in made:
            if self.augmentation.recolors:  # here, since torch's threads would get in those of the training's way
                images = recolor(images, draws.jitter[index])
            size = self.sampler.batch_size
            yield from zip(images.split(size), self.targets[index].split(size), strict=True)


@dataclass
class CachedEvalBatches(Batches):
    """The images as they are stored, in the order of the files, every `world_size`-th from the `rank`-th on.

    Args:
        pixels: `(M, H, W, 3)` uint8, see `cache.eval_pixels`.
        targets: Their classes.
        batch_size: Images a step.
        device: Where the evaluation takes place.
        rank: Which process this is.
        world_size: Number of processes.
    """

    pixels: torch.Tensor
    targets: torch.Tensor
    batch_size: int
    device: torch.device
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.pixels = self.pixels[self.rank :: self.world_size]
        self.targets = self.targets[self.rank :: self.world_size]
        self.pixels, _ = _resident(self.pixels, self.targets, self.device)

    def __len__(self) -> int:
        return -(-len(self.targets) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pixels, targets in zip(
            self.pixels.split(self.batch_size), self.targets.split(self.batch_size), strict=True
        ):
            yield pixels.permute(0, 3, 1, 2), targets


def _resident(pixels: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Both on a GPU, where the images take less than half of the memory that is free there."""
    if device.type == 'cuda' and 2 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
        return pixels.to(device), targets.to(device)
    return pixels, targets


def _together(batches: Iterable[tuple[torch.Tensor, int]], images: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Successive batches of images of one side as one, of so many images or of a batch: a GPU makes them as fast."""
    waiting: list[torch.Tensor] = []
    side = 0
    for batch, its_side in batches:
        if waiting and (its_side != side or sum(map(len, waiting)) + len(batch) > images):
            yield torch.cat(waiting), side
            waiting = []
        waiting.append(batch)
        side = its_side
    if waiting:
        yield torch.cat(waiting), side


def _ahead(make: Callable[..., T], arguments: Iterable[tuple[Any, ...]], threads: int) -> Iterator[T]:
    """`make(*argument)` of each argument, in order, made in threads while earlier ones are used."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, 'batches') as pool:
        try:
            for argument in arguments:
                waiting.append(pool.submit(make, *argument))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- From files -------------------------------------------------------------------------------------------------------


@dataclass
class _Images(Dataset[Any]):
    """Transformed images. A file that can't be read comes back as its `UserError`: one raised in a worker
    would reach the user as a traceback."""

    images: ImageSet
    transforms: dict[int, Transform]  # by the images' side
    seed: int | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, int] | UserError:
        epoch, index, side = key
        try:
            image = open_image(self.images.root / self.images.paths[index])
        except UserError as error:
            return error
        if self.seed is not None:
            seed_everything(self.seed, 'image', epoch, index)
        return self.transforms[side](image), self.images.targets[index]


def _collate(samples: list[tuple[np.ndarray, int] | UserError]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
    pixels, targets = [], []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        pixels.append(sample[0])
        targets.append(sample[1])
    return torch.from_numpy(np.stack(pixels)), torch.tensor(targets)


@dataclass
class FileBatches(Batches):
    """Batches of a data loader; what goes wrong in a worker is raised here."""

    loader: 'DataLoader[Any]'

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    @property
    def size(self) -> int:
        return self.loader.batch_sampler.own  # type: ignore[union-attr]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.loader.batch_sampler.set_epoch(epoch, start)  # type: ignore[union-attr]


def train_loader(
    images: ImageSet,
    transforms: dict[int, Transform],
    sampler: EpochBatches,
    workers: int = 4,
    pin_memory: bool = False,
) -> FileBatches:
    """Shuffled, augmented batches; `transforms` by the side of the images.

    Raises:
        UserError: While iterating: an image can't be read.
    """
    dataset = _Images(images, transforms, sampler.seed)
    return FileBatches(_data_loader(dataset, sampler, workers, pin_memory, persistent_workers=workers > 0))


def eval_loader(
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    workers: int = 4,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> FileBatches:
    """Every `world_size`-th image from the `rank`-th on, in the order of the files, not augmented.

    Raises:
        UserError: While iterating: an image can't be read.
    """
    keys = [(0, index, 0) for index in range(rank, len(images), world_size)]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return FileBatches(_data_loader(_Images(images, {0: transform}, None), batches, workers, pin_memory))


def _data_loader(dataset: _Images, batches: Any, workers: int, pin_memory: bool, **kwargs: Any) -> 'DataLoader[Any]':
    workers = min(workers, available_cores())  # more only get in each other's way
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        **kwargs,
    )


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the step that is under way still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
