"""Finding, unpacking, downloading, listing, labelling, opening and checking image folders."""

import csv
import hashlib
import io
import os
import shutil
import socket
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from imagenette_zoo.cli import data
from imagenette_zoo.data import archives, check, constants, folders, images, locate
from imagenette_zoo.data.locate import resolve_dataset, validation_images
from imagenette_zoo.errors import UserError
from imagenette_zoo.utils import files

WNIDS = list(constants.IMAGENETTE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user cache."""
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def no_imagenette_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)


def gradient(width: int = 20, height: int = 12) -> np.ndarray:
    """RGB pixels that tell left from right and top from bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 250, height, dtype=np.uint8)[:, None]
    return pixels


def make_imagenette(root: Path, classes: list[str] = WNIDS[:2], count: int = 2, val: str = 'val') -> Path:
    for split in ('train', val):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(gradient(20 + i)).save(root / split / name / f'{name}_{i}.JPEG')
    return root


def make_archive(path: Path, folder: Path, name: str = 'imagenette2-160') -> Path:
    with tarfile.open(path, 'w:gz' if path.suffix in ('.tgz', '.gz') else 'w') as tar:
        tar.add(folder, name)
    return path


def assert_one_line(error: pytest.ExceptionInfo[UserError]) -> None:
    assert '\n' not in str(error.value)


# --- find_root --------------------------------------------------------------------------------------------------------


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
        (lambda place: place.write_text('hello'), 'is a file and no archive'),
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
    with pytest.raises(UserError, match="'cifar' is unknown: expected one of imagenette, folder, synthette"):
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


def test_validation_images_need_no_training_images(tmp_path: Path) -> None:
    """Where these are there the classes are theirs."""
    root = make_imagenette(tmp_path / 'data')
    shutil.rmtree(root / 'val' / WNIDS[0])
    assert validation_images('', root, 'val').classes == tuple(WNIDS[:2])
    shutil.rmtree(root / 'train')
    assert validation_images('', root, 'val').classes == (WNIDS[1],)


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['set.tgz', 'set.tar.gz', 'set.tar'])
def test_archive_is_unpacked_once(tmp_path: Path, cache: Path, name: str) -> None:
    archive = make_archive(tmp_path / name, make_imagenette(tmp_path / 'data'))
    root = locate.find_root(archive)
    assert cache in root.parents
    assert len(folders.load_split(root)) == 4
    (root / 'mark').touch()
    archive.rename(tmp_path / f'moved-{name}')
    assert locate.find_root(tmp_path / f'moved-{name}') == root
    assert (root / 'mark').exists()


def tar_with(path: Path, member: tarfile.TarInfo) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name in ('train/a/0.png', 'val/a/0.png'):
            tar.addfile(tarfile.TarInfo(name))
        tar.addfile(member)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = '') -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (member('/tmp/evil'), 'an absolute path'),
        (member('C:\\evil'), 'an absolute path'),
        (member('train/C:/evil'), 'an absolute path'),
        (member('train\\.\\c:evil'), 'an absolute path'),
        (member('train/../../evil'), r'a path with "\.\."'),
        (member('train\\..\\..\\evil'), r'a path with "\.\."'),
        (member('train/a/link', tarfile.SYMTYPE, '/etc/passwd'), 'a link'),
        (member('train/a/link', tarfile.LNKTYPE, 'train/a/0.png'), 'a link'),
        (member('train/a/null', tarfile.CHRTYPE), 'a device'),
        (member('train/a/pipe', tarfile.FIFOTYPE), 'a device'),
    ],
)
def test_unsafe_archive_is_refused(tmp_path: Path, cache: Path, bad: tarfile.TarInfo, message: str) -> None:
    archive = tar_with(tmp_path / 'set.tar', bad)
    with pytest.raises(UserError, match=message) as error:
        locate.find_root(archive)
    assert_one_line(error)
    assert list(cache.iterdir()) == []
    assert not list(tmp_path.rglob('evil'))


def with_header(name: str, value: str) -> tarfile.TarInfo:
    info = member('train/a/1.png')
    info.pax_headers = {name: value}
    return info


def tars(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(max(info.size, 0))))
    return path


