"""Training steps as CUDA graphs: the kernels of a step are recorded once and launched again by a single call.

A GPU runs a small network's kernels in less time than Python needs to launch them. The rules of such graphs:
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import timm.optim
import torch
from torch import nn

from ..errors import UserError, first_line
from ..utils.memory import is_out_of_memory
from ..utils.seeding import cpu_states
from .own import is_own

if TYPE_CHECKING:
    from ..config.recipe import Recipe

__all__ = ['WARM_UP_STEPS', 'GraphedStep', 'why_not_graphed']

WARM_UP_STEPS = 3  # eager steps of a shape before it is recorded: memory is allocated, kernels are loaded or compiled

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Backward = Callable[[torch.Tensor], None]
Shapes = tuple[torch.Size, torch.Size]  # of images and targets


def why_not_graphed(
    recipe: Recipe, device: torch.device, processes: int, optimizer: torch.optim.Optimizer, loss: nn.Module
) -> str | None:
    """The reason why a run's steps can't be recorded, None where they can.

    A recorded step is one batch on one GPU, and nothing in it waits for the GPU. The reason is empty where nobody
    expects a recording.

    Args:
        recipe: Its options.
        device: Where it is trained.
        processes: How many train it.
        optimizer: Its optimizer.
        loss: Its loss.
    """
    if recipe.cuda_graph == 'none' or device.type != 'cuda':
        return ''
    if processes > 1:
        return 'there are several processes'
    if recipe.grad_accum_steps > 1:
        return 'gradients are accumulated'
    if recipe.grad_checkpointing:
        return 'activations are computed again'
    if getattr(optimizer, 'is_second_order', False):
        return f'--opt {recipe.opt} differentiates gradients'
    if recipe.opt.lower().endswith('mars'):  # before timm 1.0.29 not their values, and a replay gives the same tensors
        return f'--opt {recipe.opt} keeps the gradients of the step before'
    if is_own(optimizer):
        return f'--opt {recipe.opt} may put new tensors in the place of weights, or keep gradients'
    if recipe.loss and any(True for _ in loss.buffers()):
        return f'--loss {recipe.loss} may put new tensors in the place of its buffers'
    if recipe.torchcompile == 'cudagraphs' or recipe.torchcompile_mode in ('reduce-overhead', 'max-autotune'):
        return 'the compiled model has graphs of its own'
    return None


class GraphedStep:
    """Records the training step of each shape of batch after some eager ones, and replays it from then on.

    The forward and the backward pass are recorded. Muon's step is recorded with them, since it goes matrix by matrix,
    in hundreds of launches. Gradients are those of the batch alone, not added to earlier ones.

    Args:
        model: The model, on its GPU.
        optimizer: Its optimizer.
        loss: Images and targets to the loss; it is recorded once for a shape.
        backward: The loss to the gradients, likewise.
        updates: Whether the optimizer's step may be recorded: nothing comes between it and the backward pass.
        log: Takes a line that says why a model can't be recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        backward: Backward,
        updates: bool,
        log: Callable[[str], object],
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer
        self.loss, self.backward = loss, backward
        self.updates = updates and is_recordable(optimizer)
        self.log = log
        self.off = False
        self._done: Counter[Shapes] = Counter()
        self._recorded: dict[Shapes, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self.parameters[0].device)  # torch's own is one for all GPUs

    @contextmanager
    def warm_up(self, images: torch.Tensor, targets: torch.Tensor) -> Iterator[None]:
        """Surrounds an eager forward and backward pass over a whole batch.

        The last of them is watched: a step that waits for the GPU can't be recorded. One that draws on the CPU would
        have the same draw in each replay.
        """
        shapes = images.shape, targets.shape
        self._done[shapes] += 1
        if self.off or self._done[shapes] != WARM_UP_STEPS:
            yield
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            drawn = cpu_states()
            torch.cuda.set_sync_debug_mode('warn')
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode('default')
        if any('synchronizing CUDA operation' in str(warning.message) for warning in caught):
            self._leave_out('waits for the GPU')
        elif cpu_states() != drawn:
            self._leave_out('draws random numbers on the CPU')

    def _leave_out(self, why: str) -> None:
        self.off = True
        self.log(f'cuda-graph auto: off (a step of this model or loss {why})')

    def replay(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        """Replays the step and returns the batch's loss, detached; None where the step has to be eager.

        Afterwards the parameters have the batch's gradients, or with `updates` their new values.

        Args:
            images: `(N, 3, H, W)`.
            targets: `(N,)` or `(N, classes)`.

        Raises:
            UserError: The step can't be recorded.
        """
        shapes = images.shape, targets.shape
        if self.off or self._done[shapes] < WARM_UP_STEPS:
            return None
        recorded = self._recorded.get(shapes)
        if recorded is None:
            recorded = self._recorded[shapes] = self._record(images, targets)
        recorded.images.copy_(images)
        recorded.targets.copy_(targets)
        for rate, group in zip(recorded.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group['lr'])
        recorded.graph.replay()
        if not self.updates:
            for parameter, gradient in zip(self.parameters, recorded.gradients, strict=True):
                parameter.grad = gradient
        return recorded.loss.clone()

    def _record(self, images: torch.Tensor, targets: torch.Tensor) -> _Recorded:
        recorded = _Recorded(images.clone(), targets.clone(), self.optimizer, images.device)
        if self.updates:
            _make_capturable(self.optimizer)
        kept = [group['lr'] for group in self.optimizer.param_groups]
        stay = torch.cuda.stream(torch.cuda.current_stream(images.device))  # a recording that fails leaves another one
        try:
            with stay, torch.cuda.graph(recorded.graph, self._pool, self._stream, capture_error_mode='thread_local'):
                loss = self.loss(recorded.images, recorded.targets)
                self.backward(loss)
                if self.updates:
                    _set_rates(self.optimizer, recorded.rates)
                    self.optimizer.step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = first_line(error)
            raise UserError(f'this step cannot be recorded ({reason}): give --cuda-graph none') from error
        finally:
            _set_rates(self.optimizer, kept)
        recorded.loss = loss.detach()
        recorded.gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return recorded


class _Recorded:
    """A recorded step: the memory that it reads its batch and rates from, and that it writes its results to."""

    def __init__(
        self, images: torch.Tensor, targets: torch.Tensor, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self.images, self.targets = images, targets
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self.graph = torch.cuda.CUDAGraph()
        self.loss = torch.zeros((), device=device)
        self.gradients: list[torch.Tensor | None] = []


def is_recordable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is timm's Muon, of a version (1.0.31) that takes a learning rate from the GPU's memory."""
    muon = getattr(timm.optim, 'Muon', ())
    return isinstance(optimizer, muon) and all('capturable' in group for group in optimizer.param_groups)


def _make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """From now on its steps are counted on the GPU."""
    for group in optimizer.param_groups:
        group['capturable'] = True
        for parameter in group['params']:
            state = optimizer.state[parameter]
            if 'step' in state:
                state['step'] = state['step'].to(parameter.device, torch.float32)
    optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # the last batch is


def _set_rates(optimizer: torch.optim.Optimizer, rates: list[torch.Tensor]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group['lr'] = rate
