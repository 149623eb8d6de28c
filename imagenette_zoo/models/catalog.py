"""What the zoo has and what each model costs, computed from the models themselves."""

from copy import deepcopy
from dataclasses import dataclass

import timm
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

from imagenette_zoo.models import googlenet, mobilenetv2, resnets
from imagenette_zoo.models.variants import INPUT_SIZE, LABEL_NAMES

__all__ = ['ModelInfo', 'list_models', 'model_cost']


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
    infos = []
    for variant in (*mobilenetv2.VARIANTS, *resnets.VARIANTS, *googlenet.VARIANTS):
        with torch.device('meta'):
            model = timm.create_model(variant.name, num_classes=len(LABEL_NAMES))
        parameters, gmacs = model_cost(model, INPUT_SIZE)
        infos.append(ModelInfo(variant.name, parameters, gmacs, variant.description))
    return infos


def model_cost(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, float | None]:
    """Counts a model's parameters and its convolutions' and matrix products' multiply-accumulates.

    Args:
        model: Any model of images; it is left as it is.
        input_size: `(C, H, W)` of one image.

    Returns:
        Number of parameters, and 10^9 multiply-accumulates for one image: None where torch can't count them.
    """
    probe = deepcopy(model).to('meta').eval()  # shapes suffice to count: nothing is computed
    parameters = sum(weight.numel() for weight in model.parameters())
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            probe(torch.empty(1, *input_size, device='meta'))
    except (AssertionError, RuntimeError, NotImplementedError):  # it fails on some models, as on cait_xxs24_224
        return parameters, None
    return parameters, counter.get_total_flops() / 2e9
