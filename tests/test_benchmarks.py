"""The benchmarks run; what they measure is no test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_folder

ROOT = Path(__file__).parent.parent


def run(tmp_path: Path, *words: str, results: Path | None = None) -> Path:
    data = make_folder(tmp_path / 'data', classes=10, train=3, val=2)
    small = '--device cpu --rounds 2 --img-size 32 --batch-size 8 --images 16 --val-images 20 --steps 1 --skipped 1'
    results = results or tmp_path / 'results'
    command = [sys.executable, ROOT / 'benchmarks' / 'run.py', '--data-dir', data, '--results-dir', results]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'IMAGENETTE_ZOO_CACHE': str(tmp_path / 'cache')}
    subprocess.run([*command, *small.split(), '--workers', '1', *words], check=True, env=env, timeout=280)
    return results


@pytest.mark.slow
@pytest.mark.long
def test_benchmarks_within_a_process(tmp_path: Path) -> None:
    names = ['machine', 'decode', 'pipeline', 'loop', 'fused', 'layout', 'batchnorm']
    results = run(tmp_path, '--only', *names)
    for name in names:
        result = json.loads((results / f'{name}.json').read_text())
        assert all(len(rates) == 2 and min(rates) > 0 for rates in result['rounds'].values())
    assert set(json.loads((results / 'pipeline.json').read_text())['median_ratios']) == {'ours / timm'}
    [errors] = json.loads((results / 'batchnorm.json').read_text())['details'].values()
    assert max(errors['ours, 1 threads'].values()) < 1e-5 < max(errors['torch, 1 threads'].values())
    before = (results / 'machine.json').read_bytes()
    run(tmp_path / 'again', '--only', 'machine', results=results)
    assert (results / 'machine.json').read_bytes() == before
    assert (results / 'machine-2.json').is_file()


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_of_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCHDYNAMO_DISABLE', '1')  # compiling takes most of a minute
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(package)
    results = run(tmp_path, '--only', 'export', '--models', 'test_resnet')
    result = json.loads((results / 'export-test_resnet.json').read_text())
    assert all(len(rates) == 2 and min(rates) > 0 for rates in result['rounds'].values())
    assert len(result['rounds']) == 8
    assert result['details']['largest_difference'] <= 1e-4


@pytest.mark.slow
@pytest.mark.long
def test_the_time_to_an_accuracy(tmp_path: Path) -> None:
    """For each seed; a run ends with the first validation that reaches it."""
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('{model: mbv2_mish_imagenette, img_size: 32, batch_size: 8, epochs: 20, val_interval: 2}')
    words = ['--only', 'accuracy', '--order', 'ours', '--seeds', '2', '--first-seed', '3']
    results = run(tmp_path, *words, '--target', '0', '--recipe', str(recipe))
    result = json.loads((results / 'to-0.json').read_text())
    curves = result['details']['ours']
    assert [len(curve) for curve in curves] == [1, 1]
    assert result['rounds']['ours'] == [curve[0]['seconds'] for curve in curves]


@pytest.mark.slow
@pytest.mark.long
def test_an_accuracy_that_is_not_reached_is_null(tmp_path: Path) -> None:
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('{model: test_resnet, img_size: 32, batch_size: 8, epochs: 1, warmup_epochs: 0}')
    words = ['--only', 'accuracy', '--order', 'ours', '--seeds', '1', '--target', '101', '--recipe', str(recipe)]
    result = json.loads((run(tmp_path, *words) / 'to-101.json').read_text())
    assert result['rounds'] == {'ours': [None]}


@pytest.mark.skipif('TIMM_CHECKOUT' not in os.environ, reason='TIMM_CHECKOUT is not set')
@pytest.mark.parametrize('name', ['train', 'validate', 'busy', 'start'])
def test_a_benchmark_against_timms_scripts(name: str, tmp_path: Path) -> None:
    words = f'--timm-dir {os.environ["TIMM_CHECKOUT"]} --earlier {ROOT} --models mbv2_mish_imagenette'.split()
    results = run(tmp_path, *words, '--only', name)
    made = {
        'train': ['train-mbv2_mish_imagenette', 'memory-mbv2_mish_imagenette'],
        'validate': ['validate', 'validate-process'],
    }.get(name, [f'{name}-mbv2_mish_imagenette'])
    for file in made:
        result = json.loads((results / f'{file}.json').read_text())
        assert result['median_ratios']
        assert "timm of timm's scripts" in result['versions']
