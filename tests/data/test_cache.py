"""The cache of decoded images: whose pixels, when they are made anew, what two processes or a full disk do to it."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import filelock
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

import imagenette_zoo
from imagenette_zoo import train
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.groups import ValidationOptions
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data import cache, pipeline, processes
from imagenette_zoo.data import images as image_files
from imagenette_zoo.data.cache import eval_pixels, train_pixels, train_size
from imagenette_zoo.data.folders import ImageSet, load_split
from imagenette_zoo.data.loaders import CachedEvalBatches, CachedTrainBatches, FileBatches
from imagenette_zoo.errors import UserError
from imagenette_zoo.training.run import Run, open_folder, prepare
from imagenette_zoo.utils.console import Console, Progress
from imagenette_zoo.utils.distributed import World
from tests.conftest import changed, make_folder, needs_local_dir

MakeRecipe = Callable[..., Recipe]


class Listener(Console):
    """Remembers the lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str = '') -> None:
        self.lines.append(text)


QUIET = Console(quiet=True)
WORLD = World(torch.device('cpu'))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entries are; empty at first."""
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'decoded'


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return load_split(make_folder(tmp_path / 'data'))


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever the images are decoded."""
    found = []

    def spy(*args: Any) -> Any:
        found.append('decoded')
        return image_files.decoded(*args)

    monkeypatch.setattr(cache, 'decoded', spy)
    return found


def saved(root: Path, pictures: dict[str, Image.Image], **options: object) -> ImageSet:
    """A training split of these pictures."""
    (root / 'train' / 'class0').mkdir(parents=True)
    for name, picture in pictures.items():
        picture.save(root / 'train' / 'class0' / name, **options)
    return load_split(root)


def noise(height: int, width: int, mode: str = 'RGB') -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def opened(images: ImageSet) -> list[Image.Image]:
    """As timm opens them, but upright."""
    return [ImageOps.exif_transpose(Image.open(images.root / path)).convert('RGB') for path in images.paths]


def squashed(images: ImageSet, side: int) -> np.ndarray:
    return np.stack([image.resize((side, side), Image.Resampling.BICUBIC) for image in opened(images)])


def names(home: Path) -> list[str]:
    """What is in the cache, but for the locks."""
    return sorted(path.name for path in home.iterdir() if path.suffix != '.lock') if home.is_dir() else []


# --- Pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('size', 'crop_pct', 'interpolation', 'crop_mode'),
    [
        ((32, 32), 0.875, 'bicubic', 'center'),
        ((32, 32), 0.9, 'bilinear', 'border'),
        ((40, 40), 1.0, 'bicubic', 'squash'),
        ((33, 33), 0.95, 'lanczos', 'center'),
        ((24, 40), 0.95, 'bilinear', 'center'),
    ],
)
def test_evaluation_pixels_are_timms(
    tmp_path: Path, size: tuple[int, int], crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    """To the bit, for images larger and smaller than the crop, of odd sizes and all shapes."""
    sizes = [(37, 61), (91, 45), (33, 33), (20, 25), (101, 300), (32, 32)]
    images = saved(tmp_path / 'odd', {f'{index}.png': noise(*size) for index, size in enumerate(sizes)})
    parameters = dict(input_size=(3, *size), crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode)
    transform = create_transform(**parameters, use_prefetcher=True)
    wanted = [np.asarray(transform(image)).transpose(1, 2, 0) for image in opened(images)]
    assert np.array_equal(eval_pixels(images, transform, parameters, QUIET), np.stack(wanted))


def test_training_pixels_are_the_whole_image(tmp_path: Path) -> None:
    """Pillow's resize; squares of the stored side stay as they are."""
    images = saved(tmp_path / 'some', {'0.png': noise(50, 50), '1.png': noise(30, 70), '2.png': noise(90, 45)})
    pixels = train_pixels(images, 50, QUIET)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels[0], noise(50, 50))
    assert np.array_equal(pixels, squashed(images, 50))
    side, sizes = train_size(images, 224, QUIET)
    assert sizes.tolist() == [[50, 50], [30, 70], [90, 45]]
    assert side == 90, 'larger than any image'


