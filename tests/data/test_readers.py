"""Data sets of timm's readers are the image folders that they were made of, to the bit."""

import io
import shutil
import struct
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import imagenette_zoo
from imagenette_zoo import train
from imagenette_zoo.config.groups import DataOptions
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data import readers
from imagenette_zoo.data.folders import ImageSet
from imagenette_zoo.data.images import open_image
from imagenette_zoo.data.locate import load_splits
from imagenette_zoo.errors import UserError
from tests.hub import Client, Hub, Repo

SPLITS = ('train', 'val')

pytestmark = pytest.mark.usefixtures('cache')


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_a_class(folder: Path, place: Path) -> Path:
    for split in SPLITS:
        (place / split).mkdir(parents=True)
        for each in (folder / split).iterdir():
            with tarfile.open(place / split / f'{each.name}.tar', 'w') as tar:
                for path in each.iterdir():
                    add(tar, path.name, path.read_bytes())
    return place


def tar_a_split(folder: Path, place: Path) -> Path:
    place.mkdir()
    for split in SPLITS:
        with tarfile.open(place / f'{split}.tar', 'w') as tar:
            for path in sorted((folder / split).rglob('*.png'), reverse=True):
                add(tar, f'{path.parent.name}/{path.name}', path.read_bytes())
    return place


def parquet(folder: Path, place: Path) -> Path:
    datasets = pytest.importorskip('datasets')
    place.mkdir()
    names = sorted(each.name for each in (folder / 'train').iterdir())
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=names)})
    for split, name in (('train', 'train'), ('val', 'validation')):
        paths = sorted((folder / split).rglob('*.png'), reverse=True)
        rows: dict[str, Any] = {
            'image': [{'bytes': path.read_bytes(), 'path': path.name} for path in paths],
            'label': [path.parent.name for path in paths],
        }
        table = datasets.Dataset.from_dict(rows, features=features).data.table  # knows the features
        pytest.importorskip('pyarrow.parquet').write_table(table, place / f'{name}.parquet')
    return place


def options_for(make: Callable[[Path, Path], Path], folder: Path, tmp_path: Path) -> dict[str, Any]:
    place = make(folder, tmp_path / 'other')
    if make is parquet:
        return {'dataset': f'hfds/{place}', 'data_dir': str(tmp_path / 'arrow')}
    return {'data_dir': str(place)}


def content(images: ImageSet) -> list[tuple[str, int, bytes]]:
    files = [(images.root / path).read_bytes() for path in images.paths]
    return list(zip(images.paths, images.targets, files, strict=True))


