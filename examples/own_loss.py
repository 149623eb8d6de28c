"""A loss of one's own: PolyLoss in its simplest form, Poly-1 (Leng et al. 2022, arXiv 2204.12511).

imagenette-zoo train --import own_loss.py --loss own_loss:PolyLoss
"""

import torch
from torch import nn


class PolyLoss(nn.Module):
    """Cross-entropy plus `epsilon` times what the probability of the true class lacks."""

    def __init__(self, epsilon: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits are `(N, classes)`, targets `(N,)` class indices or, where images are mixed, `(N, classes)`."""
        if not targets.is_floating_point():
            targets = nn.functional.one_hot(targets, logits.shape[1])
        logs = logits.log_softmax(1)
        cross_entropy = -(targets * logs).sum(1)
        lacking = 1 - (targets * logs.exp()).sum(1)
        return (cross_entropy + self.epsilon * lacking).mean()
