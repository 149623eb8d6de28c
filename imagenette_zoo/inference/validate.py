"""Validation of one model or several on the same images."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config.groups import ValidationOptions
from ..data.folders import ImageSet
from ..data.loaders import is_lost_worker, lost_worker
from ..errors import UserError, cleaned
from ..models.factory import compiled, model_cost
from ..utils import environment
from ..utils.console import Console, html_table, table
from ..utils.distributed import World, choose_device
from ..utils.files import check_place, write_atomic, write_json
from ..utils.memory import is_out_of_memory
from ..utils.process import restore_process
from .evaluate import evaluate, features_of, shift_consistency
from .loading import TrainedModel, images_of, load_trained, not_finite, training_images_of
from .onnx_model import OnnxModel
from .probes import all_features, knn, linear_probe

__all__ = ['Validation', 'Validations', 'validate']


@dataclass
class Validation:
    """The results of validating one model.

    Accuracies and errors are in %; `confusion` has a row for each true class; `shift_consistency` is None where
    it was not asked for. `averages` has `macro_precision`, `macro_recall` and `macro_f1_score` where `metrics_avg` is
    `macro`, `probes` has `knn_top1` and `linear_probe_top1` where they were asked for; in files they stand beside the
    others. A model that tells other classes apart than those of the images is only probed: what follows from its logits
    is None or empty.
    """

    model: str
    top1: float | None
    top5: float | None
    loss: float | None
    calibration_error: float | None
    shift_consistency: float | None
    params: int
    gmacs: float | None
    img_size: int
    crop_pct: float
    interpolation: str
    images: int
    images_per_second: float
    per_class: dict[str, float]
    confusion: list[list[int]]
    dataset: str
    versions: dict[str, str] = field(repr=False)
    hardware: dict[str, Any] = field(repr=False)
    crop_mode: str = 'center'
    averages: dict[str, float] = field(default_factory=dict)
    probes: dict[str, float] = field(default_factory=dict)


class Validations(list[Validation]):
    """Results in the order in which models were named; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        return html_table(_summary(self))


@restore_process()
def validate(
    model: str | Path | Sequence[str] | ValidationOptions,
    data_dir: str | Path | None = None,
    *,
    quiet: bool = False,
    **options: Any,
) -> Validations:
    """Validates one model or several on the same images.

    Args:
        model: A run's folder or its `best/`, `local-dir:FOLDER`, `hf-hub:NAME`, a model's name (with `checkpoint`
            or `pretrained`, if its weights don't come with the package), several of these, or a
            whole `ValidationOptions`.
        data_dir: As `--data-dir`.
        quiet: Prints nothing.
        **options: The other fields of `ValidationOptions`.

    Returns:
        One `Validation` a model, in the order given.

    Raises:
        UserError: Bad input, in one line.
    """
    if not isinstance(model, ValidationOptions):
        names = (str(model),) if isinstance(model, (str, Path)) else tuple(model)
        model = ValidationOptions(model=names, data_dir=str(data_dir) if data_dir else None, **options)
    if not model.model:
        raise UserError('--model is needed: give a run or a model, as in --model runs/NAME')
    check_place('--results-file', model.results_file)
    console = Console(quiet)
    world = World(choose_device(model.device))
    images = images_of(model.model, model)
    probing = model.knn or model.linear_probe
    training_images = training_images_of(model.model, model, images) if probing else None
    opened = []
    channels_last = model.is_channels_last(world.device)
    log = console.line if model.log_swaps else None
    for name in model.model:  # all, before the first is evaluated
        with _full_memory(name):
            try:
                trained = load_trained(name, model, world.device, channels_last, images, model.reparam, log)
            except UserError:
                if not probing:
                    raise
                trained = load_trained(
                    name, model, world.device, channels_last, None, model.reparam, log, headless=True
                )
            if probing:  # whether it has features
                features_of(trained, trained.normalize.mean.new_zeros(2, *trained.config['input_size']))
            opened.append(trained)
    results = Validations()
    for trained in opened:
        with _full_memory(trained.name):
            results.append(_validate_one(trained, model, images, training_images, world, console))
        if model.results_file:  # after each, so that nothing computed is lost
            _write_results(Path(model.results_file), results)
    console.line()
    console.line(table(_summary(results)))
    if model.results_file:
        console.line(f'\nresults: {model.results_file}')
    return results


