"""Predictions: the pose of each particle, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.poses import Poses
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError, require
from cryoforum.fields.checks import floats, integers, of_kind, same_length, settle
from cryoforum.fields.rows import Rows, concatenate

if TYPE_CHECKING:
    import pandas as pd

    from cryoforum.dataset.particles import Particles


@dataclass(frozen=True)
class ImageEvidence(Rows):
    """What the comparison with a reference says of each particle, besides its pose.

    Parameters
    ----------
    bound_rad
        Cramér-Rao lower bound: the root mean square orientation error of the best unbiased estimate, from
        reference, CTF and noise, the origin being unknown, too.
    origin_covariance_angstrom2
        Of the origin: the smallest possible one, and what the noise of the reference adds.
    log_likelihood_gain
        Log-likelihood of the image over that of noise alone.
    signal_scale
        How strong the particle is in its image; about 1, and below 0.5 where none is likelier.
    mode_probability
        Probability of the pose's mode among all modes that were tried.
    reference_half
        The half (1 or 2) whose reference it was; 0 for the reference of all particles.
    defocus_change_angstrom
        By which the underfocus differs from the given one; 0 if not looked for.
    """

    bound_rad: Float[Tensor, " n"]
    origin_covariance_angstrom2: Float[Tensor, "n 2 2"]
    log_likelihood_gain: Float[Tensor, " n"]
    signal_scale: Float[Tensor, " n"]
    mode_probability: Float[Tensor, " n"]
    reference_half: Int[Tensor, " n"]
    defocus_change_angstrom: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        count = len(self.bound_rad)
        for entry in fields(self):
            further = (2, 2) if entry.name == "origin_covariance_angstrom2" else ()
            value = getattr(self, entry.name)
            if entry.name == "reference_half":
                found = integers(entry.name, value, count)
            else:  # what an image without contrast says may be infinite
                found = floats(entry.name, value, count, *further, finite=False)
            settle(self, **{entry.name: found})


@dataclass(frozen=True)
class Predictions(Rows):
    """A posterior of the orientation of each particle, and what comes with it.

    Parameters
    ----------
    posterior
        Of n particles; its modes are the orientations.
    expected_error_rad
        Root mean square orientation error that the posterior means.
    shifts_angstrom
        As in `Poses`; None where there was no reference to find them by.
    evidence
        None for the network alone.
    model_half
        The half (1 or 2) whose particles alone made the model and the reference that were used; 0 where a
        reference came from elsewhere; None where one model aligned both halves.
    class_number, class_probability
        The likeliest of several classes, counted from 1, and how sure that is; None where there was one map.

    Raises
    ------
    InputError
        For fields of unequal lengths, and values that are not finite.

    Notes
    -----
    ``predictions[index]`` takes a row, a slice, row numbers or a mask, and gives predictions.
    """

    posterior: OrientationPosterior
    expected_error_rad: Float[Tensor, " n"]
    shifts_angstrom: Float[Tensor, "n 2"] | None = None
    evidence: ImageEvidence | None = None
    model_half: Int[Tensor, " n"] | None = None
    class_number: Int[Tensor, " n"] | None = None
    class_probability: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        of_kind("posterior", self.posterior, OrientationPosterior)
        of_kind("evidence", self.evidence, ImageEvidence)
        count = len(self.posterior)
        expected = floats("expected_error_rad", self.expected_error_rad, count)
        require(
            bool((expected >= 0).all()),
            "expected_error_rad of 0 or more",
            float(expected.min()) if count else 0,
        )
        settle(self, expected_error_rad=expected)
        if self.shifts_angstrom is not None:
            settle(self, shifts_angstrom=floats("shifts_angstrom", self.shifts_angstrom, count, 2))
        for name in ("model_half", "class_number"):
            if (given := getattr(self, name)) is not None:
                settle(self, **{name: integers(name, given, count)})
        if self.class_probability is not None:
            settle(self, class_probability=floats("class_probability", self.class_probability, count))
        same_length("evidence", self.evidence, count)

    @property
    def poses(self) -> Poses:
        """Most probable poses; InputError where shifts are not known."""
        if self.shifts_angstrom is None:
            raise InputError("expected predictions with shifts, found none; predict them with a reference")
        return Poses(self.posterior.mode, self.shifts_angstrom)

    @property
    def figure_of_merit(self) -> Float[Tensor, " n"]:
        """1 / (1 + expected error in degrees): 1 where certain, 0.5 at 1°, 0.09 at 10°."""
        return 1 / (1 + torch.rad2deg(self.expected_error_rad))

    def __repr__(self) -> str:
        known = {"shifts": self.shifts_angstrom, "evidence of a reference": self.evidence}
        beside = "".join(f", with {name}" for name, values in known.items() if values is not None)
        if not len(self):
            return f"Predictions(0{beside})"
        median = float(torch.rad2deg(self.expected_error_rad).median())
        return f"Predictions({len(self)} of median expected error {median:.3g}°{beside})"

    def table(
        self, particles: "Particles | None" = None, truth: Poses | None = None, symmetry: str = "C1"
    ) -> "pd.DataFrame":
        """Poses and errors as numbers, a row a particle, in the columns of the files that are written.

        Parameters
        ----------
        particles
            Of these predictions, in order: adds their rlnImageName.
        truth
            True poses, in order: adds cryoforumErrorDeg, the angle to each, and, where shifts are known,
            cryoforumShiftErrorAngst.
        symmetry
            Point group: of equivalent true orientations the nearest counts.

        Returns
        -------
        DataFrame
            Angles and errors in degrees, origins in Å.

        Raises
        ------
        InputError
            Where there are not as many particles or true poses as predictions.
        """
        from cryoforum.dataset.number_tables import prediction_numbers  # pandas takes a while: on first use

        return prediction_numbers(self, particles, truth, symmetry)


def joined_predictions(batches: Sequence[Predictions]) -> Predictions:
    """The predictions of consecutive batches in one; all have the same fields."""
    return concatenate(batches)
