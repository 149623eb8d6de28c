"""Study files that were changed after results were seen, and results that do not go together."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from imagenette_zoo.errors import UserError
from imagenette_zoo.report import setup
from imagenette_zoo.report.page import report_numbers
from imagenette_zoo.study.changes import note_changes
from imagenette_zoo.study.decisions import unjudged
from imagenette_zoo.study.plan import STEP_TIME_BLOCKS, Claim, Comparison, StepTimes, Study, dump_study, read_study
from imagenette_zoo.study.records import CHANGES, STEP_TIMES, as_run, study_records
from imagenette_zoo.utils.console import Console

RESULTS = Path(__file__).parents[2] / 'docs' / 'results' / 'claims-cpu'


@pytest.fixture
def seen(tmp_path: Path) -> Callable[[str, str], Study]:
    """A folder with a study of which four seeds are known; the function gives it with a part of its text replaced."""
    text = dump_study(replace(read_study(RESULTS / 'study.yaml'), until_decided=False))
    (tmp_path / 'study.yaml').write_text(text)
    for folder in RESULTS.glob('*-seed?'):
        (tmp_path / folder.name).mkdir()
        (tmp_path / folder.name / 'result.json').touch()

    def changed(old: str, new: str) -> Study:
        assert old in text
        (tmp_path / 'new.yaml').write_text(text.replace(old, new))
        return read_study(tmp_path / 'new.yaml')

    return changed


C6 = """\
  metric: top1
  order:
  - resnet50 > resnet50-constant
  by: 3.0
