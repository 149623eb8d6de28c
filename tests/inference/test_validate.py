"""Metrics by hand-made examples; validation against timm's own script."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import imagenette_zoo
from imagenette_zoo import train, validate
from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.data import pipeline
from imagenette_zoo.data.augment import Normalize
from imagenette_zoo.data.folders import load_split
from imagenette_zoo.data.loaders import eval_loader
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference.metrics import Scores
from imagenette_zoo.models import factory
from imagenette_zoo.study.analysis import analyse
from imagenette_zoo.utils.console import Console
from tests.conftest import make_folder, needs_local_dir, recipe_maker

MakeRecipe = Callable[..., Recipe]


def test_metrics() -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 2, 1], [2, 0, 1], [0, 1, 3]])
    scores = Scores(logits, torch.tensor([0, 1, 1, 2]), ('a', 'b', 'c'))
    assert scores.top1 == 75
    assert scores.top5 == 100
    assert scores.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert scores.per_class == {'a': 100, 'b': 50, 'c': 100}
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, scores.targets).item())


def test_precision_recall_and_f1() -> None:
    """Numbers of scikit-learn's definitions: class d has neither images nor predictions, c has no predictions."""
    logits = torch.eye(4)[[0, 0, 0, 1, 1, 0]]
    scores = Scores(logits, torch.tensor([0, 0, 0, 0, 1, 2]), 'abcd')
    assert scores.averages('macro') == pytest.approx(
        {
            'macro_precision': 100 * (3 / 4 + 1 / 2) / 3,
            'macro_recall': 100 * (3 / 4 + 1) / 3,
            'macro_f1_score': 100 * (3 / 4 + 2 / 3) / 3,
        }
    )
    assert scores.averages('weighted') == pytest.approx(
        {
            'weighted_precision': 100 * (4 * 3 / 4 + 1 / 2) / 6,
            'weighted_recall': 100 * (4 * 3 / 4 + 1) / 6,
            'weighted_f1_score': 100 * (4 * 3 / 4 + 2 / 3) / 6,
        }
    )
    assert [*scores.averages('micro').values()] == pytest.approx(3 * [scores.top1])


def test_averages_and_the_crop_are_in_the_results(
    recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(recipe(epochs=1), quiet=True).folder
    files = [tmp_path / 'results.json', tmp_path / 'results.csv']
    words = ['validate', '--model', str(folder), '--data-dir', str(recipe().data_dir), '-j', '0', '--device', 'cpu']
    for file in files:
        assert main([*words, '--metrics-avg', 'macro', '--crop-mode', 'squash', '--results-file', str(file)]) == 0
    assert 'macro f1 score %' in capsys.readouterr().out
    squashed, row = json.loads(files[0].read_text()), next(csv.DictReader(files[1].open()))
    for name in ('macro_precision', 'macro_recall', 'macro_f1_score'):
        assert float(row[name]) == pytest.approx(squashed[name])
    assert squashed['macro_recall'] == pytest.approx(squashed['top1']), 'classes of one size'
    assert (row['crop_mode'], 'averages' in squashed) == ('squash', False)
    [center] = validate(str(folder), recipe().data_dir, workers=0, quiet=True)
    assert (center.crop_mode, center.averages) == ('center', {})
    assert center.loss != squashed['loss']


def test_top5_counts_the_first_five() -> None:
    logits = torch.arange(10.0).repeat(10, 1)
    assert Scores(logits, torch.arange(10), [str(i) for i in range(10)]).top5 == 50
    assert Scores(logits, torch.arange(10), [str(i) for i in range(10)]).top1 == 10


def test_a_class_without_images_has_no_accuracy() -> None:
    scores = Scores(torch.eye(3)[:2], torch.tensor([0, 1]), ('a', 'b', 'c'))
    assert scores.per_class == {'a': 100, 'b': 100}


def test_calibration_error() -> None:
    """Confidence 0.8 and accuracy 0.5 is an error of 30 %; right answers that are sure are calibrated."""
    confidence = torch.tensor([[0.8, 0.2]]).log().repeat(4, 1)
    assert Scores(confidence, torch.tensor([0, 1, 0, 1]), 'ab').calibration_error() == pytest.approx(30)
    sure = torch.tensor([[100.0, 0], [0, 100]])
    assert Scores(sure, torch.tensor([0, 1]), 'ab').calibration_error() == pytest.approx(0, abs=1e-6)
    mixed = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()  # two bins, gaps of 0.1 and 0.6
    assert Scores(mixed, torch.tensor([0, 1]), 'ab').calibration_error() == pytest.approx(35)


@pytest.fixture(scope='module')
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = recipe_maker(folder, tmp_path_factory.mktemp('trained'))
    return train(recipe(epochs=6, opt='adamw', no_aug=True), quiet=True).folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / 'runs' / 'run'))


