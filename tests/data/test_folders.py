"""Image folders: listed in order, sliced, labelled."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenette_zoo.data import constants, folders, locate
from imagenette_zoo.errors import UserError
from tests.data.imagenette import WNIDS, assert_one_line, gradient, make_imagenette, touch


def test_names_are_in_wnid_order() -> None:
    assert sorted(WNIDS) == WNIDS
    assert list(constants.IMAGENETTE.values()) == [
        'tench',
        'English springer',
        'cassette player',
        'chain saw',
        'church',
        'French horn',
        'garbage truck',
        'gas pump',
        'golf ball',
        'parachute',
    ]


def test_split_of_known_and_of_own_classes(tmp_path: Path) -> None:
    for name in ('train/n01440764/a.JPEG', 'train/n02088364/b.png', 'train/mine/deep/er/c.WebP', 'val/mine/d.tif'):
        touch(tmp_path / name)
    for name in ('train/mine/.hidden.png', 'train/mine/notes.txt', 'train/.git/x.png', 'train/list.png'):
        touch(tmp_path / name)
    train = folders.load_split(tmp_path)
    assert train.classes == ('mine', 'n01440764', 'n02088364')
    assert train.class_names == ('mine', 'tench', 'Beagle')
    assert train.paths == ('train/mine/deep/er/c.WebP', 'train/n01440764/a.JPEG', 'train/n02088364/b.png')
    assert train.targets == (0, 1, 2)
    assert len(train) == 3
    val = folders.load_split(tmp_path, 'validation', classes=train.classes)
    assert (val.split, val.paths, val.targets, val.classes) == ('val', ('val/mine/d.tif',), (0,), train.classes)


def test_slices_of_a_split(tmp_path: Path) -> None:
    """Whole and disjoint together, of every class, the same at every call, and in the split's order."""
    make_imagenette(tmp_path)
    for number in range(20):
        touch(tmp_path / 'train' / 'mine' / f'{number}.png')
    whole = folders.load_split(tmp_path)
    first, rest = (folders.load_split(tmp_path, f'train[{part}]', whole.classes) for part in (':85%', '85%:'))
    assert sorted(first.paths + rest.paths) == sorted(whole.paths)
    assert (first.split, rest.split) == ('train[:85%]', 'train[85%:]')  # the cache keeps the latest of each
    mine = [path for path in rest.paths if '/mine/' in path]
    assert mine == [f'train/mine/{number}.png' for number in (1, 7, 11)]  # drawn, on every machine alike
    assert first.paths == tuple(path for path in whole.paths if path in first.paths)
    assert first.paths == folders.load_split(tmp_path, 'train[0%:85%]', whole.classes).paths


@pytest.mark.parametrize(
    'split', ['train[:85]', 'train[85%:85%]', 'train[50%:10%]', 'train[:101%]', 'train[', 'train[]']
)
def test_no_slices(tmp_path: Path, split: str) -> None:
    make_imagenette(tmp_path)
    with pytest.raises(UserError, match='a slice is like') as error:
        folders.load_split(tmp_path, split)
    assert_one_line(error)


