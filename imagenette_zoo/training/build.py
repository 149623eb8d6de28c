"""From options to what they name: model, transforms, precision; and what a result must say about the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path, save_config_for_hf
from torch import nn

from ..data.cache import content_hash, eval_pixels, names_hash, stored_side
from ..data.imagenette import ImageSet, available_cores
from ..data.loaders import Batches, CachedEvalBatches, Transform, eval_loader
from ..errors import UserError, first_line
from ..layers.blurpool import speed_up_blur
from ..layers.mish import speed_up_mish
from ..layers.norm_act import fuse_norm_act
from ..layers.squeeze import speed_up_squeeze
from ..layers.strided import subsample_before
from ..layers.unplanned import plan_later
from .console import Console
from .distributed import World
from .options import nearest
from .recipe import ComputeOptions, DataOptions, InputOptions

__all__ = [
    'autocast',
    'build_model',
    'data_hash',
    'eval_batches',
    'eval_transform',
    'hardware',
    'input_config',
    'model_config',
    'place',
    'probe',
    'source_args',
    'this_command',
    'uses_cache',
    'versions',
]

LARGEST_CACHE = 16 * 2**30  # bytes of decoded images that auto keeps


def build_model(name: str, **kwargs: Any) -> Any:
    """``timm.create_model`` whose failures are one line.

    Args:
        name: A model's name, ``local-dir:FOLDER`` or ``hf-hub:NAME``.
        **kwargs: Passed on; what is None is left to the model.

    Raises:
        UserError: No such model (the nearest are named), weights that can't be had, or an argument that it does not
            take.
    """
    source = name.split(':', 1)[0] if ':' in name else None
    if source == 'local-dir' and kwargs.get('pretrained') and not os.path.isfile(f'{name[10:]}/model.safetensors'):
        raise UserError(f'model {name}: no model.safetensors in it')  # older timm would run what a pickle says
    if source not in ('local-dir', 'hf-hub', 'hf_hub') and not timm.is_model(name.split('.')[0]):
        raise UserError(f'unknown model {name!r}{nearest(name, timm.list_models())} (imagenette-zoo list shows ours)')
    try:
        return timm.create_model(name, **{key: value for key, value in kwargs.items() if value is not None})
    except LookupError as error:
        reason = 'its config.json is not one of timm' if source else 'no such value of an argument'
        raise UserError(f'model {name}: {reason} ({first_line(error)})') from None
    except (TypeError, AssertionError, ValueError, RuntimeError, AttributeError, OSError, UnpicklingError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = ' '.join(line.strip() for line in lines[: 2 if lines[0].endswith(':') else 1])
        raise UserError(f'model {name}: {reason if len(reason) <= 200 else reason[:200] + "…"}') from None


def source_args(name: str, model: nn.Module) -> dict[str, Any]:
    """What the config of a ``local-dir:`` or ``hf-hub:`` model has timm build it with, beside the number of classes;
    nothing where timm keeps account of that in the model."""
    source, _, place = name.partition(':')
    args: dict[str, Any] = {}
    if hasattr(model, '_model_args'):  # since timm 1.0.31
        pass
    elif source == 'local-dir':
        args = load_model_config_from_path(place)[2]
    elif source in ('hf-hub', 'hf_hub'):
        args = load_model_config_from_hf(place)[2]
    return {key: value for key, value in args.items() if key != 'num_classes'}


def input_config(
    options: InputOptions, model: nn.Module, use_test_size: bool = False, crop_mode: str | None = None
) -> dict[str, Any]:
    """timm's data config: ``input_size``, ``interpolation``, ``mean``, ``std``, ``crop_pct``, ``crop_mode``.

    Args:
        options: What is asked for instead of the model's own.
        model: The model.
        use_test_size: Its size for tests, where it has one.
        crop_mode: Instead of its own. Trainings validate by ``center``, as timm's do.

    Raises:
        UserError: The model takes no images of three channels.
    """
    given = {name: getattr(options, name) for name in ('img_size', 'crop_pct', 'interpolation', 'mean', 'std')}
    given['crop_mode'] = crop_mode
    config = resolve_data_config(given, model=model, use_test_size=use_test_size)
    if config['input_size'][0] != 3:
        raise UserError(f'the model is for images of {config["input_size"][0]} channels: expected one for 3')
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def eval_transform(config: dict[str, Any]) -> Transform:
    """timm's evaluation transform, to ``(3, H, W)`` uint8."""
    return create_transform(
        input_size=config['input_size'],
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        mean=config['mean'],  # what a border is filled with
        use_prefetcher=True,
    )


