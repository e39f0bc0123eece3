"""Poses beside the limit that the noise of their images sets."""

from functools import partial

import numpy as np
from scipy.special import gammainc

from cryoforum.errors import InputError
from cryoforum.report import figures
from cryoforum.report.inputs import ORIGIN_BOUND, PredictedPoses
from cryoforum.report.layout import Exhibit, Panel, Section
from cryoforum.report.wording import degrees

MEDIAN_OF_THE_BEST = 0.89  # of Maxwell's distribution with rms 1


def limit_section(predictions: PredictedPoses | None) -> Section | None:
    """Errors beside the Cramér-Rao bound of each image, and what the images say without a truth."""
    if predictions is None or predictions.bound_rad is None:
        return None
    exhibits = [_limit_exhibit(predictions, predictions.bound_rad)] if predictions.true_poses else []
    exhibits.append(_evidence_exhibit(predictions, predictions.bound_rad))
    text = (
        "The Cramér-Rao bound is the root mean square error of the best unbiased estimate that an image "
        "allows: how much its signal would change if the particle turned, measured by its noise, where the "
        "origin is unknown, too. It follows from reference map, CTF and noise alone, without the truth. Its "
        f"median is {degrees(float(np.median(predictions.bound_rad)))} here. As it is a root mean square, "
        f"half the errors of a perfect estimator are below {MEDIAN_OF_THE_BEST} of it: their three "
        "components are normally distributed, and the length of such a vector follows Maxwell's "
        "distribution where all rotations are known equally well."
    )
    return Section("limit", "Poses at the limit of the noise", text, tuple(exhibits))


def _limit_exhibit(predictions: PredictedPoses, bound_rad: np.ndarray) -> Exhibit:
    """With a truth: error against bound, their ratio, and shifts, each beside a perfect estimator."""
    errors, network = predictions.errors_rad, predictions.network_errors_rad
    shifts, network_shifts = predictions.shift_errors_angstrom, predictions.network_shift_errors_angstrom
    if errors is None or shifts is None:
        raise InputError("expected poses beside the truth, found none")
    ratios = {
        "network alone": None if network is None else network / bound_rad,
        "refined": errors / bound_rad,
    }
    shift_errors = {"network alone": network_shifts, "refined": shifts}
    origin_bound = predictions.columns.get(ORIGIN_BOUND)
    best_shift = None if origin_bound is None else partial(shift_distribution, rms_angstrom=origin_bound)
    panels = (
        Panel("Error against bound", figures.error_against_bound(bound_rad, errors, network)),
        Panel("Error ÷ bound", figures.against_the_best(ratios, ratio_distribution, "error ÷ bound")),
        Panel("Shift errors", figures.against_the_best(shift_errors, best_shift, "shift error", " Å")),
    )
    caption = (
        "Every particle beside the bound of its own image. Dashed: where error and bound are equal, and the "
        "distributions of a perfect estimator, Maxwell's for error ÷ bound; shifts have two components and "
        "bounds of their own. Errors of refined poses right of the dashed curve mean that the reference is not yet "
        "the molecule, or that CTF, pixel size or noise are not those of the images; errors left of it, that "
        "the noise was taken for too strong; a second hump far to the right, particles that were refined "
        "from a wrong start."
    )
    return Exhibit(panels, caption, columns=3)


def ratio_distribution(ratio: np.ndarray) -> np.ndarray:
    """Cumulative distribution (k,) of a perfect estimator's error / bound: Maxwell's, of rms 1."""
    return gammainc(1.5, 1.5 * np.square(ratio))


def shift_distribution(error_angstrom: np.ndarray, rms_angstrom: np.ndarray) -> np.ndarray:
    """Cumulative distribution (k,) of shift errors, each normal along x and y; of rms (n,), mixed."""
    return np.array([1 - np.exp(-np.square(error / rms_angstrom)).mean() for error in error_angstrom])


def _evidence_exhibit(predictions: PredictedPoses, bound_rad: np.ndarray) -> Exhibit:
    """What is known of the particles where no truth is."""
    columns = predictions.columns
    expected_deg = columns.get("cryoforumExpectedErrorDeg")
    widths = {"expected error": expected_deg, "bound": np.rad2deg(bound_rad)}
    panels = [Panel("Bound and expected error", figures.against_the_best(widths, None, "angle", "°"))]
    caption = (
        "What can be seen without a truth. The bound takes every particle for as strong as the reference; "
        "the expected error counts how strong it is in its image, and the chance that another orientation "
        "is the true one. Where it reaches far beyond the bounds, poses are ambiguous."
    )
    origin_bound = columns.get(ORIGIN_BOUND)
    if origin_bound is not None:
        drawn = figures.against_the_best({"bound": origin_bound}, None, "bound of the shift error", " Å")
        panels.append(Panel("Bound of the shift error", drawn))
    scale, gain = columns.get("cryoforumSignalScale"), columns.get("cryoforumLogLikelihoodGain")
    if scale is not None and gain is not None:
        panels.append(Panel("Signal scale", figures.signal_against_gain(scale, gain)))
        caption += (
            " Signal scale is that strength: 1 (dashed) where an image holds the reference as strongly as "
            "expected. Near 0 an image holds nothing of the molecule and its pose means nothing: ice, "
            "contamination, another particle. All in one cloud about 1 is as it should be; a whole cloud "
            "elsewhere is a reference on another scale, a second cloud nearer to 0 is junk."
        )
    return Exhibit(tuple(panels), caption, columns=len(panels))
