"""The zoo's models by name: parameters for ten classes, 10^9 multiply-accumulates at 224 px, and a line.

`tools/zoo_models.py` wrote this file from the models, so that they can be listed without being built.
"""

MODELS: dict[str, tuple[int, float | None, str]] = {
    'mbv2_imagenette': (
        2236682, 0.299507072,
        'MobileNetV2 with ReLU6, the control',
    ),
    'mbv2_mish_imagenette': (
        2236682, 0.299507072,
        'MobileNetV2 with Mish',
    ),
    'mbv2_mish_blur_imagenette': (
        2236682, 0.31678016,
        'MobileNetV2 with Mish, blurred before it is subsampled',
    ),
    'mbv2_mish_maxblur_imagenette': (
        2236682, 0.31678016,
        'MobileNetV2 with Mish, max-blur-pooled where it is subsampled',
    ),
    'mbv2_mish_mp2_imagenette': (
        4046570, 0.558057728,
        'MobileNetV2 with Mish and two passes a bottleneck',
    ),
    'mbv2_mish_mp3_imagenette': (
        6254282, 0.92303168,
        'MobileNetV2 with Mish and three passes a bottleneck, of kernels 3, 5 and 7',
    ),
    'resnet34_maxblur_imagenette': (
        21289802, 3.665060864,
        'ResNet-34 with a max-blur stem pool',
    ),
    'resnet50_maxblur_imagenette': (
        23528522, 4.088963072,
        'ResNet-50 with a max-blur stem pool',
    ),
    'resnet50d_mish_maxblur_imagenette': (
        23547754, 4.328603648,
        'ResNet-50-D with Mish and a max-blur stem pool',
    ),
    'seresnet18d_mish_maxblur_imagenette': (
        7726170, 2.576882176,
        'ResNet-18-D of 2, 2, 3, 1 blocks with squeeze-excite and Mish, max-blur-pooled where it is subsampled',
    ),
    'resnet34_mp2_imagenette': (
        42564938, 7.208489984,
        'ResNet-34 with two passes a block',
    ),
    'googlenet': (
        5610154, 1.497362432,
        'GoogLeNet (Inception v1) with BatchNorm',
    ),
}
