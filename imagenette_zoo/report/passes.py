"""The figure of `imagenette-zoo passes`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..study.passes import PassesReport
from ..utils.files import write_atomic
from .figures import pass_similarity

__all__ = ['save_passes_figure']


def save_passes_figure(report: PassesReport, path: Path) -> None:
    """Writes how alike the passes of a model are, and what each is worth, as a heat map.

    Args:
        report: Of the model.
        path: A .png or .svg file.
    """
    run = {'number': 1, 'run': report.model, 'passes': {'blocks': [asdict(block) for block in report.blocks]}}
    heading = f'{report.model}: top-1 {report.top1:.2f} % on {report.images:,} images'
    write_atomic(path, getattr(pass_similarity(run, 'passes', heading), path.suffix[1:]))
