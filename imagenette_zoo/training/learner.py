"""The model with all that changes it: optimizer, schedule, gradient scaler, moving average."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import timm.optim
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3, dispatch_clip_grad, distribute_bn
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config.names import check_model, timm_optimizer
from ..config.recipe import Recipe
from ..errors import Mistakes, UserError, first_line
from ..fast_layers.swap import swap
from ..models.factory import autocast, compiled, to_device
from ..models.own import own_function
from ..utils.distributed import World
from ..utils.modules import is_reference
from ..utils.seeding import seed_everything
from .cuda_graph import GraphedStep, why_not_graphed
from .distillation import Teacher, check_teacher, distillation_task
from .loss import loss_function
from .own import (
    FactorSchedule,
    OwnTransform,
    find_own,
    in_one_line,
    own_optimizer,
    own_optimizer_class,
    own_schedule,
)  # fmt: skip

__all__ = ['Learner', 'check_parts', 'learning_rate']


_FUSED = (torch.optim.Adam, torch.optim.AdamW)  # whose step can be one kernel; SGD's refuses late gradients


def learning_rate(recipe: Recipe, world_size: int = 1) -> float:
    """The recipe's learning rate, as timm's script finds it: `lr`, else `lr_base` scaled by the global batch."""
    if recipe.lr:
        return recipe.lr
    opt = recipe.opt.rpartition(':')[2].lower()
    scale = recipe.lr_base_scale or ('sqrt' if any(part in opt for part in ('ada', 'lamb')) else 'linear')
    ratio = recipe.batch_size * world_size * recipe.grad_accum_steps / recipe.lr_base_size
    return recipe.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio)


def check_parts(recipe: Recipe) -> None:
    """Looks whether there are the model, the teacher, the optimizer, the schedule, the loss and the transform that a
    recipe names.

    Raises:
        UserError: One is not there. All that are missing are said.
    """
    mistakes = Mistakes()
    with mistakes.collected():
        if own_function(recipe.model) is None:
            check_model(recipe.model)
    with mistakes.collected():
        (own_optimizer_class if is_reference(recipe.opt) else timm_optimizer)(recipe.opt)
    with mistakes.collected():
        check_teacher(recipe)
    for option in ('sched', 'loss', 'batch_transform'):
        value = getattr(recipe, option)
        if is_reference(value):
            with mistakes.collected():
                find_own(f'--{option.replace("_", "-")}', value)
    mistakes.check()


class Learner:
    """One step of training at a time.

    Args:
        recipe: The options.
        model: The model, with its starting weights.
        world: This process and those that it trains together with.
        updates_per_epoch: Optimizer steps an epoch.
        log: Takes a line about each thing that it does otherwise than asked.
        weights: `(classes,)` of each class in the loss.
        teacher: Teaches the model.

    Raises:
        UserError: The optimizer is unknown or does not take an argument it is given; something of the user's own is not
            what it should be; SyncBN without CUDA.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        world: World,
        updates_per_epoch: int,
        log: Callable[[str], object] = str,
        weights: torch.Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.recipe = recipe
        self.world = world
        if recipe.sync_bn:
            if world.device.type != 'cuda' or world.size == 1:
                raise UserError('--sync-bn: needs CUDA and several processes (torchrun): leave it out')
            model = convert_sync_batchnorm(model)
        channels_last = recipe.is_channels_last(world.device)
        swap_log = log if recipe.log_swaps else None
        model = to_device(model, world.device, channels_last, swap_log)
        if recipe.grad_checkpointing:
            try:
                model.set_grad_checkpointing(True)  # type: ignore[operator]
            except (AssertionError, AttributeError):
                raise UserError(f'--grad-checkpointing: {recipe.model} does not support it') from None
        self.model = model
        self.loss_fn = loss_function(recipe, weights).to(world.device)
        self.teacher = teacher
        self.task = None if teacher is None else distillation_task(recipe, model, self.loss_fn, teacher)
        self.trained: nn.Module = model if self.task is None else self.task.trainable_module  # with a projection
        self.own_transform = (
            OwnTransform(recipe, int(model.num_classes), world)  # type: ignore[arg-type]
            if recipe.batch_transform
            else None
        )
        self.optimizer = self._make_optimizer()
        self.scheduler, self.epochs = self._make_scheduler(updates_per_epoch)
        scaled = recipe.amp and recipe.amp_dtype == 'float16' and world.device.type == 'cuda'
        self.scaler = torch.amp.GradScaler('cuda') if scaled else None
        obstacle = why_not_graphed(recipe, world.device, world.size, self.optimizer, self.loss_fn)
        if obstacle:
            log(f'cuda-graph auto: off ({obstacle})')
        swap(model, world.device, channels_last, 'recorded steps' if obstacle is None else 'training', swap_log)
        self.ema = (
            ModelEmaV3(
                model,
                decay=recipe.model_ema_decay,
                use_warmup=recipe.model_ema_warmup,
                device='cpu' if recipe.model_ema_force_cpu else None,
            )
            if recipe.model_ema
            else None
        )
        self.fast = compiled(self.trained, recipe, len(recipe.train_img_sizes or (0,)))
        self.eval_fast = compiled(self.eval_model, recipe) if recipe.torchcompile else None
        self.plain = self.trained
        if world.size > 1:
            ids = [world.device.index] if world.device.type == 'cuda' else None
            self.fast = DistributedDataParallel(self.fast, device_ids=ids)
            self.plain = self.fast  # two wrappers of one model would not agree on what to synchronise
        only_rates = not is_reference(recipe.sched) or isinstance(self.scheduler, FactorSchedule)
        updates = only_rates and recipe.nan != 'skip' and recipe.clip_grad is None and self.scaler is None
        self.graphed_step = (
            GraphedStep(self.trained, self.optimizer, self._loss, self._backward, updates, log)
            if obstacle is None
            else None
        )
        self._has_own_model = own_function(recipe.model) is not None
        self.updates = 0
        self.skipped = 0  # steps in a row that were left out
        self._buffers: list[torch.Tensor] = []

    def _make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        kwargs = {**optimizer_kwargs(recipe), 'lr': learning_rate(recipe, self.world.size), **recipe.opt_kwargs}
        if is_reference(recipe.opt):
            return own_optimizer(recipe.opt, self.trained, kwargs)
        name = timm_optimizer(recipe.opt)
        one_kernel = timm.optim.get_optimizer_info(name).opt_class in _FUSED and 'foreach' not in kwargs
        if one_kernel and self.world.device.type == 'cuda':
            kwargs.setdefault('fused', True)
        try:
            return create_optimizer_v2(self.trained, **kwargs)
        except (TypeError, ValueError, AssertionError, ImportError, RuntimeError, LookupError) as error:
            raise UserError(f'--opt {recipe.opt}: {first_line(error)}') from None

    def _make_scheduler(self, updates_per_epoch: int) -> tuple[Any, int]:
        recipe = self.recipe
        if is_reference(recipe.sched):
            return own_schedule(recipe, self.optimizer, updates_per_epoch), recipe.epochs
        kwargs = scheduler_kwargs(recipe, decreasing_metric=recipe.eval_metric == 'loss')
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        try:
            scheduler, epochs = create_scheduler_v2(self.optimizer, **kwargs, updates_per_epoch=updates_per_epoch)
            if scheduler is not None and recipe.sched != 'plateau':  # some can't be asked for what they are to be
                for epoch in range(epochs + 1):
                    scheduler._get_values(epoch, on_epoch=True)
                    scheduler._get_values(epoch * updates_per_epoch, on_epoch=False)
        except (ValueError, AssertionError, TypeError, ArithmeticError) as error:
            raise UserError(f'--sched {recipe.sched}: {first_line(error)}') from None
        if scheduler is None and recipe.sched != 'none':
            raise UserError(f'--sched {recipe.sched}: this version of timm lacks it: pip install -U timm')
        return scheduler, epochs

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and kept: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.model

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """`eval_model`, for that time on the device that evaluates it."""
        if self.ema is None or self.ema.device is None:
            yield self.eval_model
            return
        try:
            yield self.ema.module.to(self.world.device)
        finally:
            self.ema.module.to(self.ema.device)

    @property
    def lr(self) -> float:
        """The learning rate now, the mean over the parameter groups."""
        rates = [group['lr'] for group in self.optimizer.param_groups]
        return sum(rates) / len(rates)

    def transform(
        self, images: torch.Tensor, targets: torch.Tensor, epoch: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch as the user's own transform makes it, where there is one."""
        if self.own_transform is None:
            return images, targets
        return self.own_transform(images, targets, epoch, step)

    def step(
        self, images: torch.Tensor, targets: torch.Tensor, fraction: float = 1.0, update: bool = True
    ) -> torch.Tensor:
        """Forward, backward and, where `update`, the optimizer's step.

        Args:
            images: `(N, 3, H, W)`, normalised.
            targets: `(N,)` class indices or `(N, classes)` probabilities.
            fraction: These images among all whose gradients the update adds up.
            update: Whether this is the last batch before it.

        Returns:
            The loss of the batch, detached.

        Raises:
            UserError: Too many updates in a row had to be left out.
        """
        skips = self.recipe.nan == 'skip'
        if skips and not self._buffers:  # BatchNorm's statistics, which a forward pass with NaN would spoil
            self._buffers = [buffer.clone() for buffer in self._all_buffers()]
        whole = len(images) == self.recipe.batch_size
        graphed = self.graphed_step if whole else None
        if graphed and (replayed := graphed.replay(images, targets)) is not None:
            loss, updated = replayed, graphed.updates
        else:
            model = self.fast if whole else self.plain
            waiting = model.no_sync() if isinstance(model, DistributedDataParallel) and not update else nullcontext()
            with waiting, graphed.warm_up(images, targets) if graphed else nullcontext():
                loss = self._loss(images, targets, model)
                self._backward(loss * fraction)
            updated = False
        if update:
            updated = updated or self._update()
            self.optimizer.zero_grad()
            self.updates += 1
            if skips:
                self._count_skipped(updated)
            if updated and self.ema is not None:
                self.ema.update(self.model, step=self.updates)
        return loss.detach()

    def _all_buffers(self) -> list[torch.Tensor]:
        return [*self.model.buffers(), *self.loss_fn.buffers()]

    def _count_skipped(self, updated: bool) -> None:
        if not updated:
            for buffer, kept in zip(self._all_buffers(), self._buffers, strict=True):
                buffer.copy_(kept)
        self._buffers = []
        self.skipped = 0 if updated else self.skipped + 1
        if self.skipped > self.recipe.nan_limit:
            raise UserError(
                f'{self.skipped} steps in a row had infinite or NaN gradients at learning rate {self.lr:.3g}, '
                f'--nan-limit allows {self.recipe.nan_limit}. Lower --lr, lengthen the warm-up or set --clip-grad. The '
                f'last good checkpoint stays.'
            )

    def _loss(self, images: torch.Tensor, targets: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        explained = in_one_line('--model', self.recipe.model) if self._has_own_model else nullcontext()
        model = self.fast if model is None else model
        with autocast(self.recipe, self.world.device), explained:
            if self.task is None:
                return self.loss_fn(model(images), targets)  # type: ignore[no-any-return]
            self.task.trainable_module = model
            return self.task(images, targets)['loss']  # type: ignore[no-any-return]

    def blank_batch(self, count: int, shape: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images of zeros `(count, *shape)` and targets, of the kinds that training has."""
        device, classes = self.world.device, int(self.model.num_classes)  # type: ignore[arg-type]
        layout = torch.channels_last if self.recipe.is_channels_last(device) else torch.contiguous_format
        images = torch.zeros(count, *shape, device=device).contiguous(memory_format=layout)
        targets = torch.arange(count, device=device) % classes
        if self.recipe.mixes:
            targets = nn.functional.one_hot(targets, classes).float()
        return self.transform(images, targets, 0, 0)

    def compile(self, shapes: Sequence[tuple[int, int, int]]) -> tuple[float, dict[str, float]]:
        """Compiles the training step for images of these shapes by running it; nothing else changes.

        Returns:
            The seconds that it took, and on a CPU images/s of a `compiled` and an `eager` step of the last shape.
        """
        start = time.perf_counter()
        before = [buffer.clone() for buffer in self._all_buffers()]
        self.model.train()

        def step(model: nn.Module) -> float:
            """The seconds of a forward and a backward pass."""
            began = time.perf_counter()
            self._loss(images, targets, model).backward()
            return time.perf_counter() - began

        rates = {}
        try:
            for shape in shapes:
                images, targets = self.blank_batch(self.recipe.batch_size, shape)
                step(self.fast)
            seconds = time.perf_counter() - start
            if self.world.device.type == 'cpu':
                for name, model in (('compiled', self.fast), ('eager', self.trained)):
                    rates[name] = self.recipe.batch_size / min(step(model) for _ in range(3))
        finally:
            self.optimizer.zero_grad()
            for buffer, kept in zip(self._all_buffers(), before, strict=True):
                buffer.copy_(kept)
        return seconds, rates

    def give_up_compiling(self) -> None:
        """Goes on with the model as it is."""
        self.fast, self.eval_fast = self.trained, None

    def _backward(self, loss: torch.Tensor) -> None:
        """Adds up the gradients, scaled where there is a scaler."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward(create_graph=self._is_second_order)

    def _update(self) -> bool:
        """Takes the optimizer's step with the gradients as they are; returns whether it did."""
        recipe, scaler = self.recipe, self.scaler
        skips = recipe.nan == 'skip'
        if scaler is None and skips and not self._gradients_are_finite():
            return False
        if self.world.size > 1:  # an optimizer that draws is to draw the same in all processes
            seed_everything(recipe.seed, 'update', self.updates)
        before = scaler.get_scale() if scaler is not None and skips else 0.0
        if recipe.clip_grad is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self._clipped(), recipe.clip_grad, mode=recipe.clip_mode)
        if scaler is None:
            self.optimizer.step()
            return True
        scaler.step(self.optimizer)  # leaves out a step without finite gradients,
        scaler.update()  # and then lowers the scale
        return not skips or scaler.get_scale() >= before

    def _clipped(self) -> Iterable[nn.Parameter]:
        without_head = 'agc' in self.recipe.clip_mode
        if self.task is not None:
            return self.task.get_clip_parameters(without_head)  # type: ignore[no-any-return]
        return model_parameters(self.model, without_head)  # type: ignore[return-value]

    @property
    def _is_second_order(self) -> bool:
        return getattr(self.optimizer, 'is_second_order', False)

    def _gradients_are_finite(self) -> bool:
        """Whether the gradients are, which are the same in all processes."""
        return _are_finite([parameter.grad for parameter in self.trained.parameters() if parameter.grad is not None])

    def is_finite(self) -> bool:
        """Whether all weights are, which are the same in all processes. Waits for the device."""
        return _are_finite(list(self.trained.parameters()))

    def after_update(self) -> None:
        """Steps a schedule that goes by updates."""
        if self.scheduler is not None:
            self.scheduler.step_update(self.updates)

    def after_last_update(self) -> None:
        """Ends an epoch's training: what is evaluated next is the same in every process."""
        if hasattr(self.optimizer, 'sync_lookahead'):
            self.optimizer.sync_lookahead()
        if self.world.size > 1 and not self.recipe.sync_bn:
            with self.evaluating() as evaluated:
                for model in (self.model, *([evaluated] if self.ema is not None else [])):
                    distribute_bn(model, self.world.size, reduce=True)

    def after_epoch(self, epoch: int, metric: float | None) -> None:
        """Steps a schedule that goes by epochs, after so many of them."""
        if self.scheduler is not None:
            try:
                self.scheduler.step(epoch, metric)
            except TypeError:  # a plateau's before timm 1.0.23 takes no None
                if metric is not None:
                    raise

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            'model': self.model.state_dict(),
            'loss': self.loss_fn.state_dict(),
            'task': {} if self.task is None else self.task.get_task_state(self.trained),
            'ema': self.ema.module.state_dict() if self.ema is not None else None,
            'optimizer': self.optimizer.state_dict(),
            'scheduler': self._scheduler_state(),
            'scaler': self.scaler.state_dict() if self.scaler is not None else None,
            'updates': self.updates,
            'skipped': self.skipped,
        }

    def _scheduler_state(self) -> dict[str, Any] | None:
        if self.scheduler is None:
            return None
        state = dict(self.scheduler.state_dict())
        plateau = getattr(self.scheduler, 'lr_scheduler', None)
        if plateau is not None:  # timm's PlateauLRScheduler saves nothing of how long it has waited
            state.update(plateau=plateau.state_dict(), restore_lr=self.scheduler.restore_lr)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.model.load_state_dict(state['model'])
        self.loss_fn.load_state_dict(state.get('loss', {}))  # runs from before have none
        if self.task is not None:
            self.task.load_task_state(state['task'], module=self.trained)
        for group, here in zip(state['optimizer']['param_groups'], self.optimizer.param_groups, strict=False):
            if 'capturable' in group:  # it is not yet recorded, and may now be on a CPU
                group['capturable'] = False
            group.update({how: here[how] for how in ('fused', 'foreach') if how in group and how in here})
        self.optimizer.load_state_dict(state['optimizer'])
        plateau = getattr(self.scheduler, 'lr_scheduler', None)
        if plateau is not None:
            plateau.load_state_dict(state['scheduler'].pop('plateau'))
            self.scheduler.restore_lr = state['scheduler'].pop('restore_lr')
        for part, name in (
            (self.ema and self.ema.module, 'ema'),
            (self.scheduler, 'scheduler'),
            (self.scaler if state['scaler'] is not None else None, 'scaler'),  # a run on a CPU had none
        ):
            if part is not None:
                part.load_state_dict(state[name])
        self.updates, self.skipped = state['updates'], state['skipped']


def _are_finite(tensors: list[torch.Tensor]) -> bool:
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor.numel()], float('inf'))
    return bool(torch.stack(norms).isfinite().all())
