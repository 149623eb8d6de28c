"""One training of a study as one command: for schedulers that know nothing of studies, and for jobs of SLURM.

It may be given again and again, anywhere where the study's folder is: what is done is left, what was interrupted goes
on, and what another process trains is refused. It reads the `study.yaml` of that folder, and holds the lock of its own
training alone.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import UserError
from ..utils.console import Console
from ..utils.files import ProcessLock
from ..utils.launch import check_alone
from .in_process import train_here
from .plan import Study, Trial
from .process import WHOLE, Extent, Slot, Trials, outcome
from .records import keep_failure
from .runner import check_models, in_rounds, opened, state_of

__all__ = ['missing_lines', 'train_one', 'words_of']


def words_of(trial: Trial, slot: Slot) -> list[str]:
    """What follows `imagenette-zoo` in the command of a training."""
    slot = slot.absolute()
    which = ['--only', trial.run, '--seed', str(trial.seed)]
    return ['study', str(slot.output), *which, *slot.flags(trial.recipe.device_modules)]


def missing_lines(
    study: Study, slot: Slot, console: Console, extent: Extent = WHOLE
) -> tuple[list[list[str]], Trials]:
    """The words of each training that is missing; with `until_decided` of those of the next round.

    The study's folder is made, since it is what they read.

    Returns:
        The words, and why claims get no more trainings.

    Raises:
        UserError: A folder holds something else, or another process runs this study.
    """
    lines: list[list[str]] = []

    def leave(trials: list[Trial]) -> Trials:
        missing = [trial for trial in trials if state_of(trial, slot) != 'done']
        lines.extend(words_of(trial, slot) for trial in missing)
        return Trials(left={trial.name: 'another process trains it' for trial in missing})

    check_models(study, console)
    with opened(study, slot, console, extent.only) as chosen:
        trials = in_rounds(study, slot, console, extent, chosen, leave, slot.jobs)
    return lines, trials


def train_one(study: Study, run: str, seed: int, slot: Slot, console: Console) -> None:
    """Does one training of a study in this process, if it is not done.

    Raises:
        UserError: The study has no such training, another process does it, or it failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state after the last step is saved.
    """
    trials = {trial.seed: trial for trial in study.trials() if trial.run == run}
    if seed not in trials:
        raise UserError(f'--seed {seed}: the study has no such seed: expected one of {", ".join(map(str, trials))}')
    check_alone(f'--seed {seed}: a training of a study')
    trial = trials[seed]
    if ProcessLock.is_held(slot.output / trial.name / '.lock'):
        raise UserError(f'{slot.output / trial.name}: another run is being written here: wait for it')
    if state_of(trial, slot) != 'done':
        check_models(replace(study, runs={run: study.runs[run]}), console)
        try:
            train_here(trial, slot, console)
        except UserError as error:
            keep_failure(slot.output, trial.name, str(error))
            raise
    console.line(f'{slot.output / trial.name}: {outcome(slot.output / trial.name)}')
