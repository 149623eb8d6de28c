"""Publishing: the folder and its card, and the round trip over a Hub on loopback."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.groups import InputOptions
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data.constants import FILES_HASH, LABEL_NAMES
from imagenette_zoo.models.factory import build_model, input_config, model_config
from imagenette_zoo.models.model_folder import load_folder, save_model_folder
from imagenette_zoo.sharing import publish as module
from imagenette_zoo.sharing.card import CardFacts, model_card, read_trained
from imagenette_zoo.training.trainer import train
from tests.conftest import forget_modules
from tests.hub import TOKEN, Client, Hub

FILES = {'config.json', 'model.safetensors', 'README.md'}


@pytest.fixture(scope='module')
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small model of ours, not to be changed."""
    recipe = Recipe(
        model='mbv2_mish_imagenette',
        model_kwargs={'channel_multiplier': 0.35},
        data_dir=str(folder),
        img_size=32,
        epochs=2,
        batch_size=8,
        warmup_epochs=0,
        torchcompile='none',
        device='cpu',
        output=str(tmp_path_factory.mktemp('runs')),
        experiment='small',
    )
    return train(recipe, quiet=True).folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / 'copy')


@pytest.fixture(scope='module')
def server() -> Iterator[Hub]:
    with Hub() as server:
        yield server
        server.shutdown()


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.repos.clear()
    server.stored.clear()
    server.broken.clear()
    server.asked.clear()
    return server


@pytest.fixture(scope='module')
def client(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server, tmp_path_factory.mktemp('home'))
    yield client
    client.close()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_folder(folder).eval()(torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32))[0]


def one_line(said: dict[str, Any]) -> str:
    """The error of a command that failed by what its user can mend."""
    assert said['code'] == 2, said
    assert said['err'].startswith('error: ')
    assert said['err'].count('\n') == 1, said['err']
    assert TOKEN not in said['err'] + said['out']
    return said['err']


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split('---\n')[1])


# --- The round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_published_gives_the_same_logits(client: Client, hub: Hub, run: Path) -> None:
    said = client('publish', str(run), 'me/small')
    assert said['code'] == 0, said
    assert TOKEN not in said['out'] + said['err']
    assert hub.repos['me/small'].branches['main'].keys() >= FILES
    assert hub.repos['me/small'].commits == ['Add the model']
    assert not hub.repos['me/small'].private
    loaded = client('load', 'hf-hub:me/small')
    assert loaded['logits'] == logits(run / 'last').tolist()
    assert loaded['labels'] == ['class0', 'class1', 'class2']


@pytest.mark.slow
def test_a_second_time_nothing_is_sent(client: Client, hub: Hub, run: Path) -> None:
    assert client('publish', str(run), 'me/small')['code'] == 0
    hub.asked.clear()
    said = client('publish', str(run), 'me/small')
    assert said['code'] == 0
    assert 'all of it is there already' in said['out']
    assert len(hub.repos['me/small'].commits) == 1
    assert not [asked for asked in hub.asked if 'commit' in asked or 'PUT' in asked]


@pytest.mark.slow
def test_a_branch_and_a_private_repository(client: Client, hub: Hub, run: Path) -> None:
    said = client('publish', str(run), 'me/hidden', '--private', '--revision', 'small')
    assert said['code'] == 0, said
    repo = hub.repos['me/hidden']
    assert repo.private
    assert repo.branches['main'].keys() == {'.gitattributes'}
    assert "'hf-hub:me/hidden@small'" in repo.branches['small']['README.md'].decode()
    assert client('load', 'hf-hub:me/hidden@small')['logits'] == logits(run / 'last').tolist()


@pytest.mark.slow
def test_a_branch_beside_another_model(client: Client, hub: Hub, run: Path, copy: Path) -> None:
    """It begins as main is, which is none of its own; from then on it is asked for."""
    assert client('publish', str(run), 'me/small')['code'] == 0
    config = json.loads((copy / 'last' / 'config.json').read_text())
    (copy / 'last' / 'config.json').write_text(json.dumps({**config, 'label_names': ['a', 'b', 'c']}))
    before = dict(hub.repos['me/small'].branches['main'])
    assert client('publish', str(copy), 'me/small', '--revision', 'other')['code'] == 0
    assert hub.repos['me/small'].branches['main'] == before
    assert '--overwrite' in one_line(client('publish', str(run), 'me/small', '--revision', 'other'))
    assert '--overwrite' in one_line(client('publish', str(copy), 'me/small', '--revision', 'main'))


