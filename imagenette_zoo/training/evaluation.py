"""Validation: a model's logits on every image, and a report on one model or several."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..data import validation_images
from ..data.augment import Normalize, shift_batch
from ..data.imagenette import ImageSet
from ..data.loaders import Batches
from ..data.seeding import stream_seed
from ..errors import UserError
from ..layers import fuse
from ..layers.mish import much_inference
from ..models.catalog import model_cost
from ..models.variants import LABEL_NAMES
from . import build
from .checkpoint import load_weights, model_folder, read_weights, write_atomic
from .compilation import compiled
from .console import Console, table
from .distributed import World, choose_device
from .faults import is_out_of_memory
from .memory import keep_freed_memory
from .metrics import Scores
from .options import nearest
from .recipe import ComputeOptions, ValidationOptions

__all__ = [
    'Validation',
    'evaluate',
    'load_folder',
    'load_model',
    'open_model',
    'read_config',
    'shift_consistency',
    'validate',
]

LARGEST_CONFIG = 16 * 2**20  # bytes
# Arguments that would make timm open a file or an address that a stranger's config names.
FORBIDDEN = {'checkpoint_path', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'}


@much_inference()
@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    normalize: Normalize,
    images: ImageSet,
    options: ComputeOptions,
    world: World,
    console: Console,
    fast: nn.Module | None = None,
    fast_size: int = 0,
) -> Scores:
    """Logits of every validation image, gathered from all processes.

    Args:
        model: The model; it is put into eval mode.
        batches: This process's share of the images.
        normalize: Pixels to the model's input, on the model's device.
        images: The validation images.
        options: Precision.
        world: This process's place.
        console: Where the progress is shown.
        fast: The same model compiled for batches of ``fast_size`` images.
        fast_size: Their size.
    """
    model.train().eval()  # before timm 1.0.29 LeViT's forget the biases of other weights only when they are trained
    start = time.perf_counter()
    logits, targets = [], []
    inputs = torch.empty(0)
    with console.progress('validation', len(batches)) as progress, build.autocast(options, world.device):
        for pixels, target in batches:
            inputs = _filled(normalize(pixels), inputs)
            runner = fast if fast is not None and len(inputs) == fast_size else model
            # a copy: a compiled model may write into its last output again
            logits.append(runner(inputs)[: len(pixels)].float().clone())
            targets.append(target)
            progress.advance(len(pixels))
    return Scores(
        world.gather_rows(torch.cat(logits).cpu(), len(images)),
        world.gather_rows(torch.cat(targets), len(images)),
        images.class_names,
        time.perf_counter() - start,
    )


def _filled(inputs: torch.Tensor, former: torch.Tensor) -> torch.Tensor:
    """A last, smaller batch on a GPU is put over the former one: planning for another size takes longer than images."""
    if not inputs.is_cuda or len(inputs) >= len(former):
        return inputs
    former[: len(inputs)] = inputs
    return former


@dataclass
class Validation:
    """What the validation of one model came to.

    Accuracies and errors are in %; ``confusion`` has a row for each true class; ``shift_consistency`` is None where
    it was not asked for.
    """

    model: str
    top1: float
    top5: float
    loss: float
    calibration_error: float
    shift_consistency: float | None
    params: int
    gmacs: float | None
    img_size: int
    crop_pct: float
    interpolation: str
    images: int
    images_per_second: float
    per_class: dict[str, float]
    confusion: list[list[int]]
    dataset: str
    versions: dict[str, str] = field(repr=False)
    hardware: dict[str, Any] = field(repr=False)


def validate(
    model: str | Path | Sequence[str] | ValidationOptions,
    data_dir: str | Path | None = None,
    *,
    quiet: bool = False,
    **options: Any,
) -> list[Validation]:
    """Validates one model or several on the same images.

    Args:
        model: A run's folder or its ``best/``, ``local-dir:FOLDER``, ``hf-hub:NAME``, a model's name (with
            ``checkpoint`` or ``pretrained``), several of these, or a whole :class:`ValidationOptions`.
        data_dir: As ``--data-dir``.
        quiet: Prints nothing.
        **options: The other fields of :class:`ValidationOptions`.

    Returns:
        One :class:`Validation` a model, in the order given.

    Raises:
        UserError: Bad input, in one line.
    """
    if not isinstance(model, ValidationOptions):
        names = (str(model),) if isinstance(model, (str, Path)) else tuple(model)
        model = ValidationOptions(model=names, data_dir=str(data_dir) if data_dir else None, **options)
    if not model.model:
        raise UserError('--model: say what to validate, as in --model runs/NAME')
    if model.results_file and not os.path.isdir(Path(model.results_file).absolute().parent):
        raise UserError(f'--results-file {model.results_file}: no such folder')
    console = Console(quiet)
    world = World(choose_device(model.device))
    keep_freed_memory()
    images = validation_images(model.dataset, model.data_dir, model.val_split, model.train_split)
    found = []
    for name in model.model:
        try:
            found.append(_validate_one(name, model, images, world, console))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f'{name}: out of memory: try a smaller --batch-size, as in -b 16') from error
        if model.results_file:  # after each, so that nothing computed is lost
            _write_results(Path(model.results_file), found)
    console.line()
    console.line(_summary(found))
    if model.results_file:
        console.line(f'\nresults: {model.results_file}')
    return found


def _validate_one(
    name: str,
    options: ValidationOptions,
    images: ImageSet,
    world: World,
    console: Console,
) -> Validation:
    model = load_model(name, options, images)
    config = build.input_config(options, model, use_test_size=True)
    if options.reparam:
        model = fuse(model)
    params, gmacs = model_cost(model, config['input_size'])
    build.probe(model, name, config['input_size'])
    channels_last = options.is_channels_last(world.device)
    model = build.place(model, world.device, channels_last)
    normalize = Normalize(config['mean'], config['std'], world.device, channels_last)
    # 256 images of 224 px took up to 5.6 GiB on two cores, 64 take 1.6 and are as fast
    batch_size = options.batch_size or (64 if world.device.type == 'cpu' else 256)
    batches = build.eval_batches(options, images, config, batch_size, world, console)
    fast = compiled(model, options)
    scores = evaluate(model, batches, normalize, images, options, world, console, fast, batch_size)
    consistency = (
        shift_consistency(model, batches, normalize, scores, options, console) if options.shift_consistency else None
    )
    result = Validation(
        model=name,
        top1=scores.top1,
        top5=scores.top5,
        loss=scores.loss,
        calibration_error=scores.calibration_error(),
        shift_consistency=consistency,
        params=params,
        gmacs=gmacs,
        img_size=config['input_size'][-1],
        crop_pct=config['crop_pct'],
        interpolation=config['interpolation'],
        images=len(images),
        images_per_second=len(images) / scores.seconds,
        per_class=scores.per_class,
        confusion=scores.confusion.tolist(),
        dataset=f'{images.root.name}/{images.split}',
        versions=build.versions(),
        hardware=build.hardware(world.device),
    )
    console.line(_report(result, list(images.class_names)))
    return result


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
        name: As :func:`validate` takes it.
        options: ``checkpoint``, ``pretrained``, ``use_ema`` and the model's details.
        classes: Of a model by name with a checkpoint, where ``num_classes`` is not given.

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
        model = build.build_model(name, num_classes=options.num_classes or classes, **kwargs)
        load_weights(model, state_dict, options.checkpoint)
        if model.pretrained_cfg.get('file'):  # of the weights in the package, like how images are cropped for them
            model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, 'crop_mode': None}
        return model
    if name.startswith(('hf-hub:', 'hf_hub:')) or options.pretrained:
        model = build.build_model(name, pretrained=True, num_classes=options.num_classes, **kwargs)
        _check_classes(name, options.num_classes, model.pretrained_cfg['num_classes'])
        return model
    hint = 'for its name give --checkpoint or --pretrained' if timm.is_model(name) else 'no such folder or model'
    raise UserError(f"--model {name}: no run's folder; {hint}{nearest(name, timm.list_models())}")


def _check_classes(name: str, asked: int | None, own: int) -> None:
    """Raises :class:`UserError` where a model would get a new, random classifier."""
    if asked not in (None, own):
        raise UserError(f'--num-classes {asked}: {name} has {own}: leave it out')


def load_folder(folder: Path, **kwargs: Any) -> Any:
    """The model in a model folder, with its weights, its config and its ``label_names``.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors``.
        **kwargs: Arguments of the model instead of those in its config; what is None is left to it.

    Raises:
        UserError: The config is none, names more or fewer classes than the head has, or the weights are not
            this model's.
    """
    config = read_config(folder)
    classes, names = config['num_classes'], config.get('label_names')
    if isinstance(names, list) and len(names) != classes:
        raise UserError(
            f'{folder / "config.json"}: names {len(names)} classes, the head has {classes}: mend label_names there'
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    model_args = {**config.get('model_args', {}), **given, 'num_classes': classes}
    model = build.build_model(config['architecture'], **model_args)
    load_weights(model, read_weights(folder / 'model.safetensors'), folder)
    published = ('label_names', 'license', 'origin_url', 'crop_mode', 'test_input_size', 'test_crop_pct')
    own = {**dict.fromkeys((*published, 'test_pool_size')), **config['pretrained_cfg']}  # not those of other weights
    if names is not None:
        own['label_names'] = names
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **own}
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        UserError: It is none, or it would make timm open a file or an address.
    """
    path = folder / 'config.json'
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise UserError(f'{path}: larger than {LARGEST_CONFIG >> 20} MiB, which no config is')
        config = json.loads(path.read_text(encoding='utf-8'))
        ok = (
            isinstance(config['architecture'], str)
            and isinstance(config['num_classes'], int)
            and isinstance(config['pretrained_cfg'], dict)
            and isinstance(config.get('model_args', {}), dict)
        )
        ok = ok and timm.is_model(config['architecture']) and not FORBIDDEN & set(config.get('model_args', {}))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ok = False
    if not ok:
        raise UserError(
            f"{path}: not a model's config (a known architecture, num_classes and pretrained_cfg are needed, "
            f'model_args may name no files)'
        )
    return config


