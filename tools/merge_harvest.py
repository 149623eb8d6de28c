#!/usr/bin/env python3
"""Takes what a GPU gave in a harvest (harvest_gpu.py) into docs/results, and makes the pages on it anew.

python tools/merge_harvest.py ARCHIVE

A study goes into docs/results/STEP with its page docs/STEP.md, a table of speeds into docs/results/speed/GPU, how the
visits went into docs/results/harvest. An archive that holds anything else is refused, and so is a training that differs
from one that is there.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import ROOT, write_page
from harvest_archive import STATE, STUDY_FILES, TRAINING_FILES, studies, unpack

from imagenette_zoo.errors import UserError
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.records import STEP_TIMES, as_run, study_records
from imagenette_zoo.utils.files import write_atomic
from imagenette_zoo.utils.reading import read_errors, read_json


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', type=Path, help='harvest.tar.gz')
    parser.add_argument('--docs', type=Path, default=ROOT / 'docs', metavar='DIR', help='the folder of the pages')
    args = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            unpack(args.archive, Path(temporary))
            names = merge(Path(temporary), args.docs)
        for name in names:
            write_page(args.docs, name)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def merge(harvest: Path, docs: Path) -> list[str]:
    """Copies the results of an unpacked harvest; all of them are looked at before the first is written.

    Returns:
        The names of the studies that have finished trainings.

    Raises:
        UserError: One is damaged, or differs from one that is there.
    """
    files, names = {}, []
    for name, folder in studies(harvest):
        study = as_run(read_study(folder / 'study.yaml'), folder)
        records = study_records(study, folder)
        if not records:
            continue
        names.append(name)
        target = docs / 'results' / name
        if (docs / f'{name}.md').exists() and not (target / 'study.yaml').exists():
            raise UserError(f'{docs / name}.md: is no page of a study, so a step cannot have this name')
        files |= {target / file: folder / file for file in STUDY_FILES if (folder / file).is_file()}
        for record in records:
            training = record.folder.name
            own = {target / training / file: record.folder / file for file in TRAINING_FILES}
            for there, file in own.items():  # else the better of two could be kept
                _check_same(there, file)
            files |= own
        _check_same(target / STEP_TIMES, folder / STEP_TIMES)
    files |= {_unused(docs / 'results' / 'speed', file): file for file in sorted(harvest.glob('*/speed/*.json'))}
    told = docs / 'results' / 'harvest'
    files |= {told / name: harvest / name for name in _told(harvest)}
    if (told / STATE).exists():
        with read_errors(told / STATE, 'the state of a harvest'):
            before, now = (list(read_json(place / STATE)['visits']) for place in (told, harvest))
        if now[: len(before)] != before:
            raise UserError(f'{told}: has visits that the archive lacks: merge a newer one, or move that folder away')
    for there, file in files.items():
        there.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(there, file.read_bytes())
        print(there)
    return names


def _check_same(there: Path, file: Path) -> None:
    """Raises `UserError` where a result would be replaced by another."""
    if there.exists() and file.exists() and there.read_bytes() != file.read_bytes():
        raise UserError(f'{there}: is another already: remove one of the two')


def _unused(folder: Path, file: Path) -> Path:
    """Where a table of speeds goes: beside others of its GPU, or where it is already."""
    with read_errors(file, 'a table of speeds'):
        hardware = read_json(file)['hardware']
        name = re.sub(r'[^a-z0-9]+', '-', str(hardware['gpu'] or hardware['cpu']).lower()).strip('-')
    number, path = 1, folder / name / file.name
    while path.exists() and path.read_bytes() != file.read_bytes():
        number += 1
        path = path.with_name(f'{file.stem}-{number}.json')
    return path


def _told(harvest: Path) -> Iterator[str]:
    """How the visits went: the state, and what the steps printed."""
    with read_errors(harvest / STATE, 'the state of a harvest'):
        list(read_json(harvest / STATE)['visits'])
    yield STATE
    yield from (f'logs/{path.name}' for path in sorted(harvest.glob('logs/*.log')))


if __name__ == '__main__':
    sys.exit(main())