@pytest.mark.parametrize('make', [tar_a_class, tar_a_split, parquet])
def test_the_images_are_those_of_the_folder(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    same = load_splits(DataOptions(data_dir=str(folder)))
    options = options_for(make, folder, tmp_path)
    for images, expected in zip(load_splits(DataOptions(**options)), same, strict=True):
        assert (images.classes, images.class_names) == (expected.classes, expected.class_names)
        assert content(images) == content(expected)
        assert images.passed_over == ()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('make', [tar_a_class, parquet])
def test_a_training_ends_with_the_same_weights(
    folder: Path, tmp_path: Path, recipe: Callable[..., Recipe], make: Callable[[Path, Path], Path]
) -> None:
    options = options_for(make, folder, tmp_path)
    runs = [
        train(recipe(epochs=1, experiment=name, **given), quiet=True)
        for name, given in (('folder', {}), ('other', options))
    ]
    weights = [safetensors.torch.load_file(run.folder / 'last' / 'model.safetensors') for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert runs[0].loss == runs[1].loss
    [scores] = imagenette_zoo.validate(runs[1].folder, workers=0, device='cpu', quiet=True)
    assert scores.images == 12


def test_a_tar_has_the_images_that_a_folder_has(folder: Path, tmp_path: Path) -> None:
    """Of all formats, and without what is a system's own."""
    folder = shutil.copytree(folder, tmp_path / 'folder')
    for split in SPLITS:
        Image.new('RGB', (20, 20)).save(folder / split / 'class0' / 'z.webp')
        (folder / split / 'class1' / '._mac.png').write_bytes(b'Mac OS X')
        (folder / split / '__MACOSX').mkdir()
        (folder / split / '__MACOSX' / 'x.png').write_bytes(b'Mac OS X')
    (tmp_path / 'tars').mkdir()
    for split in SPLITS:
        with tarfile.open(tmp_path / 'tars' / f'{split}.tar', 'w') as tar:
            tar.add(folder / split, '.')
    same = load_splits(DataOptions(data_dir=str(folder)))
    for images, expected in zip(load_splits(DataOptions(data_dir=str(tmp_path / 'tars'))), same, strict=True):
        assert images.classes == expected.classes == ('class0', 'class1', 'class2')
        assert content(images) == content(expected)


def test_the_class_of_a_tar_of_its_own_is_its_name(folder: Path, tmp_path: Path) -> None:
    """Also where `tar -C CLASS .` has put a dot before each file, and in a tar within that of a split."""
    for split in SPLITS:
        (tmp_path / split).mkdir()
        for each in (folder / split).iterdir():
            with tarfile.open(tmp_path / split / f'{each.name}.tar', 'w') as tar:
                tar.add(each, '.')
        (tmp_path / 'within').mkdir(exist_ok=True)
        with tarfile.open(tmp_path / 'within' / f'{split}.tar', 'w') as tar:
            tar.add(tmp_path / split, '.')
    same = load_splits(DataOptions(data_dir=str(folder)))
    for place in (tmp_path, tmp_path / 'within'):
        for images, expected in zip(load_splits(DataOptions(data_dir=str(place))), same, strict=True):
            assert content(images) == content(expected)


def test_a_split_of_the_hub_may_be_called_val(folder: Path, tmp_path: Path) -> None:
    place = parquet(folder, tmp_path / 'parquet')
    (place / 'validation.parquet').rename(place / 'v.parquet')
    files = '\n'.join(f'  - {{split: {name}, path: {name[0]}*.parquet}}' for name in SPLITS)
    (place / 'README.md').write_text(f'---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n')
    _, val = load_splits(DataOptions(dataset=f'hfds/{place}', data_dir=str(tmp_path / 'arrow')))
    assert len(val) == 12


@pytest.mark.parametrize('label', [0.9, 2 * 10**9, -1, float('inf'), 'cat', None])
def test_a_label_is_the_index_of_a_class(label: Any) -> None:
    with pytest.raises(UserError, match=r'the label of image 7 is .* expected the index of a class'):
        readers._index(label, 7)
    assert [readers._index(each, 7) for each in (3, '3', 3.0, np.int64(3))] == [3] * 4


def test_classes_of_one_name_stay_apart(tmp_path: Path) -> None:
    readers.write_split(tmp_path, ['a-2', 'a', 'a'], [(index, f'{index}.png', b'') for index in range(3)], 'it')
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_a_class_map_orders_the_classes(folder: Path, tmp_path: Path) -> None:
    place = tar_a_class(folder, tmp_path / 'tars')
    (tmp_path / 'map.txt').write_text('class2\nclass0\n')
    train, val = load_splits(DataOptions(data_dir=str(place), class_map=str(tmp_path / 'map.txt')))
    assert train.classes == val.classes == ('class2', 'class0')
    assert {(path.split('/')[1], target) for path, target in zip(val.paths, val.targets, strict=True)} == {
        ('class2', 0), ('class0', 1)
    }  # fmt: skip


def test_what_has_changed_is_read_again(folder: Path, tmp_path: Path) -> None:
    place = tar_a_class(folder, tmp_path / 'tars')
    before = load_splits(DataOptions(data_dir=str(place)))[1]
    assert load_splits(DataOptions(data_dir=str(place)))[1].root == before.root
    (place / 'val' / 'class0.tar').unlink()
    assert len(load_splits(DataOptions(data_dir=str(place)))[1]) == len(before) - 4


def test_webdatasets_have_the_same_pixels(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip('webdataset')
    same = load_splits(DataOptions(data_dir=str(folder)))
    for images in same:
        with tarfile.open(tmp_path / f'{images.split}-0.tar', 'w') as tar:
            for index, (path, target) in enumerate(zip(images.paths, images.targets, strict=True)):
                add(tar, f'{index:04d}.png', (images.root / path).read_bytes())
                add(tar, f'{index:04d}.cls', str(target).encode())
    names = {'train_split': 'train-{0..0}.tar', 'val_split': 'val-0.tar'}
    options = DataOptions(data_dir=str(tmp_path), dataset='wds/any', **names)
    for images, expected in zip(load_splits(options), same, strict=True):
        assert images.targets == expected.targets
        for path, other in zip(images.paths, expected.paths, strict=True):
            assert open_image(images.root / path).tobytes() == open_image(expected.root / other).tobytes()
    assert caplog.records == []


@pytest.mark.parametrize('rank', [0, 1])
def test_a_webdataset_is_whole_where_several_processes_train(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    pytest.importorskip('webdataset')
    image = next((folder / 'train' / 'class0').iterdir()).read_bytes()
    for split, shards in (('train', 2), ('val', 1)):
        for shard in range(shards):
            with tarfile.open(tmp_path / f'{split}-{shard}.tar', 'w') as tar:
                for index in range(4):
                    add(tar, f'{shard}{index}.png', image)
                    add(tar, f'{shard}{index}.cls', str(index % 2).encode())
    dist = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2, get_rank=lambda: rank
    )
    monkeypatch.setattr(readers.reader_wds, 'dist', dist)
    decoded = readers._decoded
    monkeypatch.setattr(readers, '_decoded', lambda images: islice(decoded(images), 20))  # else it may never end
    options = dict(data_dir=str(tmp_path), dataset='wds/any', val_split='val-0.tar')
    train, _ = load_splits(DataOptions(**options, train_split='train-{0..1}.tar'))
    assert len(train) == 8
    (tmp_path / 'map.txt').write_text('cat\ndog\n\n')
    train, val = load_splits(
        DataOptions(**options, train_split='train-{0..1}.tar', class_map=f'{tmp_path}/map.txt', train_num_samples=5)
    )
    assert train.classes == val.classes == ('cat', 'dog')
    assert (len(train), len(val)) == (5, 4), 'so many of the training images'


def test_webdatasets_keep_all_values_and_lose_no_image(tmp_path: Path) -> None:
    """Photos lie on their side, values go beyond 16 bits, and what can't be read is an error."""
    pytest.importorskip('webdataset')
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = np.random.RandomState(0).randint(256, size=(8, 12, 4)).astype(np.uint8)
    files = {}
    for name, pixels, more in (
        ('0.jpg', colours[..., :3], {'exif': exif}),
        ('1.tif', colours[..., 0] / np.float32(256), {}),
        ('2.tif', colours[..., 0].astype(np.int32) * 1000, {}),
        ('3.tif', Image.frombytes('CMYK', (12, 8), colours.tobytes()), {}),
    ):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(tmp_path / name, **more)
        files[name] = (tmp_path / name).read_bytes()

    def options(files: dict[str, bytes], shards: str = '0') -> DataOptions:
        for split in SPLITS:
            with tarfile.open(tmp_path / f'{split}-0.tar', 'w') as tar:
                for name, data in files.items():
                    add(tar, name, data)
                    add(tar, name[:-3] + 'cls', b'0')
        names = {'train_split': f'train-{{0..{shards}}}.tar', 'val_split': 'val-0.tar'}
        return DataOptions(data_dir=str(tmp_path), dataset='wds/any', input_key='jpg;tif', **names)

    for images in load_splits(options(files)):
        for path, name in zip(images.paths, files, strict=True):
            assert np.array_equal(open_image(images.root / path), open_image(tmp_path / name)), name
    with pytest.raises(UserError, match='No such file or directory'):
        load_splits(options(files, shards='1'))
    with pytest.raises(UserError, match='cannot be read'):
        load_splits(options({**files, '4.jpg': b'no image'}))


@pytest.mark.long
@pytest.mark.slow
def test_a_data_set_of_the_hub_is_read_by_its_name(folder: Path, tmp_path: Path) -> None:
    place = parquet(folder, tmp_path / 'parquet')
    with Hub() as hub:
        repo = hub.repos['me/shapes'] = Repo(private=False)
        repo.branches['main'] |= {f'data/{path.name}': path.read_bytes() for path in place.iterdir()}
        client = Client(hub, tmp_path)
        said = client('data', 'check', '--dataset', 'hfds/me/shapes', token=None)
        client.close()
    assert (said['code'], said['err']) == (0, ''), said
    for images, same in zip(
        load_splits(DataOptions(dataset='hfds/me/shapes')), load_splits(DataOptions(data_dir=str(folder))), strict=True
    ):
        assert content(images) == content(same)


@pytest.mark.long
@pytest.mark.slow
def test_a_data_set_of_tensorflow_has_the_same_pixels(folder: Path, tmp_path: Path) -> None:
    tensorflow = pytest.importorskip('tensorflow')
    tfds = pytest.importorskip('tensorflow_datasets')
    same = load_splits(DataOptions(data_dir=str(folder)))

    def pixels(images: ImageSet) -> list[tuple[int, Any]]:
        arrays = [np.asarray(open_image(images.root / path)) for path in images.paths]
        return sorted(zip(images.targets, arrays, strict=True), key=lambda pair: (pair[0], pair[1].tobytes()))

    def split_of(images: ImageSet) -> Any:
        image = tensorflow.TensorSpec((None, None, 3), tensorflow.uint8)
        signature = {'image': image, 'label': tensorflow.TensorSpec((), tensorflow.int64)}
        rows = [{'image': array, 'label': target} for target, array in pixels(images)]
        return tensorflow.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

    label = tfds.features.ClassLabel(names=list(same[0].classes))
    tfds.dataset_builders.store_as_tfds_dataset(
        name='shapes', version='1.0.0', data_dir=str(tmp_path / 'tfds'),
        split_datasets=dict(zip(('train', 'validation'), map(split_of, same), strict=True)),
        features=tfds.features.FeaturesDict({'image': tfds.features.Image(), 'label': label}),
    )  # fmt: skip
    for val_split in ('validation', 'val'):
        options = DataOptions(dataset='tfds/shapes', data_dir=str(tmp_path / 'tfds'), val_split=val_split)
        for images, expected in zip(load_splits(options), same, strict=True):
            assert images.classes == expected.classes
            for (target, array), (label, other) in zip(pixels(images), pixels(expected), strict=True):
                assert target == label
                assert np.array_equal(array, other)


def test_torchvisions_data_sets_are_written_as_png(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(256, size=(10, 28, 28)).astype(np.uint8)
    (tmp_path / 'MNIST' / 'raw').mkdir(parents=True)
    for name in ('train', 't10k'):
        raw = tmp_path / 'MNIST' / 'raw' / name
        Path(f'{raw}-images-idx3-ubyte').write_bytes(struct.pack('>4I', 0x803, 10, 28, 28) + pixels.tobytes())
        Path(f'{raw}-labels-idx1-ubyte').write_bytes(struct.pack('>2I', 0x801, 10) + bytes(range(10)))
    for images in load_splits(DataOptions(dataset='torch/mnist', data_dir=str(tmp_path))):
        assert images.targets == tuple(range(10))
        assert images.classes[3] == '3 - three'
        for path, expected in zip(images.paths, pixels, strict=True):
            assert np.array_equal(np.asarray(open_image(images.root / path, channels=1)), expected)


def test_torchvisions_imagenette_is_a_folder(folder: Path) -> None:
    images, _ = load_splits(DataOptions(dataset='torch/imagenette', data_dir=str(folder)))
    assert images.root == folder


@pytest.mark.parametrize(
    ('given', 'part'),
    [
        ({'dataset': 'hfds/a/b'}, 'needs a package: pip install datasets'),
        ({'dataset': 'wds/a', 'data_dir': '.'}, 'needs a package: pip install webdataset'),
        ({'dataset': 'tfds/a'}, 'needs a package: pip install tensorflow-datasets'),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], part: str) -> None:
    monkeypatch.setattr(readers.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=part):
        load_splits(DataOptions(**given))


def test_a_field_that_a_data_set_has_not_is_named(folder: Path, tmp_path: Path) -> None:
    options = options_for(parquet, folder, tmp_path)
    with pytest.raises(UserError, match="has no field 'nobody': choose by --input-key and --target-key"):
        load_splits(DataOptions(**options, target_key='nobody'))
    with pytest.raises(UserError, match="the field 'nobody' has no image 0: choose the field by --input-key"):
        load_splits(DataOptions(**options, input_key='nobody'))


def test_a_webdataset_without_shards_says_how_to_give_them(tmp_path: Path) -> None:
    pytest.importorskip('webdataset')
    with pytest.raises(UserError, match=r"split train: names no shards: give them, as --train-split 'train-\{000"):
        load_splits(DataOptions(data_dir=str(tmp_path), dataset='wds/any'))


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    place = tar_a_class(folder, tmp_path / 'tars')

    def message(**given: Any) -> str:
        with pytest.raises(UserError) as error:
            load_splits(DataOptions(**given))
        assert '\n' not in str(error.value)
        return str(error.value)

    assert 'expected a .txt file' in message(data_dir=str(place), class_map='map.pkl')
    assert 'contradict' in message(data_dir=str(place), dataset='synthette')
    assert '--input-key: is for tars and' in message(data_dir=str(folder), input_key='x')
    assert 'give the folder of its files by --data-dir' in message(dataset='torch/cifar10')
    assert 'cannot be read' in message(dataset='torch/cifar10', data_dir=str(tmp_path))
    (tmp_path / 'map.txt').write_text('cat\n')
    assert 'no images of the classes of' in message(data_dir=str(place), class_map=str(tmp_path / 'map.txt'))
    for bad in (b'caf\xe9\n', b'a\n\nb\n', b'a\na\n'):
        (tmp_path / 'bad.txt').write_bytes(bad)
        assert 'bad.txt: not a --class-map' in message(data_dir=str(place), class_map=str(tmp_path / 'bad.txt'))
    assert '--input-key: has no effect on tars' in message(data_dir=str(place), input_key='x')
    cifar = {'dataset': 'torch/cifar10', 'data_dir': str(tmp_path)}
    assert '--class-map: has no effect on torch' in message(**cifar, class_map=str(tmp_path / 'map.txt'))
    with pytest.raises(UserError, match=r"--dataset: 'hfds/' is not one of .* and a name"):
        DataOptions(dataset='hfds/')
    with pytest.raises(UserError, match=r"--dataset: 'cifar' is not one of .*, folder, synthette or hfds/"):
        DataOptions(dataset='cifar')
    with tarfile.open(place / 'val' / 'class0.tar', 'w') as tar:
        add(tar, 'notes.txt', b'none')
    assert load_splits(DataOptions(data_dir=str(place)))[1].classes == ('class0', 'class1', 'class2')
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        tar.add(next((folder / 'train' / 'class0').iterdir()), './x.png')
    shutil.copy(tmp_path / 'train.tar', tmp_path / 'val.tar')
    assert 'x.png is in no folder of a class: expected CLASS/IMAGE' in message(data_dir=str(tmp_path))
    data = (place / 'val' / 'class1.tar').read_bytes()
    (place / 'val' / 'class1.tar').write_bytes(data[: len(data) // 2 + 100])
    assert 'split validation: cannot be read' in message(data_dir=str(place))
