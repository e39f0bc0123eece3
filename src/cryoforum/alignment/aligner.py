"""From particles to poses at the limit of their noise: candidates, then local refinement, batch by batch.

Candidates come from the network, from the search over all orientations, or from both, whose log
densities add.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from cryoforum.alignment.defocus import defocus_change
from cryoforum.alignment.global_search import (
    SearchConfig,
    Templates,
    best_origins,
    candidates,
    log_likelihood_on_grid,
)
from cryoforum.alignment.local_refinement import (
    LocalRefinementConfig,
    RefinedPoses,
    image_posterior,
    orientation_covariance,
    origin_covariance_pixel2,
    refine_locally,
    rms_error_rad,
)
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import ImageEvidence, Predictions, joined_predictions
from cryoforum.errors import InputError
from cryoforum.imaging.fft import FrequencyPoints
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import TTA_COPIES, network_numbers, predict_batch

CandidateSource = Literal["network", "search", "both"]
ALL_AT_ONCE = LocalRefinementConfig(stage_shells=(), stage_survivors=())
SCALE_RANGE = 0.3, 3.0  # beyond, an image is junk and its strength means nothing
DEFOCUS_ROUNDS = 2  # poses and defocus in turn: they hardly depend on each other


@dataclass(frozen=True)
class AlignmentConfig:
    """source: where candidates come from; None: network and search, the search alone where there is no model.
    max_shift_pixel: how far origins are looked for along x and y; None: as far as those of the reference's
        own particles were off, at least 3.
    refine_defocus, refine_scale: look for each particle's own defocus, and refine it at its own strength.
    views: turned and mirrored copies of each image that the network reads where its word is final; None: as
        it learned.
    """

    source: CandidateSource | None = None
    max_shift_pixel: float | None = None
    refine_defocus: bool = False
    refine_scale: bool = False
    views: int | None = None
    search: SearchConfig = field(default_factory=SearchConfig)
    local_refinement: LocalRefinementConfig = field(default_factory=LocalRefinementConfig)

    def __post_init__(self) -> None:
        if self.source is not None and self.source not in get_args(CandidateSource):
            known = ", ".join(get_args(CandidateSource))
            raise InputError(f"expected --candidates {known}, found '{self.source}'")
        if self.views is not None and self.views not in TTA_COPIES:
            raise InputError(f"expected --views {', '.join(map(str, TTA_COPIES))}, found {self.views}")


@dataclass(frozen=True)
class Aligner:
    """All that posing a batch needs.

    transforms and templates: of the reference of all particles, or of each half's where halves are kept
    apart. features: `Head.features` of the templates' rotations, empty without a model. points:
    frequencies in use.
    """

    model: TrainedModel | None
    config: AlignmentConfig
    noise: NoiseModel
    points: FrequencyPoints
    transforms: tuple[Tensor, ...]
    templates: tuple[Templates, ...]
    features: Tensor

    def reference_of(self, particles: Particles) -> Tensor:
        """Which of the transforms each particle is compared with, (n,)."""
        if len(self.transforms) == 1 or particles.half_sets is None:
            return torch.zeros(len(particles), dtype=torch.long)
        return particles.half_sets - 1


def align_in_batches(aligner: Aligner, particles: Particles, batch_size: int) -> Iterator[Predictions]:
    """RefinedPoses predictions of consecutive particles; only two batches of images are in memory."""
    for batch in loaded_batches(particles, batch_size):
        yield align_batch(aligner, batch)


def align_batch(aligner: Aligner, batch: Particles) -> Predictions:
    """Candidates of each particle, refined against its reference."""
    images = aligner.noise.whiten(batch, torch.arange(len(batch)), aligner.points)
    numbers = None
    if aligner.model is not None and aligner.config.source != "search":
        numbers = network_numbers(aligner.model, batch)
    which = aligner.reference_of(batch)
    parts, order = [], []
    for half in range(len(aligner.transforms)):
        rows = (which == half).nonzero()[:, 0]
        if not len(rows):
            continue
        own, change = images[rows], torch.zeros(len(rows))
        refined = _refined(aligner, half, own, None if numbers is None else numbers[rows])
        if aligner.config.refine_defocus:
            refined, own, change = _refocused(aligner, half, batch.select(rows), own, refined)
        if aligner.config.refine_scale:
            refined = _rescaled(aligner.transforms[half], own, refined)
        reference_half = half + 1 if len(aligner.transforms) > 1 else 0
        parts.append(_predictions(refined, batch.pixel_size_angstrom, reference_half, change))
        order.append(rows)
    return joined_predictions(parts)[torch.argsort(torch.cat(order))]


def _refocused(
    aligner: Aligner, half: int, batch: Particles, images: WhitenedImages, refined: RefinedPoses
) -> tuple[RefinedPoses, WhitenedImages, Tensor]:
    """Poses and defocus in turn: each particle and its image at its own defocus, and the change (n,)."""
    if batch.ctf is None:
        raise InputError("expected particles with CTF parameters to refine their defocus, found none")
    transform, rows = aligner.transforms[half], torch.arange(len(batch))
    weight, pixel_size = aligner.noise.weight(batch, aligner.points), batch.pixel_size_angstrom
    own, change = images, torch.zeros(len(batch))
    for _ in range(DEFOCUS_ROUNDS):
        pose = refined.quaternions, refined.origins_pixel
        change = defocus_change(transform, images, weight, batch.ctf, pixel_size, *pose)
        refocused = replace(batch, ctf=batch.ctf.defocused_by(change))
        own = aligner.noise.whiten(refocused, rows, aligner.points)
        refined = _refined_again(transform, own, refined)
    return refined, own, change


def _rescaled(transform: Tensor, images: WhitenedImages, refined: RefinedPoses) -> RefinedPoses:
    """Each particle refined once more at its own strength."""
    scale = refined.signal_scale.clamp(*SCALE_RANGE)
    own = replace(images, transfer=scale[:, None] * images.transfer)
    better = _refined_again(transform, own, refined)
    return replace(
        better,
        signal_scale=scale * better.signal_scale,
        information=better.information / scale.double().square()[:, None, None],
    )


def _refined_again(transform: Tensor, images: WhitenedImages, refined: RefinedPoses) -> RefinedPoses:
    """From where it is, with all frequencies at once; what is known of other modes stays."""
    start = refined.quaternions[:, None], refined.origins_pixel[:, None]
    return replace(
        refine_locally(transform, images, *start, ALL_AT_ONCE),
        mode_probability=refined.mode_probability,
        other_modes_moment=refined.other_modes_moment,
    )


def _refined(aligner: Aligner, half: int, images: WhitenedImages, numbers: Tensor | None) -> RefinedPoses:
    templates, transform = aligner.templates[half], aligner.transforms[half]
    density = torch.zeros(len(images), len(templates.rotations))
    if aligner.model is not None and numbers is not None:
        density = aligner.model.sharpness * aligner.model.head.log_density(numbers, aligner.features)
    if aligner.config.source != "network" or numbers is None:
        density = density + log_likelihood_on_grid(templates, images)
    starts = candidates(templates, images, density)
    return refine_locally(
        transform,
        images,
        starts.quaternions,
        starts.origins_pixel,
        aligner.config.local_refinement,
        plausible=starts.plausible,
        symmetry=templates.symmetry,
    )


def _predictions(
    refined: RefinedPoses, pixel_size_angstrom: float, reference_half: int, defocus_change_angstrom: Tensor
) -> Predictions:
    """The belief is that of the image alone; the network's has already chosen where to look.

    The expected error counts the mode itself, at the strength the particle has in its image, and the
    chance that another mode is the true one.
    """
    covariance = orientation_covariance(refined.information)
    bound = rms_error_rad(covariance)
    own = bound / refined.signal_scale.clamp(0.05, 1.0)
    probability = refined.mode_probability
    elsewhere = 2 * torch.acos(refined.other_modes_moment.clamp(0, 1).sqrt())
    expected = (probability * own.square() + (1 - probability) * elsewhere.square()).sqrt()
    return Predictions(
        posterior=image_posterior(refined),
        expected_error_rad=expected.clamp_max(torch.pi),
        shifts_angstrom=refined.origins_pixel * pixel_size_angstrom,
        evidence=ImageEvidence(
            bound_rad=bound,
            origin_covariance_angstrom2=(
                origin_covariance_pixel2(refined.information).float() * pixel_size_angstrom**2
            ),
            log_likelihood_gain=refined.gain,
            signal_scale=refined.signal_scale,
            mode_probability=probability,
            reference_half=torch.full((len(bound),), reference_half),
            defocus_change_angstrom=defocus_change_angstrom,
        ),
    )


def predict_with_shifts(aligner: Aligner, batch: Particles) -> Predictions:
    """The network's orientations as they are, each with the shift at which the reference fits best."""
    if aligner.model is None:
        raise InputError("expected a model whose orientations to use, found none")
    predictions = predict_batch(aligner.model, batch, aligner.config.views)
    images = aligner.noise.whiten(batch, torch.arange(len(batch)), aligner.points)
    which = aligner.reference_of(batch)
    origins = torch.zeros(len(batch), 2)
    for half, transform in enumerate(aligner.transforms):
        own = which == half
        search = aligner.templates[half].config
        origins[own] = best_origins(transform, images[own], predictions.posterior.mode[own], search)
    return replace(predictions, shifts_angstrom=origins * batch.pixel_size_angstrom)