@pytest.mark.slow
def test_another_model_is_replaced_only_when_asked(client: Client, hub: Hub, run: Path, copy: Path) -> None:
    assert client('publish', str(run), 'me/small')['code'] == 0
    config = json.loads((copy / 'last' / 'config.json').read_text())
    (copy / 'last' / 'config.json').write_text(json.dumps({**config, 'label_names': ['a', 'b', 'c']}))
    before = dict(hub.repos['me/small'].branches['main'])
    line = one_line(client('publish', str(copy), 'me/small'))
    assert 'me/small' in line
    assert 'config.json' in line
    assert '--overwrite' in line
    assert 'model.safetensors' not in line
    assert hub.repos['me/small'].branches['main'] == before
    assert client('publish', str(copy), 'me/small', '--overwrite')['code'] == 0
    assert hub.repos['me/small'].commits == ['Add the model', 'Update the model']
    assert client('load', 'hf-hub:me/small')['labels'] == ['a', 'b', 'c']


@pytest.mark.parametrize(('repo_id', 'token'), [('me/small', 'hf_thisOneIsNotKnown'), ('others/small', TOKEN)])
def test_a_refused_token_is_one_line(client: Client, hub: Hub, run: Path, repo_id: str, token: str) -> None:
    said = client('publish', str(run), repo_id, token=token)
    line = one_line(said)
    assert token not in line
    assert 'refuses the token' in line
    assert repo_id in line
    assert not hub.repos


def test_a_token_is_never_printed(client: Client, hub: Hub, run: Path) -> None:
    hub.broken['POST /api/models/me/small/preupload'] = 'echo'
    assert 'refuses (400): what is Bearer ***?' in one_line(client('publish', str(run), 'me/small'))
    said = client('publish', str(run), 'me/small', token='hf_and\x07bell')  # no HTTP header may have it
    assert 'the token has odd characters' in one_line(said)
    assert 'bell' not in said['out'] + said['err']


@pytest.mark.parametrize('place', ['PUT /lfs', 'POST /api/models/me/small/commit', 'POST /api/repos/create'])
def test_after_a_lost_connection_the_same_command_goes_on(client: Client, hub: Hub, run: Path, place: str) -> None:
    hub.broken[place] = 'drop'
    line = one_line(client('publish', str(run), 'me/small'))
    assert 'connection was lost' in line
    assert 'same command again' in line
    assert not hub.repos or hub.repos['me/small'].branches['main'].keys() == {'.gitattributes'}
    hub.broken.clear()
    assert client('publish', str(run), 'me/small')['code'] == 0
    assert hub.repos['me/small'].commits == ['Add the model']
    assert client('load', 'hf-hub:me/small')['logits'] == logits(run / 'last').tolist()


def test_a_commit_that_nobody_heard_of_is_not_made_twice(client: Client, hub: Hub, run: Path) -> None:
    hub.broken['POST /api/models/me/small/commit'] = 'deaf'
    one_line(client('publish', str(run), 'me/small'))
    hub.broken.clear()
    assert 'all of it is there already' in client('publish', str(run), 'me/small')['out']
    assert hub.repos['me/small'].commits == ['Add the model']


def test_a_commit_that_the_client_sent_twice_is_made(client: Client, hub: Hub, run: Path) -> None:
    """As huggingface_hub does by itself with hf_xet, where only the answer was lost."""
    hub.broken['POST /api/models/me/small/commit'] = 'twice'
    assert 'published' in client('publish', str(run), 'me/small')['out']
    assert hub.repos['me/small'].commits == ['Add the model']
    hub.broken['POST /api/models/me/other/commit'] = 412
    assert 'refuses (412)' in one_line(client('publish', str(run), 'me/other'))


