"""Batched augmentation: the distributions of timm's transforms, the pixels of Pillow's and torchvision's."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data.random_erasing
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional

from imagenette_zoo.data import augment
from imagenette_zoo.data.augment import Augmentation, BatchTransform, Normalize, RandomErasing, Samples, recolor
from imagenette_zoo.data.cache import train_pixels, train_size
from imagenette_zoo.data.folders import load_split
from imagenette_zoo.data.loaders import CachedTrainBatches, train_loader
from imagenette_zoo.data.sampling import EpochBatches, SizeSchedule
from imagenette_zoo.utils.console import Console
from imagenette_zoo.utils.seeding import seed_everything
from tests.conftest import needs_compiler

CPU = torch.device('cpu')
Resize = Callable[[torch.Tensor, torch.Tensor, Samples, tuple[int, int]], torch.Tensor]


def assert_alike(ours: np.ndarray, theirs: np.ndarray, what: str = '') -> None:
    """Two samples of one distribution: the Kolmogorov–Smirnov statistic is exceeded once in 10,000 times."""
    values = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(sample), values, side='right') / len(sample) for sample in (ours, theirs)]
    bound = math.sqrt(-math.log(1e-4 / 2) / 2 * (1 / len(ours) + 1 / len(theirs)))
    assert np.abs(shares[0] - shares[1]).max() < bound, what


def assert_rate(hits: torch.Tensor, rate: float) -> None:
    """A share within four standard errors of its probability."""
    assert abs(hits.double().mean().item() - rate) <= 4 * math.sqrt(rate * (1 - rate) / hits.numel())


def drawn(count: int, size: tuple[int, int] = (8, 8), side: int = 64, **options: object) -> Samples:
    """The draws for images of one size."""
    return Augmentation(**options).draw(torch.tensor([size] * count, dtype=torch.int32), side, seed=1, epoch=0)


# --- Boxes ------------------------------------------------------------------------------------------------------------


def in_pixels(boxes: torch.Tensor, size: tuple[int, int], side: int) -> torch.Tensor:
    """Boxes in the image's own pixels."""
    return boxes.double() / side * torch.tensor([*size, *size])


def features(boxes: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """What a crop is like; its place as a share of the room that its size leaves."""
    height, width = size
    top, left, high, wide = boxes.T
    top_share = np.where(high < height, top / np.maximum(height - high, 1), 0)
    left_share = np.where(wide < width, left / np.maximum(width - wide, 1), 0)
    return {
        'area': high * wide / (height * width),
        'log ratio': np.log(wide / high),
        'height': high / height,
        'top': top_share,
        'left': left_share,
        'top and left': top_share - left_share,
    }


@pytest.mark.parametrize('scale', [(0.08, 1.0), (0.35, 1.0)])
@pytest.mark.parametrize('size', [(224, 224), (375, 500), (500, 333), (80, 400), (400, 80)])
def test_crops_are_distributed_as_timms(size: tuple[int, int], scale: tuple[float, float]) -> None:
    """Also where hardly a crop or none fits (80×400), and the largest central one is taken."""
    count, side = 8000, math.prod(size)  # every pixel of the image begins at a whole stored pixel
    boxes = in_pixels(drawn(count, size, side, scale=scale).boxes, size, side).numpy()
    assert np.abs(boxes - boxes.round()).max() < 1e-6
    random.seed(1)
    image = Image.new('L', size[::-1])
    theirs = [RandomResizedCropAndInterpolation.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)]
    wanted = features(np.array(theirs), size)
    for name, values in features(boxes.round(), size).items():
        assert_alike(values, wanted[name], name)


def test_boxes_are_at_the_same_place_of_a_smaller_stored_image() -> None:
    size, side = (375, 500), 61
    exact = drawn(500, size, math.prod(size)).boxes.double() / math.prod(size)
    boxes = drawn(500, size, side).boxes
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert (start / side - exact[:, :2]).abs().max() <= 0.5 / side + 1e-9
    assert (end / side - exact[:, :2] - exact[:, 2:]).abs().max() <= 0.5 / side + 1e-9
    assert start.min() >= 0
    assert end.max() <= side


