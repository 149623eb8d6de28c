"""How the figures of a report are drawn: each once, as a file and as a part of a page that takes the page's colours.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..utils.console import short

__all__ = [
    'COLOURS', 'INK', 'LINES', 'MARKERS', 'MOST_CELLS', 'MOST_LINES', 'PAPER', 'WIDTH', 'Numbers', 'Picture',
    'draw_figure', 'draw_picture', 'heat_map', 'legend', 'names', 'run_label', 'run_styles', 'short_label',
]  # fmt: skip

WIDTH = 5.0  # inches
INK, PAPER = '#010203', '#fdfefd'  # a page replaces them by its own colours
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

Numbers = Mapping[str, Any]  # a part of report.json


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: Of its files, and unique in a page.
        title: Its content, for those who don't see it.
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


def run_styles(runs: Sequence[str], panels: Sequence[Sequence[str]]) -> dict[str, tuple[str, int]]:
    """A colour and the number of a marker and line style for each run, which it has in all figures.

    Runs that share a panel differ in both, as far as there are enough; no two of 36 runs have the same pair of them.

    Args:
        runs: Their names.
        panels: The runs of each figure.
    """
    mates = {run: {other for panel in panels if run in panel for other in panel} - {run} for run in runs}
    styles: dict[str, tuple[int, int]] = {}

    def near(run: str, part: int) -> set[int]:
        return {styles[other][part] for other in mates[run] if other in styles}

    while len(styles) < len(runs):  # Brélaz's order: first the run that has the fewest colours left
        run = max((run for run in runs if run not in styles), key=lambda run: (len(near(run, 0)), len(mates[run])))
        known, choices = list(styles.values()), range(MOST_LINES)
        used = [sum(each[0] == colour for each in known) for colour in choices]
        taken, marked = near(run, 0), near(run, 1)
        colour = min(choices, key=lambda colour: (colour in taken, used[colour]))
        mark = min(choices, key=lambda mark: (mark in marked, (colour, mark) in known, (mark - colour) % MOST_LINES))
        styles[run] = colour, mark
    return {run: (COLOURS[styles[run][0]], styles[run][1]) for run in runs}


def run_label(run: Numbers) -> str:
    """A run as tables and figures call it."""
    return f'{run["number"]} · {run["run"]}'


def short_label(run: Numbers) -> str:
    """A run in a legend."""
    return f'{run["number"]} · {short(run["run"], 44)}'


def names(runs: Sequence[Numbers]) -> str:
    """Runs in the title of a picture."""
    return ', '.join(map(run_label, runs))


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context([STYLE, {'svg.hashsalt': salt}], after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph')  # letters that its font lacks; a browser has others
        yield


def draw_figure(height: float, draw: Callable[[Any], None]) -> Any:
    """A figure of matplotlib's, which a notebook shows."""
    import matplotlib.figure

    class Figure(matplotlib.figure.Figure):
        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format='png', dpi=150)
            return file.getvalue()

    with _style(''):
        figure = Figure((WIDTH, height), layout='constrained', facecolor=PAPER)
        draw(figure)
        figure.draw_without_rendering()  # which makes what would else be made later, in another style
    return figure


def draw_picture(name: str, title: str, height: float, draw: Callable[[Any], None], width: float = WIDTH) -> Picture:
    """Draws a figure and saves it, the same way on each machine and at each time."""
    with _style(name):
        from matplotlib.figure import Figure

        figure = Figure((width, height), layout='constrained', facecolor=PAPER)
        draw(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format='svg', metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
        figure.savefig(png, format='png', dpi=150, metadata={'Software': None})
    return Picture(name, title, svg.getvalue(), _smaller(png))


def _smaller(png: io.BytesIO) -> bytes:
    """A picture with a palette, which is a third of the size."""
    from PIL import Image

    smaller = io.BytesIO()
    palette = Image.open(png, formats=['PNG']).convert('RGB').quantize(256, dither=Image.Dither.NONE)
    palette.save(smaller, 'PNG', optimize=True)
    return smaller.getvalue()


def legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend below the figure."""
    figure.legend(list(handles), list(labels), loc='outside lower left', handlelength=3)


def heat_map(
    axis: Any,
    rows: Sequence[Sequence[float]],
    colours: str,
    limits: tuple[float, float],
    write: Callable[[float], str],
    scale: Callable[[float], float] = float,
) -> None:
    """Coloured cells with their numbers, the first row at the top; missing ones stay empty."""
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
