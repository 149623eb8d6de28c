"""Triton kernels for training on a GPU: BatchNorm with its activation, blur pooling, depthwise convolutions, the
filters of crops.

Images are channels-last: rows of channels, one row a pixel. Where Triton is missing, importing this fails.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from .blur import blur_backward, blur_forward
from .crop import resize_filter
from .depthwise import depthwise_forward, depthwise_input_gradient, depthwise_weight_gradient
from .norm_act import norm_act_backward, norm_act_forward, norm_stats
from .tiles import ALIGNMENT

__all__ = [
    'blur_backward', 'blur_forward', 'check', 'check_depthwise', 'depthwise_forward', 'depthwise_input_gradient',
    'depthwise_weight_gradient', 'norm_act_backward', 'norm_act_forward', 'norm_stats', 'resize_filter',
]  # fmt: skip


def check(device: torch.device) -> None:
    """Raises where a kernel does not compile or gives something else than it should: torch's own is always right.

    It runs them in bfloat16, as most will train; for another type all is compiled once more. The kernels that most
    models need are compiled here in parallel: one after the other a cold start takes four times as long.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        x = torch.linspace(-3, 3, 70 * ALIGNMENT, device=device).view(2, 5, 7, ALIGNMENT).sin()
        x = x.bfloat16().permute(0, 3, 1, 2).requires_grad_()
        ones, zeros = torch.ones(ALIGNMENT, device=device), torch.zeros(ALIGNMENT, device=device)
        wanted = torch.nn.functional.mish(torch.nn.functional.batch_norm(x, None, None, ones, zeros, True))
        (gradient,) = torch.autograd.grad(wanted, x, x)
    batches = torch.zeros((), dtype=torch.long, device=device)
    statistics = x.detach(), ones, zeros, zeros.clone(), ones.clone(), batches, 0.1, 1e-5
    x, anything = x.detach(), torch.ones(4, ALIGNMENT, device=device)
    one = torch.ones(1, dtype=torch.long, device=device)
    with ThreadPoolExecutor() as pool:
        jobs: list[Future[Any]] = [
            pool.submit(norm_stats, *statistics),
            *(pool.submit(norm_act_forward, x, anything, kind) for kind in (0, 3)),
            *(pool.submit(norm_act_backward, x, x, anything, kind) for kind in (0, 3)),
            pool.submit(blur_backward, torch.ones_like(x[:, :, :3, :4]), x, True, False),
            pool.submit(blur_forward, torch.ones_like(x), True, False),
            pool.submit(resize_filter, one - 1, one, 1, 1, one.bool(), one.bool()),
        ]
        stats, *_, spread, blurred, filters = [job.result() for job in jobs]
    torch.testing.assert_close(norm_act_forward(x, stats, 3), wanted.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm_act_backward(x, x, stats, 3)[0], gradient, rtol=0.05, atol=0.05)
    torch.testing.assert_close(filters, torch.ones_like(filters))
    torch.testing.assert_close(blurred, torch.ones_like(blurred))  # of ones
    torch.testing.assert_close(spread.float().sum(), torch.tensor(float(blurred.numel()), device=device))


def check_depthwise(device: torch.device) -> None:
    """As `check`, for depthwise convolutions."""
    channels = 2 * ALIGNMENT
    with ThreadPoolExecutor() as pool, torch.inference_mode(False), torch.enable_grad():
        x = torch.linspace(-3, 3, 70 * channels).view(2, 5, 7, channels).sin().permute(0, 3, 1, 2)
        weight = torch.linspace(-2, 2, 9 * channels).view(channels, 1, 3, 3).cos()
        taps = weight.view(channels, 9).t().contiguous().to(device)
        jobs: list[tuple[Future[Any], torch.Tensor]] = []
        for stride in (1, 2):
            inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
            y = torch.nn.functional.conv2d(inputs[0], inputs[1], None, stride, 1, groups=channels)
            dx, dweight = torch.autograd.grad(y, inputs, y)
            here, grad = (t.detach().to(device, torch.bfloat16, memory_format=torch.channels_last) for t in (x, y))
            jobs += [
                (pool.submit(depthwise_forward, here, taps, stride), y.detach()),
                (pool.submit(depthwise_input_gradient, grad, taps, stride, (5, 7)), dx),
                (pool.submit(depthwise_weight_gradient, grad, here, stride), dweight),
            ]
        for job, wanted in jobs:
            result = job.result().float().cpu()
            torch.testing.assert_close(result, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
