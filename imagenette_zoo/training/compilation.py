"""Compiled models, and whether compiling one pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.factory import model_cost
from ..utils.console import Console, duration

if TYPE_CHECKING:
    from ..config.recipe import Recipe

__all__ = ['resolve']

# What a training step costs on a whole GPU and compiling it saves: assumptions, not measurements. On a CPU it saves
# nothing: our kernels and oneDNN's are ahead of the compiler's (docs/performance.md).
SECONDS_A_MAC = 2e-13
SECONDS_AN_ELEMENT = 2e-11  # of what the layers put out
SAVED = 0.2  # fraction of the time
SECONDS_A_LAYER = 0.3  # to compile it, forward and backward


def resolve(recipe: Recipe, model: nn.Module, images: int, device: torch.device, console: Console) -> Recipe:
    """Replaces `torchcompile: auto` in a recipe by its meaning for this run, and prints that.

    It follows from the recipe, the model, the data and the kind of machine, not from a measurement. So a run is
    repeated and resumed as it was.

    Args:
        recipe: The recipe.
        model: Its model.
        images: Training images an epoch.
        device: Where it is trained.
        console: Prints that compiling is on.
    """
    if recipe.torchcompile == 'none':
        return recipe.replace(torchcompile=None)
    if recipe.torchcompile != 'auto':
        return recipe
    off = recipe.replace(torchcompile=None, torchcompile_mode=None)
    if not _may_gain(device):
        return off
    sizes = recipe.train_img_sizes or (_image_size(recipe, model),)
    shape = (recipe.channels or 3, max(sizes), max(sizes))
    saved, cost = _saved(model, shape, recipe.epochs * images), _cost(model) * len(sizes)
    if saved < cost:
        return off
    console.line(f'torchcompile auto: on; may save {duration(saved)}, takes about {duration(cost)} (once a machine)')
    return recipe.replace(torchcompile='inductor')


def _image_size(recipe: Recipe, model: Any) -> int:
    return recipe.side or model.pretrained_cfg['input_size'][-1]


def _saved(model: nn.Module, input_size: tuple[int, int, int], images: int) -> float:
    """Seconds that a compiled model may save."""
    elements = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal elements
        if isinstance(output, torch.Tensor):
            elements += output.numel()

    handles = [layer.register_forward_hook(count) for layer in model.modules() if not any(layer.children())]
    try:
        _, gmacs = model_cost(model, input_size)  # runs a copy, with its hooks
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
