"""What happens as soon as a module is imported."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.utils.after_import import after_import


def test_it_happens_once_after_the_import_and_at_once_where_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'awaited.py').write_text('ready = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    finders, called = [*sys.meta_path], []
    try:
        after_import('awaited', lambda: called.append(sys.modules['awaited'].ready))
        assert importlib.util.find_spec('awaited') is not None
        assert called == [], 'it was only looked for'
        module = importlib.import_module('awaited')
        assert called == [True]
        importlib.reload(module)
        assert called == [True]
        assert sys.meta_path == finders
        after_import('awaited', lambda: called.append('again'))
        assert called == [True, 'again']
    finally:
        sys.modules.pop('awaited', None)
        sys.meta_path[:] = finders


def test_several_wait_for_one_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'awaited.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    finders, called = [*sys.meta_path], []
    try:
        for name in ('first', 'second', 'third'):
            after_import('awaited', lambda name=name: called.append(name))
        importlib.import_module('awaited')
        assert called == ['first', 'second', 'third']
        assert sys.meta_path == finders
    finally:
        sys.modules.pop('awaited', None)
        sys.meta_path[:] = finders


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    'imports', ['timm, imagenette_zoo', 'imagenette_zoo, timm', 'imagenette_zoo, timm.data', 'imagenette_zoo.models']
)
def test_the_zoo_is_registered_in_any_order(imports: str) -> None:
    code = f'import {imports}\nimport timm\nassert timm.is_model("mbv2_mish_imagenette")'
    subprocess.run([sys.executable, '-c', code], check=True)
