"""The one door: which models each command takes, by which name, and whose images, labels and preprocessing it uses."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.config.uses import PassesOptions, UseOptions
from imagenette_zoo.data.constants import IMAGENETTE
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference import loading
from imagenette_zoo.inference.loading import load_trained, run_of
from imagenette_zoo.models import factory
from imagenette_zoo.models.model_folder import save_model_folder
from imagenette_zoo.study.passes import compare_passes
from imagenette_zoo.training.trainer import train
from tests.conftest import make_folder
from tests.hub import Client, Hub

MakeRecipe = Callable[..., Recipe]
PACKAGED = 'mbv2_mish_imagenette'
NETWORK = {'model': PACKAGED, 'model_kwargs': {'channel_multiplier': 0.35, 'passes': [2, 1, 1, 1, 1, 1, 1]}}

CALM = {'lr': 1e-6, 'bn_momentum': 1e-4}  # hardly trained, else its logits would be large and exports inexact


@pytest.fixture(scope='module')
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with the names of Imagenette's classes."""
    root = make_folder(tmp_path_factory.mktemp('ten') / 'data', classes=10, train=2, val=1)
    for split in ('train', 'val'):
        for index, name in enumerate(IMAGENETTE):
            (root / split / f'class{index}').rename(root / split / name)
    return root


@pytest.fixture(scope='module')
def run(ten: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small model with one MultiPass block, not to be changed."""
    own = dict(data_dir=str(ten), img_size=32, epochs=1, batch_size=8, warmup_epochs=0, torchcompile='none', **CALM)
    output = str(tmp_path_factory.mktemp('runs'))
    return train(Recipe(**NETWORK, **own, device='cpu', output=output, experiment='small'), quiet=True).folder


@pytest.fixture(scope='module')
def elsewhere(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last weights in a folder of no run."""
    return shutil.copytree(run / 'last', tmp_path_factory.mktemp('models') / 'net')


@pytest.fixture(scope='module')
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('home')


@pytest.fixture(scope='module')
def client(run: Path, home: Path) -> Iterator[Client]:
    """A process whose Hub has the model as `me/net`."""
    with Hub() as hub:
        client = Client(hub, home)
        assert client('publish', str(run), 'me/net')['code'] == 0
        yield client
        client.close()
        hub.shutdown()


@pytest.fixture
def files(tmp_path: Path, ten: Path) -> dict[str, str]:
    """What the commands read and write besides."""
    return {'data': str(ten), 'image': str(next(ten.glob('val/*/*.png'))), 'place': str(tmp_path / 'written')}


WORDS = {
    'validate': 'validate --model {model} --data-dir {data} --workers 0 --device cpu --img-size 32',
    'passes': 'passes {model} --data-dir {data} --device cpu --img-size 32 --images 4',
    'predict': 'predict {image} -m {model} --device cpu --img-size 32 --json',
    'export': 'export {model} --to torchscript --output {place} --data-dir {data} --img-size 32',
    'publish': 'publish {model} me/net --dry-run --output {place}',
    'analyse': 'analyse {model} --device cpu',
}
KINDS = {
    'a run': '{run}',
    'its best': '{run}/best',
    'its last': '{run}/last',
    'its checkpoint': '{run}/checkpoints/epoch-0',
    'a model folder': '{folder}',
    'local-dir': 'local-dir:{folder}',
    'the hub': 'hf-hub:me/net',
    'packaged': PACKAGED,
    'a checkpoint': f'{PACKAGED} --checkpoint {{run}}/last/model.safetensors --model-kwargs channel_multiplier=0.35 '
    'passes=[2,1,1,1,1,1,1] --num-classes 10',
}
REFUSED = {
    ('passes', 'packaged'): 'has no MultiPass block',  # which is looked for once it is open
    **{('analyse', kind): 'only the last weights of a finished run are analysed' for kind in KINDS},
}
for _taken in ('a run', 'its last'):
    del REFUSED['analyse', _taken]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('command', WORDS)
def test_every_command_takes_every_kind_of_name(
    command: str,
    kind: str,
    run: Path,
    elsewhere: Path,
    files: dict[str, str],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = KINDS[kind].format(run=run, folder=elsewhere)
    if kind == 'a checkpoint' and command == 'analyse':
        pytest.skip('which is of runs')
    words = WORDS[command].format(model=model, **files).split()
    if kind == 'the hub':
        told = request.getfixturevalue('client')(*words)
        code, printed, error = told['code'], told['out'], told['err']
    else:
        code = main(words)
        printed, error = capsys.readouterr()
    if line := REFUSED.get((command, kind)):
        assert code == 2
        assert line in error
        assert error.count('\n') == 1
        return
    assert code == 0, error
    if command == 'validate':
        assert 'top-1 %' in printed
    if command == 'predict':
        [found] = json.loads(printed)
        assert {top['class'] for top in found['top']} < {*IMAGENETTE.values()}, "the model's own names"
    if command in ('export', 'publish'):
        assert Path(files['place']).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[] if kind == 'a run' else pytest.mark.long) for kind in KINDS]
)
def test_the_demo_takes_every_kind_of_name(
    kind: str, run: Path, elsewhere: Path, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip('gradio')
    from imagenette_zoo.sharing import demo

    models: dict[str, Any] = {}
    monkeypatch.setattr(demo, '_answer', lambda loaded, *_: models.update(loaded) or (lambda *_: None))
    if kind == 'the hub':
        assert request.getfixturevalue('client')('load', 'hf-hub:me/net')  # into its cache
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(home / 'hub'))
        monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    name = KINDS[kind].format(run=run, folder=elsewhere)
    monkeypatch.setattr(demo, 'serve', lambda names, port, host, **options: demo.build(names, **options))
    name, *words = name.split()
    assert main(['demo', name, *words]) == 0
    assert models[name].class_names == list(IMAGENETTE.values())


