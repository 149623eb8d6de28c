"""Fusion of a whole model for inference: normalisation that follows a convolution becomes part of it.

In eval mode `norm(conv(x))` is `s (W x + b - mean) + beta` with `s = gamma / sqrt(var + eps)`, a convolution of weight
`s W` and bias `s (b - mean) + beta` (section 3.2 of `Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference` - https://arxiv.org/abs/1712.05877). Pairs are found in a symbolic trace, as
`torch.fx.experimental.optimization.fuse` does, but no graph module comes of it: the model keeps its class and methods.
"""

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Any

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules
from timm.utils import reparameterize_model
from torch import fx
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from .layout import to_channels_last

__all__ = ['fold_norm', 'fuse', 'why_not_folded']

# Exactly these classes: what is derived from them may compute something else.
_CONVS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, BatchNormAct2d, SyncBatchNormAct, FrozenBatchNormAct2d)


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Returns a copy of a model that computes the same in eval mode with fewer layers.

    First timm's `reparameterize_model` merges `MultiPass`, RepVGG's blocks and others. Then every BatchNorm, also a
    frozen or synchronised one, is folded into the 2-d convolution before it if nothing else takes that one's output.
    Its activation, if it has one, stays. All of it is done in float64: only the last rounding differs.

    Some layers stay: norms before a convolution, without running statistics or with dropout; convolutions that change
    their weight, as with weight standardisation; layers that are used twice or have hooks; timm's blocks in a model
    with hooks. Where torch.fx can't trace a module, its children are fused instead. This takes for granted that each
    child is called as a whole, not layer by layer.

    Args:
        model: Any model that takes one tensor; it is left as it is.

    Returns:
        A model of the same class, dtype, device and memory format, in eval mode, that takes and gives tensors of the
        same shapes. Its state dict is another.

    Raises:
        NotImplementedError: The model is on the meta device and has no weights to fold.
    """
    fused = copy.deepcopy(model).eval().cpu().double()
    if not any(_has_hooks(layer) for layer in fused.modules()):  # they would go with the blocks that timm replaces
        with ExitStack() as stack:  # timm makes some of the new layers in the default dtype
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
            fused = reparameterize_model(fused, inplace=True).eval()
    _fold_norms(fused, _references(fused))
    return _in_format_of(model, fused)


def fold_norm(conv: Any, norm: Any) -> nn.Conv2d:
    """The convolution, in float64 on the CPU, that equals `norm(conv(x))` in eval mode but for the activation."""
    conv, norm = (copy.deepcopy(layer).cpu().double().eval() for layer in (conv, norm))
    return fuse_conv_bn_eval(conv, norm).requires_grad_(conv.weight.requires_grad)


def why_not_folded(conv: nn.Module, norm: nn.Module) -> str:
    """The reason why `fold_norm` would not be exact; empty where it is."""
    if type(conv) not in _CONVS:
        return f'{type(conv).__name__} is not a plain convolution'
    if type(norm) not in _NORMS or norm.running_mean is None:
        return f'{type(norm).__name__} has no running statistics to fold'
    if not isinstance(getattr(norm, 'drop', None), nn.Identity | None):
        return f'{type(norm).__name__} drops activations'
    return ''


class _Tracer(fx.Tracer):
    """torch's tracer, but a layer that can't or mustn't be traced is one node; `opaque` has their names."""

    proxy_buffer_attributes = True  # statistics that are used are seen in the graph, as weights are

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.opaque: list[str] = []

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self.path_of_module(m)
        if not isinstance(m, (nn.Conv2d, *_NORMS)):
            if not (self.is_leaf_module(m, name) or isinstance(m, tuple(get_notrace_modules())) or _has_hooks(m)):
                with suppress(Exception):
                    return forward(*args, **kwargs)
            self.opaque.append(name)
        return self.create_proxy('call_module', name, args, kwargs)


def _fold_norms(module: nn.Module, references: Counter[nn.Module]) -> None:
    """Folds norms in place where both layers are called once and referred to once."""
    root = nn.Sequential(module)  # traced as one layer of another, so that it is called as usual and may be opaque
    tracer = _Tracer()
    try:
        graph = tracer.trace(copy.deepcopy(root))  # of a copy, since forward() may store what it computes
    except Exception:  # the module returns what is no part of a graph
        graph, tracer.opaque = fx.Graph(), ['0']

    def is_opaque(name: str) -> bool:
        return any(name.startswith(f'{other}.') for other in tracer.opaque)

    # A layer's weights may be used without calling it.
    uses = Counter(node.target.rpartition('.')[0] if node.op == 'get_attr' else node.target for node in graph.nodes)
    for names in _consecutive_layers(graph):
        layers = conv, norm = [root.get_submodule(name) for name in names]
        if (
            not why_not_folded(conv, norm)
            and all(uses[name] == 1 and not is_opaque(name) for name in names)
            and all(references[layer] == 1 and not layer.training and not _has_hooks(layer) for layer in layers)
        ):
            root.set_submodule(names[0], fold_norm(conv, norm))
            root.set_submodule(names[1], getattr(norm, 'act', nn.Identity().eval()))
    for name in tracer.opaque:
        for child in () if is_opaque(name) else root.get_submodule(name).children():
            _fold_norms(child, references)


def _consecutive_layers(graph: fx.Graph) -> list[tuple[str, str]]:
    """Names of two layers where the second takes what the first gives, and nothing else takes it."""
    return [
        (str(source.target), str(node.target))
        for node in graph.nodes
        for source in node.all_input_nodes
        if source.op == node.op == 'call_module' and len(source.users) == len(node.all_input_nodes) == 1
    ]


def _references(model: nn.Module) -> Counter[nn.Module]:
    """How many attributes hold each layer, also in lists that are not part of the module tree."""
    held: Counter[nn.Module] = Counter()
    for module in model.modules():
        for value in vars(module).values():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            held.update(item for item in items if isinstance(item, nn.Module))
    return held


def _has_hooks(layer: nn.Module) -> bool:
    """Whether something else sees or changes what goes in or out, as weight normalisation does."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _in_format_of(model: nn.Module, fused: nn.Module) -> nn.Module:
    """Gives weights the dtype, device and memory format they had, new ones those of their layer or the model."""
    old = dict(chain(model.named_parameters(), model.named_buffers()))
    first = next(model.parameters(), torch.empty(0))
    for name, value in chain(fused.named_parameters(), fused.named_buffers()):
        value.data = value.data.to(old.get(name, old.get(f'{name.rpartition(".")[0]}.weight', first)))
    channels_last = any(weight.ndim == 4 and not weight.is_contiguous() for weight in model.parameters())
    return to_channels_last(fused) if channels_last else fused
