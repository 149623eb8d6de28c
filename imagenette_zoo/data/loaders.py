"""Batches of uint8 images, from files by timm's per-image transforms or from the cache of decoded images.

Both are reproducible whatever the number of workers and whatever ran before.
"""

import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import starmap
from multiprocessing.util import Finalize
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..errors import UserError, first_line
from ..utils.environment import available_cores
from ..utils.seeding import seed_everything
from .augment import Augmentation, crop_resize, recolor
from .folders import ImageSet
from .images import only_size_warnings, prepared
from .sampling import EpochBatches, Key

__all__ = [
    'Batches', 'CachedEvalBatches', 'CachedTrainBatches', 'FileBatches', 'Transform', 'eval_loader', 'is_lost_worker',
    'kill_workers', 'lost_worker', 'train_loader',
]  # fmt: skip

Transform = Callable[[Any], np.ndarray]
LEAST_WAIT = 60  # seconds after which a batch that has not come never will, and what is added for each of its images
WAIT_FOR_IMAGE = 4
LEAST_SHARED = 2**17  # bytes
PIXELS_TOGETHER = 2**25  # that a GPU crops at a time: 0.2 GB in float16
T = TypeVar('T')


class Batches:
    """Batches `((N, C, H, W) uint8, (N,) int64)`, on the CPU or on the training device."""

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

    def drawn(self) -> Iterator[torch.Tensor]:
        """The indices `(N,)` of the images of each batch of that pass."""
        raise NotImplementedError


# --- From the cache ---------------------------------------------------------------------------------------------------


@dataclass
class CachedTrainBatches(Batches):
    """Augmented batches from decoded images.

    On the CPU threads prepare them ahead. On a GPU that has room for all images they are kept there, and so is all
    that a batch is made from: no step waits for the host.

    Args:
        pixels: `(M, S, S, C)` uint8, see `cache.train_pixels`.
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

    def drawn(self) -> Iterator[torch.Tensor]:
        return self.sampler.drawn()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        device = self.pixels.device
        images_of = self.sampler.draws()
        samples = self.augmentation.draw(
            self.sizes[images_of], self.pixels.shape[1], self.sampler.seed, self.sampler.epoch
        ).to(device)
        images_of = images_of.to(device)

        def crops(draws: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
            draws = draws.to(device, non_blocking=True)
            return crop_resize(self.pixels, images_of[draws], samples.of(draws), (size, size)), draws

        batches = self.sampler.batches()
        made: Iterator[tuple[torch.Tensor, torch.Tensor]]
        if self.pixels.is_cuda:
            made = starmap(crops, _together(batches, PIXELS_TOGETHER // self.pixels.shape[1] ** 2))
        else:
            made = _ahead(crops, batches, available_cores())
        for images, draws in made:
            if self.augmentation.recolors:  # here, since torch's threads would get in those of the training's way
                images = recolor(images, samples.jitter[draws])
            batch_size = self.sampler.batch_size
            yield from zip(images.split(batch_size), self.targets[images_of[draws]].split(batch_size), strict=True)


@dataclass
class CachedEvalBatches(Batches):
    """The images as they are stored, in the order of the files, every `world_size`-th from the `rank`-th on.

    Args:
        pixels: `(M, H, W, C)` uint8, see `cache.eval_pixels`.
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
    """Moves both to a GPU if the images take less than half of its free memory."""
    if device.type == 'cuda' and 2 * pixels.nbytes < torch.cuda.mem_get_info(device)[0]:
        return pixels.to(device), targets.to(device)
    return pixels, targets


