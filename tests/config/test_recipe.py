"""Options: declared once, checked alike from YAML, flags and Python; recipes that timm's script takes too."""

import contextlib
import dataclasses
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import timm.optim
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imagenette_zoo.config.fields import Parser, Where, add_flags, given_flags, literal, option
from imagenette_zoo.config.groups import ValidationOptions
from imagenette_zoo.config.hparams import find_recipe, recipe_names
from imagenette_zoo.config.names import timm_optimizer
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.config.timm_options import OPTIONS
from imagenette_zoo.errors import UserError, UserErrors, nearest
from tools import timm_options

REPOSITORY = Path(__file__).parents[2]
MUON = 'nmuon' in timm.optim.list_optimizers()  # since timm 1.0.21


def parse(*flags: str) -> Recipe:
    parser = Parser(prog='train')
    add_flags(parser, Recipe)
    return Recipe(**given_flags(parser.parse_args(flags), Recipe))


def test_defaults_are_timms() -> None:
    recipe = Recipe()
    assert (recipe.model, recipe.opt, recipe.lr_base, recipe.epochs, recipe.batch_size) == (
        'resnet50',
        'sgd',
        0.1,
        300,
        128,
    )
    assert (recipe.sched, recipe.warmup_epochs, recipe.warmup_lr, recipe.weight_decay) == ('cosine', 5, 1e-5, 2e-5)
    assert (recipe.scale, recipe.color_jitter, recipe.smoothing, recipe.remode) == ((0.08, 1.0), 0.4, 0.1, 'pixel')
    assert (recipe.seed, recipe.checkpoint_hist, recipe.model_ema_decay) == (42, 10, 0.9998)


def test_flags_yaml_and_python_agree(tmp_path: Path) -> None:
    wanted = Recipe(
        model='resnet34',
        lr=1e-3,
        epochs=7,
        scale=(0.35, 1.0),
        amp=True,
        torchcompile='inductor',
        warmup_epochs=2,
        model_kwargs={'passes': 2, 'merge': 'max'},
    )
    flags = parse(
        '--model',
        'resnet34',
        '--lr',
        '1e-3',
        '--epochs=7',
        '--scale',
        '0.35',
        '1',
        '--amp',
        '--torchcompile',
        '--warmup-epochs',
        '2',
        '--model-kwargs',
        'passes=2',
        'merge=max',
    )
    file = tmp_path / 'recipe.yaml'
    file.write_text(
        'model: resnet34\nlr: 1e-3\nepochs: 7\nscale: [0.35, 1]\namp: true\ntorchcompile: inductor\n'
        'warmup-epochs: 2\nmodel_kwargs: {passes: 2, merge: max}\n'
    )
    assert flags == wanted
    assert Recipe.load(file) == wanted
    assert Recipe.load(file, amp=False) == dataclasses.replace(wanted, amp=False)


def test_names_of_ones_own() -> None:
    recipe = parse('--sched', 'idea:mine', '--loss', 'idea:Poly', '--batch-transform', 'idea:Mask', '--epochs', '3')
    assert (recipe.sched, recipe.loss, recipe.batch_transform) == ('idea:mine', 'idea:Poly', 'idea:Mask')


def test_a_recipe_survives_its_own_yaml(tmp_path: Path) -> None:
    recipe = Recipe(opt_betas=(0.9, 0.95), decay_milestones=(3, 5), mixup=0.2, model_kwargs={'passes': [1, 2]})
    file = tmp_path / 'args.yaml'
    file.write_text(yaml.safe_dump(recipe.as_dict()))
    assert Recipe.load(file) == recipe


def test_a_flag_turns_off_what_the_recipe_turned_on() -> None:
    assert parse('--channels-last').channels_last
    assert parse('--channels-last', '--no-channels-last').channels_last is False


