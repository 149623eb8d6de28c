"""Data sets: Imagenette and other image folders, and the drawn one."""

from pathlib import Path

from ..errors import UserError
from .imagenette import ImageSet, find_root, holds_splits, load_split

__all__ = ['DATASETS', 'resolve_dataset', 'validation_images']

DATASETS = ('imagenette', 'folder', 'synthette')


def resolve_dataset(dataset: str = '', data_dir: str | Path | None = None, *splits: str) -> Path:
    """The folder that holds the splits.

    Args:
        dataset: `imagenette`, `folder` or nothing: the folder or archive at `data_dir`, else the Imagenette that
            `find_root` finds. `synthette`: the embedded data set, drawn on first use.
        data_dir: where the data are.
        *splits: what it must hold; `train` and `val` if not given.

    Raises:
        UserError: an unknown name, no data, or a `data_dir` with `synthette`, which needs none.
    """
    if dataset not in ('', *DATASETS):
        raise UserError(f'dataset {dataset!r} is unknown: expected one of {", ".join(DATASETS)}')
    if dataset != 'synthette':
        return find_root(data_dir, *splits)
    if data_dir:
        raise UserError(f'--data-dir {data_dir} and --dataset synthette contradict each other: give one of them')
    from .synthette import make  # needs numpy

    return make()


def validation_images(dataset: str, data_dir: str | Path | None, split: str, train_split: str = 'train') -> ImageSet:
    """The images of one split; classes are those of the training split, where it is there.

    Raises:
        UserError: as `resolve_dataset` and `load_split`.
    """
    root = resolve_dataset(dataset, data_dir, split)
    has_classes = holds_splits(root, [train_split.split('[')[0]])
    return load_split(root, split, load_split(root, train_split).classes if has_classes else None)
