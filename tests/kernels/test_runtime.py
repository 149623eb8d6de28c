"""The compiled library: what is loaded, what is made anew, and that every kernel is checked."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from imagenette_zoo.kernels import checks, runtime
from tests.conftest import needs_compiler, needs_linux
from tests.utils.test_files import FOREIGN, needs_root

SOURCE = Path(runtime.__file__).with_name('cpu.cpp')
SCRIPT = """if True:
    import torch
    from imagenette_zoo.kernels import runtime
    x = torch.randn(100)
    y = torch.empty_like(x)
    assert runtime.are_kernels_for(x.device, x.dtype)
    runtime.call('mish_forward', [100], x, y)
    torch.testing.assert_close(y, torch.nn.functional.mish(x))
    """


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the libraries are kept; empty at first."""
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    return tmp_path / 'cache' / 'kernels'


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library as it is kept; to be copied."""
    folder = tmp_path_factory.mktemp('built')
    source = SOURCE.read_bytes()
    assert runtime._built(source, folder, runtime._key(source)) is not None
    [path] = folder.iterdir()
    return path


@pytest.fixture
def library(folder: Path, built: Path) -> Path:
    folder.mkdir(parents=True, mode=0o700)
    return Path(shutil.copy(built, folder))


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> object:
    """An object that stands for the library that would be compiled."""
    made = object()
    monkeypatch.setattr(runtime, '_built', lambda *_: made)
    return made


def compiled() -> object:
    return runtime._compile.__wrapped__()


@pytest.mark.slow
@needs_compiler
def test_the_library_is_compiled_once(folder: Path) -> None:
    assert compiled() is not None
    [path] = folder.iterdir()
    first = path.stat()
    assert compiled() is not None
    assert list(folder.iterdir()) == [path]
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (first.st_mtime_ns, first.st_ino)
    assert runtime._key(SOURCE.read_bytes() + b'\n') not in path.name
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures('library')
def test_a_good_library_is_loaded(anew: object) -> None:
    assert compiled() is not anew


# --- Whose it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def trap(folder: Path, tmp_path: Path) -> Path:
    """A library under a right name that leaves a file `trapped` when it is loaded."""
    gcc = shutil.which('gcc')
    if gcc is None:
        pytest.skip('no gcc')
    mark = f'fclose(fopen("{tmp_path}/trapped", "w"));'
    code = f'#include <stdio.h>\n__attribute__((constructor)) void spring(void) {{ {mark} }}'
    (tmp_path / 'trap.c').write_text(code)
    subprocess.run([gcc, '-shared', '-fPIC', '-o', tmp_path / 'trap.so', tmp_path / 'trap.c'], check=True)
    data = (tmp_path / 'trap.so').read_bytes()
    name = f'{runtime._key(SOURCE.read_bytes())}-{len(data)}-{hashlib.sha256(data).hexdigest()}.so'
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    return Path(shutil.copy(tmp_path / 'trap.so', folder / name))


@needs_compiler
def test_the_trap_would_work(trap: Path, tmp_path: Path, anew: object) -> None:
    assert compiled() is anew
    assert (tmp_path / 'trapped').exists()


CHANGES = {
    'writable by the group': lambda path: path.chmod(0o775),
    'writable by all': lambda path: path.chmod(0o757),
    'in a folder of all': lambda path: path.parent.chmod(0o777),
    'in a cache of all': lambda path: path.parents[1].chmod(0o777),
    "another user's": pytest.param(lambda path: os.chown(path, FOREIGN, -1), marks=needs_root),
    "in another user's folder": pytest.param(lambda path: os.chown(path.parent, FOREIGN, -1), marks=needs_root),
    "in another user's cache": pytest.param(lambda path: os.chown(path.parents[1], FOREIGN, -1), marks=needs_root),
    'a link': lambda path: path.rename(path.with_suffix('.of')) and path.symlink_to(path.with_suffix('.of')),
}


@needs_compiler
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_what_others_can_have_made_is_not_loaded(change: object, trap: Path, tmp_path: Path, anew: object) -> None:
    change(trap)  # type: ignore[operator]
    assert compiled() is anew
    assert not (tmp_path / 'trapped').exists()


@needs_compiler
@needs_linux
def test_what_was_looked_at_is_loaded(
    library: Path, trap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if another file is put in its place between."""
    load = runtime.ctypes.CDLL

    def swap(path: str) -> object:
        os.replace(trap, library)
        return load(path)

    monkeypatch.setattr(runtime.ctypes, 'CDLL', swap)
    assert runtime._loaded(library) is not None
    assert not (tmp_path / 'trapped').exists()


# --- Whole ------------------------------------------------------------------------------------------------------------


