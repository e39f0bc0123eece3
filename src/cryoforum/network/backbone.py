"""Convolutional backbones: the paper's, and a small residual one that a CPU can train."""

import torch
from torch import Tensor, nn

from cryoforum.choices import ACTIVATIONS
from cryoforum.config import NetworkConfig
from cryoforum.network.normalisation import BatchNorm

# Kernel width, max-pooling after: the ten blocks of Cryo-forum, Supplementary Table 1.
PAPER_BLOCKS = ((7, True), (5, True), *[(3, False), (3, True)] * 4)


class PerElementPReLU(nn.Module):
    """PReLU with a slope for every channel and position, starting at 0 (Keras' default, as the paper)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(channels, side, side))

    def forward(self, features: Tensor) -> Tensor:
        return features.clamp_min(0) + self.slope * features.clamp_max(0)


def relu(channels: int, side: int) -> nn.Module:
    """max(x, 0), in place."""
    return nn.ReLU(inplace=True)


class Backbone(nn.Module):
    """From images (b, c, m, m) to feature maps; a backbone of your own is made of (c, m, `NetworkConfig`)."""

    def output_shape(self, box: int) -> tuple[int, int]:
        """Channels and side of the feature maps of images of width ``box``."""
        raise NotImplementedError


class VggBackbone(Backbone):
    """Conv → BN → activation → (max-pool) → dropout, a block a width; (b, c, m, m) to (b, widths[-1], …).

    The paper has ten blocks (32, 64, 128, 128, 256, 256, 512, 512, 1024, 1024), its "expedited" network
    (section 5) the first eight. Kernels and pooling are those of its blocks of the same number.
    """

    def __init__(self, channels: int, box: int, config: NetworkConfig) -> None:
        super().__init__()
        self.widths = config.widths
        activation = ACTIVATIONS.chosen(config.activation)
        layers: list[nn.Module] = []
        side = box
        for width, (kernel, pooled) in zip(config.widths, PAPER_BLOCKS, strict=False):
            convolution = nn.Conv2d(channels, width, kernel, padding="same", bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            normalisation = BatchNorm(width, eps=1e-3, momentum=0.01)
            layers += [convolution, normalisation, activation(width, side)]
            if pooled:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                side = (side + 1) // 2
            layers.append(nn.Dropout(config.dropout))
            channels = width
        self.layers = nn.Sequential(*layers)

    def output_shape(self, box: int) -> tuple[int, int]:
        for _, pooled in PAPER_BLOCKS[: len(self.widths)]:
            box = (box + 1) // 2 if pooled else box
        return self.widths[-1], box

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut; halves the side where ``stride`` is 2."""

    def __init__(self, channels: int, width: int, stride: int, side: int, activation: str) -> None:
        super().__init__()
        activated = ACTIVATIONS.chosen(activation)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            BatchNorm(width),
            activated(width, side),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            BatchNorm(width),
        )
        self.activation = activated(width, side)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            smaller = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(smaller, nn.Conv2d(channels, width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.activation(self.body(features) + self.shortcut(features))


class ResidualBackbone(Backbone):
    """A convolution with a stride, then ``depth`` residual blocks a width; each width halves the side."""

    def __init__(self, channels: int, box: int, config: NetworkConfig) -> None:
        super().__init__()
        self.stride, self.widths = config.stem_stride, config.widths
        side, previous = box // self.stride, config.widths[0]
        kernel = 2 * self.stride + 1
        layers: list[nn.Module] = [
            nn.Conv2d(channels, previous, kernel, self.stride, self.stride, bias=False),
            BatchNorm(previous),
            ACTIVATIONS.chosen(config.activation)(previous, side),
        ]
        for stage, width in enumerate(config.widths):
            for block in range(config.depth):
                stride = 2 if stage > 0 and block == 0 else 1
                side //= stride
                layers.append(ResidualBlock(previous, width, stride, side, config.activation))
                previous = width
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        self.layers = nn.Sequential(*layers)

    def output_shape(self, box: int) -> tuple[int, int]:
        return self.widths[-1], box // (self.stride * 2 ** (len(self.widths) - 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
