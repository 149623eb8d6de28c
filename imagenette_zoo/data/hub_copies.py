"""Copies of the official archives on the Hugging Face Hub, for where the archives' own host cannot be reached.

They are Parquet files of the archives' image files with their names. Their class names are not used: those of Imagewoof
are in another order than its labels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.utils import HfHubHTTPError, RevisionNotFoundError

from ..errors import UserError, os_reason, require
from .archives import digest_of
from .constants import IMAGENETTE, IMAGEWOOF
from .folders import spellings
from .readers import Sample, write_split

__all__ = ['write_copy']


class Copy(NamedTuple):
    """A copy; the first revision that has the files is taken."""

    repo: str
    revisions: tuple[str, ...]
    classes: tuple[str, ...]
    images: dict[str, int]  # of each split


COPIES = {  # none of Imagewang was found, nor one of Imagewoof by a commit
    'imagenette': Copy(
        'frgfm/imagenette',
        ('4b23ffb92a8029db9958bdfdbd6978427d09b1a0',),
        tuple(IMAGENETTE),
        {'train': 9469, 'validation': 3925},
    ),
    'imagewoof': Copy(
        'frgfm/imagewoof', ('main', 'refs/convert/parquet'), tuple(IMAGEWOOF), {'train': 9025, 'validation': 3929}
    ),
}
FOLDERS = {'160': '160px', '320': '320px', 'full': 'full_size'}
PATIENCE = 30.0  # seconds that the Hub may take to answer
# Of the HTTP library, whichever huggingface_hub has, and of the system.
_FAILURES: tuple[type[BaseException], ...] = (HfHubHTTPError.__bases__[0], OSError)


def write_copy(dataset: str, size: str, folder: Path, downloads: Path) -> str:
    """Writes the images of a copy into a folder, as the archive has them: `train/` and `val/`.

    Args:
        dataset: `imagenette` or `imagewoof`.
        size: `160`, `320` or `full`.
        folder: Where they are written.
        downloads: Where its files are downloaded to.

    Returns:
        The address of the copy, with its commit.

    Raises:
        UserError: There is none, or it can't be had; a file is not the one that the Hub names; an image is missing or
            in another class than its name says.
    """
    if dataset not in COPIES:
        raise UserError(f'the Hub has no copy of {dataset.title()}')
    copy = COPIES[dataset]
    parquet = require('pyarrow.parquet', 'its copy on the Hub', 'parquet')
    try:
        commit, checksums = _files(copy, FOLDERS[size])
        address = f'https://huggingface.co/datasets/{copy.repo}/tree/{commit}'
        paths = {
            name: HfApi().hf_hub_download(copy.repo, name, repo_type='dataset', revision=commit, local_dir=downloads)
            for name in checksums
        }
    except _FAILURES as error:
        raise UserError(f'its copy on the Hub, {copy.repo}, cannot be had: {os_reason(error)[:200]}') from error
    for name, checksum in checksums.items():
        if digest_of(Path(paths[name]), 'sha256') != checksum:
            raise UserError(f'{address}/{name} came damaged')
    for split, count in copy.images.items():
        names = [name for name in sorted(paths) if _is_of(name, FOLDERS[size], split)]
        samples = _samples(parquet, [paths[name] for name in names], copy.classes, count)
        write_split(folder / spellings(split)[0], copy.classes, samples, f'{address}, {split}')
    return address


def _is_of(name: str, folder: str, split: str) -> bool:
    return re.fullmatch(rf'{folder}/{split}[-/].*\.parquet', name) is not None


def _files(copy: Copy, folder: str) -> tuple[str, dict[str, str]]:
    """The commit of a copy, and the SHA-256 of each of its files that are needed."""
    for revision in copy.revisions:
        try:
            info: Any = HfApi().dataset_info(copy.repo, revision=revision, timeout=PATIENCE, files_metadata=True)
        except RevisionNotFoundError:
            continue
        files = {
            file.rfilename: file.lfs['sha256']
            for file in info.siblings
            if file.lfs and any(_is_of(file.rfilename, folder, split) for split in copy.images)
        }
        if all(any(_is_of(name, folder, split) for name in files) for split in copy.images):
            return info.sha, files
    raise FileNotFoundError(f'it has no {folder}/ with all splits at {" or ".join(copy.revisions)}')


def _samples(parquet: Any, paths: Sequence[str], classes: Sequence[str], count: int) -> Iterator[Sample]:
    """Every image; labels are checked by the file names that begin with a class."""
    left = count
    for path in paths:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(64, columns=['image', 'label']):
                for row in batch.to_pylist():
                    label, name = row['label'], os.path.basename(row['image']['path'] or '')
                    named = re.match(r'n\d{8}(?=_)', name)
                    if not name or not 0 <= label < len(classes) or (named and named[0] != classes[label]):
                        raise UserError(f'image {name!r} has the label {label}, which cannot be right')
                    left -= 1
                    yield label, name, row['image']['bytes']
    if left:
        raise UserError(f'holds {count - left:,} images: expected {count:,}')
