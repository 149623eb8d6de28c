"""Training: one loop from a recipe to a run's folder and its result."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

from ..config.hparams import FLAGSHIP
from ..config.recipe import Recipe
from ..errors import UserError
from ..inference.evaluate import evaluate
from ..models import factory
from ..models.factory import model_cost
from ..models.own import name_model
from ..utils.console import Console, counted, in_ipython
from ..utils.distributed import World, join
from ..utils.memory import collect, is_out_of_memory, peak_memory, reset_peak_memory
from ..utils.modules import import_modules
from ..utils.process import restore_process
from ..utils.seeding import seed_everything
from ..utils.signals import Stopped
from ..utils.threads import Processors
from .interrupts import StopSignals, explained, smaller_batch
from .meter import Meter, Position, check_finite
from .result import (
    Result,
    differences,
    end_reason,
    epoch_line,
    make_result,
    print_summary,
    ranking,
    read_result,
)
from .run import Run, as_retried, check_alike, open_folder, prepare
from .run_folder import RunFolder, resumed_run
from .tracking import Tracking

__all__ = ['Result', 'train', 'train_by']

CHECK_EVERY = {'cpu': 1, 'cuda': 50}  # steps between checks of the losses, each of which waits for a GPU


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    quiet: bool = False,
    repeats: Result | None = None,
    **options: Any,
) -> Result:
    """Trains a model.

    `train(model='resnet18', epochs=2)` has timm's defaults, `train('mbv2_mish', epochs=5)` starts from a recipe, and
    `train(resume='runs/NAME')` continues an interrupted run.

    Args:
        recipe: A recipe's name or file, or a whole `Recipe`; without it and without `model` it is `mbv2_mish`.
        quiet: Prints nothing.
        repeats: A finished run that this one is to repeat: the differences are printed.
        **options: The fields of `Recipe`. `model` may be a function or a class, too, which is called with
            `num_classes`.

    Returns:
        The scores and all else that is known of the run; its folder holds the same and the weights.

    Raises:
        UserError: Bad input, in one line. What is already computed stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state after the last step is saved. IPython shows it in one line,
            too.
    """
    return train_by(_recipe(recipe, options), Console(quiet), repeats)


def _recipe(recipe: Recipe | str | Path | None, options: dict[str, Any]) -> Recipe:
    """The recipe that the arguments of `train` mean."""
    if 'model' in options and not isinstance(options['model'], str):
        options = {**options, 'model': name_model(options['model'])}
    if isinstance(recipe, Recipe):
        return recipe.replace(**options)
    if recipe is None and options.get('resume'):
        run = resumed_run(options['resume'], options.get('output', Recipe.output), options.get('experiment'))
        file = run / 'args.yaml'
        if os.path.isfile(file):  # all of it holds, also what would give way to an option
            then = Recipe.load(file)
            resumed = Recipe(**{**then.as_dict(), **options})
            if not resumed.retry or 'grad_accum_steps' in options:
                return resumed
            parts = then.batch_size * then.grad_accum_steps // resumed.batch_size  # as before a batch became smaller
            return resumed.replace(grad_accum_steps=parts or 1)
    if recipe is None and 'model' not in options:
        recipe = FLAGSHIP
    if recipe is not None:
        if callable(recipe) or timm.is_model(str(recipe)):
            raise UserError(f'train: {recipe} is a model, no recipe: give it as model=')
        return Recipe.load(recipe, **options)
    return Recipe(**options)


@restore_process()
def train_by(recipe: Recipe, console: Console, repeats: Result | None = None) -> Result:
    """Trains by a recipe, as `train` does."""
    start = time.perf_counter()
    world = join(recipe.device)
    collect(world.device)
    console = console if world.primary else Console(quiet=True)
    try:
        with explained(recipe, world):
            return _start(recipe, world, console, start, repeats)
    finally:
        world.leave()


def _start(recipe: Recipe, world: World, console: Console, start: float, repeats: Result | None) -> Result:
    """Opens the run's folder and does what is left to be done there."""
    import_modules(recipe.device_modules, console.line)
    if recipe.retry and world.size > 1:
        raise UserError('--retry: the processes of torchrun cannot start again together: leave it out')
    folder, state, finished = world.broadcast(lambda: open_folder(recipe))
    recipe = as_retried(recipe, folder)
    try:
        check_alike(recipe, world.broadcast(recipe.as_dict))
        if finished:
            result = world.broadcast(lambda: _finished(recipe, folder))
            console.line(f'{folder.path}: this run is finished')
        else:
            for line in recipe.notes:
                console.line(line)
            if recipe.resume and state is None:
                console.line(f'{folder.path}: nothing is saved yet; the run starts from the beginning')
            attempt: Recipe | Result = recipe
            while isinstance(attempt, Recipe):
                with explained(attempt, world):
                    attempt = _attempt(attempt, folder, state, world, console, start, repeats)
                collect(world.device)
            result = attempt
        print_summary(result, console)
        if repeats is not None:
            console.line(f'repeated: top-1 {repeats.top1:.2f} % then, {result.top1:.2f} % now')
        return result
    finally:
        folder.unlock()


