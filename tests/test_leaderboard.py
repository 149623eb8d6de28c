"""The page on the leaderboard says what the committed result files say, and takes no run that breaks its rules."""

import importlib.util
import json
import shutil
import statistics
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
STUDY = ROOT / 'docs' / 'results' / 'claims-cpu'


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location('leaderboard', ROOT / 'tools' / 'leaderboard.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool with folders of its own, whose only row is the study's flagship, with a record of 58 %."""
    module = load()
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    for name in ('RECIPES', 'RESULTS'):
        monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(module, 'PAGE', tmp_path / 'page.md')
    monkeypatch.setattr(module, 'RECORDS', {('imagenette', 0, 64): (58.0, 60.0, 70.0, 80.0)})
    module.RECIPES.mkdir()
    shutil.copyfile(STUDY / 'mish-seed1' / 'args.yaml', module.RECIPES / '64px_5e.yaml')
    return module


def test_the_page_is_that_of_the_committed_files() -> None:
    module = load()
    assert module.PAGE.read_text() == module.page()


def test_means_of_seeds_beside_the_record(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [STUDY / f'{name}-seed{seed}' for name in ('mish', 'mish-maxblur') for seed in (1, 2)]
    assert tool.main([*map(str, folders)]) == 0
    lines = tool.PAGE.read_text().splitlines()
    better, flagship = (line for line in lines if line.startswith('| Imagenette | 64 |'))
    assert '`mbv2_mish_maxblur_imagenette`' in better
    assert '--model mbv2_mish_maxblur_imagenette' in better
    found = [json.loads((folder / 'result.json').read_text())['top1'] for folder in folders[:2]]
    mean, spread = statistics.mean(found), statistics.stdev(found)
    assert f'| {mean:.2f} ± {spread:.2f} | 2 of 5 | 58.00 | {mean - 58:+.2f} | 2.24 | 0.02 |' in flagship
    assert lines[-3:] == ['Not tried, among others:', '', '- Imagenette, 64 px: 20, 80, 200 epochs']


def test_results_of_another_row_are_refused(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(STUDY / 'mish-seed1')]) == 0
    (tool.RESULTS / '64px_5e').rename(tool.RESULTS / '64px_20e')
    recipe = (tool.RECIPES / '64px_5e.yaml').read_text()
    (tool.RECIPES / '64px_20e.yaml').write_text(recipe)
    assert tool.main([]) == 2
    assert 'is not of 64px_20e' in capsys.readouterr().err


def test_label_noise_is_a_row_of_its_own(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, 'RECORDS', {('imagenette', 0, 64): (58.0,), ('imagenette', 5, 64): (50.0,)})
    monkeypatch.setattr(tool, 'EPOCHS', (5,))
    noisy = shutil.copytree(STUDY / 'mish-seed1', tmp_path / 'run')
    result = json.loads((noisy / 'result.json').read_text())
    result['recipe']['label_noise'], result['top1'] = 5, 51.0
    (noisy / 'result.json').write_text(json.dumps(result))
    assert tool.main([str(noisy), str(STUDY / 'mish-seed1')]) == 0
    page = tool.PAGE.read_text()
    assert '| 5 % | `mbv2_mish_imagenette` | 51.00 | 1 of 5 | 50.00 | +1.00 |' in page
    assert '64px_5e.yaml --label-noise 5 --seed N' in page
    assert 'without a run' not in page


def test_all_public_rows_are_known() -> None:
    module = load()
    assert sum(len(tops) for tops in module.RECORDS.values()) == 60
    tables = [('imagenette', 0), ('imagenette', 5), ('imagenette', 50), ('imagewoof', 0), ('imagewang', 0)]
    assert list(module.RECORDS) == [(*table, size) for table in tables for size in (128, 192, 256)]


def test_a_run_on_imagewoof_stands_beside_its_own_record(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tool, 'RECORDS', {('imagenette', 0, 64): (58.0,), ('imagewoof', 0, 64): (40.0,)})
    monkeypatch.setattr(tool, 'EPOCHS', (5,))
    woof = shutil.copytree(STUDY / 'mish-seed1', tmp_path / 'run')
    result = json.loads((woof / 'result.json').read_text())
    result['dataset'].update(name='imagewoof2-160', train=9025, val=3929)
    (woof / 'result.json').write_text(json.dumps({**result, 'top1': 42.0}))
    assert tool.main([str(woof), str(STUDY / 'mish-seed1')]) == 0
    page = tool.PAGE.read_text()
    assert '| Imagewoof | 64 | 5 |  | `mbv2_mish_imagenette` | 42.00 | 1 of 5 | 40.00 | +2.00 |' in page
    assert '64px_5e.yaml --data-dir imagewoof2-160 --seed N' in page
    assert (tool.RESULTS / '64px_5e' / 'mbv2_mish_imagenette-imagewoof-seed1').is_dir()


def test_a_second_run_with_the_same_seed_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = shutil.copytree(STUDY / 'mish-seed1', tmp_path / 'run')
    result = json.loads((better / 'result.json').read_text())
    (better / 'result.json').write_text(json.dumps({**result, 'top1': result['top1'] + 1}))
    assert tool.main([str(STUDY / 'mish-seed1')]) == tool.main([str(STUDY / 'mish-seed1')]) == 0
    assert tool.main([str(better)]) == 2
    assert 'another run with this seed' in capsys.readouterr().err


def refused(tool: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    assert tool.main([str(folder)]) == 2
    assert not tool.PAGE.exists()
    assert not tool.RESULTS.exists()
    message = capsys.readouterr().err
    assert message.count('\n') == 1
    return message


def test_another_recipe_is_refused(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'was trained with opt momentum' in refused(tool, capsys, STUDY / 'sgd-seed1')
    (tool.RECIPES / '64px_5e.yaml').rename(tool.RECIPES / '64px_20e.yaml')
    assert 'there is no recipe' in refused(tool, capsys, STUDY / 'mish-seed1')
    assert "can't read the result of a run" in refused(tool, capsys, ROOT)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'recipe': {'pretrained': True}}, 'starts from trained weights'),
        ({'recipe': {'initial_checkpoint': 'weights'}}, 'starts from trained weights'),
        ({'recipe': {'train_img_sizes': [32, 48]}}, 'validated at more pixels'),
        ({'dataset': {'train': 8000}}, 'not of the whole of Imagenette'),
    ],
)
def test_the_rules(
    tool: ModuleType,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    change: dict[str, dict[str, object]],
    message: str,
) -> None:
    folder = shutil.copytree(STUDY / 'mish-seed1', tmp_path / 'run')
    result = json.loads((folder / 'result.json').read_text())
    for part, values in change.items():
        result[part].update(values)
        if part == 'recipe':  # the row's recipe breaks the rule as well
            (tool.RECIPES / '64px_5e.yaml').write_text(json.dumps(result[part]))
    (folder / 'result.json').write_text(json.dumps(result))
    assert message in refused(tool, capsys, folder)
