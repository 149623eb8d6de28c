"""Finished runs as data: the results of each, by run and seed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config.recipe import Recipe
from ..errors import UserError
from ..training.result import Result, read_result
from ..utils.files import one_at_a_time, write_json
from ..utils.reading import from_json, of_kind, parse_json, read_errors, read_json, read_text
from .analysis import FILES, Analysis, read_analysis
from .metrics import metric_of
from .plan import STEP_TIME_BLOCKS, StepTimes, Study, Trial, differing, read_study
from .statistics import Sample

__all__ = [
    'CHANGES', 'FAILED', 'STEP_TIMES', 'Record', 'as_run', 'by_run', 'check_recipe', 'code_label', 'distinct',
    'decisive_options', 'failures', 'group_runs', 'keep_failure', 'read_record', 'same_hardware', 'sample',
    'samples_of', 'study_before', 'study_records', 'validation_images',
]  # fmt: skip

IN_A_ROW = ('train_loss', 'train_seconds', 'seconds')
FREE = Recipe.may_differ('between seeds')


@dataclass(frozen=True)
class Record:
    """A finished training.

    Args:
        run: The name of the run, the same for all seeds.
        folder: Where it lies.
        result: Its `result.json`.
        history: Its `metrics.jsonl`, a row an epoch.
        analysis: Its predictions for each image, or None where it was not analysed.
        packaged: It came with the package (`baselines.py`): nothing is known of its times.
    """

    run: str
    folder: Path
    result: Result
    history: list[dict[str, Any]]
    analysis: Analysis | None
    packaged: bool = False

    @property
    def seed(self) -> int:
        return self.result.seed

    def reach(self, unit: str, top1: float) -> tuple[float, bool]:
        """`(epochs or seconds to this top-1, whether it was reached)`.

        The number is interpolated between validations; training starts at the accuracy of a guess. Where the top-1
        was not reached it is that of the whole training, a lower bound.
        """
        spent, before = 0.0, (0.0, 100 / max(len(self.result.per_class), 1))
        for row in self.history:
            spent += 1 if unit == 'epochs' else row.get('seconds', math.nan)  # none of a packaged one
            if 'eval_top1' not in row:
                continue
            now = (spent, row['eval_top1'])
            if now[1] >= top1:
                fraction = (top1 - before[1]) / (now[1] - before[1]) if now[1] > before[1] else 1.0
                return before[0] + max(fraction, 0.0) * (now[0] - before[0]), True
            before = now
        return spent, False

    def metric(self, name: str) -> float | None:
        """A metric, as `metric_of` knows it; None where it is not known of this run."""
        metric = metric_of(name)
        value = None if self.packaged and metric.timed else metric.read(self)
        return None if value is None else float(value)


def read_record(folder: Path, run: str) -> Record:
    """A finished run out of its folder.

    Raises:
        UserError: It is not finished, or damaged.
    """
    result = read_result(folder)
    path = folder / 'metrics.jsonl'
    with read_errors(path, 'the metrics of a run'):
        history = [_row(parse_json(line)) for line in read_text(path).splitlines()]
        for row in history:
            if not all(_number(row[name]) for name in IN_A_ROW) or not _number(row.get('eval_top1', 0.0)):
                raise ValueError('no numbers in its rows')
    return Record(run, folder, result, history, read_analysis(folder))


def _row(values: dict[str, Any]) -> dict[str, Any]:
    """A row of the metrics; null is the mean of no finite loss."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isinf(value)


def study_records(study: Study, output: Path) -> list[Record]:
    """The finished trainings of a study that lie in a folder.

    Raises:
        UserError: One is damaged, or was trained by another recipe.
    """
    records = []
    for trial in study.trials():
        folder = output / trial.name
        if (folder / 'result.json').is_file():
            record = read_record(folder, trial.run)
            check_recipe(record.result, trial)
            records.append(record)
    _check_alike(records)
    return records


def validation_images(result: Result) -> tuple[str, str]:
    """How the hash of a training's images was made, and its part that is of the validation images, if it has one."""
    kind, _, parts = str(result.dataset.get('hash') or '').rpartition(':')
    return kind, parts.rpartition('+')[2]