@pytest.mark.parametrize(
    'bad',
    [
        [with_header('path', 'train/a\0b/1.png')],
        [with_header('GNU.sparse.map', 'x,y')],
        [with_header('GNU.sparse.size', 'many')],
        [member('.')],
        [member('train', tarfile.DIRTYPE), member('train')],
        [member('train'), member('train', tarfile.DIRTYPE)],
        [member('train'), member('train/a/0.png')],
        [member('train/a/' + 'x' * 300)],
    ],
)
def test_senseless_archive_is_refused(tmp_path: Path, cache: Path, bad: list[tarfile.TarInfo]) -> None:
    archive = tars(tmp_path / 'set.tar', member('notes', tarfile.DIRTYPE), *bad)
    with pytest.raises(UserError, match=r'set\.tar is truncated or corrupt') as error:
        locate.find_root(archive)
    assert_one_line(error)
    assert 'make room' not in str(error.value)
    assert list(cache.iterdir()) == []


def test_endless_chain_of_headers_is_refused(tmp_path: Path) -> None:
    header = member('././@LongLink', tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / 'set.tar').write_bytes(header * 3000)
    with pytest.raises(UserError, match='truncated or corrupt') as error:
        locate.find_root(tmp_path / 'set.tar')
    assert_one_line(error)


def test_archive_larger_than_the_disk_is_refused(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [member(f'{split}/a/0.png') for split in ('train', 'val')]
    for info in files:
        info.size = 600
    archive = tars(tmp_path / 'set.tar', *files)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1199))
    with pytest.raises(
        UserError, match=r"more than the free space in .*'val/a/0\.png' no longer fits.*make room"
    ) as error:
        locate.find_root(archive)
    assert_one_line(error)
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1200))
    assert locate.find_root(archive).parent == cache


def test_archive_that_denies_its_size_is_refused(tmp_path: Path) -> None:
    bad = member('train/a/1.png')
    header = bytearray(bad.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b'\xff' * 10 + (-512 & 0xFFFF).to_bytes(2, 'big')
    header[148:156] = f'{sum(header[:148]) + sum(header[156:]) + 8 * 32:06o}\0 '.encode()
    (tmp_path / 'set.tar').write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(UserError, match='negative size') as error:
        locate.find_root(tmp_path / 'set.tar')
    assert_one_line(error)


def test_archive_is_read_once_at_a_later_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / 'imagenette2-160.tgz', make_imagenette(tmp_path / 'data'))
    publish(monkeypatch, 'https://example.org/imagenette2-160.tgz', hashlib.md5(archive.read_bytes()).hexdigest())
    root = locate.find_root(archive)
    opened = []
    path_open = Path.open

    def count(path: Path, *args: Any, **options: Any) -> Any:
        opened.append(path)
        return path_open(path, *args, **options)

    monkeypatch.setattr(Path, 'open', count)
    assert locate.find_root(archive) == root
    assert opened == [archive]


def test_damaged_cache_names_the_remedy(tmp_path: Path, cache: Path) -> None:
    archive = make_archive(tmp_path / 'set.tgz', make_imagenette(tmp_path / 'data'))
    shutil.rmtree(locate.find_root(archive) / 'val')
    (folder,) = cache.iterdir()
    with pytest.raises(UserError, match=rf'{folder}.* hold train/ and val/: .* remove it to unpack it again') as error:
        locate.find_root(archive)
    assert_one_line(error)
    shutil.rmtree(folder)
    assert len(folders.load_split(locate.find_root(archive))) == 4


