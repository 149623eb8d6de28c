"""Study files: which runs, with which seeds, and what is claimed about them. Checked before anything runs."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..config.fields import literal
from ..config.hparams import BENCHMARK, GOOD_RECIPE, find_modules, find_recipe, shipped
from ..config.names import NAMES, look_up
from ..config.precedence import related
from ..config.recipe import Recipe
from ..errors import Mistakes, UserError, UserErrors, first_line, nearest
from ..utils.modules import is_reference
from ..utils.reading import LARGEST_YAML, PlainLoader, read_errors, read_text, yaml_reason
from .metrics import METRICS, THRESHOLD, TO_AN_ACCURACY, metric_of

__all__ = [
    'INSTEAD', 'MOST_COMPARED', 'STAGES', 'STEP_TIME_BLOCKS', 'STEP_TIME_STAGES', 'Claim', 'Comparison', 'StepTimes',
    'Study', 'StudyRun', 'Trial', 'begun_study', 'check_comparable', 'default_name', 'differing', 'dump_claim',
    'dump_study', 'find_study', 'is_begun', 'make_study', 'parse_vary', 'plain_name', 'plan_models', 'plan_study',
    'read_study', 'recipe_of',
]  # fmt: skip

NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+=-]{0,79}')
OPERATORS = ('>=', '<=', '>', '<')
NOT_OF_A_STUDY = Recipe.may_differ('around a study')  # it belongs to the one who runs it
MOST_RUNS = 1000
SEEDS = 2**32  # a seed is below it
LONGEST_NAME = 100  # of a folder that nobody chose
INSTEAD = {  # of an option that is not of a study
    'seed': '--seeds N',
    'resume': 'trainings in the folder are always continued',
    'overwrite': 'remove the folder',
}
# After how many blocks claims are looked at, and the share of the level that each look may spend.
STAGES = ((3, 0.10), (4, 0.15), (5, 0.15), (6, 0.15), (8, 0.12), (10, 0.11), (13, 0.09), (16, 0.07), (20, 0.06))
STEP_TIME_BLOCKS = 10
STEP_TIME_STAGES = ((STEP_TIME_BLOCKS, 1.0),)  # of a claim on step times: one look, since all is timed at once
MOST_COMPARED = 6  # runs, each pair of which is judged
FEWEST_BLOCKS = 3  # of a stage: from two the spread is not known
PRACTICAL = {'top1': 1.0}  # the difference that matters, where a claim does not say


@dataclass(frozen=True)
class StudyRun:
    """One way to train: a recipe, to be run with each seed."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Trial:
    """One training: a run of the study with one seed."""

    run: str
    base: Recipe
    seed: int

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run with this seed."""
        return self.base.replace(seed=self.seed)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f'{self.run}-seed{self.seed}'


@dataclass(frozen=True)
class Comparison:
    """`larger` is expected to exceed `smaller` by more than `bound` (a difference, or a ratio of the two).

    With a ratio below 1 `smaller` is expected to be at most so many times as large: it is what is spoken of then.
    """

    larger: str
    smaller: str
    bound: float
    ratio: bool = False

    @property
    def two_sided(self) -> bool:
        """Whether it only asks which is larger."""
        return self.bound == (1 if self.ratio else 0)

    @property
    def at_most(self) -> bool:
        """Whether it says that `smaller` is at most so many times `larger`."""
        return self.ratio and self.bound < 1


@dataclass(frozen=True)
class Claim:
    """A sentence, and the comparisons that must all hold if it is true.

    `practical` is the least difference that matters, None where the claim does not say. `fallback` is the metric that
    judges it where too few seeds reached the threshold of `metric`, or None. `note` says so, then.
    """

    name: str
    sentence: str
    metric: str
    order: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    practical: float | None = None
    fallback: str | None = None
    note: str = ''

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that it compares, each once."""
        return tuple(dict.fromkeys(run for each in self.comparisons for run in (each.larger, each.smaller)))

    @property
    def two_sided(self) -> bool:
        """Whether it only asks which is larger: then it can be wrong on both sides."""
        return all(each.two_sided for each in self.comparisons)

    @property
    def equal_within(self) -> float | None:
        """The difference below which runs count as equal; None where a bound says what matters, or nothing does."""
        plain = all(each.bound == 0 and not each.ratio for each in self.comparisons)
        return (self.practical or PRACTICAL.get(self.metric)) if plain else None


