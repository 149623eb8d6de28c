"""The section of a report on the passes of MultiPass blocks, and the figure of `imagenette-zoo passes`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..study.analysis import PASSES_IMAGES
from ..study.passes import BlockPasses, PassesReport
from ..study.records import Record
from ..utils.console import rounded, short
from ..utils.files import write_atomic
from .drawing import MOST_CELLS, Numbers, Picture, draw_picture, heat_map, names, run_label
from .section import MOST_FIGURES, Cell, Figure, Section, Table

__all__ = ['HOW', 'numbers', 'save_passes_figure', 'section']

HOW = (
    'Passes',
    'Linear CKA compares what two passes of a block add to its input (or put out, where that can’t be told apart), '
    'each position of each image an example: 1 where one is a rotated and scaled copy of the other, so no new '
    'information. Points lost: top-1 of the whole network minus top-1 when the block merges its other passes only, on '
    f'{PASSES_IMAGES} validation images (all, where there are fewer); nothing is trained anew.',
)


def numbers(records: Sequence[Record]) -> dict[str, Any] | None:
    """The blocks of a MultiPass model, mean over the seeds that were analysed."""
    seeds = [record.analysis.passes for record in records if record.analysis and record.analysis.passes]
    seeds = [blocks for blocks in seeds if all(map(_is_finite, blocks))]  # those of a training that diverged are not
    seeds = [blocks for blocks in seeds if list(map(_kinds, blocks)) == list(map(_kinds, seeds[0]))]
    if not seeds:
        return None
    blocks = []
    for same in zip(*seeds, strict=True):
        means = {
            key: np.mean([getattr(block, key) for block in same], axis=0).tolist()
            for key in ('cka', 'cosine', 'top1_lost')
        }
        blocks.append({'name': same[0].name, 'kinds': same[0].kinds, 'residual': same[0].residual, **means})
    return {'blocks': blocks, 'seeds': len(seeds)}


def _is_finite(block: BlockPasses) -> bool:
    return bool(np.isfinite([*block.cka, *block.cosine, block.top1_lost]).all())


def _kinds(block: BlockPasses) -> tuple[str, list[str]]:
    return block.name, block.kinds


def section(content: Numbers) -> Section | None:
    """The blocks of each MultiPass run, the first twelve."""
    runs = [run for run in content['runs'] if run['passes']]
    if not runs:
        return None
    text = ['How alike the passes of each MultiPass block are (CKA; 1: no new information), and what each is worth.']
    if len(runs) > MOST_FIGURES:
        text.append(f'Of {len(runs)} runs {MOST_FIGURES} are shown; all are in report.json.')
    drawn = []
    for run in runs[:MOST_FIGURES]:
        blocks = run['passes']['blocks']
        picture = _pass_similarity(run, f'passes-{run["number"]}') if len(blocks) <= MOST_CELLS else None
        drawn.append(Figure(picture, run_label(run), _passes_table(run['passes'])))
    return Section('passes', 'Passes of MultiPass blocks', text, figures=drawn)


def _passes_table(passes: Numbers) -> Table:
    """The pairs of passes of each block, and what is lost without each."""
    rows = []
    for block in passes['blocks']:
        size = range(len(block['kinds']))
        pairs = [(a, b) for a in size for b in size if a < b]
        cells = [', '.join(f'{a + 1}–{b + 1}: {block[key][a][b]:.3f}' for a, b in pairs) for key in ('cka', 'cosine')]
        lost = ', '.join(f'{number}: {rounded(value, 2, "+")}' for number, value in enumerate(block['top1_lost'], 1))
        rows.append([Cell(block['name']), Cell(', '.join(block['kinds'])), *map(Cell, cells), Cell(lost)])
    header = ['block', 'passes', 'CKA of each pair', 'cosine of each pair', 'points lost without each pass']
    return Table('Passes of each block, mean over seeds', header, rows)


def _pass_similarity(run: Numbers, name: str, heading: str = '') -> Picture:
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
        heat_map(axes[0], alike, 'cividis', (0, 1), lambda value: f'{value:.{digits}f}')
        heat_map(
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
        axes[0].set_yticks(range(len(blocks)), [short(block['name'], 18) for block in blocks])
        axes[1].set_yticks([])
        if heading:
            figure.suptitle(short(heading, 64), fontsize=9)

    title = f'Likeness of MultiPass passes and what each is worth: {names([run])}'
    return draw_picture(name, title, 0.7 + 0.28 * len(blocks), draw)


def save_passes_figure(report: PassesReport, path: Path) -> None:
    """Writes how alike the passes of a model are, and what each is worth, as a heat map.

    Args:
        report: Of the model.
        path: A .png or .svg file.
    """
    run = {'number': 1, 'run': report.model, 'passes': {'blocks': [asdict(block) for block in report.blocks]}}
    heading = f'{report.model}: top-1 {report.top1:.2f} % on {report.images:,} images'
    write_atomic(path, getattr(_pass_similarity(run, 'passes', heading), path.suffix[1:]))