def _check_alike(records: Sequence[Record]) -> None:
    """Raises `UserError` where trainings were validated on several data sets, or the seeds of a run are of several
    codes or training images."""
    first: dict[str, tuple[Any, Record]] = {}
    for record in records:
        kind, val = validation_images(record.result)
        known: list[tuple[str, str, str]] = [
            (f' {kind}', 'validation images', val),
            (record.run, 'images', str(record.result.dataset.get('hash') or '')),
            (record.run, 'code', code_label(record.result) or 'none of the user'),
        ]
        for run, what, value in known:
            then, other = first.setdefault(f'{run} {what}', (value, record)) if value else (value, record)
            if value != then:
                raise UserError(
                    f'{record.folder}: was trained with other {what} than {other.folder.name} '
                    f'({value[:40]}, not {then[:40]}): '
                    f'they cannot be compared: remove one of the two, or start another study (--output)'
                )


FAILED = 'failed.json'  # of a study's folder: why trainings failed, by name
CHANGES = 'changes.json'  # how the claims were changed after results were seen
STEP_TIMES = 'step_times.json'


def as_run(study: Study, output: Path) -> Study:
    """The study, with what its folder knows beside the trainings: which failed, what was changed, and step times.

    Args:
        study: The study.
        output: Its folder.

    Raises:
        UserError: A file of the folder is damaged.
    """
    before = study_before(output)
    study = replace(study, until_decided=study.until_decided or (before is not None and before.until_decided))
    if (output / CHANGES).is_file():
        with read_errors(output / CHANGES, 'the changes of a study'):
            study = replace(study, changes=tuple(of_kind(read_json(output / CHANGES), list[str])))
    if (output / STEP_TIMES).is_file():
        with read_errors(output / STEP_TIMES, 'the step times of a study'):
            study = replace(study, step_times=_step_times(study, read_json(output / STEP_TIMES)))
    failed: dict[str, frozenset[int]] = {}
    late: dict[str, frozenset[int]] = {}
    names = _ever_failed(output)
    for trial in study.trials():
        if trial.name in names:
            seeds = late if (output / trial.name / 'result.json').is_file() else failed
            seeds[trial.run] = seeds.get(trial.run, frozenset()) | {trial.seed}
    return replace(study, failed=failed, late=late)


def _step_times(study: Study, values: Any) -> StepTimes:
    """The step times in a file, without those of runs that the study has otherwise now."""
    times = from_json(StepTimes, values)
    for name, seconds in times.seconds.items():
        if len(seconds) != STEP_TIME_BLOCKS or min(seconds) <= 0 or times.images.get(name, 0) <= 0:
            raise ValueError(f'{name}: {STEP_TIME_BLOCKS} times above 0 and a number of images are needed')
    same = {
        name: seconds
        for name, seconds in times.seconds.items()
        if name in study.runs
        and times.options.get(name) in (None, decisive_options(study.runs[name].recipe))  # None: of an earlier version
    }
    return replace(times, seconds=same)


