"""Which formats are opened: those that Pillow decodes itself, everywhere, whatever a file calls itself."""

import ast
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from imagenette_zoo.cli.main import main
from imagenette_zoo.data import constants, images
from imagenette_zoo.data.constants import IMAGE_EXTENSIONS
from imagenette_zoo.data.folders import load_split
from imagenette_zoo.errors import UserError
from imagenette_zoo.report.mistakes import thumbnail
from tests.conftest import make_folder
from tests.inference.test_predict import model_folder
from tests.postscript import POSTSCRIPT, needs_posix, path_before, write_ghostscript

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the only Ghostscript leaves when it is started; that must not be."""
    (tmp_path / 'bin').mkdir()
    mark = write_ghostscript(tmp_path / 'bin')
    monkeypatch.setenv('PATH', path_before(tmp_path / 'bin'))
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)  # Pillow looks for it once a process
    yield mark
    assert not mark.exists(), mark.read_text()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / 'photo.jpg'
    path.write_bytes(POSTSCRIPT)
    return path


def in_folder(tmp_path: Path, photo: Path, split: str) -> Path:
    """A data set with the photo among its images, all of which a training and `export` see."""
    data = make_folder(tmp_path / 'data', train=4, val=1)
    shutil.copy(photo, data / split / 'class0')
    return data


def assert_said(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = [line for line in capsys.readouterr().err.splitlines() if 'photo.jpg' in line]
    assert 'is not an image of a known format (JPEG, PNG, ' in line
    assert line.endswith('convert, replace or remove it')


@needs_posix
def test_pillow_alone_would_start_it(mark: Path, photo: Path) -> None:
    """Otherwise the tests below see nothing."""
    with suppress(OSError), Image.open(photo) as image:  # this Ghostscript draws nothing
        image.load()
    assert '-sOutputFile=' in mark.read_text()
    mark.unlink()


@needs_posix
@pytest.mark.parametrize('name', ['photo.jpg', 'photo.png', 'photo.eps', 'photo'])
def test_it_is_read_from_no_file(mark: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POSTSCRIPT)
    for read in (images.open_image, images.image_size, lambda path: next(images.decoded([path], id))):
        with pytest.raises(UserError, match=r'is not an image of a known format \(JPEG, PNG, .*\): convert, replace'):
            read(path)
    with pytest.raises(Image.UnidentifiedImageError):
        images.open_file(io.BytesIO(POSTSCRIPT))


@needs_posix
def test_predict(mark: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['predict', str(photo), '-m', str(model_folder(tmp_path / 'm')), '--device', 'cpu']
    assert main(words) == 2
    assert_said(capsys)
    assert main([*words, '--save-figure', str(tmp_path / 'figures')]) == 2
    assert_said(capsys)


@pytest.mark.slow
@needs_posix
@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('loader', [['cache'], ['timm', '-j', '0'], ['timm', '-j', '1']], ids=' '.join)
def test_train(
    mark: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, loader: list[str]
) -> None:
    data = in_folder(tmp_path, photo, split)
    words = ['train', '--model', 'test_resnet', '--data-dir', str(data), '--img-size', '32', '-b', '4', '--epochs', '1']
    words += ['--warmup-epochs', '0', '--device', 'cpu', '--output', str(tmp_path / 'runs'), '--loader', *loader]
    assert main(words) == 2
    assert_said(capsys)


@needs_posix
@pytest.mark.parametrize('split', ['train', 'val'])
def test_data_check(mark: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str) -> None:
    assert main(['data', 'check', '--data-dir', str(in_folder(tmp_path, photo, split))]) == 2
    assert_said(capsys)


@needs_posix
def test_export(mark: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['export', str(model_folder(tmp_path / 'm')), '--to', 'torchscript', '--output', str(tmp_path / 'm.pt')]
    assert main([*words, '--data-dir', str(in_folder(tmp_path, photo, 'val'))]) == 2
    assert_said(capsys)


@needs_posix
def test_thumbnails_of_a_report(mark: Path, photo: Path, tmp_path: Path) -> None:
    images = load_split(in_folder(tmp_path, photo, 'val'), 'val')
    index = next(index for index, path in enumerate(images.paths) if path.endswith('photo.jpg'))
    assert thumbnail(images, index) is None
    assert thumbnail(images, 1 - index)


@pytest.mark.long
@pytest.mark.slow
@needs_posix
def test_other_libraries_of_the_process(mark: Path, photo: Path, tmp_path: Path) -> None:
    """Pillow is asked as they ask it, after it has forgotten; in a process of its own."""
    Image.new('RGB', (4, 4)).save(tmp_path / 'good.jpg')
    script = f"""
