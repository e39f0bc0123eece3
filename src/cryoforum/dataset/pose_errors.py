"""How far orientations are from known ones."""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group


@dataclass(frozen=True)
class ErrorSummary:
    """Orientation errors of ``count`` particles in short, in radians."""

    count: int
    median_rad: float
    mean_rad: float
    lower_quartile_rad: float
    upper_quartile_rad: float
    share_above_0_3_rad: float

    def to_dict(self) -> dict[str, float]:
        """All numbers by name, angles in radians and in degrees."""
        numbers = asdict(self)
        angles = [name for name in numbers if name.endswith("_rad") and not name.startswith("share")]
        return numbers | {f"{name[:-3]}deg": float(np.rad2deg(numbers[name])) for name in angles}


def orientation_errors(
    predicted_quaternions: Float[Tensor, "n 4"],
    true_quaternions: Float[Tensor, "m 4"],
    symmetry: str = "C1",
) -> Float[Tensor, " n"]:
    """Geodesic angle in radians between predicted and true orientations, row by row.

    Parameters
    ----------
    predicted_quaternions, true_quaternions
        Unit, as many of each.
    symmetry
        Point group; the angle is the smallest over all equivalent orientations.

    Raises
    ------
    InputError
        Where there are not as many of each, or nobody knows the point group.
    """
    if predicted_quaternions.shape != true_quaternions.shape:
        raise InputError(
            f"expected as many predicted as true orientations, found shapes "
            f"{tuple(predicted_quaternions.shape)} and {tuple(true_quaternions.shape)}; match the rows first"
        )
    return symmetric_distance(predicted_quaternions, true_quaternions, symmetry_group(symmetry))


def summarise_errors(errors: Float[Tensor, " n"]) -> ErrorSummary:
    """Median, mean, quartiles and the share above 0.3 rad of errors in radians; InputError for none."""
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
