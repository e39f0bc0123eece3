"""Finding the poses of any particles: a aligner fitted to them, its doubts, and all of them posed.

Noise and signal scale are measured on a sample of the particles at hand before the rest is posed, so that
other microscopes and other normalisations than those of the training are no matter.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cryoforum.alignment.aligner import Aligner, AlignmentConfig, CandidateSource, align_in_batches
from cryoforum.alignment.global_search import SearchConfig, make_templates
from cryoforum.alignment.local_refinement import LocalRefinementConfig
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.sampling import has_usual_contrast, spread_rows
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.noise_model import (
    FEWEST_OF_A_GROUP,
    NoiseModel,
    background_noise,
    explained_share,
    measured_noise,
)
from cryoforum.imaging.projection import cropped_transform
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import BATCH_SIZE
from cryoforum.reconstruction.reference_map import Reference

DEFAULT_CONFIG = AlignmentConfig()
# Particles on which noise and scale are measured: an eighth of all, within these limits.
SMALLEST_SAMPLE, LARGEST_SAMPLE = 128, 512
# Median log-likelihood gain of a particle below which low frequencies do not single out its orientation:
# the coarse search then loses several per cent of the particles, the fine one few (benchmarks/limit.md).
FAINT_GAIN = 120.0
FINE_SEARCH = SearchConfig(nside=5, highest_frequency=14, candidates=32, separation_deg=14.0)
FINE_REFINEMENT = LocalRefinementConfig(stage_shells=(14, 24), stage_survivors=(12, 4))
LEAST_EXPLAINED = 0.5  # share of the signal in the images below which a reference is doubtful
LEAST_SHIFT_PIXEL = 3.0  # that origins are searched for, where nothing is known of them or they are small


def align(
    reference: Reference,
    particles: Particles,
    model: TrainedModel | None = None,
    config: AlignmentConfig = DEFAULT_CONFIG,
    *,
    halves: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda count: None,
    tell: Callable[[str], None] = warnings.warn,
) -> Predictions:
    """Poses of all particles, in order, each refined from the network's candidates or the search's.

    Parameters
    ----------
    reference : `reference.load_reference` of a model folder, or `reference.reference_from_map`.
    model : None for the search alone.
    halves : compare each half set with its own half's reference.
    progress, tell : called with the number of images done; and with what the user should know.
    """
    aligner = make_aligner(model, reference, particles, config, halves=halves, tell=tell)
    batches = []
    for predictions in align_in_batches(aligner, particles, batch_size):
        batches.append(predictions)
        progress(len(predictions))
    return joined_predictions(batches)


def make_aligner(
    model: TrainedModel | None,
    reference: Reference,
    particles: Particles,
    config: AlignmentConfig,
    *,
    halves: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Aligner:
    """Templates of the reference, noise and scale of the particles.

    Parameters
    ----------
    model : None where candidates come from the search alone.
    reference : at the particles' box and pixel size.
    particles : all of them; the sample is spread evenly over them, so that every process finds the same.
    halves : whether each half set is compared with its own half's reference.
    tell : told, in one line each, what the user should know.
    """
    config = _fitted(config, reference, model)
    transforms = _transforms(reference, particles, halves)
    rows = _sample(particles)
    background = background_noise(particles, rows, transforms[0], config.search.highest_frequency)
    first = background if reference.noise is None else reference.noise.adapted_to(background)
    aligner = _unmeasured_aligner(model, reference, transforms, first, particles.box, config)
    if len(rows) < FEWEST_OF_A_GROUP:
        tell(f"fewer than {FEWEST_OF_A_GROUP} particles: too few to measure noise or to doubt the reference")
        return aligner
    aligner, found = _measured(aligner, particles, rows, rounds=1 if reference.noise else 2)
    judge = aligner
    if config.source == "both" and reference.halves is None:
        # A search fits a map of either hand, turned in any way: whether it is the model's, the network tells.
        judge, _ = _measured(_with_source(aligner, "network"), particles, rows, rounds=1)
    highest = config.search.highest_frequency
    share = explained_share(judge.noise, background, highest)
    if share < LEAST_EXPLAINED:
        tell(_doubt(share, judge, reference, particles, rows, background))
    fits = explained_share(aligner.noise, background, highest) >= LEAST_EXPLAINED
    if fits and config.source != "network" and _are_faint(found):
        tell("the particles are faint: searching orientations on a finer grid, with more frequencies")
        fine = _fitted(
            replace(config, search=FINE_SEARCH, local_refinement=FINE_REFINEMENT), reference, model
        )
        aligner = _unmeasured_aligner(model, reference, transforms, aligner.noise, particles.box, fine)
    return aligner


def _fitted(config: AlignmentConfig, reference: Reference, model: TrainedModel | None) -> AlignmentConfig:
    """The same with what was left open, searching no further than the reference shows."""
    highest = min(config.search.highest_frequency, reference.highest_frequency)
    reach = (reference.origin_reach_angstrom or 0.0) / reference.full.pixel_size_angstrom
    largest = max(LEAST_SHIFT_PIXEL, reach) if config.max_shift_pixel is None else config.max_shift_pixel
    return replace(
        config,
        source="search" if model is None else config.source or "both",
        search=replace(config.search, highest_frequency=highest, max_shift_pixel=largest),
    )


def _with_source(aligner: Aligner, source: CandidateSource) -> Aligner:
    return replace(aligner, config=replace(aligner.config, source=source))


def _transforms(reference: Reference, particles: Particles, halves: bool) -> tuple[Tensor, ...]:
    volumes: tuple[Volume, ...] = (reference.full,)
    if halves:
        if reference.halves is None or particles.half_sets is None:
            raise InputError("expected half sets and a reference of each half to keep them independent")
        volumes = reference.halves
    return tuple(cropped_transform(volume.voxels, reference.highest_frequency) for volume in volumes)


def _unmeasured_aligner(
    model: TrainedModel | None,
    reference: Reference,
    transforms: tuple[Tensor, ...],
    noise: NoiseModel,
    box: int,
    config: AlignmentConfig,
) -> Aligner:
    templates = tuple(
        make_templates(transform, box, config.search, reference.symmetry) for transform in transforms
    )
    points = frequency_points(box, reference.highest_frequency)
    features = torch.empty(0)
    if model is not None:
        features = model.head.features(templates[0].rotations)
    return Aligner(model, config, noise, points, transforms, templates, features)


def _measured(
    aligner: Aligner, particles: Particles, rows: Tensor, rounds: int
) -> tuple[Aligner, Predictions]:
    """The aligner with noise and scale as its own poses of a sample show them, and these poses."""
    sample = particles.select(rows)
    which = aligner.reference_of(sample)
    highest_frequency = int(aligner.points.radius[-1])
    for _ in range(rounds):
        found = joined_predictions(list(align_in_batches(aligner, sample, BATCH_SIZE)))
        noise = measured_noise(particles, rows, found.poses, aligner.transforms, which, highest_frequency)
        aligner = replace(aligner, noise=noise)
    return aligner, found


def _doubt(
    share: float,
    aligner: Aligner,
    reference: Reference,
    particles: Particles,
    rows: Tensor,
    background: NoiseModel,
) -> str:
    """What may be wrong where the reference does not explain the images."""
    found = f"the reference explains only {100 * max(share, 0):.0f} % of the signal in the images"
    wrong = "the images' CTF, contrast or pixel size may be wrong"
    if aligner.model is None or aligner.config.source == "search" or reference.halves is not None:
        return f"{found}: it may be another molecule, or {wrong}"
    for voxels, finding in _other_maps(reference.full.voxels):
        other = replace(reference, full=replace(reference.full, voxels=voxels))
        transforms = _transforms(other, particles, halves=False)
        tried = _unmeasured_aligner(
            aligner.model, other, transforms, background, particles.box, aligner.config
        )
        tried, _ = _measured(tried, particles, rows, rounds=2)
        if (
            explained_share(tried.noise, background, aligner.config.search.highest_frequency)
            > LEAST_EXPLAINED
        ):
            return f"{found}, but {finding}"
    return (
        f"{found} at the model's orientations: it may be turned or another molecule, or {wrong}; "
        "leave out --reference, or search all orientations with --candidates search"
    )


def _other_maps(voxels: Tensor) -> Iterator[tuple[Tensor, str]]:
    """What a map is often taken for, and what to say where it fits."""
    yield -voxels, "its negative fits: the contrast is inverted; multiply it by -1"
    for axis in range(3):  # which plane a map was mirrored at nobody knows
        mirrored = voxels.flip(axis).roll(1, axis)  # voxel n // 2 stays
        yield mirrored, "its mirror image fits: it is of the other hand than the model; mirror it"


def _sample(particles: Particles) -> Tensor:
    """Rows spread evenly over the particles, without images that are far stronger than the others."""
    size = min(max(len(particles) // 8, SMALLEST_SAMPLE), LARGEST_SAMPLE)
    rows = spread_rows(len(particles), size)
    variance = torch.cat([particles.images[part].var(dim=(1, 2)) for part in rows.split(BATCH_SIZE)])
    return rows[has_usual_contrast(variance)]


def _are_faint(found: Predictions) -> bool:
    return found.evidence is not None and bool(found.evidence.log_likelihood_gain.median() < FAINT_GAIN)
