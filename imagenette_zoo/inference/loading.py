"""A trained model with all that belongs to it: the one door through which every command opens a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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

from ..config.groups import DataOptions
from ..config.recipe import Recipe
from ..data import pipeline
from ..data.augment import Normalize
from ..data.constants import LABEL_NAMES
from ..data.folders import ImageSet, load_split
from ..data.loaders import Batches, Transform
from ..data.locate import find_root, resolve_dataset, validation_images
from ..data.readers import is_read
from ..errors import UserError, nearest
from ..layers import fuse
from ..models import factory
from ..models.model_folder import (
    has_average,
    listed_names,
    load_folder,
    load_weights,
    model_folder,
    read_config,
    read_weights,
)
from ..models.own import own_function
from ..utils.console import Console
from ..utils.distributed import World
from ..utils.modules import import_modules
from .onnx_model import OnnxModel, is_onnx

__all__ = [
    'TrainedModel', 'check_classes', 'load_trained', 'names_beside', 'not_finite', 'open_model', 'run_of', 'run_images',
    'images_of', 'training_images_of',
]  # fmt: skip


@dataclass(frozen=True)
class TrainedModel:
    """A model in eval mode, and what belongs to it.

    Args:
        name: As it was asked for.
        model: From images `(N, C, H, W)` to logits `(N, classes)`.
        config: The data config as timm has it: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.
        class_names: A name for each logit; none where it has no classifier.
        transform: The evaluation transform of timm, to `(C, H, W)` uint8.
        normalize: From uint8 pixels to the model's input, on its device.
        named: Whether the names are those of its training, not made of their number.
    """

    name: str
    model: nn.Module
    config: dict[str, Any]
    class_names: list[str]
    transform: Transform
    normalize: Normalize
    named: bool = True

    def batches(
        self, images: ImageSet, options: DataOptions, batch_size: int, world: World, console: Console
    ) -> Batches:
        """This process's part of these images, prepared for the model as far as `normalize`."""
        return pipeline.eval_batches(options, images, self.config, batch_size, world, console)

    @property
    def channels(self) -> int:
        """Of its images."""
        return int(self.config['input_size'][0])

    @cached_property
    def has_maps(self) -> bool:
        """Whether its last features are a map, which Grad-CAM needs."""
        if not factory.has_parts(self.model):
            return False
        with torch.inference_mode():
            model: Any = self.model
            features = model.forward_features(self.normalize.mean.new_zeros(1, *self.config['input_size']))
            return isinstance(features, torch.Tensor) and features.ndim == 4

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The pixels of an image of `channels` as the model is given them: `(C, H, W)`.

        Raises:
            Unfit: The image is too long for its width.
        """
        return np.asarray(self.transform(image))  # a tensor in some versions of timm


def load_trained(
    name: str,
    options: Any,
    device: torch.device,
    channels_last: bool = False,
    images: ImageSet | None = None,
    reparam: bool = False,
    log: Callable[[str], object] | None = None,
    size_remedy: str | None = None,
    headless: bool = False,
) -> TrainedModel:
    """The model that a name on the command line means, with its weights, ready for use.

    Args:
        name: A run's folder; its `best/`, `last/` or `checkpoints/epoch-N/`; a model folder, also as
            `local-dir:FOLDER`; where `options.takes_onnx`, an ONNX file that `export` wrote; `hf-hub:NAME`; the name
            of a model with packaged weights, or of any with `options.checkpoint` or `options.pretrained`.
        options: As `UseOptions`: `checkpoint`, `pretrained`, `use_ema`, the model's details and its input.
        device: Where it computes.
        channels_last: Also in channels-last layout, for many images on a CPU.
        images: Those that it is to be shown; its classes must be theirs, and their names are those of its logits.
        reparam: Fuse blocks and norms for inference.
        log: Is given a line on the layers that were replaced by faster ones.
        size_remedy: What to do about images of a size that it can't take, as `probe` says it.
        headless: Whether it may have no classifier.

    Raises:
        UserError: There is no such model, it has no weights, it tells other classes apart than those of the images, or
            none, its class names are not those of its classifier, or it can't take images of this size.
    """
    import_modules(options.device_modules)
    model = open_model(name, options, len(images.classes) if images else None)
    named = True
    if images is not None:
        check_classes(name, model, options.checkpoint, images)
        names = list(images.class_names)
    elif headless and model.num_classes < 1:
        names = []
    else:
        own = _own_names(name, model, options.checkpoint)
        names, named = own or _made_up_names(model), bool(own) and getattr(model, 'named', True)
    try:
        config = factory.input_config(options, model, use_test_size=True, crop_mode=options.crop_mode)
        transform = pipeline.eval_transform(config)
        normalize = Normalize(config['mean'], config['std'], device, channels_last)
    except UserError as error:
        raise UserError(f'{name}: {error}') from None
    except (TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:  # whatever a config may hold
        raise UserError(f"{name}: its config doesn't say how images are prepared ({error})") from None
    if reparam and not isinstance(model, OnnxModel):
        model = fuse(model)
    factory.probe(model, name, config['input_size'], size_remedy)
    model = factory.to_device(model, device, channels_last, log)
    return TrainedModel(name, model, config, names, transform, normalize, named)


def open_model(name: str, options: Any, classes: int | None = None) -> Any:
    """The model alone, as it is built.

    Args:
        name: As `load_trained` takes it.
        options: Likewise.
        classes: Of a model by name with a checkpoint, where `num_classes` is not given.

    Raises:
        UserError: There is no such model, or no weights for it.
    """
    kwargs = {'global_pool': options.gp, 'in_chans': options.channels, **options.model_kwargs}
    if is_onnx(name):
        if not getattr(options, 'takes_onnx', False):
            raise UserError(f'--model {name}: only validate and predict take an ONNX file: give what it is made of')
        if options.checkpoint or options.pretrained:
            raise UserError(f'--model {name}: has its own weights: leave out --checkpoint and --pretrained')
        model = OnnxModel(name)
        _check_number(name, options.num_classes, model.num_classes)
        kwargs['in_chans'] = options.channels not in (None, model.pretrained_cfg['input_size'][0])
        if changed := [key for key, value in kwargs.items() if value]:
            raise UserError(f'--model {name}: is as it was exported, with its own {", ".join(changed)}: leave them out')
        return model
    folder = model_folder(name)
    if folder is not None:
        if options.checkpoint or options.pretrained:
            raise UserError(f'--model {name}: has its own weights: leave out --checkpoint and --pretrained')
        model = load_folder(folder, **kwargs)
        _check_number(name, options.num_classes, model.num_classes)
        return model
    if options.checkpoint:
        if options.use_ema and not has_average(Path(options.checkpoint)):
            raise UserError(f'{options.checkpoint}: holds no moving average of the weights: leave --use-ema out')
        state_dict = read_weights(Path(options.checkpoint), options.use_ema)
        model = factory.build_model(name, num_classes=options.num_classes or classes, **kwargs)
        load_weights(model, state_dict, options.checkpoint)
        if model.pretrained_cfg.get('file'):  # of the weights in the package, like how images are cropped for them
            model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'crop_mode': None}
        return model
    published = timm.is_model(name) if options.pretrained is None else options.pretrained
    if published and timm.is_model(name) and not timm.is_model_pretrained(name):
        raise UserError(f'--model {name}: no weights are published: give a run, a model folder or --checkpoint FILE')
    if own_function(name) is not None:
        raise UserError(f'--model {name}: has no weights: give a run, a model folder or --checkpoint FILE')
    if published or _is_packaged(name) or name.startswith(('hf-hub:', 'hf_hub:')):
        model = factory.build_model(name, pretrained=True, num_classes=options.num_classes, **kwargs)
        _check_number(name, options.num_classes, model.pretrained_cfg['num_classes'])
        return model
    if timm.is_model(name):
        raise UserError(f'--model {name}: is no run folder; a model by its name needs --checkpoint or --pretrained')
    raise UserError(
        f'--model {name}: no run, folder or model has this name{nearest(name, timm.list_models())} '
        f'(imagenette-zoo runs lists runs, imagenette-zoo list models)'
    )


def not_finite(name: str) -> UserError:
    """The error of a model whose logits are NaN or infinite though its weights are not."""
    return UserError(
        f'{name}: gives NaN or infinite numbers, since its weights are damaged or its training diverged: take another '
        'checkpoint'
    )


def _is_packaged(name: str) -> bool:
    """Whether weights of this name come with the package, so that no option has to ask for them."""
    return timm.is_model_pretrained(name) and bool(timm.get_pretrained_cfg(name).file)


def _check_number(name: str, asked: int | None, own: int) -> None:
    """Raises `UserError` where a model would get a new, random classifier."""
    if asked not in (None, own):
        raise UserError(f'--num-classes {asked}: {name} has {own} classes: leave the option out')


def check_classes(
    name: str,
    model: Any,
    checkpoint: str | None,
    images: ImageSet,
    remedy: str = 'give the --data-dir of its own data',
) -> None:
    """Raises `UserError` where the model's classes are not those of these images."""
    classes = len(images.classes)
    if model.num_classes != classes:
        raise UserError(f'{name}: has {model.num_classes} classes, {images.root} has {classes}: {remedy}')
    names = names_beside(Path(checkpoint)) if checkpoint else model.pretrained_cfg.get('label_names')
    if not isinstance(names, list | tuple) or len(names) != classes or list(names) == list(images.class_names):
        return
    # others are as ImageNet's, by which no folder is named
    own = checkpoint or model_folder(name) or is_onnx(name) or tuple(names) == LABEL_NAMES
    if own and getattr(model, 'named', True):
        raise UserError(
            f'{name}: its classes ({names[0]}, …) are not those of {images.root} ({images.class_names[0]}, …): {remedy}'
        )


