"""Heads: what a network's numbers say about the orientation."""

from functools import lru_cache

import torch
from torch import Tensor

from cryoforum.bingham import OrientationBelief, psd_from_lower_triangle
from cryoforum.config import NetworkConfig
from cryoforum.harmonics import rotation_polynomials
from cryoforum.so3grid import rotation_grid

READOUT_NSIDE = 6  # 10° between the rotations from which the ascent to a mode may start


def head_size(config: NetworkConfig) -> int:
    """How many numbers the head reads."""
    return 10 if config.head == "qcqp" else rotation_polynomials(config.degree).size


def beliefs(numbers: Tensor, config: NetworkConfig) -> OrientationBelief:
    """Orientation beliefs of the network's numbers (n, k).

    qcqp: A = L Lᵀ of 10 numbers (Cryo-forum, eq. 3). exponential_family: highest mode and its curvature.
    """
    if config.head == "qcqp":
        return OrientationBelief(psd_from_lower_triangle(numbers))
    grid, features = _readout_grid(config.degree)
    return rotation_polynomials(config.degree).mode_belief(numbers, grid.to(numbers), features.to(numbers))


@lru_cache(maxsize=4)
def _readout_grid(degree: int) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        grid = rotation_grid(READOUT_NSIDE)
        return grid, rotation_polynomials(degree).features(grid)
