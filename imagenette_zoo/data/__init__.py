"""Data sets: Imagenette and other image folders, and the drawn one."""

from pathlib import Path

__all__ = ['DATASETS', 'resolve_dataset']

DATASETS = ('imagenette', 'folder', 'synthette')


def resolve_dataset(dataset: str = '', data_dir: str | Path | None = None, seed: int = 0) -> Path:
    """The folder that holds `train/` and `val/`.

    Args:
        dataset: `imagenette`, `folder` or nothing: the folder or archive at `data_dir`, else the Imagenette that
            `find_root` finds. `synthette`: the embedded data set, drawn on first use.
        data_dir: where the data are.
        seed: for `synthette`.

    Raises:
        UserError: an unknown name, no data, or a `data_dir` with `synthette`, which needs none.
    """
    from ..errors import UserError

    if dataset == 'synthette':
        if data_dir:
            raise UserError(f'--data-dir {data_dir} and --dataset synthette contradict each other: give one of them')
        from .synthette import make

        return make(seed=seed)
    if dataset in ('', 'imagenette', 'folder'):
        from .imagenette import find_root

        return find_root(data_dir)
    raise UserError(f'dataset {dataset!r} is unknown: expected one of {", ".join(DATASETS)}')
