"""Writes docs/leaderboard.md from the result files in docs/results/leaderboard.

    python tools/leaderboard.py             # the page
    python tools/leaderboard.py RUN ...     # takes finished runs in first

A row is a recipe, hparams/leaderboard/{PX}px_{EPOCHS}e.yaml. Its runs may differ from it by model, seed and label
noise; they lie in docs/results/leaderboard/ROW/MODEL-seedN, or .../MODEL-noise5-seedN, or .../MODEL-imagewoof-seedN. A
run that breaks a rule of the public leaderboard, or was trained by another recipe, is refused.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.models.factory import model_cost
from imagenette_zoo.study.records import FREE, Record, by_run, read_record
from imagenette_zoo.utils.console import counted
from imagenette_zoo.utils.files import write_atomic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'leaderboard.md'
RECIPES = ROOT / 'hparams' / 'leaderboard'
RESULTS = ROOT / 'docs' / 'results' / 'leaderboard'

# https://github.com/fastai/imagenette at ba8db39: top-1 % by data set, label noise and pixels, for these epochs
EPOCHS = (5, 20, 80, 200)
RECORDS = {
    ('imagenette', 0, 128): (87.43, 91.57, 93.55, 94.24),
    ('imagenette', 0, 192): (86.76, 92.50, 94.50, 95.03),
    ('imagenette', 0, 256): (86.85, 93.53, 94.90, 95.11),
    ('imagenette', 5, 128): (83.44, 89.53, 89.30, 90.04),
    ('imagenette', 5, 192): (84.13, 90.65, 91.01, 91.08),
    ('imagenette', 5, 256): (88.87, 91.39, 92.95, 93.96),
    ('imagenette', 50, 128): (66.60, 79.36, 50.80, 52.18),
    ('imagenette', 50, 192): (67.54, 79.34, 52.51, 53.71),
    ('imagenette', 50, 256): (76.72, 79.21, 57.76, 61.48),
    ('imagewoof', 0, 128): (76.61, 86.27, 87.83, 87.20),
    ('imagewoof', 0, 192): (81.15, 88.37, 90.30, 89.54),
    ('imagewoof', 0, 256): (78.84, 88.58, 90.48, 90.38),
    ('imagewang', 0, 128): (72.94, 72.18, 69.53, 66.04),
    ('imagewang', 0, 192): (77.07, 77.81, 74.90, 71.77),
    ('imagewang', 0, 256): (79.56, 79.20, 78.41, 79.27),
}
IMAGES = {  # training and validation images
    (9469, 3925): 'imagenette',
    (9025, 3929): 'imagewoof',
    (14669, 3929): 'imagewang',
}
RUNS = 5
TEXT = """# Against the leaderboards of Imagenette, Imagewoof and Imagewang

Written by `python tools/leaderboard.py` from the files in [results/leaderboard](results/leaderboard).

- The rules are those of the [public leaderboard](https://github.com/fastai/imagenette#leaderboard): random initial
  weights, no test-time augmentation, validation size not above training size, the mean of runs with different seeds.
- One rule is ours: the weights are those of the final epoch.
- Recipes were fixed before these runs. Held-out training images judged the trials before them ([log](log.md)).
- One change was made later: mixup at 20 epochs was added after a run without it.
- Imagenette's images are stored as 224×224 JPEGs here. The public rows have them in their true aspect ratio.
- Imagewoof's are 320 px in their true aspect ratio, from [a copy](https://github.com/q878787/imagewoof2-320) of
  `imagewoof2-320`. Its row has Imagenette's recipe: nothing of it was chosen on Imagewoof.
- ± is the standard deviation over the runs. Minutes are of a machine that others used, too: they do not compare.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, nargs='*', help='folder of a finished run')
    args = parser.parse_args(arguments)
    try:
        for folder in args.run:
            take(folder)
        write_atomic(PAGE, page().encode())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'wrote {PAGE}')
    return 0


def take(folder: Path) -> None:
    """Copies the results of a finished run, if it belongs to a row."""
    record = read_record(folder, '')
    row = f'{record.result.img_size}px_{record.result.epochs}e'
    _check(record, row)
    target = RESULTS / row / f'{_run(record)}-seed{record.seed}'
    for name in ('args.yaml', 'metrics.jsonl', 'result.json'):
        data, file = (folder / name).read_bytes(), target / name
        if file.exists() and file.read_bytes() != data:  # else the better of two runs could be kept
            raise UserError(f'{target}: has another run with this seed already; choose another seed, or remove it')
        target.mkdir(parents=True, exist_ok=True)
        write_atomic(file, data)


