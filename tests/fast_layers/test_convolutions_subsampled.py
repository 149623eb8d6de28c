"""Strided 1×1 convolutions over few channels: torch's result, without what oneDNN does to the memory."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from imagenette_zoo.fast_layers.swap import swap


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('size', 'stride'), [((9, 7), 2), ((8, 8), 2), ((9, 10), (3, 2))])
def test_it_is_the_same_convolution(size: tuple[int, int], stride: int | tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 16, 1, stride, dtype=dtype)
    ours = copy.deepcopy(theirs)
    swap(ours, torch.device('cpu'), channels_last=True)
    assert type(ours) is not nn.Conv2d
    x = torch.randn(2, 3, *size, dtype=dtype)  # not channels-last, where torch's own is sound
    actual, expected = (torch.autograd.grad(conv(x).square().sum(), conv.parameters()) for conv in (ours, theirs))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(actual, expected)
    last = x.contiguous(memory_format=torch.channels_last)
    assert ours(last).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(last), theirs(x))


def test_which_convolutions() -> None:
    def changed(*options: object, **more: object) -> bool:
        layer = nn.Conv2d(*options, **more)
        swap(layer, torch.device('cpu'), channels_last=True)
        return type(layer) is not nn.Conv2d

    assert changed(3, 16, 1, 2)
    assert changed(15, 16, 1, 2, bias=False)
    assert not changed(16, 16, 1, 2)
    assert not changed(3, 16, 1)
    assert not changed(3, 16, 3, 2)
    assert not changed(3, 16, 1, 2, padding=1)
    assert not changed(8, 8, 1, 2, groups=8)


@pytest.mark.long
@pytest.mark.slow
def test_training_repvgg_leaves_the_memory_alone() -> None:
    """In a process of its own, which would end by a signal."""
    script = """if True:
        import timm, torch
        from imagenette_zoo.models.factory import to_device
        model = to_device(timm.create_model('repvgg_a0', num_classes=10), torch.device('cpu'), channels_last=True)
        junk = [torch.randn(1000 + i) for i in range(200)]
        for i in range(6):
            x = torch.randn(8, 3, 96, 96).to(memory_format=torch.channels_last)
            with torch.autocast('cpu', torch.bfloat16, enabled=i % 2 == 1):
                y = model(x)
            y.square().mean().backward()
            junk[i::7] = [torch.randn(1000 + j * 37) for j in range(len(junk[i::7]))]
        """
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_vmap_and_an_image_alone() -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 16, 1, 2)
    ours = copy.deepcopy(theirs)
    swap(ours, torch.device('cpu'), channels_last=True)
    x = torch.randn(2, 4, 3, 8, 8)
    torch.testing.assert_close(torch.func.vmap(ours)(x), torch.func.vmap(theirs)(x))
    torch.testing.assert_close(ours(x[0, 0]), theirs(x[0, 0]))
