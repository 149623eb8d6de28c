"""A user's own model: its function or class is called, and it gets what timm's models have."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

import timm
from timm.data.constants import DEFAULT_CROP_PCT, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from ..errors import UserError
from ..utils.modules import imported_modules, in_a_line, is_foreign, is_reference, owner, reference_to, resolve
from ..utils.source import source_of
from .configs import INPUT_SIZE

__all__ = [
    'NAMED', 'NOTEBOOK', 'as_plain', 'build_own', 'code_of', 'is_of_this_process', 'last_linear', 'name_model',
    'needed_modules', 'own_function', 'references', 'resolved',
]  # fmt: skip

NAMED: dict[str, Callable[..., Any]] = {}  # models of this process that have no module: a notebook's, by name
NOTEBOOK = 'notebook:'  # what the code of such a model is recorded as, with its name
_made: WeakSet[nn.Module] = WeakSet()
NEUTRAL = (None, False, 0, 0.0, '')  # values of arguments that change nothing


def name_model(function: Callable[..., Any], name: str | None = None) -> str:
    """Makes a function or class a model of this process, known by a name.

    Args:
        function: Makes the model; it is called with `num_classes` and the options that are given.
        name: The model's; that of the function if not given.

    Returns:
        The name.

    Raises:
        UserError: It makes no models, or timm has a model of that name.
    """
    own = str(getattr(getattr(function, 'func', function), '__name__', 'model')).strip('<>')
    if isinstance(function, nn.Module):
        made = type(function).__name__
        raise UserError(f'model {name or made}: is built already: give the class, or lambda num_classes: {made}(…)')
    if not callable(function) or ':' in (name or own):
        raise UserError(f'model {name or function!r}: a function or class is needed, and a name without a colon')
    if timm.is_model(name or own):
        if timm.models.model_entrypoint(name or own) is function:
            return name or own
        if name is not None:
            raise UserError(f'model {name}: timm has one of this name: choose another')
        own = f'{function.__module__}.{own}'  # as torchvision's
    NAMED[name or own] = function
    return name or own


def own_function(name: str) -> Callable[..., Any] | None:
    """The user's function or class that a model's name means: `module:attribute`, or registered with timm.

    Raises:
        UserError: `module:attribute` means nothing that can be called.
    """
    if name in NAMED:
        return NAMED[name]
    if is_reference(name):
        value = resolve(name)
        if owner(name.partition(':')[0]) is None:  # a model folder may name it, too
            raise UserError(f'model {name}: is a layer: give a model of a file or package of your own')
        if not callable(value):
            raise UserError(f'model {name}: is a {type(value).__name__}, not a function or class that makes a model')
        if is_foreign(value):  # likewise
            raise UserError(f'model {name}: comes from {value.__module__}: define a function there that calls it')
        return value  # type: ignore[no-any-return]
    if not timm.is_model(name):
        return None
    function = timm.models.model_entrypoint(name)
    return None if function.__module__.partition('.')[0] in ('timm', 'imagenette_zoo') else function


def is_of_this_process(name: str) -> bool:
    """Whether no other process knows a model: it was named here, or is of the script or the notebook that runs."""
    function = None if is_reference(name) else own_function(name)
    return function is not None and (name in NAMED or function.__module__ == '__main__')


def code_of(name: str) -> dict[str, str]:
    """The SHA-256 of the user's own code that a model is made with: of all modules that were imported, by file or name,
    and of the model itself where it is of this process."""
    return {module.label: module.sha256 for module in imported_modules().values()} | _of_this_process(name)


def _of_this_process(name: str) -> dict[str, str]:
    if not is_of_this_process(name):
        return {}
    return {NOTEBOOK + name: hashlib.sha256(source_of(own_function(name)).encode()).hexdigest()}


def build_own(name: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """Calls a user's function or class with the arguments that it takes.

    Args:
        name: The model's, for messages and its config.
        function: Makes the model.
        kwargs: Arguments as timm's models take them. One that changes nothing is left out.

    Raises:
        UserError: It does not take an argument that was asked for, or makes no `nn.Module`.
    """
    given = {key: value for key, value in kwargs.items() if not (key != 'num_classes' and _is_neutral(value))}
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        if given.get('num_classes') is None or 'num_classes' not in parameters:
            given.pop('num_classes', None)
        if given.get('in_chans') == 3 and 'in_chans' not in parameters:  # as without it
            del given['in_chans']
        if unknown := [key for key in given if key not in parameters]:
            raise UserError(f'model {name}: takes no {unknown[0]}: add it as an argument, or leave the option out')
    try:
        model = function(**given)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code may raise
        raise UserError(f'model {name}: {in_a_line(error)}') from error
    if not isinstance(model, nn.Module):
        raise UserError(f'model {name}: makes a {type(model).__name__}: a torch.nn.Module is needed')
    if model in _made:
        raise UserError(f'model {name}: is the same object at each call: build a new one each time')
    _made.add(model)
    return _completed(model, name, kwargs.get('num_classes'))


def _is_neutral(value: object) -> bool:
    return any(value is neutral or (type(value) is type(neutral) and value == neutral) for neutral in NEUTRAL)


def _completed(model: Any, name: str, classes: int | None) -> nn.Module:
    """The model with timm's attributes; what it lacks is derived."""
    head = last_linear(model)
    if not isinstance(getattr(model, 'num_classes', None), int):
        model.num_classes = classes or (head.out_features if head else 0)
    if classes and model.num_classes != classes:
        own = model.num_classes
        raise UserError(f'model {name}: has {own} classes, the data have {classes}: take num_classes as an argument')
    if not isinstance(getattr(model, 'num_features', None), int):
        model.num_features = head.in_features if head else model.num_classes
    config = getattr(model, 'pretrained_cfg', None) or getattr(model, 'default_cfg', None) or {}
    config = config if isinstance(config, Mapping) else config.to_dict()  # timm's PretrainedCfg
    defaults = {
        'input_size': INPUT_SIZE,
        'interpolation': 'bicubic',
        'crop_pct': DEFAULT_CROP_PCT,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'num_classes': model.num_classes,
    }
    model.pretrained_cfg = model.default_cfg = {**defaults, **config, 'architecture': name}
    if hasattr(model, '_model_args'):  # since timm 1.0.31
        model._model_args = {}  # those that it passed on are its own affair
    return model  # type: ignore[no-any-return]


