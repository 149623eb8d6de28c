"""imagenette-zoo export: what the files compute, what they tell, and when none is written."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import save_model_folder
from imagenette_zoo.sharing import export as module
from tests.conftest import make_folder

FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2', 'torchscript': '.pt'}
NAMES = ['ant', 'bee', 'cow']


@pytest.fixture(autouse=True)
def _no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)


def model_folder(place: Path, name: str = 'test_resnet', side: int = 32, **args: Any) -> Path:
    """A model folder of three classes whose norms have seen images."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **args)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(8, args.get('in_chans', 3), side, side))
    config = {**timm.data.resolve_data_config(model=model), 'input_size': (args.get('in_chans', 3), side, side)}
    save_model_folder(place, factory.model_config(model, config, NAMES, args), model.state_dict())
    return place


def of_folder(folder: Path, **args: Any) -> nn.Module:
    config = json.loads((folder / 'config.json').read_text())
    model = timm.create_model(config['architecture'], num_classes=3, **args)
    model.load_state_dict(load_file(folder / 'model.safetensors'))
    return model.eval()


def read(file: Path, to: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, Any]]:
    """The network in a file and its metadata, read as a stranger would."""
    extra = {'imagenette_zoo': ''}
    if to == 'torchscript':
        network = torch.jit.load(file, _extra_files=extra)
    elif to == 'torch-export':
        network = torch.export.load(file, extra_files=extra).module()
    else:
        onnxruntime = pytest.importorskip('onnxruntime')
        session = onnxruntime.InferenceSession(file)
        extra = session.get_modelmeta().custom_metadata_map
        network = lambda x: torch.from_numpy(session.run(None, {'images': x.numpy()})[0])  # noqa: E731
    return network, json.loads(extra['imagenette_zoo'])


@pytest.mark.parametrize('to', FORMATS)
def test_a_file_computes_what_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    if to == 'onnx':
        pytest.importorskip('onnxscript')
    folder = model_folder(tmp_path / 'mine')
    monkeypatch.chdir(tmp_path)
    assert main(['export', 'mine', '--to', to]) == 0
    file = tmp_path / f'mine{FORMATS[to]}'
    printed = capsys.readouterr().out
    assert f'mine{FORMATS[to]}: {to}' in printed
    assert ('opset 18' in printed) == (to == 'onnx')
    assert 'largest difference from PyTorch in a logit' in printed
    assert '10 images of synthette' in printed
    assert {path.name for path in tmp_path.iterdir()} == {'mine', file.name}
    network, metadata = read(file, to)
    with torch.no_grad():
        for batch in (1, 5):
            images = torch.randn(batch, 3, 32, 32)
            torch.testing.assert_close(network(images), of_folder(folder)(images), rtol=0, atol=1e-4)
    config = json.loads((folder / 'config.json').read_text())['pretrained_cfg']
    assert metadata['model'] == 'test_resnet'
    assert metadata['label_names'] == NAMES
    assert metadata['input_size'] == [3, 32, 32]
    for name in ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'):
        assert metadata[name] == config[name]


@pytest.mark.slow
def test_an_onnx_file_is_fused_and_takes_any_batch(tmp_path: Path) -> None:
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    args = {'channel_multiplier': 0.35}
    folder = model_folder(tmp_path / 'm', 'mbv2_mish_mp2_imagenette', 64, **args)
    exported = iz.export(folder, 'onnx', tmp_path / 'x.onnx')
    assert exported.difference <= 1e-4
    proto = onnx.load(exported.file)
    kinds = [node.op_type for node in proto.graph.node]
    assert 'BatchNormalization' not in kinds
    whole = sum(isinstance(layer, nn.Conv2d) for layer in of_folder(folder, **args).modules())
    assert kinds.count('Conv') < whole, 'two passes are one block'
    assert [opset.version for opset in proto.opset_import if not opset.domain] == [18]
    (image,), (logits,) = proto.graph.input, proto.graph.output
    assert [image.name, logits.name] == ['images', 'logits']
    assert image.type.tensor_type.shape.dim[0].dim_param == 'batch' == logits.type.tensor_type.shape.dim[0].dim_param


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'to'),
    [
        ('mbv2_mish_maxblur_imagenette', 'torch-export'),
        ('mbv2_mish_maxblur_imagenette', 'torchscript'),
        ('googlenet', 'torchscript'),
    ],
)
def test_models_of_the_zoo(tmp_path: Path, name: str, to: str) -> None:
    exported = iz.export(model_folder(tmp_path / 'm', name, 64), to, tmp_path / 'file')
    assert exported.difference <= 1e-4
    assert exported.images == 10


