"""Compiled models, and whether compiling one pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UserError
from ..models.catalog import model_cost
from ..utils.files import keep_inductor_private
from .console import Console, duration
from .options import nearest

if TYPE_CHECKING:
    from .recipe import ComputeOptions, Recipe

__all__ = ['compiled', 'resolve']

# What a training step costs on a whole GPU and compiling it saves: assumptions, not measurements. On a CPU it saves
# nothing: our kernels and oneDNN's are ahead of the compiler's (docs/performance.md).
SECONDS_A_MAC = 2e-13
SECONDS_AN_ELEMENT = 2e-11  # of what the layers put out
SAVED = 0.2  # share of the time
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
    off = recipe.replace(torchcompile=None, torchcompile_mode=None)
    if not _may_gain(device):
        return off
    sides = recipe.train_img_sizes or (_side(recipe, model),)
    saved, cost = _saved(model, max(sides), recipe.epochs * images), _cost(model) * len(sides)
    if saved < cost:
        return off
    console.line(f'torchcompile auto: on; may save {duration(saved)}, takes about {duration(cost)} (once a machine)')
    return recipe.replace(torchcompile='inductor')


def _side(recipe: Recipe, model: Any) -> int:
    return recipe.img_size or model.pretrained_cfg['input_size'][-1]


def _saved(model: nn.Module, side: int, images: int) -> float:
    """Seconds that a compiled model may save."""
    elements = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal elements
        if isinstance(output, torch.Tensor):
            elements += output.numel()

    handles = [layer.register_forward_hook(count) for layer in model.modules() if not any(layer.children())]
    try:
        _, gmacs = model_cost(model, (3, side, side))  # runs a copy, with its hooks
    finally:
        for handle in handles:
            handle.remove()
    return SAVED * images * (1e9 * (gmacs or 0.0) * SECONDS_A_MAC + elements * SECONDS_AN_ELEMENT)


def _cost(model: nn.Module) -> float:
    """Seconds that compiling takes."""
    return SECONDS_A_LAYER * sum(not any(layer.children()) for layer in model.modules())


def _may_gain(device: torch.device) -> bool:
    if device.type != 'cuda':
        return False
    from torch.utils._triton import has_triton

    return has_triton()


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
    keep_inductor_private()
    torch.compiler.reset()  # else the models of a sweep use up what one process may compile
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
