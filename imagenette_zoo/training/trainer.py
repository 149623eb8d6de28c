"""Training: one loop from a recipe to a run's folder and its result."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from ..data.seeding import seed_everything
from ..errors import UserError
from ..models.catalog import model_cost
from . import build
from .console import Console
from .distributed import join
from .evaluation import evaluate
from .memory import keep_freed_memory, peak_memory
from .prepare import Run, prepare
from .recipe import Recipe
from .result import Result, epoch_line, make_result, ranking, tell

__all__ = ['Result', 'train']


def train(recipe: Recipe, *, quiet: bool = False) -> Result:
    """Trains a model by a recipe.

    Args:
        recipe: All options; ``Recipe.load('mbv2_mish', epochs=5)`` is a start.
        quiet: Prints nothing.

    Returns:
        What it came to; the run's folder holds the same and the weights.

    Raises:
        UserError: Bad input, in one line. What is already computed stays.
    """
    start = time.perf_counter()
    world = join(recipe.device)
    keep_freed_memory()
    console = Console(quiet or not world.primary)
    try:
        run = prepare(recipe, world, console)
        run.setup_seconds = time.perf_counter() - start
        try:
            return _train(run, console)
        except KeyboardInterrupt:
            if run.history:
                console.line(f'to continue: python train.py --resume {run.folder.path}')
            raise
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UserError(f'--torchcompile {recipe.torchcompile}: {str(error).strip().splitlines()[0]}') from error
    finally:
        world.leave()


def _train(run: Run, console: Console) -> Result:
    """The loop over the epochs, and the result at its end."""
    recipe, learner, data, history = run.recipe, run.learner, run.data, run.history
    size = run.config['input_size'][-1]
    params, gmacs = model_cost(learner.model, run.config['input_size'])
    cost = f'{params / 1e6:.2f} M parameters' + ('' if gmacs is None else f', {gmacs:.2f} GMACs at {size} px')
    console.line(
        f'{recipe.model}: {cost}; {len(data.train):,} training and {len(data.val):,} validation images of '
        f'{len(data.train.classes)} classes; {learner.world.device}'
    )
    console.line(f'run folder: {run.folder.path}' + (f', continued at epoch {len(history)}' if history else ''))
    model_args = {**recipe.model_kwargs, **({'global_pool': recipe.gp} if recipe.gp else {})}
    model_config = build.model_config(learner.model, run.config, data.train.class_names, model_args)
    if learner.world.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(learner.world.device)
    for epoch in range(len(history), learner.epochs):
        row = _train_epoch(epoch, run, console)
        if (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == learner.epochs:
            row.update(_evaluate(epoch, run, console))
        learner.after_epoch(epoch + 1, row.get('eval_' + recipe.eval_metric))
        row['seconds'] = row['train_seconds'] + row.get('eval_seconds', 0.0)
        row['peak_memory_mib'] = max(
            [peak_memory(learner.world.device), *(past['peak_memory_mib'] for past in history)]
        )
        history.append(row)
        if learner.world.primary:
            run.folder.save_model(model_config, learner.eval_model.state_dict(), epoch, ranking(history, recipe))
            run.folder.save_metrics(history)
            state = {'learner': learner.state_dict(), 'history': history, 'signature': run.signature()}
            run.folder.save_state(state)
        console.line(epoch_line(row, learner.epochs))
    result = make_result(run, params, gmacs)
    if learner.world.primary:
        run.folder.save_result(result.as_json())
    tell(result, console)
    return result


def _train_epoch(epoch: int, run: Run, console: Console) -> dict[str, Any]:
    """One pass over the training images."""
    recipe, learner, data = run.recipe, run.learner, run.data
    batches, accumulate = data.train_batches, recipe.grad_accum_steps
    batches.set_epoch(epoch)
    if data.transform.mixup is not None and recipe.mixup_off_epoch:
        data.transform.mixup.mixup_enabled = epoch < recipe.mixup_off_epoch
    learner.model.train()
    start = time.perf_counter()
    lr = learner.lr
    total_loss = torch.zeros((), device=learner.world.device)
    seen = 0
    with console.progress(f'epoch {epoch}', len(batches), recipe.log_interval) as progress:
        for step, (images, targets) in enumerate(batches):
            seed_everything(recipe.seed, 'step', epoch, step, learner.world.rank)
            images, targets = data.transform(images, targets)
            first = step - step % accumulate
            parts = min(accumulate, len(batches) - first)
            update = step + 1 == first + parts
            total_loss += learner.step(images, targets, parts, update) * len(images)
            seen += len(images)
            details = {}
            if progress.wants_details():
                details = {'loss': f'{total_loss.item() / seen:.3f}', 'lr': f'{learner.lr:.2e}'}
            if update:
                learner.after_update()
            progress.advance(len(images) * learner.world.size, **details)
    learner.after_last_update()
    loss = learner.world.mean(total_loss / seen).item()
    _check_finite(loss, epoch, lr)
    return {
        'epoch': epoch,
        'train_loss': loss,
        'lr': learner.lr,
        'train_images': seen * learner.world.size,
        'train_seconds': time.perf_counter() - start,
    }


def _evaluate(epoch: int, run: Run, console: Console) -> dict[str, Any]:
    """One pass over the validation images."""
    recipe, learner, data = run.recipe, run.learner, run.data
    with learner.evaluating() as model:
        scores = evaluate(
            model,
            data.val_batches,
            data.transform.normalize,
            data.val,
            recipe,
            learner.world,
            console,
            learner.eval_fast,
            recipe.validation_batch_size or recipe.batch_size,
        )
    _check_finite(scores.loss, epoch, learner.lr)
    return {
        'eval_loss': scores.loss,
        'eval_top1': scores.top1,
        'eval_top5': scores.top5,
        'eval_seconds': scores.seconds,
        'per_class': scores.per_class,
    }


def _check_finite(loss: float, epoch: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f'the loss became {loss} in epoch {epoch} at learning rate {lr:.3g}: lower --lr, lengthen the warm-up or '
            f'set --clip-grad; the last good checkpoint stays'
        )
