"""Models of two half sets: which of them aligns which particle, so that half maps stay independent."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import parts_of
from cryoforum.errors import InputError
from cryoforum.network.model import TrainedModel
from cryoforum.reconstruction.half_sets import drawn_half_sets

logger = logging.getLogger(__name__)


def with_half_sets_of_training(particle_set: ParticleSet, models: Sequence[TrainedModel]) -> ParticleSet:
    """The set with half sets that are those of the training, as far as its particles took part in it.

    InputError where rlnRandomSubset says otherwise of one: the noise of its image would be in both maps.
    """
    particles = particle_set.particles
    learned = half_of_training(particles, models)
    if particles.half_sets is None:
        logger.info("no rlnRandomSubset: half sets are those of the training, else drawn, and written")
        drawn = drawn_half_sets(particles.names, sources=particles.sources)
        return particle_set.with_half_sets(torch.where(learned > 0, learned, drawn))
    wrong = ((learned > 0) & (learned != particles.half_sets)).nonzero()[:, 0]
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{particle_set.path}: expected the half sets of the training, found {len(wrong)} particles in "
            f"the other, first {particles.names[row]}; remove rlnRandomSubset, or give up independence with "
            "--cross-fit"
        )
    return particle_set


def half_of_training(particles: Particles, models: Sequence[TrainedModel]) -> Tensor:
    """The half-set model, 1 or 2, that learned from each particle (n,); 0: neither."""
    first, second = (parts_of(particles, model.parts, model.sources) for model in models)
    return torch.tensor([1 if own else 2 if other else 0 for own, other in zip(first, second, strict=True)])


def model_of_each(particles: Particles, models: Sequence[TrainedModel], cross_fit: bool) -> Tensor:
    """The half-set model, 1 or 2, that aligns each particle (n,): that of its half set.

    ``cross_fit``: the one that never saw it, where one did.
    """
    learned = half_of_training(particles, models)
    own = (
        drawn_half_sets(particles.names, sources=particles.sources)
        if particles.half_sets is None
        else particles.half_sets
    )
    return torch.where(learned > 0, 3 - learned, own) if cross_fit else own
