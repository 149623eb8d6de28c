"""Tables of README and docs, made of the result files behind them; `tools/figures.py` puts them into their pages.

In a page a table stands between `<!-- table: NAME -->` and the next blank line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import leaderboard
import zoo_results

from imagenette_zoo.config.zoo_models import MODELS
from imagenette_zoo.errors import UserError
from imagenette_zoo.report.section import mean_text, stat_of
from imagenette_zoo.study.baselines import read_baselines
from imagenette_zoo.study.metrics import METRICS, TO_AN_ACCURACY
from imagenette_zoo.study.plan import read_study
from imagenette_zoo.study.records import as_run, by_run, study_records

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'docs' / 'results'
MARK = re.compile(r'(?<=<!-- table: )([\w-]+)( -->\n)(?:\|.*\n)*')


class Row(NamedTuple):
    """A comparison of two sides of a result file. `ours` and `other` name them; of a text they find their numbers.

    Args:
        label: With the unit at its end. Of seconds and ms the smaller is the better.
        file: Below docs/results/speed.
        aim: For the ratio.
    """

    label: str
    file: str
    ours: str = 'ours'
    other: str = 'timm'
    aim: str = ''

    def rounds(self, side: str) -> list[float]:
        text = (RESULTS / 'speed' / self.file).read_text()
        numbers = json.loads(text)['rounds'].get(side) if self.file.endswith('.json') else re.findall(side, text)
        if not numbers:
            raise UserError(f'docs/results/speed/{self.file}: has no {side!r}')
        return [float(number) for number in numbers]

    def ratio(self) -> float:
        """The median of the rounds' ratios; where the sides have unlike numbers of rounds, that of the medians."""
        ours, other = self.rounds(self.ours), self.rounds(self.other)
        if self.label.endswith((' s', ' ms')):
            ours, other = other, ours
        if len(ours) != len(other):
            return median(ours) / median(other)
        return median(a / b for a, b in zip(ours, other, strict=True))

    def cells(self) -> list[str]:
        numbers = [digits(median(self.rounds(side))) for side in (self.ours, self.other)]
        return [self.label, *numbers, f'{self.ratio():.2f}', self.aim, _link(self.file)]


def digits(number: float) -> str:
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


def times(number: float) -> str:
    return f'{number:.0f}' if number >= 10 else f'{number:.1f}'


def training(model: str, folder: str = '', aim: str = '', other: str = 'timm') -> Row:
    label = f'training `{model}`, images/s' if other == 'timm' else "the same against `--torchcompile` in timm's"
    return Row(label, f'{folder}train-{model}.json', other=other, aim=aim)


def memory(model: str, folder: str = '', what: str = 'peak memory', aim: str = '') -> Row:
    return Row(f'{what} in training `{model}`, MiB', f'{folder}memory-{model}.json', aim=aim)


def validation(folder: str = '', aim: str = '') -> list[Row]:
    rows = [Row('validation, images/s', f'{folder}validate.json', aim=aim)]
    if folder != 'bfloat16/':
        rows.append(Row('the same with `--reparam`', f'{folder}validate.json', 'ours --reparam'))
    return [
        *rows,
        Row("the validation's whole process, images decoded before, s", f'{folder}validate-process.json'),
        Row('the same, the first time, s', f'{folder}validate-process.json', 'ours, first time'),
    ]


MODELS_TIMED = ('mbv2_mish_imagenette', 'mbv2_imagenette', 'resnet50')
FLAGSHIP = MODELS_TIMED[0]
COMPILED = 'timm --torchcompile'
FUSED = 'mbv2_mish_mp3_imagenette'
STEPS = 'h200/steps-kernels.txt'
RESIDENT, FUSED_SIDES = ('real batches', 'resident batch'), ('fused', 'as trained')


def both(pattern: str, ours: object = True, other: object = False) -> tuple[str, str]:
    """What finds the numbers of both sides in a text."""
    return pattern.format(ours), pattern.format(other)