"""
AFTER = 'after 4 blocks of its runs were seen'
SEEDS = 'seeds:\n- 1\n- 2\n- 3\n- 4\n'


@pytest.mark.parametrize(
    ('old', 'new', 'line'),
    [
        (C6, C6.replace('3.0', '2.0'), f'the claim C6 was changed {AFTER} (by 3.0, now 2.0): '),
        (
            C6,
            C6.replace('by: 3.0', 'practical: 2'),
            f'the claim C6 was changed {AFTER} (by 3.0, now none; practical none, now 2.0): ',
        ),
        ('- name: C6\n', '- name: C66\n', f'the claim C6 was removed {AFTER}: '),
        ('- name: C6\n', '- name: C66\n', f'the claim C66 was added {AFTER}: '),
        ('claims:\n', 'stages: [5]\nclaims:\n', 'the stages were changed from 3 (10%), 4 (15%), '),
        (SEEDS, 'seeds: [2, 1, 3, 4]\n', 'the seeds were changed from 1, 2, 3, 4 to 2, 1, 3, 4 after 4 '),
        (SEEDS, 'seeds: [2, 3, 4]\n', 'the seeds were changed from 1, 2, 3, 4 to 2, 3, 4 after 4 '),
        (SEEDS, 'seeds: [11, 12, 13]\n', 'the seeds were changed from 1, 2, 3, 4 to 11, 12, 13 after 4 '),
        (SEEDS, 'seeds: [1, 12, 13, 14]\n', 'the seeds were changed from 1, 2, 3, 4 to 1, 12, 13, 14 after 4 '),
    ],
)
def test_a_change_after_looks_is_said_and_kept(
    tmp_path: Path,
    seen: Callable[[str, str], Study],
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    line: str,
) -> None:
    study = seen(old, new)
    for _ in range(2):
        note_changes(study, tmp_path, Console())
    out = capsys.readouterr().out.splitlines()
    assert sum(each.startswith(f'warning: {line}') for each in out) == 1, 'once'
    changes = as_run(study, tmp_path).changes
    assert [f'warning: {each}' for each in changes] == out
    assert all('5 %' in each for each in changes), 'what it means'


def test_what_does_not_decide_may_be_changed(tmp_path: Path, seen: Callable[[str, str], Study]) -> None:
    note_changes(seen('MultiPass adds less than a point', 'Passes add less than a point'), tmp_path, Console(True))
    note_changes(seen(SEEDS, 'seeds: 6\n'), tmp_path, Console(True))
    note_changes(seen(SEEDS, 'seeds: 2\n'), tmp_path, Console(True))
    counted = replace(seen(SEEDS, SEEDS), claims=(claim('params'), *seen(SEEDS, SEEDS).claims))
    note_changes(counted, tmp_path, Console(True))
    said = [replace(each, practical=each.equal_within) for each in counted.claims]
    note_changes(replace(counted, claims=tuple(said)), tmp_path, Console(True))
    assert not (tmp_path / CHANGES).exists()


def test_a_claim_on_a_baseline_and_a_look_that_is_earlier_are_changes(
    tmp_path: Path, seen: Callable[[str, str], Study], capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(seen(SEEDS, SEEDS), stages=((5, 1.0),), claims=(claim('top1'),))
    (tmp_path / 'study.yaml').write_text(dump_study(study))
    note_changes(replace(study, stages=((4, 1.0),)), tmp_path, Console())
    assert 'the stages were changed from 5 (100%) to 4 (100%) after 4 blocks' in capsys.readouterr().out
    baseline = Claim('c', 'So.', 'top1', ('mish > zoo:a',), (Comparison('mish', 'zoo:a', 0.5),))
    before = replace(study, stages=((4, 1.0),), against=('zoo:a',), claims=(baseline,))
    (tmp_path / 'study.yaml').write_text(dump_study(before))
    note_changes(replace(before, claims=()), tmp_path, Console())
    assert 'the claim c was removed after 4 blocks' in capsys.readouterr().out


def claim(metric: str, bound: float = 0.5) -> Claim:
    return Claim(metric, 'So.', metric, ('mish > relu',), (Comparison('mish', 'relu', bound, True),))


def test_a_claim_of_a_study_that_had_none_is_added(tmp_path: Path, seen: Callable[[str, str], Study]) -> None:
    """All pairs were seen."""
    study = seen(SEEDS, SEEDS)
    (tmp_path / 'study.yaml').write_text(dump_study(replace(study, claims=())))
    note_changes(replace(study, claims=(claim('top1'),)), tmp_path, Console(True))
    (line,) = as_run(study, tmp_path).changes
    assert line.startswith('the claim top1 was added after 4 blocks')


def test_a_run_of_a_study_without_claims_is_removed(tmp_path: Path, seen: Callable[[str, str], Study]) -> None:
    study = replace(seen(SEEDS, SEEDS), claims=())
    (tmp_path / 'study.yaml').write_text(dump_study(study))
    fewer = replace(study, runs={name: run for name, run in study.runs.items() if name != 'googlenet'})
    note_changes(fewer, tmp_path, Console(True))
    (line,) = as_run(fewer, tmp_path).changes
    assert line.startswith('the run googlenet was removed after 4 blocks were seen')


def test_a_claim_on_step_times_is_seen_once_they_are_known(tmp_path: Path, seen: Callable[[str, str], Study]) -> None:
    for folder in tmp_path.glob('*-seed?'):
        shutil.rmtree(folder)
    study = replace(seen(SEEDS, SEEDS), claims=(claim('step_time'),))
    (tmp_path / 'study.yaml').write_text(dump_study(study))
    changed = replace(study, claims=(claim('step_time', 2.0),))
    note_changes(changed, tmp_path, Console(True))
    assert not (tmp_path / CHANGES).exists()
    seconds = {run: [0.1] * STEP_TIME_BLOCKS for run in ('mish', 'relu')}
    (tmp_path / STEP_TIMES).write_text(json.dumps(asdict(StepTimes(seconds, dict.fromkeys(seconds, 8), {}))))
    note_changes(changed, tmp_path, Console(True))
    (line,) = as_run(study, tmp_path).changes
    assert line.startswith('the claim step_time was changed after 10 blocks of its runs were seen (ratio 0.5, now 2.0)')


def test_before_the_first_look_all_may_be_changed(tmp_path: Path, seen: Callable[[str, str], Study]) -> None:
    for folder in tmp_path.glob('*-seed[34]'):
        shutil.rmtree(folder)
    note_changes(seen(C6, C6.replace('3.0', '2.0')), tmp_path, Console(True))
    assert not (tmp_path / CHANGES).exists()


@pytest.mark.parametrize(
    ('field', 'value', 'line'),
    [
        ('dataset', {'name': 'others', 'hash': 'content:1+234567'}, 'was trained with other validation images than '),
        ('dataset', None, 'was trained with other images than relu-seed1'),
        ('code', {'idea': 'a' * 64}, 'was trained with other code than relu-seed1 (idea aaaaaaaaaaaa, not none'),
    ],
)
def test_results_that_do_not_go_together_are_refused(
    tmp_path: Path, field: str, value: dict[str, str] | None, line: str
) -> None:
    for run in ('mish', 'relu'):
        for seed in (1, 2):
            shutil.copytree(RESULTS / f'{run}-seed{seed}', tmp_path / f'{run}-seed{seed}')
    study = read_study(RESULTS / 'study.yaml')
    assert len(study_records(study, tmp_path)) == 4
    file = tmp_path / 'relu-seed2' / 'result.json'
    result = json.loads(file.read_text())
    value = value or {**result[field], 'hash': re.sub(r'(?<=:)\w+', 'noisy', result[field]['hash'])}
    file.write_text(json.dumps({**result, field: value}))
    with pytest.raises(UserError, match='relu-seed2: ') as caught:
        study_records(study, tmp_path)
    assert line in str(caught.value)


def test_runs_with_other_training_images_are_compared(tmp_path: Path) -> None:
    """As where label noise or the training split is varied: those that judge are the same."""
    for run in ('mish', 'relu'):
        for seed in (1, 2, 3):
            folder = shutil.copytree(RESULTS / f'{run}-seed{seed}', tmp_path / f'{run}-seed{seed}')
            if run == 'relu':
                text = (folder / 'result.json').read_text()
                (folder / 'result.json').write_text(re.sub(r'(?<="content:)\w+', 'noisy', text))
    study = read_study(RESULTS / 'study.yaml')
    records = study_records(study, tmp_path)
    assert len({record.result.dataset['hash'] for record in records}) == 2
    pairs = replace(study, claims=(), runs={name: study.runs[name] for name in ('mish', 'relu')})
    assert unjudged(pairs, records) == ''
    assert 'several data sets' not in ' '.join(setup.notes(report_numbers(records, pairs)))
