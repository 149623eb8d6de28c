"""Studies from Python: `imagenette_zoo.run`, `study`, `report` and `Study`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError, require
from ..models.own import NAMED, NOTEBOOK, is_of_this_process, name_model, own_function
from ..study.baselines import all_records
from ..study.decisions import Verdict, judge, with_pairs
from ..study.metrics import METRICS
from ..study.plan import (
    INSTEAD,
    begun_study,
    default_name,
    find_study,
    is_begun,
    plain_name,
    plan_models,
    plan_study,
    read_study,
    recipe_of,
)
from ..study.plan import Study as Plan
from ..study.process import WHOLE, Extent, Slot
from ..study.records import Record, as_run, by_run, samples_of
from ..study.sentences import sentence
from ..training.result import Result
from ..training.run_folder import RunFolder
from ..utils.console import Console, headed, html_table, in_ipython
from ..utils.files import unused
from ..utils.modules import is_reference, owner, reference_to
from .curves import best_curves
from .page import report_numbers
from .runs import numbers
from .studies import carry_out, report_on, summary, summary_rows, verdicts, with_modules

__all__ = ['Study', 'report', 'run', 'study']

Model = str | Callable[..., nn.Module]


class Study:
    """A study and what is finished of it.

    Args:
        plan: Its runs, seeds and claims.
        slot: Where it is, and how its trainings run.
        extent: How much of it is trained.
    """

    def __init__(self, plan: Plan, slot: Slot, extent: Extent = WHOLE) -> None:
        self.plan = plan
        self.slot = slot
        self.extent = extent

    @classmethod
    def open(cls, folder: str | Path) -> Study:
        """The study in a folder, as it is; nothing is trained.

        Raises:
            UserError: There is none.
        """
        return cls(begun_study(Path(folder)), Slot(Path(folder)))

    @property
    def folder(self) -> Path:
        """Where its runs and its report are."""
        return self.slot.output

    @cached_property
    def records(self) -> list[Record]:
        """The finished trainings, and the baselines that they are compared with.

        Raises:
            UserError: One is damaged.
        """
        return all_records(as_run(self.plan, self.folder), self.folder)

    @property
    def verdicts(self) -> list[Verdict]:
        """What became of its claims, in their order. Without claims: which run of each pair has the higher top-1."""
        plan = with_pairs(as_run(self.plan, self.folder), self.records)
        return judge(plan.claims, samples_of(plan, by_run(self.records)), plan.stages)

    def table(self, per_seed: bool = False) -> Any:
        """The metrics of its runs as numbers, in the units that study files have.

        Args:
            per_seed: A row for each training. Else it is one for each run: the mean over its seeds, and for top-1 half
                of the 95 % interval.

        Returns:
            A `pandas.DataFrame` where pandas is installed, else a list of dicts.
        """
        rows: list[dict[str, Any]] = []
        for name, records in by_run(self.records).items():
            if per_seed:
                metrics = ({metric: record.metric(metric) for metric in METRICS} for record in records)
                rows += [{'run': name, 'seed': r.seed, **each} for r, each in zip(records, metrics, strict=True)]
                continue
            stats = numbers(records)['metrics']
            means = {metric: stat and stat['mean'] for metric, stat in stats.items()}
            half = stats['top1'] and stats['top1']['half']
            rows.append({'run': name, 'seeds': len(records), 'top1': means['top1'], 'top1_half': half} | means)
        try:
            import pandas
        except ImportError:
            return rows
        frame = pandas.DataFrame(rows)
        return frame.astype({name: float for name in frame.columns if name in (*METRICS, 'top1_half')})

    def plot(self) -> Any:
        """The learning curves of the best six runs, with a band over their seeds.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            UserError: Matplotlib is not installed, or nothing is finished yet.
        """
        require('matplotlib', 'a figure', 'report')
        return best_curves(report_numbers(self.records, self.plan))

    def resume(self, *, quiet: bool = False) -> Study:
        """Trains what is missing, and writes the report.

        Args:
            quiet: Prints nothing.

        Returns:
            This study. Where it is interrupted in a notebook, it has what is finished.

        Raises:
            UserError: A training failed; the others are done.
            KeyboardInterrupt: It was interrupted, outside of IPython. What is done is saved.
        """
        console = Console(quiet)
        self.__dict__.pop('records', None)
        try:
            carry_out(self.plan, self.slot, console, self.extent)
        except KeyboardInterrupt:
            if not in_ipython():
                raise
            slot, extent = self.slot, self.extent
            given = {
                'data_dir': slot.data_dir,
                'device': slot.device,
                'jobs': slot.jobs if slot.jobs > 1 else None,
                'only': tuple(extent.only),
                'until_decided': extent.until_decided,
                'budget': extent.budget,
            }
            more = ''.join(f', {name}={value!r}' for name, value in given.items() if value)
            print(f'Stopped. Continue with: resume(), or imagenette_zoo.study({str(self.folder)!r}{more})')
        return self

    def _progress(self) -> str:
        plan = as_run(self.plan, self.folder)
        of = '' if plan.until_decided else f' of {len(plan.trials())}'
        done = sum(not record.packaged for record in self.records)
        return f'{headed(plan.title)} {done}{of} trainings done, in {self.folder}'

    def __repr__(self) -> str:
        parts = [self._progress(), *([summary(self.records)] if self.records else [])]
        return '\n'.join([*parts, *filter(None, [verdicts(as_run(self.plan, self.folder), self.records)])])

    def _repr_html_(self) -> str:
        judged = [(each.verdict, each.claim.sentence, sentence(each)) for each in self.verdicts]
        runs = summary_rows(self.records) if self.records else []
        tables = ([(self._progress(),)], runs, [('verdict', 'claim', 'what is so'), *judged] if judged else [])
        return ''.join(html_table(rows) for rows in tables if rows)


def run(
    models: Model | Sequence[Model] | Mapping[str, Model],
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 3,
    one_look: bool = False,
    against: str | Sequence[str] = (),
    config: str | Path | None = None,
    until_decided: bool = False,
    budget: float | None = None,
    jobs: int = 1,
    quiet: bool = False,
    **options: Any,
) -> Study:
    """Trains models with several seeds and reports, as the command `run` does.

    A function or class of this process is called with `num_classes`. With one of these all trainings are done in this
    process, one after the other.

    Args:
        models: Names, functions or classes that make a model, or a mapping from the names of the runs to these.
        vary: A run for each value, and for each combination: `{'lr': [1e-3, 3e-3], 'act_layer': ['relu', 'mish']}`.
        seeds: How many trainings each run has.
        one_look: Compares the runs once, when all seeds are done, which decides more. No seeds can follow.
        against: Baselines that come with the package, `'zoo'` for all of them, or names as `'zoo:resnet18'`: the runs
            are compared with these, which are not trained again, and by their recipe.
        config: The recipe; if not given `mbv2_mish_80`, or that of the baselines.
        until_decided: Trains with as many seeds as it takes to tell each pair of runs apart, or equal.
        budget: Hours of training and validation.
        jobs: Trainings at the same time.
        quiet: Prints nothing.
        **options: The fields of `Recipe`. An `experiment` goes on with what its folder has; without a name the study
            has a new folder.

    Returns:
        The study. Where it is interrupted in a notebook, it has what is finished, and `resume` goes on.

    Raises:
        UserError: Bad input, or a training failed; the others are done.
        KeyboardInterrupt: It was interrupted, outside of IPython. What is done is saved.
    """
    extent = Extent((), budget, until_decided)
    for name, instead in {**INSTEAD, 'model': 'the first argument', 'seed': 'seeds=N'}.items():
        if name in options:
            raise UserError(f'run has no {name}: {instead}')
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UserError(f'seeds: {seeds!r} is not a number of trainings from 1 on')
    named = _named(models)
    values = {key: _by_name(key, each) for key, each in (vary or {}).items()}
    against = [against] if isinstance(against, str) else against
    recipe = recipe_of(config, against, **options).varied(experiment=None)
    plan = plan_models(list(named), recipe, seeds, values, one_look, until_decided, against)
    runs = {
        name: replace(each, recipe=each.recipe.replace(model=named.get(each.recipe.model, each.recipe.model)))
        for name, each in plan.runs.items()
    }
    folder = _folder(recipe.output, options.get('experiment'), default_name(list(named), values))
    slot = Slot(folder, recipe.data_dir, options.get('device'), jobs)
    return Study(replace(plan, runs=runs), slot, extent).resume(quiet=quiet)


def _folder(output: str | Path, experiment: str | None, name: str) -> Path:
    """The folder of a study: that of the experiment, else a new one."""
    return Path(output, experiment) if experiment else unused(Path(output, name))


def _named(models: Model | Sequence[Model] | Mapping[str, Model]) -> dict[str, str]:
    """The model of each run, by name."""
    if isinstance(models, str) or callable(models):
        models = [models]
    pairs = models.items() if isinstance(models, Mapping) else [(None, model) for model in models]
    named: dict[str, str] = {}
    for name, model in pairs:
        known = model if isinstance(model, str) else name_model(model, name)
        own = None if is_reference(known) else own_function(known)
        if own is not None and owner(own.__module__) is None:  # of a package that this process imported by itself
            NAMED[known] = own
        if (name or known) in named:
            raise UserError(f'{name or known}: is given twice: give each a name, as in {{"mine": …, "other": …}}')
        named[name or known] = known
    return named


def _by_name(key: str, values: Sequence[Any]) -> list[Any]:
    """The values of an option with models and layers by their names."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f'vary: {key}: {values!r} is not a list of values')
    plain = []
    for value in values:
        name = name_model(value) if key == 'model' and not isinstance(value, str) else value
        if callable(name) and (name := reference_to(value)) is None:
            raise UserError(
                f'vary: {key}: {value!r} is of no file that was imported: give the file as device_modules and '
                f'"file:Name" here, or models that use it: {{"mine": lambda num_classes: …}}'
            )
        plain.append(name)
    return plain


