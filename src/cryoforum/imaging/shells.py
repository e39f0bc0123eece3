"""Shells of equal frequency."""

import torch
from torch import Tensor


def filter_shells(voxels: Tensor, weight: Tensor) -> Tensor:
    """A map (n, n, n) whose Fourier shells are multiplied by ``weight`` (n // 2 + 1,); 0 in the corners."""
    box = voxels.shape[0]
    shell = shell_index(box)
    factor = torch.where(shell < len(weight), weight.to(voxels)[shell.clamp_max(len(weight) - 1)], 0.0)
    return torch.fft.irfftn(torch.fft.rfftn(voxels) * factor, s=(box,) * 3)


def shell_radius(box: int) -> Tensor:
    """|k| in shells (cycles per box) of every element of `torch.fft.rfftn`, (n, n, n // 2 + 1)."""
    full = torch.fft.fftfreq(box, d=1 / box)
    half = torch.fft.rfftfreq(box, d=1 / box)
    return (full[:, None, None] ** 2 + full[None, :, None] ** 2 + half**2).sqrt()


def shell_index(box: int) -> Tensor:
    """Integer shell |k| · n, rounded, of every element of `torch.fft.rfftn`."""
    return torch.round(shell_radius(box)).long()
