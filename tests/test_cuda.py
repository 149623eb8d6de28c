"""On a GPU: recorded steps are those of the eager ones, all ways of training work, pixels and logits are the CPU's."""

import copy
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data import augment
from imagenette_zoo.data.augment import Augmentation, crop_resize
from imagenette_zoo.fast_layers.swap import swap
from imagenette_zoo.inference.validate import validate
from imagenette_zoo.kernels import runtime
from imagenette_zoo.models.factory import to_device
from imagenette_zoo.training import learner
from imagenette_zoo.training.cuda_graph import GraphedStep
from imagenette_zoo.training.trainer import train
from tests.conftest import interrupted

MakeRecipe = Callable[..., Recipe]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')]
if torch.cuda.is_available():
    from imagenette_zoo.kernels import gpu


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the batches that a recorded step was replayed for."""
    shapes, replay = [], GraphedStep.replay

    def spy(self: GraphedStep, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor | None:
        loss = replay(self, images, targets)
        if loss is not None:
            shapes.append(images.shape)
        return loss

    monkeypatch.setattr(GraphedStep, 'replay', spy)
    return shapes


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    return [row[name] for row in rows for name in ('train_loss', 'eval_loss')]


@pytest.mark.parametrize(
    ('replayed', 'changes'),
    [
        (True, dict()),
        (True, dict(channels_last=True, amp=True, amp_dtype='bfloat16', model_ema=True)),
        (True, dict(mixup=0.2, cutmix=1.0, reprob=0.5, color_jitter=0.3)),
        (True, dict(drop=0.1, drop_path=0.1, clip_grad=1.0, bce_loss=True, model='mbv2_mish_imagenette')),
        (True, dict(train_img_sizes=(32, 48), train_size_schedule='progressive')),
        (True, dict(nan='skip', opt='nmuon', torchcompile='inductor')),
        (True, dict(opt='nmuon', model_ema=True)),
        (True, dict(opt='lookahead_nmuon', torchcompile='inductor')),
        (True, dict(loader='timm', workers=2, pin_mem=True)),
        (True, dict(model='mbv2_mish_maxblur_imagenette', model_ema=True, model_ema_force_cpu=True)),
        (True, dict(model='mbv2_mish_mp2_imagenette', channels_last=True)),
        (True, dict(model='googlenet', img_size=64)),
        (True, dict(amp=True, channels_last=True, model='mbv2_mish_imagenette')),
        (True, dict(amp=True, opt='sgd', nan='skip', clip_grad=1.0)),
        (True, dict(amp=True, opt='nmuon', channels_last=True)),
        (True, dict(kd_model_name='mbv2_mish_imagenette', kd_distill_type='feature', amp=True)),
        (True, dict(kd_model_name='mbv2_mish_imagenette', kd_distill_type='feature', no_aug=True, workers=0)),
        (False, dict(grad_accum_steps=2)),
        (False, dict(grad_checkpointing=True)),
        (False, dict(torchcompile='inductor', torchcompile_mode='reduce-overhead')),
    ],
)
def test_all_ways_of_training(
    recipe: MakeRecipe, replays: list[torch.Size], replayed: bool, changes: dict[str, object]
) -> None:
    options = dict(device='cuda', batch_size=10, epochs=5, opt='adamw', lr=1e-3)
    result = train(recipe(**{**options, **changes}), quiet=True)
    assert all(torch.tensor(losses(result.folder)).isfinite())
    assert bool(replays) == replayed
    assert {shape[0] for shape in replays} <= {10}  # not the last, smaller batch


def place_fused(model: nn.Module, device: torch.device, channels_last: bool, log: None) -> nn.Module:
    """Layers as where steps are recorded."""
    model = to_device(model, device, channels_last)
    swap(model, device, channels_last, 'recorded steps')
    return model


@pytest.mark.parametrize(
    ('options', 'tolerance'),
    [
        (dict(), 1e-4),
        (dict(channels_last=True, model='mbv2_mish_maxblur_imagenette', lr=0.01), 1e-4),
        (dict(amp=True, channels_last=True), 1e-2),
        (dict(amp=True, amp_dtype='bfloat16', channels_last=True, model='mbv2_mish_imagenette', lr=0.01), 1e-2),
        (dict(opt='nmuon', lr=0.01, channels_last=True), 0.15),  # its step rounds otherwise, and it amplifies that
    ],
)
def test_a_recorded_step_is_the_eager_one(
    recipe: MakeRecipe,
    replays: list[torch.Size],
    options: dict[str, object],
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(name: str) -> list[float]:
        given = dict(device='cuda', lr=0.05, opt='sgd', experiment=name, cuda_graph=name, epochs=8)
        return losses(train(recipe(**{**given, **options}), quiet=True).folder)

    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    monkeypatch.setattr(learner, 'to_device', place_fused)
    eager = run('none')
    assert not replays
    assert eager[-2] < 0.9 * eager[0], 'it learns'
    recorded = run('auto')
    assert recorded[0] == pytest.approx(eager[0], rel=min(tolerance, 1e-2))
    assert recorded == pytest.approx(eager, rel=tolerance)
    assert replays


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('name', ['mbv2_mish_maxblur_imagenette', 'seresnet18d_mish_maxblur_imagenette', 'resnet34'])
def test_fused_layers_are_torchs(name: str, amp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients as near to float64's as torch's are."""
    assert runtime.triton_kernels(torch.device('cuda', 0)) is gpu
    launched: list[str] = []

    def spy(name: str) -> None:
        kernel = getattr(gpu, name)
        monkeypatch.setattr(gpu, name, lambda *args: launched.append(name) or kernel(*args))

    spy('norm_act_forward')
    spy('depthwise_weight_gradient')
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=10).to('cuda', memory_format=torch.channels_last)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    swap(fused, torch.device('cuda'), True, 'recorded steps')
    images = torch.randn(16, 3, 96, 96, device='cuda').contiguous(memory_format=torch.channels_last)

    def gradients(model: nn.Module) -> torch.Tensor:
        wide = model is exact
        with torch.autocast('cuda', torch.bfloat16, enabled=amp and not wide):
            model(images.double() if wide else images).logsumexp(1).sum().backward()
        return torch.cat([parameter.grad.double().flatten() for parameter in model.parameters()])

    wanted, torchs, ours = gradients(exact), gradients(plain), gradients(fused)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    depthwise = sum(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in plain.modules())
    assert Counter(launched) == Counter(norm_act_forward=norms, depthwise_weight_gradient=depthwise)
    assert (ours - wanted).norm() < 1.3 * (torchs - wanted).norm() + 1e-3 * wanted.norm()
    for (key, buffer), expected in zip(fused.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=0.05, atol=0.05, msg=key)


