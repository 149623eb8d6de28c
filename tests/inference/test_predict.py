"""imagenette-zoo predict: classes, probabilities, and where a model sees them."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.config.uses import PredictOptions
from imagenette_zoo.data.folders import list_images
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.gradcam import grad_cam
from imagenette_zoo.inference.loading import TrainedModel, load_trained
from imagenette_zoo.inference.predict import Prediction, draw, look_at
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import save_model_folder
from tests.conftest import EACH_OF_THE_ZOO


def create(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=4, **kwargs).eval()


def model_folder(place: Path, changes: dict[str, object] | None = None, name: str = 'test_resnet') -> Path:
    """A model folder of three classes; `changes` are of its config, None removes."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    config = {**timm.data.resolve_data_config(model=model), 'input_size': (3, 32, 32)}
    written = {**factory.model_config(model, config, ['ant', 'bee', 'cow'], {}), **(changes or {})}
    save_model_folder(place, {k: v for k, v in written.items() if v is not None}, model.state_dict())
    return place


@pytest.fixture
def image(folder: Path) -> str:
    return str(folder / 'val' / 'class1' / '0.png')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'mbv2_mish_mp2_imagenette', 'googlenet'])
def test_behind_average_pooling_and_a_linear_layer_it_is_cam(name: str) -> None:
    """Zhou et al. 2016: the map is the features weighted with the classifier's row, but for the number of positions."""
    model, images = create(name), torch.randn(3, 3, 128, 96)
    with torch.no_grad():
        features = model.forward_features(images)
        expected_logits = model(images)
    classes = torch.tensor([2, 0, 3])
    logits, maps = grad_cam(model, images, classes)
    cam = torch.einsum('nk,nkhw->nhw', model.get_classifier().weight[classes], features).relu()
    assert maps.shape == features[:, 0].shape
    assert cam.amax() > 0
    torch.testing.assert_close(maps * maps[0].numel(), cam.detach())
    torch.testing.assert_close(logits, expected_logits)


def test_behind_any_head_the_weights_are_mean_gradients() -> None:
    """By finite differences: lifting a channel everywhere changes the logit by its weight times the positions."""
    model, images = create('mobilenetv3_small_050').double(), torch.randn(1, 3, 96, 96).double()
    with torch.no_grad():
        features = model.forward_features(images)
        weights = []
        for channel in range(features.shape[1]):
            lift = torch.zeros_like(features)
            lift[:, channel] = 1e-6
            change = model.forward_head(features + lift) - model.forward_head(features - lift)
            weights.append(change[0, 1] / 2e-6 / features[0, 0].numel())
        expected = torch.einsum('k,nkhw->nhw', torch.stack(weights), features).relu()
    _, maps = grad_cam(model, images, torch.tensor([1]))
    assert maps.amax() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-9)


def test_channels_may_be_last() -> None:
    settings = dict(img_size=64, embed_dim=16, depths=(1, 1), num_heads=(1, 1), window_size=4)
    model, images = create('swin_tiny_patch4_window7_224', **settings), torch.randn(2, 3, 64, 64)
    features = model.forward_features(images)
    assert features.shape == (2, 8, 8, 32)
    cam = torch.einsum('k,nhwk->nhw', model.get_classifier().weight[1], features).relu()
    _, maps = grad_cam(model, images, torch.tensor([1, 1]))
    torch.testing.assert_close(maps * 64, cam.detach())


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_every_model_of_the_zoo_has_heat_maps(name: str) -> None:
    model, images = create(name), torch.randn(2, 3, 64, 64)
    logits, maps = grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.min() >= 0
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images))
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(('name', 'side'), [('test_vit', 160), ('crossvit_tiny_240', 240)])  # that one has a list
def test_a_model_without_a_feature_map_has_none(name: str, side: int) -> None:
    with pytest.raises(UserError, match='needs a feature map'):
        grad_cam(create(name), torch.randn(1, 3, side, side))