def test_where_nothing_is_said_layout_is_channels_last_on_a_cpu() -> None:
    cases = ((), True, False), (('--channels-last',), True, True), (('--no-channels-last',), False, False)
    for flags, on_cpu, on_gpu in cases:
        recipe = parse(*flags)
        assert recipe.is_channels_last(torch.device('cpu')) is on_cpu
        assert recipe.is_channels_last(torch.device('cuda')) is on_gpu


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--epoch', '3'], '--epochs'),
        (['--learning-rate', '3'], 'unknown option --learning-rate'),
        (['--fast-norm'], "unknown option --fast-norm: only timm's script has it (enable experimental fast-norm)"),
        (['--noon', 'skip'], 'unknown option --noon'),
        (['--lr', 'fast'], "--lr: 'fast' is not a number"),
        (['--epochs', '2.5'], "--epochs: '2.5' is not a whole number"),
        (['--epochs', '0'], '--epochs: 0 is out of range, it must be at least 1'),
        (['--lr', 'nan'], "--lr: 'nan' is not a finite number"),
        (['--drop', '1.5'], '--drop: 1.5 is out of range'),
        (['--sched', 'cosin'], 'did you mean cosine?'),
        (['--scale', '0.5'], '--scale'),
        (['--scale', '1', '0.5'], '--scale: 1 is above 0.5'),
        (['--cutmix-minmax', '0.5', '0.5'], '--cutmix-minmax: 0.5 is not below 0.5'),
        (['--lr-noise-pct', '0'], '--lr-noise-pct'),
        (['--scale', '0.5', '2'], 'more than the whole image'),
        (['--label-noise', '7'], '0, 1, 5, 25, 50'),
        (['--epochs', '3', '--warmup-epochs', '5'], '--warmup-epochs 5 leaves nothing of --epochs 3'),
        (['--mixup', '0.2', '-b', '7'], 'even batch'),
        (['--mixup-off-epoch', '3'], '--mixup-off-epoch has no effect'),
        (['--resume', 'runs/x', '--overwrite'], 'give one of them'),
        (['--pretrained', '--initial-checkpoint', 'x'], 'give one of them'),
        (['--model-ema-warmup'], 'no effect without --model-ema'),
        (['--torchcompile', 'none', '--torchcompile-mode', 'default'], 'no effect without --torchcompile'),
        (['--train-size-schedule', 'progressive'], 'no effect without --train-img-sizes'),
        (['--train-img-sizes', '96', '96'], 'given twice'),
        (['--train-img-sizes', '96', '--train-size-schedule', 'progressive'], 'at least two'),
        (['--train-img-sizes', '96', '128', '--train-size-probs', '1'], '2 numbers are needed'),
        (['--experiment', '../x'], 'not a plain folder name'),
        (['--model-kwargs', 'passes'], "'passes' is not key=value"),
        (['--model-kwargs', 'num_classes=7'], 'num_classes: has an option of its own, --num-classes'),
        (['--model-kwargs', 'passes=2', 'drop_rate=0.2'], 'drop_rate: has an option of its own, --drop'),
        (['somewhere'], '--data-dir somewhere'),
        (['--decay-milestones', '5', '3'], 'must increase'),
        (['--loss', 'PolyLoss'], "--loss: 'PolyLoss' is not module:attribute of your own, as in my_file:Mine"),
        (['--loss', 'idea:Poly', '--bce-loss'], '--loss and --bce-loss are both losses'),
        (['--loss', 'idea:Poly', '--smoothing', '0.2'], '--smoothing 0.2 has no effect with --loss'),
        (['--stop-at', 'top1'], "--stop-at: 'top1' is not METRIC=VALUE"),
        (['--stop-at', 'gap=3'], 'as in top1=90'),
        (['--stop-at', 'top1=101'], 'more than 100 %'),
        (['--class-weights', 'balance'], "--class-weights: 'balance' is not a number or balanced"),
        (['--class-weights', 'balanced', '1'], 'give balanced, or a number for each class'),
        (['--class-weights', '1', '-1'], '--class-weights: -1 is out of range'),
        (['--class-weights', 'balanced', '--bce-loss'], 'weighs cross-entropy, not --bce-loss: leave one of them out'),
        (['--class-weights', 'balanced', '--balanced'], 'both make up for rare classes'),
        (['--batch-transform', 'idea:'], "--batch-transform: 'idea:' is not module:attribute"),
        (['--val-split', ''], '--val-split: a name is needed, as each run trains and is validated'),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(*flags)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('lern_rate: 1', "unknown option 'lern_rate'"),
        ('epoch: 1', 'did you mean epochs'),
        ('- a\n- b', 'option: value'),
        ('a: [', "not valid YAML: expected the node content, but found '<stream end>'"),
        ('lr: [1, 2]', '--lr'),
        ('lr_noise: []', '--lr-noise takes one value or two'),
        ('amp: "yes"', '--amp'),
        ('model: 5', '--model'),
        ('amp: 1', '--amp'),
        ('warmup-epochs: 1\nwarmup_epochs: 2', 'given twice'),
        ('lr: 0.1\nopt: sgd\nlr: 0.2', "recipe.yaml:3: 'lr' is given twice"),
        ('opt_kwargs: {a: 1, a: 2}', "recipe.yaml:1: 'a' is given twice"),
        ("dist_bn: ''\ntta: 0", "only timm's script has dist_bn "),
        ("val_split: ''\ntta: 0", '--val-split: a name is needed'),
        ('jsd_loss: true\naug_splits: 3\ntta: 0', 'aug_splits 3 (Number of augmentation splits); jsd_loss True ('),
        ('!!python/object/apply:os.system ["touch /tmp/pwned"]', 'not valid YAML'),
    ],
)
def test_a_wrong_recipe_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / 'recipe.yaml'
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Recipe.load(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert '\n' not in str(error.value)


def test_all_mistakes_of_a_recipe_are_said_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / 'recipe.yaml'
    file.write_text('model: resnet18x\nopt: adamww\n# a comment\nsched: cosin\n')
    with pytest.raises(UserError) as error:
        Recipe.load(file)
    beginnings = {f'{file}:4: --sched: ', f"{file}:1: unknown model 'resnet18x'", f'{file}:2: --opt: timm '}
    assert len(error.value.lines) == len(beginnings)
    assert all(any(line.startswith(each) for line in error.value.lines) for each in beginnings)
    assert Recipe.load(_written(file, 'device_modules: [mine]\nmodel: of_mine')).model == 'of_mine'


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def test_names_are_near_without_their_dashes() -> None:
    flags = ['--nan', '--import', '--img-size', '--mean']
    assert nearest('--in-chans', flags) == ''
    assert nearest('--imgsize', flags) == '; did you mean --img-size?'


def test_the_args_of_timms_script_are_a_recipe(tmp_path: Path) -> None:
    """It writes all of its options, nearly all of them at their defaults."""
    ours = {'model': 'resnet18', 'epochs': 3, 'scale': [0.08, 1.0], 'device': 'cuda', 'output': '', 'interpolation': ''}
    file = tmp_path / 'args.yaml'
    file.write_text(yaml.safe_dump({name: default for name, (default, _) in OPTIONS.items()} | ours))
    assert Recipe.load(file) == Recipe(model='resnet18', epochs=3)


@pytest.mark.skipif('TIMM_CHECKOUT' not in os.environ, reason='TIMM_CHECKOUT is not set')
def test_the_options_of_timms_script_are_those_of_its_parser(tmp_path: Path) -> None:
    script = Path(os.environ['TIMM_CHECKOUT'], 'train.py').read_text()
    arguments = vars(timm_options.parser_of(script).parse_args(['--model', 'resnet18', '--warmup-epochs', '2']))
    assert arguments.keys() <= Recipe.names() | OPTIONS.keys()
    file = tmp_path / 'args.yaml'
    file.write_text(yaml.safe_dump(arguments))
    assert Recipe.load(file) == Recipe(model='resnet18', warmup_epochs=2)


def test_a_wrong_name_in_python_is_one_line() -> None:
    for call in (Recipe, Recipe().replace, lambda **values: Recipe.load('mbv2_mish', **values)):
        with pytest.raises(UserError, match=r"^unknown option 'epoch'; did you mean epochs"):
            call(epoch=2)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp('fuzz') / 'recipe.yaml'
    file.write_bytes(data)
    with contextlib.suppress(UserError):
        Recipe.load(file)


def test_shipped_recipes_load_and_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {'mbv2_mish', 'demo', 'leaderboard/128px_5e'} <= set(recipe_names())
    for name in recipe_names():
        for spelling in (name, f'{name}.yaml', f'hparams/{name}.yaml'):
            assert find_recipe(spelling).samefile(REPOSITORY / 'hparams' / f'{name}.yaml')
        if MUON or 'muon' not in find_recipe(name).read_text():
            Recipe.load(name)
    with pytest.raises(UserError, match='did you mean mbv2_mish'):
        find_recipe('mbv2-mish')


def test_a_recipe_with_muon_says_which_timm_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('timm.optim.list_optimizers', lambda: ['adamw', 'sgd'])
    with pytest.raises(UserError, match=r"'nmuon': Muon needs timm 1\.0\.21: pip install --upgrade timm"):
        Recipe.load('mbv2_mish_80')
    monkeypatch.setattr('timm.optim.list_optimizers', lambda: ['adamw', 'muon'])
    with pytest.raises(UserError, match="'muonx'; did you mean muon"):
        timm_optimizer('muonx')


def test_shipped_recipes_have_only_what_timms_script_knows() -> None:
    """timm's script sets unknown keys as silently as known ones, so a recipe must stick to options that it has."""
    ours = {
        'cuda_graph',
        'label_noise',
        'class_weights',
        'balanced',
        'stop_at',
        'patience',
        'retry',
        'loader',
        'log_swaps',
        'log_tensorboard',
        'nan',
        'nan_limit',
        'overwrite',
        'data_dir',
        'dataset',
        'device',
        'output',
        'experiment',
        'resume',
        'lr_decay_fn',
        'lr_stable_timescale',
    }
    for name in recipe_names():
        assert not ours & set(yaml.safe_load(find_recipe(name).read_text())), name


def test_where_options_may_differ() -> None:
    """Whoever adds an option that does not decide the result says so here, too."""
    nothing = {
        'workers', 'pin_mem', 'max_megapixels', 'log_interval', 'log_swaps', 'log_tensorboard', 'log_wandb',
        'log_trackio', 'log_mlflow', 'wandb_project', 'wandb_tags', 'wandb_resume_id',
    }  # fmt: skip
    location = {'data_dir', 'output', 'experiment', 'overwrite', 'resume', 'device_modules'}
    neither = {*nothing, *location, 'device', 'checkpoint_hist'}
    rounding = {'validation_batch_size', 'cuda_graph'}
    assert Recipe.may_differ('on resume') == {*neither, *rounding, 'recovery_interval', 'retry', 'nan', 'nan_limit'}
    assert Recipe.may_differ('between processes') == {*neither, *rounding}
    assert Recipe.may_differ('between seeds') == {*neither, 'recovery_interval', 'retry', 'seed'}
    assert Recipe.may_differ('in a repeat') == {*nothing, *location}
    assert Recipe.may_differ('around a study') == {*location, 'seed'}


def test_an_option_that_says_nothing_decides_the_result() -> None:
    @dataclass(frozen=True)
    class More(Recipe):
        new: int = option(0, 'a new one')

    for where in get_args(Where):
        assert More.may_differ(where) == Recipe.may_differ(where)


def test_validation_options() -> None:
    assert ValidationOptions(model=('a', 'b')).batch_size is None, 'it depends on the device'
    with pytest.raises(UserError, match='one --model'):
        ValidationOptions(model=('a', 'b'), checkpoint='x')
    with pytest.raises(UserError, match=r'\.json or \.csv'):
        ValidationOptions(results_file='x.txt')
    with pytest.raises(UserError, match='no effect without --torchcompile'):
        ValidationOptions(torchcompile_mode='default')
    assert Recipe(torchcompile_mode='default').torchcompile == 'auto', 'which compiles where it pays'
    with pytest.raises(UserError, match='overwrite the gradients'):
        Recipe(torchcompile_mode='max-autotune', grad_accum_steps=2)


def test_too_few_values_and_a_teaching_without_weight_are_said() -> None:
    with pytest.raises(UserError, match=r"^--input-size: '48 64' is not 3 values: channels, height and width"):
        Recipe(input_size=['48', '64'])
    with pytest.raises(UserError, match='--task-loss-weight 0 and --distill-loss-weight 0: nothing would teach'):
        Recipe(kd_model_name='x', task_loss_weight=0, distill_loss_weight=0)


def test_several_errors_go_from_process_to_process() -> None:
    errors = UserErrors([UserError('a: 1'), UserError('b: 2')])
    assert pickle.loads(pickle.dumps(errors)).lines == errors.lines == ['a: 1', 'b: 2']


def test_a_literal_that_python_cannot_make_is_text() -> None:
    assert literal('{[1]}') == '{[1]}'
    assert literal('[1, 2]') == [1, 2]
