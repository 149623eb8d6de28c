"""What the zoo has and what each model costs, computed from the models themselves."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch

from . import googlenet, mobilenetv2, resnets
from .variants import INPUT_SIZE, LABEL_NAMES

__all__ = [
    'ModelInfo',
    'list_models',
]


@dataclass(frozen=True)
class ModelInfo:
    """A model of the zoo.

    Args:
        name: For `timm.create_model`.
        parameters: Their number, for ten classes.
        gmacs: Multiply-accumulates for one image of 224 px, 10^9.
        description: One line.
    """

    name: str
    parameters: int
    gmacs: float | None
    description: str


def list_models() -> list[ModelInfo]:
    """All models of the zoo, with ten classes; takes a few seconds, since each is built to be counted."""
    from .factory import model_cost  # here: slow to import, and `import imagenette_zoo` needs none of it

    infos = []
    for variant in (*mobilenetv2.VARIANTS, *resnets.VARIANTS, *googlenet.VARIANTS):
        with torch.device('meta'):
            model = timm.create_model(variant.name, num_classes=len(LABEL_NAMES))
        parameters, gmacs = model_cost(model, INPUT_SIZE)
        infos.append(ModelInfo(variant.name, parameters, gmacs, variant.description))
    return infos
