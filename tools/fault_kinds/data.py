"""Photos, training images, names and archives of strangers."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from faults import TRAIN, Fault
from PIL import Image

from .damage import (
    CHECK,
    PREDICT,
    PREDICT_JSON,
    THINGS,
    VALIDATE,
    Faults,
    Injure,
    damaged,
    instead,
    replaced,
    together,
)


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
        'postscript.jpg': postscript,
        'empty.jpg': b'',
        'text.png': b'hello',
        'page.jpeg': b'<html></html>',
        'huge header.png': bytes(png),
        'svg.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        '16 bits.png': _encoded(grey16, 'PNG'),
        '16 bits.tif': _encoded(grey16, 'TIFF'),
        'fractions.tif': _encoded(Image.fromarray(fractions), 'TIFF'),
        'nan.tif': _encoded(Image.fromarray(nan), 'TIFF'),
        'large fractions.tif': _encoded(Image.fromarray(fractions * 1e38), 'TIFF'),
        'negative.tif': _encoded(Image.fromarray(-fractions), 'TIFF'),
        'cmyk.jpg': _encoded(photo.convert('CMYK'), 'JPEG'),
        'la.png': _encoded(photo.convert('LA'), 'PNG'),
        'palette.png': _encoded(photo.convert('P'), 'PNG', transparency=3),
        'bits.png': _encoded(photo.convert('1'), 'PNG'),
        'lab.tif': _encoded(photo.convert('RGB'), 'TIFF', compression='tiff_lzw'),
        'moving.gif': _encoded(photo, 'GIF', save_all=True, append_images=[photo] * 3),
        'exif.jpg': _encoded(photo, 'JPEG', exif=exif),
        'noise exif.jpg': _encoded(photo, 'JPEG', exif=b'Exif\0\0' + bytes(40)),
        'one.png': _encoded(photo.resize((1, 1)), 'PNG'),
        'line.png': _encoded(photo.resize((20_000, 1)), 'PNG'),
        'wide.jpg': _encoded(photo.resize((30_000, 2)), 'JPEG'),
        'a.jp2': _encoded(photo, 'JPEG2000'),
        'a.tga': _encoded(photo, 'TGA'),
        'a.jfif': _encoded(photo, 'JPEG'),
        'a.bmp': _encoded(photo, 'BMP'),
        'a.ico': _encoded(photo, 'ICO'),
        'a.pcx': _encoded(photo, 'PCX'),
        'a.pdf': _encoded(photo, 'PDF'),
        'no ending': _encoded(photo, 'JPEG'),
        'png.jpg': _encoded(photo, 'PNG'),
        'eps.png': _encoded(photo, 'EPS'),
        'JPEG.JPG': _encoded(photo, 'JPEG', progressive=True),
        'Thumbs.db': b'x',
        'cut.jpg': _encoded(photo, 'JPEG')[:-300],
        'cut.png': _encoded(photo, 'PNG')[:-300],
        'cut.webp': _encoded(photo, 'WEBP')[:-100],
        'cut.gif': _encoded(photo, 'GIF')[:-300],
        'maxval.pgm': b'P5 4 4 1023\n' + bytes(32),
        'words.ppm': b'P3 2 2 255\n1 2 x',
        'huge.ppm': b'P6 999999 999999 255\n',
        'zero.pbm': b'P4 0 0\n',
        'jxl.jpg': bytes.fromhex('0000000c4a584c200d0a870a'),
        'heic.jpg': b'\0\0\0\x18ftypheic' + bytes(30),
    }


def images(rng: random.Random, world: Path) -> Faults:
    """Files among photos and training images that are no plain photos, or are damaged."""
    noisy = bad_images(rng)
    photo = (world / 'photos' / 'b.jpg').read_bytes()
    for number in range(40):
        file = rng.choice(('photos/a.png', 'photos/b.jpg', 'photos/c.webp'))
        _, noisy[f'{number}{Path(file).suffix}'] = damaged((world / file).read_bytes(), rng)
    for number, (name, data) in enumerate(noisy.items()):
        yield Fault(f'photo {name}', (PREDICT, PREDICT_JSON)[number % 2], replaced(f'photos/{name}', data))
        command = (CHECK, TRAIN, VALIDATE, ('predict', f'photos/{name}', *PREDICT[2:]))[number % 4]
        where = 'photos' if number % 4 == 3 else f'data/{"val" if number % 4 == 2 else "train"}/class1'
        yield Fault(f'image {name}', command, replaced(f'{where}/{name}', data))
    for kind in THINGS:
        for command, name in (
            (PREDICT_JSON, 'photos/x.JPEG'),
            (CHECK, 'data/train/class0/x.JPEG'),
            (TRAIN, 'data/train/class0/x.JPEG'),
            (VALIDATE, 'data/val/class0/x.jpg'),
            ((*TRAIN, '--loader', 'timm', '-j', '1'), 'data/train/class0/x.png'),
        ):
            yield Fault(f'image: {kind}', command, instead(name, kind))

    def megapixels(world: Path) -> None:
        Image.new('RGB', (12_000, 10_000)).save(world / 'photos' / 'large.png', compress_level=1)

    yield Fault('photo of 120 megapixels', PREDICT, megapixels, codes=(0,), large=True)
    yield Fault('photo of 120 megapixels, 100 allowed', (*PREDICT, '--max-megapixels', '100'), megapixels, codes=(1,))
    yield Fault('2,000 photos of a byte', PREDICT_JSON, lambda world: _many(world / 'photos', photo[:1]), codes=(1,))


def _many(folder: Path, data: bytes) -> None:
    for number in range(2_000):
        (folder / f'many{number}.jpg').write_bytes(data)


NAMES = (
    '\x1b[2J\x1b[H',
    '\x1b]0;title\x07',
    'a\nerror: forged',
    'a\rb',
    '\x08\x08\x08',
    'a\tb',
    '\x7f',
    '\x9b31m',
    '\u202egpj.exe',
    '\u2028',
    'ü' * 60,
    'a' * 200,
    ' ',
    '-rf',
    '--help',
    '%s%n',
    '{0}',
    '$(touch ran)',
    '`touch ran`',
    ';touch ran',
    '\'"',
    '<script>alert(1)',
    '*',
    '[a]',
    '😀‍👩',
    '\udcff\udcfe',
    'con',
    '~',
    'a:b',
    'a,b',
    '=1+1',
    '#',
    '!!none',
    '\\',
    'null',
    '1e3',
    'true',
    '\ufeff',
)


def names(rng: random.Random, world: Path) -> Faults:
    """Control characters, commands and odd bytes as the names of files, classes, folders, runs and models."""

    def moved(old: str, new: str) -> Injure:
        return lambda world: (world / old).rename(world / new)

    for number, name in enumerate(NAMES):
        bad = replaced(f'photos/{name}.jpg', b'x')
        yield Fault(
            f'photo named {name!r}',
            (PREDICT, PREDICT_JSON)[number % 2],
            together(
                bad, lambda world, name=name: shutil.copy(world / 'photos' / 'a.png', world / 'photos' / f'{name}.png')
            ),
            codes=(1,),
        )
        config = json.loads((world / 'model' / 'config.json').read_text())
        config['label_names'] = [name.encode(errors='replace').decode(), 'b', 'c']
        yield Fault(
            f'class named {name!r}',
            (PREDICT, VALIDATE)[number % 2],
            replaced('model/config.json', json.dumps(config).encode()),
            codes=(0, 2),
        )
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
        'a fifo': ('set/f', b'', {'type': tarfile.FIFOTYPE}),
        'an absolute path': ('/tmp/ran', b'x', {}),
        'a path with ..': ('set/../../ran', b'x', {}),
        'a drive': ('C:/ran', b'x', {}),
        'a backslash': ('..\\ran', b'x', {}),
        'a dot': ('.', b'x', {}),
        'an empty name': ('', b'x', {}),
        'a long name': ('set/' + 'a' * 5000, b'x', {}),
        'a deep name': ('set/' + 'a/' * 3000, b'x', {}),
        'control characters': ('set/train/class0/\x1b[2J\n.jpg', b'x', {}),
        'a bomb': ('set/b', bytes(200_000_000), {}),
        'a file in the place of a folder': ('set/train/class0', b'x', {}),
        'setuid': ('set/s', b'x', {'mode': 0o7777}),
        'an unknown type': ('set/u', b'x', {'type': b'Z'}),
        'a GNU sparse file': ('set/u', b'', {'type': tarfile.GNUTYPE_SPARSE}),
        'a pax header': ('set/p', b'x', {'pax_headers': {'path': '../ran', 'size': '99999999999'}}),
        'sparse by pax': (
            'set/p',
            b'',
            {
                'pax_headers': {
                    'GNU.sparse.major': '1',
                    'GNU.sparse.minor': '0',
                    'GNU.sparse.realsize': '40000000000',
                    'GNU.sparse.name': 'x',
                }
            },
        ),
    }
    check = ('data', 'check', '--data-dir')
    train = tuple('set.tgz' if word == 'data' else word for word in TRAIN)
    for number, (name, member) in enumerate(kinds.items()):
        data = _tar(member, whole=tgz)
        yield Fault(
            f'tgz with {name}', train if number % 3 == 0 else (*check, 'set.tgz'), replaced('set.tgz', data), parts=()
        )
    for name, member in kinds.items():
        info = zipfile.ZipInfo(member[0] or 'x')
        info.external_attr = {'a symbolic link': 0o120777, 'a device': 0o020666, 'a fifo': 0o010666}.get(
            name, 0o100644
        ) << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        with contextlib.suppress(ValueError, struct.error):
            yield Fault(
                f'zip with {name}', (*check, 'set.zip'), replaced('set.zip', _zip(zipped, (info, member[1]))), parts=()
            )
    others = {
        '40 GB of holes.tgz': _sparse(40 * 10**9), '1 GB of holes.tgz': _sparse(10**9),
        '60,000 empty members.tgz': _tar(*((f'set/{n}', b'', {}) for n in range(60_000))),
        '60,000 folders.tgz': _tar(*((f'set/{n}', b'', {'type': tarfile.DIRTYPE}) for n in range(60_000))),
        'no images.tgz': _tar(('a.txt', b'x', {})), 'nothing.tgz': _tar(), 'empty.tgz': b'', 'empty.zip': b'',
        'nothing.zip': b'PK\5\6' + bytes(18), 'two streams.tgz': tgz + tgz, 'bytes after it.tgz': tgz + b'x' * 1000,
        'a zip.tgz': zipped, 'a tgz.zip': tgz, 'not packed.tgz': gzip.decompress(tgz), 'xz.tgz': _tar(whole=tgz,
        mode='w:xz'),
        'bz2.tgz': _tar(whole=tgz, mode='w:bz2'), 'plain.tar': _tar(whole=tgz, mode='w'),
        'packed twice.tgz': gzip.compress(tgz),
        'zeros.tgz': gzip.compress(bytes(300_000_000)), 'zeros.tar': bytes(10**6), 'the same name twice.zip': zipped,
        'an archive of archives.tgz': _tar(('set/data.tgz', tgz, {})), 'set.TGZ': tgz,
        'set.7z': b'7z\xbc\xaf' + bytes(99),
        'set.rar': b'Rar!' + bytes(99), 'imagenette2-160.tgz': tgz, 'text.zip': b'<html>',
    }  # fmt: skip
    for name, data in others.items():
        yield Fault(f'archive: {name}', (*check, name), replaced(name, data), parts=())
    for number in range(30):
        name, sound = ('set.tgz', tgz) if number % 2 else ('set.zip', zipped)
        how, data = damaged(sound, rng)
        yield Fault(f'{name}: {how}', (*check, name), replaced(name, data), parts=())
    for _ in range(10):
        how, data = damaged(gzip.decompress(tgz), rng)
        yield Fault(f'tar within tgz: {how}', (*check, 'set.tgz'), replaced('set.tgz', gzip.compress(data)), parts=())
    for kind in THINGS:
        yield Fault(f'archive: {kind}', (*check, 'set.tgz'), instead('set.tgz', kind), parts=())
