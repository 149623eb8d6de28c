"""Heat maps of where in an image a convolutional network sees its class.

`Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization` (Selvaraju et al. 2017) -
https://arxiv.org/abs/1610.02391
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UserError

__all__ = ['grad_cam']


@torch.no_grad()
def grad_cam(
    model: Any,
    images: torch.Tensor,
    classes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and for each image the map of its class.

    The map is `relu(sum_k a_k A_k)` over the channels of the last feature map A, where the weight `a_k` is the mean
    over all positions of the gradient of the class's logit by `A_k` (equations 1 and 2 of the paper). Only the head is
    differentiated. Behind global average pooling and a linear layer of weights W the map is `relu(sum_k W_ck A_k)`,
    the class activation map of https://arxiv.org/abs/1512.04150, divided by the number of positions.

    Args:
        model: One of timm's, in eval mode, whose `forward_features` gives a feature map.
        images: `(N, C, H, W)`.
        classes: `(N,)` int64; None takes for each image the class of its largest logit.

    Returns:
        Logits `(N, classes)` and maps `(N, h, w)`, not negative, of the feature map's size.

    Raises:
        UserError: The model has no feature map.
    """
    features = model.forward_features(images) if hasattr(model, 'forward_features') else images.new_empty(0)
    if not isinstance(features, torch.Tensor) or features.ndim != 4:  # some give a list
        raise UserError(
            f'Grad-CAM needs a feature map, and {type(model).__name__} has none: take a convolutional network'
        )
    features = features.clone().requires_grad_()  # a head may overwrite what it is given
    with torch.enable_grad():
        logits = model.forward_head(features.clone())
        chosen = logits.argmax(1) if classes is None else classes
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), features)
    # Some, as Swin, have the channels last.
    channels, positions = (1, (2, 3)) if features.shape[1] == model.num_features else (3, (1, 2))
    weights = gradient.mean(positions, keepdim=True)
    return logits.detach(), (weights * features.detach()).sum(channels).relu()
