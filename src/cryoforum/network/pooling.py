"""Pooling of feature maps (b, c, h, w) into numbers (Cryo-forum, 3.4 and Table 1)."""

import torch
from torch import Tensor, nn


class GeneralisedMeanPooling(nn.Module):
    """(mean xᵖ)^(1/p) with a learnable exponent a channel (Cryo-forum, 3.4): 1 is mean, ∞ is max.

    Features are first shifted so that the smallest is 1, which makes any sign safe; the shift is
    undone after. (b, c, h, w) to (b, c).
    """

    def __init__(self, channels: int, exponent: float = 6.0) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.full((channels,), exponent))

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(2)
        shift = flat.amin(-1, keepdim=True) - 1
        exponent = self.exponent[:, None]
        logs = torch.log(flat - shift) * exponent
        # log-sum-exp: a power of 6 or more of a large feature would overflow.
        log_mean = torch.logsumexp(logs, dim=-1) - torch.log(torch.tensor(float(flat.shape[-1])))
        return torch.exp(log_mean / self.exponent) + shift[..., 0]


class MaximumPooling(nn.Module):
    """The largest feature of each channel: (b, c, h, w) to (b, c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> Tensor:
        return features.amax((2, 3))


class MaximumAndMeanPooling(nn.Module):
    """The largest feature of each channel, then the mean of each: (b, c, h, w) to (b, 2c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features.amax((2, 3)), features.mean((2, 3))], dim=1)


def flatten(channels: int) -> nn.Module:
    """Every feature by itself: (b, c, h, w) to (b, c h w)."""
    return nn.Flatten()
