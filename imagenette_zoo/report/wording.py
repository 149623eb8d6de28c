"""The words and tables of a report, made of its numbers: the same for a page and for Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..study.analysis import PASSES_IMAGES
from ..study.metrics import METRICS, metric_of
from ..study.statistics import LEVEL, MOST_SEEDS
from ..utils.console import duration
from .contents import THRESHOLDS

__all__ = [
    'Cell',
    'Table',
    'about',
    'band_words',
    'class_table',
    'claims_summary',
    'cost_table',
    'curve_table',
    'describe_claim',
    'how',
    'matrix_table',
    'notes',
    'options_table',
    'passes_table',
    'run_label',
    'runs_table',
]

SYMBOLS = {'supported': '✓', 'contradicted': '✗', 'undecided': '?'}
MOST_EPOCHS = 25  # in a table

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and what it is sorted by, None where there is nothing."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header.

    Args:
        caption: What is in it.
        header: The columns.
        rows: Their cells.
        sortable: Whether a reader may sort it.
        sorted_by: The column that it is sorted by, downwards.
    """

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    sortable: bool = False
    sorted_by: int | None = None


def _number(value: float, metric: str) -> str:
    """`'2.237'` for 2,236,682 parameters."""
    _, _, _, decimals, one = _format(metric)
    return _signed(f'{value / one:,.{decimals}f}')


def _signed(text: str) -> str:
    """With a minus that is one, and none before zero."""
    return (text if text.strip('-+0.,') else text.lstrip('-')).replace('-', '−')


def _format(metric: str) -> tuple[str, str, str, int, float]:
    it = metric_of(metric)
    return it.label, it.unit, it.difference, it.decimals, it.scale


def _mean(stat: Content | None, metric: str) -> str:
    """`'91.20 ± 0.31'`."""
    if stat is None or stat['mean'] is None:
        return '–'
    half = f' ± {_number(stat["half"], metric)}' if stat['half'] is not None and not metric_of(metric).exact else ''
    return _number(stat['mean'], metric) + half


def _cell(stat: Content | None, metric: str) -> Cell:
    return Cell(_mean(stat, metric), stat['mean'] if stat else None)


def _count(number: int, what: str) -> str:
    return f'{number:,} {what}{"" if number == 1 else "s"}'


def _listed(values: Iterable[object]) -> str:
    words = [str(value) for value in values]
    return ', '.join(words[:-1]) + ' and ' + words[-1] if len(words) > 1 else ''.join(words)


def run_label(run: Content) -> str:
    """A run as tables and figures call it."""
    return f'{run["number"]} · {run["run"]}'


def _run_cell(run: Content) -> Cell:
    return Cell(run_label(run), run['run'])


# --- What this is -----------------------------------------------------------------------------------------------------


def about(content: Content) -> str:
    """What was run, on which images, on what."""
    setup = content['setup']
    each = setup['seeds_each']
    seeds = _count(each[0], 'seed') if len(each) == 1 else f'{each[0]} to {each[-1]} seeds'
    data = _listed(
        f'{one["name"]} ({one["train"]:,} training and {one["val"]:,} validation images)'
        if isinstance(one['train'], int) and isinstance(one['val'], int)
        else str(one['name'])
        for one in setup['datasets']
    )
    versions = ', '.join(f'{name} {"/".join(map(str, found))}' for name, found in setup['versions'].items())
    return (
        f'{_count(setup["runs"], "run")} with {seeds}{" each" if setup["runs"] > 1 else ""} '
        f'({_count(setup["trainings"], "training")}) on {data} at {_listed(setup["img_sizes"])} px for '
        f'{_listed(setup["epochs"])} epochs, on {_listed(map(_machine, setup["hardware"]))}. Versions: {versions}.'
    )


