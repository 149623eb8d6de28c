"""An ONNX file that `export` wrote, as a model that is validated and predicts."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError, first_line, require
from ..models.model_folder import listed_names
from ..utils.reading import of_kind, parse_json, read_bytes, read_errors

__all__ = ['KEY', 'OnnxModel', 'is_onnx']

KEY = 'imagenette_zoo'  # what the metadata are called in a file
LARGEST_FILE = 2 * 2**30  # bytes: what ONNX allows without other files


def is_onnx(name: str) -> bool:
    """Whether a model's name is that of an ONNX file which is there."""
    return name.endswith('.onnx') and os.path.isfile(name)


class OnnxModel(nn.Module):
    """The file in onnxruntime, on the CPU, from images `(N, C, H, W)` to logits; `named` says whether the names of its
    classes are those of its training.

    Args:
        path: The file.

    Raises:
        UserError: onnxruntime or onnx is missing, it is no ONNX file, or its metadata don't say how images are prepared
            and what its classes are called.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        onnxruntime, onnx = (require(package, f'--model {path}', 'onnx') for package in ('onnxruntime', 'onnx'))
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        with read_errors(path, 'an ONNX file'):
            data = read_bytes(path, LARGEST_FILE)
        try:  # from memory, so that it can name no other files
            self.session = onnxruntime.InferenceSession(data, settings, providers=['CPUExecutionProvider'])
            weights = onnx.load_model_from_string(data).graph.initializer
        except Exception as error:  # both report a damaged file in many ways
            raise UserError(f'{path}: not an ONNX file that onnxruntime can run ({first_line(error)})') from None
        given = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        if given is None:
            raise UserError(
                f"{path}: its metadata don't say how images are prepared (no {KEY}): write it by imagenette-zoo export"
            )
        with read_errors(path, 'the metadata of an exported model'):
            metadata: dict[str, Any] = dict(parse_json(given))
            names = ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std', 'label_names')
            self.pretrained_cfg = {name: metadata[name] for name in names}
            self.num_classes = len(metadata['label_names'])
            self.named = of_kind(metadata.get('named', True), bool)
            if len(of_kind(metadata['input_size'], list[int])) != 3:
                raise ValueError('input_size: three numbers are needed')
        listed_names(metadata['label_names'], self.num_classes, path)
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        self.params = sum(math.prod(weight.dims) for weight in weights if weight.data_type in floats)
        self.weight = nn.Parameter(torch.zeros(0), requires_grad=False)  # a model has a type and a device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits.

        Raises:
            RuntimeError: onnxruntime refuses the images.
        """
        pixels = np.ascontiguousarray(images.cpu().numpy())
        try:
            logits = self.session.run(None, {self.session.get_inputs()[0].name: pixels})[0]
        except Exception as error:  # it has a class of its own for each reason
            raise RuntimeError(first_line(error)) from error
        return torch.from_numpy(logits).to(images.device)
