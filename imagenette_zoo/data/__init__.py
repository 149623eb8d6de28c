"""Data sets: Imagenette and other image folders, and the drawn one."""

from pathlib import Path

from ..errors import UserError
from .imagenette import find_root

__all__ = ['DATASETS', 'resolve_dataset']

DATASETS = ('imagenette', 'folder', 'synthette')


def resolve_dataset(dataset: str = '', data_dir: str | Path | None = None) -> Path:
    """The folder that holds `train/` and `val/`.

    Args:
        dataset: `imagenette`, `folder` or nothing: the folder or archive at `data_dir`, else the Imagenette that
            `find_root` finds. `synthette`: the embedded data set, drawn on first use.
        data_dir: where the data are.

    Raises:
        UserError: an unknown name, no data, or a `data_dir` with `synthette`, which needs none.
    """
    if dataset not in ('', *DATASETS):
        raise UserError(f'dataset {dataset!r} is unknown: expected one of {", ".join(DATASETS)}')
    if dataset != 'synthette':
        return find_root(data_dir)
    if data_dir:
        raise UserError(f'--data-dir {data_dir} and --dataset synthette contradict each other: give one of them')
    from .synthette import make  # needs numpy

    return make()
