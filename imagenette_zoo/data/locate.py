"""Where a data set is: a folder, an archive, the environment or the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

from ..config.groups import DATASETS
from ..errors import UserError
from ..utils.files import cache_dir
from .archives import _root_at
from .constants import SIZES
from .folders import _SPLITS, ImageSet, _slice, holds_splits, load_split

__all__ = [
    'resolve_dataset',
    'validation_images',
    'find_root',
]


def resolve_dataset(dataset: str = '', data_dir: str | Path | None = None, *splits: str) -> Path:
    """The folder that holds the splits.

    Args:
        dataset: `imagenette`, `folder` or nothing: the folder or archive at `data_dir`, else the Imagenette that
            `find_root` finds. `synthette`: the embedded data set, drawn on first use.
        data_dir: Where the data are.
        *splits: What it must hold; `train` and `val` if not given.

    Raises:
        UserError: An unknown name, no data, or a `data_dir` with `synthette`, which needs none.
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
        UserError: As `resolve_dataset` and `load_split`.
    """
    root = resolve_dataset(dataset, data_dir, split)
    has_classes = holds_splits(root, [train_split.split('[')[0]])
    return load_split(root, split, load_split(root, train_split).classes if has_classes else None)


def find_root(data_dir: str | Path | None, *splits: str) -> Path:
    """The folder that holds the splits: `train/` and `val/` (or `validation/`) where no others are asked for.

    Args:
        data_dir: That folder, its parent, or an archive (`.tgz`, `.tar.gz`, `.tar`), which is unpacked once into the
            user cache. None stands for `$IMAGENETTE_DIR`, else what `fetch` put into the user cache, the largest first.
        *splits: What it must hold, as `load_split` takes them.

    Raises:
        UserError: Nothing there, not a data set, several data sets, or a bad archive.
    """
    needed = tuple(dict.fromkeys(_slice(split)[0] for split in splits)) or _SPLITS
    if data_dir is not None and str(data_dir):
        return _root_at(Path(os.path.expanduser(data_dir)), 'data folder', needed)
    variable = os.environ.get('IMAGENETTE_DIR')
    if variable:
        return _root_at(Path(os.path.expanduser(variable)), 'IMAGENETTE_DIR', needed)
    for folder in reversed(SIZES.values()):
        if holds_splits(cache_dir() / folder):
            return cache_dir() / folder
    raise UserError(
        'no Imagenette found: run "imagenette-zoo data fetch --size 160" (100 MB), or give --data-dir, or set '
        'IMAGENETTE_DIR, or use --dataset synthette',
    )
