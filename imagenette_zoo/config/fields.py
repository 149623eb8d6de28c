"""Options declared once: a dataclass field with its help gives the flag, the YAML key, the checks and the docs.

A dataclass of options is made of small ones, one a group, by inheritance; the first line of a group's docstring is
its title in `--help`. Values come from YAML, from flags or from Python; all three pass through `coerce`.

An option also says what it `affects`. From that follows where two values of it may differ (`MAY_DIFFER`). An option
that says nothing decides the result: it may differ nowhere.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from ..errors import UserError, nearest
from ..utils.modules import is_reference
from .timm_options import OPTIONS

__all__ = ['MAY_DIFFER', 'option', 'Options', 'Pairs', 'Parser', 'add_flags', 'given_flags', 'literal']


Affects = Literal['result', 'rounding', 'divergence', 'recovery', 'record', 'nothing', 'location', 'seed']
Where = Literal['on resume', 'between processes', 'between seeds', 'in a repeat', 'around a study']

# By what an option affects, where it may differ: from the run that is resumed; from the other processes of a run; from
# its other seeds; unreported, from the run that is repeated or published; and around a study, which does not set it.
MAY_DIFFER: dict[Affects, tuple[Where, ...]] = {
    'result': (),
    'rounding': ('on resume', 'between processes'),
    'divergence': ('on resume',),  # only what becomes of a training that diverges
    'recovery': ('on resume', 'between seeds'),  # when all processes save together
    'record': ('on resume', 'between processes', 'between seeds'),  # where it ran, and what is kept of it
    'nothing': ('on resume', 'between processes', 'between seeds', 'in a repeat'),  # but speed and what is printed
    'location': ('on resume', 'between processes', 'between seeds', 'in a repeat', 'around a study'),  # folders
    'seed': ('between seeds', 'around a study'),
}


def option(
    default: Any,
    help: str,
    *,
    affects: Affects = 'result',
    choices: Sequence[str] | None = None,
    references: bool = False,
    prefixes: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    length: int | None = None,
    short: Sequence[str] = (),
    const: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that is an option.

    Args:
        default: Value where none is given.
        help: One line for `--help` and the docs.
        affects: A key of `MAY_DIFFER`.
        choices: The values allowed; of an option of numbers, the words allowed beside them.
        references: Whether `module:attribute` of the user's own is allowed beside them.
        prefixes: Beginnings of further values that are allowed beside them.
        low: Smallest value allowed (of each element of a list).
        high: Largest value allowed.
        above: A bound that the value must exceed.
        length: The number of elements of a list.
        short: Further spellings of the flag.
        const: Value of the flag when it is given without one.
        metavar: What `--help` calls the value.
    """
    metadata = dict(
        help=help,
        may_differ=MAY_DIFFER[affects],
        choices=choices,
        references=references,
        prefixes=tuple(prefixes),
        low=low,
        high=high,
        above=above,
        length=length,
        short=tuple(short),
        const=const,
        metavar=metavar,
    )
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of every set of options: checks each value when made.

    Raises:
        UserError: A value has the wrong type, is out of range, or contradicts another; or there is no such option.
    """

    def __new__(cls, *_: Any, **values: Any) -> Any:
        for name in sorted(values.keys() - cls.names()):
            cls.check_value(name, values[name])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for field, kind in self.kinds():
            object.__setattr__(self, field.name, coerce(field, kind, getattr(self, field.name)))
        self.adapt()
        self.check()

    def adapt(self) -> None:
        """Lets a default give way to what is given."""

    def check(self) -> None:
        """Raises `UserError` where two values contradict each other."""

    @classmethod
    @functools.cache
    def kinds(cls) -> list[tuple[dataclasses.Field[Any], Any]]:
        """Every option with its type."""
        hints = typing.get_type_hints(cls)
        return [(field, hints[field.name]) for field in dataclasses.fields(cls)]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Every option at its default."""
        missing = dataclasses.MISSING
        return {
            field.name: field.default if field.default_factory is missing else field.default_factory()
            for field in dataclasses.fields(cls)
        }

    @classmethod
    def check_value(cls, name: str, value: Any) -> Any:
        """A value in the type of an option.

        Raises:
            UserError: There is no such option, or the value is wrong by itself.
        """
        for field, kind in cls.kinds():
            if field.name == name:
                return coerce(field, kind, value)
        raise UserError(f'unknown option {name!r}{nearest(name, cls.names())}')

    @classmethod
    def is_text(cls, name: str) -> bool:
        """Whether an option is text, or a list of texts."""
        kind, _ = _plain(next(kind for field, kind in cls.kinds() if field.name == name))
        return str in (kind, *typing.get_args(kind)) and typing.get_origin(kind) is not dict

    @classmethod
    def names(cls) -> set[str]:
        """The name of every option, as a YAML key."""
        return {field.name for field in dataclasses.fields(cls)}

    @classmethod
    def may_differ(cls, where: Where) -> set[str]:
        """The names of the options that may differ there."""
        return {field.name for field in dataclasses.fields(cls) if where in field.metadata['may_differ']}

    def as_dict(self) -> dict[str, Any]:
        """The options as plain YAML values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _plain(kind: Any) -> tuple[Any, bool]:
    """`(type without None, whether None is allowed)`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return inner[0], True
    return kind, False


