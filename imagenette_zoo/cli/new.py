"""`imagenette-zoo new`: a file to start an idea from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..utils.files import write_atomic
from ..utils.modules import other_module
from .command import Command

__all__ = ['NEW']

SKELETON = '''\
"""An idea for imagenette-zoo: a layer, and a model that has it. Replace both by your own."""

import timm
import torch
from timm.models import register_model
from torch import nn


class MyActivation(nn.Module):
    """Snake, x + sin²(x) (Ziyin, Hartwig, Ueda 2020, arXiv 2006.08195)."""

    def __init__(self, inplace: bool = False) -> None:  # timm's models say whether it may overwrite x
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(x).square()


@register_model
def {name}_resnet(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's smallest ResNet with this activation. `kwargs` has num_classes and what else the options ask for."""
    return timm.create_model('resnet10t', act_layer=MyActivation, **kwargs)
'''
NEXT = """\
{file}: a layer (MyActivation) and a model ({name}_resnet). Three commands to try them:

does it train, in a minute, without any data:
  imagenette-zoo train --import {file} --model {name}_resnet -c demo --dataset synthette --epochs 2
is the model better than what it is made from:
  imagenette-zoo run resnet10t {name}_resnet --import {file} -c demo --epochs 5
is the layer better than others in a model of the zoo:
  imagenette-zoo run mbv2_mish_imagenette --vary act_layer=relu6,mish,{name}:MyActivation --import {file} \
-c demo --epochs 5"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', metavar='FILE.py', help='the file that is written')


def _new(args: argparse.Namespace) -> int:
    path = Path(args.file)
    if path.suffix != '.py' or not path.stem.isidentifier():
        raise UserError(f'{path}: expected a name of letters, digits and _ that ends in .py, as in my_idea.py')
    if other := other_module(path.stem, path.absolute()):
        raise UserError(f'{path}: Python has a module {path.stem!r} already ({other}): choose another name')
    if path.exists():
        raise UserError(f'{path}: exists already: choose another name')
    if not path.absolute().parent.is_dir():
        raise UserError(f'{path}: there is no folder {path.parent}: make it first')
    write_atomic(path, SKELETON.format(name=path.stem).encode())
    print(NEXT.format(file=path, name=path.stem))
    return 0


NEW = Command('new', 'write a small file to start your own idea from', _add_arguments, _new, ' FILE.py')
