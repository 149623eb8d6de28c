"""Model folders as other libraries read them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from imagenette_zoo.config.groups import InputOptions
from imagenette_zoo.data.drawings import parachute
from imagenette_zoo.inference.predict import predict
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import load_folder, read_config, save_model_folder

NAMES = [f'class {index}' for index in range(5)]
MODELS = [('mbv2_mish_maxblur_imagenette', {'passes': 2}, 'squash'), ('test_vit', {}, 'center')]  # ours and timm's


def made(folder: Path, name: str, args: dict[str, Any], crop_mode: str) -> torch.nn.Module:
    """Writes a model folder as a training does; returns its model."""
    torch.manual_seed(0)
    model = factory.build_model(name, num_classes=5, **args)
    config = factory.input_config(InputOptions(), model, crop_mode=crop_mode)
    save_model_folder(folder, factory.model_config(model, config, NAMES, args), model.state_dict())
    return model.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(('name', 'args', 'crop_mode'), MODELS)
def test_the_number_of_classes_is_written_once(name: str, args: dict[str, Any], crop_mode: str, tmp_path: Path) -> None:
    """And folders that repeat it among the arguments, as timm 1.0.31 does, are read as before."""
    model = made(tmp_path, name, args, crop_mode)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['num_classes'] == 5
    assert config.get('model_args', {}).items() >= args.items()
    assert 'num_classes' not in config.get('model_args', {})
    images = torch.randn(2, *config['pretrained_cfg']['input_size'])
    with torch.inference_mode():
        logits = model(images)
        assert torch.equal(timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()(images), logits)
        config.setdefault('model_args', {})['num_classes'] = 5
        (tmp_path / 'config.json').write_text(json.dumps(config))
        assert torch.equal(load_folder(tmp_path).eval()(images), logits)
    assert 'num_classes' not in read_config(tmp_path)['model_args']


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(('name', 'args', 'crop_mode'), MODELS)
def test_transformers_loads_a_model_folder(name: str, args: dict[str, Any], crop_mode: str, tmp_path: Path) -> None:
    """Its logits, its pixels and what its pipeline says are timm's and ours."""
    transformers = pytest.importorskip('transformers', '5')
    model = made(tmp_path / 'model', name, args, crop_mode)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'model').eval()
    assert list(loaded.config.id2label.values()) == NAMES
    image = parachute()
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'model')(image).pixel_values
    assert torch.equal(pixels[0], timm.data.create_transform(**timm.data.resolve_model_data_config(model))(image))
    with torch.inference_mode():  # of a copy: convolutions round otherwise in a mapped file, aligned to 8 bytes
        assert torch.equal(copy.deepcopy(loaded)(pixels).logits, model(pixels))
    image.save(tmp_path / 'image.png')
    pipe = transformers.pipeline('image-classification', model=str(tmp_path / 'model'), device='cpu')
    [ours] = predict(tmp_path / 'image.png', model=tmp_path / 'model', device='cpu')
    first = pipe(str(tmp_path / 'image.png'))[0]
    assert (first['label'], first['score']) == (ours.label, pytest.approx(ours.probability, abs=1e-5))
