"""What is written of predictions, as columns."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryoforum.dataset import columns as c
from cryoforum.dataset.predictions import ImageEvidence, Predictions


def _evidence(read: Callable[[ImageEvidence], Tensor]) -> Callable[[Predictions], Tensor | None]:
    return lambda found: None if found.evidence is None else read(found.evidence)


def _element(row: int, column: int) -> Callable[[Predictions], Tensor | None]:
    return lambda found: found.posterior.concentration[:, row, column]


def _origin_error(evidence: ImageEvidence) -> Tensor:
    return evidence.origin_covariance_angstrom2.diagonal(dim1=1, dim2=2).sum(1).sqrt()


# Numbers (n,) by column, or None where predictions do not say it. Errors are root
# mean squares: the one that the posterior means and, where the image was compared with a reference, the
# Cramér-Rao lower bound. Another entry is another column, as of a junk score.
COLUMNS: dict[str, Callable[[Predictions], Tensor | None]] = {
    c.LAMBDA_MAX: lambda found: found.posterior.lambda_max,
    c.TRACE: lambda found: found.posterior.trace,
    **{c.concentration_column(i, j): _element(i, j) for i in range(4) for j in range(i, 4)},
    c.EXPECTED_ERROR: lambda found: torch.rad2deg(found.expected_error_rad),
    c.FIGURE_OF_MERIT: lambda found: found.figure_of_merit,
    c.MODEL_HALF: lambda found: found.model_half,
    c.CLASS_NUMBER: lambda found: found.class_number,
    c.CLASS_PROBABILITY: lambda found: found.class_probability,
    c.CRAMER_RAO_BOUND: _evidence(lambda evidence: torch.rad2deg(evidence.bound_rad)),
    c.ORIGIN_ERROR: _evidence(_origin_error),
    c.LOG_LIKELIHOOD_GAIN: _evidence(lambda evidence: evidence.log_likelihood_gain),
    c.SIGNAL_SCALE: _evidence(lambda evidence: evidence.signal_scale),
    c.MODE_PROBABILITY: _evidence(lambda evidence: evidence.mode_probability),
    c.REFERENCE_HALF: _evidence(lambda evidence: evidence.reference_half),
    c.DEFOCUS_CHANGE: _evidence(lambda evidence: evidence.defocus_change_angstrom),
}