def test_a_box_is_never_empty() -> None:
    boxes = drawn(500, (1000, 1000), 8, scale=(1e-6, 1e-5)).boxes
    assert boxes[:, 2:].min() == 1
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= 8


def test_flips_and_filters_come_as_often_as_asked_for() -> None:
    draws = drawn(10_000, hflip=0.5, vflip=0.2)
    assert_rate(draws.flips[:, 0], 0.2)
    assert_rate(draws.flips[:, 1], 0.5)
    assert_rate(draws.flips.all(1), 0.1)
    assert_rate(draws.bicubic, 0.5)
    assert not drawn(100, interpolation='bilinear').bicubic.any()
    assert drawn(100, interpolation='bicubic').bicubic.all()
    assert not drawn(100, hflip=0.0).flips.any()


def test_draws_depend_on_seed_epoch_and_image() -> None:
    sizes = torch.tensor([[60, 80]] * 20)

    def boxes(seed: int, epoch: int) -> list[list[int]]:
        return Augmentation().draw(sizes, 64, seed, epoch).boxes.tolist()

    assert boxes(1, 0) == boxes(1, 0)
    assert boxes(1, 0) != boxes(1, 1)
    assert boxes(1, 0) != boxes(2, 0)
    assert len(set(map(tuple, boxes(1, 0)))) > 15


# --- Pixels of the crops ----------------------------------------------------------------------------------------------

paths = pytest.mark.parametrize(
    'resize',
    [
        pytest.param(augment._crop_resize_fused, marks=needs_compiler),
        augment._crop_resize_each,
        augment._crop_resize_dense,
    ],
    ids=['fused', 'each', 'dense'],
)


def stored(count: int, side: int = 64) -> torch.Tensor:
    """Squares of colours that vary about as much from pixel to pixel as a photograph's."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return torch.from_numpy(np.stack([np.asarray(Image.fromarray(image).resize((side, side), 3)) for image in noise]))


def pillows(pixels: torch.Tensor, draws: Samples, size: tuple[int, int]) -> torch.Tensor:
    """Pillow's crop, resize and flips."""
    result = []
    for image, (top, left, height, width), bicubic, (vertical, horizontal) in zip(
        pixels.numpy(), draws.boxes.tolist(), draws.bicubic, draws.flips, strict=True
    ):
        picture = Image.fromarray(image).crop((left, top, left + width, top + height))
        picture = picture.resize(size[::-1], Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR)
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if vertical else picture
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if horizontal else picture
        result.append(np.asarray(picture))
    return torch.from_numpy(np.stack(result)).permute(0, 3, 1, 2)


@paths
@pytest.mark.parametrize('size', [(16, 16), (40, 56), (64, 64)])
@pytest.mark.parametrize(('interpolation', 'bound'), [('bilinear', 1), ('bicubic', 8)])
def test_crops_are_pillows(resize: Resize, size: tuple[int, int], interpolation: str, bound: int) -> None:
    """Made smaller and larger, flipped in all ways."""
    pixels = stored(40)
    draws = drawn(40, (60, 90), interpolation=interpolation, vflip=0.5)
    ours = resize(pixels, torch.arange(40), draws, size)
    assert (ours.dtype, ours.shape) == (torch.uint8, (40, 3, *size))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    difference = (ours.int() - pillows(pixels, draws, size).int()).abs()
    assert difference.max() <= bound
    assert difference.float().mean() < 0.3


@paths
def test_each_image_gets_its_own_draws(resize: Resize) -> None:
    """Whatever the batch, the order and the filters of the others."""
    pixels, draws = stored(10), drawn(10, vflip=0.5)
    assert draws.bicubic.unique().tolist() == [False, True]
    whole = resize(pixels, torch.arange(10), draws, (24, 24))
    index = torch.tensor([7, 0, 2, 0, 5, 0])[::2]  # as one of two processes gets it
    assert torch.equal(resize(pixels, index, draws.of(index), (24, 24)), whole[index])