def last_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear layer of a model: its classifier, where it does not say itself."""
    return next((layer for layer in reversed(list(model.modules())) if isinstance(layer, nn.Linear)), None)


def resolved(value: Any) -> Any:
    """The value of a model's argument; `module:attribute` in it becomes what it means."""
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(resolved, value))
    if not is_reference(value):
        return value
    layer = resolve(value)
    if callable(layer) and is_foreign(layer):
        raise UserError(f'{value}: comes from {layer.__module__}: define a function or class there that calls it')
    return layer


def as_plain(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model as a config can hold them: layers by reference; without those that no file can name."""
    plain = {key: reference_to(value) if callable(value) else value for key, value in args.items()}
    return {key: value for key, value in plain.items() if value is not None and _is_json(value)}


def needed_modules(name: str, args: Mapping[str, Any]) -> dict[str, str]:
    """The user's modules that a model and its arguments are of: file or name, and SHA-256."""
    function = own_function(name)
    modules = [name.partition(':')[0] if is_reference(name) else getattr(function, '__module__', '')]
    modules += [reference.partition(':')[0] for reference in references(dict(args))]
    owners = (owner(module) for module in modules)
    return {module.label: module.sha256 for module in owners if module is not None} | _of_this_process(name)


def references(value: Any) -> Iterator[str]:
    """Every `module:attribute` in a value, as the arguments of a model."""
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from references(item)
    elif is_reference(value):
        yield value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