def _machine(hardware: Content) -> str:
    cores = f'{hardware.get("cores")} cores of {hardware.get("cpu")}'
    if hardware.get('gpu'):
        return f'{hardware["gpu"]} with {cores}'
    return f'{cores}, {_count(hardware["threads"], "thread")} a training' if hardware.get('threads') else cores


def notes(content: Content) -> list[str]:
    """What a reader must know before believing the numbers."""
    setup = content['setup']
    found = [content['limits']] if content['limits'] else []
    missing = content['unfinished']
    if missing:
        more = f' and {len(missing) - 10} more' if len(missing) > 10 else ''
        found.append(f'Not finished yet: {_count(len(missing), "training")}: {", ".join(missing[:10])}{more}.')
    if len(setup['datasets']) > 1:
        found.append('The runs are on several data sets: their accuracies do not compare.')
    if len(setup['hardware']) > 1:
        found.append(
            'The runs are from several machines or had several numbers of threads: their times, images/s and memory '
            'do not compare.'
        )
    if setup['analysed'] < setup['trainings']:
        found.append(
            f'{_count(setup["trainings"] - setup["analysed"], "training")} of {setup["trainings"]} '
            'were not looked at image by image: what that gives is missing for their runs.'
        )
    if setup['seeds_each'][0] == 1:
        found.append('Where a run has one seed, nothing tells luck from merit: ±1 point from seed to seed is common.')
    return found


# --- Claims -----------------------------------------------------------------------------------------------------------


def claims_summary(content: Content) -> str:
    """How many claims of each verdict."""
    verdicts = [claim['verdict'] for claim in content['claims']]
    counts = ', '.join(f'{verdicts.count(verdict)} {verdict}' for verdict in SYMBOLS if verdict in verdicts)
    return f'{_count(len(verdicts), "claim")}: {counts}.'


def describe_claim(claim: Content) -> dict[str, Any]:
    """A claim and its verdict in words: `facts` and each of `findings` are pairs of label and text."""
    metric = claim['metric']
    exact = metric_of(metric).exact
    facts = [
        ('metric', _what_is(metric)),
        ('p after Holm', 'counted, not estimated' if exact else _p(claim['p_adjusted'])),
        ('what would decide it', _remedy(claim)),
    ]
    return {
        **{name: claim[name] for name in ('name', 'sentence', 'verdict')},
        'symbol': SYMBOLS[claim['verdict']],
        'facts': [(label, text) for label, text in facts if text],
        'findings': [_describe_finding(finding, metric) for finding in claim['findings']],
    }


def _what_is(metric: str) -> str:
    return metric_of(metric).meaning


def _p(p: float) -> str:
    return 'below 0.001' if p < 0.001 else f'{p:.3f}'


def _remedy(claim: Content) -> str:
    """How many more seeds would decide an undecided claim."""
    if claim['verdict'] != 'undecided':
        return ''
    findings = claim['findings']
    if any(finding[mean] is None for finding in findings for mean in ('larger_mean', 'smaller_mean')):
        return 'it cannot be judged before all of its runs are known'
    if any(finding['effect'] is None for finding in findings):
        return 'other numbers: with these it cannot be judged'
    untested = [finding for finding in findings if finding['low'] is None]
    if any(finding['more_seeds'] is None for finding in untested):
        return 'other numbers: the note says why these cannot be tested'
    if untested:
        most = max(finding['more_seeds'] for finding in untested)
        return f'at least {_count(most, "more seed")} of each run, before it can be tested at all'
    if claim['more_seeds'] is None:
        return f'no number of seeds up to {MOST_SEEDS:,}, if the effect is what it seems'
    return f'about {_count(claim["more_seeds"], "more seed")} of each run, if the effect is what it seems'