@needs_compiler
def test_torchs_kernels_are_used_where_there_are_no_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, draws, index = stored(10), drawn(10), torch.arange(10)
    whole = augment.crop_resize(pixels, index, draws, (24, 24))
    assert torch.equal(whole, augment._crop_resize_fused(pixels, index, draws, (24, 24)))
    strided = pixels.repeat(1, 1, 2, 1)[:, :, :64]
    each = augment._crop_resize_each(pixels, index, draws, (24, 24))
    assert torch.equal(augment.crop_resize(strided, index, draws, (24, 24)), each)
    monkeypatch.setattr(augment, 'are_kernels_for', lambda *_: False)
    assert torch.equal(augment.crop_resize(pixels, index, draws, (24, 24)), each)
    assert not torch.equal(whole, each), 'the test cannot tell them apart'


@paths
def test_the_whole_image_at_its_own_size_stays_as_it_is(resize: Resize) -> None:
    pixels = stored(4)
    draws = replace(drawn(4, hflip=0.0), boxes=torch.tensor([[0, 0, 64, 64]] * 4))
    draws.bicubic[:2] = True
    images = pixels.permute(0, 3, 1, 2)
    assert torch.equal(resize(pixels, torch.arange(4), draws, (64, 64)), images)
    draws.flips[0, 0] = draws.flips[1, 1] = True
    flipped = resize(pixels, torch.arange(4), draws, (64, 64))
    assert torch.equal(flipped[0], images[0].flip(1))
    assert torch.equal(flipped[1], images[1].flip(2))
    assert torch.equal(flipped[2:], images[2:])


# --- Colours ----------------------------------------------------------------------------------------------------------


def parts(step: torch.Tensor) -> tuple[str, float]:
    """The name and the factor of a colour step."""
    factor, grey, mean = step.tolist()
    return 'saturation' if grey else 'contrast' if mean else 'brightness', factor


@pytest.mark.parametrize(('count', 'bound'), [(1, 1), (2, 2), (3, 4)])
def test_colours_are_torchvisions(count: int, bound: int) -> None:
    """One, two or three steps in the order drawn. Pillow cuts off the fraction of every step's result."""
    images = stored(30, 32).permute(0, 3, 1, 2)
    jitter = drawn(30, color_jitter=0.4).jitter
    jitter[:, count:] = torch.tensor([1.0, 0.0, 0.0])
    changed = {'brightness': functional.adjust_brightness, 'contrast': functional.adjust_contrast}
    changed['saturation'] = functional.adjust_saturation
    wanted = []
    for image, steps in zip(images, jitter, strict=True):
        picture = functional.to_pil_image(image)
        for step in steps[:count]:
            name, factor = parts(step)
            picture = changed[name](picture, factor)
        wanted.append(functional.pil_to_tensor(picture))
    difference = recolor(images, jitter).int() - torch.stack(wanted).int()
    assert difference.abs().max() <= bound
    assert difference.float().abs().mean() < 0.5 * count


def test_without_strength_colours_stay() -> None:
    images = stored(8, 16).permute(0, 3, 1, 2)
    assert torch.equal(recolor(images, drawn(8, color_jitter=0.0).jitter), images)
    assert torch.equal(recolor(images, drawn(8, color_jitter_prob=0.0).jitter), images)
    assert not Augmentation(color_jitter=0.0).recolors
    assert Augmentation(color_jitter=0.0, grayscale_prob=0.1).recolors


def test_grey_is_torchvisions() -> None:
    images = stored(8, 16).permute(0, 3, 1, 2)
    wanted = [functional.pil_to_tensor(functional.to_grayscale(functional.to_pil_image(image), 3)) for image in images]
    grey = recolor(images, drawn(8, color_jitter=0.0, grayscale_prob=1.0).jitter)
    assert (grey.int() - torch.stack(wanted).int()).abs().max() <= 1
    jittered = recolor(images, drawn(8, grayscale_prob=1.0).jitter)
    assert torch.equal(jittered[:, 0], jittered[:, 2]), 'it comes after the jitter'


