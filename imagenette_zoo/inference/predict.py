"""Predictions of a trained model for images, with heat maps of the evidence."""

from __future__ import annotations

import io
import logging
import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..config.uses import PredictOptions, UseOptions
from ..data.folders import list_images
from ..data.images import in_threads, only_size_warnings, prepared
from ..errors import UserError, cleaned, first_line, require
from ..utils.console import Console, printable, short
from ..utils.distributed import choose_device
from ..utils.files import write_atomic
from ..utils.process import restore_process
from ..utils.seeding import restore_generators
from .evaluate import features_of
from .gradcam import check_layer, grad_cam
from .loading import TrainedModel, load_trained, not_finite
from .onnx_model import OnnxModel
from .tables import write_table

__all__ = ['Prediction', 'describe', 'look_at', 'predict', 'predict_each', 'under_heat']

_logger = logging.getLogger(__name__)
FIGURES = ('.png', '.svg')
RUNNERS_UP = 4  # in a figure
BAR = 20  # characters at 100 %
MANY = 500  # images from which on kernels are worth compiling, which takes seconds, once


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Args:
        image: The file; empty where it was none.
        top: The most probable classes and their probabilities (0–1), the most probable first; none beside an error.
        seen: The image as the model was given it, `(H, W, C)` uint8; None where no heat map was asked for.
        heat: How much each pixel of it spoke for the first class, `(H, W)`, 0–1 (Grad-CAM); None likewise.
        output: What `output_type` asks for, float32: the probability or logit of each class, or the features that the
            classifier is given; None where nothing is asked for.
        error: Why the image can't be read, in one line that names it; empty where it was read.
    """

    image: str
    top: list[tuple[str, float]]
    seen: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    heat: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    output: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    error: str = ''

    @property
    def label(self) -> str:
        """The most probable class.

        Raises:
            UserError: The image can't be read.
        """
        return self._best[0]

    @property
    def probability(self) -> float:
        """Of that class, 0–1.

        Raises:
            UserError: The image can't be read.
        """
        return self._best[1]

    @property
    def _best(self) -> tuple[str, float]:
        if self.error:
            raise UserError(self.error)
        return self.top[0]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        if self.error:
            return {'image': self.image, 'error': self.error}
        top = [{'class': name, 'probability': probability} for name, probability in self.top]
        return {'image': self.image, **top[0], 'top': top}


@restore_process()
def predict(
    images: str | Path | Sequence[str | Path],
    model: str | Path = UseOptions.model,
    **options: Any,
) -> list[Prediction]:
    """Predicts the classes of images.

    Args:
        images: A file, a folder, a glob pattern, or several of these.
        model: A run's folder or its `best/`, `local-dir:FOLDER`, `hf-hub:NAME`, or a model's name.
        **options: The other fields of `PredictOptions`.

    Returns:
        One `Prediction` an image: named files in their order, files of a folder in natural order. That of an image that
        can't be read, where there are several, has an `error`.

    Raises:
        UserError: Bad input, in one line.
    """
    several = [images] if isinstance(images, (str, Path)) else images
    given = PredictOptions(model=str(model), **options)
    predictions = list(predict_each(several, given, Console(quiet=True)))
    if given.output:
        write_table(predictions, given)
    return predictions


def predict_each(images: Sequence[str | Path], options: PredictOptions, console: Console) -> Iterator[Prediction]:
    """As `predict`, batch by batch; figures are written on the way.

    Raises:
        UserError: Bad input, in one line; for an image that can't be read where it is the only one.
    """
    passed_over: list[str] = []
    paths = list_images(images, passed_over)
    if passed_over:
        _logger.warning('skipped %d file(s) that are no images, as %s', len(passed_over), printable(passed_over[0]))
    figures = _figure_files(paths, options.save_figure)
    if options.format == 'parquet':  # before anything is computed
        require('pyarrow', '--format parquet', 'parquet')
    device = choose_device(options.device)
    with restore_generators():  # only here: around the yields the caller would see other generators
        trained = load_trained(options.model, options, device, device.type == 'cpu' and len(paths) >= MANY)
    if figures and isinstance(trained.model, OnnxModel):
        raise UserError(f'--save-figure {options.save_figure}: an ONNX file has no gradients: give what it is made of')
    check_layer(trained.model, options.cam_layer)
    with console.progress('predict', len(paths)) as progress:
        pixels = enumerate(_pixels(trained, paths, options.max_megapixels))
        while some := list(islice(pixels, options.batch_size)):
            if len(paths) == 1 and isinstance(some[0][1], UserError):
                raise some[0][1]
            batch = [each for _, each in some if not isinstance(each, UserError)]
            predictions = iter(_predictions(trained, batch, options, bool(figures)))
            for index, each in some:
                prediction = Prediction('', [], error=str(each)) if isinstance(each, UserError) else next(predictions)
                named = replace(prediction, image=str(paths[index]))
                if figures and not named.error:
                    write_atomic(figures[index], draw(named, figures[index].suffix[1:]))
                progress.advance(1)
                yield replace(named, seen=None, heat=None)


def _pixels(
    trained: TrainedModel, paths: Sequence[Path], largest: float
) -> Iterator[npt.NDArray[np.uint8] | UserError]:
    """The pixels of each image as the model is given them, or why it can't be read."""

    def pixels(path: Path) -> npt.NDArray[np.uint8] | UserError:
        try:
            return prepared(path, trained.pixels, trained.channels)
        except UserError as error:
            return error

    with only_size_warnings(largest):
        yield from in_threads(pixels, paths)


