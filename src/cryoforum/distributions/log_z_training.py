"""The log normalising constant of a density on all rotations, during training: fast, and hard to cheat.

Training would sharpen a peak at the truth until it fits between the points of any grid, as what is not seen
does not count. So a grid holds what is far from the truth, and random points hold what is near. A narrow peak
elsewhere may still be missed: where two orientations look alike, both may be believed in too much.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.distributions.exponential_family import RotationPolynomials
from cryoforum.errors import require
from cryoforum.geometry.point_groups import asymmetric_unit, finest_axis, symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid

SPACINGS = 1.4  # of the grid: how far from the truth it begins to count
NEAREST_RAD = math.radians(0.5)  # below, a density is as high as at the truth
POINTS = 64  # around each true rotation
POINT_SETS = 64  # used in turn


@dataclass(frozen=True, eq=False)
class SampledLogZ:
    """Rotations at which densities are summed; made by `sampled_log_z`.

    Attributes
    ----------
    polynomials : RotationPolynomials
    grids, features : list of Tensor
        Grids of one asymmetric unit, (g, 4) each, and their features, (g, size).
    offsets : Tensor
        Rotations (sets, k, 4) from the truth to points near it.
    log_shares : Tensor
        (sets, k): log of the share of all rotations that each offset and its equivalents stand for.
    reach_rad : float
        The largest angle of an offset.
    """

    polynomials: RotationPolynomials
    grids: list[Float[Tensor, "_ 4"]]
    features: list[Float[Tensor, "_ size"]]
    offsets: Float[Tensor, "s k 4"]
    log_shares: Float[Tensor, "s k"]
    reach_rad: float

    def log_likelihood(
        self, coefficients: Float[Tensor, "n size"], truth: Float[Tensor, "n 4"], step: int
    ) -> Float[Tensor, " n"]:
        """Log likelihood of the truth, relative to the uniform density.

        Parameters
        ----------
        coefficients : Tensor
            c of n log densities Σ c φ, (n, size).
        truth : Tensor
            True orientations (n, 4).
        step : int
            Of the training: grids and offsets are taken in turn.

        Returns
        -------
        Tensor
            (n,).
        """
        at_truth = (coefficients * self.polynomials.features(truth)).sum(-1)
        grid, of_grid = (turned[step % len(self.grids)] for turned in (self.grids, self.features))
        far = _LogMeanExp.apply(coefficients, of_grid, self._near(truth, grid))
        offsets, log_shares = (sets[step % POINT_SETS] for sets in (self.offsets, self.log_shares))
        points = compose(truth[:, None], offsets)
        near = self.polynomials.values(coefficients, points) + log_shares
        # An invariant density is the same around every equivalent of the truth.
        group = symmetry_group(self.polynomials.symmetry)
        innermost = at_truth + math.log(len(group) * _share_within(NEAREST_RAD))
        return at_truth - torch.logsumexp(torch.cat([far[:, None], near, innermost[:, None]], dim=1), dim=1)

    def _near(self, truth: Tensor, grid: Tensor) -> Tensor:
        """Whether each rotation of ``grid`` is within reach of an equivalent of the truth, (n, g)."""
        least = math.cos(self.reach_rad / 2)
        near = torch.zeros(len(truth), len(grid), dtype=torch.bool, device=grid.device)
        for element in symmetry_group(self.polynomials.symmetry).to(truth):
            near |= (compose(element, truth) @ grid.T).abs() > least
        return near


def sampled_log_z(
    polynomials: RotationPolynomials,
    nside: int,
    count: int,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> SampledLogZ:
    """Grids and offsets for densities of a basis.

    Parameters
    ----------
    polynomials : RotationPolynomials
    nside, count : int
        Fineness of the grid, and how many randomly turned copies of it.
    generator : torch.Generator
    device, dtype
        Where the tables are kept, and the format of the features.

    Raises
    ------
    InputError
        Where the grid is too coarse for the symmetry.

    Notes
    -----
    Angles of offsets are evenly spread in their logarithm: peaks of any width between `NEAREST_RAD` and the
    reach hold as many of them.
    """
    group = symmetry_group(polynomials.symmetry)
    base = rotation_grid(nside)
    turned = [compose(turn, base) for turn in random_unitquat(count, generator=generator)]
    grids = [asymmetric_unit(grid, group) for grid in turned]
    expected = f"a finer grid for symmetry {polynomials.symmetry}"
    require(all(map(len, grids)), expected, f"training.grid_nside of {nside}")
    spacing = math.radians(60 / nside)
    # The regions of equivalent rotations must not meet.
    reach = min(SPACINGS * spacing, 0.9 * math.pi / finest_axis(polynomials.symmetry))
    strata = torch.arange(POINTS) + torch.rand(POINT_SETS, POINTS, generator=generator)
    angles = NEAREST_RAD * (reach / NEAREST_RAD) ** (strata / POINTS)
    directions = normalize(torch.randn(POINT_SETS, POINTS, 3, generator=generator), dim=-1)
    half = angles[..., None] / 2
    offsets = torch.cat([half.sin() * directions, half.cos()], dim=-1)
    # Of all rotations a share of (1 - cos θ) dθ / π is turned by θ, and dθ = θ d log θ.
    share = 2 * (angles / 2).sin().square() / math.pi * angles * math.log(reach / NEAREST_RAD) / POINTS
    return SampledLogZ(
        polynomials,
        [grid.to(device) for grid in grids],
        [polynomials.features(grid).to(device, dtype) for grid in grids],
        offsets.to(device),
        (len(group) * share).log().to(device),
        reach,
    )


def _share_within(angle_rad: float) -> float:
    """Share of all rotations that are turned by less than this."""
    return (angle_rad - math.sin(angle_rad)) / math.pi


class _LogMeanExp(torch.autograd.Function):
    """log mean exp (n,) of coefficients (n, size) · features (g, size); ``excluded`` (n, g) count as 0.

    Its derivative is taken on the way. Values far below the largest are raised to e⁻⁶⁰ of it: they would be
    denormal numbers, which make a sharp density five times slower than a flat one.
    """

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, features: Tensor, excluded: Tensor) -> Tensor:
        values = (coefficients.to(features.dtype) @ features.T).float()
        lowest = torch.finfo(values.dtype).min  # finite, where all are excluded
        highest = values.masked_fill_(excluded, lowest).amax(-1, keepdim=True)
        values.sub_(highest).clamp_min_(-60).exp_().masked_fill_(excluded, 0)
        total = values.sum(-1, keepdim=True).clamp_min(1)  # that of the highest alone
        ctx.save_for_backward((values.to(features.dtype) @ features).to(coefficients.dtype) / total)
        return (highest + torch.log(total / len(features)))[:, 0].to(coefficients.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mean_features,) = ctx.saved_tensors
        return gradient[:, None] * mean_features, None, None
