"""Batches of uint8 images from files: timm's per-image transforms, reproducible whatever the number of workers."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .imagenette import ImageSet, open_image
from .seeding import seed_everything, stream_seed

__all__ = ['Batches', 'EpochBatches', 'available_cores', 'eval_loader', 'train_loader']


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


Transform = Callable[[Any], np.ndarray]
Key = tuple[int, int]  # (epoch, index)


class _Images(Dataset[Any]):
    """Transformed images. A file that can't be read comes back as its :class:`UserError`: one raised in a worker
    would reach the user as a traceback."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int | None) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, int] | UserError:
        epoch, index = key
        try:
            image = open_image(self.images.root / self.images.paths[index])
        except UserError as error:
            return error
        if self.seed is not None:
            seed_everything(self.seed, 'image', epoch, index)
        return self.transform(image), self.images.targets[index]


def _collate(samples: list[tuple[np.ndarray, int] | UserError]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
    pixels, targets = [], []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        pixels.append(sample[0])
        targets.append(sample[1])
    return torch.from_numpy(np.stack(pixels)), torch.tensor(targets)


class EpochBatches:
    """A batch sampler that shuffles by (seed, epoch) and deals each batch out to the processes.

    Every image comes once an epoch, but for those that the last step can't use (others every epoch): its images
    must be a multiple of ``multiple`` in every process, and more than one, which BatchNorm could not normalise.

    Args:
        size: Number of images.
        batch_size: Images a step of one process.
        seed: Seed of the order.
        multiple: What the size of the last, smaller batch must be a multiple of.
        rank: Which process this is.
        world_size: Number of processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        multiple: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.global_batch = batch_size * world_size
        self.used = size - size % (multiple * world_size)
        if self.used % self.global_batch == world_size and batch_size > 1:
            self.used -= world_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.used // self.global_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, 'order', self.epoch) % 2**63)
        order = torch.randperm(self.size, generator=generator)[: self.used]
        for batch in order.split(self.global_batch):
            yield [(self.epoch, index) for index in batch[self.rank :: self.world_size].tolist()]


class Batches:
    """Batches ``((N, 3, H, W) uint8, (N,) int64)`` of a data loader; what goes wrong in a worker is raised here."""

    def __init__(self, loader: 'DataLoader[Any]') -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentations of the next pass over a training set."""
        self.loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]


def train_loader(
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    seed: int,
    workers: int = 4,
    pin_memory: bool = False,
    multiple: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Shuffled, augmented batches; arguments as those of :class:`EpochBatches`.

    Raises:
        UserError: The batch is larger than the training set; while iterating: an image can't be read.
    """
    if batch_size * world_size > len(images):
        total = f'{batch_size} in each of {world_size} processes' if world_size > 1 else str(batch_size)
        raise UserError(
            f'--batch-size {total} is larger than the training set of {len(images)} images: choose a smaller one'
        )
    sampler = EpochBatches(len(images), batch_size, seed, multiple, rank, world_size)
    loader = _data_loader(
        _Images(images, transform, seed), sampler, workers, pin_memory, persistent_workers=workers > 0
    )
    return Batches(loader)


def eval_loader(
    images: ImageSet,
    transform: Transform,
    batch_size: int,
    workers: int = 4,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Batches:
    """Every ``world_size``-th image from the ``rank``-th on, in the order of the files, not augmented.

    Raises:
        UserError: While iterating: an image can't be read.
    """
    keys = [(0, index) for index in range(rank, len(images), world_size)]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return Batches(_data_loader(_Images(images, transform, None), batches, workers, pin_memory))


def _data_loader(dataset: _Images, batches: Any, workers: int, pin_memory: bool, **kwargs: Any) -> 'DataLoader[Any]':
    workers = min(workers, available_cores())  # more only get in each other's way
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=_collate, pin_memory=pin_memory, **kwargs
    )
