"""Batches: which images, in which order, at which size, with which augmentation; what is done to them on the device."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data import create_transform

from imagenette_zoo.data import loaders
from imagenette_zoo.data.augment import Augmentation, BatchTransform, Normalize, shift_batch
from imagenette_zoo.data.cache import eval_pixels, train_pixels, train_size
from imagenette_zoo.data.folders import ImageSet, load_split
from imagenette_zoo.data.loaders import CachedEvalBatches, CachedTrainBatches, _ahead, eval_loader, train_loader
from imagenette_zoo.data.sampling import EpochBatches, SizeSchedule
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.seeding import seed_everything, stream_seed
from tests.conftest import make_folder

CPU = torch.device('cpu')
QUIET = Console(quiet=True)


def indices(batches: EpochBatches, epoch: int = 0) -> list[int]:
    batches.epoch = epoch
    return [index for batch in batches for _, index, *_ in batch]


@pytest.mark.parametrize(('size', 'batch', 'world'), [(10, 4, 1), (9469, 64, 1), (96, 8, 2), (17, 16, 1), (30, 4, 3)])
def test_every_image_comes_once_an_epoch(size: int, batch: int, world: int) -> None:
    """All processes together see each image at most once, and miss at most those that the last step can't use."""
    parts = [EpochBatches(size, batch, seed=1, rank=rank, world_size=world) for rank in range(world)]
    seen = [index for part in parts for index in indices(part)]
    assert len(seen) == len(set(seen)) >= size - 2 * world + 1
    assert len({len(part) for part in parts}) == 1
    assert all(len(part) == len(list(part)) for part in parts)
    assert len({tuple(len(step) for step in part) for part in parts}) == 1, 'processes take steps of different sizes'


def test_no_step_has_one_image() -> None:
    """BatchNorm could not normalise a single value; the image left out is another one every epoch."""
    batches = EpochBatches(17, 16, seed=1)
    assert [len(step) for step in batches] == [16]
    assert set(range(17)) - set(indices(batches, 0)) != set(range(17)) - set(indices(batches, 1))
    assert [len(step) for step in EpochBatches(23, 8, seed=1, multiple=2)] == [8, 8, 6]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    batches = EpochBatches(100, 10, seed=1)
    first = indices(batches, 0)
    assert indices(batches, 1) != first
    assert indices(batches, 0) == first
    assert indices(EpochBatches(100, 10, seed=2)) != first


def test_balanced_batches_have_each_class_equally_often() -> None:
    classes = [0] * 14 + [1] * 2 + [2] * 4
    batches = EpochBatches(20, 5, seed=1, balance=classes)
    first = indices(batches)
    assert Counter(classes[index] for index in first) == {0: 6, 1: 7, 2: 7}
    counts = Counter(first)
    assert {counts[index] for index in range(14)} == {0, 1}, 'without replacement where there are enough'
    assert {counts[index] for index in (14, 15)} == {3, 4}
    draws = [draw for step in batches for _, _, _, draw in step]
    assert sorted(draws) == list(range(20)), 'each draw has an augmentation of its own'
    assert indices(batches, epoch=1) != first
    assert indices(batches, epoch=0) == first


# --- Scheduled sizes --------------------------------------------------------------------------------------------------

SIDES = (16, 24, 32)


def sides(schedule: SizeSchedule, epoch: int, batches: int = 300) -> list[int]:
    return schedule.of_epoch(batches, 8, seed=1, epoch=epoch)


def test_a_constant_schedule_mixes_the_sides_by_their_weights() -> None:
    pytest.importorskip('timm.data.scheduled_sampler')
    for epoch in (0, 9):
        found = sides(SizeSchedule(SIDES), epoch)
        assert len(found) == 300
        assert set(found) == set(SIDES)
        assert all(abs(found.count(side) - 100) < 35 for side in SIDES)  # four standard errors
    weighted = sides(SizeSchedule(SIDES, weights=(3.0, 0.0, 1.0)), 0)
    assert weighted.count(24) == 0
    assert abs(weighted.count(16) - 225) < 30
    assert sides(SizeSchedule(SIDES), 0) != sides(SizeSchedule(SIDES), 1)