def test_jitter_is_distributed_as_torchvisions() -> None:
    """Factors and orders uniform and independent of the epoch's other draws; strengths above 1 end at factor 0."""
    count = 6000
    for strength in (0.4, 1.5):
        steps = [[parts(step) for step in steps[:3]] for steps in drawn(count, color_jitter=strength).jitter]
        orders = [tuple(name for name, _ in step) for step in steps]
        for order in itertools.permutations(('brightness', 'contrast', 'saturation')):
            assert_rate(torch.tensor([found == order for found in orders]), 1 / 6)
        uniform = np.random.default_rng(1).uniform(max(0, 1 - strength), 1 + strength, count)
        for name in ('brightness', 'contrast', 'saturation'):
            assert_alike(np.array([dict(step)[name] for step in steps]), uniform, name)


def test_jitter_and_grey_come_as_often_as_asked_for() -> None:
    jitter = drawn(10_000, color_jitter_prob=0.3, grayscale_prob=0.1).jitter
    still = torch.tensor([1.0, 0.0, 0.0])
    assert_rate((jitter[:, :3] != still).any((1, 2)), 0.3)
    assert_rate((jitter[:, 3] != still).any(1), 0.1)


# --- Erasing ----------------------------------------------------------------------------------------------------------


def erased(result: torch.Tensor) -> dict[str, np.ndarray]:
    """What the erased parts of the erased images are like; their box is the one around all of them."""
    masks = (result != 1).any(1)
    masks = masks[masks.flatten(1).any(1)]
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    top, left = rows.int().argmax(1), columns.int().argmax(1)
    high = height - rows.flip(1).int().argmax(1) - top
    wide = width - columns.flip(1).int().argmax(1) - left
    return {'share': masks.double().mean((1, 2)).numpy()} | features(
        torch.stack([top, left, high, wide], 1).numpy(), (height, width)
    )


@pytest.mark.parametrize('count', [1, 3])
def test_erasing_is_distributed_as_timms(count: int) -> None:
    images = torch.ones(4000, 1, 64, 40)
    seed_everything(1)
    ours = RandomErasing(0.8, 'rand', count)(images)
    theirs = timm.data.random_erasing.RandomErasing(0.8, mode='rand', max_count=count, device='cpu')(images.clone())
    assert_rate((ours != 1).flatten(1).any(1), 0.8)
    wanted = erased(theirs)
    for name, values in erased(ours).items():
        assert_alike(values, wanted[name], name)
    colours = [np.array([len(np.unique(image)) for image in batch.numpy()]) for batch in (ours, theirs)]
    assert_alike(*colours, 'rectangles')
    assert colours[0].max() == count + 1


@pytest.mark.parametrize('mode', ['const', 'rand', 'pixel'])
def test_what_erasing_fills_in(mode: str) -> None:
    """Zeros, one normal colour a rectangle, or normal noise; every channel its own."""
    seed_everything(1)
    images = RandomErasing(1.0, mode)(torch.full((1500, 3, 16, 16), 100.0))
    fills = [image[:, image[0] != 100] for image in images]
    kinds = {len(fill.unique(dim=1).T) == 1 for fill in fills if fill.shape[1] > 1}
    assert kinds == {mode != 'pixel'}
    values = torch.cat([fill if mode == 'pixel' else fill[:, :1] for fill in fills], 1)
    if mode == 'const':
        assert not values.any()
    else:
        error = 1 / math.sqrt(values.shape[1])
        assert values.mean(1).abs().max() < 4 * error
        assert (values.std(1) - 1).abs().max() < 4 * error
        assert values.corrcoef().fill_diagonal_(0).abs().max() < 4 * error


