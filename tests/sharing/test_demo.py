"""The page to try models: what it shows, and the page itself in a headless browser."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.uses import UseOptions
from imagenette_zoo.data import pipeline
from imagenette_zoo.data.augment import Normalize
from imagenette_zoo.data.images import open_image
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.loading import TrainedModel, load_trained
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import save_model_folder
from imagenette_zoo.sharing import demo
from tests.conftest import free_port
from tests.postscript import POSTSCRIPT, needs_posix, path_before, write_ghostscript

CLASSES = ['red', 'green', 'blue']


@pytest.fixture(autouse=True)
def _pillows_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page makes Pillow forget, the next test's Pillow knows."""
    Image.init()
    monkeypatch.setattr(Image, 'ID', Image.ID.copy())
    monkeypatch.setattr(Image, 'OPEN', Image.OPEN.copy())


def load(name: str) -> TrainedModel:
    return load_trained(name, UseOptions(model=name), torch.device('cpu'))


def trained(model: Any, names: list[str]) -> TrainedModel:
    config = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    normalize = Normalize(config['mean'], config['std'], torch.device('cpu'))
    return TrainedModel('some', model.eval(), config, names, pipeline.eval_transform(config), normalize)


@pytest.fixture(scope='module')
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two model folders: of models that tell by colour, one of timm's and one of ours."""
    found = []
    for name, kwargs in (('test_resnet', {}), ('mbv2_mish_imagenette', {'channel_multiplier': 0.35})):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3, **kwargs)
        config = timm.data.resolve_data_config({'img_size': 64}, model=model)
        folder = tmp_path_factory.mktemp('models') / name
        save_model_folder(folder, factory.model_config(model, config, CLASSES, kwargs), model.state_dict())
        found.append(str(folder))
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.linear_gradient('L').resize((120, 90)).convert('RGB').save(tmp_path / 'slope.png')
    return tmp_path / 'slope.png'


