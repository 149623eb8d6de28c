"""The source of functions and classes, also of those that a notebook defines, which are in no file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

__all__ = ['source_of']

PLAIN = (bool, int, float, str, type(None))


def source_of(value: Any) -> str:
    """The source of a function or class, followed by that of all that it names in its own module.

    A lambda's is its code instead: the lines that it stands in hold more than it.
    """
    parts: dict[object, str] = {}
    _collect('', value, None, parts)
    return '\n'.join(parts.values())


def _collect(name: str, value: Any, module: str | None, parts: dict[object, str]) -> None:
    """Adds the text of a value, and of what it names, unless it is of another module."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _collect(f'{name}.{index}', item, module, parts)
    elif isinstance(value, PLAIN):
        parts.setdefault((name, value), f'{name} = {value!r}')
    elif id(value) not in parts and isinstance(value, (FunctionType, type, functools.partial)):
        module = module or getattr(value, 'func', value).__module__
        if not isinstance(value, functools.partial) and value.__module__ != module:
            parts.setdefault(name, f'{name} = {value.__module__}.{value.__qualname__}')
            return
        parts[id(value)] = _text(value)
        for inner, named in _named_by(value):
            _collect(inner, named, module, parts)


def _text(value: Any) -> str:
    if not isinstance(value, FunctionType):
        return type(value).__name__
    try:
        if value.__name__ != '<lambda>':
            return inspect.getsource(value)
    except (OSError, TypeError):
        pass
    return '\n'.join(f'{code.co_code.hex()} {code.co_names} {_constants(code)}' for code in _codes(value.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code object, and those within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _constants(code: CodeType) -> list[Any]:
    plain = [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
    return [sorted(map(repr, each)) if isinstance(each, frozenset) else each for each in plain]


def _named_by(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, a class or a partial function names, by its name there."""
    if isinstance(value, functools.partial):
        yield from {'func': value.func, 'args': value.args, **value.keywords}.items()
    elif isinstance(value, FunctionType):
        names = dict.fromkeys(name for code in _codes(value.__code__) for name in code.co_names)
        yield from ((name, value.__globals__[name]) for name in names if name in value.__globals__)
        yield from inspect.getclosurevars(value).nonlocals.items()
        yield 'defaults', value.__defaults__ or ()
    else:
        yield value.__qualname__, value.__bases__
        for name, member in vars(value).items():
            member = member.fget if isinstance(member, property) else getattr(member, '__func__', member)
            if isinstance(member, FunctionType) or not name.startswith('__'):
                yield name, member
