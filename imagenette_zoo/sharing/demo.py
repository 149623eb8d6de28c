"""A page to try models: drop an image, see the classes and, as a heat map, what decided; two models side by side.

`imagenette-zoo demo MODEL…` serves it on loopback. The same file is the `app.py` of a Hugging Face Space, which
needs beside it `requirements.txt` (imagenette-zoo with its extra `demo`), in its `README.md` `sdk: gradio` and
`app_file: app.py`, and among its variables `DEMO_MODELS`, as in `hf-hub:me/one hf-hub:me/two`; without it two
models are shown whose weights come with the package. `DEMO_MODULES` is as `--device-modules`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import imagenette_zoo  # noqa: F401  (registers the models, also where this file runs on its own)

# Absolute: a Space runs a copy of this file, which is in no package.
from imagenette_zoo.config.uses import UseOptions
from imagenette_zoo.data.images import LARGEST_UPLOAD, Unfit, forget_other_formats, open_image
from imagenette_zoo.errors import UserError, first_line, require
from imagenette_zoo.inference.loading import TrainedModel, load_trained
from imagenette_zoo.inference.predict import look_at
from imagenette_zoo.utils.modules import import_modules

__all__ = ['Explained', 'build', 'explain', 'main', 'serve']

DEFAULT = (UseOptions.model, 'mbv2_mish_maxblur_imagenette')
MOST_CLASSES = 5  # that are shown
LARGEST_FILE = '50mb'


@dataclass(frozen=True)
class Explained:
    """A model's answer for an image.

    Args:
        probabilities: Of each class, 0–1.
        picture: The image as it was given it; the regions that decided for the likeliest class are red. They are
            not marked where its last features are no map.
    """

    probabilities: dict[str, float]
    picture: Image.Image


def explain(trained: TrainedModel, image: Image.Image) -> Explained:
    """Classes and heat map (Grad-CAM).

    Args:
        trained: The model.
        image: RGB, of any size.

    Raises:
        UserError: The image is too long for its width, or the model gives no numbers.
    """
    try:
        pixels = torch.from_numpy(trained.pixels(image))[None]
    except Unfit as error:
        raise UserError(f'the image {error}') from None
    [prediction] = look_at(trained, pixels, len(trained.class_names), heat_maps=trained.has_maps)
    seen = pixels[0].permute(1, 2, 0).numpy()
    if prediction.heat is not None:
        heat = 0.6 * prediction.heat[..., None]
        seen = (seen * (1 - heat) + np.array([255.0, 0.0, 0.0]) * heat).astype(np.uint8)
    twice = len({name for name, _ in prediction.top}) < len(prediction.top)
    names = [f'{name} ({rank})' if twice else name for rank, (name, _) in enumerate(prediction.top, 1)]
    probabilities = dict(zip(names, (value for _, value in prediction.top), strict=True))
    return Explained(probabilities, Image.fromarray(seen))


# --- The page ---------------------------------------------------------------------------------------------------------


def build(models: Sequence[str], **options: Any) -> Any:
    """The page, a `gradio.Blocks`: one column a model, two at most; with more models each column has a choice.

    Args:
        models: Their names, at least one.
        **options: The other fields of `UseOptions`.

    Raises:
        UserError: Gradio is missing, or a model.
    """
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # nothing is sent anywhere
    gr = require('gradio', 'the demo', 'demo')
    cpu = torch.device('cpu')
    if options.get('checkpoint') and len(models) > 1:
        raise UserError('--checkpoint goes with one model')
    loaded = {name: load_trained(name, UseOptions(model=name, **options), cpu) for name in dict.fromkeys(models)}
    answer = _answer(loaded, gr.Error)
    with gr.Blocks(title='imagenette-zoo', analytics_enabled=False) as page:
        gr.Markdown('# imagenette-zoo\nDrop an image. Red is what decided for the likeliest class (Grad-CAM).')
        image = gr.Image(label='image', type='filepath', image_mode=None, height=300)
        image.preprocess = lambda data: data.path if data else None  # ours says what is wrong with a file
        with gr.Row():
            for column in range(min(2, len(loaded))):
                with gr.Column():
                    names = list(loaded)
                    choice = gr.Dropdown(names, value=names[column], label='model', interactive=len(names) > 1)
                    classes = gr.Label(num_top_classes=MOST_CLASSES, label='classes')
                    heat = gr.Image(
                        label='what decided', interactive=False, height=300, buttons=['fullscreen', 'download']
                    )
                    gr.on([image.change, choice.change], answer, [image, choice], [classes, heat], api_name=False)
    return page


def _answer(models: dict[str, TrainedModel], error: type[Exception]) -> Callable[[str | None, str], tuple[Any, Any]]:
    """The function that fills a column, from an uploaded file and the name of a model."""

    def answer(path: str | None, name: str) -> tuple[Any, Any]:
        if path is None:
            return None, None
        try:
            explained = explain(models[name], open_image(path, LARGEST_UPLOAD))
        except UserError as problem:
            raise error(str(problem).replace(path, Path(path).name)) from None
        return explained.probabilities, explained.picture

    return answer


def serve(models: Sequence[str], port: int | None = None, **options: Any) -> None:
    """Serves the page until Ctrl-C: on loopback, or where `GRADIO_SERVER_NAME` says, as on a Space.

    Args:
        models: Their names.
        port: Where; None: `GRADIO_SERVER_PORT`, else the first that is free from 7860 on.
        **options: As `build` takes them.

    Raises:
        UserError: Gradio is missing, a model, or a free port.
    """
    page = build(models, **options)
    forget_other_formats()  # gradio opens some uploads by Pillow too; which ones depends on its version
    try:
        page.launch(server_port=port, share=False, show_error=True, max_file_size=LARGEST_FILE)
    except (OSError, OverflowError) as error:
        raise UserError(f'--port {port or "7860 and on"}: {first_line(error)}: choose another') from None


def main() -> None:
    """A Space's entry: the models of `DEMO_MODELS`, with the code of `DEMO_MODULES`."""
    try:
        import_modules(os.environ.get('DEMO_MODULES', '').split())
        serve(os.environ.get('DEMO_MODELS', '').split() or DEFAULT)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
