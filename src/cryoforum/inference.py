"""Orientation beliefs of new particles from a trained model, in one pass."""

from collections.abc import Callable

import torch

from cryoforum.bingham import OrientationBelief
from cryoforum.checkpoint import TrainedModel
from cryoforum.compute import best_device, mixed_precision
from cryoforum.network.heads import beliefs
from cryoforum.particles import Particles, Predictions, all_rows
from cryoforum.preprocessing import prepare

PIXEL_SIZE_TOLERANCE = 0.01  # relative


def predict(
    model: TrainedModel,
    particles: Particles,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Beliefs of all particles, in order; images are read batch by batch.

    ValueError where box or pixel size is not that of the particles the model learned from.
    """
    _check_compatible(model, particles)
    device = best_device()
    network = model.network.to(device, memory_format=torch.channels_last)
    concentrations, merits = [], []
    for rows in all_rows(len(particles), batch_size):
        optics = None if particles.optics is None else particles.optics[rows]
        images = prepare(
            particles.images[rows], optics, particles.pixel_size_angstrom, model.config.preprocessing
        )
        with torch.no_grad(), mixed_precision(device):
            numbers = network(images.to(device)).float().cpu()
        belief = beliefs(numbers, model.config.network)
        concentrations.append(belief.concentration)
        merits.append(belief.mode_moment)
        progress(len(rows))
    return Predictions(OrientationBelief(torch.cat(concentrations)), torch.cat(merits))


def _check_compatible(model: TrainedModel, particles: Particles) -> None:
    ratio = particles.pixel_size_angstrom / model.pixel_size_angstrom
    if particles.box != model.box or abs(ratio - 1) > PIXEL_SIZE_TOLERANCE:
        raise ValueError(
            f"the model expects particles of {model.box} px and {model.pixel_size_angstrom:.4g} Å/px, "
            f"found {particles.box} px and {particles.pixel_size_angstrom:.4g} Å/px; "
            "extract or rescale them alike"
        )
