"""Models of a user's own: built, completed with what timm's models have, saved and opened again."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import imagenette_zoo as iz
from imagenette_zoo.cli.main import main
from imagenette_zoo.errors import UserError
from imagenette_zoo.models import own
from imagenette_zoo.models.factory import build_model, probe
from imagenette_zoo.models.model_folder import load_folder
from imagenette_zoo.training.result import read_result
from imagenette_zoo.training.run_folder import RunFolder
from imagenette_zoo.utils import modules
from tests.conftest import forget_modules

IDEA = """
import timm
import torch
from timm.models import register_model
from torch import nn


class Snake(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()

    def forward(self, x):
        return x + torch.sin(x) ** 2


class MyNet(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.net(x))


class Fixed(MyNet):
    def __init__(self):
        super().__init__(1000)


@register_model
def idea_resnet(pretrained=False, **kwargs):
    return timm.create_model('test_resnet', act_layer=nn.SiLU, **kwargs)


def not_a_model():
    return 3


def broken(num_classes):
    raise ZeroDivisionError('no luck')


NUMBER = 3


class Moody(MyNet):
    def forward(self, x):
        if self.training:
            raise ValueError('not in training')
        return super().forward(x)


class Double(MyNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.double()


class Pair(MyNet):
    def forward(self, x):
        return super().forward(x), x
"""


@pytest.fixture(autouse=True)
def idea(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_modules: None) -> Path:
    monkeypatch.chdir(tmp_path)
    Path('my_idea.py').write_text(IDEA)
    modules.import_modules(['my_idea.py'])
    return tmp_path / 'my_idea.py'


def train(*words: str) -> Path:
    """A run of one epoch, with the file imported anew as in a process of its own."""
    forget_modules()
    common = '--dataset synthette --train-split train[:5%] --val-split validation[:10%] --img-size 32 -b 16 --epochs 1'
    command = ['train', *common.split(), '--warmup-epochs', '0', '--device', 'cpu', '--experiment', 'mine', *words]
    assert main(command) == 0
    return Path('runs/mine')


def test_a_plain_module_gets_what_timms_models_have() -> None:
    model = build_model('my_idea:MyNet', num_classes=7, drop_rate=0.0, drop_path_rate=None)
    assert (model.num_classes, model.num_features) == (7, 8)
    config = timm.data.resolve_model_data_config(model)
    assert config['input_size'] == (3, 224, 224)
    probe(model, 'my_idea:MyNet', (3, 32, 32))
    assert build_model('my_idea:MyNet', num_classes=7, width=16).head.in_features == 16


@pytest.mark.parametrize(
    ('name', 'kwargs', 'line'),
    [
        ('my_idea:MyNet', {'drop_path_rate': 0.1}, 'takes no drop_path_rate: add it as an argument'),
        ('my_idea:MyNet', {'pretrained': True}, 'no weights are published: leave --pretrained out'),
        ('my_idea:not_a_model', {}, 'makes a int: a torch.nn.Module is needed'),
        ('torch.nn:Linear', {}, 'is a layer: give a model of a file or package of your own'),
        ('my_idea:NUMBER', {}, 'is a int, not a function or class that makes a model'),
        ('my_idea:broken', {}, ': ZeroDivisionError: no luck'),
        ('my_idea:MyNett', {}, "my_idea.py has no 'MyNett'; did you mean MyNet"),
        ('idea_resnet', {'no_such_argument': 3}, 'model idea_resnet: '),
        ('mbv2_mish_imagenette', {'act_layer': 'my_idea:Snak'}, "my_idea.py has no 'Snak'; did you mean Snake"),
        ('mbv2_mish_imagenette', {'act_layer': 'other:Snake'}, "no module 'other' was imported (my_idea.py was)"),
    ],
)
def test_a_bad_model_is_one_line(name: str, kwargs: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as raised:
        build_model(name, num_classes=3, **kwargs)
    assert line in str(raised.value)
    assert '\n' not in str(raised.value)


def test_a_model_without_the_argument_is_for_three_channels() -> None:
    """A teacher is asked for those of its student."""
    assert build_model('my_idea:MyNet', num_classes=4, in_chans=3).num_classes == 4
    with pytest.raises(UserError, match='takes no in_chans: add it as an argument'):
        build_model('my_idea:MyNet', num_classes=4, in_chans=1)


@pytest.mark.parametrize(
    ('name', 'line'),
    [
        ('Moody', '--model my_idea:Moody: my_idea.py:50: ValueError: not in training'),
        ('Double', '--model my_idea:Double: '),
        ('Pair', 'gives tuple for 2 images: expected (2, 10), a logit for each class: return the logits alone'),
    ],
)
def test_a_model_that_can_not_be_trained(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = '--import my_idea.py --dataset synthette --train-split train[:5%] --val-split validation[:10%]'
    words += ' --img-size 32 -b 16 --epochs 1 --warmup-epochs 0 --device cpu --model my_idea:'
    assert main(['train', *f'{words}{name}'.split()]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1
    assert line in errors[0]


def test_a_file_may_print(idea: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not into the output of a command, which may be JSON."""
    idea.write_text(IDEA + "print('hello')\n")
    modules.import_modules(['my_idea.py'])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ('', 'hello\n')


def test_a_model_of_other_outputs() -> None:
    model = build_model('my_idea:Fixed', num_classes=3)
    with pytest.raises(UserError, match=r'gives \(2, 1000\) for 2 images: expected \(2, 3\)'):
        probe(model, 'my_idea:Fixed', (3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['my_idea:MyNet', 'idea_resnet'])
def test_a_run_of_ones_own_model_is_opened_again(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = train('--import', 'my_idea.py', '--model', name)
    config = json.loads((run / 'best' / 'config.json').read_text())
    assert (config['architecture'], config['model_args']) == (name, {})
    assert list(config['device_modules']) == ['my_idea.py']
    assert (run / 'code' / 'my_idea.py').read_text() == IDEA
    assert read_result(run).code == config['device_modules']
    [scores] = iz.validate(run, quiet=True, dataset='synthette', val_split='validation[:10%]', device='cpu')
    assert scores.top1 == read_result(run).top1
    forget_modules()
    capsys.readouterr()
    assert main(['validate', '-m', str(run), '--dataset', 'synthette']) == 2
    assert "this model needs the code in 'my_idea.py' (SHA-256 " in capsys.readouterr().err
    assert 'my_idea' not in modules.imported_modules()


@pytest.mark.slow
def test_layers_by_name_travel_with_the_run() -> None:
    layers = ['act_layer=my_idea:Snake', 'aa_layer=imagenette_zoo.layers:MaxBlurPool2d']
    run = train('--import', 'my_idea.py', '--model', 'resnet10t', '--model-kwargs', *layers)
    config = json.loads((run / 'best' / 'config.json').read_text())
    assert config['model_args'].items() >= {tuple(layer.split('=')) for layer in layers}
    model = own.resolved(config['model_args'])
    assert model['act_layer'] is modules.resolve('my_idea:Snake')
    [scores] = iz.validate(run, quiet=True, dataset='synthette', val_split='validation[:10%]', device='cpu')
    assert scores.top1 == read_result(run).top1


SMALLEST = (  # of sixteen families of timm's
    'test_vit', 'test_efficientnet', 'resnet10t', 'lcnet_035', 'mobilenetv3_small_050', 'tinynet_e', 'mnasnet_small',
    'semnasnet_075', 'ghostnet_050', 'mobileone_s0', 'edgenext_xx_small', 'regnetx_002', 'convnext_atto', 'dla46x_c',
    'repvgg_a0', 'levit_128s',
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in SMALLEST[:4] else pytest.mark.long) for name in SMALLEST]
)
def test_small_models_of_timm_in_a_file_of_ones_own(name: str, idea: Path) -> None:
    idea.write_text(
        'import timm\n\n\ndef mine(num_classes, **kwargs):\n'
        f'    return timm.create_model({name!r}, num_classes=num_classes, **kwargs)\n'
    )
    size = ['--img-size', '224'] if name == 'levit_128s' else ['--img-size', '64']
    run = train('--import', 'my_idea.py', '--model', 'my_idea:mine', *size)
    [scores] = iz.validate(run, quiet=True, dataset='synthette', val_split='validation[:10%]', device='cpu')
    assert scores.top1 == read_result(run).top1
    assert scores.params == sum(weight.numel() for weight in timm.create_model(name, num_classes=10).parameters())


def test_callables_that_no_config_can_hold_are_left_out() -> None:
    args = {'a': nn.SiLU, 'b': lambda: 3, 'c': 3, 'd': torch.float32, 'e': modules.resolve('my_idea:Snake')}
    assert own.as_plain(args) == {'a': 'torch.nn:SiLU', 'c': 3, 'e': 'my_idea:Snake'}


@pytest.mark.slow
def test_a_changed_file_does_not_continue_a_run(idea: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train('--import', 'my_idea.py', '--model', 'my_idea:MyNet')
    (run / 'result.json').unlink()
    idea.write_text(IDEA + '\n')
    capsys.readouterr()
    forget_modules()
    assert main(['train', '--resume', str(run)]) == 2
    assert 'was started with code of my_idea.py (SHA-256 ' in capsys.readouterr().err
    assert main(['train', '--resume', str(run), '--import', 'my_idea.py']) == 2
    err = capsys.readouterr().err
    assert f'{run}: my_idea.py has changed since it was started' in err
    assert f'--device-modules {run}/code/my_idea.py' in err
    forget_modules()
    assert main(['train', '--resume', str(run), '--import', f'{run}/code/my_idea.py']) == 0
    folder = RunFolder(run)
    assert folder.code_flags() == ['--device-modules', f'{run}/code/my_idea.py']
    assert folder.again.endswith(f'--device-modules {run.absolute()}/code/my_idea.py --overwrite')
    assert main(['train', '--from', str(run), '--import', f'{run}/code/my_idea.py', '--experiment', 'again']) == 0
    folder.start(folder.recipe().replace(overwrite=True))  # which removes the file that was imported
    assert (run / 'code' / 'my_idea.py').read_text() == IDEA


@pytest.mark.slow
def test_a_repeat_says_that_the_code_has_changed(idea: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train('--import', 'my_idea.py', '--model', 'my_idea:MyNet')
    idea.write_text(IDEA + '\n')
    capsys.readouterr()
    assert main(['train', '--from', str(run), '--import', 'my_idea.py', '--experiment', 'again']) == 0
    assert 'the code in my_idea.py: SHA-256 ' in capsys.readouterr().out


def test_a_recipe_names_modules_but_a_runs_does_not(tmp_path: Path) -> None:
    run = train('--import', 'my_idea.py', '--model', 'my_idea:MyNet')
    assert 'device_modules' not in (run / 'args.yaml').read_text()
    Path('recipe.yaml').write_text('device_modules: [my_idea.py]\nmodel: my_idea:MyNet\n')
    recipe = train('-c', 'recipe.yaml', '--overwrite')
    assert read_result(recipe).code.keys() == {'my_idea.py'}


def test_a_model_folder_calls_nothing_that_a_users_file_only_imports(tmp_path):
    (tmp_path / 'imports_os.py').write_text('import os\nfrom os import system\n')
    modules.import_modules([str(tmp_path / 'imports_os.py')])
    made = tmp_path / 'made'
    for name in ('os.system', 'system'):
        config = {'architecture': f'imports_os:{name}', 'num_classes': 10, 'pretrained_cfg': {}}
        (tmp_path / 'config.json').write_text(json.dumps({**config, 'model_args': {'command': f'touch {made}'}}))
        with pytest.raises(UserError, match=r'is of|comes from'):
            load_folder(tmp_path)
        assert not made.exists()


@pytest.mark.parametrize('architecture', ['os:system', 'torch.nn:Linear', 'other:Net'])
def test_a_folder_gets_no_advice_to_import_what_it_names(architecture: str, tmp_path: Path) -> None:
    config = {'architecture': architecture, 'num_classes': 10, 'pretrained_cfg': {}, 'model_args': {}}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='a known architecture') as raised:
        load_folder(tmp_path)
    assert '--device-modules' not in str(raised.value)
