"""Recipes, study files and options."""

from __future__ import annotations

import random
import typing
from pathlib import Path

import yaml
from faults import TRAIN, Fault

from imagenette_zoo.config.recipe import Recipe

from .damage import (
    THINGS,
    Faults,
    damaged,
    instead,
    replaced,
)

TEXTS = {
    'a key twice': 'lr: 0.1\nlr: 0.2\n',
    'a nested key twice': 'model_kwargs: {a: 1, a: 2}\n',
    'an alias': 'lr: &a 0.1\nweight_decay: *a\n',
    'a bomb': 'a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n',
    'merge': '<<: {lr: 1}\n',
    'a tag': 'lr: !!python/object/apply:os.system ["touch ran"]\n',
    'a name': 'lr: !!python/name:os.system\n',
    'another tag': 'lr: !x 1\n',
    'a tab': 'lr:\t0.1\n\tepochs: 2\n',
    'no mapping': '- 1\n',
    'a word': 'word\n',
    'nothing': '',
    'null': 'null\n',
    'two documents': '---\nlr: 1\n---\nlr: 2\n',
    'nested': '[' * 5000,
    'nested mappings': '{a: ' * 3000,
    'an unknown key': 'learning_rate: 1\n',
    'a number as key': '1: 2\n',
    'null as key': '~: 2\n',
    'a list as key': '? [a]\n: 1\n',
    'a date': 'lr: 2020-01-01\n',
    'base 60': 'lr: 1:30\n',
    'octal': 'epochs: 010\n',
    'NaN': 'lr: .nan\n',
    'infinity': 'lr: .inf\n',
    'binary': 'lr: !!binary aGVsbG8=\n',
    'a set': 'lr: !!set {a}\n',
    'control characters': 'lr: "\\e[2J\\a"\n',
    'a NUL': 'lr: \0\n',
    'a key with control characters': '"\\e[2J": 1\n',
    'a long key': f'{"a" * 2000}: 1\n',
    'two MiB': '#' * 2**21,
    'open quote': 'lr: "0.1\n',
    'open brace': 'lr: {\n',
    'a long number': f'epochs: {"9" * 5000}\n',
    '1e400': 'lr: 1e400\n',
    'text as list': 'mean: "0.5"\n',
    'a list as text': 'model: [a, b]\n',
    'a mapping as number': 'lr: {a: 1}\n',
    'another model': 'model: ../../etc/passwd\n',
    'an address': 'model: hf-hub:../x\n',
    'code': 'model: os:system\n',
    'modules': 'device_modules: [evil.py]\n',
    'a bool': 'epochs: yes\n',
    'a fraction': 'epochs: 1.5\n',
}
REFUSED = {'a key twice', 'a nested key twice', 'a tag', 'a name', 'a bomb', 'NaN', 'infinity', 'an unknown key'}


def yaml_files(rng: random.Random, world: Path) -> Faults:
    """Recipes and study files that are odd, hostile, damaged, or timm's."""
    sound = (world / 'recipe.yaml').read_text()
    train = ('train', '-c', 'recipe.yaml', '--experiment', 'new')
    study = ('study', 'rates.yaml', '--data-dir', 'data', '--dry-run')
    text = (world / 'rates.yaml').read_text()
    for name, lines in TEXTS.items():
        key = lines.split(':')[0]
        rest = ''.join(line for line in sound.splitlines(True) if not line.startswith(f'{key}:'))
        alone = name in ('nothing', 'no mapping', 'a word', 'null', 'two documents', 'nested', 'nested mappings')
        codes = (2,) if name in REFUSED else (0, 2)
        yield Fault(
            f'recipe: {name}', train, replaced('recipe.yaml', (lines if alone else rest + lines).encode()), codes=codes
        )
        inside = lines.replace('\n', ', ').strip(', ')
        changed = lines if alone else text.replace('slow: {lr: 0.002}', f'slow: {{{inside}}}')
        yield Fault(f'study: {name}', study, replaced('rates.yaml', changed.encode()), parts=('data',))
    for encoding in ('utf-16', 'utf-32', 'latin-1', 'utf-8-sig'):
        data = (sound + '# ü\n').encode(encoding)
        yield Fault(f'recipe in {encoding}', train, replaced('recipe.yaml', data))
    yield Fault('recipe with CR', train, replaced('recipe.yaml', sound.replace('\n', '\r\n').encode()), codes=(0,))
    timm_args = {'data': None, 'log_wandb': False, 'local_rank': 0, 'bce_loss': False, 'aug_splits': 0, 'hflip': 0.5}
    yield Fault(
        "timm's args.yaml", train, replaced('recipe.yaml', (sound + yaml.safe_dump(timm_args)).encode()), codes=(0, 2)
    )
    for _ in range(20):
        how, data = damaged(sound.encode(), rng)
        yield Fault(f'recipe: {how}', (*train, '--epochs', '1'), replaced('recipe.yaml', data))
        how, data = damaged(text.encode(), rng)
        yield Fault(f'study: {how}', study, replaced('rates.yaml', data), parts=('data',))
    for kind in THINGS:
        yield Fault(f'recipe: {kind}', train, instead('recipe.yaml', kind))
        yield Fault(f'study: {kind}', study, instead('rates.yaml', kind))


