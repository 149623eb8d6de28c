"""imagenette-zoo passes: likeness of passes and what each is worth."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from imagenette_zoo.cli.main import main
from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.config.uses import PassesOptions
from imagenette_zoo.data import cache
from imagenette_zoo.errors import UserError
from imagenette_zoo.inference import evaluate
from imagenette_zoo.layers import MultiPass
from imagenette_zoo.study import passes
from imagenette_zoo.study.passes import compare_passes
from imagenette_zoo.training.trainer import train

MakeRecipe = Callable[..., Recipe]


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Kornblith et al. 2019, section 3, on `(examples, features)`, by Gram matrices."""

    def gram(z: torch.Tensor) -> torch.Tensor:
        z = z - z.mean(0)
        return z @ z.T

    a, b = gram(x.double()), gram(y.double())
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_similarity_is_that_of_the_paper_whatever_the_batches() -> None:
    torch.manual_seed(0)
    a = torch.randn(7, 5, 3, 2) + 3
    b = 2 * a.flip(1) + 0.5 * torch.randn_like(a)
    similarity = passes._Similarity()
    for part in (slice(0, 4), slice(4, 7)):
        similarity.add([a[part], b[part], -a[part]])
    examples = [x.permute(0, 2, 3, 1).flatten(0, 2) for x in (a, b, -a)]
    for i, x in enumerate(examples):
        for j, y in enumerate(examples):
            assert similarity.cka()[i, j] == pytest.approx(cka(x, y), rel=1e-9)
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
    assert similarity.cosine()[0, 1] == pytest.approx(float(cosine), rel=1e-5)
    assert similarity.cosine()[0, 2] == pytest.approx(-1)
    assert similarity.cka()[0, 2] == pytest.approx(1)


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """A file of weights of the three-pass MobileNetV2, some of whose blocks are changed."""

    def make(change: Callable[[MultiPass], None]) -> Path:
        torch.manual_seed(0)
        model = timm.create_model('mbv2_mish_mp2_imagenette', num_classes=3)
        for block in model.modules():
            if isinstance(block, MultiPass):
                change(block)
        save_file(model.state_dict(), tmp_path / 'model.safetensors')
        return tmp_path / 'model.safetensors'

    return make


def options(folder: Path, checkpoint: Path, **more: object) -> PassesOptions:
    model = dict(model='mbv2_mish_mp2_imagenette', checkpoint=str(checkpoint), img_size=32, batch_size=5)
    return PassesOptions(**{**model, 'data_dir': str(folder), 'device': 'cpu', 'images': 7, **more})


def test_equal_passes_are_alike_and_none_is_missed(weights: Callable[..., Path], folder: Path) -> None:
    checkpoint = weights(lambda block: block.passes[1].load_state_dict(block.passes[0].state_dict()))
    report = compare_passes(options(folder, checkpoint), quiet=True)
    assert report.images == 7
    assert len(report.blocks) > 10
    for block in report.blocks:
        assert block.kinds == ['kernel 3', 'kernel 3']
        torch.testing.assert_close(torch.tensor(block.cka), torch.ones(2, 2), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(block.cosine), torch.ones(2, 2), rtol=1e-5, atol=1e-5)
        assert block.top1_lost == [0, 0]
    assert {block.residual for block in report.blocks} == {True, False}


@pytest.mark.slow
def test_independent_passes_are_not_alike(weights: Callable[..., Path], folder: Path) -> None:
    made = weights(lambda block: None)
    report = compare_passes(options(folder, made, images=0), quiet=True)
    assert report.images == 12
    decoded = {entry.folder for entry in cache.entries()}
    compare_passes(options(folder, made), quiet=True)
    assert decoded <= {entry.folder for entry in cache.entries()}, 'some of the images do not replace all of them'
    values = [block.cka[0][1] for block in report.blocks]
    assert min(values) < 0.8
    assert sum(values) / len(values) < 0.95
    for block in report.blocks:
        assert block.cka[0][0] == pytest.approx(1)
        assert block.cka[0][1] == pytest.approx(block.cka[1][0])


def test_what_a_pass_is_worth_is_measured(recipe: MakeRecipe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that is not there is not asked, and the others are merged without it."""
    block = MultiPass([torch.nn.Identity(), torch.nn.Flatten(0)])
    with passes._without(block, 1):
        assert torch.equal(block(torch.ones(2, 2)), torch.ones(2, 2))
    assert len(block.passes) == 2


def test_each_image_counts_once_whatever_the_batches(
    weights: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a last, smaller batch is filled up, which passes must not see."""
    checkpoint = weights(lambda block: None)
    whole = compare_passes(options(folder, checkpoint, batch_size=7), quiet=True)
    monkeypatch.setattr(
        evaluate, '_filled', lambda new, old: torch.cat([new, old[len(new) :]]) if len(new) < len(old) else new
    )
    parts = compare_passes(options(folder, checkpoint), quiet=True)
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        assert one.cka[0][1] == pytest.approx(other.cka[0][1], rel=1e-4)
        assert one.cosine[0][1] == pytest.approx(other.cosine[0][1], rel=1e-4)


def test_what_is_lost_without_each_pass(
    weights: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top1s = iter(range(90, 0, -1))
    real = passes.evaluate

    def evaluated(*args: Any, fill: bool) -> Any:
        real(*args, fill=fill)
        return SimpleNamespace(top1=next(top1s))

    monkeypatch.setattr(passes, 'evaluate', evaluated)
    report = compare_passes(options(folder, weights(lambda block: None), images=2), quiet=True)
    assert report.top1 == 90
    lost = [each for block in report.blocks for each in block.top1_lost]
    assert lost == list(range(1, 2 * len(report.blocks) + 1))


@pytest.mark.slow
def test_the_command_line(recipe: MakeRecipe, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('matplotlib')
    run = train(recipe(model='mbv2_mish_mp2_imagenette', epochs=1, torchcompile='none'), quiet=True).folder
    figure, results = tmp_path / 'passes.png', tmp_path / 'passes.json'
    words = ['--data-dir', str(folder), '--images', '6', '--device', 'cpu', '--save-figure', str(figure)]
    assert main(['passes', str(run), *words, '--results-file', str(results)]) == 0
    output = capsys.readouterr().out
    assert 'likeness of two passes: CKA' in output
    assert figure.read_bytes().startswith(b'\x89PNG')
    report = json.loads(results.read_text())
    assert report['images'] == 6
    assert all(len(block['top1_lost']) == 2 for block in report['blocks'])


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ([], '--model is needed'),
        (['resnet18'], 'needs --checkpoint or --pretrained'),
        (['a', '--model', 'b'], 'one model is expected'),
        (['a', '--results-file', 'x.csv'], r'must end in .json'),
        (['resnet18', '--pretrained', '--checkpoint', 'x'], 'give one of them'),
        (['resnet18', '--use-ema'], 'no effect without --checkpoint'),
        (['a', '--torchcompile'], 'passes are compared as they are: leave it out'),
        (['a', '--save-figure', 'nowhere/x.png'], 'no such folder'),
    ],
)
def test_bad_input(words: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['passes', *words, '--data-dir', str(folder), '--device', 'cpu']) == 2
    assert expected in capsys.readouterr().err


def test_a_model_without_multipass(recipe: MakeRecipe, folder: Path) -> None:
    run = train(recipe(epochs=1), quiet=True).folder
    with pytest.raises(UserError, match='has no MultiPass block'):
        compare_passes(PassesOptions(model=str(run), data_dir=str(folder), device='cpu'), quiet=True)