def shift_consistency(
    model: nn.Module,
    batches: Batches,
    normalize: Normalize,
    scores: Scores,
    options: ValidationOptions,
    console: Console,
) -> float:
    """Share of images, in %, whose prediction stays under a random whole-pixel shift of up to 1/8 of the side in
    each direction (after Zhang 2019, https://arxiv.org/abs/1904.11486, section 4.2); what comes in at the border
    is the mirrored image."""
    generator = torch.Generator().manual_seed(stream_seed(options.seed, 'shift') % 2**63)
    same = start = 0
    shifted = torch.empty(0)
    with (
        console.progress('shifted', len(batches)) as progress,
        torch.inference_mode(),
        build.autocast(options, normalize.mean.device),
    ):
        for pixels, _ in batches:
            limit = pixels.shape[-1] // 8
            offsets = torch.randint(-limit, limit + 1, (len(pixels), 2), generator=generator)
            shifted = _filled(shift_batch(normalize(pixels), offsets, limit), shifted)
            predictions = model(shifted)[: len(pixels)].float().argmax(1).cpu()
            same += int((predictions == scores.predictions[start : start + len(pixels)]).sum())
            start += len(pixels)
            progress.advance(len(pixels))
    return 100 * same / start


def _write_results(path: Path, results: Sequence[Validation]) -> None:
    rows = [asdict(result) for result in results]
    if path.suffix == '.json':
        text = json.dumps(rows if len(rows) > 1 else rows[0], indent=2) + '\n'
    else:
        flat = [
            {
                **{key: value for key, value in row.items() if not isinstance(value, (dict, list))},
                **{f'top1 {key}': value for key, value in row['per_class'].items()},
            }
            for row in rows
        ]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in flat for key in row)), lineterminator='\n')
        writer.writeheader()
        writer.writerows(flat)
        text = buffer.getvalue()
    write_atomic(path, text.encode())


