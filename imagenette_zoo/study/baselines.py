"""Trainings that come with the package: one's own are judged against them without training them again.

They are those of the study `zoo`. `tools/pack_baselines.py` makes their file: what each training came to, and its
answer for each validation image. Times are not in it, since they are of another machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ..config.groups import DataOptions, InputOptions
from ..config.hparams import BENCHMARK
from ..data.cache import files_hash
from ..data.locate import load_splits
from ..errors import Mistakes, UserError, first_line, nearest
from ..training.result import Result
from ..utils import environment
from ..utils.files import to_json
from ..utils.reading import from_json, parse_json, read_bytes, read_errors
from .analysis import Analysis
from .plan import Study, StudyRun
from .process import Slot
from .records import Record, by_run, options_of, study_records

__all__ = ['FILE', 'MOST_BYTES', 'about', 'all_records', 'baselines_of', 'check', 'pack', 'read_baselines']

FILE = Path(__file__).parent / 'zoo.safetensors'
MOST_BYTES = 2**20
KEY = 'baselines'
KEPT = (
    'model', 'top1', 'best_top1', 'best_epoch', 'top5', 'loss', 'per_class', 'epochs', 'img_size', 'seed', 'params',
    'gmacs', 'versions',
)  # fmt: skip
LOOKED_AT = ('train_top1', 'train_images', 'shift_consistency', 'calibration_error')
IN_A_ROW = ('train_loss', 'eval_top1')
OF_A_MODEL = {'model', 'model_kwargs'}
# Options in which a run must not differ from the baselines: its size, its labels, its weights and its length.
SAME = InputOptions.names() - {'mean', 'std'} | {'epochs', 'label_noise', 'pretrained', 'initial_checkpoint'}
OF_THE_DATA = DataOptions.names() - {'loader'} | {'num_classes'}  # the images themselves are looked at
VERSIONS = ('imagenette-zoo', 'torch', 'timm', 'pillow')
MUST_AGREE = ('imagenette-zoo', 'torch')  # in their first number


@dataclass(frozen=True)
class _Training:
    """What is kept of a training."""

    run: str
    result: dict[str, Any]
    options: dict[str, Any]
    looked_at: dict[str, Any]
    history: list[list[float | None]]


@dataclass(frozen=True)
class _Pack:
    """The header of the file. `options` and `dataset` are those of all trainings."""

    options: dict[str, Any]
    dataset: dict[str, Any]
    class_names: list[str]
    data: str
    trainings: list[dict[str, Any]] = field(default_factory=list)


def pack(records: Sequence[Record]) -> bytes:
    """The file of some trainings by one recipe: the same bytes for the same trainings.

    Raises:
        UserError: One was not looked at image by image, on other images than the others, or by another recipe.
    """
    header: _Pack | None = None
    answers = []
    for record in records:
        result, analysis = record.result, record.analysis
        if analysis is None:
            command = f'imagenette-zoo analyse {record.folder}'
            raise UserError(f'{record.folder}: was not looked at image by image: {command}')
        options = options_of(result)
        shared = {name: value for name, value in options.items() if name not in OF_A_MODEL}
        one = _Pack(shared, result.dataset, analysis.class_names, analysis.data)
        header = header or one
        for name in ('options', 'dataset'):
            if changes := environment.changes(getattr(header, name), getattr(one, name)):
                raise UserError(f'{record.folder}: differs from {records[0].folder}: {"; ".join(changes)}')
        training = _Training(
            record.run,
            {name: getattr(result, name) for name in KEPT},
            {name: options[name] for name in sorted(OF_A_MODEL)},
            {name: getattr(analysis, name) for name in LOOKED_AT},
            [[row.get(name) for name in IN_A_ROW] for row in record.history],
        )
        header.trainings.append(asdict(training))
        answers.append(analysis)
    if header is None:
        raise UserError('no training is finished yet: there is nothing to pack')
    tensors = {
        'predictions': torch.stack([each.predictions for each in answers]).to(torch.uint8),
        'targets': answers[0].targets.to(torch.uint8),
    }
    data = safetensors.torch.save(tensors, metadata={KEY: to_json(asdict(header))})
    if len(data) > MOST_BYTES:
        raise UserError(f'the baselines take {len(data) / 2**20:.2f} MiB: expected at most {MOST_BYTES >> 20}')
    return data


def read_baselines(path: Path | None = None) -> list[Record]:
    """The trainings that come with the package, in the order of the benchmark; none where none do.

    Args:
        path: Another file of them.

    Raises:
        UserError: The file is damaged.
    """
    path = path or FILE
    if not path.is_file():
        return []
    with read_errors(path, 'a file of baselines', ': install the package again'):
        data = read_bytes(path)
        try:
            tensors = safetensors.torch.load(data)
            text = parse_json(data[8 : 8 + int.from_bytes(data[:8], 'little')].decode())['__metadata__'][KEY]
        except Exception as error:  # a damaged file is reported in many ways
            raise ValueError(first_line(error)[:80]) from None
        header = from_json(_Pack, parse_json(text))
        predictions, targets, classes = tensors['predictions'], tensors['targets'], len(header.class_names)
        known = predictions.dtype == targets.dtype == torch.uint8 and max(predictions.max(), targets.max()) < classes
        if not known or predictions.shape != (len(header.trainings), len(targets)):
            raise ValueError('its answers')
        trainings = [from_json(_Training, each) for each in header.trainings]
        return [_record(header, *each, targets) for each in zip(trainings, predictions, strict=True)]


def _record(header: _Pack, training: _Training, predictions: torch.Tensor, targets: torch.Tensor) -> Record:
    unknown = dict.fromkeys(('images_per_second', 'peak_memory_mib'), math.nan)
    result = from_json(
        Result,
        {
            **training.result, **unknown, 'seconds': {}, 'hardware': {}, 'command': '', 'dataset': header.dataset,
            'recipe': {**header.options, **training.options},
        },
        folder=FILE,
    )  # fmt: skip
    classes = len(header.class_names)
    confusion = torch.bincount(targets.long() * classes + predictions, minlength=classes**2).reshape(classes, classes)
    nothing = torch.full(targets.shape, math.nan, dtype=torch.float16)
    analysis = from_json(
        Analysis,
        {
            **training.looked_at, 'top1': 100 * float((targets == predictions).double().mean()), 'data': header.data,
            'class_names': header.class_names, 'confusion': confusion.tolist(),
        },
        passes=[], targets=targets.short(), predictions=predictions.short(), confidence=nothing,
        true_probability=nothing,
    )  # fmt: skip
    history = [
        {'epoch': epoch, **{name: value for name, value in zip(IN_A_ROW, row, strict=True) if value is not None}}
        for epoch, row in enumerate(training.history)
    ]
    return Record(training.run, FILE, result, history, analysis, packaged=True)


# --- Beside runs of one's own -----------------------------------------------------------------------------------------


def baselines_of(study: Study) -> list[Record]:
    """The baselines that a study names, each run called as there.

    Raises:
        UserError: There is none of that name.
    """
    known = by_run(read_baselines())
    if not known:
        raise UserError(
            f'--against {BENCHMARK}: this version comes without baselines: train them with imagenette-zoo study '
            f'{BENCHMARK}, or name models to train: imagenette-zoo run MINE resnet18'
        )
    chosen: dict[str, list[Record]] = {}
    for name in study.against:
        _, _, run = name.partition(':')
        if run and run not in known:
            raise UserError(f'--against {name}: no baseline {run!r} ({", ".join(known)}){nearest(run, known)}')
        chosen |= {run: known[run]} if run else known
    return [replace(record, run=f'{BENCHMARK}:{record.run}') for each in chosen.values() for record in each]


def all_records(study: Study, output: Path) -> list[Record]:
    """The finished trainings of a study that lie in a folder, and the baselines that it names, if any is finished.

    Raises:
        UserError: As `study_records`; or a training does not compare with the baselines, and why.
    """
    records = study_records(study, output)
    if not study.against or not records:
        return records
    baselines = baselines_of(study)
    mistakes = Mistakes()
    for record in records:
        result = record.result
        wrong, _ = _differences(baselines[0].result, options_of(result), result.dataset, result.versions)
        _refuse(mistakes, record.run, wrong)
    mistakes.check()
    return [*records, *(_on_the_same(record, records) for record in baselines)]


def _on_the_same(baseline: Record, records: Sequence[Record]) -> Record:
    """A baseline whose images have the name of the runs' folder: they are known to be the same."""
    own = next((record.analysis for record in records if record.analysis is not None), None)
    analysis = baseline.analysis
    if own is None or analysis is None or not np.array_equal(own.targets, analysis.targets):
        return baseline
    return replace(baseline, analysis=replace(analysis, data=own.data))


