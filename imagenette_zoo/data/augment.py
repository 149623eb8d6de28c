"""What is done to a whole batch on the training device: normalise, erase, mix."""

from collections.abc import Sequence

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing

__all__ = ['BatchTransform', 'Normalize', 'shift_batch']


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
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` uint8 to ``(N, C, H, W)`` float32 on the device."""
        images = images.to(self.mean.device, non_blocking=True)
        return images.to(torch.float32, memory_format=self.memory_format).sub_(self.mean).div_(self.std)


class BatchTransform:
    """A training batch: normalised, randomly erased, mixed.

    Args:
        normalize: The normalisation.
        reprob: Probability of random erasing (https://arxiv.org/abs/1708.04896).
        remode: What it fills in: ``const``, ``rand`` or ``pixel``.
        recount: Most rectangles an image.
        mixup: timm's mixup/cutmix, or None.
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
        self.erase = (
            RandomErasing(reprob, mode=remode, max_count=recount, device=normalize.mean.device) if reprob > 0 else None
        )

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(N, C, H, W)`` uint8 and ``(N,)`` class indices to floats and targets, ``(N, classes)`` where mixing."""
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
        images: ``(N, C, H, W)``.
        offsets: ``(N, 2)`` vertical and horizontal offsets in −limit … limit.
        limit: Largest offset, in pixels, below the image's side.

    Returns:
        ``(N, C, H, W)``.
    """
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, [limit] * 4, mode='reflect')
    shifted = [
        image[:, limit + dy : limit + dy + height, limit + dx : limit + dx + width]
        for image, (dy, dx) in zip(padded, offsets.tolist(), strict=True)
    ]
    return torch.stack(shifted)
