"""The log normalising constant of a density on all rotations, however sharp it is.

A fixed grid of rotations misses what happens between its points, and a sharp density can make itself look
likelier than it is. Here the mode and its equivalents are integrated on a lattice as fine as the mode is
narrow, and a fixed grid holds the rest; a smooth weight hands over from one to the other.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.distributions.bingham import OrientationPosterior, tangent_basis
from cryoforum.distributions.exponential_family import RotationPolynomials
from cryoforum.geometry.point_groups import finest_axis, symmetry_group
from cryoforum.geometry.rotations import compose

REACH = 6.0  # deviations from the mode up to which the lattice goes
STEP = 1.0  # deviations between its points
WIDEST_RAD = math.radians(45)  # never farther than this from the mode
CHUNK = 16  # densities at a time: each has thousands of points


def log_z_adaptive(
    polynomials: RotationPolynomials,
    coefficients: Float[Tensor, "n size"],
    posterior: OrientationPosterior,
    grid: Float[Tensor, "g 4"],
    grid_features: Float[Tensor, "g size"],
) -> Float[Tensor, " n"]:
    """Log of the mean over all rotations of exp Σ c φ.

    Parameters
    ----------
    polynomials : RotationPolynomials
        The basis φ.
    coefficients : Tensor
        c of n densities, (n, size).
    posterior : OrientationPosterior
        Modes and widths of the n densities.
    grid, grid_features : Tensor
        Rotations (g, 4) all over, and their features (g, size).

    Returns
    -------
    Tensor
        (n,).

    Notes
    -----
    Around a mode q₀ the unit sphere of quaternions is a graph over its tangent space, q = √(1-|t|²) q₀ + t
    with dq = dt / √(1-|t|²): there a lattice of t counts, elsewhere the grid.
    """
    found = []
    chunks = (part.split(CHUNK) for part in (coefficients, posterior.mode, posterior.concentration))
    for own, mode, concentration in zip(*chunks, strict=True):
        precision, directions = _near_axes(concentration, mode, polynomials.symmetry)
        near = _log_near(polynomials, own, mode, precision, directions)
        weight = 1 - _weight_on_grid(grid, mode, precision, directions, polynomials.symmetry)
        values = (own @ grid_features.T).double() + weight.clamp_min(0).log()
        found.append(torch.logaddexp(near, values.logsumexp(-1) - math.log(len(grid))))
    return torch.cat(found).to(coefficients)


def _near_axes(concentration: Tensor, mode: Tensor, symmetry: str) -> tuple[Tensor, Tensor]:
    """Precisions (n, 3) and, as columns (n, 3, 3), directions of the lattice in `tangent_basis(mode)`.

    Those of the posterior, but at least so high that the lattice ends before `WIDEST_RAD` and those of
    equivalent modes do not meet.
    """
    basis = tangent_basis(mode.double())
    matrix = concentration.double()
    least = torch.einsum("ni,nij,nj->n", mode.double(), matrix, mode.double())
    curvature = 2 * (basis.mT @ matrix @ basis - least[:, None, None] * torch.eye(3).to(matrix))
    precision, directions = torch.linalg.eigh(curvature)
    widest = math.sin(min(WIDEST_RAD, math.pi / finest_axis(symmetry)) / 2)
    return precision.clamp_min((REACH / widest) ** 2), directions


def _log_near(
    polynomials: RotationPolynomials,
    coefficients: Tensor,
    mode: Tensor,
    precision: Tensor,
    directions: Tensor,
) -> Tensor:
    """log of what the lattices around a mode and its equivalents hold of the mean, (n,)."""
    lattice = _lattice()
    t = (lattice / precision.sqrt()[:, None, :]) @ directions.mT
    upward = (1 - t.square().sum(-1)).sqrt()
    points = upward[..., None] * mode.double()[:, None, :] + t @ tangent_basis(mode.double()).mT
    values = polynomials.values(coefficients, points.to(coefficients))
    logs = values.double() - upward.log() + _weight(lattice.square().sum(-1)).log()
    copies = 2 * len(symmetry_group(polynomials.symmetry))  # both q and -q
    log_cell = 3 * math.log(STEP) - precision.log().sum(-1) / 2
    return logs.logsumexp(-1) + log_cell + math.log(copies / (2 * math.pi**2))


def _weight_on_grid(
    grid: Tensor, mode: Tensor, precision: Tensor, directions: Tensor, symmetry: str
) -> Tensor:
    """(n, g): the lattices' share of each rotation of the grid."""
    total = torch.zeros(len(mode), len(grid), dtype=torch.float64)
    scaled = (directions * precision.sqrt()[:, None, :]).to(grid)
    for element in symmetry_group(symmetry).to(grid):
        axes = tangent_basis(compose(element, mode)) @ scaled  # turns along with the mode
        squares = torch.stack([(grid @ axis.T).T.square() for axis in axes.unbind(-1)]).sum(0)
        total += _weight(squares.double())
    return total


def _weight(squares: Tensor) -> Tensor:
    """1 near the mode, smoothly down to 0 at `REACH`, of squared deviations."""
    beyond = (2 * squares.sqrt() / REACH - 1).clamp(0, 1)
    return torch.cos(math.pi / 2 * beyond).square()


@lru_cache(maxsize=1)
def _lattice() -> Tensor:
    """Points (m, 3), in deviations, of a cubic lattice within `REACH`."""
    count = math.floor(REACH / STEP)
    axis = torch.arange(-count, count + 1, dtype=torch.float64) * STEP
    points = torch.cartesian_prod(axis, axis, axis)
    return points[points.square().sum(-1) < REACH**2]
