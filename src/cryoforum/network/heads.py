"""Heads: what a network's numbers say about the orientation."""

from functools import lru_cache

import torch
from torch import Tensor

from cryoforum.bingham import OrientationBelief, psd_from_lower_triangle
from cryoforum.config import NetworkConfig
from cryoforum.harmonics import rotation_polynomials
from cryoforum.so3grid import rotation_grid

READOUT_NSIDE = 6  # 10° between the rotations from which the ascent to a mode may start


def head_size(config: NetworkConfig, symmetry: str = "C1") -> int:
    """How many numbers the head reads."""
    return 10 if config.head == "qcqp" else rotation_polynomials(config.degree, symmetry).size


def beliefs(numbers: Tensor, config: NetworkConfig, symmetry: str = "C1") -> OrientationBelief:
    """Orientation beliefs of the network's numbers (n, k).

    qcqp: A = L Lᵀ of 10 numbers (Cryo-forum, eq. 3). exponential_family: highest mode and its curvature.
    Of the equivalent modes of a symmetric density it is any one.
    """
    if config.head == "qcqp":
        return OrientationBelief(psd_from_lower_triangle(numbers))
    grid, features = _readout_grid(config.degree, symmetry)
    polynomials = rotation_polynomials(config.degree, symmetry)
    return polynomials.mode_belief(numbers, grid.to(numbers), features.to(numbers))


def density_features(config: NetworkConfig, symmetry: str, rotations: Tensor) -> Tensor:
    """What `log_density` needs of ``rotations`` (g, 4); (g, features)."""
    if config.head == "qcqp":
        return -(rotations[:, :, None] * rotations[:, None, :]).flatten(1)
    return rotation_polynomials(config.degree, symmetry).features(rotations)


def log_density(numbers: Tensor, config: NetworkConfig, features: Tensor) -> Tensor:
    """What the numbers (n, k) say of each rotation of `density_features`, (n, g); not normalised."""
    coefficients = psd_from_lower_triangle(numbers).flatten(1) if config.head == "qcqp" else numbers
    return coefficients @ features.T


@lru_cache(maxsize=4)
def _readout_grid(degree: int, symmetry: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        grid = rotation_grid(READOUT_NSIDE)
        return grid, rotation_polynomials(degree, symmetry).features(grid)
