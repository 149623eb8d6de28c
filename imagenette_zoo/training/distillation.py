"""Distillation (https://arxiv.org/abs/1503.02531): a trained model teaches the one in training, by timm's tasks."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any

import timm
import torch
from torch import nn

from ..config.names import check_model
from ..config.recipe import Recipe
from ..config.uses import UseOptions
from ..data.augment import Normalize
from ..data.folders import ImageSet
from ..data.loaders import Batches
from ..errors import UserError, first_line
from ..inference.loading import check_classes, load_trained
from ..models.factory import probe
from ..models.model_folder import model_folder, weights_file
from ..utils.seeding import seed_everything

__all__ = ['Teacher', 'check_teacher', 'distillation_task', 'load_teacher']

SIZE_REMEDY = 'a teacher sees the pixels of its student: give the --img-size of the teacher, or another teacher'
FIRST = '1.0.27'  # timm whose tasks say what they train, clip and keep; 1.0.23 was the first with tasks


def _tasks() -> Any:
    """timm's tasks.

    Raises:
        UserError: This timm has none, or earlier ones.
    """
    try:
        from timm import task
    except ImportError:
        task = None
    if not hasattr(task, 'resume_task_checkpoint'):
        raise UserError(f"--kd-model-name: needs timm {FIRST}, not {timm.__version__}: pip install 'timm>={FIRST}'")
    return task


def check_teacher(recipe: Recipe) -> None:
    """Looks whether there are the teacher that a recipe names and the timm that it needs, before anything is read.

    Raises:
        UserError: There is no such model, or timm is too old.
    """
    name = recipe.kd_model_name
    if name is None:
        return
    _tasks()
    try:
        if model_folder(name) is None:
            if '/' in name and ':' not in name:
                raise UserError(f'{name}: no such run or model folder (imagenette-zoo runs lists runs)')
            check_model(name)
            if timm.is_model(name) and not timm.is_model_pretrained(name):
                raise UserError(f'{name}: no weights are published: give a run or a model folder')
    except UserError as error:
        raise UserError(f'--kd-model-name: {error}') from None


class Teacher(nn.Module):
    """A trained model in the place of timm's `DistillationTeacher`: in eval mode, with the images of the student.

    Nothing in it waits for the device, so that steps can be recorded.

    Args:
        name: As it was asked for.
        model: The model, on its device.
        config: Its data config.
        student: The data config of the student, in whose normalisation the images come.
        of_features: Whether it answers by the features before its classifier, else by its logits.
    """

    def __init__(
        self, name: str, model: nn.Module, config: dict[str, Any], student: dict[str, Any], of_features: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.sha256 = hashlib.sha256(weights_file(model.state_dict())).hexdigest()
        device = next(model.parameters()).device
        self.teacher = _tasks().DistillationTeacher(model, device=device)
        self.of_features = of_features
        self.input_size = student['input_size']
        own, others = ((tuple(each['mean']), tuple(each['std'])) for each in (config, student))
        values = [torch.tensor(each, device=device).view(1, -1, 1, 1) for each in (*own, *others)]
        self.normalization = None if own == others else values
        self.answers: torch.Tensor | None = None
        self.current = torch.empty(0)

    def normalize_input(self, images: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """The images of the student as this model was trained with them, in timm's arithmetic."""
        if self.normalization is None or self.answers is not None:
            return images
        mean, std, student_mean, student_std = self.normalization
        return (images * student_std + student_mean - mean) / std

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        """`(N, C, H, W)` to `(N, classes)` or `(N, features)`: those of `look_up` where all are known."""
        if self.answers is not None:
            return self.current[: len(images)]
        return self.teacher(images, return_features)  # type: ignore[no-any-return]

    def probe(self, shape: tuple[int, int, int]) -> None:
        """Looks whether it takes images of a shape.

        Raises:
            UserError: It does not.
        """
        try:
            probe(self.teacher.model, self.name, shape, SIZE_REMEDY)
        except UserError as error:
            raise UserError(f'--kd-model-name: {error}') from None

    @torch.no_grad()
    def answer_once(self, batches: Batches, normalize: Normalize, precision: AbstractContextManager[Any]) -> None:
        """Answers to all training images, which are the same in every epoch; the model is not needed any more.

        Args:
            batches: All of them, in order.
            normalize: The normalisation of the student.
            precision: The mixed precision of the training.
        """
        with precision:
            answers = [self(self.normalize_input(normalize(images)), self.of_features) for images, _ in batches]
        self.teacher, self.answers = None, torch.cat(answers)
        self.current = self.answers.new_zeros(len(answers[0]), self.answers.shape[1])  # recorded steps read it there

    def look_up(self, indices: torch.Tensor) -> None:
        """Makes the answers to the images `(N,)` of the next batch ready, where they are known."""
        if self.answers is not None:
            torch.index_select(self.answers, 0, indices.to(self.answers.device), out=self.current[: len(indices)])


