"""Layers that know no model; each can be handed to any timm model that takes such a layer."""

from timm.layers import BlurPool2d

from imagenette_zoo.layers.blurpool import MaxBlurPool2d
from imagenette_zoo.layers.fuse import fuse
from imagenette_zoo.layers.mish import Mish
from imagenette_zoo.layers.multipass import MultiPass, WideInvertedResidual

__all__ = ['BlurPool2d', 'MaxBlurPool2d', 'Mish', 'MultiPass', 'WideInvertedResidual', 'fuse']