@dataclass(frozen=True)
class StepTimes:
    """The training steps of some runs, timed in turns on one machine.

    Args:
        seconds: Of a step, block by block, by run.
        images: In a step, by run.
        hardware: The machine.
        options: Of each run, those that decide about it: times of a run that was changed since do not count.
        code: The SHA-256 of the user's own code, by run.
    """

    seconds: dict[str, list[float]]
    images: dict[str, int]
    hardware: dict[str, Any]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    code: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Runs, seeds and claims.

    Args:
        title: What it asks.
        runs: The runs by name, in the order of the file.
        seeds: The seeds of each.
        claims: What is claimed.
        budget: Hours of training and validation after which no further run is started, or None.
        limits: What a reader must know of how far it reaches.
        base: The options that all runs have unless they say otherwise.
        stages: After how many blocks (seeds of the runs that are compared) claims are looked at, and the share of the
            level of each look; the shares sum to 1.
        until_decided: Trainings go on after `seeds`, with the seeds that follow, up to the last stage.
        failed: The seeds of each run whose training failed. This and the rest are not of the file: `as_run` reads them.
        late: Seeds whose training failed and is done by now.
        changes: How the claims or their stages were changed after results were seen.
        step_times: The time of training steps by run, where a claim asks for it.
        against: Baselines that come with the package, as `zoo` (all) or `zoo:MODEL`: its runs are compared with them.
    """

    title: str
    runs: dict[str, StudyRun]
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...] = ()
    budget: float | None = None
    limits: str = ''
    base: dict[str, Any] = field(default_factory=dict, repr=False)
    stages: tuple[tuple[int, float], ...] = STAGES
    until_decided: bool = False
    failed: Mapping[str, frozenset[int]] = field(default_factory=dict)
    late: Mapping[str, frozenset[int]] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    step_times: StepTimes | None = None
    against: tuple[str, ...] = ()

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, and those that may follow them."""
        further = max(0, self.stages[-1][0] - len(self.seeds)) if self.until_decided else 0
        following = (seed % SEEDS for seed in itertools.count(max(self.seeds) + 1))
        return (*self.seeds, *itertools.islice((seed for seed in following if seed not in self.seeds), further))

    def trials(self) -> list[Trial]:
        """All trainings: every run with the first seed, then every run with the second, so that what is done at any
        time can be compared."""
        return [Trial(run.name, run.recipe, seed) for seed in self.all_seeds for run in self.runs.values()]


def dump_study(study: Study) -> str:
    """A study file that means the same without any other file: what the recipes say is in it, grids are runs."""
    defaults = Recipe().as_dict()
    base = {**defaults, **study.base}

    content = {
        'title': study.title,
        'limits': study.limits,
        'options': differing(base, defaults),
        'seeds': list(study.seeds),
        'budget': study.budget,
        'until_decided': study.until_decided,
        'stages': _dump_stages(study.stages),
        'against': list(study.against),
        'runs': {run.name: _dump_run(run.recipe.as_dict(), base, defaults) for run in study.runs.values()},
        'claims': [dump_claim(claim) for claim in study.claims],
    }
    kept = {key: value for key, value in content.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)