def _describe_finding(finding: Content, metric: str) -> list[tuple[str, str]]:
    lines = [('expected', _expected(finding, metric))]
    for which in ('larger', 'smaller'):
        stat = finding[f'{which}_mean']
        if stat is None:
            lines.append((finding[which], 'nothing is known'))
        else:
            lines.append(
                (finding[which], f'{_mean(stat, metric)}{_format(metric)[1]}, {_count(stat["count"], "seed")}')
            )
    if finding['effect'] is not None:
        lines.append(('ratio' if finding['ratio'] else 'difference', _effect(finding, metric)))
    if finding['low'] is not None and not metric_of(metric).exact:
        lines.append(
            ('p', f'{_p(finding["p"])}, the difference {"as expected" if finding["holds"] else "the other way"}')
        )
    if finding['note']:
        lines.append(('note', finding['note']))
    return lines


def _expected(finding: Content, metric: str) -> str:
    larger, smaller, bound = finding['larger'], finding['smaller'], finding['bound']
    if finding['ratio']:
        return f'{larger} > {bound:g} × {smaller}'
    amount = f'{abs(bound) / _format(metric)[4]:g}{_format(metric)[2]}'
    if bound < 0:
        return f'{larger} ≥ {smaller}, or below it by less than {amount}'
    return f'{larger} > {smaller}{f" by more than {amount}" if bound else ""}'


def _effect(finding: Content, metric: str) -> str:
    """`'+1.23 points, 95 % interval +0.50 to +1.96'`."""
    _, _, unit, decimals, one = _format(metric)

    def write(value: float) -> str:
        return f'{value:,.3f}' if finding['ratio'] else _signed(f'{value / one:+,.{decimals}f}')

    effect = f'{write(finding["effect"])}{"" if finding["ratio"] else unit}'
    if finding['low'] is None or metric_of(metric).exact:
        return effect
    return f'{effect}, 95 % interval {write(finding["low"])} to {write(finding["high"])}'


# --- Tables -----------------------------------------------------------------------------------------------------------


def runs_table(content: Content) -> Table:
    """All runs and what they came to; columns of which nothing is known are left out."""
    runs = content['runs']
    columns: list[tuple[str, list[Cell]]] = [
        ('run', [_run_cell(run) for run in runs]),
        ('seeds', [Cell(str(len(run['seeds'])), len(run['seeds'])) for run in runs]),
        _metric_column(runs, 'top1'),
        _metric_column(runs, 'best_top1'),
    ]
    columns += [(f'time to {top1} %', [_reach_cell(run['reach'][str(top1)]) for run in runs]) for top1 in THRESHOLDS]
    columns.append(('training time', [_time_cell(run['metrics']['train_seconds']) for run in runs]))
    columns += [
        _metric_column(runs, metric)
        for metric in (
            *('params', 'gmacs', 'images_per_second', 'peak_memory_mib'),
            *('gap', 'shift_consistency', 'calibration_error', 'pass_similarity'),
        )
    ]
    known = [(name, cells) for name, cells in columns if any(_says_something(cell) for cell in cells)]
    rows = [list(row) for row in zip(*(cells for _, cells in known), strict=True)]
    header = [name for name, _ in known]
    return Table(
        'All runs, mean over their seeds ± half of the 95 % interval', header, rows, True, header.index('top-1, %')
    )


def _says_something(cell: Cell) -> bool:
    return cell.text not in ('–', 'not reached')


def _metric_column(runs: Sequence[Content], metric: str) -> tuple[str, list[Cell]]:
    name, unit = _format(metric)[:2]
    label = f'{name},{unit}' if unit in (' %', ' points') else name
    return label, [_cell(run['metrics'][metric], metric) for run in runs]


def _time_cell(stat: Content | None) -> Cell:
    return Cell(duration(stat['mean']), stat['mean']) if stat else Cell('–')


def _reach_cell(reach: Content) -> Cell:
    """A time where all seeds got there, else how many did."""
    if reach['seconds']:
        return _time_cell(reach['seconds'])
    return Cell(f'{reach["reached"]} of {reach["of"]} seeds' if reach['reached'] else 'not reached')


