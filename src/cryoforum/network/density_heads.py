"""Heads that hold a density over all rotations, which may have several modes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from cryoforum.config import NetworkConfig, TrainingConfig
from cryoforum.distributions.bingham import OrientationPosterior, posterior_from_moment, smallest_eigenvector
from cryoforum.distributions.expected_error import root_mean_square_error
from cryoforum.distributions.exponential_family import RotationPolynomials, rotation_polynomials
from cryoforum.distributions.log_z_adaptive import log_z_adaptive
from cryoforum.distributions.log_z_training import sampled_log_z
from cryoforum.geometry.point_groups import (
    asymmetric_unit,
    largest_overlaps,
    nearest_equivalent,
    symmetry_group,
)
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.heads import Likelihood, mean_posterior
from cryoforum.runtime.devices import Compute

READOUT_NSIDE = 6  # 10° between the rotations from which the ascent to a mode may start
LOG_Z_NSIDE = 10  # 6° between the rotations that hold what is far from a mode


@dataclass(frozen=True)
class ExponentialFamilyHead:
    """Coefficients of a polynomial log density of degree 2L; see `harmonics`."""

    degree: int
    symmetry: str = "C1"
    starts_small: ClassVar[bool] = True

    @property
    def polynomials(self) -> RotationPolynomials:
        """The basis that the numbers are coefficients of."""
        return rotation_polynomials(self.degree, self.symmetry)

    @property
    def size(self) -> int:
        return self.polynomials.size

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        """The highest mode and its curvature; of the equivalent modes of a symmetric density any one."""
        grid, features = _readout_grid(self.degree, self.symmetry)
        return self.polynomials.mode_posterior(numbers, grid.to(numbers), features.to(numbers))

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        return self.posterior(self.mean_of_copies(numbers, turns))

    def mean_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> Tensor:
        """Coefficients of the mean log density of copies whose orientations are q∘r."""
        turned = [self.polynomials.turned(one, turn) for one, turn in zip(numbers, turns, strict=True)]
        return torch.stack(turned).mean(0)

    def expected_error(
        self, numbers: Sequence[Tensor], turns: Tensor, posterior: OrientationPosterior, sharpness: float
    ) -> Tensor:
        """Of all modes: the posterior is that of the highest."""
        mean, grid = self.mean_of_copies(numbers, turns), _readout_grid(self.degree, self.symmetry)
        return root_mean_square_error(self.polynomials, mean, posterior, sharpness, *grid)

    def orientation(self, numbers: Tensor) -> Tensor:
        with torch.no_grad():
            mode = self.posterior(numbers).mode
        return self.polynomials.moved_mode(numbers, mode)

    def features(self, rotations: Tensor) -> Tensor:
        return self.polynomials.features(rotations)

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        return numbers @ features.T

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        grid = rotation_grid(LOG_Z_NSIDE)
        features, posterior = self.features(grid), self.posterior(numbers)
        log_total = log_z_adaptive(self.polynomials, numbers, posterior, grid, features)
        return (self.features(rotations) @ numbers[..., None])[..., 0] - log_total[:, None]

    def likelihood(self, config: TrainingConfig, generator: torch.Generator, compute: Compute) -> Likelihood:
        grids = config.grid_nside, config.grid_count
        sampled = sampled_log_z(self.polynomials, *grids, generator, compute.device, compute.dtype)

        def mean(numbers: Tensor, truth: Tensor, step: int) -> Tensor:
            return sampled.log_likelihood(numbers, truth, step).mean()

        return mean


@dataclass(frozen=True)
class GridHead:
    """One logit for each rotation of a grid, or of one asymmetric unit of it."""

    nside: int
    symmetry: str = "C1"
    starts_small: ClassVar[bool] = True

    @property
    def size(self) -> int:
        return len(self._grid)

    @property
    def _grid(self) -> Tensor:
        return _unit_grid(self.nside, self.symmetry)

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        """The Bingham with the second moment E q qᵀ of the posterior over the grid."""
        return posterior_from_moment(self._moment(numbers))

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        return mean_posterior([self.posterior(one) for one in numbers], turns, self.symmetry)

    def expected_error(
        self, numbers: Sequence[Tensor], turns: Tensor, posterior: OrientationPosterior, sharpness: float
    ) -> Tensor:
        return posterior.root_mean_square_angle  # whose second moment is that of the whole grid

    def orientation(self, numbers: Tensor) -> Tensor:
        return smallest_eigenvector(-self._moment(numbers))

    def features(self, rotations: Tensor) -> Tensor:
        """The number of the grid's rotation that is nearest to each of ``rotations``."""
        return torch.cat([self._overlaps(part).argmax(-1) for part in rotations.split(1024)])

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        return numbers.log_softmax(-1)[:, features] + math.log(self.size)

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        """As a density it is constant around each rotation of the grid."""
        nearest = self.features(rotations.flatten(0, 1)).view(rotations.shape[:2])
        return numbers.log_softmax(-1).gather(1, nearest) + math.log(self.size)

    def likelihood(self, config: TrainingConfig, generator: torch.Generator, compute: Compute) -> Likelihood:
        """Cross-entropy with the truth spread over its nearest rotations, a normal of half the spacing."""
        deviation = math.radians(60 / self.nside) / 2

        def cross_entropy(numbers: Tensor, truth: Tensor, step: int) -> Tensor:
            angle = 2 * torch.acos(self._overlaps(truth).clamp_max(1))
            target = (-0.5 * (angle / deviation).square()).softmax(-1)
            return (target * numbers.log_softmax(-1)).sum(-1).mean() + math.log(self.size)

        return cross_entropy

    def _overlaps(self, rotations: Tensor) -> Tensor:
        """`largest_overlaps` of ``rotations`` (n, 4) with the grid; (n, size)."""
        group = symmetry_group(self.symmetry).to(rotations)
        return largest_overlaps(rotations, self._grid.to(rotations), group)

    def _moment(self, numbers: Tensor) -> Tensor:
        grid = self._grid.to(numbers)
        probability = numbers.softmax(-1)
        group = symmetry_group(self.symmetry)
        if len(group) == 1:
            outer = (grid[:, :, None] * grid[:, None, :]).flatten(1)
            return (probability @ outer).view(-1, 4, 4)
        near = nearest_equivalent(grid, grid[probability.argmax(-1)][:, None], group)
        return torch.einsum("ng,ngi,ngj->nij", probability, near, near)


def exponential_family_head(config: NetworkConfig, symmetry: str) -> ExponentialFamilyHead:
    """The head of degree ``config.degree``."""
    return ExponentialFamilyHead(config.degree, symmetry)


def softmax_grid_head(config: NetworkConfig, symmetry: str) -> GridHead:
    """The head over the grid of ``config.head_nside``."""
    return GridHead(config.head_nside, symmetry)


@lru_cache(maxsize=4)
def _readout_grid(degree: int, symmetry: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        grid = rotation_grid(READOUT_NSIDE)
        return grid, rotation_polynomials(degree, symmetry).features(grid)


@lru_cache(maxsize=4)
def _unit_grid(nside: int, symmetry: str) -> Tensor:
    return asymmetric_unit(rotation_grid(nside), symmetry_group(symmetry))
