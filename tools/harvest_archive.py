"""The archive of a harvest: what may be in it, how it is packed and how it is read. See harvest_gpu.py."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imagenette_zoo.data.archives import extract
from imagenette_zoo.errors import UserError, os_reason
from imagenette_zoo.study.adaptive import ROUNDS
from imagenette_zoo.study.records import CHANGES, FAILED, STEP_TIMES
from imagenette_zoo.training.run_folder import ANALYSIS_FILES
from imagenette_zoo.utils.files import write_atomic

__all__ = ['MOST_BYTES', 'STATE', 'STUDY_FILES', 'TRAINING_FILES', 'lacking', 'pack', 'results', 'studies', 'unpack']

MOST_BYTES = 14 * 2**20
LOG_LINES = 200
STATE = 'harvest.json'
TRAINING_FILES = ('args.yaml', 'metrics.jsonl', 'result.json', *ANALYSIS_FILES)
STUDY_FILES = ('study.yaml', CHANGES, FAILED, ROUNDS, STEP_TIMES)
NAME = r'[\w=,.-]*\w[\w=,.-]*'  # of a folder or file
RESULTS = (  # what an archive may hold
    STATE,
    rf'logs/{NAME}\.log',
    rf'{NAME}/{NAME}/(?:{"|".join(map(re.escape, STUDY_FILES))})',
    rf'{NAME}/{NAME}/logs/{NAME}\.log',
    rf'{NAME}/{NAME}/{NAME}-seed\d+/(?:{"|".join(map(re.escape, TRAINING_FILES))})',
    rf'{NAME}/speed/{NAME}\.json',
)
IS_RESULT = re.compile('|'.join(f'(?:{pattern})' for pattern in RESULTS))
# Left out one after the other where all is too much.
DISPENSABLE = (r'.*/logs/.*', r'logs/.*')


def results(folder: Path) -> dict[str, Path]:
    """The result files of a harvest's folder by their names below it; of trainings those that are finished."""
    found = {}
    # Path.rglob raises where a training that runs removes a checkpoint meanwhile.
    for path in sorted(Path(parent, file) for parent, _, files in os.walk(folder) for file in files):
        name = path.relative_to(folder).as_posix()
        if IS_RESULT.fullmatch(name) and path.is_file() and not path.is_symlink():
            of_training = path.name in TRAINING_FILES and '-seed' in path.parent.name
            if not of_training or all((path.parent / other).is_file() for other in TRAINING_FILES):
                found[name] = path
    return found


def studies(folder: Path) -> Iterator[tuple[str, Path]]:
    """The steps of a harvest that are studies: name and the study's folder."""
    for file in sorted(folder.glob('*/*/study.yaml')):
        yield file.parents[1].name, file.parent


def pack(folder: Path, archive: Path, most: int = MOST_BYTES) -> list[str]:
    """Writes a harvest's results into its archive; logs are cut to their last lines.

    Args:
        folder: The harvest's folder.
        archive: The file, which at any moment is the old one or the new one.
        most: Bytes that it may have.

    Returns:
        What was left out for want of room.
    """
    files, left = results(folder), []
    data = _packed(files)
    for pattern in DISPENSABLE:
        if len(data) <= most:
            break
        left += [name for name in files if re.fullmatch(pattern, name)]
        files = {name: path for name, path in files.items() if name not in left}
        data = _packed(files)
    if len(data) > most:
        raise UserError(
            f'{archive}: would have {len(data):,} bytes, {most:,} are the most: merge what it has, and begin another'
        )
    write_atomic(archive, data)
    return left


def lacking(folder: Path, archive: Path) -> list[str]:
    """The results in an archive that a harvest's folder lacks.

    Raises:
        UserError: It is no archive.
    """
    try:
        with tarfile.open(archive) as tar:
            names = tar.getnames()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{archive}: can't read the archive: {os_reason(error)}") from None
    there = results(folder)
    return [name for name in names if not name.endswith('.log') and name not in there]


def _packed(files: dict[str, Path]) -> bytes:
    """The same bytes for the same files."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode='wb', mtime=0) as packed, tarfile.open(fileobj=packed, mode='w') as tar:
        for name, path in files.items():
            data = path.read_bytes()
            if name.endswith('.log'):
                data = b'\n'.join(data.splitlines()[-LOG_LINES:]) + b'\n'
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive into an empty folder.

    Raises:
        UserError: It is damaged, or holds anything but results.
    """
    if not archive.is_file():
        raise UserError(f'{archive}: no such archive')
    extract(archive, folder)
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not IS_RESULT.fullmatch(name):
            raise UserError(f'{archive}: holds {name!r}, which is no result of a harvest: get it from who made it')
