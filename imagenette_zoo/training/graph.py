"""Training steps as CUDA graphs: what a step asks of the GPU is recorded once and asked for again by a single call.

A small network's kernels take a GPU less time than it takes Python to launch them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ['GraphedPass']

WARM_UP = 3  # passes before the recording: kernels are compiled, cuDNN chooses its algorithms


class GraphedPass:
    """The forward and the backward pass of batches of one shape, by the rules of
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Gradients are those of the batch alone, not added to earlier ones.

    Args:
        loss: ``(N, 3, H, W)`` images and targets to the loss of a batch; no step in it may wait for the GPU.
        model: The model whose parameters get gradients. Its buffers change.
        images: A batch of the shape, on the GPU; kept.
        targets: Its targets; kept.
        pool: Memory that it may share with others, see ``torch.cuda.graph_pool_handle``.

    Raises:
        RuntimeError: It can't be recorded.
    """

    def __init__(
        self,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        model: nn.Module,
        images: torch.Tensor,
        targets: torch.Tensor,
        pool: Any,
    ) -> None:
        self.images, self.targets = images, targets
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        stream = torch.cuda.Stream(images.device)
        stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forget()
                loss(images, targets).backward()
        torch.cuda.current_stream(images.device).wait_stream(stream)
        self._forget()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            recorded = loss(images, targets)
            recorded.backward()
        self.loss = recorded.detach()
        self.gradients = [parameter.grad for parameter in self.parameters]
        self._forget()

    def _forget(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, detached; its gradients are those of the parameters, until the next call."""
        self.images.copy_(images)
        self.targets.copy_(targets)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss.clone()