def decisive_options(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe that decide about a run, beside the defaults."""
    return {key: value for key, value in differing(recipe.as_dict(), Recipe().as_dict()).items() if key not in FREE}


def failures(output: Path) -> dict[str, str]:
    """Why trainings of a study failed, by name; those that are done by now are left out."""
    known = _ever_failed(output)
    done = {name for name in known if all((output / name / file).is_file() for file in ('result.json', *FILES))}
    return {name: why for name, why in known.items() if name not in done}


def keep_failure(output: Path, name: str, why: str) -> None:
    """Writes down at once that a training failed: a study that is stopped then is judged with it, too. Several
    processes may do so."""
    with one_at_a_time(output / FAILED, lock_stays=True):
        write_json(output / FAILED, _ever_failed(output) | {name: why})


def _ever_failed(output: Path) -> dict[str, str]:
    """Why trainings failed, those included that are done by now."""
    if not (output / FAILED).is_file():
        return {}
    with read_errors(output / FAILED, 'the failures of a study'):
        known: dict[str, str] = of_kind(read_json(output / FAILED), dict[str, str])
        return known


def study_before(output: Path) -> Study | None:
    """The study that a folder holds, None where it holds none."""
    return read_study(output / 'study.yaml') if (output / 'study.yaml').is_file() else None


def check_recipe(result: Result, trial: Trial) -> None:
    """Raises `UserError` where a finished training is not what the study says."""
    for option, value in _as_trained(trial.recipe, result).items():
        then = result.recipe.get(option, value)
        if then != value and option not in FREE - {'seed'}:
            raise UserError(
                f'{result.folder}: was trained with {option} {then}, the study says {value}: correct the study, or '
                'start another one (--output)'
            )


def _as_trained(recipe: Recipe, result: Result) -> dict[str, Any]:
    """The options of a recipe, as it gave way to the images of a training."""
    options = recipe.as_dict()
    images, classes = result.dataset.get('train'), len(result.per_class)
    if not isinstance(images, int):
        return options
    fitted = Recipe.of(options).for_data(images, classes, result.hardware.get('processes', 1))
    return fitted.retried(result.recipe.get('batch_size', 0), result.recipe.get('grad_accum_steps', 0)).as_dict()


def distinct(values: Sequence[Any]) -> list[Any]:
    """The values, each once, in their order."""
    unique: list[Any] = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique


def group_runs(folders: Sequence[Path]) -> list[Record]:
    """Finished runs out of any folders, grouped: those that differ only by the seed are seeds of one run.

    A run is named by its folder, without the seed; where its seeds have folders of other names, or other runs the same,
    by its model, and by the options in which it differs from the others with that model.

    Raises:
        UserError: One is not finished or damaged, or two are the same run with the same seed.
    """
    read = [read_record(folder, '') for folder in folders]
    recipes = [_recipe(record.result) for record in read]
    kinds = distinct(recipes)
    own = [[each.folder for each, recipe in zip(read, recipes, strict=True) if recipe == kind] for kind in kinds]
    by_options = [_name(kind, kinds) for kind in kinds]
    names = [_folder_name(each, own) or name for each, name in zip(own, by_options, strict=True)]
    if len(set(names)) < len(names):  # a folder has the name of another run's model
        names = by_options
    named = [
        Record(names[kinds.index(recipe)], record.folder, record.result, record.history, record.analysis)
        for record, recipe in zip(read, recipes, strict=True)
    ]
    seen: dict[tuple[str, int], Path] = {}
    for record in named:
        other = seen.setdefault((record.run, record.seed), record.folder)
        if other is not record.folder:
            raise UserError(f'{record.folder} and {other}: the same run with the same seed: give one of them')
    return named


def _folder_name(folders: Sequence[Path], all_of_them: Sequence[Sequence[Path]]) -> str:
    """The name that the folders of a run have in common, without the seed, and no other run has; or nothing."""

    def stems(some: Sequence[Path], parts: int) -> set[str]:
        paths = [Path(*folder.absolute().parts[-parts:]).as_posix() for folder in some]
        return {re.sub(r'-seed\d+$', '', path) for path in paths}

    for parts in (1, 2):  # the folder's name, else with that of the folder that it is in
        names = stems(folders, parts)
        if len(names) == 1 and sum(bool(names & stems(other, parts)) for other in all_of_them) == 1:
            return names.pop()
    return ''


def _recipe(result: Result) -> dict[str, Any]:
    """The options that decide about a run, with the name and the hash of its images and of the user's own code."""
    data = {'data': result.dataset.get('name'), 'data_hash': result.dataset.get('hash')}
    return {**options_of(result), **data, 'code': code_label(result)}


def code_label(result: Result) -> str | None:
    """The user's own code that a run was trained with: each file or module with the first 12 digits of its SHA-256."""
    return ', '.join(f'{name} {sha256[:12]}' for name, sha256 in sorted(result.code.items())) or None


def options_of(result: Result) -> dict[str, Any]:
    """The options that decide about a run; one that its version did not have yet is at its default."""
    return {key: value for key, value in {**Recipe().as_dict(), **result.recipe}.items() if key not in FREE}


def _name(recipe: Mapping[str, Any], all_of_them: Sequence[Mapping[str, Any]]) -> str:
    model = str(recipe.get('model', 'run'))
    same = [other for other in all_of_them if other.get('model') == model]
    keys = recipe.keys() | {key for other in same for key in other}
    differing = sorted(key for key in keys if any(recipe.get(key) != other.get(key) for other in same))
    defaults = Recipe().as_dict()
    words = [f'{key}={recipe.get(key)}' for key in differing if recipe.get(key) != defaults.get(key)]
    return ' '.join([model, *words]) if differing else model


def same_hardware(records: Iterable[Record]) -> bool:
    """Whether the times of trainings compare, but for packaged ones, which have none."""
    return len(distinct([record.result.hardware for record in records if not record.packaged])) == 1


def by_run(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each run, by seed."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.run, []).append(record)
    return {run: sorted(records, key=lambda record: record.seed) for run, records in runs.items()}


def sample(
    records: Sequence[Record],
    metric: str,
    seeds: Sequence[int] = (),
    failed: Collection[int] = (),
    late: Collection[int] = (),
) -> Sample | None:
    """A metric of the seeds of one run, None where it is known of none.

    Args:
        records: The trainings of the run.
        metric: Its name.
        seeds: Those of the study, in its order; others follow upwards.
        failed: Seeds whose training failed.
        late: Seeds whose training failed before it was done: looks were made without them.

    Raises:
        UserError: The analyses of two seeds are of unlike images.
    """
    by_seed = {record.seed: record for record in records if record.metric(metric) is not None}
    if metric == 'top1' and any(record.analysis for record in by_seed.values()):
        # Without the answers of one seed nothing would be known of how much images matter: it waits for its analysis.
        by_seed = {seed: record for seed, record in by_seed.items() if record.analysis}
    if not by_seed:
        return None
    there = {*by_seed, *failed}
    order = [*(seed for seed in seeds if seed in there), *sorted(there - set(seeds))]
    known = [by_seed.get(seed) for seed in order]
    values = [_value(record, metric) for record in known]
    diverged = frozenset(record.seed for record in by_seed.values() if not math.isfinite(record.result.loss))
    correct, images = None, ''
    looked_at = [record.analysis for record in by_seed.values() if record.analysis is not None]
    if metric == 'top1' and looked_at:
        if len({each.images for each in looked_at}) > 1:
            folders = ', '.join(str(record.folder) for record in by_seed.values())
            raise UserError(
                f'{folders}: their analyses are of unlike images: make them anew, by imagenette-zoo analyse with '
                'one --data-dir'
            )
        images = looked_at[0].images
        nothing = np.zeros(len(looked_at[0].correct), bool)  # of a seed that failed
        rows = [record.analysis.correct.numpy() if record and record.analysis else nothing for record in known]
        correct = np.stack(rows)
        values = [100.0 * float(row.mean()) if record else None for row, record in zip(rows, known, strict=True)]
    hardware = [record.result.hardware if record else {} for record in known] if metric_of(metric).timed else []
    return Sample(values, order, correct, metric_of(metric).exact, images, diverged, hardware, frozenset(late))


def _value(record: Record | None, metric: str) -> float | None:
    """A metric of a training; None of one that failed, and where it is no number."""
    value = record.metric(metric) if record else None
    unknown = value is None or math.isnan(value) or (math.isinf(value) and not metric_of(metric).reached)
    return None if unknown else value


def samples_of(study: Study, runs: Mapping[str, Sequence[Record]]) -> dict[tuple[str, str], Sample]:
    """The numbers that the claims of a study are judged by.

    Args:
        study: Its claims, and its seeds in their order; others follow upwards.
        runs: The trainings of each run.
    """
    samples = {}
    for claim in study.claims:
        for run in claim.runs:
            for metric in filter(None, (claim.metric, claim.fallback)):
                if metric_of(metric).by_steps:
                    numbers = _step_sample(study.step_times, metric, run)
                else:
                    lost, late = study.failed.get(run, ()), study.late.get(run, ())
                    numbers = sample(runs.get(run, ()), metric, study.all_seeds, lost, late)
                if numbers is not None:
                    samples[metric, run] = numbers
    return samples


def _step_sample(times: StepTimes | None, metric: str, run: str) -> Sample | None:
    """A metric of the timed steps of one run, block by block; None where they were not timed."""
    if times is None or run not in times.seconds:
        return None
    seconds, images = times.seconds[run], times.images[run]
    return Sample([1000 * each if metric == 'step_time' else images / each for each in seconds])
