"""The error that a whole density means, where it may have further modes than the one that is reported."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.distributions.bingham import OrientationPosterior, tangent_basis
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.density_heads import READOUT_NSIDE, ExponentialFamilyHead

# A mode narrower than the first number (root mean square) lies between the rotations of the grid, which are
# 10° apart: what is within the second of it counts as a normal distribution, and the grid holds the rest.
NARROW_RAD, NEAR_RAD = math.radians(10), math.radians(25)
MODES = 4  # that are climbed; of more the grid alone tells
NEGLIGIBLE = 1e-7  # height of a rotation of the grid over that of the mode, near which nothing is looked for


@torch.no_grad()
def root_mean_square_error(
    head: ExponentialFamilyHead,
    numbers: Float[Tensor, "n size"],
    posterior: OrientationPosterior,
    sharpness: float,
) -> Float[Tensor, " n"]:
    """Root mean square angle to the mode of ``posterior`` under the whole density to the power ``sharpness``.

    Parameters
    ----------
    head, numbers
        The densities of n images.
    posterior
        Their highest modes, as wide as they are after sharpening.
    sharpness
        Of a calibrated model.
    """
    grid, features = _grid(head)
    group = symmetry_group(head.symmetry)
    mode, peak = posterior.mode, _height(head, numbers, posterior.mode)
    weight = (sharpness * (head.log_density(numbers, features) - peak[:, None])).exp() / len(grid)
    square = _angles(mode, grid, group).square()  # of all to the mode that is reported
    total, second = torch.zeros(len(mode)), torch.zeros(len(mode))
    rows, start, found = torch.arange(len(mode)), mode, posterior
    for _ in range(MODES):
        top, own = found.mode, found.root_mean_square_angle
        near = _angles(start, grid, group) < NEAR_RAD
        stayed = symmetric_distance(start, top, group) < NEAR_RAD / 2
        is_narrow = (own < NARROW_RAD) & stayed
        height = (sharpness * (_height(head, numbers[rows], top) - peak[rows])).exp()
        mass = torch.where(is_narrow, len(group) * height * _mass(found), (weight[rows] * near).sum(1))
        spread = symmetric_distance(mode[rows], top, group).square() + own.square()
        total[rows] += mass
        second[rows] += torch.where(is_narrow, mass * spread, (weight[rows] * near * square[rows]).sum(1))
        weight[rows] *= ~near
        # Only beside a narrow mode are there others that the grid may miss.
        rows = rows[is_narrow & (weight[rows].amax(1) * len(grid) > NEGLIGIBLE)]
        if not len(rows):
            break
        start = grid[weight[rows].argmax(1)]
        found = OrientationPosterior(sharpness * head.polynomials.climbed(numbers[rows], start).concentration)
    second, total = second + (weight * square).sum(1), total + weight.sum(1)
    return (second / total).sqrt().clamp_max(torch.pi)


def _height(head: ExponentialFamilyHead, numbers: Tensor, rotations: Tensor) -> Float[Tensor, " n"]:
    """Log density, not normalised, of each image at a rotation of its own."""
    return (head.features(rotations) * numbers).sum(1)


def _angles(rotations: Tensor, grid: Tensor, group: Tensor) -> Float[Tensor, "n g"]:
    """Of each of n rotations to those of the grid, to the nearest equivalents."""
    equivalents = compose(group[:, None], rotations)
    overlap = torch.stack([(one @ grid.T).abs() for one in equivalents]).amax(0)
    return 2 * torch.acos(overlap.clamp_max(1))


def _mass(posterior: OrientationPosterior) -> Float[Tensor, " n"]:
    """Of a mode of height 1 as a normal distribution, relative to the uniform density."""
    mode, matrix = posterior.mode.double(), posterior.concentration.double()
    basis = tangent_basis(mode)
    least = torch.einsum("ni,nij,nj->n", mode, matrix, mode)
    curvature = 2 * (basis.mT @ matrix @ basis - least[:, None, None] * torch.eye(3, dtype=torch.float64))
    return ((2 * math.pi) ** 1.5 / math.pi**2 / torch.linalg.det(curvature).clamp_min(1e-30).sqrt()).float()


@lru_cache(maxsize=4)
def _grid(head: ExponentialFamilyHead) -> tuple[Tensor, Tensor]:
    grid = rotation_grid(READOUT_NSIDE)
    return grid, head.features(grid)
