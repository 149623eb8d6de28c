"""The structure that CONTRIBUTING.md and docs/architecture.md describe is the one that is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'imagenette_zoo'
FLOORS = (  # from the ground up: a folder imports only what is to its left
    'errors', 'version', 'utils', 'kernels', 'layers', 'fast_layers', 'config', 'data', 'models', 'inference',
    'training', 'study', 'report', 'sharing', 'cli',
)  # fmt: skip
TEXTS = ('CONTRIBUTING.md', 'docs/architecture.md')
FILES = [path.relative_to(ROOT).as_posix() for path in sorted(PACKAGE.rglob('*.py')) if 'hparams' not in path.parts]


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and folder of everything that a file of the package imports from the package."""
    here = path.relative_to(PACKAGE).parts
    named = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*here[: len(here) - node.level], *(node.module or '').split('.')]
            names = parts[:1] if parts[0] else [name.name for name in node.names]
            named += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('imagenette_zoo'):
            assert path == PACKAGE / 'sharing' / 'demo.py', f'{path}:{node.lineno}: relative, please'
            named.append((node.lineno, (node.module or '').split('.')[1]))
    return named


@pytest.mark.parametrize('file', FILES)
def test_imports_run_downwards(file: str) -> None:
    path = ROOT / file
    floor = path.relative_to(PACKAGE).with_suffix('').parts[0]
    if floor in ('__init__', '__main__'):
        return
    upwards = [(line, name) for line, name in imports(path) if FLOORS.index(name) > FLOORS.index(floor)]
    assert upwards == []


@pytest.mark.parametrize('text', TEXTS)
def test_every_path_that_is_named_exists(text: str) -> None:
    content = (ROOT / text).read_text()
    named = re.findall(r'[`(]([\w.-]*/[\w./-]*|\w+\.(?:py|md|cpp))[`)]', content)
    for commands in re.findall(r'```bash\n(.*?)```', content, re.DOTALL):
        named += re.findall(r'\w+/[\w/]+\.\w+', commands)
    bases = (ROOT, PACKAGE, (ROOT / text).parent)
    missing = [name for name in named if not any((base / name).exists() for base in bases)]
    assert named
    assert missing == []


def test_the_tree_has_every_file() -> None:
    tree = (ROOT / 'docs' / 'architecture.md').read_text().split('```')[1]
    named, folder = set(), ''
    for line in tree.splitlines():
        if match := re.match(r'  (\w+)/( |$)', line):
            folder = match[1] + '/'
        elif re.match(r'  \S', line):
            folder = ''
        if match := re.match(r' +(gpu|at_start)/ ', line):
            named |= {f'imagenette_zoo/{folder}{match[1]}/{name}' for name in re.findall(r'\w+\.py', line)}
        elif line.startswith('  '):
            named |= {f'imagenette_zoo/{folder}{name}' for name in re.findall(r'\w+\.(?:py|cpp)', line)}
    assert named - {'imagenette_zoo/kernels/cpu.cpp'} == {file for file in FILES if Path(file).name != '__init__.py'}


def test_one_place_changes_the_type_of_a_layer() -> None:
    assigning = [
        file
        for file in FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Attribute) and node.attr == '__class__' and isinstance(node.ctx, ast.Store)
    ]
    assert set(assigning) == {'imagenette_zoo/fast_layers/swap.py'}
