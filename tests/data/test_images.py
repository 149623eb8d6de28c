"""Image files of every mode, turned, damaged or too large."""

import os
import shutil
import struct
import warnings
import zlib
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


def test_an_image_of_more_megapixels_than_are_asked_for(tmp_path: Path) -> None:
    Image.new('1', (12000, 10000)).save(tmp_path / 'a.png')  # Pillow warns of it, and refuses twice as many pixels
    assert images.open_image(tmp_path / 'a.png').size == images.image_size(tmp_path / 'a.png') == (12000, 10000)
    for largest in (119, 50, images.LARGEST_UPLOAD):
        with pytest.raises(UserError, match=f'too large: expected at most {largest} megapixels') as error:
            images.open_image(tmp_path / 'a.png', largest)
        assert_one_line(error)
    former = Image.MAX_IMAGE_PIXELS
    assert former is not None
    Image.new('1', (16400, 12300)).save(tmp_path / 'b.png')
    with pytest.raises(UserError, match='too large'):
        images.image_size(tmp_path / 'b.png')
    assert images.image_size(tmp_path / 'b.png', 300) == (16400, 12300)
    assert former == Image.MAX_IMAGE_PIXELS


# --- Values of more than 8 bits ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    images._said[0] = 0


def ramp(high: float, kind: type) -> np.ndarray:
    return np.linspace(0, high, 256).reshape(16, 16).astype(kind)


