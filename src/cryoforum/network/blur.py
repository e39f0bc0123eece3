"""The blurring layer (Cryo-forum, 3.3): the network sees the image at several resolutions at once.

Filters act on the fly, in Fourier space; the image itself is the last channel.
"""

import numpy as np
import torch
from torch import Tensor, nn


class Blur(nn.Module):
    """The image after each of k filters, then the image itself; (b, 1, m, m) to (b, k + 1, m, m).

    transfer: (k, m, m // 2 + 1), by which the image's transform is multiplied.
    """

    transfer: Tensor

    def __init__(self, transfer: Tensor) -> None:
        super().__init__()
        self.register_buffer("transfer", transfer, persistent=False)

    @property
    def channels(self) -> int:
        """How many channels come out."""
        return len(self.transfer) + 1

    def forward(self, images: Tensor) -> Tensor:
        if len(self.transfer) == 0:
            return images
        transforms = torch.fft.rfft2(images) * self.transfer
        return torch.cat([torch.fft.irfft2(transforms, s=images.shape[-2:]), images], dim=1)


def low_pass_cutoffs(box: int) -> tuple[int, ...]:
    """u = 9 + m/2 - geomspace(10, m/2 - 1, 5), as the authors' code: 63, 57, 47, 33 and 10 at m = 128."""
    half = box // 2
    # A power that ought to be whole may come out just below it.
    cutoffs = 9 + half - np.geomspace(min(10, half - 1), half - 1, 5) + 1e-9
    return tuple(cutoffs.astype(int).tolist())


def low_pass_transfer(box: int) -> Tensor:
    """Square masks |kx|, |ky| ≤ u of `low_pass_cutoffs`, (5, m, m // 2 + 1)."""
    frequency = (torch.fft.fftfreq(box) * box).abs().round()
    half = frequency[: box // 2 + 1]
    return torch.stack([(frequency[:, None] <= u) & (half <= u) for u in low_pass_cutoffs(box)]).float()


def gaussian_transfer(box: int) -> Tensor:
    """Gaussian blurs of deviations 0.1 to 10 pixels, five in geometric steps, (5, m, m // 2 + 1)."""
    ky, kx = torch.fft.fftfreq(box)[:, None], torch.fft.rfftfreq(box)
    deviations = torch.from_numpy(np.geomspace(0.1, 10, 5)).float()
    return torch.exp(-2 * (torch.pi * deviations[:, None, None]) ** 2 * (kx**2 + ky**2))


def no_transfer(box: int) -> Tensor:
    """No filter: the image alone, (0, m, m // 2 + 1)."""
    return torch.empty(0, box, box // 2 + 1)
