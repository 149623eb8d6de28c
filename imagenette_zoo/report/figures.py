"""The figures of a report: each drawn once, as a file and as a part of a page that takes the page's colours.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/); markers,
line styles and hatches say the same again. A figure is 5 inches wide, so that its letters are still 9 pixels high on a
telephone.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ['Picture', 'confusion_matrix', 'cost', 'learning_curves', 'pass_similarity', 'two_runs']

WIDTH = 5.0  # inches
INK, PAPER = '#010203', '#fdfefd'  # what a page replaces by its own colours
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#E69F00', '#CC79A7', '#56B4E9')
MARKERS = ('o', 's', '^', 'D', 'v', 'P')
LINES = ('-', '--', '-.', ':', (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)))
MOST_LINES = len(COLOURS)
MOST_CELLS = 40  # classes or blocks, in a heat map
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9,
    'axes.labelsize': 9,
    'legend.fontsize': 9,
    'xtick.labelsize': 9,
    'ytick.labelsize': 9,
    'legend.frameon': False,
    'axes.facecolor': 'none',
    'axes.linewidth': 0.6,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'hatch.linewidth': 0.8,
    'svg.fonttype': 'none',
    'text.parse_math': False,  # a $ in a name is a $
    **dict.fromkeys(
        ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color', 'grid.color', 'hatch.color'),
        INK,
    ),
}

Run = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: Of its files, and unique in a page.
        title: What it shows, for those who don't see it.
        svg: As a file.
        png: As a file.
    """

    name: str
    title: str
    svg: bytes
    png: bytes

    @property
    def inline(self) -> str:
        """As an element of a page, in the page's colours; its ids begin with its name or are hashes salted with it."""
        text = self.svg.decode()
        head, _, body = text[text.index('<svg') :].partition('>')
        box = re.search(r'viewBox="([\d. -]+)"', head)
        assert box is not None
        body = re.sub(r'<style.*?</style>', '', body, flags=re.DOTALL)  # it would hold for the whole page
        body = re.sub(r'<g id="[^"]*"', '<g', body).replace('xlink:href=', 'href=')
        body = body.replace(INK, 'currentColor').replace(PAPER, 'none')
        title = f'<title id="{self.name}-title">{html.escape(self.title)}</title>'
        return f'<svg role="img" aria-labelledby="{self.name}-title" viewBox="{box[1]}">{title}{body}'


def learning_curves(runs: Sequence[Run], name: str, limits: tuple[float, float]) -> Picture:
    """Validation top-1 by epoch, with a band over seeds, of six runs at most.

    Args:
        runs: Out of a report's contents.
        name: The figure's.
        limits: Of top-1, the same for the figures that are to be compared.
    """

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        for place, run in enumerate(runs):
            rows = run['curve']
            epochs = [row['epoch'] for row in rows]
            colour = COLOURS[place]
            axis.plot(
                epochs,
                [row['mean'] for row in rows],
                color=colour,
                linestyle=LINES[place],
                marker=MARKERS[place],
                markersize=4,
                markevery=max(1, len(rows) // 8),
            )
            if run['band'] and rows:
                bounds = ([row[end] for row in rows] for end in ('low', 'high'))
                axis.fill_between(epochs, *bounds, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel='epochs', ylabel='validation top-1, %', ylim=limits)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25, linewidth=0.5)
        _legend(figure, axis.lines, [_label(run) for run in runs])

    return _picture(name, f'Validation top-1 by epoch: {_names(runs)}', 3.0 + 0.2 * len(runs), draw)


