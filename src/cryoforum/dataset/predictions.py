"""What is said of each particle's pose, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cryoforum.dataset.poses import Poses
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError


@dataclass(frozen=True)
class ImageEvidence:
    """What the comparison with a reference says of each particle, besides its pose.

    bound_rad: (n,) Cramér-Rao bound: the root mean square orientation error of the best unbiased estimate,
        from reference, CTF and noise, the origin being unknown, too.
    origin_covariance_angstrom2: (n, 2, 2). log_likelihood_gain: (n,) over noise alone.
    signal_scale: (n,) how strong the particle is in its image; about 1, and near 0 for junk.
    mode_probability: (n,) that of the pose's mode among all modes that were tried.
    reference_half: (n,) int, the half (1 or 2) whose reference it was; 0 for that of all particles.
    defocus_change_angstrom: (n,) by which the underfocus differs from what was given; 0 if not looked for.
    """

    bound_rad: Tensor
    origin_covariance_angstrom2: Tensor
    log_likelihood_gain: Tensor
    signal_scale: Tensor
    mode_probability: Tensor
    reference_half: Tensor
    defocus_change_angstrom: Tensor


@dataclass(frozen=True)
class Predictions:
    """What is believed of each particle.

    belief: (n,) orientation beliefs; their modes are the orientations.
    expected_error_rad: (n,) root mean square orientation error that the belief means.
    shifts_angstrom: (n, 2) as in `Poses`; None where there was no reference to find them by.
    evidence: None for the network alone.
    model_half: (n,) int, the half (1 or 2) whose particles alone made the model and the reference that were
        used; 0 where a reference came from elsewhere; None where one model posed both halves.
    """

    posterior: OrientationPosterior
    expected_error_rad: Tensor
    shifts_angstrom: Tensor | None = None
    evidence: ImageEvidence | None = None
    model_half: Tensor | None = None

    def __len__(self) -> int:
        return len(self.posterior)

    def __getitem__(self, rows: Tensor) -> "Predictions":
        evidence = self.evidence
        return Predictions(
            OrientationPosterior(self.posterior.concentration[rows]),
            self.expected_error_rad[rows],
            None if self.shifts_angstrom is None else self.shifts_angstrom[rows],
            None if evidence is None else ImageEvidence(**{k: v[rows] for k, v in vars(evidence).items()}),
            None if self.model_half is None else self.model_half[rows],
        )

    @property
    def poses(self) -> Poses:
        """Most probable poses; InputError where shifts are not known."""
        if self.shifts_angstrom is None:
            raise InputError("expected predictions with shifts, found none; predict them with a reference")
        return Poses(self.posterior.mode, self.shifts_angstrom)

    @property
    def figure_of_merit(self) -> Tensor:
        """cos² of half the expected error, (n,): 1 where certain."""
        return torch.cos(self.expected_error_rad / 2).square()


def joined_predictions(batches: Sequence[Predictions]) -> Predictions:
    """The predictions of consecutive batches in one; all have the same fields."""
    shifts = [batch.shifts_angstrom for batch in batches if batch.shifts_angstrom is not None]
    evidence = [batch.evidence for batch in batches if batch.evidence is not None]
    halves = [batch.model_half for batch in batches if batch.model_half is not None]
    return Predictions(
        posterior=OrientationPosterior(torch.cat([batch.posterior.concentration for batch in batches])),
        expected_error_rad=torch.cat([batch.expected_error_rad for batch in batches]),
        shifts_angstrom=torch.cat(shifts) if shifts else None,
        evidence=_joined_evidence(evidence) if evidence else None,
        model_half=torch.cat(halves) if halves else None,
    )


def _joined_evidence(parts: Sequence[ImageEvidence]) -> ImageEvidence:
    return ImageEvidence(
        **{
            entry.name: torch.cat([getattr(part, entry.name) for part in parts])
            for entry in fields(ImageEvidence)
        }
    )