def check(study: Study, slot: Slot) -> list[str]:
    """Looks before a training starts whether its runs compare with the baselines; returns what is to be said.

    Raises:
        UserError: They do not, and why; a line for each difference.
    """
    if not study.against:
        return []
    baselines = baselines_of(study)
    mistakes, notes = Mistakes(), []
    for run in study.runs.values():
        options = {name: value for name, value in run.recipe.as_dict().items() if name in baselines[0].result.recipe}
        wrong, named = _differences(baselines[0].result, options, _dataset(run, slot), environment.versions())
        _refuse(mistakes, run.name, wrong)
        notes += _named(run.name, named)
    mistakes.check()
    return notes + _too_few(study, by_run(baselines))


def _too_few(study: Study, baselines: Mapping[str, Sequence[Record]]) -> list[str]:
    least = study.stages[0][0]
    few = [f'{name} has {len(records)}' for name, records in baselines.items() if len(records) < least]
    return [f'note: shown, but not judged, for that takes {least} seeds: {", ".join(few)}'] if few else []


def _refuse(mistakes: Mistakes, run: str, wrong: Iterable[str]) -> None:
    for each in wrong:
        mistakes.errors.append(
            UserError(
                f'{run} does not compare with the baselines of the package: {each}; train as they were, or train both '
                'yourself: imagenette-zoo run MODEL OTHER'
            )
        )


