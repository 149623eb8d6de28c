"""Where a data set is."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenette_zoo.config.groups import DataOptions
from imagenette_zoo.data import constants, folders, locate
from imagenette_zoo.data.locate import load_splits, resolve_dataset, validation_images
from imagenette_zoo.errors import UserError
from tests.data.imagenette import WNIDS, assert_one_line, make_archive, make_imagenette

pytestmark = pytest.mark.usefixtures('cache')


@pytest.mark.parametrize('val', ['val', 'validation'])
def test_root_is_found_from_itself_and_from_its_parent(tmp_path: Path, val: str) -> None:
    root = make_imagenette(tmp_path / 'parent' / 'data', val=val)
    (tmp_path / 'parent' / 'notes').mkdir()
    assert locate.find_root(root) == root
    assert locate.find_root(str(root.parent)) == root
    assert len(folders.load_split(root, 'validation')) == len(folders.load_split(root, 'val')) == 4


@pytest.mark.usefixtures('no_imagenette_dir')
def test_root_comes_from_the_environment_then_from_the_cache(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = make_imagenette(cache / 'imagenette2-160'), make_imagenette(cache / 'imagenette2-320')
    assert locate.find_root(None) == large
    shutil.rmtree(large / 'val')
    assert locate.find_root(None) == small
    mine = make_imagenette(tmp_path / 'mine')
    monkeypatch.setenv('IMAGENETTE_DIR', str(mine))
    assert locate.find_root(None) == mine
    monkeypatch.setenv('IMAGENETTE_DIR', str(tmp_path / 'gone'))
    with pytest.raises(UserError, match=r'IMAGENETTE_DIR .*gone does not exist'):
        locate.find_root(None)


@pytest.mark.parametrize('name', ['imagewoof', 'imagewang'])
def test_the_rest_of_the_family_is_found_by_its_name(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache; IMAGENETTE_DIR names an Imagenette."""
    monkeypatch.setenv('IMAGENETTE_DIR', str(make_imagenette(tmp_path / 'mine')))
    line = f'no {name.title()} found: run "imagenette-zoo data fetch {name} --size 160", or give --data-dir$'
    with pytest.raises(UserError, match=line) as error:
        resolve_dataset(name)
    assert_one_line(error)
    assert locate.root_name(name, None) is None
    root = make_imagenette(cache / constants.FAMILY[name]['320'])
    assert resolve_dataset(name) == locate.find_root(None, 'train', dataset=name) == root
    assert locate.root_name(name, None) == root.name
    assert resolve_dataset(name, tmp_path / 'mine') == tmp_path / 'mine'


def two_sets(place: Path) -> None:
    make_imagenette(place / 'one')
    make_imagenette(place / 'two')


def no_val(place: Path) -> None:
    make_imagenette(place)
    shutil.rmtree(place / 'val')


def no_train(place: Path) -> None:
    make_imagenette(place)
    shutil.rmtree(place / 'train')


@pytest.mark.parametrize(
    ('prepare', 'message'),
    [
        (lambda place: None, 'does not exist'),
        (lambda place: place.mkdir(), 'is empty'),
        (lambda place: (place / 'cats').mkdir(parents=True), r'found: cats'),
        (lambda place: place.write_text('hello'), 'is a file but not an archive'),
        (two_sets, r'holds 2 data sets \(one, two\)'),
        (no_val, r'no val/'),
        (no_train, r'no train/'),
    ],
)
def test_wrong_data_dir(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    place = tmp_path / 'place'
    prepare(place)
    with pytest.raises(UserError, match=message) as error:
        locate.find_root(place)
    assert_one_line(error)
    assert str(place) in str(error.value)


def test_a_folder_that_may_not_be_entered_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_imagenette(tmp_path / 'imagenette2')
    (tmp_path / 'lost+found').mkdir(mode=0o700)
    stat = os.stat

    def refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:  # as for a user who is not root
        if 'lost+found/' in str(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, 'stat', refuse)
    assert locate.find_root(tmp_path) == root
    with pytest.raises(UserError, match=r'lost\+found is empty'):
        locate.find_root(tmp_path / 'lost+found')


@pytest.mark.parametrize('place', ['x' * 300, '/x' * 3000, '~nosuchuser/x'])
def test_impossible_path(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='does not exist') as error:
        locate.find_root(place)
    assert_one_line(error)
    with pytest.raises(UserError, match='has no train/'):
        folders.load_split(place)
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', place)
    with pytest.raises(UserError, match='IMAGENETTE_ZOO_CACHE') as error:
        resolve_dataset('synthette')
    assert_one_line(error)


@pytest.mark.usefixtures('no_imagenette_dir')
def test_nothing_found_says_how_to_get_it() -> None:
    with pytest.raises(UserError, match='data fetch --size 160') as error:
        locate.find_root(None)
    assert_one_line(error)
    assert '--data-dir' in str(error.value)
    assert '--dataset synthette' in str(error.value)


def test_resolve_dataset(tmp_path: Path) -> None:
    root = make_imagenette(tmp_path / 'data')
    for dataset in ('', 'imagenette', 'folder'):
        assert resolve_dataset(dataset, root) == root
    with pytest.raises(UserError, match="'cifar' is unknown: expected one of imagenette, imagewoof, imagewang, folder"):
        resolve_dataset('cifar', root)
    with pytest.raises(UserError, match='contradict'):
        resolve_dataset('synthette', root)


def test_splits_of_other_names(tmp_path: Path) -> None:
    root = make_imagenette(tmp_path / 'parent' / 'data', val='Testing')
    (root / 'train').rename(root / 'Training')
    for splits in (('Training', 'Testing'), ('Training[:85%]', 'Training[85%:]'), ('Testing',)):
        for place in (root, root.parent):
            assert locate.find_root(place, *splits) == resolve_dataset('folder', place, *splits) == root
    archive = make_archive(tmp_path / 'set.tar', root)
    assert len(folders.load_split(locate.find_root(archive, 'Training', 'Testing'), 'Testing')) == 4
    for splits, message in {
        (): r'holds no train/ and val/ \(found: Testing, Training\): .* --train-split and --val-split$',
        ('Training', 'val'): r'has Training/ but no val/ \(or validation/\): add it or give another folder$',
        ('Learning', 'Testing'): r'has Testing/ but no Learning/: add it',
    }.items():
        with pytest.raises(UserError, match=message) as error:
            locate.find_root(root, *splits)
        assert_one_line(error)


def test_both_splits_have_the_classes_of_the_training_split(tmp_path: Path) -> None:
    root = make_imagenette(tmp_path / 'data')
    shutil.rmtree(root / 'val' / WNIDS[0])
    train, val = load_splits(DataOptions(data_dir=str(root), train_split='train[:50%]'))
    assert train.classes == val.classes == tuple(WNIDS[:2])
    assert (train.targets, val.targets) == ((0, 1), (1, 1))
    shutil.rmtree(root / 'train')
    with pytest.raises(UserError, match='has val/ but no train/'):
        load_splits(DataOptions(data_dir=str(root)))


def test_validation_images_need_no_training_images(tmp_path: Path) -> None:
    """Where these are there the classes are theirs."""
    root = make_imagenette(tmp_path / 'data')
    shutil.rmtree(root / 'val' / WNIDS[0])
    assert validation_images('', root, 'val').classes == tuple(WNIDS[:2])
    shutil.rmtree(root / 'train')
    assert validation_images('', root, 'val').classes == (WNIDS[1],)
