"""Orientation beliefs of new particles from a trained model, batch by batch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cryoforum.config import Config
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.resampling import resampled
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError
from cryoforum.network.augmentation import turn_and_shift, turn_orientations
from cryoforum.network.heads import mean_posterior
from cryoforum.network.model import TrainedModel
from cryoforum.network.preprocessing import prepare
from cryoforum.runtime.devices import best_device, mixed_precision

BATCH_SIZE = 256
TTA_COPIES = (1, 4, 8)


def predict(
    model: TrainedModel,
    particles: Particles,
    *,
    views: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Posteriors of all particles, in order; images are read batch by batch.

    ``views``: how many turned and mirrored copies of each image the network reads, 1, 4 or 8; None:
    `best_tta`. Eight cost as many times the work, and their mean errs by about a fifth less.
    InputError where box or pixel size is not that of the particles the model learned from.
    """
    batches = []
    for predictions in predict_in_batches(model, particles, batch_size, views):
        batches.append(predictions)
        progress(len(predictions))
    return joined_predictions(batches)


def predict_in_batches(
    model: TrainedModel, particles: Particles, batch_size: int, views: int | None = None
) -> Iterator[Predictions]:
    """Predictions of consecutive particles; only two batches of images are in memory."""
    check_compatible(model, particles)
    for batch in loaded_batches(particles, batch_size):
        yield predict_batch(model, batch, views)


def best_tta(config: Config) -> int:
    """As many views as the network learned from: eight where images were turned and mirrored."""
    learned = config.augmentation
    if learned.simulated_share == 1 or (learned.rotate and learned.mirror):
        return 8
    return 4 if learned.rotate else 1


def predict_batch(model: TrainedModel, batch: Particles, views: int | None = None) -> Predictions:
    """Predictions of a few particles at once; equal bit by bit only where the whole batch is equal."""
    views = best_tta(model.config) if views is None else views
    if views == 1:
        posterior = model.head.posterior(network_numbers(model, batch))
    else:
        posterior = _posterior_of_copies(model, _inputs(model, batch), views)
    posterior = OrientationPosterior(model.sharpness * posterior.concentration)
    return Predictions(posterior, expected_error_rad=2 * torch.acos(posterior.mode_moment.sqrt()))


def _posterior_of_copies(model: TrainedModel, images: Tensor, views: int) -> OrientationPosterior:
    """What the network says on average of images turned by quarters, for eight views mirrored, too."""
    if views not in TTA_COPIES:
        raise InputError(f"expected {', '.join(map(str, TTA_COPIES))} views, found {views}")
    count = len(images)
    identity, nowhere = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), torch.zeros(count, 2)
    numbers, turns = [], []
    for view in range(views):
        angle, mirrored = torch.tensor([view % 4 * math.pi / 2]), torch.tensor([view >= 4])
        turned = turn_and_shift(images, angle.expand(count), mirrored.expand(count), nowhere)
        numbers.append(_read(model, turned))
        turns.append(turn_orientations(identity, angle, mirrored)[0])
    if model.config.symmetry_handling == "domain":
        # Turned back, answers of one domain are in several: their densities cannot be averaged as they are.
        each = [model.head.posterior(one) for one in numbers]
        return mean_posterior(each, torch.stack(turns), model.config.symmetry)
    return model.head.posterior_of_copies(numbers, torch.stack(turns))


def network_numbers(model: TrainedModel, batch: Particles) -> Tensor:
    """The numbers (b, k) that the network's head reads from each image."""
    return _read(model, _inputs(model, batch))


def _inputs(model: TrainedModel, batch: Particles) -> Tensor:
    raw = batch.images[torch.arange(len(batch))]
    settings, pixel_size = model.config.preprocessing, batch.pixel_size_angstrom
    return prepare(raw, batch.ctf, pixel_size, settings, model.intensity)


def _read(model: TrainedModel, images: Tensor) -> Tensor:
    device = best_device()
    network = model.network.to(device, memory_format=torch.channels_last)
    with torch.no_grad(), mixed_precision(device):
        return network(images.to(device)).float().cpu()


def grid_of(model: TrainedModel) -> ImageGrid:
    """Box and pixel size of the particles the model learned from."""
    return ImageGrid(model.box, model.pixel_size_angstrom)


def matched_to_model(particles: Particles, model: TrainedModel) -> Particles:
    """The particles at the model's box and pixel size, resampled as they are read; poses stay.

    They stay as they are where boxes are equal and pixel sizes within 1 %.
    """
    own, wanted = ImageGrid(particles.box, particles.pixel_size_angstrom), grid_of(model)
    if own.is_near(wanted):
        return particles
    images = resampled(particles.images, own, wanted)
    return replace(particles, images=images, pixel_size_angstrom=wanted.pixel_size_angstrom)


def check_compatible(model: TrainedModel, particles: Particles) -> None:
    """InputError where box or pixel size is not that of the particles the model learned from."""
    found = ImageGrid(particles.box, particles.pixel_size_angstrom)
    if not found.is_near(grid_of(model)):
        raise InputError(
            f"the model expects particles of {grid_of(model)}, found {found}; bring them to that with "
            "matched_to_model"
        )
