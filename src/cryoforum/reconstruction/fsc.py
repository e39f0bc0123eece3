"""How good maps are: Fourier shell correlation and resolution."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import require
from cryoforum.imaging.masks import soft_mask
from cryoforum.imaging.shells import shell_index, sum_by_shell

# Rosenthal & Henderson (2003): half-map FSC where the full map correlates 0.5 with a perfect one.
FSC_THRESHOLD = 0.143


@dataclass(frozen=True)
class FscCurve:
    """Agreement of two half maps per integer shell 0 … box // 2; see `fsc_curve`."""

    box: int
    pixel_size_angstrom: float
    unmasked: Tensor
    masked: Tensor

    @property
    def unmasked_resolution_angstrom(self) -> float:
        """Where the FSC of the whole boxes falls below 0.143."""
        return resolution_angstrom(self.unmasked, self.box, self.pixel_size_angstrom)

    @property
    def masked_resolution_angstrom(self) -> float:
        """Where the FSC inside the mask falls below 0.143."""
        return resolution_angstrom(self.masked, self.box, self.pixel_size_angstrom)

    def table(self) -> pd.DataFrame:
        """One row a shell; the resolution of shell 0 is infinite."""
        shell = np.arange(self.box // 2 + 1)
        frequency = shell / (self.box * self.pixel_size_angstrom)
        return pd.DataFrame(
            {
                "shell": shell,
                "frequency_per_angstrom": frequency,
                "resolution_angstrom": np.append(np.inf, 1 / frequency[1:]),
                "fsc_unmasked": self.unmasked.numpy(),
                "fsc_masked": self.masked.numpy(),
            }
        )


def fsc_curve(half_maps: HalfMaps, mask: Tensor | None = None) -> FscCurve:
    """FSC of two half maps, as they are and multiplied by ``mask`` (n, n, n), by default `soft_mask`.

    The mask is soft and loose, but what it shares between the halves still lifts the masked curve a
    little: `postprocess.corrected_fsc` takes that away. Where ``half_maps.independent`` is false both curves
    are optimistic. InputError where the boxes of the maps differ.
    """
    first, second = half_maps.half1, half_maps.half2
    if mask is None:
        mask = soft_mask(half_maps.full)
    masked = [Volume(half.voxels * mask, half.pixel_size_angstrom) for half in (first, second)]
    return FscCurve(
        box=first.voxels.shape[0],
        pixel_size_angstrom=first.pixel_size_angstrom,
        unmasked=fourier_shell_correlation(first, second),
        masked=fourier_shell_correlation(*masked),
    )


def fourier_shell_correlation(first: Volume, second: Volume) -> Tensor:
    """Correlation of two maps per integer shell 0 … n // 2, (n // 2 + 1,) float64; 0 where one is empty.

    InputError where their boxes differ.
    """
    shapes = tuple(first.voxels.shape), tuple(second.voxels.shape)
    found = f"{shapes[0]} and {shapes[1]}; resample one of them"
    require(shapes[0] == shapes[1], "two maps of one box", found)
    box = len(first.voxels)
    a, b = (torch.fft.rfftn(volume.voxels.float()) for volume in (first, second))
    # Columns strictly between zero and Nyquist stand for their mates at -kx as well.
    column = torch.arange(box // 2 + 1)
    mates = torch.where((column == 0) | (2 * column == box), 1.0, 2.0)
    shell = shell_index(box)
    cross, power_a, power_b = (
        sum_by_shell((product * mates).double(), shell, box // 2 + 1)
        for product in ((a * b.conj()).real, a.abs().square(), b.abs().square())
    )
    norm = (power_a * power_b).sqrt()
    return torch.where(norm > 0, cross / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)


def chance_of_fsc(shells: int, symmetry_order: int = 1) -> Tensor:
    """Standard deviation of the FSC of two maps of noise in shells 0 … ``shells`` - 1.

    One over the root of the real numbers in a shell that are independent: 4 π r², two for each of a half of
    its frequencies, and of these one of as many as the point group has elements.
    """
    radius = torch.arange(shells).clamp_min(1).double()
    return (symmetry_order / (4 * torch.pi * radius.square())).sqrt()


def resolution_angstrom(
    fsc: Tensor, box: int, pixel_size_angstrom: float, threshold: float = FSC_THRESHOLD
) -> float:
    """Resolution in Å where ``fsc`` (box // 2 + 1,) first falls below ``threshold``.

    Linear between shells; Nyquist when it never does; at worst the first shell, the whole field of view.
    """
    below = (fsc < threshold).nonzero().flatten()
    if len(below) == 0:
        return 2 * pixel_size_angstrom
    shell = int(below[0])
    if shell <= 1:
        return box * pixel_size_angstrom
    before, after = float(fsc[shell - 1]), float(fsc[shell])
    position = shell - 1 + (before - threshold) / (before - after)
    return box * pixel_size_angstrom / position