@pytest.mark.slow
def test_an_ill_hub_is_one_line(client: Client, hub: Hub, run: Path) -> None:
    hub.broken['POST /api/models/me/small/preupload'] = 503
    assert 'trouble (503: as it was asked to)' in one_line(client('publish', str(run), 'me/small'))
    hub.broken = {'POST /api/models/me/small/preupload': 400}
    assert 'refuses (400): as it was asked to' in one_line(client('publish', str(run), 'me/small'))


def test_the_hub_checks_the_card_before_anything_is_sent(client: Client, hub: Hub, run: Path) -> None:
    assert '"license" must be one of' in one_line(client('publish', str(run), 'me/small', '--license', 'mine'))
    assert not hub.stored
    assert not hub.repos['me/small'].commits
    assert client('publish', str(run), 'me/small', '--license', 'mit')['code'] == 0
    assert metadata(hub.repos['me/small'].branches['main']['README.md'].decode())['license'] == 'mit'


def test_a_dry_run_asks_nobody(client: Client, hub: Hub, run: Path, tmp_path: Path) -> None:
    output = tmp_path / 'out'
    for _ in range(2):  # also where it was written before
        said = client('publish', str(run), 'me/small', '--dry-run', '--output', str(output), token=None)
        assert said['code'] == 0, said
    assert not hub.asked
    assert FILES <= {path.name for path in output.iterdir()} <= FILES | {'curves.png', 'confusion.png', '.card.md5'}
    assert all(name in said['out'] for name in FILES)
    assert f'{hub.url}/me/small' in said['out']
    assert torch.equal(logits(output), logits(run / 'last'))


def test_files_of_others_are_not_overwritten(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'README.md').write_text('mine')
    words = ['publish', str(run), 'me/small', '--dry-run', '--output']
    assert main([*words, str(tmp_path)]) == 2
    assert 'holds other files: choose an empty or a new folder' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['README.md']
    assert (tmp_path / 'README.md').read_text() == 'mine'


def test_an_edited_card_is_kept_and_sent(client: Client, hub: Hub, run: Path, tmp_path: Path) -> None:
    card = tmp_path / 'out' / 'README.md'
    text = written(run, card.parent)
    card.write_text(text + '\nWritten by hand.\n')
    said = client('publish', str(run), 'me/small', '--output', str(card.parent))
    assert said['code'] == 0, said
    assert 'was edited, so it is kept' in said['out']
    assert hub.repos['me/small'].branches['main']['README.md'].decode().endswith('Written by hand.\n')
    card.write_text('---\nlicense: [\n---\n')
    assert 'cannot read its metadata' in one_line(client('publish', str(run), 'me/small', '--output', str(card.parent)))
    card.unlink()
    assert written(run, card.parent) == text


def test_without_a_token_nothing_begins(client: Client, hub: Hub, run: Path) -> None:
    line = one_line(client('publish', str(run), 'me/small', token=None))
    assert 'no token' in line
    assert 'HF_TOKEN' in line
    assert not hub.asked


# --- The card ---------------------------------------------------------------------------------------------------------


def written(source: Path, output: Path, *options: str) -> str:
    assert main(['publish', str(source), 'me/small', '--dry-run', '--output', str(output), *options]) == 0
    return (output / 'README.md').read_text(encoding='utf-8')


def test_the_card_says_what_the_result_says(run: Path, tmp_path: Path) -> None:
    text = written(run, tmp_path / 'out')
    result = json.loads((run / 'result.json').read_text())
    data = ModelCard.load(tmp_path / 'out' / 'README.md').data
    assert (data.library_name, data.pipeline_tag, data.license) == ('timm', 'image-classification', 'apache-2.0')
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found == pytest.approx({'accuracy': result['top1'] / 100, 'top_5_accuracy': result['top5'] / 100})
    assert data.eval_results[0].dataset_name == result['dataset']['name']
    for name, top1 in result['per_class'].items():
        assert f'| {name} | {top1:.1f} |' in text
    assert f'| top-1 | {result["top1"]:.2f} % |' in text
    assert 'after epoch 2 of 2' in text
    assert "timm.create_model('hf-hub:me/small', pretrained=True)" in text


def test_the_recipe_in_the_card_trains_the_same_again(run: Path, tmp_path: Path) -> None:
    text = written(run, tmp_path / 'out')
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1])  # type: ignore[index]
    then = Recipe.load(run / 'args.yaml').as_dict()
    now = Recipe.load(recipe).as_dict()
    assert {name for name in then if then[name] != now[name]} <= Recipe.may_differ('in a repeat')
    assert str(run.parent) not in text  # nor where the data lay
    assert then['data_dir'] not in text