def test_it_resumes(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dict(device='cuda', epochs=4, model_ema=True)
    whole = losses(train(recipe(**options, experiment='whole'), quiet=True).folder)
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=2):
        train(recipe(**options, experiment='halves'), quiet=True)
    halves = losses(train(recipe(**options, experiment='halves', resume='auto'), quiet=True).folder)
    assert halves == pytest.approx(whole, rel=2e-2)


class _Waits(nn.Module):
    """Asks the GPU for a number, which can't be recorded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x * float(x.abs().max() > -1))


class _Draws(_Waits):
    """Leaves itself out now and then: a recorded step would do the same ever after."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x if random.random() < 0.5 else x + 1)


@pytest.mark.parametrize(('kind', 'why'), [(_Waits, 'waits for the GPU'), (_Draws, 'draws random numbers on the CPU')])
def test_what_can_not_be_recorded_is_trained_all_the_same(
    recipe: MakeRecipe,
    replays: list[torch.Size],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[_Waits],
    why: str,
) -> None:
    monkeypatch.setattr(learner, 'compiled', lambda model, *_: kind(model))
    result = train(recipe(device='cuda'))
    assert not replays
    assert f'cuda-graph auto: off (a step of this model or loss {why})' in capsys.readouterr().out
    assert all(torch.tensor(losses(result.folder)).isfinite())


def test_validation_is_the_cpus(recipe: MakeRecipe, folder: Path) -> None:
    run = train(recipe(device='cuda', epochs=3, opt='adamw', lr=1e-3), quiet=True).folder
    cpu, cuda = (
        validate(run, folder, device=device, img_size=32, batch_size=7, quiet=True, shift_consistency=True)[0]
        for device in ('cpu', 'cuda')
    )
    assert cuda.loss == pytest.approx(cpu.loss, rel=1e-2)
    assert cuda.images == cpu.images
    assert cuda.images % 7, 'the last batch is a smaller one'
    assert (cuda.confusion, cuda.shift_consistency) == (cpu.confusion, cpu.shift_consistency)


def test_crops_are_the_cpus() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (16, 64, 64, 3), dtype=torch.uint8)
    draws = Augmentation(scale=(0.1, 1.0)).draw(torch.full((16, 2), 64, dtype=torch.int32), 64, 0, 0)
    index = torch.arange(16)
    want = augment._crop_resize_dense(pixels, index, draws, (40, 40))
    device = torch.device('cuda')
    got = crop_resize(pixels.to(device), index.to(device), draws.to(device), (40, 40)).cpu()
    difference = (got.int() - want.int()).abs()
    assert difference.max() <= 2  # TF32
    assert difference.float().mean() < 0.3


def test_cuda_is_as_before(recipe: MakeRecipe) -> None:
    torch.cuda.manual_seed(8)
    torch.backends.cuda.matmul.allow_tf32 = False
    state = torch.cuda.get_rng_state()
    train(recipe(device='cuda'), quiet=True)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert not torch.backends.cuda.matmul.allow_tf32
