"""The notebook of `examples/` runs, and says what it promises."""

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / 'examples' / 'quickstart.ipynb'


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstart_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip('nbformat')
    client = pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(NOTEBOOK.parents[1]), *sys.path]))
    notebook = nbformat.read(NOTEBOOK, 4)
    client.NotebookClient(notebook, timeout=600, resources={'metadata': {'path': str(tmp_path)}}).execute()
    texts = [str(output) for cell in notebook.cells for output in cell.get('outputs', ())]
    assert any('test_resnet' in text and 'points' in text for text in texts), 'a sentence with a verdict'
    assert any('image/png' in text for text in texts), 'the curves'
    assert any('snake' in text for text in texts)
    assert list(tmp_path.glob('runs/*/report/report.html'))
