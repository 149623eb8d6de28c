"""Names and numbers of Imagenette as published."""

from __future__ import annotations

__all__ = [
    'IMAGENETTE', 'LABEL_NAMES', 'FILES_HASH', 'IMAGE_EXTENSIONS', 'FORMATS', 'NOISE_LEVELS', 'NOT_THE_USERS', 'SIZES',
]  # fmt: skip

IMAGENETTE: dict[str, str] = {
    'n01440764': 'tench',
    'n02102040': 'English springer',
    'n02979186': 'cassette player',
    'n03000684': 'chain saw',
    'n03028079': 'church',
    'n03394916': 'French horn',
    'n03417042': 'garbage truck',
    'n03425413': 'gas pump',
    'n03445777': 'golf ball',
    'n03888257': 'parachute',
}
LABEL_NAMES = tuple(IMAGENETTE.values())
FILES_HASH = '96fae466962d41838fcf018ba1660967'  # of the names of all images, the same in all sizes
IMAGE_EXTENSIONS = frozenset(  # those that Pillow knows for FORMATS, but for PFM's, whose values have no bounds
    {
        *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.apng', '.webp', '.gif', '.bmp', '.dib', '.tif', '.tiff'),
        *('.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.j2c', '.jpc', '.jpf', '.jpx', '.avif', '.avifs'),
        *('.tga', '.icb', '.vda', '.vst'),
    }
)
# Folders and files that systems put among those of a user: thumbnails and notes, some under the names of photos.
NOT_THE_USERS = frozenset({'__macosx', '@eadir', 'thumbs.db', 'desktop.ini', '#recycle', '$recycle.bin', 'lost+found'})
# Pillow tells a format by a file's content, whatever its name, and starts Ghostscript for PostScript. These it decodes
# itself. Not ICO, ICNS, IPTC and others that hold a file of another format. TGA, which has no signature, is tried last.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'DIB', 'PPM', 'TIFF', 'JPEG2000', 'AVIF', 'TGA')
NOISE_LEVELS = (0, 1, 5, 25, 50)  # percent, columns of noisy_imagenette.csv
SIZES: dict[str, str] = {  # shorter side in pixels, as published → name of the archive and of the folder in it
    '160': 'imagenette2-160',
    '320': 'imagenette2-320',
    'full': 'imagenette2',
}