def cost(runs: Sequence[Run], front: Sequence[int], metric: str, label: str, name: str) -> Picture:
    """Top-1 against what it costs, and the front of those runs that no other beats.

    Args:
        runs: Out of a report's contents; those without the metric are left out.
        front: The numbers of the runs on the front, by rising cost.
        metric: The cost.
        label: Its axis.
        name: The figure's.
    """
    shown = [run for run in runs if run['metrics'][metric] and run['metrics']['top1']]
    named = shown if len(shown) <= MOST_LINES else [run for run in shown if run['number'] in front]

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        points = {run['number']: _point(run, metric) for run in shown}
        costs = [x for x, _ in points.values()]
        if min(costs) > 0 and max(costs) > 8 * min(costs):
            axis.set_xscale('log')
            axis.xaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.xaxis.set_minor_formatter(lambda value, _: f'{value:g}' if f'{value:e}'[0] in '25' else '')
        steps = [points[number] for number in front]
        axis.step(*zip(*steps, strict=True), where='post', color=INK, linestyle='--', linewidth=0.8, alpha=0.7)
        for run in shown:
            x, y = points[run['number']]
            on = run['number'] in front
            colour = COLOURS[0] if on else COLOURS[1]
            stat = run['metrics']['top1']
            if run['band'] == 'interval':
                error = [[y - max(stat['low'], 0)], [min(stat['high'], 100) - y]]
                axis.errorbar(x, y, error, color=colour, linewidth=0.8, capsize=2, alpha=0.6)
            axis.plot(x, y, 'o' if on else 's', color=colour, markerfacecolor=colour if on else PAPER, markersize=6)
        axis.margins(x=0.12, y=0.12)
        axis.set(xlabel=label, ylabel='validation top-1, %')
        axis.grid(alpha=0.25, linewidth=0.5)
        handles = [*axis.plot([], [], 'o--', color=COLOURS[0]), *axis.plot([], [], 's', color=COLOURS[1], mfc=PAPER)]
        words = ['on the front: nothing cheaper is as good', 'beaten by another run']
        _legend(figure, handles, words)
        _number_points(axis, points)

    return _picture(name, f'Top-1 against {label}: {_names(named)}', 3.8, draw)


def two_runs(runs: Sequence[Run], classes: Sequence[str], name: str) -> Picture:
    """Top-1 of each class, a bar for each run, with their 95 % intervals.

    Args:
        runs: One or two, out of a report's contents.
        classes: That all of them know.
        name: The figure's.
    """
    thick = 0.8 / len(runs)

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        bars = []
        for place, run in enumerate(runs):
            stats = [run['per_class'][each] for each in classes]
            rows = [row + (place - (len(runs) - 1) / 2) * thick for row in range(len(classes))]
            means = [stat['mean'] for stat in stats]
            hatch = '' if place == 0 else '////'
            bars.append(axis.barh(rows, means, thick * 0.92, color=COLOURS[place], hatch=hatch, alpha=0.85))
            if run['band'] == 'interval':
                ends = [(max(stat['low'], 0), min(stat['high'], 100)) for stat in stats]
                errors = [[m - low, high - m] for m, (low, high) in zip(means, ends, strict=True)]
                axis.errorbar(means, rows, xerr=[*zip(*errors, strict=True)], fmt='none', color=INK, linewidth=0.8)
            for row, mean in zip(rows, means, strict=True):
                axis.text(114, row, f'{mean:.1f}', ha='right', va='center', fontsize=8 if len(runs) > 1 else 9)
        axis.set(xlim=(0, 100), xlabel='top-1, %', ylim=(len(classes) - 0.4, -0.6))
        axis.set_yticks(range(len(classes)), [_short(each, 18) for each in classes])
        axis.tick_params(axis='y', length=0)
        _legend(figure, bars, [_label(run) for run in runs])

    return _picture(name, f'Top-1 by class: {_names(runs)}', 1.2 + (0.16 + 0.16 * len(runs)) * len(classes), draw)


def confusion_matrix(run: Run, name: str) -> Picture:
    """How often each class was taken for each, in % of its images."""
    classes, percent = run['confusion']['classes'], run['confusion']['percent']

    def draw(figure: Any) -> None:
        axis = figure.add_subplot()
        # The root makes room for the small numbers, which are those of interest.
        _heat_map(axis, percent, 'Blues', (0, 100), lambda value: f'{value:.0f}' if value >= 0.5 else '', math.sqrt)
        labels = [_short(each, 18) for each in classes]
        axis.set_xticks(range(len(classes)), labels, rotation=90)
        axis.set_yticks(range(len(classes)), labels)
        axis.set(xlabel='predicted', ylabel='true class')

    side = 1.3 + 0.37 * len(classes) if len(classes) <= 10 else WIDTH
    return _picture(name, f'Confusion matrix in % of the true class: {_names([run])}', side, draw)


