"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
import importlib
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ['Mistakes', 'UserError', 'UserErrors', 'cleaned', 'first_line', 'os_reason', 'require', 'nearest']


class UserError(Exception):
    """Bad input: one line that names the thing, the value, what was expected and what to do next.

    The command line prints the line without a traceback and exits with code 2. Everything else that is raised is a
    programmer's mistake and keeps its traceback. Names of strangers in the line are `cleaned`.
    """

    def __init__(self, message: object = '') -> None:
        super().__init__(cleaned(str(message)))

    def _render_traceback_(self) -> list[str]:
        """The lines that IPython shows instead of a traceback."""
        return [f'error: {line}' for line in self.lines]

    @property
    def lines(self) -> list[str]:
        """Its lines: one, but for `UserErrors`."""
        return str(self).split('\n')

    def at(self, where: str) -> UserError:
        """The same, each line of it with the place before it."""
        return UserErrors(UserError(f'{where}: {line}') for line in self.lines)


class UserErrors(UserError):
    """Several errors, a line each, as all the mistakes of a file."""

    def __init__(self, errors: Iterable[UserError]) -> None:
        Exception.__init__(self, '\n'.join(line for error in errors for line in error.lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return UserErrors, (list(map(UserError, self.lines)),)


class Mistakes:
    """Collects errors, so that all the mistakes of a file are said at once.

    Attributes:
        errors: Those so far.
    """

    most = 20  # that are shown

    def __init__(self) -> None:
        self.errors: list[UserError] = []

    @contextmanager
    def collected(self, where: str = '') -> Iterator[None]:
        """Keeps the error of the block, if there is one, and goes on after it; `where` begins each of its lines."""
        try:
            yield
        except UserError as error:
            self.errors.append(error.at(where) if where else error)

    def check(self) -> None:
        """Raises `UserError` where there was any, `UserErrors` where there were several."""
        errors = list({str(error): error for error in self.errors}.values())
        if len(errors) == 1:
            raise errors[0]
        if errors:
            more = len(errors) - self.most
            note = [UserError(f'and {more} more')] if more > 0 else []
            raise UserErrors([*errors[: self.most], *note])


JOINERS = '\u200c\u200d'  # some scripts and emoji need them


def cleaned(text: str, keep: str = '') -> str:
    """Text of strangers that is fit for a terminal and a line: characters that can't be printed become �; any space
    stays.

    Class names and file names may hold anything: an escape sequence clears the screen, a newline forges a line. The
    surrogates of a file name that is no Unicode stay: the streams of the command line escape them.

    Args:
        text: As it was found.
        keep: Characters that stay as well, as the newlines between lines of our own.
    """
    if text.isprintable():
        return text
    stays = keep + JOINERS
    return ''.join(
        c if c.isprintable() or c in stays or '\ud800' <= c <= '\udfff' or unicodedata.category(c) == 'Zs' else '�'
        for c in text
    )


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the first of the message, else the kind of error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_reason(error: BaseException) -> str:
    """What went wrong in a few words, on one line."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ' '.join(text.split())


def require(module: str, what: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        module: Its name.
        what: What needs it, as the user asked for it.
        extra: The extra that installs it.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition('.')[0]
        raise UserError(f'{what} needs {package}: pip install "imagenette-zoo[{extra}]"') from None


def nearest(name: str, known: Iterable[str]) -> str:
    """`'; did you mean …?'` for the known names most like `name`, or nothing."""
    bare = {each.lstrip('-'): each for each in known}  # dashes would make flags alike
    matches = difflib.get_close_matches(name.lstrip('-'), bare, n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(bare[match] for match in matches)}?' if matches else ''
