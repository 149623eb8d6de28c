"""Where a data set is: a folder, an archive, the environment or the user's cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..config.groups import DATASETS, SOURCES, DataOptions
from ..errors import UserError, os_reason
from ..utils.files import cache_dir
from .archives import ARCHIVE_SUFFIXES, unpacked
from .constants import FAMILY
from .folders import SPLITS, ImageSet, holds_splits, is_hidden, load_split, parse_slice, spellings

__all__ = ['find_root', 'load_splits', 'resolve_dataset', 'root_name', 'validation_images']

OTHERS = FAMILY.keys() - {'imagenette'}  # whose folders only the cache or `data_dir` can name


def resolve_dataset(
    dataset: str = '', data_dir: str | Path | None = None, *splits: str, options: DataOptions | None = None
) -> Path:
    """The folder that holds the splits.

    Args:
        dataset: `imagenette`, `imagewoof`, `imagewang`, `folder` or nothing: the folder or archive at `data_dir`, else
            what `find_root` finds. `synthette`: the embedded data set, drawn on first use. Others are as `as_folder`
            takes them.
        data_dir: Where the data are.
        *splits: What it must hold; `train` and `val` if not given.
        options: How timm's readers are to read it.

    Raises:
        UserError: An unknown name, no data, or a `data_dir` with `synthette`, which needs none.
    """
    from .readers import FOLDERS, as_folder, is_read  # needs timm

    if is_read(dataset, data_dir, *splits):
        return as_folder(dataset, data_dir, splits, options or DataOptions())
    for name in ('input_key', 'target_key', 'class_map', 'train_num_samples'):
        if options and getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: is for tars and timm's data sets ({', '.join(SOURCES)}): leave it out"
            )
    if dataset not in ('', *DATASETS, *FOLDERS):
        raise UserError(f'dataset {dataset!r} is unknown: expected one of {", ".join(DATASETS)}')
    if dataset != 'synthette':
        return find_root(data_dir, *splits, dataset=dataset)
    if data_dir:
        raise UserError(f'--data-dir {data_dir} and --dataset synthette contradict each other: give one of them')
    from .synthette import make  # needs numpy

    return make()


def load_splits(options: DataOptions) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images that options name; both have the classes of the training split.

    Raises:
        UserError: As `resolve_dataset` and `load_split`.
    """
    splits = options.train_split, options.val_split
    root = resolve_dataset(options.dataset, options.data_dir, *splits, options=options)
    train = load_split(root, options.train_split, None, options.max_megapixels)
    return train, load_split(root, options.val_split, train.classes, options.max_megapixels)


def validation_images(
    dataset: str,
    data_dir: str | Path | None,
    split: str,
    train_split: str = 'train',
    max_megapixels: float = DataOptions.max_megapixels,
    options: DataOptions | None = None,
) -> ImageSet:
    """The images of one split; classes are those of the training split, where it is there.

    Raises:
        UserError: As `resolve_dataset` and `load_split`.
    """
    root = resolve_dataset(dataset, data_dir, split, options=options)
    has_classes = holds_splits(root, [parse_slice(train_split)[0]])
    classes = load_split(root, train_split).classes if has_classes else None
    return load_split(root, split, classes, max_megapixels)


def find_root(data_dir: str | Path | None, *splits: str, dataset: str = '') -> Path:
    """The folder that holds the splits: `train/` and `val/` (or `validation/`) where no others are asked for.

    Args:
        data_dir: That folder, its parent, or an archive (`.tgz`, `.tar.gz`, `.tar`, `.zip`) or a folder in one, which
            is unpacked once into the user cache. None stands for `$IMAGENETTE_DIR`, else what `fetch` put into the
            user cache, the largest first.
        *splits: What it must hold, as `load_split` takes them.
        dataset: `imagewoof` or `imagewang`, for which None stands for the user cache alone.

    Raises:
        UserError: Nothing there, not a data set, several data sets, or a bad archive.
    """
    needed = tuple(dict.fromkeys(parse_slice(split)[0] for split in splits)) or SPLITS
    if data_dir is not None and str(data_dir):
        return _root_at(Path(os.path.expanduser(data_dir)), 'data folder', needed)
    variable = _variable(dataset)
    if variable:
        return _root_at(Path(os.path.expanduser(variable)), 'IMAGENETTE_DIR', needed)
    for folder in reversed(FAMILY[dataset if dataset in FAMILY else 'imagenette'].values()):
        if holds_splits(cache_dir() / folder):
            return cache_dir() / folder
    if dataset in OTHERS:
        raise UserError(
            f'no {dataset.title()} found: run "imagenette-zoo data fetch {dataset} --size 160", or give --data-dir'
        )
    raise UserError(
        'no Imagenette found: run "imagenette-zoo data fetch --size 160" (100 MB), or give --data-dir, or set '
        'IMAGENETTE_DIR, or use --dataset synthette',
    )


