"""An aligner before its noise is known: a map, how to search, and a sample to measure noise on."""

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
from cryoforum.dataset.sampling import evenly_spaced_rows, has_usual_contrast
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.noise_model import (
    FEWEST_OF_A_GROUP,
    NoiseModel,
    background_noise,
    measured_noise,
)
from cryoforum.imaging.projection import cropped_transform
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import BATCH_SIZE
from cryoforum.reconstruction.reference_map import Reference

# Particles on which noise and scale are measured: an eighth of all, within these limits.
SMALLEST_SAMPLE, LARGEST_SAMPLE = 128, 512
COARSE_SEARCH, COARSE_REFINEMENT = SearchConfig(), LocalRefinementConfig()
LEAST_SHIFT_PIXEL = 3.0  # that is searched, where nothing is known of the shifts or they are small


@dataclass(frozen=True)
class Draft:
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

    def first_aligner(self, background: NoiseModel) -> MapAligner:
        """Under the noise of the reference in the units of the images; their background where it has none."""
        noise = self.reference.noise
        first = background if noise is None else noise.adapted_to(background)
        return self.aligner(first, COARSE_SEARCH, COARSE_REFINEMENT)

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


def draft_of(
    reference: Reference,
    particles: Particles,
    model: TrainedModel | None,
    config: AlignmentConfig | None,
    own_half_maps: bool,
) -> Draft:
    """The draft of an aligner; InputError as of `transforms_of`."""
    transforms = transforms_of(reference, particles, own_half_maps)
    return Draft(reference, model, config or AlignmentConfig(), transforms)


def background_of(draft: Draft, sample: Particles) -> NoiseModel:
    """`background_noise`, its scale from the frequencies that are searched."""
    highest = draft.search(COARSE_SEARCH).highest_frequency
    return background_noise(sample, draft.transforms[0], highest)


@dataclass(frozen=True)
class SampleFit:
    """An aligner under the noise of a sample.

    Parameters
    ----------
    aligner
        With noise and scale as its own poses of the sample show them.
    found
        Those poses.
    rows
        Of the sample that hold particles: noise is measured on them.
    """

    aligner: MapAligner
    found: Predictions
    rows: Tensor


def fitted_to_sample(draft: Draft, sample: Particles, background: NoiseModel) -> SampleFit:
    """The fit of a draft, whose first guess is `background_of` the sample; few particles keep that."""
    first = draft.first_aligner(background)
    if len(sample) < FEWEST_OF_A_GROUP:
        return SampleFit(first, aligned(first, sample), torch.arange(len(sample)))
    return measured(first, sample, rounds=1 if draft.reference.noise else 2)


def transforms_of(reference: Reference, particles: Particles, own_half_maps: bool) -> tuple[Tensor, ...]:
    """Of the map, or of its halves; InputError where these are asked for and there are none."""
    volumes: tuple[Volume, ...] = (reference.full,)
    if own_half_maps:
        if reference.halves is None or particles.half_sets is None:
            raise InputError("expected half sets and a reference of each half to keep them independent")
        volumes = reference.halves
    return tuple(cropped_transform(volume.voxels, reference.highest_frequency) for volume in volumes)


def aligned(aligner: MapAligner, particles: Particles) -> Predictions:
    """Predictions of all particles, batch by batch."""
    batches = map(aligner.align_batch, loaded_batches(particles, BATCH_SIZE))
    return joined_predictions(list(batches))


def measured(aligner: MapAligner, sample: Particles, rounds: int) -> SampleFit:
    """The aligner with noise and scale as its own poses of a sample show them.

    Images that hold no particle are left out: they would make the others look weaker than they are.
    """
    which = aligner.map_of(sample)
    highest_frequency = int(aligner.points.radius[-1])
    for _ in range(rounds):
        found = aligned(aligner, sample)
        rows = _rows_with_particles(sample, found)
        own, poses = sample.select(rows), found.poses[rows]
        noise = measured_noise(own, poses, aligner.transforms, which[rows], highest_frequency)
        aligner = replace(aligner, noise=noise)
    return SampleFit(aligner, found, rows)


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


def sample_of(particles: Particles) -> Particles:
    """Particles spread evenly over all, without those whose images are far stronger than the others."""
    size = min(max(len(particles) // 8, SMALLEST_SAMPLE), LARGEST_SAMPLE)
    rows = evenly_spaced_rows(len(particles), size)
    variance = torch.cat([particles.images[part].var(dim=(1, 2)) for part in rows.split(BATCH_SIZE)])
    return particles.select(rows[has_usual_contrast(variance)])


def gain_is_below(gain: float, found: Predictions) -> bool:
    """Whether the median log-likelihood gain is below ``gain``."""
    return found.evidence is not None and bool(found.evidence.log_likelihood_gain.median() < gain)