from PIL import Image
from imagenette_zoo.data.constants import FORMATS
from imagenette_zoo.data.images import forget_other_formats
forget_other_formats()
import gradio  # which has Pillow load all formats
from PIL import EpsImagePlugin
Image.init()
assert set(Image.OPEN) <= set(FORMATS), Image.OPEN.keys()
Image.open({str(tmp_path / 'good.jpg')!r}).load()
for asked in (None, ['EPS']):
    try:
        Image.open({str(photo)!r}, formats=asked).load()
    except (Image.UnidentifiedImageError, KeyError):
        continue
    raise AssertionError(asked)
"""
    pytest.importorskip('gradio')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- What is read as before -------------------------------------------------------------------------------------------


def test_every_ending_is_of_a_format_that_is_opened() -> None:
    of = {**dict.fromkeys(('.avif', '.avifs'), 'AVIF'), **Image.registered_extensions()}  # which older Pillows lack
    assert {of[ending] for ending in IMAGE_EXTENSIONS} <= set(constants.FORMATS)
    assert {ending for ending, kind in of.items() if kind in constants.FORMATS} - IMAGE_EXTENSIONS == {'.pfm'}


@pytest.mark.parametrize('kind', [*constants.FORMATS, 'MPO'])
def test_the_pixels_are_pillows(tmp_path: Path, kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f'this Pillow writes no {kind}')
    path = tmp_path / 'image'  # its content tells the format
    picture = Image.radial_gradient('L').resize((20, 12)).convert('RGB')
    more = {'save_all': True, 'append_images': [picture]} if kind == 'MPO' else {}
    picture.save(path, kind, **more)
    with Image.open(path) as expected:
        assert expected.format == ('BMP' if kind == 'DIB' and expected.format == 'BMP' else kind)
        assert images.open_image(path).tobytes() == expected.convert('RGB').tobytes()
    assert images.image_size(path) == (20, 12)
    assert images.open_file(io.BytesIO(path.read_bytes())).size == (20, 12)


def test_a_pillow_that_lacks_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new('RGB', (4, 3)).save(tmp_path / 'a.tga')
    (tmp_path / 'text.jpg').write_bytes(b'no image')
    monkeypatch.delitem(Image.OPEN, 'AVIF', raising=False)
    assert images.open_image(tmp_path / 'a.tga').size == (4, 3)
    with pytest.raises(UserError, match='is not an image'):
        images.open_image(tmp_path / 'text.jpg')


# --- Nobody opens otherwise -------------------------------------------------------------------------------------------


def opens_anything(source: str) -> list[int]:
    """Lines that call Pillow's `open` without saying which formats."""
    tree = ast.parse(source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func).endswith('Image.open') and 'formats' not in {word.arg for word in call.keywords}
    ]


def test_no_code_lets_pillow_guess_the_format() -> None:
    assert opens_anything('PIL.Image.open(a)\nImage.open(b)\nImage.open(c, formats=["PNG"])\nopen(d)') == [1, 2]
    files = [path for place in ('imagenette_zoo', 'tools', 'benchmarks') for path in (ROOT / place).rglob('*.py')]
    assert len(files) > 60
    assert {path.name: lines for path in files if (lines := opens_anything(path.read_text('utf-8')))} == {}


def test_nor_does_the_code_of_a_card() -> None:
    source = (ROOT / 'imagenette_zoo' / 'sharing' / 'card.py').read_text('utf-8')
    assert source.count('Image.open(') == source.count("Image.open('image.jpg', formats=[") == 1
