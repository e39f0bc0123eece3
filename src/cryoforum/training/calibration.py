"""Calibration of expected errors on particles that were not used for training."""

from dataclasses import replace

from cryoforum.dataset.particles import Particles
from cryoforum.distributions.bingham import likeliest_sharpness
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import nearest_equivalent, symmetry_group
from cryoforum.network.model import TrainedModel
from cryoforum.network.predict import predict


def calibrated(model: TrainedModel, particles: Particles) -> TrainedModel:
    """The model with posteriors as narrow as its errors on other particles allow.

    Orientations stay; all concentrations are multiplied by the one factor that maximises the likelihood of
    the true orientations, with the copies of each image that `best_tta` says. Wrong poses of the particles
    widen the posteriors.

    Parameters
    ----------
    model : TrainedModel
    particles : Particles
        With poses; none of them used for training.

    Raises
    ------
    InputError
        For particles without poses.
    """
    if particles.poses is None:
        raise InputError("expected particles with poses to calibrate by, found none")
    posterior = predict(replace(model, sharpness=1.0), particles).posterior
    group = symmetry_group(model.config.symmetry)
    truth = nearest_equivalent(particles.poses.quaternions, posterior.mode, group)
    return replace(model, sharpness=likeliest_sharpness(posterior, truth))
