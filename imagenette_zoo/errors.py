"""The one exception that means "the user can mend this"."""

import importlib
from typing import Any

__all__ = ['UserError', 'first_line', 'require']


class UserError(Exception):
    """Bad input: one line that names the thing, the value, what was expected and what to do next.

    The command line prints the line without a traceback and exits with code 2. Everything else that is raised is a
    programmer's mistake and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What went wrong, in one line: the first of the message, else the kind of error."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
