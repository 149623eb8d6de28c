"""The command line."""

from ..utils.streams import open_missing

open_missing()  # before anything else opens a file
