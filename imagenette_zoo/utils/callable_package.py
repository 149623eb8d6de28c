"""Packages that can be called, so that `imagenette_zoo.study` is a package and a function, too."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ['make_callable']


class _CallablePackage(ModuleType):
    """A package that calls one of its functions, which is imported when it is first called."""

    _function: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # also where `inspect` finds its arguments
        module, name = self._function
        return getattr(import_module(module), name)

    def __reduce__(self) -> tuple[Any, ...]:  # cloudpickle knows plain modules only
        return import_module, (self.__name__,)


def make_callable(package: str, module: str, function: str) -> None:
    """Makes a package callable; its `__init__` asks for it.

    Python looks up `__call__` in a module's type. So a module of another type takes its place, which has all that it
    has.

    Args:
        package: Its `__name__`.
        module: Where the function is.
        function: Its name.
    """
    former = sys.modules[package]
    if not isinstance(former, _CallablePackage):  # as when it is loaded again
        created = _CallablePackage(package)
        vars(created).update(vars(former), _function=(module, function))
        sys.modules[package] = created
