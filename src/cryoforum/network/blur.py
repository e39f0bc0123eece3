"""The blurring layer (Cryo-forum, 3.3): the network sees the image at several resolutions at once."""

import numpy as np
import torch
from torch import Tensor, nn


class LowPassBlur(nn.Module):
    """The image after 5 low-pass filters, then the image itself; (b, 1, m, m) to (b, 6, m, m).

    Square masks |kx|, |ky| ≤ u with u = 9 + m/2 - geomspace(10, m/2 - 1, 5), as the authors' code:
    63, 57, 47, 33 and 10 at m = 128.
    """

    CHANNELS = 6

    def __init__(self, box: int) -> None:
        super().__init__()
        half = box // 2
        # A power that ought to be whole may come out just below it.
        cutoffs = (9 + half - np.geomspace(min(10, half - 1), half - 1, 5) + 1e-9).astype(int)
        frequency = (torch.fft.fftfreq(box) * box).abs().round()
        masks = [(frequency[:, None] <= u) & (frequency[None, : half + 1] <= u) for u in cutoffs.tolist()]
        self.cutoffs = tuple(cutoffs.tolist())
        self.register_buffer("masks", torch.stack(masks).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        transforms = torch.fft.rfft2(images) * self.masks
        return torch.cat([torch.fft.irfft2(transforms, s=images.shape[-2:]), images], dim=1)
