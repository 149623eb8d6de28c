"""The cost, the classes, the confusion and the passes in a report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagenette_zoo.errors import UserError
from imagenette_zoo.report.curves import panels
from imagenette_zoo.report.drawing import run_styles
from imagenette_zoo.report.page import report_numbers, write_report
from imagenette_zoo.report.setup import about
from imagenette_zoo.study.plan import Study
from tests.report.records import IMAGES, make_record, make_records


def test_front_has_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    points = {
        'cheap': (1.0, 60.0),
        'dear': (4.0, 90.0),
        'beaten': (4.5, 85.0),
        'twin': (4.0, 89.0),
        'worse': (2.0, 55.0),
        'as good': (4.2, 90.0),
    }
    records = [make_record(run, 1, top1, gmacs=cost, analysed=False) for run, (cost, top1) in points.items()]
    write_report(tmp_path, records)
    numbers = json.loads((tmp_path / 'report.json').read_text())
    names = {run['number']: run['run'] for run in numbers['runs']}
    assert [names[number] for number in numbers['front']['gmacs']] == ['cheap', 'dear']
    assert (tmp_path / 'figures' / 'cost-train_seconds.png').is_file()
    records[0].result.hardware['threads'] = 1
    write_report(tmp_path, records)
    assert not (tmp_path / 'figures' / 'cost-train_seconds.png').exists(), 'times of two machines do not compare'


@pytest.mark.slow
def test_best_two_of_different_models_are_beside_each_other_unless_told(tmp_path: Path) -> None:
    records = [
        make_record('first', 1, 90.0, model='a'),
        make_record('second', 1, 88.0, model='a'),
        make_record('third', 1, 80.0, model='b'),
    ]

    def compared(**options: Any) -> list[str]:
        write_report(tmp_path, records, images=False, **options)
        return json.loads((tmp_path / 'report.json').read_text())['compared']

    assert compared() == ['first', 'third']
    assert compared(compare=('third', 'second')) == ['third', 'second']
    with pytest.raises(UserError, match=r'secnd.*did you mean second'):
        compared(compare=('first', 'secnd'))


@pytest.mark.parametrize(
    ('codes', 'expected'),
    [
        ({'a': {'my_idea.py': '0123456789abcdef'}, 'b': {'my_idea.py': '0123456789abcdef'}}, 'my_idea.py 0123456789ab'),
        (
            {'a': {}, 'b': {'z.py': 'fedcba98765432100', 'my_idea.py': '0123456789abcdef'}},
            'b: my_idea.py 0123456789ab, z.py fedcba987654',
        ),
        ({'a': {}, 'b': {}}, None),
    ],
)
def test_code_of_the_users_own_is_named(codes: dict[str, dict[str, str]], expected: str | None) -> None:
    records = [make_record(run, 1, 80.0, code=code) for run, code in codes.items()]
    content = report_numbers(records)
    text = about(content)
    assert text.partition('Code of the user (SHA-256): ')[2] == (f'{expected}.' if expected else '')


def test_confusion_and_passes_are_means_over_seeds(written: Path) -> None:
    records = make_records()
    bad = json.loads((written / 'report.json').read_text())['runs'][1]
    matrices = np.array([record.analysis.confusion for record in records if record.analysis and record.run == 'bad'])
    assert bad['confusion']['percent'] == pytest.approx((matrices / (IMAGES / 3) * 100).mean(0), abs=1e-3)
    assert bad['passes']['blocks'][0]['cka'][0][1] == 0.25
    assert (
        '| blocks.1 | kernel 3, kernel 3 | 1–2: 0.250 | 1–2: 0.100 | 1: +3.50, 2: −1.25 |'
        in (written / 'report.md').read_text()
    )


def test_a_run_has_one_colour_and_claimed_pairs_share_a_panel() -> None:
    runs = [f'run{number}' for number in range(13)]
    compared = [('run0', f'run{number}') for number in range(1, 9)] + [('run9', 'run10'), ('run11', 'run10')]
    claims = [{'findings': [{'larger': a, 'smaller': b}]} for a, b in compared]
    found = panels(runs, claims)
    assert {run for panel in found for run in panel} == set(runs)
    assert all(any({*pair} <= set(panel) for panel in found) for pair in compared)
    styles = run_styles(runs, found)
    for panel in found:
        assert len(panel) <= 6
        for part in (0, 1):
            assert len({styles[run][part] for run in panel}) == len(panel)
    assert len(set(styles.values())) == len(runs)
    assert panels(runs, []) == [runs[:6], runs[6:12], runs[12:]]


def test_classes_are_of_the_pairs_that_are_claimed(tmp_path: Path, study: Study) -> None:
    records = [*make_records(analysed=False), make_record('third', 1, 89.0, model='other', analysed=False)]
    for claimed, expected in ((study, [['bad', 'good']]), (None, [['good', 'third']])):
        assert report_numbers(records, claimed)['pairs'] == expected
    assert report_numbers(records, study, ('third', 'bad'))['pairs'] == [['third', 'bad']]
