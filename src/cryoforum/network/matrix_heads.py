"""Heads whose numbers fill a symmetric 4 × 4 matrix A: one Bingham distribution an image.

The orientation is the eigenvector of A's smallest eigenvalue (Cryo-forum, eq. 2-3).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.choices import register_head
from cryoforum.config import NetworkConfig, TrainingConfig
from cryoforum.distributions.bingham import (
    LOG_AREA,
    LOWER_TRIANGLE,
    OrientationPosterior,
    log_density,
    psd_from_lower_triangle,
    smallest_eigenvector,
)
from cryoforum.errors import require
from cryoforum.geometry.point_groups import nearest_equivalent, symmetry_group
from cryoforum.geometry.rotations import compose
from cryoforum.network.heads import Likelihood, mean_posterior
from cryoforum.runtime.devices import Compute


@dataclass(frozen=True)
class MatrixHead:
    """Numbers that make a symmetric matrix A, (n, 4, 4), which is a Bingham distribution."""

    size: int
    matrix_of: Callable[[Tensor], Tensor]
    symmetry: str = "C1"
    starts_small: ClassVar[bool] = False

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        return OrientationPosterior(self.matrix_of(numbers))

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        return mean_posterior([self.posterior(one) for one in numbers], turns, self.symmetry)

    def expected_error(
        self, numbers: Sequence[Tensor], turns: Tensor, posterior: OrientationPosterior, sharpness: float
    ) -> Tensor:
        return posterior.root_mean_square_angle

    def orientation(self, numbers: Tensor) -> Tensor:
        return smallest_eigenvector(self.matrix_of(numbers))

    def features(self, rotations: Tensor) -> Tensor:
        """-(S·q)(S·q)ᵀ of every equivalent of each rotation, (g, elements of the group, 16)."""
        group = symmetry_group(self.symmetry).to(rotations)
        equivalents = compose(group, rotations[:, None])
        return -(equivalents[..., :, None] * equivalents[..., None, :]).flatten(2)

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        """That of the equivalent nearest to the one mode."""
        matrix = self.matrix_of(numbers).flatten(1)
        return torch.stack([matrix @ one.T for one in features.unbind(1)]).amax(0)

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        """That of the one Bingham distribution, shared out among the equivalents of its orientation."""
        posterior, group = self.posterior(numbers), symmetry_group(self.symmetry).to(rotations)
        each = torch.stack([log_density(posterior, compose(one, rotations)) for one in group])
        return each.logsumexp(0) - math.log(len(group)) + LOG_AREA

    def likelihood(self, config: TrainingConfig, generator: torch.Generator, compute: Compute) -> Likelihood:
        group = symmetry_group(self.symmetry)

        def exact(numbers: Tensor, truth: Tensor, step: int) -> Tensor:
            posterior = self.posterior(numbers)
            # One mode cannot hold all equivalents: the one nearest to it counts.
            nearest = nearest_equivalent(truth, posterior.mode.detach(), group)
            return log_density(posterior, nearest).mean() + LOG_AREA

        return exact


def quaternion_matrix(numbers: Tensor) -> Tensor:
    """A = |v|² - v vᵀ of four numbers v: the orientation is the unit quaternion v / |v|."""
    outer = numbers[:, :, None] * numbers[:, None, :]
    return torch.eye(4).to(numbers) * numbers.square().sum(-1)[:, None, None] - outer


def gram_schmidt_matrix(numbers: Tensor) -> Tensor:
    """A of the rotation whose first two columns are six numbers, orthonormalised (Zhou et al. 2019)."""
    first = normalize(numbers[:, :3], dim=-1)
    second = numbers[:, 3:]
    second = normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    columns = [first, second, torch.linalg.cross(first, second, dim=-1)]
    return procrustes_matrix(torch.stack(columns, dim=-1).flatten(1))


def symmetric_matrix(numbers: Tensor) -> Tensor:
    """A symmetric, of any signs, of the ten numbers of its lower triangle (Peretroukhin et al. 2020)."""
    matrix = numbers.new_zeros(*numbers.shape[:-1], 4, 4)
    row, column = LOWER_TRIANGLE
    matrix[..., row, column] = numbers
    matrix[..., column, row] = numbers
    return matrix


def procrustes_matrix(numbers: Tensor) -> Tensor:
    """A with qᵀ A q = -tr(Mᵀ R(q)) of nine numbers M, row by row (Davenport's matrix, negated).

    Its orientation is the rotation nearest to M, that of the singular value decomposition with a positive
    determinant (Levinson et al. 2020); the Bingham distribution is M's matrix Fisher distribution.
    """
    m = numbers.view(-1, 3, 3)
    trace = m.diagonal(dim1=1, dim2=2).sum(-1)
    matrix = numbers.new_zeros(len(numbers), 4, 4)
    matrix[:, :3, :3] = m + m.mT - trace[:, None, None] * torch.eye(3).to(numbers)
    axis = torch.stack([m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], dim=-1)
    matrix[:, :3, 3] = axis
    matrix[:, 3, :3] = axis
    matrix[:, 3, 3] = trace
    return -matrix


def _maker(size: int, matrix_of: Callable[[Tensor], Tensor]) -> Callable[[NetworkConfig, str], MatrixHead]:
    return lambda config, symmetry: MatrixHead(size, matrix_of, symmetry)


def register_matrix_head(name: str, size: int, matrix_of: Callable[[Tensor], Tensor]) -> None:
    """Let ``network.head`` accept a head whose numbers make a matrix A; see `choices.register_head`.

    Parameters
    ----------
    name
        That no other head has.
    size
        How many numbers the head reads of an image.
    matrix_of
        Numbers (n, size) -> symmetric matrices (n, 4, 4), differentiable: the density on unit quaternions is
        ∝ exp(-qᵀ A q).

    Raises
    ------
    InputError
        Where the name is taken, or ``matrix_of`` does not give symmetric matrices of that shape.
    """
    tried = matrix_of(torch.randn(2, size, generator=torch.Generator().manual_seed(0)))
    shape = tuple(tried.shape)
    require(shape == (2, 4, 4), f"matrices (n, 4, 4) of head '{name}'", f"shape {shape}")
    require(torch.allclose(tried, tried.mT, atol=1e-5), f"symmetric matrices of head '{name}'", "others")
    register_head(name, _maker(size, matrix_of))


quaternion_head = _maker(4, quaternion_matrix)
gram_schmidt_head = _maker(6, gram_schmidt_matrix)
qcqp_head = _maker(10, psd_from_lower_triangle)  # Cryo-forum, eq. 3
symmetric_head = _maker(10, symmetric_matrix)
svd_head = _maker(9, procrustes_matrix)