@pytest.mark.parametrize(('img_size', 'side'), [(96, 224), (160, 256), (224, 352), (400, 500)])
def test_the_stored_size_is_half_as_large_again_as_the_crop(tmp_path: Path, img_size: int, side: int) -> None:
    images = saved(tmp_path / 'large', {'0.png': Image.new('RGB', (500, 20))})
    assert train_size(images, img_size, QUIET)[0] == side


def test_turned_photographs_are_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        images = saved(tmp_path / str(orientation), {'photo.jpg': noise(30, 50)}, exif=exif)
        assert np.array_equal(train_pixels(images, 40, QUIET), squashed(images, 40))
        _, sizes = train_size(images, 32, QUIET)
        assert sizes.tolist() == [[30, 50] if orientation < 5 else [50, 30]]


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1', 'CMYK'])
def test_images_that_are_not_rgb_are_stored_as_rgb(tmp_path: Path, mode: str) -> None:
    suffix = '.tif' if mode == 'CMYK' else '.png'
    images = saved(tmp_path / mode, {f'0{suffix}': noise(30, 50, mode)})
    assert Image.open(images.root / images.paths[0]).mode == mode
    assert np.array_equal(train_pixels(images, 40, QUIET), squashed(images, 40))


# --- When they are made anew ------------------------------------------------------------------------------------------


def test_images_are_decoded_once(images: ImageSet, decodes: list[str], home: Path) -> None:
    listener = Listener()
    first = train_pixels(images, 48, listener)
    [name] = names(home)
    assert len(listener.lines) == 1
    assert listener.lines[0].startswith('decoded 24 images once')
    assert listener.lines[0].endswith(str(home / name))
    second = train_pixels(load_split(images.root), 48, listener)
    assert np.array_equal(first, second)
    assert len(decodes) == len(listener.lines) == 1
    assert names(home) == [name]


def test_writing_into_the_pixels_leaves_the_file_alone(images: ImageSet, decodes: list[str]) -> None:
    first = train_pixels(images, 48, QUIET)
    before = first.copy()
    first[:] = 0
    assert np.array_equal(train_pixels(images, 48, QUIET), before)
    assert len(decodes) == 1


def test_other_parameters_are_another_entry(images: ImageSet, decodes: list[str], home: Path) -> None:
    train_pixels(images, 48, QUIET)
    train_pixels(images, 40, QUIET)
    parameters = dict(input_size=(3, 32, 32), crop_pct=0.875, interpolation='bicubic', crop_mode='center')
    others = [
        {},
        {'crop_pct': 0.9},
        {'interpolation': 'bilinear'},
        {'crop_mode': 'squash'},
        {'input_size': (3, 24, 24)},
    ]
    for other in others * 2:
        now = {**parameters, **other}
        eval_pixels(images, create_transform(**now, use_prefetcher=True), now, QUIET)
    assert len(decodes) == len(names(home)) == 2 + len(others)


@pytest.mark.parametrize('change', ['time', 'content', 'content of the same size', 'more', 'fewer'])
def test_other_files_replace_what_was_made_of_the_old_ones(
    images: ImageSet, tmp_path: Path, decodes: list[str], home: Path, change: str
) -> None:
    """What was made of another data set, of another split or with other parameters stays."""
    train_pixels(load_split(make_folder(tmp_path / 'other', seed=1)), 48, QUIET)
    train_pixels(load_split(images.root, 'val'), 48, QUIET)
    train_pixels(images, 40, QUIET)
    others = set(names(home))
    train_pixels(images, 48, QUIET)
    [old] = set(names(home)) - others
    path = images.root / images.paths[5]
    if change == 'time':
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == 'content':
        time = path.stat().st_mtime_ns
        noise(70, 90).save(path)
        os.utime(path, ns=(time, time))
    elif change == 'content of the same size':
        time, size = path.stat().st_mtime_ns, path.stat().st_size
        Image.new('RGB', (70, 90), 'red').save(path)
        path.write_bytes(path.read_bytes().ljust(size, b'\0'))
        assert path.stat().st_size == size
        os.utime(path, ns=(time, time))
    elif change == 'more':
        noise(70, 90).save(path.with_name('more.png'))
    else:
        path.unlink()
    now = load_split(images.root)
    assert np.array_equal(train_pixels(now, 48, QUIET), squashed(now, 48))
    assert others < set(names(home))
    assert old not in names(home)
    assert len(decodes) == len(names(home)) + 1 == 5


