"""The faults that `tools/soak.py faults` injects, by kind. Each kind is a function that yields them."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import tarfile
import time
import typing
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from faults import TRAIN, Fault, open_missing
from PIL import Image
from safetensors.torch import load_file, save

from imagenette_zoo.config.recipe import Recipe
from imagenette_zoo.utils.files import is_own  # noqa: F401  (imported before a limit on open files)

Injure = Callable[[Path], object]
Faults = Iterator[Fault]

PREDICT = ('predict', 'photos', '--model', 'model', '--device', 'cpu')
PREDICT_JSON = (*PREDICT, '--json')
VALIDATE = ('validate', '--model', 'model', '--data-dir', 'data', '--device', 'cpu', '-j', '0')
CHECK = ('data', 'check', '--data-dir', 'data')
PUBLISH = ('publish', 'runs/run', 'me/it', '--dry-run')
REPORT = ('report', 'runs/run', '--data-dir', 'data')
ANALYSE = ('analyse', 'runs/run', '--data-dir', 'data', '--device', 'cpu')
EXPORT = ('export', 'model', '--output', 'exported.pt2')
RESUME = (*TRAIN[:-1], 'half', '--resume')
HALF = ('data', 'runs/half')
HALF_WRITES = ('runs/half', 'runs/half/*')
STUDY = ('study', 'rates.yaml', '--data-dir', 'data')
STUDY_PARTS = ('data', 'runs/rates')


# --- Bytes ------------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A damaged form of a file's content, and what was done to it."""
    at = rng.randrange(len(data)) if data else 0
    pick = rng.randrange(8)
    if pick == 0:
        return f'cut at {at}', data[:at]
    if pick in (1, 2):
        bit = rng.randrange(8)
        return f'bit {bit} of byte {at} flipped', data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    if pick == 3:
        noise = rng.randbytes(rng.randint(1, 3000))
        return f'{len(noise)} bytes of noise at {at}', data[:at] + noise + data[at + len(noise) :]
    if pick == 4:
        return f'zeros from {at} on', data[:at] + bytes(len(data) - at)
    if pick == 5:
        count = rng.randint(1, 500)
        return f'{count} bytes missing at {at}', data[:at] + data[at + count :]
    if pick == 6:
        return 'twice', data + data
    return 'noise', rng.randbytes(rng.choice((1, 100, 10_000)))