def test_a_progressive_schedule_goes_from_the_first_side_to_the_last() -> None:
    pytest.importorskip('timm.data.scheduled_sampler')
    schedule = SizeSchedule(SIDES, epochs=9, schedule='progressive')
    means = [np.mean(sides(schedule, epoch)) for epoch in range(9)]
    assert all(earlier < later for earlier, later in zip(means[::2], means[2::2], strict=False))
    assert sides(schedule, 0).count(16) > 150
    assert sides(schedule, 4).count(24) > 120
    assert sides(schedule, 8).count(32) > 150
    exact = SizeSchedule(SIDES, epochs=9, schedule='progressive', spread=0.0, random_mix=0.0)
    assert [set(sides(exact, epoch)) for epoch in (0, 4, 8)] == [{16}, {24}, {32}]


@pytest.mark.parametrize('schedule', ['constant', 'progressive'])
def test_scheduled_sides_are_the_same_in_all_processes(schedule: str) -> None:
    """And every image still comes once an epoch."""
    pytest.importorskip('timm.data.scheduled_sampler')
    of = SizeSchedule(SIDES, 4, schedule)
    parts = [EpochBatches(200, 6, seed=1, rank=rank, world_size=3, schedule=of) for rank in range(3)]
    for epoch in range(4):
        seen = [index for part in parts for index in indices(part, epoch)]
        assert len(seen) == len(set(seen)) >= 198
        found = [[{side for _, _, side, _ in batch} for batch in part] for part in parts]
        assert found[0] == found[1] == found[2]
        assert all(len(batch) == 1 for batch in found[0])


def test_a_timm_without_scheduled_sizes_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'timm.data.scheduled_sampler', None)
    assert sides(SizeSchedule((32,)), 0, 5) == [32] * 5
    with pytest.raises(UserError, match=r'--train-img-sizes.*pip install -U timm'):
        sides(SizeSchedule((32, 48)), 0)


# --- From files -------------------------------------------------------------------------------------------------------


def test_augmentation_of_an_image_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    images = load_split(folder, 'train')
    transform = create_transform(32, is_training=True, color_jitter=0.4, use_prefetcher=True)

    def pixels(workers: int, epoch: int, batch_size: int = 8, seed: int = 1) -> torch.Tensor:
        sampler = EpochBatches(len(images), batch_size, seed)
        loader = train_loader(images, {0: transform}, sampler, workers)
        loader.set_epoch(epoch)
        torch.rand(epoch + 3)  # what else was drawn must not matter
        return torch.cat([batch for batch, _ in loader])

    reference = pixels(0, epoch=1)
    assert torch.equal(reference, pixels(2, epoch=1))
    assert torch.equal(reference, pixels(0, epoch=1, batch_size=6))
    assert not torch.equal(reference, pixels(0, epoch=2))
    assert not torch.equal(reference, pixels(0, epoch=1, seed=2))


@pytest.mark.parametrize('world', [1, 2, 3])
def test_validation_images_are_dealt_out_once(folder: Path, world: int) -> None:
    images = load_split(folder, 'validation')
    transform = create_transform(32, use_prefetcher=True)
    targets = torch.full((len(images),), -1)
    for rank in range(world):
        loader = eval_loader(images, transform, 5, workers=0, rank=rank, world_size=world)
        targets[rank::world] = torch.cat([target for _, target in loader])
    assert targets.tolist() == list(images.targets)


# --- From the cache ---------------------------------------------------------------------------------------------------


def cached(images: ImageSet, sampler: EpochBatches, **options: object) -> CachedTrainBatches:
    side, sizes = train_size(images, 32, QUIET)
    pixels = torch.from_numpy(train_pixels(images, side, QUIET))
    targets = torch.tensor(images.targets)
    return CachedTrainBatches(pixels, torch.from_numpy(sizes), targets, Augmentation(**options), sampler, CPU)


