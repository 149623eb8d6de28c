"""Python runs this when it starts, where `imagenette-zoo timm` has put this folder on PYTHONPATH: before timm's script,
and in every process that the script starts."""

import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def _zoo() -> None:
    if os.environ.get('IMAGENETTE_ZOO_PREFIX') != sys.prefix:  # a Python with other packages
        return
    if importlib.util.find_spec('imagenette_zoo') is None:  # a checkout that is not installed
        sys.path.append(os.path.abspath(os.path.join(HERE, *[os.pardir] * 3)))
    importlib.import_module('imagenette_zoo.cli.timm_scripts').await_timm()


def _other() -> None:
    """Takes this folder off the path again, and runs the `sitecustomize` that it hid, if any."""
    sys.path[:] = [folder for folder in sys.path if folder != HERE]
    this = sys.modules.pop('sitecustomize')
    try:
        if importlib.util.find_spec('sitecustomize') is not None:
            importlib.import_module('sitecustomize')
    finally:
        sys.modules.setdefault('sitecustomize', this)


_zoo()
_other()
