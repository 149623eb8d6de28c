"""The zoo's models; importing them registers them with timm."""

from . import googlenet, mobilenetv2, resnets
from .catalog import ModelInfo, list_models

__all__ = ['ModelInfo', 'googlenet', 'list_models', 'mobilenetv2', 'resnets']
