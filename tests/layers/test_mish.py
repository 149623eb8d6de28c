"""Mish compiled, in eager's fused kernels, and wherever it has to be torch's own."""

import contextvars
import copy
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import imagenette_zoo.models  # noqa: F401  (registers them)
from imagenette_zoo.kernels import runtime
from imagenette_zoo.layers import Mish, mish
from imagenette_zoo.models.factory import to_device
from tests.conftest import needs_compiler, run_without_compiler

FUSED = [torch.float32, torch.bfloat16]
DTYPES = [torch.float64, torch.float16, *FUSED]
EXTREMES = [1e4, -1e4, 20.0, 19.99, -19.99, 0.0, -0.0, float('inf'), float('-inf'), float('nan')]


def samples(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.cat([torch.linspace(-30, 30, 6001), torch.tensor(EXTREMES)]).to(dtype)


def gradients(
    activation: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, create_graph: bool = False
) -> torch.Tensor:
    """Those at `x` for other gradients than ones at the output."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    return torch.autograd.grad(activation(x), x, torch.randn(x.shape).to(x), create_graph=create_graph)[0]


def slope(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.mish_backward(torch.ones_like(x), x)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Lets tensors of any size be fused; fills with what the kernels wrote."""
    written, launch = [], mish._launch

    def spy(*arguments: object, out: torch.Tensor) -> torch.Tensor:
        written.append(out)
        return launch(*arguments, out=out)

    monkeypatch.setattr(mish, '_launch', spy)
    monkeypatch.setattr(mish, 'FUSED_SIZES', dict.fromkeys(mish.FUSED_SIZES, range(1, 2**30)))
    return written


def test_much_inference_is_each_threads_own() -> None:
    """And ends in any order."""
    x = torch.zeros(2**13)
    first, second = mish.much_inference(), mish.much_inference()
    large = []
    with first:
        context = contextvars.Context()
        context.run(second.__enter__)
        large.append(context.run(mish._is_large, x))
        thread = threading.Thread(target=lambda: large.append(mish._is_large(x)))
        thread.start()
        thread.join()
    large += [mish._is_large(x), context.run(mish._is_large, x)]
    context.run(second.__exit__, None, None, None)
    assert large == [True, False, False, True]


@pytest.mark.parametrize('inplace', [False, True])
def test_mish_equals_torch(inplace: bool) -> None:
    x = torch.randn(2, 3, 5, 7) * 10
    torch.testing.assert_close(Mish(inplace=inplace)(x.clone()), F.mish(x), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
def test_compiled_mish_has_torchs_values_and_gradients(dtype: torch.dtype) -> None:
    x = samples(dtype)
    torch._dynamo.reset()  # it counts the shapes and types of all tests together
    compiled = torch.compile(Mish(), fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), F.mish(x), rtol=None, atol=None, equal_nan=True)
    finite = x[x.isfinite()]
    torch.testing.assert_close(gradients(compiled, finite), gradients(F.mish, finite))


def test_gradient_of_compiled_mish() -> None:
    x = torch.linspace(-8, 25, 67, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish._algebraic_mish, x)


def operators(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == 'call_function'}


def test_mish_is_one_exponential_where_it_is_compiled_and_torchs_own_elsewhere(launches: list[torch.Tensor]) -> None:
    x, seen = torch.randn(8), []

    def backend(module: torch.fx.GraphModule, inputs: object) -> object:
        seen.append({node.target for node in module.graph.nodes})
        return module.forward

    torch._dynamo.reset()
    torch.compile(Mish(), fullgraph=True, backend=backend)(x)
    assert 'exp' in seen[0]
    assert F.mish not in seen[0]
    exported = torch.export.export(nn.Sequential(Mish()), (x,))
    if hasattr(torch.compiler, 'is_exporting'):
        assert any('mish' in name for name in operators(exported.graph))
    assert 'mish' in str(torch.jit.script(Mish()).graph)
    assert 'mish' in str(torch.jit.trace(Mish(), x, check_trace=False).graph)
    assert F.mish in {node.target for node in torch.fx.symbolic_trace(Mish()).graph.nodes}
    assert 'aten.mish.default' in operators(make_fx(Mish())(x).graph)
    assert not launches


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('dtype', FUSED)
def test_fused_mish_has_torchs_values_and_gradients(dtype: torch.dtype, launches: list[torch.Tensor]) -> None:
    x = samples(dtype)
    torch.testing.assert_close(Mish()(x), F.mish(x), equal_nan=True)
    expected = gradients(F.mish, x)
    for create_graph in (False, True):  # the second by a formula that can be differentiated once more
        torch.testing.assert_close(gradients(Mish(), x, create_graph), expected, equal_nan=True)
    assert len(launches) == 4


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16])
def test_types_without_a_kernel_are_torchs_own(dtype: torch.dtype, launches: list[torch.Tensor]) -> None:
    x = samples(dtype)
    for ours, theirs in ((Mish()(x), F.mish(x)), (gradients(Mish(), x), gradients(F.mish, x))):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert not launches


