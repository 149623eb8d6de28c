"""Model folders in timm's Hub layout (`config.json` and `model.safetensors`), written whole and read safely."""

from __future__ import annotations

import argparse
import io
import logging
import math
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import clean_state_dict
from torch import nn

from ..errors import UserError, cleaned, first_line, nearest
from ..utils.files import sync, write_atomic, write_errors, write_json
from ..utils.modules import is_reference, owner
from ..utils.reading import read_errors, read_json
from . import factory
from .bounds import check_numbers, check_readable, no_more_than, read_header
from .own import NOTEBOOK, code_of, last_linear, own_function

__all__ = [
    'save_model_folder', 'link_model_folder', 'has_average', 'read_metric', 'read_weights', 'load_weights',
    'model_folder', 'load_folder', 'read_config', 'listed_names', 'weights_file',
]  # fmt: skip


def save_model_folder(folder: Path, config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> None:
    """Writes `config.json` and `model.safetensors`, timm's Hub layout.

    Raises:
        UserError: The disk is full, or the folder can't be written.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'config.json', config)
    write_atomic(folder / 'model.safetensors', weights_file(state_dict))


def weights_file(state_dict: Mapping[str, torch.Tensor]) -> bytes:
    """The content of the `model.safetensors` of a model."""
    layout = torch.contiguous_format
    tensors = {  # copies: safetensors refuses two names for one memory, which some models have
        name: tensor.detach().to('cpu', copy=True, memory_format=layout) for name, tensor in state_dict.items()
    }
    return safetensors.torch.save(tensors, metadata={'format': 'pt'})


def link_model_folder(source: Path, target: Path) -> None:
    """The same model folder under a second name: hard links where the file system has them, else copies."""
    with write_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ('config.json', 'model.safetensors'):
            temporary = target / f'.{name}.tmp'
            temporary.unlink(missing_ok=True)
            try:
                os.link(source / name, temporary)
            except OSError:
                shutil.copyfile(source / name, temporary)
            os.replace(temporary, target / name)
            temporary.unlink(missing_ok=True)  # it stays where both were links to the same file already
        sync(target)


class _Ignored:
    """Stands for NumPy's numbers and arrays beside the weights: nothing of NumPy is called."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_BESIDE: list[Any] = [
    argparse.Namespace,  # what timm's trainer saves has its arguments beside the weights
    *((_Ignored, f'numpy.{name}') for name in ('dtype', 'ndarray')),
    *((_Ignored, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    *((_Ignored, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
]
_KEYS = ('state_dict', 'model_state_dict', 'model')  # of the weights in a checkpoint
_EMA_KEYS = ('state_dict_ema', 'model_ema')


def read_weights(path: Path, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """The state dict in a file: safetensors, or a torch checkpoint (also timm's) loaded without executing anything.

    Raises:
        UserError: There is no such file, it is truncated, it is no checkpoint, or it holds more than weights.
    """
    checkpoint = _read_checkpoint(path)
    state = checkpoint
    if isinstance(checkpoint, dict):
        keys = (*_EMA_KEYS, *_KEYS) if use_ema else _KEYS
        state = next((checkpoint[key] for key in keys if isinstance(checkpoint.get(key), dict)), checkpoint)
    if not isinstance(state, dict) or not state or not all(map(_is_weight, state, state.values())):
        raise UserError(f'{path}: holds no weights')
    return clean_state_dict(state)


def has_average(path: Path) -> bool:
    """Whether a checkpoint, as timm's, has a moving average of the weights as well.

    Raises:
        UserError: As `read_weights`.
    """
    checkpoint = _read_checkpoint(path)
    return isinstance(checkpoint, dict) and any(isinstance(checkpoint.get(key), dict) for key in _EMA_KEYS)


def read_metric(path: Path) -> float | None:
    """The metric that timm's trainer keeps beside the weights; None where a file has none.

    Raises:
        UserError: As `read_weights`.
    """
    checkpoint = _read_checkpoint(path)
    metric = checkpoint.get('metric') if isinstance(checkpoint, dict) else None
    return float(metric) if isinstance(metric, (int, float)) and math.isfinite(metric) else None


def _read_checkpoint(path: Path) -> Any:
    """What a file of weights holds, loaded without executing anything."""
    check_readable(path)
    try:
        if path.suffix == '.safetensors':
            return safetensors.torch.load_file(path)
        check_zip(path)
        with torch.serialization.safe_globals(_BESIDE):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f'{path}: not a file of plain weights (a pickle that runs code, or not a checkpoint): '
            f'refused; save it as safetensors'
        ) from None
    except Exception as error:  # both libraries report a damaged file in many ways
        reason = first_line(error)
        raise UserError(f'{path}: truncated or not a checkpoint ({reason})') from None


def _is_weight(name: Any, value: Any) -> bool:
    """Whether it is a named tensor whose values are there, one by one."""
    plain = isinstance(name, str) and isinstance(value, torch.Tensor)
    return plain and value.device.type == 'cpu' and value.layout == torch.strided and not value.is_quantized


def check_zip(file: Path | io.BytesIO) -> None:
    """Refuses a file whose parts claim to be larger than it is: torch never compresses them, but trusts such sizes."""
    size = file.stat().st_size if isinstance(file, Path) else len(file.getbuffer())
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as parts:
            if sum(part.file_size for part in parts.infolist()) > size:
                raise ValueError('it claims to hold more than it does')


_PREFIXES = ('model.', 'net.', 'module.', '_orig_mod.')  # of what wrapped the model


def load_weights(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: str | Path, new_head: bool = False
) -> str:
    """Loads a state dict into a model, all of it.

    Args:
        model: The model.
        state_dict: Its weights, as its class, a wrapper of it or its published file names them.
        source: What it is from, for messages.
        new_head: Keep the model's own classifier where the other tells other classes apart.

    Returns:
        A line on the classifier that was kept, or nothing.

    Raises:
        UserError: It belongs to another model (the first key or shape that disagrees is named), or is not finite.
    """
    own = model.state_dict()
    state_dict = _as_the_model_names_them(model, own, state_dict)
    kept = _other_head(model, own, state_dict) if new_head else {}
    state_dict = {**state_dict, **kept}
    check_alike(own, state_dict, source)
    model.load_state_dict(state_dict)
    factory.check_weights(model, source)
    heads = ', '.join(sorted({name.rpartition('.')[0] for name in kept}))
    return heads and f'{source}: has other classes, so the classifier ({heads}) starts anew'


def check_alike(
    own: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    """Raises `UserError` where the names or shapes of a checkpoint are not the model's own."""
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    wrong = [name for name in own if name in state_dict and own[name].shape != state_dict[name].shape]
    if not missing and not unexpected and not wrong:
        return
    if wrong and not missing and not unexpected:
        name = wrong[0]
        detail = f'{name} is {tuple(state_dict[name].shape)} there and {tuple(own[name].shape)} here'
    else:
        detail = f'{len(missing)} weights are missing and {len(unexpected)} are not its own'
        if unexpected:
            detail += f', as {unexpected[0]}{nearest(unexpected[0], missing)}'
    raise UserError(f'{source}: the checkpoint of another model: {detail}')


def _as_the_model_names_them(
    model: nn.Module, own: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """A state dict without the prefix of what wrapped the model, and as the model's own filter makes it."""
    while not own.keys() & state_dict.keys() and (prefix := _common_prefix(state_dict)):
        state_dict = {name.removeprefix(prefix): weight for name, weight in state_dict.items()}
    if own.keys() == state_dict.keys():
        return state_dict
    module = sys.modules[type(model).__module__]
    filter_fn = getattr(module, 'checkpoint_filter_fn', None) or getattr(module, '_checkpoint_filter_fn', None)
    if filter_fn is None:
        return state_dict
    try:  # it is timm's, for files that others published
        filtered = filter_fn(dict(state_dict), model)
    except Exception:  # which this is not one of
        return state_dict
    return filtered if own.keys() == filtered.keys() else state_dict


def _common_prefix(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state_dict)), None)


def _other_head(
    model: Any, own: Mapping[str, torch.Tensor], state_dict: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The weights of the model's classifier, where those of the state dict are for other classes."""
    head = model.get_classifier() if hasattr(model, 'get_classifier') else last_linear(model)
    heads = head if isinstance(head, (tuple, list)) else (head,)
    layers = [name for name, layer in model.named_modules() if any(layer is each for each in heads)]
    names = [name for name in own if name.rpartition('.')[0] in layers]
    differ = any(name not in state_dict or state_dict[name].shape != own[name].shape for name in names)
    return {name: own[name] for name in names} if differ else {}


def model_folder(name: str | Path) -> Path | None:
    """The model folder that a name means: a run's `best/`, the folder itself, or None if it is no folder.

    Raises:
        UserError: It is a folder, but without a model, and no model of timm's is named so.
    """
    path = Path(str(name).removeprefix('local-dir:'))
    for folder in (path / 'best', path):
        if os.path.isfile(folder / 'config.json'):  # Path's own may raise
            return folder
    if str(name).startswith('local-dir:') or (os.path.isdir(path) and not timm.is_model(str(name))):
        raise UserError(f'{path}: no model folder (no config.json in it or in its best/)')
    return None

_logger = logging.getLogger(__name__)
LARGEST_CONFIG = 16 * 2**20  # bytes
# Arguments that would make timm open a file or an address that a stranger's config names.
FORBIDDEN = {'checkpoint_path', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'}


def load_folder(folder: Path, **kwargs: Any) -> Any:
    """The model in a model folder, with its weights, its config and its `label_names`.

    Args:
        folder: Holds `config.json` and `model.safetensors`.
        **kwargs: Arguments of the model instead of those in its config; what is None is left to it.

    Raises:
        UserError: The config is none, names more or fewer classes than the head has, or the weights are not
            this model's.
    """
    config = read_config(folder)
    classes, names = config['num_classes'], config.get('label_names')
    if isinstance(names, list) and len(names) != classes:
        raise UserError(
            f'{folder / "config.json"}: names {len(names)} classes, the head has {classes}: correct label_names there'
        )
    given = {name: value for name, value in kwargs.items() if value is not None}
    model_args = {**config.get('model_args', {}), **given, 'num_classes': classes}
    header = read_header(folder / 'model.safetensors')
    check_numbers(str(folder), model_args, header)
    with no_more_than(str(folder), header):
        outline = factory.outline(config['architecture'], **model_args)
    if outline is not None:
        check_alike(outline.state_dict(), header, folder)
    with no_more_than(str(folder), header):
        model = factory.build_model(config['architecture'], **model_args)
    load_weights(model, read_weights(folder / 'model.safetensors'), folder)
    published = ('label_names', 'license', 'origin_url', 'crop_mode', 'test_input_size', 'test_crop_pct')
    own = {**dict.fromkeys((*published, 'test_pool_size')), **config['pretrained_cfg']}  # not those of other weights
    if names is not None:
        own['label_names'] = names
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **own}
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder; `num_classes` stands in it once.

    Raises:
        UserError: It is none, or it would make timm open a file or an address.
    """
    path = folder / 'config.json'
    with read_errors(path, "a model's config"):
        config = read_json(path, LARGEST_CONFIG)
        ok = (
            isinstance(config, dict)
            and isinstance(config.get('architecture'), str)
            and isinstance(config.get('num_classes'), int)
            and isinstance(config.get('pretrained_cfg'), dict)
            and isinstance(config.get('model_args', {}), dict)
        )
        if ok:
            _check_code(folder, config)
            name = config['architecture']
            ok = not is_reference(name) or owner(name.partition(':')[0]) is not None
        if ok:
            ok = own_function(config['architecture']) is not None or timm.is_model(config['architecture'])
        if not ok or FORBIDDEN & config.get('model_args', {}).keys():
            raise ValueError(
                'a known architecture, num_classes and pretrained_cfg are needed, model_args may name no files'
            )
    config.get('model_args', {}).pop('num_classes', None)  # which timm 1.0.31 repeats there
    return config


def _check_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Looks whether the code that a model needs was imported; it is named, never imported for it.

    Raises:
        UserError: It was not.
    """
    needed = config.get('device_modules', {})
    if not isinstance(needed, dict):
        return
    name = config['architecture']
    imported = code_of(name)
    for label, sha256 in needed.items():
        if label == NOTEBOOK + name and label not in imported:
            if own_function(name) is not None:  # of a file by now
                continue
            raise UserError(
                f'{folder}: was trained with a model of a notebook, {name[:80]!r}: open it there, or give a file that '
                f'defines a model of this name, with @timm.models.register_model, by --device-modules'
            )
        if label not in imported:
            raise UserError(
                f'{folder}: this model needs the code in {str(label)[:80]!r} (SHA-256 {str(sha256)[:12]}): if you '
                f'trust it, give it by --device-modules'
            )
        if imported[label] != sha256:
            _logger.warning(
                '%s: its code %s has changed since: SHA-256 %.12s then, %.12s now',
                folder, cleaned(label), cleaned(str(sha256)), imported[label],
            )  # fmt: skip


def listed_names(names: Any, count: int, name: str) -> list[str]:
    """The `label_names` of a config as a list; empty where it has none.

    Args:
        names: Their value there: a list, or a mapping from the classes' indices.
        count: Number of classes.
        name: The model's, for messages.

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