def by_image(batches: CachedTrainBatches, epoch: int) -> dict[int, bytes]:
    """The pixels of each image."""
    batches.set_epoch(epoch)
    torch.rand(epoch + 3)  # what else was drawn must not matter
    order = indices(batches.sampler, epoch)
    pixels = [image for images, _ in batches for image in images]
    return {index: image.numpy().tobytes() for index, image in zip(order, pixels, strict=True)}


@pytest.mark.slow
def test_a_cached_image_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    """Not on the batch, on what ran before, or on the process that it is dealt to."""
    images = load_split(folder, 'train')

    def pixels(epoch: int = 1, batch: int = 8, seed: int = 1, rank: int = 0, world: int = 1) -> dict[int, bytes]:
        one_size = SizeSchedule((32,))
        sampler = EpochBatches(len(images), batch, seed, rank=rank, world_size=world, schedule=one_size)
        return by_image(cached(images, sampler), epoch)

    reference = pixels()
    assert len(set(reference.values())) == len(images)
    assert reference == pixels(batch=6)
    assert reference == pixels(batch=4, rank=0, world=2) | pixels(batch=4, rank=1, world=2)
    for other in (pixels(epoch=2), pixels(seed=2)):
        assert other.keys() == reference.keys()
        assert not set(other.values()) & set(reference.values())


def test_an_image_that_is_drawn_again_is_augmented_otherwise(folder: Path) -> None:
    images = load_split(folder, 'train')
    rare = [0] + [1] * (len(images) - 1)  # the first image makes half of the epoch
    sampler = EpochBatches(len(images), 6, 1, schedule=SizeSchedule((32,)), balance=rare)
    transform = create_transform(32, is_training=True, use_prefetcher=True)
    crops_alone = cached(images, sampler, color_jitter=0.0)
    for batches in (crops_alone, train_loader(images, {32: transform}, sampler, workers=0)):
        pixels = [image for step, _ in batches for image in step]
        again = [image for index, image in zip(indices(sampler), pixels, strict=True) if index == 0]
        assert len(again) == len(images) // 2
        assert len({image.numpy().tobytes() for image in again}) == len(again)
        targets = torch.cat([targets for _, targets in batches])
        assert targets.tolist() == [images.targets[index] for index in indices(sampler)]


def test_an_epoch_can_be_repeated(folder: Path) -> None:
    images = load_split(folder, 'train')
    batches = cached(images, EpochBatches(len(images), 8, 1, schedule=SizeSchedule((32,))))
    first, second = by_image(batches, 0), by_image(batches, 1)
    assert first != second
    assert by_image(batches, 0) == first
    assert by_image(batches, 1) == second


def test_cached_batches_are_those_of_the_sampler(folder: Path) -> None:
    """The same images in the same order as from the files, at the same scheduled sides."""
    pytest.importorskip('timm.data.scheduled_sampler')
    images = load_split(folder, 'train')
    sampler = EpochBatches(len(images), 5, 1, schedule=SizeSchedule((16, 24), weights=(1.0, 1.0)))
    transforms = {side: create_transform(side, is_training=True, use_prefetcher=True) for side in (16, 24)}
    found = []
    for batches in (cached(images, sampler), train_loader(images, transforms, sampler, workers=0)):
        batches.set_epoch(3)
        assert len(batches) == 5
        found.append([(tuple(pixels.shape), pixels.dtype, targets.tolist()) for pixels, targets in batches])
    assert found[0] == found[1]
    assert {shape[-1] for shape, _, _ in found[0]} == {16, 24}


