"""Model folders and checkpoints of strangers."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults import TRAIN, Fault
from safetensors.torch import load_file, save

from .damage import (
    EXPORT,
    PREDICT,
    PREDICT_JSON,
    PUBLISH,
    THINGS,
    VALIDATE,
    Faults,
    RunsCode,
    damaged,
    instead,
    replaced,
    saved,
)

NUMBERS: tuple[Any, ...] = (
    1e-9, 0.001, 0.5, 2, 7, 1000, 1e5, 3_000_000, 1e12, 0, -1, -0.5, 2**63, 10**400, True, None, 'x', '\x1b[2J', [], {},
    [1, 2, 3, 4, 5], {'a': {'b': 1e9}}, [[1e12]], 'A' * 100_000,
)  # fmt: skip
CFG_KEYS = (
    'input_size', 'test_input_size', 'crop_pct', 'test_crop_pct', 'mean', 'std', 'interpolation', 'crop_mode',
    'pool_size', 'fixed_input_size', 'num_classes', 'first_conv', 'classifier', 'label_names', 'label_descriptions',
    'license', 'origin_url', 'hf_hub_id', 'url', 'file', 'tag', 'min_input_size', 'custom_load',
)  # fmt: skip
ARG_KEYS = (
    'depth_multiplier', 'width', 'in_chans', 'channels', 'layers', 'stem_width', 'stem_type', 'base_width',
    'cardinality', 'drop_rate', 'drop_path_rate', 'output_stride', 'block_reduce_first', 'down_kernel_size',
    'zero_init_last', 'act_layer', 'norm_layer', 'aa_layer', 'block', 'num_classes', 'global_pool', 'img_size',
    'checkpoint_path', 'pretrained', 'pretrained_cfg', 'cache_dir', 'scriptable', 'no_such_argument',
)  # fmt: skip
TOP_KEYS = ('architecture', 'num_classes', 'num_features', 'global_pool', 'label_names', 'pretrained_cfg', 'model_args',
            'device_modules', 'license', 'epoch')  # fmt: skip


def configs(rng: random.Random, world: Path) -> Faults:
    """`config.json` of a model folder with numbers of any size and values of any type."""
    sound = json.loads((world / 'model' / 'config.json').read_text())
    places = [('pretrained_cfg', key) for key in CFG_KEYS] + [('model_args', key) for key in ARG_KEYS]
    cases = [(*place, value) for place in [*places, *((None, key) for key in TOP_KEYS)] for value in NUMBERS]
    commands = (PREDICT, PREDICT_JSON, VALIDATE, PREDICT, (*TRAIN, '--initial-checkpoint', 'model/model.safetensors'))
    for number, (group, key, value) in enumerate(rng.sample(cases, 130)):
        config = json.loads(json.dumps(sound))
        if group is None:
            config[key] = value
        else:
            config.setdefault(group, {})[key] = value
        command = commands[number % 4] if rng.random() < 0.95 else (*PUBLISH[:1], 'model', *PUBLISH[2:])
        what = f'config.json: {group or "top"}.{key} = {str(value)[:30]!r}'
        yield Fault(what, command, replaced('model/config.json', json.dumps(config).encode()))
    raw = json.dumps(sound)
    texts = {
        'NaN': raw.replace('}', ', "x": NaN}', 1),
        '1e999': raw[:-1] + ', "num_features": 1e999}',
        'nested': '[' * 99999,
        'two objects': raw * 2,
        'a list': '[1, 2]',
        'a number': '1',
        'null': 'null',
        'BOM': '\ufeff' + raw,
        'twice the key': raw[:-1] + ', "num_classes": 5}',
        'surrogate': raw[:-1] + ', "label_names": ["\\ud800","b","c"]}',
        'digits': raw[:-1] + ', "num_classes": ' + '9' * 10000 + '}',
    }
    for name, text in texts.items():
        yield Fault(f'config.json: {name}', PREDICT_JSON, replaced('model/config.json', text.encode()))
    for _ in range(20):
        how, data = damaged(raw.encode(), rng)
        yield Fault(f'config.json: {how}', rng.choice((PREDICT, VALIDATE)), replaced('model/config.json', data))
    for kind in THINGS:
        yield Fault(f'config.json: {kind}', PREDICT, instead('model/config.json', kind))


def _safetensors(header: Any, data: bytes = b'', length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def weights(rng: random.Random, world: Path) -> Faults:
    """Weights that are not finite, not these, not whole, or not weights."""
    path = world / 'model' / 'model.safetensors'
    sound, state = path.read_bytes(), load_file(path)
    size = struct.unpack('<Q', sound[:8])[0]
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]
    first = next(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    commands = (
        VALIDATE,
        PREDICT,
        PREDICT_JSON,
        (*TRAIN, '--initial-checkpoint', 'model/model.safetensors'),
        EXPORT,
        ('publish', 'model', 'me/it', '--dry-run'),
    )
    floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for number in range(36):
        name, value = rng.choice(floating), rng.choice((float('nan'), float('inf'), -float('inf')))
        changed = {key: tensor.clone() for key, tensor in state.items()}
        changed[name].view(-1)[rng.randrange(changed[name].numel())] = value
        yield Fault(
            f'{name} has {value}',
            commands[number % len(commands)],
            codes=(2,),
            injure=replaced('model/model.safetensors', save(changed)),
        )
    one = {first: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}
    hostile = {
        'header of 2**63 bytes': _safetensors(header, body, 2**63), 'header of 0 bytes': _safetensors(b'', body),
        'header longer than the file': _safetensors(header, body, len(sound) * 2),
        'header of 300 MB that is not there': _safetensors(b'{}', b'', 300_000_000),
        'header no UTF-8': _safetensors(b'{"\xff\xfe": 1}'), 'header nested': _safetensors(b'[' * 100_000),
        'header a list': _safetensors([1]), 'no tensors': _safetensors({}), 'unknown type': _safetensors(
            {first: {'dtype': 'F9', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(8)),
        'shape of 1e18': _safetensors({first: {'dtype': 'F32', 'shape': [10**9, 10**9], 'data_offsets': [0, 8]}},
        bytes(8)),
        'shape of -1': _safetensors({first: {'dtype': 'F32', 'shape': [-1], 'data_offsets': [0, 8]}}, bytes(8)),
        'offsets that overlap': _safetensors({**one, 'b': one[first]}, bytes(8)),
        'offsets beyond the end': _safetensors({first: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}},
        bytes(4)),
        '200,000 empty tensors': _safetensors(
            {f't{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for i in range(200_000)}),
        'another model': save({'conv.weight': torch.zeros(3)}), 'one weight is missing': save(
            {name: tensor for name, tensor in state.items() if name != first}),
        'one weight more': save({**state, 'extra\x1b[31m\n': torch.zeros(1)}),
        'scalars': save({name: torch.tensor(1.0) for name in state}),
        'a transposed weight': save({**state, first: state[first].transpose(0, -1).contiguous().clone()}),
        'metadata with control characters': save(dict(state), {'\x1b[2J': '\x07'}),
        'a torch checkpoint': saved(state), 'another archive': gzip.compress(sound),
        'eight bytes': bytes(8), 'GGUF': b'GGUF' + bytes(100), 'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(100),
        'Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    }  # fmt: skip
    for number, (name, data) in enumerate(hostile.items()):
        for command in (commands[number % len(commands)], VALIDATE):
            yield Fault(f'safetensors: {name}', command, replaced('model/model.safetensors', data))
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64):
        yield Fault(
            f'safetensors: all {dtype}',
            PREDICT,
            replaced('model/model.safetensors', save({name: tensor.to(dtype) for name, tensor in state.items()})),
        )
    for number in range(36):
        how, data = damaged(sound, rng)
        yield Fault(f'safetensors: {how}', commands[number % len(commands)], replaced('model/model.safetensors', data))
    for kind in THINGS:
        yield Fault(f'safetensors: {kind}', rng.choice(commands), instead('model/model.safetensors', kind))


def checkpoints(rng: random.Random, world: Path) -> Faults:
    """Files of torch for `--checkpoint` and `--initial-checkpoint`, from other trainers and from nobody."""
    state = load_file(world / 'model' / 'model.safetensors')
    sound = saved(state)
    first = next(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    validate = (
        'validate',
        '--model',
        'test_resnet',
        '--num-classes',
        '3',
        '--img-size',
        '32',
        '--checkpoint',
        'w.pth',
        '--data-dir',
        'data',
        '--device',
        'cpu',
    )
    train = (*TRAIN, '--initial-checkpoint', 'w.pth')
    contents: dict[str, Any] = {
        'plain': state, 'state_dict': {'state_dict': state}, 'model_state_dict': {'model_state_dict': state},
        'module.': {f'module.{name}': tensor for name, tensor in state.items()},
        'model.': {f'model.{name}': tensor for name, tensor in state.items()},
        'NumPy scalars': {'state_dict': state, 'best': np.float64(1), 'epoch': np.int64(3)},
    }  # fmt: skip
    for name, content in contents.items():
        for command in (validate, train):
            yield Fault(f'checkpoint: {name}', command, replaced('w.pth', saved(content)), codes=(0,))
    bad: dict[str, Any] = {
        'runs code': RunsCode(),
        'code beside weights': {'state_dict': state, 'x': RunsCode()},
        'a list': [1],
        'empty': {},
        'text': 'weights',
        'names that are numbers': dict(enumerate(state.values())),
        'values that are text': {name: 'x' for name in state},
        'no tensor among them': {**state, first: 3.0},
        'NaN': {**state, first: state[first] * float('nan')},
        'nested': {'state_dict': {'state_dict': {'model': {}}}},
        'other shapes': {name: tensor.flatten() for name, tensor in state.items()},
        'control characters': {'\x1b]0;title\x07' + name: tensor for name, tensor in state.items()},
        'sparse': {**state, first: state[first].to_sparse()},
        'a tensor alone': state[first],
        'quantised': {**state, first: torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8)},
        'a huge view': {**state, first: torch.zeros(1).expand(2**40)},
        'a model': torch.nn.Linear(1, 1),
        'meta tensors': {name: tensor.to('meta') for name, tensor in state.items()},
    }
    for name, content in bad.items():
        for command in (validate, train):
            yield Fault(f'checkpoint: {name}', command, replaced('w.pth', saved(content)), codes=(2,))
    for number in range(24):
        old = number % 3 == 0
        how, data = damaged(saved(state, _use_new_zipfile_serialization=False) if old else sound, rng)
        yield Fault(f'checkpoint: {how}', (validate, train)[number % 2], replaced('w.pth', data))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr('archive/data.pkl', b'\x80\x02' + b'0' * 200_000_000)
        zipped.writestr('archive/version', '3')
    yield Fault('checkpoint: a zip bomb', validate, replaced('w.pth', bomb.getvalue()), codes=(2,))
    for kind in THINGS:
        yield Fault(f'checkpoint: {kind}', rng.choice((validate, train)), instead('w.pth', kind), codes=(2,))