SPEED = {
    'against-timm': [
        training(FLAGSHIP, aim='≥ 2.0'),
        training(FLAGSHIP, other=COMPILED),
        training('mbv2_imagenette', aim='≥ 1.1'),
        training('resnet50', aim='≥ 1.1'),
        training('resnet50', other=COMPILED),
        Row('input pipeline alone, images/s', 'pipeline.json', other='timm\'s loader', aim='≥ 8'),
        Row('training on real batches over one resident batch, images/s', 'loop.json', *RESIDENT, '≥ 0.95'),
        *validation(aim='≥ 1.5'),
        Row(f'`{FUSED}` in evaluation, fused over as trained, images/s', 'fused.json', *FUSED_SIDES, '≥ 1.4'),
        Row('the same by `validate.py`, images/s', 'fused.json', *(f'{side}, validate.py' for side in FUSED_SIDES)),
        *(memory(model, aim='≤ 1.1') for model in MODELS_TIMED),
    ],
    'against-timm-bfloat16': [
        *(training(model, 'bfloat16/') for model in MODELS_TIMED),
        *validation('bfloat16/'),
        *(memory(model, 'bfloat16/') for model in MODELS_TIMED),
    ],
    'against-timm-h200': [
        training(FLAGSHIP, 'h200/', '≥ 4'),
        training('resnet50', 'h200/', '≥ 2'),
        training('mbv2_imagenette', 'h200/', '≥ 2'),
        Row('input pipeline alone, images/s', 'h200/pipeline.json', other='timm\'s loader', aim='≥ 50,000 images/s'),
        *validation('h200/', '≥ 3'),
        *(memory(model, 'h200/', 'the GPU\'s memory') for model in (FLAGSHIP, 'resnet50')),
    ],
    'with-and-without-h200': [
        Row('training on real batches over one resident batch, images/s', 'h200/loop.json', *RESIDENT, '≥ 0.90'),
        Row(f'`{FUSED}` in evaluation, fused over as trained, images/s', 'h200/fused.json', *FUSED_SIDES, '≥ 1.4'),
        *(
            Row(f'recorded steps of `{model}`, images/s', f'h200/recorded-{model}.json', 'recorded', 'eager')
            for model in (FLAGSHIP, 'resnet50', 'mbv2_imagenette')
        ),
        Row(
            'recorded steps of the flagship in float16 (`--amp`), images/s', 'h200/float16.txt',
            *both(r"'float16', 'cuda_graph': '{}', .* (\d+) images/s", 'auto', 'none'),
        ),
        *(
            Row(label, 'h200/convolutions-steps.txt', *both(rf'(?m)^{FLAGSHIP}:64 ours={{}}: {number}'))
            for label, number in (
                ("convolutions without plans: the flagship's first step, s", r'.*first \[([\d.]+)'),
                ('the same: its later steps, ms', r'([\d.]+)'),
            )
        ),
        *(
            Row(f'our Triton kernels, a step of `{model}`, ms', STEPS, *both(rf'(?m)^{model}:\d+ fused={{}}: ([\d.]+)'))
            for model in (*MODELS_TIMED, 'seresnet18d_mish_maxblur_imagenette')
        ),
        Row('crops\' filters by one kernel, images/s', STEPS, *both(r'pipeline 64 filter={}: (\d+) images/s')),
    ],
    'compiled': [
        Row(f'`{model}`, {folder[:-1] or "float32"}, images/s', f'{folder}compiled-{model}.json', 'compiled', 'eager')
        for model, folder in (
            ('mbv2_imagenette', 'bfloat16/'), ('mbv2_imagenette', ''), ('resnet50', 'bfloat16/'),
            ('efficientnet_b0', 'bfloat16/'),
        )
    ],
    'layout': [
        Row(f'`{model}`', 'layout.json', f'{model}, channels-last', model)
        for model in (
            'mbv2_imagenette', 'mbv2_mish_imagenette', 'mbv2_mish_maxblur_imagenette', FUSED,
            'seresnet18d_mish_maxblur_imagenette', 'googlenet', 'resnet50', 'efficientnet_b0', 'convnext_atto',
            'vit_tiny_patch16_224',
        )
    ],
}  # fmt: skip
HEADS = {
    'compiled': ('compiled', 'eager'),
    'layout': ('channels-last, images/s', 'otherwise'),
    'with-and-without-h200': ('with', 'without'),
}