def test_a_model_with_half_of_timms_parts_has_no_map() -> None:
    class Half(torch.nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(UserError, match='needs a feature map, and Half has none'):
        grad_cam(Half(), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(('name', 'layer'), [('test_resnet', 'layer4'), ('mbv2_mish_imagenette', 'bn2')])
def test_the_output_of_the_last_layer_is_the_last_map(name: str, layer: str) -> None:
    model, images = create(name), torch.randn(2, 3, 64, 96)
    logits, maps = grad_cam(model, images)
    expected = model(images)
    found_logits, found = grad_cam(model, images, layer=layer)
    assert maps.amax() > 0
    torch.testing.assert_close(found, maps)
    torch.testing.assert_close(found_logits, logits)
    torch.testing.assert_close(model(images), expected)  # it is left as it was
    assert torch.is_grad_enabled()


def test_an_earlier_layer_has_the_map_of_its_gradients() -> None:
    model, images = create('test_resnet'), torch.randn(2, 3, 64, 96)
    features: list[torch.Tensor] = []
    hook = model.layer2.register_forward_hook(lambda *_: features.append(_[2]))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), features[0])
    expected = (gradient.mean((2, 3), keepdim=True) * features[0]).sum(1).relu().detach()
    _, maps = grad_cam(model, images, torch.tensor([1, 1]), 'layer2')
    assert maps.shape[1] * 3 == maps.shape[2] * 2
    assert maps.amax() > 0
    torch.testing.assert_close(maps, expected)


def test_tokens_of_a_vit_are_a_map_without_the_class_token() -> None:
    model, images = create('test_vit', img_size=(64, 96)), torch.randn(2, 3, 64, 96)
    tokens: list[torch.Tensor] = []
    last = len(model.blocks) - 1
    hook = model.blocks[last].norm1.register_forward_hook(lambda *_: tokens.append(_[2]))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), tokens[0])
    weights = gradient[:, 1:].mean(1, keepdim=True)
    expected = (weights * tokens[0][:, 1:]).sum(2).relu().detach().view(2, 4, 6)
    _, maps = grad_cam(model, images, torch.tensor([1, 1]), f'blocks.{last}.norm1')
    assert maps.amax() > 0
    torch.testing.assert_close(maps, expected)
    for layer, part in (
        ('norm', 'nothing that follows sees its map'),
        ('head', r'is no map: take another layer, as blocks\.\d+\.norm1'),
        (f'blocks.{last}.norm3', rf'no layer of this name; did you mean .*blocks\.{last}\.norm'),
        ('xyz', 'the first are patch_embed'),
    ):
        with pytest.raises(UserError, match=part):
            grad_cam(model, images, layer=layer)


def test_a_layer_of_swin_has_its_channels_last() -> None:
    settings = dict(img_size=64, embed_dim=16, depths=(1, 1), num_heads=(1, 1), window_size=4)
    model, images = create('swin_tiny_patch4_window7_224', **settings), torch.randn(2, 3, 64, 64)
    _, maps = grad_cam(model, images, layer='layers.0')  # 16 rows, 16 columns, 16 channels
    assert maps.shape == (2, 16, 16)
    torch.testing.assert_close(grad_cam(model, images, layer='norm')[1], grad_cam(model, images)[1])


def test_a_layer_that_runs_several_times_has_no_map() -> None:
    model = torch.nn.Sequential(layer := torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU(), layer, torch.nn.Flatten())
    with pytest.raises(UserError, match='runs 2 times for an image'):
        grad_cam(model, torch.randn(1, 3, 4, 4), layer='0')


@pytest.mark.parametrize('name', EACH_OF_THE_ZOO)
def test_faster_layers_have_heat_maps_too(name: str) -> None:
    model, images = create(name), torch.randn(1, 3, 64, 64)
    layer = next(each for each in ('layer3', 'blocks.3', 'inception4a') if each in dict(model.named_modules()))
    _, expected = grad_cam(model, images, layer=layer)
    fast = factory.to_device(model, torch.device('cpu'), channels_last=True)
    _, maps = grad_cam(fast, images, layer=layer)
    assert maps.amax() > 0
    torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-2 * expected.max().item())


