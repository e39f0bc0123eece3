"""Heads: what a network's numbers say about the orientation.

Most fill a symmetric 4 × 4 matrix A: the orientation is the eigenvector of its smallest eigenvalue, and A
is a Bingham distribution. Two others hold a density that may have several modes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.config import NetworkConfig
from cryoforum.distributions.bingham import (
    LOWER_TRIANGLE,
    OrientationPosterior,
    log_density,
    posterior_from_moment,
    psd_from_lower_triangle,
    smallest_eigenvector,
)
from cryoforum.distributions.exponential_family import RotationPolynomials, rotation_polynomials
from cryoforum.distributions.log_z_adaptive import log_z_adaptive
from cryoforum.distributions.log_z_training import sampled_log_z
from cryoforum.geometry.point_groups import asymmetric_unit, nearest_equivalent, symmetry_group
from cryoforum.geometry.rotations import compose, inverse, left_matrix, right_matrix
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.runtime.devices import fast_dtype

READOUT_NSIDE = 6  # 10° between the rotations from which the ascent to a mode may start
PARTITION_NSIDE = 10  # 6° between the rotations that hold what is far from a mode
LOG_AREA = math.log(2 * math.pi**2)  # of the unit sphere of quaternions
# log likelihood (mean over a batch, 0 for the uniform density) of (numbers, true rotations, step)
Likelihood = Callable[[Tensor, Tensor, int], Tensor]


class Head(Protocol):
    """Reads the numbers (n, ``size``) of n images."""

    @property
    def size(self) -> int:
        """How many numbers it reads of an image."""
        ...

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        """What the numbers say, as one Bingham distribution an image."""
        ...

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        """The mean log density of several views of each image, as one Bingham distribution an image.

        In view v (numbers: (n, size)) the orientation is q∘r instead of q, r being ``turns`` (v, 4). The
        views share the noise of one image, so their densities are averaged and not multiplied.
        """
        ...

    def orientation(self, numbers: Tensor) -> Tensor:
        """Most probable orientation, unit quaternions (n, 4), differentiable."""
        ...

    def features(self, rotations: Tensor) -> Tensor:
        """What `log_density` needs of ``rotations`` (g, 4); (g, …)."""
        ...

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        """What the numbers say of each rotation of `features`, (n, g); not normalised."""
        ...

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        """log density relative to the uniform one, (n, e), at e rotations of each image, (n, e, 4).

        Normalised exactly, or as exactly as `partition` can; no grid of training is in it.
        """
        ...

    def likelihood(
        self, nside: int, count: int, generator: torch.Generator, device: torch.device
    ) -> Likelihood:
        """The function to maximise. A density without a closed normaliser takes it far from the truth over
        ``count`` turned copies, in turn, of the grid of ``nside``; see `normaliser`.
        """
        ...


def head_of(config: NetworkConfig, symmetry: str = "C1") -> Head:
    """The head that a configuration names."""
    if config.head == "exponential_family":
        return ExponentialFamilyHead(config.degree, symmetry)
    if config.head == "softmax_grid":
        return GridHead(config.head_nside, symmetry)
    size, matrix_of = MATRIX_HEADS[config.head]
    return MatrixHead(size, matrix_of, symmetry)


@dataclass(frozen=True)
class MatrixHead:
    """Numbers that make a symmetric matrix A, (n, 4, 4), which is a Bingham distribution."""

    size: int
    matrix_of: Callable[[Tensor], Tensor]
    symmetry: str = "C1"

    def posterior(self, numbers: Tensor) -> OrientationPosterior:
        return OrientationPosterior(self.matrix_of(numbers))

    def posterior_of_copies(self, numbers: Sequence[Tensor], turns: Tensor) -> OrientationPosterior:
        return mean_posterior([self.posterior(one) for one in numbers], turns, self.symmetry)

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
        """That of the one Bingham distribution, which knows of no equivalents."""
        posterior = self.posterior(numbers)
        return torch.stack([log_density(posterior, one) for one in rotations.unbind(1)], dim=1) + LOG_AREA

    def likelihood(
        self, nside: int, count: int, generator: torch.Generator, device: torch.device
    ) -> Likelihood:
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


MATRIX_HEADS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "quaternion": (4, quaternion_matrix),
    "gram_schmidt": (6, gram_schmidt_matrix),
    "qcqp": (10, psd_from_lower_triangle),  # Cryo-forum, eq. 3
    "symmetric": (10, symmetric_matrix),
    "svd": (9, procrustes_matrix),
}


@dataclass(frozen=True)
class ExponentialFamilyHead:
    """Coefficients of a polynomial log density of degree 2L; see `harmonics`."""

    degree: int
    symmetry: str = "C1"

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
        turned = [self.polynomials.turned(one, turn) for one, turn in zip(numbers, turns, strict=True)]
        return self.posterior(torch.stack(turned).mean(0))

    def orientation(self, numbers: Tensor) -> Tensor:
        with torch.no_grad():
            mode = self.posterior(numbers).mode
        return self.polynomials.moved_mode(numbers, mode)

    def features(self, rotations: Tensor) -> Tensor:
        return self.polynomials.features(rotations)

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        return numbers @ features.T

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        grid = rotation_grid(PARTITION_NSIDE)
        features, posterior = self.features(grid), self.posterior(numbers)
        log_total = log_z_adaptive(self.polynomials, numbers, posterior, grid, features)
        return (self.features(rotations) @ numbers[..., None])[..., 0] - log_total[:, None]

    def likelihood(
        self, nside: int, count: int, generator: torch.Generator, device: torch.device
    ) -> Likelihood:
        sampled = sampled_log_z(self.polynomials, nside, count, generator, device, fast_dtype(device))

        def mean(numbers: Tensor, truth: Tensor, step: int) -> Tensor:
            return sampled.log_likelihood(numbers, truth, step).mean()

        return mean


@dataclass(frozen=True)
class GridHead:
    """One logit for each rotation of a grid, or of one asymmetric unit of it."""

    nside: int
    symmetry: str = "C1"

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

    def orientation(self, numbers: Tensor) -> Tensor:
        return smallest_eigenvector(-self._moment(numbers))

    def features(self, rotations: Tensor) -> Tensor:
        """The number of the grid's rotation that is nearest to each of ``rotations``."""
        return torch.cat([self._overlaps(part).argmax(-1) for part in rotations.split(1024)])

    def log_density(self, numbers: Tensor, features: Tensor) -> Tensor:
        return numbers.log_softmax(-1)[:, features] + math.log(self.size)

    def normalised_log_density(self, numbers: Tensor, rotations: Tensor) -> Tensor:
        """As a density it is constant around each rotation of the grid."""
        nearest = torch.stack([self.features(one) for one in rotations.unbind(1)], dim=1)
        return numbers.log_softmax(-1).gather(1, nearest) + math.log(self.size)

    def likelihood(
        self, nside: int, count: int, generator: torch.Generator, device: torch.device
    ) -> Likelihood:
        """Cross-entropy with the truth spread over its nearest rotations, a normal of half the spacing."""
        deviation = math.radians(60 / self.nside) / 2

        def cross_entropy(numbers: Tensor, truth: Tensor, step: int) -> Tensor:
            angle = 2 * torch.acos(self._overlaps(truth).clamp_max(1))
            target = (-0.5 * (angle / deviation).square()).softmax(-1)
            return (target * numbers.log_softmax(-1)).sum(-1).mean() + math.log(self.size)

        return cross_entropy

    def _overlaps(self, rotations: Tensor) -> Tensor:
        """|⟨S·q, grid⟩| with the nearest equivalent S of each of ``rotations`` (n, 4); (n, size)."""
        grid = self._grid.to(rotations)
        equivalents = compose(symmetry_group(self.symmetry).to(rotations)[:, None], rotations)
        return torch.stack([(one @ grid.T).abs() for one in equivalents]).amax(0)

    def _moment(self, numbers: Tensor) -> Tensor:
        grid = self._grid.to(numbers)
        probability = numbers.softmax(-1)
        group = symmetry_group(self.symmetry)
        if len(group) == 1:
            outer = (grid[:, :, None] * grid[:, None, :]).flatten(1)
            return (probability @ outer).view(-1, 4, 4)
        near = nearest_equivalent(grid, grid[probability.argmax(-1)][:, None], group)
        return torch.einsum("ng,ngi,ngj->nij", probability, near, near)


def mean_posterior(
    posteriors: Sequence[OrientationPosterior], turns: Tensor, symmetry: str
) -> OrientationPosterior:
    """The mean of beliefs about q∘r as one about q, each about the equivalent nearest to the first's."""
    group = symmetry_group(symmetry)
    back = []
    for posterior, turn in zip(posteriors, turns, strict=True):
        matrix = right_matrix(turn)
        back.append(OrientationPosterior(matrix.mT @ posterior.concentration @ matrix))
    first = back[0].mode
    aligned = []
    for posterior in back:
        mode = posterior.mode
        move = compose(nearest_equivalent(mode, first, group), inverse(mode))  # S, of each image its own
        matrix = left_matrix(move)
        aligned.append(matrix @ posterior.concentration @ matrix.mT)
    return OrientationPosterior(torch.stack(aligned).mean(0))


@lru_cache(maxsize=4)
def _readout_grid(degree: int, symmetry: str) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        grid = rotation_grid(READOUT_NSIDE)
        return grid, rotation_polynomials(degree, symmetry).features(grid)


@lru_cache(maxsize=4)
def _unit_grid(nside: int, symmetry: str) -> Tensor:
    return asymmetric_unit(rotation_grid(nside), symmetry_group(symmetry))
