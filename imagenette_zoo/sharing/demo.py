"""A page to try models: drop an image, see the classes and, as a heat map, what decided; two models side by side.

`imagenette-zoo demo MODEL…` serves it on loopback. The same file is the `app.py` of a Hugging Face Space, which
needs beside it `requirements.txt` (imagenette-zoo with its extra `demo`; while that is not on PyPI, `./FILE.whl[demo]`
and the wheel), in its `README.md` `sdk: gradio` and `app_file: app.py`, and among its variables `DEMO_MODELS`, as in
`hf-hub:me/one hf-hub:me/two`; without it two models are shown whose weights come with the package. `DEMO_MODULES` is as
`--device-modules`.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import imagenette_zoo  # noqa: F401  (registers the models, also where this file runs on its own)

# Absolute: a Space runs a copy of this file, which is in no package.
from imagenette_zoo.config.uses import HeatMapOptions
from imagenette_zoo.data import synthette
from imagenette_zoo.data.drawings import DRAWINGS, with_fourth
from imagenette_zoo.data.images import LARGEST_UPLOAD, Unfit, forget_other_formats, open_image
from imagenette_zoo.errors import UserError, first_line, require
from imagenette_zoo.inference.gradcam import check_layer
from imagenette_zoo.inference.loading import TrainedModel, load_trained
from imagenette_zoo.inference.predict import as_rgb, look_at, under_heat
from imagenette_zoo.utils.modules import import_modules

__all__ = ['Explained', 'build', 'explain', 'main', 'serve']

DEFAULT = (HeatMapOptions.model, 'mbv2_mish_maxblur_imagenette')
MOST_CLASSES = 5  # that are shown
LARGEST_FILE = '50mb'
MOST_EXAMPLES = 6


@dataclass(frozen=True)
class Explained:
    """A model's answer for an image.

    Args:
        probabilities: Of each class, 0–1.
        picture: The image as it was given it, under the heat map of the likeliest class; without one, and in its own
            colours, where the model's last features are no map.
    """

    probabilities: dict[str, float]
    picture: Image.Image


def explain(trained: TrainedModel, image: Image.Image, cam_layer: str | None = None) -> Explained:
    """Classes and heat map (Grad-CAM).

    Args:
        trained: The model.
        image: In the model's channels, of any size.
        cam_layer: The layer that the heat map is of; None: the last feature map.

    Raises:
        UserError: The image is too long for its width, or the model gives no numbers.
    """
    try:
        pixels = torch.from_numpy(trained.pixels(image))[None]
    except Unfit as error:
        raise UserError(f'the image {error}') from None
    has_maps = bool(cam_layer) or trained.has_maps
    [prediction] = look_at(trained, pixels, len(trained.class_names), heat_maps=has_maps, cam_layer=cam_layer)
    seen = as_rgb(pixels[0].permute(1, 2, 0).numpy()) if prediction.heat is None else under_heat(prediction)
    twice = len({name for name, _ in prediction.top}) < len(prediction.top)
    names = [f'{name} ({rank})' if twice else name for rank, (name, _) in enumerate(prediction.top, 1)]
    probabilities = dict(zip(names, (value for _, value in prediction.top), strict=True))
    return Explained(probabilities, Image.fromarray(seen))


# --- The page ---------------------------------------------------------------------------------------------------------


def build(models: Sequence[str], **options: Any) -> Any:
    """The page, a `gradio.Blocks`: one column a model, two at most; with more models each column has a choice.

    Args:
        models: Their names, at least one.
        **options: The other fields of `HeatMapOptions`.

    Raises:
        UserError: Gradio is missing, or a model.
    """
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # nothing is sent anywhere
    gr = require('gradio', 'the demo', 'demo')
    require('matplotlib', 'the demo', 'demo')
    cpu = torch.device('cpu')
    if options.get('checkpoint') and len(models) > 1:
        raise UserError('--checkpoint goes with one model')
    loaded = {name: load_trained(name, HeatMapOptions(model=name, **options), cpu) for name in dict.fromkeys(models)}
    cam_layer = options.get('cam_layer')
    for trained in loaded.values():
        check_layer(trained.model, cam_layer)
    answer = _answer(loaded, partial(gr.Error, print_exception=False), cam_layer)
    with gr.Blocks(title='imagenette-zoo', analytics_enabled=False) as page:
        gr.Markdown(
            '# imagenette-zoo\nDrop an image, or click on one that is drawn. The bright regions spoke most for the '
            'likeliest class (Grad-CAM).'
        )
        image = gr.Image(label='Your image', type='filepath', image_mode=None, height=300)
        image.preprocess = lambda data: data.path if data else None  # ours says what is wrong with a file
        with tempfile.TemporaryDirectory() as folder:  # gradio copies them
            known = {name for trained in loaded.values() for name in trained.class_names}
            four = any(trained.channels == 4 for trained in loaded.values())
            gr.Examples(_draw_examples(Path(folder), known, four), image, label='Drawn images')
        with gr.Row():
            for column in range(min(2, len(loaded))):
                with gr.Column():
                    names = list(loaded)
                    choice = gr.Dropdown(names, value=names[column], label='Model', interactive=len(names) > 1)
                    classes = gr.Label(num_top_classes=MOST_CLASSES, label='Likeliest classes')
                    heat = gr.Image(
                        label='Where the model looked',
                        interactive=False,
                        height=300,
                        buttons=['fullscreen', 'download'],
                    )
                    gr.on([image.change, choice.change], answer, [image, choice], [classes, heat], api_name=False)
    return page


def _draw_examples(folder: Path, known: set[str], four: bool = False) -> list[str]:
    """Draws images of classes that a model knows, else of some that none does; their files. Of `four` channels, where a
    model needs them, others see the first three."""
    drawn = {name: partial(synthette.draw, name, 0, 'val', 0) for name in synthette.CLASS_NAMES}
    examples: dict[str, Callable[[], Any]] = {**DRAWINGS, **drawn}
    files = []
    for name in [name for name in examples if name in known][:MOST_EXAMPLES] or DRAWINGS:
        files.append(str(folder / f'{name}.png'))
        image = Image.fromarray(np.asarray(examples[name]()))
        (with_fourth(image) if four else image).save(files[-1])
    return files


def _answer(
    models: dict[str, TrainedModel], error: Callable[[str], Exception], cam_layer: str | None = None
) -> Callable[[str | None, str], tuple[Any, Any]]:
    """The function that fills a column, from an uploaded file and the name of a model."""

    def answer(path: str | None, name: str) -> tuple[Any, Any]:
        if path is None:
            return None, None
        try:
            trained = models[name]
            explained = explain(trained, open_image(path, LARGEST_UPLOAD, trained.channels), cam_layer)
        except UserError as problem:
            raise error(str(problem).replace(path, Path(path).name)) from None
        return explained.probabilities, explained.picture

    return answer


def serve(models: Sequence[str], port: int | None = None, host: str | None = None, **options: Any) -> None:
    """Serves the page until Ctrl-C.

    Args:
        models: Their names.
        host: The address it listens at; None: `GRADIO_SERVER_NAME`, as on a Space, else this machine's own.
        port: Where; None: `GRADIO_SERVER_PORT`, else the first that is free from 7860 on.
        **options: As `build` takes them.

    Raises:
        UserError: Gradio is missing, a model, the address, or a free port.
    """
    host = host or os.environ.get('GRADIO_SERVER_NAME') or '127.0.0.1'
    try:  # gradio waits for ever where it can't listen
        socket.create_server((host, 0), family=socket.AF_INET6 if ':' in host else socket.AF_INET).close()
    except (OSError, UnicodeError, TypeError) as error:
        raise UserError(f'--host {host}: {first_line(error)}: give an address of this machine, or 0.0.0.0') from None
    page = build(models, **options)
    forget_other_formats()  # gradio opens some uploads by Pillow too; which ones depends on its version
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            show_error=True,
            max_file_size=LARGEST_FILE,
            footer_links=['settings', 'gradio'],
            quiet=True,  # its hints are on code that is not the user's
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        raise UserError(f'--port {port or "7860 and on"}: {first_line(error)}: choose another') from None
    print(f'The page is at {page.local_url}. Ctrl-C ends it.', flush=True)
    page.block_thread()


def main() -> None:
    """A Space's entry: the models of `DEMO_MODELS`, with the code of `DEMO_MODULES`."""
    try:
        import_modules(os.environ.get('DEMO_MODULES', '').split())
        serve(os.environ.get('DEMO_MODELS', '').split() or DEFAULT)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
