"""Archives: unpacked once, the damaged and the hostile refused, the published ones downloaded."""

import gzip
import hashlib
import io
import shutil
import socket
import stat
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagenette_zoo.cli import data
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.groups import DataOptions
from imagenette_zoo.data import archives, constants, folders, hub_copies, locate
from imagenette_zoo.errors import UserError
from tests.data.imagenette import WNIDS, assert_one_line, make_archive, make_imagenette
from tests.hub import Hub, Repo

pytestmark = pytest.mark.usefixtures('cache')


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


def test_several_at_once_unpack_an_archive_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_archive(tmp_path / 'set.tar', make_imagenette(tmp_path / 'data'))
    unpacked: list[Path] = []
    extract = archives.extract

    def slowly(archive: Path, folder: Path) -> None:
        unpacked.append(folder)
        time.sleep(0.3)
        extract(archive, folder)

    monkeypatch.setattr(archives, 'extract', slowly)
    with ThreadPoolExecutor(3) as pool:
        roots = set(pool.map(locate.find_root, [archive] * 3))
    assert len(roots) == len(unpacked) == 1
    assert [path.suffix for path in cache.iterdir()] == [''], 'no lock is left behind'


def test_room_is_asked_for_where_it_is_missing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / 'set.tar', make_imagenette(tmp_path / 'data'))
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1))
    for folder, remedy in ((cache / 'x', 'make room there or set IMAGENETTE_ZOO_CACHE'), (tmp_path, 'room there$')):
        folder.mkdir(parents=True, exist_ok=True)
        with pytest.raises(UserError, match=f'free space in {folder.parent} .*{remedy}'):
            archives.extract(archive, folder)


