"""The orientation posterior that every stage uses: a Bingham distribution over rotations.

Its density on unit quaternions is ∝ exp(-qᵀ A q) with A symmetric, 4 × 4 (10 numbers). The mode is the
eigenvector of the smallest eigenvalue (Cryo-forum, eq. 2-3); independent evidence adds.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from cryoforum.fields.checks import floats, settle
from cryoforum.fields.rows import Rows

NODES = 256  # of the quadrature of the normalising constant
ANGLE_NODES = 48  # of that of the mean square angle, in either of two dimensions
# E θ² below which it is that of small angles to a few 1e-3, and too narrow for so few nodes.
_NARROW = 0.012
_AT_ONCE = 256  # distributions whose mean square angle is taken at a time: 5 MB an array
_LOG_SHARPNESS = math.log(1 / 50), math.log(10)  # beyond, a network has learned nothing
LOG_AREA = math.log(2 * math.pi**2)  # of the unit sphere of quaternions
# Where numbers 0-9 of the head go in the lower triangle of L (row, column).
LOWER_TRIANGLE = torch.tril_indices(4, 4)


@dataclass(frozen=True)
class OrientationPosterior(Rows):
    """Bingham distributions of the orientations of n particles.

    Attributes
    ----------
    concentration : Tensor
        A, (n, 4, 4), symmetric: the density on unit quaternions is ∝ exp(-qᵀ A q).

    Raises
    ------
    InputError
        For another shape.
    """

    concentration: Float[Tensor, "n 4 4"]

    def __post_init__(self) -> None:
        # Values are not looked at: posteriors are made in every step of a training, on any device.
        shaped = floats("concentration", self.concentration, None, 4, 4, finite=False, any_precision=True)
        settle(self, concentration=shaped)

    def __repr__(self) -> str:
        return f"OrientationPosterior({len(self)})"

    def __add__(self, other: "OrientationPosterior") -> "OrientationPosterior":
        """The posterior after independent evidence: densities multiply, so matrices add."""
        return OrientationPosterior(self.concentration + other.concentration)

    @property
    def mode(self) -> Float[Tensor, "n 4"]:
        """Most probable orientation, unit quaternions (n, 4)."""
        return smallest_eigenvector(self.concentration)

    @property
    def dispersion(self) -> Float[Tensor, "n 3"]:
        """Λ, (n, 3): smallest eigenvalue of A minus each other one, ascending, all ≤ 0."""
        eigenvalues = torch.linalg.eigvalsh(self.concentration.double())
        return (eigenvalues[:, :1] - eigenvalues[:, 1:].flip(-1)).to(self.concentration.dtype)

    @property
    def lambda_max(self) -> Float[Tensor, " n"]:
        """Largest element of Λ (Cryo-forum, eq. 6), (n,): nearer to 0 means less certain."""
        return self.dispersion[:, -1]

    @property
    def trace(self) -> Float[Tensor, " n"]:
        """tr Λ (Cryo-forum, eq. 7), (n,): nearer to 0 means less certain."""
        return self.dispersion.sum(-1)

    @property
    def eigengap(self) -> Float[Tensor, " n"]:
        """Second smallest eigenvalue of A minus the smallest, (n,): larger is more certain.

        The first eigengap of Peretroukhin et al. (2020); the same as -`lambda_max`.
        """
        return -self.lambda_max

    @property
    def mode_moment(self) -> Float[Tensor, " n"]:
        """E⟨q, mode⟩² = E cos²(error / 2), (n,) in (0.25, 1]: 1 where the pose is certain."""
        exponents = torch.cat([self.dispersion, torch.zeros_like(self.dispersion[:, :1])], dim=-1)
        with torch.enable_grad():
            leaf = exponents.double().detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_normalising_constant(leaf).sum(), leaf)
        return gradient[:, -1].clamp(0.25, 1).to(self.concentration.dtype)

    @property
    def root_mean_square_angle(self) -> Float[Tensor, " n"]:
        """Root of the mean square angle to the mode, (n,) in radians: 2.30 where nothing is known."""
        dispersion = self.dispersion.double()
        squares = (-2 / dispersion.clamp_max(-1e-30)).sum(-1)  # of narrow densities, which are normal
        for rows in (squares >= _NARROW).nonzero()[:, 0].split(_AT_ONCE):
            squares[rows] = _mean_square_angle(dispersion[rows])
        return squares.sqrt().to(self.concentration.dtype)

    @property
    def expected_error_rad(self) -> Float[Tensor, " n"]:
        """`root_mean_square_angle`: the orientation error that the posterior means, (n,)."""
        return self.root_mean_square_angle

    def log_density(self, quaternions: Float[Tensor, "n ... 4"]) -> Float[Tensor, "n ..."]:
        """Log density relative to the uniform one, which is 0 everywhere.

        Parameters
        ----------
        quaternions : Tensor
            A unit quaternion for each posterior, (n, 4), or several, (n, e, 4).

        Returns
        -------
        Tensor
            (n,) or (n, e).
        """
        return log_density(self, quaternions) + LOG_AREA

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "n c 4"]:
        """Quaternions (n, ``count``, 4), drawn by ``generator`` from each posterior, exactly."""
        from cryoforum.distributions.bingham_draws import drawn

        return drawn(self.concentration, count, generator)

    def credible_angle(self, probability: float = 0.95) -> Float[Tensor, " n"]:
        """Angle to the mode, (n,) in radians, within which the orientation is with a ``probability``.

        InputError where that is not between 0 and 1.
        """
        from cryoforum.distributions.bingham_angles import angle_quantile

        return angle_quantile(self.dispersion, probability)


def psd_from_lower_triangle(numbers: Float[Tensor, "*n 10"]) -> Float[Tensor, "*n 4 4"]:
    """A = L Lᵀ (n, 4, 4) of the 10 numbers (n, 10) that fill L row by row (Cryo-forum, eq. 3)."""
    lower = numbers.new_zeros(*numbers.shape[:-1], 4, 4)
    row, column = LOWER_TRIANGLE
    lower[..., row, column] = numbers
    return lower @ lower.mT


class _SmallestEigenvector(torch.autograd.Function):
    """Implicit derivative dq = -(A - λ)⁺ dA q, with the gaps bounded away from 0 to stay finite."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        eigenvalues, eigenvectors = torch.linalg.eigh(matrices.double())
        ctx.save_for_backward(eigenvalues, eigenvectors)
        return eigenvectors[..., 0].to(matrices.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        eigenvalues, eigenvectors = ctx.saved_tensors
        scale = eigenvalues.abs().amax(-1, keepdim=True).clamp_min(1e-20)
        gaps = (eigenvalues[..., 1:] - eigenvalues[..., :1]).maximum(1e-3 * scale)
        others, mode = eigenvectors[..., 1:], eigenvectors[..., :1]
        along = (others.mT @ gradient.double()[..., None]) / gaps[..., None]
        result = -(others @ along) @ mode.mT
        return ((result + result.mT) / 2).to(gradient.dtype)


def smallest_eigenvector(matrices: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4"]:
    """Unit eigenvectors (n, 4) of the smallest eigenvalue of symmetric (n, 4, 4): the QCQP's solution.

    Differentiable, with gradients that stay finite where the two smallest eigenvalues meet.
    """
    return _SmallestEigenvector.apply(matrices)


@lru_cache(maxsize=2)
def _nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights, clustered at both ends of [0, 1] by s = sin²(π u / 2)."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    u = (nodes + 1) / 2
    s = np.sin(np.pi * u / 2) ** 2
    jacobian = np.pi / 2 * np.sin(np.pi * u)
    return torch.from_numpy(s), torch.from_numpy(weights / 2 * jacobian)


def log_normalising_constant(exponents: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """log ∫_{S³} exp(Σ lᵢ qᵢ²) dq, differentiable.

    Parameters
    ----------
    exponents : Tensor
        l, (n, 4), ascending.

    Returns
    -------
    Tensor
        (n,).

    Notes
    -----
    With q = (√s e^{iα}, √(1-s) e^{iβ}) both angles integrate to Bessel functions and one smooth
    integral over s is left; the scaled I₀ and log-sum-exp keep it stable.
    """
    l1, l2, l3, l4 = exponents.double()[..., None, :].unbind(-1)
    s, weights = (values.to(exponents.device) for values in _nodes(NODES))
    high, low = s * (l4 - l3) / 2, (1 - s) * (l2 - l1) / 2
    exponent = s * (l3 + l4) / 2 + (1 - s) * (l1 + l2) / 2 + _log_bessel(high) + _log_bessel(low)
    integral = torch.logsumexp(exponent + torch.log(weights), dim=-1)
    return (math.log(2 * math.pi**2) + integral).to(exponents.dtype)


def _mean_square_angle(dispersion: Tensor) -> Tensor:
    """E θ² of the angle θ to the mode, (n,), where Λ is ``dispersion`` (n, 3), float64.

    As `log_normalising_constant`, but the angle α in the plane of the mode stays: cos²(θ / 2) = s cos²α.
    """
    l1, l2, l3 = dispersion[..., None, None].unbind(1)
    nodes, weights = _nodes(ANGLE_NODES)
    s, alpha = nodes[:, None], math.pi / 2 * nodes
    log_weights = torch.log(weights)[:, None] + torch.log(weights)
    along = s * torch.sin(alpha).square()
    low = _log_bessel((1 - s) * (l2 - l1) / 2)
    exponent = log_weights + l3 * along + (1 - s) * (l1 + l2) / 2 + low
    share = torch.softmax(exponent.flatten(1), dim=1)
    angle = 2 * torch.asin(((1 - s) + along).clamp(0, 1).sqrt())
    return share @ angle.square().flatten()


def _log_bessel(argument: Tensor) -> Tensor:
    """log I₀, with the derivative 0 at 0 that torch's own scaled I₀ alone would miss by 1."""
    return torch.log(torch.special.i0e(argument)) + argument.abs()


def log_density(
    posterior: OrientationPosterior, quaternions: Float[Tensor, "n ... 4"]
) -> Float[Tensor, "n ..."]:
    """Log density on the unit sphere of quaternions, of which q and -q are both points.

    Parameters
    ----------
    posterior : OrientationPosterior
        n distributions.
    quaternions : Tensor
        A unit quaternion for each, (n, 4), or several, (n, e, 4).

    Returns
    -------
    Tensor
        (n,) or (n, e).
    """
    energy = torch.einsum("n...i,nij,n...j->n...", quaternions, posterior.concentration, quaternions)
    eigenvalues = torch.linalg.eigvalsh(posterior.concentration.double())
    log_z = log_normalising_constant(-eigenvalues.flip(-1)).to(energy.dtype)
    return -energy - log_z.view(-1, *[1] * (energy.ndim - 1))


def likeliest_sharpness(posterior: OrientationPosterior, quaternions: Float[Tensor, "n 4"]) -> float:
    """The common factor of all concentrations that maximises the likelihood of true orientations.

    The inverse of what Guo et al. (2017, arXiv:1706.04599) call temperature.

    Parameters
    ----------
    posterior : OrientationPosterior
        n distributions.
    quaternions : Tensor
        The true orientation of each, (n, 4).

    Returns
    -------
    float
        1 where the posteriors are as narrow as they should be, less where they are too narrow.
    """
    concentration, q = posterior.concentration.double(), quaternions.double()
    energy = torch.einsum("ni,nij,nj->", q, concentration, q) / len(q)
    exponents = -torch.linalg.eigvalsh(concentration).flip(-1)

    def cost(log_factor: float) -> float:
        factor = math.exp(log_factor)
        return float(factor * energy + log_normalising_constant(factor * exponents).mean())

    return math.exp(minimize_scalar(cost, bounds=_LOG_SHARPNESS, method="bounded", options={"xatol": 1e-3}).x)


def tangent_basis(quaternions: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4 3"]:
    """Orthonormal basis (n, 4, 3) of the directions in which unit quaternions (n, 4) can move."""
    x, y, z, w = quaternions.unbind(-1)
    columns = [torch.stack(c, dim=-1) for c in ((w, z, -y, -x), (-z, w, x, -y), (y, -x, w, -z))]
    return torch.stack(columns, dim=-1)


def posterior_from_curvature(
    mode: Float[Tensor, "n 4"], curvature: Float[Tensor, "n 3 3"]
) -> OrientationPosterior:
    """Laplace approximation: the Bingham distribution with a given mode and curvature.

    Parameters
    ----------
    mode : Tensor
        Unit quaternions (n, 4).
    curvature : Tensor
        Negative Hessian (n, 3, 3) of the log density in `tangent_basis(mode)`, per unit of quaternion length.
        Directions in which the density does not fall carry no information and are given a floor.
    """
    eigenvalues, directions = torch.linalg.eigh(curvature.double())
    bounded = directions * eigenvalues.clamp_min(1e-2)[:, None, :] @ directions.mT
    basis = tangent_basis(mode.double())
    return OrientationPosterior((basis @ bounded @ basis.mT / 2).to(mode.dtype))


def posterior_from_moment(moment: Float[Tensor, "n 4 4"]) -> OrientationPosterior:
    """The Bingham distribution with about a given second moment.

    Parameters
    ----------
    moment : Tensor
        E q qᵀ, (n, 4, 4), symmetric positive definite of trace 1.

    Notes
    -----
    With eigenvalues m₀ ≥ mᵢ it takes λᵢ = (1/mᵢ - 1/m₀) / 2: exact where nothing is known (all equal)
    and to first order where the density is narrow, the same eigenvectors always.
    """
    eigenvalues, directions = torch.linalg.eigh(moment.double())
    inverse = 1 / eigenvalues.clamp_min(1e-12)
    exponents = (inverse - inverse[:, -1:]) / 2
    return OrientationPosterior((directions * exponents[:, None, :] @ directions.mT).to(moment.dtype))
