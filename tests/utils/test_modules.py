"""A user's own modules: what is imported, what is found by name, and what is one line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from torch import nn

from imagenette_zoo.cli.main import main
from imagenette_zoo.errors import UserError
from imagenette_zoo.layers import MaxBlurPool2d
from imagenette_zoo.utils import modules
from imagenette_zoo.utils.modules import import_modules, is_reference, reference_to, resolve

LAYER = 'from torch import nn\nclass Snake(nn.Module):\n    pass\n'
MODEL = (
    'from timm.models import register_model\n'
    '@register_model\n'
    'def {name}(pretrained=False, **kwargs):\n'
    '    pass\n'
)


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    before = {**sys.modules}
    monkeypatch.setattr(modules, '_imported', {})
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.chdir(tmp_path)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def error(*names: str) -> str:
    with pytest.raises(UserError) as raised:
        import_modules(names)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def test_a_file_is_imported_once_and_said_in_a_line() -> None:
    Path('my_idea.py').write_text(LAYER)
    lines: list[str] = []
    [module] = import_modules(['my_idea.py'], lines.append)
    assert lines == [f'imported my_idea.py ({module.sha256[:12]})']
    layer = resolve('my_idea:Snake')
    assert issubclass(layer, nn.Module)
    assert import_modules(['my_idea.py'], lines.append) == [module]
    assert len(lines) == 1
    assert resolve('my_idea:Snake') is layer


def test_a_changed_file_is_imported_again() -> None:
    Path('my_idea.py').write_text(LAYER + MODEL.format(name='model_of_a_changed_file'))
    [first] = import_modules(['my_idea.py'])
    Path('my_idea.py').write_text(LAYER + MODEL.format(name='model_of_a_changed_file') + 'CHANGED = True\n')
    [second] = import_modules(['my_idea.py'])
    assert first.sha256 != second.sha256
    assert sys.modules['my_idea'].CHANGED


def test_a_package_and_what_lies_beside_a_file() -> None:
    Path('my_package').mkdir()
    Path('my_package/__init__.py').write_text('')
    Path('my_package/layers.py').write_text(LAYER)
    Path('beside.py').write_text('VALUE = 3\n')
    Path('my_idea.py').write_text('from beside import VALUE\n')
    package, file = import_modules(['my_package', 'my_idea.py'])
    assert (package.label, file.label) == ('my_package', 'my_idea.py')
    assert resolve('my_package.layers:Snake').__module__ == 'my_package.layers'
    assert sys.modules['my_idea'].VALUE == 3
    before = package.sha256
    Path('my_package/layers.py').write_text(LAYER + '\n')
    modules._imported.clear()
    changed = import_modules(['my_package'])[0].sha256
    assert changed != before
    Path('my_package/layers.py').rename('my_package/others.py')
    modules._imported.clear()
    assert import_modules(['my_package'])[0].sha256 != changed


def test_installed_packages_bring_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path('my_plugin.py').write_text(LAYER)
    about = Path('my_plugin-1.0.dist-info')
    about.mkdir()
    (about / 'METADATA').write_text('Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n')
    (about / 'entry_points.txt').write_text('[imagenette_zoo.plugins]\nmine = my_plugin\n')
    monkeypatch.syspath_prepend(Path.cwd())
    [module] = import_modules([])
    assert (module.name, module.label) == ('my_plugin', 'my_plugin.py')
    (about / 'entry_points.txt').write_text('[imagenette_zoo.plugins]\nmine = not_there\n')
    assert error() == (
        "plugin mine of my-plugin: --device-modules not_there: there is no module 'not_there': a file ends in .py; a "
        'package is installed'
    )
    assert main(['new', 'idea.py']) == 0, 'which builds no model'
    assert main(['validate', '-m', 'resnet18']) == 2
    assert 'plugin mine of my-plugin' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('content', 'line'),
    [
        (None, "can't read a Python file: No such file or directory"),
        ('x = 1\nraise RuntimeError("no\\nluck")\n', 'my_idea.py:2: RuntimeError: no'),
        ('import sys\nsys.exit(3)\n', 'my_idea.py:2: SystemExit: 3'),
        ('x = (\n', 'my_idea.py:1: SyntaxError: '),
        ('import not_there\n', "my_idea.py:1: ModuleNotFoundError: No module named 'not_there'"),
        (MODEL.format(name='resnet18'), "registers a model 'resnet18', which timm has already: choose another name"),
        (MODEL.format(name='googlenet'), "registers a model 'googlenet', which timm has already: choose another name"),
    ],
)
def test_a_bad_file_is_one_line(content: str | None, line: str) -> None:
    if content is not None:
        Path('my_idea.py').write_text(content)
    model = timm.models.model_entrypoint('resnet18')
    assert line in error('my_idea.py')
    assert 'my_idea' not in sys.modules
    assert timm.models.model_entrypoint('resnet18') is model
    assert timm.is_model_pretrained('resnet18')


@pytest.mark.parametrize(
    ('name', 'line'),
    [
        ('random.py', "Python has a module 'random' already"),
        ('torch.py', "Python has a module 'torch' already"),
        ('my-idea.py', 'is named by letters, digits and _'),
    ],
)
def test_a_name_that_can_not_be(name: str, line: str) -> None:
    Path(name).write_text(LAYER)
    assert line in error(name)


def test_two_files_of_one_name() -> None:
    Path('other').mkdir()
    Path('my_idea.py').write_text(LAYER)
    Path('other/my_idea.py').write_text(LAYER)
    assert 'has the same name: rename one of them' in error('my_idea.py', 'other/my_idea.py')


def test_a_file_given_without_its_ending() -> None:
    Path('folder').mkdir()
    assert 'a file ends in .py; a package is installed' in error('my_layers')


def test_nothing_is_imported_to_resolve_a_name() -> None:
    Path('my_idea.py').write_text('raise RuntimeError\n')
    with pytest.raises(UserError, match=r'my_idea:Snake: no module .my_idea. was imported'):
        resolve('my_idea:Snake')
    with pytest.raises(UserError, match='os:system: no module'):
        resolve('os:system')
    for name in ('torch.nn:init', 'timm.layers:create_conv2d', 'torch.nn:functional.relu'):
        with pytest.raises(UserError, match='is no layer'):
            resolve(name)


def test_a_name_that_is_not_there_has_a_near_one() -> None:
    Path('my_idea.py').write_text(LAYER)
    import_modules(['my_idea.py'])
    with pytest.raises(UserError, match=r"my_idea:Snke: my_idea.py has no 'Snke'; did you mean Snake"):
        resolve('my_idea:Snke')


def test_layers_have_references() -> None:
    Path('my_idea.py').write_text(LAYER)
    import_modules(['my_idea.py'])
    assert reference_to(resolve('my_idea:Snake')) == 'my_idea:Snake'
    assert reference_to(nn.SiLU) == 'torch.nn:SiLU'
    assert reference_to(MaxBlurPool2d) == 'imagenette_zoo.layers:MaxBlurPool2d'
    assert reference_to(timm.layers.Mish) == 'timm.layers:Mish'
    assert [reference_to(value) for value in (lambda: None, print, 3)] == [None] * 3


@pytest.mark.parametrize('value', ['hf_hub:owner', 'hf-hub:a/b', 'local-dir:x', 'mish', 'a:b:c', ':b', 'a:', 3])
def test_what_is_no_reference(value: object) -> None:
    assert not is_reference(value)


def test_the_command_line_imports_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path('my_idea.py').write_text('raise RuntimeError("stop here")\n')
    assert main(['validate', '--import', 'my_idea.py', '-m', 'resnet18']) == 2
    assert 'my_idea.py:1: RuntimeError: stop here' in capsys.readouterr().err
