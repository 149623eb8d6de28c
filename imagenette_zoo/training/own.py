"""An optimizer, a schedule, a loss and a batch transform of the user's own, each by `module:attribute`."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import OptimInfo, OptimizerRegistry
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ..config.recipe import Recipe
from ..errors import UserError
from ..utils.distributed import World
from ..utils.memory import is_out_of_memory
from ..utils.modules import in_a_line, owner, resolve
from ..utils.seeding import stream_seed

__all__ = [
    'FactorSchedule', 'OwnTransform', 'describe', 'find_own', 'in_one_line', 'is_own', 'own_loss', 'own_optimizer',
    'own_optimizer_class', 'own_schedule',
]  # fmt: skip


@contextmanager
def in_one_line(option: str, reference: str) -> Iterator[None]:
    """Within, what the user's code raises is one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f'{option} {reference}: {in_a_line(error)}') from error


def find_own(option: str, reference: str) -> Any:
    """The value that a reference means.

    Args:
        option: The flag that names it, for the message.
        reference: `module:attribute`.

    Raises:
        UserError: There is none.
    """
    try:
        return resolve(reference)
    except UserError as error:
        raise UserError(f'{option} {error}') from None


def _make_module(option: str, reference: str) -> nn.Module:
    """An instance of a class of modules; a copy of one that is an instance already."""
    value = find_own(option, reference)
    if isinstance(value, nn.Module):
        return copy.deepcopy(value)
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        raise UserError(f'{option} {reference}: is no class of torch.nn.Module')
    try:
        inspect.signature(value).bind()
    except TypeError as error:
        raise UserError(f'{option} {reference}: is made without arguments: {error}: give it a default') from None
    with in_one_line(option, reference):
        return value()


# --- Optimizer --------------------------------------------------------------------------------------------------------


def is_own(optimizer: Optimizer) -> bool:
    """Whether an optimizer, or that within a lookahead, is the user's own, registered with timm or not."""
    kind = type(getattr(optimizer, '_base_optimizer', optimizer))
    return kind.__module__.partition('.')[0] not in ('torch', 'timm', 'apex', 'bitsandbytes')


def own_optimizer(opt: str, model: nn.Module, kwargs: Mapping[str, Any]) -> Optimizer:
    """An optimizer of the user's own, made as timm makes its own: parameter groups, layer decay, lookahead.

    Args:
        opt: `module:attribute` of its class, perhaps with `lookahead_` before it.
        model: The model.
        kwargs: The other arguments of timm's factory. As timm does, `momentum`, `betas` and `eps` are left out where
            the class does not take them.

    Raises:
        UserError: It is no optimizer, or takes other arguments.
    """
    cls, looks_ahead = own_optimizer_class(opt)
    if cls.step is Optimizer.step:
        raise UserError(f'--opt {opt}: has no step of its own: add `def step(self, closure=None)`')
    arguments = _arguments(cls)
    for name in ('lr', 'weight_decay'):
        if name not in arguments:
            raise UserError(f'--opt {opt}: takes no {name}: add it to the arguments of {cls.__name__}.__init__')
    has = {f'has_{name}': name in arguments for name in ('eps', 'momentum', 'betas')}
    registry = OptimizerRegistry()
    registry.register(OptimInfo('own', cls, **has))
    kwargs = {**kwargs, 'opt': 'lookahead_own' if looks_ahead else 'own'}
    kwargs['weight_decay_exclude_1d'] = kwargs.pop('filter_bias_and_bn', True)  # as timm's create_optimizer_v2
    with in_one_line('--opt', opt):
        optimizer = registry.create_optimizer(model, **kwargs)
    if any('lr' not in group for group in optimizer.param_groups):
        raise UserError(f'--opt {opt}: keeps no lr: super().__init__(params, dict(lr=lr)) does')
    return optimizer


def own_optimizer_class(opt: str) -> tuple[type[Optimizer], bool]:
    """The class of an optimizer of the user's own, and whether it is within a lookahead.

    Raises:
        UserError: It is no optimizer.
    """
    is_named = owner(opt.partition(':')[0]) is not None  # a file may be named lookahead_…, too
    reference = opt if is_named else opt.removeprefix('lookahead_')
    cls = find_own('--opt', reference)
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise UserError(f'--opt {opt}: is no class of torch.optim.Optimizer')
    return cls, reference != opt


def _arguments(cls: type) -> set[str]:
    """The arguments that a class is made with, those included that `**kwargs` hands on to the class below."""
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            names |= parameters.keys()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


# --- Schedule ---------------------------------------------------------------------------------------------------------


