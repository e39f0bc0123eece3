"""The exponential family of rotations of which the Bingham distribution is the first member.

log p(q) = Σ c_k φ_k(q) - log Z with φ_k all homogeneous polynomials of degree 2L in the unit quaternion,
C(2L + 3, 3) of them: every Wigner band l ≤ L. L = 1 gives the 10 numbers of a Bingham. Of a symmetric
molecule only the polynomials that are alike at all equivalent rotations are kept, about one in g.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.distributions.bingham import OrientationPosterior, posterior_from_curvature, tangent_basis
from cryoforum.errors import require
from cryoforum.geometry.point_groups import finest_axis, symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat

ASCENT_STEPS = 6
PEAK_DISTANCE_RAD = math.radians(30)  # between grid rotations that may belong to different peaks


@dataclass(frozen=True, eq=False)
class RotationPolynomials:
    """Orthonormal polynomials of degree 2L on unit quaternions, invariant under a point group.

    Attributes
    ----------
    degree : int
        L.
    exponents : Tensor
        Powers of the coordinates in each monomial, (monomials, 4) int.
    mixing : Tensor
        From monomials to the basis, (monomials, size).
    symmetry : str
        The point group.
    """

    degree: int
    exponents: Int[Tensor, "m 4"]
    mixing: Float[Tensor, "m size"]
    symmetry: str = "C1"

    @property
    def size(self) -> int:
        """Number of coefficients; C(2L + 3, 3), all there are, without symmetry."""
        return self.mixing.shape[1]

    def features(self, quaternions: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n size"]:
        """φ (…, size) at unit quaternions (…, 4); mean of φ φᵀ over all rotations is the identity.

        φ(S·q) = φ(q) for every S of the point group.
        """
        return self.monomials(quaternions) @ self.mixing.to(quaternions)

    def monomials(self, quaternions: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n m"]:
        """Monomials (…, monomials) weighted by √multinomial, which makes them span evenly."""
        table = self._powers(quaternions)
        product = table[..., 0, :][..., self.exponents[:, 0]]
        for axis in range(1, 4):
            product = product * table[..., axis, :][..., self.exponents[:, axis]]
        return product * _multinomial_root(self.exponents).to(quaternions)

    def values(
        self, coefficients: Float[Tensor, "n size"], points: Float[Tensor, "n k 4"]
    ) -> Float[Tensor, "n k"]:
        """Σ c φ (n, k) of n densities (n, size), each at rotations of its own, (n, k, 4).

        A monomial is one in x and y times one in z and w: for each degree of the first it is a product of
        matrices, which costs less than all monomials of all points.
        """
        weighted = coefficients @ _mixing_by_pairs(self).to(coefficients).T
        counts = [(d + 1, 2 * self.degree - d + 1) for d in range(2 * self.degree + 1)]
        powers = self._powers(points)
        total = torch.zeros_like(powers[..., 0, 0])
        blocks = weighted.split([rows * columns for rows, columns in counts], dim=1)
        for (rows, columns), block in zip(counts, blocks, strict=True):
            first = powers[..., 0, :rows] * powers[..., 1, :rows].flip(-1)
            second = powers[..., 2, :columns] * powers[..., 3, :columns].flip(-1)
            total = total + ((first @ block.view(-1, rows, columns)) * second).sum(-1)
        return total

    def mode_posterior(
        self,
        coefficients: Float[Tensor, "n size"],
        grid: Float[Tensor, "g 4"],
        grid_features: Float[Tensor, "g size"],
    ) -> OrientationPosterior:
        """The posterior at the highest mode of each density: the best grid rotations, then ascent.

        Parameters
        ----------
        coefficients : Tensor
            (n, size).
        grid : Tensor
            Rotations (g, 4) from which the ascent may start.
        grid_features : Tensor
            `features` of the grid, (g, size).

        Notes
        -----
        The concentration is the curvature of the log density at the mode (Laplace approximation). A sharp
        peak between grid rotations may look lower than it is, so two that are apart are climbed.
        """
        values = coefficients @ grid_features.T
        monomial_coefficients = coefficients.double() @ self.mixing.to(coefficients.device).double().T
        first = grid[values.argmax(-1)]
        for element in symmetry_group(self.symmetry).to(grid):
            values[(compose(element, first) @ grid.T).abs() > math.cos(PEAK_DISTANCE_RAD / 2)] = -math.inf
        climbed = [
            self._ascended(monomial_coefficients, start.double())
            for start in (first, grid[values.argmax(-1)])
        ]
        heights = [(self.monomials(mode) * monomial_coefficients).sum(-1) for mode, _ in climbed]
        higher = heights[1] > heights[0]
        mode, curvature = (
            torch.where(higher.view(-1, *[1] * (one.ndim - 1)), other, one)
            for one, other in zip(*climbed, strict=True)
        )
        return posterior_from_curvature(mode.to(coefficients), curvature.to(coefficients))

    def climbed(
        self, coefficients: Float[Tensor, "n size"], start: Float[Tensor, "n 4"]
    ) -> OrientationPosterior:
        """The posterior at the mode that each density has near ``start``, as of `mode_posterior`."""
        monomial_coefficients = coefficients.double() @ self.mixing.to(coefficients.device).double().T
        mode, curvature = self._ascended(monomial_coefficients, start.double())
        return posterior_from_curvature(mode.to(coefficients), curvature.to(coefficients))

    def turned(
        self, coefficients: Float[Tensor, "n size"], turn: Float[Tensor, "4"]
    ) -> Float[Tensor, "n size"]:
        """Coefficients (n, size) of q ↦ Σ c φ(q∘``turn``), of the same family as q∘r is linear in q."""
        key = tuple(turn.double().tolist())
        return coefficients @ _turning_matrix(self, key).to(coefficients)

    def moved_mode(self, coefficients: Tensor, mode: Tensor) -> Tensor:
        """``mode`` (n, 4), which belongs to ``coefficients``, with its derivative by them.

        Where the gradient g is 0, a change dc of the coefficients moves the mode by H⁻¹ dg, H being the
        negative Hessian: one Newton step with a constant H.
        """
        monomial_coefficients = coefficients.double() @ self.mixing.to(coefficients.device).double().T
        start = mode.detach().double()
        gradient, curvature = self._tangent_derivatives(monomial_coefficients, start)
        eigenvalues, directions = torch.linalg.eigh(curvature.detach())
        scale = eigenvalues.clamp_min(1.0)
        step = directions @ ((directions.mT @ gradient[..., None]) / scale[..., None])
        return normalize(start + (tangent_basis(start) @ step)[..., 0], dim=-1).to(coefficients)

    def _ascended(self, coefficients: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Newton steps on the sphere, damped to stay uphill; the mode and its negative Hessian."""
        mode = start
        for _ in range(ASCENT_STEPS):
            gradient, curvature = self._tangent_derivatives(coefficients, mode)
            eigenvalues, directions = torch.linalg.eigh(curvature)
            scale = eigenvalues.abs().clamp_min(1.0)
            step = directions @ ((directions.mT @ gradient[..., None]) / scale[..., None])
            step = step * (0.1 / torch.linalg.vector_norm(step, dim=1, keepdim=True)).clamp_max(1.0)
            moved = mode + (tangent_basis(mode) @ step)[..., 0]
            mode = normalize(moved, dim=-1)
        return mode, self._tangent_derivatives(coefficients, mode)[1]

    def _tangent_derivatives(self, coefficients: Tensor, mode: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n, 3) and negative Hessian (n, 3, 3) along the sphere, in `tangent_basis(mode)`."""
        gradient, hessian = self._derivatives(coefficients, mode)
        basis = tangent_basis(mode)
        # The sphere bends away from its tangent, so the slope along q enters the curvature.
        slope = (mode * gradient).sum(-1)[:, None, None] * torch.eye(3).to(mode)
        along = (basis.mT @ gradient[..., None])[..., 0]
        return along, slope - basis.mT @ hessian @ basis

    def _derivatives(self, coefficients: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n, 4) and Hessian (n, 4, 4) of Σ c · monomial in all four coordinates."""
        powers = self._powers(points)
        exponents = self.exponents.to(points.device)
        falling = (torch.ones_like(exponents), exponents, exponents * (exponents - 1))
        factors = [  # of each monomial, along each axis, differentiated 0, 1 and 2 times
            [
                falling[order][:, axis] * powers[:, axis][:, (exponents[:, axis] - order).clamp_min(0)]
                for axis in range(4)
            ]
            for order in range(3)
        ]
        weighted = coefficients * _multinomial_root(exponents).to(points)

        def derivative(*axes: int) -> Tensor:
            product = weighted
            for axis in range(4):
                product = product * factors[axes.count(axis)][axis]
            return product.sum(-1)

        gradient = torch.stack([derivative(axis) for axis in range(4)], dim=-1)
        hessian = [torch.stack([derivative(i, j) for j in range(4)], dim=-1) for i in range(4)]
        return gradient, torch.stack(hessian, dim=-2)

    def _powers(self, quaternions: Tensor) -> Tensor:
        """Powers 0 … 2L of every coordinate, (…, 4, 2L + 1)."""
        powers = [torch.ones_like(quaternions)]
        for _ in range(2 * self.degree):
            powers.append(powers[-1] * quaternions)
        return torch.stack(powers, dim=-1)