def study(
    source: str | Path | Mapping[str, Any],
    *,
    models: Mapping[str, Callable[..., nn.Module]] | None = None,
    only: Sequence[str] = (),
    budget: float | None = None,
    until_decided: bool = False,
    jobs: int = 1,
    data_dir: str | Path | None = None,
    device: str | None = None,
    device_modules: Sequence[str] = (),
    output: str | Path | None = None,
    experiment: str | None = None,
    quiet: bool = False,
) -> Study:
    """Runs what is missing of a study, judges its claims and reports, as the command `study` does.

    Args:
        source: A study's file, the name of one that comes with the package, the folder of one that was begun, or a
            mapping that says what a file would say; a `model` in it may be a function or a class.
        models: Functions and classes that it names as models, where this process does not know them yet.
        only: Names of runs.
        budget: Hours, instead of the study's own.
        until_decided: Trains with as many seeds as its claims need to be decided.
        jobs: Trainings at the same time.
        data_dir: As in training.
        device: As in training.
        device_modules: Code of your own, instead of the study's.
        output: The study gets a folder there, in `runs` if not given; not for one that was begun.
        experiment: The name of that folder: that of the file if not given, and a new one for a mapping.
        quiet: Prints nothing.

    Returns:
        The study. Where it is interrupted in a notebook, it has what is finished, and `resume` goes on.

    Raises:
        UserError: Something in it is wrong, or a training failed; the others are done.
        KeyboardInterrupt: It was interrupted, outside of IPython. What is done is saved.
    """
    extent = Extent(only, budget, until_decided)
    begun = not isinstance(source, Mapping) and is_begun(source)
    if begun and (output is not None or experiment is not None):
        raise UserError(f'{source}: the study goes on in its own folder: leave output and experiment out')
    output = 'runs' if output is None else output
    for name, model in (models or {}).items():
        name_model(model, name)
    if isinstance(source, Mapping):
        plan = plan_study(_with_names(source))
        folder = _folder(output, experiment, plain_name(plan.title or 'study'))
    elif begun:
        plan, folder = begun_study(Path(source)), Path(source)
        _check_known(plan, folder)
    else:
        file = find_study(source)
        plan, folder = read_study(file, look_up=not device_modules), Path(output, experiment or Path(source).stem)
    slot = Slot(folder, None if data_dir is None else str(data_dir), device, jobs)
    return Study(with_modules(plan, device_modules), slot, extent).resume(quiet=quiet)


