"""Keep the particles whose orientation is most certain (Cryo-forum, 3.6)."""

import torch
from torch import Tensor

from cryoforum.errors import InputError


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
