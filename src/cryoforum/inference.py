"""Orientation beliefs of new particles from a trained model, batch by batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cryoforum.checkpoint import TrainedModel
from cryoforum.compute import best_device, mixed_precision
from cryoforum.network.heads import beliefs
from cryoforum.particles import Particles, Predictions, joined_predictions, loaded_batches
from cryoforum.preprocessing import prepare

BATCH_SIZE = 256
PIXEL_SIZE_TOLERANCE = 0.01  # relative


def predict(
    model: TrainedModel,
    particles: Particles,
    *,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Beliefs of all particles, in order; images are read batch by batch.

    ValueError where box or pixel size is not that of the particles the model learned from.
    """
    batches = []
    for predictions in predict_in_batches(model, particles, batch_size):
        batches.append(predictions)
        progress(len(predictions))
    return joined_predictions(batches)


def predict_in_batches(model: TrainedModel, particles: Particles, batch_size: int) -> Iterator[Predictions]:
    """Predictions of consecutive particles; only two batches of images are in memory."""
    check_compatible(model, particles)
    for batch in loaded_batches(particles, batch_size):
        yield predict_batch(model, batch)


def predict_batch(model: TrainedModel, batch: Particles) -> Predictions:
    """Predictions of a few particles at once; equal bit by bit only where the whole batch is equal."""
    belief = beliefs(network_numbers(model, batch), model.config.network, model.config.symmetry)
    return Predictions(belief, expected_error_rad=2 * torch.acos(belief.mode_moment.sqrt()))


def network_numbers(model: TrainedModel, batch: Particles) -> Tensor:
    """The numbers (b, k) that the network's head reads from each image."""
    device = best_device()
    network = model.network.to(device, memory_format=torch.channels_last)
    rows = torch.arange(len(batch))
    images = prepare(batch.images[rows], batch.optics, batch.pixel_size_angstrom, model.config.preprocessing)
    with torch.no_grad(), mixed_precision(device):
        return network(images.to(device)).float().cpu()


def check_compatible(model: TrainedModel, particles: Particles) -> None:
    """ValueError where box or pixel size is not that of the particles the model learned from."""
    ratio = particles.pixel_size_angstrom / model.pixel_size_angstrom
    if particles.box != model.box or abs(ratio - 1) > PIXEL_SIZE_TOLERANCE:
        raise ValueError(
            f"the model expects particles of {model.box} px and {model.pixel_size_angstrom:.4g} Å/px, "
            f"found {particles.box} px and {particles.pixel_size_angstrom:.4g} Å/px; "
            "extract or rescale them alike"
        )
