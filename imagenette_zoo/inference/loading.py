"""A trained model with all that belongs to it: the names of its classes, what is done to an image first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..config.fields import option
from ..config.groups import ArchitectureOptions, InputOptions
from ..data import pipeline
from ..data.augment import Normalize
from ..data.constants import LABEL_NAMES
from ..data.folders import ImageSet
from ..data.loaders import Transform
from ..errors import UserError, nearest
from ..models import factory
from ..models.model_folder import load_folder, load_weights, model_folder, read_config, read_weights

__all__ = [
    'load_model',
    'open_model',
    'UseOptions',
    'TrainedModel',
    'load_trained',
    'listed_names',
]


def load_model(name: str, options: Any, images: ImageSet) -> Any:
    """The model that a name on the command line means, with its weights, for the classes of these images.

    Raises:
        UserError: There is no such model, or it tells other classes apart.
    """
    classes = len(images.classes)
    model = open_model(name, options, classes)
    if model.num_classes != classes:
        raise UserError(
            f'{name}: has {model.num_classes} classes, {images.root} has {classes}: --data-dir names other data?'
        )
    names = model.pretrained_cfg.get('label_names')
    if not model_folder(name) and not ((options.pretrained or ':' in name) and tuple(names or ()) == LABEL_NAMES):
        names = None  # of other weights, or as ImageNet's, by which no folder is named
    if isinstance(names, list | tuple) and len(names) == classes and list(names) != list(images.class_names):
        raise UserError(f'{name}: tells {names[0]}, … apart, {images.root} has {images.class_names[0]}, …: other data')
    return model


def open_model(name: str, options: Any, classes: int | None = None) -> Any:
    """The model that a name on the command line means, with its weights.

    Args:
        name: As `validate` takes it.
        options: `checkpoint`, `pretrained`, `use_ema` and the model's details.
        classes: Of a model by name with a checkpoint, where `num_classes` is not given.

    Raises:
        UserError: There is no such model, or no weights for it.
    """
    kwargs = {'global_pool': options.gp, **options.model_kwargs}
    folder = model_folder(name)
    if folder is not None:
        if options.checkpoint or options.pretrained:
            raise UserError(f'--model {name}: has its own weights: leave out --checkpoint and --pretrained')
        model = load_folder(folder, **kwargs)
        _check_classes(name, options.num_classes, model.num_classes)
        return model
    if options.checkpoint:
        state_dict = read_weights(Path(options.checkpoint), options.use_ema)
        model = factory.build_model(name, num_classes=options.num_classes or classes, **kwargs)
        load_weights(model, state_dict, options.checkpoint)
        if model.pretrained_cfg.get('file'):  # of the weights in the package, like how images are cropped for them
            model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'crop_mode': None}
        return model
    if name.startswith(('hf-hub:', 'hf_hub:')) or options.pretrained:
        model = factory.build_model(name, pretrained=True, num_classes=options.num_classes, **kwargs)
        _check_classes(name, options.num_classes, model.pretrained_cfg['num_classes'])
        return model
    hint = 'for its name give --checkpoint or --pretrained' if timm.is_model(name) else 'no such folder or model'
    raise UserError(f"--model {name}: no run's folder; {hint}{nearest(name, timm.list_models())}")


def _check_classes(name: str, asked: int | None, own: int) -> None:
    """Raises `UserError` where a model would get a new, random classifier."""
    if asked not in (None, own):
        raise UserError(f'--num-classes {asked}: {name} has {own}: leave it out')

MOST_ELONGATED = 100  # times as long as wide: resizing a longer image would make gigabytes of it


@dataclass(frozen=True)
class UseOptions(InputOptions, ArchitectureOptions):
    """Weights"""

    model: str = option(
        'mbv2_mish_imagenette',
        "a run's folder or its best/, local-dir:FOLDER, hf-hub:NAME, or the name of a model that has published weights",
        short=('-m',),
    )
    checkpoint: str | None = option(None, "weights for the model: a file, also one of timm's", metavar='PATH')
    use_ema: bool = option(False, 'take the moving average of the weights from a timm checkpoint')

    def check(self) -> None:
        super().check()
        if self.use_ema and not self.checkpoint:
            raise UserError('--use-ema has no effect without --checkpoint')

    @property
    def pretrained(self) -> bool:
        """Whether the model is a name without a checkpoint: the weights published under it are meant."""
        return not self.checkpoint and model_folder(self.model) is None and timm.is_model(self.model)


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode, and what belongs to it.

    Args:
        name: As it was asked for.
        model: From images `(N, 3, H, W)` to logits `(N, classes)`.
        config: Timm's data config: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.
        class_names: A name for each logit.
        transform: Timm's evaluation transform, to `(3, H, W)` uint8.
        normalize: From uint8 pixels to the model's input, on its device.
    """

    name: str
    model: nn.Module
    config: dict[str, Any]
    class_names: list[str]
    transform: Transform
    normalize: Normalize

    @cached_property
    def has_maps(self) -> bool:
        """Whether its last features are a map, which Grad-CAM needs."""
        if not hasattr(self.model, 'forward_features'):
            return False
        with torch.inference_mode():
            model: Any = self.model
            features = model.forward_features(self.normalize.mean.new_zeros(1, *self.config['input_size']))
            return isinstance(features, torch.Tensor) and features.ndim == 4

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """What the model is shown of an RGB image: `(3, H, W)`.

        Raises:
            ValueError: The image is too long for its width.
        """
        if max(image.size) > MOST_ELONGATED * min(image.size):
            raise ValueError(
                f'is {image.width} × {image.height} px: expected at most {MOST_ELONGATED} times as long as wide; '
                'crop or remove it'
            )
        return np.asarray(self.transform(image))  # a tensor in some versions of timm