def page() -> str:
    """The page's text."""
    header = (
        'data', 'px', 'epochs', 'label noise', 'model', 'top-1 %', 'runs', 'record', 'difference', 'M parameters',
        'GMACs', 'minutes a run', 'on', 'repeat',
    )  # fmt: skip
    lines = [f'| {" | ".join(header)} |', '|---|' + '---:|' * 3 + '---|' + '---:|' * 7 + '---|---|']
    touched = set()
    for row, runs in rows():
        touched.add((*key(runs[0]), runs[0].result.epochs))
        lines.append(f'| {" | ".join(_cells(runs, row))} |')
    missing = ''
    for data, noise, size in RECORDS:
        epochs = [str(number) for number in EPOCHS if (data, noise, size, number) not in touched]
        if epochs:
            noisy = f', {noise} % label noise' if noise else ''
            missing += f'- {data.title()}, {size} px{noisy}: {", ".join(epochs)} epochs\n'
    return TEXT + '\n'.join(lines) + (f'\n\nNot tried, among others:\n\n{missing}' if missing else '\n')


def rows() -> Iterator[tuple[str, list[Record]]]:
    """The row of each recipe, and its runs of one model: the best model first."""
    for file in sorted(RECIPES.glob('*.yaml'), key=lambda file: tuple(map(int, re.findall(r'\d+', file.stem)))):
        records = [_read(folder, file.stem) for folder in sorted((RESULTS / file.stem).glob('*-seed*'))]
        for runs in sorted(by_run(records).values(), key=mean_top1, reverse=True):
            yield file.stem, runs


def key(record: Record) -> tuple[str, int, int]:
    """The data set, label noise and pixels of a run."""
    result = record.result
    return IMAGES[result.dataset['train'], result.dataset['val']], result.recipe['label_noise'], result.img_size


def _cells(runs: Sequence[Record], row: str) -> Iterator[str]:
    result, mean = runs[0].result, mean_top1(runs)
    data, noise, size = key(runs[0])
    record = dict(zip(EPOCHS, RECORDS.get((data, noise, size), ()), strict=False)).get(result.epochs)
    yield from (data.title(), str(result.img_size), str(result.epochs))
    yield from (f'{noise} %' if noise else '', f'`{result.model}`')
    spread = f' ± {statistics.stdev(run.result.top1 for run in runs):.2f}' if len(runs) > 1 else ''
    yield f'{mean:.2f}{spread}'
    yield str(len(runs)) + ('' if len(runs) >= RUNS else f' of {RUNS}')
    yield from (f'{record:.2f}', f'{mean - record:+.2f}') if record is not None else ('', '')
    gmacs = result.gmacs
    if gmacs is None:  # a while they were not counted in models with blur pooling
        gmacs = model_cost(timm.create_model(result.model), (3, result.img_size, result.img_size))[1]
    yield from (f'{result.params / 1e6:.2f}', f'{gmacs:.2f}' if gmacs is not None else '')
    yield f'{statistics.mean(float(run.result.seconds["total"] or 0) for run in runs) / 60:.1f}'
    yield ' or '.join(dict.fromkeys(_machine(run.result.hardware) for run in runs))
    more = ['--model', result.model] if result.model != Recipe.load(RECIPES / f'{row}.yaml').model else []
    more += ['--label-noise', str(noise)] if noise else []
    more += ['--data-dir', str(result.dataset['name'])] if data != 'imagenette' else []
    yield f'`{" ".join(["train.py -c", f"hparams/leaderboard/{row}.yaml", *more, "--seed N"])}`'


def _machine(hardware: Mapping[str, Any]) -> str:
    return hardware['gpu'] or f'{counted(hardware["threads"], "thread")}, {hardware["cpu"]}'


def mean_top1(runs: Sequence[Record]) -> float:
    return statistics.mean(run.result.top1 for run in runs)


def _run(record: Record) -> str:
    data, noise, _ = key(record)
    return record.result.model + (f'-noise{noise}' if noise else '') + (f'-{data}' if data != 'imagenette' else '')


def _read(folder: Path, row: str) -> Record:
    record = read_record(folder, '')
    _check(record, row)
    return Record(_run(record), folder, record.result, record.history, None)


def _check(record: Record, row: str) -> None:
    """Raises `UserError` where a run is not one of a row, or breaks a rule."""
    file = RECIPES / f'{row}.yaml'
    if not file.is_file():
        raise UserError(f'{record.folder}: there is no recipe {file.relative_to(ROOT)}, so it is in no row')
    expected, recipe = Recipe.load(file).as_dict(), record.result.recipe
    for option, value in expected.items():
        if recipe.get(option, value) != value and option not in FREE | {'model', 'label_noise'}:
            raise UserError(f'{record.folder}: was trained with {option} {recipe[option]}, {file.name} says {value}')
    largest = max(recipe['train_img_sizes'] or [recipe['img_size']])
    rules = {
        'starts from trained weights': recipe['pretrained'] or recipe['initial_checkpoint'],
        'is validated at more pixels than it was trained with': record.result.img_size > largest,
        f'is not of {row}': row != f'{record.result.img_size}px_{record.result.epochs}e',
        'is not of the whole of Imagenette, Imagewoof or Imagewang': (
            record.result.dataset['train'], record.result.dataset['val']
        ) not in IMAGES,
    }
    for what, broken in rules.items():
        if broken:
            raise UserError(f'{record.folder}: {what}')


if __name__ == '__main__':
    sys.exit(main())
