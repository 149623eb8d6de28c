"""A PostScript file that calls itself a photo, and a Ghostscript that leaves a mark when it is started."""

import os
from pathlib import Path

import pytest

POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n'

needs_posix = pytest.mark.skipif(os.name == 'nt', reason='the Ghostscript here is a shell script')


def write_ghostscript(place: Path) -> Path:
    """The file that `place/gs` makes when it is started."""
    mark = place / 'started'
    (place / 'gs').write_text(f'#!/bin/sh\necho "$@" >> "{mark}"\n')
    (place / 'gs').chmod(0o755)
    return mark


def path_before(place: Path) -> str:
    """A `PATH` that begins with a folder."""
    return os.pathsep.join([str(place), os.environ.get('PATH', '')])
