"""An augmentation of one's own: GridMask, a grid of hidden squares (Chen et al. 2020, arXiv 2001.04086).

imagenette-zoo train --import own_augmentation.py --batch-transform own_augmentation:GridMask
"""

import torch
from torch import nn


class GridMask(nn.Module):
    """Unit and offset of the grid are drawn for each image; squares with a side of `1 - ratio` units are hidden."""

    def __init__(self, probability: float = 0.7, ratio: float = 0.6, smallest: float = 96 / 224) -> None:
        super().__init__()
        self.probability, self.ratio, self.smallest = probability, ratio, smallest

    def forward(
        self, images: torch.Tensor, targets: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images are `(N, C, H, W)`; 0 is the mean colour. The generator is on their device."""
        count, _, height, width = images.shape
        random = torch.rand(4, count, 1, 1, 1, generator=generator, device=images.device)
        unit = (self.smallest + (1 - self.smallest) * random[0]) * min(height, width)
        rows = torch.arange(height, device=images.device)[:, None] + random[1] * unit
        columns = torch.arange(width, device=images.device) + random[2] * unit
        hidden = (rows % unit >= self.ratio * unit) & (columns % unit >= self.ratio * unit)
        return images.masked_fill(hidden & (random[3] < self.probability), 0.0), targets