@lru_cache(maxsize=8)
def _mixing_by_pairs(polynomials: RotationPolynomials) -> Tensor:
    """The mixing of weighted monomials, sorted by their degree in x and y, then by powers of x and of z."""
    x, y, z, _ = polynomials.exponents.unbind(1)
    most = 2 * polynomials.degree + 1
    order = torch.argsort(((x + y) * most + x) * most + z)
    return (polynomials.mixing * _multinomial_root(polynomials.exponents)[:, None])[order].float()


def _exponents(degree: int) -> Tensor:
    """Powers of the four coordinates in all monomials of degree 2L, (monomials, 4)."""
    choices = combinations_with_replacement(range(4), 2 * degree)
    return torch.tensor([[choice.count(axis) for axis in range(4)] for choice in choices])


@lru_cache(maxsize=16)
def _turning_matrix(polynomials: RotationPolynomials, turn: tuple[float, ...]) -> Tensor:
    """M (size, size) with φ(q∘turn) = M φ(q), from more rotations than there are functions."""
    generator = torch.Generator().manual_seed(0)
    some = random_unitquat(2 * polynomials.size + 8, generator=generator).double()
    moved = compose(some, torch.tensor(turn, dtype=torch.float64))
    solution = torch.linalg.lstsq(polynomials.features(some), polynomials.features(moved)).solution
    return solution.T.float()


