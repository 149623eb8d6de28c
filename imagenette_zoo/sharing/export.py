"""A trained model as a file for other programs, checked against PyTorch on real images before it is written."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..config.groups import DataOptions
from ..config.uses import ExportOptions
from ..data.drawings import with_fourth
from ..data.folders import evenly
from ..data.images import Unfit, open_image, with_channels
from ..data.synthette import CLASS_NAMES
from ..data.synthette import draw as draw_image
from ..errors import UserError, first_line, require
from ..inference.loading import TrainedModel, images_of, load_trained, run_of
from ..inference.onnx_model import KEY
from ..layers import fuse
from ..utils import environment
from ..utils.console import Console
from ..utils.files import file_stem, to_json, write_atomic
from ..utils.process import restore_process

__all__ = ['OPSET', 'Exported', 'export', 'export_model']

OPSET = 18  # the lowest that torch's exporter writes without a conversion
TOLERANCE = 1e-4  # of a logit
IMAGES = 16  # that are compared

Images = torch.Tensor
Network = Callable[[Images], torch.Tensor]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        file: Where it is.
        format: `onnx`, `torch-export` or `torchscript`.
        difference: The largest between a logit of the file's and the model's as it was trained.
        images: How many images were compared, and
        source: Where they are from.
    """

    file: Path
    format: str
    difference: float
    images: int
    source: str


def export(model: str | Path, to: str = 'onnx', output: str | Path | None = None, **options: Any) -> Exported:
    """Writes a trained model for other programs.

    Args:
        model: A run's folder or its `best/`, `local-dir:FOLDER`, `hf-hub:NAME`, or a model's name.
        to: `onnx`, `torch-export` or `torchscript`.
        output: The file.
        **options: The other fields of `ExportOptions`.

    Raises:
        UserError: Bad input, or a file that does not compute what the model does; none is written then.
    """
    file = None if output is None else str(output)
    return export_model(ExportOptions(model=str(model), to=to, output=file, **options), quiet=True)


@restore_process()
def export_model(options: ExportOptions, *, quiet: bool = False) -> Exported:
    """Fuses a model, exports it for any number of images, and writes it if it gives what PyTorch gives.

    Raises:
        UserError: As `export`.
    """
    kind = FORMATS[options.to]
    for package in kind.needs:
        require(package, f'--to {options.to}', 'onnx')
    file = _output_file(options, kind)
    console = Console(quiet)
    trained = load_trained(options.model, options, torch.device('cpu'))
    source, images = _real_images(trained, options.data_dir)
    if len(images) < 3:
        raise UserError(f'{source}: holds {len(images)} images: at least 3 are needed to check an export')
    metadata = to_json(_metadata(trained, options.to))
    fused = fuse(trained.model)
    try:
        with _silence():
            data = kind.write(fused, images[:2], metadata)
            difference = _largest_difference(kind.read(data), trained.model, images)
    except Exception as error:  # torch's exporters and the runtime report what they lack in many ways
        reason = first_line(error)
        raise UserError(f"{options.model}: can't be exported to {options.to}: {reason}") from error
    if not difference <= TOLERANCE:  # nor nan
        raise UserError(
            f'{options.model}: the {options.to} export differs from PyTorch by {difference:.1e} in a logit on {source} '
            f'(at most {TOLERANCE:.0e}): nothing was written; try another --to'
        )
    write_atomic(file, data)
    shape = 'batch, ' + ', '.join(map(str, images.shape[1:]))
    opset = f', opset {OPSET}' if options.to == 'onnx' else ''
    console.line(f'{file}: {options.to}{opset}, {len(data) / 2**20:.1f} MiB, images ({shape}) to logits')
    console.line(f'largest difference from PyTorch in a logit: {difference:.1e} on {len(images)} images of {source}')
    return Exported(file, options.to, difference, len(images), source)


def _output_file(options: ExportOptions, kind: _Format) -> Path:
    name = options.model.removeprefix('local-dir:')
    folder = Path(name).resolve()
    folder = folder.parent if folder.name in ('best', 'last') else folder
    file = Path(options.output or (folder.name if os.path.isdir(folder) else file_stem(name)) + kind.suffix)
    if os.path.isdir(file) or not os.path.isdir(file.absolute().parent):
        raise UserError(f'--output {file}: {"is a folder" if os.path.isdir(file) else "no such folder"}: give a file')
    if not os.access(file.absolute().parent, os.W_OK):
        raise UserError(f"--output {file}: can't write to {file.absolute().parent}: choose another place")
    return file


