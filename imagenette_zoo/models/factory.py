"""From a name and options to a model, its data config, and what it costs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.models._hub import (
    HF_WEIGHTS_NAME,
    _get_safe_alternatives,
    hf_split,
    load_model_config_from_hf,
    load_model_config_from_path,
    save_config_for_hf,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..config.groups import ComputeOptions, InputOptions
from ..config.names import check_model
from ..errors import UserError, first_line, nearest
from ..fast_layers.swap import swap
from ..layers.layout import to_channels_last
from ..utils.files import keep_inductor_private
from ..utils.modules import in_a_line
from .bounds import Header, TooLarge, check_numbers, no_more_than, read_header
from .own import as_plain, build_own, needed_modules, own_function, resolved

__all__ = [
    'build_model', 'check_weights', 'source_args', 'input_config', 'to_device', 'probe', 'autocast', 'model_config',
    'compiled', 'model_cost', 'outline', 'weights_alone',
]  # fmt: skip

# What timm raises where a model can't be made as it is asked for.
FAILURES = (TypeError, AssertionError, ValueError, RuntimeError, AttributeError, OSError, UnpicklingError, LookupError)
_FORCE, _FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'  # torch's own variables
LARGEST_OWN_SIDE = 2048  # px of the images that a config names; an option may name larger ones
LARGEST_RESIZED_SIDE = 8192  # px


def build_model(name: str, **kwargs: Any) -> Any:
    """`timm.create_model` whose failures are one line.

    Args:
        name: A model's name, `module:attribute` of the user's own, `local-dir:FOLDER` or `hf-hub:NAME`.
        **kwargs: Passed on; what is None is left to the model, `module:attribute` becomes what it means.

    Raises:
        UserError: No such model (the nearest are named), weights that can't be had, or an argument that it does not
            take.
    """
    own = own_function(name)
    if own is not None and kwargs.get('pretrained'):
        raise UserError(f'model {name}: no weights are published: leave --pretrained out')
    source = name.split(':', 1)[0] if ':' in name and own is None else None
    if source == 'local-dir' and kwargs.get('pretrained') and not os.path.isfile(f'{name[10:]}/model.safetensors'):
        raise UserError(f'model {name}: no model.safetensors in it')  # older timm would run what a pickle says
    if own is None:
        check_model(name)
    given = {key: resolved(value) for key, value in kwargs.items() if value is not None}
    try:
        model = _built(name, source, own, given)
    except LookupError as error:
        reason = 'its config.json is not one of timm' if source else 'no such value of an argument'
        raise UserError(f'model {name}: {reason} ({first_line(error)})') from None
    except LocalEntryNotFoundError:
        tries = '' if constants.HF_HUB_OFFLINE else '; HF_HUB_OFFLINE=1 leaves out the tries'
        raise UserError(
            f'model {name}: the Hub cannot be reached, and its cache has no such weights: check the network, or give a '
            f'run, a model folder or a checkpoint{tries}'
        ) from None
    except FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = ' '.join(line.strip() for line in lines[: 2 if lines[0].endswith(':') else 1])
        raise UserError(f'model {name}: {reason if len(reason) <= 200 else reason[:200] + "…"}') from None
    if kwargs.get('pretrained'):
        check_weights(model, name)
    return model


def _built(name: str, source: str | None, own: Callable[..., Any] | None, given: dict[str, Any]) -> Any:
    """The model of the user's own or of timm's; what a config asks for is no larger than its weights."""
    if own is not None:
        return build_own(name, own, given)
    if source is None:
        with weights_alone():
            return timm.create_model(name, **given)
    args, header = _read_source(name, bool(given.get('pretrained')))
    check_numbers(f'model {name}', args, header)
    with no_more_than(f'model {name}', header), suppress(*FAILURES), torch.device('meta'):
        timm.create_model(name, **{**given, 'pretrained': False})  # its failures come again, if they matter
    with no_more_than(f'model {name}', header), weights_alone():
        return timm.create_model(name, **given)


@contextmanager
def weights_alone() -> Iterator[None]:
    """Whoever calls `torch.load` in this block gets weights alone: timm before 1.0.26 would run what a pickle says."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}  # torch refuses both at once
    os.environ[_FORCE] = '1'
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def check_weights(model: nn.Module, source: object) -> None:
    """Looks at weights that were loaded, wherever they are from.

    Args:
        model: It has them. A buffer may hold -inf, which masks.
        source: Where they are from, for the message.

    Raises:
        UserError: One is NaN or infinite: the model would see the same in every image.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.isfinite().all():
            continue
        parameter = name.endswith(('running_mean', 'running_var')) or name in dict(model.named_parameters())
        if parameter or not (tensor.isfinite() | tensor.isneginf()).all():
            count = int(tensor.isfinite().logical_not().sum())
            raise UserError(
                f'{source}: {count:,} of the {tensor.numel():,} weights in {name} are NaN or infinite: the file is '
                f'damaged or its training diverged; take another checkpoint'
            )


def outline(name: str, **kwargs: Any) -> nn.Module | None:
    """The model as `build_model` makes it, without memory for its weights; None where it can't be made so.

    Raises:
        TooLarge: Within `no_more_than`.
    """
    if own_function(name) is not None:  # which may have effects, and is called once
        return None
    try:
        with torch.device('meta'):
            return build_model(name, **kwargs)  # type: ignore[no-any-return]
    except TooLarge:
        raise
    except UserError:  # building it for good says why, or has its way
        return None


def _read_source(name: str, pretrained: bool) -> tuple[dict[str, Any], Header | None]:
    """The arguments in the config of a `local-dir:` or `hf-hub:` model, and the shapes of the weights that it is to be
    given, where they are in safetensors."""
    source, _, location = name.partition(':')
    if source == 'local-dir':
        weights = Path(location, 'model.safetensors')
        return load_model_config_from_path(location)[2] or {}, read_header(weights) if weights.is_file() else None
    args = load_model_config_from_hf(location)[2] or {}
    repo, revision = hf_split(location)
    for file in _get_safe_alternatives(HF_WEIGHTS_NAME) if pretrained else ():
        with suppress(EntryNotFoundError):
            return args, read_header(Path(hf_hub_download(repo, file, revision=revision)))
    return args, None


def source_args(name: str, model: nn.Module) -> dict[str, Any]:
    """The arguments in the config of a `local-dir:` or `hf-hub:` model, but for the number of classes; none where timm
    keeps them in the model itself."""
    source, _, location = name.partition(':')
    args: dict[str, Any] = {}
    if hasattr(model, '_model_args'):  # since timm 1.0.31
        pass
    elif source == 'local-dir':
        args = load_model_config_from_path(location)[2]
    elif source in ('hf-hub', 'hf_hub'):
        args = load_model_config_from_hf(location)[2]
    return {key: value for key, value in args.items() if key != 'num_classes'}


def input_config(
    options: InputOptions, model: nn.Module, use_test_size: bool = False, crop_mode: str | None = None
) -> dict[str, Any]:
    """timm's data config: `input_size`, `interpolation`, `mean`, `std`, `crop_pct`, `crop_mode`.

    Args:
        options: What is asked for instead of the model's own.
        model: The model.
        use_test_size: Its size for tests, where it has one.
        crop_mode: Instead of its own. Trainings validate by `center`, as timm's do.

    Raises:
        UserError: The model takes no images of one, three or four channels, or the config can't prepare any.
    """
    names = ('img_size', 'input_size', 'crop_pct', 'interpolation', 'mean', 'std')
    given = {name: getattr(options, name) for name in names}
    own = getattr(model, 'pretrained_cfg', {}).get('input_size')
    given['in_chans'] = options.channels or (own[0] if isinstance(own, (list, tuple)) and own else None)
    given['crop_mode'] = crop_mode
    config = resolve_data_config(given, model=model, use_test_size=use_test_size)
    size = config['input_size']
    _check_numbers('input_size', size, 3)
    config['input_size'] = (options.channels or size[0], *size[1:])
    channels = config['input_size'][0]
    if channels not in (1, 3, 4):
        raise UserError(f'the model is for images of {channels!r} channels: expected one for 1, 3 or 4')
    for name in ('mean', 'std'):
        if channels != 3 and isinstance(config[name], (list, tuple)) and len(config[name]) == 3:
            config[name] = adapt_to_chs(config[name], channels)
        _check_numbers(name, config[name], channels)
        config[name] = tuple(config[name])
    _check_preparation(config, options.side is not None)
    return config


def _check_numbers(name: str, value: Any, count: int) -> None:
    """Raises `UserError` where a part of a data config is not so many numbers."""
    if not (isinstance(value, (list, tuple)) and len(value) == count):
        number = {1: 'one number', 3: 'three numbers', 4: 'four numbers'}[count]
        raise UserError(
            f"its config doesn't say how images are prepared ({name} is {str(value)[:40]}, expected {number})"
        )


def _check_preparation(config: dict[str, Any], size_is_asked_for: bool) -> None:
    """Raises `UserError` where a data config, whoever wrote it, would make too much of an image, or no numbers."""
    sizes = config['input_size'][1:]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(
            f"its config doesn't say how images are prepared (input_size is {str(config['input_size'])[:40]}, "
            'expected channels and pixels)'
        )
    if max(sizes) > LARGEST_OWN_SIDE and not size_is_asked_for:
        raise UserError(
            f'its config is for images of {max(sizes):,} px: expected at most {LARGEST_OWN_SIDE:,}; if you mean it, '
            'give --img-size'
        )
    crop_pct = config['crop_pct']
    least = max(sizes) / LARGEST_RESIZED_SIDE
    if not (_is_number(crop_pct) and least <= crop_pct <= 2):
        raise UserError(
            f'crop_pct is {str(crop_pct)[:40]}: images of {max(sizes)} px would be resized to more than '
            f'{LARGEST_RESIZED_SIDE:,} px: expected {least:.2g} to 2; give --crop-pct'
        )
    if not all(_is_number(value) and 0 <= value <= 1 for value in config['mean']):
        raise UserError(f'mean is {str(config["mean"])[:40]}: expected three numbers from 0 to 1; give --mean')
    if not all(_is_number(value) and 1e-4 <= value <= 255 for value in config['std']):
        raise UserError(f'std is {str(config["std"])[:40]}: expected three numbers above 0; give --std')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def to_device(
    model: nn.Module, device: torch.device, channels_last: bool, log: Callable[[str], object] | None = None
) -> nn.Module:
    """Moves a model to a device and into a memory layout, and makes it fast there, in training and validation alike.

    Args:
        model: The model; it is changed in place.
        device: Where it will compute.
        channels_last: Whether it gets channels-last layout.
        log: Takes a line that counts the layers that were replaced by faster ones; else the debug log does.
    """
    swap(model.to(device), device, channels_last, log=log)
    return to_channels_last(model) if channels_last else model


def probe(model: nn.Module, name: str, input_size: tuple[int, int, int], remedy: str | None = None) -> None:
    """Runs a model once, so that one which can't take this input fails before anything is written.

    Args:
        model: The model, in eval mode from then on.
        name: It is called in a message.
        input_size: Channels, height and width.
        remedy: What to do about a size that it can't take; else the options of its own size.

    Raises:
        UserError: It can't, or it gives no logits.
    """
    model.eval()
    weight = next(model.parameters(), None)
    if weight is None:
        raise UserError(f'model {name}: has no weights: nothing of it can be trained')
    try:
        with torch.no_grad():  # parameters of lazy layers are made here, and trained
            logits = model(torch.zeros(2, *input_size, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # whatever a model's code may raise
        if own_function(name) is None and not isinstance(error, (AssertionError, RuntimeError, TypeError, ValueError)):
            raise
        reason = in_a_line(error) if own_function(name) is not None else first_line(error)
        if remedy is not None:
            reason += f' ({remedy})'
        elif getattr(model, 'pretrained_cfg', {}).get('fixed_input_size'):
            reason += f' (also give --model-kwargs img_size={input_size[-1]})'
        raise UserError(f"model {name} can't take images of {input_size[-1]} px (--img-size): {reason}") from None
    classes = getattr(model, 'num_classes', 0)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if classes and shape != (2, classes):
        one = 'take num_classes as an argument' if isinstance(logits, torch.Tensor) else 'return the logits alone'
        remedy = f': {one}' if own_function(name) is not None else ''
        raise UserError(
            f'model {name}: gives {shape} for 2 images: expected (2, {classes}), a logit for each class{remedy}'
        )


def autocast(options: ComputeOptions, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where it is asked for."""
    return torch.autocast(device.type, getattr(torch, options.amp_dtype), enabled=options.amp)


