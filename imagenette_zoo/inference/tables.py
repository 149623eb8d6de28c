"""Predictions as a table, a row an image: the columns of timm's `inference.py`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.uses import PredictOptions
from ..errors import require
from ..utils.console import printable
from ..utils.files import to_json, write_atomic

if TYPE_CHECKING:
    from .predict import Prediction

__all__ = ['to_table', 'write_table']


def write_table(predictions: Sequence[Prediction], options: PredictOptions) -> None:
    """Writes the table into its file.

    Raises:
        UserError: The package for Parquet is missing, or the file can't be written.
    """
    assert options.output is not None
    write_atomic(Path(options.output), to_table(predictions, options))


def to_table(predictions: Sequence[Prediction], options: PredictOptions) -> bytes:
    """The content of a file of the format that is asked for.

    A row has `filename`, `label` and `prob` or `logit`: lists where there are several classes, and in CSV columns
    `label_0`, `prob_0` and so on. All classes in their own order have no `label`, nor has `features`. The row of an
    image that can't be read has `error` instead.

    Raises:
        UserError: The package for Parquet is missing.
    """
    rows = [_row(each, options) for each in predictions]
    if options.format == 'csv':
        return _csv(rows)
    if options.format == 'parquet':
        return _parquet(rows)
    if options.format == 'jsonl':
        return ''.join(to_json(row) + '\n' for row in rows).encode()
    return (to_json(rows, indent=2) + '\n').encode()


def _row(prediction: Prediction, options: PredictOptions) -> dict[str, Any]:
    row: dict[str, Any] = {'filename': prediction.image}
    if prediction.error:
        return dict(printable({**row, 'error': prediction.error}))
    assert prediction.output is not None
    kind, values = options.output_type or 'prob', prediction.output.tolist()
    if kind != 'features' and options.topk:
        labels = [name for name, _ in prediction.top]
        values = sorted(values, reverse=True)[: len(labels)]
        row['label'] = labels if len(labels) > 1 else labels[0]
        values = values if len(labels) > 1 else values[0]
    return dict(printable({**row, kind: values}))


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    flat: list[dict[str, Any]] = []
    for row in rows:
        flat.append({})
        for name, value in row.items():
            several = {f'{name}_{index}': each for index, each in enumerate(value)} if isinstance(value, list) else {}
            flat[-1].update(several or {name: value})
    columns = dict.fromkeys(name for row in flat for name in row if name != 'error')
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*columns, 'error'], lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    pyarrow = require('pyarrow', '--format parquet', 'parquet')
    columns = dict.fromkeys(name for row in rows for name in row if name != 'error')
    table = {name: [row.get(name) for row in rows] for name in columns}
    errors = pyarrow.array([row.get('error') for row in rows], pyarrow.string())
    file = io.BytesIO()
    require('pyarrow.parquet', '--format parquet', 'parquet').write_table(
        pyarrow.table({**table, 'error': errors}), file
    )
    return file.getvalue()