def _metadata(trained: TrainedModel, to: str) -> dict[str, Any]:
    """Metadata for a program that uses the file; pixels are 0–1 before mean and std."""
    names = ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')
    model: Any = trained.model
    return {
        'model': model.pretrained_cfg['architecture'],  # trained.name may be a path
        'label_names': trained.class_names,
        'named': trained.named,
        **{name: trained.config[name] for name in names},
        **({'opset': OPSET} if to == 'onnx' else {}),
        'versions': environment.versions(),
    }


def _real_images(trained: TrainedModel, data_dir: str | None) -> tuple[str, Images]:
    """Their source, and real images as the model is given them, `(N, C, H, W)`.

    They are those of its run, of the data set at hand, or drawn.
    """
    try:
        some = evenly(images_of((trained.name,), DataOptions(data_dir=data_dir)), IMAGES)
        source = f'{some.root.name}/{some.split}'
        images = [open_image(some.root / path, channels=trained.channels) for path in some.paths]
    except UserError:
        if data_dir or (os.environ.get('IMAGENETTE_DIR') and run_of(trained.name) is None):
            raise
        source = 'synthette'
        images = [Image.fromarray(draw_image(name, 0, 'val', 0)) for name in CLASS_NAMES]
    try:
        if source == 'synthette':
            images = [with_channels(with_fourth(image), trained.channels) for image in images]
        pixels = np.stack([trained.pixels(image) for image in images])
    except Unfit as error:
        raise UserError(f'{source}: an image {error}') from None
    return source, trained.normalize(torch.from_numpy(pixels))


@torch.inference_mode()
def _largest_difference(network: Network, model: nn.Module, images: Images) -> float:
    """In a logit; the network is given one image alone and the others at once, the model each alone."""
    given = torch.cat([network(images[:1]), network(images[1:])])
    return (given - torch.cat([model(image[None]) for image in images])).abs().max().item()


@contextmanager
def _silence() -> Iterator[None]:
    """The exporters warn of what no user of a model can mend, as that TorchScript is deprecated, and print graphs."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter('ignore')
        yield


def _any_batch() -> Any:
    return ({0: torch.export.Dim('batch', max=2**20)},)  # torch 2.6 asks for a bound where a model pools


@torch.no_grad()
def _write_onnx(model: nn.Module, images: Images, metadata: str) -> bytes:
    import onnx

    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        opset_version=OPSET,
        dynamic_shapes=_any_batch(),
        input_names=['images'],
        output_names=['logits'],
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {KEY: metadata})
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _read_onnx(data: bytes) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(['logits'], {'images': images.numpy()})[0])


@torch.no_grad()
def _write_torch_export(model: nn.Module, images: Images, metadata: str) -> bytes:
    program = torch.export.export(model, (images,), dynamic_shapes=_any_batch(), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: metadata})
    return file.getvalue()


def _read_torch_export(data: bytes) -> Network:
    return torch.export.load(io.BytesIO(data)).module()


@torch.no_grad()
def _write_torchscript(model: nn.Module, images: Images, metadata: str) -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images, check_trace=False), file, _extra_files={KEY: metadata})
    return file.getvalue()


def _read_torchscript(data: bytes) -> Network:
    return torch.jit.load(io.BytesIO(data))


@dataclass(frozen=True)
class _Format:
    """How a model becomes the content of a file, and that a network again."""

    suffix: str
    write: Callable[[nn.Module, Images, str], bytes]
    read: Callable[[bytes], Network]
    needs: tuple[str, ...] = ()


FORMATS: Mapping[str, _Format] = {
    'onnx': _Format('.onnx', _write_onnx, _read_onnx, ('onnx', 'onnxscript', 'onnxruntime')),
    'torch-export': _Format('.pt2', _write_torch_export, _read_torch_export),
    'torchscript': _Format('.pt', _write_torchscript, _read_torchscript),
}
