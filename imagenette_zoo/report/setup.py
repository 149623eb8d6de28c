"""The head and the end of a report: what was run, on which images and machines, and with which options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..config.recipe import Recipe
from ..study.metrics import metric_of
from ..study.plan import Study
from ..study.records import Record, code_label, distinct, options_of
from ..utils.console import counted
from .drawing import Numbers
from .section import Cell, Table, listed, run_cell

__all__ = [
    'about', 'notes', 'numbers', 'option_value', 'options', 'options_table', 'timed_elsewhere', 'unfinished'
]  # fmt: skip


def numbers(records: Sequence[Record], runs: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The images, seeds, machines and versions of the trainings, but for those that came with the package."""
    records = [record for record in records if not record.packaged]
    runs = {name: each for name, each in runs.items() if not each[0].packaged}
    results = [record.result for record in records]
    packages = distinct([name for result in results for name in result.versions])
    return {
        'trainings': len(records),
        'runs': len(runs),
        'seeds': sorted({record.seed for record in records}),
        'seeds_each': sorted({len(each) for each in runs.values()}),
        'analysed': sum(record.analysis is not None for record in records),
        'datasets': distinct([{k: result.dataset.get(k) for k in ('name', 'train', 'val')} for result in results]),
        'img_sizes': sorted({result.img_size for result in results}),
        'epochs': sorted({result.epochs for result in results}),
        'code': {name: distinct([code_label(record.result) for record in each]) for name, each in runs.items()},
        'hardware': distinct([result.hardware for result in results]),
        'versions': {
            name: distinct([result.versions[name] for result in results if name in result.versions])
            for name in packages
        },
    }


def unfinished(records: Sequence[Record], study: Study | None) -> list[str]:
    """The trainings of a study that are not among the records; none where its claims say how many there are."""
    if study is None or study.until_decided:
        return []
    done = {(record.run, record.seed) for record in records}
    return [trial.name for trial in study.trials() if (trial.run, trial.seed) not in done]


def timed_elsewhere(records: Sequence[Record], study: Study | None) -> dict[str, Any]:
    """The machine that the steps of a study were timed on, where no training was on such a one; else nothing."""
    if study is None or study.step_times is None or not any(metric_of(each.metric).by_steps for each in study.claims):
        return {}
    hardware = study.step_times.hardware
    return {} if hardware in [record.result.hardware for record in records if not record.packaged] else dict(hardware)


def options(runs: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """The options that all runs have in common beside the defaults, and those that tell them apart."""
    recipes = {name: options_of(each[0].result) for name, each in runs.items()}
    keys = distinct([key for recipe in recipes.values() for key in recipe])
    apart = [key for key in keys if len(distinct([recipe.get(key) for recipe in recipes.values()])) > 1]
    first, defaults = next(iter(recipes.values())), Recipe().as_dict()
    common = {key: first.get(key) for key in keys if key not in apart and first.get(key) != defaults.get(key)}
    return {
        'common': common,
        'apart': {name: {key: recipe.get(key) for key in apart} for name, recipe in recipes.items()},
    }


def about(content: Numbers) -> str:
    """The trainings, their images and their machines, in words."""
    setup = content['setup']
    each = setup['seeds_each']
    seeds = counted(each[0], 'seed') if len(each) == 1 else f'{each[0]} to {each[-1]} seeds'
    data = listed(
        f'{one["name"]} ({one["train"]:,} training and {one["val"]:,} validation images)'
        if isinstance(one['train'], int) and isinstance(one['val'], int)
        else str(one['name'])
        for one in setup['datasets']
    )
    versions = ', '.join(f'{name} {"/".join(map(str, known))}' for name, known in setup['versions'].items())
    return (
        f'{counted(setup["runs"], "run")} with {seeds}{" each" if setup["runs"] > 1 else ""} '
        f'({counted(setup["trainings"], "training")}) on {data} at {listed(setup["img_sizes"])} px for '
        f'{listed(setup["epochs"])} epoch{"" if setup["epochs"] == [1] else "s"}, '
        f'on {listed(map(_machine, setup["hardware"]))}. Versions: {versions}.{_code(setup["code"])}'
    )


def _code(code: Mapping[str, Sequence[str | None]]) -> str:
    """The code of the user's own that the runs were trained with, in words."""
    known = {run: listed(filter(None, each)) for run, each in code.items() if any(each)}
    if not known:
        return ''
    same = len(known) == len(code) and len(set(known.values())) == 1
    shown = next(iter(known.values())) if same else '; '.join(f'{run}: {each}' for run, each in known.items())
    return f' Code of the user (SHA-256): {shown}.'


def _machine(hardware: Numbers) -> str:
    cores = f'{hardware.get("cores")} cores of {hardware.get("cpu")}'
    if hardware.get('gpu'):
        return f'{hardware["gpu"]} with {cores}'
    return f'{cores}, {counted(hardware["threads"], "thread")} a training' if hardware.get('threads') else cores


def notes(content: Numbers) -> list[str]:
    """All that a reader must know before believing the numbers."""
    setup = content['setup']
    lines = [content['limits']] if content['limits'] else []
    lines += [f'{change[:1].upper()}{change[1:]}.' for change in content['changes']]
    lines += content['packaged']
    several = len(distinct([(one['name'], one['val']) for one in setup['datasets']])) > 1
    if content['unjudged'] and not several:
        lines.append(f'{content["unjudged"][:1].upper()}{content["unjudged"][1:]}.')
    missing = content['unfinished']
    if missing:
        more = f' and {len(missing) - 10} more' if len(missing) > 10 else ''
        lines.append(f'Not finished yet: {counted(len(missing), "training")}: {", ".join(missing[:10])}{more}.')
    if several:
        lines.append('The runs are on several data sets: their accuracies do not compare.')
    if len(setup['hardware']) > 1:
        lines.append(
            'The runs are from several machines or had several numbers of threads: their times, images/s and memory '
            'do not compare. They are left out here; report.json has them.'
        )
    if content['timed_elsewhere']:
        lines.append(f'Steps were timed where no training ran: on {_machine(content["timed_elsewhere"])}.')
    if setup['analysed'] < setup['trainings']:
        lines.append(
            f'{counted(setup["trainings"] - setup["analysed"], "training")} of {setup["trainings"]} '
            'were not looked at image by image: what that gives is missing for their runs.'
        )
    if setup['seeds_each'][0] == 1:
        lines.append('Where a run has one seed, nothing tells luck from merit: ±1 point from seed to seed is common.')
    return lines


def options_table(content: Numbers) -> Table | None:
    """The options that tell the runs apart, or None where nothing does."""
    apart = content['options']['apart']
    names = list(next(iter(apart.values())))
    rows = [
        [run_cell(run), *(Cell(option_value(apart[run['run']][name])) for name in names)]
        for run in content['runs']
        if run['run'] in apart
    ]
    return Table('Options that tell the runs apart', ['run', *names], rows) if names else None


def option_value(value: object) -> str:
    """The value of an option in words."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