def _check_known(plan: Plan, folder: Path) -> None:
    """Raises `UserError` where a run was begun with a model of another notebook than this."""
    for trial in plan.trials():
        model = trial.recipe.model
        if NOTEBOOK + model in RunFolder(folder / trial.name).code() and not is_of_this_process(model):
            raise UserError(f'{folder}: {model} is a model of a notebook: give it as models={{{model!r}: …}}')


def _with_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a study says, with a name for each function or class in it: that of its run."""

    def named(options: Any, name: str | None = None) -> Any:
        is_own = isinstance(options, Mapping) and callable(options.get('model'))
        return {**options, 'model': name_model(options['model'], name)} if is_own else options

    parts = {key: named(value) for key, value in content.items()}
    if isinstance(parts.get('runs'), Mapping):
        parts['runs'] = {name: named(options, str(name)) for name, options in parts['runs'].items()}
    return parts


def report(
    paths: str | Path | Study | Result | Sequence[str | Path | Study | Result],
    output: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    images: bool = True,
    compare: tuple[str, str] | None = None,
    markdown: str | Path | None = None,
) -> Path:
    """Writes the report on a study or on any finished runs, as the command `report` does.

    Args:
        paths: A study or its folder, or runs, or folders of runs.
        output: Where the report goes; beside the study, else `report/`.
        data_dir: Where the images are; as in training if not given.
        images: Whether it shows images of the data set.
        compare: Two runs whose classes are shown beside each other.
        markdown: Where the Markdown goes instead of the report's folder.

    Returns:
        The page.

    Raises:
        UserError: There is no finished run, or one is damaged.
    """
    several = [paths] if isinstance(paths, (str, Path, Study, Result)) else paths
    return report_on(
        [str(path if isinstance(path, (str, Path)) else path.folder) for path in several],
        None if output is None else str(output),
        data_dir=None if data_dir is None else str(data_dir),
        images=images,
        compare=compare,
        markdown=None if markdown is None else str(markdown),
    )
