"""Training steps of several runs, timed in turns, and the claims that are judged by them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.errors import UserError
from imagenette_zoo.study import step_times
from imagenette_zoo.study.decisions import judge
from imagenette_zoo.study.plan import STEP_TIME_BLOCKS, Claim, Comparison, StepTimes, StudyRun, make_study
from imagenette_zoo.study.process import Slot
from imagenette_zoo.study.records import STEP_TIMES, as_run, samples_of
from imagenette_zoo.study.sentences import sentence
from imagenette_zoo.study.step_times import time_steps, time_study
from imagenette_zoo.training.learner import Learner
from imagenette_zoo.utils.console import Console

pytest.importorskip('scipy')

SMALL = Recipe(model='test_resnet', img_size=32, batch_size=8, device='cpu', workers=0, warmup_epochs=0)
LARGE = SMALL.replace(img_size=128)


def claim(larger: str, smaller: str, metric: str = 'step_time', ratio: float = 1.5) -> Claim:
    return Claim('time', 'It takes longer.', metric, (), (Comparison(larger, smaller, ratio, True),))


@pytest.mark.long
@pytest.mark.slow
def test_steps_are_timed_in_turns_and_judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step_times, 'BLOCK_SECONDS', 0.05)
    study = make_study('', {'small': SMALL, 'large': LARGE}, (1, 2, 3))
    study = replace(study, claims=(claim('large', 'small'), claim('small', 'large', 'images_per_second')))
    time_study(study, Slot(tmp_path), Console(quiet=True))
    timed = as_run(study, tmp_path)
    assert timed.step_times is not None
    assert {name: len(each) for name, each in timed.step_times.seconds.items()} == dict.fromkeys(
        ('large', 'small'), STEP_TIME_BLOCKS
    )
    assert timed.step_times.images == {'large': 8, 'small': 8}
    assert timed.step_times.hardware['threads'] >= 1
    verdicts = judge(timed.claims, samples_of(timed, {}), timed.stages)
    assert [each.verdict for each in verdicts] == ['supported', 'supported'], 'no training is needed'
    assert 'large is ' in sentence(verdicts[0])
    assert 'times small in step time' in sentence(verdicts[0])
    before = (tmp_path / STEP_TIMES).read_bytes()
    time_study(timed, Slot(tmp_path), Console(quiet=True))
    assert (tmp_path / STEP_TIMES).read_bytes() == before, 'timed once'
    runs = {**study.runs, 'small': StudyRun('small', SMALL.replace(batch_size=4))}
    changed = as_run(replace(study, runs=runs), tmp_path)
    assert changed.step_times is not None
    assert list(changed.step_times.seconds) == ['large'], 'those of another recipe do not count'
    time_study(changed, Slot(tmp_path), Console(quiet=True))
    timed = as_run(changed, tmp_path)
    assert timed.step_times is not None
    assert timed.step_times.images == {'large': 8, 'small': 4}
    monkeypatch.setattr(step_times, 'code_of', lambda model: {'idea.py': 'a' * 64})
    time_study(timed, Slot(tmp_path), Console(quiet=True))
    timed = as_run(changed, tmp_path)
    assert timed.step_times is not None
    assert timed.step_times.code['large'] == {'idea.py': 'a' * 64}, 'nor those of other code'


def test_each_image_size_of_a_training_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, 'BLOCK_SECONDS', 0.0)
    shapes: list[tuple[int, int, int]] = []
    step = step_times.TimedModel.step
    monkeypatch.setattr(step_times.TimedModel, 'step', lambda self, shape: shapes.append(shape) or step(self, shape))
    time_steps({'both': SMALL.replace(train_img_sizes=(32, 64))})
    assert shapes.count((3, 32, 32)) == shapes.count((3, 64, 64)) > 0


def test_steps_are_timed_as_they_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update every few batches, and compiled where the training compiles."""
    updates: list[tuple[float, bool]] = []
    step = Learner.step
    monkeypatch.setattr(
        Learner,
        'step',
        lambda self, *batch, fraction, update: (
            updates.append((fraction, update)) or step(self, *batch, fraction=fraction, update=update)
        ),
    )
    model = step_times.TimedModel(SMALL.replace(grad_accum_steps=3), (100, 10, 10))
    clock = iter(range(100))
    monkeypatch.setattr(step_times.time, 'perf_counter', lambda: float(next(clock)))
    assert model.step((3, 32, 32)) == 1.0, 'of one batch'
    assert updates == [(1 / 3, False), (1 / 3, False), (1 / 3, True)]


def test_steps_of_a_compiled_run_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, 'BLOCK_SECONDS', 0.0)
    compiled: list[str] = []
    monkeypatch.setattr(step_times, 'compile_steps', lambda recipe, *_: compiled.append(recipe.torchcompile))
    monkeypatch.setattr(step_times, 'resolve', lambda recipe, *_: recipe)
    time_steps({'compiled': SMALL.replace(torchcompile='eager'), 'plain': SMALL.replace(torchcompile=None)})
    assert compiled == ['eager']
    step_times.TimedModel(SMALL.replace(torchcompile='eager'), (100, 10, 10))
    assert compiled == ['eager'], 'not for a dry run'


def test_numbers_of_steps_are_those_of_all_blocks() -> None:
    times = StepTimes({'a': [0.5, 0.25], 'b': [1.0, 1.0]}, {'a': 10, 'b': 20}, {})
    study = make_study('', {'a': SMALL, 'b': SMALL}, (1,))
    claims = (claim('b', 'a'), claim('a', 'b', 'images_per_second'))
    samples = samples_of(replace(study, claims=claims, step_times=times), {})
    assert samples['step_time', 'a'].values == [500.0, 250.0]
    assert samples['images_per_second', 'b'].values == [20.0, 20.0]


def test_a_claim_whose_steps_were_not_timed_says_so(tmp_path: Path) -> None:
    study = replace(make_study('', {'a': SMALL, 'b': SMALL}, (1,)), claims=(claim('b', 'a'),))
    (verdict,) = judge(study.claims, samples_of(study, {}), study.stages)
    assert sentence(verdict) == 'undecided: the steps of b were not timed: the command of the study times them'


@pytest.mark.parametrize(
    'damage',
    [{'more': 1}, {'seconds': {'a': [0.1]}}, {'seconds': {'a': [0.0] * STEP_TIME_BLOCKS}}, {'images': {}}],
)
def test_damaged_step_times_are_one_line(tmp_path: Path, damage: dict[str, object]) -> None:
    study = make_study('', {'a': SMALL}, (1,))
    good = asdict(StepTimes({'a': [0.1] * STEP_TIME_BLOCKS}, {'a': 8}, {}))
    (tmp_path / STEP_TIMES).write_text(json.dumps(good))
    assert as_run(study, tmp_path).step_times is not None
    (tmp_path / STEP_TIMES).write_text(json.dumps({**good, **damage}))
    with pytest.raises(UserError, match='not the step times of a study'):
        as_run(study, tmp_path)
