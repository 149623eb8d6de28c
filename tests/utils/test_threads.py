import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.utils import threads
from imagenette_zoo.utils.threads import Processors, spin_briefly


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [({}, '6000'), ({'GOMP_SPINCOUNT': '7'}, '7'), ({'OMP_WAIT_POLICY': 'ACTIVE'}, None)],
)
def test_threads_spin_briefly_unless_the_user_says_how_long(
    given: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, 'environ', dict(given))
    spin_briefly()
    assert os.environ.get('GOMP_SPINCOUNT') == wanted


def test_a_command_says_so_before_torch_is_loaded() -> None:
    """OpenMP reads it once, when torch loads it."""
    script = (
        'import os, sys\n'
        'from imagenette_zoo.cli import main\n'
        'assert "torch" not in sys.modules\n'
        'main.make_parser = lambda *_: print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules) or sys.exit()\n'
        'main.main(["train"])\n'
    )
    unset = 'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run([sys.executable, '-c', script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ['6000', 'False'], done.stderr


@pytest.mark.parametrize(
    ('idle', 'own', 'threads_wanted', 'line'),
    [
        (0.0, 0.7, 2, '0.7 processors are left for 2 threads'),
        (0.0, 0.7, 1, ''),
        (0.9, 1.0, 2, ''),
        (30.0, 1.0, 16, ''),
        (2.0, 1.0, 16, 'OMP_NUM_THREADS=3'),
        (0.0, 0.0, 2, 'OMP_NUM_THREADS=1'),
    ],
)
def test_a_busy_machine_is_named(
    idle: float, own: float, threads_wanted: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processors = Processors()
    began = processors.began
    monkeypatch.setattr(Processors, '_now', lambda _: (began[0] + 4, began[1] + 4 * idle, began[2] + 4 * own))
    said = processors.crowded(threads_wanted)
    assert line in said
    assert bool(said) is bool(line)


def test_nothing_is_said_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(threads, 'STAT', tmp_path / 'none')
    monkeypatch.setattr(threads, 'SOON', -1)
    processors = Processors()
    assert processors.free() is None
    assert processors.crowded(2) == ''


@pytest.mark.skipif(not threads.STAT.exists(), reason='needs /proc/stat')
def test_what_is_free_is_what_is_idle_or_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, 'SOON', 0)
    processors = Processors()
    while processors._now()[2] - processors.began[2] < 0.3:  # a processor's time of our own
        pass
    free = processors.free()
    assert free is not None
    assert 0 < free < 2 * (os.cpu_count() or 1)
