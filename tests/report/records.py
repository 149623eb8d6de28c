"""Trainings that were never run, for reports on them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.study.analysis import Analysis
from imagenette_zoo.study.passes import BlockPasses
from imagenette_zoo.study.plan import Claim, Comparison
from imagenette_zoo.study.records import Record
from imagenette_zoo.training.result import Result

pytest.importorskip('matplotlib')
pytest.importorskip('scipy')
pytest.importorskip('jinja2')

CLASSES = ('tench', 'church', 'golf ball')
IMAGES = 60


def make_analysis(top1: float, seed: int, classes: tuple[str, ...], passes: list[BlockPasses]) -> Analysis:
    random = np.random.RandomState(seed)
    targets = np.arange(IMAGES) % len(classes)
    wrong = random.permutation(IMAGES) >= round(top1 / 100 * IMAGES)
    predictions = np.where(wrong, (targets + 1 + random.randint(0, len(classes) - 1, IMAGES)) % len(classes), targets)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (targets, predictions), 1)
    return Analysis(
        top1=top1,
        train_top1=top1 + 5,
        train_images=100,
        shift_consistency=top1 + 1,
        calibration_error=4.5,
        class_names=list(classes),
        confusion=confusion.tolist(),
        passes=passes,
        data='folder/val',
        targets=torch.tensor(targets, dtype=torch.int16),
        predictions=torch.tensor(predictions, dtype=torch.int16),
        confidence=torch.tensor(random.uniform(0.4, 1.0, IMAGES), dtype=torch.float16),
        true_probability=torch.tensor(random.uniform(0.0, 0.4, IMAGES), dtype=torch.float16),
    )


def make_record(
    run: str,
    seed: int,
    top1: float,
    *,
    model: str = 'resnet18',
    analysed: bool = True,
    classes: tuple[str, ...] = CLASSES,
    passes: list[BlockPasses] | None = None,
    data_dir: str = '/nowhere',
    **changes: Any,
) -> Record:
    """A training that was never run: top-1 rises to `top1` in four epochs of 10 s."""
    history = [
        {'epoch': epoch, 'train_loss': 1.0, 'train_seconds': 8.0, 'seconds': 10.0, 'eval_top1': top1 * (epoch + 1) / 4}
        for epoch in range(4)
    ]
    values: dict[str, Any] = dict(
        model=model,
        top1=top1,
        best_top1=top1,
        best_epoch=3,
        top5=99.0,
        loss=0.5,
        per_class={name: top1 - place for place, name in enumerate(classes)},
        epochs=4,
        img_size=64,
        seed=seed,
        params=11_181_642,
        gmacs=1.8,
        seconds={'setup': 1.0, 'total': 40.0, 'train': 32.0 + seed, 'eval': 8.0, 'to_80': 40.0},
        images_per_second=100.0 + seed,
        peak_memory_mib=500.0,
        recipe=Recipe(model=model, data_dir=data_dir, seed=seed).as_dict(),
        dataset={'name': 'imagenette2-160', 'train': 9469, 'val': IMAGES, 'hash': 'x'},
        versions={'python': '3.11', 'torch': '2.9'},
        hardware={'device': 'cpu', 'cpu': 'Test CPU', 'cores': 2, 'threads': 2, 'gpu': None},
        command='train',
    )
    result = Result(**{**values, **changes})
    return Record(
        run, Path('runs', run), result, history, make_analysis(top1, seed, classes, passes or []) if analysed else None
    )


def make_records(**changes: Any) -> list[Record]:
    """Three seeds of two runs, of which one is far better."""
    blocks = [
        BlockPasses('blocks.1', ['kernel 3'] * 2, True, [[1, 0.25], [0.25, 1]], [[1, 0.1], [0.1, 1]], [3.5, -1.25])
    ]
    return [
        record
        for seed in (1, 2, 3)
        for record in (
            make_record('good', seed, 90.0 + seed / 3, **changes),
            make_record('bad', seed, 70.0 + seed / 2, model='mobile', gmacs=0.3, passes=blocks, **changes),
        )
    ]


def make_claims(*parts: tuple[str, str, str]) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f'C{number}',
            f'Sentence {number} says so.',
            metric,
            (f'{larger} > {smaller}',),
            (Comparison(larger, smaller, 0.0),),
        )
        for number, (metric, larger, smaller) in enumerate(parts, 1)
    )


def text_of(page: str) -> str:
    """What a reader sees of a page, roughly."""
    body = re.sub(r'<(style|script|title)\b.*?</\1>', ' ', page, flags=re.DOTALL)
    return ' '.join(re.sub(r'<[^>]+>', ' ', body).split())
