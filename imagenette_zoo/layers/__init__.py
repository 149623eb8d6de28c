"""Layers that know no model; each can be handed to any timm model that takes such a layer."""

from timm.layers import BlurPool2d

from .blurpool import MaxBlurPool2d
from .fuse import fuse
from .mish import Mish
from .multipass import MultiPass, WideInvertedResidual

__all__ = ['BlurPool2d', 'MaxBlurPool2d', 'Mish', 'MultiPass', 'WideInvertedResidual', 'fuse']