def load_trained(options: UseOptions, device: torch.device, channels_last: bool = False) -> TrainedModel:
    """The model that the options name, ready for use.

    Args:
        options: Which model, and with which weights.
        device: Where it computes.
        channels_last: Also in channels-last layout, for many images on a CPU.

    Raises:
        UserError: There is no such model, it has no weights or no classifier, its class names are not those of its
            classifier, or it can't take images of this size.
    """
    name = options.model
    if options.pretrained and not timm.is_model_pretrained(name):
        raise UserError(f'--model {name}: no weights are published: give a run, a model folder or --checkpoint FILE')
    model = open_model(name, options)
    names = _class_names(model, options)
    try:
        config = factory.input_config(options, model, use_test_size=True)
        transform = pipeline.eval_transform(config)
        normalize = Normalize(config['mean'], config['std'], device, channels_last)
    except (TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:  # whatever a config may hold
        raise UserError(f"{name}: its config doesn't tell how images are prepared ({error})") from None
    model = factory.place(model, device, channels_last)
    factory.probe(model, name, (3, *config['input_size'][1:]))
    return TrainedModel(name, model, config, names, transform, normalize)


def _class_names(model: Any, options: UseOptions) -> list[str]:
    """The names in the model's config, or in that beside its checkpoint, else those of the ImageNet that its number of
    classes tells, else numbers."""
    count, name = model.num_classes, options.model
    if count < 1:
        raise UserError(f'{name}: has no classifier (num_classes 0): it makes features, and tells no classes apart')
    # the model's own are those of its published weights
    names = _names_beside(Path(options.checkpoint)) if options.checkpoint else model.pretrained_cfg.get('label_names')
    if named := listed_names(names, count, name):
        return named
    subset = infer_imagenet_subset(model)
    if subset is None:
        return [f'class {index}' for index in range(count)]
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(count)]


def listed_names(names: Any, count: int, name: str) -> list[str]:
    """What a config has as `label_names`, as a list; empty where it has none.

    Args:
        names: A list, or a mapping from the classes' indices.
        count: Number of classes.
        name: Whose config it is, for messages.

    Raises:
        UserError: They are no names, or not so many.
    """
    if isinstance(names, Mapping):  # timm's way where indices are missing
        listed = [names.get(str(index), names.get(index, f'class {index}')) for index in range(count)]
        names = listed if {*map(str, names)} <= {*map(str, range(count))} else list(names.values())
    if names:
        if not (isinstance(names, (list, tuple)) and all(isinstance(each, str) for each in names)):
            raise UserError(f'{name}: label_names in its config are {str(names)[:40]!r}, not a list of {count} names')
        if len(names) != count:
            raise UserError(
                f'{name}: its config names {len(names)} classes, its classifier has {count}: correct label_names in '
                f'config.json, or remove them'
            )
    return list(names or ())


def _names_beside(checkpoint: Path) -> Any:
    """The class names in the model folder of a checkpoint, where it lies in one."""
    try:
        return read_config(checkpoint.parent).get('label_names')
    except UserError:  # it lies in none
        return None