def _attempt(
    recipe: Recipe,
    folder: RunFolder,
    state: bytes | None,
    world: World,
    console: Console,
    start: float,
    repeats: Result | None,
) -> Result | Recipe:
    """Trains; returns a recipe to begin again with where memory is full and `--retry` may go on."""
    run, processors = None, Processors()
    try:
        run = prepare(recipe, folder, state, world, console)
        if world.device.type == 'cpu' and (line := processors.crowded(torch.get_num_threads())):
            console.line(line)
        recipe = run.recipe
        run.setup_seconds = time.perf_counter() - start
        if repeats is not None:
            lines = differences(repeats, run)
            console.line(f'repeats {repeats.folder}: ' + ('nothing differs' if not lines else 'what differs:'))
            for line in lines:
                console.line(f'  {line}')
        return _run(run, console)
    except (MemoryError, RuntimeError) as error:
        size, parts = smaller_batch(recipe)
        same = size * parts == recipe.batch_size * recipe.grad_accum_steps
        begun = state is not None or (run is not None and run.saved)
        if begun or not (recipe.retry and is_out_of_memory(error) and same and size > 1):
            raise
    console.line(
        f'out of memory at --batch-size {recipe.batch_size}: starting again with --batch-size {size} '
        f'--grad-accum-steps {parts}, the same updates but for BatchNorm'
    )
    validation = recipe.validation_batch_size
    return recipe.replace(
        batch_size=size, grad_accum_steps=parts, validation_batch_size=validation and min(validation, size)
    )


def _run(run: Run, console: Console) -> Result:
    """The epochs, until they are done or the run is asked to stop."""
    recipe, learner, data, history = run.recipe, run.learner, run.data, run.history
    size = run.config['input_size'][-1]
    params, gmacs = model_cost(learner.model, run.config['input_size'])
    cost = f'{params / 1e6:.2f} M parameters' + ('' if gmacs is None else f', {gmacs:.2f} GMACs at {size} px')
    console.line(
        f'{recipe.model}: {cost}; {len(data.train):,} training and {len(data.val):,} validation images of '
        f'{len(data.train.classes)} classes; {learner.world.device}'
    )
    if recipe.train_img_sizes:
        sizes = ', '.join(map(str, recipe.train_img_sizes))
        console.line(f'trained at {sizes} px ({recipe.train_size_schedule}), validated at {size} px')
    if learner.epochs != recipe.epochs:
        shown = counted(learner.epochs, 'epoch')
        console.line(f'{shown}: --epochs {recipe.epochs}, with cycles, warm-up prefix and cool-down')
    console.line(f'run folder: {run.folder.path}' + (f', continued at {run.progress}' if run.begun else ''))
    own = {'global_pool': recipe.gp, 'bn_eps': recipe.bn_eps, 'in_chans': recipe.channels}
    model_args = {**factory.source_args(recipe.model, learner.model), **recipe.model_kwargs}
    model_args |= {name: value for name, value in own.items() if value is not None}
    from_scratch = not (recipe.pretrained or recipe.initial_checkpoint)
    model_config = factory.model_config(learner.model, run.config, data.train.class_names, model_args, from_scratch)
    reset_peak_memory(learner.world.device)
    tracking = Tracking(recipe, run.folder.path, history, console, learner.world.primary)
    with StopSignals(learner.world, lambda: _stopped_at_once(run)) as stop, tracking:
        try:
            while len(history) < learner.epochs and not end_reason(history, recipe):
                _epoch(len(history), run, stop, model_config, console)
                tracking.epoch(history[-1])
        except KeyboardInterrupt as request:
            stopped = request if isinstance(request, Stopped) else Stopped(stop.requested or signal.SIGINT)
            stopped.message = _stopped_at_once(run)
            if stopped is request and run.begun:  # after a step
                with contextlib.suppress(KeyboardInterrupt):  # then what was saved before is there
                    run.save()
                    stopped.message = f'Stopped after {run.progress}. Everything is saved. {_continuation(run)}'
            if not in_ipython():  # which shows the exception
                console.line(stopped.message)
            try:
                raise stopped from None
            finally:
                del stopped  # it holds this frame: a cycle would keep the loader's processes waiting
        result = make_result(run, params, gmacs)
        tracking.result(result.as_json())
    if learner.world.primary:
        run.folder.save_result(result.as_json())
    return result


def _finished(recipe: Recipe, folder: RunFolder) -> Result:
    """The result of a finished run.

    Raises:
        UserError: Its batch is smaller than the recipe's for another reason than its images.
    """
    result = read_result(folder.path)
    images, then = result.dataset.get('train'), folder.recipe().batch_size
    processes = result.hardware.get('processes', 1)
    fitted = recipe.for_data(images, len(result.per_class), processes) if isinstance(images, int) else recipe
    if isinstance(images, int) and fitted.batch_size != then:
        raise UserError(
            f'{folder.path}: was trained with batch_size {then}, not {fitted.batch_size}: leave the option out, or '
            'start another run'
        )
    return result