def test_all_kinds_in_one_command(run: Path, ten: Path, elsewhere: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=10)
    config = timm.data.resolve_data_config({'img_size': 32}, model=model)
    names = list(IMAGENETTE.values())
    folder = elsewhere.parent / 'resnet'
    save_model_folder(folder, factory.model_config(model, config, names, {}), model.state_dict())
    models = (str(run), PACKAGED, str(folder))
    found = iz.validate(models, workers=0, device='cpu', quiet=True)  # on the run's images
    assert [each.model for each in found] == list(models)
    assert [each.img_size for each in found] == [32, 224, 32]
    assert {each.dataset for each in found} == {'data/val'}
    for each in found:
        [alone] = iz.validate(each.model, ten, workers=0, device='cpu', quiet=True)
        assert (alone.loss, alone.gmacs, alone.confusion) == (each.loss, each.gmacs, each.confusion)


@pytest.mark.parametrize(
    ('change', 'part'),
    [
        (None, 'no run, folder or model has this name'),
        ({'label_names': [*'abcdefghij']}, r'its classes \(a, …\) are not those of'),
        ({'pretrained_cfg': {'mean': 'abc'}}, "its config doesn't say how images are prepared"),
        ({'model_args': {'channel_multiplier': 0.5}}, 'the checkpoint of another model'),
        ({'pretrained_cfg': {'input_size': [2, 32, 32]}}, 'is for images of 2 channels'),
    ],
)
def test_a_bad_model_fails_before_the_first_is_evaluated(
    run: Path,
    elsewhere: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object] | None,
    part: str,
) -> None:
    evaluated: list[object] = []
    monkeypatch.setattr('imagenette_zoo.inference.validate.evaluate', lambda *args: evaluated.append(args))
    bad = tmp_path / 'bad'
    if change is not None:
        shutil.copytree(elsewhere, bad)
        config = json.loads((bad / 'config.json').read_text())
        (bad / 'config.json').write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=part) as error:
        iz.validate([str(run), PACKAGED, str(bad)], workers=0, device='cpu', quiet=True)
    assert not evaluated
    assert str(error.value).count('\n') == 0


# --- What a run says --------------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data are named by the environment, nor found in the cache."""
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
    monkeypatch.setenv('IMAGENETTE_ZOO_CACHE', str(tmp_path / 'cache'))


