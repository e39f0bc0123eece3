"""Particles against several maps of one molecule: each goes to the class that it is likeliest in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.alignment.class_likelihood import (
    ClassMaps,
    class_maps_with_noise,
    class_probabilities,
    maps_of_reference,
)
from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.draft import SampleFit, background_of, draft_of, fitted_to_sample, sample_of
from cryoforum.alignment.fitting import fitted_aligner
from cryoforum.alignment.map_aligner import MapAligner
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.errors import require
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.imaging.noise_model import FEWEST_OF_A_GROUP
from cryoforum.network.model import TrainedModel
from cryoforum.reconstruction.reference_map import Reference

CLASS_ROUNDS = 2  # classes of a sample, and its noise against their maps, in turn


@dataclass(frozen=True)
class ClassAligner:
    """Finds the poses of batches in every class, and the class that each image is likeliest in.

    Parameters
    ----------
    aligners
        Of each class.
    maps
        What classes are judged by.
    shares
        Expected of each class.
    """

    aligners: tuple[MapAligner, ...]
    maps: ClassMaps
    shares: Float[Tensor, " k"]

    def align_batch(self, batch: Particles) -> Predictions:
        """The pose of each particle in its likeliest class, with the class and its probability."""
        numbers = self.aligners[0].numbers_of(batch)  # the network is one for all classes
        found = [aligner.align_batch_by_numbers(batch, numbers) for aligner in self.aligners]
        log_likelihoods = self.maps.log_likelihoods(batch, found)
        probabilities = (log_likelihoods + self.shares.log()).softmax(1)
        return in_likeliest_classes(found, probabilities, self.aligners[0].maps[0].symmetry)


def in_likeliest_classes(
    found: Sequence[Predictions], probabilities: Float[Tensor, "n k"], symmetry: str
) -> Predictions:
    """Of predictions in each class those of the likeliest one; errors count that another may be right."""
    classes, count = probabilities.argmax(1), len(probabilities)
    chosen = joined_predictions(found)[classes * count + torch.arange(count)]
    square, group = torch.zeros(count), symmetry_group(symmetry)
    for share, other in zip(probabilities.unbind(1), found, strict=True):
        apart = symmetric_distance(other.posterior.mode, chosen.posterior.mode, group)
        square += share * (other.expected_error_rad.square() + apart.square())
    return replace(
        chosen,
        expected_error_rad=square.sqrt().clamp_max(torch.pi),
        class_number=classes + 1,
        class_probability=probabilities.amax(1),
    )


def class_aligner(
    references: Sequence[Reference],
    particles: Particles,
    model: TrainedModel | None = None,
    config: AlignmentConfig | None = None,
    *,
    own_half_maps: bool = False,
) -> ClassAligner:
    """The aligner of several maps, each fitted to those of a sample of the particles that it shows best.

    Parameters
    ----------
    references
        Of each class, in one frame, at the particles' box and pixel size.
    particles, model, config, own_half_maps
        As of `fitted_aligner`.

    Raises
    ------
    InputError
        For fewer than two references, and as `fitted_aligner`.
    """
    require(len(references) >= 2, "references of two classes or more", len(references))
    sample = sample_of(particles)
    drafts = [draft_of(reference, sample, model, config, own_half_maps) for reference in references]
    fits = [fitted_to_sample(draft, sample, background_of(draft, sample)) for draft in drafts]
    maps, shares, classes = _judged(references, fits, sample, own_half_maps)
    aligners = []
    for number, reference in enumerate(references):
        own = (classes == number).nonzero()[:, 0]
        rows = own if len(own) >= FEWEST_OF_A_GROUP else torch.arange(len(sample))
        aligners.append(
            fitted_aligner(reference, sample.select(rows), model, config, own_half_maps=own_half_maps)
        )
    return ClassAligner(tuple(aligners), maps, shares)


def aligner_of(
    references: Sequence[Reference],
    particles: Particles,
    model: TrainedModel | None = None,
    config: AlignmentConfig | None = None,
    *,
    own_half_maps: bool = False,
) -> MapAligner | ClassAligner:
    """The `fitted_aligner` of one reference, or the `class_aligner` of several."""
    if len(references) == 1:
        return fitted_aligner(references[0], particles, model, config, own_half_maps=own_half_maps)
    return class_aligner(references, particles, model, config, own_half_maps=own_half_maps)


def _judged(
    references: Sequence[Reference],
    fits: Sequence[SampleFit],
    sample: Particles,
    own_half_maps: bool,
) -> tuple[ClassMaps, Float[Tensor, " k"], Int[Tensor, " n"]]:
    """What classes are judged by, their shares, and the class, from 0, of each particle of a sample."""
    highest = min(reference.highest_frequency for reference in references)
    uncertain = tuple(maps_of_reference(reference, highest, own_half_maps) for reference in references)
    first, found = fits[0], [fit.found for fit in fits]
    rows = first.rows
    maps = ClassMaps(uncertain, first.aligner.noise, first.aligner.points.within(highest))
    for _ in range(CLASS_ROUNDS):
        probabilities = class_probabilities(maps.log_likelihoods(sample, found))
        classes = probabilities.argmax(1)
        chosen = in_likeliest_classes(found, probabilities, references[0].symmetry)
        placed = sample.with_poses(chosen.poses)
        maps = class_maps_with_noise(uncertain, placed.select(rows), classes[rows], highest)
    return maps, probabilities[rows].mean(0).clamp_min(1 / (1 + len(sample))), classes