def tables() -> dict[str, str]:
    """Every table by its name in the pages."""
    made = {
        name: _table(
            ('', *HEADS.get(name, ('ours', 'timm, or the other')), 'ratio', 'aim', 'file'), map(Row.cells, rows)
        )
        for name, rows in SPEED.items()
    }
    ways = ('onnxruntime', 'PyTorch', 'PyTorch, fused', 'PyTorch, fused and compiled')
    return {
        **made,
        'headlines': _table(('', 'ours', 'to compare'), _headlines()),
        'times-as-fast': _table(("times as fast as timm's", *PLACES), _times_as_fast()),
        'ablation': _table(('', 'images/s', 'page faults a step', *(f'{name}, ms' for name in OPERATORS)), _ablation()),
        'metrics': _table(
            ('metric', 'meaning'),
            ([f'`{name}`', metric.meaning] for name, metric in {**METRICS, **TO_AN_ACCURACY}.items()),
        ),
        'busy': _table(('images/s', *(f'{others} competing' for others in COMPETING)), _busy()),
        'start': _table(('', 'images decoded before', 'the first time'), _start()),
        'to-80': _table(('', 'ours', 'timm', 'ratio', 'file'), _to_80()),
        'export': _table(('', *ways, 'file'), _export(ways)),
        'benchmark': _table(zoo_results.HEAD, zoo_results.table_rows(read_baselines())),
        'models': _table(('name', 'M parameters', 'GMACs', 'what it is'), _models()),
        'weights': _table(('name', 'top-1 %, images squeezed', 'px', 'M parameters', 'file', 'trained by'), _weights()),
    }


