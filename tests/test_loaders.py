"""Batches: which images, in which order, with which augmentation; what is done to them on the device."""

from pathlib import Path

import pytest
import torch
from timm.data import create_transform

from imagenette_zoo.data.augment import BatchTransform, Normalize, shift_batch
from imagenette_zoo.data.imagenette import load_split
from imagenette_zoo.data.loaders import EpochBatches, eval_loader, train_loader
from imagenette_zoo.data.seeding import seed_everything, stream_seed

CPU = torch.device('cpu')


def indices(batches: EpochBatches, epoch: int = 0) -> list[int]:
    batches.epoch = epoch
    return [index for batch in batches for _, index in batch]


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


def test_augmentation_of_an_image_depends_on_seed_epoch_and_image_alone(folder: Path) -> None:
    images = load_split(folder, 'train')
    transform = create_transform(32, is_training=True, color_jitter=0.4, use_prefetcher=True)

    def pixels(workers: int, epoch: int, batch_size: int = 8, seed: int = 1) -> torch.Tensor:
        loader = train_loader(images, transform, batch_size, seed=seed, workers=workers)
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
