"""The error that a whole density means, where it may have further modes than the one that is reported."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.distributions.exponential_family import RotationPolynomials
from cryoforum.geometry.point_groups import largest_overlaps, symmetric_distance, symmetry_group

# A mode narrower than the first number (root mean square) lies between the rotations of the grid, which are
# 10° apart: what is within the second of it counts as a normal distribution, and the grid holds the rest.
NARROW_RAD, NEAR_RAD = math.radians(10), math.radians(25)
MODES = 4  # that are climbed; of more the grid alone tells
NEGLIGIBLE = 1e-7  # height of a rotation of the grid over that of the mode, near which nothing is looked for


@torch.no_grad()
def root_mean_square_error(
    polynomials: RotationPolynomials,
    coefficients: Float[Tensor, "n size"],
    posterior: OrientationPosterior,
    sharpness: float,
    grid: Float[Tensor, "g 4"],
    grid_features: Float[Tensor, "g size"],
) -> Float[Tensor, " n"]:
    """Root mean square angle to the mode of ``posterior`` under the density to the power ``sharpness``, (n,).

    Parameters
    ----------
    polynomials, coefficients
        The basis, and n densities in it.
    posterior
        Their highest modes, as wide as they are after sharpening.
    sharpness
        Of a calibrated model.
    grid, grid_features
        Rotations about 10° apart all over, and their features.
    """
    group = symmetry_group(polynomials.symmetry)
    mode, peak = posterior.mode, _height(polynomials, coefficients, posterior.mode)
    weight = (sharpness * (coefficients @ grid_features.T - peak[:, None])).exp() / len(grid)
    square = _angles(mode, grid, group).square()  # of all to the mode that is reported
    total, second = torch.zeros(len(mode)), torch.zeros(len(mode))
    rows, start, found = torch.arange(len(mode)), mode, posterior
    for _ in range(MODES):
        top, own = found.mode, found.root_mean_square_angle
        near = _angles(start, grid, group) < NEAR_RAD
        stayed = symmetric_distance(start, top, group) < NEAR_RAD / 2
        is_narrow = (own < NARROW_RAD) & stayed
        height = (sharpness * (_height(polynomials, coefficients[rows], top) - peak[rows])).exp()
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
        found = OrientationPosterior(sharpness * polynomials.climbed(coefficients[rows], start).concentration)
    second, total = second + (weight * square).sum(1), total + weight.sum(1)
    return (second / total).sqrt().clamp_max(torch.pi)


def _height(polynomials: RotationPolynomials, coefficients: Tensor, rotations: Tensor) -> Float[Tensor, " n"]:
    """Log density, not normalised, of each image at a rotation of its own."""
    return (polynomials.features(rotations) * coefficients).sum(1)


def _angles(rotations: Tensor, grid: Tensor, group: Tensor) -> Float[Tensor, "n g"]:
    """Of each of n rotations to those of the grid, to the nearest equivalents."""
    return 2 * torch.acos(largest_overlaps(rotations, grid, group).clamp_max(1))


def _mass(posterior: OrientationPosterior) -> Float[Tensor, " n"]:
    """Of a mode of height 1 as a normal distribution of quaternions, relative to the uniform density."""
    curvature = -2 * posterior.dispersion
    return (2 * math.pi) ** 1.5 / math.pi**2 / curvature.prod(-1).clamp_min(1e-30).sqrt()
