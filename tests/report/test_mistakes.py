"""The worst mistakes in a report, and their thumbnails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imagenette_zoo.data.folders import load_split
from imagenette_zoo.report.page import write_report
from imagenette_zoo.study.records import Record
from tests.conftest import make_folder
from tests.report.records import IMAGES, make_record, text_of


def test_worst_mistakes_are_those_that_most_are_surest_of(tmp_path: Path) -> None:
    records = [make_record('a', seed, 100.0) for seed in (1, 2)]
    for record, wrong in zip(records, ({4: 0.9, 7: 0.5}, {4: 0.8, 9: 1.0}), strict=True):
        assert record.analysis
        for index, confidence in wrong.items():
            record.analysis.predictions[index] = 2 - record.analysis.targets[index] // 2  # of 1 and 0: 2
            record.analysis.confidence[index] = confidence
    write_report(tmp_path, records, images=False)
    found = json.loads((tmp_path / 'report.json').read_text())['mistakes']
    assert [(each['name'], each['wrong']) for each in found] == [
        ('validation image 4', '2 of 2'),
        ('validation image 9', '1 of 2'),
        ('validation image 7', '1 of 2'),
    ]
    assert found[0]['confidence'] == pytest.approx(85, abs=0.1)
    assert (found[0]['true'], found[0]['predicted']) == ('church', 'golf ball')


@pytest.fixture
def of_a_folder(tmp_path: Path) -> Callable[..., list[Record]]:
    """Trainings that looked at a folder of 60 images in the folder's order."""
    root = make_folder(tmp_path / 'data', val=IMAGES // 3)

    def make(**changes: Any) -> list[Record]:
        record = make_record('a', 1, 80.0, classes=('class0', 'class1', 'class2'), data_dir=str(root), **changes)
        assert record.analysis
        targets = torch.tensor(load_split(root, 'validation').targets, dtype=torch.int16)
        record.analysis.targets.copy_(targets)
        return [record]

    return make


@pytest.mark.slow
def test_thumbnails_are_of_the_images_that_were_taken_for_others(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    records = of_a_folder()
    page = write_report(tmp_path / 'out', records).read_text()
    assert page.count('data:image/jpeg;base64,') == 24
    first = json.loads((tmp_path / 'out' / 'report.json').read_text())['mistakes'][0]
    true = first['name'].split('/')[1]
    assert (tmp_path / 'data' / first['name']).is_file()
    assert first['true'] == true != first['predicted']
    moved = tmp_path / 'elsewhere'
    (tmp_path / 'data').rename(moved)
    assert 'data:image/jpeg' not in write_report(tmp_path / 'out', records).read_text()
    assert page == write_report(tmp_path / 'out', records, data_dir=str(moved)).read_text()


@pytest.mark.slow
def test_a_report_to_give_away_has_no_image_and_needs_none(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    records = of_a_folder()
    page = write_report(tmp_path / 'out', records, images=False).read_bytes()
    assert b'data:image' not in page
    assert b'validation image' in page
    shutil.rmtree(tmp_path / 'data')
    assert page == write_report(tmp_path / 'out', records, images=False).read_bytes()


def test_other_images_than_were_looked_at_are_not_shown(
    tmp_path: Path, of_a_folder: Callable[..., list[Record]]
) -> None:
    other = make_folder(tmp_path / 'other', val=5)
    page = write_report(tmp_path / 'out', of_a_folder(), data_dir=str(other)).read_text()
    assert 'data:image/jpeg' not in page
    assert 'are not those that were looked at' in text_of(page)
