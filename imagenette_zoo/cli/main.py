"""The command line: `imagenette-zoo COMMAND`, and the doors `train.py` and `validate.py`."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from ..config.fields import Parser
from ..errors import UserError
from ..utils.launch import read_slurm
from ..utils.signals import sigterm_interrupts
from ..utils.streams import Output, brief_leftovers, complain
from ..utils.threads import spin_briefly
from ..version import __version__
from . import completion, data, inference, new, runs, sharing, study, timm_scripts, train
from .command import Command

__all__ = ['main', 'make_parser', 'train_main', 'validate_main']

_COMMANDS = (  # as the help lists them
    train.TRAIN,
    inference.VALIDATE,
    study.RUN,
    study.STUDY,
    study.ANALYSE,
    study.REPORT,
    study.PASSES,
    inference.PREDICT,
    inference.AVERAGE,
    sharing.EXPORT,
    sharing.PUBLISH,
    sharing.DEMO,
    runs.RUNS,
    timm_scripts.TIMM,
    new.NEW,
    data.LIST,
    data.DATA,
    completion.COMPLETION,
)
COMMANDS = {command.name: command for command in _COMMANDS}
# What the system says of a name that no command has looked at, or of its own limits.
UNUSABLE = (errno.EACCES, errno.ENAMETOOLONG)
LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """`imagenette-zoo`: runs a command; what the user can mend is one line and exit code 2. Exit code 1 is for what was
    done but for a part, as where some of several images can't be read."""
    output = Output(sys.stdout)
    signals: list[int] = []
    try:
        with sigterm_interrupts() as signals, brief_leftovers(), redirect_stdout(output):
            try:
                code = _main(sys.argv[1:] if argv is None else argv)
            except OSError as error:
                if error is not output.failure:
                    raise
                code = 0
            except SystemExit:  # after the help
                output.check()
                raise
            output.check()
            return code
    except UserError as error:
        if signals:  # it is what a library made of the interruption
            complain('interrupted')
            return 128 + signals[0]
        for line in error.lines:
            complain(f'error: {line}')
        return 2
    except KeyboardInterrupt as request:
        if not getattr(request, 'explained', False):
            complain('')
            complain('interrupted')
        return getattr(request, 'exit_code', 130)
    except OSError as error:
        if error.errno not in LIMITS and (error.filename is None or error.errno not in UNUSABLE):
            raise
        name = 'the system' if error.filename is None else error.filename
        complain(f'error: {name}: {error.strerror}' + '; raise ulimit -n' * (error.errno == errno.EMFILE))
        return 2
    finally:
        with suppress(OSError):  # not at the exit, which would say so once more
            output.flush()


def train_main(argv: Sequence[str] | None = None) -> int:
    """`train.py`. Returns the exit code."""
    return main(['train', *(sys.argv[1:] if argv is None else argv)])


def validate_main(argv: Sequence[str] | None = None) -> int:
    """`validate.py`. Returns the exit code."""
    return main(['validate', *(sys.argv[1:] if argv is None else argv)])


def _main(argv: Sequence[str]) -> int:
    spin_briefly()
    read_slurm()
    parser = make_parser(argv)
    if not argv:
        parser.print_help()
        return 2
    if argv[0] not in COMMANDS:  # a flag, or a mistake
        parser.parse_args(argv)
    command = COMMANDS[argv[0]]
    [subparsers] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    args = subparsers.choices[argv[0]].parse_args(argv[1:])  # by its own parser, which knows its flags
    if command.starts is not None:
        _start(command, args)
    return command.run(args)


def make_parser(argv: Sequence[str] | None = None) -> Parser:
    """The parser of the command line; of the commands only those in `argv` have their arguments, or all."""
    parser = Parser(prog='imagenette-zoo', description='Train, validate and compare models on Imagenette.')
    parser.add_argument('--version', action='version', version=f'imagenette-zoo {__version__}')
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, command in COMMANDS.items():
        usage = f'imagenette-zoo {name}{command.usage} [options]'
        own = subparsers.add_parser(name, help=command.help, description=command.help, usage=usage)
        if argv is None or name in argv:
            command.add_arguments(own)
    return parser


def _start(command: Command, args: argparse.Namespace) -> None:
    """Says what a command does, and then imports what takes seconds: torch and timm, and the user's own code."""
    assert command.starts is not None
    line = command.starts(args)
    primary = os.environ.get('RANK', '0') == '0'
    if primary and command.is_log and not getattr(args, 'print_commands', False):
        print(line, flush=True)
    elif primary and sys.stderr.isatty():
        complain(line)
    from ..utils.modules import import_modules

    import_modules(getattr(args, 'device_modules', ()), complain if primary else None)
