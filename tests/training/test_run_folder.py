"""Files that are whole or not there, weights that are read without running anything."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from imagenette_zoo.errors import UserError
from imagenette_zoo.models import bounds
from imagenette_zoo.models.model_folder import load_weights, model_folder, read_weights, save_model_folder
from imagenette_zoo.training.trainer import train
from imagenette_zoo.utils.files import file_stem, write_atomic
from tests.conftest import make_folder, needs_local_dir


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / 'a.json'
    write_atomic(file, b'old')

    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match=r"a\.json: can't write: No space left on device"):
        write_atomic(file, b'new')
    assert file.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / 'big'
    write_atomic(file, b'o' * 1000)
    code = (
        'import os, pathlib, sys\nfrom imagenette_zoo.utils import files\n'
        'os.fsync = lambda _: os.kill(os.getpid(), 9)\n'
        'files.write_atomic(pathlib.Path(sys.argv[1]), b"n" * 1000)'
    )
    done = subprocess.run([sys.executable, '-c', code, str(file)], check=False)
    assert done.returncode == -9
    assert file.read_bytes() == b'o' * 1000


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / '.x.tmp').symlink_to('/dev/full')
    with pytest.raises(UserError, match='No space left'):
        write_atomic(tmp_path / 'x', b'data')


def test_a_folder_does_not_hide_the_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `runs/` has one after `imagenette-zoo run mbv2_mish_imagenette`, which is no run itself."""
    monkeypatch.chdir(tmp_path)
    for name in ('mbv2_mish_imagenette', 'other'):
        (tmp_path / name).mkdir()
    assert model_folder('mbv2_mish_imagenette') is None
    for name in ('other', 'local-dir:mbv2_mish_imagenette'):
        with pytest.raises(UserError, match=r'no config\.json'):
            model_folder(name)


@pytest.mark.parametrize(
    ('model', 'stem'),
    [
        ('resnet18.a1_in1k', 'resnet18_a1_in1k'),
        ('local-dir:runs/my run', 'my_run'),
        ('hf-hub:timm/a', 'a'),
        ('x:', 'model'),
    ],
)
def test_a_models_name_in_a_files(model: str, stem: str) -> None:
    assert file_stem(model) == stem


