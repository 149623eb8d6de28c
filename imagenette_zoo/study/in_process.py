"""Trainings of a study in this process: those of models that no other one can make, as a notebook's."""

from __future__ import annotations

from ..errors import UserError
from ..models.own import is_of_this_process
from ..training.trainer import train_by
from ..utils.console import Console
from .analysis import analyse
from .plan import Study, Trial
from .process import Job, Slot

__all__ = ['TrainedHere', 'needs_this_process']


def needs_this_process(study: Study, slot: Slot) -> bool:
    """Whether a model of a study can be made by this process alone, so that all its trainings are done here.

    Raises:
        UserError: Several are to run at the same time.
    """
    own = [run.recipe.model for run in study.runs.values() if is_of_this_process(run.recipe.model)]
    if own and slot.jobs > 1:
        raise UserError(
            f'jobs={slot.jobs}: {own[0]} is of this process, which trains one after the other: leave jobs out, or put '
            f'the model into a file for device_modules'
        )
    return bool(own)


class TrainedHere(Job):
    """A training that is done once this is made. Its epochs have bars where there is a terminal or a notebook."""

    def __init__(self, trial: Trial, slot: Slot, number: int) -> None:
        self.trial = trial
        self.number = number
        self.folder = slot.output / trial.name
        place = {'output': slot.output, 'experiment': trial.name, 'resume': 'auto'}
        given = {name: value for name in ('data_dir', 'device') if (value := getattr(slot, name))}
        console = Console(bars_only=True)
        train_by(trial.recipe.replace(**place, **given), console)
        analyse(self.folder, console, slot.data_dir, slot.device)

    def poll(self) -> int:
        return 0