# --- The whole batch --------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize('shape', [(5, 3, 17, 12), (2, 3, 1, 1)])
def test_pixels_are_normalised_by_timms_arithmetic(shape: tuple[int, ...]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    centre, spread = (torch.tensor([255 * value for value in values]).view(3, 1, 1) for values in (mean, std))
    expected = pixels.float().sub_(centre).div_(spread)
    assert torch.equal(Normalize(mean, std, CPU)(pixels), expected)
    last = Normalize(mean, std, CPU, channels_last=True)
    for images in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        found = last(images)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert last._is_looked_up(pixels.contiguous(memory_format=torch.channels_last))


def test_a_batch_is_normalised_then_erased_then_mixed() -> None:
    seen = []

    def mixup(images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(images.clone())
        return images + 10, torch.eye(4)[targets]

    normalize = Normalize((0.25,), (0.5,), CPU)
    pixels, targets = torch.full((6, 3, 16, 16), 255, dtype=torch.uint8), torch.arange(6) % 4
    seed_everything(1)
    images, mixed = BatchTransform(normalize, 1.0, 'const', mixup=mixup)(pixels, targets)
    assert seen[0].unique().tolist() == [0.0, 1.5], 'erased to zero, which is the mean'
    assert torch.equal(images, seen[0] + 10)
    assert mixed.shape == (6, 4)
    images, same = BatchTransform(normalize)(pixels, targets)
    assert torch.equal(same, targets)
    assert images.unique().tolist() == [1.5]
    assert images.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize('color_jitter', [0.0, 0.4])
def test_real_images_come_out_as_from_timms_loader(
    imagenette_dir: Path, color_jitter: float, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, other draws: means and standard deviations of each channel within four standard errors.
    Pillow cuts fractions off: half a level in each of the three colour steps."""
    images = load_split(imagenette_dir)
    images = replace(images, paths=images.paths[::19], targets=images.targets[::19])
    sampler = EpochBatches(len(images), 64, seed=1, schedule=SizeSchedule((96,)))
    side, sizes = train_size(images, 96, Console(quiet=True))
    pixels = torch.from_numpy(train_pixels(images, side, Console(quiet=True)))
    augmentation = Augmentation(scale=(0.35, 1.0), color_jitter=color_jitter)
    ours = CachedTrainBatches(pixels, torch.from_numpy(sizes), torch.tensor(images.targets), augmentation, sampler, CPU)
    transform = create_transform(
        96, is_training=True, scale=(0.35, 1.0), color_jitter=color_jitter, interpolation='random', use_prefetcher=True
    )
    theirs = train_loader(images, {96: transform}, sampler, workers=0)
    (a, targets), (b, same) = ([torch.cat(parts) for parts in zip(*batches, strict=True)] for batches in (ours, theirs))
    assert torch.equal(targets, same)
    for statistic in (torch.Tensor.mean, torch.Tensor.std):
        difference = statistic(a.float().flatten(2), 2) - statistic(b.float().flatten(2), 2)
        error = difference.std(0) / math.sqrt(len(images))
        cut = 1.5 if color_jitter else 0.0
        assert (difference.mean(0).abs() < 4 * error + cut).all()


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_are_cropped_as_those_of_rgb(channels: int) -> None:
    planes = torch.randint(256, (3, 40, 40, 4), dtype=torch.uint8)
    samples = Augmentation(vflip=0.5).draw(torch.full((3, 2), 40), 40, seed=0, epoch=0)
    index = torch.arange(3)
    result = augment.crop_resize(planes[..., :channels].contiguous(), index, samples, (16, 16))
    assert result.shape == (3, channels, 16, 16)
    for channel in range(channels):
        rgb = augment._crop_resize_each(planes[..., [channel] * 3].contiguous(), index, samples, (16, 16))
        assert (result[:, channel].int() - rgb[:, 0].int()).abs().max() <= 1


@pytest.mark.parametrize('channels', [1, 4])
def test_other_channels_are_normalised(channels: int) -> None:
    images = torch.randint(256, (2, 8, 8, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    mean, std = [0.1, 0.2, 0.3, 0.4][:channels], [0.5] * channels
    expected = (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / 0.5
    for channels_last in (False, True):
        result = Normalize(mean, std, torch.device('cpu'), channels_last)(images)
        torch.testing.assert_close(result, expected)
