"""Reads files that anybody may have written: no more bytes than such a file has, and plain values only."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import stat
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml

from ..errors import UserError, cleaned, first_line, os_reason
from .files import open_at_once

__all__ = [
    'LARGEST_YAML', 'PlainLoader', 'open_regular', 'read_errors', 'read_bytes', 'read_text', 'read_json', 'parse_json',
    'from_json', 'of_kind', 'yaml_reason',
]  # fmt: skip

LARGEST_YAML = 2**20  # bytes
LARGEST_FILE = 64 * 2**20  # bytes

T = TypeVar('T')


class PlainLoader(yaml.SafeLoader):
    """Without aliases: a few lines of them can stand for more values than fit into memory. Without a key twice in a
    mapping: YAML forbids it, PyYAML takes the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, 'aliases are not allowed', mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                value = self.construct_object(key)
                if (type(value), value) in seen:
                    raise GivenTwice(None, None, f'{key.value!r} is given twice', key.start_mark)
                seen.add((type(value), value))
        return node


class GivenTwice(yaml.composer.ComposerError):
    """A key is there twice."""


def yaml_reason(error: BaseException) -> str:
    """What is wrong with the text of a YAML file, in a few words."""
    problem = getattr(error, 'problem', None)
    if isinstance(error, GivenTwice):
        return str(problem)
    return 'not valid YAML' + (f': {cleaned(" ".join(str(problem).split()))[:80]}' if problem else '')


@contextmanager
def read_errors(path: str | Path, kind: str, remedy: str = '') -> Iterator[None]:
    """Turns errors in reading and checking a file into a line that names the file and the reason.

    Args:
        path: The file.
        kind: What it should be, as in `the result of a run`.
        remedy: Advice about a file of another kind, which ends the line.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: can't read {kind}: {os_reason(error)}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f'{path}: not {kind} ({first_line(error)}){remedy}') from None


def open_regular(path: str | Path) -> BinaryIO:
    """A regular file, open to be read: a pipe may keep its reader waiting for ever, and a device may be endless.

    Raises:
        OSError: It can't be read, or is no regular file.
    """
    file = open(path, 'rb', opener=open_at_once)  # noqa: SIM115  (the caller's to close)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, 'it is no regular file', str(path))
    return file


def read_bytes(path: str | Path, most: int = LARGEST_FILE) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: It can't be read.
        ValueError: It is longer than `most` bytes.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most or len(data := file.read(most + 1)) > most:
            raise ValueError(f'longer than {most >> 20} MiB')
    return data


def read_text(path: str | Path, most: int = LARGEST_FILE) -> str:
    """The content of a file as text in UTF-8.

    Raises:
        OSError: It can't be read.
        ValueError: It is longer than `most` bytes, or no such text.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError:
        raise ValueError('not UTF-8 text') from None


def read_json(path: str | Path, most: int = LARGEST_FILE) -> Any:
    """The value in a JSON file of at most so many bytes.

    Raises:
        OSError: It can't be read.
        ValueError: It is longer, or no JSON.
        RecursionError: It is nested too deeply.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str) -> Any:
    """The value that a text in JSON means: all of its numbers are finite.

    Raises:
        ValueError: It is no JSON, as NaN and Infinity are not.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, parse_constant=_not_finite, parse_float=_finite)


def _finite(digits: str) -> float:
    return number if math.isfinite(number := float(digits)) else _not_finite(digits)


def _not_finite(name: str) -> Any:
    raise ValueError(f'{name} is no number of JSON')


def from_json(cls: type[T], values: Any, **others: Any) -> T:
    """A dataclass out of JSON.

    Args:
        cls: The dataclass.
        values: A mapping that has each of its fields, with a value of the field's type, and nothing else. A field
            with a default may be missing. Null is NaN where a float is meant.
        **others: Fields that are not in it.

    Raises:
        ValueError: A field is missing, unknown or of another type.
    """
    kinds = {name: kind for name, kind in typing.get_type_hints(cls).items() if name not in others}
    if not isinstance(values, dict):
        raise ValueError('not a mapping')
    missing = dataclasses.MISSING
    optional = {
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is not missing or field.default_factory is not missing
    }
    for name in sorted((kinds.keys() - optional - values.keys()) | (values.keys() - kinds.keys())):
        raise ValueError(f'{name} is {"missing" if name in kinds else "unknown"}')
    values = {name: math.nan if kinds[name] is float and value is None else value for name, value in values.items()}
    for name, kind in kinds.items():
        if name in values and not _is_a(values[name], kind):
            raise ValueError(f'{name} is {str(values[name])[:40]!r}')
    return cls(**values, **others)


def of_kind(value: Any, kind: Any) -> Any:
    """A value out of JSON, if it is of a type, as `list[str]`.

    Raises:
        ValueError: It is of another.
    """
    if not _is_a(value, kind):
        raise ValueError(f'{str(value)[:40]!r} is no {kind}')
    return value


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value out of JSON is of a field's type."""
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, inner) for inner in typing.get_args(kind))
    if typing.get_origin(kind) is dict:
        _, inner = typing.get_args(kind)
        return isinstance(value, dict) and all(_is_a(item, inner) for item in value.values())
    if typing.get_origin(kind) is list:
        [inner] = typing.get_args(kind)
        return isinstance(value, list) and all(_is_a(item, inner) for item in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
