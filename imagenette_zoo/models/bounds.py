"""A model whose config is anybody's is about as large as its weights: looked at before memory is taken for it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from ..errors import UserError, first_line
from ..utils.reading import open_regular, read_errors

__all__ = ['Header', 'TooLarge', 'check_numbers', 'check_readable', 'no_more_than', 'read_header']

Header = Mapping[str, torch.Tensor]  # tensors of the meta device: shapes alone
LARGEST_NUMBER = 10_000  # among a model's arguments, if no weight has a larger dimension
MOST_NUMBERS = 1000
UNKNOWN = (5_000, 2**31)  # tensors and values where no header tells them


class TooLarge(UserError):
    """The model would have far more weights than belong to it."""


def read_header(path: Path) -> Header:
    """The shapes of the weights in a safetensors file.

    Raises:
        UserError: There is no such file, it is truncated, or it is none.
    """
    check_readable(path)
    try:
        with safetensors.safe_open(path, 'pt') as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device='meta') for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a damaged file is reported in many ways
        raise UserError(f'{path}: truncated or not a checkpoint ({first_line(error)})') from None


def check_readable(path: Path) -> None:
    """Looks whether there is such a file and it may be read: safetensors says the same of both.

    Raises:
        UserError: It is missing, or can't be read.
    """
    if not os.path.isfile(path):  # Path's own may raise
        raise UserError(f'{path}: no such checkpoint file')
    with read_errors(path, 'a checkpoint'), open_regular(path):
        pass


def check_numbers(name: str, config: Mapping[str, Any], header: Header | None) -> None:
    """Looks at the numbers in a model's arguments, which say how often something is repeated and how large it is.

    Raises:
        TooLarge: One is larger than any dimension of its weights, or there are too many.
    """
    dimensions = [size for tensor in (header or {}).values() if tensor.numel() for size in tensor.shape]
    most = max(LARGEST_NUMBER, *dimensions, 0)
    for count, (key, number) in enumerate(_numbers('', config), 1):
        if count > MOST_NUMBERS:
            raise TooLarge(f'{name}: has more than {MOST_NUMBERS:,} numbers in the arguments of its config')
        if not abs(number) <= most:  # nor nan
            raise TooLarge(f'{name}: {key} is {f"{number:,}"[:30]} in its config: expected at most {most:,}')


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value
    elif isinstance(value, (Mapping, list, tuple)):
        items: Iterable[Any] = value.items() if isinstance(value, Mapping) else ((key, item) for item in value)
        for name, item in items:
            yield from _numbers(str(name)[:40], item)


@contextmanager
def no_more_than(name: str, header: Header | None) -> Iterator[None]:
    """Within the block this thread makes no model with far more parameters, buffers and layers than the weights have.

    Twice as many are allowed, since models replace some of their layers while they are made, and a few for small ones.

    Raises:
        TooLarge: It would, as soon as that is known.
    """
    tensors, values = UNKNOWN if header is None else (len(header), sum(map(torch.Tensor.numel, header.values())))
    left = {'tensors': 2 * tensors + 1000, 'values': 2 * values + 2**26, 'layers': 10 * tensors + 5000}
    thread = threading.get_ident()

    def take(kind: str, number: int) -> None:
        left[kind] -= number
        if left[kind] < 0:
            raise TooLarge(f'{name}: its config makes a model with far more {kind} than its weights are: refused')

    def weight(module: Any, key: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None and threading.get_ident() == thread:
            take('tensors', 1)
            take('values', 0 if is_lazy(tensor) else math.prod(tensor.shape))

    def layer(module: Any, key: str, child: Any) -> None:
        if threading.get_ident() == thread:
            take('layers', 1)

    hooks = [
        register_module_parameter_registration_hook(weight),
        register_module_buffer_registration_hook(weight),
        register_module_module_registration_hook(layer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
