"""Names and numbers of Imagenette and its family as published."""

from __future__ import annotations

__all__ = [
    'IMAGENETTE', 'IMAGEWOOF', 'LABEL_NAMES', 'FILES_HASH', 'IMAGE_EXTENSIONS', 'FAMILY', 'FORMATS', 'NOISE_LEVELS',
    'NOT_THE_USERS', 'UNLABELLED',
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
IMAGEWOOF: dict[str, str] = {
    'n02086240': 'Shih-Tzu',
    'n02087394': 'Rhodesian ridgeback',
    'n02088364': 'Beagle',
    'n02089973': 'English foxhound',
    'n02093754': 'Border terrier',
    'n02096294': 'Australian terrier',
    'n02099601': 'Golden retriever',
    'n02105641': 'Old English sheepdog',
    'n02111889': 'Samoyed',
    'n02115641': 'Dingo',
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
NOISE_LEVELS = (0, 1, 5, 25, 50)  # percent, columns of noisy_imagenette.csv and noisy_imagewoof.csv
UNLABELLED = 'unsup'  # Imagewang's folder of images whose labels may not be used
FAMILY: dict[str, dict[str, str]] = {  # shorter side in pixels → name of the archive and of the folder in it
    'imagenette': {'160': 'imagenette2-160', '320': 'imagenette2-320', 'full': 'imagenette2'},
    'imagewoof': {'160': 'imagewoof2-160', '320': 'imagewoof2-320', 'full': 'imagewoof2'},
    'imagewang': {'160': 'imagewang-160', '320': 'imagewang-320', 'full': 'imagewang'},
}
