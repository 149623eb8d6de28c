"""Whole batches on the training device: crop, flip, jitter, normalise, erase, mix.

The distributions are those of timm's transforms. The samples of an image in an epoch are drawn from a stream of its own
(`Augmentation.draw`), so they depend neither on the batch it is in nor on what ran before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data import Mixup

from ..kernels.runtime import are_kernels_for, call, triton_kernels
from ..utils.seeding import stream_seed

__all__ = [
    'Augmentation', 'BatchTransform', 'Normalize', 'RandomErasing', 'Samples', 'crop_resize', 'recolor', 'shift_batch',
]  # fmt: skip

ATTEMPTS = 10  # at a box that fits, as in timm
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, Pillow's


@dataclass(frozen=True)
class Samples:
    """The random numbers of some images.

    Attributes:
        boxes: `(N, 4)` top, left, height and width of the crop, in stored pixels.
        flips: `(N, 2)` whether it is flipped vertically and horizontally.
        bicubic: `(N,)` whether it is resampled bicubically instead of bilinearly.
        jitter: `(N, 4, 3)` the colour steps: strength of the pixel, of its grey value and of the mean grey value.
    """

    boxes: torch.Tensor
    flips: torch.Tensor
    bicubic: torch.Tensor
    jitter: torch.Tensor

    def of(self, index: torch.Tensor) -> 'Samples':
        """Those of some of the images."""
        return Samples(self.boxes[index], self.flips[index], self.bicubic[index], self.jitter[index])

    def to(self, device: torch.device) -> 'Samples':
        """The same on a device."""
        return Samples(*(values.to(device) for values in (self.boxes, self.flips, self.bicubic, self.jitter)))


@dataclass(frozen=True)
class Augmentation:
    """The random part of timm's training transform, before the image is normalised.

    Args:
        scale: Smallest and largest area of the random-resized crop.
        ratio: Smallest and largest aspect ratio of the crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        interpolation: `bilinear`, `bicubic` or `random`: one of the two for each image.
        color_jitter: Strength of the jitter of brightness, contrast and saturation, which come in random order.
        color_jitter_prob: Probability of any jitter.
        grayscale_prob: Probability of a conversion to grey.
    """

    scale: tuple[float, ...] = (0.08, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    interpolation: str = 'random'
    color_jitter: float = 0.4
    color_jitter_prob: float = 1.0
    grayscale_prob: float = 0.0

    @property
    def recolors(self) -> bool:
        """Whether colours change at all."""
        return self.color_jitter * self.color_jitter_prob > 0 or self.grayscale_prob > 0

    def draw(self, sizes: torch.Tensor, stored_size: int, seed: int, epoch: int) -> Samples:
        """The samples of every image for one epoch.

        Args:
            sizes: `(N, 2)` heights and widths of the images as they came, in which boxes have their true ratio.
            stored_size: Size of the square that they are stored as.
            seed: Seed of the run.
            epoch: The epoch.
        """
        generator = torch.Generator().manual_seed(stream_seed(seed, 'augmentation', epoch) % 2**63)
        count = len(sizes)
        flips = torch.rand(count, 2, generator=generator) < torch.tensor([self.vflip, self.hflip])
        fraction = {'bilinear': 0.0, 'bicubic': 1.0, 'random': 0.5}[self.interpolation]
        bicubic = torch.rand(count, generator=generator) < fraction
        return Samples(self._boxes(sizes, stored_size, generator), flips, bicubic, self._jitter(count, generator))

    def _boxes(self, sizes: torch.Tensor, stored_size: int, generator: torch.Generator) -> torch.Tensor:
        """Random-resized crops (https://arxiv.org/abs/1409.4842), drawn in the images' own pixels."""
        count = len(sizes)
        random = torch.rand(4, count, ATTEMPTS, generator=generator, dtype=torch.float64)
        height, width = sizes.to(torch.float64)[:, None].unbind(-1)
        area = _between(random[0], *self.scale) * height * width
        ratio = _between(random[1], *map(math.log, self.ratio)).exp()
        crop_w, crop_h = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (crop_w <= width) & (crop_h <= height)
        first = fits.to(torch.int8).argmax(1, keepdim=True)
        top, left = (random[2] * (height - crop_h + 1)).floor(), (random[3] * (width - crop_w + 1)).floor()
        drawn = [values.gather(1, first)[:, 0] for values in (top, left, crop_h, crop_w)]
        boxes = torch.where(fits.any(1, keepdim=True), torch.stack(drawn, 1), self._central(sizes))
        start = (boxes[:, :2] * stored_size / sizes).round().clamp(0, stored_size - 1)
        end = ((boxes[:, :2] + boxes[:, 2:]) * stored_size / sizes).round().clamp(max=stored_size)
        return torch.cat([start, (end - start).clamp(min=1)], 1).long()

    def _central(self, sizes: torch.Tensor) -> torch.Tensor:
        """The largest central crop of an allowed ratio: where nothing drawn fits."""
        height, width = sizes.to(torch.float64).unbind(1)
        ratio = (width / height).clamp(*self.ratio)
        crop_w, crop_h = torch.minimum(width, (height * ratio).round()), torch.minimum(height, (width / ratio).round())
        return torch.stack([((height - crop_h) / 2).floor(), ((width - crop_w) / 2).floor(), crop_h, crop_w], 1)

    def _jitter(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Brightness, contrast and saturation are mixtures `f x + (1 - f) y`: y is black, the mean grey value of the
        image, its grey picture."""
        strength = self.color_jitter
        factors = _between(torch.rand(count, 3, generator=generator), max(0.0, 1 - strength), 1 + strength)
        factors[torch.rand(count, generator=generator) >= self.color_jitter_prob] = 1
        order = torch.rand(count, 3, generator=generator).argsort(1)
        black, mean_grey, grey = torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        other = torch.stack([black, mean_grey, grey])[order] * (1 - factors)[:, :, None]
        steps = torch.cat([factors[:, :, None], other], 2)
        last = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        return torch.cat([steps, last[(torch.rand(count, generator=generator) < self.grayscale_prob).long(), None]], 1)


def _between(random: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Numbers in 0–1 stretched to low–high."""
    return low + random * (high - low)


def crop_resize(pixels: torch.Tensor, index: torch.Tensor, samples: Samples, size: tuple[int, int]) -> torch.Tensor:
    """Crops, resizes with antialiasing and flips some of the stored images.

    Args:
        pixels: `(M, S, S, C)` uint8, all images.
        index: `(N,)` which of them.
        samples: Their samples, N of them, on the same device.
        size: Height and width of the result.

    Returns:
        `(N, C, *size)` uint8, channels-last. On the CPU the pixels of Pillow's filters to within a rounding.
    """
    if pixels.is_cuda:
        return _crop_resize_dense(pixels, index, samples, size)
    if are_kernels_for(pixels.device, pixels.dtype) and pixels.is_contiguous() and pixels.shape[-1] == 3:
        return _crop_resize_fused(pixels, index, samples, size)
    return _crop_resize_each(pixels, index, samples, size)


def _crop_resize_fused(
    pixels: torch.Tensor, index: torch.Tensor, samples: Samples, size: tuple[int, int]
) -> torch.Tensor:
    """A whole batch in one call, on one thread: this runs beside the training."""
    out = torch.empty(len(index), *size, 3, dtype=torch.uint8)
    arguments = (index, samples.boxes, samples.flips, samples.bicubic)
    sizes = (len(index), pixels.shape[1], *size)
    call('crop_resize', sizes, pixels, *(argument.contiguous() for argument in arguments), out)
    return out.permute(0, 3, 1, 2)


def _crop_resize_each(
    pixels: torch.Tensor, index: torch.Tensor, samples: Samples, size: tuple[int, int]
) -> torch.Tensor:
    """By torch's vectorised kernels for single uint8 images."""
    out = torch.empty(len(index), *size, pixels.shape[-1], dtype=torch.uint8)
    result = out.permute(0, 3, 1, 2)
    kernels = torch.ops.aten._upsample_bilinear2d_aa.out, torch.ops.aten._upsample_bicubic2d_aa.out
    stored, view = pixels.numpy(), out.numpy()  # NumPy, since this runs beside the training and must take no threads
    rows = zip(index.tolist(), samples.boxes.tolist(), samples.bicubic.tolist(), strict=True)
    for position, (image, (top, left, height, width), bicubic) in enumerate(rows):
        crop = np.ascontiguousarray(stored[image, top : top + height, left : left + width])
        kernels[bicubic](
            torch.from_numpy(crop).permute(2, 0, 1)[None], size, False, out=result[position : position + 1]
        )
    whole = view.view(f'V{view.shape[-1]}')[..., 0]  # a pixel is one item: three times as fast
    for axis in (0, 1):
        flipped = samples.flips[:, axis].numpy()
        whole[flipped] = np.flip(whole[flipped], axis + 1)
    return result


def _crop_resize_dense(
    pixels: torch.Tensor, index: torch.Tensor, samples: Samples, size: tuple[int, int]
) -> torch.Tensor:
    """The same as two matrix products an image, rows and columns: a few kernels for a whole batch on a GPU."""
    stored_size = pixels.shape[1]
    top, left, height, width = samples.boxes.unbind(1)
    gpu = triton_kernels(pixels.device) if pixels.is_cuda else None
    make = _filter if gpu is None else gpu.resize_filter
    dtype = torch.float16 if pixels.is_cuda else torch.float32  # as exact as TF32 and half of the bytes
    rows = make(top, height, stored_size, size[0], samples.bicubic, samples.flips[:, 0]).to(dtype)
    columns = make(left, width, stored_size, size[1], samples.bicubic, samples.flips[:, 1]).to(dtype)
    images = torch.einsum('nyj,njkc->nykc', rows, pixels[index].to(dtype))
    images = torch.einsum('nxk,nykc->nyxc', columns, images)
    images = images.round_().clamp_(0, 255).to(torch.uint8, memory_format=torch.contiguous_format)
    return images.permute(0, 3, 1, 2)


def _filter(
    start: torch.Tensor, length: torch.Tensor, stored_size: int, size: int, bicubic: torch.Tensor, flip: torch.Tensor
) -> torch.Tensor:
    """`(N, size, stored_size)`: how much each stored pixel contributes to each pixel of the result.

    Pillow's and torch's antialiased resize: the filter, triangle or Keys' cubic with a = -1/2, is as much wider as the
    image shrinks, and ends at the border of the crop.
    """
    start, length = start[:, None, None], length[:, None, None].float()
    scale = length / size
    centre = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    position = torch.arange(stored_size, device=start.device) - start
    x = ((position + 0.5 - centre) / scale.clamp(min=1)).abs()
    triangle = (1 - x).clamp(min=0)
    cubic = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, torch.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))
    weight = torch.where(bicubic[:, None, None], cubic, triangle) * ((position >= 0) & (position < length))
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.where(flip[:, None, None], weight.flip(1), weight)