COSTLY = {  # that would take long, start programs, or reach for the network where they are legal
    'epochs',
    'workers',
    'img_size',
    'input_size',
    'train_img_sizes',
    'torchcompile',
    'pretrained',
    'log_wandb',
    'log_trackio',
    'log_mlflow',
    'model',
    'batch_size',
    'device',
    'resume',
    'output',
    'experiment',
    'log_tensorboard',
    'cooldown_epochs',
    'sched_pbatch',
    'data_dir',
    'dataset',
}


def options(rng: random.Random, world: Path) -> Faults:
    """Options beyond their bounds, of another type, or in contradiction to each other."""
    quick = [*TRAIN]
    quick[quick.index('--epochs') + 1] = '1'
    flags: list[tuple[str, ...]] = []
    for field, kind in Recipe.kinds():
        if field.name in COSTLY or 'wandb' in field.name or 'tensorboard' in field.name:
            continue
        flag, meta = '--' + field.name.replace('_', '-'), field.metadata
        if kind is bool:
            flags += [(flag,), (flag, '1')]
            continue
        values = ['', 'x', 'nan', '-1', '1e308', '0', '1e-9', '1', '\x1b[2J', *(meta['choices'] or ())]
        for bound in ('low', 'high', 'above'):
            if meta[bound] is not None:
                values += [str(meta[bound]), str(meta[bound] + 1), str(meta[bound] - 1)]
        several = typing.get_origin(kind) is tuple
        flags += [(flag, value, *(['2'] if several and rng.random() < 0.3 else [])) for value in values]
    for chosen in rng.sample(flags, 70):
        yield Fault(f'option {" ".join(chosen)!r}', (*quick, *chosen), parts=('data',))
    for _ in range(80):
        pair = rng.sample(flags, rng.choice((2, 2, 3)))
        yield Fault(f'options {pair}', (*quick, *(word for words in pair for word in words)), parts=('data',))
    for words in (
        ('train', '--from', 'runs/run', '-c', 'recipe.yaml'),
        ('train', '--from', 'runs/run', '--resume'),
        ('train', '--resume'),
        ('predict',),
        ('predict', 'photos', '--model', 'model', '--save-figure', 'photos'),
        ('frobnicate',),
        (),
        ('--version',),
        ('export', 'model', '--model', 'model'),
        ('validate', '--model', 'model', '--checkpoint', 'weights.pth'),
        ('data',),
        ('predict', 'photos', '--model', ''),
        ('predict', '', '--model', 'model'),
        ('report',),
        ('publish', 'runs/run', 'a b'),
        ('publish', 'runs/run', '../x', '--dry-run'),
        ('report', 'runs/run', '--output', 'runs/run/args.yaml'),
        ('study', 'rates.yaml', '--only', 'nobody'),
        ('study', 'rates.yaml', '--jobs', '0'),
        ('study', 'rates.yaml', '--budget', 'nan'),
        ('run', 'test_resnet', '--vary', 'lr=', '--dry-run'),
        ('run', 'test_resnet', '--vary', 'x', '--dry-run'),
        ('new',),
        ('new', '../x'),
        ('new', 'a b'),
        ('list', '--json'),
        ('data', 'cache', '--clear', '--list'),
        ('data', 'fetch', '--size', '1'),
        (*TRAIN, '--data-dir', 'photos'),
        (*TRAIN, '--data-dir', ''),
        (*TRAIN, '--data-dir', '/dev/null'),
        (*TRAIN, '-b', '1000000'),
        (*TRAIN, '--img-size', '7'),
        (*TRAIN, '--device', 'cuda:99'),
        (*TRAIN, '--device', 'x'),
        (*TRAIN, '--num-classes', '2'),
        (*TRAIN, '--epochs', '0'),
        (*TRAIN, '--epochs', '-1'),
        (*TRAIN, '--train-split', 'train[:0%]'),
        (*TRAIN, '--output', 'data.tgz'),
        (*TRAIN, '--train-split', 'train[5:]'),
        (*TRAIN, '--experiment', '../../x'),
        (*TRAIN, '--experiment', 'a' * 300),
    ):
        yield Fault(f'words {" ".join(words)[-60:]!r}', words or ('-',), codes=(0, 1, 2), writes=('new', 'report*'))
