"""A teacher: the numbers of timm's tasks, and all that a training promises without one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs

import imagenette_zoo
from imagenette_zoo import train
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data import pipeline
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import load_folder, save_model_folder
from imagenette_zoo.study.plan import parse_vary, plan_models
from imagenette_zoo.training import distillation
from imagenette_zoo.training.distillation import load_teacher
from imagenette_zoo.training.learner import Learner
from imagenette_zoo.utils.distributed import World
from tests.conftest import interrupted

tasks = pytest.importorskip('timm.task')
if not hasattr(tasks, 'resume_task_checkpoint'):
    pytest.skip('needs timm 1.0.27', allow_module_level=True)

MakeRecipe = Callable[..., Recipe]
CPU = World(torch.device('cpu'))
DEIT = dict(
    model='deit_tiny_distilled_patch16_224', model_kwargs=dict(img_size=32, embed_dim=24, depth=1, num_heads=1)
)
CASES = [
    dict(),
    dict(task_loss_weight=0.25, kd_temperature=2, mixup=0.2, clip_grad=0.5),
    dict(kd_distill_type='feature', distill_loss_weight=0.5, clip_grad=0.01, clip_mode='agc'),
    dict(kd_distill_type='feature', kd_student_feature_dim=96, amp=True, amp_dtype='bfloat16'),
    dict(kd_distill_type='token', kd_temperature=1, **DEIT),
    dict(kd_distill_type='token', kd_token_distill_type='hard', distill_loss_weight=2, task_loss_weight=0.5, **DEIT),
]


def make_teacher(folder: Path, classes: int = 3, names: tuple[str, ...] = (), seed: int = 0) -> Path:
    """A model folder with random weights and a normalisation of its own."""
    torch.manual_seed(seed)
    model = timm.create_model('test_efficientnet', num_classes=classes)
    input_config = {**factory.input_config(Recipe(), model), 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)}
    config = factory.model_config(model, input_config, names or [f'class{index}' for index in range(classes)], {})
    save_model_folder(folder, config, model.state_dict())
    return folder


@pytest.fixture(scope='module')
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp('teacher'))


def student_of(recipe: Recipe) -> Any:
    torch.manual_seed(1)
    return factory.build_model(recipe.model, num_classes=3, **recipe.model_kwargs)


def timms_task(recipe: Recipe, student: Any, criterion: Any) -> Any:
    """As timm's script makes it, but for the weights of the teacher, which is a folder of ours."""
    given = dict(
        student_model=student,
        teacher_model=load_folder(Path(str(recipe.kd_model_name))),
        criterion=criterion,
        distill_loss_weight=recipe.distill_loss_weight,
        task_loss_weight=recipe.task_loss_weight,
    )
    if recipe.kd_distill_type == 'logit':
        return tasks.LogitDistillationTask(**given, loss_type='kl', temperature=recipe.kd_temperature)
    if recipe.kd_distill_type == 'feature':
        return tasks.FeatureDistillationTask(**given)
    return tasks.TokenDistillationTask(
        **given, distill_type=recipe.kd_token_distill_type, temperature=recipe.kd_temperature
    )


@pytest.mark.parametrize('options', CASES)
def test_steps_are_those_of_timms_task(recipe: MakeRecipe, teacher: Path, options: dict[str, Any]) -> None:
    options = {'model': 'test_resnet', 'weight_decay': 0.1, 'channels_last': False, **options}
    chosen = recipe(**options, kd_model_name=str(teacher))
    student = student_of(chosen)
    learner = Learner(
        chosen, copy.deepcopy(student), CPU, 5,
        teacher=load_teacher(chosen, factory.input_config(chosen, student), CPU.device),
    )  # fmt: skip
    task = timms_task(chosen, student, copy.deepcopy(learner.loss_fn))
    trainable = task.get_trainable_module()
    task.load_task_state(copy.deepcopy(learner.state_dict()['task']))
    optimizer = create_optimizer_v2(trainable, **{**optimizer_kwargs(chosen), 'lr': chosen.lr})
    assert [len(group['params']) for group in optimizer.param_groups] == [
        len(group['params']) for group in learner.optimizer.param_groups
    ]
    asked_before = copy.deepcopy(learner.teacher.state_dict())
    learner.model.train()
    trainable.train()
    for seed in range(3):
        torch.manual_seed(seed)
        images, targets = torch.randn(8, 3, 32, 32), torch.randint(3, (8,))
        targets = torch.eye(3)[targets] if chosen.mixes else targets
        with torch.autocast('cpu', torch.bfloat16, enabled=chosen.amp):
            expected = task(images, targets)['loss']
        expected.backward()
        if chosen.clip_grad:
            parameters = task.get_clip_parameters(exclude_head='agc' in chosen.clip_mode)
            timm.utils.dispatch_clip_grad(parameters, chosen.clip_grad, mode=chosen.clip_mode)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]['lr'] = learner.lr
        torch.testing.assert_close(learner.step(images, targets), expected.detach(), rtol=1e-5, atol=1e-6)
    mine, theirs = learner.trained.state_dict(), trainable.state_dict()
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for name, value in learner.teacher.state_dict().items():
        assert torch.equal(value, asked_before[name]), 'the teacher is trained'


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / 'last' / 'model.safetensors')


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        dict(kd_distill_type='feature', model_ema=True, model_ema_decay=0.9, opt='adamw', grad_accum_steps=2),
        pytest.param(dict(no_aug=True, kd_temperature=1, balanced=True), marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_continues_to_the_same_weights(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any]
) -> None:
    name = make_teacher(tmp_path / 'teacher')
    options = {**options, 'kd_model_name': str(name), 'epochs': 2}
    whole = train(recipe(**options, experiment='whole'), quiet=True)
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=1):
        train(recipe(**options, experiment='halves'), quiet=True)
    make_teacher(name, seed=1)
    with pytest.raises(UserError, match='was started with other weights of the teacher: continue it with the same'):
        train(recipe(**options, experiment='halves', resume='auto'), quiet=True)
    make_teacher(name)
    halves = train(recipe(**options, experiment='halves', resume='auto'), quiet=True)
    assert same(whole.folder, halves.folder)
    assert (whole.folder / 'summary.csv').read_text() == (halves.folder / 'summary.csv').read_text()
    expected = timm.create_model('test_resnet', num_classes=3).state_dict().keys()
    assert weights(halves.folder).keys() == expected, 'the projection is published'