def _predictions(
    trained: TrainedModel, batch: Sequence[npt.NDArray[np.uint8]], options: PredictOptions, heat_maps: bool
) -> list[Prediction]:
    if not batch:
        return []
    kind = options.output_type or ('prob' if options.format else None)
    topk = options.topk or len(trained.class_names)
    return look_at(trained, torch.from_numpy(np.stack(batch)), topk, heat_maps, options.cam_layer, kind)


def look_at(
    trained: TrainedModel,
    pixels: torch.Tensor,
    topk: int = 3,
    heat_maps: bool = False,
    cam_layer: str | None = None,
    output_type: str | None = None,
) -> list[Prediction]:
    """Predicts the classes of a batch.

    Args:
        trained: The model.
        pixels: `(N, C, H, W)` uint8, as `trained.pixels` gives them.
        topk: Classes named for each.
        heat_maps: Also compute where in the image it sees the first of them.
        cam_layer: By the output of this layer instead of the last feature map.
        output_type: `prob`, `logit` or `features`, for `Prediction.output`.

    Raises:
        UserError: It gives no numbers, or has no feature map to draw a heat map from.
    """
    inputs = trained.normalize(pixels)
    maps = None
    if heat_maps:
        logits, maps = grad_cam(trained.model, inputs, layer=cam_layer)
        maps = torch.nn.functional.interpolate(maps[:, None], inputs.shape[2:], mode='bilinear')[:, 0]
        maps = (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()
    else:
        with torch.inference_mode():
            logits = trained.model(inputs)
    if not logits.isfinite().all():
        raise not_finite(trained.name)
    classes = logits.topk(min(topk, logits.shape[1])).indices
    probabilities = logits.float().softmax(1)
    outputs = None
    if output_type:
        values = {'prob': probabilities, 'logit': logits}.get(output_type)
        outputs = (features_of(trained, inputs) if values is None else values).float().cpu().numpy()
    probabilities = probabilities.gather(1, classes)
    predictions = []
    for row, (values, indices) in enumerate(zip(probabilities.tolist(), classes.tolist(), strict=True)):
        top = [(trained.class_names[index], value) for index, value in zip(indices, values, strict=True)]
        seen = pixels[row].permute(1, 2, 0).numpy() if maps is not None else None
        heat = maps[row].numpy() if maps is not None else None
        predictions.append(Prediction('', top, seen, heat, None if outputs is None else outputs[row]))
    return predictions


def describe(prediction: Prediction) -> str:
    """Lines for a person: the image, and its classes with a bar each."""
    top = [(cleaned(name), value) for name, value in prediction.top]
    width = max(18, *(len(name) for name, _ in top))  # the same for all images with short names
    lines = [
        f'  {name:<{width}}  {100 * value:5.1f} %  {"█" * round(BAR * value)}'.rstrip()
        for name, value in top
    ]
    return '\n'.join([cleaned(prediction.image), *lines])


def as_rgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`(H, W, C)` to `(H, W, 3)`: grey, or the first three channels."""
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]


def under_heat(prediction: Prediction) -> npt.NDArray[np.uint8]:
    """The image in grey under its heat map, bright where it spoke for the first class: `(H, W, 3)`, by matplotlib."""
    import matplotlib

    assert prediction.seen is not None
    assert prediction.heat is not None
    grey = prediction.seen.mean(2, keepdims=True)  # so that all colour is the heat map's
    colours = matplotlib.colormaps['inferno'](prediction.heat, bytes=True)[..., :3]
    return np.asarray(0.45 * grey + 0.55 * colours).astype(np.uint8)


def draw(prediction: Prediction, kind: str) -> bytes:
    """The image, and beside it the image under its heat map, with the file's name and the runners-up.

    Args:
        prediction: With what was seen.
        kind: `png` or `svg`.

    Raises:
        UserError: Matplotlib is not installed.
    """
    require('matplotlib', '--save-figure', 'report')
    import matplotlib.style
    from matplotlib.figure import Figure

    assert prediction.seen is not None
    with matplotlib.style.context({'text.parse_math': False, 'font.size': 9}, after_reset=True):
        height, width = prediction.seen.shape[:2]
        (first, *others) = (f'{short(printable(name), 48)} {100 * value:.1f} %' for name, value in prediction.top)
        figure = Figure((6.2, 3.1 * height / width + 0.7), layout='constrained')
        file_name = short(printable(Path(prediction.image).name), 40)
        parts = (prediction.seen, file_name), (under_heat(prediction), 'Where the model looked (Grad-CAM)')
        for axis, (pixels, title) in zip(figure.subplots(1, 2), parts, strict=True):
            axis.imshow(as_rgb(pixels))
            axis.set_title(title, fontsize=9)
            axis.set_axis_off()
        figure.suptitle(first, fontsize=11)
        if others:
            figure.supxlabel(textwrap.fill(f'Next: {", ".join(others[:RUNNERS_UP])}', 80), fontsize=9)
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=150, metadata={'Software': None} if kind == 'png' else {'Date': None})
    return file.getvalue()


def _figure_files(images: Sequence[Path], output: str | None) -> list[Path]:
    """A file for the figure of each image; none where no output is given. Its folders are made.

    Raises:
        UserError: Matplotlib is missing, the output is no place for figures, or an image would be overwritten.
    """
    if not output:
        return []
    require('matplotlib', '--save-figure', 'report')
    target = Path(output)
    if target.suffix and not target.is_dir():
        if target.suffix not in FIGURES:
            raise UserError(f'--save-figure: {output!r} must end in {" or ".join(FIGURES)}, or be a folder')
        if len(images) > 1:
            raise UserError(f'--save-figure {output}: is one file for {len(images)} images: give a folder')
        files = [target]
    else:
        absolute = [Path(os.path.abspath(path)) for path in images]  # without '..'
        try:
            base = Path(os.path.commonpath([path.parent for path in absolute]))
        except ValueError as error:  # Windows
            raise UserError(f'--save-figure {output}: {first_line(error)}: give the images of one drive') from None
        relative = [path.relative_to(base) for path in absolute]
        stems = Counter(path.with_suffix('') for path in relative)
        files = [
            target
            / (path.with_suffix('.png') if stems[path.with_suffix('')] == 1 else path.with_name(f'{path.name}.png'))
            for path in relative
        ]
    inputs = {path.resolve() for path in images}
    beside = {path.parent.resolve() for path in (*images, *inputs)} if files != [target] else ()
    for file in files:
        if file.resolve() in inputs or (os.path.exists(file) and file.resolve().parent in beside):
            raise UserError(f'--save-figure {output}: would overwrite {file}: choose another folder')
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"can't make {file.parent} ({error.strerror})"
            raise UserError(f'--save-figure {output}: {reason}: choose another place') from None
    return files
