"""A GPU is used as far as its time goes, nothing of that is lost, and it ends up on the pages."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from imagenette_zoo.errors import UserError
from imagenette_zoo.study.plan import find_study
from imagenette_zoo.utils.files import ProcessLock

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / 'tools'
RESULTS = ROOT / 'docs' / 'results'

OPTIONS = '{model: test_resnet, img_size: 32, batch_size: 8, epochs: 1, warmup_epochs: 0, workers: 0}'
SOON = f'title: How soon?\noptions: {OPTIONS}\nseeds: 2\nruns: {{one: }}\n'
CLAIMS = (
    f'title: Which?\noptions: {OPTIONS}\nseeds: 1\nruns: {{slow: {{lr: 0.0001}}, fast: {{lr: 0.01}}}}\n'
    'claims: [{name: rate, claim: The larger rate is better., metric: top1, order: fast > slow}]\n'
)
PLAN = """\
speed: --device cpu --rounds 1 --img-size 32 --batch-size 8 --images 16 --steps 1 --workers 1
steps:
  - {name: gpu-tests, command: 'python -c "print(1, flush=True); raise SystemExit(3)"'}
  - {name: to-5, study: PLACE/to-5.yaml, metric: seconds_to_5}
  - {name: claims-small, study: PLACE/claims.yaml, jobs: 2}
  - {name: speed-machine, benchmark: machine}
  - {name: speed-timm, benchmark: 'train --timm-dir {timm}'}
  - {name: too-long, command: python -c pass, least: 100000}
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The scripts as modules."""
    names = ('figures', 'harvest_archive', 'harvest_gpu', 'merge_harvest')
    monkeypatch.syspath_prepend(str(TOOLS))
    yield SimpleNamespace(**{name.removeprefix('harvest_'): __import__(name) for name in names})
    for name in names:
        del sys.modules[name]


def visit(gpu: ModuleType, place: Path, plan: str, budget: str) -> dict[str, Any]:
    """The state of a harvest after a visit."""
    (place / 'plan.yaml').write_text(plan)
    words = ['--budget', budget, '--output', str(place / 'out'), '--work-dir', str(place / 'work')]
    assert gpu.main([*words, '--plan', str(place / 'plan.yaml'), '--device', 'cpu']) == 0
    with tarfile.open(place / 'out' / 'harvest.tar.gz') as tar:
        return dict(json.load(tar.extractfile('harvest.json')))  # type: ignore[arg-type]


def test_what_does_not_fit_is_left_with_a_line(
    tools: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step that takes too long is ended, one that does not work is no end of the others, and what is done is done."""
    plan = """
        steps:
          - {name: endless, command: "python -c 'import time; time.sleep(99)'", most: 14}
          - {name: wrong, command: "python -c 'raise SystemExit(\\"no GPU here\\")'"}
          - {name: right, command: "python -c print(7)"}
          - {name: long, command: "python -c print(8)", least: 5000}
    """
    state = visit(tools.gpu, tmp_path, plan, '5m')
    assert {name: step['state'] for name, step in state['steps'].items()} == {
        'endless': 'failed', 'wrong': 'failed', 'right': 'done', 'long': 'left',
    }  # fmt: skip
    output = capsys.readouterr().out
    assert 'long: needs 5000 s, 2' in output
    assert 'wrong: FAILED with exit code 1: no GPU here' in output
    assert 'endless: FAILED: had not ended after 14 s' in output
    again = visit(tools.gpu, tmp_path, plan, '31s')
    assert [again['steps'][name] == state['steps'][name] for name in ('right', 'wrong')] == [True, True]
    assert [visit['budget'] for visit in again['visits']] == [300, 31]
    assert re.search('wrong: needs 0 s, [01] s are left', capsys.readouterr().out)
    with tarfile.open(tmp_path / 'out' / 'harvest.tar.gz') as tar:
        assert tar.extractfile('logs/right.log').read() == b'7\n'  # type: ignore[union-attr]
        told = tar.extractfile('logs/endless.log').read()  # type: ignore[union-attr]
        assert b'KeyboardInterrupt' in told, 'pytest tells its failures then'


