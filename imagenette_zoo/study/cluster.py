"""What the trainings of a study on other machines have in common, whoever sends them there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from ..errors import UserError, first_line
from ..utils.console import Console, counted
from .plan import Study, Trial
from .process import Extent, Slot, Trials, outcome
from .records import keep_failure
from .runner import interrupted, state_of

__all__ = ['Sent', 'check_extent', 'collect']

# Each training that ended, with the reason where it failed; None where nothing did for a while.
Sent = Generator[tuple[Trial, str] | None, None, None]


def check_extent(flag: str, study: Study, slot: Slot, extent: Extent, console: Console) -> None:
    """Looks whether no option is for one machine only.

    Raises:
        UserError: One is.
    """
    if slot.jobs > 1:
        raise UserError(f'{flag}: --jobs is for one machine: leave it out')
    if slot.in_process:
        raise UserError(f'{flag}: --in-process is for one machine: leave it out')
    if not extent.until_decided and extent.budget is not None:
        raise UserError(f'{flag}: --budget works there with --until-decided only: add that, or leave --budget out')
    if not extent.until_decided and study.budget is not None:
        console.line(f'the budget of {study.budget:g} h is for one machine: {flag} is for all of the study')


def collect(
    chosen: list[Trial], slot: Slot, console: Console, send: Callable[[list[Trial]], Sent], where: str, saved: str
) -> Trials:
    """Sends what is missing, and says what becomes of it.

    Args:
        chosen: The trainings.
        slot: What is done is in its folder, or comes there.
        console: Where it is printed.
        send: Sends them, and tells what becomes of them.
        where: Where to, in words.
        saved: What is left of those that are under way when this is interrupted, as a sentence.

    Raises:
        UserError: A folder holds something else.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    states = {trial.name: state_of(trial, slot) for trial in chosen}
    trials = Trials(done=[trial for trial in chosen if states[trial.name] == 'done'])
    waiting = [trial for trial in chosen if states[trial.name] != 'done']
    console.line(f'{counted(len(chosen), "training")}: {len(trials.done)} done, {len(waiting)} sent {where}')
    with console.progress('trainings', len(chosen), done=len(trials.done)) as progress:
        try:
            with closing(send(waiting)) as ended:
                for one in ended:
                    finished = len(trials.done) + len(trials.failed)
                    if one is None:
                        if not console.live:
                            console.line(f'{counted(len(chosen) - finished, "training")} under way')
                        continue
                    text = _judge(*one, slot, trials)
                    progress.bar.update()
                    console.line(f'[{finished + 1}/{len(chosen)}] {one[0].name}: {text}')
        except KeyboardInterrupt as request:
            raise interrupted(request, trials, len(chosen), saved, console) from None
    return trials


def _judge(trial: Trial, why: str, slot: Slot, trials: Trials) -> str:
    """Notes what became of a training; the outcome in words."""
    try:
        if why:
            raise UserError(why)
        text = outcome(slot.output / trial.name)
    except (OSError, UserError) as error:
        trials.failed[trial.name] = first_line(error)
        keep_failure(slot.output, trial.name, trials.failed[trial.name])
        return f'FAILED: {first_line(error)}'
    trials.done.append(trial)
    return text