def with_wrong_byte(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def member_offset(archive: Path, index: int) -> int:
    with tarfile.open(archive) as tar:
        return tar.getmembers()[index].offset


@pytest.mark.parametrize('name', ['set.tgz', 'set.tar'])
def test_damaged_archive_is_refused(tmp_path: Path, cache: Path, name: str) -> None:
    data = make_archive(tmp_path / name, make_imagenette(tmp_path / 'data', count=20)).read_bytes()
    broken = {'half': data[: len(data) // 2], 'text': b'not a tar' * 200, 'empty': b''}
    if name.endswith('.tgz'):  # checksums: the file's content, and (last) the compressor's own
        broken |= {f'byte {i} wrong': with_wrong_byte(data, i) for i in (len(data) // 3, len(data) // 2, len(data) - 8)}
        broken['end missing'] = data[:-8]
    else:  # tarfile takes both of these for the end of the archive
        broken['header wrong'] = with_wrong_byte(data, member_offset(tmp_path / name, 10))
        broken['cut between members'] = data[: member_offset(tmp_path / name, 10)]
    for kind, content in broken.items():
        archive = tmp_path / f'{kind}-{name}'
        archive.write_bytes(content)
        with pytest.raises(UserError, match='download it again') as error:
            locate.find_root(archive)
        assert_one_line(error)
        assert str(archive) in str(error.value)
        assert not cache.exists() or list(cache.iterdir()) == []


def test_archive_without_a_data_set_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / 'data' / 'cats').mkdir(parents=True)
    archive = make_archive(tmp_path / 'set.tgz', tmp_path / 'data')
    with pytest.raises(UserError, match=r'archive .*set\.tgz holds no train/ and val/'):
        locate.find_root(archive)
    assert list(cache.iterdir()) == []


def test_official_name_means_official_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / 'imagenette2-160.tgz', make_imagenette(tmp_path / 'data'))
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f'expected md5 e793b78cc4c9e9a4ccc0c1155377a412, found {found}: download'):
        locate.find_root(archive)
    publish(monkeypatch, 'https://example.org/imagenette2-160.tgz', found)
    assert len(folders.load_split(locate.find_root(archive))) == 4


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').touch()
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'file' / 'cache'))
    archive = make_archive(tmp_path / 'set.tgz', make_imagenette(tmp_path / 'data'))
    with pytest.raises(UserError, match='IMAGENETTE_ZOO_CACHE') as error:
        locate.find_root(archive)
    assert_one_line(error)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with files.whole_folder(tmp_path / 'x') as folder:
            (folder / 'half').touch()
            raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match='No space left on device'):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / 'data'
    old, young, other, mine = (
        tmp_path / name for name in (f'.data.{"a" * 32}', f'.data.{"b" * 32}', f'.data-2.{"c" * 32}', '.data.backup')
    )
    for folder in (old, young, other, mine):
        touch(folder / 'file')
        if folder != young:
            os.utime(folder, (0, time.time() - 25 * 60 * 60))
    with files.whole_folder(target) as folder:
        touch(folder / 'file')
    assert sorted(tmp_path.iterdir()) == sorted([target, young, other, mine])


def test_an_empty_folder_in_the_way_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_as_on_windows(source: Path, target: Path) -> None:
        if os.path.exists(target):
            raise FileExistsError(17, 'File exists')
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, 'rename', rename_as_on_windows)
    target = tmp_path / 'target'
    target.mkdir()
    with files.whole_folder(target) as folder:
        (folder / 'file').write_text('kept')
    assert (target / 'file').read_text() == 'kept'
    assert list(tmp_path.iterdir()) == [target]


def test_folder_has_the_usual_mode_and_the_process_keeps_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / 'plain').mkdir()
    monkeypatch.setattr(os, 'umask', None)  # state of the whole process, other threads' too
    with files.whole_folder(tmp_path / 'target'):
        pass
    assert (tmp_path / 'target').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_two_at_once_make_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / 'target'
    with files.whole_folder(target) as first:
        (first / 'file').write_text('first')
        with files.whole_folder(target) as second:
            (second / 'file').write_text('second')
    assert (target / 'file').read_text() == 'second'
    assert list(tmp_path.iterdir()) == [target]


# --- fetch ------------------------------------------------------------------------------------------------------------


