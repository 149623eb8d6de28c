"""The training loop at its public surface: what a run's folder holds, reproducibility, resuming, bad input."""

import copy
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

import imagenette_zoo
from imagenette_zoo import train
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data.pipeline import load_images
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import load_folder, save_model_folder
from imagenette_zoo.study.plan import Trial
from imagenette_zoo.study.records import check_recipe
from imagenette_zoo.training import learner, trainer
from imagenette_zoo.training.learner import learning_rate
from imagenette_zoo.training.loss import class_weights, loss_function
from imagenette_zoo.training.run import check_alike, make_model, open_folder
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.utils.distributed import World
from tests.conftest import TAKES_LONG, changed, interrupted, make_folder, needs_local_dir

MakeRecipe = Callable[..., Recipe]
LONG = 'a' * 300  # for any file system


def weights(run: Path, which: str = 'last') -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / which / 'model.safetensors')


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_runs_folder(recipe: MakeRecipe) -> None:
    result = train(recipe(epochs=6, checkpoint_hist=2), quiet=True)
    run = result.folder
    saved = json.loads((run / 'result.json').read_text())
    assert saved == json.loads(json.dumps(result.as_json()))
    assert set(saved) == {
        'model',
        'top1',
        'best_top1',
        'best_epoch',
        'top5',
        'loss',
        'per_class',
        'epochs',
        'img_size',
        'seed',
        'params',
        'gmacs',
        'seconds',
        'images_per_second',
        'peak_memory_mib',
        'recipe',
        'dataset',
        'versions',
        'hardware',
        'command',
        'code',
        'stopped',
        'teacher',
    }
    assert saved['dataset'].pop('hash').startswith('content:')
    assert len(saved['dataset'].pop('files')) == 32
    assert saved['dataset'] == {'name': Path(saved['recipe']['data_dir']).name, 'train': 24, 'val': 12}
    assert set(saved['seconds']) == {'setup', 'total', 'train', 'eval', 'to_80', 'to_85', 'to_90'}
    assert set(saved['per_class']) == {'class0', 'class1', 'class2'}
    assert sum(saved['per_class'].values()) / 3 == pytest.approx(saved['top1'])
    assert saved['params'] == sum(p.numel() for p in timm.create_model('test_resnet', num_classes=3).parameters())

    rows = list(csv.DictReader((run / 'summary.csv').open()))
    assert list(rows[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
    assert [row['epoch'] for row in rows] == ['0', '1', '2', '3', '4', '5']
    assert float(rows[-1]['eval_top1']) == saved['top1']
    assert (
        max(float(row['eval_top1']) for row in rows)
        == saved['best_top1']
        == float(rows[saved['best_epoch']]['eval_top1'])
    )
    assert len((run / 'metrics.jsonl').read_text().splitlines()) == 6
    assert Recipe(**yaml.safe_load((run / 'args.yaml').read_text())) == recipe(epochs=6, checkpoint_hist=2)
    kept = {folder.name for folder in (run / 'checkpoints').iterdir()}
    assert len(kept) == 2
    assert f'epoch-{saved["best_epoch"]}' in kept
    assert same(weights(run, 'best'), weights(run, f'checkpoints/epoch-{saved["best_epoch"]}'))
    assert sorted(path.name for path in run.rglob('.*')) == ['.lock', '.saved'], 'temporary files are left'


@pytest.mark.slow
@needs_local_dir
def test_training_learns_and_its_weights_load_in_timm(recipe: MakeRecipe) -> None:
    result = train(recipe(epochs=12, opt='adamw', no_aug=True), quiet=True)
    assert result.best_top1 >= 90
    model = timm.create_model(f'local-dir:{result.folder}/best', pretrained=True)
    assert same(model.state_dict(), weights(result.folder, 'best'))
    config = model.pretrained_cfg
    assert (config['num_classes'], tuple(config['label_names'])) == (3, ('class0', 'class1', 'class2'))
    assert tuple(config['input_size']) == (3, 32, 32)
    [validation] = imagenette_zoo.validate(result.folder, recipe().data_dir, workers=0, quiet=True)
    assert validation.top1 == result.best_top1


@pytest.mark.long
@pytest.mark.slow
@needs_local_dir
def test_model_kwargs_travel_with_the_weights(recipe: MakeRecipe, tmp_path: Path) -> None:
    result = train(
        recipe(model='mbv2_mish_imagenette', epochs=1, model_kwargs={'passes': [1, 1, 1, 1, 1, 1, 2]}, gp='max'),
        quiet=True,
    )
    source = f'local-dir:{result.folder}/best'
    model = timm.create_model(source, pretrained=True)
    assert same(model.state_dict(), weights(result.folder, 'best'))
    assert model.global_pool.pool_type == 'max'
    other = make_folder(tmp_path / 'other', classes=2)
    tuned = train(recipe(model=source, data_dir=str(other), epochs=1, pretrained=True, experiment='tuned'), quiet=True)
    model = timm.create_model(f'local-dir:{tuned.folder}/best', pretrained=True)
    assert same(model.state_dict(), weights(tuned.folder, 'best'))
    assert model.global_pool.pool_type == 'max'


@pytest.mark.long
@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_whatever_the_workers(recipe: MakeRecipe, tmp_path: Path) -> None:
    options = dict(
        reprob=0.5, mixup=0.3, cutmix=0.5, color_jitter=0.4, drop=0.2, aa='rand-m9-mstd0.5', epochs=2, vflip=0.2
    )
    runs = [
        train(recipe(**options, workers=workers, experiment=f'w{workers}-{seed}', seed=seed), quiet=True).folder
        for workers, seed in ((0, 1), (4, 1), (0, 2))
    ]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))
    assert (runs[0] / 'summary.csv').read_text() == (runs[1] / 'summary.csv').read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        dict(model_ema=True, model_ema_decay=0.9, sched_on_updates=True, mixup=0.2),
        pytest.param(
            dict(
                opt='adamw', grad_accum_steps=2, clip_grad=1.0, drop_path=0.1, sched='step', decay_epochs=1,
                decay_rate=0.9,
            ),
            marks=pytest.mark.long,
        ),
        pytest.param(
            dict(sched='plateau', patience_epochs=2, lr=1e-7, smoothing=0.0, bce_loss=True, opt='lookahead_radam'),
            marks=pytest.mark.long,
        ),
    ],
)
def test_an_interrupted_run_continues_to_the_same_weights(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    whole = train(recipe(**options, epochs=5, experiment='whole'), quiet=True)
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=3):
        train(recipe(**options, epochs=5, experiment='halves'), quiet=True)
    with pytest.raises(UserError, match='holds an interrupted run: --resume'):
        train(recipe(**options, epochs=5, experiment='halves'), quiet=True)
    with pytest.raises(UserError, match='was started with seed 42, not 7'):
        train(recipe(**options, epochs=5, experiment='halves', resume='auto', seed=7), quiet=True)
    free = dict(cuda_graph='none', log_interval=7, log_swaps=True)  # do not decide what is computed
    halves = train(recipe(**options, **free, epochs=5, experiment='halves', resume='auto'), quiet=True)
    assert same(weights(whole.folder), weights(halves.folder))
    assert (whole.folder / 'summary.csv').read_text() == (halves.folder / 'summary.csv').read_text()
    assert (whole.top1, whole.loss, whole.best_epoch) == (halves.top1, halves.loss, halves.best_epoch)