@pytest.mark.slow
def test_a_run_its_best_and_local_dir_are_the_same(run: Path, recipe: MakeRecipe) -> None:
    names = (str(run), f'{run}/best', f'local-dir:{run}/best')
    results = validate(names, recipe().data_dir, workers=0, quiet=True)
    recorded = json.loads((run / 'result.json').read_text())
    assert {result.top1 for result in results} == {recorded['best_top1']}
    assert [result.model for result in results] == list(names)
    assert torch.tensor(results[0].confusion).sum() == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ('given', 'taken', 'last'), [({}, 64, True), ({'batch_size': 70, 'channels_last': False}, 70, False)]
)
def test_a_cpu_takes_64_images_at_a_time_channels_last(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], taken: int, last: bool
) -> None:
    network, seen = type(timm.create_model('test_resnet')), []
    forward = network.forward

    def spy(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        tensors = images, next(model.parameters())
        layouts = {tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors}
        seen.append((len(images), layouts))
        return forward(model, images)

    monkeypatch.setattr(network, 'forward', spy)
    validate(run, make_folder(tmp_path / 'data', val=30), device='cpu', quiet=True, **given)
    assert seen[-2:] == [(taken, {last}), (90 - taken, {last})]


@pytest.mark.slow
def test_a_larger_test_size_of_the_published_weights_is_not_that_of_a_run(recipe: MakeRecipe) -> None:
    """timm tests its resnet18 at 288 px and crop 1.0; a run's model is validated as its training validated it."""
    assert timm.get_pretrained_cfg('resnet18').test_input_size == (3, 288, 288)
    run = train(recipe(model='resnet18', img_size=32, epochs=1, batch_size=8), quiet=True)
    for name in (str(run.folder), f'local-dir:{run.folder}/last'):
        [found] = validate(name, recipe().data_dir, workers=0, quiet=True)
        assert (found.img_size, found.crop_pct) == (32, 0.95)
        assert found.loss == pytest.approx(run.loss, rel=1e-4)


@pytest.mark.slow
def test_the_report_and_the_files(
    run: Path, recipe: MakeRecipe, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        'validate',
        '--data-dir',
        str(recipe().data_dir),
        '--model',
        str(run),
        '--model',
        f'{run}/last',
        '--shift-consistency',
        '--workers',
        '0',
        '--device',
        'cpu',
    ]
    assert main([*words, '--results-file', str(tmp_path / 'r.json')]) == 0
    printed = capsys.readouterr().out
    assert 'class0' in printed
    assert 'shift consistency %' in printed
    results = json.loads((tmp_path / 'r.json').read_text())
    assert len(results) == 2
    assert 0 <= results[0]['shift_consistency'] <= 100
    assert main([*words, '--results-file', str(tmp_path / 'r.csv')]) == 0
    rows = list(csv.DictReader((tmp_path / 'r.csv').open()))
    assert float(rows[0]['top1']) == results[0]['top1']
    assert 'top1 class0' in rows[0]


@pytest.mark.long
@pytest.mark.slow
def test_fusing_changes_nothing_but_the_model(recipe: MakeRecipe) -> None:
    result = train(recipe(model='mbv2_mish_mp3_imagenette', epochs=1, img_size=64), quiet=True)
    [plain] = validate(result.folder, recipe().data_dir, workers=0, quiet=True)
    [fused] = validate(result.folder, recipe().data_dir, workers=0, quiet=True, reparam=True)
    assert fused.confusion == plain.confusion
    assert fused.params != plain.params, 'nothing was fused'
    assert fused.loss == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize(
    ('name', 'part'),
    [
        ('/nowhere/run', 'no run, folder or model has this name'),
        ('resnet5o', 'did you mean resnet50'),
        ('resnet34', 'a model by its name needs --checkpoint or --pretrained'),
        ('local-dir:/nowhere', 'no model folder'),
    ],
)
def test_a_model_that_is_none(recipe: MakeRecipe, name: str, part: str) -> None:
    with pytest.raises(UserError) as error:
        validate(name, recipe().data_dir, workers=0, quiet=True)
    assert part in str(error.value)


@pytest.mark.slow
def test_a_damaged_model_folder(run: Path, recipe: MakeRecipe) -> None:
    (run / 'best' / 'config.json').write_text('{"architecture": 5}')
    with pytest.raises(UserError, match="not a model's config"):
        validate(run, recipe().data_dir, workers=0, quiet=True)
    config = json.loads((run / 'last' / 'config.json').read_text())
    (run / 'last' / 'config.json').write_text(json.dumps({**config, 'architecture': 'resnet_none'}))
    with pytest.raises(UserError, match='a known architecture'):
        validate(run / 'last', recipe().data_dir, workers=0, quiet=True)


@pytest.mark.long
@pytest.mark.slow
def test_classes_are_those_of_the_training_split(recipe: MakeRecipe, tmp_path: Path) -> None:
    """With a `train/` of other classes beside it, and one class without validation images."""
    root = make_folder(tmp_path / 'two', classes=2)
    for split, name in (('train', 'learning'), ('val', 'testing')):
        shutil.copytree(recipe().data_dir + '/' + split, root / name)
    shutil.rmtree(root / 'testing' / 'class1')
    splits = {'train_split': 'learning', 'val_split': 'testing'}
    result = train(recipe(data_dir=str(root), epochs=1, model='mbv2_mish_mp2_imagenette', **splits), quiet=True)
    [scores] = validate(result.folder / 'last', root, workers=0, quiet=True, **splits)
    assert scores.top1 == result.top1
    assert analyse(result.folder, Console(quiet=True)).top1 == result.top1


@pytest.mark.slow
def test_full_memory_is_one_line(run: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr('imagenette_zoo.inference.validate.evaluate', fail)
    text = 'CUDNN_STATUS_ALLOC_FAILED'
    with pytest.raises(UserError, match='out of memory: try a smaller --batch-size'):
        validate(run, recipe().data_dir, workers=0, quiet=True)
    text = 'shapes do not match'
    with pytest.raises(RuntimeError, match=text):
        validate(run, recipe().data_dir, workers=0, quiet=True)


def test_a_model_for_grey_images(recipe: MakeRecipe, tmp_path: Path) -> None:
    model = timm.create_model('test_resnet', num_classes=3, in_chans=1)
    config = {'num_classes': 3, 'input_size': (1, 32, 32), 'label_names': [f'class{index}' for index in range(3)]}
    timm.models.save_for_hf(model, tmp_path / 'grey', config, {'in_chans': 1}, safe_serialization=True)
    for loader in ('cache', 'timm'):
        [scores] = validate(tmp_path / 'grey', recipe().data_dir, workers=0, quiet=True, loader=loader)
        assert scores.images


@pytest.mark.slow
def test_other_classes_of_the_same_number(run: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / 'other', train=1, val=1)
    for split in ('train', 'val'):
        (other / split / 'class0').rename(other / split / 'zebra')
    with pytest.raises(UserError, match=r'its classes \(class0, …\) are not'):
        validate(run, other, workers=0, quiet=True)


def test_a_checkpoint_of_other_classes(run: Path, tmp_path: Path) -> None:
    """Its config is beside it."""
    other = make_folder(tmp_path / 'other', train=1, val=1)
    for split in ('train', 'val'):
        (other / split / 'class0').rename(other / split / 'zebra')
    with pytest.raises(UserError, match=r'its classes \(class0, …\) are not'):
        validate('test_resnet', other, checkpoint=str(run / 'last' / 'model.safetensors'), workers=0, quiet=True)


def test_published_weights_of_other_classes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / 'ten', classes=10)
    with pytest.raises(UserError, match=r'its classes \(tench, …\) are not'):
        validate('mbv2_mish_imagenette', folder, pretrained=True, workers=0, quiet=True)


@pytest.mark.slow
def test_a_class_without_validation_images_keeps_its_place(run: Path, recipe: MakeRecipe, tmp_path: Path) -> None:
    fewer = shutil.copytree(recipe().data_dir, tmp_path / 'fewer')
    shutil.rmtree(fewer / 'val' / 'class0')
    [whole] = validate(run, recipe().data_dir, workers=0, quiet=True)
    [scores] = validate(run, fewer, workers=0, quiet=True)
    assert scores.per_class == {name: top1 for name, top1 in whole.per_class.items() if name != 'class0'}


@pytest.mark.slow
@pytest.mark.parametrize('names', [5, 'abc', {'0': 'a', '1': 'b', '2': 'c'}])
def test_label_names_that_are_no_list_do_not_matter(run: Path, recipe: MakeRecipe, names: object) -> None:
    path = run / 'best' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'label_names': names}))
    assert len(validate(run, recipe().data_dir, workers=0, quiet=True)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ('given', 'part'),
    [({'checkpoint': 'other.pth'}, 'has its own weights'), ({'num_classes': 7}, 'has 3 classes: leave the option out')],
)
def test_what_a_model_folder_says_itself(run: Path, recipe: MakeRecipe, given: dict[str, object], part: str) -> None:
    with pytest.raises(UserError, match=part):
        validate(run, recipe().data_dir, workers=0, quiet=True, **given)