def png_of_16_bits(path: Path, values: np.ndarray) -> Path:
    """Pillow writes no colours of 16 bits."""
    height, width, channels = values.shape
    header = struct.pack('>IIBBBBB', width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values)
    parts = ((b'IHDR', header), (b'IDAT', zlib.compress(rows)), (b'IEND', b''))
    path.write_bytes(b'\x89PNG\r\n\x1a\n')
    with path.open('ab') as file:
        for kind, data in parts:
            file.write(struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)))
    return path


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.jp2', '.pgm'])
@pytest.mark.parametrize('bits', [10, 12, 14])
def test_fewer_bits_in_a_file_of_sixteen(
    tmp_path: Path, suffix: str, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    values = ramp(2**bits - 1, np.uint16)
    Image.fromarray(values).save(tmp_path / f'a{suffix}')
    for _ in range(3):
        pixels = np.asarray(images.open_image(tmp_path / f'a{suffix}'))
    assert (pixels == (values >> (bits - 8))[..., None]).all()
    assert len(caplog.messages) == 1
    assert f'taken for {bits} bits' in caplog.text


@pytest.mark.parametrize('channels', [3, 4])
@pytest.mark.parametrize('bits', [8, 10, 12, 16])
def test_fewer_bits_in_colours_of_sixteen(tmp_path: Path, channels: int, bits: int) -> None:
    values = np.stack([ramp(2**bits - 1, np.uint16), *[ramp(2**bits - 9, np.uint16)] * 2], 2)
    alpha = np.full((16, 16, channels - 3), 65535, np.uint16)
    pixels = np.asarray(images.open_image(png_of_16_bits(tmp_path / 'a.png', np.concatenate([values, alpha], 2))))
    assert (pixels == values >> (bits - 8)).all()


def test_what_a_tiff_says_of_its_values_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = ramp(900, np.uint16)
    Image.fromarray(values).save(tmp_path / 'a.tif', tiffinfo={281: 4095})  # MaxSampleValue
    pixels = np.asarray(images.open_image(tmp_path / 'a.tif'))
    assert (pixels == np.floor(values * (255 / 4095))[..., None]).all()
    assert not caplog.messages


@pytest.mark.parametrize(('low', 'high'), [(0, 1), (0, 255), (0, 60000), (-1, 1), (0, 1e9)])
def test_fractions_fill_the_range(tmp_path: Path, low: float, high: float, caplog: pytest.LogCaptureFixture) -> None:
    values = ramp(high - low, np.float32) + np.float32(low)
    Image.fromarray(values).save(tmp_path / 'a.tif')
    pixels = np.asarray(images.open_image(tmp_path / 'a.tif'), int)
    assert pixels[0, 0, 0] == 0
    assert pixels.max() in (range(230, 256) if high == 60000 else (255,))
    assert (np.diff(pixels[..., 0].ravel()) >= 0).all()
    assert len(caplog.messages) == (high not in (255, 60000))


def test_values_that_are_no_numbers_are_dark(tmp_path: Path) -> None:
    values = ramp(1, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / 'a.tif')
    pixels = np.asarray(images.open_image(tmp_path / 'a.tif'))
    assert pixels[0, :3].max() < 10
    assert pixels[-1, -1, 0] == 255


# --- Regular files ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'a.JPEG')
    (tmp_path / 'link.JPEG').symlink_to(tmp_path / 'a.JPEG')
    for name in ('a.JPEG', 'link.JPEG'):
        for opens in (images.open_image, images.image_size):
            with pytest.raises(UserError, match='is no regular file'):
                opens(tmp_path / name)


# --- One and four channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'RGBA', 'CMYK'])
def test_one_channel_is_the_luminance(tmp_path: Path, mode: str) -> None:
    path = tmp_path / 'image.tif'
    Image.fromarray(gradient()).convert(mode).save(path)
    grey = images.open_image(path, channels=1)
    assert grey.mode == 'L'
    assert grey.tobytes() == images.open_image(path).convert('L').tobytes()
    assert mode != 'L' or grey.tobytes() == Image.open(path).tobytes()


@pytest.mark.parametrize(('mode', 'suffix'), [('RGBA', 'png'), ('RGBA', 'tif'), ('RGBX', 'tif'), ('CMYK', 'tif')])
def test_four_channels_are_read_as_they_are(tmp_path: Path, mode: str, suffix: str) -> None:
    values = np.dstack([gradient(), np.zeros((12, 20), np.uint8)])  # all is transparent, were it opacity
    Image.frombytes(mode, (20, 12), values.tobytes()).save(tmp_path / f'image.{suffix}')
    image = images.open_image(tmp_path / f'image.{suffix}', channels=4)
    assert np.array_equal(np.asarray(image), values)
    three = Image.fromarray(gradient()).resize((6, 6))
    assert np.array_equal(np.asarray(image.resize((6, 6)))[..., :3], np.asarray(three))


@pytest.mark.parametrize('bits', [10, 16])
@pytest.mark.parametrize('kind', [0, 2])  # of the fourth channel: not said, opacity
def test_four_channels_of_more_bits(tmp_path: Path, kind: int, bits: int) -> None:
    values = np.random.RandomState(0).randint(2**bits, size=(5, 7, 4)).astype('<u2')
    entries = [
        (256, 3, 1, 7), (257, 3, 1, 5), (258, 3, 4, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 142),
        (277, 3, 1, 4), (278, 3, 1, 5), (279, 4, 1, values.nbytes), (338, 3, 1, kind),
    ]  # fmt: skip
    tags = b''.join(struct.pack('<HHII', *entry) for entry in entries)
    head = struct.pack('<2sHI', b'II', 42, 8) + struct.pack('<H', len(entries)) + tags + bytes(4)
    head = head.ljust(134, b'\0') + struct.pack('<4H', *[16] * 4)
    (tmp_path / 'image.tif').write_bytes(head + values.tobytes())
    image = images.open_image(tmp_path / 'image.tif', channels=4)
    assert np.array_equal(np.asarray(image), values >> (bits - 8))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'LA', 'P'])
def test_four_channels_of_fewer_are_an_error_that_names_the_file(tmp_path: Path, mode: str) -> None:
    Image.fromarray(gradient()).convert(mode).save(tmp_path / 'image.png')
    with pytest.raises(UserError, match=r'image .*image\.png has not four channels of its own') as error:
        images.open_image(tmp_path / 'image.png', channels=4)
    assert_one_line(error)