def test_a_figure_of_a_layer(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    words = ['predict', image, '-m', str(model_folder(tmp_path / 'm')), '--cam-layer']
    figure = ['--save-figure', str(tmp_path / 'f.png')]
    assert main([*words, 'layer5', *figure]) == 2
    assert 'did you mean layer' in capsys.readouterr().err
    assert not (tmp_path / 'f.png').exists()
    assert main([*words, 'layer2']) == 2
    assert '--cam-layer has no effect without --save-figure' in capsys.readouterr().err
    assert main([*words, 'layer2', *figure]) == 0
    coarse = (tmp_path / 'f.png').read_bytes()
    assert main([*words, 'layer1', *figure]) == 0
    assert (tmp_path / 'f.png').read_bytes() != coarse


@pytest.mark.slow
def test_predictions_are_those_of_validate(recipe: Callable[..., Recipe], folder: Path) -> None:
    """The same classes from the files as from the data set: pixels, normalisation and names are right."""
    run = iz.train(recipe(epochs=4, opt='adamw', no_aug=True), quiet=True).folder
    [validation] = iz.validate(run, folder, workers=0, quiet=True)
    found = iz.predict(folder / 'val', run, batch_size=5, topk=3)
    assert [Path(each.image) for each in found] == list_images([folder / 'val'])
    assert len(found) == 12
    right = [each.label == Path(each.image).parent.name for each in found]
    assert 100 * sum(right) / len(right) == validation.top1 > 50
    for each in found:
        values = [value for _, value in each.top]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert values == sorted(values, reverse=True)
    assert iz.predict([folder / 'val' / 'class2' / '3.png'], f'local-dir:{run}/last') != found[-1:], 'other weights'
    assert iz.predict(str(folder / 'val' / 'class2' / '3*'), f'{run}/best')[0].top[0][1] == pytest.approx(
        found[-1].probability, rel=1e-5
    )


def test_many_images_on_a_cpu_are_in_channels_last_layout(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, model = sys.modules['imagenette_zoo.inference.predict'], model_folder(tmp_path / 'model')
    layouts = []

    def spy(trained: TrainedModel, pixels: torch.Tensor, *others: Any, **named: Any) -> list[Prediction]:
        for tensor in trained.normalize(pixels), next(trained.model.parameters()):
            layouts.append(tensor.is_contiguous(memory_format=torch.channels_last))
        return look_at(trained, pixels, *others, **named)

    monkeypatch.setattr(module, 'look_at', spy)
    few = iz.predict(folder / 'val', model, device='cpu')
    assert not any(layouts)
    layouts.clear()
    monkeypatch.setattr(module, 'MANY', 12)
    many = iz.predict(folder / 'val', model, device='cpu')
    assert len(many) == 12
    assert all(layouts)
    assert [each.probability for each in many] == pytest.approx([each.probability for each in few], rel=1e-5)


def test_what_is_printed(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_folder(tmp_path / 'm')
    assert main(['predict', image, image.replace('0.png', '1.png'), '-m', str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == image
    assert len(lines) == 8
    for line in lines[1:4]:
        words = line.split()
        assert words[0] in ('ant', 'bee', 'cow')
        assert words[2] == '%'
        assert len(words[3]) == round(float(words[1]) / 5)
    assert main(['predict', image, '-m', str(model), '--json', '--topk', '2']) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found['image'] == image
    assert found['top'][0] == {'class': found['class'], 'probability': found['probability']}
    assert len(found['top']) == 2
    assert found['probability'] == pytest.approx(float(lines[1].split()[1]) / 100, abs=6e-4)


@pytest.mark.slow
def test_figures(tmp_path: Path, folder: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    model = str(model_folder(tmp_path / 'm'))
    assert main(['predict', image, '-m', model, '--save-figure', str(tmp_path / 'one.svg')]) == 0
    assert b'</svg>' in (tmp_path / 'one.svg').read_bytes()
    target = tmp_path / 'all'
    assert main(['predict', str(folder / 'val'), '-m', model, '--save-figure', str(target)]) == 0
    assert f'figures: {target}' in capsys.readouterr().out
    written = {path.relative_to(target).as_posix() for path in target.rglob('*.*')}
    assert written == {f'class{index}/{number}.png' for index in range(3) for number in range(4)}
    with Image.open(target / 'class1' / '0.png') as picture:
        assert picture.width > picture.height > 300


def test_figures_stay_in_their_folder(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('matplotlib')
    model = str(model_folder(tmp_path / 'm'))
    work = tmp_path / 'work'
    work.mkdir()
    monkeypatch.chdir(work)
    for path in (work / 'a.png', tmp_path / 'b.png'):
        path.write_bytes(Path(image).read_bytes())
    assert main(['predict', 'a.png', '../b.png', '-m', model, '--save-figure', 'figures']) == 0
    written = {path.relative_to(work).as_posix() for path in work.rglob('*.png')}
    assert written == {'a.png', 'figures/work/a.png', 'figures/b.png'}


def test_the_figure_shows_the_heat() -> None:
    pytest.importorskip('matplotlib')
    seen = np.full((40, 40, 3), 128, np.uint8)
    heat = np.zeros((40, 40), np.float32)
    heat[:20, :20] = 1
    with Image.open(io.BytesIO(draw(Prediction('', [('a $1 bill$', 0.5)], seen, heat), 'png'))) as picture:
        pixels = np.asarray(picture.convert('RGB')).astype(int)
    height, width = pixels.shape[:2]
    quarter = lambda x, y: pixels[int(y * height), int(x * width)]  # noqa: E731
    assert abs(quarter(0.25, 0.5) - 128).max() <= 1, 'beside it the image as it is'
    assert quarter(0.6, 0.3).sum() > 2 * quarter(0.9, 0.8).sum()


def test_the_figure_names_the_file_and_the_runners_up() -> None:
    matplotlib = pytest.importorskip('matplotlib')
    seen, heat = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    drawn: list[str] = []
    prediction = Prediction('photos/garden.png', [('ant', 0.5), ('bee', 0.3), ('cow', 0.2)], seen, heat)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.text.Text, 'draw', lambda text, *_: drawn.append(text.get_text()))
        draw(prediction, 'svg')
    assert {'ant 50.0 %', 'garden.png', 'Next: bee 30.0 %, cow 20.0 %'} <= set(drawn)


@pytest.mark.parametrize('kind', ['png', 'svg'])
def test_a_class_whose_name_is_no_unicode_is_drawn(kind: str) -> None:
    pytest.importorskip('matplotlib')
    seen, heat = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    pictures = [draw(Prediction('', [(name, 0.5)], seen, heat), kind) for name in ('caf\udce9', 'caf\ufffd')]
    assert pictures[0][:4] == pictures[1][:4]
    assert len(pictures[0]) == len(pictures[1])


def test_heat_maps_are_of_the_image_and_end_at_one(tmp_path: Path, image: str) -> None:
    name = str(model_folder(tmp_path / 'm'))
    trained = load_trained(name, PredictOptions(model=name), torch.device('cpu'))
    pixels = torch.from_numpy(trained.pixels(Image.open(image).convert('RGB')))[None]
    [plain], [mapped] = look_at(trained, pixels), look_at(trained, pixels, heat_maps=True)
    assert plain.label == mapped.label
    assert plain.heat is None
    assert mapped.heat is not None
    assert mapped.heat.shape == (32, 32)
    assert mapped.heat.max() == pytest.approx(1)
    assert np.array_equal(mapped.seen, pixels[0].permute(1, 2, 0))


def test_no_image_is_overwritten(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    model = str(model_folder(tmp_path / 'm'))
    place = tmp_path / 'mine'
    place.mkdir()
    (place / 'a.png').write_bytes(Path(image).read_bytes())
    for figure in (place, place / 'a.png'):
        assert main(['predict', str(place), '-m', model, '--save-figure', str(figure)]) == 2
        assert f'would overwrite {place / "a.png"}' in capsys.readouterr().err
    assert (place / 'a.png').read_bytes() == Path(image).read_bytes()
    (place / 'a.jpg').write_bytes(Path(image).read_bytes())
    assert main(['predict', str(place), '-m', model, '--save-figure', str(tmp_path / 'f')]) == 0
    assert {path.name for path in (tmp_path / 'f').iterdir()} == {'a.png.png', 'a.jpg.png'}


def test_no_other_file_among_the_images_is_overwritten(
    tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('matplotlib')
    model = str(model_folder(tmp_path / 'm'))
    Image.open(image).save(tmp_path / 'a.jpg')
    (tmp_path / 'a.png').write_bytes(b'of the user')
    words = ['predict', str(tmp_path / 'a.jpg'), '-m', model, '--save-figure']
    assert main([*words, str(tmp_path)]) == 2
    assert f'would overwrite {tmp_path / "a.png"}' in capsys.readouterr().err
    assert (tmp_path / 'a.png').read_bytes() == b'of the user'
    for _ in range(2):  # where a file is named, it is meant
        assert main([*words, str(tmp_path / 'figure.png')]) == 0
        assert main([*words, str(tmp_path / 'figures')]) == 0


def bad_image(place: Path, kind: str) -> Path:
    path = place / f'{kind}.png'
    good = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(good, 'PNG')
    header = good.getvalue()
    if kind == 'huge':  # a header that claims 60,000 × 60,000 pixels
        import struct
        import zlib

        body = b'IHDR' + struct.pack('>II', 60000, 60000) + header[24:29]
        path.write_bytes(header[:12] + body + struct.pack('>I', zlib.crc32(body)) + header[33:])
    elif kind == 'long':
        Image.new('RGB', (3000, 2)).save(path)
    else:
        path.write_bytes({'text': b'no image', 'empty': b'', 'truncated': header[:2000]}[kind])
    return path


@pytest.mark.parametrize(
    ('kind', 'part'),
    [
        ('text', 'is not an image'),
        ('empty', 'is empty'),
        ('truncated', 'is truncated or corrupt'),
        ('huge', 'is too large'),
        ('long', 'is 3000 × 2 px'),
    ],
)
def test_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, part: str) -> None:
    path = bad_image(tmp_path, kind)
    assert main(['predict', str(path), '--json', '-m', str(model_folder(tmp_path / 'm'))]) == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert str(path) in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out


@pytest.mark.parametrize('bad', ['text', 'empty', 'truncated', 'huge', 'long'])
def test_a_bad_image_among_others_is_one_warning(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    model, photos = str(model_folder(tmp_path / 'm')), tmp_path / 'photos'
    shutil.copytree(folder / 'val' / 'class1', photos)
    expected = iz.predict(photos, model)
    path = bad_image(photos, bad)
    assert main(['predict', str(photos), '--json', '-m', model]) == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [row for row in rows if 'error' not in row] == [each.as_json() for each in expected]
    [row] = [row for row in rows if 'error' in row]
    assert row.keys() == {'image', 'error'}
    assert row['image'] == str(path)
    assert printed.err.splitlines() == [f'warning: {row["error"]}', "error: 1 of 5 images can't be read"]
    assert main(['predict', str(photos), '-m', model, '--save-figure', str(tmp_path / 'figures')]) == 1
    printed = capsys.readouterr()
    assert all(each.image in printed.out for each in expected)
    assert str(path) not in printed.out
    assert len(list((tmp_path / 'figures').iterdir())) == 4
    [prediction] = [each for each in iz.predict(photos, model) if each.error]
    assert prediction.top == []
    with pytest.raises(UserError, match=re.escape(str(path))):
        prediction.label  # noqa: B018


def test_images_of_many_megapixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new('1', (12000, 9000)).save(tmp_path / 'large.png')
    words = ['predict', str(tmp_path / 'large.png'), '-m', str(model_folder(tmp_path / 'm'))]
    assert main(words) == 0
    assert main([*words, '--max-megapixels', '100']) == 2
    assert 'expected at most 100 megapixels' in capsys.readouterr().err


def test_bad_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'empty').mkdir()
    for place, part in (
        ('nothing.png', 'nothing.png: no such file\n'),
        ('*.none', 'matches no image'),
        ('empty', 'holds no images'),
        ('http://x/y.png', 'y.png: no such file\n'),
    ):
        assert main(['predict', str(tmp_path / place), '-m', str(model_folder(tmp_path / 'm'))]) == 2
        assert part in capsys.readouterr().err


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ('img10.png', 'img2.JPG', 'sub/a.png', 'notes.txt', '.hidden.png', 'odd[1].png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*places: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path / place for place in places)]

    assert names('.') == ['img2.JPG', 'img10.png', 'odd[1].png', 'sub/a.png']
    assert names('img*') == ['img2.JPG', 'img10.png']
    assert names('**/*.png') == ['img10.png', 'odd[1].png', 'sub/a.png']
    assert names('odd[1].png', 'notes.txt', 'odd[1].png') == ['odd[1].png', 'notes.txt']


@pytest.mark.parametrize(
    ('changes', 'part'),
    [
        ({'label_names': ['ant', 'bee']}, 'names 2 classes, the head has 3'),
        ({'label_names': {'0': 'ant', '7': 'bee'}}, 'names 2 classes, its classifier has 3'),
        ({'label_names': 'abc'}, 'not a list of 3 names'),
        ({'label_names': [1, 2, 3]}, 'not a list of 3 names'),
        ({'architecture': 'resnet_none'}, 'a known architecture'),
        ({'architecture': None}, 'a known architecture'),
        ({'num_classes': 4, 'label_names': None}, 'the checkpoint of another model'),
        ({'pretrained_cfg': {'mean': 'abc'}}, "doesn't say how images are prepared"),
        ({'pretrained_cfg': {'input_size': [3]}}, 'test_resnet'),
    ],
)
def test_bad_model_folders(
    tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str], changes: dict[str, object], part: str
) -> None:
    model = model_folder(tmp_path / 'test_resnet', changes)
    assert main(['predict', image, '-m', str(model)]) == 2
    printed = capsys.readouterr().err
    assert part in printed
    assert len(printed.splitlines()) == 1


def test_folders_without_a_model(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm' / 'model.safetensors').touch()
    for name, part in ((tmp_path / 'm', 'no config.json'), ('resnet5o', 'did you mean'), ('test_none', 'no run')):
        assert main(['predict', image, '-m', str(name)]) == 2
        assert part in capsys.readouterr().err
    headless = timm.create_model('test_resnet', num_classes=0)
    config = {'architecture': 'test_resnet', 'num_classes': 0, 'pretrained_cfg': {}}
    save_model_folder(tmp_path / 'headless', config, headless.state_dict())
    with pytest.raises(UserError, match='has no classifier'):
        iz.predict(image, tmp_path / 'headless')


def test_names_that_a_config_leaves_open(tmp_path: Path, image: str) -> None:
    unnamed = model_folder(tmp_path / 'unnamed', {'label_names': None, 'pretrained_cfg': {}})
    assert {name for name, _ in iz.predict(image, unnamed)[0].top} == {'class 0', 'class 1', 'class 2'}
    gaps = model_folder(tmp_path / 'gaps', {'label_names': {'0': 'ant', '2': 'cow'}})
    assert {name for name, _ in iz.predict(image, gaps)[0].top} == {'ant', 'class 1', 'cow'}
    torch.save(timm.create_model('mbv2_mish_imagenette').state_dict(), tmp_path / 'w.pth')
    [found] = iz.predict(image, checkpoint=str(tmp_path / 'w.pth'), img_size=64)
    assert found.label.startswith('class '), "the zoo's names are those of its own weights"


def test_the_names_of_a_checkpoint_lie_beside_it(tmp_path: Path, image: str) -> None:
    def names(checkpoint: Path) -> set[str]:
        [found] = iz.predict(image, 'test_resnet', checkpoint=str(checkpoint), num_classes=3, img_size=32)
        return {name for name, _ in found.top}

    beside = model_folder(tmp_path / 'm') / 'model.safetensors'
    assert names(beside) == {'ant', 'bee', 'cow'}
    assert names(beside.rename(tmp_path / 'alone.safetensors')) == {'class 0', 'class 1', 'class 2'}


def test_weights_that_are_no_numbers(tmp_path: Path, image: str) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    torch.nn.init.constant_(model.fc.bias, float('nan'))
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'w\.pth: 3 of the 3 weights in fc\.bias are NaN or infinite'):
        iz.predict(image, 'test_resnet', checkpoint=str(tmp_path / 'w.pth'), num_classes=3, img_size=32)


def test_places_that_take_no_figure(
    tmp_path: Path, folder: Path, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('matplotlib')
    model = str(model_folder(tmp_path / 'm'))
    (tmp_path / 'file').touch()
    for images, figure, part in (
        (image, 'x.gif', 'must end in .png or .svg'),
        (folder, 'x.png', 'one file for 36 images'),
        (image, 'file/x.png', "can't make"),
        (image, 'file', 'file'),
    ):
        assert main(['predict', str(images), '-m', model, '--save-figure', str(tmp_path / figure)]) == 2
        assert part in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert main(['predict', image, '-m', model, '--save-figure', str(tmp_path / 'x.png')]) == 2
    assert 'needs matplotlib: pip install "imagenette-zoo[report]"' in capsys.readouterr().err
    assert main(['predict', image, '-m', model]) == 0, 'without a figure it is not needed'


@pytest.mark.parametrize('prefix', ['hf-hub:', 'hf_hub:'])
def test_a_model_of_the_hub(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the Hub's cache on disk, as after a download."""
    cached = tmp_path / 'hub' / 'models--me--net'
    local = model_folder(cached / 'snapshots' / 'abc')
    (cached / 'refs').mkdir()
    (cached / 'refs' / 'main').write_text('abc')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    assert iz.predict(image, f'{prefix}me/net') == iz.predict(image, local)
    assert main(['predict', image, '-m', f'{prefix}me/other']) == 2
    assert 'me/other' in capsys.readouterr().err
