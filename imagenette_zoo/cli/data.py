"""`imagenette-zoo list` and `data`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.fields import add_flags, given_flags
from ..config.groups import DataOptions
from ..config.zoo_models import MODELS
from ..data.constants import FAMILY
from ..errors import UserError
from ..utils.console import table
from ..utils.files import to_json
from ..utils.streams import complain
from .command import Command

if TYPE_CHECKING:
    from ..data.check import CheckReport, ClassReport

__all__ = ['DATA', 'LIST', 'cache_command', 'check_command', 'fetch_command']


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'patterns', nargs='*', metavar='PATTERN', help="only names that match or contain this, as in 'mbv2*'"
    )
    parser.add_argument('--timm', action='store_true', help="names of all of timm's models and of the zoo's")
    parser.add_argument('--json', action='store_true', help='print JSON')


def _list(args: argparse.Namespace) -> int:
    known: Iterable[str] = MODELS
    if args.timm:
        import timm

        known = timm.list_models()
    patterns = [text if re.search(r'[*?\[]', text) else f'*{text}*' for text in args.patterns or ['*']]
    names = [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not names:
        also = '' if args.timm else '; --timm searches all of timm'
        raise UserError(f'no model matches {" or ".join(args.patterns)}{also}')
    if args.json:
        keys = ('name', 'parameters', 'gmacs', 'description')
        facts = [dict(zip(keys, (name, *MODELS[name]), strict=True)) for name in names if not args.timm]
        print(to_json(names if args.timm else facts, indent=2))
    elif args.timm:
        print('\n'.join(names))
    else:
        _print_models(names)
    return 0


def _print_models(names: Sequence[str]) -> None:
    rows = [('model', 'M parameters', 'GMACs')]
    for name in names:
        parameters, gmacs, _ = MODELS[name]
        rows.append((name, f'{parameters / 1e6:.2f}', '–' if gmacs is None else f'{gmacs:.2f}'))
    for line, text in zip(table(rows).splitlines(), ['', *(MODELS[name][2] for name in names)], strict=True):
        print(f'{line}  {text}'.rstrip())


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(prog='imagenette-zoo data', dest='action', required=True, metavar='ACTION')
    parser = actions.add_parser('fetch', help='download Imagenette, Imagewoof or Imagewang into the user cache')
    parser.add_argument('name', nargs='?', choices=[*FAMILY], default='imagenette', help='default: imagenette')
    parser.add_argument('--size', choices=[*FAMILY['imagenette']], default='160', help='shorter side (default: 160)')
    parser = actions.add_parser('check', help='decode every image and count the classes')
    add_flags(parser, DataOptions, ('data_dir', 'dataset', 'max_megapixels'))
    parser = actions.add_parser('cache', help='list or remove the decoded images in the user cache')
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--list', action='store_true', help='list them (the default)')
    action.add_argument('--clear', action='store_true', help='remove them all')


def _data(args: argparse.Namespace) -> int:
    if args.action == 'fetch':
        return fetch_command(args.size, args.name)
    if args.action == 'cache':
        return cache_command(args.clear)
    options = DataOptions(**given_flags(args, DataOptions))
    return check_command(options.data_dir, options.dataset, options.max_megapixels)


def fetch_command(size: str, name: str = 'imagenette') -> int:
    """Download a data set (`160`, `320` or `full`) into the user cache and say where it is; returns the exit code."""
    from ..data.archives import fetch, origin
    from ..data.folders import unlabelled_line
    from ..data.locate import find_root

    root = fetch(size, name)
    print(f'{name.title()} ({size}) is in {root}')
    if address := origin(root):
        print(f'note: it is the copy on the Hub, {address}, without noisy labels')
    if line := unlabelled_line(root):
        print(f'note: {line}')
    variable = os.environ.get('IMAGENETTE_DIR') if name == 'imagenette' else None
    first = Path(variable) if variable else find_root(None, dataset=name)
    option = '' if name == 'imagenette' else f' --dataset {name}'
    if first == root:
        print(f'imagenette-zoo train{option} finds it there; "imagenette-zoo data check{option}" verifies every image.')
    else:
        print(f'Without --data-dir {first} is used. Give --data-dir {root} to use or check this one.')
    return 0


def check_command(
    data_dir: str | None = None, dataset: str = '', max_megapixels: float = DataOptions.max_megapixels
) -> int:
    """Decode every image, print a table by class; returns 0, or 2 where any image is bad (listed on stderr)."""
    from tqdm import tqdm

    from ..data.check import check
    from ..data.locate import resolve_dataset

    root = resolve_dataset(dataset, data_dir)
    with tqdm(unit=' images', leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = check(root, progress, max_megapixels)
    print(f'Data: {root}\n')
    print(_table(report))
    print(''.join(f'\nnote: {line}' for line in report.passed_over))
    if report.bad:
        complain(f'{len(report.bad)} bad image(s); replace or remove them:')
        for image in report.bad:
            complain(f'  {root / image.path}: {image.reason}')
        return 2
    print('Every image decodes.')
    return 0


def cache_command(clear: bool) -> int:
    """List the decoded images in the user cache, or remove them; returns the exit code."""
    from ..data import cache

    if clear:
        freed, left = cache.clear()
        also = f'; kept {len(left)}: another process is writing them, or another user owns them' if left else ''
        print(f'freed {freed / 2**20:.0f} MiB{also}')
        return 0
    entries = cache.entries()
    if not entries:
        print(f'no decoded images in {cache.home()}')
        return 0
    rows = [('data', 'split', 'kind', 'images', 'px', 'MiB', 'last used')]
    for entry in entries:
        used = time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.used))
        pixels = '×'.join(map(str, entry.shape[1:3])) if len(entry.shape) == 4 else '-'
        size = f'{entry.size / 2**20:.1f}'
        rows.append((entry.data, entry.split, entry.what['kind'], str(entry.shape[0]), pixels, size, used))
    print(table(rows))
    total = sum(entry.size for entry in entries)
    print(f'\n{total / 2**20:.0f} MiB in {cache.home()}; "imagenette-zoo data cache --clear" removes them')
    return 0


def _table(report: CheckReport) -> str:
    """One line a class and a total for each split, widths and heights in pixels."""
    rows = [('class', 'split', 'images', 'width', 'height', 'greyscale', 'other than RGB')]
    for split in dict.fromkeys(entry.split for entry in report.classes):
        entries = [entry for entry in report.classes if entry.split == split]
        for entry in entries:
            modes = ', '.join(f'{count} {mode}' for mode, count in entry.other_modes.items())
            rows.append((entry.name, split, *_figures([entry]), modes))
        others = sum(sum(entry.other_modes.values()) for entry in entries)
        rows.append((f'all {len(entries)} classes', split, *_figures(entries), str(others or '')))
    return table(rows)


def _figures(entries: Sequence[ClassReport]) -> tuple[str, str, str, str]:
    """Images, widths, heights and greyscale images of some classes together."""
    return (
        str(sum(entry.count for entry in entries)),
        _range([width for entry in entries for width in entry.width or ()]),
        _range([height for entry in entries for height in entry.height or ()]),
        str(sum(entry.greyscale for entry in entries)),
    )


def _range(numbers: list[int]) -> str:
    if not numbers:
        return '-'
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f'{low}-{high}'


LIST = Command('list', 'list the models of the zoo', _add_list, _list, ' [PATTERN…]')
DATA = Command('data', 'fetch and check the data, list and clear its cache', _add_data, _data, ' ACTION')