def test_without_augmentation_cached_images_are_the_stored_ones(folder: Path) -> None:
    """Each beside its own class."""
    images = load_split(folder, 'train')
    batches = cached(
        images,
        EpochBatches(len(images), 8, 1, schedule=SizeSchedule((60,))),
        scale=(1.0, 1.0),
        ratio=(1e-3, 1e3),  # nothing drawn may leave the image, and the whole of it is of an allowed ratio
        hflip=0.0,
        color_jitter=0.0,
    )
    assert batches.pixels.shape[1:3] == (60, 60)
    for (pixels, targets), keys in zip(batches, batches.sampler, strict=True):
        index = [index for _, index, *_ in keys]
        assert torch.equal(pixels, batches.pixels[index].permute(0, 3, 1, 2))
        assert targets.tolist() == [images.targets[i] for i in index]


@pytest.mark.parametrize('world', [1, 2, 3])
def test_cached_validation_batches_are_those_of_timms_loader(folder: Path, world: int) -> None:
    """To the bit, the last, smaller one included."""
    images = load_split(folder, 'validation')
    transform = create_transform(32, crop_pct=0.9, interpolation='bicubic', use_prefetcher=True)
    parameters = {'input_size': (3, 32, 32), 'crop_pct': 0.9, 'interpolation': 'bicubic'}
    pixels = torch.from_numpy(eval_pixels(images, transform, parameters, QUIET))
    for rank in range(world):
        theirs = eval_loader(images, transform, 5, workers=0, rank=rank, world_size=world)
        ours = CachedEvalBatches(pixels, torch.tensor(images.targets), 5, CPU, rank, world)
        assert len(ours) == len(theirs) == len(list(ours))
        assert len(list(ours)[-1][1]) < 5
        for (a, targets), (b, same) in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype == torch.uint8
            assert torch.equal(a, b)
            assert torch.equal(targets, same)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith('batches')]


def twice(number: int) -> int:
    if number == 70:
        raise UserError('a bad image')
    return 2 * number


@pytest.mark.parametrize('count', [1, 3])
def test_batches_made_ahead_keep_their_order(count: int) -> None:
    assert list(_ahead(twice, ((n,) for n in range(60)), count)) == list(range(0, 120, 2))
    assert list(_ahead(twice, iter([]), count)) == []
    assert not threads()


def test_what_goes_wrong_in_a_thread_is_raised_here() -> None:
    made = _ahead(twice, ((n,) for n in range(60, 80)), 2)
    assert [next(made) for _ in range(10)] == list(range(120, 140, 2))
    with pytest.raises(UserError, match='a bad image'):
        next(made)
    assert not threads()


def test_a_pass_that_ends_early_ends_its_threads(folder: Path) -> None:
    """A run that is interrupted or fails in a step."""
    made = _ahead(twice, ((n,) for n in range(60)), 2)
    assert next(made) == 0
    assert threads()
    made.close()
    assert not threads()
    images = load_split(folder, 'train')
    batches = cached(images, EpochBatches(len(images), 2, 1, schedule=SizeSchedule((32,))))

    def interrupted() -> None:
        for _ in batches:
            assert threads()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not threads()


# --- On the device ----------------------------------------------------------------------------------------------------


def test_normalisation_is_timms() -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = Normalize(mean, std, CPU, channels_last=True)(pixels)
    scaled = [torch.tensor([255 * x for x in values]).view(1, 3, 1, 1) for values in (mean, std)]
    assert torch.equal(ours, pixels.float().sub_(scaled[0]).div_(scaled[1]))
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_random_erasing_hits_the_share_of_images_asked_for() -> None:
    transform = BatchTransform(Normalize((0.5,), (0.5,), CPU), reprob=0.3, remode='const')
    seed_everything(0)
    batch, _ = transform(torch.full((2000, 3, 16, 16), 255, dtype=torch.uint8), torch.zeros(2000))
    erased = (batch == 0).flatten(1).any(1).float().mean().item()
    assert abs(erased - 0.3) < 0.04


