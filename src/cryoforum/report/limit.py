"""Pose errors compared with the Cramér-Rao lower bound, which the noise of the images sets."""

from functools import partial

import numpy as np
from scipy.special import gammainc

from cryoforum.dataset import columns as c
from cryoforum.report import figures
from cryoforum.report.inputs import PredictedPoses
from cryoforum.report.layout import Exhibit, Panel, Section
from cryoforum.report.wording import degrees

MEDIAN_OF_PERFECT_ESTIMATOR = 0.89  # median of Maxwell's distribution with rms 1


def limit_section(predictions: PredictedPoses | None) -> Section | None:
    """Errors beside the Cramér-Rao lower bound of each image, and quantities that need no true poses.

    None where no pose was refined.
    """
    if predictions is None or predictions.bound_rad is None:
        return None
    exhibits = [_limit_exhibit(predictions, predictions.bound_rad)] if predictions.true_poses else []
    exhibits.append(_exhibit_without_truth(predictions, predictions.bound_rad))
    median = degrees(float(np.median(predictions.bound_rad)))
    text = (
        "The Cramér-Rao lower bound is the root mean square error of the best unbiased estimate that an "
        "image allows: how much its signal would change if the particle turned, measured by its noise, with "
        "the origin unknown, too. It follows from reference map, CTF and noise alone, without the true "
        f"poses. Its median is {median} here. As it is a root mean square, half the errors of a perfect "
        f"estimator are below {MEDIAN_OF_PERFECT_ESTIMATOR} of it: their three components are normally "
        "distributed, and the length of such a vector follows Maxwell's distribution where all rotations "
        "are known equally well."
    )
    return Section("limit", "Poses at the limit of the noise", text, exhibits)


def _limit_exhibit(predictions: PredictedPoses, bound_rad: np.ndarray) -> Exhibit:
    """With a truth: error against bound, their ratio, and shifts, each beside a perfect estimator."""
    named = {"network alone": predictions.network_poses, "refined": predictions.poses}
    known = {name: poses for name, poses in named.items() if poses is not None}
    errors = {name: predictions.errors_rad(poses) for name, poses in known.items()}
    shifts = {name: predictions.shift_errors_angstrom(poses) for name, poses in known.items()}
    ratios = {name: values / bound_rad for name, values in errors.items()}
    origin_error = predictions.columns.get(c.ORIGIN_ERROR)
    ideal = None if origin_error is None else partial(shift_distribution, rms_angstrom=origin_error)
    beside_ideal = figures.histograms(ratios, "error ÷ lower bound", ideal=ratio_distribution)
    panels = (
        Panel("Error against lower bound", figures.error_against_bound(bound_rad, errors)),
        Panel("Error ÷ lower bound", beside_ideal),
        Panel("Shift errors", figures.histograms(shifts, "shift error", " Å", ideal)),
    )
    caption = (
        "Every particle beside the Cramér-Rao lower bound of its own image. Dashed: the line where error and "
        "bound are equal, and the distributions of a perfect estimator, Maxwell's for error ÷ lower bound; "
        "shifts have two components and expected errors of their own. Errors of refined poses right of the "
        "dashed curve mean that the reference is not yet the molecule, or that CTF, pixel size or noise do "
        "not fit the images; errors left of it, that the noise was estimated too high; a second hump far to "
        "the right, particles that were refined from a wrong start."
    )
    return Exhibit(panels, caption, columns=3)


def ratio_distribution(ratio: np.ndarray) -> np.ndarray:
    """Cumulative distribution (k,) of error ÷ lower bound of a perfect estimator: Maxwell's, of rms 1."""
    return gammainc(1.5, 1.5 * np.square(ratio))


def shift_distribution(error_angstrom: np.ndarray, rms_angstrom: np.ndarray) -> np.ndarray:
    """Cumulative distribution (k,) of a perfect estimator's shift errors.

    Errors of each particle are normal along x and y; ``rms_angstrom`` (n,) is the expected one of each.
    """
    return np.array([1 - np.exp(-np.square(error / rms_angstrom)).mean() for error in error_angstrom])


def _exhibit_without_truth(predictions: PredictedPoses, bound_rad: np.ndarray) -> Exhibit:
    """Expected errors, lower bounds and signal scales, which need no true poses."""
    columns = predictions.columns
    widths = {"expected error": columns.get(c.EXPECTED_ERROR), "lower bound": np.rad2deg(bound_rad)}
    panels = [Panel("Lower bound and expected error", figures.histograms(widths, "angle", "°"))]
    caption = (
        "Quantities that need no true poses. The lower bound assumes that every particle is as strong as the "
        "reference, and that the reference is right; the expected error accounts for the particle's strength "
        "in the image, for the noise of the reference, and for the probability that "
        "another orientation is the true one. Where it is far above the lower bound, poses are ambiguous."
    )
    origin_error = columns.get(c.ORIGIN_ERROR)
    if origin_error is not None:
        drawn = figures.histograms({"expected": origin_error}, "expected error of the shift", " Å")
        panels.append(Panel("Expected error of the shift", drawn))
    scale, gain = columns.get(c.SIGNAL_SCALE), columns.get(c.LOG_LIKELIHOOD_GAIN)
    if scale is not None and gain is not None:
        panels.append(Panel("Signal scale", figures.signal_against_gain(scale, gain)))
        caption += (
            " The signal scale is the strength of a particle: 1 (dashed) where an image holds the reference "
            "as strongly as expected. Below 0.5 an image without the molecule is likelier, and its pose "
            "means nothing: ice, contamination, another particle. It is never 0, as the best match to noise "
            "fits a little. One cloud about 1 is as it should be; a whole cloud elsewhere is a reference on "
            "another scale, a second cloud below 0.5 is junk."
        )
    return Exhibit(panels, caption, columns=len(panels))
