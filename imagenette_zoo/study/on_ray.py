"""The trainings of a study as tasks of a Ray cluster, their files brought home by content.

A task needs nothing but the package and the images on its node: it works in a folder of its own, and returns what
that holds. The user's own files of code go with it; a package of several files must be installed there. A training
that another start began is begun again.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line, require
from ..training.result import Result
from ..training.run_folder import RunFolder
from ..utils.console import Console
from ..utils.files import write_atomic
from ..utils.modules import imported_modules
from ..utils.reading import from_json, parse_json
from ..utils.signals import sigterm_interrupts
from .analysis import FILES
from .cluster import Sent, check_extent, collect
from .plan import Study, Trial
from .process import WHOLE, Extent, Slot, Trials, check_code, commands, reason
from .runner import SAY_SECONDS, check_models, in_rounds, opened
from .step_times import time_study

__all__ = ['run_on_ray']

RETRIES = 5  # of a training whose node died
# What comes home; the result last, so that a folder which has it has all.
RETURNED = (
    'args.yaml', 'summary.csv', 'metrics.jsonl', 'last/config.json', 'last/model.safetensors', 'best/config.json',
    'best/model.safetensors', *FILES, 'result.json',
)  # fmt: skip
CODE = re.compile(r'code/[A-Za-z_]\w*\.(py|json)')  # comes home, too, where a run has some


def run_on_ray(study: Study, slot: Slot, console: Console, extent: Extent = WHOLE, *, address: str) -> Trials:
    """Trains what is missing of a study on a Ray cluster.

    Args:
        study: What is to be trained.
        slot: `output` is on this machine, `data_dir` the folder of the images on every node. Each training has a GPU
            where the cluster has some, else a node's cores.
        console: Where it is printed.
        extent: How much of it; a budget holds between the rounds of `until_decided` only.
        address: The cluster's, as `ray.init` takes it; `local` starts one on this machine.

    Raises:
        UserError: Ray is missing or there is no cluster; a folder holds something else.
        KeyboardInterrupt: Ctrl-C; what has come home stays.
    """
    check_extent('--ray', study, slot, extent, console)
    ray = require('ray', '--ray', 'ray')
    check_models(study, console)
    with opened(study, slot, console, extent.only) as chosen:
        _probe(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level='error')
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f'--ray {address}: no cluster there ({first_line(error)})') from None
        where = f'to {sum(node["Alive"] for node in ray.nodes())} nodes'
        saved = 'What came home stays; the rest begins again.'

        def train(trials: list[Trial]) -> Trials:
            return collect(trials, slot, console, lambda waiting: _send(ray, waiting, slot), where, saved)

        try:
            with sigterm_interrupts():
                time_study(study, slot, console)
                return in_rounds(study, slot, console, extent, chosen, train, _slots(ray))
        finally:
            ray.shutdown()


def _probe(address: str) -> None:
    """Raises `UserError` where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(':')
    if host and port.isdigit() and '/' not in host:
        try:
            socket.create_connection((host, int(port)), 5).close()
        except (OSError, OverflowError) as error:
            raise UserError(f'--ray {address}: no cluster there ({error})') from None


