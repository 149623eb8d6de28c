"""The average of checkpoints, as timm's `avg_checkpoints.py` makes it.

`Averaging Weights Leads to Wider Optima and Better Generalization` (Izmailov et al. 2018) -
https://arxiv.org/abs/1803.05407. The statistics of BatchNorm are averaged like weights, not computed anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.recipe import Recipe
from ..config.uses import AverageOptions, UseOptions
from ..errors import UserError
from ..models import factory
from ..models.model_folder import (
    check_alike,
    has_average,
    load_weights,
    model_folder,
    read_config,
    read_metric,
    read_weights,
    save_model_folder,
)
from ..utils.console import Console
from ..utils.files import write_errors
from ..utils.process import restore_process
from ..utils.reading import parse_json, read_errors, read_text
from .loading import load_trained, run_of

__all__ = ['average']

FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class _Checkpoint:
    """A model folder or a file of weights.

    Args:
        path: Where it is.
        kind: What its metric is called; empty where it has none.
        metric: The larger, the better.
    """

    path: Path
    kind: str = ''
    metric: float = 0.0

    def weights(self, use_ema: bool) -> dict[str, torch.Tensor]:
        return read_weights(self.path / 'model.safetensors' if os.path.isdir(self.path) else self.path, use_ema)


@restore_process()
def average(sources: Sequence[str], options: AverageOptions, console: Console) -> Path:
    """Writes a model folder with the mean of the best checkpoints.

    Args:
        sources: Runs, for the folders in their `checkpoints/`; model folders; files of weights, as timm's trainer
            saves them.
        options: How many, of which model, and where it is written.
        console: Is told which.

    Returns:
        The model folder.

    Raises:
        UserError: There is none, they are of several models, they have no metric to choose by, or the folder exists.
    """
    output = Path(options.output)
    if os.path.lexists(output):
        raise UserError(f'--output {output}: exists: choose another folder, or remove it')
    if not os.path.isdir(output.absolute().parent):
        raise UserError(f'--output {output}: no such folder as {output.absolute().parent}')
    found = {os.path.realpath(each.path): each for source in sources for each in _checkpoints(source)}
    chosen = _best([*found.values()], options)
    trained, config = _model(chosen, options)
    for each in chosen:
        console.line(f'{each.path}' + (f': {each.kind} {abs(each.metric):.4g}' if each.kind else ''))
    mean = _mean(chosen, not options.no_use_ema)
    load_weights(trained, mean, output)
    with write_errors(output), tempfile.TemporaryDirectory(prefix='.average-', dir=output.absolute().parent) as folder:
        save_model_folder(Path(folder, 'model'), config, trained.state_dict())
        os.rename(Path(folder, 'model'), output)
    console.line(f'{output}: the average of {len(chosen)}; imagenette-zoo validate --model {output} says what it gives')
    return output


def _checkpoints(source: str) -> list[_Checkpoint]:
    """Those that a name means.

    Raises:
        UserError: There are none.
    """
    path = Path(source.removeprefix('local-dir:'))
    if os.path.isfile(path):
        metric = read_metric(path)
        return [_Checkpoint(path)] if metric is None else [_Checkpoint(path, 'metric', metric)]
    if os.path.isdir(path / 'checkpoints'):
        folders = sorted(path.glob('checkpoints/epoch-*/'), key=_epoch)
        if not folders:
            raise UserError(f'{path}: has no checkpoints yet: expected checkpoints/epoch-N')
        return [_of_run(each) for each in folders]
    folder = model_folder(source)
    if folder is None:
        raise UserError(f'{source}: no run, model folder or file of weights has this name')
    return [_of_run(folder)]


def _epoch(folder: Path) -> int:
    digits = folder.name.removeprefix('epoch-')
    return int(digits) if digits.isdecimal() else -1


def _of_run(folder: Path) -> _Checkpoint:
    """A model folder with what its run says of its epoch."""
    run = run_of(folder)
    if run is None or _epoch(folder) < 0 or not os.path.isfile(run / 'metrics.jsonl'):
        return _Checkpoint(folder)
    metric = Recipe.load(run / 'args.yaml').eval_metric
    with read_errors(run / 'metrics.jsonl', 'the metrics of a run'):
        rows = {row['epoch']: row for row in map(parse_json, read_text(run / 'metrics.jsonl').splitlines())}
        value = rows.get(_epoch(folder), {}).get(f'eval_{metric}')
        if value is None:
            return _Checkpoint(folder)
        return _Checkpoint(folder, metric, -float(value) if metric == 'loss' else float(value))


def _best(checkpoints: Sequence[_Checkpoint], options: AverageOptions) -> list[_Checkpoint]:
    """The `n` best, the best last; all, where there are no more or they are not to be sorted."""
    if options.no_sort or len(checkpoints) <= options.n:
        return [*checkpoints]
    for each in checkpoints:
        if not each.kind:
            raise UserError(f'{each.path}: has no metric to choose {options.n} by: leave it out, or give --no-sort')
    if len(kinds := sorted({each.kind for each in checkpoints})) > 1:
        raise UserError(f'checkpoints with {" and ".join(kinds)} have no common order: give --no-sort')
    return sorted(checkpoints, key=lambda each: each.metric)[-options.n :]


def _model(checkpoints: Sequence[_Checkpoint], options: AverageOptions) -> tuple[torch.nn.Module, dict[str, object]]:
    """The model of the best checkpoint, and the `config.json` of all.

    Raises:
        UserError: They are of several models, or files do not say of which.
    """
    cpu, path = torch.device('cpu'), checkpoints[-1].path
    folders = [each.path for each in checkpoints if os.path.isdir(each.path)]
    if folders and (options.model or len(folders) < len(checkpoints)):
        raise UserError(f'{folders[0]}: a model folder says its model itself: leave out --model and other files')
    if not folders:
        if not options.model:
            raise UserError(f"{path}: a file doesn't say its model: give --model NAME")
        given = {name: getattr(options, name) for name in AverageOptions.names() & UseOptions.names()}
        use_ema = not options.no_use_ema and has_average(path)
        trained = load_trained(options.model, UseOptions(**given, checkpoint=str(path), use_ema=use_ema), cpu)
        names = trained.class_names if trained.named else None
        model_config = factory.model_config(trained.model, trained.config, names, options.model_kwargs)
        return trained.model, model_config
    config = read_config(path)
    for other in folders:
        theirs = read_config(other)
        for key in ('architecture', 'num_classes', 'model_args', 'label_names'):
            if theirs.get(key) != config.get(key):
                raise UserError(f'{other}: is another model than {path}: its {key} differs: average those of one run')
    return load_trained(str(path), UseOptions(model=str(path)), cpu).model, config


def _mean(checkpoints: Sequence[_Checkpoint], use_ema: bool) -> dict[str, torch.Tensor]:
    """The mean of each tensor, whole numbers too, summed in float64 and given in float32, as timm's script does.

    Raises:
        UserError: A checkpoint has other tensors than the first.
    """
    first = checkpoints[0].weights(use_ema)
    total = {name: tensor.to(torch.float64, copy=True) for name, tensor in first.items()}
    for each in checkpoints[1:]:
        weights = each.weights(use_ema)
        check_alike(first, weights, each.path)
        for name, tensor in weights.items():
            total[name] += tensor
    return {name: (t / len(checkpoints)).clamp(FLOAT32.min, FLOAT32.max).float() for name, t in total.items()}
