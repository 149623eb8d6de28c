"""An optimizer of one's own: Signum, signSGD with momentum (Bernstein et al. 2018, arXiv 1802.04434).

imagenette-zoo train --import own_optimizer.py --opt own_optimizer:Signum --lr 1e-3
"""

import torch


class Signum(torch.optim.Optimizer):
    """Each weight moves by the learning rate, against the sign of its mean gradient. Weight decay is decoupled."""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state['mean'] = torch.zeros_like(parameter)
                mean = state['mean'].lerp_(parameter.grad, 1 - group['momentum'])
                parameter.sub_(mean.sign().add_(parameter, alpha=group['weight_decay']), alpha=group['lr'])