class Corner(torch.nn.Module):
    """A model whose second class is how bright the upper left quarter is."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {'input_size': (3, 64, 64), 'label_names': ['dark', 'bright'], 'crop_pct': 1.0}
        self.default_cfg = self.pretrained_cfg
        self.num_classes = 2

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        bright = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True).clamp_min(0), 8)  # (1, 1, 8, 8)
        return torch.cat([bright, torch.ones_like(bright)], 1)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 1, 0, 0] * 0.0, 100 * x[:, 0, :4, :4].mean((1, 2))], 1)


def test_the_heat_lies_where_the_decision_does() -> None:
    pixels = Image.new('RGB', (64, 64))
    pixels.paste((255, 255, 255), (0, 0, 24, 24))  # the only place that is not dark
    found = demo.explain(trained(Corner(), ['dark', 'bright']), pixels)
    assert found.probabilities == pytest.approx({'dark': 0.0, 'bright': 1.0}, abs=1e-6)
    picture = torch.from_numpy(np.array(found.picture)).float()
    assert picture[:20, :20].mean() > 200
    assert picture[32:, 32:].max() < 5
    assert found.picture.size == (64, 64)


def test_the_heat_is_read_on_a_red_photo() -> None:
    pixels = Image.new('RGB', (64, 64), (40, 0, 0))
    pixels.paste((255, 0, 0), (0, 0, 24, 24))
    picture = np.array(demo.explain(trained(Corner(), ['dark', 'bright']), pixels).picture).astype(int)
    assert picture[10, 10].sum() > 2 * picture[50, 50].sum()
    assert np.ptp(picture[50, 50]) < 5, 'where it did not look the photo is grey'


def test_the_examples_are_of_classes_that_a_model_knows(tmp_path: Path) -> None:
    names = {'golf ball', 'triangle', 'no such class'}
    assert [Path(file).stem for file in demo._draw_examples(tmp_path, names)] == ['golf ball', 'triangle']
    assert [Path(file).stem for file in demo._draw_examples(tmp_path, {'cat'})] == ['golf ball', 'parachute']
    for file in tmp_path.iterdir():
        with Image.open(file) as image:
            assert image.mode == 'RGB'
            assert min(image.size) >= 200


def test_the_examples_have_a_fourth_channel_where_a_model_needs_it(tmp_path: Path) -> None:
    for file in demo._draw_examples(tmp_path, {'golf ball'}, four=True):
        assert open_image(file, channels=4).mode == 'CMYK'
        assert open_image(file, channels=3).mode == 'RGB'


def test_the_probabilities_are_the_models(folders: list[str], image: Path) -> None:
    for folder in folders:
        ours = load(folder)
        config = timm.data.resolve_data_config({}, model=ours.model)
        transform = timm.data.create_transform(**config)
        with torch.no_grad():
            expected = ours.model(transform(Image.open(image))[None]).softmax(1)[0].tolist()
        found = demo.explain(ours, Image.open(image)).probabilities
        assert found == pytest.approx(dict(zip(CLASSES, expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize('name', ['test_vit', 'crossvit_tiny_240', 'mbv2_mish_imagenette'])
def test_any_model_of_timms_is_explained(name: str, image: Path) -> None:
    """One without a map of features gets the picture alone."""
    model: Any = timm.create_model(name)
    ours = trained(model, ['same'] * model.num_classes)
    found = demo.explain(ours, Image.open(image).convert('RGB'))
    assert ours.has_maps == (name == 'mbv2_mish_imagenette')
    assert len(found.probabilities) == model.num_classes
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-4)
    if name == 'test_vit':
        mapped = demo.explain(ours, Image.open(image).convert('RGB'), f'blocks.{len(model.blocks) - 1}.norm1')
        assert mapped.probabilities == pytest.approx(found.probabilities, abs=1e-5)
        assert np.ptp(np.array(mapped.picture), axis=2).max() > 50, 'grey under colours'
        assert np.ptp(np.array(found.picture), axis=2).max() == 0
    assert found.picture.size[0] == found.picture.size[1]


def test_models_that_have_no_weights_say_what_to_give() -> None:
    with pytest.raises(UserError, match='mbv2_mish_mp2_imagenette: no weights are published: give a run'):
        load('mbv2_mish_mp2_imagenette')
    with pytest.raises(UserError, match=r'mbv2_mish_imagenet: no run.*mbv2_mish_imagenette'):
        load('mbv2_mish_imagenet')
    with pytest.raises(UserError, match=r'runs/none: no run, folder or model'):
        load('runs/none')


def test_as_a_space_it_says_in_one_line_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('gradio')
    monkeypatch.setenv('DEMO_MODELS', 'runs/none')
    with pytest.raises(SystemExit, match=r'error: .*runs/none: no run'):
        demo.main()
    monkeypatch.setenv('DEMO_MODULES', 'no_idea.py')
    with pytest.raises(SystemExit, match=r"error: .*no_idea\.py: can't read a Python file"):
        demo.main()


@pytest.mark.long
@pytest.mark.slow
def test_the_file_starts_alone_as_the_app_of_a_space(tmp_path: Path) -> None:
    pytest.importorskip('gradio')
    app = shutil.copyfile(demo.__file__, tmp_path / 'app.py')
    environment = {**os.environ, 'DEMO_MODELS': 'runs/none'}
    done = subprocess.run([sys.executable, app], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: --model runs/none: no run')


def test_a_port_that_is_none(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('gradio')
    assert main(['demo', folders[0], '--port', '99999']) == 2
    assert '--port 99999' in capsys.readouterr().err


def test_a_host_that_is_none(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('gradio')
    for host in ('192.0.2.1', 'no.such.host.invalid', 'é' * 70):
        assert main(['demo', folders[0], '--host', host]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f'error: --host {host}: ')


def test_a_missing_gradio_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert main(['demo']) == 2
    assert capsys.readouterr().err == 'error: the demo needs gradio: pip install "imagenette-zoo[demo]"\n'


@pytest.mark.parametrize('content', [b'', b'GIF89a is not enough', b'no image'])
def test_a_file_that_is_no_image(folders: list[str], tmp_path: Path, content: bytes) -> None:
    answer = demo._answer({'model': load(folders[0])}, RuntimeError)
    path = tmp_path / 'x.png'
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r'^image x\.png is .*replace or remove it$'):
        answer(str(path), 'model')
    assert answer(None, 'model') == (None, None)


def test_a_huge_image(folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new('1', (2000, 2000)).save(tmp_path / 'huge.png')
    monkeypatch.setattr(demo, 'LARGEST_UPLOAD', 1)
    with pytest.raises(RuntimeError, match=r'image huge\.png is too large'):
        demo._answer({'model': load(folders[0])}, RuntimeError)(str(tmp_path / 'huge.png'), 'model')


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def ghostscript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's only Ghostscript leaves when it is started."""
    return write_ghostscript(tmp_path_factory.mktemp('bin'))


