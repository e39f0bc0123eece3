"""Whether what is stated of errors is true, where true orientations are known: the calibration card."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoforum.dataset.predictions import Predictions
from cryoforum.distributions.bingham_angles import angle_probability
from cryoforum.geometry.point_groups import nearest_equivalent, symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import unitquat_to_rotmat

LEVELS = (0.5, 0.68, 0.9, 0.95)
NEAR_DEG = 5.0
PIT_BINS, SHARES = 10, (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
LEAST_COUNT = 20  # of fewer particles a coverage says nothing
_QUARTERS = ("surest quarter", "second quarter", "third quarter", "least sure quarter")
_GOLDEN = (1 + 5**0.5) / 2
# Six axes, through the corners of an icosahedron: every view is within 37.4° of one, from either side.
_AXES = torch.tensor(
    [[0, 1, _GOLDEN], [0, -1, _GOLDEN], [1, _GOLDEN, 0], [-1, _GOLDEN, 0], [_GOLDEN, 0, 1], [_GOLDEN, 0, -1]]
) / math.hypot(1, _GOLDEN)


@dataclass(frozen=True)
class Coverage:
    """Of some particles: how many errors are within what their posteriors say.

    Parameters
    ----------
    count
        Of particles.
    shares
        Of them within the angle that the posterior says holds the truth with each probability of `LEVELS`.
    expected_rad, found_rad
        Root mean squares of the stated errors and of those found.
    """

    count: int
    shares: tuple[float, ...]
    expected_rad: float
    found_rad: float


@dataclass(frozen=True)
class CalibrationCard:
    """What `calibration_card` finds.

    Parameters
    ----------
    coverage
        By name: all particles, quarters by the stated error, cones of views, and the groups that were given.
    pit
        Shares of the particles whose error lies in each tenth of its posterior, from the middle outwards
        (probability integral transform): each 0.1 where posteriors are true.
    mean_log_density
        Of the true orientations under their posteriors, relative to a uniform density.
    rank_correlation
        Spearman's, of stated and found errors; not a number where either are all alike.
    risk
        Median error in radians of the surest share of the particles, by share.
    brier, calibration_error
        Of the probability to be within `NEAR_DEG`: mean square of its difference to what happened, and the
        mean difference of the two in tenths of the particles.
    """

    coverage: Mapping[str, Coverage]
    pit: tuple[float, ...]
    mean_log_density: float
    rank_correlation: float
    risk: Mapping[float, float]
    brier: float
    calibration_error: float

    @property
    def levels(self) -> tuple[float, ...]:
        """Probabilities of the shares in ``coverage``."""
        return LEVELS

    def worst_of(self, kind: str) -> str | None:
        """Of the names that begin with ``kind`` that of the lowest coverage at 90 %; None without any."""
        found = {name: one.shares[LEVELS.index(0.9)] for name, one in self.coverage.items()}
        return min((name for name in found if name.startswith(kind)), key=found.__getitem__, default=None)

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, as JSON takes them; cones too, which are many."""
        numbers = asdict(self)
        numbers["coverage"] = {name: asdict(one) for name, one in self.coverage.items()}
        numbers["risk"] = {f"{share:g}": error for share, error in self.risk.items()}
        if math.isnan(self.rank_correlation):  # which JSON has no word for
            numbers["rank_correlation"] = None
        return numbers | {"levels": list(LEVELS)}


def calibration_card(
    predictions: Predictions,
    truth: Float[Tensor, "n 4"],
    symmetry: str = "C1",
    groups: Mapping[str, Bool[Tensor, " n"]] | None = None,
) -> CalibrationCard:
    """Stated against found errors of particles whose orientations are known.

    Parameters
    ----------
    predictions
        n of them; each posterior is about its own mode, and of equivalent orientations the nearest counts.
    truth
        Unit quaternions.
    symmetry
        Point group of the molecule.
    groups
        Further groups of particles by name, such as optics groups; those below `LEAST_COUNT` are left out.
    """
    posterior, expected = predictions.posterior, predictions.expected_error_rad
    group = symmetry_group(symmetry)
    errors = symmetric_distance(posterior.mode, truth, group)
    near = torch.full_like(errors, math.radians(NEAR_DEG))
    probability, stated = angle_probability(posterior.dispersion, torch.stack([errors, near], 1)).unbind(1)
    parts = {"all": torch.ones_like(errors, dtype=torch.bool)}
    parts |= _quarters(expected) | _cones(truth) | dict(groups or {})
    happened = (errors <= near).float()
    tenths = torch.arange(len(errors)).tensor_split(min(10, len(errors)))
    order = stated.argsort()
    gaps = [(stated[order[rows]].mean() - happened[order[rows]].mean()).abs() * len(rows) for rows in tenths]
    surest = expected.argsort(stable=True)
    nearest = nearest_equivalent(truth, posterior.mode, group)
    return CalibrationCard(
        coverage={
            name: _coverage(probability[rows], expected[rows], errors[rows])
            for name, rows in parts.items()
            if name == "all" or int(rows.sum()) >= LEAST_COUNT
        },
        pit=tuple((torch.histc(probability, PIT_BINS, 0, 1) / len(errors)).tolist()),
        mean_log_density=float(posterior.log_density(nearest).mean()),
        rank_correlation=_rank_correlation(expected, errors),
        risk={share: _median_of_first(errors[surest], share) for share in SHARES},
        brier=float((stated - happened).square().mean()),
        calibration_error=float(torch.stack(gaps).sum() / len(errors)),
    )


def _coverage(probability: Tensor, expected: Tensor, errors: Tensor) -> Coverage:
    shares = tuple(float((probability <= level).float().mean()) for level in LEVELS)
    root_mean_squares = (float(values.double().square().mean().sqrt()) for values in (expected, errors))
    return Coverage(len(errors), shares, *root_mean_squares)


def _median_of_first(errors: Tensor, share: float) -> float:
    return float(errors[: max(1, round(share * len(errors)))].median())


def _quarters(expected: Tensor) -> dict[str, Tensor]:
    rank = expected.argsort(stable=True).argsort()
    return {name: rank * 4 // len(rank) == number for number, name in enumerate(_QUARTERS)}


def _cones(quaternions: Tensor) -> dict[str, Tensor]:
    """By the axis of `_AXES` that a particle is seen along most nearly."""
    views = unitquat_to_rotmat(quaternions)[:, :, 2]
    nearest = (views @ _AXES.T.to(views)).abs().argmax(1)
    return {f"view cone {number + 1}": nearest == number for number in range(len(_AXES))}


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    if len(one) < 2 or one.min() == one.max() or other.min() == other.max():
        return math.nan
    from scipy.stats import spearmanr  # takes a while: on first use

    return float(spearmanr(one.numpy(), other.numpy()).statistic)
