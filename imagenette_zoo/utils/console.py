"""Output for people: one live bar an epoch on a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

import html
import math
import re
import sys
import time
from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from ..errors import cleaned
from .streams import silence

__all__ = [
    'printable', 'counted', 'duration', 'headed', 'rounded', 'short', 'table', 'html_table', 'in_ipython', 'Console',
    'Progress',
]  # fmt: skip


def printable(value: Any) -> Any:
    """A value in JSON's types: NaN and infinity become None, characters that can't be printed �."""
    if isinstance(value, dict):
        return {printable(str(key)): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in value]
    if isinstance(value, str):
        return re.sub('[\ud800-\udfff]', '�', cleaned(value))
    if isinstance(value, float):
        return float(f'{value:.10g}') if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    import numpy as np  # here: it and tqdm are slow to import

    return printable(value.item()) if isinstance(value, np.generic) else value


def duration(seconds: float) -> str:
    """`'7.4 s'`, `'3 min 05 s'`, `'2 h 07 min'`."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02} min'


def counted(number: int, noun: str) -> str:
    """`'1 seed'`, `'3 seeds'`."""
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def headed(title: str) -> str:
    """A title before what follows: with a colon, unless it ends a sentence itself."""
    return title if title.endswith(('?', '!', '.')) else f'{title}:'


def rounded(value: float, decimals: int, sign: str = '') -> str:
    """`'3.1'` of 3.05: a number to be read, half rounded up, with a true minus sign and none before zero.

    Args:
        value: A finite number; what is beyond its twelve leading digits does not count.
        decimals: How many are shown.
        sign: `+` shows that, too.
    """
    number = Decimal(f'{value:.12g}').quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    text = f'{number:{sign},f}'
    return (text if number else text.lstrip('-')).replace('-', '−')


def short(name: str, most: int) -> str:
    """The two ends of a long name."""
    half = (most - 1) // 2
    return name if len(name) <= most else f'{name[: most - 1 - half]}…{name[-half:]}'


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns: the first row is the header, all columns but the first are right-aligned."""
    rows = [[cleaned(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return '\n'.join(line.rstrip() for line in lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """The same in HTML; the cells are text, no markup."""
    header, *body = ([html.escape(cleaned(cell)) for cell in row] for row in rows)
    lines = [f'<tr><td>{"</td><td>".join(row)}</td></tr>' for row in body]
    return f'<table><tr><th>{"</th><th>".join(header)}</th></tr>{"".join(lines)}</table>'


def in_ipython() -> bool:
    """Whether this code is run by IPython, which notebooks do."""
    ipython = sys.modules.get('IPython')
    return ipython is not None and ipython.get_ipython() is not None


class Console:
    """Prints the progress of a run.

    Args:
        quiet: Whether it prints nothing.
        bars_only: Whether it shows bars, but prints no lines.
    """

    def __init__(self, quiet: bool = False, bars_only: bool = False) -> None:
        self.quiet = quiet or bars_only
        self.live = not quiet and (sys.stderr.isatty() or in_ipython())

    def line(self, text: str = '') -> None:
        """Prints a line, above the bar where there is one."""
        if self.quiet:
            return
        from tqdm.auto import tqdm

        try:
            tqdm.write(cleaned(text, keep='\n'))
            sys.stdout.flush()
        except OSError:  # the reader has gone, as in `train.py | head`, or the disk is full: its files have it all
            self.quiet = True
            silence(sys.stdout)

    def progress(self, title: str, steps: int, log_interval: int | None = None, done: int = 0) -> Progress:
        """A bar over `steps` steps, the first `done` of them taken before; without a terminal a line every
        `log_interval` steps."""
        return Progress(self, title, steps, log_interval, done)


class Progress:
    """One bar; use as a context manager."""

    def __init__(self, console: Console, title: str, steps: int, log_interval: int | None, done: int = 0) -> None:
        self.console = console
        self.title = title
        self.steps = steps
        self.log_interval = None if console.live or console.quiet else log_interval
        from tqdm.auto import tqdm

        self.bar: Any = tqdm(
            total=steps,
            initial=done,
            desc=title,
            leave=False,
            disable=not console.live,
            dynamic_ncols=True,
            bar_format='{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]',
        )
        self.start = time.perf_counter()
        self.done = done
        self.step = done
        self.images = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def wants_details(self) -> bool:
        """Whether the next `advance` will show its details: computing them may make a GPU wait."""
        following = self.step + 1
        if self.console.live:
            return following % 10 == 0 or following == self.steps
        return self.log_interval is not None and following % self.log_interval == 0

    def advance(self, images: int, **details: str) -> None:
        """Counts one step."""
        shows = bool(details) or (self.wants_details() and not self.console.live)
        self.step += 1
        self.images += images
        if shows:
            elapsed = time.perf_counter() - self.start
            details = {'images/s': f'{self.images / elapsed:.0f}', **details}
            shown = ', '.join(f'{key} {value}' for key, value in details.items())
            if self.console.live:
                self.bar.set_postfix_str(shown)
            else:
                left = elapsed / (self.step - self.done) * (self.steps - self.step)
                shown += f', {duration(left)} left' if left else ''
                self.console.line(f'{self.title} {self.step}/{self.steps}: {shown}')
        self.bar.update()
