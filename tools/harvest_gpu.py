#!/usr/bin/env python3
"""Uses a GPU well for as long as it is at hand, and goes on next time where it stopped.

python tools/harvest_gpu.py --data-dir DIR --budget 12m --output OUT                  begins, or goes on
python tools/harvest_gpu.py --data-dir DIR --budget 12m --output OUT --archive FILE   goes on elsewhere
python tools/merge_harvest.py OUT/harvest.tar.gz                                      into docs/results

Where nothing is installed and torch is there: PYTHONPATH=. python3 tools/harvest_gpu.py …

The steps of the plan (tools/harvest.yaml) are done in their order. Each result goes into OUT/harvest.tar.gz as soon as
it is there: result files, answers for each image and the ends of logs in at most 14 MiB, no weights. What is done is
not done again; what failed is tried again after all else. The command ends by itself 20 seconds before the budget does.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvest_archive import STATE, lacking, pack, results, studies, unpack

from imagenette_zoo.config.hparams import read_yaml
from imagenette_zoo.data.locate import find_root
from imagenette_zoo.errors import UserError
from imagenette_zoo.study.plan import find_study
from imagenette_zoo.study.process import start_process
from imagenette_zoo.study.records import read_record
from imagenette_zoo.utils.console import duration
from imagenette_zoo.utils.distributed import choose_device
from imagenette_zoo.utils.environment import hardware, versions
from imagenette_zoo.utils.files import ProcessLock, whole_folder, write_errors, write_json
from imagenette_zoo.utils.reading import from_json, of_kind, read_errors, read_json
from imagenette_zoo.utils.signals import sigterm_interrupts

ROOT = Path(__file__).parents[1]
ARCHIVE = 'harvest.tar.gz'
RESERVE = 30.0  # seconds before the end of the budget at which all steps have ended; the start of Python is of it, too
PATIENCE = 12.0  # of it, or of a step's own time, a step gets to save what it has
POLL_SECONDS = 0.5
UNITS = {'': 1, 's': 1, 'm': 60, 'h': 3600}


@dataclass(frozen=True)
class Step:
    """A step of the plan, as tools/harvest.yaml explains it."""

    name: str
    study: str = ''
    command: str = ''
    benchmark: str = ''
    jobs: int = 1
    metric: str = ''
    least: float = 0.0
    most: float = math.inf


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--budget', type=_seconds, required=True, metavar='TIME', help='as in 12m, 720s or 0.2h')
    parser.add_argument('--output', type=Path, required=True, metavar='OUT', help=f'where {ARCHIVE} is written')
    parser.add_argument('--data-dir', type=Path, metavar='DIR', help='folder with train/ and val/')
    parser.add_argument('--archive', type=Path, help="what an earlier harvest gave (default: OUT's own)")
    parser.add_argument('--work-dir', type=Path, default=Path('runs', 'harvest'), metavar='DIR', help='where it works')
    parser.add_argument('--plan', type=Path, default=ROOT / 'tools' / 'harvest.yaml', help='the steps, a YAML file')
    parser.add_argument('--timm-dir', type=Path, help='checkout of timm, for the speed beside its scripts')
    parser.add_argument('--device', default='cuda')
    args = parser.parse_args(arguments)
    try:
        with sigterm_interrupts():
            return Harvest(args).run()
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt as request:
        print('stopped: what is finished is in the archive; the same command goes on', file=sys.stderr)
        return getattr(request, 'exit_code', 130)


class Harvest:
    """One visit at a GPU.

    Args:
        args: The options of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.end = time.monotonic() + args.budget - RESERVE
        self.args = args
        self.steps, self.speed = read_plan(args.plan)
        self.work = args.work_dir.absolute()
        self.archive = args.output.absolute() / ARCHIVE
        self.device = choose_device(args.device)
        self.packed: Any = None
        if args.data_dir:
            find_root(args.data_dir)
        if args.timm_dir and not (args.timm_dir / 'timm' / 'version.py').is_file():
            raise UserError(f'--timm-dir {args.timm_dir}: is no checkout of timm')
        for folder in (self.archive.parent, self.work.parent):
            with write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Does what there is time for."""
        self._take_up()
        lock = ProcessLock(self.work / '.lock')
        try:
            self._read_state()
            self.state['visits'].append({
                'started': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()), 'budget': self.args.budget,
                'versions': versions(), 'hardware': hardware(self.device),
            })  # fmt: skip
            try:
                for step in sorted(self.steps, key=lambda step: self._of(step)['state'] == 'failed'):
                    self._do(step)
            finally:
                self._keep()
        finally:
            lock.release()
        size = self.archive.stat().st_size / 2**20
        self._say(f'{self.archive}: {size:.2f} MiB; next: tools/merge_harvest.py, or another visit')
        return 0

    def _take_up(self) -> None:
        """Makes the working folder, from an archive where there is one and no folder yet."""
        given = self.args.archive or self.archive
        if not self.work.exists() and (self.args.archive or given.exists()):
            self._say(f'goes on with {given}')
            with whole_folder(self.work) as folder:
                unpack(given, folder)
        for archive in {given, self.archive}:  # which the folder's results will replace
            if archive.exists() and (missing := lacking(self.work, archive)):
                raise UserError(
                    f'{self.work}: lacks {len(missing)} results of {archive}, as {missing[0]}: remove that folder to '
                    f'go on from the archive, or give another --output and no --archive'
                )
        self.work.mkdir(parents=True, exist_ok=True)

    def _read_state(self) -> None:
        """Reads how far earlier visits came."""
        file = self.work / STATE
        self.state: dict[str, Any] = {'visits': [], 'steps': {}}
        if file.exists():
            with read_errors(file, 'the state of a harvest'):
                known = read_json(file)
                self.state = {'visits': list(known['visits']), 'steps': dict(known['steps'])}

    def _of(self, step: Step) -> dict[str, Any]:
        return self.state['steps'].setdefault(step.name, {'state': 'left', 'seconds': 0.0, 'line': ''})

    def _do(self, step: Step) -> None:
        """Does a step as far as there is time for it."""
        known = self._of(step)
        room = self.end - time.monotonic()
        if known['state'] == 'done':
            return
        if missing := self._missing(step):
            self._pass_over(step, f'needs {missing}')
        elif room < max(step.least, PATIENCE):
            self._pass_over(step, f'needs {step.least:.0f} s, {max(room, 0):.0f} s are left')
        else:
            self._say(f'{step.name}: begins')
            start = time.monotonic()
            code = self._carry_out(step, start + min(step.most, room))
            known['seconds'] += round(time.monotonic() - start, 1)
            if code == 0:
                self._note(step, 'done', f'done after {duration(known["seconds"])}')
            elif code is None and not step.study and step.most <= room:  # it would take as long again
                self._note(step, 'failed', f'FAILED: had not ended after {step.most:.0f} s')
            elif code is None:
                self._note(step, 'left', 'its time is over: what is finished is kept')
            else:
                self._note(step, 'failed', f'FAILED with exit code {code}: {_last_line(self._log(step))}')

    def _pass_over(self, step: Step, why: str) -> None:
        """Leaves a step for another visit; how it failed before stays known."""
        self._say(f'{step.name}: {why}')
        if self._of(step)['state'] == 'left':
            self._of(step)['line'] = why

    def _missing(self, step: Step) -> str:
        """The option that a step needs and was not given."""
        needed = {'{data}': ('--data-dir', self.args.data_dir), '{timm}': ('--timm-dir', self.args.timm_dir)}
        words = self._words(step)
        return next((option for word, (option, value) in needed.items() if value is None and word in words), '')

    def _note(self, step: Step, state: str, line: str) -> None:
        values = self._values(step)
        if values:
            shown = ', '.join('never' if value is None else f'{value:.1f}' for value in values.values())
            line += f'; {step.metric}: {shown}'
        self._of(step).update(state=state, line=line, values=values)
        self._say(f'{step.name}: {line}')
        self._keep()

    def _values(self, step: Step) -> dict[str, float | None]:
        """A study's metric of each finished training."""
        folders = [path for name, path in studies(self.work) if name == step.name and step.metric]
        trainings = [file.parent for folder in folders for file in sorted(folder.glob('*/result.json'))]
        values = {folder.name: read_record(folder, '').metric(step.metric) for folder in trainings}
        return {name: None if value is None or math.isinf(value) else value for name, value in values.items()}

    def _log(self, step: Step) -> Path:
        return self.work / 'logs' / f'{step.name}.log'

    def _carry_out(self, step: Step, end: float) -> int | None:
        """The exit code of a step; None where it had to be stopped. Its results are packed as they come."""
        self._log(step).parent.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        with open(self._log(step), 'wb') as log:
            process = start_process(self._words(step), {**os.environ, 'PYTHONPATH': path}, subprocess.DEVNULL, log)
            try:
                while process.poll() is None and time.monotonic() < end - PATIENCE:
                    time.sleep(POLL_SECONDS)
                    self._keep(only_new=True)
                if process.poll() is not None:
                    return process.returncode
            finally:
                _stop(process, end, signal.SIGINT if step.command else signal.SIGTERM)  # pytest tells its failures
        return None

    def _words(self, step: Step) -> list[str]:
        args = self.args
        values = {'data': args.data_dir, 'timm': args.timm_dir, 'root': ROOT, 'speed': self.work / step.name / 'speed'}
        known = {f'{{{name}}}': str(Path(value).absolute()) for name, value in values.items() if value}

        def filled(text: str) -> str:
            return re.sub(r'\{\w+\}', lambda match: known.get(match[0], match[0]), text)

        if step.study:
            study = find_study(filled(step.study))
            words = [sys.executable, '-m', 'imagenette_zoo', 'study', str(study), '--in-process']
            words += ['--jobs', str(step.jobs), '--device', args.device, '--output', str(self.work / step.name)]
            return words + (['--data-dir', str(args.data_dir.absolute())] if args.data_dir else [])
        text = step.command
        if step.benchmark:
            text = 'python {root}/benchmarks/run.py --data-dir {data} --results-dir {speed} '
            text += f'{self.speed} --only {step.benchmark}'
        return [sys.executable if word == 'python' else filled(word) for word in shlex.split(text)]

    def _keep(self, only_new: bool = False) -> None:
        """Writes the archive, or only where it lacks a result."""
        files = {name: path.stat().st_mtime_ns for name, path in results(self.work).items() if path.suffix != '.log'}
        if only_new and files == self.packed:
            return
        write_json(self.work / STATE, self.state)
        left = pack(self.work, self.archive)
        if left:
            self._say(f'{self.archive}: no room for {len(left)} files, as {left[0]}')
        self.packed = {**files, STATE: (self.work / STATE).stat().st_mtime_ns}

    def _say(self, text: str) -> None:
        print(f'[{max(self.end - time.monotonic(), 0):4.0f} s left] {text}', flush=True)


def read_plan(path: Path) -> tuple[list[Step], str]:
    """The steps of a plan, and the options of its benchmarks.

    Raises:
        UserError: It is no plan.
    """
    values = read_yaml(path, {'steps', 'speed'})
    with read_errors(path, 'a plan of a harvest'):
        steps = [from_json(Step, step) for step in values['steps']]
        for step in steps:
            if not re.fullmatch(r'[\w-]+', step.name):
                raise ValueError(f'{step.name} is no name of letters, digits and -')
            if [bool(step.study), bool(step.command), bool(step.benchmark)].count(True) != 1:
                raise ValueError(f'{step.name}: one of study, command and benchmark is needed')
        return steps, of_kind(values.get('speed', ''), str)


def _stop(process: subprocess.Popen[bytes], end: float, request: signal.Signals) -> None:
    """Has a step save what it has, and ends it and what it started by then."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(request)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(max(end - time.monotonic(), 1.0), PATIENCE))
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1][:200] if lines else 'no word of it'


def _seconds(text: str) -> float:
    """A time, as argparse's `type`."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([smh]?)', text)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f'{text} is not a time as in 12m, 720s or 0.2h')
    return float(match[1]) * UNITS[match[2]]


if __name__ == '__main__':
    sys.exit(main())
