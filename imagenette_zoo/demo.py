"""A page to try models: drop an image, see the classes and, as a heat map, what decided; two models side by side.

``imagenette-zoo demo MODEL…`` serves it on loopback. The same file is the ``app.py`` of a Hugging Face Space, which
needs beside it ``requirements.txt`` (imagenette-zoo with its extra ``demo``), in its ``README.md`` ``sdk: gradio`` and
``app_file: app.py``, and among its variables ``DEMO_MODELS``, as in ``hf-hub:me/one hf-hub:me/two``; without it the
flagship is shown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from timm.models import get_pretrained_cfg, split_model_name_tag
from torch import nn

import imagenette_zoo  # noqa: F401  (registers the models, also where this file runs on its own)
from imagenette_zoo.errors import UserError

__all__ = ['Explained', 'build', 'explain', 'load', 'main', 'serve']

DEFAULT = 'mbv2_mish_imagenette'
MOST_CLASSES = 5  # that are shown
LARGEST_UPLOAD = '50mb'


# --- Models: all that the page knows of them --------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """What a model says to an image.

    Args:
        probabilities: Of each class.
        picture: What it saw, the places that decided for the likeliest class shining red; only what it saw where its
            last features are no map.
    """

    probabilities: dict[str, float]
    picture: Image.Image


def load(name: str) -> nn.Module:
    """The model that a name means, with its weights, ready to be asked.

    Args:
        name: A run, a model folder, ``hf-hub:NAME`` or a model's name.

    Raises:
        UserError: There is no such model, or it has no weights.
    """
    from imagenette_zoo.training.build import build_model
    from imagenette_zoo.training.checkpoint import model_folder
    from imagenette_zoo.training.evaluation import load_folder

    folder = model_folder(name)
    if folder is not None:
        return load_folder(folder).eval()
    if '/' in name and ':' not in name:
        raise UserError(f'{name}: no such folder: give a run (runs/NAME), a model folder or hf-hub:OWNER/NAME')
    config = get_pretrained_cfg(name) if timm.is_model(split_model_name_tag(name)[0]) else None
    if config is not None and not config.has_weights:
        raise UserError(f'{name}: has no pretrained weights: give a run (runs/NAME), a model folder or hf-hub:NAME')
    return build_model(name, pretrained=True).eval()


def explain(model: Any, image: Image.Image) -> Explained:
    """Classes and heat map by Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2).

    Args:
        model: One of timm's or ours, with its weights.
        image: RGB, of any size.
    """
    from imagenette_zoo.training.build import eval_transform

    config = resolve_data_config({}, model=model, use_test_size=True)
    pixels = torch.as_tensor(eval_transform(config)(image))  # (3, H, W) uint8
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    with torch.no_grad():
        features = model.forward_features(((pixels / 255 - mean) / std)[None])
    with torch.enable_grad():
        logits = model.forward_head(features.requires_grad_())[0]
        (slopes,) = torch.autograd.grad(logits.max(), features)
    names = _labels(model, len(logits))
    probabilities = dict(zip(names, logits.detach().softmax(0).tolist(), strict=True))
    seen = pixels.float()
    if features.ndim == 4 and features.shape[1] == model.num_features:
        heat = (slopes.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
        heat = nn.functional.interpolate(heat, pixels.shape[1:], mode='bilinear')[0]
        heat = heat / heat.max().clamp_min(1e-12)
        red = torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1)
        seen = seen * (1 - 0.6 * heat) + red * 0.6 * heat
    return Explained(probabilities, Image.fromarray(seen.byte().permute(1, 2, 0).numpy()))


def _labels(model: Any, classes: int) -> list[str]:
    """A name for each output: the model's own, or ImageNet's where it is ImageNet's by their number."""
    names = model.pretrained_cfg.get('label_names')
    subset = infer_imagenet_subset(model)
    if isinstance(names, (list, tuple)) and len(names) == classes:
        found = [str(name) for name in names]
    elif subset:
        info = ImageNetInfo(subset)
        found = [info.index_to_description(index) for index in range(classes)]
    else:
        found = [f'class {index}' for index in range(classes)]
    return found if len(set(found)) == classes else [f'{name} ({index})' for index, name in enumerate(found)]


# --- The page ---------------------------------------------------------------------------------------------------------


def build(models: Sequence[str]) -> Any:
    """The page, a ``gradio.Blocks``: one column a model, two at most; with more models each column has a choice.

    Args:
        models: Their names, at least one.

    Raises:
        UserError: gradio is missing, or a model.
    """
    gr = _gradio()
    loaded = {name: load(name) for name in dict.fromkeys(models)}
    answer = _answer(loaded, gr.Error)
    with gr.Blocks(title='imagenette-zoo', analytics_enabled=False) as page:
        gr.Markdown('# imagenette-zoo\nDrop an image. Red is what decided for the likeliest class (Grad-CAM).')
        image = gr.Image(label='image', type='filepath', image_mode=None, height=300)
        image.preprocess = lambda data: data.path if data else None  # ours says what is wrong with a file
        with gr.Row():
            for place in range(min(2, len(loaded))):
                with gr.Column():
                    names = list(loaded)
                    choice = gr.Dropdown(names, value=names[place], label='model', interactive=len(names) > 1)
                    classes = gr.Label(num_top_classes=MOST_CLASSES, label='classes')
                    heat = gr.Image(
                        label='what decided', interactive=False, height=300, buttons=['fullscreen', 'download']
                    )
                    gr.on([image.change, choice.change], answer, [image, choice], [classes, heat], api_name=False)
    return page


def _answer(models: dict[str, Any], error: type[Exception]) -> Callable[[str | None, str], tuple[Any, Any]]:
    """What a column shows for an uploaded file and the name of its model."""
    from imagenette_zoo.data.imagenette import open_image

    def answer(path: str | None, name: str) -> tuple[Any, Any]:
        if path is None:
            return None, None
        try:
            found = explain(models[name], open_image(path))
        except UserError as problem:
            raise error(str(problem).replace(path, Path(path).name)) from None
        return found.probabilities, found.picture

    return answer


def _gradio() -> Any:
    os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')  # nothing is sent anywhere
    try:
        import gradio
    except ImportError:
        raise UserError('the demo needs gradio: pip install "imagenette-zoo[demo]"') from None
    return gradio


def serve(models: Sequence[str], port: int | None = None) -> None:
    """Serves the page until Ctrl-C: on loopback, or where ``GRADIO_SERVER_NAME`` says, as on a Space.

    Args:
        models: Their names.
        port: Where; None: ``GRADIO_SERVER_PORT``, else the first that is free from 7860 on.

    Raises:
        UserError: gradio is missing, a model, or a free port.
    """
    page = build(models)
    try:
        page.launch(server_port=port, share=False, show_error=True, max_file_size=LARGEST_UPLOAD)
    except (OSError, OverflowError) as error:
        raise UserError(f'--port {port or "7860 and on"}: {str(error).splitlines()[0]}: choose another') from None


def main() -> None:
    """A Space's entry: the models of ``DEMO_MODELS``."""
    try:
        serve(os.environ.get('DEMO_MODELS', DEFAULT).split())
    except UserError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
