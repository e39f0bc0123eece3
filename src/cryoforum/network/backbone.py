"""Convolutional backbones: the paper's, and a small residual one that a CPU can train."""

import torch
from torch import Tensor, nn

# Filters, kernel width, max-pooling after: the ten blocks of Cryo-forum, Supplementary Table 1.
PAPER_BLOCKS = (
    (32, 7, True),
    (64, 5, True),
    (128, 3, False),
    (128, 3, True),
    (256, 3, False),
    (256, 3, True),
    (512, 3, False),
    (512, 3, True),
    (1024, 3, False),
    (1024, 3, True),
)


class PerElementPReLU(nn.Module):
    """PReLU with a slope for every channel and position, starting at 0 (Keras' default, as the paper)."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(channels, side, side))

    def forward(self, features: Tensor) -> Tensor:
        return features.clamp_min(0) + self.slope * features.clamp_max(0)


class VggBackbone(nn.Module):
    """Conv → BN → PReLU → (max-pool) → dropout, ten times; (b, c, m, m) to (b, 1024, ⌈m/64⌉, ⌈m/64⌉)."""

    def __init__(self, channels: int, box: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = box
        for width, kernel, pooled in PAPER_BLOCKS:
            convolution = nn.Conv2d(channels, width, kernel, padding="same", bias=False)
            nn.init.kaiming_normal_(convolution.weight)
            normalisation = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
            layers += [convolution, normalisation, PerElementPReLU(width, side)]
            if pooled:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                side = (side + 1) // 2
            layers.append(nn.Dropout(dropout))
            channels = width
        self.layers = nn.Sequential(*layers)

    def output_shape(self, box: int) -> tuple[int, int]:
        """Channels and side of the output for images of width ``box``."""
        for _, _, pooled in PAPER_BLOCKS:
            box = (box + 1) // 2 if pooled else box
        return PAPER_BLOCKS[-1][0], box

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions around a shortcut; halves the side where ``stride`` is 2."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(), nn.Conv2d(channels, width, 1)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        return (self.body(features) + self.shortcut(features)).relu()


class ResidualBackbone(nn.Module):
    """An early stride of 2, then a residual block a width, each but the first halving the side."""

    def __init__(self, channels: int, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.widths = widths
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 5, 2, 2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        previous = widths[0]
        for stage, width in enumerate(widths):
            layers.append(ResidualBlock(previous, width, 1 if stage == 0 else 2))
            previous = width
        if dropout:
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)

    def output_shape(self, box: int) -> tuple[int, int]:
        """Channels and side of the output for images of width ``box``."""
        return self.widths[-1], box // 2 ** len(self.widths)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