def replaced(name: str, data: bytes) -> Injure:
    """A file has other content; a link to it keeps leading there."""

    def injure(world: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            (world / name).unlink()
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_bytes(data)

    return injure


def instead(name: str, kind: str) -> Injure:
    """Something else is where a file or folder should be."""

    def injure(world: Path) -> None:
        path = world / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        {
            'nothing': lambda: None,
            'a folder': lambda: path.mkdir(parents=True),
            'an empty file': lambda: path.write_bytes(b''),
            'a fifo': lambda: os.mkfifo(path),
            'a link to nothing': lambda: path.symlink_to('nowhere'),
            'a link to itself': lambda: path.symlink_to(path.name),
            '/dev/zero': lambda: path.symlink_to('/dev/zero'),
            '/dev/null': lambda: path.symlink_to('/dev/null'),
            'text': lambda: path.write_text('<html>404 not found</html>\n'),
            '9 GB of holes': lambda: _holes(path, 9 * 10**9),
            'a pickle that runs code': lambda: path.write_bytes(pickle.dumps(_Runs())),
        }[kind]()

    return injure


THINGS = (
    'nothing', 'a folder', 'an empty file', 'a fifo', 'a link to nothing', 'a link to itself', '/dev/zero',
    '/dev/null', 'text', '9 GB of holes', 'a pickle that runs code',
)  # fmt: skip


def _holes(path: Path, size: int) -> None:
    with open(path, 'wb') as file:
        file.truncate(size)


class _Runs:
    """A pickle of it leaves a file `ran`, which is noticed as made."""

    def __reduce__(self) -> Any:
        return os.system, ('touch ran',)


def together(*acts: Injure) -> Injure:
    """Several injuries."""

    def injure(world: Path) -> None:
        for act in acts:
            act(world)

    return injure


# --- A, B: configs and weights of strangers ---------------------------------------------------------------------------

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
        'NaN': raw.replace('}', ', "x": NaN}', 1), '1e999': raw[:-1] + ', "num_features": 1e999}', 'nested': '[' * 99999,
        'two objects': raw * 2, 'a list': '[1, 2]', 'a number': '1', 'null': 'null', 'BOM': '\ufeff' + raw,
        'twice the key': raw[:-1] + ', "num_classes": 5}', 'surrogate': raw[:-1] + ', "label_names": ["\\ud800","b","c"]}',
        'digits': raw[:-1] + ', "num_classes": ' + '9' * 10000 + '}',
    }  # fmt: skip
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
        VALIDATE, PREDICT, PREDICT_JSON, (*TRAIN, '--initial-checkpoint', 'model/model.safetensors'), EXPORT,
        ('publish', 'model', 'me/it', '--dry-run'),
    )  # fmt: skip
    floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for number in range(36):
        name, value = rng.choice(floating), rng.choice((float('nan'), float('inf'), -float('inf')))
        changed = {key: tensor.clone() for key, tensor in state.items()}
        changed[name].view(-1)[rng.randrange(changed[name].numel())] = value
        yield Fault(
            f'{name} has {value}', commands[number % len(commands)], codes=(2,),
            injure=replaced('model/model.safetensors', save(changed)),
        )  # fmt: skip
    one = {first: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}
    hostile = {
        'header of 2**63 bytes': _safetensors(header, body, 2**63), 'header of 0 bytes': _safetensors(b'', body),
        'header longer than the file': _safetensors(header, body, len(sound) * 2),
        'header of 300 MB that is not there': _safetensors(b'{}', b'', 300_000_000),
        'header no UTF-8': _safetensors(b'{"\xff\xfe": 1}'), 'header nested': _safetensors(b'[' * 100_000),
        'header a list': _safetensors([1]), 'no tensors': _safetensors({}), 'unknown type': _safetensors(
            {first: {'dtype': 'F9', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(8)),
        'shape of 1e18': _safetensors({first: {'dtype': 'F32', 'shape': [10**9, 10**9], 'data_offsets': [0, 8]}}, bytes(8)),
        'shape of -1': _safetensors({first: {'dtype': 'F32', 'shape': [-1], 'data_offsets': [0, 8]}}, bytes(8)),
        'offsets that overlap': _safetensors({**one, 'b': one[first]}, bytes(8)),
        'offsets beyond the end': _safetensors({first: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(4)),
        '200,000 empty tensors': _safetensors(
            {f't{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for i in range(200_000)}),
        'another model': save({'conv.weight': torch.zeros(3)}), 'one weight is missing': save(
            {name: tensor for name, tensor in state.items() if name != first}),
        'one weight more': save({**state, 'extra\x1b[31m\n': torch.zeros(1)}),
        'scalars': save({name: torch.tensor(1.0) for name in state}),
        'a transposed weight': save({**state, first: state[first].transpose(0, -1).contiguous().clone()}),
        'metadata with control characters': save(dict(state), {'\x1b[2J': '\x07'}),
        'a torch checkpoint': _saved(state), 'another archive': gzip.compress(sound),
        'eight bytes': bytes(8), 'GGUF': b'GGUF' + bytes(100), 'HDF5': b'\x89HDF\r\n\x1a\n' + bytes(100),
        'Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    }  # fmt: skip
    for number, (name, data) in enumerate(hostile.items()):
        for command in (commands[number % len(commands)], VALIDATE):
            yield Fault(f'safetensors: {name}', command, replaced('model/model.safetensors', data))
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64):
        yield Fault(f'safetensors: all {dtype}', PREDICT, replaced(
            'model/model.safetensors', save({name: tensor.to(dtype) for name, tensor in state.items()})))  # fmt: skip
    for number in range(36):
        how, data = damaged(sound, rng)
        yield Fault(
            f'safetensors: {how}', commands[number % len(commands)], replaced('model/model.safetensors', data)
        )
    for kind in THINGS:
        yield Fault(f'safetensors: {kind}', rng.choice(commands), instead('model/model.safetensors', kind))


def _saved(values: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer, **options)
    return buffer.getvalue()


def checkpoints(rng: random.Random, world: Path) -> Faults:
    """Files of torch for `--checkpoint` and `--initial-checkpoint`, from other trainers and from nobody."""
    state = load_file(world / 'model' / 'model.safetensors')
    sound = _saved(state)
    first = next(name for name, tensor in state.items() if tensor.dtype == torch.float32)
    validate = ('validate', '--model', 'test_resnet', '--num-classes', '3', '--img-size', '32', '--checkpoint', 'w.pth',
                '--data-dir', 'data', '--device', 'cpu')  # fmt: skip
    train = (*TRAIN, '--initial-checkpoint', 'w.pth')
    contents: dict[str, Any] = {
        'plain': state, 'state_dict': {'state_dict': state}, 'model_state_dict': {'model_state_dict': state},
        'module.': {f'module.{name}': tensor for name, tensor in state.items()},
        'model.': {f'model.{name}': tensor for name, tensor in state.items()},
        'NumPy scalars': {'state_dict': state, 'best': np.float64(1), 'epoch': np.int64(3)},
    }  # fmt: skip
    for name, content in contents.items():
        for command in (validate, train):
            yield Fault(f'checkpoint: {name}', command, replaced('w.pth', _saved(content)), codes=(0,))
    bad: dict[str, Any] = {
        'runs code': _Runs(), 'code beside weights': {'state_dict': state, 'x': _Runs()}, 'a list': [1], 'empty': {},
        'text': 'weights', 'names that are numbers': dict(enumerate(state.values())), 'values that are text': {
            name: 'x' for name in state}, 'no tensor among them': {**state, first: 3.0},
        'NaN': {**state, first: state[first] * float('nan')}, 'nested': {'state_dict': {'state_dict': {'model': {}}}},
        'other shapes': {name: tensor.flatten() for name, tensor in state.items()},
        'control characters': {'\x1b]0;title\x07' + name: tensor for name, tensor in state.items()},
        'sparse': {**state, first: state[first].to_sparse()}, 'a tensor alone': state[first],
        'quantised': {**state, first: torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8)},
        'a huge view': {**state, first: torch.zeros(1).expand(2**40)},
        'a model': torch.nn.Linear(1, 1), 'meta tensors': {name: tensor.to('meta') for name, tensor in state.items()},
    }  # fmt: skip
    for name, content in bad.items():
        for command in (validate, train):
            yield Fault(f'checkpoint: {name}', command, replaced('w.pth', _saved(content)), codes=(2,))
    for number in range(24):
        old = number % 3 == 0
        how, data = damaged(_saved(state, _use_new_zipfile_serialization=False) if old else sound, rng)
        yield Fault(f'checkpoint: {how}', (validate, train)[number % 2], replaced('w.pth', data))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr('archive/data.pkl', b'\x80\x02' + b'0' * 200_000_000)
        zipped.writestr('archive/version', '3')
    yield Fault('checkpoint: a zip bomb', validate, replaced('w.pth', bomb.getvalue()), codes=(2,))
    for kind in THINGS:
        yield Fault(f'checkpoint: {kind}', rng.choice((validate, train)), instead('w.pth', kind), codes=(2,))


# --- A, C: images -----------------------------------------------------------------------------------------------------


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bad_images(rng: random.Random) -> dict[str, bytes]:
    """Names and contents of files that are no plain photos."""
    noise = np.random.RandomState(0)
    photo = Image.fromarray(noise.randint(0, 255, (48, 52, 3)).astype(np.uint8))
    grey16 = Image.fromarray(noise.randint(0, 1024, (48, 52)).astype(np.uint16))
    fractions = noise.rand(48, 52).astype(np.float32)
    nan = fractions.copy()
    nan[3] = np.nan
    png = bytearray(_encoded(photo, 'PNG'))
    png[16:24] = struct.pack('>II', 200_000, 200_000)
    exif = Image.Exif()
    exif[0x0112] = 77
    postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(ran) (w) file closefile\nshowpage\n'
    return {
        'postscript.jpg': postscript, 'empty.jpg': b'', 'text.png': b'hello', 'page.jpeg': b'<html></html>',
        'huge header.png': bytes(png), 'svg.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        '16 bits.png': _encoded(grey16, 'PNG'), '16 bits.tif': _encoded(grey16, 'TIFF'),
        'fractions.tif': _encoded(Image.fromarray(fractions), 'TIFF'), 'nan.tif': _encoded(Image.fromarray(nan), 'TIFF'),
        'large fractions.tif': _encoded(Image.fromarray(fractions * 1e38), 'TIFF'),
        'negative.tif': _encoded(Image.fromarray(-fractions), 'TIFF'),
        'cmyk.jpg': _encoded(photo.convert('CMYK'), 'JPEG'), 'la.png': _encoded(photo.convert('LA'), 'PNG'),
        'palette.png': _encoded(photo.convert('P'), 'PNG', transparency=3), 'bits.png': _encoded(photo.convert('1'), 'PNG'),
        'lab.tif': _encoded(photo.convert('RGB'), 'TIFF', compression='tiff_lzw'),
        'moving.gif': _encoded(photo, 'GIF', save_all=True, append_images=[photo] * 3),
        'exif.jpg': _encoded(photo, 'JPEG', exif=exif), 'noise exif.jpg': _encoded(photo, 'JPEG', exif=b'Exif\0\0' + bytes(40)),
        'one.png': _encoded(photo.resize((1, 1)), 'PNG'), 'line.png': _encoded(photo.resize((20_000, 1)), 'PNG'),
        'wide.jpg': _encoded(photo.resize((30_000, 2)), 'JPEG'),
        'a.jp2': _encoded(photo, 'JPEG2000'), 'a.tga': _encoded(photo, 'TGA'), 'a.jfif': _encoded(photo, 'JPEG'),
        'a.bmp': _encoded(photo, 'BMP'), 'a.ico': _encoded(photo, 'ICO'), 'a.pcx': _encoded(photo, 'PCX'),
        'a.pdf': _encoded(photo, 'PDF'), 'no ending': _encoded(photo, 'JPEG'), 'png.jpg': _encoded(photo, 'PNG'),
        'eps.png': _encoded(photo, 'EPS'), 'JPEG.JPG': _encoded(photo, 'JPEG', progressive=True), 'Thumbs.db': b'x',
        'cut.jpg': _encoded(photo, 'JPEG')[:-300], 'cut.png': _encoded(photo, 'PNG')[:-300],
        'cut.webp': _encoded(photo, 'WEBP')[:-100], 'cut.gif': _encoded(photo, 'GIF')[:-300],
        'maxval.pgm': b'P5 4 4 1023\n' + bytes(32), 'words.ppm': b'P3 2 2 255\n1 2 x', 'huge.ppm': b'P6 999999 999999 255\n',
        'zero.pbm': b'P4 0 0\n', 'jxl.jpg': bytes.fromhex('0000000c4a584c200d0a870a'), 'heic.jpg': b'\0\0\0\x18ftypheic' + bytes(30),
    }  # fmt: skip


def images(rng: random.Random, world: Path) -> Faults:
    """Files among photos and training images that are no plain photos, or are damaged."""
    noisy = bad_images(rng)
    photo = (world / 'photos' / 'b.jpg').read_bytes()
    for number in range(40):
        file = rng.choice(('photos/a.png', 'photos/b.jpg', 'photos/c.webp'))
        how, noisy[f'{number}{Path(file).suffix}'] = damaged((world / file).read_bytes(), rng)
    for number, (name, data) in enumerate(noisy.items()):
        yield Fault(f'photo {name}', (PREDICT, PREDICT_JSON)[number % 2], replaced(f'photos/{name}', data))
        command = (CHECK, TRAIN, VALIDATE, ('predict', f'photos/{name}', *PREDICT[2:]))[number % 4]
        where = 'photos' if number % 4 == 3 else f'data/{"val" if number % 4 == 2 else "train"}/class1'
        yield Fault(f'image {name}', command, replaced(f'{where}/{name}', data))
    for kind in THINGS:
        for command, name in (
            (PREDICT_JSON, 'photos/x.JPEG'), (CHECK, 'data/train/class0/x.JPEG'), (TRAIN, 'data/train/class0/x.JPEG'),
            (VALIDATE, 'data/val/class0/x.jpg'), ((*TRAIN, '--loader', 'timm', '-j', '1'), 'data/train/class0/x.png'),
        ):  # fmt: skip
            yield Fault(f'image: {kind}', command, instead(name, kind))

    def megapixels(world: Path) -> None:
        Image.new('RGB', (12_000, 10_000)).save(world / 'photos' / 'large.png', compress_level=1)

    yield Fault('photo of 120 megapixels', PREDICT, megapixels, codes=(0,), large=True)
    yield Fault('photo of 120 megapixels, 100 allowed', (*PREDICT, '--max-megapixels', '100'), megapixels, codes=(1,))
    yield Fault('10,000 photos of a byte', PREDICT_JSON, lambda world: _many(world / 'photos', photo[:1]), codes=(1,))


def _many(folder: Path, data: bytes) -> None:
    for number in range(2_000):
        (folder / f'many{number}.jpg').write_bytes(data)


# --- A: names ---------------------------------------------------------------------------------------------------------

NAMES = (
    '\x1b[2J\x1b[H', '\x1b]0;title\x07', 'a\nerror: forged', 'a\rb', '\x08\x08\x08', 'a\tb', '\x7f', '\x9b31m', '\u202egpj.exe',
    '\u2028', 'ü' * 60, 'a' * 200, ' ', '-rf', '--help', '%s%n', '{0}', '$(touch ran)', '`touch ran`', ';touch ran', "'\"",
    '<script>alert(1)</script>', '*', '[a]', '😀‍👩', '\udcff\udcfe', 'con', '~', 'a:b', 'a,b', '=1+1', '#', '!!python/none', '\\',
    'null', '1e3', 'true', '\ufeff', 'x\x00'.rstrip('\0'),
)  # fmt: skip


def names(rng: random.Random, world: Path) -> Faults:
    """Control characters, commands and odd bytes as the names of files, classes, folders, runs and models."""

    def moved(old: str, new: str) -> Injure:
        return lambda world: (world / old).rename(world / new)

    for number, name in enumerate(NAMES):
        bad, classes = replaced(f'photos/{name}.jpg', b'x'), [f'{name}', 'b', 'c']
        yield Fault(f'photo named {name!r}', (PREDICT, PREDICT_JSON)[number % 2], together(
            bad, lambda world, name=name: shutil.copy(world / 'photos' / 'a.png', world / 'photos' / f'{name}.png')),
            codes=(1,))  # fmt: skip
        config = json.loads((world / 'model' / 'config.json').read_text())
        config['label_names'] = [name.encode(errors='replace').decode(), 'b', 'c']
        yield Fault(f'class named {name!r}', (PREDICT, VALIDATE)[number % 2],
                    replaced('model/config.json', json.dumps(config).encode()), codes=(0, 2))  # fmt: skip
        both = together(moved('data/train/class1', f'data/train/{name}'), moved('data/val/class1', f'data/val/{name}'))
        command = (TRAIN, CHECK, (*TRAIN, '--loader', 'timm', '-j', '0'))[number % 3]
        yield Fault(f'class folder named {name!r}', command, both)
        if number % 2:
            yield Fault(f'run named {name!r}', ('report', f'runs/{name}'), moved('runs/run', f'runs/{name}'))
        else:
            yield Fault(f'bad image in {name!r}', CHECK, replaced(f'data/train/class0/{name}.jpg', b'x'), codes=(2,))
        if number % 3 == 0:
            yield Fault(f'experiment {name!r}', (*TRAIN[:-1], name), writes=('*',))
            yield Fault(f'model {name!r}', ('predict', 'photos', '--model', name))
        del classes


# --- B: archives ------------------------------------------------------------------------------------------------------


def _tar(*members: tuple[str, bytes, dict[str, Any]], mode: str = 'w:gz', whole: bytes = b'') -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        if whole:
            with tarfile.open(fileobj=io.BytesIO(whole)) as old:
                for member in old:
                    tar.addfile(member, old.extractfile(member) if member.isreg() else None)
        for name, data, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return buffer.getvalue()


def _sparse(size: int) -> bytes:
    """A tar file with a member of so many bytes, all of them holes, in GNU's old form."""
    info = tarfile.TarInfo('set/train/class0/sparse.png')
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b'S'
    block[483:495] = f'{size:011o} '.encode() if size < 8**11 else b'\x80' + size.to_bytes(11, 'big')
    block[148:156] = b'        '
    block[148:156] = f'{sum(block):06o}\0 '.encode()
    return gzip.compress(bytes(block) + bytes(10240))


def _zip(whole: bytes, *members: tuple[Any, bytes]) -> bytes:
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, 'a', zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members:
            zipped.writestr(name, data)
    return buffer.getvalue()


def archives(rng: random.Random, world: Path) -> Faults:
    """Archives of a data set: links, devices, bombs, names that leave the folder, damage."""
    tgz, zipped = (world / 'data.tgz').read_bytes(), (world / 'data.zip').read_bytes()
    kinds: dict[str, tuple[str, bytes, dict[str, Any]]] = {
        'a symbolic link': ('set/l', b'', {'type': tarfile.SYMTYPE, 'linkname': '/etc'}),
        'a hard link': ('set/l', b'', {'type': tarfile.LNKTYPE, 'linkname': '/etc/passwd'}),
        'a device': ('set/d', b'', {'type': tarfile.CHRTYPE, 'devmajor': 1, 'devminor': 5}),
        'a fifo': ('set/f', b'', {'type': tarfile.FIFOTYPE}), 'an absolute path': ('/tmp/ran', b'x', {}),
        'a path with ..': ('set/../../ran', b'x', {}), 'a drive': ('C:/ran', b'x', {}), 'a backslash': ('..\\ran', b'x', {}),
        'a dot': ('.', b'x', {}), 'an empty name': ('', b'x', {}),
        'a long name': ('set/' + 'a' * 5000, b'x', {}), 'a deep name': ('set/' + 'a/' * 3000, b'x', {}),
        'control characters': ('set/train/class0/\x1b[2J\n.jpg', b'x', {}), 'a bomb': ('set/b', bytes(200_000_000), {}),
        'a file in the place of a folder': ('set/train/class0', b'x', {}), 'setuid': ('set/s', b'x', {'mode': 0o7777}),
        'an unknown type': ('set/u', b'x', {'type': b'Z'}), 'a GNU sparse file': ('set/u', b'', {'type': tarfile.GNUTYPE_SPARSE}),
        'a pax header': ('set/p', b'x', {'pax_headers': {'path': '../ran', 'size': '99999999999'}}),
        'sparse by pax': ('set/p', b'', {'pax_headers': {'GNU.sparse.major': '1', 'GNU.sparse.minor': '0',
                                                        'GNU.sparse.realsize': '40000000000', 'GNU.sparse.name': 'x'}}),
    }  # fmt: skip
    check = ('data', 'check', '--data-dir')
    train = tuple('set.tgz' if word == 'data' else word for word in TRAIN)
    for number, (name, member) in enumerate(kinds.items()):
        data = _tar(member, whole=tgz)
        yield Fault(f'tgz with {name}', train if number % 3 == 0 else (*check, 'set.tgz'), replaced('set.tgz', data), parts=())
    for name, member in kinds.items():
        info = zipfile.ZipInfo(member[0] or 'x')
        info.external_attr = {'a symbolic link': 0o120777, 'a device': 0o020666, 'a fifo': 0o010666}.get(name, 0o100644) << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        with contextlib.suppress(ValueError, struct.error):
            yield Fault(f'zip with {name}', (*check, 'set.zip'), replaced('set.zip', _zip(zipped, (info, member[1]))), parts=())
    others = {
        '40 GB of holes.tgz': _sparse(40 * 10**9), '1 GB of holes.tgz': _sparse(10**9),
        '60,000 empty members.tgz': _tar(*((f'set/{n}', b'', {}) for n in range(60_000))),
        '60,000 folders.tgz': _tar(*((f'set/{n}', b'', {'type': tarfile.DIRTYPE}) for n in range(60_000))),
        'no images.tgz': _tar(('a.txt', b'x', {})), 'nothing.tgz': _tar(), 'empty.tgz': b'', 'empty.zip': b'',
        'nothing.zip': b'PK\5\6' + bytes(18), 'two streams.tgz': tgz + tgz, 'bytes after it.tgz': tgz + b'x' * 1000,
        'a zip.tgz': zipped, 'a tgz.zip': tgz, 'not packed.tgz': gzip.decompress(tgz), 'xz.tgz': _tar(whole=tgz, mode='w:xz'),
        'bz2.tgz': _tar(whole=tgz, mode='w:bz2'), 'plain.tar': _tar(whole=tgz, mode='w'), 'packed twice.tgz': gzip.compress(tgz),
        'zeros.tgz': gzip.compress(bytes(300_000_000)), 'zeros.tar': bytes(10**6), 'the same name twice.zip': zipped,
        'an archive of archives.tgz': _tar(('set/data.tgz', tgz, {})), 'set.TGZ': tgz, 'set.7z': b'7z\xbc\xaf' + bytes(99),
        'set.rar': b'Rar!' + bytes(99), 'imagenette2-160.tgz': tgz, 'text.zip': b'<html>',
    }  # fmt: skip
    for name, data in others.items():
        yield Fault(f'archive: {name}', (*check, name), replaced(name, data), parts=())
    for number in range(30):
        name, sound = ('set.tgz', tgz) if number % 2 else ('set.zip', zipped)
        how, data = damaged(sound, rng)
        yield Fault(f'{name}: {how}', (*check, name), replaced(name, data), parts=())
    for number in range(10):
        how, data = damaged(gzip.decompress(tgz), rng)
        yield Fault(f'tar within tgz: {how}', (*check, 'set.tgz'), replaced('set.tgz', gzip.compress(data)), parts=())
    for kind in THINGS:
        yield Fault(f'archive: {kind}', (*check, 'set.tgz'), instead('set.tgz', kind), parts=())


# --- E: YAML files and options ----------------------------------------------------------------------------------------

TEXTS = {
    'a key twice': 'lr: 0.1\nlr: 0.2\n', 'a nested key twice': 'model_kwargs: {a: 1, a: 2}\n',
    'an alias': 'lr: &a 0.1\nweight_decay: *a\n', 'a bomb': 'a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n', 'merge': '<<: {lr: 1}\n',
    'a tag': 'lr: !!python/object/apply:os.system ["touch ran"]\n', 'a name': 'lr: !!python/name:os.system\n',
    'another tag': 'lr: !x 1\n', 'a tab': 'lr:\t0.1\n\tepochs: 2\n', 'no mapping': '- 1\n', 'a word': 'word\n', 'nothing': '',
    'null': 'null\n', 'two documents': '---\nlr: 1\n---\nlr: 2\n', 'nested': '[' * 5000, 'nested mappings': '{a: ' * 3000,
    'an unknown key': 'learning_rate: 1\n', 'a number as key': '1: 2\n', 'null as key': '~: 2\n', 'a list as key': '? [a]\n: 1\n',
    'a date': 'lr: 2020-01-01\n', 'base 60': 'lr: 1:30\n', 'octal': 'epochs: 010\n', 'NaN': 'lr: .nan\n', 'infinity': 'lr: .inf\n',
    'binary': 'lr: !!binary aGVsbG8=\n', 'a set': 'lr: !!set {a}\n', 'control characters': 'lr: "\\e[2J\\a"\n', 'a NUL': 'lr: \0\n',
    'a key with control characters': '"\\e[2J": 1\n', 'a long key': f'{"a" * 2000}: 1\n', 'two MiB': '#' * 2**21,
    'open quote': 'lr: "0.1\n', 'open brace': 'lr: {\n', 'a long number': f'epochs: {"9" * 5000}\n', '1e400': 'lr: 1e400\n',
    'text as list': 'mean: "0.5"\n', 'a list as text': 'model: [a, b]\n', 'a mapping as number': 'lr: {a: 1}\n',
    'another model': 'model: ../../etc/passwd\n', 'an address': 'model: hf-hub:../x\n', 'code': 'model: os:system\n',
    'modules': 'device_modules: [evil.py]\n', 'a bool': 'epochs: yes\n', 'a fraction': 'epochs: 1.5\n',
}  # fmt: skip
REFUSED = {'a key twice', 'a nested key twice', 'a tag', 'a name', 'a bomb', 'NaN', 'infinity', 'an unknown key'}


def yaml_files(rng: random.Random, world: Path) -> Faults:
    """Recipes and study files that are odd, hostile, damaged, or timm's."""
    sound = (world / 'recipe.yaml').read_text()
    train = ('train', '-c', 'recipe.yaml', '--experiment', 'new')
    study = ('study', 'rates.yaml', '--data-dir', 'data', '--dry-run')
    text = (world / 'rates.yaml').read_text()
    for name, lines in TEXTS.items():
        key = lines.split(':')[0]
        rest = ''.join(line for line in sound.splitlines(True) if not line.startswith(f'{key}:'))
        alone = name in ('nothing', 'no mapping', 'a word', 'null', 'two documents', 'nested', 'nested mappings')
        codes = (2,) if name in REFUSED else (0, 2)
        yield Fault(f'recipe: {name}', train, replaced('recipe.yaml', (lines if alone else rest + lines).encode()), codes=codes)
        inside = lines.replace('\n', ', ').strip(', ')
        changed = lines if alone else text.replace('slow: {lr: 0.002}', f'slow: {{{inside}}}')
        yield Fault(f'study: {name}', study, replaced('rates.yaml', changed.encode()), parts=('data',))
    for encoding in ('utf-16', 'utf-32', 'latin-1', 'utf-8-sig'):
        data = (sound + '# ü\n').encode(encoding)
        yield Fault(f'recipe in {encoding}', train, replaced('recipe.yaml', data))
    yield Fault('recipe with CR', train, replaced('recipe.yaml', sound.replace('\n', '\r\n').encode()), codes=(0,))
    timm_args = {'data': None, 'log_wandb': False, 'local_rank': 0, 'bce_loss': False, 'aug_splits': 0, 'hflip': 0.5}
    yield Fault("timm's args.yaml", train, replaced('recipe.yaml', (sound + yaml.safe_dump(timm_args)).encode()), codes=(0, 2))
    for _ in range(20):
        how, data = damaged(sound.encode(), rng)
        yield Fault(f'recipe: {how}', (*train, '--epochs', '1'), replaced('recipe.yaml', data))
        how, data = damaged(text.encode(), rng)
        yield Fault(f'study: {how}', study, replaced('rates.yaml', data), parts=('data',))
    for kind in THINGS:
        yield Fault(f'recipe: {kind}', train, instead('recipe.yaml', kind))
        yield Fault(f'study: {kind}', study, instead('rates.yaml', kind))


COSTLY = {  # that would take long, start programs, or reach for the network where they are legal
    'epochs', 'workers', 'img_size', 'train_img_sizes', 'torchcompile', 'pretrained', 'log_wandb', 'model', 'batch_size',
    'device', 'resume', 'output', 'experiment', 'log_tensorboard', 'cooldown_epochs', 'sched_pbatch', 'data_dir', 'dataset',
}  # fmt: skip


def options(rng: random.Random, world: Path) -> Faults:
    """Options beyond their bounds, of another type, or in contradiction to each other."""
    quick = [*TRAIN]
    quick[quick.index('--epochs') + 1] = '1'
    flags: list[tuple[str, ...]] = []
    for field, kind in Recipe.kinds():
        if field.name in COSTLY or 'wandb' in field.name or 'tensorboard' in field.name:
            continue
        flag, meta = '--' + field.name.replace('_', '-'), field.metadata
        if kind is bool:
            flags += [(flag,), (flag, '1')]
            continue
        values = ['', 'x', 'nan', '-1', '1e308', '0', '1e-9', '1', '\x1b[2J', *(meta['choices'] or ())]
        for bound in ('low', 'high', 'above'):
            if meta[bound] is not None:
                values += [str(meta[bound]), str(meta[bound] + 1), str(meta[bound] - 1)]
        several = typing.get_origin(kind) is tuple
        flags += [(flag, value, *(['2'] if several and rng.random() < 0.3 else [])) for value in values]
    for chosen in rng.sample(flags, 70):
        yield Fault(f'option {" ".join(chosen)!r}', (*quick, *chosen), parts=('data',))
    for _ in range(80):
        pair = rng.sample(flags, rng.choice((2, 2, 3)))
        yield Fault(f'options {pair}', (*quick, *(word for words in pair for word in words)), parts=('data',))
    for words in (
        ('train', '--from', 'runs/run', '-c', 'recipe.yaml'), ('train', '--from', 'runs/run', '--resume'), ('train', '--resume'),
        ('predict',), ('predict', 'photos', '--model', 'model', '--save-figure', 'photos'), ('frobnicate',), (), ('--version',),
        ('export', 'model', '--model', 'model'), ('validate', '--model', 'model', '--checkpoint', 'weights.pth'), ('data',),
        ('predict', 'photos', '--model', ''), ('predict', '', '--model', 'model'), ('report',), ('publish', 'runs/run', 'a b'),
        ('publish', 'runs/run', '../x', '--dry-run'), ('report', 'runs/run', '--output', 'runs/run/args.yaml'),
        ('study', 'rates.yaml', '--only', 'nobody'), ('study', 'rates.yaml', '--jobs', '0'), ('study', 'rates.yaml', '--budget', 'nan'),
        ('run', 'test_resnet', '--vary', 'lr=', '--dry-run'), ('run', 'test_resnet', '--vary', 'x', '--dry-run'), ('new',),
        ('new', '../x'), ('new', 'a b'), ('list', '--json'), ('data', 'cache', '--clear', '--list'), ('data', 'fetch', '--size', '1'),
        (*TRAIN, '--data-dir', 'photos'), (*TRAIN, '--data-dir', ''), (*TRAIN, '--data-dir', '/dev/null'), (*TRAIN, '-b', '1000000'),
        (*TRAIN, '--img-size', '7'), (*TRAIN, '--device', 'cuda:99'), (*TRAIN, '--device', 'x'), (*TRAIN, '--num-classes', '2'),
        (*TRAIN, '--epochs', '0'), (*TRAIN, '--epochs', '-1'), (*TRAIN, '--train-split', 'train[:0%]'), (*TRAIN, '--output', 'data.tgz'),
        (*TRAIN, '--train-split', 'train[5:]'), (*TRAIN, '--experiment', '../../x'), (*TRAIN, '--experiment', 'a' * 300),
    ):  # fmt: skip
        yield Fault(f'words {" ".join(words)[-60:]!r}', words or ('-',), codes=(0, 1, 2), writes=('new', 'report*'))


# --- D: states, runs, studies, the cache ------------------------------------------------------------------------------


def states(rng: random.Random, world: Path) -> Faults:
    """`state.pt` of an interrupted run: damaged, foreign, of another run, gone."""
    path = world / 'runs' / 'half' / 'state.pt'
    sound = path.read_bytes()
    yield Fault('state: as it was', RESUME, parts=HALF, writes=HALF_WRITES, codes=(0,), after=_half_as_new(world))
    for _ in range(40):
        how, data = damaged(sound, rng)
        yield Fault(f'state: {how}', RESUME, replaced('runs/half/state.pt', data), codes=(2,), parts=HALF, writes=LOCK)
    for _ in range(10):  # of the weights themselves, which lie in the middle
        at, bit = rng.randrange(len(sound) // 4, len(sound) * 3 // 4), rng.randrange(8)
        data = sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :]
        yield Fault(f'state: bit {bit} of byte {at}', RESUME, replaced('runs/half/state.pt', data), codes=(2,), parts=HALF,
                    writes=LOCK)  # fmt: skip
    state = torch.load(path, weights_only=True)
    foreign = {
        'without a checksum': _saved(state), 'the finished run': (world / 'runs/run/state.pt').read_bytes(),
        'plain weights': _saved({'state_dict': load_file(world / 'model' / 'model.safetensors')}), 'a list': _saved([1]),
        'runs code': _saved(_Runs()), 'empty': _saved({}), 'an old checkpoint': _saved({'epoch': 3, 'optimizer': {}}),
    }  # fmt: skip
    for name, data in foreign.items():
        yield Fault(f'state: {name}', RESUME, replaced('runs/half/state.pt', data), codes=(2,), parts=HALF, writes=LOCK)
    for kind in THINGS:
        yield Fault(f'state: {kind}', RESUME, instead('runs/half/state.pt', kind), codes=(2,), parts=HALF, writes=LOCK)
    for flags in (('--lr', '0.5'), ('--seed', '7'), ('-b', '4'), ('--opt', 'adamw'), ('--img-size', '40'), ('--model', 'test_vit'),
                  ('--mixup', '0.2'), ('--model-ema',), ('--epochs', '1'), ('--train-split', 'train[:90%]')):  # fmt: skip
        yield Fault(f'resumed with {flags}', (*RESUME, *flags), codes=(2,), parts=HALF, writes=LOCK)
    for name in ('args.yaml', 'metrics.jsonl', 'summary.csv', '.saved', 'last/config.json', 'last/model.safetensors'):
        for kind in ('nothing', 'a folder', 'text', 'an empty file'):
            yield Fault(f'{name} of a run: {kind}', RESUME, instead(f'runs/half/{name}', kind), parts=HALF, writes=HALF_WRITES)


LOCK = ('runs/half/.lock',)


def _half_as_new(world: Path) -> Callable[[Path, str], str]:
    def look(world: Path, out: str) -> str:
        return '' if (world / 'runs' / 'half' / 'result.json').exists() else 'no result'

    return look


def runs(rng: random.Random, world: Path) -> Faults:
    """The files of a finished run: damaged, foreign, gone."""
    folder = world / 'runs' / 'run'
    files = ('result.json', 'metrics.jsonl', 'summary.csv', 'args.yaml', 'best/config.json', 'best/model.safetensors')
    commands = (
        REPORT, ('validate', '--model', 'runs/run', '--device', 'cpu'), ANALYSE, ('train', '--from', 'runs/run', '--experiment', 'new'),
        PUBLISH, ('predict', 'photos', '--model', 'runs/run'), ('export', 'runs/run', '--output', 'exported.pt2'),
    )  # fmt: skip
    for number in range(60):
        name = files[number % len(files)]
        how, data = damaged((folder / name).read_bytes(), rng)
        yield Fault(f'{name}: {how}', rng.choice(commands), replaced(f'runs/run/{name}', data))
    for name in files:
        for kind in rng.sample(THINGS, 4):
            yield Fault(f'{name}: {kind}', rng.choice(commands), instead(f'runs/run/{name}', kind))
    sound = json.loads((folder / 'result.json').read_text())
    for _ in range(30):
        key, value = rng.choice(list(sound)), rng.choice(NUMBERS)
        data = json.dumps({**sound, key: value}).encode()
        yield Fault(f'result.json: {key} = {str(value)[:30]!r}', rng.choice(commands[:5]), replaced('runs/run/result.json', data))
    for key in list(sound)[:8]:
        data = json.dumps({name: value for name, value in sound.items() if name != key}).encode()
        yield Fault(f'result.json without {key}', REPORT, replaced('runs/run/result.json', data))


def studies(rng: random.Random, world: Path) -> Faults:
    """A study with results: its file changed, its runs changed, gone or exchanged."""
    text = (world / 'rates.yaml').read_text()
    report = ('report', 'runs/rates', '--data-dir', 'data')
    inside = world / 'runs' / 'rates'
    trained = sorted(path.parent.relative_to(inside) for path in inside.rglob('result.json'))
    changes = {
        'another claim': text.replace('fast > slow', 'slow > fast'), 'another title': text.replace('Which rate?', '\x1b[2JWhich'),
        'a margin': text.replace('order: fast', 'margin: 1, order: fast'), 'fewer seeds': text.replace('seeds: 2', 'seeds: 1'),
        'a run renamed': text.replace('slow', 'slower'), 'no claims': text.split('claims')[0], 'an unknown metric': text.replace('top1', 'top9'),
        'an unknown run': text.replace('fast > slow', 'fast > nobody'), 'a claim twice': text + text.splitlines(True)[-1],
    }  # fmt: skip
    for name, changed in changes.items():
        yield Fault(f'study file: {name}', (*STUDY, '--dry-run'), replaced('rates.yaml', changed.encode()), parts=STUDY_PARTS,
                    writes=('runs/rates/*',))  # fmt: skip
    for number in range(20):
        name = rng.choice(('result.json', 'metrics.jsonl', 'args.yaml', 'analysis.json', 'predictions.safetensors'))
        path = f'runs/rates/{trained[number % len(trained)]}/{name}'
        if number % 2:
            how, data = damaged((world / path).read_bytes(), rng)
            yield Fault(f'{name} of a study: {how}', report, replaced(path, data), parts=STUDY_PARTS, writes=('runs/rates/*',))
        else:
            kind = rng.choice(THINGS)
            yield Fault(f'{name} of a study: {kind}', report, instead(path, kind), parts=STUDY_PARTS, writes=('runs/rates/*',))
    for kind in ('nothing', 'text', 'a folder', 'a link to itself'):
        yield Fault(f'study.yaml in its folder: {kind}', report, instead('runs/rates/study.yaml', kind), parts=STUDY_PARTS,
                    writes=('runs/rates/*',))  # fmt: skip
        yield Fault(f'a run of a study: {kind}', report, instead(f'runs/rates/{trained[0]}', kind), parts=STUDY_PARTS,
                    writes=('runs/rates/*',))  # fmt: skip


def caches(rng: random.Random, world: Path) -> Faults:
    """Decoded images and compiled kernels: noise, damage, others' rights, files instead of folders."""
    first = (*TRAIN[:-1], 'first', '--epochs', '1')

    def everywhere(change: Callable[[Path], object], pattern: str) -> Injure:
        def injure(world: Path) -> None:
            for path in sorted((world.parent / 'cache').glob(pattern)):
                change(path)

        return injure

    def spoil(path: Path, seed: int, how: str) -> None:
        data, draw = path.read_bytes(), random.Random(seed)
        path.write_bytes(damaged(data, draw)[1] if how == 'damaged' else _noise(data, draw, how))

    for number in range(36):
        how = ('damaged', '3000 bytes', 'one bit')[number % 3]
        pattern = ('decoded/*/rows.bin', 'decoded/*/meta.json', 'decoded/*/rows.bin')[number % 2]
        spoiled = everywhere(partial(spoil, seed=rng.randrange(10**6), how=how), pattern)
        yield Fault(f'cache: {pattern} {how}', TRAIN, spoiled, first=first, codes=(0,), same=True, parts=('data',))
    for number in range(9):
        how = ('damaged', 'one bit', '3000 bytes')[number % 3]
        spoiled = everywhere(partial(spoil, seed=rng.randrange(10**6), how=how), 'kernels/*.so')
        yield Fault(f'kernels: {how}', TRAIN, spoiled, codes=(0,), same=True, parts=('data',))
    rights = {'0777': 0o777, '0000': 0, '0444': 0o444}
    for name, mode in rights.items():
        for pattern in ('decoded', 'kernels', 'decoded/*', 'kernels/*.so', 'decoded/*/rows.bin', '.'):
            yield Fault(f'cache: {pattern} of mode {name}', TRAIN, everywhere(partial(os.chmod, mode=mode), pattern), first=first,
                        codes=(0, 2), same=True, parts=('data',))  # fmt: skip
    for pattern in ('decoded', 'kernels', 'decoded/*', 'decoded/*/rows.bin', 'kernels/*.so'):
        for kind in ('nothing', 'a folder', 'text', 'a link to itself', '/dev/null', 'a fifo'):
            changed = everywhere(lambda path, kind=kind: instead(path.name, kind)(path.parent), pattern)
            yield Fault(f'cache: {pattern} is {kind}', TRAIN, changed, first=first, same=True, parts=('data',))

    def exchange(world: Path) -> None:
        one, other = (world / 'data' / 'train' / 'class0' / name for name in ('0.png', '1.png'))
        status = one.stat()
        data = other.read_bytes()
        one.write_bytes(data[: status.st_size].ljust(status.st_size, b'\0'))
        os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))

    for number in range(6):
        flags = (('--seed', str(number)),)[0]
        yield Fault(f'an image exchanged, of the same size and time {number}', (*TRAIN, *flags), exchange, first=first, codes=(0,),
                    parts=('data',), after=_other_images)  # fmt: skip
    for words in (('data', 'cache', '--list'), ('data', 'cache', '--clear')):
        for kind in ('nothing', 'text', 'a folder', 'a link to itself', 'a fifo'):
            for pattern in ('decoded', 'decoded/*', 'decoded/*/meta.json'):
                changed = everywhere(lambda path, kind=kind: instead(path.name, kind)(path.parent), pattern)
                yield Fault(f'cache: {pattern} is {kind}', words, changed, first=first, parts=('data',))


def _noise(data: bytes, rng: random.Random, how: str) -> bytes:
    at = rng.randrange(len(data))
    if how == 'one bit':
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data[:at] + rng.randbytes(min(3000, len(data) - at)) + data[at + 3000 :]


def _other_images(world: Path, out: str) -> str:
    one, other = (json.loads((world / 'runs' / name / 'result.json').read_text())['data'] for name in ('first', 'new'))
    return 'the exchanged image was not noticed' if one == other else ''


# --- C: streams, disks, memory, signals -------------------------------------------------------------------------------


def full(number: int) -> None:
    """A standard stream goes to a full disk."""
    _to('/dev/full', number)


def _to(path: str, number: int) -> None:
    file = os.open(path, os.O_WRONLY)
    os.dup2(file, number)
    os.close(file)


def closed(*numbers: int) -> None:
    """Standard streams are closed, as by `>&-`."""
    for number in numbers:
        os.close(number)
    open_missing()


def gone(number: int) -> None:
    """Nobody reads a standard stream any more."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, number)
    os.close(writing)


def standard_streams(rng: random.Random, world: Path) -> Faults:
    """Standard output and error that are full, closed, or that nobody reads."""
    commands = (
        TRAIN, PREDICT, PREDICT_JSON, VALIDATE, CHECK, REPORT, ANALYSE, PUBLISH, EXPORT, ('list',), ('list', '--json'), ('--help',),
        ('data', 'cache'), (*STUDY, '--dry-run'), ('train', '--help'), ('train', '--no-such'),
    )  # fmt: skip
    for command in commands:
        wrong = command[-1] == '--no-such'
        seen = dict(parts=('data', 'photos', 'model', 'runs/run', 'runs/rates'), writes=('runs/rates/*',))
        yield Fault('stdout full', command, within=(partial(full, 1),), codes=(2,), **seen)
        yield Fault('stderr full', command, within=(partial(full, 2),), codes=(2,) if wrong else (0,), blind=True, **seen)
        yield Fault('both full', command, within=(partial(full, 1), partial(full, 2)), codes=(2,), blind=True, **seen)
        blind = dict(blind=True, codes=(2,) if wrong else (0,), **seen)
        yield Fault('stdout closed', command, within=(partial(closed, 1),), **{**blind, 'blind': True})
        yield Fault('stderr closed', command, within=(partial(closed, 2),), **blind)
        yield Fault('both closed', command, within=(partial(closed, 1, 2),), **blind)
        yield Fault('all closed', command, within=(partial(closed, 0, 1, 2),), **blind)
        yield Fault('nobody reads stdout', command, within=(partial(gone, 1),), **blind)
        yield Fault('nobody reads stderr', command, within=(partial(gone, 2),), **blind)


def limited(kind: int, most: int) -> None:
    """A limit of the system's."""
    resource.setrlimit(kind, (most, most))


def small_disk(folder: str, size: str) -> None:
    """A disk of so many bytes is where a folder was, for this process alone."""
    own_mounts()
    os.makedirs(folder, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},mode=700', 'none', folder], check=True)


def own_mounts() -> None:
    """What is mounted from here on is not seen by others."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x00020000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), 'unshare')
    subprocess.run(['mount', '--make-rprivate', '/'], check=True)


def may_mount() -> bool:
    """Whether this user may mount disks."""
    test = ['unshare', '-m', 'mount', '-t', 'tmpfs', 'none', '/mnt']
    return os.geteuid() == 0 and subprocess.run(test, capture_output=True, check=False).returncode == 0


def disks(rng: random.Random, world: Path) -> Faults:
    """Disks that are full, and files that may not grow; what was there stays, and the run goes on afterwards."""
    for _ in range(40):
        most = int(10 ** rng.uniform(2, 6.6))
        again = dict(then=(*TRAIN, '--resume'), same=True, parts=('data',))
        yield Fault(f'files of at most {most} bytes: train', TRAIN, within=(partial(limited, resource.RLIMIT_FSIZE, most),),
                    blind=most < 3000, **again)  # fmt: skip
        yield Fault(f'files of at most {most} bytes: resume', RESUME, within=(partial(limited, resource.RLIMIT_FSIZE, most),),
                    then=RESUME, parts=HALF, writes=HALF_WRITES, blind=most < 3000)  # fmt: skip
    for command in (PREDICT, VALIDATE, REPORT, ANALYSE, PUBLISH, EXPORT, (*VALIDATE, '--results-file', 'exported.csv')):
        for most in (3000, 50_000, 1_000_000):
            yield Fault(f'files of at most {most} bytes', command, within=(partial(limited, resource.RLIMIT_FSIZE, most),))
    if may_mount():
        for _ in range(16):
            size = f'{int(2 ** rng.uniform(2, 13.5))}k'
            yield Fault(f'a disk of {size} for the run', TRAIN, within=(partial(small_disk, 'runs', size),), parts=('data',))
            yield Fault(f'a disk of {size} for the cache', TRAIN, within=(partial(small_disk, '../cache', size),), parts=('data',))
            yield Fault(f'a disk of {size} for an archive', ('data', 'check', '--data-dir', 'data.tgz'),
                        within=(partial(small_disk, '../cache', size),), parts=())  # fmt: skip


def other_user() -> None:
    """Continues as a user who is not root, where this is root."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
        os.environ['HOME'] = '/nonexistent'


def rights(rng: random.Random, world: Path) -> Faults:
    """Files and folders that may not be read or written."""

    def without(name: str, mode: int) -> Injure:
        def injure(world: Path) -> None:
            if os.geteuid() == 0:
                for path in (world.parent, world, *world.parent.rglob('*')):
                    os.chown(path, 65534, 65534, follow_symlinks=False)
            (world / name).chmod(mode)

        return injure

    cases = (
        ('data', 0, TRAIN), ('data/train', 0, TRAIN), ('data/train/class0', 0, TRAIN), ('data/train/class0/0.png', 0, TRAIN),
        ('data/val/class1/0.png', 0, VALIDATE), ('data/train/class0/0.png', 0, CHECK), ('data/train/class0', 0, CHECK),
        ('photos', 0, PREDICT), ('photos/a.png', 0, PREDICT_JSON), ('photos/a.png', 0, ('predict', 'photos/a.png', *PREDICT[2:])),
        ('model', 0, PREDICT), ('model/config.json', 0, PREDICT), ('model/model.safetensors', 0, VALIDATE),
        ('runs', 0o555, TRAIN), ('runs/run', 0o555, ANALYSE), ('runs/run', 0, REPORT), ('runs/run/result.json', 0, REPORT),
        ('runs/run/args.yaml', 0, ('train', '--from', 'runs/run')), ('recipe.yaml', 0, ('train', '-c', 'recipe.yaml')),
        ('rates.yaml', 0, (*STUDY, '--dry-run')), ('data.tgz', 0, ('data', 'check', '--data-dir', 'data.tgz')),
        ('../cache', 0o555, TRAIN), ('../cache', 0, TRAIN), ('../cache/kernels', 0, TRAIN), ('.', 0o555, EXPORT), ('.', 0o555, REPORT),
        ('.', 0o555, PUBLISH), ('runs/run', 0o555, PUBLISH), ('weights.pth', 0, (*TRAIN, '--initial-checkpoint', 'weights.pth')),
        ('../tmp', 0o555, TRAIN), ('model', 0o444, PREDICT), ('data/train', 0o444, TRAIN), ('photos', 0o444, PREDICT),
    )  # fmt: skip
    for name, mode, command in cases:
        injure = without(name, mode)
        if name == 'weights.pth':
            injure = together(replaced(name, b'x'), injure)
        yield Fault(f'{name} of mode {mode:o}', command, injure, within=(other_user,))


def memory(rng: random.Random, world: Path) -> Faults:
    """Little memory, few open files, a tiny /dev/shm, workers that die."""
    for most in (8, 12, 16, 24, 32, 64):
        for command in (TRAIN, PREDICT, CHECK, VALIDATE, REPORT):
            yield Fault(f'{most} open files', command, within=(partial(limited, resource.RLIMIT_NOFILE, most),), blind=most < 12)
    workers = (*TRAIN, '--loader', 'timm', '-j', '2')
    for number in range(12):
        yield Fault(f'a worker is killed {number}', workers, during=partial(kill_a_worker, wait=rng.uniform(0, 2)), parts=('data',))
    if may_mount():
        for size in ('4k', '16k', '64k', '256k', '1m'):
            for command in (workers, TRAIN, (*VALIDATE, '--loader', 'timm', '-j', '2')):
                yield Fault(f'/dev/shm of {size}', command, within=(partial(small_disk, '/dev/shm', size),))


def kill_a_worker(process: Any, world: Path, wait: float) -> None:
    """SIGKILL for the first process that a command has started, a moment after it did."""
    until = time.monotonic() + 20
    while process.is_alive() and time.monotonic() < until:
        with contextlib.suppress(OSError, IndexError, ValueError):
            child = int(Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()[0])
            time.sleep(wait / 10)
            os.kill(child, signal.SIGKILL)
            return
        time.sleep(0.005)


def interrupt(process: Any, world: Path, numbers: Sequence[int], wait: float, gap: float) -> None:
    """Sends signals to a command."""
    time.sleep(wait)
    for number in numbers:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        time.sleep(gap)


def signals(rng: random.Random, world: Path) -> Faults:
    """Signals at any instant; a run goes on afterwards and comes to the same weights."""
    resume = (*TRAIN, '--resume')
    for number in range(48):
        chosen = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[number % 3]
        several = [chosen] * rng.choice((1, 1, 2, 3))
        during = partial(interrupt, numbers=several, wait=rng.uniform(0.05, 2.5), gap=rng.uniform(0, 0.2))
        flags = ('--loader', 'timm', '-j', '1') if number % 8 == 7 else ()
        codes = (0, 130, 143, -9) if chosen == signal.SIGKILL else (0, 130, 143)
        yield Fault(f'{chosen.name} during train {number}', (*TRAIN, *flags), during=during, codes=codes, then=(*resume, *flags),
                    same=not flags, parts=('data',), writes=('*.tmp',) if chosen == signal.SIGKILL else ())  # fmt: skip
    for number, command in enumerate((PREDICT, VALIDATE, CHECK, REPORT, ANALYSE, PUBLISH, EXPORT, PREDICT_JSON) * 5):
        chosen = (signal.SIGINT, signal.SIGTERM)[number % 2]
        during = partial(interrupt, numbers=[chosen], wait=rng.uniform(0.05, 1.0), gap=0.01)
        yield Fault(f'{chosen.name} during {command[0]} {number}', command, during=during, codes=(0, 130, 143, -15))


def moving(rng: random.Random, world: Path) -> Faults:
    """What a run uses is changed or removed while it runs."""

    def later(wait: float, change: Injure) -> Callable[[Any, Path], None]:
        def act(process: Any, world: Path) -> None:
            time.sleep(wait)
            with contextlib.suppress(OSError):
                change(world)

        return act

    changes: dict[str, Injure] = {
        'the data removed': lambda world: shutil.rmtree(world / 'data'),
        'the run removed': lambda world: shutil.rmtree(world / 'runs' / 'new'),
        'an image cut': lambda world: os.truncate(world / 'data' / 'val' / 'class0' / '0.png', 100),
        'an image removed': lambda world: (world / 'data' / 'train' / 'class0' / '0.png').unlink(),
        'the cache removed': lambda world: shutil.rmtree(world.parent / 'cache'),
        'the state removed': lambda world: (world / 'runs' / 'new' / 'state.pt').unlink(),
        'another args.yaml': lambda world: (world / 'runs' / 'new' / 'args.yaml').write_text('x: 1\n'),
        'the temporary folder removed': lambda world: shutil.rmtree(world.parent / 'tmp'),
    }
    for name, change in changes.items():
        for number in range(5):
            flags = ('--loader', 'timm', '-j', '1') if number == 4 else ()
            yield Fault(f'{name} while it trains {number}', (*TRAIN, *flags), during=later(rng.uniform(0.05, 2), change),
                        parts=('data',), writes=('data', 'data/*', '../*'))  # fmt: skip


KINDS: dict[str, Callable[[random.Random, Path], Faults]] = {
    'configs': configs, 'weights': weights, 'checkpoints': checkpoints, 'images': images, 'names': names, 'archives': archives,
    'yaml': yaml_files, 'options': options, 'states': states, 'runs': runs, 'studies': studies, 'caches': caches,
    'streams': standard_streams, 'disks': disks, 'rights': rights, 'memory': memory, 'signals': signals, 'moving': moving,
}  # fmt: skip
assert dataclasses.is_dataclass(Fault)
