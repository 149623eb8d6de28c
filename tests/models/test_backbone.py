"""The zoo's models under other heads: features for dense prediction, frozen features for a linear probe."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import imagenette_zoo  # noqa: F401  (registers the models)
from imagenette_zoo.data.synthette import CLASS_NAMES, draw
from tests.conftest import EACH_OF_THE_ZOO


class Segmenter(nn.Module):
    """A feature pyramid's top-down path (https://arxiv.org/abs/1612.03144) that ends in a class for each pixel.

    From images `(N, 3, H, W)` to logits `(N, classes, H, W)`.
    """

    def __init__(self, backbone: Any, classes: int, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.feature_info.channels())
        self.head = nn.Conv2d(width, classes, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.backbone(images)
        x = self.lateral[-1](features[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(features[:-1]), strict=True):
            x = lateral(finer) + F.interpolate(x, finer.shape[2:])
        return F.interpolate(self.head(x), images.shape[2:], mode='bilinear')


def discs(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright discs on noise `(N, 3, size, size)`, and where they are: `(N, size, size)` int64."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(size // 4, 3 * size // 4, (count, 2, 1, 1), generator=generator)
    axis = torch.arange(size)
    inside = (axis[:, None] - centres[:, 0]) ** 2 + (axis[None] - centres[:, 1]) ** 2 < (size // 5) ** 2
    return torch.randn(count, 3, size, size, generator=generator) + 2.0 * inside[:, None], inside.long()


@pytest.mark.slow
@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_a_segmentation_head_learns(name: str) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, features_only=True)
    model = Segmenter(backbone, classes=2)
    images, masks = discs(3, 64)
    with torch.no_grad():
        features = model.backbone(images)
    reductions = backbone.feature_info.reduction()
    assert reductions == [2, 4, 8, 16, 32]
    for feature, channels, reduction in zip(features, backbone.feature_info.channels(), reductions, strict=True):
        assert feature.shape == (3, channels, 64 // reduction, 64 // reduction)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        logits = model(images)
        loss = F.cross_entropy(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (3, 2, 64, 64)
    assert losses[-1] < 0.7 * losses[0]
    untouched = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not untouched, 'the whole backbone learns'


def test_a_linear_probe() -> None:
    """Features of a frozen backbone under a logistic regression, here by L-BFGS on all of them at once."""
    torch.manual_seed(0)
    backbone = timm.create_model('mbv2_mish_imagenette', num_classes=0).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    names = ('square', 'stripes', 'target')
    assert set(names) <= set(CLASS_NAMES)
    pictures = [torch.from_numpy(draw(name, 0, 'train', index)) for name in names for index in range(8)]
    images = torch.stack([F.interpolate(p.permute(2, 0, 1)[None] / 255, (64, 64))[0] for p in pictures])
    targets = torch.arange(3).repeat_interleave(8)
    features = backbone(images)
    assert features.shape == (24, backbone.num_features)
    assert not features.requires_grad
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-6)
    probe = nn.Linear(backbone.num_features, 3)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=50, line_search_fn='strong_wolfe')

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(probe(features), targets) + 1e-3 * probe.weight.square().sum()
        value.backward()
        return value

    first = loss().item()
    optimizer.step(loss)
    assert loss().item() < 0.5 * first
    assert (probe(features).argmax(1) == targets).float().mean() > 0.9
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items()), 'frozen it stays'
