"""An optimizer, a loss, a schedule and a batch transform of the user's own."""

import copy
import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim._optim_factory import default_registry
from torch import nn

from imagenette_zoo import train
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.training.cuda_graph import why_not_graphed
from imagenette_zoo.training.learner import Learner, learning_rate
from imagenette_zoo.training.own import OwnTransform
from imagenette_zoo.training.trial import try_own
from imagenette_zoo.utils import modules
from imagenette_zoo.utils.distributed import World
from imagenette_zoo.utils.modules import import_modules
from imagenette_zoo.utils.seeding import cpu_states
from tests.conftest import interrupted

pytestmark = pytest.mark.slow

MakeRecipe = Callable[..., Recipe]
CPU = World(torch.device('cpu'))

IDEAS = '''
import math
import torch
from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry
from timm.scheduler.scheduler import Scheduler
from torch import nn


class HandSGD(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group['params']:
                gradient = parameter.grad
                if group['weight_decay']:
                    gradient = gradient.add(parameter, alpha=group['weight_decay'])
                state = self.state[parameter]
                if 'mean' not in state:
                    state['mean'] = gradient.clone()
                else:
                    state['mean'].mul_(group['momentum']).add_(gradient)
                parameter.add_(state['mean'], alpha=-group['lr'])


default_registry.register(OptimInfo('handsgd', HandSGD, has_eps=False, has_momentum=True))
default_registry.register(OptimInfo('hand_sgd', HandSGD, has_eps=False, has_momentum=True))


class AdaChild(torch.optim.AdamW):
    def __init__(self, params, extra=1.0, **kwargs):
        super().__init__(params, **kwargs)
        self.extra = extra

    def step(self, closure=None):
        return super().step(closure)


class Stepless(torch.optim.Optimizer):
    pass


class NoDecay(HandSGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)


class NeedsMore(HandSGD):
    def __init__(self, params, lr, weight_decay, temperature):
        super().__init__(params, lr)


class RatelessSGD(HandSGD):
    def __init__(self, params, lr, weight_decay):
        torch.optim.Optimizer.__init__(self, params, {})


class NeedsClosure(HandSGD):
    def step(self, closure):
        return closure()


class Forgetful(HandSGD):
    def step(self, closure=None):
        self.steps = getattr(self, 'steps', 0) + 1
        for group in self.param_groups:
            for parameter in group['params']:
                parameter.data.sub_(parameter.grad, alpha=group['lr'] / self.steps)


class Unsavable(HandSGD):
    def step(self, closure=None):
        super().step()
        for parameter in self.state:
            self.state[parameter]['why'] = lambda: None


def no_optimizer(params, lr):
    return None


def cross_entropy(logits, targets):
    return nn.functional.cross_entropy(logits, targets)


class Moving(nn.Module):
    """Keeps a moving mean of the loss, which it divides by."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.ones(()))

    def forward(self, logits, targets):
        loss = nn.functional.cross_entropy(logits, targets)
        self.mean = self.mean.lerp(loss.detach(), 0.5)
        return loss / self.mean


class Counting(nn.Module):
    calls = 0

    def forward(self, logits, targets):
        self.calls += 1
        return nn.functional.cross_entropy(logits, targets)


class Trained(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class TakesArguments(nn.Module):
    def __init__(self, weight):
        super().__init__()


def vector(logits, targets):
    return nn.functional.cross_entropy(logits, targets, reduction='none')


def undefined(logits, targets):
    return (logits.sum() / logits.abs().sum()).log()


def number(logits, targets):
    return 1.0


def detached(logits, targets):
    return logits.detach().mean()


def raising(logits, targets):
    raise LookupError('no such thing')


class Identity(nn.Module):
    def forward(self, images, targets, generator):
        return images, targets


class Noise(nn.Module):
    def forward(self, images, targets, generator):
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return images + 0.1 * noise, targets


class Soft(nn.Module):
    def forward(self, images, targets, generator):
        return images, nn.functional.one_hot(targets, 3).float()


class Smaller(nn.Module):
    size = 16

    def forward(self, images, targets, generator):
        return images[:, :, :self.size, :self.size], targets


class TooSmall(Smaller):
    size = 0


class FewerImages(nn.Module):
    def forward(self, images, targets, generator):
        return images[1:], targets[1:]


class FewerTargets(nn.Module):
    def forward(self, images, targets, generator):
        return images, targets[1:]


class Double(nn.Module):
    def forward(self, images, targets, generator):
        return images.double(), targets


class ImagesOnly(nn.Module):
    def forward(self, images, targets, generator):
        return images


class Even(nn.Module):
    def forward(self, images, targets, generator):
        first, second = images.view(2, -1, *images.shape[1:])
        return torch.cat([second, first]), targets


class Remembers(nn.Module):
    def forward(self, images, targets, generator):
        self.last = images
        return images, targets


def falling(step, total):
    return 1 - step / total


def until_the_last(step, total):
    return 1 / (total - step)


def negative(step, total):
    return 0.5 - step


class Halving(Scheduler):
    def __init__(self, optimizer, total):
        super().__init__(optimizer, 'lr')

    def _get_lr(self, t):
        return [base / 2 ** t for base in self.base_values]


class TorchHalving(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, total):
        super().__init__(optimizer)

    def get_lr(self):
        return [base / 2 ** self.last_epoch for base in self.base_lrs]


class Stateless(TorchHalving):
    def state_dict(self):
        return {}
'''


