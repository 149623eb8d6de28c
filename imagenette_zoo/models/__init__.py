"""The zoo's models; importing them registers them with timm."""

from . import googlenet, mobilenetv2, resnets
from .catalog import ModelInfo, list_models

__all__ = ['FAMILIES', 'ModelInfo', 'googlenet', 'list_models', 'mobilenetv2', 'resnets']

FAMILIES = (mobilenetv2, resnets, googlenet)  # in the order of `list_models`
