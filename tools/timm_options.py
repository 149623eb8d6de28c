#!/usr/bin/env python3
"""Writes `imagenette_zoo/config/timm_options.py`: the options of timm's `train.py` that this package lacks.

    python tools/timm_options.py TIMM_CHECKOUT > imagenette_zoo/config/timm_options.py

It has those of the checkout, and those that earlier versions (its tags from 1.0.0 on) had.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from imagenette_zoo.config.recipe import Recipe

HEAD = '''\
"""The options of timm's `train.py` that `Recipe` lacks: `name: (default, meaning)`.

`tools/timm_options.py` wrote this file from timm {version} and its tags from 1.0.0 on.
"""

OPTIONS: dict[str, tuple[object, str]] = {{
'''
LONGEST = 70  # letters of a meaning


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser in the text of timm's script, of which nothing else is run."""
    start = script.index("parser = argparse.ArgumentParser(description='PyTorch ImageNet Training'")
    utils = SimpleNamespace(ParseKwargs='store')
    scope: dict[str, Any] = {'argparse': argparse, 'utils': utils}
    exec(script[start : script.index('\ndef _parse_args')], scope)
    return scope['parser']  # type: ignore[no-any-return]


def options_of(script: str) -> dict[str, tuple[Any, str]]:
    """Default and meaning of each option in the text of timm's script."""
    actions = [action for action in parser_of(script)._actions if action.dest != 'help']
    return {action.dest: (action.default, _meaning(action.help or '')) for action in actions}


def _meaning(text: str) -> str:
    text = re.split(r'\s*\((?:default|valid)|\. ', ' '.join(text.replace('%%', '%').split()))[0].rstrip('.')
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(' ')[0] + ' …'


def _versions(checkout: Path) -> list[str]:
    """The script in each version, the oldest first."""
    git = ['git', '-C', str(checkout)]
    tags = subprocess.run([*git, 'tag', '--sort=v:refname', '-l', 'v1.*'], capture_output=True, text=True, check=True)
    texts = [
        subprocess.run([*git, 'show', f'{tag}:train.py'], capture_output=True, text=True, check=True).stdout
        for tag in tags.stdout.split()
    ]
    return [*texts, (checkout / 'train.py').read_text()]


def table(checkout: Path) -> str:
    """The content of `timm_options.py`."""
    options: dict[str, tuple[Any, str]] = {}
    for script in _versions(checkout):
        options.update(options_of(script))
    version = re.search(r"'(.*)'", (checkout / 'timm' / 'version.py').read_text())
    rows = [f'    {name!r}: {options[name]!r},\n' for name in sorted(options.keys() - Recipe.names())]
    return HEAD.format(version=version and version[1]) + ''.join(rows) + '}\n'


if __name__ == '__main__':
    sys.stdout.write(table(Path(sys.argv[1])))
