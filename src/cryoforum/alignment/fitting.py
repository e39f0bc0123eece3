"""An aligner fitted to the particles at hand: noise, signal scale, and whether the map explains them.

Noise and signal scale are measured on a sample of the particles before the rest is aligned, so that other
microscopes and other normalisations than those of the training do not matter.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.global_search import SearchConfig, make_templates
from cryoforum.alignment.local_refinement import LocalRefinementConfig
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.curation.junk import is_of_usual_strength
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.sampling import evenly_spaced_rows, has_usual_contrast
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.noise_model import (
    FEWEST_OF_A_GROUP,
    NoiseModel,
    background_noise,
    explained_share,
    hidden_shells,
    measured_noise,
)
from cryoforum.imaging.projection import cropped_transform
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import BATCH_SIZE
from cryoforum.reconstruction.reference_map import Reference

logger = logging.getLogger(__name__)

# Particles on which noise and scale are measured: an eighth of all, within these limits.
SMALLEST_SAMPLE, LARGEST_SAMPLE = 128, 512
# Where the reference does not explain the images, others are tried on so many particles; sizes in steps.
FEW, SIZE_STEP, SIZE_STEPS = 64, 1.07, 4
CLEARLY_EXPLAINED = 0.85  # where one of them shows so much, no further one is tried
COARSE_SEARCH, COARSE_REFINEMENT = SearchConfig(), LocalRefinementConfig()
# Median log-likelihood gain of a particle below which low frequencies do not single out its orientation: the
# coarse search then loses several per cent of the particles, the fine one few (benchmarks/limit.md). Of
# particles as they are, with coloured noise and neighbours, it still loses 1 % at a gain of 200.
FAINT_GAIN, CLEAR_GAIN = 120.0, 250.0
FINE_SEARCH = SearchConfig(nside=5, highest_frequency=14, candidates=32, separation_deg=14.0)
FINE_REFINEMENT = LocalRefinementConfig(stage_shells=(14, 24), stage_survivors=(12, 4))
LEAST_EXPLAINED = 0.5  # share of the signal in the images that a map of the same molecule explains
LEAST_OF_FAINT = 0.3  # the same where some poses are lost without the shells that this is measured on
CANNOT_TELL = (
    "cannot tell whether the reference explains the images: the surroundings of the particles are "
    "nearly as strong as the particles, as in crowded fields"
)
LEAST_SHIFT_PIXEL = 3.0  # that is searched, where nothing is known of the shifts or they are small


def fitted_aligner(
    reference: Reference,
    particles: Particles,
    model: TrainedModel | None = None,
    config: AlignmentConfig | None = None,
    *,
    own_half_maps: bool = False,
) -> MapAligner:
    """The aligner of a map for these particles, by a sample of them.

    Parameters
    ----------
    reference
        At the particles' box and pixel size.
    particles
        All of them: the sample is spread evenly, so that every process finds the same.
    model
        None where candidates come from the global search alone.
    config
        None for the defaults.
    own_half_maps
        Whether each half set is compared with the map of its own half.

    Raises
    ------
    InputError
        Where half maps are asked for and there are none, or the images have no contrast.
    """
    draft = _Draft(
        reference, model, config or AlignmentConfig(), _transforms(reference, particles, own_half_maps)
    )
    sample = _sample(particles)
    highest = draft.search(COARSE_SEARCH).highest_frequency
    background = background_noise(sample, draft.transforms[0], highest)
    first = background if reference.noise is None else reference.noise.adapted_to(background)
    aligner = draft.aligner(first, COARSE_SEARCH, COARSE_REFINEMENT)
    if len(sample) < FEWEST_OF_A_GROUP:
        logger.info(
            "fewer than %d particles: too few to measure noise or to check the reference", FEWEST_OF_A_GROUP
        )
        return aligner
    aligner, found = _measured(aligner, sample, rounds=1 if reference.noise else 2)
    checked = aligner
    if aligner.source == "both" and reference.halves is None:
        # A search fits a map of either hand, turned in any way: whether it is the model's, the network tells.
        checked, _ = _measured(replace(aligner, source="network"), sample, rounds=1)
    share = _explained_share(checked, sample, background, highest)
    if share is None:
        logger.warning(CANNOT_TELL)
    elif share < (LEAST_OF_FAINT if _gain_is_below(FAINT_GAIN, found) else LEAST_EXPLAINED):
        logger.warning(_misfit(share, checked, draft, sample, background))
    if checked is not aligner:
        share = _explained_share(aligner, sample, background, highest)
    fits = share is None or share >= LEAST_EXPLAINED
    may_search_finer = draft.config.search == "auto" and aligner.source != "network"
    if fits and may_search_finer and _gain_is_below(CLEAR_GAIN, found):
        logger.info("the particles are faint: searching orientations on a finer grid, with more frequencies")
        aligner = draft.aligner(aligner.noise, FINE_SEARCH, FINE_REFINEMENT)
    return aligner


def aligner_with_own_noise(
    reference: Reference,
    particles: Particles,
    config: AlignmentConfig,
    *,
    own_half_maps: bool = False,
    found: Predictions | None = None,
) -> MapAligner:
    """The aligner of a map that was made from these particles, under the noise measured then.

    ``found`` are their last predictions: faint particles are searched on a finer grid. InputError where the
    reference is from elsewhere, or half maps are asked for and there are none.
    """
    if reference.noise is None:
        raise InputError("expected a reference made from particles, with their noise, found none")
    draft = _Draft(reference, None, config, _transforms(reference, particles, own_half_maps))
    if config.search == "auto" and found is not None and _gain_is_below(CLEAR_GAIN, found):
        return draft.aligner(reference.noise, FINE_SEARCH, FINE_REFINEMENT)
    return draft.aligner(reference.noise, COARSE_SEARCH, COARSE_REFINEMENT)


@dataclass(frozen=True)
class _Draft:
    """All that an aligner is made of but noise and the settings that may be chosen."""

    reference: Reference
    model: TrainedModel | None
    config: AlignmentConfig
    transforms: tuple[Tensor, ...]

    def search(self, automatic: SearchConfig) -> SearchConfig:
        """The settings of the search: explicit ones as they are, ``automatic`` where it may choose.

        Neither goes beyond the frequencies that the reference shows.
        """
        reference, config = self.reference, self.config
        search = automatic if config.search == "auto" else config.search
        largest = search.max_shift_pixel
        if config.max_shift_pixel is not None:
            largest = config.max_shift_pixel
        elif config.search == "auto":
            reach = (reference.origin_reach_angstrom or 0.0) / reference.full.pixel_size_angstrom
            largest = max(LEAST_SHIFT_PIXEL, reach)
        within = len(reference.full.voxels) / 2  # beyond, the middle of the particle is not in its image
        expected = f"--max-shift of at most {within:g} pixels, half of the box"
        require(config.max_shift_pixel is None or largest <= within, expected, f"{largest:g}")
        largest = min(largest, within)
        highest = min(search.highest_frequency, reference.highest_frequency)
        return replace(search, highest_frequency=highest, max_shift_pixel=largest)

    def aligner(
        self, noise: NoiseModel, automatic: SearchConfig, automatic_refinement: LocalRefinementConfig
    ) -> MapAligner:
        """The aligner under this noise."""
        reference, config, model = self.reference, self.config, self.model
        box, search = len(reference.full.voxels), self.search(automatic)
        maps = tuple(make_templates(each, box, search, reference.symmetry) for each in self.transforms)
        refinement = config.local_refinement
        return MapAligner(
            maps=maps,
            noise=noise,
            points=frequency_points(box, reference.highest_frequency),
            model=model,
            features=torch.empty(0) if model is None else model.head.features(maps[0].rotations),
            source="search" if model is None else config.source or "both",
            local_refinement=automatic_refinement if refinement == "auto" else refinement,
            refine_defocus=config.refine_defocus,
            refine_scale=config.refine_scale,
            compute=config.compute,
        )


def _transforms(reference: Reference, particles: Particles, own_half_maps: bool) -> tuple[Tensor, ...]:
    volumes: tuple[Volume, ...] = (reference.full,)
    if own_half_maps:
        if reference.halves is None or particles.half_sets is None:
            raise InputError("expected half sets and a reference of each half to keep them independent")
        volumes = reference.halves
    return tuple(cropped_transform(volume.voxels, reference.highest_frequency) for volume in volumes)


def _aligned(aligner: MapAligner, particles: Particles) -> Predictions:
    batches = map(aligner.align_batch, loaded_batches(particles, BATCH_SIZE))
    return joined_predictions(list(batches))


def _measured(aligner: MapAligner, sample: Particles, rounds: int) -> tuple[MapAligner, Predictions]:
    """The aligner with noise and scale as its own poses of a sample show them, and these poses.

    Images that hold no particle are left out: they would make the others look weaker than they are.
    """
    which = aligner.map_of(sample)
    highest_frequency = int(aligner.points.radius[-1])
    for _ in range(rounds):
        found = _aligned(aligner, sample)
        rows = _rows_with_particles(sample, found)
        own, poses = sample.select(rows), found.poses[rows]
        noise = measured_noise(own, poses, aligner.transforms, which[rows], highest_frequency)
        aligner = replace(aligner, noise=noise)
    return aligner, found[rows]


def _rows_with_particles(sample: Particles, found: Predictions) -> Tensor:
    """Rows whose particles are as strong as others of their optics group; all where those are too few."""
    assert found.evidence is not None
    scale, groups = found.evidence.signal_scale, sample.optics_groups
    labels = torch.zeros(len(sample)).long() if groups is None else groups
    usual = torch.ones(len(sample), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        if len(own) >= FEWEST_OF_A_GROUP:
            usual[own] = is_of_usual_strength(scale[own])
    rows = usual.nonzero()[:, 0]
    return rows if len(rows) >= FEWEST_OF_A_GROUP else torch.arange(len(sample))


def _explained_share(
    aligner: MapAligner, sample: Particles, background: NoiseModel, highest_frequency: int
) -> float | None:
    """`explained_share`, in shells that poses were not fitted to."""
    scale = aligner.noise.scale.clone()
    scale[:, hidden_shells(highest_frequency)] = 0
    unseeing = replace(aligner, noise=replace(aligner.noise, scale=scale))
    found = _aligned(unseeing, sample)
    which = aligner.map_of(sample)
    return explained_share(sample, found.poses, aligner.transforms, which, background, highest_frequency)


def _misfit(
    share: float, aligner: MapAligner, draft: _Draft, sample: Particles, background: NoiseModel
) -> str:
    """Which mistake may be the cause where the reference does not explain the images."""
    found = f"the reference explains only {100 * share:.0f} % of the signal in the images"
    wrong = "the images' CTF, contrast or pixel size may be wrong, or they hold no particles"
    reference = draft.reference
    if reference.halves is not None:
        return f"{found}: it may be another molecule, or {wrong}"
    by_network = aligner.model is not None and aligner.source == "network"
    few = sample.select(evenly_spaced_rows(len(sample), FEW))
    highest = aligner.maps[0].config.highest_frequency
    best = LEAST_EXPLAINED, ""
    for voxels, finding in _other_maps(reference, by_network):
        other = replace(reference, full=replace(reference.full, voxels=voxels))
        config = replace(draft.config, source=aligner.source)
        tried = replace(draft, reference=other, config=config, transforms=_transforms(other, few, False))
        first = tried.aligner(background, COARSE_SEARCH, COARSE_REFINEMENT)
        measured, _ = _measured(first, few, rounds=1)
        best = max(best, (_explained_share(measured, few, background, highest) or 0, finding))
        if best[0] > CLEARLY_EXPLAINED:
            break
    if best[1]:
        return f"{found}, but {best[1]}"
    if not by_network:
        return f"{found}: it may be another molecule or of another pixel size (--map-pixel-size), or {wrong}"
    return (
        f"{found} at the model's orientations: it may be turned or another molecule, or {wrong}; "
        "leave out --reference, or search all orientations with --candidates search"
    )


def _other_maps(reference: Reference, by_network: bool) -> Iterator[tuple[Tensor, str]]:
    """What a map is often mistaken for, and the message where that fits."""
    voxels = reference.full.voxels
    yield -voxels, "its negative fits: the contrast is inverted; multiply it by -1"
    if by_network:  # a search fits either hand
        for axis in range(3):  # nobody knows at which plane a map was mirrored
            mirrored = voxels.flip(axis).roll(1, axis)  # voxel n // 2 stays
            yield mirrored, "its mirror image fits: it is of the other hand than the model; mirror it"
    size, given = reference.full.pixel_size_angstrom, reference.file_pixel_size_angstrom
    factors = [SIZE_STEP**step for step in (*range(-SIZE_STEPS, 0), *range(1, SIZE_STEPS + 1))]
    if given is not None:  # headers of 1 Å, which nobody set
        factors.append(size / given)
    for factor in factors:
        scaled = resample_volume(
            replace(reference.full, pixel_size_angstrom=factor * size), len(voxels), size
        )
        scaling = f"multiply it by {factor:.2f}"
        fix = scaling if given is None else f"give --map-pixel-size {factor * given:.2f}, or near it"
        yield scaled.voxels, f"it fits {factor:.2f} times as large: its pixel size is wrong; {fix}"


def _sample(particles: Particles) -> Particles:
    """Particles spread evenly over all, without those whose images are far stronger than the others."""
    size = min(max(len(particles) // 8, SMALLEST_SAMPLE), LARGEST_SAMPLE)
    rows = evenly_spaced_rows(len(particles), size)
    variance = torch.cat([particles.images[part].var(dim=(1, 2)) for part in rows.split(BATCH_SIZE)])
    return particles.select(rows[has_usual_contrast(variance)])


def _gain_is_below(gain: float, found: Predictions) -> bool:
    return found.evidence is not None and bool(found.evidence.log_likelihood_gain.median() < gain)
