"""Where files are kept, and what is not trusted."""

import getpass
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from imagenette_zoo.errors import UserError
from imagenette_zoo.utils import files
from tests.conftest import needs_compiler
from tests.data.imagenette import touch

FOREIGN = 65534  # nobody
needs_root = pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='root alone gives files away')


def test_cache_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_dir().name == 'cache'
    monkeypatch.delenv('IMAGENETTE_ZOO_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', '/xdg')
    assert files.cache_dir() == Path('/xdg/imagenette-zoo')
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert files.cache_dir() == Path.home() / '.cache' / 'imagenette-zoo'
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', '~no-such-user/cache')
    with pytest.raises(UserError, match='no such home folder; set IMAGENETTE_ZOO_CACHE'):
        files.cache_dir()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o000])
def _umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures('_umask')
def test_a_private_folder_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    (tmp_path / 'safe').mkdir(mode=0o755)
    folder = files.private_folder(tmp_path / 'safe' / 'kernels')
    assert mode(folder) == 0o700
    folder.chmod(0o755)  # made by hand
    assert files.private_folder(folder) == folder
    assert mode(folder) == 0o700


def linked(folder: Path) -> None:
    (folder.parent / 'elsewhere').mkdir()
    folder.symlink_to(folder.parent / 'elsewhere')


def made(folder: Path, mode: int = 0o755, parent: int = 0o755, owner: int = -1, parents: int = -1) -> None:
    folder.mkdir()
    folder.chmod(mode)
    folder.parent.chmod(parent)
    os.chown(folder.parent, parents, -1)
    os.chown(folder, owner, -1)


BAD = {
    'a link': linked,
    'a file': lambda folder: folder.write_text(''),
    'open to the group': lambda folder: made(folder, 0o775),
    'open to all': lambda folder: made(folder, 0o1777),
    'in a folder where others can exchange it': lambda folder: made(folder, parent=0o777),
    "another user's": pytest.param(lambda folder: made(folder, owner=FOREIGN), marks=needs_root),
    "in another user's": pytest.param(lambda folder: made(folder, parents=FOREIGN), marks=needs_root),
}


@pytest.mark.parametrize('make', BAD.values(), ids=BAD)
def test_what_others_can_change_is_not_private(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is in the user's home; where that is no better, in a temporary folder."""
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'shared'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    folder, usual = tmp_path / 'shared' / 'kernels', tmp_path / 'xdg' / 'imagenette-zoo'
    folder.parent.mkdir()
    make(folder)  # type: ignore[operator]
    with pytest.raises(OSError, match='kernels'):
        files.private_folder(folder)
    assert files.private_home('kernels') == usual / 'kernels'
    usual.chmod(0o777)
    last = files.private_home('kernels')
    assert tmp_path not in last.parents
    assert mode(last) == mode(last.parent) == 0o700
    assert files.private_home('kernels') == last


def test_a_sticky_folder_may_be_everyones(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert files.private_folder(tmp_path / 'kernels') == tmp_path / 'kernels'


def test_what_others_may_write_is_not_own(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    for bits, own in ((0o644, True), (0o600, True), (0o664, False), (0o646, False)):
        (tmp_path / 'file').chmod(bits)
        assert files.is_own((tmp_path / 'file').stat()) is own
    files.without_others(tmp_path / 'file')
    assert mode(tmp_path / 'file') == 0o644


@pytest.mark.slow
def test_nothing_but_the_standard_library() -> None:
    code = 'import sys; import imagenette_zoo.errors as e; before = set(sys.modules); import imagenette_zoo.utils.files'
    code += "; print({n.split('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("{'imagenette_zoo'}", 'set()')


# --- Inductor ---------------------------------------------------------------------------------------------------------

ASKED = """if True:
    import os, sys, torch
    {before}
    from imagenette_zoo.config.groups import ComputeOptions
    from imagenette_zoo.models.factory import compiled
    compiled(torch.nn.Softsign(), ComputeOptions(torchcompile='inductor'))(torch.ones(64))
    from torch._inductor.runtime.runtime_utils import cache_dir
    print(cache_dir())
    """


@pytest.mark.long
@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ('asked', 'before'), [(True, ''), (False, 'from torch._inductor.codecache import cache_dir; cache_dir()')]
)
def test_inductor_keeps_nothing_where_others_know_its_name(asked: bool, before: str, tmp_path: Path) -> None:
    """Its precompiled headers only where nobody else can write; also where something else has used inductor before."""
    usual = tmp_path / 'temporary' / f'torchinductor_{getpass.getuser()}'
    usual.mkdir(parents=True)
    usual.chmod(0o777 if asked else 0o755)
    environment = {
        **os.environ, 'TMPDIR': str(tmp_path / 'temporary'), 'IMAGENETTE_ZOO_CACHE': str(tmp_path / 'cache'),
        'PYTHONPATH': str(Path(__file__).parents[2]), 'OMP_NUM_THREADS': '1',
    }  # fmt: skip
    for name in ('TORCHINDUCTOR_CACHE_DIR', 'TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS'):
        environment.pop(name, None)
    if asked:
        environment['TORCHINDUCTOR_CACHE_DIR'] = str(tmp_path / 'asked')
    script = ASKED.format(before=before)
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=True)
    used = tmp_path / 'asked' if asked else tmp_path / 'cache' / 'inductor'
    assert done.stdout.strip() == str(used)
    assert any(used.rglob('*.so'))
    assert asked or mode(used) == 0o700
    assert asked or mode(usual) == 0o700
    kept = {path.relative_to(usual).parts[0] for path in usual.rglob('*') if path.is_file()}
    assert kept == (set() if asked else {'precompiled_headers'})


def test_where_inductor_keeps_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path))
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path / 'asked'))
    files.keep_inductor_private()
    assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(tmp_path / 'asked')
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR')
    files.keep_inductor_private()
    assert os.environ['TORCHINDUCTOR_CACHE_DIR'] == str(tmp_path / 'inductor')
    assert mode(tmp_path / 'inductor') == 0o700


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with files.whole_folder(tmp_path / 'x') as folder:
            (folder / 'half').touch()
            raise OSError(28, 'No space left on device')

    with pytest.raises(UserError, match='No space left on device'):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_files_are_on_the_disk_before_their_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(files, 'sync', lambda path: synced.append(f'{path.name} {(tmp_path / "x").exists()}'))
    with files.whole_folder(tmp_path / 'x') as folder:
        (folder / 'train').mkdir()
        touch(folder / 'train' / 'a.png')
    assert sorted(synced[:-1]) == sorted([f'{folder.name} False', 'train False', 'a.png False'])
    assert synced[-1] == f'{tmp_path.name} True'


