"""Small maps from sums over slices, of highest posterior probability under a prior of their own spectrum."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.imaging.fft import FrequencyPoints
from cryoforum.imaging.insertion import empty_grids, hermitian_sum, insert_slices, symmetrised
from cryoforum.imaging.projection import PADDING, gridding_correction
from cryoforum.imaging.shells import mean_by_shell, radius_on_grid

LEAST_PRIOR = 1e-3  # of the strongest shell of a map, below which no shell's prior falls
EDGE = 2.0  # how steeply a map ends at its highest frequency, per cycle per box

Sums = tuple[Complex[Tensor, "z y x"], Float[Tensor, "z y x"]]


def sums_of_slices(
    values: Complex[Tensor, "n p"],
    powers: Float[Tensor, "n p"],
    points: FrequencyPoints,
    quaternions: Float[Tensor, "n 4"],
) -> Sums:
    """Data and weight, of `insertion.empty_grids`, of slices along ``quaternions`` and of their powers."""
    data, weight = empty_grids(points.box, 1)
    grid_of = torch.zeros(len(quaternions), dtype=torch.long)
    insert_slices(data, weight, points, values, powers, quaternions, grid_of)
    return data[0], weight[0]


def likeliest_map(
    sums: Sums,
    box: int,
    prior: Float[Tensor, " s"],
    frequency: int,
    mask: Float[Tensor, "n n n"],
    symmetry: str = "C1",
) -> tuple[Float[Tensor, "n n n"], Float[Tensor, " s"]]:
    """The map up to a frequency, of highest posterior probability, and its power by shell.

    Parameters
    ----------
    sums
        Of slices of whitened images times their transfer, and of transfer².
    box
        Voxels along a side.
    prior
        (box + 1,) expected power of each shell.
    frequency
        Cycles per box, beyond which the map soon ends.
    mask
        That the map is multiplied by.
    symmetry
        Point group that is imposed.
    """
    size, group = PADDING * box, symmetry_group(symmetry)
    if len(group) > 1:
        sums = symmetrised(sums[0], group, box), symmetrised(sums[1], group, box)
    summed, total = (hermitian_sum(grid)[:size, :size] for grid in sums)
    axis = (torch.arange(size) - size // 2) / PADDING
    radius = radius_on_grid(axis, axis, torch.arange(box + 1) / PADDING)
    shell = radius.round().long().clamp_max(box)
    transform = summed / (total + (1 / prior)[shell]) * torch.sigmoid(EDGE * (frequency + 0.5 - radius))
    power = mean_by_shell(transform.abs().square(), shell, box + 1)
    padded = torch.fft.irfftn(torch.fft.ifftshift(transform, dim=(0, 1)), s=(size,) * 3)
    kept = slice(size // 2 - box // 2, size // 2 + box // 2)
    voxels = torch.fft.fftshift(padded)[kept, kept, kept] / gridding_correction(box)
    return voxels * mask, power.clamp_min(LEAST_PRIOR * power.max())