def test_a_teacher_that_was_moved_goes_on_teaching(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = dict(epochs=2, kd_model_name=str(make_teacher(tmp_path / 'here')))
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=1):
        train(recipe(**options), quiet=True)
    there = dict(options, resume='auto', kd_model_name=str((tmp_path / 'here').rename(tmp_path / 'there')))
    other = str(make_teacher(tmp_path / 'other', seed=1))
    with pytest.raises(UserError, match='was started with other weights of the teacher'):
        train(recipe(**{**there, 'kd_model_name': other}), quiet=True)
    with pytest.raises(UserError, match=r'was started with kd_model_name .*here, not None'):
        train(recipe(**{**there, 'kd_model_name': None}), quiet=True)
    assert train(recipe(**there), quiet=True).epochs == 2
    with pytest.raises(UserError, match=r'was started with kd_model_name .*here, not .*other'):  # nothing is read of it
        train(recipe(**{**there, 'kd_model_name': other}), quiet=True)


def test_a_teacher_without_weight_changes_nothing(recipe: MakeRecipe, teacher: Path) -> None:
    alone = train(recipe(epochs=1, experiment='alone'), quiet=True)
    taught = recipe(epochs=1, experiment='taught', kd_model_name=f'local-dir:{teacher}', distill_loss_weight=0)
    assert same(alone.folder, train(taught, quiet=True).folder)


