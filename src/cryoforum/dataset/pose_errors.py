"""How far orientations are from known ones."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group


@dataclass(frozen=True)
class ErrorSummary:
    """Orientation errors in short: radians as fields, degrees as properties."""

    count: int
    median_rad: float
    mean_rad: float
    lower_quartile_rad: float
    upper_quartile_rad: float
    share_above_0_3_rad: float

    @property
    def median_deg(self) -> float:
        """Median in degrees."""
        return math.degrees(self.median_rad)

    @property
    def mean_deg(self) -> float:
        """Mean in degrees."""
        return math.degrees(self.mean_rad)

    @property
    def lower_quartile_deg(self) -> float:
        """Lower quartile in degrees."""
        return math.degrees(self.lower_quartile_rad)

    @property
    def upper_quartile_deg(self) -> float:
        """Upper quartile in degrees."""
        return math.degrees(self.upper_quartile_rad)

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, in radians and in degrees."""
        names = ("median_deg", "mean_deg", "lower_quartile_deg", "upper_quartile_deg")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def orientation_errors(
    predicted_quaternions: Tensor, true_quaternions: Tensor, symmetry: str = "C1"
) -> Tensor:
    """Geodesic angle in radians (n,) between predicted and true orientations (n, 4).

    The smallest over all equivalents in the point group ``symmetry``.
    """
    if predicted_quaternions.shape != true_quaternions.shape:
        raise InputError(
            f"expected as many predicted as true orientations, found shapes "
            f"{tuple(predicted_quaternions.shape)} and {tuple(true_quaternions.shape)}; match the rows first"
        )
    return symmetric_distance(predicted_quaternions, true_quaternions, symmetry_group(symmetry))


def summarise_errors(errors: Tensor) -> ErrorSummary:
    """Median, mean, quartiles and the share above 0.3 rad of ``errors`` (n,) in radians."""
    if len(errors) == 0:
        raise InputError(
            "expected at least one orientation error, found none; check the selection of particles"
        )
    values = errors.detach().double().cpu().numpy()
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
    return ErrorSummary(
        count=len(values),
        median_rad=float(median),
        mean_rad=float(values.mean()),
        lower_quartile_rad=float(lower),
        upper_quartile_rad=float(upper),
        share_above_0_3_rad=float((values > 0.3).mean()),
    )