def test_the_arguments_in_a_config(tmp_path: Path) -> None:
    config = {'architecture': 'test_resnet', 'pretrained_cfg': {}, 'model_args': {'num_classes': 3, 'output_stride': 8}}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    model, source = torch.nn.Module(), f'local-dir:{tmp_path}'
    assert factory.source_args(source, model) == {'output_stride': 8}
    del config['model_args']
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert factory.source_args(source, model) == factory.source_args('test_resnet', model) == {}


@pytest.mark.slow
@pytest.mark.parametrize('args', [{'checkpoint_path': 'evil.pth'}, {'pretrained_cfg': {'file': 'evil.pth'}}])
def test_a_config_that_names_files_is_refused(run: Path, recipe: MakeRecipe, args: dict[str, object]) -> None:
    path = run / 'best' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'model_args': args}))
    with pytest.raises(UserError, match='may name no files'):
        validate(run, recipe().data_dir, workers=0, quiet=True)


@pytest.mark.slow
@needs_local_dir
def test_pixels_are_those_of_timms_loader(run: Path, recipe: MakeRecipe) -> None:
    """The same logits as with timm's dataset, loader and transform, to the bit."""
    model = timm.create_model(f'local-dir:{run}/best', pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model)
    theirs = timm.data.create_loader(
        timm.data.create_dataset('', recipe().data_dir, split='validation'),
        batch_size=12,
        device=torch.device('cpu'),
        num_workers=0,
        **config,
    )
    images, targets = next(iter(theirs))
    split = load_split(recipe().data_dir, 'validation')
    pixels, ours = next(iter(eval_loader(split, pipeline.eval_transform(config), 12, workers=0)))
    assert torch.equal(targets, ours)
    assert torch.equal(images, Normalize(config['mean'], config['std'], torch.device('cpu'))(pixels))
    [validation] = validate(run, recipe().data_dir, workers=0, quiet=True)
    with torch.inference_mode():
        assert validation.top1 == 100 * (model(images).argmax(1) == targets).double().mean().item()


