#!/usr/bin/env python3
"""Writes `imagenette_zoo/config/zoo_models.py`: the zoo's models and what each costs, for `imagenette-zoo list`.

    python tools/zoo_models.py > imagenette_zoo/config/zoo_models.py
"""

from __future__ import annotations

from imagenette_zoo.models.catalog import count_models

HEAD = '''\
"""The zoo's models by name: parameters for ten classes, 10^9 multiply-accumulates at 224 px, and a line.

`tools/zoo_models.py` wrote this file from the models, so that they can be listed without being built.
"""

MODELS: dict[str, tuple[int, float | None, str]] = {
'''


def text() -> str:
    """The content of the file."""
    rows = [
        f'    {m.name!r}: (\n        {m.parameters}, {m.gmacs!r},\n        {m.description!r},\n    ),\n'
        for m in count_models()
    ]
    return f'{HEAD}{"".join(rows)}}}\n'


if __name__ == '__main__':
    print(text(), end='')
