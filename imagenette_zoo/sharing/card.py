"""The card of a published model: what it is, what it attains, how it was trained and how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..config.groups import OWN_OPTION
from ..config.recipe import Recipe
from ..data.constants import FILES_HASH, LABEL_NAMES
from ..errors import UserError
from ..models.own import references
from ..report.page import escape_markdown
from ..study.records import Record, read_record
from ..utils.console import counted, duration

__all__ = ['CardFacts', 'Trained', 'model_card', 'needs_zoo', 'read_trained']

INSTALL = 'While imagenette-zoo is not on PyPI, install its wheel or a checkout: `pip install PATH`.'
# Paths of one machine, or decide nothing.
UNTOLD = {*Recipe.may_differ('in a repeat'), 'initial_checkpoint', 'class_map'}


@dataclass(frozen=True)
class Trained:
    """A finished run, and what the weights of one of its epochs attained on the validation images.

    Args:
        record: The run.
        epoch: That whose weights these are, the first is 0.
        top1: In %, as `top5` and `per_class`.
        top5: See `top1`.
        loss: Cross-entropy.
        per_class: Top-1 of each class.
    """

    record: Record
    epoch: int
    top1: float
    top5: float
    loss: float
    per_class: dict[str, float]


@dataclass(frozen=True)
class CardFacts:
    """The content of a card.

    Args:
        repo_id: `OWNER/NAME` on the Hub, with `@REVISION` where it is not the main branch.
        config: The model's `config.json`.
        labels: The names of its classes, where they are known.
        params: Number of its parameters.
        gmacs: 10^9 multiply-accumulates for one image, None where unknown.
        license: The Hub's name of the weights' licence.
        trained: How the weights came about, None where nobody knows.
        figures: Files of pictures beside the card, and what each shows.
    """

    repo_id: str
    config: dict[str, Any]
    labels: Sequence[str]
    params: int
    gmacs: float | None
    license: str
    trained: Trained | None
    figures: Sequence[tuple[str, str]] = ()

    @property
    def on_imagenette(self) -> bool:
        """Whether its data were all images of Imagenette, in any size; a subset has other scores."""
        return self.trained is not None and self.trained.record.result.dataset.get('files') == FILES_HASH


def read_trained(run: Path, weights: str) -> Trained:
    """Reads the scores of the weights in one of a finished run's folders.

    Args:
        run: Its folder.
        weights: `last`, `best` or `epoch-N`.

    Raises:
        UserError: The run is damaged, or has no scores of that epoch.
    """
    record = read_record(run, run.name)
    result, last = record.result, record.result.epochs - 1
    named = weights.removeprefix('epoch-')
    epoch = {'last': last, 'best': result.best_epoch}.get(weights, int(named) if named.isdecimal() else -1)
    if epoch == last:
        return Trained(record, epoch, result.top1, result.top5, result.loss, result.per_class)
    try:
        row = next(row for row in record.history if row.get('epoch') == epoch)
        top1, top5, loss = (float(row[f'eval_{name}']) for name in ('top1', 'top5', 'loss'))
        per_class = {str(name): float(top1) for name, top1 in row['per_class'].items()}
    except (StopIteration, LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f'{run / "metrics.jsonl"}: no scores of the weights in {weights}: publish {run}') from None
    return Trained(record, epoch, top1, top5, loss, per_class)


def needs_zoo(config: Mapping[str, Any]) -> bool:
    """Whether imagenette-zoo alone can build a model: of its author's code, or with layers by `module:attribute`."""
    return bool(config.get('device_modules')) or any(references(config.get('model_args')))


def model_card(facts: CardFacts) -> ModelCard:
    """The card: metadata in the Hub's form, with the accuracies as its `model-index`, and the text."""
    text = f'---\n{_metadata(facts).to_yaml()}\n---\n\n{_text(facts)}'
    return ModelCard(text.encode(errors='replace').decode())  # names of folders may be no Unicode


def _metadata(facts: CardFacts) -> ModelCardData:
    known: dict[str, Any] = {'datasets': ['frgfm/imagenette']} if facts.on_imagenette else {}
    if trained := facts.trained:
        dataset = trained.record.result.dataset
        of_all: dict[str, Any] = {
            'task_type': 'image-classification',
            'task_name': 'Image classification',
            'dataset_type': 'frgfm/imagenette' if facts.on_imagenette else 'imagefolder',
            'dataset_name': str(dataset.get('name')),
            'dataset_split': str(trained.record.result.recipe.get('val_split')),
            'dataset_args': {name: dataset[name] for name in ('train', 'val', 'hash') if name in dataset},
        }
        metrics = (('accuracy', 'Top-1 accuracy', trained.top1), ('top_5_accuracy', 'Top-5 accuracy', trained.top5))
        known |= {
            'model_name': facts.repo_id.partition('@')[0].rpartition('/')[2],
            'metrics': ['accuracy'],
            'eval_results': [
                EvalResult(**of_all, metric_type=kind, metric_name=name, metric_value=round(value / 100, 6))
                for kind, name, value in metrics
            ],
        }
    return ModelCardData(
        library_name='timm',
        license=facts.license,
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *([] if needs_zoo(facts.config) else ['transformers']), 'imagenette-zoo'],
        **known,
    )


