"""Keep the particles whose orientation is most certain (Cryo-forum, 3.6)."""

import math

import torch
from torch import Tensor

from cryoforum.errors import InputError

LEAST_GAP = 3.0  # ratio of the medians of two populations of errors that are told apart
LEAST_PERCENT = 2.0  # a smaller number above 1 is neither a share nor plainly per cent


def share_of(keep: float) -> float:
    """A share of 1 as it is, and 2 to 100 as per cent. InputError for anything else."""
    if LEAST_PERCENT <= keep <= 100:
        return keep / 100
    if not 0 < keep <= 1:
        raise InputError(
            f"expected a share to keep above 0 and at most 1, or 2 to 100 for per cent, found {keep:g}"
        )
    return keep


def knee(uncertainty: Tensor) -> float | None:
    """Where positive ``uncertainty`` (n,) parts into a sure and an unsure population; None where it is one.

    The threshold parts the logarithms into two classes whose means are as far apart as possible (Otsu 1979).
    """
    values = uncertainty.double().clamp_min(1e-6).log().sort().values
    count = len(values)
    if count < 4:
        return None
    below = torch.arange(1, count)
    sums = values.cumsum(0)
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (count - below)
    cut = int((below * (count - below) * (upper - lower).square()).argmax()) + 1
    if float(values[cut:].median() - values[:cut].median()) < math.log(LEAST_GAP):
        return None
    return math.exp(float(values[cut - 1]))


def select(uncertainty: Tensor, keep: float) -> Tensor:
    """Rows, ascending, of the share ``keep`` in (0, 1] with the smallest ``uncertainty`` (n,).

    The statistics of eq. 6 and 7 are such uncertainties: Λ is ≤ 0, and the more negative the surer.
    At least one particle is kept; among equal values the first come first.
    """
    if not 0 < keep <= 1:
        raise InputError(f"expected a share to keep above 0 and at most 1, found {keep}")
    if not torch.isfinite(uncertainty).all():
        row = int((~torch.isfinite(uncertainty)).nonzero()[0])
        raise InputError(f"expected finite uncertainties, found {uncertainty[row]} in row {row + 1}")
    count = max(1, round(keep * len(uncertainty)))
    return torch.argsort(uncertainty, stable=True)[:count].sort().values


def quantile_threshold(uncertainty: Tensor, keep: float) -> float:
    """The ``uncertainty`` that the share ``keep`` in (0, 1] of some particles (n,) does not exceed.

    Taken from particles that are known to be good, it says of others how many are as sure (Cryo-forum, 3.6).
    """
    return float(uncertainty[select(uncertainty, keep)].max())