def test_answers_to_fixed_crops_are_those_of_every_step(
    recipe: MakeRecipe, teacher: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dict(kd_model_name=str(teacher), no_aug=True, epochs=2, batch_size=5, opt='adamw')
    asked: list[int] = []
    monkeypatch.setattr(
        distillation.Teacher, 'normalize_input', _counting(distillation.Teacher.normalize_input, asked)
    )
    once = train(recipe(**options, experiment='once'))
    assert sum(asked) == 24, 'images of an epoch'
    assert 'its answers to the 24 images are known' in capsys.readouterr().out
    monkeypatch.setattr(pipeline, 'fixed_crops', lambda *_: None)
    always = train(recipe(**options, experiment='always'), quiet=True)
    for name, value in weights(once.folder).items():
        torch.testing.assert_close(value, weights(always.folder)[name], rtol=1e-4, atol=1e-5)


def _counting(normalize: Any, asked: list[int]) -> Any:
    def count(teacher: Any, images: torch.Tensor, *rest: torch.Tensor) -> Any:
        asked.extend([len(images)] if teacher.answers is None else [])
        return normalize(teacher, images, *rest)

    return count


def test_the_result_has_the_weights_of_the_teacher_and_a_repeat_compares_them(
    recipe: MakeRecipe, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = train(recipe(epochs=1, experiment='first'), quiet=True).folder
    result = train(recipe(epochs=1, kd_model_name=str(student), experiment='second'), quiet=True)
    saved = json.loads((result.folder / 'result.json').read_text())
    file = student / 'best' / 'model.safetensors'
    assert saved['teacher'] == distillation.hashlib.sha256(file.read_bytes()).hexdigest()
    assert saved['recipe']['kd_model_name'] == str(student)
    make_teacher(student / 'best')
    train(recipe(epochs=1, kd_model_name=str(student), experiment='third'), repeats=result)
    assert f'the weights of the teacher: SHA-256 {result.teacher[:12]} then, ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'line'),
    [
        (dict(kd_model_name='five'), 'five: has 5 classes, {data} has 3: give a teacher of these classes, or --kd'),
        (dict(kd_model_name='others'), 'others: its classes (x, …) are not those of {data} (class0, …): give'),
        (dict(kd_model_name='runs/nobody'), '--kd-model-name: runs/nobody: no such run or model folder'),
        (dict(kd_model_name='nobody'), "--kd-model-name: unknown model 'nobody'"),
        (dict(kd_model_name='test_resnet3'), "--kd-model-name: unknown model 'test_resnet3'; did you mean test_"),
        (dict(kd_model_name='resnet34_mp2_imagenette'), 'no weights are published: give a run or a model folder'),
        (dict(kd_distill_type='token'), "--kd-distill-type token: Model ResNet does not have 'set_distilled_training'"),
        (
            dict(kd_distill_type='feature', kd_student_feature_dim=256),
            "--kd-distill-type feature: features of two images: the student's are (2, 96), the teacher's are (2, 256)",
        ),
    ],
)
def test_teachers_of_no_use_are_one_line_and_nothing_is_written(
    recipe: MakeRecipe, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_teacher(tmp_path / 'five', 5)
    make_teacher(tmp_path / 'others', 3, ('x', 'y', 'z'))
    with pytest.raises(UserError) as error:
        train(recipe(**{'kd_model_name': str(teacher), **options}), quiet=True)
    assert line.format(data=recipe().data_dir) in str(error.value)
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_a_teacher_that_cannot_take_a_size_of_the_training_is_said_at_once(
    recipe: MakeRecipe, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    size = dict(img_size=32, embed_dim=24, depth=1, num_heads=1)
    model = timm.create_model('deit_tiny_patch16_224', num_classes=3, **size)
    names = [f'class{index}' for index in range(3)]
    config = factory.model_config(model, factory.input_config(Recipe(img_size=32), model), names, size)
    save_model_folder(tmp_path / 'vit', config, model.state_dict())
    taught = dict(kd_model_name=str(tmp_path / 'vit'), kd_distill_type=kind)
    for sizes in (dict(train_img_sizes=(32, 48)), dict(img_size=48)):
        with pytest.raises(UserError, match=r"^--kd-model-name: model .*vit can't take images of 48 px") as error:
            train(recipe(**taught, **sizes), quiet=True)
        assert 'give the --img-size of the teacher' in str(error.value)
        assert '--model-kwargs' not in str(error.value)
    assert not (tmp_path / 'runs').exists()


def test_features_can_be_taught_by_a_teacher_of_other_classes(recipe: MakeRecipe, tmp_path: Path) -> None:
    make_teacher(tmp_path / 'five', 5)
    train(recipe(kd_model_name=str(tmp_path / 'five'), kd_distill_type='feature', epochs=1), quiet=True)


def test_a_compiled_student_learns_features_on_a_cpu(recipe: MakeRecipe, teacher: Path) -> None:
    """Compiled and eager steps are timed there before the first epoch."""
    taught = dict(kd_model_name=str(teacher), kd_distill_type='feature', torchcompile='eager')
    result = train(recipe(**taught, device='cpu', epochs=1), quiet=True)
    assert result.epochs == 1


def test_an_older_timm_is_said_at_once(
    recipe: MakeRecipe, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tasks, 'resume_task_checkpoint')
    with pytest.raises(UserError, match=r'^--kd-model-name: needs timm 1\.0\.27, not '):
        train(recipe(kd_model_name=str(teacher)), quiet=True)


def test_with_and_without_a_teacher_can_be_varied() -> None:
    vary = parse_vary(['kd_model_name=None,runs/teacher'])
    chosen = Recipe.load('mbv2_mish_80', kd_temperature=2)
    assert chosen.notes[-1] == '--kd-model-name none: kd_temperature is 4 instead of 2', 'nobody teaches yet'
    study = plan_models(['resnet18'], chosen, 1, vary)
    without, taught = (run.recipe for run in study.runs.values())
    assert list(study.runs) == ['kd_model_name=None', 'kd_model_name=runs_teacher']
    assert (without.kd_model_name, without.kd_temperature) == (None, 4)
    assert (taught.kd_model_name, taught.kd_temperature) == ('runs/teacher', 2)


def test_a_taught_model_is_like_any_other(recipe: MakeRecipe, teacher: Path) -> None:
    result = train(recipe(kd_model_name=str(teacher), kd_distill_type='token', **DEIT), quiet=True)
    [validation] = imagenette_zoo.validate(result.folder, recipe().data_dir, workers=0, quiet=True)
    assert validation.top1 == result.best_top1
