"""`imagenette-zoo timm`: scripts of a timm checkout, and what they start, know the zoo."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagenette_zoo.cli.main import main
from tests.conftest import make_folder

CHECKOUT = os.environ.get('TIMM_CHECKOUT', '')
START = [sys.executable, '-m', 'imagenette_zoo', 'timm']
LOOK = 'import json, os, sys; print(json.dumps([__name__, sys.argv, os.getcwd(), sys.path[0], sys.other])); sys.exit(7)'
KNOWS = 'import timm; print(timm.is_model("mbv2_mish_imagenette"), timm.is_model("my_idea_net"))'
IDEA = 'import timm\n\n\n@timm.models.register_model\ndef my_idea_net(**kwargs):\n    raise NotImplementedError\n'
SMALL = '--model mbv2_mish_imagenette --img-size 32'
ON_CPU = '-b 4 -j 1 --device cpu'
SCRIPTS = {  # and the file that each writes
    'train.py': (f'{SMALL} {ON_CPU} --data-dir data --num-classes 3 --epochs 1 --output out --experiment a', 'out/a'),
    'validate.py': (f'{SMALL} {ON_CPU} --pretrained --data-dir data/val --results-file v.csv', 'v.csv'),
    'inference.py': (f'{SMALL} {ON_CPU} --pretrained --data-dir data/val --results-dir out', 'out'),
    'benchmark.py': (
        f'{SMALL} -b 2 --device cpu --bench inference --num-bench-iter 10 --num-warm-iter 1 --results-file b.json',
        'b.json',
    ),
    'onnx_export.py': (f'model.onnx {SMALL}', 'model.onnx'),
    'bulk_runner.py': (
        f'--model-list mbv2_mish_i* --results-file all.csv {CHECKOUT}/validate.py {ON_CPU} --data-dir data/val '
        '--num-classes 10 --img-size 32',
        'all.csv',
    ),
}


@pytest.mark.parametrize(
    ('words', 'line'),
    [
        (['no.py'], 'no.py: there is no such file: expected a script'),
        (['.'], '.: is a folder: expected a script'),
        (['notes.txt', '--model', 'a'], 'notes.txt: does not end in .py: expected a script'),
        (['--import', 'no.py', 'script.py'], 'no.py: there is no such file: expected a Python file'),
        (['--imprt', 'no.py', 'script.py'], 'unknown option --imprt; did you mean --import?'),
        ([], 'the following arguments are required: SCRIPT.py;'),
    ],
)
def test_no_script_is_a_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('script.py').touch()
    Path('notes.txt').touch()
    assert main(['timm', *words]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.splitlines()) == 1


def test_a_script_runs_as_by_python(tmp_path: Path) -> None:
    """Its words, its folder first on the path, its exit code; another `sitecustomize` is run, too."""
    script = tmp_path / 'scripts' / 'look.py'
    for file, text in {script: LOOK, tmp_path / 'other' / 'sitecustomize.py': 'import sys; sys.other = 5'}.items():
        file.parent.mkdir()
        file.write_text(text)
    words = [str(script), '-h', '--import', 'x', '--', 'y']
    path = os.pathsep.join([str(tmp_path / 'other'), str(Path(__file__).parents[2])])
    done = subprocess.run([*START, *words], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': path}, capture_output=True)
    assert (done.returncode, done.stderr) == (7, b'')
    assert json.loads(done.stdout) == ['__main__', words, str(tmp_path), str(script.parent), 5]


@pytest.mark.long
@pytest.mark.slow
def test_the_processes_of_a_script_know_the_zoo_and_code_of_ones_own(tmp_path: Path) -> None:
    idea, script = tmp_path / 'my_idea.py', tmp_path / 'start.py'
    idea.write_text(IDEA)
    script.write_text(f'import subprocess, sys\nsys.exit(subprocess.call([sys.executable, "-c", {KNOWS!r}], cwd="/"))')
    words = [*START, '--import', 'my_idea.py', 'start.py']
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == 'True True\n', done.stderr
    idea.write_text('1 / 0')
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr == f'error: {idea}:1: ZeroDivisionError: division by zero\n'


@pytest.mark.slow
@pytest.mark.skipif(not CHECKOUT, reason='TIMM_CHECKOUT is not set: a checkout of timm, for its scripts')
@pytest.mark.parametrize('script', SCRIPTS)
def test_every_script_of_timm_knows_the_zoo(script: str, tmp_path: Path) -> None:
    make_folder(tmp_path / 'data', classes=3, train=4, val=2)
    for image in tmp_path.glob('data/val/*/*.png'):  # inference.py knows images by their names
        image.rename(image.with_stem(f'{image.parent.name}-{image.stem}'))
    words, written = SCRIPTS[script]
    done = subprocess.run(
        [*START, f'{CHECKOUT}/{script}', *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / written).exists()
    if script == 'bulk_runner.py':
        [row] = csv.DictReader((tmp_path / written).open())
        assert row['model'] == 'mbv2_mish_imagenette'
