"""What `make docs` changes on the way from docs/ to the site: README is its first page, files beside docs/ come along.

The pages themselves keep links that work on GitHub. A link to a file outside docs/ leads to a copy; one to a folder
there becomes text.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ABOVE = {'index.md': ROOT / 'README.md', **{name: ROOT / name for name in ('CONTRIBUTING.md', 'CHANGELOG.md')}}
LINK = re.compile(r'(!?)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)')
API = """\
# API

What `import imagenette_zoo` gives, and the layers.

"""


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie above docs/, the API, and the files that pages link to."""
    for name, path in ABOVE.items():
        files.append(File.generated(config, name, content=path.read_text()))
    files.append(File.generated(config, 'api.md', content=_api()))
    for page in [*ROOT.glob('docs/**/*.md'), *ABOVE.values()]:
        for _, _, target, _ in LINK.findall(page.read_text()):
            file = (page.parent / target).resolve()
            name = _name(file)
            if file.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of a page to those of the site."""
    name = page.file.src_uri
    source = ABOVE.get(name, ROOT / 'docs' / name)

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups()
        file = (source.parent / target).resolve()
        if file.is_dir():
            return text
        depth = '../' * name.count('/')
        return f'{picture}[{text}]({depth}{_name(file)}{anchor or ""})'

    return LINK.sub(link, markdown)


def _name(file: Path) -> str:
    """The path of a file in the site."""
    for name, path in ABOVE.items():
        if file == path:
            return name
    docs = ROOT / 'docs'
    return file.relative_to(docs if file.is_relative_to(docs) else ROOT).as_posix()


def _api() -> str:
    import imagenette_zoo
    from imagenette_zoo import layers

    names = []
    for module in (imagenette_zoo, layers):
        for name in module.__all__:
            value = getattr(module, name)
            value = inspect.unwrap(value) if callable(value) else value  # of a package that is a function, too
            home = getattr(value, '__module__', None)  # of a number there is none
            if home is not None and home.startswith('imagenette_zoo'):  # timm documents its own
                names.append(f'{home}.{value.__name__}')
    return API + '\n'.join(f'::: {name}\n' for name in names)
