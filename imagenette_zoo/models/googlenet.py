"""GoogLeNet (Inception v1) with BatchNorm, which timm lacks.

`Going Deeper with Convolutions` - https://arxiv.org/abs/1409.4842. Layers, their names and their initialisation are
those of torchvision's (its "5 x 5" branch has a 3 x 3 kernel, https://github.com/pytorch/vision/issues/906), so that
its ImageNet weights load. Without the auxiliary classifiers, which torchvision's weights have untrained.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.layers import ConvNormAct, LayerType, create_classifier, use_reentrant_ckpt
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, is_model, register_model
from timm.models._features import feature_take_indices

__all__ = ['GoogLeNet']

# The layers, in order, up to each output of another resolution.
_STAGES = (
    ('transform_input', 'conv1'),
    ('maxpool1', 'conv2', 'conv3'),
    ('maxpool2', 'inception3a', 'inception3b'),
    ('maxpool3', 'inception4a', 'inception4b', 'inception4c', 'inception4d', 'inception4e'),
    ('maxpool4', 'inception5a', 'inception5b'),
)
_STAGE_CHANNELS = (64, 192, 480, 832, 1024)


class Inception(nn.Module):
    """Four branches over `(N, C, H, W)`, concatenated by channel.

    Args:
        in_channels: C.
        ch1x1: Channels of the 1 x 1 branch.
        ch3x3: Channels of the second branch, reduced and final.
        ch5x5: Channels of the third branch, reduced and final.
        pool_proj: Channels of the max-pool branch.
        conv: Makes a convolution with its normalisation and activation.
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3: tuple[int, int],
        ch5x5: tuple[int, int],
        pool_proj: int,
        conv: partial[nn.Module],
    ) -> None:
        super().__init__()
        self.branch1 = conv(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(conv(in_channels, ch3x3[0], 1), conv(*ch3x3, 3))
        self.branch3 = nn.Sequential(conv(in_channels, ch5x5[0], 1), conv(*ch5x5, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(in_channels, pool_proj, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class _TransformInput(nn.Module):
    """Turns images `(N, 3, H, W)` normalised by ImageNet's mean and deviation into ones normalised to -1..1."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('scale', torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer('shift', torch.empty(1, 3, 1, 1), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fills what no state dict has: timm asks for it where a model comes from the meta device."""
        mean, std, new_mean, new_std = (
            torch.tensor(value).view(1, 3, 1, 1)
            for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)
        )
        self.scale.copy_(std / new_std)
        self.shift.copy_((mean - new_mean) / new_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


class GoogLeNet(nn.Module):
    """GoogLeNet with BatchNorm, with the methods that timm's models have.

    Images `(N, in_chans, H, W)` become logits `(N, num_classes)`.

    Args:
        num_classes: Outputs of the classifier, 0 for none.
        in_chans: Channels of the images.
        global_pool: The pooling before the classifier, by timm's name, empty for none.
        drop_rate: Dropout before the classifier (torchvision's default is 0.2).
        transform_input: Images are normalised by ImageNet's mean and deviation: turn that into 0.5 and 0.5, which the
            published weights expect.
        act_layer: Activation.
        norm_layer: Normalisation.
        device: Where the weights are put.
        dtype: Their type.

    Raises:
        ValueError: `transform_input` for images that have not three channels.
    """

    if TYPE_CHECKING:  # TorchScript would take it for a type of its own
        global_pool: Any

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        transform_input: bool = False,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if transform_input and in_chans != 3:
            raise ValueError(f'transform_input is for images of 3 channels, not {in_chans}')
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        conv = partial(ConvNormAct, act_layer=act_layer, norm_layer=norm_layer, norm_kwargs={'eps': 1e-3})
        inception = partial(Inception, conv=conv)

        self.transform_input = _TransformInput() if transform_input else nn.Identity()
        self.conv1 = conv(in_chans, 64, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = inception(256, 128, (128, 192), (32, 96), 64)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = inception(528, 256, (160, 320), (32, 128), 128)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = inception(832, 384, (192, 384), (48, 128), 128)
        self.feature_info = [
            {'num_chs': channels, 'reduction': 2 ** (i + 1), 'module': names[-1]}
            for i, (names, channels) in enumerate(zip(_STAGES, _STAGE_CHANNELS, strict=True))
        ]
        self.num_features = _STAGE_CHANNELS[-1]
        self.reset_classifier(num_classes, global_pool)
        self.dropout = nn.Dropout(drop_rate)
        self.apply(_init_weights)
        self.to(device=device, dtype=dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into stem and blocks (or stages), for layer-wise learning rates."""
        names = [name for stage in _STAGES for name in stage if name.startswith('inception')]
        return {
            'stem': r'^conv\d',
            'blocks': r'^inception(\d)' if coarse else [(f'^{name}', (i,)) for i, name in enumerate(names)],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades time for memory: activations are computed again in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The layer that makes logits of pooled features."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces pooling and classifier.

        Args:
            num_classes: Outputs of the classifier, 0 for none.
            global_pool: The pooling, by timm's name, empty for none; None keeps the present one.
        """
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.fc = classifier.to(self.conv1.conv.weight)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features with those of the stages before them.

        Args:
            x: Images `(N, in_chans, H, W)`.
            indices: Which of the five stages: the last n if an int, all if None.
            norm: Has no effect: every stage ends normalised.
            stop_early: Do not run what comes after the last stage asked for.
            output_fmt: Only `NCHW`.
            intermediates_only: Leave out the final features.

        Returns:
            The features of the last stage run and a list of the intermediate ones, or only the list.
        """
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        take_indices, max_index = feature_take_indices(len(_STAGES), indices)
        intermediates = []
        for i, names in enumerate(_STAGES[: max_index + 1] if stop_early else _STAGES):
            x = self._run(names, x)
            if i in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the layers that the given stages (see `forward_intermediates`) do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(_STAGES), indices)
        for names in _STAGES[max_index + 1 :]:
            for name in names:
                setattr(self, name, nn.Identity())
        self.num_features = _STAGE_CHANNELS[max_index]
        if prune_head or max_index < len(_STAGES) - 1:  # it does not fit any more
            self.reset_classifier(0, '')
        return take_indices

    @torch.jit.ignore
    def _run(self, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
        layers = [getattr(self, name) for name in names]
        # re-entrant, the images, which need no gradient, would end it
        if self.grad_checkpointing and (x.requires_grad or not use_reentrant_ckpt()):
            return checkpoint_seq(layers, x)
        return nn.Sequential(*layers)(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Unpooled features `(N, 1024, H / 32, W / 32)`."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            for names in _STAGES:
                x = self._run(names, x)
            return x
        # Spelt out, since TorchScript can't look a layer up by name.
        x = self.conv1(self.transform_input(x))
        x = self.conv3(self.conv2(self.maxpool1(x)))
        x = self.inception3b(self.inception3a(self.maxpool2(x)))
        x = self.inception4b(self.inception4a(self.maxpool3(x)))
        x = self.inception4e(self.inception4d(self.inception4c(x)))
        return self.inception5b(self.inception5a(self.maxpool4(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits, or what the classifier is given, of unpooled features."""
        x = self.dropout(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.01)  # torchvision truncates it at 200 standard deviations
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """torchvision's state dict without its auxiliary classifiers."""
    return {name: weight for name, weight in state_dict.items() if not name.startswith('aux')}


def _create_googlenet(variant: str, pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
    return build_model_with_cfg(GoogLeNet, variant, pretrained, pretrained_filter_fn=_checkpoint_filter_fn, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        'googlenet.tv_in1k': {
            'url': 'https://download.pytorch.org/models/googlenet-1378be20.pth',
            'num_classes': 1000,
            'input_size': (3, 224, 224),
            'pool_size': (7, 7),
            'crop_pct': 0.875,
            'interpolation': 'bilinear',
            # What torchvision's transform_input, which its weights switch on, makes of its own normalisation.
            'mean': IMAGENET_INCEPTION_MEAN,
            'std': IMAGENET_INCEPTION_STD,
            'first_conv': 'conv1.conv',
            'classifier': 'fc',
            'license': 'bsd-3-clause',
            'origin_url': 'https://github.com/pytorch/vision',
            'paper_ids': 'arXiv:1409.4842',
        }
    }
)


if not is_model('googlenet'):  # a version of timm that has the model keeps its own

    @register_model
    def googlenet(pretrained: bool = False, **kwargs: Any) -> GoogLeNet:
        """GoogLeNet (Inception v1) with BatchNorm."""
        return _create_googlenet('googlenet', pretrained, **kwargs)