def test_a_python_without_tarfiles_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 3.10.11 and 3.11.3: folders have the usual mode, links are refused."""
    monkeypatch.delattr(tarfile, 'data_filter', raising=False)
    root = locate.find_root(make_archive(tmp_path / 'set.tar', make_imagenette(tmp_path / 'data')))
    assert (root / 'train').stat().st_mode == (tmp_path / 'data' / 'train').stat().st_mode
    with pytest.raises(UserError, match='a link'):
        locate.find_root(tar_with(tmp_path / 'bad.tar', member('train/a/link', tarfile.SYMTYPE, '/etc/passwd')))


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


def refused(archive: Path, cache: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        locate.find_root(archive)
    assert_one_line(error)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize('kind', ['gnu', 'pax'])
def test_sparse_files_are_refused(tmp_path: Path, cache: Path, kind: str) -> None:
    """A few bytes that stand for 40 GB of nothing."""
    size = 40 * 2**30
    if kind == 'pax':
        info = member('train/a/1.png')
        info.pax_headers = {'GNU.sparse.map': '0,0', 'GNU.sparse.size': str(size)}
        refused(tars(tmp_path / 'set.tar', info), cache, 'a sparse file')
        return
    header = bytearray(member('train/a/1.png', tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b'%011o\0%011o\0' % (0, 0)
    header[483:495] = b'\x80' + size.to_bytes(11, 'big')
    header[148:156] = f'{sum(header[:148]) + sum(header[156:]) + 8 * 32:06o}\0 '.encode()
    (tmp_path / 'set.tar').write_bytes(bytes(header) + bytes(1024))
    refused(tmp_path / 'set.tar', cache, 'a sparse file')


def zips(path: Path, names: list[str], content: bytes = b'') -> Path:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(name, content)
    return path


def test_more_files_than_can_be_images_are_refused(tmp_path: Path, cache: Path) -> None:
    with tarfile.open(tmp_path / 'set.tgz', 'w:gz') as tar:
        for number in range(2000):
            tar.addfile(member(f'train/a/{number}.png'))
    refused(tmp_path / 'set.tgz', cache, 'more files than its size allows for images')


@pytest.mark.parametrize('suffix', ['.tgz', '.zip'])
def test_an_archive_that_grows_a_thousandfold_is_refused(
    tmp_path: Path, cache: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, 'FREE', (0, 1000))
    content, archive = bytes(2**20), tmp_path / f'set{suffix}'
    if suffix == '.tgz':
        with tarfile.open(archive, 'w:gz') as tar:
            for name in ('train/a/0.png', 'val/a/0.png'):
                info = member(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        zips(archive, ['train/a/0.png', 'val/a/0.png'], content)
    refused(archive, cache, 'unpacks to more data than its size allows for images')


def test_a_header_without_end_is_refused(tmp_path: Path, cache: Path) -> None:
    """tarfile keeps the headers of a file in memory."""
    info = member('././@LongLink', tarfile.GNUTYPE_LONGNAME)
    info.size = 2**21
    with gzip.open(tmp_path / 'set.tgz', 'wb') as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + b'a' * 2**21 + member('train/a').tobuf() + bytes(1024))
    refused(tmp_path / 'set.tgz', cache, 'a header of 2,097,152 bytes')


def test_a_zip_is_a_data_set_too(tmp_path: Path, cache: Path) -> None:
    root = make_imagenette(tmp_path / 'data')
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as packed:
        for path in sorted(root.rglob('*')):
            packed.write(path, Path('photos', 'mine', path.relative_to(root)))
        packed.writestr('__MACOSX/photos/mine/train/._a.JPEG', b'')
    inner = locate.find_root(tmp_path / 'set.zip' / 'photos')
    assert inner.name == 'mine'
    assert cache in inner.parents
    assert locate.find_root(tmp_path / 'set.zip' / 'photos' / 'mine') == inner
    assert len(folders.load_split(inner)) == 4
    assert folders.load_split(inner).passed_over == ()
    with pytest.raises(UserError, match='does not hold train/ and val/'):
        locate.find_root(tmp_path / 'set.zip' / 'other')


@pytest.mark.parametrize(
    ('name', 'mode', 'message'),
    [
        ('/tmp/evil', 0, 'an absolute path'),
        ('C:\\evil', 0, 'an absolute path'),
        ('train/../../evil', 0, r'a path with "\.\."'),
        ('train/a/link', stat.S_IFLNK, 'a link'),
        ('train/a/pipe', stat.S_IFIFO, 'a device'),
    ],
)
def test_unsafe_zip_is_refused(tmp_path: Path, cache: Path, name: str, mode: int, message: str) -> None:
    with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as packed:
        packed.writestr('train/a/0.png', b'')
        info = zipfile.ZipInfo(name)
        info.filename, info.external_attr = name, (mode | 0o644) << 16
        packed.writestr(info, b'/etc/passwd')
    refused(tmp_path / 'set.zip', cache, message)


def test_damaged_zip_is_refused(tmp_path: Path, cache: Path) -> None:
    data = zips(tmp_path / 'set.zip', ['train/a/0.png', 'val/a/0.png'], bytes(range(256)) * 9).read_bytes()
    for number, content in enumerate((data[:-30], b'no zip' * 200, with_wrong_byte(data, 60))):
        archive = tmp_path / f'{number}.zip'
        archive.write_bytes(content)
        with pytest.raises(UserError, match='is truncated or corrupt') as error:
            locate.find_root(archive)
        assert_one_line(error)
        assert not cache.exists() or list(cache.iterdir()) == []


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
    with pytest.raises(UserError, match=f'expected md5 e793b78cc4c9e9a4ccc0c1155377a412, found md5 {found}: download'):
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
    assert f'mine is used. Give --data-dir {root} to use or check this one.' in capsys.readouterr().out
    shutil.rmtree(root / 'val')
    with pytest.raises(UserError, match='imagenette2-160 exists but does not hold train/ and val/: remove it'):
        archives.fetch('160')


@pytest.mark.parametrize('name', ['imagewoof', 'imagewang'])
def test_fetch_of_the_family(
    name: str,
    tmp_path: Path,
    cache: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = constants.FAMILY[name]['160']
    content = make_imagenette(tmp_path / 'data', list(constants.IMAGEWOOF))
    if name == 'imagewang':
        shutil.copytree(content / 'val', content / 'unsup')
    file = make_archive(tmp_path / 'www' / f'{folder}.tgz', content, folder).read_bytes()
    monkeypatch.setattr(archives, 'URL', f'{server}/{{}}.tgz')
    with pytest.raises(UserError, match=f'expected {archives.FASTAI_CHECKS[folder][0]} bytes, md5 .* of the first MiB'):
        archives.fetch('160', name)
    assert list(cache.iterdir()) == []

    start = hashlib.md5(file[: 2**20]).hexdigest()
    monkeypatch.setitem(archives.FASTAI_CHECKS, folder, (len(file), start))
    assert main(['data', 'fetch', name, '--size', '160']) == 0
    shown = capsys.readouterr().out
    assert f'{name.title()} (160) is in {cache / folder}' in shown
    assert f'imagenette-zoo train --dataset {name} finds it there' in shown
    train, val = locate.load_splits(DataOptions(dataset=name))
    assert train.root == cache / folder
    assert train.class_names == val.class_names == tuple(constants.IMAGEWOOF.values())
    line = f'note: {cache / folder / "unsup"} is left out: its images have no labels that may be used'
    assert (line in shown) == (name == 'imagewang')
    assert main(['data', 'check', '--dataset', name]) == 0
    assert (line in capsys.readouterr().out) == (name == 'imagewang')

    moved = (tmp_path / 'www' / f'{folder}.tgz').rename(tmp_path / f'{folder}.tgz')
    assert len(folders.load_split(locate.find_root(moved))) == 20
    monkeypatch.setitem(archives.FASTAI_CHECKS, folder, (len(file) + 1, start))
    with pytest.raises(UserError, match=f'archive .*: expected {len(file) + 1} bytes.*: download it again'):
        locate.find_root(moved)


def test_the_checksums_of_the_family_are_fastais() -> None:
    names = {name for data in ('imagewoof', 'imagewang') for name in constants.FAMILY[data].values()}
    assert archives.FASTAI_CHECKS.keys() == names
    with pytest.raises(UserError, match="data set 'imagenet' is unknown: expected one of imagenette, imagewoof"):
        archives.fetch('160', 'imagenet')


def test_fetch_without_network(cache: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', f'http://127.0.0.1:{port}')
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


# --- Copies on the Hugging Face Hub -----------------------------------------------------------------------------------


def in_parquet(root: Path, split: str, classes: list[str]) -> bytes:
    """The images of a split as the Hub's copies have them."""
    import pyarrow
    import pyarrow.parquet

    paths = sorted((root / split).rglob('*.JPEG'))
    images = [{'bytes': path.read_bytes(), 'path': path.name} for path in paths]
    table = pyarrow.table({'image': images, 'label': [classes.index(path.parent.name) for path in paths]})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub's copies of an Imagenette and an Imagewoof of 20 images each; the archives' host does not answer."""
    pytest.importorskip('pyarrow')
    with Hub() as hub:
        monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', hub.url)
        template = f'{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
        monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE', template)
        for dataset, layout in (('imagenette', '{}-00000-of-00001'), ('imagewoof', '{}/0000')):
            classes = list(constants.IMAGENETTE if dataset == 'imagenette' else constants.IMAGEWOOF)
            root = make_imagenette(tmp_path / dataset, classes)
            files = {
                f'160px/{layout.format(name)}.parquet': in_parquet(root, split, classes)
                for split, name in (('train', 'train'), ('val', 'validation'))
            }
            repo = hub.repos[f'frgfm/{dataset}'] = Repo(private=False)
            repo.branches['refs/convert/parquet' if dataset == 'imagewoof' else 'old'] = files
            revisions = (repo.sha('old'),) if dataset == 'imagenette' else hub_copies.COPIES[dataset].revisions
            copy = hub_copies.COPIES[dataset]._replace(images={'train': 20, 'validation': 20}, revisions=revisions)
            monkeypatch.setitem(hub_copies.COPIES, dataset, copy)
        publish(monkeypatch, 'http://127.0.0.1:9/imagenette2-160.tgz', '0' * 32)
        monkeypatch.setattr(archives, 'URL', 'http://127.0.0.1:9/{}.tgz')
        yield hub


@pytest.mark.parametrize('dataset', ['imagenette', 'imagewoof'])
@pytest.mark.usefixtures('no_imagenette_dir')
def test_without_the_archives_host_the_hubs_copy_comes(
    dataset: str, hub: Hub, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['data', 'fetch', dataset]) == 0
    out, err = capsys.readouterr()
    repo = hub.repos[f'frgfm/{dataset}']
    address = f'https://huggingface.co/datasets/frgfm/{dataset}/tree/{repo.sha(list(repo.branches)[-1])}'
    assert f'note: it is the copy on the Hub, {address}, without noisy labels' in out
    assert err == ''
    root = cache / constants.FAMILY[dataset]['160']
    assert sorted(path.name for path in root.iterdir()) == ['origin.txt', 'train', 'val']
    copies, originals = (locate.load_splits(DataOptions(data_dir=str(place))) for place in (root, tmp_path / dataset))
    for images, same in zip(copies, originals, strict=True):
        assert (images.paths, images.targets, images.class_names) == (same.paths, same.targets, same.class_names)
        assert all((root / path).read_bytes() == (same.root / path).read_bytes() for path in images.paths)
    assert main(['data', 'fetch', dataset]) == 0
    assert address in capsys.readouterr().out
    assert locate.resolve_dataset(dataset) == root


def test_neither_the_archive_nor_a_copy_is_one_line(
    hub: Hub, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(dataset: str = 'imagewoof') -> str:
        with pytest.raises(UserError) as error:
            archives.fetch('160', dataset)
        assert_one_line(error)
        assert list(cache.iterdir()) == []
        assert str(error.value).startswith('cannot download http://127.0.0.1:9/image')
        return str(error.value)

    assert '(Connection refused); the Hub has no copy of Imagewang: check the network' in message('imagewang')
    files = hub.repos['frgfm/imagewoof'].branches['refs/convert/parquet']
    train = '160px/train/0000.parquet'
    good = files.pop(train)
    assert 'it has no 160px/ with all splits at main or refs/convert/parquet' in message()
    other_order = in_parquet(tmp_path / 'imagewoof', 'train', [*constants.IMAGEWOOF][::-1])
    for bad, part in {
        other_order: "image 'n02086240_0.JPEG' has the label 9, which cannot be right",
        b'none': ', train: cannot be read',
    }.items():
        files[train] = bad
        assert part in message()
    files[train] = good
    with monkeypatch.context() as patch:
        copy = hub_copies.COPIES['imagewoof']
        patch.setitem(hub_copies.COPIES, 'imagewoof', copy._replace(images={'train': 30, 'validation': 20}))
        assert ', train: holds 20 images: expected 30' in message()
        patch.setattr('tests.hub._sha256', lambda data: '0' * 64)
        assert '.parquet came damaged' in message()
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', 'http://127.0.0.1:9')
    assert 'its copy on the Hub, frgfm/imagewoof, cannot be had: ' in message()
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    assert 'its copy on the Hub needs pyarrow: pip install "imagenette-zoo[parquet]"' in message()