def pass_similarity(run: Run, name: str, heading: str = '') -> Picture:
    """Linear CKA of each pair of passes, and the points lost without each pass: a row for each MultiPass block."""
    blocks = run['passes']['blocks']
    most = max(len(block['kinds']) for block in blocks)
    pairs = [(a, b) for a in range(most) for b in range(a + 1, most)]
    alike = [[b['cka'][i][j] if j < len(b['kinds']) else math.nan for i, j in pairs] for b in blocks]
    lost = [[*b['top1_lost'], *[math.nan] * (most - len(b['kinds']))] for b in blocks]
    least, largest = min(min(block['top1_lost']) for block in blocks), max(max(block['top1_lost']) for block in blocks)
    digits = 2 if len(pairs) <= 6 else 1

    def draw(figure: Any) -> None:
        axes = figure.subplots(1, 2, width_ratios=(max(len(pairs), 2), max(most, 2)))
        _heat_map(axes[0], alike, 'cividis', (0, 1), lambda value: f'{value:.{digits}f}')
        _heat_map(
            axes[1],
            lost,
            'cividis',
            (least, max(largest, least + 1)),
            lambda value: f'{value:+.{digits}f}'.replace('-', '−'),
        )
        axes[0].set_title('CKA of two passes')
        axes[1].set_title('points lost without')
        axes[0].set_xticks(range(len(pairs)), [f'{a + 1}–{b + 1}' for a, b in pairs])
        axes[1].set_xticks(range(most), [f'pass {i + 1}' if most < 4 else str(i + 1) for i in range(most)])
        axes[0].set_yticks(range(len(blocks)), [_short(block['name'], 18) for block in blocks])
        axes[1].set_yticks([])
        if heading:
            figure.suptitle(_short(heading, 64), fontsize=9)

    title = f'Likeness of MultiPass passes and what each is worth: {_names([run])}'
    return _picture(name, title, 0.7 + 0.28 * len(blocks), draw)


def _picture(name: str, title: str, height: float, draw: Callable[[Any], None]) -> Picture:
    """Draws a figure and saves it, the same way on each machine and at each time."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context([STYLE, {'svg.hashsalt': name}], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # letters that its font lacks; a browser has others
        figure = Figure((WIDTH, height), layout='constrained', facecolor=PAPER)
        draw(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format='svg', metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
        figure.savefig(png, format='png', dpi=150, metadata={'Software': None})
    return Picture(name, title, svg.getvalue(), png.getvalue())


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(list(handles), list(labels), loc='outside lower left', handlelength=3)


def _short(name: str, most: int) -> str:
    """The two ends of a long name."""
    half = (most - 1) // 2
    return name if len(name) <= most else f'{name[: most - 1 - half]}…{name[-half:]}'


def _label(run: Run) -> str:
    return f'{run["number"]} · {_short(run["run"], 44)}'


def _names(runs: Sequence[Run]) -> str:
    return ', '.join(f'{run["number"]} · {run["run"]}' for run in runs)


def _point(run: Run, metric: str) -> tuple[float, float]:
    return run['metrics'][metric]['mean'], run['metrics']['top1']['mean']


def _number_points(axis: Any, points: Mapping[int, tuple[float, float]]) -> None:
    """Writes each run's number beside its point, where there is room: the nearest place that is free, if one is."""
    axis.figure.draw_without_rendering()  # settles where the points are
    scale = 72 / axis.figure.dpi
    spots = {number: axis.transData.transform(point) * scale for number, point in points.items()}
    taken = list(spots.values())
    for number, (x, y) in spots.items():
        places = [
            (r * a, r * b) for r in (10, 20) for a, b in ((1, 0), (-1, 0), (1, 0.9), (-1, 0.9), (1, -0.9), (-1, -0.9))
        ]
        free = [(dx, dy) for dx, dy in places if all(abs(x + dx - a) > 9 or abs(y + dy - b) > 8 for a, b in taken)]
        dx, dy = (free or places)[0]
        taken.append((x + dx, y + dy))
        axis.annotate(str(number), points[number], (dx, dy), textcoords='offset points', ha='center', va='center')


def _heat_map(
    axis: Any,
    rows: Sequence[Sequence[float]],
    colours: str,
    limits: tuple[float, float],
    write: Callable[[float], str],
    scale: Callable[[float], float] = float,
) -> None:
    """Coloured cells with their numbers, the first row at the top; what is not there stays empty."""
    import matplotlib
    from matplotlib.patches import Rectangle

    palette = matplotlib.colormaps[colours]
    low, high = map(scale, limits)
    writes = len(rows[0]) <= 12
    for row, values in enumerate(rows):
        for column, value in enumerate(values):
            if value is None or math.isnan(value):
                continue
            red, green, blue, _ = palette((scale(value) - low) / (high - low))
            axis.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=(red, green, blue), lw=0))
            if writes:
                ink = 'black' if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else 'white'
                axis.text(column, row, write(value), ha='center', va='center', fontsize=9, color=ink)
    axis.set(xlim=(-0.5, len(rows[0]) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
