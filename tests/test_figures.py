"""Pages, pictures and tables of README and docs are those that `make figures` makes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def same_picture(one: Path, other: Path) -> bool:
    """Whether two look alike; fonts and edges differ a little between versions."""
    first, second = (np.asarray(Image.open(file).convert('RGB').reduce(16)).astype(int) for file in (one, other))
    return first.shape == second.shape and bool(np.abs(first - second).max() < 32)


@pytest.mark.slow
def test_everything_made_of_result_files_is_that_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('matplotlib')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import figures

    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    shutil.copy(ROOT / 'README.md', tmp_path)
    names = ('front.png', 'own-ideas.png', 'taught.png', 'studies.svg', 'models.svg', 'claims/report.json')
    changed = [tmp_path / 'docs' / name for name in names]
    for file in changed:
        file.unlink()
    shutil.rmtree(tmp_path / 'docs' / 'claims')
    for page in (tmp_path / 'README.md', tmp_path / 'docs' / 'performance.md'):
        page.write_text(re.sub(r'\| (\d)', r'| 7\1', page.read_text()))
    figures.main(tmp_path)
    files, wanted = ({path.relative_to(root) for path in (root / 'docs').rglob('*')} for root in (tmp_path, ROOT))
    assert files == wanted
    for file in (path for path in tmp_path.rglob('*') if path.is_file()):
        committed = ROOT / file.relative_to(tmp_path)
        if file.suffix == '.png':
            assert same_picture(file, committed), f'{committed}: run make figures'
        elif file.suffix != '.svg':
            assert file.read_bytes() == committed.read_bytes(), f'{committed}: run make figures'
    printed = capsys.readouterr().out
    for page in ('own-ideas.md', 'training.md'):
        [block] = re.findall(r'```\n(run .*?)```', (ROOT / 'docs' / page).read_text(), re.DOTALL)
        assert block in printed


@pytest.mark.slow
def test_the_page_of_the_headline_has_the_study_beside_the_means_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('matplotlib')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import figures

    results = Path(shutil.copytree(ROOT / 'docs' / 'results' / 'taught', tmp_path / 'results' / 'headline-gpu'))
    figures.write_page(tmp_path, 'headline-gpu')
    runs = [
        [json.loads((results / f'kd_model_name={name}-seed{seed}' / 'result.json').read_text()) for seed in (1, 2, 3)]
        for name in ('None', 'runs_teacher')
    ]
    *_, table = (tmp_path / 'headline-gpu.md').read_text().split('\n\n')
    rows = {cells[1].strip(): cells[2:-1] for cells in (line.split('|') for line in table.splitlines())}
    for name, theirs in {'tench': (94.8, 93.0), 'all': (90.0, 87.0)}.items():
        ours = [[run['top1'] if name == 'all' else run['per_class'][name] for run in each] for each in runs]
        expected = pytest.approx([*theirs, *map(np.mean, ours)], abs=0.006)
        assert [float(cell.split('±')[0]) for cell in rows[name]] == expected