def _together(batches: Iterable[tuple[torch.Tensor, int]], images: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Joins successive batches of one image size, up to so many images: a GPU makes them as fast as one batch."""
    waiting: list[torch.Tensor] = []
    size = 0
    for batch, its_size in batches:
        if waiting and (its_size != size or sum(map(len, waiting)) + len(batch) > images):
            yield torch.cat(waiting), size
            waiting = []
        waiting.append(batch)
        size = its_size
    if waiting:
        yield torch.cat(waiting), size


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
    transforms: dict[int, Transform]  # by the images' size
    seed: int | None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[np.ndarray, int] | UserError:
        epoch, index, size, draw = key

        def transform(image: Image.Image) -> np.ndarray:
            if self.seed is not None:
                seed_everything(self.seed, 'image', epoch, draw)
            return self.transforms[size](image)

        try:
            with only_size_warnings(self.images.max_megapixels):
                pixels = prepared(self.images.root / self.images.paths[index], transform, self.images.channels)
        except UserError as error:
            return error
        return pixels, self.images.targets[index]


def _collate(samples: list[tuple[np.ndarray, int] | UserError]) -> tuple[torch.Tensor, torch.Tensor] | UserError:
    pixels, targets = [], []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        pixels.append(sample[0])
        targets.append(sample[1])
    try:
        return _shared(torch.from_numpy(np.stack(pixels))), _shared(torch.tensor(targets))
    except RuntimeError as error:  # in the thread that sends batches it would be printed, and the batch never arrive
        return lost_worker(error)


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The same in shared memory where this is a worker."""
    return tensor if get_worker_info() is None else tensor.share_memory_()


def lost_worker(error: BaseException) -> UserError:
    """The error of a worker that is gone, gives nothing, or has no shared memory."""
    reason = first_line(error)[:120]
    return UserError(
        f'a data worker was lost ({reason}): give the container more shared memory (--shm-size), use fewer --workers, '
        f'or none (-j 0)'
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether torch says that a worker is gone, wherever in the main process it does."""
    return any(f'DataLoader {what}' in str(error) for what in ('worker (pid', 'timed out'))


@dataclass
class FileBatches(Batches):
    """Batches of a data loader; what goes wrong in a worker is raised here, as `UserError`."""

    loader: 'DataLoader[Any]'

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.loader.num_workers:
            _check_shared_memory()
        with _lost_workers_are_errors(), _without_sigchld():
            batches = iter(self.loader)
            _workers.update(getattr(batches, '_workers', ()))
        while True:
            with _lost_workers_are_errors():
                batch = next(batches, None)
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
            yield batch

    @property
    def size(self) -> int:
        return self.loader.batch_sampler.own  # type: ignore[union-attr]

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.loader.batch_sampler.set_epoch(epoch, start)  # type: ignore[union-attr]

    def drawn(self) -> Iterator[torch.Tensor]:
        return self.loader.batch_sampler.drawn()  # type: ignore[union-attr,no-any-return]


_workers: 'WeakSet[Any]' = WeakSet()


@contextmanager
def _lost_workers_are_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        kill_workers()
        raise lost_worker(error) from error


@contextmanager
def _without_sigchld() -> Iterator[None]:
    """Has the signal of a worker that ends wait: torch's handler raises, and a queue that is just filled would stay
    locked, for which the loader would wait when it is thrown away."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_workers() -> None:
    """Ends all workers at once, also those that hang."""
    main = hasattr(signal, 'SIGCHLD') and threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None  # torch's makes an error of it
    for worker in list(_workers):
        worker.kill()
        worker.join(1.0)
    if main:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


Finalize(None, kill_workers, exitpriority=100)  # else the exit waits for one that hangs


def _check_shared_memory() -> None:
    """Raises `UserError` where there is not even room for the workers' queues, which torch reports by a traceback."""
    with suppress(OSError):  # not on Linux
        if shutil.disk_usage('/dev/shm').free < LEAST_SHARED:
            raise lost_worker(MemoryError(f'/dev/shm has less than {LEAST_SHARED >> 10} KiB free'))


def train_loader(
    images: ImageSet,
    transforms: dict[int, Transform],
    sampler: EpochBatches,
    workers: int = 4,
    pin_memory: bool = False,
) -> FileBatches:
    """Shuffled, augmented batches; `transforms` by the size of the images.

    Raises:
        UserError: While iterating: an image can't be read.
    """
    dataset = _Images(images, transforms, sampler.seed)
    return FileBatches(_data_loader(dataset, sampler, sampler.batch_size, workers, pin_memory, workers > 0))


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
    keys = [(0, index, 0, index) for index in range(rank, len(images), world_size)]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return FileBatches(_data_loader(_Images(images, {0: transform}, None), batches, batch_size, workers, pin_memory))


def _data_loader(
    dataset: _Images, batches: Any, batch_size: int, workers: int, pin_memory: bool, persistent: bool = False
) -> 'DataLoader[Any]':
    workers = min(workers, available_cores())  # more only get in each other's way
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
        persistent_workers=persistent,
        timeout=LEAST_WAIT + batch_size * WAIT_FOR_IMAGE if workers else 0,
    )


def _leave_signals_to_the_main_process(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the step that is under way still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
