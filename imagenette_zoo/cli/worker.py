"""Commands of `imagenette-zoo` that one process carries out in turn: `python -m imagenette_zoo.cli.worker`.

A study with `--in-process` starts it, and asks for the next command when it has the answer to the last. A line of
standard input is `{"command": ["train", …], "log": FILE}` as JSON, and one of standard output is the answer
`{"code": 0, "again": true}`. Without `again` the process ends after it. It does so after a command that failed or that
imported code of the user's own, whose traces nobody can remove: the next command finds each process as if it were new.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..utils.memory import collect
from ..utils.modules import imported_modules
from .main import main

__all__ = ['carry_out', 'serve']


def serve() -> None:
    """Carries out what standard input asks for, until it ends."""
    sys.argv = [str(Path(__file__).parents[1] / '__main__.py')]
    with os.fdopen(os.dup(0)) as requests, os.fdopen(os.dup(1), 'w') as answers:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # of the commands
        for line in requests:
            request = json.loads(line)
            code = carry_out(request['command'], request['log'])
            again = code == 0 and not imported_modules()
            print(json.dumps({'code': code, 'again': again}), file=answers, flush=True)
            if not again:
                return


def carry_out(words: Sequence[str], log: str) -> int:
    """The exit code of a command, all output of which is appended to a log."""
    import torch

    sys.argv[1:] = words
    target = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    try:
        code = main(words)
    except Exception:  # as Python ends for it
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    if 'torch._dynamo' in sys.modules:  # which else compiles a class of models a few times only
        torch._dynamo.reset()
    collect(torch.device('cuda' if torch.cuda.is_initialized() else 'cpu'))
    return code


if __name__ == '__main__':
    serve()