def _report(result: Validation, names: list[str]) -> str:
    """Top-1 and the confusion matrix of one model."""
    letters = [chr(ord('a') + index) for index in range(len(names))] if len(names) <= 26 else []
    rows = [('class', 'top-1 %', *letters)]
    for index, name in enumerate(names):
        counts = [str(count) if count else '·' for count in result.confusion[index]] if letters else []
        label = f'{letters[index]} {name}' if letters else name
        rows.append((label, f'{result.per_class[name]:.1f}' if name in result.per_class else '–', *counts))
    title = f'\n{result.model} on {result.dataset} ({result.images:,} images, {result.img_size} px'
    title += '; a row counts what the images of a class were taken for)' if letters else ')'
    return f'{title}\n{table(rows)}'


def _summary(results: Sequence[Validation]) -> str:
    """A line a model."""
    shifts = any(result.shift_consistency is not None for result in results)
    rows = [
        [
            'model',
            'top-1 %',
            'top-5 %',
            'loss',
            'calibration error %',
            *(['shift consistency %'] if shifts else []),
            'images/s',
            'M parameters',
            'GMACs',
        ]
    ]
    for result in results:
        shift = [f'{result.shift_consistency:.2f}' if result.shift_consistency is not None else '–'] if shifts else []
        rows.append(
            [
                result.model,
                f'{result.top1:.2f}',
                f'{result.top5:.2f}',
                f'{result.loss:.3f}',
                f'{result.calibration_error:.2f}',
                *shift,
                f'{result.images_per_second:.0f}',
                f'{result.params / 1e6:.2f}',
                '–' if result.gmacs is None else f'{result.gmacs:.2f}',
            ]
        )
    return table(rows)
