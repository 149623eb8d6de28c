"""Shared by the benchmarks: rounds in turns, processes watched from outside, result files."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import imagenette_zoo  # noqa: F401  (registers the models)
from imagenette_zoo.utils.console import table
from imagenette_zoo.utils.environment import hardware, versions
from imagenette_zoo.utils.files import write_json

ROOT = Path(__file__).parent.parent


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The numbers of each by round. They take turns, since the speed of a shared machine drifts."""
    series: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            series[name].append(run())
    return series


def ratio(series: Mapping[str, Sequence[float | None]], ours: str, theirs: str) -> float | None:
    """Median of ours divided by theirs over the rounds that have both; None where none has."""
    pairs = [(a, b) for a, b in zip(series[ours], series[theirs], strict=True) if a is not None and b is not None]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def report(
    name: str,
    unit: str,
    series: Mapping[str, Sequence[float | None]],
    ratios: Mapping[str, float | None],
    args: Any,
    details: Any = None,
) -> None:
    """Prints a table and writes `<name>.json`, with a number behind the name where another run has written one."""
    rows = [(name, f'{unit}: min', 'median', 'max')]
    for contestant, each in series.items():
        values = [value for value in each if value is not None]
        numbers = (min(values), statistics.median(values), max(values)) if values else ()
        rows.append((contestant, *(f'{value:.1f}' for value in numbers or (math.nan,) * 3)))
    print(table(rows))
    for what, value in ratios.items():
        print(f'{what}: {"not known" if value is None else f"{value:.2f}"}')
    options = {key: str(value).removeprefix(f'{ROOT}/') for key, value in vars(args).items() if key != 'files'}
    result = {
        'benchmark': name, 'unit': unit, 'rounds': series, 'median_ratios': ratios, 'details': details,
        'options': options,
        'load_before': args.load_before, 'versions': {**versions(), **_of_checkout(args.timm_dir)},
        'hardware': hardware(torch.device(args.device)),
    }  # fmt: skip
    args.results_dir.mkdir(parents=True, exist_ok=True)
    if name not in args.files:
        names = itertools.chain([f'{name}.json'], (f'{name}-{number}.json' for number in itertools.count(2)))
        args.files[name] = next(path for path in map(args.results_dir.joinpath, names) if not path.exists())
    write_json(args.files[name], result)
    print(f'{args.files[name]}\n', flush=True)


def _of_checkout(folder: Path | None) -> dict[str, str]:
    """The version of a checkout of timm, whose scripts import it."""
    if folder is None:
        return {}
    version = re.findall(r"'(.+)'", (folder / 'timm' / 'version.py').read_text())[0]
    words = ['git', '-C', str(folder), 'describe', '--tags', '--always']
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {"timm of timm's scripts": f'{version} {commit}'.strip()}


@contextlib.contextmanager
def competing(processes: int) -> Iterator[None]:
    """So many other processes keep a processor busy each."""
    others = [subprocess.Popen([sys.executable, '-c', 'while True: sum(range(10000))']) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def subset(root: Path, destination: Path, train: int, val: int) -> Path:
    """A data set of links to the first images of each class; 0 takes all."""
    for split, count in (('train', train), ('val', val)):
        for folder in sorted((root / split).iterdir()):
            target = destination / split / folder.name
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.iterdir())[: count or None]:
                if not (target / path.name).exists():
                    (target / path.name).symlink_to(path.resolve())
    return destination


def run_process(
    words: Sequence[str | Path],
    timm_dir: Path | None = None,
    look: Callable[[float, float], bool] = lambda *_: False,
    variables: Mapping[str, str] | None = None,
    device: str = 'cpu',
    until: str = '',
) -> tuple[str, float, float]:
    """Runs a Python script to its end, or until enough was seen of it.

    Args:
        words: Its path and arguments.
        timm_dir: A checkout of timm to be imported instead of the installed one.
        look: Called five times a second with the seconds since the start and the seconds of processor time; the script
            and its children are killed when it returns true.
        variables: Added to the environment.
        device: Whose memory is asked for.
        until: The script and its children are killed once it has printed a line that has this pattern.

    Returns:
        Its output, its seconds, and the most memory, MiB, that it and its children had for themselves (not the files
        that they map, nor what children share with it), on `cuda` that was in use on the first GPU.
    """
    path = os.pathsep.join(map(str, filter(None, [timm_dir, ROOT, os.environ.get('PYTHONPATH')])))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1', **(variables or {})},
    )
    assert process.stdout is not None
    lines: list[str] = []
    peak = 0.0
    enough = False

    def end() -> None:
        for member in _family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)

    def watch() -> None:
        nonlocal peak, enough
        for turn in itertools.count():
            if process.poll() is not None:
                return
            family = _family(process.pid)
            if turn % 10 == 0:  # which costs a tenth of a second
                peak = max(peak, _gpu_memory() if device == 'cuda' else sum(map(_own_memory, family)))
            if look(time.perf_counter() - start, sum(map(_processor_time, family))):
                enough = True
                end()
                return
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if until and re.search(until, line):
                enough = True
                break
        else:
            process.wait()
        elapsed = time.perf_counter() - start
    finally:
        end()  # Ctrl-C
        watcher.join()
        process.stdout.close()
        process.wait()
    output = ''.join(lines)
    if until and not enough:
        raise SystemExit(f'{" ".join(map(str, words))}\n{output[-3000:]}\nended without a line that has {until!r}')
    if process.returncode and not enough:
        raise SystemExit(f'{" ".join(map(str, words))}\n{output[-3000:]}\nfailed with exit code {process.returncode}')
    return output, elapsed, peak


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _gpu_memory() -> float:
    """MiB in use on the first GPU that is visible, 0 where nobody says."""
    first = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')[0] or '0'
    words = ['nvidia-smi', f'--id={first}', '--query-gpu=memory.used', '--format=csv,noheader,nounits']
    try:
        return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0.0


def _own_memory(pid: int) -> float:
    """MiB of anonymous memory, what is shared after a fork counted by shares."""
    try:
        lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith('Pss_Anon:')) / 2**10


def _processor_time(pid: int) -> float:
    """Seconds of a process and of its children that have ended."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')