def test_it_is_checked_on_the_images_at_hand(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = model_folder(tmp_path / 'm'), tmp_path / 'x.pt'
    exported = iz.export(model, 'torchscript', file, data_dir=str(folder))
    assert (exported.images, exported.source) == (12, f'{folder.name}/val')
    monkeypatch.setenv('IMAGENETTE_DIR', str(folder))
    assert iz.export(model, 'torchscript', file).source == f'{folder.name}/val'
    monkeypatch.setenv('IMAGENETTE_DIR', '/nowhere')
    assert main(['export', str(model), '--to', 'torchscript', '--output', str(file)]) == 2
    assert 'IMAGENETTE_DIR /nowhere does not exist' in capsys.readouterr().err
    few = make_folder(tmp_path / 'few', classes=2, train=1, val=1)
    words = ['--to', 'torchscript', '--output', str(file), '--data-dir', str(few)]
    assert main(['export', str(model), *words]) == 2
    assert 'at least 3' in capsys.readouterr().err


@pytest.mark.parametrize(('amount', 'shown'), [(2e-4, '2.0e-04'), (float('nan'), 'nan')])
def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], amount: float, shown: str
) -> None:
    model, file = model_folder(tmp_path / 'm'), tmp_path / 'x.pt'
    fuse = module.fuse

    def wrongly(whole: Any) -> Any:
        fused = fuse(whole)
        with torch.no_grad():
            fused.get_classifier().bias[1] += amount
        return fused

    monkeypatch.setattr(module, 'fuse', wrongly)
    words = ['export', str(model), '--to', 'torchscript', '--output', str(file)]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert f'differs from PyTorch by {shown}' in printed
    assert len(printed.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {'m'}
    file.write_text('of before')
    assert main(words) == 2
    assert file.read_text() == 'of before'
    assert {path.name for path in tmp_path.iterdir()} == {'m', 'x.pt'}


def test_a_model_that_no_exporter_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :3] if images.sum().item() > 0 else images.flatten(1)[:, 3:6]

    model = model_folder(tmp_path / 'm')
    monkeypatch.setattr(module, 'fuse', lambda _: Odd())
    assert main(['export', str(model), '--to', 'torch-export', '--output', str(tmp_path / 'x')]) == 2
    printed = capsys.readouterr().err
    assert "can't be exported to torch-export" in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / 'x').exists()


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(model_folder(tmp_path / 'm'))
    for words, part in (
        (['export', model, '--model', 'b'], 'one model is expected'),
        (['export', model, '--to', 'onx'], 'did you mean onnx'),
        (['export', model, '--to', 'torchscript', '--output', str(tmp_path)], 'is a folder'),
        (['export', model, '--to', 'torchscript', '--output', '/nowhere/x.pt'], 'no such folder'),
        (['export', str(tmp_path), '--to', 'torchscript'], 'no config.json'),
        (['export', 'runs/typo', '--to', 'torchscript'], 'runs/typo'),
        (['export', 'hf-hub:', '--to', 'torchscript'], 'hf-hub:'),
        (['export', 'mbv2_mish_mp3_imagenette', '--to', 'torchscript'], 'no weights are published'),
        (['export', model, '--to', 'torchscript', '--use-ema'], '--use-ema has no effect'),
    ):
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert part in printed
        assert len(printed.splitlines()) == 1
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    assert main(['export', model]) == 2
    assert '--to onnx needs onnx: pip install "imagenette-zoo[onnx]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'file'), [('runs/a/best', 'a.pt'), ('runs/a', 'a.pt'), ('local-dir:runs/a/last', 'a.pt')]
)
def test_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str) -> None:
    for place in ('best', 'last'):
        model_folder(tmp_path / 'runs' / 'a' / place)
    monkeypatch.chdir(tmp_path)
    assert iz.export(name, 'torchscript').file == Path(file)
    assert (tmp_path / file).is_file()