def test_leftovers_are_removed_after_a_day(tmp_path: Path) -> None:
    target = tmp_path / 'data'
    old, young, other, mine = (
        tmp_path / name for name in (f'.data.{"a" * 32}', f'.data.{"b" * 32}', f'.data-2.{"c" * 32}', '.data.backup')
    )
    for folder in (old, young, other, mine):
        touch(folder / 'file')
        if folder != young:
            os.utime(folder, (0, time.time() - 25 * 60 * 60))
    with files.whole_folder(target) as folder:
        touch(folder / 'file')
    assert sorted(tmp_path.iterdir()) == sorted([target, young, other, mine])


def test_an_empty_folder_in_the_way_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_as_on_windows(source: Path, target: Path) -> None:
        if os.path.exists(target):
            raise FileExistsError(17, 'File exists')
        rename(source, target)

    rename = os.rename
    monkeypatch.setattr(os, 'rename', rename_as_on_windows)
    target = tmp_path / 'target'
    target.mkdir()
    with files.whole_folder(target) as folder:
        (folder / 'file').write_text('kept')
    assert (target / 'file').read_text() == 'kept'
    assert list(tmp_path.iterdir()) == [target]


def test_folder_has_the_usual_mode_and_the_process_keeps_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / 'plain').mkdir()
    monkeypatch.setattr(os, 'umask', None)  # state of the whole process, other threads' too
    with files.whole_folder(tmp_path / 'target'):
        pass
    assert (tmp_path / 'target').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_who_cannot_lock_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
    with files.one_at_a_time(tmp_path / 'target'):
        pass
    assert not list(tmp_path.iterdir())


def test_the_cache_is_named_where_it_is_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))
    for parent, named in ((tmp_path / 'cache', True), (tmp_path / 'elsewhere', False)):
        parent.write_text('a file')
        with pytest.raises(UserError) as error, files.whole_folder(parent / 'set'):
            pass
        assert ('IMAGENETTE_ZOO_CACHE' in str(error.value)) == named


def test_two_at_once_make_one_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / 'target'
    with files.whole_folder(target) as first:
        (first / 'file').write_text('first')
        with files.whole_folder(target) as second:
            (second / 'file').write_text('second')
    assert (target / 'file').read_text() == 'second'
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize('error', [KeyError, OSError, ImportError])
def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[Exception]) -> None:
    """As in containers that run under any number."""

    def nameless() -> str:
        raise error

    monkeypatch.setattr(getpass, 'getuser', nameless)
    monkeypatch.setattr(files.tempfile, 'gettempdir', lambda: str(tmp_path))
    monkeypatch.delenv('TORCHINDUCTOR_CACHE_DIR', raising=False)
    files.keep_inductor_private()
    assert os.environ['TORCHINDUCTOR_CACHE_DIR']
    assert [path.name for path in tmp_path.glob('torchinductor_*')] == [f'torchinductor_uid_{os.getuid()}']
