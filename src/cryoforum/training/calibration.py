"""How sure predictions may be: calibration on particles that nobody learned from."""

from dataclasses import replace

from cryoforum.dataset.particles import Particles
from cryoforum.distributions.bingham import likeliest_sharpness
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import nearest_equivalent, symmetry_group
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import predict


def calibrated(model: TrainedModel, particles: Particles) -> TrainedModel:
    """The model with beliefs as sure as it may be about ``particles``, which it did not learn from.

    Their orientations stay, their expected errors change by one factor, that of the largest likelihood of the
    true orientations under `best_tta`. Bad orientations count: at best none is far off.
    """
    if particles.poses is None:
        raise InputError("expected particles with poses to calibrate by, found none")
    posterior = predict(replace(model, sharpness=1.0), particles).posterior
    group = symmetry_group(model.config.symmetry)
    truth = nearest_equivalent(particles.poses.quaternions, posterior.mode, group)
    return replace(model, sharpness=likeliest_sharpness(posterior, truth))