def model_config(
    model: Any,
    config: dict[str, Any],
    class_names: Sequence[str] | None,
    model_args: dict[str, Any],
    from_scratch: bool = False,
) -> dict[str, Any]:
    """`config.json` of a trained model in timm's Hub layout; the model's own config becomes the same.

    Args:
        model: The model.
        config: The data config that it was evaluated with.
        class_names: A name for each output; None where they are not known.
        model_args: Arguments that `timm.create_model` must be given to build the same model.
        from_scratch: Whether the weights were random at first: then licence and origin of the published ones go.
    """
    old = dict(model.pretrained_cfg)
    foreign = ('url', 'file', 'hf_hub_id', 'source', 'tag', 'test_input_size', 'test_crop_pct', 'test_pool_size')
    for name in (*foreign, 'license', 'origin_url') if from_scratch else foreign:
        old.pop(name, None)
    new = {name: config[name] for name in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')}
    if old.get('pool_size'):
        scale = config['input_size'][-1] / old['input_size'][-1]
        new['pool_size'] = [max(1, -int(-size * scale // 1)) for size in old['pool_size']]
    old.pop('label_names', None)
    named = {} if class_names is None else {'label_names': list(class_names)}
    count = model.num_classes if class_names is None else len(class_names)
    model.pretrained_cfg = model.default_cfg = {**old, **new, 'num_classes': count, **named}
    if hasattr(model, '_model_args'):  # since timm 1.0.31
        model._model_args = as_plain(model._model_args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        save_config_for_hf(model, path, model_config=named, model_args=model_args or None)
        saved = json.loads(path.read_text())
    architecture = saved['architecture']
    if own_function(architecture) is not None:
        saved['model_args'] = model_args  # without timm's own, which it may not take
    saved.get('model_args', {}).pop('num_classes', None)  # said above; transformers would pass it twice
    if needed := needed_modules(architecture, model_args):
        saved['device_modules'] = needed
    return saved


def compiled(model: nn.Module, options: ComputeOptions, shapes: int = 1) -> nn.Module:
    """The model compiled for a few shapes, where that is asked for.

    Args:
        model: The model.
        options: `torchcompile` and `torchcompile_mode`.
        shapes: How many shapes of input it will be given.

    Raises:
        UserError: There is no such backend.
    """
    if options.torchcompile in (None, 'auto', 'none'):
        return model
    keep_inductor_private()
    torch.compiler.reset()  # else the models of a sweep use up what one process may compile
    known = torch._dynamo.list_backends(exclude_tags=())
    if options.torchcompile not in known:
        raise UserError(f'--torchcompile: no backend {options.torchcompile!r}{nearest(options.torchcompile, known)}')
    # Training and evaluation, the model and its moving average are compiled each for itself.
    limit = 'recompile_limit' if hasattr(torch._dynamo.config, 'recompile_limit') else 'cache_size_limit'
    setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), 4 * shapes + 4))
    # dynamic=False: a batch of another size is run by the plain model, so that the compiled one stays as it is.
    return torch.compile(  # type: ignore[return-value]
        model, backend=options.torchcompile, mode=options.torchcompile_mode, dynamic=False
    )


def has_parts(model: nn.Module) -> bool:
    """Whether a model has the two parts of timm's: one up to its last features, and what makes logits of them."""
    return hasattr(model, 'forward_features') and hasattr(model, 'forward_head')


def model_cost(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[int, float | None]:
    """Counts a model's parameters and its convolutions' and matrix products' multiply-accumulates.

    Args:
        model: Any model of images; it is left as it is.
        input_size: `(C, H, W)` of one image.

    Returns:
        Number of parameters, and 10^9 multiply-accumulates for one image: None where torch can't count them.
    """
    probe = deepcopy(model).to('meta').eval()  # shapes suffice to count: nothing is computed
    parameters = sum(weight.numel() for weight in model.parameters())
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            probe(torch.empty(1, *input_size, device='meta'))
    except (AssertionError, RuntimeError, NotImplementedError):  # it fails on some models, as on cait_xxs24_224
        return parameters, None
    return parameters, counter.get_total_flops() / 2e9
