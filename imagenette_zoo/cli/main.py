"""The command line: `imagenette-zoo COMMAND`, and the doors `train.py` and `validate.py`."""

from __future__ import annotations

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..config.fields import Parser
from ..errors import UserError
from ..version import __version__
from .data import _add_data, _add_list, _data, _list
from .inference import _add_predict, _add_validate, _predict, _validate
from .sharing import _add_demo, _add_export, _add_publish, _demo, _export, _publish
from .study import (
    _add_analyse,
    _add_passes,
    _add_report,
    _add_run,
    _add_study,
    _analyse,
    _passes,
    _report,
    _run,
    _study,
)
from .train import _add_train, _train

__all__ = [
    'main',
    'train_main',
    'validate_main',
]

UNUSABLE = (errno.EACCES, errno.ENAMETOOLONG)  # what the system says of a name that no command has looked at


def main(argv: Sequence[str] | None = None) -> int:
    """`imagenette-zoo`: runs a command; what the user can mend is one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt as request:
        print('\ninterrupted', file=sys.stderr)
        return getattr(request, 'exit_code', 130)
    except BrokenPipeError:  # as in `imagenette-zoo list | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.filename is None or error.errno not in UNUSABLE:
            raise
        print(f'error: {error.filename}: {error.strerror}', file=sys.stderr)
        return 2


def train_main(argv: Sequence[str] | None = None) -> int:
    """`train.py`. Returns the exit code."""
    return main(['train', *(sys.argv[1:] if argv is None else argv)])


def validate_main(argv: Sequence[str] | None = None) -> int:
    """`validate.py`. Returns the exit code."""
    return main(['validate', *(sys.argv[1:] if argv is None else argv)])


def _main(argv: Sequence[str]) -> int:
    parser = Parser(prog='imagenette-zoo', description='Train, validate and compare models on Imagenette.')
    parser.add_argument('--version', action='version', version=f'imagenette-zoo {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (add, _, text) in COMMANDS.items():
        words = USAGE.get(name, '')
        add(commands.add_parser(name, help=text, description=text, usage=f'imagenette-zoo {name}{words} [options]'))
    args = _parse(parser, commands, argv)
    return COMMANDS[args.command][1](args)


def _parse(parser: Parser, commands: Any, argv: Sequence[str]) -> argparse.Namespace:
    """Parses with the parser of the command, so that a wrong flag's nearest names are that command's."""
    if argv and argv[0] in commands.choices:
        args = commands.choices[argv[0]].parse_args(argv[1:])
        args.command = argv[0]
        return args
    return parser.parse_args(argv)


USAGE = {
    'run': ' MODEL…',
    'study': ' FILE',
    'analyse': ' RUN…',
    'report': ' PATH…',
    'passes': ' MODEL',
    'predict': ' IMAGE…',
    'export': ' [MODEL]',
    'publish': ' RUN|FOLDER REPO_ID',
    'demo': ' [MODEL…]',
    'data': ' ACTION',
}
COMMANDS: dict[str, tuple[Callable[[Any], None], Callable[[Any], int], str]] = {
    'train': (_add_train, _train, 'train a model by a recipe'),
    'validate': (_add_validate, _validate, 'validate one model or several'),
    'run': (_add_run, _run, 'train models with several seeds and report: the one-liner'),
    'study': (_add_study, _study, 'run what is missing of a study and judge its claims'),
    'analyse': (_add_analyse, _analyse, "what a finished run's weights do with each image, for a report"),
    'report': (_add_report, _report, 'write the report on a study or on any runs'),
    'passes': (_add_passes, _passes, 'compare the passes of a MultiPass model'),
    'predict': (_add_predict, _predict, 'what a trained model takes images for, and where it sees it'),
    'export': (_add_export, _export, 'write a trained model for other programs: ONNX, torch.export, TorchScript'),
    'publish': (_add_publish, _publish, 'put a trained model on the Hugging Face Hub'),
    'demo': (_add_demo, _demo, 'a page that classifies your images and shows why'),
    'list': (_add_list, _list, 'list the models of the zoo'),
    'data': (_add_data, _data, 'fetch and check the data, list and clear its cache'),
}
