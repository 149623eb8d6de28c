"""What is given wins over what a lower layer, or a default, chose for it; two given values contradict each other."""

import pickle
from typing import Any

import pytest
import timm.optim

from imagenette_zoo.config.precedence import PARTS
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError

PROGRESSIVE = dict(img_size=128, train_img_sizes=[96, 128], train_size_schedule='progressive')


@pytest.mark.parametrize(
    ('lower', 'given', 'expected'),
    [
        (PROGRESSIVE, {'img_size': 64}, {'train_img_sizes': None, 'train_size_schedule': 'constant'}),
        (PROGRESSIVE, {'img_size': 128}, {'train_img_sizes': None, 'train_size_schedule': 'constant'}),
        (PROGRESSIVE, {'train_img_sizes': [32, 48]}, {'img_size': 128, 'train_size_schedule': 'progressive'}),
        (PROGRESSIVE, {'train_img_sizes': [32]}, {'train_size_schedule': 'constant'}),
        (PROGRESSIVE, {'train_img_sizes': None}, {'train_size_schedule': 'constant'}),
        (
            {'train_img_sizes': [96, 128], 'train_size_probs': [0.1, 0.9]},
            {'train_img_sizes': [32, 48, 64]},
            {'train_size_probs': None},
        ),
        (
            PROGRESSIVE,
            {'input_size': [1, 64, 64]},
            {'img_size': None, 'train_img_sizes': None, 'train_size_schedule': 'constant', 'color_jitter': 0.0},
        ),
        ({'input_size': [1, 64, 48]}, {'img_size': 32}, {'input_size': (1, 32, 32)}),
        ({'input_size': [1, 64, 48]}, {'in_chans': 4}, {'input_size': (4, 64, 48)}),
        ({'in_chans': 1}, {'input_size': [3, 64, 64]}, {'in_chans': None, 'color_jitter': 0.4}),
        ({'aa': 'v0', 'grayscale_prob': 0.1}, {'in_chans': 4}, {'aa': None, 'grayscale_prob': None}),
        ({'aa': 'v0'}, {'in_chans': 3}, {'aa': 'v0', 'color_jitter': 0.4}),
        ({'lr': 0.1}, {'lr_base': 0.2}, {'lr': None}),
        ({'lr': 0.1}, {'lr_base_size': 64}, {'lr': None}),
        ({'pretrained': True}, {'initial_checkpoint': 'x'}, {'pretrained': False}),
        ({'initial_checkpoint': 'x'}, {'pretrained': True}, {'initial_checkpoint': None}),
        ({'initial_checkpoint': 'x'}, {'pretrained': False}, {'initial_checkpoint': 'x'}),
        ({'bce_loss': True, 'smoothing': 0.2}, {'loss': 'a:B'}, {'bce_loss': False, 'smoothing': 0.1}),
        ({'loss': 'a:B'}, {'bce_loss': True}, {'loss': None}),
        ({'class_weights': [1, 2]}, {'loss': 'a:B'}, {'class_weights': None}),
        ({'class_weights': [1, 2]}, {'bce_loss': True}, {'class_weights': None}),
        ({'class_weights': [1, 2]}, {'balanced': True}, {'class_weights': None}),
        ({'balanced': True}, {'class_weights': [1, 2]}, {'balanced': False}),
        ({'bce_loss': True}, {'class_weights': [1, 2]}, {'bce_loss': False}),
        ({'mean': [0.1, 0.2, 0.3], 'std': [1, 1, 1]}, {'in_chans': 1}, {'mean': None, 'std': None}),
        ({'mean': [0.1, 0.2, 0.3]}, {'in_chans': 3}, {'mean': (0.1, 0.2, 0.3)}),
        (
            {'torchcompile': 'inductor', 'torchcompile_mode': 'reduce-overhead'},
            {'grad_accum_steps': 2},
            {'torchcompile_mode': None},
        ),
        ({'dataset': 'synthette'}, {'data_dir': 'x'}, {'dataset': ''}),
        ({'dataset': 'imagewoof'}, {'data_dir': 'x'}, {'dataset': 'imagewoof'}),
        ({'cutmix_minmax': [0.2, 0.8]}, {'cutmix': 0.5}, {'cutmix_minmax': None}),
        ({'data_dir': 'x'}, {'dataset': 'synthette'}, {'data_dir': None}),
        ({'data_dir': 'x'}, {'dataset': 'folder'}, {'data_dir': 'x'}),
        ({'data_dir': 'x'}, {'dataset': 'imagewoof'}, {'data_dir': None}),
        ({'data_dir': 'x', 'dataset': 'imagewoof'}, {'dataset': 'imagewoof'}, {'data_dir': 'x'}),
        ({'overwrite': True}, {'resume': 'auto', 'experiment': 'x'}, {'overwrite': False}),
        ({'opt': 'nmuon', 'opt_kwargs': {'ns_steps': 3}}, {'opt': 'adamw'}, {'opt_kwargs': {}}),
        ({'opt': 'nmuon', 'opt_kwargs': {'ns_steps': 3}}, {'opt': 'nmuon'}, {'opt_kwargs': {'ns_steps': 3}}),
        ({'sched': 'poly', 'decay_rate': 1}, {'sched': 'step'}, {'decay_rate': 0.1}),
        ({'sched': 'poly', 'decay_rate': 1}, {'sched': 'poly'}, {'decay_rate': 1.0}),
        ({'sched_on_updates': True}, {'sched': 'plateau'}, {'sched_on_updates': False}),
        ({'sched_on_updates': True}, {'sched': 'poly'}, {'sched_on_updates': True}),
        ({'model_ema': True, 'model_ema_warmup': True}, {'model_ema': False}, {'model_ema_warmup': False}),
        ({'torchcompile_mode': 'default'}, {'torchcompile': 'none'}, {'torchcompile_mode': None}),
        ({'mixup': 0.2, 'mixup_off_epoch': 84}, {'mixup': 0}, {'mixup_off_epoch': 0}),
        ({'mixup': 0.2, 'mixup_off_epoch': 84, 'epochs': 90}, {'epochs': 30}, {'mixup_off_epoch': 28}),
        ({'mixup': 0.2, 'mixup_off_epoch': 20, 'epochs': 90}, {'epochs': 30}, {'mixup_off_epoch': 20}),
        ({'warmup_epochs': 2, 'epochs': 90}, {'epochs': 2}, {'warmup_epochs': 1}),
        ({'warmup_epochs': 2, 'epochs': 90}, {'epochs': 3}, {'warmup_epochs': 2}),
        (
            {'sched': 'multistep', 'decay_milestones': [30, 60, 80], 'epochs': 90},
            {'epochs': 9},
            {'decay_milestones': (3, 6, 8)},
        ),
        ({'sched': 'step', 'decay_epochs': 30, 'epochs': 90}, {'epochs': 9}, {'decay_epochs': 3.0}),
        ({}, {'epochs': 3}, {'warmup_epochs': 2}),
        ({'epochs': 3}, {}, {'warmup_epochs': 2}),
        ({}, {'epochs': 3, 'sched': 'multistep'}, {'decay_milestones': (90, 180, 270)}),
        ({'sched': 'multistep', 'decay_milestones': []}, {'epochs': 9}, {'decay_milestones': ()}),
        ({'seed': 1}, {'seed': 2}, {'seed': 2}),
    ],
)  # fmt: skip
def test_what_gives_way(lower: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = Recipe.of(lower, given)
    assert {name: getattr(recipe, name) for name in expected} == expected
    before = Recipe.defaults() | Recipe.of(lower).layers[0]
    for name, value in expected.items():
        assert (name in ' '.join(recipe.notes)) == (name not in given and before[name] != value), name


@pytest.mark.parametrize(
    'values',
    [
        {'epochs': 3, 'warmup_epochs': 5},
        {'pretrained': True, 'initial_checkpoint': 'x'},
        {'train_size_schedule': 'progressive'},
        {'loss': 'a:B', 'bce_loss': True},
    ],
)
def test_two_values_of_one_layer_contradict_each_other(values: dict[str, Any]) -> None:
    for layers in ((values,), ({}, values), (values, {'seed': 1})):
        with pytest.raises(UserError):
            Recipe.of(*layers)


def test_a_value_that_is_given_above_contradicts_what_is_below() -> None:
    with pytest.raises(UserError, match='--warmup-epochs 5 leaves nothing of --epochs 3'):
        Recipe.of({'epochs': 3}, {'warmup_epochs': 5})


@pytest.mark.skipif('nmuon' not in timm.optim.list_optimizers(), reason='needs timm 1.0.21')
def test_the_layers_stay() -> None:
    recipe = Recipe.load('mbv2_mish_80', epochs=3)
    assert recipe.train_img_sizes == (96, 128)
    for each in (recipe, pickle.loads(pickle.dumps(recipe))):
        assert each.replace(img_size=64).train_img_sizes is None
        assert each.replace(seed=3, train_img_sizes=(32, 48)).replace(img_size=64).train_img_sizes is None
        assert each.varied(train_img_sizes=(32, 48)).varied(img_size=64).train_img_sizes == (32, 48)
    assert Recipe.of({'epochs': 10, 'warmup_epochs': 4}, {'epochs': 3}).replace(epochs=9).warmup_epochs == 4


def test_a_batch_gives_way_to_the_images_unless_it_was_given() -> None:
    def batch(recipe: Recipe, images: int, processes: int = 1) -> int:
        return recipe.for_data(images, 3, processes).batch_size

    assert batch(Recipe(), 36) == 36
    assert batch(Recipe.load('finetune'), 36) == 36
    assert batch(Recipe.load('finetune', mixup=0.2), 37) == 36
    assert batch(Recipe.load('finetune'), 1000) == 64
    assert batch(Recipe.load('finetune'), 36, processes=2) == 18
    assert batch(Recipe.load('finetune', batch_size=64).replace(seed=1), 36) == 64


def test_the_classes_of_a_recipe_give_way_to_those_of_the_data() -> None:
    assert Recipe.load('mbv2_mish').for_data(100, 3).num_classes == 3
    assert Recipe.load('mbv2_mish', num_classes=10).for_data(100, 3).num_classes == 10
    assert Recipe.load('finetune').for_data(100, 3).num_classes is None


def test_every_rule_names_options() -> None:
    assert {name for part in PARTS for name in (*part.of, *part.names)} <= Recipe.names()