def test_the_plan_names_what_there_is(tools: SimpleNamespace, tmp_path: Path) -> None:
    steps, _ = tools.gpu.read_plan(TOOLS / 'harvest.yaml')
    assert [step.name for step in steps][:5] == ['gpu-tests', 'to-90', 'gpu-kernels', 'claims-gpu', 'headline-gpu']
    known = (ROOT / 'benchmarks' / 'run.py').read_text()
    for step in steps:
        assert not step.study or find_study(step.study.replace('{root}', str(ROOT)))
        names = [word for word in step.benchmark.partition('--')[0].split() if f"'{word}': " not in known]
        assert not names
    mark = 'mark.' + 'gpu'  # else this file has it, too
    on_a_gpu = [path for path in (ROOT / 'tests').rglob('test_*.py') if mark in path.read_text()]
    assert {f'{{root}}/{path.relative_to(ROOT)}' for path in on_a_gpu} == {*steps[0].command.split()[6:]}
    kernels = {each.relative_to(ROOT).as_posix() for each in (ROOT / 'tests').rglob('test_*gpu.py')}
    assert {word.removeprefix('{root}/') for word in steps[2].command.split()[4:]} == kernels, 'all of them run'
    for mistake in ('7', '[{name: a}]', '[{name: ../a, command: x}]', '[{name: a, study: [b]}]'):
        (tmp_path / 'plan.yaml').write_text(f'steps: {mistake}')
        with pytest.raises(UserError, match='not a plan of a harvest'):
            tools.gpu.read_plan(tmp_path / 'plan.yaml')


def committed(place: Path) -> Path:
    """A harvest's folder with two trainings that are committed."""
    study = place / 'claims-x' / 'claims'
    for name in ('mish-seed1', 'relu-seed1'):
        (study / name).mkdir(parents=True)
        for file in (RESULTS / 'claims-cpu' / name).iterdir():
            (study / name / file.name).write_bytes(file.read_bytes())
        (study / name / 'last').mkdir()
        (study / name / 'last' / 'model.safetensors').write_bytes(b'weights')
    (study / 'begun-seed1').mkdir()
    (study / 'begun-seed1' / 'metrics.jsonl').write_text('{}')
    (study / 'study.yaml').write_bytes((RESULTS / 'claims-cpu' / 'study.yaml').read_bytes())
    (place / 'logs').mkdir()
    (place / 'logs' / 'claims-x.log').write_text(''.join(f'{number}\n' for number in range(1000)))
    (place / 'harvest.json').write_text('{"visits": [], "steps": {}}')
    return place


