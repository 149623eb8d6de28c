"""What weights that were trained on squeezed images make of photos: squeezed, or cropped at the centre.

    python tools/crop_modes.py DIR --model mbv2_mish_imagenette

DIR is Imagenette at 224×224. Its validation images are stretched to the shapes of photos, then prepared by timm's
transform in both ways. Writes docs/results/pretrained/crop-modes-MODEL.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset

import imagenette_zoo  # noqa: F401  (registers the models)
from imagenette_zoo.data.folders import ImageSet
from imagenette_zoo.data.images import open_image
from imagenette_zoo.data.locate import validation_images
from imagenette_zoo.layers.mish import much_inference
from imagenette_zoo.models.factory import to_device
from imagenette_zoo.utils.files import write_atomic
from imagenette_zoo.utils.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
SHAPES = {'as stored': (224, 224), '4:3': (299, 224), '3:2': (336, 224), '3:4': (224, 299)}


class Stretched(Dataset):
    """Validation images of one shape, as the model is shown them."""

    def __init__(self, images: ImageSet, size: tuple[int, int], transform: object) -> None:
        self.images, self.size, self.transform = images, size, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = open_image(self.images.root / self.images.paths[index])
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BICUBIC)
        return self.transform(image), self.images.targets[index]


@keep_freed_memory()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data_dir')
    parser.add_argument('--model', default='mbv2_mish_imagenette')
    args = parser.parse_args()
    images = validation_images('', args.data_dir, 'validation')
    model = timm.create_model(args.model, pretrained=True).eval()
    config = resolve_model_data_config(model)
    model = to_device(model, torch.device('cpu'), channels_last=True)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator='\n')
    rows.writerow(('shape', 'crop_mode', 'correct', 'images', 'top1'))
    for shape, size in SHAPES.items():
        for mode in ('squash', 'center'):
            transform = create_transform(**{**config, 'crop_mode': mode})
            correct = 0
            with torch.inference_mode(), much_inference():
                for batch, targets in DataLoader(Stretched(images, size, transform), batch_size=64, num_workers=2):
                    batch = batch.contiguous(memory_format=torch.channels_last)
                    correct += (model(batch).argmax(1) == targets).sum().item()
            row = (shape, mode, correct, len(images), f'{100 * correct / len(images):.2f}')
            rows.writerow(row)
            print(*row)
    write_atomic(ROOT / 'docs' / 'results' / 'pretrained' / f'crop-modes-{args.model}.csv', text.getvalue().encode())


if __name__ == '__main__':
    main()