@pytest.mark.usefixtures('nowhere')
@pytest.mark.parametrize('place', ['', 'best', 'last', 'checkpoints/epoch-0'])
def test_a_runs_own_images_and_splits_are_used(recipe: MakeRecipe, tmp_path: Path, place: str) -> None:
    data = make_folder(tmp_path / 'mine')
    result = train(recipe(data_dir=str(data), epochs=1, train_split='train[:50%]', val_split='train[50%:]'), quiet=True)
    [own] = iz.validate(result.folder / place, workers=0, device='cpu', quiet=True)
    assert (own.dataset, own.images, own.top1) == ('mine/train[50%:]', result.dataset['val'], result.top1)
    given: dict[str, Any]
    for given, dataset in (
        ({'val_split': 'train[:50%]'}, 'mine/train[:50%]'),
        ({'data_dir': recipe().data_dir}, 'data0/val'),
        ({'data_dir': recipe().data_dir, 'val_split': 'train'}, 'data0/train'),
    ):
        [other] = iz.validate(result.folder / place, workers=0, device='cpu', quiet=True, **given)
        assert other.dataset == dataset


@pytest.mark.usefixtures('nowhere')
def test_a_runs_own_dataset_is_used(
    recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    asked: list[tuple[object, ...]] = []

    def resolve(dataset: str, data_dir: object, *splits: str, options: object) -> Path:
        asked.append((dataset, data_dir, *splits))
        return folder

    run = tmp_path / 'run'
    (run / 'best').mkdir(parents=True)
    (run / 'best' / 'config.json').touch()
    (run / 'args.yaml').write_text('dataset: synthette\n')
    monkeypatch.setattr(loading, 'resolve_dataset', resolve)
    assert loading.images_of([str(run)], PassesOptions()).root == folder
    assert asked == [('synthette', None, 'validation')]


@pytest.mark.usefixtures('nowhere')
def test_passes_and_export_use_a_runs_own_images(run: Path, ten: Path, tmp_path: Path) -> None:
    report = compare_passes(PassesOptions(model=str(run), images=0, device='cpu', batch_size=5), quiet=True)
    given = PassesOptions(model=str(run), images=0, device='cpu', batch_size=5, data_dir=str(ten))
    assert report == compare_passes(given, quiet=True)
    assert report.images == 10
    exported = iz.export(run, 'torchscript', tmp_path / 'net.pt')
    assert (exported.source, exported.images) == ('data/val', 10)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures('nowhere')
def test_runs_on_other_images_ask_which_are_meant(recipe: MakeRecipe, folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / 'other')
    runs: dict[str, str] = {}
    for name, own in (
        ('a', {}),
        ('b', {'data_dir': f'{folder}/'}),
        ('c', {'data_dir': str(other)}),
        ('d', {'val_split': 'train[50%:]'}),
    ):
        runs[name] = str(train(recipe(experiment=name, epochs=1, **own), quiet=True).folder)
    common: dict[str, Any] = dict(workers=0, device='cpu', quiet=True)
    assert len(iz.validate([runs['a'], runs['b']], **common)) == 2
    for name in 'cd':
        with pytest.raises(UserError) as error:
            iz.validate([runs['a'], runs[name]], **common)
        line = f'{runs["a"]} and {runs[name]} were trained on different images: choose by --data-dir'
        assert str(error.value) == line
        assert len(iz.validate([runs['a'], runs[name]], folder, **common)) == 2
    assert len(iz.validate([runs['a'], runs['d']], val_split='train', **common)) == 2, 'a split that is given'


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures('nowhere')
def test_images_of_a_run_that_have_gone_are_one_line(
    recipe: MakeRecipe,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv('IMAGENETTE_DIR', raising=False)
    data = shutil.copytree(folder, tmp_path / 'mine')
    run = train(recipe(data_dir=str(data), epochs=1, **NETWORK, **CALM), quiet=True).folder
    data.rename(tmp_path / 'moved')
    for words in (['validate', '--model', str(run)], ['passes', f'{run}/last'], ['analyse', str(run)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        line = f'error: {words[-1]}: the images of this run are gone: data folder {data} does not exist'
        assert error.startswith(line)
        assert '--data-dir' in error
        assert error.count('\n') == 1
        assert main([*words, '--data-dir', str(tmp_path / 'moved'), '--device', 'cpu']) == 0
        capsys.readouterr()
    assert iz.export(run, 'torchscript', tmp_path / 'x.pt').source == 'synthette', 'any images do'
    monkeypatch.setenv('IMAGENETTE_DIR', str(tmp_path / 'moved'))
    assert main(['validate', '--model', str(run)]) == 0, 'a run from another machine'


def test_a_strangers_model_folder_names_no_path(run: Path, elsewhere: Path, tmp_path: Path) -> None:
    stranger = shutil.copytree(elsewhere, tmp_path / 'model')
    shutil.copy(run / 'args.yaml', stranger)
    assert run_of(stranger) is None
    inside = shutil.copytree(elsewhere, tmp_path / 'run' / 'models' / 'net')
    shutil.copy(run / 'args.yaml', tmp_path / 'run')
    assert run_of(inside) is None
    assert run_of('hf-hub:me/net') is run_of(PACKAGED) is None
    for place in ('', '/best', '/last', '/checkpoints/epoch-0', '/x/..'):
        assert run_of(f'{run}{place}') == run_of(f'local-dir:{run}{place}') == run


def test_another_programs_folder_named_like_a_model_is_no_run(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PACKAGED).mkdir()
    (tmp_path / PACKAGED / 'args.yaml').write_text('aug_splits: 0\n')  # as timm's script leaves one
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('IMAGENETTE_DIR', str(ten))
    assert loading.images_of([PACKAGED], PassesOptions()).root == ten


def test_label_names_and_preprocessing_of_a_run_are_used(recipe: MakeRecipe, folder: Path) -> None:
    own = dict(crop_pct=0.8, interpolation='nearest', mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.1))
    run = train(recipe(epochs=1, **own), quiet=True)
    [validation] = iz.validate(run.folder, workers=0, device='cpu', quiet=True)
    assert (validation.crop_pct, validation.interpolation, validation.img_size) == (0.8, 'nearest', 32)
    assert validation.loss == pytest.approx(run.loss, rel=1e-5)
    trained = load_trained(str(run.folder), UseOptions(model=str(run.folder)), torch.device('cpu'))
    assert trained.class_names == ['class0', 'class1', 'class2']
    assert {name: trained.config[name] for name in own} == own
    torch.testing.assert_close(trained.normalize.mean.flatten() / 255, torch.tensor(own['mean']))
    [found] = iz.predict(next(folder.glob('val/*/*.png')), run.folder, device='cpu')
    assert {name for name, _ in found.top} == {'class0', 'class1', 'class2'}


def test_names_without_weights_say_what_to_give(folder: Path) -> None:
    for name, part in (
        ('mbv2_mish_mp2_imagenette', 'a model by its name needs --checkpoint or --pretrained'),
        ('resnet34', 'a model by its name needs --checkpoint or --pretrained'),
        ('runs/typo', 'no run, folder or model has this name'),
    ):
        with pytest.raises(UserError, match=part):
            iz.validate(name, folder, workers=0, device='cpu', quiet=True)
        with pytest.raises(UserError, match=part):
            compare_passes(PassesOptions(model=name, data_dir=str(folder), device='cpu'), quiet=True)



def test_a_checkpoint_without_an_average_is_told(tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    files = {name: tmp_path / f'{name}.pth.tar' for name in ('plain', 'both')}
    torch.save({'state_dict': model.state_dict()}, files['plain'])
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': model.state_dict()}, files['both'])
    for name, file in files.items():
        options = UseOptions(model='test_resnet', checkpoint=str(file), use_ema=True, num_classes=3)
        if name == 'both':
            loading.open_model('test_resnet', options)
            continue
        with pytest.raises(UserError, match='holds no moving average of the weights: leave --use-ema out'):
            loading.open_model('test_resnet', options)
