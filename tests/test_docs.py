"""The commands, Python lines and links of README and docs are ones that work."""

import argparse
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import COMMANDS
from imagenette_zoo.config.fields import Parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.MULTILINE | re.DOTALL)
SCRIPTS = {'train.py': ['train'], 'validate.py': ['validate']}


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The words after `imagenette-zoo`, of all its commands on a page."""
    found = []
    for text in blocks(page, 'bash'):
        for line in re.sub(r'\\\n\s*', ' ', text).splitlines():
            words = list(itertools.takewhile('>'.__ne__, shlex.split(line, comments=True)))
            if words[:1] == ['imagenette-zoo']:
                found.append(words[1:])
            elif words[:1] == ['python'] and words[1] in SCRIPTS:
                found.append([*SCRIPTS[words[1]], *words[2:]])
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, *words in commands(page):
        parser: argparse.ArgumentParser = Parser(prog=name)
        COMMANDS[name].add_arguments(parser)
        try:
            parser.parse_args(words)
        except SystemExit as error:
            pytest.fail(f'{name} {words}: {error} {capsys.readouterr().err}')


def anchors(page: Path) -> set[str]:
    headings = re.findall(r'^#+ (.*)$', FENCED.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r'\]\(([^)\s]+)\)', FENCED.sub('', page.read_text())):
        if re.match(r'[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f'{page.name}: {target}'
        assert not anchor or anchor in anchors(file), f'{page.name}: {target}'


def test_the_outputs_of_commands_are_those_of_the_result_files() -> None:
    results = ROOT / 'docs' / 'results' / 'readme'
    first, demo, [photo] = (json.loads((results / f'{name}.json').read_text()) for name in ('first', 'demo', 'predict'))
    readme = (ROOT / 'README.md').read_text()
    assert f'top-1 {first["top1"]:.2f} %, top-5 {first["top5"]:.2f} %, loss {first["loss"]:.3f}, ' in readme
    for each in photo['top']:
        assert re.search(rf'{each["class"]} +{100 * each["probability"]:.1f} %', readme)
    [claim] = demo['claims']
    assert f'{claim["what_is_so"]}: {claim["verdict"]}' in (ROOT / 'docs' / 'getting-started.md').read_text()


def test_the_table_of_faults_is_that_of_the_result_file() -> None:
    outcome = json.loads((ROOT / 'docs' / 'results' / 'reliability' / 'faults.json').read_text())
    page = (ROOT / 'docs' / 'reliability.md').read_text()
    assert outcome['kept']
    assert outcome['faults'] == sum(row['faults'] for row in outcome['rows']) >= 1000
    assert f'{outcome["faults"]:,} faults in {outcome["seconds"] / 60:.0f} minutes' in page
    for row in outcome['rows']:
        ended = row['interrupted'] + row['stopped'] + row['killed']
        ends = [*(row[key] for key in ('survived', 'done but for a part', 'refused in a line')), ended]
        numbers = ' | '.join(map(str, [row['faults'], *ends, row['slowest, seconds']]))
        assert re.search(rf'^\| {row["kind"]} \| .* \| {re.escape(numbers)} \|$', page, re.MULTILINE)


@pytest.mark.long
@pytest.mark.slow
def test_the_python_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for text in blocks(ROOT / 'README.md', 'python'):
        exec(compile(text, 'README.md', 'exec'), names)
    assert (tmp_path / 'runs').is_dir()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('dead', ['', '[x](data.md#nope)'])
def test_the_site_is_built_and_dead_links_are_errors(tmp_path: Path, dead: str) -> None:
    pytest.importorskip('material')
    pytest.importorskip('mkdocstrings_handlers.python')
    for name in ('docs', 'tools', 'imagenette_zoo', 'hparams', 'examples'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('__pycache__', '*.safetensors'))
    for name in ('mkdocs.yml', 'README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'CITATION.cff'):
        shutil.copy(ROOT / name, tmp_path)
    with open(tmp_path / 'docs' / 'data.md', 'a') as page:
        page.write(f'\n{dead}\n')
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build'], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode == 0) is not bool(dead), done.stderr
    assert (tmp_path / 'build' / 'site' / 'api.html').exists()
