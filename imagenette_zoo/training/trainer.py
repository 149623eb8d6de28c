"""Training: one loop from a recipe to a run's folder and its result."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.models import safe_model_name

from ..data import resolve_dataset
from ..data.augment import BatchTransform, Normalize
from ..data.imagenette import ImageSet, load_split, with_label_noise
from ..data.loaders import Batches, eval_loader, train_loader
from ..data.seeding import seed_everything
from ..errors import UserError
from ..models.catalog import model_cost
from . import build
from .checkpoint import RunFolder, load_weights, read_weights
from .console import Console, duration, table
from .distributed import World, join
from .evaluation import evaluate
from .learner import Learner
from .options import read_yaml
from .recipe import Recipe

__all__ = ['Result', 'train']

# A run may be continued with other values of these: they do not decide what is computed.
FREE_ON_RESUME = {
    'data_dir',
    'workers',
    'pin_mem',
    'device',
    'output',
    'experiment',
    'overwrite',
    'resume',
    'log_interval',
    'validation_batch_size',
    'checkpoint_hist',
}


@dataclass
class Result:
    """What a run came to: the content of its ``result.json``.

    Accuracies are in %, times in seconds, memory in MiB. ``seconds['to_80']`` is the time from the start of the first
    epoch to the end of the validation that first gave 80 % top-1, or None; ``per_class`` belongs to ``top1``.
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
    gmacs: float
    seconds: dict[str, float | None]
    images_per_second: float
    peak_memory_mib: float
    recipe: dict[str, Any]
    dataset: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    command: str
    folder: Path = field(default=Path(), repr=False)

    def as_json(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        values = asdict(self)
        del values['folder']
        return values


@dataclass
class _Data:
    """The two splits and their batches."""

    train: ImageSet
    val: ImageSet
    train_batches: Batches
    val_batches: Batches
    transform: BatchTransform


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
    world = join(recipe.device)
    console = Console(quiet or not world.primary)
    try:
        recipe, folder = _open_run(recipe)
        images = _load_images(recipe)
        seed_everything(recipe.seed, 'model')
        model = _make_model(recipe, images)
        config = build.input_config(recipe, model)
        data = _load_batches(recipe, images, config, world)
        learner = Learner(recipe, model, world, -(-len(data.train_batches) // recipe.grad_accum_steps))
        state = folder.load_state() if recipe.resume else None
        if state is not None:
            learner.load_state_dict(state['learner'])
        elif world.primary:
            folder.start(recipe)
        return _run(recipe, folder, learner, data, config, state, console)
    finally:
        world.leave()


def _run(
    recipe: Recipe,
    folder: RunFolder,
    learner: Learner,
    data: _Data,
    config: dict[str, Any],
    state: dict[str, Any] | None,
    console: Console,
) -> Result:
    """The loop over the epochs, and the result at its end."""
    history: list[dict[str, Any]] = state['history'] if state else []
    size = config['input_size'][-1]
    params, gmacs = model_cost(learner.model, config['input_size'])
    console.line(
        f'{recipe.model}: {params / 1e6:.2f} M parameters, {gmacs:.2f} GMACs at {size} px; {len(data.train):,} '
        f'training and {len(data.val):,} validation images of {len(data.train.classes)} classes; '
        f'{learner.world.device}'
    )
    console.line(f'run folder: {folder.path}' + (f', continued at epoch {len(history)}' if state else ''))
    saved_config = build.model_config(learner.model, config, data.train.class_names, _model_args(recipe))
    for epoch in range(len(history), learner.epochs):
        row = _train_epoch(epoch, recipe, learner, data, console)
        if (epoch + 1) % recipe.val_interval == 0 or epoch + 1 == learner.epochs:
            scores = evaluate(
                learner.eval_model,
                data.val_batches,
                data.transform.normalize,
                data.val,
                recipe,
                learner.world,
                console,
                learner.eval_fast,
                recipe.validation_batch_size or recipe.batch_size,
            )
            row.update(
                eval_loss=scores.loss,
                eval_top1=scores.top1,
                eval_top5=scores.top5,
                eval_seconds=scores.seconds,
                per_class=scores.per_class,
            )
        learner.after_epoch(epoch + 1, row.get('eval_' + recipe.eval_metric))
        row['seconds'] = sum(row.get(name, 0.0) for name in ('train_seconds', 'eval_seconds'))
        row['peak_memory_mib'] = max(_peak_memory(learner.world), *(past['peak_memory_mib'] for past in history), 0.0)
        history.append(row)
        console.line(_epoch_line(row, learner.epochs))
        if learner.world.primary:
            folder.save_model(saved_config, learner.eval_model.state_dict(), epoch, _ranking(history, recipe))
            folder.save_metrics(history)
            folder.save_state({'learner': learner.state_dict(), 'history': history})
    result = _result(recipe, folder, history, data, config, params, gmacs, learner.world)
    if learner.world.primary:
        folder.save_result(result.as_json())
    _tell(result, console)
    return result


def _train_epoch(epoch: int, recipe: Recipe, learner: Learner, data: _Data, console: Console) -> dict[str, Any]:
    """One pass over the training images."""
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
                learner.after_update(None)
            progress.advance(len(images) * learner.world.size, **details)
    loss = learner.world.mean(total_loss / seen).item()
    if not math.isfinite(loss):
        raise UserError(
            f'the loss became {loss} in epoch {epoch} at learning rate {lr:.3g}: lower --lr, lengthen the warm-up or '
            f'set --clip-grad; the last good checkpoint stays'
        )
    return {
        'epoch': epoch,
        'train_loss': loss,
        'lr': learner.lr,
        'train_images': seen * learner.world.size,
        'train_seconds': time.perf_counter() - start,
    }


def _open_run(recipe: Recipe) -> tuple[Recipe, RunFolder]:
    """The run's folder, and for a resumed run the recipe that it was started with."""
    if recipe.resume is None or recipe.resume == 'auto':
        name = recipe.experiment
        if name is None:
            if recipe.resume:
                raise UserError('--resume: say which run: --resume runs/NAME, or --experiment NAME')
            stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
            size = f'-{recipe.img_size}' if recipe.img_size else ''
            name = f'{stamp}-{safe_model_name(recipe.model)}{size}'
        path = Path(recipe.output, name)
    else:
        path = Path(recipe.resume)
        path = path.parent if path.name == 'state.pt' else path
    folder = RunFolder(path)
    if recipe.resume is None:
        return recipe, folder
    if not folder['args.yaml'].is_file():
        raise UserError(f'{path}: no run to resume here (no args.yaml)')
    started = Recipe(**read_yaml(folder['args.yaml'], Recipe.names()))
    for option, value in recipe.as_dict().items():
        if option not in FREE_ON_RESUME and value != started.as_dict()[option]:
            raise UserError(
                f'{path}: was started with {option} {started.as_dict()[option]}, not {value}: leave the option out to '
                f'resume, or start another run'
            )
    return recipe, folder


def _load_images(recipe: Recipe) -> tuple[ImageSet, ImageSet]:
    root = resolve_dataset(recipe.dataset, recipe.data_dir)
    train_images = load_split(root, recipe.train_split)
    val_images = load_split(root, recipe.val_split, train_images.classes)
    if recipe.num_classes not in (None, len(train_images.classes)):
        raise UserError(
            f'--num-classes {recipe.num_classes} disagrees with the {len(train_images.classes)} classes of {root}: '
            f'leave it out'
        )
    if recipe.label_noise:
        train_images = with_label_noise(train_images, recipe.label_noise)
    return train_images, val_images


def _make_model(recipe: Recipe, images: tuple[ImageSet, ImageSet]) -> Any:
    model = build.build_model(
        recipe.model,
        pretrained=recipe.pretrained,
        num_classes=len(images[0].classes),
        drop_rate=recipe.drop,
        drop_path_rate=recipe.drop_path,
        drop_block_rate=recipe.drop_block,
        global_pool=recipe.gp,
        bn_momentum=recipe.bn_momentum,
        bn_eps=recipe.bn_eps,
        **recipe.model_kwargs,
    )
    head = model.get_classifier()
    with torch.no_grad():
        if recipe.head_init_scale is not None:
            head.weight.mul_(recipe.head_init_scale)
            head.bias.mul_(recipe.head_init_scale)
        if recipe.head_init_bias is not None:
            head.bias.fill_(recipe.head_init_bias)
    if recipe.initial_checkpoint:
        path = Path(recipe.initial_checkpoint)
        path = path / 'model.safetensors' if path.is_dir() else path
        load_weights(model, read_weights(path), path)
    return model


def _model_args(recipe: Recipe) -> dict[str, Any]:
    """What ``timm.create_model`` must be given to build the recipe's model again."""
    return {**recipe.model_kwargs, **({'global_pool': recipe.gp} if recipe.gp else {})}


def _load_batches(recipe: Recipe, images: tuple[ImageSet, ImageSet], config: dict[str, Any], world: World) -> _Data:
    train_images, val_images = images
    interpolation = config['interpolation'] if recipe.no_aug else recipe.train_interpolation
    try:
        transform = create_transform(
            input_size=config['input_size'],
            is_training=True,
            no_aug=recipe.no_aug,
            interpolation=interpolation,
            train_crop_mode=recipe.train_crop_mode,
            scale=recipe.scale,
            ratio=recipe.ratio,
            hflip=recipe.hflip,
            vflip=recipe.vflip,
            color_jitter=recipe.color_jitter,
            color_jitter_prob=recipe.color_jitter_prob,
            grayscale_prob=recipe.grayscale_prob or 0.0,
            gaussian_blur_prob=recipe.gaussian_blur_prob or 0.0,
            auto_augment=recipe.aa,
            mean=config['mean'],
            std=config['std'],
            use_prefetcher=True,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f'--aa {recipe.aa}: not a policy that timm knows ({error})') from None
    mixup = (
        Mixup(
            recipe.mixup,
            recipe.cutmix,
            recipe.cutmix_minmax,
            recipe.mixup_prob,
            recipe.mixup_switch_prob,
            recipe.mixup_mode,
            label_smoothing=recipe.smoothing,
            num_classes=len(train_images.classes),
        )
        if recipe.mixes
        else None
    )
    normalize = Normalize(config['mean'], config['std'], world.device, recipe.channels_last)
    place: dict[str, Any] = dict(
        rank=world.rank, world_size=world.size, workers=recipe.workers, pin_memory=recipe.pin_mem
    )
    return _Data(
        train_images,
        val_images,
        train_loader(train_images, transform, recipe.batch_size, recipe.seed, multiple=2 if mixup else 1, **place),
        eval_loader(
            val_images, build.eval_transform(config), recipe.validation_batch_size or recipe.batch_size, **place
        ),
        BatchTransform(normalize, 0.0 if recipe.no_aug else recipe.reprob, recipe.remode, recipe.recount, mixup),
    )


def _ranking(history: Sequence[dict[str, Any]], recipe: Recipe) -> list[int]:
    """The epochs whose weights are kept, best first; of equal ones the earlier."""
    sign = 1 if recipe.eval_metric == 'loss' else -1
    scored = [row for row in history if 'eval_loss' in row]
    ranked = sorted(scored, key=lambda row: (sign * row['eval_' + recipe.eval_metric], row['epoch']))
    return [row['epoch'] for row in ranked[: recipe.checkpoint_hist]]


def _peak_memory(world: World) -> float:
    """MiB: of the device on CUDA, else of this process."""
    if world.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(world.device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    scores = (
        f'top-1 {row["eval_top1"]:.2f} %, top-5 {row["eval_top5"]:.2f} %, loss {row["eval_loss"]:.3f}, '
        if 'eval_loss' in row
        else ''
    )
    return (
        f'epoch {row["epoch"]:>{len(str(epochs - 1))}} of {epochs}: {scores}training loss {row["train_loss"]:.3f}, '
        f'{row["train_images"] / row["train_seconds"]:.0f} images/s, {duration(row["seconds"])}'
    )


def _seconds_to(history: Sequence[dict[str, Any]], top1: float) -> float | None:
    elapsed = 0.0
    for row in history:
        elapsed += row['seconds']
        if row.get('eval_top1', 0.0) >= top1:
            return elapsed
    return None


def _result(
    recipe: Recipe,
    folder: RunFolder,
    history: list[dict[str, Any]],
    data: _Data,
    config: dict[str, Any],
    params: int,
    gmacs: float,
    world: World,
) -> Result:
    last = history[-1]
    best = history[_ranking(history, recipe)[0]]
    train_seconds = sum(row['train_seconds'] for row in history)
    seconds = {
        'total': sum(row['seconds'] for row in history),
        'train': train_seconds,
        'eval': sum(row.get('eval_seconds', 0.0) for row in history),
        **{f'to_{top1}': _seconds_to(history, top1) for top1 in (80, 85, 90)},
    }
    dataset = recipe.dataset or 'imagenette'
    return Result(
        model=recipe.model,
        top1=last['eval_top1'],
        best_top1=best['eval_top1'],
        best_epoch=best['epoch'],
        top5=last['eval_top5'],
        loss=last['eval_loss'],
        per_class=last['per_class'],
        epochs=len(history),
        img_size=config['input_size'][-1],
        seed=recipe.seed,
        params=params,
        gmacs=gmacs,
        seconds=seconds,
        images_per_second=sum(row['train_images'] for row in history) / train_seconds,
        peak_memory_mib=last['peak_memory_mib'],
        recipe=recipe.as_dict(),
        dataset={'name': f'{dataset}: {data.train.root.name}', 'train': len(data.train), 'val': len(data.val)},
        versions=build.versions(),
        hardware=build.hardware(world.device),
        command=build.this_command(),
        folder=folder.path,
    )


def _tell(result: Result, console: Console) -> None:
    console.line()
    console.line(table([('class', 'top-1 %'), *((name, f'{top1:.1f}') for name, top1 in result.per_class.items())]))
    console.line()
    best = f' (best {result.best_top1:.2f} % at epoch {result.best_epoch})' if result.best_top1 > result.top1 else ''
    reached = [f'{n} % after {duration(s)}' for n in (80, 85, 90) if (s := result.seconds[f'to_{n}']) is not None]
    console.line(
        f'top-1 {result.top1:.2f} %{best}, top-5 {result.top5:.2f} % after {result.epochs} epochs in '
        f'{duration(result.seconds["total"] or 0.0)}' + (f'; {", ".join(reached)}' if reached else '')
    )
    console.line(f'weights:  {result.folder / "best"}    timm.create_model("local-dir:{result.folder / "best"}")')
    console.line(f'result:   {result.folder / "result.json"}')
    console.line(f'metrics:  {result.folder / "summary.csv"}')
