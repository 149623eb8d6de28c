"""Compiled models, and whether compiling one pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import Mish as TimmMish
from torch import nn

from ..data.imagenette import available_cores
from ..errors import UserError
from ..layers import Mish
from ..models.catalog import model_cost
from .console import Console, duration
from .options import nearest

if TYPE_CHECKING:
    from .recipe import ComputeOptions, Recipe

__all__ = ['compiled', 'resolve']

# What a training step costs and compiling it saves, fitted to MobileNetV2 and ResNet-50 on two cores of a Zen 5
# (docs/performance.md). Not measured on a GPU: there it is an assumption.
SECONDS_A_MAC = {'cpu': 2.5e-11, 'cuda': 2e-13}  # on one core, on the whole GPU
SECONDS_AN_ELEMENT = {'cpu': 2.8e-9, 'cuda': 2e-11}  # of what the layers put out
SAVED = {'cpu': 0.05, 'cuda': 0.2}  # share of the time
SAVED_OF_TORCHS_MISH = {'cpu': 0.4, 'cuda': 0.25}
SAVED_OF_OURS = {'cpu': 0.0, 'cuda': 0.2}  # on a CPU its own kernels and oneDNN's BatchNorm are ahead of the compiler's
SECONDS_A_LAYER = 0.3  # to compile it, forward and backward


def resolve(recipe: Recipe, model: nn.Module, images: int, device: torch.device, console: Console) -> Recipe:
    """The recipe with ``torchcompile: auto`` replaced by what that means for this run, and says so.

    The answer depends on the recipe, the model, the data and the kind of machine alone, not on a measurement, so that
    a run is repeated and resumed as it was.

    Args:
        recipe: The recipe.
        model: Its model.
        images: Training images an epoch.
        device: Where it is trained.
        console: Who is told.
    """
    if recipe.torchcompile == 'none':
        return recipe.replace(torchcompile=None)
    if recipe.torchcompile != 'auto':
        return recipe
    sides = recipe.train_img_sizes or (_side(recipe, model),)
    saved, cost = _saved(model, max(sides), recipe.epochs * images, device), _cost(model) * len(sides)
    if not _has_compiler(device) or saved < cost:
        return recipe.replace(torchcompile=None, torchcompile_mode=None)
    console.line(f'torchcompile auto: on; may save {duration(saved)}, takes about {duration(cost)} (once a machine)')
    return recipe.replace(torchcompile='inductor')


def _side(recipe: Recipe, model: Any) -> int:
    return recipe.img_size or model.pretrained_cfg['input_size'][-1]


def _saved(model: nn.Module, side: int, images: int, device: torch.device) -> float:
    """Seconds that a compiled model may save."""
    kind = device.type if device.type in SECONDS_A_MAC else 'cuda'
    elements = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal elements
        if isinstance(output, torch.Tensor):
            elements += output.numel()

    leaves = [layer for layer in model.modules() if not any(layer.children())]
    handles = [layer.register_forward_hook(count) for layer in leaves]
    try:
        _, gmacs = model_cost(model, (3, side, side))  # runs a copy, with its hooks
    finally:
        for handle in handles:
            handle.remove()
    seconds = 1e9 * (gmacs or 0.0) * SECONDS_A_MAC[kind] + elements * SECONDS_AN_ELEMENT[kind]
    if any(isinstance(layer, Mish) for layer in leaves):
        share = SAVED_OF_OURS
    else:
        share = SAVED_OF_TORCHS_MISH if any(isinstance(layer, (nn.Mish, TimmMish)) for layer in leaves) else SAVED
    return share[kind] * images * seconds / (available_cores() if kind == 'cpu' else 1)


def _cost(model: nn.Module) -> float:
    """Seconds that compiling takes."""
    return SECONDS_A_LAYER * sum(not any(layer.children()) for layer in model.modules())


def _has_compiler(device: torch.device) -> bool:
    """Whether inductor can work here."""
    if device.type == 'cuda':
        from torch.utils._triton import has_triton

        return has_triton()
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return device.type == 'cpu' and bool(get_cpp_compiler())
    except Exception:  # its own error, whose place differs between versions, means that there is none
        return False


def compiled(model: nn.Module, options: ComputeOptions, shapes: int = 1) -> nn.Module:
    """The model compiled for a few shapes, where that is asked for.

    Args:
        model: The model.
        options: ``torchcompile`` and ``torchcompile_mode``.
        shapes: How many shapes of input it will be given.

    Raises:
        UserError: There is no such backend.
    """
    if options.torchcompile in (None, 'auto', 'none'):
        return model
    known = torch._dynamo.list_backends(exclude_tags=())
    if options.torchcompile not in known:
        raise UserError(f'--torchcompile: no backend {options.torchcompile!r}{nearest(options.torchcompile, known)}')
    # Training and evaluation, the model and its moving average are compiled each for itself.
    limit = 'recompile_limit' if hasattr(torch._dynamo.config, 'recompile_limit') else 'cache_size_limit'
    setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 4 * shapes + 4))
    # dynamic=False: a batch of another size is run by the plain model, so that the compiled one stays as it is.
    return torch.compile(  # type: ignore[return-value]
        model, backend=options.torchcompile, mode=options.torchcompile_mode, dynamic=False
    )
