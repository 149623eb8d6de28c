"""Image files of every mode, turned, damaged or too large."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from imagenette_zoo.data import check, images
from imagenette_zoo.errors import UserError
from tests.data.imagenette import assert_one_line, bad_image, gradient, touch


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