def test_a_border_is_filled_as_timm_fills_it() -> None:
    config = dict(input_size=(3, 32, 32), crop_pct=1.0, crop_mode='border', interpolation='bicubic', mean=(0.1, 0.5, 1))
    pixels = pipeline.eval_transform(config)(Image.new('RGB', (40, 10)))
    assert pixels[:, 0, 0].tolist() == [26, 128, 255]


@pytest.mark.slow
def test_classes_that_disagree_with_the_data(run: Path, tmp_path: Path, folder: Path) -> None:
    other = make_folder(tmp_path / 'four', classes=4, train=1, val=1)
    with pytest.raises(UserError, match='has 3 classes'):
        validate(run, other, workers=0, quiet=True)


TIMM_VALIDATE = os.environ.get('TIMM_CHECKOUT', '')


@pytest.mark.skipif(not TIMM_VALIDATE, reason='TIMM_CHECKOUT is not set: a checkout of timm, for its scripts')
def test_accuracy_equals_timms_script_to_the_image(imagenette_dir: Path, tmp_path: Path) -> None:
    """On the real validation set, with weights that get some images right."""
    torch.manual_seed(0)
    model = timm.create_model('mbv2_mish_imagenette')
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    [ours] = validate(
        'mbv2_mish_imagenette', imagenette_dir, checkpoint=str(tmp_path / 'w.pth'), img_size=64, workers=2, quiet=True
    )
    env = {**os.environ, 'PYTHONPATH': str(Path(imagenette_zoo.__file__).parent.parent)}
    code = (
        'import imagenette_zoo, runpy, sys; sys.argv[0] = "validate.py"; '
        f'runpy.run_path("{TIMM_VALIDATE}/validate.py", run_name="__main__")'
    )
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            code,
            '--data-dir',
            str(imagenette_dir),
            '--model',
            'mbv2_mish_imagenette',
            '--checkpoint',
            str(tmp_path / 'w.pth'),
            '--img-size',
            '64',
            '--crop-mode',
            'center',
            '--device',
            'cpu',
            '--workers',
            '2',
        ],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.split('--result')[1])
    assert theirs['top1'] == pytest.approx(ours.top1, abs=5e-5)
    assert theirs['top5'] == pytest.approx(ours.top5, abs=5e-5)