def class_table(runs: Sequence[Content], classes: Sequence[str], halves: bool = False) -> Table:
    """Top-1 of each run by class; with `halves` also half of the interval."""
    rows = []
    for run in runs:
        cells = [_run_cell(run)]
        for name in classes:
            stat = run['per_class'].get(name)
            text = _mean(stat, 'top1') if halves else f'{stat["mean"]:.1f}' if stat else '–'
            cells.append(Cell(text, stat['mean'] if stat else None))
        rows.append(cells)
    return Table('Top-1 by class, %, mean over seeds', ['run', *classes], rows, sortable=not halves)


def curve_table(runs: Sequence[Content]) -> Table:
    """Validation top-1 by epoch, of epochs evenly spread where there are many."""
    curves = [{row['epoch']: row for row in run['curve']} for run in runs]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    step = -(-len(epochs) // MOST_EPOCHS)
    rows = []
    for epoch in epochs[::-1][:: max(step, 1)][::-1]:  # the last one always
        cells = [Cell(str(epoch), epoch)]
        for curve in curves:
            row = curve.get(epoch)
            bounds = f' ({row["low"]:.2f} to {row["high"]:.2f})' if row and row['low'] != row['high'] else ''
            cells.append(Cell(f'{row["mean"]:.2f}{bounds}' if row else '–'))
        rows.append(cells)
    return Table('Validation top-1 by epoch, %: mean and band', ['epoch', *map(run_label, runs)], rows)


def band_words(runs: Sequence[Content]) -> str:
    """What the bands of some runs are."""
    words = {
        'interval': 'with three seeds or more the 95 % interval of the mean',
        'range': 'with two seeds what lies between them',
        None: 'with one seed there is none',
    }
    kinds = {run['band'] for run in runs}
    return 'The bands: ' + '; '.join(text for kind, text in words.items() if kind in kinds) + '.'


def cost_table(content: Content, cost: str) -> Table:
    """Cost and top-1 of each run, and whether it is on the front."""
    rows = [
        [
            _run_cell(run),
            _cell(run['metrics'][cost], cost),
            _cell(run['metrics']['top1'], 'top1'),
            Cell('yes' if run['number'] in content['front'][cost] else 'no'),
        ]
        for run in content['runs']
        if run['metrics'][cost]
    ]
    name = {'train_seconds': 'training time, s'}.get(cost, _format(cost)[0])
    return Table(f'Top-1 against {name}', ['run', name, 'top-1, %', 'on the front'], rows)


def matrix_table(confusion: Content) -> Table:
    """A confusion matrix, a row for each true class."""
    rows = [
        [Cell(name), *(Cell(f'{value:.1f}') for value in row)]
        for name, row in zip(confusion['classes'], confusion['percent'], strict=True)
    ]
    return Table('% of each true class that were taken for …', ['true class', *confusion['classes']], rows)


def passes_table(passes: Content) -> Table:
    """The pairs of passes of each block, and what is lost without each."""
    rows = []
    for block in passes['blocks']:
        size = range(len(block['kinds']))
        pairs = [(a, b) for a in size for b in size if a < b]
        cells = [', '.join(f'{a + 1}–{b + 1}: {block[key][a][b]:.3f}' for a, b in pairs) for key in ('cka', 'cosine')]
        lost = ', '.join(f'{place}: {_signed(f"{value:+.2f}")}' for place, value in enumerate(block['top1_lost'], 1))
        rows.append([Cell(block['name']), Cell(', '.join(block['kinds'])), *map(Cell, cells), Cell(lost)])
    header = ['block', 'passes', 'CKA of each pair', 'cosine of each pair', 'points lost without each pass']
    return Table('Passes of each block, mean over seeds', header, rows)


def options_table(content: Content) -> Table | None:
    """What tells the runs apart, or None where nothing does."""
    apart = content['options']['apart']
    names = list(next(iter(apart.values())))
    rows = [
        [_run_cell(run), *(Cell(_value(apart[run['run']][name])) for name in names)]
        for run in content['runs']
        if run['run'] in apart
    ]
    return Table('Options that tell the runs apart', ['run', *names], rows) if names else None


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- How --------------------------------------------------------------------------------------------------------------


def how(content: Content) -> list[tuple[str, str]]:
    """How the numbers were computed: what each paragraph is about, and the paragraph."""
    runs = content['runs']
    found = [
        (
            'Means and intervals',
            'A number is the mean over the seeds of a run; ± is half of the 95 % interval of that mean '
            "(Student's t). With one seed there is no interval. An interval says how well the mean is known, not how "
            'far apart two seeds may be.',
        )
    ]
    if content['claims']:
        found += [('Verdicts', _HOW_VERDICTS), ('More seeds', _HOW_SEEDS)]
    found += [
        (
            'Time to an accuracy',
            'Seconds of training and validation (epochs likewise) up to the validation that first gave the accuracy, '
            'interpolated between it and the one before, from a guess at the start. Seeds that never got there make no '
            'mean: the table says how many did. In a claim they count as the whole training, a lower bound.',
        ),
        (
            'Cost',
            'GMACs are multiply-accumulates of one image. Times, images/s and memory are of the machine named at the '
            'top, as busy as it was: compare them only between runs that had it to themselves. A run is on the front '
            'if no other costs less and is as good, by the means; their intervals are not looked at.',
        ),
    ]
    if content['setup']['analysed']:
        metrics = ('gap', 'shift_consistency', 'calibration_error')
        words = '; '.join(f'{_format(metric)[0]}: {METRICS[metric].meaning.removesuffix(", %")}' for metric in metrics)
        found.append(('Image by image', f'Of the final weights: {words}.'))
    if any(run['passes'] for run in runs):
        found.append(('Passes', _HOW_PASSES))
    common = content['options']['common']
    if common:
        options = ', '.join(f'{name} {_value(value)}' for name, value in common.items())
        found.append(('Options', f'All runs have in common, beside the defaults: {options}.'))
    return found


_HOW_VERDICTS = (
    'A claim must hold for other seeds and for other images of the same kind. Final top-1 is therefore compared with '
    'both as sources of chance: the variance of a difference is that between the seeds of each run plus that between '
    'images of the paired difference (each image’s share of right answers under one run minus that under the other), '
    'less what chance adds to single answers, which is in the seeds’ part. '
    'Other metrics, and top-1 where not all seeds were looked at image by image, have seeds only. Half of an '
    'interval’s width is the root of the sum of the squares of each part’s own, by Student’s t (Banerjee 1960), which '
    'holds however much the runs’ spreads differ. McNemar’s test would compare two trainings, not two ideas. The '
    'p-values of all claims are corrected together by Holm’s method: supported or '
    f'contradicted is what stays at or below {LEVEL:g}, so that chance alone decides a claim in one study of twenty '
    'at most; all else is undecided, which is not the same as no effect. A claim of several comparisons is supported '
    'if all hold, and contradicted if one is found the other way. The 95 % interval of a single difference is not '
    'corrected. Parameters and GMACs are counted: no test is needed.'
)
_HOW_SEEDS = (
    'How many more seeds would decide a claim: as many as give the test a power of 80 %, if the difference and the '
    'spread are what they seem. Choose the number once: who adds seeds until a claim is decided errs more often than '
    f'{LEVEL:.0%}. More seeds do not help where the images are too few.'
)
_HOW_PASSES = (
    'Linear CKA compares what two passes of a block add to its input (or put out, where that can’t be told apart), '
    'each position of each image an example: 1 where one is a rotated and scaled copy of the other, so no new '
    'information. Points lost: top-1 of the whole network minus top-1 when the block merges its other passes only, on '
    f'{PASSES_IMAGES} validation images (all, where there are fewer); nothing is trained anew.'
)