@needs_compiler
def test_fused_gradient_is_as_accurate_as_torchs(launches: list[torch.Tensor]) -> None:
    x = torch.linspace(-30, 30, 100_001)
    exact = gradients(F.mish, x.double())
    assert (gradients(Mish(), x) - exact).abs().max() <= (gradients(F.mish, x) - exact).abs().max()
    assert launches


@needs_compiler
def test_gradients_of_fused_mish_of_every_order(launches: list[torch.Tensor]) -> None:
    x = torch.linspace(-8, 25, 34)

    def orders(activation: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
        x = x.clone().requires_grad_()
        derivatives = [activation(x)]
        for _ in range(3):
            derivatives += torch.autograd.grad(derivatives[-1].sin().sum(), x, create_graph=True)
        batched = torch.autograd.grad(derivatives[0], x, torch.eye(len(x)).to(x), is_grads_batched=True)
        return [tensor.double() / tensor.double().norm() for tensor in (*derivatives, *batched)]

    torch.testing.assert_close(orders(Mish(), x), orders(F.mish, x.double()), rtol=1e-3, atol=1e-5)
    large = torch.tensor([-1e4, 1e4, 100.0], requires_grad=True)
    (slope,) = torch.autograd.grad(Mish()(large).sum(), large, create_graph=True)
    assert torch.autograd.grad(slope.sum(), large)[0].tolist() == [0, 0, 0]
    assert launches


@needs_compiler
@pytest.mark.parametrize('shape', [(7,), (2, 3), (2, 3, 5, 7), (2, 8, 1, 1), (2, 3, 4, 5, 6)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_fused_mish_keeps_strides(shape: tuple[int, ...], channels_last: bool, launches: list[torch.Tensor]) -> None:
    x = torch.randn(shape)
    if channels_last:
        memory_format = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
        x = x.to(memory_format=memory_format)
    x.requires_grad_()
    y, expected = Mish()(x), F.mish(x)
    torch.testing.assert_close(y, expected)
    assert y.stride() == x.stride()
    for grad in (torch.randn_like(x), torch.randn(shape), torch.ones(()).expand(shape)):  # x's strides and others
        (ours,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, x, grad, retain_graph=True)
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == x.stride()
    assert len(launches) == 4


@needs_compiler
def test_torchs_mish_becomes_this_one(launches: list[torch.Tensor]) -> None:
    model = timm.create_model('test_resnet', act_layer=nn.Mish)
    x = torch.randn(2, 3, 64, 64)
    expected, keys = model(x), model.state_dict().keys()
    assert not launches
    model = to_device(model, torch.device('cpu'), channels_last=False)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert len(launches) == sum(isinstance(layer, nn.Mish) for layer in model.modules())
    assert model.state_dict().keys() == keys


@needs_compiler
def test_inplace(launches: list[torch.Tensor]) -> None:
    """Overwrites where torch could, and tells autograd."""
    x = torch.randn(64)
    expected = F.mish(x)
    for context in (torch.no_grad, torch.inference_mode):
        y = x.clone()
        with context():
            assert Mish(inplace=True)(y) is y
        torch.testing.assert_close(y, expected)
    weight, overwritten = torch.ones(64, requires_grad=True), x.clone()
    product = weight * overwritten
    Mish(inplace=True)(overwritten)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        product.sum().backward()
    torch.testing.assert_close(gradients(Mish(inplace=True), x), gradients(F.mish, x))
    assert len(launches) == 5


@needs_compiler
def test_fused_mish_saves_its_input_alone(launches: list[torch.Tensor]) -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        Mish()(x)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]
    assert launches


@needs_compiler
def test_fused_mish_with_saved_tensor_hooks(launches: list[torch.Tensor]) -> None:
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = gradients(F.mish, x)
    torch.testing.assert_close(gradients(lambda x: checkpoint(Mish(), x, use_reentrant=False), x), expected)
    with torch.autograd.graph.save_on_cpu():  # comes back in another memory format
        torch.testing.assert_close(gradients(Mish(), x), expected)
    halved = torch.autograd.graph.saved_tensors_hooks(lambda x: x.half(), lambda x: x)  # and in another type
    with halved:
        torch.testing.assert_close(gradients(Mish(), x), expected, rtol=1e-2, atol=1e-2)
    assert len(launches) >= 5


@needs_compiler
def test_compiled_autograd(launches: list[torch.Tensor]) -> None:
    """A backward of fused layers that is itself compiled."""
    x = torch.randn(100, requires_grad=True)
    y = Mish()(x * 1.0)
    torch._dynamo.reset()
    with compiled_autograd._enable(torch.compile(backend='aot_eager', fullgraph=True)):
        y.sum().backward()
    torch.testing.assert_close(x.grad, slope(x.detach()))
    assert len(launches) == 1


@needs_compiler
def test_fused_mish_of_any_size(launches: list[torch.Tensor]) -> None:
    for size in range(1, 51):
        x = torch.randn(size * 37)
        torch.testing.assert_close(gradients(Mish(), x), gradients(F.mish, x))
        with torch.inference_mode(), torch.autocast('cpu'):
            torch.testing.assert_close(Mish()(x), F.mish(x))
    assert len(launches) == 50 * 3


@needs_compiler
def test_first_use_in_any_context(launches: list[torch.Tensor]) -> None:
    """The kernels are the same whatever was on while they were loaded, and need no dynamo."""
    runtime._compile.cache_clear()
    x = torch.randn(100)
    with torch.inference_mode(), torch.autocast('cpu'):
        torch.compiler.disable(Mish())(x)
    torch.testing.assert_close(gradients(Mish(), x), gradients(F.mish, x))
    assert len(launches) == 3


def test_threads_wait_for_one_compile(launches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    compiles, started = [], threading.Barrier(4)

    @cache
    def compile_slowly() -> None:
        compiles.append(1)
        threading.Event().wait(0.2)

    def use() -> None:
        started.wait()
        Mish()(torch.ones(10))

    monkeypatch.setattr(runtime, '_compile', compile_slowly)
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiles) == 1


class Marked(torch.Tensor):
    pass


def dual(x: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(Mish()(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def counted(x: torch.Tensor) -> torch.Tensor:
    with FlopCounterMode(display=False):
        return Mish()(x)


def fake(x: torch.Tensor) -> type:
    with FakeTensorMode() as mode:
        return type(Mish()(mode.from_tensor(x)))


FALLBACKS: dict[str, tuple[Callable[[torch.Tensor], object], Callable[[torch.Tensor], object]]] = {
    'script': (lambda x: torch.jit.script(Mish())(x), F.mish),
    'trace': (lambda x: torch.jit.trace(Mish(), x, check_trace=False)(x), F.mish),
    'export': (lambda x: torch.export.export(Mish(), (x,)).module()(x), F.mish),
    'fx': (lambda x: torch.fx.symbolic_trace(Mish())(x), F.mish),
    'make_fx': (lambda x: make_fx(Mish())(x)(x), F.mish),
    'make_fx fake': (lambda x: make_fx(Mish(), tracing_mode='fake')(x)(x), F.mish),
    'grad': (torch.func.grad(lambda x: Mish()(x).sum()), slope),
    'vmap': (torch.func.vmap(Mish()), F.mish),
    'jvp': (lambda x: torch.func.jvp(Mish(), (x,), (torch.ones_like(x),))[1], slope),
    'functionalize': (lambda x: torch.func.functionalize(Mish(inplace=True))(x.clone()), F.mish),
    'forward-mode AD': (dual, slope),
    'subclass': (lambda x: Mish()(x.as_subclass(Marked)), lambda x: F.mish(x.as_subclass(Marked))),
    'meta': (lambda x: Mish()(x.to('meta')).shape, lambda x: x.shape),
    'fake': (fake, lambda x: FakeTensor),
    'dispatch mode': (counted, F.mish),
    'sliced': (lambda x: Mish()(x[:, ::2]), lambda x: F.mish(x[:, ::2])),
    'expanded': (lambda x: Mish()(x[:, :1].expand(-1, 5)), lambda x: F.mish(x[:, :1].expand(-1, 5))),
    'unaligned': (lambda x: Mish()(x.view(-1)[1:]), lambda x: F.mish(x.view(-1)[1:])),
    'negative view': (lambda x: Mish()(x._neg_view()), lambda x: F.mish(-x)),
}


@needs_compiler
@pytest.mark.filterwarnings('error::torch.jit.TracerWarning')
@pytest.mark.parametrize('case', FALLBACKS)
def test_falls_back(case: str, launches: list[torch.Tensor]) -> None:
    ours, theirs = FALLBACKS[case]
    x = torch.randn(6, 10)
    Mish()(x)
    assert len(launches) == 1, 'no kernel to fall back from'
    result, expected = ours(x), theirs(x)
    assert type(result) is type(expected)
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(result, expected)
    else:
        assert result == expected
    assert len(launches) == 1


def test_small_tensors_and_other_types_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of elements and whether a gradient is needed: the smallest that is fused, and one less."""
    asked: list[int] = []
    monkeypatch.setattr(mish, 'are_kernels_for', lambda *_: asked.append(size))
    for size in (1, 2**12 - 1, 2**12, 2**22 - 1, 2**22):
        x = torch.zeros(size, dtype=torch.bfloat16)
        torch.testing.assert_close(Mish()(x), x, rtol=0, atol=0)
        Mish()(x.requires_grad_())
        with torch.no_grad():
            Mish()(x)
    with pytest.raises(RuntimeError):  # as torch
        Mish()(torch.zeros(2**22, dtype=torch.int8))
    assert asked == [2**12, 2**22 - 1, 2**22, 2**22, 2**22]


def test_a_compiler_that_fails_is_tried_once(
    launches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[int] = []

    def fail(*_: object) -> None:
        tries.append(1)
        raise RuntimeError('no space left on device')

    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path))
    monkeypatch.setattr(runtime, '_built', fail)
    monkeypatch.setattr(runtime, '_compile', cache(runtime._compile.__wrapped__))
    x = torch.randn(100)
    for _ in range(2):
        torch.testing.assert_close(gradients(Mish(), x), gradients(F.mish, x), rtol=0, atol=0)
    assert len(tries) == 1
    assert not launches


@pytest.mark.long
@pytest.mark.slow
def test_no_compiler(tmp_path: Path) -> None:
    """A machine without one: nothing is compiled for small tensors, and torch's Mish runs for large ones."""
    script = """if True:
        import torch, torch.nn.functional as F
        from imagenette_zoo.kernels import runtime
        from imagenette_zoo.layers import Mish
        Mish()(torch.randn(1000))
        assert runtime._compile.cache_info().misses == 0
        x = torch.randn(2**22, requires_grad=True)
        Mish()(x).sum().backward()
        assert runtime._compile.cache_info().misses == 1
        expected, = torch.autograd.grad(F.mish(x).sum(), x)
        assert torch.equal(x.grad, expected)
        assert runtime._library() is None
        """
    run_without_compiler(script, tmp_path)


def in_child(x: torch.Tensor) -> None:
    """Exits with 1 if a kernel is launched or the values are others than torch's."""
    mish._launch = None  # type: ignore[assignment]
    sys.exit(not torch.equal(Mish()(x), F.mish(x)))


@needs_compiler
@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='this system cannot fork')
def test_forked_process(launches: list[torch.Tensor]) -> None:
    x = torch.randn(100)
    Mish()(x)
    child = multiprocessing.get_context('fork').Process(target=in_child, args=(x,))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert launches


@needs_compiler
def test_copies(launches: list[torch.Tensor]) -> None:
    x, layer = torch.randn(100), Mish(inplace=True)
    with torch.no_grad():
        layer(x.clone())
    assert not layer.state_dict()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.inplace
        torch.testing.assert_close(copied(x.clone()), F.mish(x))
    assert len(launches) == 3


@needs_compiler
def test_a_step_of_training_is_torchs(launches: list[torch.Tensor]) -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    trained = {}
    for activation in (Mish, nn.Mish):
        torch.manual_seed(1)
        model = timm.create_model('mbv2_mish_imagenette', act_layer=activation).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), targets).backward()
        optimizer.step()
        trained[activation] = model.state_dict()
    assert len(launches) == 2 * sum(
        type(layer) is Mish for layer in timm.create_model('mbv2_mish_imagenette').modules()
    )
    torch.testing.assert_close(trained[Mish], trained[nn.Mish], rtol=1e-3, atol=1e-4)
