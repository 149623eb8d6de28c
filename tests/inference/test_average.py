"""imagenette-zoo average: the mean that timm's script makes, of the checkpoints that it would choose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from tests.inference.test_predict import model_folder

NAMES = ['class0', 'class1', 'class2']
TIMM = os.environ.get('TIMM_CHECKOUT', '')


def epochs(run: Path, *metrics: float, name: str = 'top1') -> list[Path]:
    """What a run leaves: a checkpoint an epoch, and its metrics."""
    folders = []
    for epoch, _ in enumerate(metrics):
        folders.append(model_folder(run / 'checkpoints' / f'epoch-{epoch}', {'label_names': NAMES}))
        weights = timm.create_model('test_resnet', num_classes=3).state_dict()  # others each time
        for key, tensor in weights.items():
            if key.endswith('num_batches_tracked'):
                tensor += 7 * epoch
            elif tensor.is_floating_point():
                tensor += epoch
        save(folders[-1], weights)
    (run / 'args.yaml').write_text(f'model: test_resnet\neval_metric: {name}\n')
    rows = [json.dumps({'epoch': epoch, f'eval_{name}': value}) for epoch, value in enumerate(metrics)]
    (run / 'metrics.jsonl').write_text('\n'.join(rows) + '\n')
    return folders


def save(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    save_file(weights, folder / 'model.safetensors')


def expected(*states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: sum(state[key].double() for state in states) / len(states) for key in states[0]}  # type: ignore[misc]


def assert_mean(folder: Path, *states: dict[str, torch.Tensor]) -> None:
    """As timm's script, whose file a model reads into tensors of its own types."""
    found = load_file(folder / 'model.safetensors')
    for key, value in expected(*states).items():
        assert torch.equal(found[key], value.float().to(found[key].dtype)), key
    assert 'running_mean' in ' '.join(found), 'statistics are averaged, too'


def test_the_best_checkpoints_of_a_run(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = epochs(tmp_path / 'run', 30.0, 90.0, 60.0)
    words = ['average', str(tmp_path / 'run'), '-n', '2', '--output', str(tmp_path / 'mean')]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if 'epoch-' in line] == [
        f'{folders[2]}: top1 60', f'{folders[1]}: top1 90',
    ]  # fmt: skip
    assert_mean(tmp_path / 'mean', *(load_file(each / 'model.safetensors') for each in folders[1:]))
    [result] = iz.validate(tmp_path / 'mean', folder, workers=0, quiet=True)
    assert result.img_size == 32
    assert main(words) == 2
    assert 'exists: choose another folder' in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['mean', 'run']


def test_of_losses_the_lowest_are_the_best(tmp_path: Path) -> None:
    folders = epochs(tmp_path / 'run', 3.0, 1.0, 2.0, name='loss')
    assert main(['average', str(tmp_path / 'run'), '-n', '1', '--output', str(tmp_path / 'one')]) == 0
    assert_mean(tmp_path / 'one', load_file(folders[1] / 'model.safetensors'))


def timm_checkpoints(place: Path) -> list[dict[str, torch.Tensor]]:
    """Files as timm's trainer writes them; the moving average of each is another."""
    place.mkdir()
    averages = []
    for epoch, metric in enumerate((70.0, 20.0, 80.0)):
        model, ema = (timm.create_model('test_resnet', num_classes=3).state_dict() for _ in range(2))
        ema = {key: value + 9 * epoch if value.dtype == torch.int64 else value for key, value in ema.items()}
        torch.save({'state_dict': model, 'state_dict_ema': ema, 'metric': metric}, place / f'c-{epoch}.pth.tar')
        averages.append(ema)
    return averages


def test_files_of_timms_trainer(tmp_path: Path, folder: Path) -> None:
    averages = timm_checkpoints(tmp_path / 'c')
    files = [str(tmp_path / 'c' / f'c-{epoch}.pth.tar') for epoch in range(3)]
    model = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32']
    assert main(['average', *files, *model, '-n', '2', '--output', str(tmp_path / 'mean')]) == 0
    assert_mean(tmp_path / 'mean', averages[0], averages[2])
    assert len(iz.predict(folder / 'val' / 'class1' / '0.png', tmp_path / 'mean')[0].top) == 3
    [scores] = iz.validate(tmp_path / 'mean', folder, workers=0, quiet=True)
    assert list(scores.per_class) == NAMES, 'files name no classes, so those of the images are taken'
    assert main(['average', *files, *model, '--no-sort', '--no-use-ema', '--output', str(tmp_path / 'all')]) == 0
    assert_mean(tmp_path / 'all', *(torch.load(file)['state_dict'] for file in files))


@pytest.mark.skipif(not TIMM, reason='TIMM_CHECKOUT is not set: a checkout of timm, for its scripts')
def test_the_mean_is_that_of_timms_script(tmp_path: Path) -> None:
    timm_checkpoints(tmp_path / 'c')
    files = [str(tmp_path / 'c' / f'c-{epoch}.pth.tar') for epoch in range(3)]
    words = [f'{TIMM}/avg_checkpoints.py', '--input', str(tmp_path / 'c'), '-n', '2', '--output', 'theirs.pth']
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True)
    model = ['--model', 'test_resnet', '--num-classes', '3', '--img-size', '32']
    assert main(['average', *files, *model, '-n', '2', '--output', str(tmp_path / 'ours')]) == 0
    ours, theirs = load_file(tmp_path / 'ours' / 'model.safetensors'), torch.load(tmp_path / 'theirs.pth')
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key].to(ours[key].dtype)) for key in ours)


def test_what_has_no_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = model_folder(tmp_path / 'one'), model_folder(tmp_path / 'other', {'label_names': ['x', 'y', 'z']})
    torch.save(timm.create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'w.pth')
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    two = model_folder(tmp_path / 'two')
    for words, part in (
        ([one, other], 'its label_names differs'),
        ([one, two, '-n', '1'], 'has no metric to choose 1 by'),
        ([tmp_path / 'w.pth'], 'give --model NAME'),
        ([one, tmp_path / 'w.pth'], 'leave out --model and other files'),
        ([tmp_path / 'run'], 'has no checkpoints yet'),
        ([tmp_path / 'none'], 'no run, model folder or file'),
        ([one, '--output', tmp_path / 'no' / 'where'], 'no such folder'),
        ([one, '--num-classes', '3'], '--num-classes needs --model'),
    ):
        assert main(['average', '--output', str(tmp_path / 'mean'), *map(str, words)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert part in line
    assert not (tmp_path / 'mean').exists()