def put(page: str, made: dict[str, str]) -> str:
    """A page with its tables. Raises `KeyError` where it wants one that there is not."""
    return MARK.sub(lambda found: f'{found[1]}{found[2]}{made[found[1]]}', page)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of numbers are on the right, and empty ones are left out."""
    rows = list(rows)
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    head, rows = [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
    numbers = [all(re.fullmatch(r'[\d.,±≥≤* %s-]*', row[i]) for row in rows) for i in range(len(head))]
    lines = [head, ['---:' if right else '---' for right in numbers], *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def _headlines() -> Iterator[tuple[str, str, str]]:
    for data, noise, what in (
        ('imagenette', 0, 'Imagenette, 128 px, 5 epochs, top-1'),
        ('imagenette', 5, 'The same with 5 % wrong labels'),
        ('imagewoof', 0, 'Imagewoof by the same recipe, of which nothing was chosen there'),
    ):
        key = (data, noise, 128)
        best = max(
            (runs for row, runs in leaderboard.rows() if row == '128px_5e' and leaderboard.key(runs[0]) == key),
            key=leaderboard.mean_top1,
        )
        more = f' ([leaderboard](docs/leaderboard.md), {len(best)} seeds)'
        yield (
            what + more,
            f'**{leaderboard.mean_top1(best):.2f} %**',
            f'{leaderboard.RECORDS[key][0]:.2f} % is the record',
        )
    ranges = [
        [row.ratio() for name in names for row in SPEED[name] if re.match('training `', row.label)]
        for names in (('against-timm', 'against-timm-bfloat16'), ('against-timm-h200',))
    ]
    cpu, gpu = (f'{times(min(ratios))}–{times(max(ratios))}' for ratios in ranges)
    what = "Training beside timm's script, two CPU cores and one H200 ([performance](docs/performance.md))"
    yield what, f'**{cpu} and {gpu} times as fast**', ''
    name, top1 = max(((name, _top1(name)) for name in WEIGHTS), key=lambda each: each[1])
    size = f'{MODELS[name][0] / 1e6:.1f} M parameters, {_mebibytes(name)} MiB'
    yield (
        f'Weights in the package: {size}, 224 px, top-1 of one run ([models](docs/models.md))',
        f'**{top1:.2f} %**',
        '',
    )


PLACES = {
    'two CPU cores': 'against-timm',
    'in bfloat16': 'against-timm-bfloat16',
    'one H200, bfloat16 (one pair each)': 'against-timm-h200',
}


def _times_as_fast() -> Iterator[list[str]]:
    places = [{row.label: row for row in SPEED[name]} for name in PLACES.values()]
    for label in (
        *(f'training `{model}`, images/s' for model in MODELS_TIMED),
        'validation, images/s',
        "the validation's whole process, images decoded before, s",
        'the same, the first time, s',
        'input pipeline alone, images/s',
    ):
        cells = [times(rows[label].ratio()) if label in rows else '' for rows in places]
        yield [label.rpartition(',')[0].replace('the same', "the validation's whole process"), *cells]
    names = [TO_80[key] for key in list(TO_80)[:2]]
    ratios = [times(_reached(name, 'timm')[1] / _reached(name, 'ours')[1]) for name in names]
    yield ['time to 80 % top-1 (two pairs)', '', ', '.join(ratios), '']


COMPETING = 0, 2
COMPETITORS = 'ours', "ours, OpenMP's own wait", 'ours, one thread', 'timm'


def _busy() -> Iterator[list[str]]:
    rounds = json.loads((RESULTS / 'speed' / 'busy-mbv2_mish_imagenette.json').read_text())['rounds']
    for name in COMPETITORS:
        yield [name, *(digits(median(rounds[f'{name}, {others} competing'])) for others in COMPETING)]


STARTS = {'ours': 'ours', 'ours, earlier': 'ours, on 2026-11-26', 'timm': "timm's script"}


def _start() -> Iterator[list[str]]:
    rounds = json.loads((RESULTS / 'speed' / 'start-mbv2_mish_imagenette.json').read_text())['rounds']
    for name, label in STARTS.items():
        seconds = (rounds.get(side) for side in (name, f'{name}, the first time'))
        yield [label, *(f'{median(each):.1f} s' if each else '' for each in seconds)]


TO_80 = {  # by seed and Muon
    (0, 'three steps of Newton–Schulz, as the recipe is now'): 'to-80-three-steps-seed0',
    (42, 'three'): 'to-80-three-steps-seed42',
    (0, 'five'): 'to-80-seed0',
    (42, 'five'): 'to-80-timm-ours',
}


STEPS_WITH = {
    'torch': "timm's way: eager, torch's Mish",
    'memory': '+ freed memory reused',
    'memory+mish': '+ one-kernel Mish',
    'memory+mish+compile': '+ `--torchcompile`',
}
OPERATORS = {  # forward and backward
    'convolutions': 'aten::(mkldnn_convolution|convolution_backward)$',
    'BatchNorm': 'aten::native_batch_norm',
    'Mish': 'aten::mish_|_FusedMish|## Call CompiledFxGraph None',
    'BatchNorm with Mish': r'## Call CompiledFxGraph f\w+ ##',
    'copies': 'aten::copy_$',
}


def _ablation() -> Iterator[list[str]]:
    found = json.loads((RESULTS / 'speed' / 'ablation.json').read_text())
    for name, label in STEPS_WITH.items():
        step = found['details'][name]
        spent = [
            sum(ms for operator, ms in step['operators_ms'].items() if re.match(pattern, operator))
            for pattern in OPERATORS.values()
        ]
        faults = f'{step["page_faults_a_step"]:,.0f}'
        yield [label, digits(median(found['rounds'][name])), faults, *(f'{ms:.0f}' if ms else '' for ms in spent)]


def _to_80() -> Iterator[list[str]]:
    for (seed, steps), name in TO_80.items():
        sides = [_reached(name, side) for side in ('ours', 'timm')]
        cells = [f'{seconds:,.0f} s, {epoch}th epoch' for epoch, seconds in sides]
        yield [f'seed {seed}, {steps}', *cells, f'{sides[1][1] / sides[0][1]:.2f}', _link(f'{name}.json')]


def _reached(name: str, side: str) -> tuple[int, float]:
    """The epoch after which 80 % was reached, and the seconds from the start of the process until then."""
    epochs = json.loads((RESULTS / 'speed' / f'{name}.json').read_text())['details'][side]
    epochs = epochs[0] if isinstance(epochs[0], list) else epochs
    return next((i, epoch['seconds']) for i, epoch in enumerate(epochs, 1) if epoch['top1'] >= 80)


def _export(ways: Sequence[str]) -> Iterator[list[str]]:
    for model in ('mbv2_mish_imagenette', 'mbv2_imagenette', 'resnet50'):
        file = f'export-{model}.json'
        rounds = json.loads((RESULTS / 'speed' / file).read_text())['rounds']
        for batch in (1, 16):
            rates = (digits(median(rounds[f'{way}, batch {batch}'])) for way in ways)
            yield [f'`{model}`, batch {batch}', *rates, _link(file)]


HEADLINE = '', 'MobileNetV2, study', 'ResNet-50, study', 'MobileNetV2, here', 'ResNet-50, here'
STUDY = {  # top-1 of its modified MobileNetV2 and of its raw ResNet-50, %
    'tench': (94.8, 93.0),
    'English springer': (93.9, 95.9),
    'cassette player': (91.9, 81.2),
    'chain saw': (80.8, 74.4),
    'church': (90.7, 90.2),
    'French horn': (88.1, 91.9),
    'garbage truck': (90.7, 89.5),
    'gas pump': (85.0, 77.8),
    'golf ball': (91.7, 84.7),
    'parachute': (90.0, 89.7),
    'all': (90.0, 87.0),
}


def headline(folder: Path) -> str:
    """Top-1 by class: the study's, and that of the seeds of its two models in the folder of a study."""
    study = as_run(read_study(folder / 'study.yaml'), folder)
    trained = by_run(study_records(study, folder))
    runs = [trained.get(name, []) for name in study.runs]
    rows = []
    for name, theirs in STUDY.items():
        ours = [[each.result.top1 if name == 'all' else each.result.per_class[name] for each in run] for run in runs]
        means = [mean_text(stat_of(each), 'top1') if each else '' for each in ours]
        rows.append([name, *(f'{top1:.1f}' for top1 in theirs), *means])
    return _table(HEADLINE, rows)


