"""From particles to poses at the limit of their noise: candidates, then polishing, batch by batch.

Candidates come from the network, from the search over all orientations, or from both, whose log
densities add. Noise and signal scale are measured on a sample of the particles at hand before the rest
is posed, so that other microscopes and other normalisations than those of the training are no matter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from cryoforum.bingham import OrientationBelief
from cryoforum.checkpoint import TrainedModel
from cryoforum.inference import network_numbers, predict_batch
from cryoforum.likelihood import FrequencyPoints, WhitenedImages, frequency_points
from cryoforum.matching import (
    SearchConfig,
    Templates,
    best_origins,
    candidates,
    log_likelihood_on_grid,
    make_templates,
)
from cryoforum.network.heads import log_density
from cryoforum.noise import (
    FEWEST_OF_A_GROUP,
    NoiseModel,
    background_noise,
    explained_share,
    measured_noise,
)
from cryoforum.particles import (
    ImageEvidence,
    Particles,
    Predictions,
    Volume,
    joined_predictions,
    loaded_batches,
)
from cryoforum.polishing import (
    Polished,
    PolishingConfig,
    image_belief,
    orientation_covariance,
    origin_covariance_pixel2,
    polish,
    rms_error_rad,
)
from cryoforum.projection import cropped_transform
from cryoforum.reference import Reference

CandidateSource = Literal["network", "search", "both"]
# Particles on which noise and scale are measured: an eighth of all, within these limits.
SMALLEST_SAMPLE, LARGEST_SAMPLE = 128, 512
# Median log-likelihood gain of a particle below which low frequencies do not single out its orientation:
# the coarse search then loses several per cent of the particles, the fine one few (benchmarks/limit.md).
FAINT_GAIN = 120.0
LEAST_EXPLAINED = 0.5  # share of the signal in the images below which a reference is doubtful
FINE_SEARCH = SearchConfig(nside=5, highest_frequency=14, candidates=32, separation_deg=14.0)
FINE_POLISHING = PolishingConfig(stage_shells=(14, 24), stage_survivors=(12, 4))
BATCH_SIZE = 256


@dataclass(frozen=True)
class PosingConfig:
    """source: where candidates come from; max_shift_pixel: how far origins may be off along x and y."""

    source: CandidateSource = "network"
    max_shift_pixel: float = 3.0
    search: SearchConfig = field(default_factory=SearchConfig)
    polishing: PolishingConfig = field(default_factory=PolishingConfig)

    def __post_init__(self) -> None:
        if self.source not in get_args(CandidateSource):
            known = ", ".join(get_args(CandidateSource))
            raise ValueError(f"expected --candidates {known}, found '{self.source}'")


@dataclass(frozen=True)
class Poser:
    """All that posing a batch needs.

    transforms and templates: of the reference of all particles, or of each half's where halves are kept
    apart. points: frequencies in use.
    """

    model: TrainedModel | None
    config: PosingConfig
    noise: NoiseModel
    points: FrequencyPoints
    transforms: tuple[Tensor, ...]
    templates: tuple[Templates, ...]

    def reference_of(self, particles: Particles) -> Tensor:
        """Which of the transforms each particle is compared with, (n,)."""
        if len(self.transforms) == 1 or particles.subsets is None:
            return torch.zeros(len(particles), dtype=torch.long)
        return particles.subsets - 1


def make_poser(
    model: TrainedModel | None,
    reference: Reference,
    particles: Particles,
    config: PosingConfig,
    *,
    halves: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Poser:
    """Templates of the reference, noise and scale of the particles.

    Parameters
    ----------
    model : None where candidates come from the search alone.
    reference : at the particles' box and pixel size.
    particles : all of them; the sample is spread evenly over them, so that every process finds the same.
    halves : whether each half set is compared with its own half's reference.
    tell : told, in one line each, what the user should know.
    """
    config = _within_reach(config, reference)
    transforms = _transforms(reference, particles, halves)
    rows = _sample(len(particles))
    background = background_noise(particles, rows, transforms[0], config.search.highest_frequency)
    poser = _unmeasured_poser(
        model, reference, transforms, reference.noise or background, particles.box, config
    )
    if len(rows) < FEWEST_OF_A_GROUP:
        return poser
    poser, found = _measured(poser, particles, rows, rounds=1 if reference.noise else 2)
    share = explained_share(poser.noise, background, config.search.highest_frequency)
    if share < LEAST_EXPLAINED:
        tell(_doubt(share, poser, reference, particles, rows, background))
    elif config.source != "network" and _are_faint(found):
        tell("the particles are faint: searching orientations on a finer grid, with more frequencies")
        fine = _within_reach(replace(config, search=FINE_SEARCH, polishing=FINE_POLISHING), reference)
        poser = _unmeasured_poser(model, reference, transforms, poser.noise, particles.box, fine)
    return poser


def _within_reach(config: PosingConfig, reference: Reference) -> PosingConfig:
    """The same, but searching no further than the reference shows."""
    highest = min(config.search.highest_frequency, reference.highest_frequency)
    return replace(config, search=replace(config.search, highest_frequency=highest))


def _transforms(reference: Reference, particles: Particles, halves: bool) -> tuple[Tensor, ...]:
    volumes: tuple[Volume, ...] = (reference.full,)
    if halves:
        if reference.halves is None or particles.subsets is None:
            raise ValueError("expected half sets and a reference of each half to keep them independent")
        volumes = reference.halves
    return tuple(cropped_transform(volume.voxels, reference.highest_frequency) for volume in volumes)


def _unmeasured_poser(
    model: TrainedModel | None,
    reference: Reference,
    transforms: tuple[Tensor, ...],
    noise: NoiseModel,
    box: int,
    config: PosingConfig,
) -> Poser:
    search = replace(config.search, max_shift_pixel=config.max_shift_pixel)
    templates = tuple(make_templates(transform, box, search, reference.symmetry) for transform in transforms)
    points = frequency_points(box, reference.highest_frequency)
    return Poser(model, config, noise, points, transforms, templates)


def _measured(poser: Poser, particles: Particles, rows: Tensor, rounds: int) -> tuple[Poser, Predictions]:
    """The poser with noise and scale as its own poses of a sample show them, and these poses."""
    sample = particles.select(rows)
    which = poser.reference_of(sample)
    highest_frequency = int(poser.points.radius[-1])
    for _ in range(rounds):
        found = joined_predictions(list(pose_in_batches(poser, sample, BATCH_SIZE)))
        noise = measured_noise(particles, rows, found.poses, poser.transforms, which, highest_frequency)
        poser = replace(poser, noise=noise)
    return poser, found


def _doubt(
    share: float,
    poser: Poser,
    reference: Reference,
    particles: Particles,
    rows: Tensor,
    background: NoiseModel,
) -> str:
    """What may be wrong where the reference does not explain the images."""
    found = f"the reference explains only {100 * max(share, 0):.0f} % of the signal in the images"
    if poser.model is None or poser.config.source == "search" or reference.halves is not None:
        return f"{found}: it may be another molecule, or the images' CTF or pixel size may be wrong"
    for axis in range(3):  # which plane a map was mirrored at nobody knows
        voxels = reference.full.voxels.flip(axis).roll(1, axis)  # voxel n // 2 stays
        other_hand = replace(reference, full=replace(reference.full, voxels=voxels))
        transforms = _transforms(other_hand, particles, halves=False)
        mirrored = _unmeasured_poser(
            poser.model, other_hand, transforms, background, particles.box, poser.config
        )
        mirrored, _ = _measured(mirrored, particles, rows, rounds=2)
        if (
            explained_share(mirrored.noise, background, poser.config.search.highest_frequency)
            > LEAST_EXPLAINED
        ):
            return f"{found}, but its mirror image fits: it is of the other hand than the model; mirror it"
    return (
        f"{found} at the model's orientations: it may be turned, or another molecule; "
        "leave out --reference, or search all orientations with --candidates search"
    )


def _sample(count: int) -> Tensor:
    """Rows spread evenly over ``count`` particles."""
    size = min(max(count // 8, SMALLEST_SAMPLE), LARGEST_SAMPLE, count)
    return torch.linspace(0, count - 1, size, dtype=torch.float64).round().long()


def _are_faint(found: Predictions) -> bool:
    return found.evidence is not None and bool(found.evidence.log_likelihood_gain.median() < FAINT_GAIN)


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
        if len(rows):
            own_numbers = None if numbers is None else numbers[rows]
            polished = _polished(poser, half, images[rows], own_numbers)
            reference_half = half + 1 if len(poser.transforms) > 1 else 0
            parts.append(_predictions(polished, batch.pixel_size_angstrom, reference_half))
            order.append(rows)
    return _picked(joined_predictions(parts), torch.argsort(torch.cat(order)))


def _polished(poser: Poser, half: int, images: WhitenedImages, numbers: Tensor | None) -> Polished:
    templates, transform = poser.templates[half], poser.transforms[half]
    density = torch.zeros(len(images), len(templates.rotations))
    if poser.model is not None and numbers is not None:
        config = poser.model.config
        density = log_density(numbers, config.network, config.symmetry, templates.rotations)
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


def _predictions(polished: Polished, pixel_size_angstrom: float, reference_half: int) -> Predictions:
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
        ),
    )


def predict_with_shifts(poser: Poser, batch: Particles) -> Predictions:
    """The network's orientations as they are, each with the shift at which the reference fits best."""
    if poser.model is None:
        raise ValueError("expected a model whose orientations to use, found none")
    predictions = predict_batch(poser.model, batch)
    images = poser.noise.whiten(batch, torch.arange(len(batch)), poser.points)
    which = poser.reference_of(batch)
    origins = torch.zeros(len(batch), 2)
    for half, transform in enumerate(poser.transforms):
        own = which == half
        search = poser.templates[half].config
        origins[own] = best_origins(transform, images[own], predictions.belief.mode[own], search)
    return replace(predictions, shifts_angstrom=origins * batch.pixel_size_angstrom)


def _picked(predictions: Predictions, rows: Tensor) -> Predictions:
    evidence = predictions.evidence
    return Predictions(
        OrientationBelief(predictions.belief.concentration[rows]),
        predictions.expected_error_rad[rows],
        None if predictions.shifts_angstrom is None else predictions.shifts_angstrom[rows],
        None if evidence is None else ImageEvidence(**{k: v[rows] for k, v in vars(evidence).items()}),
    )
