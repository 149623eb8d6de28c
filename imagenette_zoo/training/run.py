"""From a recipe to all that a run needs: its folder, the images, the model, the batches."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ..config.fields import Where
from ..config.recipe import Recipe
from ..data import pipeline
from ..data.folders import ImageSet, passed_over_line, unlabelled_line
from ..data.pipeline import Data
from ..errors import UserError, first_line
from ..models import factory
from ..models.model_folder import load_weights, model_folder, read_weights
from ..models.own import last_linear
from ..utils import environment
from ..utils.console import Console
from ..utils.distributed import World
from ..utils.files import file_stem, unused
from ..utils.memory import is_out_of_memory
from ..utils.seeding import seed_everything
from .compilation import resolve
from .distillation import load_teacher
from .learner import Learner, check_parts
from .loss import class_weights
from .meter import Position
from .run_folder import RunFolder, resumed_run
from .tracking import check_trackers
from .trial import try_own

__all__ = ['Run', 'as_retried', 'prepare', 'open_folder', 'check_resumable', 'compile_steps', 'make_model']

NUMBERS = ('train_loss', 'lr', 'train_images', 'train_seconds', 'seconds', 'peak_memory_mib')  # in an epoch's row


@dataclass
class Run:
    """A run that is ready to go.

    Args:
        recipe: Its options.
        folder: Where its files are kept.
        data: What it trains on.
        learner: The model and what changes it.
        config: The model's data config, as timm has it.
        data_hash: The hash of its images.
        history: A row for each epoch that is done.
        position: Where it is in the next one.
        saved: How far it is saved, as `progress` says it; nothing before anything is.
        setup_seconds: The time that it took to make it ready: reading, decoding, compiling.
    """

    recipe: Recipe
    folder: RunFolder
    data: Data
    learner: Learner
    config: dict[str, Any]
    data_hash: str
    history: list[dict[str, Any]] = field(default_factory=list)
    position: Position = field(default_factory=Position)
    saved: str = ''
    setup_seconds: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether anything of it is done."""
        return bool(self.history or self.position.step)

    @property
    def progress(self) -> str:
        """How far it is, as `epoch 3, step 2 of 9`; the first epoch is 1."""
        done, step = len(self.history), self.position.step
        return f'epoch {done + 1}, step {step} of {len(self.data.train_batches)}' if step else f'epoch {done}'

    def save(self) -> None:
        """Writes all that the run needs to go on from here; the first process does."""
        if self.learner.world.primary:
            state = {
                'learner': self.learner.state_dict(),
                'history': self.history,
                'position': asdict(self.position),
                'signature': self.signature(),
                'recipe': self.recipe.as_dict(),
                'environment': self.environment(),
            }
            self.folder.save_state(state)
        self.saved = self.progress

    def signature(self) -> dict[str, Any]:
        """The data and the processes: like the recipe, they must be the same when the run is continued."""
        teacher = self.learner.teacher
        return {
            'training images': len(self.data.train),
            'validation images': len(self.data.val),
            'classes': list(self.data.train.classes),
            'data': self.data_hash,
            'processes': self.learner.world.size,
            **({} if teacher is None else {'weights of the teacher': teacher.sha256}),
        }

    def environment(self) -> dict[str, Any]:
        """The versions and the machine: where they change, the last digits of the weights do."""
        world = self.learner.world
        return {**environment.versions(), **environment.hardware(world.device, world.size)}


