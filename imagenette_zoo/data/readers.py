"""Data sets that timm's readers read: tars, and those of Hugging Face, WebDataset, TensorFlow and torchvision.

Each split is written once into the user cache, as a folder of images by class: the bytes of the files where the reader
gives them, else PNG or TIFF. From there on it is an image folder like any other: the same pixels in the same order.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from unittest import mock

from timm.data import create_dataset
from timm.data.readers import img_extensions, reader_wds
from timm.data.readers.reader_factory import create_reader
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..config.groups import SOURCES, DataOptions
from ..errors import UserError, first_line
from ..utils.files import cache_dir, file_stem, one_at_a_time, to_json, whole_folder
from ..utils.reading import read_errors, read_text
from .constants import IMAGE_EXTENSIONS
from .folders import ORDER_FILE, SPLITS, is_hidden, parse_slice, spellings
from .images import open_file, turn_of

__all__ = ['Sample', 'as_folder', 'is_read', 'write_split']

NEEDS = {  # module, and the packages that are to be installed for it
    'hfds/': ('datasets', 'datasets'),
    'wds/': ('webdataset', 'webdataset'),
    'tfds/': ('tensorflow_datasets', 'tensorflow-datasets tensorflow'),
}
FOLDERS = ('torch/imagenette', 'torch/image_folder', 'torch/folder')  # of torchvision, which are image folders already
FORMAT = 2  # of what is read: with a reader that was mended, folders are made anew
LARGEST_FILE = 2**30  # bytes of an image in a tar
MOST_CLASSES = 10**6

PNG_MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16')
TIFF_MODES = ('I', 'I;16B', 'F', 'CMYK', 'YCbCr', 'LAB', 'RGBX')  # of which PNG would lose values

# The class index of an image, its file's name if it has one, and its bytes.
Sample = tuple[int, str, bytes]


def is_read(dataset: str, data_dir: str | Path | None, *splits: str) -> bool:
    """Whether a data set is one for `as_folder`: by its name, or since its splits are tars."""
    if dataset.startswith(SOURCES):
        return dataset not in FOLDERS
    root = '' if dataset == 'synthette' else os.path.expanduser(data_dir or '')
    return bool(root) and all(_tars(root, parse_slice(split)[0]) for split in splits or SPLITS)


def as_folder(dataset: str, data_dir: str | Path | None, splits: Sequence[str], options: DataOptions) -> Path:
    """The folder of the user cache that holds the splits; what is not there yet is read.

    Args:
        dataset: The name, as `hfds/OWNER/NAME`; nothing for tars.
        data_dir: Where the data are, or where their package keeps them.
        splits: Their names, as `load_split` takes them.
        options: `input_key`, `target_key`, `class_map`, `train_num_samples` and `train_split`.

    Raises:
        UserError: A package is missing, there is no such data set or split, or an image or a label in it is bad.
    """
    source = dataset if dataset.startswith(SOURCES) else ''
    prefix = source.partition('/')[0] + '/'
    module, packages = NEEDS.get(prefix, ('timm', ''))
    if importlib.util.find_spec(module) is None:
        raise UserError(f'--dataset {dataset} needs a package: pip install {packages}')
    root = os.path.abspath(os.path.expanduser(data_dir)) if data_dir else None
    if root is None and prefix in ('wds/', 'torch/'):
        raise UserError(f'--dataset {dataset}: give the folder of its files by --data-dir')
    _check_options(prefix if source else 'tars', options)
    class_map = _class_map(options.class_map)
    place = Path(source.removeprefix(prefix) if prefix == 'hfds/' else root or '')
    chosen = options.input_key, options.target_key, class_map, options.train_num_samples
    what = json.dumps([FORMAT, source, root, chosen, _state(place)])
    key = hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
    folder = cache_dir() / 'datasets' / key / (file_stem(source.rstrip('/')) if source else Path(root or '').name)
    for split in dict.fromkeys(parse_slice(split)[0] for split in splits or SPLITS):
        target = folder / _file_name(spellings(split)[0])
        what = f'--dataset {source}, split {split}' if source else f'{root}, split {split}'
        if target.is_dir():
            continue
        with one_at_a_time(target):
            if target.is_dir():  # another process may just have made it
                continue
            count = options.train_num_samples if split == parse_slice(options.train_split)[0] else None
            with whole_folder(target) as temporary:
                with _in_one_line(what):
                    classes, samples = _samples(source, root, split, class_map, options)
                write_split(temporary, classes, islice(samples, count), what)
    return folder


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """What a reader raises, as a `UserError`: they report what they can't read in many ways."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{what}: {error}') from None
    except KeyError as error:
        raise UserError(
            f'{what}: has no field {error}: choose by --input-key and --target-key; or it is a class that --class-map '
            'lacks'
        ) from error
    except Exception as error:
        raise UserError(f'{what}: cannot be read: {first_line(error)[:200]}') from error