def load_teacher(
    recipe: Recipe, config: dict[str, Any], device: torch.device, images: ImageSet | None = None
) -> Teacher:
    """The teacher that a recipe names, as every command opens a trained model.

    Args:
        recipe: `kd_model_name` and what is taught.
        config: The data config of the student.
        device: Where both compute.
        images: Those of the training, whose classes the teacher must know where its logits teach.

    Raises:
        UserError: There is no such model, or it is of no use for this student.
    """
    name, of_features = str(recipe.kd_model_name), recipe.kd_distill_type == 'feature'
    try:
        options = UseOptions(model=name, input_size=config['input_size'])
        trained = load_trained(name, options, device, recipe.is_channels_last(device), size_remedy=SIZE_REMEDY)
        if images is not None and not of_features:
            remedy = 'give a teacher of these classes, or --kd-distill-type feature, which needs none'
            check_classes(name, trained.model, None, images, remedy)
    except UserError as error:
        raise UserError(f'--kd-model-name: {error}') from None
    return Teacher(name, trained.model, trained.config, config, of_features)


def distillation_task(recipe: Recipe, student: nn.Module, criterion: nn.Module, teacher: Teacher) -> Any:
    """timm's task of the kind that a recipe names; the projection of features has a random stream of its own.

    Args:
        recipe: Its options.
        student: The model in training, on its device.
        criterion: The loss of the classes.
        teacher: The teacher.

    Raises:
        UserError: The student can't be taught so.
    """
    tasks, kind = _tasks(), recipe.kd_distill_type
    given: dict[str, Any] = dict(
        student_model=student,
        teacher_model=teacher.teacher if kind != 'token' else teacher.teacher.model,  # as timm before 1.0.29 wants it
        criterion=criterion,
        distill_loss_weight=recipe.distill_loss_weight,
        task_loss_weight=recipe.task_loss_weight,
        device=next(student.parameters()).device,
        verbose=False,
    )
    seed_everything(recipe.seed, 'projection')
    try:
        if kind == 'logit':
            task = tasks.LogitDistillationTask(
                **given, loss_type=recipe.kd_loss_type, temperature=recipe.kd_temperature
            )
        elif kind == 'token':
            task = tasks.TokenDistillationTask(
                **given, distill_type=recipe.kd_token_distill_type, temperature=recipe.kd_temperature
            )
        else:
            task = tasks.FeatureDistillationTask(
                **given,
                student_feature_dim=recipe.kd_student_feature_dim,
                teacher_feature_dim=recipe.kd_teacher_feature_dim,
            )
            _try_features(task, teacher)
    except (ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(f'--kd-distill-type {kind}: {first_line(error)}') from None
    task.teacher = teacher
    return task


@torch.no_grad()
def _try_features(task: Any, teacher: Teacher) -> None:
    """Raises `ValueError` where the features of student and teacher are not of one shape: torch would repeat them."""
    images = torch.zeros(2, *teacher.input_size, device=task.device)
    sides = ['student', 'teacher']
    task.trainable_module.eval()
    shapes = [tuple(each.shape) for each in (task.trainable_module(images)[1], teacher.teacher(images, True))]
    if shapes[0] != shapes[1]:
        shown = ', '.join(f"the {side}'s are {shape}" for side, shape in zip(sides, shapes, strict=True))
        raise ValueError(f'features of two images: {shown}: give --kd-student-feature-dim and --kd-teacher-feature-dim')
