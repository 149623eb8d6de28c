"""The result of a run: the rows of its epochs summed up, in a file and in print."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm

from ..config.recipe import Recipe
from ..data.cache import files_hash
from ..models.own import code_of
from ..utils import environment
from ..utils.console import Console, counted, duration, html_table, table
from ..utils.reading import from_json, read_errors, read_json
from .run import Run

__all__ = [
    'Result', 'differences', 'end_reason', 'epoch_line', 'make_result', 'print_summary', 'ranking', 'read_result',
]  # fmt: skip

THRESHOLDS = (80, 85, 90)  # % top-1, after how long


@dataclass
class Result:
    """The result of a run: the content of its `result.json`.

    Accuracies are in %, times in seconds, memory in MiB. `per_class` belongs to `top1`. `seconds['setup']` is the time
    before the first step (decoding, compiling), `seconds['total']` that of training and validation together.
    `seconds['to_80']` is the total until the end of the validation that first gave 80 % top-1, or None.
    `best_epoch` counts from 0, as timm does: its weights are in `checkpoints/epoch-N/` of that number. `code` has the
    SHA-256 of each module of the user's own, `teacher` that of the weights of `kd_model_name`, as `model.safetensors`
    holds them. `stopped` says why the run ended by `stop_at` or `patience`.
    """

    model: str
    top1: float
    best_top1: float
    best_epoch: int
    top5: float
    loss: float
    per_class: dict[str, float]
    epochs: int
    img_size: int
    seed: int
    params: int
    gmacs: float | None
    seconds: dict[str, float | None]
    images_per_second: float
    peak_memory_mib: float
    recipe: dict[str, Any]
    dataset: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    command: str
    code: dict[str, str] = field(default_factory=dict)
    stopped: str = ''
    teacher: str = ''
    folder: Path = field(default=Path(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        values = asdict(self)
        del values['folder']
        return values

    def _repr_html_(self) -> str:
        """A short table, for notebooks."""
        cells = {
            'model': self.model,
            'top-1 %': f'{self.top1:.2f}',
            'best top-1 %': f'{self.best_top1:.2f} (epoch {self.best_epoch + 1})',
            'top-5 %': f'{self.top5:.2f}',
            'epochs': str(self.epochs),
            'time': duration(self.seconds['total'] or 0.0),
            'images/s': f'{self.images_per_second:.0f}',
            'M parameters': f'{self.params / 1e6:.2f}',
            'folder': str(self.folder),
        }
        return html_table([tuple(cells), tuple(cells.values())])


def read_result(folder: Path) -> Result:
    """The result in a run's folder.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = folder / 'result.json'
    with read_errors(path, 'the result of a run'):
        return from_json(Result, read_json(path), folder=folder)


def differences(then: Result, run: Run) -> list[str]:
    """The differences between a finished run and one that is ready, as `'torch 2.10.0 then, 2.11.0 now'`."""
    train, val = run.data.train, run.data.val
    world = run.learner.world
    now = [environment.versions(), environment.hardware(world.device, world.size), run.recipe.as_dict()]
    before = [then.versions, then.hardware, then.recipe]
    differing = []
    for old, new in zip(before, now, strict=True):
        differing += environment.changes(old, new, but=Recipe.may_differ('in a repeat'))
    code = code_of(run.recipe.model)
    for name in sorted(then.code.keys() | code.keys()):
        if then.code.get(name) != code.get(name):
            old_hash, new_hash = (each.get(name, 'none')[:12] for each in (then.code, code))
            differing.append(f'the code in {name}: SHA-256 {old_hash} then, {new_hash} now')
    if then.teacher != _teacher(run):
        old_hash, new_hash = (each[:12] or 'none' for each in (then.teacher, _teacher(run)))
        differing.append(f'the weights of the teacher: SHA-256 {old_hash} then, {new_hash} now')
    data = _dataset(run)
    if any(data.get(name) != value for name, value in then.dataset.items()):
        same = {name for name in ('name', 'train', 'val') if then.dataset.get(name) == data[name]}
        what = 'other images' if len(same) == 3 else f'{len(train):,} and {len(val):,} images of {train.root.name}'
        differing.append(f'the data: {what} now')
    return differing


def _teacher(run: Run) -> str:
    return '' if run.learner.teacher is None else run.learner.teacher.sha256


def _dataset(run: Run) -> dict[str, Any]:
    train, val = run.data.train, run.data.val
    return {
        'name': Path(os.path.abspath(train.root)).name,
        'train': len(train),
        'val': len(val),
        'hash': run.data_hash,
        'files': files_hash(train, val),
    }