def _text(facts: CardFacts) -> str:
    parts = [*_head(facts), *_usage(facts)]
    if facts.trained is not None:
        parts += [*_evaluation(facts, facts.trained), *_training(facts, facts.trained)]
    else:
        parts.append('## Evaluation\n\nNothing is known of its accuracy and training: its run is not at hand.')
    return '\n\n'.join([*parts, *_limits(facts)]) + '\n'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _plain(text: object) -> str:
    return str(escape_markdown(str(text)))


def _head(facts: CardFacts) -> Iterator[str]:
    cfg = facts.config['pretrained_cfg']
    yield f'# {facts.repo_id.partition("@")[0].rpartition("/")[2]}'
    about = f'An image classifier of {facts.config["num_classes"]} classes: `{facts.config["architecture"]}`'
    yield about + (f', {_plain(cfg["description"])}.' if cfg.get('description') else '.')
    rows = [('parameters', f'{facts.params / 1e6:.2f} M')]
    if facts.gmacs is not None:
        rows.append(('GMACs of one image', f'{facts.gmacs:.2f}'))
    rows.append(('image size', '×'.join(map(str, cfg.get('input_size', ())[1:])) + ' px'))
    if trained := facts.trained:
        rows += [(name, f'{getattr(trained, name.replace("-", "")):.2f} %') for name in ('top-1', 'top-5')]
        rows.append(('loss', f'{trained.loss:.3f}'))
    yield _table(('', ''), rows)


def _usage(facts: CardFacts) -> Iterator[str]:
    if needs_zoo(facts.config):
        yield _usage_with_the_zoo(facts, facts.config.get('device_modules', {}))
        return
    ours = timm.models.model_entrypoint(facts.config['architecture']).__module__.startswith('imagenette_zoo')
    registers = 'import imagenette_zoo  # registers the architecture with timm\n' if ours else ''
    names = facts.config.get('label_names') or facts.config['pretrained_cfg'].get('label_names')
    label = "model.pretrained_cfg['label_names'][index]" if isinstance(names, list) else 'index.item()'
    repo, _, revision = facts.repo_id.partition('@')
    mode = {1: 'L', 4: 'RGBA'}.get((facts.config['pretrained_cfg'].get('input_size') or (3,))[0], 'RGB')
    as_it_is = "    image = Image.frombytes('CMYK', image.size, image.tobytes())  # RGBA is resized by its opacity\n"
    needs = f'Needs timm and imagenette-zoo. {INSTALL}\n\n' if ours else ''
    yield f"""## Use

{needs}```python
{registers}import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model('hf-hub:{facts.repo_id}', pretrained=True).eval()
config = timm.data.resolve_data_config({{}}, model=model)
transform = timm.data.create_transform(**config)
with torch.inference_mode():
    image = Image.open('image.jpg', formats=['JPEG', 'PNG', 'WEBP'])
    image = ImageOps.exif_transpose(image).convert({mode!r})  # upright
{as_it_is if mode == 'RGBA' else ''}    logits = model(transform(image)[None])
probability, index = logits.softmax(1)[0].max(0)
print({label}, f'{{probability:.1%}}')
```

`num_classes=N` gives it a new head to train, `features_only=True` makes a backbone of it."""
    if mode == 'RGB':  # in which transformers reads every image
        yield f"""With transformers ≥ 5:

```python
{registers}from transformers import pipeline

classify = pipeline('image-classification', model={repo!r}{f', revision={revision!r}' if revision else ''})
print(classify('image.jpg'))
```

`AutoModelForImageClassification` and `AutoImageProcessor` load it, too. Images are prepared as above.
`imagenette-zoo predict` differs for 16-bit images only: it scales them, while here what is above 255 becomes white."""