def _resources(ray: Any) -> dict[str, float]:
    """One training takes a GPU with its part of the cores, else all cores of the smallest node."""
    nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
    cores = min((node['CPU'] for node in nodes if node.get('CPU')), default=1.0)
    gpus = [node['GPU'] for node in nodes if node.get('GPU')]
    return {'num_gpus': 1, 'num_cpus': max(1, cores // max(gpus))} if gpus else {'num_cpus': max(1, cores)}


def _slots(ray: Any) -> int:
    """How many trainings the cluster can run at the same time."""
    needed, there = _resources(ray), ray.cluster_resources()
    return max(1, int(min(there.get(name[4:-1].upper(), 0) / count for name, count in needed.items())))


def _send(ray: Any, trials: list[Trial], slot: Slot) -> Sent:
    """Sends trainings. Those that only nobody looked at are analysed here."""
    train = ray.remote(max_retries=RETRIES, **_resources(ray))(_train_there)
    there = replace(slot.absolute(), output=Path())
    here = [trial for trial in trials if RunFolder(slot.output / trial.name).finished]
    tasks = {train.remote(trial, there, _packed(trial)): trial for trial in trials if trial not in here}
    for trial in here:
        yield trial, 'its analysis failed' if subprocess.run(commands(trial, slot)[1]).returncode else ''
    while tasks:
        ready, _ = ray.wait(list(tasks), num_returns=1, timeout=SAY_SECONDS)
        if not ready:
            yield None
        for task in ready:
            trial = tasks.pop(task)
            yield trial, _bring_home(ray, task, trial, slot)


def _bring_home(ray: Any, ready: Any, trial: Trial, slot: Slot) -> str:
    """Writes what a task returned; the reason where it failed, else nothing."""
    try:
        files, why = ray.get(ready)
    except ray.exceptions.RayError as error:
        files, why = {}, f'{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}'
    try:
        (slot.output / 'logs').mkdir(exist_ok=True)
        write_atomic(slot.output / 'logs' / f'{trial.name}.log', files.pop('log', b''))
        if why:
            return str(why)
        folder = slot.output / trial.name
        if missing := [name for name in RETURNED if name not in files]:
            return f'{", ".join(missing)} did not arrive: all nodes need the same version of this package'
        from_json(Result, parse_json(files['result.json'].decode()), folder=folder)  # what is not ours is not written
        for name in [*filter(CODE.fullmatch, files), *RETURNED]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, files[name])
    except (OSError, UserError, ValueError, RecursionError) as error:
        return first_line(error)
    return ''


def _packed(trial: Trial) -> dict[str, bytes | None]:
    """The training's modules of the user's own: a file's content by its name; None for what a node must have."""
    check_code()
    imported = imported_modules()
    modules = [imported.get(name) or imported[Path(name).stem] for name in trial.recipe.device_modules]
    return {
        module.name: module.file.read_bytes() if module.file and '.' not in module.name else None for module in modules
    }


def _unpacked(packed: Mapping[str, bytes | None], folder: Path) -> tuple[str, ...]:
    """Writes what `_packed` gave; returns the modules as `--device-modules` takes them.

    Raises:
        UserError: One that must be installed is not.
    """
    folder.mkdir()
    modules = []
    for name, data in packed.items():
        if data is not None:
            write_atomic(folder / f'{name}.py', data)
        elif find_spec(name.partition('.')[0]) is None:
            raise UserError(
                f'--device-modules {name}: is not installed on the node {socket.gethostname()}: install it there; '
                f'only a single file goes with the training'
            )
        modules.append(name if data is None else str(folder / f'{name}.py'))
    return tuple(modules)


def _train_there(trial: Trial, slot: Slot, packed: Mapping[str, bytes | None]) -> tuple[dict[str, bytes], str]:
    """Trains in a new folder on a node; returns `(its files, the reason if it failed)`."""
    with tempfile.TemporaryDirectory() as temporary:
        here = replace(slot, output=Path(temporary))
        log = here.output / 'log'
        try:
            modules = _unpacked(packed, here.output / 'modules')
        except UserError as error:
            return {}, str(error)
        trial = replace(trial, base=trial.base.replace(device_modules=modules))
        for command in commands(trial, here):
            with open(log, 'ab') as file:
                code = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                ).returncode
            if code:
                return {'log': log.read_bytes()}, reason(code, log)
        folder = here.output / trial.name
        own = [path.relative_to(folder).as_posix() for path in folder.glob('code/*')]
        return {'log': log.read_bytes(), **{name: (folder / name).read_bytes() for name in [*own, *RETURNED]}}, ''
