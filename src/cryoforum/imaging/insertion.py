"""Central slices laid into the transform of a map: the adjoint of reading them.

Grids have the layout of `projection.cropped_transform`, with one number in place of two: complex for what is
inserted, real for its weight. A point with kx < 0 goes, conjugated, to its mate -k, so that half a grid holds
everything; `hermitian_sum` adds the mates that meet at kx = 0.
"""

import torch
from jaxtyping import Complex, Float, Int, Num
from torch import Tensor

from cryoforum.geometry.rotations import inverse
from cryoforum.imaging.fft import FrequencyPoints
from cryoforum.imaging.projection import PADDING, checked_rotations, slices_at, transform_shape


def empty_grids(box: int, count: int) -> tuple[Complex[Tensor, "h z y x"], Float[Tensor, "h z y x"]]:
    """Zeros for `insert_slices`: ``count`` grids of data, complex64, and as many of weight, float32.

    Each is as large as the whole transform of a map of ``box`` voxels.
    """
    # float32: even at zero frequency, where all slices meet, 10⁶ images stay far below its 2²⁴.
    shape = (count, *transform_shape(box))
    return torch.zeros(shape, dtype=torch.complex64), torch.zeros(shape)


def insert_slices(
    data: Complex[Tensor, "h z y x"],
    weight: Float[Tensor, "h z y x"],
    points: FrequencyPoints,
    values: Complex[Tensor, "b p"],
    powers: Float[Tensor, "b p"],
    quaternions: Float[Tensor, "b 4"],
    grid_of: Int[Tensor, " b"],
) -> None:
    """Add slices to ``data`` and their powers to ``weight``, in place, with trilinear weights.

    Parameters
    ----------
    data, weight : (h, m, m, w + 1), of `empty_grids`.
    values, powers : (b, p) complex64 and float32, at ``points``.
    quaternions, grid_of : (b, 4), along which the slices lie; and (b,) the grid of each, from 0 to h - 1.

    Raises
    ------
    InputError : where the points reach beyond the grids, or a quaternion is not of length 1.
    """
    rotations = checked_rotations(data[0], quaternions, points)
    from cryoforum.imaging.kernels import insert_points  # importing numba takes a second: only on first use

    insert_points(data, weight, points.kx, points.ky, values, powers, rotations, grid_of)


def hermitian_sum(grid: Num[Tensor, "z y x"]) -> Num[Tensor, "z y x"]:
    """G(k) + conj G(-k), (m, m, w + 1), of a grid that slices were inserted in; the grid stays as it is."""
    result = grid.clone()
    result[:, :, 0] += grid[:, :, 0].flip(0, 1).conj()
    return result


def symmetrised(grid: Num[Tensor, "z y x"], group: Float[Tensor, "g 4"], box: int) -> Num[Tensor, "z y x"]:
    """A grid, complex or real, as if every slice had been inserted at S·R for all S of ``group`` (g, 4).

    It is the sum over the group of the grid turned by S, read with trilinear weights: the cost does not grow
    with the number of slices. The rim that slices touch with a neighbour's weight alone is 0.
    """
    summed = torch.view_as_real(hermitian_sum(grid).to(torch.complex64))
    centre = grid.shape[0] // 2
    axis = (torch.arange(grid.shape[0]) - centre).float() / PADDING
    ky, kx = torch.meshgrid(axis, axis[centre:], indexing="ij")
    result = torch.zeros_like(grid)
    for plane, height in enumerate(axis.tolist()):
        inside = kx**2 + ky**2 + height**2 <= ((box - 1) / 2) ** 2
        if inside.any():
            points = FrequencyPoints(box, kx[inside], ky[inside])
            turned = slices_at(summed, inverse(group), points, height).sum(0)
            result[plane, inside] = turned if grid.is_complex() else turned.real
    result[..., 0] /= 2  # mates meet at kx = 0, where `hermitian_sum` adds them
    return result
