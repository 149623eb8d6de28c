"""The zoo's models; importing them registers them with timm."""

from . import googlenet, mobilenetv2, resnets
from .catalog import ModelInfo, list_models
from .factory import model_cost

__all__ = ['ModelInfo', 'googlenet', 'list_models', 'mobilenetv2', 'model_cost', 'resnets']