def coerce(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    """The value in the option's type.

    Raises:
        UserError: It is of another type, out of range or not among the choices.
    """
    kind, optional = _plain(kind)
    if value is None or (optional and value == ''):
        if optional:
            return None
        raise UserError(f'{_flag(field.name)}: a value is needed')
    if kind is dict or typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise _wrong(field, value, 'key=value pairs')
        return {str(key): _as_yaml(item) for key, item in value.items()}
    if typing.get_origin(kind) is tuple:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        length = field.metadata['length']
        if length is not None and len(values) != length:
            raise _wrong(field, ' '.join(map(str, values)), f'{length} values: {field.metadata["help"]}')
        return tuple(_scalar(field, typing.get_args(kind)[0], v) for v in values)
    return _scalar(field, kind, value)


def _as_yaml(value: Any) -> Any:
    """The value as YAML gives it back: lists for tuples."""
    if isinstance(value, dict):
        return {key: _as_yaml(item) for key, item in value.items()}
    return [_as_yaml(item) for item in value] if isinstance(value, (list, tuple)) else value


def _scalar(field: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    meta = field.metadata
    if isinstance(value, str) and value in (meta['choices'] or ()):  # also a word instead of a number
        return value
    converted = _convert(field, kind, value)
    is_own = meta['references'] and is_reference(converted)
    has_prefix = isinstance(converted, str) and converted.startswith(meta['prefixes'])
    is_own = is_own or (has_prefix and converted not in meta['prefixes'])
    if meta['choices'] is not None and isinstance(converted, str) and not is_own:
        expected = [f'one of {", ".join(filter(None, meta["choices"]))}'] if meta['choices'] else []
        expected += [f'{", ".join(meta["prefixes"])} and a name'] if meta['prefixes'] else []
        expected += ['module:attribute of your own, as in my_file:Mine'] if meta['references'] else []
        raise _wrong(field, value, ' or '.join(expected) + nearest(str(value), meta['choices']))
    if isinstance(converted, (int, float)) and not isinstance(converted, bool):
        if not math.isfinite(converted):
            raise _wrong(field, value, 'a finite number')
        if meta['low'] is not None and converted < meta['low']:
            raise _wrong(field, value, f'at least {meta["low"]}')
        if meta['high'] is not None and converted > meta['high']:
            raise _wrong(field, value, f'at most {meta["high"]}')
        if meta['above'] is not None and converted <= meta['above']:
            raise _wrong(field, value, f'more than {meta["above"]}')
    return converted


def _convert(field: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _wrong(field, value, 'true or false')
    if kind is str:
        if isinstance(value, (str, Path)):
            return str(value)
        raise _wrong(field, value, 'text')
    # YAML 1.1 reads 1e-3 as text, and flags are text: numbers are read from it, as timm's script does.
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
        if kind is int:
            if number != int(number):
                raise ValueError
            return int(value) if not isinstance(value, float) else int(number)
        return number
    except (ValueError, OverflowError):
        words = ''.join(f' or {word}' for word in field.metadata['choices'] or ())
        raise _wrong(field, value, ('a whole number' if kind is int else 'a number') + words) from None


def _wrong(field: dataclasses.Field[Any], value: Any, expected: str) -> UserError:
    shown = str(value)
    return UserError(
        f'{_flag(field.name)}: {shown[:60]!r} is not {expected}'
        if not expected.startswith(('at ', 'more '))
        else f'{_flag(field.name)}: {shown[:60]} is out of range, it must be {expected}'
    )


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` with the nearest valid flag."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{self.prog}: {message}; {self.prog} --help says more')

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's, but the line for an unknown command names the nearest one, or the one with such a flag."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            meant = nearest(value, action.choices) or _with_flag(value, action.choices)
            known = meant or f'; {self.prog} --help lists all'
            raise UserError(f'{self.prog}: no {str(action.metavar).lower()} {value!r}{known}')
        super()._check_value(action, value)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but the line for an unknown flag names the nearest valid one."""
        parsed, rest = self.parse_known_args(args, namespace)
        for word in rest:
            if word.startswith('-'):
                name = word.split('=')[0]
                if meaning := OPTIONS.get(name.lstrip('-').replace('-', '_'), ('', ''))[1]:
                    raise UserError(f"unknown option {name}: only timm's script has it ({meaning}): leave it out")
                raise UserError(f'unknown option {name}{nearest(name, self._option_string_actions)}')
        if rest:
            raise UserError(f'unexpected argument {rest[0]!r}; a value follows its option, as in --data-dir {rest[0]}')
        return parsed


def _with_flag(name: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """`'; did you mean …?'` for a command that has a flag of this name, or nothing."""
    flag = f'--{name}'
    having = [f'{command} {flag}' for command, parser in commands.items() if flag in parser._option_string_actions]
    return f'; did you mean {" or ".join(having)}?' if having else ''


def literal(text: str) -> Any:
    """A Python literal, `true` or `false`; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return {'true': True, 'false': False}.get(text.lower(), text)


class Pairs(argparse.Action):
    """`key=value …` into a dict, values read by `literal` (timm's `ParseKwargs`)."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        pairs = {}
        for word in values:
            key, separator, text = word.partition('=')
            if not separator:
                raise UserError(f'{option_string}: {word!r} is not key=value')
            pairs[key] = literal(text)
        setattr(namespace, self.dest, pairs)


def add_flags(parser: argparse.ArgumentParser, options: type[Options], only: Collection[str] = ()) -> None:
    """Adds a flag for every option, or for those in `only`; flags that are not given leave no trace in the parsed
    namespace."""
    titles: dict[str, str] = {}
    for cls in options.__mro__:
        for name in inspect.get_annotations(cls):
            titles.setdefault(name, (cls.__doc__ or '').strip().split('\n')[0])
    groups: dict[str, Any] = {}
    for field, kind in options.kinds():
        if only and field.name not in only:
            continue
        title = titles[field.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_flag(groups[title], field, kind)


def _add_flag(group: Any, field: dataclasses.Field[Any], kind: Any) -> None:
    meta = field.metadata
    default = field.default if field.default is not dataclasses.MISSING else {}
    shown = ' '.join(f'{v:g}' for v in default) if isinstance(default, tuple) else default
    help_text = meta['help'].replace('%', '%%')
    if shown not in (None, '', {}, False):
        help_text += f' (default: {shown})'
    kwargs: dict[str, Any] = dict(dest=field.name, default=argparse.SUPPRESS, help=help_text)
    kind, _ = _plain(kind)
    names = [*meta['short'], _flag(field.name)]
    if kind is bool:
        group.add_argument(*names, action='store_true', **kwargs)
        if not field.name.startswith('no_'):
            kwargs['help'] = argparse.SUPPRESS
            group.add_argument('--no-' + _flag(field.name)[2:], action='store_false', **kwargs)
        return
    named = [*filter(None, meta['choices'] or ()), *(['MODULE:ATTRIBUTE'] if meta['references'] else [])]
    named += [f'{prefix}NAME' for prefix in meta['prefixes']]
    metavar = '{' + ','.join(named) + '}' if len(named) > 1 else ''.join(named) or meta['metavar']
    kwargs['metavar'] = metavar or {int: 'N', float: 'X'}.get(kind, field.name.upper().replace('_', '-'))
    if kind is dict or typing.get_origin(kind) is dict:
        kwargs |= dict(nargs='*', action=Pairs, metavar='KEY=VALUE')
    elif typing.get_origin(kind) is tuple:
        action = 'extend' if str in typing.get_args(kind) else 'store'  # names may be given one by one
        kwargs |= dict(nargs='+', action=action, metavar=meta['metavar'] or 'X')
    elif meta['const'] is not None:
        kwargs |= dict(nargs='?', const=meta['const'])
    group.add_argument(*names, **kwargs).values = [*filter(None, meta['choices'] or ())]  # for `completion`


def given_flags(namespace: argparse.Namespace, options: type[Options]) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in vars(namespace).items() if name in options.names()}