@needs_local_dir
def test_a_model_folder_is_timms(tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {'input_size': [3, 32, 32]}}
    save_model_folder(tmp_path / 'm', config, model.state_dict())
    again = timm.create_model(f'local-dir:{tmp_path}/m', pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_weights_of_two_names_are_saved(tmp_path: Path) -> None:
    weight = torch.ones(2, 3)
    save_model_folder(tmp_path / 'm', {}, {'a': weight, 'b': weight, 'c': weight.T})
    weights = load_file(tmp_path / 'm' / 'model.safetensors')
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {'a': (2, 3), 'b': (2, 3), 'c': (3, 2)}


def test_timms_checkpoints_are_read(tmp_path: Path) -> None:
    """As its CheckpointSaver writes them: the arguments beside the weights, and two sets of weights."""
    model, ema = (timm.create_model('test_resnet', num_classes=3) for _ in range(2))
    torch.save(
        {
            'epoch': 3,
            'arch': 'test_resnet',
            'args': argparse.Namespace(lr=0.1),
            'state_dict': {f'module.{k}': v for k, v in model.state_dict().items()},
            'state_dict_ema': ema.state_dict(),
        },
        tmp_path / 'model_best.pth.tar',
    )
    plain = read_weights(tmp_path / 'model_best.pth.tar', use_ema=False)
    averaged = read_weights(tmp_path / 'model_best.pth.tar', use_ema=True)
    assert all(torch.equal(plain[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(averaged[k], v) for k, v in ema.state_dict().items())


@pytest.mark.parametrize(
    ('key', 'prefix'),
    [
        ('state_dict', 'model.'),
        ('state_dict', 'model.net._orig_mod.module.'),
        ('model', 'net.'),
        ('model_state_dict', 'module.'),
        ('model_state_dict', ''),
        ('state_dict_ema', '_orig_mod.'),
    ],
)
def test_checkpoints_of_other_trainers_are_read(tmp_path: Path, key: str, prefix: str) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    file = tmp_path / 'x.ckpt'
    beside = {'top1': np.float64(93.1), 'epoch': np.int64(3), 'best': np.float32(1), 'classes': np.arange(3)}
    torch.save({key: {prefix + name: value for name, value in model.state_dict().items()}, **beside}, file)
    other = timm.create_model('test_resnet', num_classes=3)
    assert load_weights(other, read_weights(file), file) == ''
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))


def test_a_prefix_that_is_the_models_own_stays() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(2, 2)

    one, other = Wrapped(), Wrapped()
    for state in (one.state_dict(), {f'net.{name}': value for name, value in one.state_dict().items()}):
        load_weights(other, state, 'x')
        assert torch.equal(one.model.weight, other.model.weight)


def test_torchvisions_googlenet_goes_through_the_filter_of_the_model(tmp_path: Path) -> None:
    published = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    torch.save(published.state_dict(), tmp_path / 'googlenet.pth')
    state = read_weights(tmp_path / 'googlenet.pth')
    assert any(name.startswith('aux1.') for name in state)
    model = timm.create_model('googlenet')
    assert load_weights(model, state, 'x') == ''
    assert torch.equal(model.fc.weight, published.fc.weight)


@pytest.mark.parametrize(
    ('name', 'head'),
    [('test_resnet', 'fc'), ('test_convnext', 'head.fc'), ('deit_tiny_distilled_patch16_224', 'head, head_dist')],
)
def test_the_classifier_of_other_classes_is_new(name: str, head: str) -> None:
    three, five = (timm.create_model(name, num_classes=count) for count in (3, 5))
    before = {key: value.clone() for key, value in five.state_dict().items()}
    line = load_weights(five, three.state_dict(), 'x', new_head=True)
    assert line == f'x: has other classes, so the classifier ({head}) starts anew'
    for key, value in five.state_dict().items():
        is_head = key.rpartition('.')[0] in head.split(', ')
        assert torch.equal(value, before[key] if is_head else three.state_dict()[key]), key
    with pytest.raises(UserError, match='the checkpoint of another model'):
        load_weights(five, three.state_dict(), 'x')
    with pytest.raises(UserError, match='the checkpoint of another model'):
        load_weights(timm.create_model('test_vit', num_classes=5), three.state_dict(), 'x', new_head=True)


def test_a_run_starts_from_one_of_other_classes(
    tmp_path: Path, recipe: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(recipe(epochs=1), quiet=True)
    other = make_folder(tmp_path / 'other', classes=5)
    start = dict(data_dir=str(other), initial_checkpoint=str(first.folder), experiment='other')
    result = train(recipe(epochs=1, **start))
    assert len(result.per_class) == 5
    assert 'so the classifier (fc) starts anew' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['x.safetensors', 'x.pth'])
def test_weights_that_may_not_be_read_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_bytes(b'x')

    def refuse(path: Path) -> None:
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(bounds, 'open_regular', refuse)
    with pytest.raises(UserError, match=r"can't read a checkpoint: Permission denied"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    'wrong',
    [{1: torch.zeros(2)}, {'a': torch.zeros(2).to_sparse()}, {'a': torch.zeros(2, device='meta')}, {'a': 1.0}],
    ids=['a number as name', 'sparse', 'without values', 'no tensor'],
)
def test_what_is_no_plain_tensor_is_no_weight(tmp_path: Path, wrong: dict[Any, Any]) -> None:
    torch.save({'state_dict': {'b': torch.zeros(2), **wrong}}, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='holds no weights'):
        read_weights(tmp_path / 'w.pth')


def test_weights_of_another_model_name_what_disagrees() -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    state = model.state_dict()
    with pytest.raises(UserError, match=r'fc\.weight is \(5, 96\) there and \(3, 96\) here'):
        load_weights(model, {**state, 'fc.weight': torch.zeros(5, 96)}, 'x')
    with pytest.raises(
        UserError, match=r'1 weights are missing and 1 are not its own, as fc\.wait; did you mean fc\.weight'
    ):
        load_weights(model, {**{k: v for k, v in state.items() if k != 'fc.weight'}, 'fc.wait': torch.zeros(1)}, 'x')


@given(data=st.binary(max_size=300), name=st.sampled_from(['x.safetensors', 'x.pth']))
def test_no_bytes_make_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    file = tmp_path_factory.mktemp('fuzz') / name
    file.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_weights(file)
    assert '\n' not in str(error.value)


def test_a_flipped_byte_makes_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / 'x.safetensors'
    whole = safetensors.torch.save({'a': torch.ones(3), 'b': torch.zeros(2, 2)})
    for position in range(len(whole) - 28):  # the header
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
        try:
            read_weights(file)
        except UserError as error:
            assert '\n' not in str(error), position  # noqa: PT017