def _named(run: str, named: Sequence[str]) -> list[str]:
    return [f'note: {run} differs from the baselines of the package: {"; ".join(named)}'] if named else []


def _dataset(run: StudyRun, slot: Slot) -> dict[str, Any]:
    """The images of a run as its result will name them, but for their content; nothing where they are not at hand."""
    recipe = run.recipe
    try:
        train, val = load_splits(recipe.replace(data_dir=slot.data_dir or recipe.data_dir))
    except UserError:  # which is said where they are needed
        return {}
    return {'name': train.root.name, 'train': len(train), 'val': len(val), 'files': files_hash(train, val)}


def _differences(
    baseline: Result, options: Mapping[str, Any], dataset: Mapping[str, Any], versions: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """What forbids to compare a run with the baselines, and what is only to be known."""
    wrong: list[str] = []
    named: list[str] = []
    for name in sorted(options.keys() - OF_A_MODEL - OF_THE_DATA):
        if options[name] != (there := baseline.recipe.get(name)):
            (wrong if name in SAME else named).append(f'{name} {options[name]}, there {there}')
    data = baseline.dataset
    which = 'files' if 'files' in data and 'files' in dataset else 'hash'
    if any(name in dataset and dataset[name] != data.get(name) for name in ('train', 'val', which)):
        wrong.append(f'other images ({_images(dataset)}, there {_images(data)})')
    elif 'hash' in dataset and dataset['hash'] != data.get('hash'):
        named.append(f'the same photos in other files ({dataset.get("name")}, there {data.get("name")})')
    for name in VERSIONS:
        then, now = (str(each.get(name, 'none')) for each in (baseline.versions, versions))
        if then.split('.')[:2] != now.split('.')[:2]:
            refused = name in MUST_AGREE and then.split('.')[0] != now.split('.')[0]
            (wrong if refused else named).append(f'{name} {now}, there {then}')
    return wrong, named


def _images(dataset: Mapping[str, Any]) -> str:
    return f'{dataset.get("name")}: {dataset.get("train")} and {dataset.get("val")}'


def about(records: Sequence[Record]) -> list[str]:
    """What to know of the baselines among the trainings of a report; nothing where there are none."""
    baselines = [record for record in records if record.packaged]
    if not baselines:
        return []
    first = baselines[0].result
    versions = ', '.join(f'{name} {first.versions.get(name)}' for name in VERSIONS[:2])
    names = ', '.join(by_run(baselines))
    lines = [
        f'{names} came with the package: trained before, on {first.dataset.get("name")} with {versions}. Their times '
        'are of another machine, so they are left out.'
    ]
    for run, own in by_run(record for record in records if not record.packaged).items():
        result = own[0].result
        _, named = _differences(first, options_of(result), result.dataset, result.versions)
        lines += [f'{run} differs from them: {"; ".join(named)}.'] if named else []
    return lines