def test_another_machine_with_the_same_cache_keeps_its_entry(
    images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the same place on each, as copied at different times."""
    train_pixels(images, 48, QUIET)
    monkeypatch.setattr('platform.node', lambda: 'another')
    os.utime(images.root / images.paths[0], ns=(0, 1))
    train_pixels(images, 48, QUIET)
    assert len(names(home)) == 2


@pytest.mark.skipif(sys.platform == 'darwin', reason='file names are Unicode there')
def test_names_that_are_no_unicode(images: ImageSet, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images.root.rename(os.fsdecode(os.fsencode(images.root) + b'\xe9'))
    path = root / images.paths[0]
    path.rename(os.fsdecode(os.fsencode(path.parent) + b'/caf\xe9.png'))
    found = load_split(root, 'train[:100%]')
    assert np.array_equal(train_pixels(found, 48, QUIET), squashed(found, 48))
    assert cache.content_hash(found, QUIET) != cache.content_hash(load_split(root, 'val'), QUIET)
    assert main(['data', 'cache']) == 0
    assert r'data\udce9' in capsys.readouterr().out


def overwrite(path: Path, start: int, count: int) -> None:
    with path.open('r+b') as file:
        file.seek(start)
        file.write(bytes(count))


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    'half the rows': lambda entry: os.truncate(entry / 'rows.bin', (entry / 'rows.bin').stat().st_size // 2),
    'a zeroed middle': lambda entry: overwrite(entry / 'rows.bin', 12_345, 4096),
    'another bit': lambda entry: flip(entry / 'rows.bin', 98_765),
    'a zeroed end': lambda entry: overwrite(entry / 'rows.bin', (entry / 'rows.bin').stat().st_size - 1000, 1000),
    'no rows': lambda entry: (entry / 'rows.bin').unlink(),
    'no meta': lambda entry: (entry / 'meta.json').unlink(),
    'half a meta': lambda entry: os.truncate(entry / 'meta.json', 50),
    'a meta of something else': lambda entry: (entry / 'meta.json').write_text('[1, 2]'),
    'nothing': lambda entry: (shutil.rmtree(entry), entry.mkdir()),
    'a file': lambda entry: (shutil.rmtree(entry), entry.write_bytes(b'')),
    'a pipe': lambda entry: (shutil.rmtree(entry), os.mkfifo(entry)),
    'a pipe for rows': lambda entry: ((entry / 'rows.bin').unlink(), os.mkfifo(entry / 'rows.bin')),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_torn_entry_is_made_anew(images: ImageSet, decodes: list[str], home: Path, damage: str) -> None:
    before = train_pixels(images, 120, QUIET).copy()
    assert before.nbytes > 100_000
    [name] = names(home)
    DAMAGES[damage](home / name)
    assert np.array_equal(train_pixels(images, 120, QUIET), before)
    assert np.array_equal(train_pixels(images, 120, QUIET), before)
    assert len(decodes) == 2
    assert names(home) == [name]


def test_rows_are_read_whole_once_a_process(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    checksum = cache._checksum

    def count(file: Any) -> str:
        read.append(file.name)
        return checksum(file)

    monkeypatch.setattr(cache, '_checksum', count)
    before = train_pixels(images, 48, QUIET)
    assert len(read) == 2, 'when they are written, and when they are mapped'
    assert np.array_equal(train_pixels(images, 48, QUIET), before)
    assert len(read) == 2
    os.utime(home / names(home)[0] / 'rows.bin')
    train_pixels(images, 48, QUIET)
    assert len(read) == 3, 'they may have changed'


FOREIGN: dict[str, Any] = {
    'rows that all may write': lambda entry: (entry / 'rows.bin').chmod(0o666),
    'a meta that the group may write': lambda entry: (entry / 'meta.json').chmod(0o664),
    **{
        name: pytest.param(change, marks=pytest.mark.skipif(os.geteuid() != 0, reason='root alone gives files away'))
        for name, change in {
            "another user's rows": lambda entry: os.chown(entry / 'rows.bin', 65534, -1),
            "another user's meta": lambda entry: os.chown(entry / 'meta.json', 65534, -1),
        }.items()
    },
}


@pytest.mark.parametrize('change', FOREIGN.values(), ids=FOREIGN)
def test_what_others_can_change_is_not_mapped(
    images: ImageSet, decodes: list[str], home: Path, change: Callable[[Path], object]
) -> None:
    before = train_pixels(images, 48, QUIET).copy()
    [name] = names(home)
    change(home / name)
    for _ in range(2):
        assert np.array_equal(train_pixels(images, 48, QUIET), before)
    assert len(decodes) == 2
    assert names(home) == [name]


def test_an_entry_is_closed_whatever_the_umask(images: ImageSet, decodes: list[str], home: Path) -> None:
    umask = os.umask(0)
    try:
        for _ in range(2):
            train_pixels(images, 48, QUIET)
    finally:
        os.umask(umask)
    [name] = names(home)
    assert not any(path.stat().st_mode & 0o022 for path in [home / name, *(home / name).iterdir()])
    assert len(decodes) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason='root alone gives files away')
def test_in_another_users_cache_one_has_a_folder_of_ones_own(images: ImageSet, home: Path) -> None:
    train_pixels(images, 48, QUIET)
    [theirs] = cache.entries()
    for path in (home.parent, home, *home.rglob('*')):
        os.chown(path, 65534, -1)
    assert train_pixels(images, 48, QUIET).shape == (24, 48, 48, 3)
    [mine] = cache.entries()
    assert mine.folder.parent == home.with_name('decoded-0')
    cache.clear()
    assert theirs.folder.exists()


def test_where_files_are_never_ones_own(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on disks that know no users."""
    monkeypatch.setattr(cache, 'is_own', lambda _: False)
    with pytest.raises(UserError, match=r'decoded images must be your own.*IMAGENETTE_ZOO_CACHE.*--loader timm'):
        train_pixels(images, 48, QUIET)
    assert names(home) == []


# --- What does not succeed leaves nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize('content', [b'', b'no image', b'\x89PNG'])
def test_a_bad_image_is_named(images: ImageSet, home: Path, content: bytes) -> None:
    path = images.root / images.paths[-1]
    path.write_bytes(content or path.read_bytes()[:300])
    with pytest.raises(UserError, match=f'^image {path} '):
        train_pixels(images, 48, QUIET)
    assert names(home) == []
    path.unlink()
    with pytest.raises(UserError, match=f'^image {path} cannot be read'):
        train_pixels(images, 48, QUIET)
    assert names(home) == []


@pytest.mark.parametrize('loader', ['cache', 'timm'])
def test_an_image_of_which_resizing_would_make_gigabytes_is_named(
    recipe: MakeRecipe, tmp_path: Path, loader: str
) -> None:
    data = make_folder(tmp_path / 'data')
    Image.new('RGB', (4000, 2)).save(data / 'val' / 'class1' / 'long.png')
    with pytest.raises(UserError, match=r'long.png is 4000 × 2 px: expected at most 100 times as long as wide'):
        train(recipe(data_dir=str(data), epochs=1, loader=loader), quiet=True)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
@pytest.mark.parametrize('loader', ['cache', 'timm'])
def test_a_training_opens_no_pipe_and_says_what_it_passes_over(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], loader: str
) -> None:
    data = make_folder(tmp_path / 'data')
    os.mkfifo(data / 'train' / 'class0' / 'pipe.JPEG')
    (data / 'train' / 'class1' / 'a.heic').touch()
    train(recipe(data_dir=str(data), epochs=1, loader=loader))
    printed = capsys.readouterr().out
    assert 'note: 2 file(s) of train skipped: 1 no regular file (train/class0/pipe.JPEG), 1 .heic' in printed
    assert 'of val skipped' not in printed


