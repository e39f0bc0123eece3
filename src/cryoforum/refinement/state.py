"""A round of a refinement as tensors that a file can hold, and back."""

from dataclasses import asdict, fields
from typing import Any

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.predictions import ImageEvidence, Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.refinement.refine import Round, with_maps

MAPS = "half_maps", "references"


def state_of(found: Round) -> dict[str, Any]:
    """All but the maps, which follow from the rest."""
    kept = {entry.name: getattr(found, entry.name) for entry in fields(found) if entry.name not in MAPS}
    return kept | {"predictions": asdict(found.predictions)}


def round_of(state: dict[str, Any], particles: Particles, symmetry: str) -> Round:
    """The round that `state_of` was given, of the same particles, with half sets."""
    parts = dict(state["predictions"])
    parts["posterior"] = OrientationPosterior(**parts["posterior"])
    if parts["evidence"] is not None:
        parts["evidence"] = ImageEvidence(**parts["evidence"])
    predictions = Predictions(**parts)
    own = particles.with_poses(predictions.poses)
    maps = with_maps(own, state["classes"], state["class_probabilities"], symmetry)
    return Round(**state | {"predictions": predictions} | maps)
