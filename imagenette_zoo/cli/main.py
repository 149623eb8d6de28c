"""The command line: `imagenette-zoo COMMAND`, and the doors `train.py` and `validate.py`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from ..config.fields import Parser
from ..errors import UserError
from ..utils.streams import Output, complain
from ..version import __version__
from . import data, inference, new, sharing, study, train

__all__ = ['main', 'train_main', 'validate_main']

COMMANDS = (  # as the help lists them
    train.TRAIN,
    inference.VALIDATE,
    study.RUN,
    study.STUDY,
    study.ANALYSE,
    study.REPORT,
    study.PASSES,
    inference.PREDICT,
    sharing.EXPORT,
    sharing.PUBLISH,
    sharing.DEMO,
    new.NEW,
    data.LIST,
    data.DATA,
)
UNUSABLE = (errno.EACCES, errno.ENAMETOOLONG)  # what the system says of a name that no command has looked at


def main(argv: Sequence[str] | None = None) -> int:
    """`imagenette-zoo`: runs a command; what the user can mend is one line and exit code 2. Exit code 1 is for what was
    done but for a part, as where some of several images can't be read."""
    output = Output(sys.stdout)
    try:
        with redirect_stdout(output):
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
        complain(f'error: {error}')
        return 2
    except KeyboardInterrupt as request:
        complain('')
        complain('interrupted')
        return getattr(request, 'exit_code', 130)
    except OSError as error:
        if error.filename is None or error.errno not in UNUSABLE:
            raise
        complain(f'error: {error.filename}: {error.strerror}')
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
    parser = Parser(prog='imagenette-zoo', description='Train, validate and compare models on Imagenette.')
    parser.add_argument('--version', action='version', version=f'imagenette-zoo {__version__}')
    subparsers = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    commands = {command.name: command for command in COMMANDS}
    for name, command in commands.items():
        usage = f'imagenette-zoo {name}{command.usage} [options]'
        own = subparsers.add_parser(name, help=command.help, description=command.help, usage=usage)
        if name in argv:  # the modules of the others are not loaded
            command.add_arguments(own)
    if argv and argv[0] in commands:  # by its own parser, which knows the nearest names of a wrong flag
        args = subparsers.choices[argv[0]].parse_args(argv[1:])
        if commands[argv[0]].imports:
            from ..utils.modules import import_modules

            primary = os.environ.get('RANK', '0') == '0'
            import_modules(getattr(args, 'device_modules', ()), complain if primary else None)
        return commands[argv[0]].run(args)
    args = parser.parse_args(argv)
    return commands[args.command].run(args)