def test_an_interrupt_leaves_nothing(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Progress, count: int) -> None:
        if (home / names(home)[0] / 'rows.bin').exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, 'advance', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_pixels(images, 48, QUIET)
    assert names(home) == []
    monkeypatch.undo()
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(home.parent))
    assert np.array_equal(train_pixels(images, 48, QUIET), squashed(images, 48))


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that processes decode."""
    monkeypatch.setattr(cache, 'available_cores', lambda: 6)
    monkeypatch.setattr(processes, 'AT_LEAST', 1)


@pytest.mark.usefixtures('six_cores')
def test_processes_make_the_same(images: ImageSet, decodes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(Progress, 'advance', lambda self, count: done.append(count))
    assert np.array_equal(train_pixels(images, 48, QUIET), squashed(images, 48))
    assert done == [1] * len(images), 'a step of the bar is an image'
    assert not decodes, 'not in this process'


@pytest.mark.usefixtures('six_cores')
def test_processes_tell_of_a_full_disk(images: ImageSet, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=2**40))
    with pytest.raises(UserError, match=f'^cannot fill {small_disk}.*No space left on device.*IMAGENETTE_ZOO_CACHE'):
        train_pixels(images, 224, QUIET)
    assert names(small_disk) == []


@pytest.mark.usefixtures('six_cores')
def test_processes_tell_what_is_wrong(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = images.root / images.paths[5]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f'^image {path} '):
        train_pixels(images, 48, QUIET)
    monkeypatch.setattr(image_files, 'decode', lambda path, channels: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r'a process ended with .* images to do'):
        train_pixels(images, 48, QUIET)
    monkeypatch.setattr(image_files, 'decode', lambda path, channels: {}['wrong'])
    with pytest.raises(RuntimeError, match='KeyError'):
        train_pixels(images, 48, QUIET)
    assert names(home) == []
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures('six_cores')
def test_where_there_are_no_more_processes_threads_decode(
    images: ImageSet, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], multiprocessing.get_context('fork').Process.start

    def refuse(self: Any) -> None:
        if len(started) == 3:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(start(self))

    monkeypatch.setattr(multiprocessing.get_context('fork').Process, 'start', refuse)
    assert np.array_equal(train_pixels(images, 48, QUIET), squashed(images, 48))
    assert len(started) == 3
    assert len(decodes) == 1
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_end_with_their_first(tmp_path: Path) -> None:
    script = f"""