def _stopped_at_once(run: Run) -> str:
    """How far a run is saved that was not left after a step, and how it is continued."""
    if run.saved:
        return f'Stopped at once. All up to {run.saved} is saved. {_continuation(run)}'
    return 'Stopped before anything was saved. The same command starts again.'


def _continuation(run: Run) -> str:
    """What continues a run, as the one who stopped it works."""
    path = run.folder.path
    if in_ipython():
        return f'Continue with: imagenette_zoo.train(resume={str(path)!r})'
    program = 'python train.py' if Path(sys.argv[0]).name == 'train.py' else 'imagenette-zoo train'
    flags = shlex.join(['--resume', str(path), *run.folder.code_flags()])
    if run.learner.world.size > 1:
        return f'Continue with the same command and {flags}'
    return f'Continue with: {program} {flags}'


def _epoch(epoch: int, run: Run, stop: StopSignals, model_config: dict[str, Any], console: Console) -> None:
    """Trains, validates and saves: the epoch's row is the last of the history."""
    recipe, learner, history = run.recipe, run.learner, run.history
    _train_epoch(epoch, run, stop, console)
    position = run.position
    row = {
        'epoch': epoch,
        'train_loss': position.loss,
        'lr': learner.lr,
        'train_images': position.images * learner.world.size,
        'train_seconds': position.seconds,
        **({'skipped_steps': position.skipped} if recipe.nan == 'skip' else {}),
    }
    if (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == learner.epochs:
        with stop.at_once():
            row.update(_evaluate(epoch, run, console))
    learner.after_epoch(epoch + 1, row.get('eval_' + recipe.eval_metric))
    row['seconds'] = row['train_seconds'] + row.get('eval_seconds', 0.0)
    row['peak_memory_mib'] = max([peak_memory(learner.world.device), *(past['peak_memory_mib'] for past in history)])
    history.append(row)
    run.position = Position()
    if learner.world.primary:
        run.folder.save_model(model_config, learner.eval_model.state_dict(), epoch, ranking(history, recipe))
        run.folder.save_metrics(history)
    run.save()
    console.line(epoch_line(row, learner.epochs))


def _train_epoch(epoch: int, run: Run, stop: StopSignals, console: Console) -> None:
    """One pass over the training images, or the rest of one; moves the run's position to the end of the epoch."""
    recipe, learner, data, position = run.recipe, run.learner, run.data, run.position
    batches, accumulate, world = data.train_batches, recipe.grad_accum_steps, learner.world
    if position.step == len(batches):
        return
    batches.set_epoch(epoch, position.step)
    if data.transform.mixup is not None and recipe.mixup_off_epoch:
        data.transform.mixup.mixup_enabled = epoch < recipe.mixup_off_epoch
    learner.model.train()
    meter = Meter(position, epoch, world, stops=recipe.nan == 'stop')
    check_every = CHECK_EVERY.get(world.device.type, CHECK_EVERY['cuda'])
    saved = position.step
    log_interval = recipe.log_interval * accumulate
    with console.progress(f'epoch {epoch + 1}', len(batches), log_interval, position.step) as progress:
        for step, ((images, targets), drawn) in enumerate(zip(batches, batches.drawn(), strict=True), position.step):
            if learner.teacher is not None:
                learner.teacher.look_up(drawn)
            seed_everything(recipe.seed, 'step', epoch, step, world.rank)
            images, targets = learner.transform(*data.transform(images, targets), epoch, step)
            first = step - step % accumulate
            parts = min(accumulate, len(batches) - first)
            update = step + 1 == first + parts
            fraction = len(images) / min(parts * recipe.batch_size, batches.size - first * recipe.batch_size)
            meter.add(learner.step(images, targets, fraction, update), len(images), learner.lr)
            details = {}
            if progress.wants_details():
                details = {'loss': f'{meter.mean:.3f}', 'lr': f'{learner.lr:.2e}'}
            progress.advance(len(images) * world.size, **details)
            if not update:
                continue
            learner.after_update()
            meter.skipped += learner.skipped > 0
            if (step + 1) % check_every == 0:
                meter.check()
            stopping = stop.stop_requested()
            due = 0 < recipe.recovery_interval * accumulate <= step + 1 - saved
            if (stopping or due) and step + 1 < len(batches):
                meter.flush(learner)
                if stopping:
                    stop.stop()
                run.save()
                saved = step + 1
    learner.after_last_update()
    meter.flush(learner)


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
    check_finite(scores.loss, epoch, learner.lr)
    return {
        'eval_loss': scores.loss,
        'eval_top1': scores.top1,
        'eval_top5': scores.top5,
        'eval_seconds': scores.seconds,
        'per_class': scores.per_class,
    }
