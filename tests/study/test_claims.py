"""docs/claims.md is what the committed results of the study give."""

from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main

DOCS = Path(__file__).parents[2] / 'docs'


@pytest.mark.slow
def test_the_page_on_the_claims_is_the_report_on_the_results(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    pytest.importorskip('scipy')
    pytest.importorskip('jinja2')
    page = tmp_path / 'claims.md'
    words = ['--output', str(tmp_path / 'claims'), '--markdown', str(page), '--no-images']
    assert main(['report', str(DOCS / 'results' / 'claims-cpu'), *words]) == 0
    assert page.read_text(encoding='utf-8') == (DOCS / 'claims.md').read_text(encoding='utf-8')
    drawn = {path.relative_to(tmp_path) for path in (tmp_path / 'claims' / 'figures').iterdir()}
    assert drawn == {path.relative_to(DOCS) for path in (DOCS / 'claims' / 'figures').iterdir()}