import os, time
from pathlib import Path
from imagenette_zoo.data.processes import in_processes

def work(k, processes):
    for item in range(100):
        Path({str(tmp_path)!r}, f'{{k}}').write_text(str(item))
        time.sleep(0.05)
        yield

for _ in in_processes(work, 200, 2):
    os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, '-c', script], check=False)
    assert done.returncode == -signal.SIGKILL
    time.sleep(0.5)
    before = [path.read_text() for path in tmp_path.iterdir()]
    time.sleep(0.5)
    assert [path.read_text() for path in tmp_path.iterdir()] == before
    assert len(before) == 2


@pytest.mark.usefixtures('six_cores')
def test_an_interrupt_ends_the_processes(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Progress, count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, 'advance', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_pixels(images, 48, QUIET)
    assert names(home) == []
    assert not multiprocessing.active_children()


class Builder(NamedTuple):
    """Another process, which has begun to decode and goes on when it is told to."""

    process: multiprocessing.process.BaseProcess
    go_on: Event


@pytest.fixture
def builder(images: ImageSet) -> Iterator[Builder]:
    context = multiprocessing.get_context('fork')
    begun, go_on = context.Event(), context.Event()

    def build() -> None:
        decode = image_files.decode

        def wait_at_the_last(path: Path, channels: int) -> Any:
            if str(path).endswith(images.paths[-1]):
                begun.set()
                go_on.wait()
            return decode(path, channels)

        image_files.decode = wait_at_the_last
        train_pixels(images, 48, QUIET)

    process = context.Process(target=build)
    process.start()
    assert begun.wait(60)
    yield Builder(process, go_on)
    process.kill()
    process.join()


def test_a_disk_without_locks_is_one_line(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError('FileSystem does not appear to support flock')

    monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
    with pytest.raises(UserError, match='does not appear to support flock; set IMAGENETTE_ZOO_CACHE'):
        train_pixels(images, 48, QUIET)
    cache.clear()


def test_the_second_process_waits_for_the_first(builder: Builder, images: ImageSet, decodes: list[str]) -> None:
    class Waiting(Listener):
        def line(self, text: str = '') -> None:
            super().line(text)
            builder.go_on.set()

    console = Waiting()
    pixels = train_pixels(images, 48, console)
    assert console.lines == ['another process is decoding these images: waiting for it']
    assert not decodes
    assert np.array_equal(pixels, squashed(images, 48))
    builder.process.join()
    assert builder.process.exitcode == 0


def test_what_a_killed_process_left_does_not_matter(
    builder: Builder, images: ImageSet, decodes: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what a process is making is not cleared away under it."""
    [half_made] = names(home)
    assert main(['data', 'cache', '--clear']) == 0
    assert 'kept 1: another process is writing them' in capsys.readouterr().out
    assert names(home) == [half_made]
    builder.process.kill()
    builder.process.join()
    assert names(home) == [half_made]
    assert cache.entries() == []
    listener = Listener()
    pixels = train_pixels(images, 48, listener)
    assert np.array_equal(pixels, squashed(images, 48))
    assert not any('another process' in line for line in listener.lines)
    assert len(decodes) == 1
    assert [half_made] != names(home) == [entry.folder.name for entry in cache.entries()]


def test_what_was_about_to_become_an_entry_is_none(images: ImageSet, home: Path) -> None:
    """A process that was killed between the last byte and the renaming."""
    train_pixels(images, 48, QUIET)
    [name] = names(home)
    (home / name).rename(home / f'.{name}.{32 * "0"}')
    assert cache.entries() == []
    assert cache.clear()[0] > 24 * 48 * 48 * 3
    assert names(home) == []


def test_entries_of_another_user_do_not_keep_ones_own(
    images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_pixels(images, 48, QUIET)
    train_pixels(images, 40, QUIET)
    theirs = names(home)[0]
    acquire = filelock.FileLock.acquire

    def refuse(lock: filelock.FileLock, *args: Any, **options: Any) -> Any:
        if theirs in str(lock.lock_file):
            raise PermissionError(13, 'Permission denied')
        return acquire(lock, *args, **options)

    monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
    freed, left = cache.clear()
    assert 24 * 40 * 40 * 3 < freed < 24 * (40 * 40 + 48 * 48) * 3
    assert left == [theirs]
    assert names(home) == [theirs]
    with pytest.raises(UserError, match=r'cannot clear .*Permission denied'):
        cache.clear()


# --- Room -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache on a disk of 1 MiB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
    if not shutil.which('mount') or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip('no file system can be mounted here')
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(disk / 'cache'))
    yield disk / 'cache' / 'decoded'
    subprocess.run(['umount', '--lazy', str(disk)], check=True)


def test_without_room_nothing_is_begun(images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r'need 3 MiB and .* has 1 MiB free: .*IMAGENETTE_ZOO_CACHE.*--loader timm'):
        train_pixels(images, 224, QUIET)
    assert names(home) == []


def test_a_disk_that_becomes_full(images: ImageSet, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is measured, and where another takes it in the meantime nothing half-made stays."""
    with pytest.raises(UserError, match='need 3 MiB'):
        train_pixels(images, 224, QUIET)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=2**40))
    with pytest.raises(UserError, match=f'^cannot fill {small_disk}.*No space left on device.*IMAGENETTE_ZOO_CACHE'):
        train_pixels(images, 224, QUIET)
    assert names(small_disk) == []
    assert len(train_pixels(images, 60, QUIET)) == 24, 'smaller ones fit'


@pytest.mark.parametrize('seconds', [0.0, 0.5], ids=['before the end', 'at the end'])
def test_what_fails_while_it_is_written_behind(
    images: ImageSet, home: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """The system tells a failure once, to whoever syncs first; pixels are the same with and without."""
    whole, results = train_pixels(images, 48, QUIET).tobytes(), iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def sync(file: int) -> None:
        if threading.current_thread() is threading.main_thread():
            return
        if error := next(results, None):
            time.sleep(seconds)
            raise error

    cache.clear()
    monkeypatch.setattr(cache, 'WRITTEN_BEHIND', 1)
    monkeypatch.setattr(os, 'fsync', sync)
    with pytest.raises(UserError, match='Input/output error'):
        train_pixels(images, 48, QUIET)
    assert names(home) == []
    assert train_pixels(images, 48, QUIET).tobytes() == whole


def test_a_cache_that_cannot_be_written(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'file' / 'below'))
    with pytest.raises(UserError, match=f'cannot write to {tmp_path}/file/below.*IMAGENETTE_ZOO_CACHE.*--loader timm'):
        train_pixels(images, 48, QUIET)
    assert main(['data', 'cache']) == main(['data', 'cache', '--clear']) == 0
    assert 'no decoded images' in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_read_only_cache_can_be_read(images: ImageSet, home: Path) -> None:
    before = train_pixels(images, 48, QUIET)
    for path in [*home.rglob('*'), home]:
        path.chmod(0o500)
    try:
        assert np.array_equal(train_pixels(images, 48, QUIET), before)
        with pytest.raises(UserError, match='cannot write to'):
            train_pixels(images, 40, QUIET)
        with pytest.raises(UserError, match='cannot clear'):
            cache.clear()
        assert np.array_equal(train_pixels(images, 48, QUIET), before)
    finally:
        for path in [home, *home.iterdir()]:
            path.chmod(0o700)


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_entries_are_listed_and_cleared(
    images: ImageSet, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ['--list']):
        assert main(['data', 'cache', *words]) == 0
        assert capsys.readouterr().out == f'no decoded images in {home}\n'
    train_size(images, 32, QUIET)
    pixels = train_pixels(images, 224, QUIET)
    kept = pixels[3].copy()
    for kind, used in (('train', 0), ('sizes', 1_000_000_000)):
        [folder] = [entry.folder for entry in cache.entries() if entry.what['kind'] == kind]
        os.utime(folder, (used, used))
    train_pixels(images, 224, QUIET)  # a use
    found = cache.entries()
    assert [(entry.what['kind'], entry.shape) for entry in found] == [('train', (24, 224, 224, 3)), ('sizes', (24, 2))]
    assert [entry.size for entry in found] == [24 * 224 * 224 * 3, 24 * 2 * 4]
    assert {(entry.data, entry.split) for entry in found} == {(str(images.root), 'train')}

    assert main(['data', 'cache']) == 0
    header, first, second, _, total = capsys.readouterr().out.splitlines()
    assert header.split() == ['data', 'split', 'kind', 'images', 'px', 'MiB', 'last', 'used']
    assert first.split()[:6] == [str(images.root), 'train', 'train', '24', '224×224', '3.4']
    assert second.split()[:6] == [str(images.root), 'train', 'sizes', '24', '-', '0.0']
    assert second.split()[6] in ('2001-09-08', '2001-09-09')  # by the time zone
    assert total.startswith(f'3 MiB in {home}')

    meta = home / found[1].folder.name / 'meta.json'
    sound = json.loads(meta.read_text())
    for damage in ({'what': None}, {'what': {'kine': 'sizes'}}, {'data': 5}, {'shape': 3}):
        meta.write_text(json.dumps({**sound, **damage}))
        assert main(['data', 'cache']) == 0
        assert len(capsys.readouterr().out.splitlines()) == 4, 'the other one is listed'
    meta.write_text('torn')
    assert main(['data', 'cache', '--clear']) == 0
    assert capsys.readouterr().out == 'freed 3 MiB\n'
    assert list(home.iterdir()) == []
    assert np.array_equal(pixels[3], kept), 'what is in use can be used further'
    assert main(['data', 'cache', '--clear']) == 0
    assert capsys.readouterr().out == 'freed 0 MiB\n'
    assert (tmp_path / 'data' / 'train').is_dir()


# --- Training and validation ------------------------------------------------------------------------------------------


@needs_local_dir
def test_both_loaders_train_and_validate_to_the_same(recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on other draws; validated on the same pixels."""
    results = {}
    for loader in ('cache', 'timm'):
        run = train(recipe(loader=loader, experiment=loader)).folder
        assert (capsys.readouterr().out.count('decoded 24 images once')) == (loader == 'cache')
        for other in ('cache', 'timm'):
            [result] = imagenette_zoo.validate(run, recipe().data_dir, loader=other, workers=0, quiet=True)
            results[loader, other] = result.top1, result.top5, result.loss, result.confusion
    assert results['cache', 'cache'] == results['cache', 'timm'] != results['timm', 'timm'] == results['timm', 'cache']


def test_validation_options_reach_the_cached_pixels(images: ImageSet) -> None:
    """Whatever was cached before with others."""
    common = dict(input_size=(3, 32, 32), interpolation='bicubic', crop_pct=0.875, crop_mode='center', mean=(0.5,) * 3)
    seen = set()
    for other in (
        {},
        {'crop_pct': 1.0},
        {'interpolation': 'nearest'},
        {'crop_mode': 'squash'},
        {'input_size': (3, 24, 24)},
        {'crop_mode': 'border'},
        {'crop_mode': 'border', 'mean': (0.1, 0.2, 0.3)},
    ):
        pixels = [
            torch.cat([b for b, _ in pipeline.eval_batches(options, images, {**common, **other}, 5, WORLD, QUIET)])
            for options in (ValidationOptions(loader='cache'), ValidationOptions(loader='timm', workers=0))
        ]
        assert torch.equal(*pixels), other
        seen.add(pixels[0].numpy().tobytes())
    assert len(seen) == 7


def prepared(recipe: Recipe, console: Console) -> Run:
    folder, state, _ = open_folder(recipe)
    run = prepare(recipe, folder, state, WORLD, console)
    folder.unlock()
    return run


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        (dict(aa='rand-m9-mstd0.5'), '--aa'),
        (dict(no_aug=True), '--no-aug'),
        (dict(gaussian_blur_prob=0.1), '--gaussian-blur-prob'),
        (dict(train_crop_mode='rkrc'), '--train-crop-mode rkrc'),
        (dict(train_interpolation='lanczos'), '--train-interpolation lanczos'),
    ],
)
def test_what_only_timms_transforms_can_do(recipe: MakeRecipe, options: dict[str, object], named: str) -> None:
    """auto takes them for the training images; cache says that it can't."""
    data = prepared(recipe(**options), QUIET).data
    assert isinstance(data.train_batches, FileBatches)
    assert isinstance(data.val_batches, CachedEvalBatches)
    with pytest.raises(UserError, match=f'--loader cache.*{named}.*--loader timm'):
        train(recipe(**options, loader='cache', experiment='other'), quiet=True)


def test_which_loader_auto_and_timm_take(recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(recipe(experiment='a'), QUIET).data
    assert isinstance(data.train_batches, CachedTrainBatches)
    data = prepared(recipe(loader='timm', experiment='b'), QUIET).data
    assert isinstance(data.train_batches, FileBatches)
    assert isinstance(data.val_batches, FileBatches)
    monkeypatch.setattr('imagenette_zoo.data.pipeline.LARGEST_CACHE', 2**20)
    console = Listener()
    data = prepared(recipe(experiment='c'), console).data
    assert isinstance(data.train_batches, FileBatches)
    assert 'decoded in every epoch; --loader cache keeps them in any case' in console.lines[0]
    data = prepared(recipe(loader='cache', experiment='d'), QUIET).data
    assert isinstance(data.train_batches, CachedTrainBatches)


def test_augmentation_that_the_cache_can_not_do_is_one_line(
    recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    values = changed(recipe(loader='cache', aa='rand-m9-mstd0.5'))
    assert main(['train', *(f'--{name.replace("_", "-")}={value}' for name, value in values.items())]) == 2
    assert capsys.readouterr().err == 'error: --loader cache: cannot do --aa: use --loader timm\n'
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('channels', [1, 3])
def test_channels_have_entries_of_their_own(folder: Path, channels: int) -> None:
    images = replace(load_split(folder), channels=channels)
    before = train_pixels(load_split(folder), 48, QUIET)
    pixels = train_pixels(images, 48, QUIET)
    assert pixels.shape == (len(images), 48, 48, channels)
    first = image_files.open_image(images.root / images.paths[0], channels=channels).resize((48, 48))
    assert np.array_equal(pixels[0].squeeze(), np.asarray(first))
    assert len({entry.folder for entry in cache.entries()}) == (1 if channels == 3 else 2)
    assert np.array_equal(train_pixels(load_split(folder), 48, QUIET), before)