@contextmanager
def _full_memory(name: str) -> Iterator[None]:
    """Turns full memory and lost workers into a `UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_lost_worker(error):
            raise lost_worker(error) from error
        if not is_out_of_memory(error):
            raise
        raise UserError(f'{name}: out of memory: try a smaller --batch-size, as in -b 16') from error


def _validate_one(
    trained: TrainedModel,
    options: ValidationOptions,
    images: ImageSet,
    training_images: ImageSet | None,
    world: World,
    console: Console,
) -> Validation:
    model, config, normalize = trained.model, trained.config, trained.normalize
    params, gmacs = (model.params, None) if isinstance(model, OnnxModel) else model_cost(model, config['input_size'])
    # 256 images of 224 px took up to 5.6 GiB on two cores, 64 take 1.6 and are as fast
    batch_size = options.batch_size or (64 if world.device.type == 'cpu' else 256)
    batches = trained.batches(images, options, batch_size, world, console)
    scores = consistency = probes = None
    start = time.perf_counter()
    if training_images is not None:
        others = trained.batches(training_images, options, batch_size, world, console)
        train, targets = all_features(trained, others, training_images, options, world, console)
        rows, truth = all_features(trained, batches, images, options, world, console)
        probes = _probe(train, targets, rows, truth, len(images.classes), options)
    seconds = time.perf_counter() - start
    if trained.class_names == list(images.class_names):
        fast = compiled(model, options)
        scores = evaluate(model, batches, normalize, images, options, world, console, fast, batch_size)
        seconds = scores.seconds
        if not math.isfinite(scores.loss):
            raise not_finite(trained.name)
        if options.shift_consistency:
            consistency = shift_consistency(model, batches, normalize, scores, options, console)
    result = Validation(
        model=trained.name,
        top1=scores.top1 if scores else None,
        top5=scores.top5 if scores else None,
        loss=scores.loss if scores else None,
        calibration_error=scores.calibration_error() if scores else None,
        shift_consistency=consistency,
        params=params,
        gmacs=gmacs,
        img_size=config['input_size'][-1],
        crop_pct=config['crop_pct'],
        interpolation=config['interpolation'],
        images=len(images),
        images_per_second=(len(images) if scores else len(images) + len(training_images or ())) / seconds,
        per_class=scores.per_class if scores else {},
        confusion=scores.confusion.tolist() if scores else [],
        dataset=f'{images.root.name}/{images.split}',
        versions=environment.versions(),
        hardware=environment.hardware(world.device),
        crop_mode=config['crop_mode'],
        averages=scores.averages(options.metrics_avg) if scores and options.metrics_avg else {},
        probes=probes or {},
    )
    if scores:
        console.line(_report(result, list(images.class_names)))
    return result


def _probe(
    train: torch.Tensor,
    targets: torch.Tensor,
    rows: torch.Tensor,
    truth: torch.Tensor,
    classes: int,
    options: ValidationOptions,
) -> dict[str, float]:
    """Top-1 in % by what features of training images tell of those of validation images."""
    predictions = {}
    if options.knn:
        predictions['knn_top1'] = knn(train, targets, rows, classes, options.knn_k, options.knn_t)
    if options.linear_probe:
        predictions['linear_probe_top1'] = linear_probe(train, targets, rows, classes)
    return {name: 100 * (each == truth).double().mean().item() for name, each in predictions.items()}


def _write_results(path: Path, results: Sequence[Validation]) -> None:
    rows = [asdict(result) for result in results]
    for row in rows:
        row.update({**row.pop('averages'), **row.pop('probes')})
    if path.suffix == '.json':
        write_json(path, rows if len(rows) > 1 else rows[0])
        return
    flat = [
        {
            **{key: value for key, value in row.items() if not isinstance(value, (dict, list))},
            **{f'top1 {cleaned(key)}': value for key, value in row['per_class'].items()},
        }
        for row in rows
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in flat for key in row)), lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    write_atomic(path, buffer.getvalue().encode())


def _report(result: Validation, names: list[str]) -> str:
    """Top-1 and the confusion matrix of one model."""
    letters = [chr(ord('a') + index) for index in range(len(names))] if len(names) <= 26 else []
    rows = [('class', 'top-1 %', *letters)]
    for index, name in enumerate(names):
        counts = [str(count) if count else '·' for count in result.confusion[index]] if letters else []
        label = f'{letters[index]} {name}' if letters else name
        rows.append((label, f'{result.per_class[name]:.1f}' if name in result.per_class else '–', *counts))
    title = f'\n{cleaned(f"{result.model} on {result.dataset}")} ({result.images:,} images, {result.img_size} px'
    title += '; rows: true class, columns: predicted class)' if letters else ')'
    return f'{title}\n{table(rows)}'


def _summary(results: Sequence[Validation]) -> list[list[str]]:
    """A row a model, after a header."""
    averages = dict.fromkeys(name for result in results for name in {**result.averages, **result.probes})
    shifts = any(result.shift_consistency is not None for result in results)
    rows = [
        [
            'model',
            'top-1 %',
            'top-5 %',
            'loss',
            'calibration error %',
            *(['shift consistency %'] if shifts else []),
            *(f'{name.replace("top1", "top-1").replace("_", " ")} %' for name in averages),
            'images/s',
            'M parameters',
            'GMACs',
        ]
    ]
    for result in results:
        shift = [_number(result.shift_consistency)] if shifts else []
        rows.append(
            [
                result.model,
                _number(result.top1),
                _number(result.top5),
                _number(result.loss, 3),
                _number(result.calibration_error),
                *shift,
                *(_number({**result.averages, **result.probes}.get(name)) for name in averages),
                f'{result.images_per_second:.0f}',
                f'{result.params / 1e6:.2f}',
                _number(result.gmacs),
            ]
        )
    return rows


def _number(value: float | None, decimals: int = 2) -> str:
    return '–' if value is None else f'{value:.{decimals}f}'
