"""Heat maps of where in an image a network sees its class.

`Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization` (Selvaraju et al. 2017) -
https://arxiv.org/abs/1610.02391
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UserError, nearest
from ..models.factory import has_parts

__all__ = ['check_layer', 'grad_cam']


def check_layer(model: torch.nn.Module, layer: str | None) -> None:
    """Raises `UserError` where a model has no layer of this name; None is no name."""
    names = [name for name, _ in model.named_modules() if name]
    if layer is not None and layer not in names:
        meant = nearest(layer, names) or f'; the first are {", ".join(name for name, _ in model.named_children())}'
        raise UserError(f'--cam-layer {layer}: {type(model).__name__} has no layer of this name{meant}')


@torch.no_grad()
def grad_cam(
    model: Any,
    images: torch.Tensor,
    classes: torch.Tensor | None = None,
    layer: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and for each image the map of its class.

    The map is `relu(sum_k a_k A_k)` over the channels of a feature map A, where the weight `a_k` is the mean over all
    positions of the gradient of the class's logit by `A_k` (equations 1 and 2 of the paper). Only what follows it is
    differentiated. Behind global average pooling and a linear layer of weights W the map is `relu(sum_k W_ck A_k)`,
    the class activation map of https://arxiv.org/abs/1512.04150, divided by the number of positions.

    Args:
        model: One of timm's, in eval mode.
        images: `(N, C, H, W)`.
        classes: `(N,)` int64; None takes for each image the class of its largest logit.
        layer: Whose output A is: a map, or a ViT's tokens, of which those of patches are a map. None: the last map,
            which `forward_features` gives.

    Returns:
        Logits `(N, classes)` and maps `(N, h, w)`, not negative, of the feature map's size.

    Raises:
        UserError: There is no such layer, or no map.
    """
    check_layer(model, layer)
    features, logits = _last_map(model, images) if layer is None else _output_of(layer, model, images)
    with torch.enable_grad():
        chosen = logits.argmax(1) if classes is None else classes
        (gradient,) = torch.autograd.grad(
            logits.gather(1, chosen[:, None]).sum(), features, allow_unused=True, materialize_grads=True
        )
    features, gradient = (_channels_last(each, model, images, layer) for each in (features.detach(), gradient))
    if layer is not None and not gradient.any():
        raise UserError(
            f'--cam-layer {layer}: nothing that follows sees its map, as behind the last layer of a ViT whose class '
            f'token decides: take an earlier one{_hint(model)}'
        )
    weights = gradient.mean((1, 2), keepdim=True)
    return logits.detach(), (weights * features).sum(3).relu()


def _last_map(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last feature map, and the logits that follow from it, differentiably."""
    features = model.forward_features(images) if has_parts(model) else images.new_empty(0)
    if not isinstance(features, torch.Tensor) or features.ndim != 4:  # some give a list
        raise UserError(
            f'Grad-CAM needs a feature map, and {type(model).__name__} has none at its end: name a layer by '
            f'--cam-layer{_hint(model)}, or take a convolutional network'
        )
    features = features.clone().requires_grad_()  # a head may overwrite what it is given
    with torch.enable_grad():
        return features, model.forward_head(features.clone())


def _output_of(layer: str, model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a layer, and the logits that follow from it, differentiably."""
    outputs: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise UserError(f'--cam-layer {layer}: gives no tensor: take another layer')
        outputs.append(output.clone().requires_grad_())
        torch.set_grad_enabled(True)  # from here on; `no_grad` around it ends that
        return outputs[-1].clone()

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        logits = model(images)
    finally:
        hook.remove()
        torch.set_grad_enabled(False)
    if len(outputs) != 1:
        raise UserError(f'--cam-layer {layer}: runs {len(outputs)} times for an image: take a layer that runs once')
    return outputs[0], logits


def _channels_last(values: torch.Tensor, model: Any, images: torch.Tensor, layer: str | None) -> torch.Tensor:
    """A feature map as `(N, h, w, C)`, whatever its layout is."""
    if layer is None:  # some, as Swin, have the channels last
        return values.movedim(1, 3) if values.shape[1] == model.num_features else values
    height, width = images.shape[2:]
    if values.ndim == 4 and len(values) == len(images):
        first = values.shape[2] * width == values.shape[3] * height
        last = values.shape[1] * width == values.shape[2] * height
        is_last = last and (not first or str(getattr(model, 'output_fmt', '')).endswith('NHWC'))
        return values if is_last else values.movedim(1, 3)
    patches: Any = getattr(model, 'patch_embed', None)
    if values.ndim == 3 and len(values) == len(images) and hasattr(patches, 'dynamic_feat_size'):
        rows, columns = patches.dynamic_feat_size((height, width))
        others = values.shape[1] - rows * columns  # class token and registers come first
        if others in (0, getattr(model, 'num_prefix_tokens', 0)):
            return values[:, others:].unflatten(1, (rows, columns))
    raise UserError(
        f'--cam-layer {layer}: its output {tuple(values.shape)} is no map: take another layer{_hint(model)}'
    )


def _hint(model: Any) -> str:
    """A layer of a ViT that has a map, for the end of a message."""
    blocks: Any = getattr(model, 'blocks', ())
    is_vit = len(blocks) and hasattr(blocks[-1], 'norm1') and hasattr(model, 'num_prefix_tokens')
    return f', as blocks.{len(blocks) - 1}.norm1' if is_vit else ''