@lru_cache(maxsize=8)
def rotation_polynomials(degree: int, symmetry: str = "C1") -> RotationPolynomials:
    """The basis for band limit L: orthonormal, each function in one Wigner band, band L first.

    Parameters
    ----------
    degree : int
        L.
    symmetry : str
        Point group of the molecule.

    Raises
    ------
    InputError
        Where ``degree`` is below `least_degree` of the symmetry.
    """
    least = least_degree(symmetry)
    reason = "" if least == 1 else f" for symmetry {symmetry}"
    require(degree >= least, f"degree of {least} or more{reason}", degree)
    polynomials = _all_polynomials(degree)
    group = symmetry_group(symmetry, torch.float64)
    if len(group) > 1:
        polynomials = _invariant_polynomials(polynomials, group)
    return replace(polynomials, mixing=polynomials.mixing.float(), symmetry=symmetry)


def least_degree(symmetry: str) -> int:
    """Smallest L whose invariant polynomials tell apart all rotations that are not equivalent.

    Below, an n-fold axis and one of infinite order look alike. The first invariants of T, O and I
    other than the constant are in bands 3, 4 and 6.
    """
    if len(symmetry_group(symmetry)) == 1:
        return 1
    return {"T": 3, "O": 4, "I": 6}.get(symmetry.strip().upper()[0], finest_axis(symmetry))


