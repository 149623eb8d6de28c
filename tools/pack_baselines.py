"""Puts the trainings of the study `zoo` into the package, as baselines for `imagenette-zoo run MINE --against zoo`.

    python tools/pack_baselines.py runs/zoo

Writes imagenette_zoo/study/zoo.safetensors, whole or not at all: the same bytes for the same trainings. Those that are
not finished are left out, and named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from imagenette_zoo.errors import UserError
from imagenette_zoo.study.baselines import FILE, pack
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.records import by_run, study_records
from imagenette_zoo.utils.console import counted
from imagenette_zoo.utils.files import write_atomic


def main(words: list[str] | None = None, file: Path = FILE) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', type=Path, metavar='RUNS', help='the folder of the study')
    args = parser.parse_args(words)
    try:
        study = read_study(args.runs / 'study.yaml')
        runs = by_run(study_records(study, args.runs))
        records = [record for name in study.runs for record in runs.get(name, ()) if record.analysis is not None]
        data = pack(records)
        write_atomic(file, data)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{counted(len(records), "training")} of {counted(len(runs), "run")} in {file}, {len(data) / 1024:.0f} KiB')
    done = {(record.run, record.seed) for record in records}
    if missing := [trial.name for trial in study.trials() if (trial.run, trial.seed) not in done]:
        print(f'not finished: {", ".join(missing)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
