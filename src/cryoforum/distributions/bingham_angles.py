"""How the angle to the mode of a Bingham distribution is distributed."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.distributions.bingham import _log_bessel, _nodes
from cryoforum.errors import require

ANGLES, HEIGHTS = 257, 64  # of the angle, and of the quadrature over the axes about which it turns
FEWER = 97, 32
DEVIATIONS = 8.0  # of the widest direction up to which angles are looked at
_AT_ONCE = 64  # distributions at a time: 8 MB an array


def angle_quantile(dispersion: Float[Tensor, "n 3"], probability: float) -> Float[Tensor, " n"]:
    """Angle (n,) in radians within which the orientation is with a ``probability``; dispersion is Λ, ≤ 0.

    The density of the angle θ is sin²(θ/2) ∫ exp(sin²(θ/2) Σ Λᵢ sᵢ²) ds over the unit axes s: one of the two
    angles of s integrates to a Bessel function, the other one by quadrature, and θ by the trapezoidal rule.
    """
    require(0 < probability < 1, "a probability between 0 and 1", probability)
    found = [dispersion.new_zeros(0)]
    found += [_quantile(part.double(), probability).to(dispersion) for part in dispersion.split(_AT_ONCE)]
    return torch.cat(found)


def angle_probability(dispersion: Float[Tensor, "n 3"], angle: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
    """Probability (n, e) that the orientation is within each ``angle`` in radians, to within 2e-3.

    `angle_quantile` turned round, on fewer points.
    """
    found = [torch.zeros_like(angle[:0])]
    for part, wanted in zip(dispersion.split(_AT_ONCE), angle.split(_AT_ONCE), strict=True):
        angles, cumulated = _cumulated(part.double(), *FEWER)
        found.append(_interpolated(angles, cumulated, wanted.double()).to(angle))
    return torch.cat(found)


def _quantile(dispersion: Tensor, probability: float) -> Tensor:
    angles, cumulated = _cumulated(dispersion, ANGLES, HEIGHTS)
    return _interpolated(cumulated, angles, torch.full_like(angles[:, :1], probability))[:, 0]


def _cumulated(dispersion: Tensor, count: int, heights_count: int) -> tuple[Tensor, Tensor]:
    """Angles (n, ``count``), and the probability up to each."""
    least, middle, most = (-dispersion).sort(dim=-1).values.unbind(-1)
    reach = (DEVIATIONS * torch.sqrt(2 / least.clamp_min(1e-12))).clamp_max(math.pi)
    angle = reach[:, None] * torch.linspace(0, 1, count, dtype=torch.float64)
    square = torch.sin(angle / 2).square()
    heights, weights = _nodes(heights_count)  # along the widest direction, at whose ends a sharp density is
    along = heights.square()
    low, high = ((1 - along) * values[:, None, None] / 2 for values in (most + middle, most - middle))
    scaled = square[..., None]
    exponent = -scaled * (along * least[:, None, None] + low) + _log_bessel(scaled * high)
    density = square * (torch.exp(exponent) @ weights)
    total = torch.cumulative_trapezoid(density, angle, dim=1)
    total = torch.cat([torch.zeros(len(total), 1, dtype=torch.float64), total], dim=1)
    return angle, total / total[:, -1:]


def _interpolated(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Rows of ``y`` (n, k) where those of rising ``x`` reach ``at`` (n, e), or their ends beyond."""
    wanted = at.clamp(x[:, :1], x[:, -1:])
    after = torch.searchsorted(x, wanted).clamp(1, x.shape[1] - 1)
    before = after - 1
    low, high = x.gather(1, before), x.gather(1, after)
    share = (wanted - low) / (high - low).clamp_min(1e-300)
    return y.gather(1, before) + share * (y.gather(1, after) - y.gather(1, before))
