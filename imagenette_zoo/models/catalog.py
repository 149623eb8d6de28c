"""The models of the zoo and the cost of each."""

from __future__ import annotations

from dataclasses import dataclass

import timm
import torch

from ..config.zoo_models import MODELS
from ..data.constants import LABEL_NAMES
from .configs import INPUT_SIZE

__all__ = ['ModelInfo', 'count_models', 'list_models', 'model_names']


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


def model_names() -> list[str]:
    """All models of the zoo, in the order of the families and of their files."""
    from . import FAMILIES

    return [name for family in FAMILIES for name in family.__all__ if timm.is_model(name)]


def list_models() -> list[ModelInfo]:
    """All models of the zoo, with ten classes."""
    return [ModelInfo(name, *facts) for name, facts in MODELS.items()]


def count_models() -> list[ModelInfo]:
    """The same, computed from the models themselves: takes a few seconds, since each is built to be counted."""
    from .factory import model_cost  # here: slow to import, and `import imagenette_zoo` needs none of it

    infos = []
    for name in model_names():
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=len(LABEL_NAMES))
        parameters, gmacs = model_cost(model, INPUT_SIZE)
        description = timm.models.model_entrypoint(name).__doc__.partition('\n')[0].rstrip('.')
        infos.append(ModelInfo(name, parameters, gmacs, description))
    return infos