def own_schedule(recipe: Recipe, optimizer: Optimizer, updates_per_epoch: int) -> Any:
    """A schedule of the user's own, with the methods of timm's.

    `sched` names a function, see `FactorSchedule`, or a class of timm's `Scheduler` or torch's `LRScheduler`, which is
    called with the optimizer and the number of steps. A step is an epoch, with `sched_on_updates` an update.

    Raises:
        UserError: It is none of these, raises, or the function gives no factor.
    """
    on_updates = recipe.sched_on_updates
    total = recipe.epochs * (updates_per_epoch if on_updates else 1)
    value = find_own('--sched', recipe.sched)
    with in_one_line('--sched', recipe.sched):
        if isinstance(value, type) and issubclass(value, LRScheduler):
            for group in optimizer.param_groups:
                group['lr'] *= group.get('lr_scale', 1.0)  # of layer decay, which only timm's schedules know
            return _TorchSchedule(value(optimizer, total), on_updates)
        if isinstance(value, type) and issubclass(value, Scheduler):
            scheduler = value(optimizer, total)
        elif callable(value) and not isinstance(value, type):
            for step in {0, total // 2, total - 1}:
                factor = value(step, total)
                if not (isinstance(factor, (int, float)) and 0 <= factor < math.inf):
                    raise UserError(
                        f'--sched {recipe.sched}: gives {factor!r} at step {step} of {total}: not 0 or more'
                    )
            scheduler = FactorSchedule(optimizer, value, total)
        else:
            raise UserError(f"--sched {recipe.sched}: is no function, and no class of timm's or torch's schedulers")
        scheduler.t_in_epochs = not on_updates
        (scheduler.step_update if on_updates else scheduler.step)(0)
    return scheduler


class FactorSchedule(Scheduler):
    """The learning rate times a factor.

    Args:
        optimizer: The optimizer.
        factor: Called with the number of steps that are done, from 0 on, and that of all. Gives the factor.
        total: The number of all steps.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int, int], float], total: int) -> None:
        super().__init__(optimizer, 'lr')
        self.factor = factor
        self.total = total

    def _get_lr(self, t: int) -> list[float]:
        factor = self.factor(min(t, self.total - 1), self.total)  # nothing is trained after the last step
        return [base * float(factor) for base in self.base_values]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the rates follow from the step alone."""
        return {}


class _TorchSchedule:
    """One of torch's schedules, with the methods of timm's."""

    def __init__(self, torch_scheduler: LRScheduler, on_updates: bool) -> None:
        self.torch_scheduler = torch_scheduler
        self.on_updates = on_updates
        self.state_dict = torch_scheduler.state_dict
        self.load_state_dict = torch_scheduler.load_state_dict

    def step(self, epoch: int, metric: float | None = None) -> None:
        if isinstance(self.torch_scheduler, ReduceLROnPlateau):
            if metric is not None:
                self.torch_scheduler.step(metric)
        elif not self.on_updates:
            self.torch_scheduler.step()

    def step_update(self, updates: int) -> None:
        if self.on_updates:
            self.torch_scheduler.step()


# --- Loss -------------------------------------------------------------------------------------------------------------


def own_loss(reference: str) -> nn.Module:
    """A loss of the user's own: a function, or a module that is made without arguments.

    It takes logits `(N, classes)` and the targets as the recipe makes them: `(N,)` class indices, or `(N, classes)`
    probabilities. It gives a scalar.

    Raises:
        UserError: It is neither, or has parameters.
    """
    value = find_own('--loss', reference)
    if callable(value) and not isinstance(value, (type, nn.Module)):
        return _Function(value)
    loss = _make_module('--loss', reference)
    if any(parameter.requires_grad for parameter in loss.parameters()):
        raise UserError(f'--loss {reference}: has parameters, which nothing trains: make them buffers')
    return loss


class _Function(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


# --- Batch transform --------------------------------------------------------------------------------------------------


class OwnTransform:
    """A transform of whole batches of the user's own.

    Args:
        recipe: `batch_transform` names a module that is made without arguments.
        classes: Number of classes.
        world: This process; its random numbers are its own.

    Raises:
        UserError: It is no such module.
    """

    def __init__(self, recipe: Recipe, classes: int, world: World) -> None:
        self.name = f'--batch-transform {recipe.batch_transform}'
        self.module = _make_module('--batch-transform', str(recipe.batch_transform)).to(world.device)
        self.classes = classes
        self.stream = (recipe.seed, 'transform')
        self.rank = world.rank
        self.generator = torch.Generator(world.device)
        channels_last = recipe.is_channels_last(world.device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, epoch: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Transforms a batch by random numbers that depend on seed, epoch, step and process alone.

        Args:
            images: `(N, C, H, W)`, normalised.
            targets: `(N,)` class indices or `(N, classes)` probabilities.
            epoch: The epoch.
            step: The batch of it.

        Returns:
            Images `(N, C, H', W')` and targets of either kind.

        Raises:
            UserError: It gives something else.
        """
        self.generator.manual_seed(stream_seed(*self.stream, epoch, step, self.rank) % 2**63)
        result = self.module(images, targets, self.generator)
        if not (isinstance(result, tuple) and [isinstance(value, torch.Tensor) for value in result] == [True] * 2):
            raise UserError(f'{self.name}: gives {describe(result)}: expected a pair of tensors, (images, targets)')
        new_images, new_targets = result
        count = len(images)
        is_like = new_images.ndim == 4 and new_images.shape[:2] == images.shape[:2]
        if not is_like or (new_images.dtype, new_images.device) != (images.dtype, images.device):
            raise UserError(
                f'{self.name}: makes {describe(new_images)} of {describe(images)}: only height and width may change'
            )
        is_soft = new_targets.is_floating_point() and new_targets.shape == (count, self.classes)
        is_hard = new_targets.dtype == torch.int64 and new_targets.shape == (count,)
        if not (is_soft or is_hard) or new_targets.device != targets.device:
            raise UserError(
                f'{self.name}: makes {describe(new_targets)} of {describe(targets)}: expected ({count},) class indices '
                f'or ({count}, {self.classes}) probabilities on the same device'
            )
        return new_images.contiguous(memory_format=self.memory_format), new_targets


def describe(value: object) -> str:
    """What a value is, in a message: `float32 (8, 3, 32, 32) on cpu`."""
    if isinstance(value, tuple):
        return f'({", ".join(map(describe, value))})'
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f'{str(value.dtype).removeprefix("torch.")} {tuple(value.shape)} on {value.device}'