def prepare(recipe: Recipe, folder: RunFolder, state: bytes | None, world: World, console: Console) -> Run:
    """Makes a run ready; its folder is written last, once all else has worked.

    Args:
        recipe: Its options.
        folder: Its folder, and `state` what it goes on from, as `open_folder` gave them.
        state: None starts it.
        world: The processes that train together.
        console: Prints the progress.

    Raises:
        UserError: Anything that the recipe names is wrong or missing.
    """
    world.broadcast(lambda: check_trackers(recipe))
    check_parts(recipe)
    first: list[tuple[ImageSet, ImageSet]] = []  # of the first process: what it unpacks or downloads the others find
    world.broadcast(lambda: first.append(pipeline.load_images(recipe, world)))
    train_images, val_images = first[0] if first else pipeline.load_images(recipe, world)
    recipe = _for_data(recipe, train_images, world, console)
    if state is not None:
        world.broadcast(lambda: check_resumable(recipe, folder))
    if shared := len(set(train_images.paths) & set(val_images.paths)):
        console.line(f'note: {shared:,} of the {len(val_images):,} validation images are training images, too')
    if len(train_images.classes) == 1:
        console.line(f'note: all images are of one class, {train_images.class_names[0]}: nothing can be told apart')
    left_out = (passed_over_line(train_images), passed_over_line(val_images), unlabelled_line(train_images.root))
    for line in dict.fromkeys(left_out):
        if line:
            console.line(f'note: {line}')
    seed_everything(recipe.seed, 'model')
    start = recipe if state is None else recipe.replace(pretrained=False, initial_checkpoint=None)
    model = make_model(start, len(train_images.classes), console.line)
    config = factory.input_config(recipe, model, crop_mode='center')
    teacher = load_teacher(recipe, config, world.device, train_images) if recipe.kd_model_name else None
    data = pipeline.load_data(recipe, train_images, val_images, config, world, console)
    sets = (train_images, val_images)
    data_hash = pipeline.data_hash(recipe, sets, config['input_size'][-1], console)
    world.check_agreed('the images', [data_hash, *map(len, sets), train_images.classes])  # else all would wait forever
    shapes = recipe.training_shapes(config['input_size'])
    for shape in dict.fromkeys([*shapes, config['input_size']]):
        factory.probe(model, recipe.model, shape)
        if teacher is not None:
            teacher.probe(shape)
    own = resolve(recipe, model, len(train_images), world.device, console)
    updates = -(-len(data.train_batches) // recipe.grad_accum_steps)
    weights = class_weights(recipe, train_images.targets, len(train_images.classes))
    learner = Learner(own, model, world, updates, console.line, weights, teacher)
    if teacher is not None:
        world.check_agreed('the weights of the teacher', teacher.sha256)
        console.line(f'taught by {recipe.kd_model_name} (SHA-256 {teacher.sha256[:12]}): {recipe.kd_distill_type}')
        if (crops := pipeline.fixed_crops(recipe, train_images, config)) is not None:
            teacher.answer_once(crops, data.transform.normalize, factory.autocast(recipe, world.device))
            console.line(f'its answers to the {len(train_images):,} images are known, since none is augmented')
    try_own(learner, data.train_batches.size, shapes)
    if own.torchcompile:
        compile_steps(recipe, learner, config, console)
    run = Run(recipe, folder, data, learner, config, data_hash)
    if state is not None:
        _resume(run, state, console)
        if world.primary and recipe.epochs != folder.recipe().epochs:
            folder.lengthen(recipe)
    elif world.primary:
        folder.start(recipe)
    return run


def _for_data(recipe: Recipe, images: ImageSet, world: World, console: Console) -> Recipe:
    """The recipe, as it gives way to the training images; says where it does."""
    fitted = recipe.for_data(len(images), len(images.classes), world.size)
    for name in ('batch_size', 'num_classes'):
        now, before = getattr(fitted, name), getattr(recipe, name)
        if now != before:
            what = f'{len(images):,} training images of {len(images.classes)} classes'
            console.line(f'{what}: {name} is {now} instead of {before}')
    return fitted


def compile_steps(recipe: Recipe, learner: Learner, config: dict[str, Any], console: Console) -> None:
    """Compiles the model now, so that one which can't be compiled fails before anything is written.

    Args:
        recipe: The run.
        learner: Its learner; where `torchcompile: auto` fails it goes on without.
        config: Of its images, as `input_config` gives it.
        console: Where it is said what that takes.

    Raises:
        UserError: It can't be compiled.
    """
    try:
        seconds, rates = learner.compile(recipe.training_shapes(config['input_size']))
        console.line(f'compiled in {seconds:.1f} s')
        if rates and rates['compiled'] < 0.9 * rates['eager']:
            # "at least": the plain model in a compiled run has not all of the faster layers of a run without
            shown = f'{rates["compiled"]:.0f} images/s, without it at least {rates["eager"]:.0f}'
            console.line(f'--torchcompile makes steps slower here: {shown}; leave it out')
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        if recipe.torchcompile != 'auto' or learner.world.size > 1:
            raise UserError(f'--torchcompile {recipe.torchcompile}: {reason}') from error
        console.line(f'torchcompile auto: off after all ({reason})')
        learner.give_up_compiling()


def open_folder(recipe: Recipe) -> tuple[RunFolder, bytes | None, bool]:
    """The folder of the run, the state to go on from where there is one, and whether nothing is left to be done.

    Raises:
        UserError: It is in use, holds another run, or was started with another recipe.
    """
    if not recipe.resume:
        named = Path(recipe.output, recipe.experiment) if recipe.experiment else None
        folder = RunFolder(named or unused(_own_name(recipe)), own_name=named is None)
        if not recipe.overwrite:
            folder.check_unused()
        return folder, None, False
    folder = RunFolder(resumed_run(recipe.resume, recipe.output, recipe.experiment))
    if not folder.started:
        folder.check_unused()
        return folder, None, False
    folder.lock()
    try:
        longer = check_resumable(recipe, folder)
        state = folder.read_state()
        if longer and folder.finished and state is None:
            raise UserError(f'{folder["state.pt"]}: is not there; {_way_on(recipe, folder)}')
        return folder, state, folder.finished and not longer
    except UserError:
        folder.unlock()
        raise


def as_retried(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with the smaller batch that `--retry` has left the run with that it continues."""
    if not (recipe.retry and recipe.resume and folder.started):
        return recipe
    then = folder.recipe()
    return recipe.retried(then.batch_size, then.grad_accum_steps)


def check_alike(recipe: Recipe, first: Mapping[str, Any]) -> None:
    """Looks whether this process trains what the first one does.

    Raises:
        UserError: An option that decides what is trained differs.
    """
    for option, value, other in _differing(recipe, first, 'between processes'):
        raise UserError(f'{option} is {value} in this process and {other} in the first: give all the same')


def _differing(recipe: Recipe, other: Mapping[str, Any], where: Where) -> Iterator[tuple[str, Any, Any]]:
    """The options that may not differ there and do, with both values."""
    may_differ = recipe.may_differ(where)
    for option, value in recipe.as_dict().items():
        if option not in may_differ and value != other[option]:
            yield option, value, other[option]


def check_resumable(recipe: Recipe, folder: RunFolder) -> bool:
    """Looks whether a run can be continued by a recipe; returns whether it is to train for more epochs than it was.

    Raises:
        UserError: It can't: it is finished, or it was started with other options.
    """
    started = folder.recipe()
    recipe = recipe.retried(started.batch_size, started.grad_accum_steps)
    if recipe.resume != 'auto' and recipe.experiment not in (None, folder.path.name, started.experiment):
        raise UserError(
            f'--resume continues {folder.path} in its own folder: leave --experiment {recipe.experiment} out, or start '
            f'another run from its weights: --initial-checkpoint {folder.path}'
        )
    folder.check_code(started.model)
    longer = recipe.epochs > started.epochs
    if folder.finished and recipe.resume != 'auto' and not longer:
        raise UserError(
            f'{folder.path}: this run is finished; there is nothing to resume. To train on, give more than --epochs '
            f'{started.epochs}'
        )
    for option, value, then in _differing(recipe, started.as_dict(), 'on resume'):
        if option == 'epochs' and longer:
            continue
        if option == 'kd_model_name' and value and then and (longer or not folder.finished):
            continue  # it may have been moved: `_resume` compares the weights
        gave_way = (option == 'batch_size' and then < value) or (option == 'num_classes' and then is not None)
        if gave_way and not recipe.insists_on(option):  # `prepare` looks again, by the images
            continue
        raise UserError(
            f'{folder.path}: was started with {option} {then}, not {value}: leave the option out to resume, or start '
            f'another run'
        )
    if longer and (what := _planned_by_epochs(recipe)):
        raise UserError(
            f'{folder.path}: {what} is made for --epochs {started.epochs}, it cannot be lengthened to {recipe.epochs}; '
            f'{_way_on(recipe, folder)}'
        )
    return longer


def _planned_by_epochs(recipe: Recipe) -> str:
    """The part of a recipe that a longer training would have had otherwise from its first epoch on, or nothing."""
    if recipe.sched not in ('none', 'constant', 'step', 'multistep', 'plateau'):
        return f'its schedule ({recipe.sched})'
    if recipe.sched == 'plateau' and recipe.val_interval > 1:  # the last epoch was validated beside the interval
        return 'its schedule (plateau, by the validations of each --val-interval)'
    if recipe.lr_noise is not None:
        return 'the noise of its learning rate'
    return 'its plan of image sizes' if recipe.train_size_schedule == 'progressive' else ''


def _way_on(recipe: Recipe, folder: RunFolder) -> str:
    """The command that trains further from the weights of a run."""
    started = folder.recipe()
    words = ['-c', folder['args.yaml'], '--experiment', f'{folder.path.name}-{recipe.epochs}']
    words += ['--initial-checkpoint', folder['last'], '--epochs', recipe.epochs - started.epochs, '--warmup-epochs', 0]
    words += [] if started.head_init_scale is None else ['--head-init-scale', 1]  # it is of a new classifier
    words += [] if started.head_init_bias is None else ['--head-init-bias', '']
    words += folder.code_flags()
    return f'train on from its weights: imagenette-zoo train {shlex.join(map(str, words))}'


def _own_name(recipe: Recipe) -> Path:
    """A folder named by time, model and size, as timm's script names it."""
    stamp = datetime.now().strftime('%Y%m%d-%H%M%S')
    name = '-'.join([stamp, file_stem(recipe.model), *([str(recipe.side)] if recipe.side else [])])
    return Path(recipe.output, name)


def _resume(run: Run, data: bytes, console: Console) -> None:
    """Takes up the state of the interrupted run, and says how this process differs from that which saved it."""
    state = run.folder.parse_state(data)
    try:
        then = {**Recipe().as_dict(), **state.get('recipe', run.recipe.as_dict())}
        for option, value, other in _differing(run.recipe, then, 'on resume'):
            if option == 'epochs' and value > other and not _planned_by_epochs(run.recipe):
                continue
            if option == 'kd_model_name' and value and other:  # the signature has its weights
                continue
            raise UserError(
                f'{run.folder["state.pt"]}: is of a run with {option} {other}, but this one has {value}: put the '
                f'right file back, or start again: {run.folder.again}'
            )
        for name, value in run.signature().items():
            if state['signature'][name] != value:
                raise UserError(f'{run.folder.path}: was started with other {name}: continue it with the same')
        run.history.extend(state['history'])
        if [row['epoch'] for row in run.history] != list(range(len(run.history))):
            raise ValueError('not a row an epoch')
        if not all(isinstance(row[name], (int, float)) for row in run.history for name in NUMBERS):
            raise ValueError('no numbers in its rows')
        run.position = Position(**state['position'])
        if not 0 <= run.position.step <= len(run.data.train_batches):
            raise ValueError(f'step {run.position.step} of {len(run.data.train_batches)}')
        if run.position.step and [len(sums) for sums in run.position.sums] != [2] * run.learner.world.size:
            raise ValueError('no loss of each process')
        run.learner.load_state_dict(state['learner'])
        factory.check_weights(run.learner.model, run.folder['state.pt'])
        if 'environment' not in state:
            console.line('note: the state is of an earlier version: its checksum, threads and versions are not checked')
        elif changes := environment.changes(state['environment'], run.environment()):
            console.line(f'note: the weights will differ from those of an uninterrupted run: {"; ".join(changes)}')
        run.saved = run.progress
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(f'{run.folder["state.pt"]}: not the state of this run ({reason})') from None


def make_model(recipe: Recipe, classes: int, log: Callable[[str], object] = str) -> Any:
    """The recipe's model, with its starting weights; `log` takes a line where not all of them are."""
    model = factory.build_model(
        recipe.model,
        pretrained=recipe.pretrained,
        num_classes=classes,
        in_chans=recipe.channels,
        drop_rate=recipe.drop,
        drop_path_rate=recipe.drop_path,
        drop_block_rate=recipe.drop_block,
        global_pool=recipe.gp,
        bn_momentum=recipe.bn_momentum,
        bn_eps=recipe.bn_eps,
        **recipe.model_kwargs,
    )
    if recipe.initial_checkpoint:
        folder = model_folder(recipe.initial_checkpoint)
        path = folder / 'model.safetensors' if folder else Path(recipe.initial_checkpoint)
        if kept := load_weights(model, read_weights(path), path, new_head=True):
            log(kept)
    _scale_head(model, recipe)
    return model


@torch.no_grad()
def _scale_head(model: Any, recipe: Recipe) -> None:
    """Changes the classifier's weights as the recipe asks."""
    scale, bias = recipe.head_init_scale, recipe.head_init_bias
    if scale is None and bias is None:
        return
    head: Any = model.get_classifier() if hasattr(model, 'get_classifier') else last_linear(model)
    if not isinstance(getattr(head, 'weight', None), torch.Tensor) or getattr(head, 'bias', None) is None:
        raise UserError(f'--head-init-scale, --head-init-bias: the classifier of {recipe.model} is no plain layer')
    if scale is not None:
        head.weight.mul_(scale)
        head.bias.mul_(scale)
    if bias is not None:
        head.bias.fill_(bias)
