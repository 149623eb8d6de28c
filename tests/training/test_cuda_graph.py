"""Recorded steps, as far as they can be tested without a GPU; `test_cuda.py` has the rest."""

import copy

import pytest
import timm
import torch
from timm.optim import Adahessian, create_optimizer_v2

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.training.cuda_graph import _make_capturable, is_recordable, why_not_graphed
from imagenette_zoo.training.learner import Learner
from imagenette_zoo.utils.distributed import World

needs_capturable_muon = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split('.')[:3]) < (1, 0, 31), reason="timm's Muon is not capturable"
)


def learner(opt: str) -> Learner:
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=3)
    recipe = Recipe(model='test_resnet', opt=opt, lr=0.01, batch_size=4, epochs=2, warmup_epochs=0, torchcompile='none')
    return Learner(recipe, model, World(torch.device('cpu')), 5)


def step(trained: Learner, seed: int) -> None:
    torch.manual_seed(seed)
    trained.step(torch.randn(4, 3, 32, 32), torch.randint(3, (4,)))


@needs_capturable_muon
@pytest.mark.parametrize(
    ('opt', 'recordable'),
    [('muon', True), ('nmuon', True), ('adamuon', True), ('lookahead_nmuon', False), ('adamw', False), ('sgd', False)],
)
def test_updates_of_muon_are_recorded(opt: str, recordable: bool) -> None:
    """Lookahead counts its steps in Python."""
    optimizer = create_optimizer_v2(timm.create_model('test_resnet'), opt=opt, lr=0.1)
    assert is_recordable(optimizer) == recordable


@needs_capturable_muon
def test_a_state_from_a_gpu_goes_on_on_a_cpu() -> None:
    ours, other = learner('nmuon'), learner('nmuon')
    step(ours, 1)
    state = copy.deepcopy(ours.state_dict())
    _make_capturable(ours.optimizer)
    recorded = copy.deepcopy(ours.state_dict())
    assert all(group['capturable'] for group in recorded['optimizer']['param_groups'])
    for resumed, its_state in ((ours, state), (other, recorded)):
        resumed.load_state_dict(its_state)
        step(resumed, 2)
    for a, b in zip(ours.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_that_is_one_kernel_on_a_gpu_goes_on_on_a_cpu() -> None:
    ours, other = learner('adamw'), learner('adamw')
    step(ours, 1)
    state = copy.deepcopy(ours.state_dict())
    for group in state['optimizer']['param_groups']:
        group['fused'] = True
    other.load_state_dict(state)
    assert not any(group['fused'] for group in other.optimizer.param_groups)


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        (dict(), None),
        (dict(amp=True, amp_dtype='bfloat16', nan='skip', clip_grad=1.0, torchcompile='inductor'), None),
        (dict(amp=True), None),
        (dict(grad_accum_steps=2), 'accumulated'),
        (dict(opt='lookahead_mars'), 'keeps the gradients'),
        (dict(grad_checkpointing=True), 'computed again'),
        (dict(torchcompile='inductor', torchcompile_mode='reduce-overhead'), 'graphs of its own'),
        (dict(cuda_graph='none'), ''),
    ],
)
def test_why_steps_are_not_recorded(changes: dict[str, object], reason: str | None) -> None:
    recipe = Recipe(model='test_resnet', **changes)
    parameters = [torch.zeros(1, requires_grad=True)]
    first, second = torch.optim.SGD(parameters), Adahessian(parameters)
    loss = torch.nn.CrossEntropyLoss()
    shown = why_not_graphed(recipe, torch.device('cuda'), 1, first, loss)
    assert shown is None if reason is None else reason in shown and bool(reason) == bool(shown)
    assert why_not_graphed(recipe, torch.device('cuda'), 2, first, loss) is not None
    assert why_not_graphed(recipe, torch.device('cuda'), 1, second, loss) is not None
    assert why_not_graphed(recipe, torch.device('cpu'), 1, first, loss) == ''


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert learner('sgd').graphed_step is None