def _usage_with_the_zoo(facts: CardFacts, code: Mapping[str, str]) -> str:
    """How a model is used that imagenette-zoo alone can build. Of the author's code files are in the repository,
    packages are not."""
    repo, _, revision = facts.repo_id.partition('@')
    folder = repo.rpartition('/')[2]
    needs, flags = f'Needs imagenette-zoo. {INSTALL}', ''
    if code:
        shown = ', '.join(f'`{name}` (SHA-256 {sha256})' for name, sha256 in code.items())
        needs = (
            f'Needs imagenette-zoo and code of the author: {shown}. A file is in this repository, a package is to be '
            f'installed. Read the code before you run it. {INSTALL}'
        )
        modules = ' '.join(f'{folder}/{name}' if name.endswith('.py') else name for name in code)
        flags = f' --device-modules {modules}'
    return f"""## Use

{needs}

```bash
hf download {repo} {f'--revision {revision} ' if revision else ''}--local-dir {folder}
imagenette-zoo predict image.jpg --model {folder}{flags}
```"""


def _evaluation(facts: CardFacts, trained: Trained) -> Iterator[str]:
    result = trained.record.result
    yield '## Evaluation'
    about = (
        f'On the {result.dataset.get("val")} validation images of {_plain(result.dataset.get("name"))}, each seen '
        f'once (no test-time augmentation), with the weights after epoch {trained.epoch + 1} of {result.epochs}.'
    )
    if trained.epoch != result.epochs - 1:
        about += (
            f' That epoch was chosen by these same images, which flatters it: the last epoch has {result.top1:.2f} %.'
        )
    yield about
    if dataset_hash := result.dataset.get('hash'):
        yield f'The hash of the training and validation images: `{_plain(dataset_hash)}`.'
    yield from _parts(result.recipe)
    yield _table(('class', 'top-1 %'), [(_plain(name), f'{top1:.1f}') for name, top1 in trained.per_class.items()])
    yield from (f'![{_plain(title)}]({file})' for file, title in facts.figures)


def _parts(recipe: Mapping[str, Any]) -> Iterator[str]:
    """How the data differ from those of the folder: slices and wrong labels."""
    splits = {'Training': recipe.get('train_split'), 'Validation': recipe.get('val_split')}
    if slices := [f'{what} is on the slice {_plain(split)}.' for what, split in splits.items() if '[' in str(split)]:
        yield ' '.join(slices)
    if noise := recipe.get('label_noise'):
        yield f"{noise} % of the training labels are wrong on purpose (Imagenette's `noisy_labels_{noise}`)."


def _training(facts: CardFacts, trained: Trained) -> Iterator[str]:
    result = trained.record.result
    hardware = result.hardware.get('gpu') or result.hardware.get('cpu')
    versions = ', '.join(f'{name} {version}' for name, version in result.versions.items())
    pretrained = result.recipe.get('pretrained') or result.recipe.get('initial_checkpoint')
    yield '## Training'
    yield (
        f'{"From weights that were trained before" if pretrained else "From random weights"} on the '
        f'{result.dataset.get("train")} training images of {_plain(result.dataset.get("name"))}; '
        f'{counted(result.epochs, "epoch")} in {duration(result.seconds.get("total") or 0.0)} on {_plain(hardware)}; '
        f'{_plain(versions)}. '
        'The recipe (`imagenette-zoo train -c FILE`), what differs from the defaults:'
    )
    defaults = Recipe().as_dict()
    recipe = {
        name: value
        for name, value in result.recipe.items()
        if name in defaults and name not in UNTOLD and value != defaults[name]
    }
    if str(recipe.get('model')).startswith('local-dir:'):  # a path, too
        recipe['model'] = facts.config['architecture']
        args = facts.config.get('model_args', {})
        if own := {name: value for name, value in args.items() if name not in OWN_OPTION}:
            recipe['model_kwargs'] = own
        if 'global_pool' in args:
            recipe.setdefault('gp', args['global_pool'])
    teacher = str(recipe.get('kd_model_name', ''))
    if teacher and not (timm.is_model(teacher) or teacher.startswith(('hf-hub:', 'hf_hub:'))):  # a path
        recipe['kd_model_name'] = f'a folder, the SHA-256 of its model.safetensors is {result.teacher}'
    yield f'```yaml\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}```'


def _limits(facts: CardFacts) -> Iterator[str]:
    some = ', '.join(map(_plain, facts.labels[:12])) + (', …' if len(facts.labels) > 12 else '')
    yield '## Limits'
    known = f'It knows these classes only: {some}. ' if some else ''
    tested = ' It was tested on images like those it was trained on, and on no others.' if facts.trained else ''
    yield (
        f'{known}Any image gets one of its classes, also one that shows none of them, and a high probability is no '
        f'proof.{tested}'
    )
    yield '## Licence'
    data = (
        ' Imagenette is a part of ImageNet, whose images belong to their owners and are given for non-commercial '
        'research and education (https://www.image-net.org/download).'
        if set(facts.labels) == set(LABEL_NAMES)
        else ''
    )
    yield f'The weights: {_plain(facts.license)}.{data}'