def test_slices_without_images(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    touch(tmp_path / 'train' / 'mine' / 'only.png')
    with pytest.raises(UserError, match=r'mine has no images in train\[:50%\]') as error:
        folders.load_split(tmp_path, 'train[:50%]')
    assert_one_line(error)
    with pytest.raises(UserError, match=r'its classes are too small for val\[:1%\]') as error:
        folders.load_split(tmp_path, 'val[:1%]', folders.load_split(tmp_path).classes)
    assert_one_line(error)


def test_order_is_timms(tmp_path: Path) -> None:
    from timm.data.readers.reader_image_folder import ReaderImageFolder

    for name in ('class10', 'class2', 'Class1', 'b', 'b-side', 'n02'):
        for file in ('img10.jpg', 'img2.png', 'IMG1.JPEG', '007.jpg'):
            touch(tmp_path / 'train' / name / file)
    images = folders.load_split(tmp_path)
    timm = ReaderImageFolder(str(tmp_path / 'train'))
    assert {name: i for i, name in enumerate(images.classes)} == timm.class_to_idx
    assert [(str(tmp_path / path), target) for path, target in zip(images.paths, images.targets, strict=True)] == (
        timm.samples
    )


def test_class_that_training_lacks(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    (tmp_path / 'val' / WNIDS[0]).rename(tmp_path / 'val' / 'zebra')
    train = folders.load_split(tmp_path)
    with pytest.raises(UserError, match=r"class 'zebra' is in .*val but not among the training classes") as error:
        folders.load_split(tmp_path, 'validation', classes=train.classes)
    assert_one_line(error)


def test_empty_classes_and_splits(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    (tmp_path / 'val' / 'extra').mkdir()
    assert len(folders.load_split(tmp_path, 'val', classes=WNIDS[:2])) == 4
    (tmp_path / 'train' / 'extra').mkdir()
    with pytest.raises(UserError, match='extra holds no images'):
        folders.load_split(tmp_path)
    (tmp_path / 'flat').mkdir()
    Image.fromarray(gradient()).save(tmp_path / 'flat' / 'a.png')
    with pytest.raises(UserError, match='flat holds no images: expected <class>/<image>'):
        folders.load_split(tmp_path, 'flat')
    with pytest.raises(UserError, match='has no test/'):
        folders.load_split(tmp_path, 'test')


def write_noise(root: Path, rows: list[list[str]], header: str = 'path,noisy_labels_0,noisy_labels_5,is_valid') -> None:
    (root / 'noisy_imagenette.csv').write_text('\n'.join([header, *(','.join(row) for row in rows)]) + '\n')


def noise_rows(root: Path, noisy: str) -> list[list[str]]:
    images = folders.load_split(root)
    rows = [[path, path.split('/')[1], path.split('/')[1], 'False'] for path in images.paths]
    rows[0][2] = noisy
    return rows


def test_label_noise(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    images = folders.load_split(tmp_path)
    assert folders.with_label_noise(images, 0) == images
    write_noise(tmp_path, noise_rows(tmp_path, WNIDS[1]))
    noisy = folders.with_label_noise(images, 5)
    assert images.targets == (0, 0, 1, 1)
    assert noisy.targets == (1, 0, 1, 1)
    assert noisy.paths == images.paths


def test_label_noise_of_imagewoof(tmp_path: Path) -> None:
    make_imagenette(tmp_path, list(constants.IMAGEWOOF)[:2])
    images = folders.load_split(tmp_path)
    assert images.class_names == ('Shih-Tzu', 'Rhodesian ridgeback')
    write_noise(tmp_path, noise_rows(tmp_path, images.classes[1]))
    with pytest.raises(UserError, match=r'label noise needs .*noisy_imagewoof\.csv, which does not exist'):
        folders.with_label_noise(images, 5)
    (tmp_path / 'noisy_imagenette.csv').rename(tmp_path / 'noisy_imagewoof.csv')
    assert folders.with_label_noise(images, 5).targets == (1, 0, 1, 1)


def test_wrong_label_noise(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    images = folders.load_split(tmp_path)
    with pytest.raises(UserError, match='label noise 7 is unknown: expected one of 0, 1, 5, 25, 50'):
        folders.with_label_noise(images, 7)
    with pytest.raises(UserError, match=r'noisy_imagenette\.csv, which does not exist'):
        folders.with_label_noise(images, 5)
    write_noise(tmp_path, noise_rows(tmp_path, WNIDS[1]))
    with pytest.raises(UserError, match="no column 'noisy_labels_25'"):
        folders.with_label_noise(images, 25)
    write_noise(tmp_path, noise_rows(tmp_path, 'zebra'))
    with pytest.raises(UserError, match="label 'zebra'"):
        folders.with_label_noise(images, 5)
    rows = noise_rows(tmp_path, 'zebra')
    write_noise(tmp_path, [*rows[:-1], rows[-1][:2]])
    with pytest.raises(UserError, match=r'holds the label') as error:
        folders.with_label_noise(images, 5)
    assert_one_line(error)
    write_noise(tmp_path, noise_rows(tmp_path, WNIDS[1])[1:])
    with pytest.raises(UserError, match=f'no training label for {images.paths[0]}'):
        folders.with_label_noise(images, 5)
    (tmp_path / 'noisy_imagenette.csv').write_bytes(b'\xff\xfe\x00path')
    with pytest.raises(UserError, match=r'cannot be read|no column'):
        folders.with_label_noise(images, 5)


def test_label_noise_is_for_training_images_only(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    val = folders.load_split(tmp_path, 'val')
    write_noise(tmp_path, [[path, path.split('/')[1], path.split('/')[1], 'True'] for path in val.paths])
    with pytest.raises(UserError, match='no training label'):
        folders.with_label_noise(val, 5)


@pytest.mark.parametrize(('start', 'separator'), [('./', '/'), ('', '\\'), ('.\\', '\\')])
def test_label_noise_with_paths_of_another_system(tmp_path: Path, start: str, separator: str) -> None:
    make_imagenette(tmp_path)
    rows = noise_rows(tmp_path, WNIDS[1])
    write_noise(tmp_path, [[start + row[0].replace('/', separator), *row[1:]] for row in rows])
    assert folders.with_label_noise(folders.load_split(tmp_path), 5).targets == (1, 0, 1, 1)


def test_what_systems_put_among_images_is_left_out(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    expected = folders.load_split(tmp_path)
    for name in (f'train/{WNIDS[0]}/@eaDir/a.jpg/thumb.jpg', '__MACOSX/train/a/b.png', f'train/{WNIDS[0]}/Thumbs.db'):
        touch(tmp_path / name)
    touch(tmp_path / 'train' / '__MACOSX' / 'a.png')
    touch(tmp_path / 'train' / '@eaDir' / 'a.png')
    assert folders.load_split(tmp_path) == expected
    assert expected.passed_over == ()
    assert folders.list_images([tmp_path / 'train']) == [tmp_path / path for path in expected.paths]
    assert locate.find_root(tmp_path) == tmp_path


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_only_regular_files_and_links_to_them_are_images(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    place = tmp_path / 'train' / WNIDS[0]
    os.mkfifo(place / 'pipe.JPEG')
    (place / 'link.JPEG').symlink_to(place / f'{WNIDS[0]}_0.JPEG')
    (place / 'none.JPEG').symlink_to(place / 'gone.JPEG')  # which is an error once it is read
    (place / 'piped.JPEG').symlink_to(place / 'pipe.JPEG')
    (place / 'folder.JPEG').mkdir()
    images = folders.load_split(tmp_path)
    assert [Path(path).name for path in images.paths if WNIDS[0] in path] == [
        'link.JPEG', f'{WNIDS[0]}_0.JPEG', f'{WNIDS[0]}_1.JPEG', 'none.JPEG',
    ]  # fmt: skip
    assert [Path(path).name for path in images.passed_over] == ['pipe.JPEG', 'piped.JPEG']
    assert '2 file(s) of train skipped: 2 no regular file' in folders.passed_over_line(images)
    assert place / 'pipe.JPEG' not in folders.list_images([place])


def test_files_that_are_not_read_are_counted_and_named(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    place = f'train/{WNIDS[0]}'
    for name in (f'{place}/a.heic', f'{place}/b.HEIC', f'{place}/c', 'train/d.jpg', f'{place}/.hidden'):
        touch(tmp_path / name)
    for name in ('e.avif', 'f.jfif', 'g.jpe', 'h.jp2', 'i.TGA'):
        touch(tmp_path / place / name)
    images = folders.load_split(tmp_path)
    assert len(images) == 4 + 5
    assert folders.passed_over_line(images) == (
        f'4 file(s) of train skipped: 2 .heic ({place}/a.heic), 1 in no class folder '
        f'(train/d.jpg), 1 without ending ({place}/c)'
    )
    assert folders.passed_over_line(folders.load_split(tmp_path, 'val')) == ''


def test_a_class_of_files_that_are_not_read(tmp_path: Path) -> None:
    make_imagenette(tmp_path)
    touch(tmp_path / 'train' / 'other' / 'a.heic')
    with pytest.raises(UserError, match=r'other holds no images but 1 other file\(s\), as a.heic'):
        folders.load_split(tmp_path)


def test_real_imagenette_is_listed_whole(imagenette_dir: Path) -> None:
    root = locate.find_root(imagenette_dir)
    train, val = folders.load_split(root), folders.load_split(root, 'validation')
    assert (len(train), len(val)) == (9469, 3925)
    assert train.classes == val.classes == tuple(WNIDS)
    assert train.class_names == tuple(constants.IMAGENETTE.values())
    counts = np.bincount(train.targets)
    assert (counts.min(), counts.max()) == (858, 993)


@pytest.mark.parametrize('percent', [1, 5, 25, 50])
def test_real_label_noise(imagenette_dir: Path, percent: int) -> None:
    images = folders.load_split(locate.find_root(imagenette_dir))
    noisy = folders.with_label_noise(images, percent)
    with (images.root / 'noisy_imagenette.csv').open(newline='') as file:
        rows = [row for row in csv.DictReader(file) if row['is_valid'] == 'False']
    expected = sum(row['noisy_labels_0'] != row[f'noisy_labels_{percent}'] for row in rows)
    changed = sum(a != b for a, b in zip(images.targets, noisy.targets, strict=True))
    assert changed == expected
    assert abs(changed / len(images) - percent / 100) < 0.01


@pytest.mark.parametrize('split', ['small/train', '.', '..', '/tmp'])
def test_a_split_is_the_name_of_a_folder(tmp_path: Path, split: str) -> None:
    """Paths are relative to the folder of the splits: those of another would be read from elsewhere."""
    make_imagenette(tmp_path)
    make_imagenette(tmp_path / 'small')
    with pytest.raises(UserError, match='expected the name of a folder in') as error:
        folders.load_split(tmp_path, split)
    assert_one_line(error)
    assert len(folders.load_split(tmp_path, 'train/')) == len(folders.load_split(tmp_path, 'train'))


@pytest.mark.parametrize('text', ['nonsense', '5', '[[1]]', '["a"]', '["a", "a"]', '[' * 9999])
def test_a_damaged_list_of_classes_is_one_line(tmp_path: Path, text: str) -> None:
    root = make_imagenette(tmp_path)
    names = [path.name for path in (root / 'train').iterdir()]
    (root / 'train' / folders.ORDER_FILE).write_text(text)
    with pytest.raises(UserError, match=r'not a list of the classes .*: remove it') as error:
        folders.load_split(root)
    assert_one_line(error)
    (root / 'train' / folders.ORDER_FILE).write_text(json.dumps(['more', *sorted(names, reverse=True)]))
    assert folders.load_split(root).classes == ('more', *sorted(names, reverse=True)), 'also of one without images'