def publish(monkeypatch: pytest.MonkeyPatch, url: str, md5: str) -> None:
    from torchvision.datasets import Imagenette

    monkeypatch.setitem(Imagenette._ARCHIVES, '160px', (url, md5))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / 'www').mkdir()
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(tmp_path / 'www')))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}'
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.usefixtures('no_imagenette_dir')
def test_fetch(
    tmp_path: Path,
    cache: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = make_archive(tmp_path / 'www' / 'imagenette2-160.tgz', make_imagenette(tmp_path / 'data', WNIDS))
    url = f'{server}/imagenette2-160.tgz'

    publish(monkeypatch, url, '0' * 32)
    with pytest.raises(UserError, match='expected md5 00000') as error:
        archives.fetch('160')
    assert_one_line(error)
    assert list(cache.iterdir()) == []

    publish(monkeypatch, url, hashlib.md5(archive.read_bytes()).hexdigest())
    assert data.fetch_command('160') == 0
    captured = capsys.readouterr()
    assert str(cache / 'imagenette2-160') in captured.out
    assert captured.err == ''
    assert 'imagenette-zoo train finds it there' in captured.out
    root = locate.find_root(None)
    assert root == cache / 'imagenette2-160'
    assert sorted(path.name for path in root.iterdir()) == ['train', 'val']
    assert len(folders.load_split(root)) == 20

    archive.unlink()
    monkeypatch.setenv('IMAGENETTE_DIR', str(make_imagenette(cache / 'mine')))
    assert data.fetch_command('160') == 0  # no second download
    assert f'mine is what is used without --data-dir; give --data-dir {root}' in capsys.readouterr().out
    shutil.rmtree(root / 'val')
    with pytest.raises(UserError, match='imagenette2-160 exists but does not hold train/ and val/: remove it'):
        archives.fetch('160')


def test_fetch_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for url, reason in (
        (f'http://127.0.0.1:{port}/imagenette2-160.tgz', 'Connection refused'),
        (f'{server}/imagenette2-160.tgz', 'HTTP Error 404: File not found'),
    ):
        publish(monkeypatch, url, '0' * 32)
        with pytest.raises(UserError, match=reason) as error:
            archives.fetch('160')
        assert_one_line(error)
        assert url in str(error.value)
        assert list(cache.iterdir()) == []


def test_fetch_of_an_unknown_size() -> None:
    with pytest.raises(UserError, match="'64' is unknown: expected one of 160, 320, full"):
        archives.fetch('64')


# --- load_split -------------------------------------------------------------------------------------------------------


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_split_of_known_and_of_own_classes(tmp_path: Path) -> None:
    for name in ('train/n01440764/a.JPEG', 'train/n02086240/b.png', 'train/mine/deep/er/c.WebP', 'val/mine/d.tif'):
        touch(tmp_path / name)
    for name in ('train/mine/.hidden.png', 'train/mine/notes.txt', 'train/.git/x.png', 'train/list.png'):
        touch(tmp_path / name)
    train = folders.load_split(tmp_path)
    assert train.classes == ('mine', 'n01440764', 'n02086240')
    assert train.class_names == ('mine', 'tench', 'n02086240')
    assert train.paths == ('train/mine/deep/er/c.WebP', 'train/n01440764/a.JPEG', 'train/n02086240/b.png')
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
    with pytest.raises(UserError, match=r'mine gives train\[:50%\] no images') as error:
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


# --- open_image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [
        ('RGB', '.jpg'),
        ('L', '.jpg'),
        ('CMYK', '.jpg'),
        ('1', '.png'),
        ('LA', '.png'),
        ('RGBA', '.png'),
        ('P', '.png'),
        ('P', '.gif'),
        ('RGB', '.webp'),
        ('RGB', '.bmp'),
        ('CMYK', '.tif'),
        ('L', '.pgm'),
        ('RGB', '.ppm'),
    ],
)
def test_every_mode_is_read_as_timm_does(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f'image{suffix}'
    Image.fromarray(gradient()).convert(mode).save(path)
    image = images.open_image(path)
    assert (image.mode, image.size) == ('RGB', (20, 12))
    assert image.tobytes() == Image.open(path).convert('RGB').tobytes()
    error = np.abs(np.asarray(image, int) - np.asarray(Image.fromarray(gradient()).convert(mode).convert('RGB'), int))
    assert error.mean() < 12


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(gradient()).convert('P')
    image.save(tmp_path / 'a.png', transparency=bytes(range(256)))
    with warnings.catch_warnings(record=True) as expected_warnings:
        warnings.simplefilter('always')
        expected = Image.open(tmp_path / 'a.png').convert('RGB').tobytes()
    assert expected_warnings
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('always')
        assert images.open_image(tmp_path / 'a.png').tobytes() == expected
        for split in ('train', 'val'):
            touch(tmp_path / split / 'a' / 'a.png')
            shutil.copy(tmp_path / 'a.png', tmp_path / split / 'a')
        assert check.check(tmp_path).bad == ()
    assert shown == []


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_sixteen_bit_greyscale_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f'a{suffix}')
    pixels = np.asarray(images.open_image(tmp_path / f'a{suffix}'))
    assert (pixels == (values >> 8)[..., None]).all()