def run(folder: Path) -> 'subprocess.Popen[str]':
    environment = {
        **os.environ, 'IMAGENETTE_ZOO_CACHE': str(folder.parent), 'OMP_NUM_THREADS': '1',
        'PYTHONPATH': str(Path(__file__).parents[2]),
    }  # fmt: skip
    return subprocess.Popen([sys.executable, '-c', SCRIPT], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
@pytest.mark.slow
@needs_compiler
def test_a_truncated_library_is_made_anew(library: Path) -> None:
    """As a power failure leaves it: to map it ends a process with a bus error."""
    whole = library.stat().st_size
    os.truncate(library, 65_536)
    process = run(library.parent)
    assert process.wait() == 0, process.communicate()[1]
    [path] = library.parent.iterdir()
    assert path.stat().st_size == pytest.approx(whole, rel=0.1)


@needs_compiler
@pytest.mark.parametrize('change', ['a bit', 'a byte more', 'nothing left', 'another name', 'a pipe'])
def test_a_changed_library_is_made_anew(change: str, library: Path, anew: object) -> None:
    data = bytearray(library.read_bytes())
    if change == 'a bit':
        data[len(data) // 2] ^= 1
    library.write_bytes({'a byte more': bytes(data) + b'\0', 'nothing left': b''}.get(change, bytes(data)))
    if change == 'another name':
        library.rename(library.with_name(f'{library.name.split("-")[0]}-.so'))
    if change == 'a pipe':
        library.unlink()
        os.mkfifo(library)
    assert compiled() is anew
    assert list(library.parent.iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
@needs_compiler
def test_two_processes_compile_at_once(folder: Path) -> None:
    processes = [run(folder) for _ in range(2)]
    for process in processes:
        assert process.wait() == 0, process.communicate()[1]
    assert {path.suffix for path in folder.iterdir()} == {'.so'}


@pytest.mark.slow
@needs_compiler
def test_what_cannot_be_kept_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(runtime, 'sync', full)
    assert compiled() is not None
    assert list(folder.iterdir()) == []


# --- Right ------------------------------------------------------------------------------------------------------------


def test_every_kernel_is_checked() -> None:
    exported = re.findall(r'extern "C" void (\w+?)_(?:uint8|##T)\(', SOURCE.read_text())
    assert len(exported) == 10
    assert set(exported) == set(checks.CHECKS)


OUTPUTS = [
    (name, dtype, index)
    for name, (dtypes, cases) in checks.CHECKS.items()
    for dtype in dtypes
    for index in next(iter(cases(dtype))).wanted
]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(('name', 'dtype', 'index'), OUTPUTS)
@pytest.mark.parametrize('value', [3.0, float('nan')])
def test_a_wrong_number_is_seen(
    name: str, dtype: torch.dtype, index: int, value: float, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of an output's: then no kernel is used."""
    run = runtime._run
    wrong = []

    def miscompiled(library: object, kernel: str, sizes: object, *tensors: torch.Tensor) -> None:
        run(library, kernel, sizes, *tensors)
        if kernel == name and tensors[0].dtype == dtype:
            number = tensors[index].as_strided((1,), (1,), tensors[index].numel() - 1)  # the last in memory
            number.add_(value if number.is_floating_point() else 3)
            wrong.append(kernel)

    runtime._loaded(library)
    monkeypatch.setattr(runtime, '_run', miscompiled)
    with pytest.raises(AssertionError, match=r'not close|not equal'):
        runtime._loaded(library)
    assert wrong == [name]


MISTAKES = {
    'mish': ('n / (n + 2.0f)', 'n / (n + 3.0f)'),
    'blur': ('t.weights[o != t.first] += a ? 0.25f : 0.5f', 't.weights[o != t.first] += a ? 0.26f : 0.5f'),
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('mistake', ['mish', pytest.param('blur', marks=pytest.mark.long)])
def test_a_library_that_computes_something_else_is_not_used(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCE.read_text()
    broken = source.replace(*MISTAKES[mistake])
    assert broken != source
    read = Path.read_bytes
    monkeypatch.setattr(Path, 'read_bytes', lambda path: broken.encode() if path == SOURCE else read(path))
    assert compiled() is None
    assert list(folder.iterdir()) == []


@needs_compiler
@pytest.mark.parametrize('around', ['autocast', 'inference_mode', 'no_grad', 'float64', 'meta'])
def test_the_check_does_not_see_what_it_is_called_in(around: str, library: Path) -> None:
    surroundings = {
        'autocast': partial(torch.autocast, 'cpu'), 'inference_mode': torch.inference_mode, 'no_grad': torch.no_grad,
        'meta': partial(torch.device, 'meta'), 'float64': torch.enable_grad,
    }  # fmt: skip
    state = torch.get_rng_state()
    before = torch.get_default_dtype()
    if around == 'float64':
        torch.set_default_dtype(torch.float64)
    try:
        with surroundings[around]():
            assert runtime._loaded(library) is not None
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(torch.get_rng_state(), state)
