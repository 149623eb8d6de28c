"""Every image of a data set decoded."""

from pathlib import Path

import pytest
from PIL import Image

from imagenette_zoo.cli import data
from imagenette_zoo.cli.main import main
from imagenette_zoo.data import check, locate
from tests.data.imagenette import WNIDS, bad_image, gradient, make_imagenette


def test_check_of_a_good_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_imagenette(tmp_path, count=3)
    Image.fromarray(gradient(50, 40)).convert('L').save(tmp_path / 'train' / WNIDS[0] / 'grey.png')
    Image.fromarray(gradient(30, 400)).convert('CMYK').save(tmp_path / 'train' / WNIDS[0] / 'cmyk.jpg')
    calls = []
    report = check.check(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert report.bad == ()
    assert calls == [(i, 14) for i in range(1, 15)]
    first = report.classes[0]
    assert (first.split, first.name, first.count) == ('train', 'tench', 5)
    assert (first.width, first.height, first.greyscale, first.other_modes) == ((20, 50), (12, 400), 1, {'CMYK': 1})
    assert data.check_command(str(tmp_path), '') == 0
    captured = capsys.readouterr()
    assert captured.err == ''
    lines = [' '.join(line.split()) for line in captured.out.splitlines()]
    assert f'Data: {tmp_path}' in lines
    assert 'tench train 5 20-50 12-400 1 1 CMYK' in lines
    assert 'all 2 classes train 8 20-50 12-400 1 1' in lines
    assert 'all 2 classes val 6 20-22 12 0' in lines


def test_check_lists_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_imagenette(tmp_path)
    bad_image(tmp_path / 'train' / WNIDS[0] / 'half.jpg', 'half')
    bad_image(tmp_path / 'val' / WNIDS[1] / 'empty.jpg', 'empty')
    report = check.check(tmp_path)
    assert [image.path for image in report.bad] == [f'train/{WNIDS[0]}/half.jpg', f'val/{WNIDS[1]}/empty.jpg']
    assert data.check_command(str(tmp_path), 'folder') == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith('2 bad image(s)')
    assert 'half.jpg: is truncated' in errors[1]
    assert 'empty.jpg: is empty (0 bytes)' in errors[2]


def test_check_names_what_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_imagenette(tmp_path)
    (tmp_path / 'val' / WNIDS[1] / 'a.heic').touch()
    assert data.check_command(str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert f'note: 1 file(s) of val skipped: 1 .heic (val/{WNIDS[1]}/a.heic)' in printed
    assert 'Every image decodes.' in printed


def test_check_of_images_of_many_megapixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_imagenette(tmp_path)
    Image.new('1', (1100, 1000)).save(tmp_path / 'train' / WNIDS[0] / 'large.png')
    assert main(['data', 'check', '--data-dir', str(tmp_path), '--max-megapixels', '1']) == 2
    assert 'large.png: is too large: expected at most 1 megapixels' in capsys.readouterr().err
    assert main(['data', 'check', '--data-dir', str(tmp_path), '--max-megapixels', '0']) == 2
    assert '--max-megapixels' in capsys.readouterr().err
    assert main(['data', 'check', '--data-dir', str(tmp_path)]) == 0


@pytest.mark.long
@pytest.mark.slow
def test_real_imagenette_is_sound(imagenette_dir: Path) -> None:
    report = check.check(locate.find_root(imagenette_dir))
    assert report.bad == ()
    assert sum(entry.count for entry in report.classes) == 13394
    assert sum(entry.greyscale for entry in report.classes) == 242
    assert all(entry.other_modes == {} for entry in report.classes)