def ranking(history: Sequence[dict[str, Any]], recipe: Recipe) -> list[int]:
    """The epochs whose weights are kept, best first; of equal ones the earlier."""
    sign = 1 if recipe.eval_metric == 'loss' else -1
    scored = [row for row in history if 'eval_loss' in row]
    ranked = sorted(scored, key=lambda row: (sign * row['eval_' + recipe.eval_metric], row['epoch']))
    return [row['epoch'] for row in ranked[: recipe.checkpoint_hist]]


def end_reason(history: Sequence[dict[str, Any]], recipe: Recipe) -> str:
    """Why a run ends after the last of these epochs: its goal or the end of its patience; nothing where neither is."""
    last = history[-1] if history else {}
    if 'eval_loss' not in last:
        return ''
    if recipe.goal:
        metric, value = recipe.goal
        now = last[f'eval_{metric}']
        if now <= value if metric == 'loss' else now >= value:
            return f'{recipe.stop_at} is reached'
    waited = last['epoch'] - ranking(history, recipe)[0]
    if 0 < recipe.patience <= waited:
        return f'{recipe.eval_metric} is no better than {counted(waited, "epoch")} before'
    return ''


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """The line that is printed at the end of an epoch."""
    scores = (
        f'top-1 {row["eval_top1"]:.2f} %, top-5 {row["eval_top5"]:.2f} %, loss {row["eval_loss"]:.3f}, '
        if 'eval_loss' in row
        else ''
    )
    return (
        f'epoch {row["epoch"] + 1:>{len(str(epochs))}} of {epochs}: {scores}training loss {row["train_loss"]:.3f}, '
        f'{row["train_images"] / row["train_seconds"]:.0f} images/s, {duration(row["seconds"])}'
    )


def _seconds_to(history: Sequence[dict[str, Any]], top1: float) -> float | None:
    elapsed = 0.0
    for row in history:
        elapsed += row['seconds']
        if row.get('eval_top1', 0.0) >= top1:
            return elapsed
    return None


def make_result(run: Run, params: int, gmacs: float | None) -> Result:
    """The result of a run whose epochs are done."""
    recipe, history = run.recipe, run.history
    last = history[-1]
    best = history[ranking(history, recipe)[0]]
    train_seconds = sum(row['train_seconds'] for row in history)
    seconds = {
        'setup': run.setup_seconds,
        'total': sum(row['seconds'] for row in history),
        'train': train_seconds,
        'eval': sum(row.get('eval_seconds', 0.0) for row in history),
        **{f'to_{top1}': _seconds_to(history, top1) for top1 in THRESHOLDS},
    }
    return Result(
        model=recipe.model,
        top1=last['eval_top1'],
        best_top1=best['eval_top1'],
        best_epoch=best['epoch'],
        top5=last['eval_top5'],
        loss=last['eval_loss'],
        per_class=last['per_class'],
        epochs=len(history),
        img_size=run.config['input_size'][-1],
        seed=recipe.seed,
        params=params,
        gmacs=gmacs,
        seconds=seconds,
        images_per_second=sum(row['train_images'] for row in history) / train_seconds,
        peak_memory_mib=last['peak_memory_mib'],
        recipe=recipe.as_dict(),
        dataset=_dataset(run),
        versions=environment.versions(),
        hardware=environment.hardware(run.learner.world.device, run.learner.world.size),
        command=environment.this_command(),
        code=run.folder.code(),
        stopped=end_reason(history, recipe),
        teacher=_teacher(run),
        folder=run.folder.path,
    )


def print_summary(result: Result, console: Console) -> None:
    """Prints the accuracies by class, the scores, and where everything is."""
    console.line()
    console.line(table([('class', 'top-1 %'), *((name, f'{top1:.1f}') for name, top1 in result.per_class.items())]))
    console.line()
    is_last = result.best_top1 <= result.top1
    best = '' if is_last else f' (best {result.best_top1:.2f} % at epoch {result.best_epoch + 1})'
    reached = [f'{n} % after {duration(s)}' for n in THRESHOLDS if (s := result.seconds[f'to_{n}']) is not None]
    console.line(
        f'top-1 {result.top1:.2f} %{best}, top-5 {result.top5:.2f} % after {counted(result.epochs, "epoch")} in '
        f'{duration(result.seconds["total"] or 0.0)}' + (f'; {", ".join(reached)}' if reached else '')
    )
    if result.stopped:
        console.line(f'stopped after epoch {result.epochs}: {result.stopped}')
    elif goal := result.recipe.get('stop_at'):
        console.line(f'the goal {goal} was not reached')
    best_folder = result.folder / 'best'
    opened = f'timm.create_model("local-dir:{best_folder}", pretrained=True)' if timm.is_model(result.model) else ''
    console.line(f'weights:  {best_folder}    {opened}'.rstrip())
    console.line(f'result:   {result.folder / "result.json"}')
    console.line(f'metrics:  {result.folder / "summary.csv"}')