@pytest.fixture(scope='module', autouse=True)
def _ideas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp('ideas') / 'idea_of_training.py'
    file.write_text(IDEAS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, '_imported', {})
        patch.setattr(default_registry, '_optimizers', dict(default_registry._optimizers))
        import_modules([str(file)])
        yield
    del sys.modules[file.stem]


def idea(name: str) -> str:
    return f'idea_of_training:{name}'


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(train(recipe, quiet=True).folder / 'last' / 'model.safetensors')


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(steps: int = 8, **options: object) -> Learner:
    """A learner after some steps on random images of three classes."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3)
    defaults: dict[str, object] = dict(lr=0.1, epochs=8, warmup_epochs=0, torchcompile='none', weight_decay=0.1)
    learner = Learner(Recipe(model='test_resnet', batch_size=4, **{**defaults, **options}), model, CPU, 1)
    for step in range(steps):
        torch.manual_seed(step)
        learner.step(*learner.transform(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), 0, step))
        learner.after_update()
        learner.after_epoch(step + 1, None)
    return learner


# --- Optimizer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('options', [{}, {'layer_decay': 0.5, 'clip_grad': 0.1}, {'lookahead': True}])
@pytest.mark.parametrize('name', [idea('HandSGD'), 'handsgd'])
def test_an_optimizer_by_hand_does_what_timms_does(name: str, options: dict[str, object]) -> None:
    options = dict(options)
    prefix = 'lookahead_' if options.pop('lookahead', False) else ''
    own, timms = trained(opt=prefix + name, **options), trained(opt=f'{prefix}momentum', **options)
    assert same(own.model.state_dict(), timms.model.state_dict())
    assert type(own.optimizer) is type(timms.optimizer) or not prefix
    assert {group['momentum'] for group in own.optimizer.param_groups} == {0.9}
    assert [group['weight_decay'] for group in own.optimizer.param_groups] == [
        group['weight_decay'] for group in timms.optimizer.param_groups
    ]


def test_an_optimizer_gets_the_arguments_that_it_takes() -> None:
    learner = trained(1, opt=idea('AdaChild'), opt_betas=(0.5, 0.6), opt_eps=1e-3, opt_kwargs={'extra': 2.0})
    assert learner.optimizer.extra == 2.0
    assert (learner.optimizer.param_groups[0]['betas'], learner.optimizer.defaults['eps']) == ((0.5, 0.6), 1e-3)
    assert 'betas' not in trained(1, opt=idea('HandSGD'), opt_betas=(0.5, 0.6)).optimizer.param_groups[0]


def test_the_learning_rate_scales_by_the_name_of_the_class() -> None:
    assert learning_rate(Recipe(opt='lambda_idea:Plain', batch_size=1024)) == pytest.approx(0.4)
    assert learning_rate(Recipe(opt='idea:AdaPlain', batch_size=1024)) == pytest.approx(0.2)


# --- Loss and transform -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loss', [idea('cross_entropy'), 'torch.nn:CrossEntropyLoss'])
def test_a_loss_by_hand_does_what_the_standard_one_does(recipe: MakeRecipe, loss: str) -> None:
    """Whose default smoothing is not applied."""
    standard = weights(recipe(epochs=1, smoothing=0.0, experiment='standard'))
    assert same(standard, weights(recipe(epochs=1, loss=loss, batch_transform=idea('Identity'))))
    saved = json.loads(Path(recipe().output, 'run', 'result.json').read_text())
    assert (saved['recipe']['loss'], saved['recipe']['batch_transform']) == (loss, idea('Identity'))
    assert yaml.safe_load(Path(recipe().output, 'run', 'args.yaml').read_text())['loss'] == loss


def test_a_loss_of_mixed_images_gets_probabilities_that_are_not_smoothed(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    step = Learner.step
    monkeypatch.setattr(Learner, 'step', lambda *args: (seen.append(args[2]), step(*args))[1])
    train(recipe(epochs=1, loss=idea('cross_entropy'), mixup=0.2), quiet=True)
    assert all(targets.shape[1] == 3 and targets.count_nonzero(1).max() <= 2 for targets in seen)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_standard_loss_takes_probabilities_of_a_transform(smoothing: float) -> None:
    learner = trained(0, batch_transform=idea('Soft'), smoothing=smoothing)
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    _, soft = learner.transform(torch.zeros(4, 3, 8, 8), targets, 0, 0)
    assert soft.shape == (4, 3)
    expected = LabelSmoothingCrossEntropy(smoothing)(logits, targets)
    torch.testing.assert_close(learner.loss_fn(logits, soft), expected)
    torch.testing.assert_close(learner.loss_fn(logits, targets), expected)
    binary = trained(0, batch_transform=idea('Soft'), smoothing=smoothing, bce_loss=True)
    torch.testing.assert_close(binary.loss_fn(logits, soft), binary.loss_fn(logits, targets))


def test_an_optimizer_draws_the_same_in_all_processes() -> None:
    drawn: list[float] = []
    optimizer = SimpleNamespace(step=lambda: drawn.append(float(torch.rand(()))))
    for size, rank, updates in ((2, 0, 3), (2, 1, 3), (2, 0, 4)):
        torch.manual_seed(rank)  # as each process has its own stream in the step before
        recipe, world = Recipe(model='resnet18'), World(torch.device('cpu'), rank, size)
        parts = {'recipe': recipe, 'world': world, 'scaler': None, 'optimizer': optimizer, 'updates': updates}
        assert Learner._update(SimpleNamespace(**parts))  # type: ignore[arg-type]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_draw_of_any_generator_on_the_cpu_is_seen() -> None:
    np.random.rand()  # whose next draw moves its place alone
    for draw in (random.random, np.random.rand, lambda: torch.rand(())):
        before = cpu_states()
        assert cpu_states() == before
        draw()
        assert cpu_states() != before


def test_a_transform_draws_by_seed_epoch_step_and_process() -> None:
    recipe, images, targets = Recipe(batch_transform=idea('Noise')), torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])

    def noise(epoch: int, step: int, rank: int = 0, seed: int = 42) -> torch.Tensor:
        world = World(torch.device('cpu'), rank, 2)
        return OwnTransform(recipe.replace(seed=seed), 3, world)(images, targets, epoch, step)[0]

    assert torch.equal(noise(1, 2), noise(1, 2))
    others = [noise(1, 3), noise(2, 2), noise(1, 2, rank=1), noise(1, 2, seed=7)]
    assert not any(torch.equal(noise(1, 2), other) for other in others)


def test_a_transform_works_with_timms_loader_and_may_change_the_size(recipe: MakeRecipe) -> None:
    transformed = weights(recipe(epochs=1, loader='timm', batch_transform=idea('Smaller')))
    assert not same(transformed, weights(recipe(epochs=1, loader='timm', experiment='plain')))


# --- Schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('on_updates', [False, True])
@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('falling', [1, 7 / 8, 6 / 8, 5 / 8]),
        ('Halving', [1, 1 / 2, 1 / 4, 1 / 8]),
        ('TorchHalving', [1, 1 / 2, 1 / 4, 1 / 8]),
    ],
)
def test_a_schedule_goes_by_epochs_or_updates(name: str, expected: list[float], on_updates: bool) -> None:
    learner = trained(0, sched=idea(name), sched_on_updates=on_updates, layer_decay=0.5, warmup_epochs=9)
    rates = []
    scales = [group['lr_scale'] for group in learner.optimizer.param_groups]
    for step in range(1, 5):
        rates.append(learner.lr / 0.1 / (sum(scales) / len(scales)))
        learner.optimizer.step()
        learner.updates = step
        (learner.after_epoch if not on_updates else lambda *_: learner.after_update())(step, None)
        (learner.after_update if not on_updates else lambda: learner.after_epoch(1, None))()
    assert rates == pytest.approx(expected)
    assert learner.epochs == 8


def test_a_schedule_is_not_asked_for_the_rate_after_the_last_step() -> None:
    assert trained(8, sched=idea('until_the_last')).lr == pytest.approx(0.1)


# --- Resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('sched', ['falling', pytest.param('TorchHalving', marks=pytest.mark.long)])
def test_an_interrupted_run_of_ones_own_continues_to_the_same_weights(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, sched: str
) -> None:
    names = dict(opt='HandSGD', loss='Moving', batch_transform='Noise', sched=sched)
    options: dict[str, object] = {key: idea(name) for key, name in names.items()}
    options.update(epochs=4, sched_on_updates=True, model_ema=True, grad_accum_steps=2, nan='skip', clip_grad=1.0)
    whole = weights(recipe(**options, experiment='whole'))
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=2):
        train(recipe(**options, experiment='halves'), quiet=True)
    for key, other in dict(opt='AdaChild', loss='cross_entropy', batch_transform='Identity', sched='Halving').items():
        with pytest.raises(UserError, match=f'was started with {key} '):
            train(recipe(**{**options, key: idea(other)}, experiment='halves', resume='auto'), quiet=True)
    assert same(whole, weights(recipe(**options, experiment='halves', resume='auto')))


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('option', 'name', 'parts'),
    [
        ('opt', 'HandSDG', ["has no 'HandSDG'", 'did you mean HandSGD']),
        ('opt', 'no_optimizer', ['no class of torch.optim.Optimizer']),
        ('opt', 'Stepless', ['no step of its own']),
        ('opt', 'NoDecay', ['takes no weight_decay', 'NoDecay.__init__']),
        ('opt', 'NeedsMore', ['temperature']),
        ('opt', 'RatelessSGD', ['keeps no lr']),
        ('opt', 'NeedsClosure', ['closure']),
        ('opt', 'Forgetful', ['differs after its state_dict', 'self.state[parameter]']),
        ('opt', 'Unsavable', ['its state can not be saved']),
        ('loss', 'HandSGD', ['no class of torch.nn.Module']),
        ('loss', 'TakesArguments', ['made without arguments', 'weight']),
        ('loss', 'Trained', ['has parameters']),
        ('loss', 'vector', ['gives float32 (3,)', 'scalar']),
        ('loss', 'undefined', ['is nan for logits of zeros']),
        ('loss', 'number', ['gives float', 'scalar']),
        ('loss', 'detached', ['no gradient']),
        ('loss', 'raising', ['idea_of_training.py:', 'LookupError: no such thing']),
        ('loss', 'Counting', ['changes its self.calls', 'keep it in a buffer']),
        ('batch_transform', 'falling', ['no class of torch.nn.Module']),
        ('batch_transform', 'FewerImages', ['makes float32 (2, 3, 32, 32)', 'only height and width may change']),
        ('batch_transform', 'FewerTargets', ['makes int64 (2,)', '(3,) class indices or (3, 3) probabilities']),
        ('batch_transform', 'Double', ['makes float64', 'only height and width may change']),
        ('batch_transform', 'ImagesOnly', ['expected a pair']),
        ('batch_transform', 'Even', ['idea_of_training.py:', 'RuntimeError']),
        ('batch_transform', 'Remembers', ['changes its self.last']),
        ('batch_transform', 'TooSmall', ['makes images of (3, 0, 0)']),
        ('sched', 'HandSGD', ["no class of timm's or torch's schedulers"]),
        ('sched', 'negative', ['gives -3.5 at step 4 of 8']),
        ('sched', 'raising', ['idea_of_training.py:', 'LookupError']),
        ('sched', 'Stateless', ['differs after its state_dict']),
    ],
)
def test_bad_ideas_are_one_line(option: str, name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        try_own(trained(0, **{option: idea(name)}), 23, [(3, 32, 32)])
    line = str(raised.value)
    assert idea(name) in line
    assert '\n' not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize(('option', 'name'), [('opt', 'Forgetful'), ('loss', 'vector'), ('batch_transform', 'Double')])
def test_a_bad_idea_writes_nothing(recipe: MakeRecipe, option: str, name: str) -> None:
    bad = recipe(**{option: idea(name)})
    with pytest.raises(UserError, match=idea(name)):
        train(bad, quiet=True)
    assert not Path(bad.output, 'run').exists()


def test_a_name_that_timm_would_cut_off() -> None:
    with pytest.raises(UserError, match='timm reads only the part after _'):
        trained(opt='hand_sgd')


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        (dict(opt=idea('HandSGD')), 'new tensors in the place of weights'),
        (dict(opt='lookahead_handsgd'), 'new tensors in the place of weights'),
        (dict(loss=idea('Moving')), 'new tensors in the place of its buffers'),
        (dict(loss=idea('cross_entropy'), batch_transform=idea('Noise'), sched=idea('falling')), None),
    ],
)
def test_which_steps_are_recorded(options: dict[str, object], reason: str | None) -> None:
    learner = trained(0, **options)
    why = why_not_graphed(learner.recipe, torch.device('cuda'), 1, learner.optimizer, learner.loss_fn)
    assert why is None if reason is None else reason in str(why)


def test_buffers_of_a_loss_stay_where_a_step_is_skipped() -> None:
    learner = trained(1, loss=idea('Moving'), nan='skip')
    before = copy.deepcopy(learner.loss_fn.state_dict())
    learner.step(torch.full((4, 3, 32, 32), math.nan), torch.tensor([0, 1, 2, 0]))
    assert learner.skipped == 1
    assert torch.equal(learner.loss_fn.state_dict()['mean'], before['mean'])
    assert isinstance(learner.loss_fn, nn.Module)
