"""The source of functions and classes, by which a run tells whether a model of a notebook has changed."""

import functools
import linecache
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from imagenette_zoo.utils.source import source_of

CELL = """
WIDTH = 8

def activation(x):
    return x.relu()

class Block(nn.Module):
    kernel = 3

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(3, channels, self.kernel)

    @property
    def channels(self):
        return self.layer.out_channels

    def forward(self, x):
        return activation(self.layer(x))

def net(num_classes):
    return nn.Sequential(Block(WIDTH), nn.Flatten())

mine = lambda num_classes: net(num_classes)
"""


def cell(text: str = CELL) -> Callable[..., Any]:
    """`mine` as a cell of a notebook defines it: no file has its source."""
    name = f'<cell {hash(text)}>'
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    names: dict[str, Any] = {'nn': nn, '__name__': '__main__'}
    exec(compile(text, name, 'exec'), names)
    return names['mine']


def test_the_same_source_twice() -> None:
    assert source_of(cell()) == source_of(cell('\n\n' + CELL))
    assert 'self.layer = nn.Conv2d(3, channels, self.kernel)' in source_of(cell())
    assert 'torch.nn.modules.module.Module' in source_of(cell()), 'what others wrote is named only'


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('WIDTH = 8', 'WIDTH = 9'),
        ('x.relu()', 'x.sigmoid()'),
        ('kernel = 3', 'kernel = 5'),
        ('out_channels', 'in_channels'),
        ('nn.Flatten()', 'nn.Identity()'),
        ('net(num_classes)\n', 'net(num_classes + 1)\n'),
        ('lambda num_classes: net(num_classes)', 'lambda num_classes: net(num_classes).half()'),
    ],
)
def test_any_change_is_seen(old: str, new: str) -> None:
    assert old in CELL
    assert source_of(cell()) != source_of(cell(CELL.replace(old, new)))


def test_what_stands_beside_a_lambda_is_not_its_own() -> None:
    assert source_of(cell()) == source_of(cell(CELL.replace('mine = lambda', 'mine, seeds = 1, 3; mine = lambda')))


def test_what_is_bound_to_a_function() -> None:
    net = cell().__globals__['net']
    bound = functools.partial(net, num_classes=3)
    assert source_of(bound) != source_of(functools.partial(net, num_classes=4))
    assert source_of(net) in source_of(bound)

    def made(width: int) -> Callable[[], int]:
        return lambda: width

    assert source_of(made(3)) != source_of(made(4))