def test_an_onnx_file_is_validated_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    data = make_folder(tmp_path / 'data')
    folder, file = model_folder(tmp_path / 'm'), tmp_path / 'x.onnx'
    config = json.loads((folder / 'config.json').read_text())
    names = [f'class{index}' for index in range(3)]
    config['pretrained_cfg'] |= {'label_names': names, 'crop_pct': 0.7, 'mean': [0.2, 0.3, 0.4]}
    (folder / 'config.json').write_text(json.dumps({**config, 'label_names': names}))
    iz.export(folder, 'onnx', file, data_dir=str(data))
    results = iz.validate([str(folder), str(file)], data, workers=0, shift_consistency=True, quiet=True)
    torch_model, exported = results
    assert exported.confusion == torch_model.confusion
    assert exported.loss == pytest.approx(torch_model.loss, abs=1e-4)
    assert exported.shift_consistency == torch_model.shift_consistency
    assert (exported.crop_pct, exported.img_size) == (0.7, 32)
    assert exported.gmacs is None
    assert abs(exported.params - torch_model.params) < 0.05 * torch_model.params
    [found], [expected] = (iz.predict(data / 'val' / 'class0' / '0.png', each) for each in (file, folder))
    assert found.label == expected.label
    assert found.probability == pytest.approx(expected.probability, abs=1e-4)
    capsys.readouterr()

    def fails(part: str, *words: str, command: str = 'validate') -> None:
        given = ['--data-dir', str(data)] if command != 'publish' else []
        assert main([command, *given, *words]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert part in line

    fails("can't take images of 64 px", '--model', str(file), '--img-size', '64')
    fails('only validate and predict take an ONNX file', '--model', str(file), command='export')
    fails("doesn't tell the features before its classifier", '--model', str(file), '--knn')
    fails('with its own global_pool, in_chans', '--model', str(file), '--gp', 'max', '--in-chans', '1')
    with pytest.raises(UserError, match='an ONNX file has no gradients'):
        iz.predict(data / 'val' / 'class0' / '0.png', file, save_figure=str(tmp_path / 'figures'))
    proto = onnx.load(file)
    given = json.loads(proto.metadata_props[0].value)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / 'bare.onnx')
    fails("don't say how images are prepared", '--model', str(tmp_path / 'bare.onnx'))
    onnx.helper.set_model_props(proto, {'imagenette_zoo': '{"mean": 3}'})
    onnx.save(proto, tmp_path / 'odd.onnx')
    fails('not the metadata of an exported model', '--model', str(tmp_path / 'odd.onnx'))
    metadata = {**given, 'input_size': 5}
    onnx.helper.set_model_props(proto, {'imagenette_zoo': json.dumps(metadata)})
    onnx.save(proto, tmp_path / 'odd.onnx')
    fails('not the metadata of an exported model', '--model', str(tmp_path / 'odd.onnx'))
    (tmp_path / 'torn.onnx').write_bytes(file.read_bytes()[:1000])
    fails('not an ONNX file that onnxruntime can run', '--model', str(tmp_path / 'torn.onnx'))


def test_a_file_whose_names_are_made_up_is_validated_on_any_classes(tmp_path: Path) -> None:
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    data, folder = make_folder(tmp_path / 'data'), model_folder(tmp_path / 'm')
    weights = shutil.copy(folder / 'model.safetensors', tmp_path / 'weights.safetensors')  # without a config beside it
    options: dict[str, Any] = dict(checkpoint=str(weights), num_classes=3, img_size=32)
    iz.export('test_resnet', 'onnx', tmp_path / 'x.onnx', data_dir=str(data), **options)
    [expected] = iz.validate('test_resnet', data, workers=0, quiet=True, **options)
    [found] = iz.validate(tmp_path / 'x.onnx', data, workers=0, quiet=True)
    assert found.confusion == expected.confusion
    [prediction] = iz.predict(data / 'val' / 'class0' / '0.png', tmp_path / 'x.onnx')
    assert re.fullmatch(r'class \d', prediction.label)


def test_a_model_of_four_channels_is_checked_on_drawn_images(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / 'm', in_chans=4)
    exported = iz.export(folder, 'torchscript', tmp_path / 'x.pt')
    assert exported.source == 'synthette'
    network, metadata = read(tmp_path / 'x.pt', 'torchscript')
    assert metadata['input_size'][0] == 4
    assert network(torch.zeros(1, 4, 32, 32)).shape == (1, 3)