@pytest.fixture(scope='module')
def page(folders: list[str], ghostscript: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page with two models, served by the command."""
    pytest.importorskip('gradio')
    log = tmp_path_factory.mktemp('page') / 'log'
    port = free_port()
    command = [sys.executable, '-m', 'imagenette_zoo', 'demo', *folders, '--port', str(port)]
    environment = {**os.environ, 'NO_PROXY': '*', 'HF_HUB_OFFLINE': '1', 'PATH': path_before(ghostscript.parent)}
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    address = f'http://127.0.0.1:{port}/'
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(address, timeout=5):
                    break
            except OSError:
                time.sleep(0.1)
        yield address
        assert log.read_text() == f'The page is at {address}. Ctrl-C ends it.\n'
    finally:
        process.terminate()
        process.wait(30)


def send(page: str, content: bytes, name: str) -> dict[str, Any]:
    """Uploads a file and has the first model look at it, as the page's script does; the server's last message."""
    import httpx

    with httpx.Client(base_url=page, trust_env=False, timeout=60) as client:
        [path] = client.post('gradio_api/upload', files={'files': (name, content)}).json()
        config = client.get('config').json()
        [image] = [part['id'] for part in config['components'] if part['props'].get('label') == 'Your image']
        call = next(call for call in config['dependencies'] if [image, 'change'] in map(list, call['targets']))
        choice = next(part for part in config['components'] if part['id'] == call['inputs'][1])
        file = {'path': path, 'orig_name': name, 'meta': {'_type': 'gradio.FileData'}}
        asked = {'data': [file, choice['props']['value']], 'fn_index': call['id'], 'session_hash': name}
        client.post('gradio_api/queue/join', json=asked).raise_for_status()
        with client.stream('GET', 'gradio_api/queue/data', params={'session_hash': name}) as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix('data:')) if line else {}
                if message.get('msg') == 'process_completed':
                    return message
    raise AssertionError('the page gave no answer')


@needs_posix
def test_a_postscript_file_that_calls_itself_a_photo(page: str, image: Path, ghostscript: Path) -> None:
    good = send(page, image.read_bytes(), 'slope.png')
    assert good['success'], good
    for name in ('photo.jpg', 'photo.eps'):
        bad = send(page, POSTSCRIPT, name)
        assert not bad['success']
        said = f'image {name} is not an image of a known format (JPEG, PNG, '
        assert bad['output']['error'].startswith(said)
    assert not ghostscript.exists(), ghostscript.read_text()


@needs_posix
def test_nor_does_gradio_open_it_while_the_page_is_served(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gr = pytest.importorskip('gradio')
    from gradio.data_classes import ImageData

    started = write_ghostscript(tmp_path)
    monkeypatch.setenv('PATH', path_before(tmp_path))
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    (tmp_path / 'photo.jpg').write_bytes(POSTSCRIPT)
    served: list[object] = []

    class Page:
        local_url = 'http://here/'

        def launch(self, **options: object) -> None:
            assert options['server_name'] == '0.0.0.0'
            upload = gr.Image(type='numpy')
            served.append(upload.preprocess(ImageData(path=str(image))).shape)
            with pytest.raises(UnidentifiedImageError):
                upload.preprocess(ImageData(path=str(tmp_path / 'photo.jpg')))

        def block_thread(self) -> None:
            served.append('blocked')

    monkeypatch.setattr(demo, 'build', lambda models: Page())
    demo.serve(['some'], host='0.0.0.0')
    assert served == [(90, 120, 3), 'blocked']
    assert capsys.readouterr().out == 'The page is at http://here/. Ctrl-C ends it.\n'
    assert not started.exists(), started.read_text()


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip('selenium.webdriver')
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not chromium or not driver:
        pytest.skip('no chromium or no chromedriver')
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1100,1400'):
        options.add_argument(argument)
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield browser
    browser.quit()


def wait_for(browser: Any, script: str, seconds: int = 60) -> Any:
    """What a script returns, once that is something."""
    for _ in range(10 * seconds):
        found = browser.execute_script(script)
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(
        f'{script}: nothing; the page says: {browser.execute_script("return document.body.innerText")}'
    )


# The classes of each column as [[name, percent], …], once both are there.
SHOWN = """
const found = [...document.querySelectorAll('[data-testid="label-output-value"]')].map(top => {
    const rows = [...top.closest('.block').querySelectorAll('.confidence-set')];
    return rows.map(row => row.innerText.split('\\n').map(word => word.trim()).filter(Boolean));
});
return found.length == 2 && found.every(rows => rows.length == 3) ? JSON.stringify(found) : null;
"""


def test_a_dropped_image_is_classified_by_two_models(page: str, browser: Any, folders: list[str], image: Path) -> None:
    browser.get(page)
    wait_for(browser, 'return document.querySelector("input[type=file]")').send_keys(str(image))
    columns = json.loads(wait_for(browser, SHOWN))
    for folder, rows in zip(folders, columns, strict=True):
        expected = demo.explain(load(folder), Image.open(image)).probabilities
        shown = {row[0]: int(row[-1].rstrip('%')) for row in rows}
        assert shown == {name: pytest.approx(100 * share, abs=0.51) for name, share in expected.items()}
    assert columns[0] != columns[1]
    sizes = 'return [...document.querySelectorAll(".image-frame img, .image-container img")].map(i => i.naturalWidth)'
    deadline = time.monotonic() + 30
    while browser.execute_script(sizes).count(64) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.execute_script(sizes).count(64) == 2  # what the models saw
    if path := os.environ.get('IMAGENETTE_ZOO_SCREENSHOT'):
        browser.save_screenshot(path)


def test_the_page_says_what_is_wrong_with_a_file(page: str, browser: Any, tmp_path: Path) -> None:
    (tmp_path / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    browser.get(page)
    wait_for(browser, 'return document.querySelector("input[type=file]")').send_keys(str(tmp_path / 'broken.png'))
    said = wait_for(browser, 'return [...document.querySelectorAll(".toast-body")].map(t => t.innerText).join()')
    assert 'image broken.png is' in said
    assert 'replace or remove it' in said
