"""kNN and linear probes: by hand-made examples, and of models whose classes are others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.groups import ValidationOptions
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.loading import images_of, training_images_of
from imagenette_zoo.inference.probes import knn, linear_probe
from tests.inference.test_predict import model_folder


def test_neighbours_vote_by_their_cosine() -> None:
    """Against the sum written out, with neighbours that all vote and with few."""
    torch.manual_seed(0)
    train, targets, rows = torch.randn(40, 5), torch.randint(3, (40,)), torch.randn(30, 5)
    similarity = torch.nn.functional.cosine_similarity(rows[:, None], train[None], dim=2)
    for k in (7, 40, 200):
        expected = []
        for row in similarity:
            votes = torch.zeros(3)
            for index in row.argsort(descending=True)[:k]:
                votes[targets[index]] += (row[index] / 0.1).exp()
            expected.append(int(votes.argmax()))
        assert knn(train, targets, rows, 3, k, 0.1).tolist() == expected
    assert knn(1e4 * train, targets, rows, 3, 7).tolist() == knn(train, targets, rows, 3, 7).tolist()


def test_no_temperature_makes_votes_infinite() -> None:
    train, targets = torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, 0.2]]), torch.tensor([0, 1, 0])
    for t in (0.1, 1e-3, 1e-9):
        assert knn(train, targets, torch.tensor([[1.0, 0.0]]), 2, 3, t).tolist() == [int(t < 0.1)]
    with pytest.raises(UserError, match='--knn-t has no effect without --knn'):
        ValidationOptions(knn_t=0.07)


def test_features_that_are_no_numbers_are_not_probed(tmp_path: Path, folder: Path) -> None:
    other = model_folder(tmp_path / 'other')
    weights = safetensors.torch.load_file(other / 'model.safetensors')
    name = next(name for name in weights if name.endswith('running_var'))
    safetensors.torch.save_file({**weights, name: torch.full_like(weights[name], -1)}, other / 'model.safetensors')
    with pytest.raises(UserError, match='gives NaN or infinite numbers'):
        iz.validate(other, folder, knn=True, workers=0, quiet=True)


def test_a_linear_probe_tells_classes_apart_beside_large_noise() -> None:
    torch.manual_seed(0)
    targets = torch.arange(300) % 3
    features = torch.randn(300, 4) * torch.tensor([1.0, 1.0, 100.0, 0.0])  # one is noise, one is constant
    features[:, :2] += 6 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]])[targets]
    found = linear_probe(features[:200], targets[:200], features[200:], 3)
    assert (found == targets[200:]).double().mean() > 0.97
    scaled = features * torch.tensor([1e3, 1e-3, 1.0, 1.0])
    assert torch.equal(found, linear_probe(scaled[:200], targets[:200], scaled[200:], 3)), 'it is standardised'


def test_a_model_of_other_classes_is_probed(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = model_folder(tmp_path / 'own', {'label_names': ['class0', 'class1', 'class2']})
    other = model_folder(tmp_path / 'other')  # ant, bee, cow
    words = ['validate', '--data-dir', str(folder), '--workers', '0', '--model', str(own), str(other)]
    assert main(words) == 2
    capsys.readouterr()
    for kind in ('json', 'csv'):
        file = ['--results-file', str(tmp_path / f'r.{kind}')]
        assert main([*words, '--knn', '--knn-k', '5', '--linear-probe', *file]) == 0
    printed = capsys.readouterr().out
    assert 'knn top-1 %' in printed
    ours, theirs = json.loads((tmp_path / 'r.json').read_text())
    assert ours['top1'] is not None
    assert theirs['top1'] is None
    assert theirs['confusion'] == []
    for name in ('knn_top1', 'linear_probe_top1'):
        assert ours[name] == theirs[name] > 50, 'the same weights; classes are told by their colour'
        assert name in (tmp_path / 'r.csv').read_text().splitlines()[0]


def test_neighbours_are_training_images(tmp_path: Path, folder: Path) -> None:
    model = model_folder(tmp_path / 'm', {'label_names': ['class0', 'class1', 'class2']})
    [own] = iz.validate(model, folder, knn=True, knn_k=1, val_split='train', workers=0, quiet=True)
    assert own.probes == {'knn_top1': 100.0}, 'each is its own neighbour'
    [held_out] = iz.validate(model, folder, knn=True, knn_k=24, knn_t=1e12, workers=0, quiet=True)
    assert held_out.probes['knn_top1'] == pytest.approx(100 / 3), 'all training images vote alike'


def test_a_run_is_probed_by_its_own_training_images(tmp_path: Path, folder: Path) -> None:
    """Not by those that it held out for validation."""
    model_folder(tmp_path / 'run' / 'best')
    (tmp_path / 'run' / 'args.yaml').write_text(
        f'data_dir: {folder}\ntrain_split: train[:50%]\nval_split: train[50%:]\n'
    )
    models = (str(tmp_path / 'run'),)
    images = images_of(models, options := ValidationOptions(model=models))
    train = training_images_of(models, options, images)
    assert len(train) == len(images) == 12
    assert not {*train.paths} & {*images.paths}


def test_a_model_without_a_classifier_is_probed(tmp_path: Path, folder: Path) -> None:
    whole = model_folder(tmp_path / 'whole')
    weights = safetensors.torch.load_file(whole / 'model.safetensors')
    headless = shutil.copytree(whole, tmp_path / 'headless')
    model = timm.create_model('test_resnet', num_classes=0)
    safetensors.torch.save_file({name: weights[name] for name in model.state_dict()}, headless / 'model.safetensors')
    config = json.loads((whole / 'config.json').read_text())
    config.pop('label_names', None)
    config['pretrained_cfg'].pop('label_names', None)
    (headless / 'config.json').write_text(json.dumps({**config, 'num_classes': 0}))
    options: dict[str, Any] = dict(knn=True, workers=0, quiet=True)
    [one], [other] = (iz.validate(each, folder, **options) for each in (whole, headless))
    assert other.top1 is None
    assert other.probes == one.probes
    with pytest.raises(UserError, match='has no classifier'):
        iz.predict(next(folder.glob('val/*/*')), headless)