def _all_polynomials(degree: int) -> RotationPolynomials:
    """The basis without symmetry, its mixing float64.

    Models store coefficients in this basis, so it must come out alike on every machine. Eigenvectors
    of one band are not unique, the projection onto the band is: the basis is that of fixed vectors,
    projected and orthonormalised.
    """
    exponents = _exponents(degree)
    eigenvalues, eigenvectors = torch.linalg.eigh(_monomial_covariance(exponents))
    fixed = _fixed_numbers(len(exponents), len(exponents))
    bands = []
    for _, rows in _bands(degree):  # one eigenvalue a band, the larger the lower the band
        vectors = eigenvectors[:, rows]
        basis = _orthonormalised(vectors @ (vectors.T @ fixed[:, rows]))
        bands.append(basis / eigenvalues[rows].mean().sqrt())
    return RotationPolynomials(degree, exponents, torch.cat(bands, dim=1))


def _invariant_polynomials(polynomials: RotationPolynomials, group: Tensor) -> RotationPolynomials:
    """Those that no element of ``group`` (g, 4) changes.

    The kernel φ(q)·φ(r) depends on the distance of q and r alone, so its mean over all equivalents S·r
    is invariant in q: the mean of φ(S·r) over the group holds its coefficients. Fixed r give a basis.
    """
    bands = []
    for band, rows in _bands(polynomials.degree):
        # Mean character: how often the trivial representation is in this band.
        character = torch.special.chebyshev_polynomial_u(group[:, 3], 2 * band)
        count = (2 * band + 1) * round(character.mean().item())
        somewhere = normalize(_fixed_numbers(count, 4), dim=-1)
        equivalents = polynomials.features(compose(group[:, None], somewhere))
        basis = _orthonormalised(equivalents.mean(0)[:, rows].T)
        bands.append(polynomials.mixing[:, rows] @ basis)
    return replace(polynomials, mixing=torch.cat(bands, dim=1))


def _bands(degree: int) -> Iterator[tuple[int, slice]]:
    """Bands L … 0 and where their functions stand, (2l + 1)² of each."""
    start = 0
    for band in range(degree, -1, -1):
        yield band, slice(start, start + (2 * band + 1) ** 2)
        start += (2 * band + 1) ** 2


def _fixed_numbers(rows: int, columns: int) -> Tensor:
    """Numbers in [-1, 1] in no order, the same on every machine; (rows, columns) float64."""
    count = torch.arange(1, rows * columns + 1, dtype=torch.float64)
    return torch.sin(count**2).view(rows, columns)


def _orthonormalised(columns: Tensor) -> Tensor:
    """The Gram-Schmidt basis of ``columns``; unlike that of a plain QR its signs are unique."""
    basis, triangle = torch.linalg.qr(columns)
    return basis * triangle.diagonal().sign()


def _monomial_covariance(exponents: Tensor) -> Tensor:
    """Mean over all rotations of products of the weighted monomials, (size, size) float64, exact."""
    powers = (exponents[:, None] + exponents[None, :]).double()
    half_degree = powers[0, 0].sum() / 2
    logs = (torch.lgamma((powers + 1) / 2) - math.log(math.pi) / 2).sum(-1) - torch.lgamma(2 + half_degree)
    root = _multinomial_root(exponents)
    return torch.where((powers % 2 == 0).all(-1), logs.exp(), 0.0) * root[:, None] * root[None, :]


def _multinomial_root(exponents: Tensor) -> Tensor:
    total = torch.lgamma(exponents.sum(-1).double() + 1)
    return torch.exp((total - torch.lgamma(exponents.double() + 1).sum(-1)) / 2)