@pytest.mark.parametrize('high', [255, 65535])
def test_sixteen_bit_greyscale_of_either_byte_order(tmp_path: Path, high: int) -> None:
    values = np.linspace(0, high, 256).astype(np.uint16).reshape(16, 16)
    little, big = tmp_path / 'little.tif', tmp_path / 'big.tif'
    Image.fromarray(values).save(little)
    Image.frombytes('I;16B', (16, 16), values.astype('>u2').tobytes()).save(big)
    assert Image.open(big).mode == 'I;16B'
    assert images.open_image(big).tobytes() == images.open_image(little).tobytes()
    assert images.open_image(big).getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'quality': 100} if suffix != '.webp' else {'lossless': True}
    Image.fromarray(gradient(40, 24)).save(tmp_path / f'a{suffix}', exif=exif, **options)
    pixels = np.asarray(images.open_image(tmp_path / f'a{suffix}'), int)
    turned = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](gradient(40, 24))
    assert pixels.shape == turned.shape
    assert np.abs(pixels - turned).mean() < 4
    assert images.image_size(tmp_path / f'a{suffix}') == turned.shape[1::-1]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_beside_a_mistyped_tag(tmp_path: Path, orientation: int) -> None:
    good, odd = Image.Exif(), Image.Exif()
    good[0x0112] = odd[0x0112] = orientation
    odd[0x011A] = 72.0  # XResolution, a rational number ...
    exif = bytearray(odd.tobytes())
    entry = exif.index(b'\x01\x1a\x00\x05')
    exif[entry + 3] = 2  # ... stored as ASCII
    image = Image.fromarray(gradient(40, 24))
    image.save(tmp_path / 'good.jpg', exif=good)
    image.save(tmp_path / 'odd.jpg', exif=bytes(exif))
    with Image.open(tmp_path / 'good.jpg') as opened:
        expected = ImageOps.exif_transpose(opened).tobytes()
    assert images.open_image(tmp_path / 'good.jpg').tobytes() == expected
    assert images.open_image(tmp_path / 'odd.jpg').tobytes() == expected


def test_broken_exif_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / 'a.jpg', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert images.open_image(tmp_path / 'a.jpg').size == (20, 12)


def bad_image(path: Path, kind: str) -> None:
    data = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data, 'png' if path.suffix == '.png' else 'jpeg')
    content = data.getvalue()
    path.write_bytes({'half': content[: len(content) // 2], 'empty': b'', 'text': b'<html>'}[kind])


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize(
    ('kind', 'reason'),
    [('half', 'truncated'), ('empty', r'empty \(0 bytes\)'), ('text', 'not an image')],
)
def test_bad_image(tmp_path: Path, suffix: str, kind: str, reason: str) -> None:
    path = tmp_path / f'a{suffix}'
    bad_image(path, kind)
    with pytest.raises(UserError, match=reason) as error:
        images.open_image(path)
    assert str(path) in str(error.value)
    assert_one_line(error)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='cannot be read: No such file'):
        images.open_image(tmp_path / 'a.jpg')


@pytest.mark.parametrize('limit', [150, 50])  # Pillow warns above the limit and raises above twice the limit
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.fromarray(gradient(20, 12)).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
    with pytest.raises(UserError, match='too large') as error:
        images.open_image(tmp_path / 'a.png')
    assert_one_line(error)


# --- label noise ------------------------------------------------------------------------------------------------------


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


# --- check ------------------------------------------------------------------------------------------------------------


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


# --- the real data ----------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_real_imagenette_is_sound(imagenette_dir: Path) -> None:
    report = check.check(locate.find_root(imagenette_dir))
    assert report.bad == ()
    assert sum(entry.count for entry in report.classes) == 13394
    assert sum(entry.greyscale for entry in report.classes) == 242
    assert all(entry.other_modes == {} for entry in report.classes)