def _variable(dataset: str) -> str | None:
    """The folder that the environment names, which is Imagenette's."""
    return None if dataset in OTHERS else os.environ.get('IMAGENETTE_DIR')


def root_name(dataset: str, data_dir: str | None, *splits: str) -> str | None:
    """The name of the folder that `resolve_dataset` gives; None where it is not there, or would first be made."""
    place = data_dir or _variable(dataset)
    if dataset.startswith(('synthette', *SOURCES)) or (place and not os.path.isdir(os.path.expanduser(place))):
        return None
    try:
        return Path(os.path.abspath(find_root(data_dir, *splits, dataset=dataset))).name
    except UserError:
        return None


def _root_at(path: Path, what: str, splits: Sequence[str]) -> Path:
    archive = next((each for each in (path, *path.parents) if os.path.isfile(each)), None)
    if archive is None:
        return _root_in(path, what, splits)
    if not archive.name.lower().endswith(ARCHIVE_SUFFIXES):
        raise UserError(
            f'{what} {archive} is a file but not an archive: expected a folder with {_named(splits)}, or one of '
            f'{", ".join(ARCHIVE_SUFFIXES)}',
        )
    inside = path.relative_to(archive)

    def check(folder: Path) -> None:
        try:
            _root_in(folder / inside, 'archive', splits)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(archive))) from None

    folder = unpacked(archive, check)
    try:
        return _root_in(folder / inside, 'unpacked archive', splits)
    except UserError as error:
        raise UserError(
            f'{folder}, unpacked from {archive}, does not hold {_named(splits)}: ask for other splits, or remove it to '
            'unpack it again',
        ) from error


def _root_in(folder: Path, what: str, splits: Sequence[str]) -> Path:
    """The folder, or the only one in it that holds the splits."""
    wanted = _named(splits)
    if not os.path.isdir(folder):
        raise UserError(f'{what} {folder} does not exist: give the folder that holds {wanted}')
    if holds_splits(folder, splits):
        return folder
    try:
        children = sorted(path for path in folder.iterdir() if os.path.isdir(path) and not is_hidden(path.name))
    except OSError as error:
        raise UserError(f'{what} {folder} cannot be read: {os_reason(error)}') from error
    roots = [child for child in children if holds_splits(child, splits)]
    roots = [root for root in roots if holds_splits(root)] or roots
    if len(roots) == 1:
        return roots[0]
    if roots:
        raise UserError(
            f'{what} {folder} holds {len(roots)} data sets ({", ".join(root.name for root in roots)}): give one of '
            'them',
        )
    missing = [split for split in splits if not holds_splits(folder, [split])]
    if len(missing) < len(splits):
        there = next(split for split in splits if split not in missing)
        first, *others = spellings(missing[0])
        lacks = f'{first}/' + ''.join(f' (or {name}/)' for name in others)
        raise UserError(f'{what} {folder} has {spellings(there)[0]}/ but no {lacks}: add it or give another folder')
    if not any(folder.iterdir()):
        raise UserError(f'{what} {folder} is empty: expected a folder that holds {wanted}')
    names = ', '.join(child.name for child in children[:5]) or 'no folders'
    raise UserError(
        f'{what} {folder} holds no {wanted} (found: {names}): give the folder that does, or (to train) '
        '--train-split and --val-split',
    )


def _named(splits: Sequence[str]) -> str:
    return ' and '.join(f'{spellings(split)[0]}/' for split in splits)