def test_the_example_in_the_card_runs(
    run: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(run, tmp_path / 'out')
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]  # type: ignore[index]
    image = next((folder / 'val' / 'class1').iterdir())
    said: list[object] = []
    code = code.replace("'image.jpg'", repr(str(image)))
    code = code.replace("timm.create_model('hf-hub:me/small', pretrained=True)", 'load_folder(path)')
    exec(code, {'load_folder': load_folder, 'path': run / 'last', 'print': lambda *args: said.extend(args)})
    assert said[0] in {'class0', 'class1', 'class2'}
    assert re.fullmatch(r'\d+\.\d%', str(said[1]))
    turned = Image.linear_gradient('L').convert('RGB').resize((64, 48))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / 'turned.png', exif=turned.getexif())
    seen: list[Image.Image] = []
    monkeypatch.setattr('timm.data.create_transform', lambda **_: lambda x: seen.append(x) or torch.zeros(3, 32, 32))
    code = code.replace(repr(str(image)), repr(str(tmp_path / 'turned.png')))
    exec(code, {'load_folder': load_folder, 'path': run / 'last', 'print': lambda *_: None})
    assert seen[0].size == (48, 64), 'upright'


@pytest.mark.parametrize('names', [None, {'0': 'cat', '2': 'dog'}])
def test_the_example_of_a_model_without_a_list_of_names(run: Path, tmp_path: Path, folder: Path, names: Any) -> None:
    source = shutil.copytree(run / 'last', tmp_path / 'a' / 'b' / 'm')
    config = json.loads((source / 'config.json').read_text())
    config['pretrained_cfg'].pop('label_names', None)
    (source / 'config.json').write_text(json.dumps({**config, 'label_names': names}))
    text = written(source, tmp_path / 'out')
    assert ('cat, class 1, dog' in text) == bool(names)
    said: list[object] = []
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]  # type: ignore[index]
    code = code.replace("'image.jpg'", repr(str(next((folder / 'val' / 'class1').iterdir()))))
    code = code.replace("timm.create_model('hf-hub:me/small', pretrained=True)", 'load_folder(path)')
    exec(code, {'load_folder': load_folder, 'path': source, 'print': lambda *args: said.extend(args)})
    assert said[0] in {0, 1, 2}