def _own_names(name: str, model: Any, checkpoint: str | None) -> list[str]:
    """The names in the model's config, or in that beside its checkpoint, if they are there."""
    count = model.num_classes
    if count < 1:
        raise UserError(f'{name}: has no classifier (num_classes 0), only features: give a model with a classifier')
    # the model's own are those of its published weights
    names = names_beside(Path(checkpoint)) if checkpoint else model.pretrained_cfg.get('label_names')
    return listed_names(names, count, name)


def _made_up_names(model: Any) -> list[str]:
    """Those of the ImageNet that the number of classes tells, else numbers."""
    count = model.num_classes
    subset = infer_imagenet_subset(model)
    if subset is None:
        return [f'class {index}' for index in range(count)]
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(count)]


def names_beside(checkpoint: Path) -> Any:
    """The class names in the model folder of a checkpoint, where it lies in one."""
    try:
        return read_config(checkpoint.parent).get('label_names')
    except UserError:  # it lies in none
        return None


# --- A model's run and its images -------------------------------------------------------------------------------------


def run_of(name: str | Path) -> Path | None:
    """The folder of the run that a model belongs to: itself, or that of its `best/`, `last/` or
    `checkpoints/epoch-N/`; None where it is of no run, so that a stranger's model folder can name no path."""
    path = Path(os.path.abspath(str(name).removeprefix('local-dir:')))  # without '..'
    candidates = [] if os.path.isfile(path / 'config.json') else [path]
    if path.name in ('best', 'last'):
        candidates.append(path.parent)
    if path.parent.name == 'checkpoints':
        candidates.append(path.parents[1])
    return next((folder for folder in candidates if os.path.isfile(folder / 'args.yaml')), None)


