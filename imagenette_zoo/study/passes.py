"""How much the passes of MultiPass blocks differ, and what accuracy each is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.uses import PassesOptions
from ..data.folders import evenly
from ..errors import UserError, require
from ..inference.evaluate import evaluate
from ..inference.loading import images_of, load_trained
from ..layers import MultiPass
from ..utils import environment
from ..utils.console import Console, table
from ..utils.distributed import World, choose_device
from ..utils.files import write_json
from ..utils.process import restore_process

__all__ = ['BlockPasses', 'PassesReport', 'compare_passes']


@dataclass(frozen=True)
class BlockPasses:
    """One MultiPass block.

    `cka` and `cosine` have a row and a column for each pass. Where each pass is a residual, what it adds
    to the block's input is compared, else its output.

    Args:
        name: The module's name.
        kinds: What each pass is, as in `kernel 3`.
        residual: Whether the input was subtracted.
        cka: Linear CKA between the passes: every position of every image is an example
            (https://arxiv.org/abs/1905.00414). 1 where one is a rotated and scaled copy of the other.
        cosine: Cosine between them, mean over the images. 1 where one is a scaled copy of the other.
        top1_lost: Points of top-1 that are lost without each pass.
    """

    name: str
    kinds: list[str]
    residual: bool
    cka: list[list[float]]
    cosine: list[list[float]]
    top1_lost: list[float]


@dataclass(frozen=True)
class PassesReport:
    """The passes of a model: its top-1 in % on the images that were looked at, and its blocks."""

    model: str
    top1: float
    images: int
    img_size: int
    blocks: list[BlockPasses]
    versions: dict[str, str]
    hardware: dict[str, Any]


@restore_process()
def compare_passes(options: PassesOptions, *, quiet: bool = False) -> PassesReport:
    """Compares the passes of every MultiPass block of a model on validation images.

    Args:
        options: The model, the images and how they are computed; that a figure can be drawn is checked, but not done.
        quiet: Prints nothing.

    Raises:
        UserError: Bad input, or a model without MultiPass.
    """
    if not options.model:
        raise UserError('--model is needed: give a MultiPass model, as in --model runs/NAME')
    if options.save_figure:
        require('matplotlib', '--save-figure', 'report')
    console = Console(quiet)
    world = World(choose_device(options.device))
    images = evenly(images_of((options.model,), options), options.images)
    channels_last = options.is_channels_last(world.device)
    log = console.line if options.log_swaps else None
    trained = load_trained(options.model, options, world.device, channels_last, images, log=log)
    model, normalize = trained.model, trained.normalize
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, MultiPass) and len(m.passes) > 1}
    if not blocks:
        raise UserError(f'{options.model}: has no MultiPass block of several passes')
    batches = trained.batches(images, options, options.batch_size, world, console)

    def top1(fill: bool = True) -> float:
        return evaluate(model, batches, normalize, images, options, world, Console(quiet=True), fill=fill).top1

    with _watched(blocks) as similarities:
        whole = top1(fill=False)  # each image counts once
    compared = []
    with console.progress('passes', sum(len(block.passes) for block in blocks.values()), 1) as progress:
        for name, block in blocks.items():
            lost = []
            for index in range(len(block.passes)):
                with _without(block, index):
                    lost.append(whole - top1())
                progress.advance(len(images), block=name, lost=f'{lost[-1]:.2f} points')
            compared.append(_block_passes(name, block, similarities[name], lost))
    report = PassesReport(
        options.model,
        whole,
        len(images),
        trained.config['input_size'][-1],
        compared,
        environment.versions(),
        environment.hardware(world.device),
    )
    if options.results_file:
        write_json(Path(options.results_file), asdict(report))
    console.line(_summary(report))
    return report


def _exact(output: torch.Tensor) -> torch.Tensor:
    """In float64; MPS lacks it, so its tensors go to the CPU."""
    return (output.cpu() if output.device.type == 'mps' else output).double()


class _Similarity:
    """Sums over batches from which the similarity of n passes is computed."""

    def __init__(self) -> None:
        self.examples = 0
        self.images = 0
        self.sums: torch.Tensor | float = 0.0  # (n, C)
        self.products: torch.Tensor | float = 0.0  # (n, n, C, C)
        self.cosines: torch.Tensor | float = 0.0  # (n, n)

    def add(self, outputs: Sequence[torch.Tensor]) -> None:
        """Adds the outputs of the passes for one batch, `(N, C, H, W)` each."""
        each = torch.stack([_exact(output) for output in outputs])  # (n, N, C, H, W)
        features = each.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (n, examples, C)
        self.examples += features.shape[1]
        self.images += each.shape[1]
        self.sums = self.sums + features.sum(1)
        self.products = self.products + torch.einsum('aec,bed->abcd', features, features)
        directions = nn.functional.normalize(each.flatten(2), dim=2)
        self.cosines = self.cosines + torch.einsum('aif,bif->ab', directions, directions)

    def cka(self) -> torch.Tensor:
        """`(n, n)`: the squared norm of the cross-covariance over the norms of the covariances."""
        assert isinstance(self.sums, torch.Tensor)
        mean = self.sums / self.examples
        covariance = self.products / self.examples - torch.einsum('ac,bd->abcd', mean, mean)
        norms = covariance.square().sum((2, 3)).sqrt()
        own = norms.diagonal()
        return norms.square() / torch.outer(own, own).clamp(min=1e-300)

    def cosine(self) -> torch.Tensor:
        """`(n, n)`: mean over the images."""
        assert isinstance(self.cosines, torch.Tensor)
        return self.cosines / self.images


@contextmanager
def _watched(blocks: dict[str, MultiPass]) -> Iterator[dict[str, _Similarity]]:
    """Compares the passes of these blocks whenever the model runs."""
    similarities = {name: _Similarity() for name in blocks}
    with ExitStack() as stack:
        for name, block in blocks.items():
            for handle in _watch(block, similarities[name]):
                stack.callback(handle.remove)
        yield similarities


def _watch(block: MultiPass, similarity: _Similarity) -> list[Any]:
    outputs: list[torch.Tensor] = []

    def one(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        outputs.append(output - inputs[0] if _is_residual(block) else output)

    def all_of_them(*_: Any) -> None:
        similarity.add(outputs)
        outputs.clear()

    return [*(p.register_forward_hook(one) for p in block.passes), block.register_forward_hook(all_of_them)]


def _is_residual(block: MultiPass) -> bool:
    """Whether each pass only adds to the block's input, as timm's inverted residuals do."""
    return all(getattr(each, 'has_skip', False) for each in block.passes)


@contextmanager
def _without(block: MultiPass, index: int) -> Iterator[None]:
    """The block without one of its passes."""
    passes = block.passes
    block.passes = nn.ModuleList([each for position, each in enumerate(passes) if position != index])
    try:
        yield
    finally:
        block.passes = passes


def _block_passes(name: str, block: MultiPass, similarity: _Similarity, lost: list[float]) -> BlockPasses:
    kinds = [_kind(each) for each in block.passes]
    return BlockPasses(name, kinds, _is_residual(block), similarity.cka().tolist(), similarity.cosine().tolist(), lost)


def _kind(block: nn.Module) -> str:
    """The largest kernel of a pass."""
    sizes = [max(layer.kernel_size) for layer in block.modules() if isinstance(layer, nn.Conv2d)]  # type: ignore[arg-type]
    return f'kernel {max(sizes)}' if sizes else type(block).__name__


def _pairs(matrix: Sequence[Sequence[float]]) -> list[float]:
    """The values above the diagonal."""
    return [value for row, values in enumerate(matrix) for value in values[row + 1 :]]


def _summary(report: PassesReport) -> str:
    header = ('block', 'passes', 'CKA', 'cosine', 'points of top-1 lost without each')
    rows: list[tuple[str, ...]] = [header]
    for block in report.blocks:
        numbers = (' '.join(f'{value:.2f}' for value in _pairs(each)) for each in (block.cka, block.cosine))
        kernels = ', '.join(dict.fromkeys(block.kinds))
        lost = ' '.join(f'{value:+.2f}' for value in block.top1_lost)
        rows.append((block.name, f'{len(block.kinds)} of {kernels}', *numbers, lost))
    pairs = [value for block in report.blocks for value in _pairs(block.cka)]
    losses = [value for block in report.blocks for value in block.top1_lost]
    return (
        f'{table(rows)}\n\n'
        f'{report.model}: top-1 {report.top1:.2f} % on {report.images:,} images at {report.img_size} px\n'
        f'likeness of two passes: CKA {min(pairs):.2f} to {max(pairs):.2f}, mean {sum(pairs) / len(pairs):.2f} (1: no '
        f'new information)\nleaving out one pass costs {min(losses):+.2f} to {max(losses):+.2f} points, mean '
        f'{sum(losses) / len(losses):+.2f}; one image is {100 / report.images:.2f} points'
    )
