"""The zoo's models; importing them registers them with timm."""

from imagenette_zoo.models import googlenet, mobilenetv2, resnets
from imagenette_zoo.models.catalog import ModelInfo, list_models, model_cost

__all__ = ['ModelInfo', 'googlenet', 'list_models', 'mobilenetv2', 'model_cost', 'resnets']