def test_shifts_move_the_image_and_mirror_its_border() -> None:
    images = torch.arange(2 * 1 * 8 * 8).float().view(2, 1, 8, 8)
    shifted = shift_batch(images, torch.tensor([[0, 0], [1, -2]]), limit=2)
    assert torch.equal(shifted[0], images[0])
    assert torch.equal(shifted[1, :, :7, 2:], images[1, :, 1:, :6])
    assert torch.equal(shifted[1, :, :7, 1], images[1, :, 1:, 1])  # column -1 mirrors column 1


def test_streams_differ() -> None:
    seeds = {stream_seed(seed, name, a, b) for seed in range(3) for name in 'xy' for a in range(20) for b in range(20)}
    assert len(seeds) == 3 * 2 * 400


def test_the_gpu_of_a_mac_is_seeded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.mps, 'manual_seed', seeds.append)
    for there in (False, True):
        monkeypatch.setattr(torch.backends.mps, 'is_available', lambda there=there: there)
        seed_everything(1)
    assert seeds == [torch.initial_seed()]


def test_batches_of_one_side_are_cropped_together() -> None:
    batches = [(torch.arange(4) + 4 * number, side) for number, side in enumerate([32, 32, 32, 48, 48, 32])]
    together = [(index.tolist(), side) for index, side in loaders._together(iter(batches), 8)]
    assert together == [
        (list(range(8)), 32),
        (list(range(8, 12)), 32),
        (list(range(12, 20)), 48),
        (list(range(20, 24)), 32),
    ]
    assert [len(index) for index, _ in loaders._together(iter(batches), 1)] == [4] * 6


# --- Workers that fail ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[object]]:
    """The batches of two workers that do something at each image."""
    monkeypatch.setattr(loaders, 'available_cores', lambda: 2)
    monkeypatch.setattr(loaders, 'LEAST_WAIT', 1)
    monkeypatch.setattr(loaders, 'WAIT_FOR_IMAGE', 0)
    images = load_split(make_folder(tmp_path / 'data'))

    def transform(act: Callable[[], object], image: object) -> np.ndarray:
        act()
        return np.zeros((3, 8, 8), np.uint8)

    return lambda act: iter(eval_loader(images, partial(transform, act), 4, workers=2))


def no_room(*_: object) -> None:
    raise RuntimeError('unable to allocate shared memory(shm): No space left on device (28)')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('act', 'reason'),
    [
        (lambda: time.sleep(99), 'timed out after 1 seconds'),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 'is killed by signal|exited unexpectedly'),
        (lambda: setattr(torch.Tensor, 'share_memory_', no_room), 'No space left on device'),
    ],
    ids=['hangs', 'is killed', 'has no shared memory'],
)
def test_a_worker_that_fails_is_one_line(
    two_workers: Callable[..., Iterator[object]], act: Callable[[], object], reason: str
) -> None:
    with pytest.raises(UserError, match=rf'a data worker was lost \(.*({reason}).*--shm-size.*-j 0'):
        next(two_workers(act))
    loaders.kill_workers()
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='no such signals')
def test_a_worker_that_is_lost_at_once_waits_until_the_others_are_started() -> None:
    """torch's handler raises wherever it is: in the midst of filling a queue it would leave that locked."""
    started = []

    class Loader:
        num_workers = 1

        def __iter__(self) -> Iterator[object]:
            os.kill(os.getpid(), signal.SIGCHLD)
            started.append(True)
            return iter([])

    def handler(*_: object) -> None:
        raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        with pytest.raises(UserError, match=r'a data worker was lost \(.*is killed by signal'):
            next(iter(loaders.FileBatches(Loader())))  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert started
    assert signal.SIGCHLD not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_machine_without_shared_memory_starts_no_workers(
    two_workers: Callable[..., Iterator[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('shutil.disk_usage', lambda _: SimpleNamespace(free=4096))
    with pytest.raises(UserError, match=r'a data worker was lost \(/dev/shm has less than 128 KiB free\)'):
        next(two_workers(lambda: None))