def recolor(images: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Colour jitter and conversion to grey.

    Args:
        images: `(N, 3, H, W)` uint8.
        steps: `(N, 4, 3)`, see `Samples`.

    Returns:
        `(N, 3, H, W)` uint8.
    """
    weight = torch.tensor(GREY, device=images.device).view(1, 3, 1, 1)
    mixed = images.float()
    for step in steps.unbind(1):
        pixel, grey, mean = step.view(-1, 3, 1, 1, 1).unbind(1)
        picture = (mixed * weight).sum(1, keepdim=True)
        mixed = mixed * pixel + (picture * grey + picture.mean((2, 3), keepdim=True) * mean)
        mixed.clamp_(0, 255)
    return mixed.round_().to(torch.uint8)


class Normalize:
    """uint8 pixels to normalised floats, in the arithmetic of timm's loader.

    Args:
        mean: Channel means in 0–1.
        std: Channel standard deviations in 0–1.
        device: Where the batches live.
        channels_last: Memory layout of the result.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.mean = torch.tensor([255 * value for value in mean], device=device).view(1, -1, 1, 1)
        self.std = torch.tensor([255 * value for value in std], device=device).view(1, -1, 1, 1)
        self.table = torch.arange(256.0, device=device)[:, None].sub(self.mean.flatten()).div_(self.std.flatten())
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """`(N, C, H, W)` uint8 to `(N, C, H, W)` float32 on the device."""
        images = images.to(self.mean.device, non_blocking=True)
        if self.memory_format == torch.contiguous_format:
            return images.float().contiguous().sub_(self.mean).div_(self.std)
        if self._is_looked_up(images):
            out = torch.empty(images.shape, memory_format=torch.channels_last)
            call('look_up', [images.numel() // 3], images, self.table, out)
            return out
        rows = images.permute(0, 2, 3, 1).flatten(2).float()  # (N, H, W C): long rows are fast, pixels of three are not
        one = torch.ones(images.shape[-1], images.shape[1], device=rows.device)
        mean, std = ((one * values.flatten()).flatten() for values in (self.mean, self.std))
        return rows.sub_(mean).div_(std).unflatten(2, (-1, images.shape[1])).permute(0, 3, 1, 2)

    def _is_looked_up(self, images: torch.Tensor) -> bool:
        return (
            images.shape[1] == 3
            and images.dtype == torch.uint8
            and images.is_contiguous(memory_format=torch.channels_last)
            and are_kernels_for(images.device, images.dtype)
        )


class RandomErasing:
    """Random erasing (https://arxiv.org/abs/1708.04896) of normalised images as timm does it, for a whole batch.

    Args:
        probability: Fraction of the images that are erased.
        mode: The filling: `const` zeros, `rand` a normal random colour, `pixel` one for each pixel.
        max_count: Most rectangles an image; their areas, 2 % to a third of it, are divided by their number.
    """

    def __init__(self, probability: float, mode: str = 'pixel', max_count: int = 1) -> None:
        self.probability = probability
        self.mode = mode
        self.max_count = max_count

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """`(N, C, H, W)` to the same; draws from the default generator of the images' device."""
        shape, device = images.shape, images.device
        boxes = self.draw(shape[0], shape[2], shape[3], device)
        rows, columns = torch.arange(shape[2], device=device), torch.arange(shape[3], device=device)
        noise = torch.randn_like(images) if self.mode == 'pixel' else images.new_zeros(())
        for box in boxes.unbind(1):
            top, left, height, width = box[:, :, None].unbind(1)
            inside = (
                ((rows >= top) & (rows < top + height))[:, None, :, None]
                & ((columns >= left) & (columns < left + width))[:, None, None]
            )  # fmt: skip
            if self.mode == 'rand':
                noise = torch.randn(*shape[:2], 1, 1, device=device)
            images = torch.where(inside, noise, images)
        return images

    def draw(self, count: int, height: int, width: int, device: torch.device) -> torch.Tensor:
        """`(count, max_count, 4)` top, left, height and width in pixels; what is not erased has height 0."""
        shape = (count, self.max_count, ATTEMPTS)
        number = torch.randint(1, self.max_count + 1, (count, 1, 1), device=device)
        area = _between(torch.rand(shape, device=device), 0.02, 1 / 3) * height * width / number
        ratio = _between(torch.rand(shape, device=device), math.log(0.3), -math.log(0.3)).exp()
        high, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (high < height) & (wide < width)
        first = fits.to(torch.int8).argmax(2, keepdim=True)
        high, wide = high.gather(2, first)[..., 0], wide.gather(2, first)[..., 0]
        top = (torch.rand(shape[:2], device=device) * (height - high + 1)).floor()
        left = (torch.rand(shape[:2], device=device) * (width - wide + 1)).floor()
        erased = torch.rand(count, 1, device=device) < self.probability
        used = torch.arange(self.max_count, device=device) < number[:, 0]
        high = torch.where(erased & used & fits.any(2), high, 0.0)
        return torch.stack([top, left, high, wide], 2)


class BatchTransform:
    """A training batch: normalised, randomly erased, mixed.

    Args:
        normalize: The normalisation.
        reprob: Probability of random erasing (https://arxiv.org/abs/1708.04896).
        remode: What it fills in: `const`, `rand` or `pixel`.
        recount: Most rectangles an image.
        mixup: The mixup/cutmix of timm, or None.
    """

    def __init__(
        self,
        normalize: Normalize,
        reprob: float = 0.0,
        remode: str = 'pixel',
        recount: int = 1,
        mixup: Mixup | None = None,
    ) -> None:
        self.normalize = normalize
        self.mixup = mixup
        self.erase = RandomErasing(reprob, remode, recount) if reprob > 0 else None

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(N, C, H, W)` uint8 and `(N,)` class indices to floats and targets, `(N, classes)` where mixing."""
        images = self.normalize(images)
        targets = targets.to(images.device, non_blocking=True)
        if self.erase is not None:
            images = self.erase(images)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        return images, targets


def shift_batch(images: torch.Tensor, offsets: torch.Tensor, limit: int) -> torch.Tensor:
    """Shifts each image by its own whole-pixel offset; what comes in at the border is the mirrored image.

    Args:
        images: `(N, C, H, W)`.
        offsets: `(N, 2)` vertical and horizontal offsets in −limit … limit.
        limit: Largest offset, in pixels, below the image's size.

    Returns:
        `(N, C, H, W)`.
    """
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [limit] * 4, mode='reflect')
    shifted = [
        image[:, limit + dy : limit + dy + height, limit + dx : limit + dx + width]
        for image, (dy, dx) in zip(padded, offsets.tolist(), strict=True)
    ]
    return torch.stack(shifted)