def uses_cache(options: DataOptions, images: ImageSet, side: int, console: Console) -> bool:
    """Whether decoded images are to be kept; says so where ``auto`` means not for their size.

    Args:
        options: ``loader``.
        images: The images.
        side: The side in pixels that they are kept at, at most.
        console: Who is told.
    """
    size = len(images) * side**2 * 3
    if options.loader == 'auto' and size > LARGEST_CACHE:
        console.line(
            f'{len(images):,} images of {images.root / images.split} would take up to {size / 2**30:.0f} GiB decoded: '
            f'they are decoded every epoch (--loader cache keeps them all the same)'
        )
        return False
    return options.loader != 'timm'


def data_hash(options: DataOptions, sets: Sequence[ImageSet], side: int, console: Console) -> str:
    """What tells these data from others: of their bytes where they are decoded into the cache, else of their names."""
    if all(uses_cache(options, images, stored_side(side), Console(quiet=True)) for images in sets):
        return 'content:' + '+'.join(content_hash(images, console) for images in sets)
    return 'names:' + '+'.join(map(names_hash, sets))


def eval_batches(
    options: DataOptions,
    images: ImageSet,
    config: dict[str, Any],
    batch_size: int,
    world: World,
    console: Console,
) -> Batches:
    """This process's share of the images as timm's evaluation transform makes them, from the cache or the files."""
    transform = eval_transform(config)
    if uses_cache(options, images, max(config['input_size'][1:]), console):
        names = ['input_size', 'interpolation', 'crop_pct', 'crop_mode']
        names += ['mean'] if config['crop_mode'] == 'border' else []
        pixels = eval_pixels(images, transform, {name: config[name] for name in names}, console)
        targets = torch.tensor(images.targets)
        return CachedEvalBatches(torch.from_numpy(pixels), targets, batch_size, world.device, world.rank, world.size)
    return eval_loader(images, transform, batch_size, options.workers, options.pin_mem, world.rank, world.size)


def place(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Moves a model to a device and into a memory layout, and makes it fast there, in training and validation alike."""
    model.to(device)
    speed_up_mish(model)
    if device.type == 'cuda':
        plan_later(model)
    if device.type == 'cpu' and channels_last:
        fuse_norm_act(model)
        speed_up_blur(model)
        speed_up_squeeze(model)
        subsample_before(model)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def probe(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> None:
    """Runs a model once, so that one which can't take this input fails before anything is written.

    Raises:
        UserError: It can't.
    """
    model.eval()
    weight = next(model.parameters())
    try:
        with torch.inference_mode():
            model(torch.zeros(2, *input_size, device=weight.device, dtype=weight.dtype))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = first_line(error)
        if getattr(model, 'pretrained_cfg', {}).get('fixed_input_size'):
            reason += f' (also give --model-kwargs img_size={input_size[-1]})'
        raise UserError(f"model {name} can't take images of {input_size[-1]} px (--img-size): {reason}") from None


def autocast(options: ComputeOptions, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where it is asked for."""
    return torch.autocast(device.type, getattr(torch, options.amp_dtype), enabled=options.amp)


def model_config(
    model: Any,
    config: dict[str, Any],
    class_names: Sequence[str],
    model_args: dict[str, Any],
    from_scratch: bool = False,
) -> dict[str, Any]:
    """``config.json`` of a trained model in timm's Hub layout; the model's own config becomes the same.

    Args:
        model: The model.
        config: The data config that it was evaluated with.
        class_names: A name for each output.
        model_args: Arguments that ``timm.create_model`` must be given to build the same model.
        from_scratch: The weights were random at first: licence and origin of the published ones are not theirs.
    """
    old = dict(model.pretrained_cfg)
    foreign = ('url', 'file', 'hf_hub_id', 'source', 'tag', 'test_input_size', 'test_crop_pct', 'test_pool_size')
    for name in (*foreign, 'license', 'origin_url') if from_scratch else foreign:
        old.pop(name, None)
    new = {name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}
    if old.get('pool_size'):
        scale = config['input_size'][-1] / old['input_size'][-1]
        new['pool_size'] = [max(1, -int(-side * scale // 1)) for side in old['pool_size']]
    names = list(class_names)
    model.pretrained_cfg = model.default_cfg = {**old, **new, 'num_classes': len(names), 'label_names': names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        save_config_for_hf(model, path, model_config={'label_names': names}, model_args=model_args or None)
        return json.loads(path.read_text())


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {'python': platform.python_version()}
    for name in ('imagenette-zoo', 'torch', 'torchvision', 'timm', 'numpy', 'pillow'):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The machine that a result is from, and of how many processes where it is of several."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    gpu = torch.cuda.get_device_name(device) if device.type == 'cuda' else None
    return {
        'device': device.type,
        'cpu': cpu,
        'cores': available_cores(),
        'threads': torch.get_num_threads(),
        'gpu': gpu,
        **({'processes': processes} if processes > 1 else {}),
    }


def this_command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0])
    if program.name == '__main__.py':
        return shlex.join(['python', '-m', program.parent.name, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])