def test_an_option_that_is_given_is_what_is_trained(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the recipe had chosen sizes for each batch, for a longer training."""
    file = tmp_path / 'recipe.yaml'
    chosen = dict(img_size=48, train_img_sizes=[40, 48], train_size_schedule='progressive', warmup_epochs=3, epochs=9)
    file.write_text(yaml.safe_dump(changed(recipe()) | chosen))
    sizes = set()
    step = learner.Learner.step
    monkeypatch.setattr(
        learner.Learner, 'step', lambda self, images, *args: (sizes.add(images.shape[-1]), step(self, images, *args))[1]
    )
    result = train(file, img_size=32, epochs=2)
    assert sizes == {32}
    output = capsys.readouterr().out
    assert '--img-size 32: train_img_sizes is none instead of 40 48' in output
    assert '--epochs 2: warmup_epochs is 1 instead of 3' in output
    args = yaml.safe_load((result.folder / 'args.yaml').read_text())
    for record in (args, result.recipe):
        assert (record['img_size'], record['train_img_sizes'], record['warmup_epochs']) == (32, None, 1)
    result = train(file, epochs=2, experiment='sizes')
    assert sizes == {32, 40, 48}
    assert 'trained at 40, 48 px (progressive), validated at 48 px' in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipes_batch_gives_way_to_few_images(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(recipe()) | {'batch_size': 64, 'num_classes': 10}))
    with pytest.raises(UserError, match='--batch-size 64 is larger than the training set of 24 images'):
        train(file, batch_size=64)
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=1):
        train(file)
    output = capsys.readouterr().out
    assert '24 training images of 3 classes: batch_size is 24 instead of 64' in output
    assert 'num_classes is 3 instead of 10' in output
    result = train(file, resume='auto')
    assert result.recipe['batch_size'] == yaml.safe_load((result.folder / 'args.yaml').read_text())['batch_size'] == 24
    assert train(file, resume='auto').top1 == result.top1, 'it is finished'
    given = train(file, batch_size=24, experiment='given', quiet=True)
    assert same(weights(result.folder), weights(given.folder))
    with pytest.raises(UserError, match='was started with batch_size 24, not 16'):
        train(file, resume='auto', batch_size=16)
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=1):
        train(file, batch_size=16, experiment='other', quiet=True)
    with pytest.raises(UserError, match='was started with batch_size 16, not 24'):
        train(file, resume='auto', experiment='other', quiet=True)


@pytest.mark.long
@pytest.mark.slow
def test_a_finished_run_goes_on_where_its_schedule_allows_it(recipe: MakeRecipe) -> None:
    options = dict(sched='multistep', decay_milestones=(2, 9), quiet=True)
    whole = train(recipe(epochs=3, experiment='whole'), **options)
    first = train(recipe(epochs=1), **options)
    (first.folder / 'analysis.json').write_text('{}')
    longer = train(resume=str(first.folder), epochs=3, quiet=True)
    assert same(weights(longer.folder), weights(whole.folder))
    assert (longer.epochs, longer.recipe['epochs'], longer.top1) == (3, 3, whole.top1)
    assert yaml.safe_load((longer.folder / 'args.yaml').read_text())['epochs'] == 3
    assert not (first.folder / 'analysis.json').exists(), 'it is of other weights'
    with pytest.raises(UserError, match=r'nothing to resume\. To train on, give more than --epochs 3'):
        train(resume=str(first.folder), quiet=True)
    with pytest.raises(UserError, match='was started with epochs 3, not 2'):
        train(recipe(epochs=2, resume='auto'), **options)
    (first.folder / 'state.pt').unlink()
    with pytest.raises(UserError, match=r'state\.pt: is not there; train on from its weights'):
        train(resume=str(first.folder), epochs=4, quiet=True)


@pytest.mark.parametrize(
    ('options', 'reason'),
    [
        ({}, 'its schedule (cosine) is made for --epochs 1'),
        (dict(sched='plateau', val_interval=2), 'its schedule (plateau, by the validations'),
        (dict(sched='step', lr_noise=(0.5,)), 'the noise of its learning rate'),
        (
            dict(sched='none', train_img_sizes=(32, 40), train_size_schedule='progressive'),
            'its plan of image sizes',
        ),
    ],
)
def test_a_schedule_that_ends_names_the_command_that_goes_on(
    recipe: MakeRecipe, options: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recipe(**options, epochs=1)
    folder = RunFolder(Path(run.output, 'run'))
    folder.start(run)
    folder.unlock()
    with pytest.raises(UserError) as error:
        train(resume=str(folder.path), epochs=3)
    assert reason in str(error.value)
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {}}
    save_model_folder(folder['last'], config, timm.create_model('test_resnet', num_classes=3).state_dict())
    command = str(error.value).partition('imagenette-zoo ')[2].split()
    assert main(command) == 0
    assert yaml.safe_load(Path(run.output, 'run-3', 'args.yaml').read_text())['epochs'] == 2


def test_the_command_that_goes_on_keeps_the_classifier(recipe: MakeRecipe) -> None:
    """`head_init_scale` is of a classifier that begins at random."""
    run = recipe(epochs=1, head_init_scale=0.1, head_init_bias=3.0, sched='cosine')
    folder = RunFolder(Path(run.output, 'run'))
    folder.start(run)
    folder.unlock()
    with pytest.raises(UserError) as error:
        train(resume=str(folder.path), epochs=3)
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {}}
    model = timm.create_model('test_resnet', num_classes=3)
    save_model_folder(folder['last'], config, model.state_dict())
    command = shlex.split(str(error.value).partition('imagenette-zoo ')[2])
    assert main([*command, '--lr', '1e-12', '--opt', 'sgd', '--weight-decay', '0']) == 0
    for name, weight in weights(Path(run.output, 'run-3')).items():
        if name.startswith('fc.'):
            torch.testing.assert_close(weight, model.state_dict()[name])


@pytest.mark.parametrize('value', [{1, 2}, b'x', {1: {3}}])
def test_a_value_that_no_config_has_is_refused_before_anything_is_written(recipe: MakeRecipe, value: Any) -> None:
    run = recipe(model_kwargs={'layers': value})
    folder = RunFolder(Path(run.output, 'run'))
    with pytest.raises(UserError, match=r"model_kwargs: .* can't be saved in args\.yaml: give numbers, text or lists"):
        folder.start(run)
    assert not folder['args.yaml'].exists()
    folder.unlock()


@pytest.mark.slow
def test_a_finished_run_of_another_batch_is_not_the_recipes(recipe: MakeRecipe, tmp_path: Path) -> None:
    file = tmp_path / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(recipe()) | {'epochs': 1, 'batch_size': 8}))
    first = train(file, quiet=True)
    assert train(file, resume='auto', quiet=True).top1 == first.top1
    file.write_text(yaml.safe_dump(changed(recipe()) | {'epochs': 1, 'batch_size': 16}))
    with pytest.raises(UserError, match='was trained with batch_size 8, not 16'):
        train(file, resume='auto', quiet=True)


def test_cut_boxes_are_a_pixel_at_least(flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ['train', *flags(), '--cutmix-minmax', '0.5', '0.51']
    expect_error(capsys, words, '--cutmix-minmax 0.5 0.51: less than a pixel apart at 32 px')


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [None, (24, 40)])
def test_images_that_are_no_squares_and_the_sizes_of_batches(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...] | None
) -> None:
    """What is compiled first has the shapes of the training, too."""
    shapes: dict[str, set[tuple[int, ...]]] = {'trained': set(), 'compiled': set()}
    step, compiles = learner.Learner.step, learner.Learner.compile

    def spy(self: Any, images: torch.Tensor, *args: Any) -> torch.Tensor:
        shapes['trained'].add(tuple(images.shape[1:]))
        return step(self, images, *args)

    def look(self: Any, given: Any) -> Any:
        shapes['compiled'] |= set(given)
        return compiles(self, given)

    monkeypatch.setattr(learner.Learner, 'step', spy)
    monkeypatch.setattr(learner.Learner, 'compile', look)
    options = dict(img_size=None, input_size=(3, 24, 32), train_img_sizes=sizes, torchcompile='eager', workers=0)
    train(recipe(epochs=2, **options), quiet=True)
    expected = {(3, size, size) for size in sizes or ()} or {(3, 24, 32)}
    assert shapes == {'trained': expected, 'compiled': expected}


@pytest.mark.slow
def test_a_state_from_before_continues(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no loss, no recipe and no checksum."""
    with pytest.raises(KeyboardInterrupt), interrupted(monkeypatch, epoch=1):
        train(recipe(epochs=2), quiet=True)
    file = Path(recipe().output, 'run', 'state.pt')
    state = torch.load(file, weights_only=True)
    del state['learner']['loss'], state['recipe'], state['environment']
    torch.save(state, file)
    assert train(recipe(epochs=2, resume='auto')).epochs == 2
    assert 'note: the state is of an earlier version: its checksum' in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_is_not_replaced_unasked(recipe: MakeRecipe) -> None:
    run = train(recipe(epochs=1), quiet=True).folder
    before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match='holds a finished run'):
        train(recipe(epochs=1), quiet=True)
    with pytest.raises(UserError, match='this run is finished'):
        train(recipe(epochs=1, resume=str(run)), quiet=True)
    assert before == {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
    (run / 'mine.txt').write_text('kept')
    assert train(recipe(epochs=2, overwrite=True), quiet=True).epochs == 2
    assert (run / 'mine.txt').read_text() == 'kept', "overwriting removes what is not the run's"


def test_a_folder_of_something_else_is_left_alone(recipe: MakeRecipe, tmp_path: Path) -> None:
    run = tmp_path / 'runs' / 'run'
    (run / 'checkpoints').mkdir(parents=True)
    (run / 'summary.csv').write_text('mine')
    with pytest.raises(UserError, match=r'holds summary\.csv of something else'):
        train(recipe(), quiet=True)
    assert (run / 'summary.csv').read_text() == 'mine'


@pytest.mark.slow
def test_runs_without_a_name_do_not_meet(recipe: MakeRecipe) -> None:
    folders = {train(recipe(experiment=None, epochs=1), quiet=True).folder for _ in range(3)}
    assert len(folders) == 3


@pytest.mark.slow
@pytest.mark.parametrize('words', [['--resume', 'RUN'], ['--resume', '--experiment', 'run', '--output', 'RUNS']])
def test_an_interrupted_run_is_resumed_from_the_command_line(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is exit code 130 and the line to type; the run was started with --overwrite, which must not stick."""
    started = recipe(overwrite=True)
    run = Path(started.output) / 'run'
    file = run.parent.parent / 'recipe.yaml'
    file.write_text(yaml.safe_dump(changed(started)))
    with interrupted(monkeypatch, epoch=1):
        assert main(['train', '-c', str(file)]) == 130
    line = f'Stopped at once. All up to epoch 1 is saved. Continue with: imagenette-zoo train --resume {run}\n'
    assert line in capsys.readouterr().out
    assert main(['train', *(word.replace('RUNS', started.output).replace('RUN', str(run)) for word in words)]) == 0
    assert (run / 'result.json').exists()


@pytest.mark.slow
def test_other_data_do_not_continue_a_run(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, 'make_result', stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), quiet=True)
    other = make_folder(tmp_path / 'four', classes=4)
    with pytest.raises(UserError, match='was started with other training images'):
        train(recipe(resume='auto', data_dir=str(other)), quiet=True)


def test_options_without_a_recipe(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the command has them: timm's defaults for a model, a recipe by name, the flagship without either."""
    recipes: list[Recipe] = []
    monkeypatch.setattr(trainer, 'train_by', lambda recipe, *_: recipes.append(recipe))
    file = tmp_path / 'short.yaml'
    file.write_text('epochs: 3\nwarmup_epochs: 1\n')
    train(model='resnet18', epochs=2)
    train(model='resnet18', epochs=2, warmup_epochs=0)
    train(model='resnet18', epochs=2, warmup_prefix=True)
    assert main(['train', '--model', 'resnet18', '--epochs', '1']) == 0
    train(model='resnet18', epochs=9)
    train(file, lr=0.3)
    train(recipe(), lr=0.3)
    train(epochs=4)
    assert recipes == [
        Recipe(model='resnet18', epochs=2, warmup_epochs=1),
        Recipe(model='resnet18', epochs=2, warmup_epochs=0),
        Recipe(model='resnet18', epochs=2, warmup_prefix=True),
        Recipe(model='resnet18', epochs=1, warmup_epochs=0),
        Recipe(model='resnet18', epochs=9),
        Recipe(epochs=3, warmup_epochs=1, lr=0.3),
        recipe(lr=0.3),
        Recipe.load('mbv2_mish', epochs=4),
    ]


@pytest.mark.parametrize(
    ('arguments', 'options', 'line'),
    [
        (('resnet18',), {}, 'train: resnet18 is a model, no recipe: give it as model='),
        (('mbv2_mis',), {}, "no recipe 'mbv2_mis'"),
        ((), {'model': 'resnet18', 'epoch': 2}, "unknown option 'epoch'; did you mean epochs"),
        ((), {'model': torch.nn.ReLU()}, 'model ReLU: is built already'),
    ],
)
def test_wrong_arguments_of_train_are_one_line(
    arguments: tuple[str, ...], options: dict[str, object], line: str
) -> None:
    with pytest.raises(UserError) as error:
        train(*arguments, **options)
    assert line in str(error.value)
    assert '\n' not in str(error.value)


def test_an_interrupted_run_is_resumed_from_a_notebook(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'IPython', SimpleNamespace(get_ipython=object))
    run = Path(recipe().output) / 'run'
    with interrupted(monkeypatch, epoch=1), pytest.raises(KeyboardInterrupt) as stopped:
        train(recipe(), quiet=True)
    [line] = stopped.value._render_traceback_()
    assert line == f"Stopped at once. All up to epoch 1 is saved. Continue with: imagenette_zoo.train(resume='{run}')"
    assert train(resume=str(run), quiet=True).epochs == 2


def test_the_learning_rate_is_timms() -> None:
    """As `Learning rate (…) calculated from base learning rate` in timm's script."""
    assert learning_rate(Recipe(lr=0.3)) == 0.3
    assert learning_rate(Recipe(batch_size=512, lr_base=0.1)) == pytest.approx(0.2)
    assert learning_rate(Recipe(batch_size=64, lr_base=0.1, grad_accum_steps=2), world_size=2) == pytest.approx(0.1)
    assert learning_rate(Recipe(opt='adamw', batch_size=1024, lr_base=1e-3)) == pytest.approx(2e-3)
    assert learning_rate(Recipe(opt='adamw', batch_size=1024, lr_base=1e-3, lr_base_scale='linear')) == pytest.approx(
        4e-3
    )


@pytest.mark.slow
def test_the_schedule_is_timms(recipe: MakeRecipe) -> None:
    """The recorded learning rates are those of timm's factory, stepped as timm's script steps it."""
    by_epoch = recipe(epochs=6, warmup_epochs=2, lr=0.1, experiment='epochs')
    rows = list(csv.DictReader((train(by_epoch, quiet=True).folder / 'summary.csv').open()))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, epochs = create_scheduler_v2(
        optimizer, **scheduler_kwargs(by_epoch.replace(decay_epochs=90)), updates_per_epoch=3
    )
    assert epochs == 6
    for epoch, row in enumerate(rows):
        assert float(row['lr']) == pytest.approx(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1)

    by_update = recipe(epochs=4, warmup_epochs=1, lr=0.1, sched_on_updates=True, experiment='updates')
    rows = list(csv.DictReader((train(by_update, quiet=True).folder / 'summary.csv').open()))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, _ = create_scheduler_v2(
        optimizer, **scheduler_kwargs(by_update.replace(decay_epochs=90)), updates_per_epoch=3
    )
    for epoch, row in enumerate(rows):
        for update in range(3):
            scheduler.step_update(3 * epoch + update + 1)
        assert float(row['lr']) == pytest.approx(optimizer.param_groups[0]['lr'])


@pytest.mark.slow
def test_validation_may_be_rare_and_best_may_mean_the_loss(recipe: MakeRecipe) -> None:
    result = train(recipe(epochs=5, val_interval=2, eval_metric='loss'), quiet=True)
    rows = list(csv.DictReader((result.folder / 'summary.csv').open()))
    assert [bool(row['eval_top1']) for row in rows] == [False, True, False, True, True]
    losses = {int(row['epoch']): float(row['eval_loss']) for row in rows if row['eval_loss']}
    assert result.best_epoch == min(losses, key=losses.__getitem__)


def test_the_heads_initial_weights_can_be_scaled(recipe: MakeRecipe) -> None:
    def head(**options: object) -> torch.Tensor:
        name = 'a'.join(map(str, options.values())).replace('/', '')
        return weights(train(recipe(experiment=name, epochs=1, lr=1e-12, **options), quiet=True).folder)['fc.weight']

    whole = head(seed=1)
    torch.testing.assert_close(head(seed=1, head_init_scale=0.5), whole / 2)
    start = str(Path(recipe().output, '1', 'last'))
    torch.testing.assert_close(head(seed=2, head_init_scale=0.5, initial_checkpoint=start), whole / 2)


def test_a_run_may_move_to_a_device_with_a_gradient_scaler(recipe: MakeRecipe) -> None:
    """From a CPU, whose state has none, to a GPU with float16."""
    started = recipe(epochs=1)
    here = learner.Learner(started, timm.create_model('test_resnet', num_classes=3), World(torch.device('cpu')), 1)
    state = here.state_dict()
    here.scaler = torch.amp.GradScaler('cpu')
    here.load_state_dict(state)
    assert here.scaler.state_dict()['scale'] > 0
    with pytest.raises((TypeError, AttributeError)):
        here.load_state_dict({**state, 'scheduler': None})


@pytest.mark.parametrize('clip_grad', [None, 0.1])
@pytest.mark.parametrize(
    ('opt', 'fused'), [('adamw', False), ('adamw', True), ('lookahead_adam', True), ('sgd', False)]
)
def test_a_gradient_scaler_changes_nothing_but_overflows(
    recipe: MakeRecipe, opt: str, fused: bool, clip_grad: float | None
) -> None:
    torch.manual_seed(0)
    options = recipe(opt=opt, opt_kwargs={'fused': True} if fused else {}, lr=0.01, nan='skip', clip_grad=clip_grad)
    model, world = timm.create_model('test_resnet', num_classes=3), World(torch.device('cpu'))
    plain, scaled = (learner.Learner(options, copy.deepcopy(model), world, 1) for _ in range(2))
    scaled.scaler = torch.amp.GradScaler('cpu')
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        assert torch.equal(plain.step(images, targets), scaled.step(images, targets))
        for a, b in zip(plain.model.parameters(), scaled.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    before = copy.deepcopy(scaled.model.state_dict())
    scaled.scaler = torch.amp.GradScaler('cpu', init_scale=3e38)
    scaled.step(images * 1e3, targets)
    assert scaled.skipped == 1
    assert scaled.scaler.get_scale() < 3e38
    assert same(before, scaled.model.state_dict())


def test_what_batchnorm_was_trained_with_stays_with_the_model(recipe: MakeRecipe) -> None:
    folder = train(recipe(model='mobilenetv2_035', epochs=1, bn_eps=0.5), quiet=True).folder
    assert load_folder(folder / 'last').bn1.eps == 0.5
    assert json.loads((folder / 'last' / 'config.json').read_text())['model_args']['bn_eps'] == 0.5


def test_mixing_stops_when_it_should(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = []
    step = learner.Learner.step

    def spy(self: object, images: torch.Tensor, targets: torch.Tensor, *args: object) -> torch.Tensor:
        mixed.append(bool(((targets > 0.02) & (targets < 0.9)).any()))
        return step(self, images, targets, *args)

    monkeypatch.setattr(learner.Learner, 'step', spy)
    train(recipe(epochs=3, mixup=1.0, mixup_off_epoch=2, smoothing=0.0), quiet=True)
    assert any(mixed[:6])
    assert not any(mixed[6:])


def test_the_moving_average_is_what_is_evaluated_and_kept(recipe: MakeRecipe) -> None:
    plain = train(recipe(experiment='plain'), quiet=True)
    averaged = train(recipe(experiment='ema', model_ema=True, model_ema_decay=0.9), quiet=True)
    assert not same(weights(plain.folder), weights(averaged.folder))
    [validation] = imagenette_zoo.validate(averaged.folder / 'last', recipe().data_dir, workers=0, quiet=True)
    assert validation.loss == pytest.approx(averaged.loss, rel=1e-6)


@pytest.mark.slow
def test_a_moving_average_on_the_cpu_is_the_same(recipe: MakeRecipe) -> None:
    ema = dict(model_ema=True, model_ema_decay=0.9)
    here = train(recipe(**ema, experiment='here'), quiet=True)
    there = train(recipe(**ema, model_ema_force_cpu=True, experiment='there'), quiet=True)
    assert there.loss == pytest.approx(here.loss, rel=1e-4)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(recipe: MakeRecipe) -> None:
    """Without batch statistics and dropout small batches must equal a large one, also where the last is smaller."""
    common = dict(model='test_vit', opt='momentum', no_aug=True, img_size=160, epochs=1, color_jitter=0.0)
    whole = train(recipe(**common, experiment='whole', batch_size=15), quiet=True)
    parts = train(recipe(**common, experiment='parts', batch_size=5, grad_accum_steps=3), quiet=True)  # 15, and 5 + 4
    a, b = weights(whole.folder), weights(parts.folder)
    frozen = train(recipe(**{**common, 'lr': 1e-12}, experiment='frozen'), quiet=True)
    assert not same(a, weights(frozen.folder)), 'nothing was learned'
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('options', [{}, {'resume': 'auto'}])
def test_a_checkpoint_starts_a_run(recipe: MakeRecipe, options: dict[str, str]) -> None:
    first = train(recipe(epochs=10, opt='adamw', no_aug=True), quiet=True)
    assert first.best_top1 >= 80
    start = str(first.folder / 'best')
    second = train(
        recipe(experiment='second', epochs=1, lr=1e-9, no_aug=True, initial_checkpoint=start, **options), quiet=True
    )
    assert second.top1 >= first.best_top1 - 10


def run_cli(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, 'PYTHONPATH': str(Path(imagenette_zoo.__file__).parent.parent)}
    env.pop('IMAGENETTE_DIR', None)
    return subprocess.run(
        [sys.executable, '-m', 'imagenette_zoo', *words], capture_output=True, text=True, cwd=cwd, env=env, check=False
    )


@pytest.mark.slow
def test_the_command_line(recipe: MakeRecipe, tmp_path: Path) -> None:
    """One real process from a recipe file: plain lines, a table, where everything is."""
    file = tmp_path / 'tiny.yaml'
    file.write_text(yaml.safe_dump({**changed(recipe()), 'output': 'runs'}))
    done = run_cli('train', '-c', str(file), '--epochs', '2', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '\r' not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith('epoch ') for line in lines) == 2
    assert any(line.startswith('class0') for line in lines)
    assert 'runs/run/result.json' in done.stdout
    again = run_cli('train', '-c', str(file), '--epochs', '2', cwd=tmp_path)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert 'holds a finished run' in again.stderr


@pytest.fixture
def flags(recipe: MakeRecipe) -> Callable[..., list[str]]:
    """Flags of a short run; an argument replaces one, None leaves it out."""

    def make(**changes: object) -> list[str]:
        values = {**changed(recipe()), **changes}
        return [
            word
            for name, value in values.items()
            if value is not None
            for word in ([f'--{name.replace("_", "-")}'] if value is True else [f'--{name.replace("_", "-")}={value}'])
        ]

    return make


def expect_error(capsys: pytest.CaptureFixture[str], words: list[str], *parts: str) -> None:
    """One line on stderr with all the parts, exit code 2."""
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert '\n' not in error
    for part in parts:
        assert part in error, error


@pytest.mark.parametrize(
    ('changes', 'parts'),
    [
        (dict(data_dir='/nowhere'), ['/nowhere']),
        (dict(model='resnet5o'), ["unknown model 'resnet5o'", 'did you mean resnet50']),
        (dict(model='mbv2_mish'), ['unknown model', 'mbv2_mish_imagenette']),
        (dict(num_classes=10), ['--num-classes 10', '3 classes']),
        (dict(batch_size=25), ['--batch-size 25', '24 images']),
        (dict(device='cuda'), ['--device cuda', 'cpu']),
        (dict(device='quantum'), ['--device quantum']),
        (dict(opt='adamx'), ["has no optimizer 'adamx'", 'adam']),
        (dict(output='/proc/nowhere'), ['/proc/nowhere', "can't write"]),
        (dict(model_kwargs='colour=red'), ['colour']),
        (dict(model_kwargs='in_chans=1'), ['in_chans: has an option of its own, --in-chans']),
        (dict(in_chans=2), ['--in-chans: images of 2 channels', '1, 3 or 4']),
        (dict(in_chans=0), ['--in-chans: 0 is out of range', 'at least 1']),
        (dict(in_chans=4), ['image ', 'class', 'has not four channels of its own']),
        (dict(in_chans=1, color_jitter=0.4), ['--color-jitter 0.4', 'three channels']),
        (dict(in_chans=1, aa='v0'), ['--aa v0', 'three channels']),
        (dict(aa='nonsense'), ['--aa nonsense']),
        (dict(initial_checkpoint='/nowhere.pth'), ['/nowhere.pth', 'no such checkpoint']),
        (dict(resume='/nowhere'), ['/nowhere', 'no run to resume']),
        (dict(output='.', experiment=LONG), ["can't write: File name too long"]),
        (dict(initial_checkpoint=LONG), ['no such checkpoint']),
        (dict(resume=LONG), ['no run to resume']),
        (dict(config=LONG), ['no recipe']),
        (dict(sync_bn=True), ['--sync-bn']),
        (dict(torchcompile='inductr'), ["no backend 'inductr'", 'inductor']),
        (dict(label_noise=5), ['noisy_imagenette.csv']),
        (dict(img_size=4), ['--img-size']),
        (dict(model='vit_tiny_patch16_224'), ['vit_tiny_patch16_224', '--img-size']),
        (dict(opt='adamw', opt_betas='0.9'), ['--opt adamw']),
        (dict(lr='0'), ['--lr']),
        (dict(epochs=5, lr_cycle_mul=0.5, cooldown_epochs=5), ['--sched cosine', 'math domain error']),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason='--device cuda is no error here')
def test_bad_input_is_one_line(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], changes: dict[str, object], parts: list[str]
) -> None:
    expect_error(capsys, ['train', *flags(**changes)], *parts)


def test_names_that_nothing_has_are_said_at_once_before_the_images_are_read() -> None:
    with pytest.raises(UserError) as raised:
        train(model='resnet5o', opt='adamx', loss='torch.nn:NoLoss', data_dir='/nowhere', device='cpu')
    model, opt, loss = raised.value.lines
    assert "unknown model 'resnet5o'" in model
    assert "no optimizer 'adamx'" in opt
    assert loss.startswith('--loss ')
    assert 'NoLoss' in loss


@pytest.mark.parametrize(
    ('words', 'part'),
    [(['--checkpoint', LONG], 'no such checkpoint'), (['--results-file', f'{LONG}/x.csv'], 'no such folder')],
)
def test_names_that_are_too_long_to_validate(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    expect_error(capsys, ['validate', '--model', 'test_resnet', '--data-dir', str(folder), *words], part)


def test_without_data_the_line_tells_how_to_get_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path))
    expect_error(capsys, ['train'], 'imagenette-zoo data fetch', '--data-dir', 'synthette')


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_a_bad_image_stops_the_run_and_keeps_what_is_done(
    folder: Path, flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, workers: int
) -> None:
    broken = shutil.copytree(folder, tmp_path / 'broken')
    image = broken / 'val' / 'class1' / '2.png'
    image.write_bytes(image.read_bytes()[:300])
    expect_error(capsys, ['train', *flags(data_dir=broken, workers=workers)], str(image))
    image.write_bytes(b'')
    expect_error(capsys, ['train', *flags(data_dir=broken, workers=workers, experiment='other')], str(image))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ('touch pwned',)


@pytest.mark.slow
def test_checkpoints_that_are_refused(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = timm.create_model('test_vit', num_classes=3)
    torch.save({'state_dict': other.state_dict()}, 'other.pth')
    torch.save({'state_dict': Evil()}, 'evil.pth')
    Path('torn.pth').write_bytes(Path('other.pth').read_bytes()[:2000])
    safetensors.torch.save_file(other.state_dict(), 'other.safetensors')
    Path('torn.safetensors').write_bytes(Path('other.safetensors').read_bytes()[:2000])
    torch.save({'state_dict': timm.create_model('test_resnet', num_classes=7).state_dict()}, 'seven.pth')
    for name, part in {
        'other.pth': 'another model',
        'other.safetensors': 'another model',
        'torn.pth': 'truncated',
        'torn.safetensors': 'truncated',
        'evil.pth': 'refused',
        'seven.pth': 'fc.weight is (7,',
    }.items():
        if name != 'seven.pth':  # of which a training takes all but the classifier
            expect_error(capsys, ['train', *flags(initial_checkpoint=name)], name, part)
        expect_error(
            capsys,
            [
                'validate',
                '--model',
                'test_resnet',
                '--checkpoint',
                name,
                *flags(
                    model=None, epochs=None, batch_size=None, lr=None, warmup_epochs=None, output=None, experiment=None
                ),
            ],
            name,
            part,
        )
    assert not Path('pwned').exists()
    assert not (tmp_path / 'runs' / 'run' / 'args.yaml').exists(), 'a refused run leaves a folder behind'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_output_folder(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    locked = tmp_path / 'locked'
    locked.mkdir(mode=0o500)
    expect_error(capsys, ['train', *flags(output=locked)], "can't write")


@pytest.mark.slow
def test_two_processes_share_the_work(recipe: MakeRecipe, tmp_path: Path) -> None:
    """torchrun with gloo: one writer, every validation image counted once."""
    file = tmp_path / 'tiny.yaml'
    file.write_text(yaml.safe_dump(changed(recipe(batch_size=4))))
    env = {**os.environ, 'PYTHONPATH': str(Path(imagenette_zoo.__file__).parent.parent), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=2',
            '-m',
            'imagenette_zoo',
            'train',
            '-c',
            str(file),
        ],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('epoch 1 of 2') == 1
    result = json.loads((tmp_path / 'runs' / 'run' / 'result.json').read_text())
    assert (result['dataset']['val'], result['hardware']['processes']) == (12, 2)
    [alone] = imagenette_zoo.validate(tmp_path / 'runs/run/last', recipe().data_dir, workers=0, quiet=True)
    assert alone.loss == pytest.approx(result['loss'], rel=1e-6), 'what is saved is not what was evaluated'


def test_a_run_that_came_and_went_meanwhile_is_kept(recipe: MakeRecipe) -> None:
    """Another process trained here between the look at the folder and the start."""
    own = recipe(experiment='race')
    folder, _, _ = open_folder(own)
    result = train(own, quiet=True)
    with pytest.raises(UserError, match='holds a finished run'):
        folder.start(own)
    assert (result.folder / 'last' / 'model.safetensors').is_file()


def test_processes_that_would_train_something_else() -> None:
    first = Recipe(seed=7, output='here')
    check_alike(first.replace(output='there', workers=1), first.as_dict())
    for option, value in {'seed': 8, 'recovery_interval': 5, 'nan': 'skip', 'nan_limit': 3}.items():
        then = getattr(first, option)
        with pytest.raises(UserError, match=f'{option} is {value} in this process and {then} in the first'):
            check_alike(first.replace(**{option: value}), first.as_dict())


@pytest.mark.slow
def test_resuming_is_not_branching(recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(recipe(), quiet=True).folder
    assert main(['train', '--resume', str(folder), '--experiment', 'other']) == 2
    assert '--initial-checkpoint' in capsys.readouterr().err


def test_resuming_with_a_recipe_is_not_branching_either(
    recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / 'runs' / 'run')
    run.start(recipe())
    run.unlock()
    words = ['train', '--resume', str(run.path), '-c', str(run['args.yaml']), '--experiment', 'other']
    expect_error(capsys, words, 'leave --experiment other out', f'--initial-checkpoint {run.path}')


def test_an_option_that_cant_be_written_costs_no_earlier_run(recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / 'result.json').touch()
    (tmp_path / 'best').mkdir()
    bad = recipe(overwrite=True, model_kwargs={'act_layer': torch.nn.SiLU})
    with pytest.raises(UserError, match=r"model_kwargs: .*SiLU.* can't be saved"):
        RunFolder(tmp_path).start(bad)
    assert {path.name for path in tmp_path.iterdir()} == {'result.json', 'best'}


def test_splits_of_other_names(recipe: MakeRecipe, tmp_path: Path) -> None:
    data = make_folder(tmp_path / 'data')
    (data / 'train').rename(data / 'Training')
    (data / 'val').rename(data / 'Testing')
    splits = dict(train_split='Training[:75%]', val_split='Testing')
    result = train(recipe(epochs=1, data_dir=str(data), **splits), quiet=True)
    assert (result.dataset['train'], result.dataset['val']) == (18, 12)
    [validation] = imagenette_zoo.validate(result.folder, data, val_split='Testing', workers=0, quiet=True)
    assert validation.top1 == result.top1


def test_more_processes_than_validation_images(recipe: MakeRecipe) -> None:
    world = World(torch.device('cpu'), size=13)
    with pytest.raises(UserError, match=r'more processes \(13\) than validation images \(12\): start fewer'):
        load_images(recipe(), world)


@pytest.mark.long
@pytest.mark.slow
def test_noisy_labels_are_trained_on(recipe: MakeRecipe, folder: Path, tmp_path: Path) -> None:
    """Here all are wrong, by one class; the validation images keep theirs."""
    data = shutil.copytree(folder, tmp_path / 'data')
    rows = ['path,noisy_labels_5,is_valid']
    for path in sorted(data.glob('*/*/*.png')):
        wrong = (int(path.parent.name[-1]) + 1) % 3
        rows.append(f'{path.relative_to(data).as_posix()},class{wrong},{path.parts[-3] == "val"}')
    (data / 'noisy_imagenette.csv').write_text('\n'.join(rows))
    options = dict(data_dir=str(data), epochs=20, batch_size=4, lr=0.05, opt='momentum')
    clean, noisy = (
        train(recipe(**options, label_noise=noise, experiment=f'noise{noise}'), quiet=True) for noise in (0, 5)
    )
    train_images, val_images = load_images(recipe(**options, label_noise=5), World(torch.device('cpu')))
    assert train_images.targets == tuple(target for target in (1, 2, 0) for _ in range(8))
    assert val_images.targets == tuple(target for target in (0, 1, 2) for _ in range(4))
    assert clean.dataset['hash'] != noisy.dataset['hash']
    assert clean.top1 > 60 > 30 > noisy.top1


@pytest.mark.parametrize('from_scratch', [True, False])
def test_whose_licence_a_trained_model_has(from_scratch: bool, tmp_path: Path) -> None:
    """That of the published weights where it began with them."""
    model = timm.create_model('googlenet', num_classes=2)
    config = timm.data.resolve_data_config(model=model)
    save_model_folder(tmp_path, factory.model_config(model, config, ['a', 'b'], {}, from_scratch), model.state_dict())
    cfg = load_folder(tmp_path).pretrained_cfg
    assert (cfg['license'], cfg['origin_url'] is None) == (None if from_scratch else 'bsd-3-clause', from_scratch)


def test_validation_images_that_are_trained_on(recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    train(recipe(epochs=1, val_split='train[50%:]'))
    assert 'validation images are training images, too' in capsys.readouterr().out
    train(recipe(epochs=1, experiment='apart'))
    assert 'training images, too' not in capsys.readouterr().out


def test_images_of_one_class_are_said(
    recipe: MakeRecipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ('train', 'val'):
        shutil.copytree(folder / split / 'class0', tmp_path / 'one' / split / 'cat')
    train(recipe(epochs=1, data_dir=str(tmp_path / 'one'), batch_size=2))
    assert 'note: all images are of one class, cat: nothing can be told apart' in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_disk_behind_the_output_does_not_end_the_run() -> None:
    script = """if True:
        import sys
        from imagenette_zoo.utils.console import Console
        console = Console()
        console.line('x')
        console.line('y')
        assert console.quiet
        """
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-c', script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def test_one_number_a_channel(recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match='--batch-size 1: BatchNorm'):
        train(recipe(model='mobilenetv2_050', img_size=32, batch_size=1), quiet=True)


@pytest.mark.parametrize('model', ['resnet18', 'mbv2_mish_imagenette'])
@pytest.mark.parametrize('kwargs', [{'act_layer': 'mihs'}, {'norm_layer': 'foo'}])
def test_arguments_of_no_such_value(recipe: MakeRecipe, model: str, kwargs: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f'model {model}: '):
        train(recipe(model=model, model_kwargs=kwargs), quiet=True)


def test_the_best_is_that_of_the_ranking_after_an_epoch_was_done_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = {'architecture': 'none'}
    for number, (epoch, ranked) in enumerate([(0, [0]), (1, [1, 0]), (1, [0, 1])]):
        folder.save_model(config, {'weight': torch.full((2,), float(number))}, epoch, ranked)
    assert weights(tmp_path, 'best')['weight'].tolist() == [0, 0]
    assert weights(tmp_path)['weight'].tolist() == [2, 2]


# --- Ending early -----------------------------------------------------------------------------------------------------


def reach(monkeypatch: pytest.MonkeyPatch, *top1: float) -> None:
    """The validation of each epoch gives these accuracies, whatever the weights."""
    evaluate = trainer._evaluate

    def scores(epoch: int, *args: Any) -> dict[str, Any]:
        return {**evaluate(epoch, *args), 'eval_top1': top1[epoch]}

    monkeypatch.setattr(trainer, '_evaluate', scores)


@pytest.mark.long
@pytest.mark.slow
def test_a_run_ends_at_its_goal_with_the_weights_of_then(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(monkeypatch, 50, 70, 91, 80, 92)
    whole = train(recipe(epochs=5, experiment='whole'), quiet=True)
    with interrupted(monkeypatch, 2), pytest.raises(KeyboardInterrupt):
        train(recipe(epochs=5, stop_at='top1=90'), quiet=True)
    goal = train(recipe(epochs=5, stop_at='top1=90', resume='auto'))
    assert (goal.epochs, goal.top1, goal.stopped) == (3, 91, 'top1=90 is reached')
    assert 'stopped after epoch 3: top1=90 is reached' in capsys.readouterr().out
    assert json.loads((goal.folder / 'result.json').read_text())['stopped'] == goal.stopped
    assert same(weights(goal.folder), weights(whole.folder, 'checkpoints/epoch-2'))
    rates = [[row['lr'] for row in csv.DictReader((run / 'summary.csv').open())] for run in (goal.folder, whole.folder)]
    assert rates[0] == rates[1][:3], 'the schedule is that of five epochs'
    missed = train(recipe(epochs=2, stop_at='top1=90', overwrite=True))
    assert (missed.epochs, missed.stopped) == (2, '')
    assert 'the goal top1=90 was not reached' in capsys.readouterr().out


def test_a_run_killed_before_its_result_ends_at_the_same_epoch(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, 91, 50)
    result = train(recipe(stop_at='top1=90'), quiet=True)
    (result.folder / 'result.json').unlink()
    assert train(recipe(stop_at='top1=90', resume='auto'), quiet=True).epochs == 1


def test_patience_lasts_across_a_resume(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, 60, 70, 65, 70, 99)
    with interrupted(monkeypatch, 3), pytest.raises(KeyboardInterrupt):
        train(recipe(epochs=5, patience=2), quiet=True)
    result = train(recipe(epochs=5, patience=2, resume='auto'), quiet=True)
    assert (result.epochs, result.best_epoch) == (4, 1), 'an equal one is no better'
    assert result.stopped == 'top1 is no better than 2 epochs before'


def test_a_loss_is_a_goal_from_above(recipe: MakeRecipe) -> None:
    assert train(recipe(stop_at='loss=100'), quiet=True).epochs == 1
    assert train(recipe(stop_at='loss=0', overwrite=True), quiet=True).epochs == 2


@pytest.mark.long
@pytest.mark.slow
def test_full_memory_is_tried_again_with_a_smaller_batch(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = learner.Learner.step

    def full(self: Any, images: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(images) > 2:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return step(self, images, *args)

    monkeypatch.setattr(learner.Learner, 'step', full)
    with pytest.raises(UserError, match='out of memory at --batch-size 8'):
        train(recipe(overwrite=True), quiet=True)
    options = dict(retry=True, experiment=None, grad_accum_steps=1, sched_on_updates=True)
    result = train(recipe(**options))
    shown = capsys.readouterr().out
    assert 'out of memory at --batch-size 8: starting again with --batch-size 4 --grad-accum-steps 2, the same' in shown
    assert 'starting again with --batch-size 2 --grad-accum-steps 4' in shown
    assert {path.name for path in result.folder.parent.iterdir()} == {'run', result.folder.name}
    assert (result.recipe['batch_size'], result.recipe['grad_accum_steps']) == (2, 4)
    given = train(recipe(batch_size=2, grad_accum_steps=4, sched_on_updates=True, experiment='given'), quiet=True)
    assert same(weights(result.folder), weights(given.folder))

    (result.folder / 'result.json').unlink()
    again = {**options, 'experiment': result.folder.name, 'resume': 'auto'}
    assert train(recipe(**again), quiet=True).recipe['batch_size'] == 2, 'the command of the run continues it'
    words = dict(resume='auto', experiment=result.folder.name, output=recipe().output, batch_size=8, retry=True)
    assert train(quiet=True, **words).recipe['grad_accum_steps'] == 4, 'also without a recipe'
    with pytest.raises(UserError, match='was started with batch_size 2, not 3'):
        train(quiet=True, **{**words, 'batch_size': 3})
    check_recipe(result, Trial('run', recipe(**options), 42))
    with pytest.raises(UserError, match='was trained with batch_size 2, the study says 8'):
        check_recipe(result, Trial('run', recipe(**{**options, 'retry': False}), 42))
    with pytest.raises(UserError, match='was started with batch_size 2, not 8'):
        train(recipe(**{**again, 'retry': False}), quiet=True)


def test_full_memory_after_something_is_saved_is_an_error(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = trainer._train_epoch

    def full(epoch: int, *args: Any) -> None:
        if epoch == 1:
            raise torch.OutOfMemoryError('CUDA out of memory')
        train_epoch(epoch, *args)

    monkeypatch.setattr(trainer, '_train_epoch', full)
    with pytest.raises(UserError, match='out of memory at --batch-size 8: try --batch-size 4'):
        train(recipe(retry=True), quiet=True)
    assert (Path(recipe().output) / 'run' / 'state.pt').is_file()


# --- Rare classes -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('loader', ['cache', 'timm'])
def test_balanced_classes_are_resumed_to_the_bit(
    recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    data = make_folder(tmp_path / 'rare')
    for number in range(6):
        (data / 'train' / 'class0' / f'{number}.png').unlink()
    weighed = {'class_weights': 'balanced'}
    for name, more, mixup in (('drawn', {'balanced': True}, 0.0), ('weighed', weighed, 0.2)):
        options = dict(data_dir=str(data), loader=loader, epochs=2, batch_size=6, mixup=mixup)
        plain = train(recipe(experiment=f'not-{name}', **options), quiet=True)
        whole = train(recipe(experiment=name, **options, **more), quiet=True)
        assert not same(weights(whole.folder), weights(plain.folder))
        with interrupted(monkeypatch, 1), pytest.raises(KeyboardInterrupt):
            train(recipe(**options, **more, overwrite=True), quiet=True)
        resumed = train(recipe(**options, **more, resume='auto'), quiet=True)
        assert same(weights(whole.folder), weights(resumed.folder))


def test_the_weights_of_classes_are_those_of_torch(recipe: MakeRecipe) -> None:
    logits, targets = torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 2])
    balanced = class_weights(recipe(class_weights='balanced'), targets.tolist(), 3)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([5 / 9, 5 / 3, 5 / 3])
    given = class_weights(recipe(class_weights=[1, 2, 0.5]), targets.tolist(), 3)
    expected = torch.nn.functional.cross_entropy(logits, targets, torch.tensor([1, 2, 0.5]), label_smoothing=0.1)
    assert torch.equal(loss_function(recipe(), given)(logits, targets), expected)
    with pytest.raises(UserError, match='--class-weights: 3 numbers are needed, one for each class'):
        train(recipe(class_weights=[1, 2]), quiet=True)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_batch_of_classes_without_weight_teaches_nothing(recipe: MakeRecipe, smoothing: float) -> None:
    loss = loss_function(recipe(smoothing=smoothing), given := torch.tensor([0.0, 2.0, 0.5]))
    logits = torch.randn(4, 3, requires_grad=True)
    nothing = loss(logits, torch.zeros(4, dtype=torch.long))
    assert (nothing.item(), torch.autograd.grad(nothing, logits)[0].count_nonzero()) == (0, 0)
    for targets in (torch.tensor([0, 1, 2, 0]), torch.randn(4, 3).softmax(1)):
        expected = torch.nn.functional.cross_entropy(logits, targets, given, label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, targets), expected)


# --- Grey and multispectral images ------------------------------------------------------------------------------------


@pytest.fixture
def four_channels(folder: Path, tmp_path: Path) -> Path:
    """The tiny folder with a fourth channel."""
    copied = shutil.copytree(folder, tmp_path / 'four')
    for path in copied.rglob('*.png'):
        image = Image.open(path)
        image.putalpha(image.convert('L').point(lambda value: value // 2))
        image.save(path)
    return copied


@pytest.mark.parametrize(
    ('channels', 'loader'),
    [
        (1, 'cache'),
        pytest.param(1, 'timm', marks=TAKES_LONG),
        pytest.param(4, 'cache', marks=TAKES_LONG),
        (4, 'timm'),
    ],
)
def test_a_run_on_other_channels_is_known_to_all_commands(
    recipe: MakeRecipe, four_channels: Path, channels: int, loader: str
) -> None:
    result = train(recipe(data_dir=str(four_channels), in_chans=channels, loader=loader, epochs=1), quiet=True)
    config = json.loads((result.folder / 'best' / 'config.json').read_text())
    assert config['model_args']['in_chans'] == channels
    assert config['pretrained_cfg']['input_size'] == [channels, 32, 32]
    assert len(config['pretrained_cfg']['mean']) == channels
    [scores] = imagenette_zoo.validate(result.folder, workers=0, device='cpu', quiet=True)
    assert scores.loss == pytest.approx(result.loss, abs=1e-4)
    image = four_channels / 'val' / 'class0' / '0.png'
    [prediction] = imagenette_zoo.predict(image, result.folder, device='cpu', save_figure=str(result.folder / 'x.png'))
    assert prediction.label in ('class0', 'class1', 'class2')
    exported = imagenette_zoo.export(result.folder, 'torchscript', result.folder / 'x.pt')
    assert exported.images > 3


def test_published_weights_are_adapted_to_grey(folder: Path) -> None:
    three, grey = (
        make_model(Recipe(model='mbv2_imagenette', pretrained=True, in_chans=channels), 10) for channels in (3, 1)
    )
    torch.testing.assert_close(grey.conv_stem.weight, three.conv_stem.weight.sum(1, keepdim=True), rtol=1e-2, atol=1e-3)


def test_a_model_for_grey_images_asks_for_them(recipe: MakeRecipe, tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3, in_chans=1)
    timm.models.save_for_hf(model, tmp_path / 'grey', {'input_size': (1, 32, 32)}, {'in_chans': 1})
    with pytest.raises(UserError, match='is for images of 1 channels: give --in-chans 1'):
        train(recipe(model=f'local-dir:{tmp_path / "grey"}'), quiet=True)


def test_images_that_are_no_squares(recipe: MakeRecipe) -> None:
    result = train(recipe(img_size=None, input_size=(1, 24, 32), epochs=1), quiet=True)
    config = json.loads((result.folder / 'best' / 'config.json').read_text())
    assert config['pretrained_cfg']['input_size'] == [1, 24, 32]
    [scores] = imagenette_zoo.validate(result.folder, workers=0, device='cpu', quiet=True)
    assert scores.loss == pytest.approx(result.loss, abs=1e-4)


def test_nothing_to_resume_is_a_new_run() -> None:
    """As a function gives it that passes on an argument of its own."""
    assert trainer._recipe(None, {'resume': None, 'model': 'resnet18'}) == Recipe(model='resnet18')
