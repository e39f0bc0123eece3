"""From particles to poses at the limit of their noise: candidates, then polishing, batch by batch.

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
    Polished,
    PolishingConfig,
    image_belief,
    orientation_covariance,
    origin_covariance_pixel2,
    polish,
    rms_error_rad,
)
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import ImageEvidence, Predictions, joined_predictions
from cryoforum.imaging.likelihood import FrequencyPoints, WhitenedImages
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import VIEWS, network_numbers, predict_batch

CandidateSource = Literal["network", "search", "both"]
ALL_AT_ONCE = PolishingConfig(stage_shells=(), stage_survivors=())
SCALE_RANGE = 0.3, 3.0  # beyond, an image is junk and its strength means nothing
DEFOCUS_ROUNDS = 2  # poses and defocus in turn: they hardly depend on each other


@dataclass(frozen=True)
class PosingConfig:
    """source: where candidates come from; None: network and search, the search alone where there is no model.
    max_shift_pixel: how far origins are looked for along x and y; None: as far as those of the reference's
        own particles were off, at least 3.
    refine_defocus, refine_scale: look for each particle's own defocus, and polish it at its own strength.
    views: turned and mirrored copies of each image that the network reads where its word is final; None: as
        it learned.
    """

    source: CandidateSource | None = None
    max_shift_pixel: float | None = None
    refine_defocus: bool = False
    refine_scale: bool = False
    views: int | None = None
    search: SearchConfig = field(default_factory=SearchConfig)
    polishing: PolishingConfig = field(default_factory=PolishingConfig)

    def __post_init__(self) -> None:
        if self.source is not None and self.source not in get_args(CandidateSource):
            known = ", ".join(get_args(CandidateSource))
            raise ValueError(f"expected --candidates {known}, found '{self.source}'")
        if self.views is not None and self.views not in VIEWS:
            raise ValueError(f"expected --views {', '.join(map(str, VIEWS))}, found {self.views}")


@dataclass(frozen=True)
class Poser:
    """All that posing a batch needs.

    transforms and templates: of the reference of all particles, or of each half's where halves are kept
    apart. features: `Head.features` of the templates' rotations, empty without a model. points:
    frequencies in use.
    """

    model: TrainedModel | None
    config: PosingConfig
    noise: NoiseModel
    points: FrequencyPoints
    transforms: tuple[Tensor, ...]
    templates: tuple[Templates, ...]
    features: Tensor

    def reference_of(self, particles: Particles) -> Tensor:
        """Which of the transforms each particle is compared with, (n,)."""
        if len(self.transforms) == 1 or particles.subsets is None:
            return torch.zeros(len(particles), dtype=torch.long)
        return particles.subsets - 1


def pose_in_batches(poser: Poser, particles: Particles, batch_size: int) -> Iterator[Predictions]:
    """Polished predictions of consecutive particles; only two batches of images are in memory."""
    for batch in loaded_batches(particles, batch_size):
        yield pose_batch(poser, batch)


def pose_batch(poser: Poser, batch: Particles) -> Predictions:
    """Candidates of each particle, polished against its reference."""
    images = poser.noise.whiten(batch, torch.arange(len(batch)), poser.points)
    numbers = None
    if poser.model is not None and poser.config.source != "search":
        numbers = network_numbers(poser.model, batch)
    which = poser.reference_of(batch)
    parts, order = [], []
    for half in range(len(poser.transforms)):
        rows = (which == half).nonzero()[:, 0]
        if not len(rows):
            continue
        own, change = images[rows], torch.zeros(len(rows))
        polished = _polished(poser, half, own, None if numbers is None else numbers[rows])
        if poser.config.refine_defocus:
            polished, own, change = _refocused(poser, half, batch.select(rows), own, polished)
        if poser.config.refine_scale:
            polished = _rescaled(poser.transforms[half], own, polished)
        reference_half = half + 1 if len(poser.transforms) > 1 else 0
        parts.append(_predictions(polished, batch.pixel_size_angstrom, reference_half, change))
        order.append(rows)
    return joined_predictions(parts)[torch.argsort(torch.cat(order))]


def _refocused(
    poser: Poser, half: int, batch: Particles, images: WhitenedImages, polished: Polished
) -> tuple[Polished, WhitenedImages, Tensor]:
    """Poses and defocus in turn: each particle and its image at its own defocus, and the change (n,)."""
    if batch.optics is None:
        raise ValueError("expected particles with CTF parameters to refine their defocus, found none")
    transform, rows = poser.transforms[half], torch.arange(len(batch))
    weight, pixel_size = poser.noise.weight(batch, poser.points), batch.pixel_size_angstrom
    own, change = images, torch.zeros(len(batch))
    for _ in range(DEFOCUS_ROUNDS):
        pose = polished.quaternions, polished.origins_pixel
        change = defocus_change(transform, images, weight, batch.optics, pixel_size, *pose)
        refocused = replace(batch, optics=batch.optics.defocused_by(change))
        own = poser.noise.whiten(refocused, rows, poser.points)
        polished = _polished_again(transform, own, polished)
    return polished, own, change


def _rescaled(transform: Tensor, images: WhitenedImages, polished: Polished) -> Polished:
    """Each particle polished once more at its own strength."""
    scale = polished.signal_scale.clamp(*SCALE_RANGE)
    own = replace(images, transfer=scale[:, None] * images.transfer)
    better = _polished_again(transform, own, polished)
    return replace(
        better,
        signal_scale=scale * better.signal_scale,
        information=better.information / scale.double().square()[:, None, None],
    )


def _polished_again(transform: Tensor, images: WhitenedImages, polished: Polished) -> Polished:
    """From where it is, with all frequencies at once; what is known of other modes stays."""
    start = polished.quaternions[:, None], polished.origins_pixel[:, None]
    return replace(
        polish(transform, images, *start, ALL_AT_ONCE),
        mode_probability=polished.mode_probability,
        other_modes_moment=polished.other_modes_moment,
    )


def _polished(poser: Poser, half: int, images: WhitenedImages, numbers: Tensor | None) -> Polished:
    templates, transform = poser.templates[half], poser.transforms[half]
    density = torch.zeros(len(images), len(templates.rotations))
    if poser.model is not None and numbers is not None:
        density = poser.model.sharpness * poser.model.head.log_density(numbers, poser.features)
    if poser.config.source != "network" or numbers is None:
        density = density + log_likelihood_on_grid(templates, images)
    starts = candidates(templates, images, density)
    return polish(
        transform,
        images,
        starts.quaternions,
        starts.origins_pixel,
        poser.config.polishing,
        plausible=starts.plausible,
        symmetry=templates.symmetry,
    )


def _predictions(
    polished: Polished, pixel_size_angstrom: float, reference_half: int, defocus_change_angstrom: Tensor
) -> Predictions:
    """The belief is that of the image alone; the network's has already chosen where to look.

    The expected error counts the mode itself, at the strength the particle has in its image, and the
    chance that another mode is the true one.
    """
    covariance = orientation_covariance(polished.information)
    bound = rms_error_rad(covariance)
    own = bound / polished.signal_scale.clamp(0.05, 1.0)
    probability = polished.mode_probability
    elsewhere = 2 * torch.acos(polished.other_modes_moment.clamp(0, 1).sqrt())
    expected = (probability * own.square() + (1 - probability) * elsewhere.square()).sqrt()
    return Predictions(
        belief=image_belief(polished),
        expected_error_rad=expected.clamp_max(torch.pi),
        shifts_angstrom=polished.origins_pixel * pixel_size_angstrom,
        evidence=ImageEvidence(
            bound_rad=bound,
            origin_covariance_angstrom2=(
                origin_covariance_pixel2(polished.information).float() * pixel_size_angstrom**2
            ),
            log_likelihood_gain=polished.gain,
            signal_scale=polished.signal_scale,
            mode_probability=probability,
            reference_half=torch.full((len(bound),), reference_half),
            defocus_change_angstrom=defocus_change_angstrom,
        ),
    )


def predict_with_shifts(poser: Poser, batch: Particles) -> Predictions:
    """The network's orientations as they are, each with the shift at which the reference fits best."""
    if poser.model is None:
        raise ValueError("expected a model whose orientations to use, found none")
    predictions = predict_batch(poser.model, batch, poser.config.views)
    images = poser.noise.whiten(batch, torch.arange(len(batch)), poser.points)
    which = poser.reference_of(batch)
    origins = torch.zeros(len(batch), 2)
    for half, transform in enumerate(poser.transforms):
        own = which == half
        search = poser.templates[half].config
        origins[own] = best_origins(transform, images[own], predictions.belief.mode[own], search)
    return replace(predictions, shifts_angstrom=origins * batch.pixel_size_angstrom)
