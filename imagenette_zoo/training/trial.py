"""Code of the user's own that takes part in the training is tried before anything of a run is written."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..config.recipe import Recipe
from ..errors import UserError, first_line
from ..models.factory import autocast, probe
from ..utils.distributed import World
from ..utils.modules import is_reference
from ..utils.seeding import seed_everything
from .learner import Learner
from .own import describe, in_one_line, is_own

__all__ = ['try_own']


def try_own(learner: Learner, images: int, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Tries those of a run's optimizer, schedule, loss and batch transform that are the user's own.

    Args:
        learner: That of the run; it stays as it is.
        images: Images of an epoch, in this process.
        shapes: The shapes of the images that it is trained with.

    Raises:
        UserError: One of them raises, gives something else than is needed, or could not be resumed.
    """
    recipe = learner.recipe
    counts = {recipe.batch_size, images % recipe.batch_size or recipe.batch_size}  # the last batch is smaller
    for shape in shapes:
        for count in sorted(counts):
            targets = _try_transform(learner, count, shape) if recipe.batch_transform else None
            if recipe.loss:
                _try_loss(learner, learner.blank_batch(count, shape)[1] if targets is None else targets)
    if is_own(learner.optimizer) or is_reference(recipe.sched):
        _try_resuming(learner)


def _try_transform(learner: Learner, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Makes a batch; returns its targets."""
    assert learner.own_transform is not None
    name = f'--batch-transform {learner.recipe.batch_transform}'
    with in_one_line('--batch-transform', str(learner.recipe.batch_transform)):
        images, targets = learner.blank_batch(count, shape)
        with _unchanged(name, learner.own_transform.module, 'leave it as it is'):
            learner.blank_batch(count, shape)
    new_shape = (images.shape[1], images.shape[2], images.shape[3])
    if new_shape != shape:
        try:
            probe(learner.model, learner.recipe.model, new_shape)
            if learner.teacher is not None:
                learner.teacher.probe(new_shape)
        except UserError as error:
            raise UserError(f'{name}: makes images of {new_shape}: {error}') from None
    return targets


def _try_loss(learner: Learner, targets: torch.Tensor) -> None:
    recipe, device, name = learner.recipe, learner.world.device, f'--loss {learner.recipe.loss}'
    loss_fn = copy.deepcopy(learner.loss_fn)
    dtype = getattr(torch, recipe.amp_dtype) if recipe.amp else torch.float32
    shape = (len(targets), int(learner.model.num_classes))  # type: ignore[arg-type]
    for logits in (torch.zeros(shape, device=device, dtype=dtype), torch.randn(shape, device=device, dtype=dtype)):
        logits.requires_grad_()
        with in_one_line('--loss', str(recipe.loss)), autocast(recipe, device):
            loss = loss_fn(logits, targets)
            with _unchanged(name, loss_fn, 'keep it in a buffer', buffers=False):
                loss_fn(logits, targets)
        if not (isinstance(loss, torch.Tensor) and loss.ndim == 0):
            raise UserError(f'{name}: gives {describe(loss)}: expected a scalar, such as the mean over the batch')
        if not loss.isfinite():
            kind = 'random numbers' if logits.any() else 'zeros'
            raise UserError(f'{name}: is {float(loss.detach())} for logits of {kind}: expected a finite number')
        with in_one_line('--loss', str(recipe.loss)):
            gradient = torch.autograd.grad(loss, logits, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None:
            raise UserError(f'{name}: has no gradient: compute it from the logits by differentiable operations')


@contextmanager
def _unchanged(name: str, module: nn.Module, remedy: str, buffers: bool = True) -> Iterator[None]:
    """Looks whether a module stays as it is.

    Args:
        name: As a message calls it.
        module: The module; what it keeps from its first call on may stay.
        remedy: The way to mend it.
        buffers: Whether its buffers must stay, too.

    Raises:
        UserError: A step would depend on the steps before, which a resumed run does not know.
    """

    def attributes() -> dict[str, tuple[Any, int]]:
        parts = dict(module.named_modules(prefix='self'))
        values = {f'{name}.{key}': value for name, part in parts.items() for key, value in vars(part).items()}
        values |= dict(module.named_buffers('self')) if buffers else {}
        return {key: (value, getattr(value, '_version', 0)) for key, value in values.items()}

    before = attributes()
    yield
    for key, (value, version) in attributes().items():
        if key not in before or before[key][0] is not value or before[key][1] != version:
            raise UserError(f'{name}: changes its {key} at each call, which a resumed run would lose: {remedy}')


# --- Resuming ---------------------------------------------------------------------------------------------------------


def _try_resuming(learner: Learner) -> None:
    """Looks whether optimizer and schedule go on from their states as if nothing had happened, on a small model."""
    recipe = learner.recipe.replace(
        epochs=max(learner.recipe.epochs, 4),  # more than it is trained here
        batch_transform=None,
        layer_decay=None,
        grad_checkpointing=False,
        sync_bn=False,
        torchcompile=None,
        torchcompile_mode=None,
        cuda_graph='none',
    )
    whole, resumed = (_small_learner(recipe, learner) for _ in range(2))
    for epoch in range(2):
        _train(whole, epoch)
    state = whole.state_dict()
    state['optimizer'] = _as_saved(f'--opt {recipe.opt}', state['optimizer'])
    state['scheduler'] = _as_saved(f'--sched {recipe.sched}', state['scheduler'])
    with in_one_line('--opt', recipe.opt):
        resumed.load_state_dict(copy.deepcopy(state))
    for each in (whole, resumed):
        _train(each, 2)
    weights = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    same_weights, same_rates = all(torch.equal(a, b) for a, b in weights), whole.lr == resumed.lr
    if same_weights and same_rates:
        return
    if is_reference(recipe.sched) and not (same_rates and is_own(whole.optimizer)):
        raise UserError(f'--sched {recipe.sched}: differs after its state_dict is loaded: keep in it all that changes')
    raise UserError(
        f'--opt {recipe.opt}: differs after its state_dict is loaded: keep all that changes in self.state[parameter]'
    )


def _small_learner(recipe: Recipe, learner: Learner) -> Learner:
    classes = int(learner.model.num_classes)  # type: ignore[arg-type]
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))
    model.num_classes = classes
    return Learner(recipe, model, World(learner.world.device), updates_per_epoch=1)


def _train(learner: Learner, epoch: int) -> None:
    """An epoch of one step."""
    recipe = learner.recipe
    seed_everything('trial', epoch)
    images, targets = learner.blank_batch(4, (3, 2, 2))
    with in_one_line('--opt', recipe.opt):
        learner.step(images + torch.randn_like(images), targets)
    with in_one_line('--sched', recipe.sched):
        learner.after_update()
        learner.after_epoch(epoch + 1, 50.0)


def _as_saved(name: str, state: Any) -> Any:
    """The state as a run that is resumed reads it."""
    buffer = io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)
    except Exception as error:  # torch reports what it does not save in many ways
        raise UserError(
            f'{name}: its state can not be saved ({first_line(error)[:80]}): keep tensors, numbers and text only'
        ) from None