def run_images(name: str, recipe: Recipe, *splits: str) -> Path:
    """The folder with the images of a run.

    Args:
        name: What the run is called in a message.
        recipe: Its recipe.
        *splits: What it must hold.

    Raises:
        UserError: They are not there any more.
    """
    try:
        return resolve_dataset(recipe.dataset, recipe.data_dir, *splits, options=recipe)
    except UserError as error:
        if recipe.data_dir is None:
            raise
        raise UserError(f'{name}: the images of this run are gone: {error}; or give --data-dir') from None


def images_of(models: Sequence[str], options: DataOptions) -> ImageSet:
    """The validation images that the options name, else those by which the runs among the models were validated.

    Where those have gone, `$IMAGENETTE_DIR` and the cache are looked at, as for a model without a run.

    Args:
        models: As `load_trained` takes them.
        options: With a `data_dir` or a `dataset` nothing is taken from a run; else a split that is no default wins.

    Raises:
        UserError: The images are not there, or the runs have others each.
    """
    return validation_images(*_splits_of(models, options), options.max_megapixels, options)


def training_images_of(models: Sequence[str], options: DataOptions, images: ImageSet) -> ImageSet:
    """The training images beside the validation images of `images_of`: of several runs those of the first.

    Raises:
        UserError: They are not there.
    """
    dataset, data_dir, _, split = _splits_of(models, options)
    if is_read(dataset, data_dir, split):  # which writes each split when it is asked for
        resolve_dataset(dataset, data_dir, split, options=options)
    return load_split(images.root, split, images.classes, options.max_megapixels)


def _splits_of(models: Sequence[str], options: DataOptions) -> tuple[str, str | None, str, str]:
    """Data set, folder, validation and training split, as `validation_images` takes them."""
    val_split, train_split = options.val_split, options.train_split
    sources: dict[tuple[str, str, str], tuple[str, str]] = {}
    for name in () if options.data_dir or options.dataset else models:
        run = run_of(name) if model_folder(name) else None
        if run is None:
            continue
        recipe = Recipe.load(run / 'args.yaml')
        val = recipe.val_split if val_split == DataOptions.val_split else val_split
        train = recipe.train_split if train_split == DataOptions.train_split else train_split
        try:
            root = os.path.abspath(run_images(name, recipe, val))
        except UserError as gone:
            try:  # a run from another machine: as for a model without one
                root = os.path.abspath(find_root(None, val, dataset=recipe.dataset))
            except UserError:
                raise gone from None
        sources.setdefault((root, val, train.partition('[')[0]), (name, train))  # a slice has all classes
    if len(sources) > 1:
        (one, _), (other, _), *_ = sources.values()
        raise UserError(f'{one} and {other} were trained on different images: choose by --data-dir')
    for (own_root, val, _), (_, train) in sources.items():
        return '', own_root, val, train
    return options.dataset, options.data_dir, val_split, train_split