def _readable(samples: Iterable[Sample], what: str) -> Iterator[Sample]:
    with _in_one_line(what):
        empty = True
        for sample in samples:
            empty = False
            yield sample
        if empty:
            raise UserError('holds no images')


def _state(place: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files of a data set, where they are at hand."""
    files = sorted(path for path in place.rglob('*') if path.is_file()) if str(place) != '.' and place.is_dir() else []
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _class_map(path: str | None) -> dict[str, int] | None:
    if path is None:
        return None
    if not path.endswith('.txt') or not os.path.isfile(path):  # a pickle runs code in some versions of timm
        raise UserError(f'--class-map {path}: expected a .txt file with a class a line')
    with read_errors(path, 'a --class-map'):
        names = [line.strip() for line in read_text(path).rstrip().split('\n')]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError('a line is empty or there twice')
    return {name: index for index, name in enumerate(names)}


def _check_options(kind: str, options: DataOptions) -> None:
    """Raises `UserError` where an option has no effect on this kind of data set."""
    keys = () if kind in ('tars', 'torch/') else ('input_key', 'target_key')
    known = (*keys, *(() if kind == 'torch/' else ('class_map',)))
    for name in ('input_key', 'target_key', 'class_map'):
        if getattr(options, name) is not None and name not in known:
            raise UserError(f"--{name.replace('_', '-')}: has no effect on {kind.strip('/')}: leave it out")


def _tars(root: str, split: str) -> Path | None:
    """The tar of a split, or the folder of its tars, one a class."""
    for name in spellings(split):
        folder = Path(root, name)
        if os.path.isfile(f'{folder}.tar'):
            return Path(f'{folder}.tar')
        if os.path.isdir(folder):
            entries: list[os.DirEntry[str]] = []
            with suppress(OSError):  # `find_root` says so
                entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
            if any(entry.name.endswith('.tar') for entry in entries) and not any(each.is_dir() for each in entries):
                return folder
    return None


# --- What the readers give --------------------------------------------------------------------------------------------


def _samples(
    source: str, root: str | None, split: str, class_map: dict[str, int] | None, options: DataOptions
) -> tuple[list[str], Iterable[Sample]]:
    """The names of the classes, as far as they are known, and every image."""
    keys = {'input_key': options.input_key, 'target_key': options.target_key}
    if not source:
        return _from_tars(_open_tars(str(_tars(str(root), split))), class_map)
    if source.startswith(('hfds/', 'tfds/')) and split in spellings('val'):
        split = 'validation'
    if source.startswith('hfds/'):
        watched = sys.stderr if sys.stderr.isatty() else io.StringIO()  # for its progress bars
        with redirect_stdout(watched), redirect_stderr(watched):
            reader = _open_hub(partial(create_reader, source, root=root, class_map=class_map, **keys), split)
        return _in_order(reader.class_to_idx), _from_hub(reader)
    more: dict[str, Any] = {} if source.startswith('torch/') else keys
    more |= {'input_img_mode': ''} if source.startswith('wds/') else {}  # as they are
    if source.startswith('wds/') and not _names_shards(split, str(root)):
        raise UserError("names no shards: give them, as --train-split 'train-{000..009}.tar' --val-split val-000.tar")
    if class_map and not source.startswith('wds/'):  # whose labels are the indices of these names
        more['class_map'] = class_map
    with mock.patch.object(reader_wds._logger, 'disabled', True):  # it misses _info.json, which the names make needless
        images = create_dataset(source, root=root, split=split, is_training=False, **more)
    by_processes: Any = getattr(images, 'reader', None)
    if hasattr(by_processes, 'dist_num_replicas'):  # all images, also where several processes train together
        by_processes.dist_rank, by_processes.dist_num_replicas = 0, 1
    indices = class_map or getattr(getattr(images, 'reader', None), 'class_to_idx', None) or {}
    classes = getattr(images, 'classes', None) or _in_order(indices)
    return list(map(str, classes)), _decoded(images)


def _names_shards(split: str, root: str) -> bool:
    """Whether timm finds the shards of a WebDataset's split: by their names, or in the file that describes it."""
    return 'tar' in split or '..' in split or any(Path(root, name).is_file() for name in ('_info.json', 'info.json'))


def _in_order(class_to_idx: Mapping[Any, int]) -> list[str]:
    return [str(name) for name in sorted(class_to_idx, key=lambda name: class_to_idx[name])]


def _open_tars(path: str) -> Any:
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions(IMAGE_EXTENSIONS)  # as in a folder; timm knows but JPEG and PNG
    try:
        return ReaderImageInTar(path, cache_tarinfo=False)
    except ValueError:  # it unpacks the images into two lists
        raise UserError('holds no images') from None
    finally:
        img_extensions.set_img_extensions(before)


def _from_tars(reader: Any, class_map: dict[str, int] | None) -> tuple[list[str], Iterable[Sample]]:
    """Classes and images, without the hidden ones: those of a system, and their classes unless they are given."""
    labels: dict[int, str] = {}
    for index, (member, tar, child) in enumerate(reader.samples):
        if any(map(is_hidden, PurePosixPath(member.path).parts)):
            continue
        stems = (PurePosixPath(each).stem for each in (tar, child and child.name) if each)
        label = PurePosixPath(*stems, member.path).parent.name  # timm takes that of ./IMAGE to be a dot
        if not label:
            raise UserError(f'{member.path[:100]} is in no folder of a class: expected CLASS/IMAGE in the tar')
        if class_map is None or label in class_map:
            labels[index] = label
    if not labels:
        raise UserError('holds no images' + (' of the classes of --class-map' if class_map else ''))
    names = sorted(set(labels.values()), key=natural_key) if class_map is None else _in_order(class_map)
    return names, _from_tar(reader, labels, names)


def _from_tar(reader: Any, labels: Mapping[int, str], names: Sequence[str]) -> Iterator[Sample]:
    numbers = {name: number for number, name in enumerate(names)}
    for index, label in labels.items():
        file, _ = reader[index]
        data = file.read(LARGEST_FILE + 1)
        name = reader.filename(index, basename=True)
        if len(data) > LARGEST_FILE:
            raise UserError(f'image {name} has more than {LARGEST_FILE >> 20:,} MiB: remove it')
        yield numbers[label], name, data


def _open_hub(open_split: Callable[..., Any], split: str) -> Any:
    try:
        return open_split(split=split)
    except ValueError:
        if split != 'validation':
            raise
        return open_split(split='val')  # some have this name


def _from_hub(reader: Any) -> Iterator[Sample]:
    for index in range(len(reader)):
        image = reader.dataset[index][reader.image_key]
        if image is None:  # also where the data set has no such field: timm has made one
            raise UserError(f'the field {reader.image_key!r} has no image {index}: choose the field by --input-key')
        file, target = reader[index]
        with file:
            data = file.read()
        yield _index(target, index), os.path.basename(image.get('path') or ''), data


def _decoded(images: Any) -> Iterator[Sample]:
    samples = images if hasattr(images, 'reader') else (images[index] for index in range(len(images)))
    handler, reader_wds.log_and_continue = reader_wds.log_and_continue, _raised  # timm leaves out what can't be read
    try:
        for index, (image, target) in enumerate(samples):
            file = io.BytesIO()
            turn = turn_of(image)
            image = image if turn is None else image.transpose(turn)
            image = image if image.mode in (*PNG_MODES, *TIFF_MODES) else image.convert('RGB')
            image.save(file, 'TIFF' if image.mode in TIFF_MODES else 'PNG', compress_level=1)
            yield _index(target, index), '', file.getvalue()
    finally:
        reader_wds.log_and_continue = handler


def _raised(error: Exception) -> bool:
    raise error


def _index(target: Any, index: int) -> int:
    try:
        number = int(target)
        is_whole = isinstance(target, str) or number == target
    except (TypeError, ValueError, OverflowError):
        number, is_whole = -1, False
    if not is_whole or not 0 <= number < MOST_CLASSES:
        raise UserError(
            f'the label of image {index} is {str(target)[:40]!r}: expected the index of a class; choose the field by '
            '--target-key, or name the classes by --class-map'
        )
    return number


# --- The folder -------------------------------------------------------------------------------------------------------


def write_split(folder: Path, classes: Sequence[str], samples: Iterable[Sample], what: str) -> None:
    """Writes the images of a split by class, and the order of the classes.

    Args:
        folder: Of the split.
        classes: Their names, as far as they are known.
        samples: The images.
        what: The split is called in messages.

    Raises:
        UserError: The samples cannot be read, or there are none.
    """
    folder.mkdir(exist_ok=True)
    names = list(_distinct(map(_file_name, classes)))
    for number, (target, name, data) in enumerate(_readable(samples, what)):
        names += map(str, range(len(names), target + 1))  # of classes that have no names
        place = folder / names[target]
        place.mkdir(exist_ok=True)
        file = place / _image_name(name, number, data)
        if file.exists():
            file = place / f'{number:08d}-{file.name}'
        file.write_bytes(data)
    (folder / ORDER_FILE).write_text(to_json(names))


def _image_name(name: str, index: int, data: bytes) -> str:
    """A name that ends as images do; that of the file where it has one."""
    name = _file_name(name) if name else f'{index:08d}'
    if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
        return name
    try:
        with open_file(io.BytesIO(data)) as image:
            return f'{name}.{(image.format or "").lower()}'
    except Exception:  # it is named when it is decoded
        return f'{name}.png'


def _file_name(text: str) -> str:
    """The text as the name of a file that is no hidden one."""
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|\[\]]', '_', text).strip()[:200] or '_'
    return f'_{name}' if is_hidden(name) else name


def _distinct(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        while name in seen:
            name = f'{name}-{index}'
        seen.add(name)
        yield name