def _dump_run(options: Mapping[str, Any], base: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Its own options, with those that would give way to them."""
    own = differing(options, base)
    return own | {name: options[name] for name in sorted(related(own)) if base[name] != defaults[name]}


def differing(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a study that differ from others."""
    return {name: value for name, value in values.items() if value != others[name] and name not in NOT_OF_A_STUDY}


def dump_claim(claim: Claim) -> dict[str, Any]:
    """A claim as a study file says it."""
    first = claim.comparisons[0]
    bound = {'ratio': first.bound} if first.ratio else {'by': first.bound} if first.bound > 0 else {}
    bound = {'margin': -first.bound} if first.bound < 0 else bound
    if first.ratio and '<=' in claim.order[0]:
        bound = {'ratio': _ten_digits(1 / first.bound)}
    return {
        'name': claim.name, 'claim': claim.sentence, 'metric': claim.metric, 'order': list(claim.order), **bound,
        **{key: value for key in ('practical', 'fallback') if (value := getattr(claim, key))},
    }  # fmt: skip


def _ten_digits(value: float) -> float:
    """Of a ratio, so that the same one comes of dividing by it twice."""
    return float(f'{value:.10g}')


def _dump_stages(stages: tuple[tuple[int, float], ...]) -> list[int] | dict[int, float] | None:
    if stages == STAGES:
        return None
    return [stages[0][0]] if len(stages) == 1 else dict(stages)


def find_study(name: str | Path) -> Path:
    """The file of a study: a path, or the name of one that comes with the package.

    Raises:
        UserError: There is none.
    """
    return shipped(name, 'study', 'studies')


def is_begun(folder: str | Path) -> bool:
    """Whether this is the folder of a study."""
    return os.path.isfile(Path(folder, 'study.yaml'))


def begun_study(folder: Path) -> Study:
    """The study in a study's folder. Code that it names is not imported: only the user names code.

    Raises:
        UserError: It is damaged.
    """
    study = read_study(folder / 'study.yaml')
    recipes = {name: Recipe.of({**run.recipe.as_dict(), 'device_modules': ()}) for name, run in study.runs.items()}
    return replace(study, runs={name: replace(run, recipe=recipes[name]) for name, run in study.runs.items()})


def make_study(title: str, recipes: Mapping[str, Recipe], seeds: tuple[int, ...]) -> Study:
    """A study without a file and without claims: recipes by name."""
    return Study(title, {key: StudyRun(key, recipe) for key, recipe in recipes.items()}, seeds)


# --- A study without a file -------------------------------------------------------------------------------------------


def plan_models(
    models: Sequence[str],
    recipe: Recipe,
    seeds: int,
    vary: Mapping[str, Sequence[Any]] | None = None,
    one_look: bool = False,
    until_decided: bool = False,
    against: Sequence[str] = (),
) -> Study:
    """A study of models, and of options that take several values: each combination is a run, named by what differs.

    Args:
        models: Their names.
        recipe: All other options.
        seeds: How many trainings each run has.
        vary: Values by key: an option of `Recipe` (`model` adds to `models`), else an argument of the model.
        one_look: The runs are compared once, when all seeds are done, with the whole level.
        until_decided: Trainings go on after `seeds`.
        against: Baselines, as `Study` has them. They get no further seeds, so there is one look, if there are seeds
            for it.

    Raises:
        UserError: A key or a value can't be varied, two runs would be the same, or one look can't compare the runs.
    """
    if one_look and until_decided:
        raise UserError(
            '--one-look and --until-decided exclude each other: the one compares once, the other looks until it knows'
        )
    values = {key.replace('-', '_'): list(each) for key, each in (vary or {}).items()}
    models = [*models, *values.pop('model', ())]
    if one_look and seeds < FEWEST_BLOCKS:
        raise UserError(f'--one-look: {seeds} seeds decide nothing: give --seeds {FEWEST_BLOCKS} or more')
    if seeds > MOST_RUNS:
        raise UserError(f'--seeds {seeds}: expected at most {MOST_RUNS}')
    if not models:
        raise UserError('no model is named: give one or several, as in imagenette-zoo run resnet18')
    if math.prod(map(len, [models, *values.values()])) > MOST_RUNS:
        raise UserError(f'--vary: more than {MOST_RUNS} runs')
    axes = {'model': models, **{key: _axis(key, each) for key, each in values.items()}}
    words = {key: [f'{key}={name}' for name in _short_names(each)] for key, each in axes.items()}
    words['model'] = _short_names(models)
    runs: dict[str, StudyRun] = {}
    for point in itertools.product(*(range(len(each)) for each in axes.values())):
        shown = {key: words[key][index] for key, index in zip(axes, point, strict=True)}
        if len(models) == 1 and values:
            del shown['model']
        name = '-'.join(shown.values())
        if not NAME.fullmatch(name):
            raise UserError(
                f'{name!r}: a run is named by at most 80 letters, digits and . _ + = -: a study file, which names its '
                f'runs itself, can have this one'
            )
        if name in runs:
            raise UserError(f'there are two runs {name!r}: a model is given twice, or two differ by punctuation only')
        chosen = {key: axes[key][index] for key, index in zip(axes, point, strict=True)}
        try:
            runs[name] = StudyRun(name, _varied(recipe, chosen))
        except UserError as error:
            raise UserError(f'{name}: {error}') from None
    title = ' and '.join(models) + (f': {", ".join(values)}' if values else '')
    stages = ((seeds, 1.0),) if one_look or (against and seeds >= FEWEST_BLOCKS) else STAGES
    study = Study(
        title, runs, tuple(range(1, seeds + 1)), stages=stages, until_decided=until_decided,
        against=tuple(map(_check_baseline, against)),
    )  # fmt: skip
    if one_look:
        check_comparable(study, '--one-look')
    return study


def check_comparable(study: Study, flag: str) -> None:
    """Raises `UserError` where there is nothing to compare: no claim, and no pair of runs that is judged."""
    if not study.claims and not study.against and not 1 < len(study.runs) <= MOST_COMPARED:
        raise UserError(
            f'{flag}: nothing to compare: without claims it needs 2 to {MOST_COMPARED} runs, not {len(study.runs)}: '
            'name so many, or write a study file with claims'
        )


def _check_baseline(name: str) -> str:
    """What `against` names, if it is of its form: `zoo` or `zoo:MODEL`.

    Raises:
        UserError: It is not.
    """
    source, colon, run = name.partition(':')
    if source != BENCHMARK or bool(colon) != bool(run):
        raise UserError(f'--against: {name!r} is neither {BENCHMARK} nor {BENCHMARK}:MODEL')
    return name


def recipe_of(config: str | Path | None, against: Sequence[str], **overrides: Any) -> Recipe:
    """The recipe of `run`: that which is named, else that of the baselines, else the good one for any model.

    Raises:
        UserError: As `Recipe.load`.
    """
    if config is None and against:
        return Recipe.of(read_study(find_study(BENCHMARK)).base, overrides)
    return Recipe.load(config or GOOD_RECIPE, **overrides)


def _axis(key: str, values: list[Any]) -> list[Any]:
    """The values of a key, each in its type.

    Raises:
        UserError: The key can't be varied, or a value is empty, wrong or there twice.
    """
    if key in NOT_OF_A_STUDY:
        flag = '--' + key.replace('_', '-')
        raise UserError(f"--vary {key}: can't be varied: {INSTEAD.get(key, f'give {flag} for all runs')}")
    if not values or '' in values:
        raise UserError(f'--vary {key}: a value is empty: expected {key}=V1,V2')
    typed = [Recipe.check_value(key, value) if key in Recipe.names() else value for value in values]
    seen = [repr(value) for value in typed]  # 1 is not True
    if twice := [value for value, shown in zip(values, seen, strict=True) if seen.count(shown) > 1]:
        raise UserError(f'--vary {key}: {twice[0]} is given twice')
    return typed


def _varied(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    options = {key: value for key, value in values.items() if key in Recipe.names()}
    kwargs = {key: value for key, value in values.items() if key not in options}
    return recipe.varied(**options, model_kwargs={**recipe.model_kwargs, **kwargs})


def parse_vary(words: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each `KEY=V1,V2`, read as those of the option's flag, else as those of `--model-kwargs`.

    Raises:
        UserError: A word is not of this form, or a key is there twice.
    """
    values: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition('=')
        name = key.replace('-', '_')
        if not name or not equals:
            raise UserError(f'--vary: {word!r} is not KEY=V1,V2; models come before it')
        if name in values:
            raise UserError(f'--vary {key}: is given twice: give all its values at once, as in {key}=V1,V2')
        values[name] = [_value(name, part.strip()) for part in _parts(text)]
    return values


def _value(key: str, text: str) -> Any:
    value = literal(text)
    is_text = key in Recipe.names() and Recipe.is_text(key)
    return text if is_text and value is not None else value


def _parts(text: str) -> list[str]:
    """A text divided at its commas, but for those in brackets."""
    parts, depth = [''], 0
    for letter in text:
        depth += (letter in '([{') - (letter in ')]}')
        if letter == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += letter
    return parts


def default_name(models: Sequence[str], vary: Mapping[str, Sequence[Any]]) -> str:
    """The name of the folder of such a study: its models and keys.

    Raises:
        UserError: It would be too long.
    """
    keys = [key for key in vary if key != 'model']
    name = '+'.join(_short_names([*models, *vary.get('model', ())])) + ('-' + '+'.join(keys) if keys else '')
    if len(name) > LONGEST_NAME:
        raise UserError('so many models and keys make a long name: choose one with --experiment NAME')
    return name


def _short_names(values: Sequence[Any]) -> list[str]:
    """Each value as a part of a name: `module:attribute` by its attribute, unless two would be equal."""
    short = [plain_name(str(value).partition(':')[2] if is_reference(value) else value) for value in values]
    pairs = zip(short, values, strict=True)
    return [name if short.count(name) == 1 else plain_name(value) for name, value in pairs]


# --- Study files ------------------------------------------------------------------------------------------------------


def plan_study(content: Mapping[str, Any]) -> Study:
    """A study of what a study file would say.

    Raises:
        UserError: Something in it is wrong.
    """
    try:
        text = yaml.safe_dump(dict(content), sort_keys=False)
    except yaml.YAMLError as error:
        raise UserError(f'study: only text, numbers, lists and mappings can be given ({first_line(error)})') from None
    return _Reader(Path()).study(yaml.compose(text, PlainLoader))


def read_study(path: str | Path, look_up: bool = False) -> Study:
    """Reads and checks a study file.

    Args:
        path: The file.
        look_up: Also looks whether there are the models and optimizers that it names, where something is wrong already
            or timm is loaded. Not in a file that brings code, which may have them.

    Raises:
        UserError: It can't be read, or something in it is wrong. All that is wrong is said, each in a line that has
            the line of the file.
    """
    path = Path(path)
    with read_errors(path, 'a study'):
        text = read_text(path, LARGEST_YAML)
    try:
        root = yaml.compose(text, PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        raise UserError(f'{path}{f":{mark.line + 1}" if mark else ""}: {yaml_reason(error)}') from None
    return _Reader(path, look_up).study(root)


class _Reader:
    """Takes a study out of the nodes of its file, which know their lines; of no file where the path is empty."""

    def __init__(self, path: Path, look_up: bool = False) -> None:
        self.path = path
        self.look_up = look_up
        self.named: list[tuple[Any, str, Any]] = []  # what options name that timm may lack, after the key's node
        self.mistakes = Mistakes()

    def fail(self, node: Any, reason: object) -> UserError:
        line = f':{node.start_mark.line + 1}' if self.path.name and node is not None else ''
        where = f'{self.path}{line}' if self.path.name else 'study'
        if isinstance(reason, UserErrors):
            return UserErrors(UserError(f'{where}: {each}') for each in reason.lines)
        return UserError(f'{where}: {reason}')

    def plain(self, node: Any) -> Any:
        try:
            loader = PlainLoader('')
            return loader.construct_document(node)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise self.fail(node, 'not a plain value') from None

    def mapping(self, node: Any, what: str, known: set[str] | None = None) -> dict[str, tuple[Any, Any]]:
        """`{key: (key's node, value's node)}`, `-` in a key of `known` counting as `_`."""
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f'{what} must be a list of "name: value" lines')
        entries: dict[str, tuple[Any, Any]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, f'{what}: a name is needed before the colon')
            name = key.value.replace('-', '_') if known is not None else key.value
            with self.mistakes.collected():
                if known is not None and name not in known:
                    raise self.fail(key, f'{what}: unknown {key.value!r}{nearest(name, known)}')
                if name in entries:
                    raise self.fail(key, f'{what}: {key.value!r} is given twice')
                entries[name] = (key, value)
        return entries

    def study(self, root: Any) -> Study:
        known = {
            'title', 'limits', 'device_modules', 'base', 'options', 'seeds', 'budget', 'until_decided', 'stages',
            'runs', 'claims', 'against',
        }  # fmt: skip
        parts = self.mapping(root, 'a study', known)

        def part(name: str, read: Callable[[Any], Any], default: Any) -> Any:
            """A part of the file; its default where there is none or it is wrong, which is said at the end."""
            with self.mistakes.collected():
                return read(parts[name][1]) if name in parts else default
            return default

        base = part('base', self.base, {})
        options = part('options', self.options, {})
        if modules := part('device_modules', self.modules, ()):
            base['device_modules'] = [*base.get('device_modules', ()), *modules]
        runs: dict[str, StudyRun | None] = part('runs', lambda node: self.runs(node, base, options), {})
        if 'runs' not in parts:
            self.mistakes.errors.append(self.fail(root, 'a study needs runs'))
        against = part('against', self.against, ())
        named = {**runs, **{name: None for name in against if ':' in name}}
        claims = part('claims', lambda node: self.claims(node, named), ()) if runs else ()
        seeds = part('seeds', self.seeds, (1, 2, 3))
        budget = part('budget', lambda node: self.number(node, 'budget: hours are needed'), None)
        stages = part('stages', self.stages, STAGES)
        until_decided = part('until_decided', self.yes, False)
        if self.look_up and not base.get('device_modules') and (self.mistakes.errors or 'timm' in sys.modules):
            for key, name, value in self.named:
                with self.mistakes.collected():
                    try:
                        look_up(name, value)
                    except UserError as error:
                        raise self.fail(key, error) from None
        self.mistakes.check()
        return Study(
            self.words(parts, 'title') or self.path.stem,
            {name: run for name, run in runs.items() if run is not None},
            seeds,
            claims,
            budget,
            self.words(parts, 'limits'),
            {**base, **options},
            stages,
            until_decided,
            against=against,
        )

    def against(self, node: Any) -> tuple[str, ...]:
        value = self.plain(node)
        names = value if isinstance(value, list) else [value]
        try:
            return tuple(_check_baseline(str(name)) for name in names)
        except UserError as error:
            raise self.fail(node, error) from None

    def yes(self, node: Any) -> bool:
        value = self.plain(node)
        if not isinstance(value, bool):
            raise self.fail(node, 'until_decided: true or false is needed')
        return value

    def words(self, parts: Mapping[str, tuple[Any, Any]], name: str) -> str:
        value = self.plain(parts[name][1]) if name in parts else None
        return '' if value is None else str(value).strip()

    def base(self, node: Any) -> dict[str, Any]:
        name = self.plain(node)
        if not isinstance(name, str):
            raise self.fail(node, 'base: the name or file of a recipe is needed')
        beside = self.path.parent / name
        try:
            file = beside if beside.is_file() else find_recipe(name)
            values = Recipe.of(Recipe.read(file)).as_dict()
        except UserError as error:
            raise self.fail(node, error) from None
        return {key: value for key, value in values.items() if key not in NOT_OF_A_STUDY - {'device_modules'}}

    def modules(self, node: Any) -> Sequence[str]:
        try:
            names: Sequence[str] = Recipe.check_value(
                'device_modules', find_modules(self.plain(node), self.path.parent)
            )
        except UserError as error:
            raise self.fail(node, error) from None
        return names

    def options(self, node: Any) -> dict[str, Any]:
        """Options of a recipe; each is checked by itself, so that an error names its line."""
        values = {}
        for name, (key, value) in self.mapping(node, 'options', Recipe.names()).items():
            with self.mistakes.collected():
                if name in NOT_OF_A_STUDY:
                    raise self.fail(key, f'{key.value}: is not for study files: use seeds: or a flag of the command')
                plain = self.plain(value)
                try:
                    Recipe.check_value(name, plain)
                except UserError as error:
                    raise self.fail(key, error) from None
                values[name] = plain
                if name in NAMES and isinstance(plain, str):
                    self.named.append((key, name, plain))
        return values

    def runs(self, node: Any, *layers: dict[str, Any]) -> dict[str, StudyRun | None]:
        """The runs by name; None for one that is wrong."""
        runs: dict[str, StudyRun | None] = {}
        wrong = len(self.mistakes.errors)  # in what all have
        for name, (key, value) in self.mapping(node, 'runs').items():
            with self.mistakes.collected():
                runs[name] = None  # until it was read, and where it is wrong
                before = len(self.mistakes.errors)
                points = list(self.grid(name, value))
                del runs[name]
                if wrong or len(self.mistakes.errors) > before:
                    runs |= {full: None for full, _ in points}
                    continue
                for full, changes in points:
                    if not NAME.fullmatch(full):
                        raise self.fail(key, f'{full!r}: a run is named by at most 80 letters, digits and . _ + = -')
                    if full in runs:
                        raise self.fail(key, f'there are two runs {full!r}')
                    runs[full] = None
                    if len(runs) > MOST_RUNS:
                        raise self.fail(key, f'more than {MOST_RUNS} runs')
                    try:
                        runs[full] = StudyRun(full, Recipe.of(*layers, changes))
                    except UserError as error:
                        raise self.fail(key, f'{full}: {error}') from None
        if not runs:
            raise self.fail(node, 'a study needs runs')
        return runs

    def grid(self, name: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(name, overrides)` of one run, or of each point of its grid."""
        if isinstance(node, yaml.ScalarNode) and not node.value:  # a run that is the base itself
            yield name, {}
            return
        parts = self.mapping(node, name)
        grid = parts.pop('grid', None)
        pairs = [(key, value) for key, value in node.value if key.value != 'grid']
        fixed = self.options(yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark))
        if grid is None:
            yield name, fixed
            return
        axes = []
        for axis, (key, values) in self.mapping(grid[1], 'grid', Recipe.names()).items():
            if not isinstance(values, yaml.SequenceNode) or not values.value:
                raise self.fail(key, f'grid: {axis}: a list of values is needed')
            axes.append([(axis, key, item) for item in values.value])
        for point in itertools.product(*axes):
            changes = dict(fixed)
            words = [name]
            for axis, key, item in point:
                pair = yaml.MappingNode(grid[1].tag, [(key, item)], item.start_mark, item.end_mark)
                changes.update(self.options(pair))
                words.append(f'{axis}={plain_name(changes.get(axis, item.value))}')
            yield '-'.join(words), changes

    def seeds(self, node: Any) -> tuple[int, ...]:
        value = self.plain(node)
        if _whole(value) and 0 < value <= MOST_RUNS:
            return tuple(range(1, value + 1))
        if isinstance(value, list) and value and all(_whole(item) and 0 <= item < SEEDS for item in value):
            if len(set(value)) == len(value):
                return tuple(value)
            raise self.fail(node, 'seeds: one is given twice')
        raise self.fail(node, 'seeds: their number or a list of them is needed')

    def stages(self, node: Any) -> tuple[tuple[int, float], ...]:
        """Looks as `[4, 8]`, with equal shares of the level, or as `{4: 0.4, 8: 0.6}`."""
        value = self.plain(node)
        if not isinstance(value, (list, dict)) or not value:
            raise self.fail(node, 'stages: numbers of blocks are needed, as [5], or their shares, as {4: 0.4, 8: 0.6}')
        blocks = list(value)
        shares = list(value.values()) if isinstance(value, dict) else [1 / len(value)] * len(value)
        whole = all(_whole(each) and FEWEST_BLOCKS <= each <= MOST_RUNS for each in blocks)
        if not whole or blocks != sorted(set(blocks)):
            raise self.fail(node, f'stages: whole numbers from {FEWEST_BLOCKS} blocks on are needed, each larger')
        if not all(isinstance(each, (int, float)) and not isinstance(each, bool) and each > 0 for each in shares):
            raise self.fail(node, 'stages: each needs a share of the level above 0')
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise self.fail(node, f'stages: the shares sum to {sum(shares):g}: they must sum to 1, the whole level')
        return tuple(zip(blocks, map(float, shares), strict=True))

    def claims(self, node: Any, runs: Mapping[str, StudyRun | None]) -> tuple[Claim, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, 'claims: a list is needed, each with claim, metric and order')
        claims: dict[str, Claim] = {}
        for number, item in enumerate(node.value, 1):
            with self.mistakes.collected():
                claim = self.claim(item, number, runs)
                self.check_goals(item, claim, runs)
                if claim.name in claims:
                    raise self.fail(item, f'there are two claims {claim.name!r}')
                claims[claim.name] = claim
        return tuple(claims.values())

    def claim(self, node: Any, number: int, runs: Collection[str]) -> Claim:
        known = {'name', 'claim', 'metric', 'order', 'by', 'margin', 'ratio', 'practical', 'fallback'}
        parts = self.mapping(node, 'a claim', known)
        for name in ('claim', 'metric', 'order'):
            if name not in parts:
                raise self.fail(node, f'a claim needs {name}')
        if not (sentence := self.words(parts, 'claim')):
            raise self.fail(parts['claim'][0], 'claim: a sentence is needed')
        metric = str(self.plain(parts['metric'][1]))
        with self.mistakes.collected():
            if metric not in METRICS and not THRESHOLD.fullmatch(metric):
                metrics = [*METRICS, *TO_AN_ACCURACY]
                raise self.fail(
                    parts['metric'][1],
                    f'metric: {metric!r} is not one of {", ".join(metrics)} (N a number){nearest(metric, metrics)}',
                )
        bounds: dict[str, float] = {
            name: self.number(parts[name][1], f'{name}: a number above 0 is needed')
            for name in ('by', 'margin', 'ratio')
            if name in parts
        }
        if len(bounds) > 1:
            raise self.fail(node, f'{" and ".join(bounds)} exclude each other: leave all but one out')
        practical = None
        if 'practical' in parts:
            practical = self.number(parts['practical'][1], 'practical: a number above 0 is needed')
            if bounds:
                raise self.fail(parts['practical'][0], f'practical: {next(iter(bounds))} says the same: leave one out')
            if metric in METRICS and METRICS[metric].exact:
                raise self.fail(parts['practical'][0], f'practical: {metric} is counted, not tested: give by or ratio')
        fallback = self.fallback(parts['fallback'][1], metric, bounds) if 'fallback' in parts else None
        value = self.plain(parts['order'][1])
        orders = tuple(value) if isinstance(value, list) else (value,)
        if not orders:
            raise self.fail(parts['order'][1], 'order: at least one is needed')
        found = (part for order in orders for part in self.order(parts['order'][1], order, bounds, runs))
        comparisons = list(dict.fromkeys(found))  # one may be named twice
        packaged = [name for each in comparisons for name in (each.larger, each.smaller) if ':' in name]
        if packaged and (THRESHOLD.fullmatch(metric) or metric in METRICS) and metric_of(metric).timed:
            raise self.fail(
                parts['metric'][1],
                f'metric: {metric}: nothing is known of the times of {packaged[0]}, which comes with the package: make '
                'it a run of the study',
            )
        if len({each.bound for each in comparisons}) > 1:
            raise self.fail(parts['order'][1], 'order: with a ratio all are <=, or none is')
        return Claim(
            self.words(parts, 'name') or f'claim {number}',
            sentence,
            metric,
            tuple(map(str, orders)),
            tuple(comparisons),
            practical,
            fallback,
        )

    def check_goals(self, node: Any, claim: Claim, runs: Mapping[str, StudyRun | None]) -> None:
        """Looks whether the runs of a claim on a threshold train up to it."""
        threshold = THRESHOLD.fullmatch(claim.metric)
        for run in filter(None, map(runs.get, claim.runs)):
            metric, value = run.recipe.goal or ('', 0.0)
            if threshold and metric == 'top1' and float(threshold[2]) > value:
                how = f'{run.name} ends at stop_at {run.recipe.stop_at}'
                raise self.fail(node, f'metric: {claim.metric}: {how}: raise that, or name a lower threshold')

    def fallback(self, node: Any, metric: str, bounds: Mapping[str, float]) -> str:
        value = str(self.plain(node))
        if not THRESHOLD.fullmatch(metric) or bounds:
            raise self.fail(node, 'fallback: goes with epochs_to_N or seconds_to_N, without by, margin or ratio')
        if value not in METRICS or METRICS[value].better != 'larger':
            raise self.fail(node, f'fallback: {value!r} is not a metric where more is better, such as top1')
        return value

    def order(
        self, node: Any, order: object, bounds: Mapping[str, float], runs: Collection[str]
    ) -> Iterator[Comparison]:
        """The comparisons in `a > b > c` or `a <= b`."""
        words = order.split() if isinstance(order, str) else []
        names, operators = words[::2], words[1::2]
        if len(words) < 3 or len(words) % 2 == 0 or any(operator not in OPERATORS for operator in operators):
            raise self.fail(node, f'order: {order!r} is not like "a > b", "a < b < c" or "a >= b" with spaces between')
        unknown = Mistakes()
        for name in names:
            with unknown.collected():
                if name not in runs:
                    raise self.fail(node, f'order: there is no run {name!r}{nearest(name, runs)}')
        unknown.check()
        for left, operator, right in zip(names, operators, names[1:], strict=False):
            if left == right:
                raise self.fail(node, f'order: {left!r} is compared with itself')
            loose = operator.endswith('=')
            ratio = bounds.get('ratio')
            if loose and 'margin' not in bounds and not (ratio and operator == '<='):
                instead = '' if operator == '<=' else ' instead of >='
                raise self.fail(
                    node,
                    f'order: {operator} needs a margin, the difference that is allowed; or, with <={instead}, a ratio '
                    'above 1: at most so many times',
                )
            if not loose and 'margin' in bounds:
                raise self.fail(node, f'order: a margin goes with >= and <=, not with {operator}')
            larger, smaller = (left, right) if operator.startswith('>') else (right, left)
            if loose and ratio:
                if _ten_digits(ratio) <= 1:
                    raise self.fail(node, f'order: <= needs a ratio above 1, at most so many times, not {ratio:g}')
                bound = 1 / _ten_digits(ratio)
            else:
                bound = -bounds['margin'] if loose else ratio or bounds.get('by', 0.0)
            yield Comparison(larger, smaller, bound, ratio is not None)

    def number(self, node: Any, needed: str) -> float:
        value = self.plain(node)
        with contextlib.suppress(ValueError):  # YAML takes 5e-1 for text
            value = float(value) if isinstance(value, str) else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.fail(node, needed)
        return float(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def plain_name(value: object) -> str:
    """A value, or a model's name, as a part of a folder's name."""
    text = 'x'.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r'[^A-Za-z0-9._+=-]', '_', text)
