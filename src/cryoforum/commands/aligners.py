"""Which aligner a prediction needs: of one model or of two half-set models, with their references."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryoforum.alignment.aligner import Aligner, HalfSetAligner, NetworkAligner
from cryoforum.alignment.class_aligner import aligner_of
from cryoforum.alignment.fitting import fitted_aligner
from cryoforum.alignment.map_aligner import NetworkPoseAligner
from cryoforum.commands.half_set_models import half_of_training, model_of_each, with_half_sets_of_training
from cryoforum.commands.predict_request import PredictRequest
from cryoforum.commands.reference_maps import load_mask, load_reference_map
from cryoforum.dataset.particle_set import ParticleSet
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import parts_of
from cryoforum.errors import InputError, require
from cryoforum.network.model import TrainedModel
from cryoforum.network.model_folder import model_folders
from cryoforum.network.predict import check_compatible
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.reference_files import load_reference, load_references
from cryoforum.reconstruction.reference_map import Reference, masked_reference

logger = logging.getLogger(__name__)


def chosen_aligner(
    models: Sequence[TrainedModel], particle_set: ParticleSet, request: PredictRequest
) -> tuple[ParticleSet, Aligner]:
    """The particles, with half sets where they are kept apart, and what aligns them.

    ``models``: the one of the request's folder, or its two half-set models.
    """
    for model in models:
        check_compatible(model, particle_set.particles)
    references = _references(models, particle_set.particles, request)
    if not all(references):
        references = [()] * len(models)
        _refuse_without_reference(request)
        logger.info("the model has no reference: orientations of the network alone, origins stay as they are")
    if len(models) == 2:
        return _of_two_models(particle_set, models, references, request)
    require(not request.cross_fit, "two half-set models for --cross-fit", f"one in {request.model}")
    particle_set, own_half_maps = _with_half_sets(particle_set, models[0], references[0], request)
    return particle_set, _aligner(models[0], references[0], particle_set.particles, request, own_half_maps)


def _references(
    models: Sequence[TrainedModel], particles: Particles, request: PredictRequest
) -> list[tuple[Reference, ...]]:
    """What each model's images are compared with: its own references, one a class, or maps from elsewhere."""
    symmetry = models[0].config.symmetry
    if request.references:
        given = tuple(load_reference_map(one, particles, symmetry) for one in request.references)
        references = [given] * len(models)
    else:
        references = [_own_references(folder, request) for folder in model_folders(request.model)]
    if request.mask is None:
        return references
    mask = load_mask(request.mask, particles)
    return [tuple(masked_reference(one, mask) for one in of_model) for of_model in references]


def _own_references(folder: Path, request: PredictRequest) -> tuple[Reference, ...]:
    """Of each class; the one of all particles where the network's orientations stay as they are."""
    if request.refine is not False:
        return load_references(folder)
    reference = load_reference(folder)
    return () if reference is None else (reference,)


def _aligner(
    model: TrainedModel,
    references: Sequence[Reference],
    particles: Particles,
    request: PredictRequest,
    own_half_maps: bool,
) -> Aligner:
    """What aligns particles by one model."""
    alignment = request.alignment
    if not references:
        return NetworkAligner(model, alignment.tta, alignment.compute)
    if request.refine is None and alignment.tta is not None:
        raise InputError("expected --tta with --no-refine, as local refinement decides; add it")
    if request.refine is False:
        alignment = replace(alignment, source=alignment.source or "network")
        require(len(references) == 1, "one --reference with --no-refine", len(references))
        aligner = fitted_aligner(references[0], particles, model, alignment, own_half_maps=own_half_maps)
        return NetworkPoseAligner(aligner, alignment.tta)
    return aligner_of(references, particles, model, alignment, own_half_maps=own_half_maps)


def _of_two_models(
    particle_set: ParticleSet,
    models: Sequence[TrainedModel],
    references: Sequence[Sequence[Reference]],
    request: PredictRequest,
) -> tuple[ParticleSet, Aligner]:
    """The particles with half sets, and what aligns each by the model of its half."""
    found = "--half-maps all; give the folder of one"
    require(request.half_maps != "all", "half sets for two half-set models", found)
    if not request.cross_fit:
        particle_set = with_half_sets_of_training(particle_set, models)
    particles = particle_set.particles
    which = model_of_each(particles, models, request.cross_fit)
    seen = int((which == half_of_training(particles, models)).sum())
    if seen and (request.refine is False or not references[0]):
        logger.warning(
            f"{seen} particles are aligned by the network that learned from them: it is surer of them "
            "than it should be; --cross-fit takes the other one"
        )
    first, second = (
        _aligner(model, reference, particles.select(rows), request, False) if len(rows) else None
        for half, (model, reference) in enumerate(zip(models, references, strict=True), 1)
        for rows in [(which == half).nonzero()[:, 0]]
    )
    half_of_name = dict(zip(particles.names, which.tolist(), strict=True))
    return particle_set, HalfSetAligner((first, second), half_of_name, not request.references)


def _refuse_without_reference(request: PredictRequest) -> None:
    """InputError where something was asked for that only a comparison with a reference can give."""
    alignment = request.alignment
    half_maps = request.half_maps == "own" and len(model_folders(request.model)) == 1
    needs_one = (request.refine, half_maps, request.mask, alignment.refine_defocus, alignment.refine_scale)
    if any(needs_one) or alignment.source in ("search", "both"):
        raise InputError(
            f"{request.model} has no reference to compare images with; give a map with --reference"
        )


def _with_half_sets(
    particle_set: ParticleSet, model: TrainedModel, references: Sequence[Reference], request: PredictRequest
) -> tuple[ParticleSet, bool]:
    """The particles with half sets where they are wanted, and whether these are kept apart."""
    possible = bool(references) and all(reference.halves is not None for reference in references)
    wanted, particles = request.half_maps, particle_set.particles
    if wanted == "own" and not possible:
        raise InputError("expected a reference with half maps for --half-maps own; leave out --reference")
    if not possible or wanted == "all" or (wanted is None and particles.half_sets is None):
        return particle_set, False
    if particles.half_sets is None:
        if "train" in parts_of(particles, model.parts, model.sources):
            raise InputError(
                f"{particle_set.path}: expected rlnRandomSubset for --half-maps own, as some of these "
                "particles are in the map of one half of the training"
            )
        logger.info("no rlnRandomSubset: half sets are drawn and written")
        particle_set = particle_set.with_half_sets(
            drawn_half_sets(particles.names, sources=particles.sources)
        )
    return particle_set, True