def names(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return set(tar.getnames())


def test_an_archive_has_results_and_no_more_than_fits(tools: SimpleNamespace, tmp_path: Path) -> None:
    harvest, archive = committed(tmp_path / 'work'), tmp_path / 'harvest.tar.gz'
    assert tools.archive.pack(harvest, archive) == []
    whole = names(archive)
    assert 'claims-x/claims/mish-seed1/predictions.safetensors' in whole
    assert not any('last' in name or 'begun' in name for name in whole)
    first = archive.read_bytes()
    tools.archive.unpack(archive, (tmp_path / 'again').mkdir() or tmp_path / 'again')
    assert (tmp_path / 'again' / 'logs' / 'claims-x.log').read_text().split() == [*map(str, range(800, 1000))]
    assert tools.archive.pack(tmp_path / 'again', archive) == []
    assert archive.read_bytes() == first
    left = tools.archive.pack(harvest, archive, len(first) - 100)
    assert left == ['logs/claims-x.log']
    assert names(archive) == whole - {*left}
    with pytest.raises(UserError, match='are the most: merge what it has'):
        tools.archive.pack(harvest, archive, len(first) // 2)
    assert names(archive) == whole - {*left}


def test_an_archive_is_not_replaced_by_a_folder_that_lacks_its_results(
    tools: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, work = tmp_path / 'out' / 'harvest.tar.gz', tmp_path / 'work'
    archive.parent.mkdir()
    tools.archive.pack(committed(tmp_path / 'newer'), archive)
    before = archive.read_bytes()
    work.mkdir()
    words = ['--budget', '5m', '--output', str(archive.parent), '--work-dir', str(work), '--device', 'cpu']
    assert tools.gpu.main(words) == 2
    assert f'error: {work}: lacks 12 results of {archive}, as ' in capsys.readouterr().err
    assert archive.read_bytes() == before


@pytest.mark.parametrize('option', ['--data-dir', '--timm-dir', '--output', '--work-dir'])
def test_a_wrong_place_costs_no_time_of_a_gpu(
    tools: SimpleNamespace, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'file').touch()
    places = {'--output': str(tmp_path / 'out'), '--work-dir': str(tmp_path / 'work'), option: f'{tmp_path}/file/x'}
    words = [word for pair in places.items() for word in pair]
    assert tools.gpu.main(['--budget', '5m', '--device', 'cpu', *words]) == 2
    assert f'{tmp_path}/file' in capsys.readouterr().err


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b'{}') -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data) if kind == tarfile.REGTYPE else 0, '/etc/passwd'
    return info, data


@pytest.mark.parametrize(
    ('bad', 'line'),
    [
        (member('logs/a.log', tarfile.SYMTYPE), 'a link'),
        (member('/tmp/harvest.json'), 'an absolute path'),
        (member('../harvest.json'), 'a path with "..'),
        (member('claims/claims/mish-seed1/last/model.safetensors'), 'is no result of a harvest'),
        (member('logs/a.py'), 'is no result of a harvest'),
        (member('claims/claims/mish-seed1/result.json'), 'result.json'),
    ],
)
def test_a_bad_archive_changes_nothing(
    tools: SimpleNamespace, tmp_path: Path, bad: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study = (RESULTS / 'claims-cpu' / 'study.yaml').read_bytes()
    with tarfile.open(tmp_path / 'harvest.tar.gz', 'w:gz') as tar:
        good = member('harvest.json', data=b'{"visits": []}'), member('claims/claims/study.yaml', data=study)
        for info, data in (*good, bad):
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    assert tools.merge_harvest.main([str(tmp_path / 'harvest.tar.gz'), '--docs', str(tmp_path / 'docs')]) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / 'docs').exists()


def test_a_training_is_not_replaced_by_another(tools: SimpleNamespace, tmp_path: Path) -> None:
    harvest, docs = committed(tmp_path / 'work'), tmp_path / 'docs'
    (harvest / 'speed-a' / 'speed').mkdir(parents=True)
    table = harvest / 'speed-a' / 'speed' / 'machine.json'
    table.write_text('{"hardware": {"gpu": "NVIDIA H200"}}')
    assert tools.merge_harvest.merge(harvest, docs) == ['claims-x']
    assert tools.merge_harvest.merge(harvest, docs) == ['claims-x'], 'the same once more'
    (harvest / 'harvest.json').write_text('{"visits": [1, 2], "steps": {}}')
    assert tools.merge_harvest.merge(harvest, docs) == ['claims-x'], 'it went on'
    (harvest / 'harvest.json').write_text('{"visits": [1], "steps": {}}')
    with pytest.raises(UserError, match='has visits that the archive lacks'):
        tools.merge_harvest.merge(harvest, docs)
    (harvest / 'harvest.json').write_text('{"visits": [1, 2], "steps": {}}')
    kept = {path.name for path in (docs / 'results' / 'claims-x').iterdir()}
    assert kept == {'mish-seed1', 'relu-seed1', 'study.yaml'}
    table.write_text('{"hardware": {"gpu": "NVIDIA H200"}, "rounds": []}')
    tools.merge_harvest.merge(harvest, docs)
    speeds = docs / 'results' / 'speed' / 'nvidia-h200'
    assert sorted(path.name for path in speeds.iterdir()) == ['machine-2.json', 'machine.json']
    result = harvest / 'claims-x' / 'claims' / 'mish-seed1' / 'result.json'
    result.write_text(result.read_text().replace('"command": "', '"command": "nice '))
    with pytest.raises(UserError, match=r'mish-seed1/result\.json: is another already'):
        tools.merge_harvest.merge(harvest, docs)
    (harvest / 'claims-x').rename(harvest / 'training')
    (docs / 'training.md').write_text('By hand.')
    with pytest.raises(UserError, match=r'training\.md: is no page of a study'):
        tools.merge_harvest.merge(harvest, docs)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_harvest_that_is_killed_goes_on_elsewhere_and_is_merged(folder: Path, tmp_path: Path) -> None:
    (tmp_path / 'to-5.yaml').write_text(SOON)
    (tmp_path / 'claims.yaml').write_text(CLAIMS)
    (tmp_path / 'plan.yaml').write_text(PLAN.replace('PLACE', str(tmp_path)))
    archive = tmp_path / 'out' / 'harvest.tar.gz'

    def command(work: str, *more: str) -> list[str]:
        words = ['--data-dir', folder, '--budget', '20m', '--output', archive.parent, '--work-dir', tmp_path / work]
        options = ['--plan', tmp_path / 'plan.yaml', '--device', 'cpu']
        return [sys.executable, str(TOOLS / 'harvest_gpu.py'), *map(str, [*words, *options, *more])]

    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    first = 'to-5/to-5/one-seed1/result.json'
    with subprocess.Popen(command('here'), env=env, stdout=subprocess.PIPE, text=True) as process:
        while not archive.exists() or first not in names(archive):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    while ProcessLock.is_held(tmp_path / 'here' / 'to-5' / 'to-5' / '.lock'):
        time.sleep(0.1)
    with tarfile.open(archive) as tar:
        before = tar.extractfile(first).read()  # type: ignore[union-attr]

    done = subprocess.run(command('there'), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as tar:
        assert tar.extractfile(first).read() == before, 'it was not trained again'  # type: ignore[union-attr]
        state = json.load(tar.extractfile('harvest.json'))  # type: ignore[arg-type]
    assert {name: step['state'] for name, step in state['steps'].items()} == {
        'gpu-tests': 'failed', 'to-5': 'done', 'claims-small': 'done', 'speed-machine': 'done', 'speed-timm': 'left',
        'too-long': 'left',
    }, done.stdout  # fmt: skip
    assert len(state['visits']) == 2
    assert sorted(state['steps']['to-5']['values']) == ['one-seed1', 'one-seed2']
    assert 'speed-timm: needs --timm-dir' in done.stdout
    assert not any('safetensors' in name and 'predictions' not in name for name in names(archive))

    merge = [sys.executable, str(TOOLS / 'merge_harvest.py'), str(archive), '--docs', str(tmp_path / 'docs')]
    for _ in range(2):
        merged = subprocess.run(merge, env=env, capture_output=True, text=True)
        assert merged.returncode == 0, merged.stderr
    docs = tmp_path / 'docs'
    assert 'The larger rate is better.' in (docs / 'claims-small.md').read_text()
    assert 'one' in (docs / 'to-5.md').read_text()
    assert {path.name for path in (docs / 'results').iterdir()} == {'claims-small', 'harvest', 'speed', 'to-5'}
    assert len(list((docs / 'results' / 'speed').glob('*/machine.json'))) == 1
    study = yaml.safe_load((docs / 'results' / 'claims-small' / 'study.yaml').read_text())
    assert sorted(study['runs']) == ['fast', 'slow']