def _models() -> Iterator[list[str]]:
    for name, (parameters, gmacs, description) in MODELS.items():
        yield [f'`{name}`', f'{parameters / 1e6:.2f}', f'{gmacs:.2f}', description]


WEIGHTS = {  # how each was trained
    'mbv2_mish_imagenette': '[`mbv2_mish_pretrained`](../hparams/mbv2_mish_pretrained.yaml), 90 epochs on two cores '
    '([the run](results/pretrained.md))',
    'mbv2_mish_maxblur_imagenette': 'the same with `--model mbv2_mish_maxblur_imagenette`',
    'mbv2_mish_blur_imagenette': 'the same with `--model mbv2_mish_blur_imagenette`',
    'mbv2_imagenette': 'the same with `--model mbv2_imagenette`; one run each, which decides nothing about the models',
}


def _weights() -> Iterator[list[str]]:
    for name, how in WEIGHTS.items():
        yield [f'`{name}`', f'{_top1(name):.2f}', '224', f'{MODELS[name][0] / 1e6:.2f}', f'{_mebibytes(name)} MiB', how]


def _top1(name: str) -> float:
    return float(json.loads((RESULTS / 'pretrained' / f'{name}.json').read_text())['packaged']['top1'])


def _mebibytes(name: str) -> str:
    return f'{(ROOT / "imagenette_zoo" / "models" / "weights" / f"{name}.safetensors").stat().st_size / 2**20:.1f}'


def _link(file: str) -> str:
    return f'[file](results/speed/{file})'
