"""An aligner fitted to the particles at hand: noise, signal scale, and whether the map explains them.

Noise and signal scale are measured on a sample of the particles before the rest is aligned, so that other
microscopes and other normalisations than those of the training do not matter.
"""

import logging
from dataclasses import replace

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.draft import (
    COARSE_REFINEMENT,
    COARSE_SEARCH,
    Draft,
    background_of,
    draft_of,
    fitted_to_sample,
    gain_is_below,
    sample_of,
    transforms_of,
)
from cryoforum.alignment.global_search import SearchConfig
from cryoforum.alignment.local_refinement import LocalRefinementConfig
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.alignment.misfit import reference_explains
from cryoforum.alignment.reference_noise import variance_factor
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions
from cryoforum.errors import InputError
from cryoforum.imaging.noise_model import FEWEST_OF_A_GROUP
from cryoforum.network.model import TrainedModel
from cryoforum.reconstruction.reference_map import Reference

logger = logging.getLogger(__name__)

# Median log-likelihood gain of a particle below which low frequencies do not single out its orientation: the
# coarse search then loses several per cent of the particles, the fine one few (benchmarks/limit.md). Of
# particles as they are, with coloured noise and neighbours, it still loses 1 % at a gain of 200.
CLEAR_GAIN = 250.0
FINE_SEARCH = SearchConfig(nside=5, highest_frequency=14, candidates=32, separation_deg=14.0)
FINE_REFINEMENT = LocalRefinementConfig(stage_shells=(14, 24), stage_survivors=(12, 4))


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
    draft = draft_of(reference, particles, model, config, own_half_maps)
    sample = sample_of(particles)
    background = background_of(draft, sample)
    if len(sample) < FEWEST_OF_A_GROUP:
        logger.info(
            "fewer than %d particles: too few to measure noise or to check the reference", FEWEST_OF_A_GROUP
        )
        return with_noise_of_map(draft.first_aligner(background), reference, sample, own_half_maps)
    fit = fitted_to_sample(draft, sample, background)
    aligner, found = fit.aligner, fit.found[fit.rows]
    fits = reference_explains(aligner, found, draft, sample, background)
    may_search_finer = draft.config.search == "auto" and aligner.source != "network"
    if fits and may_search_finer and gain_is_below(CLEAR_GAIN, found):
        logger.info("the particles are faint: searching orientations on a finer grid, with more frequencies")
        aligner = draft.aligner(aligner.noise, FINE_SEARCH, FINE_REFINEMENT)
    return with_noise_of_map(aligner, reference, sample, own_half_maps)


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
    draft = Draft(reference, None, config, transforms_of(reference, particles, own_half_maps))
    if config.search == "auto" and found is not None and gain_is_below(CLEAR_GAIN, found):
        aligner = draft.aligner(reference.noise, FINE_SEARCH, FINE_REFINEMENT)
    else:
        aligner = draft.aligner(reference.noise, COARSE_SEARCH, COARSE_REFINEMENT)
    return with_noise_of_map(aligner, reference, particles, own_half_maps)


def with_noise_of_map(
    aligner: MapAligner, reference: Reference, particles: Particles, own_half_maps: bool
) -> MapAligner:
    """The aligner whose errors count that the reference is noisy itself."""
    factor = variance_factor(reference, aligner.noise, particles, own_half_maps)
    return replace(aligner, variance_factor=factor)