def test_the_best_weights_bear_their_own_numbers(copy: Path, tmp_path: Path) -> None:
    """Also in a run whose best epoch is not its last."""
    rows = [json.loads(line) for line in (copy / 'metrics.jsonl').read_text().splitlines()]
    rows[0] |= {'eval_top1': 87.5, 'per_class': {'class0': 61.0, 'class1': 100.0, 'class2': 100.0}}
    (copy / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    result = json.loads((copy / 'result.json').read_text())
    (copy / 'result.json').write_text(json.dumps({**result, 'best_epoch': 0, 'best_top1': 87.5}))
    text = written(copy / 'best', tmp_path / 'out')
    assert metadata(text)['model-index'][0]['results'][0]['metrics'][0]['value'] == 0.875
    assert '| class0 | 61.0 |' in text
    assert 'after epoch 1 of 2' in text
    assert f'the last epoch has {result["top1"]:.2f} %' in text
    (copy / 'metrics.jsonl').write_text(json.dumps(rows[1]) + '\n')
    assert main(['publish', str(copy / 'best'), 'me/small', '--dry-run', '--output', str(tmp_path / 'out')]) == 2


def test_a_folder_without_its_run_has_a_card_without_numbers(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / 'best', tmp_path / 'a' / 'b' / 'alone')
    text = written(alone, tmp_path / 'out')
    assert 'model-index' not in metadata(text)
    assert 'Nothing is known of its accuracy' in text


@pytest.mark.parametrize('more', [{}, {'device_modules': {'my_idea.py': 'abc'}}])
def test_the_card_says_how_to_install_what_it_needs(more: dict[str, Any]) -> None:
    config = {'architecture': 'mbv2_mish_imagenette', 'num_classes': 10, 'pretrained_cfg': {}, **more}
    text = str(model_card(CardFacts('me/small', config, [], 1, None, 'mit', None)))
    assert 'While imagenette-zoo is not on PyPI, install its wheel or a checkout: `pip install PATH`.' in text


@pytest.mark.parametrize(('channels', 'mode'), [(1, 'L'), (3, 'RGB'), (4, 'RGBA')])
def test_the_card_opens_images_in_the_channels_of_the_model(channels: int, mode: str) -> None:
    config = {'architecture': 'test_resnet', 'num_classes': 3, 'pretrained_cfg': {'input_size': [channels, 32, 32]}}
    text = str(model_card(CardFacts('me/small', config, [], 1, None, 'mit', None)))
    assert f".convert('{mode}')" in text
    assert ("Image.frombytes('CMYK'" in text) == (channels == 4)
    assert ('AutoImageProcessor' in text) == (channels == 3)


def test_the_card_has_the_figures_of_the_report(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    pytest.importorskip('matplotlib')
    assert '](curves.png)' in written(run, tmp_path / 'out')
    assert (tmp_path / 'out' / 'curves.png').read_bytes().startswith(b'\x89PNG')
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib.style', None)
    assert '.png' not in written(run, tmp_path / 'without')
    assert 'pip install' in capsys.readouterr().out


def test_code_that_a_model_needs_is_published_with_it(
    no_modules: None,
    recipe: Callable[..., Recipe],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    idea = Path('my_idea.py')
    idea.write_text(
        'from torch import nn\n\n\nclass Half(nn.Softplus):\n    def __init__(self, inplace=False):\n'
        '        super().__init__(0.5)\n'
    )
    kwargs = {'act_layer': 'my_idea:Half'}
    run = train(recipe(epochs=1, model_kwargs=kwargs, device_modules=('my_idea.py',)), quiet=True).folder
    command = ['publish', str(run), 'me/small', '--dry-run', '--output', 'small', '--device-modules', 'my_idea.py']
    assert main(command) == 0
    assert 'KiB  my_idea.py' in capsys.readouterr().out
    assert Path('small', 'my_idea.py').read_bytes() == idea.read_bytes()
    text = Path('small', 'README.md').read_text()
    assert 'timm.create_model' not in text
    assert 'hf download me/small --local-dir small' in text
    [use] = re.findall('^imagenette-zoo (.*)$', text, re.MULTILINE)
    forget_modules()
    image = next((folder / 'val' / 'class1').iterdir())
    assert main(use.replace('image.jpg', str(image)).split()) == 0
    assert 'class' in capsys.readouterr().out
    forget_modules()
    idea.write_text(idea.read_text().replace('0.5', '0.6'))
    assert main(command) == 2
    assert 'my_idea.py has changed since it was trained: give --device-modules the copy' in capsys.readouterr().err
    forget_modules()
    assert main(command[:-2]) == 2
    assert "this model needs the code in 'my_idea.py'" in capsys.readouterr().err


def test_layers_by_name_need_imagenette_zoo_as_the_card_says(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm and transformers know no `module:attribute`."""
    layers = {'aa_layer': 'imagenette_zoo.layers:MaxBlurPool2d'}
    model = build_model('resnet10t', num_classes=3, **layers)
    config = model_config(model, input_config(InputOptions(img_size=32), model), ['a', 'b', 'c'], layers)
    save_model_folder(tmp_path / 'model', config, model.state_dict())
    text = written(tmp_path / 'model', tmp_path / 'small')
    assert 'import timm' not in text
    assert 'transformers' not in text
    [use] = re.findall('^imagenette-zoo (.*)$', text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert main(use.replace('image.jpg', str(next((folder / 'val' / 'class1').iterdir()))).split()) == 0
    assert capsys.readouterr().out


def test_an_older_folder_is_published_as_transformers_takes_it(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / 'last' / 'config.json').read_text())
    old = {**config, 'model_args': {**config['model_args'], 'num_classes': 3}}
    (copy / 'last' / 'config.json').write_text(json.dumps(old))
    written(copy, tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'config.json').read_text()) == config
    assert json.loads((copy / 'last' / 'config.json').read_text()) == old


@pytest.mark.slow
def test_the_example_for_transformers_in_the_card_runs(run: Path, tmp_path: Path, folder: Path) -> None:
    pytest.importorskip('transformers', '5')
    text = written(run, tmp_path / 'out')
    code = re.findall(r'```python\n(.*?)```', text, re.DOTALL)[1]
    for name, path in (('image.jpg', next((folder / 'val' / 'class1').iterdir())), ('me/small', tmp_path / 'out')):
        code = code.replace(repr(name), repr(str(path)))
    said: list[Any] = []
    exec(code, {'print': said.extend})
    assert {each['label'] for each in said} == {'class0', 'class1', 'class2'}


def test_names_in_a_card_are_no_markup(run: Path) -> None:
    trained = read_trained(run, 'last')
    trained.per_class['a|b <i>'] = 50.0
    config = json.loads((run / 'last' / 'config.json').read_text())
    card = str(model_card(CardFacts('me/small', config, config['label_names'], 1, None, 'mit', trained)))
    assert '| a\\|b &lt;i> | 50.0 |' in card


def test_names_that_are_no_unicode(copy: Path, tmp_path: Path) -> None:
    """As those of folders may be; what can't be written is a ?."""
    for file in (copy / 'result.json', copy / 'last' / 'config.json'):
        file.write_text(file.read_text().replace('"class1"', '"caf\\udce9"'))
    text = written(copy, tmp_path / 'out')
    assert re.search(r'\| caf\? \| \d', text)
    assert 'class0, caf?, class2' in text


def test_a_model_that_was_built_from_a_folder_is_named_by_its_architecture(copy: Path, tmp_path: Path) -> None:
    result = json.loads((copy / 'result.json').read_text())
    result['recipe']['model'] = result['model'] = 'local-dir:/some/path'
    (copy / 'result.json').write_text(json.dumps(result))
    config = json.loads((copy / 'last' / 'config.json').read_text())
    config['model_args'] |= {'num_classes': 3, 'global_pool': 'max'}  # as timm writes them
    (copy / 'last' / 'config.json').write_text(json.dumps(config))
    text = written(copy, tmp_path / 'out')
    (tmp_path / 'recipe.yaml').write_text(re.search(r'```yaml\n(.*?)```', text, re.DOTALL)[1])  # type: ignore[index]
    recipe = Recipe.load(tmp_path / 'recipe.yaml')
    assert (recipe.model, recipe.gp) == ('mbv2_mish_imagenette', 'max')
    assert recipe.model_kwargs['channel_multiplier'] == 0.35
    assert '/some/path' not in text


def test_a_folder_is_published_from_inside(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / 'best')
    assert 'model-index' in metadata(written(Path('.'), tmp_path / 'out'))
    assert torch.equal(logits(tmp_path / 'out'), logits(run / 'best'))


def test_imagenette_is_named_as_the_data_where_it_is_all_of_it(run: Path) -> None:
    """Classes of the same names do not make it so: a subset has other scores."""
    config = {**json.loads((run / 'last' / 'config.json').read_text()), 'label_names': list(LABEL_NAMES)}
    trained = read_trained(run, 'last')
    facts = CardFacts('me/small', config, config['label_names'], 1, None, 'mit', trained)
    data = model_card(facts).data.to_dict()
    assert 'datasets' not in data
    dataset = data['model-index'][0]['results'][0]['dataset']
    assert dataset['type'] == 'imagefolder'
    assert dataset['args'] == {name: trained.record.result.dataset[name] for name in ('train', 'val', 'hash')}
    trained.record.result.dataset['files'] = FILES_HASH
    data = model_card(facts).data.to_dict()
    assert data['datasets'] == ['frgfm/imagenette']
    assert data['model-index'][0]['results'][0]['dataset']['type'] == 'frgfm/imagenette'


def test_slices_label_noise_and_the_hash_are_on_the_card(run: Path) -> None:
    config = json.loads((run / 'last' / 'config.json').read_text())
    trained = read_trained(run, 'last')
    facts = CardFacts('me/small', config, config['label_names'], 1, None, 'mit', trained)
    assert 'slice' not in str(model_card(facts))
    trained.record.result.recipe.update(train_split='train[:50%]', label_noise=25)
    text = str(model_card(facts))
    assert 'Training is on the slice train\\[:50%\\].' in text
    assert '25 % of the training labels are wrong on purpose' in text
    assert trained.record.result.dataset['hash'] in text


def test_a_teacher_is_named_on_the_card_but_no_path_of_this_machine(run: Path) -> None:
    config = json.loads((run / 'last' / 'config.json').read_text())
    trained = read_trained(run, 'last')
    trained.record.result.teacher = 'cafe'
    trained.record.result.recipe['class_map'] = '/home/me/classes.txt'
    facts = CardFacts('me/small', config, config['label_names'], 1, None, 'mit', trained)
    for name, shown in (
        ('mbv2_mish_imagenette', 'kd_model_name: mbv2_mish_imagenette'),
        ('hf-hub:me/taught', 'kd_model_name: hf-hub:me/taught'),
        ('/home/me/runs/big', 'is cafe'),
    ):
        trained.record.result.recipe['kd_model_name'] = name
        text = str(model_card(facts))
        assert shown in text
        assert '/home/me' not in text


# --- Bad input --------------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], source: Path | str, repo_id: str = 'me/small', *words: str) -> str:
    assert main(['publish', str(source), repo_id, '--dry-run', '--output', '/nowhere/at/all', *words]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    return err


@pytest.mark.parametrize('repo_id', ['small', 'me/sm all', 'me/a/b', 'me/..', '/small', 'me/', 'me/small.git', ''])
def test_a_name_that_the_hub_would_not_take(run: Path, capsys: Any, repo_id: str) -> None:
    assert f'REPO_ID {repo_id}:' in refused(capsys, run, repo_id)


def test_an_unfinished_run(copy: Path, capsys: Any) -> None:
    (copy / 'result.json').unlink()
    for source in (copy, copy / 'best', copy / 'checkpoints' / 'epoch-1'):
        assert f'{copy}: this run is not finished' in refused(capsys, source)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (None, 'no config.json'),
        ({'architecture': 'resnet_of_tomorrow'}, 'a known architecture'),
        ({'label_names': ['a', 'b']}, 'names 2 classes, the head has 3'),
        ({'label_names': {'0': 'a', '3': 'b'}}, 'names 2 classes, its classifier has 3'),
        ({'pretrained_cfg': {'label_names': ['a', 'b'], 'input_size': [3, 32, 32]}, 'label_names': None}, 'names 2 cl'),
        ({'pretrained_cfg': {'input_size': ['3', '32', '32']}}, "is for images of '3' channels"),
        ({'pretrained_cfg': {'input_size': [3, '32', '32']}}, "doesn't say how images are prepared"),
        ({'num_classes': 4, 'label_names': None}, 'another model'),
        ({'model_args': {'channel_multiplier': 0.5}}, 'another model'),
    ],
)
def test_a_folder_that_holds_no_model(run: Path, tmp_path: Path, capsys: Any, change: Any, said: str) -> None:
    broken = shutil.copytree(run / 'last', tmp_path / 'a' / 'b' / 'broken')
    config = json.loads((broken / 'config.json').read_text())
    if change is None:
        (broken / 'config.json').unlink()
    else:
        (broken / 'config.json').write_text(json.dumps({**config, **change}))
    line = refused(capsys, broken)
    assert str(broken) in line
    assert said in line


def test_sources_that_are_none(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert 'no run, folder or model' in refused(capsys, tmp_path / 'missing')
    assert 'give a run, a model folder or --checkpoint FILE' in refused(capsys, 'mbv2_mish_mp2_imagenette')
    assert 'leave --crop-pct out' in refused(capsys, run, 'me/small', '--crop-pct', '0.9')


@pytest.mark.slow
def test_no_way_to_a_token(run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def refuse() -> str:
        raise LookupError('no identity')

    monkeypatch.setattr(module, 'get_token', refuse)
    assert main(['publish', str(run), 'me/small', '--output', str(tmp_path / 'out')]) == 2
    assert capsys.readouterr().err == 'error: me/small: no token: no identity\n'
    written(run, tmp_path / 'out')


def test_no_token_in_this_process(run: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, 'get_token', lambda: None)
    assert main(['publish', str(run), 'me/small']) == 2
    assert 'no token' in capsys.readouterr().err
