"""The one exception that means "the user can mend this"."""

__all__ = ['UserError']


class UserError(Exception):
    """Bad input: one line that names the thing, the value, what was expected and what to do next.

    The command line prints the line without a traceback and exits with code 2. Everything else that is raised is a
    programmer's mistake and keeps its traceback.
    """
