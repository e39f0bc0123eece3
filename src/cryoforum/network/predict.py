"""Orientation posteriors of new particles from a trained model, batch by batch."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cryoforum.config import Config
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.predictions import Predictions, joined_predictions
from cryoforum.dataset.resampling import resampled
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.errors import InputError, require
from cryoforum.network.augmentation import turn_and_shift, turn_orientations
from cryoforum.network.heads import mean_posterior
from cryoforum.network.model import TrainedModel
from cryoforum.network.preprocessing import prepare
from cryoforum.runtime.devices import Compute, compute_for

BATCH_SIZE = 256
TTA_COPIES = (1, 4, 8)


def predict(
    model: TrainedModel,
    particles: Particles,
    *,
    tta: int | None = None,
    batch_size: int = BATCH_SIZE,
    compute: Compute | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Predictions:
    """Posteriors of all particles, in order; images are read batch by batch.

    Parameters
    ----------
    model : TrainedModel
    particles : Particles
        Of the model's box and pixel size; see `resampled_to_model`.
    tta : int, optional
        Test-time augmentation: how many turned and mirrored copies of each image the network reads, 1, 4
        or 8; `best_tta` by default. Eight cost eight times the work; their mean errs by about a fifth less.
    batch_size : int
        How many particles at a time.
    compute : Compute, optional
        Device and precision; those of `compute_for` by default, whatever the model was trained on.
    progress : callable
        Called after each batch with its number of particles.

    Returns
    -------
    Predictions
        Posteriors and expected errors in radians.

    Raises
    ------
    InputError
        Where box or pixel size is not the model's, or for another ``tta``.
    """
    check_compatible(model, particles)
    compute = compute or compute_for()
    batches = []
    for batch in loaded_batches(particles, batch_size):
        batches.append(predict_batch(model, batch, tta, compute))
        progress(len(batch))
    return joined_predictions(batches)


def best_tta(config: Config) -> int:
    """As many copies as the network learned from: eight where images were turned and mirrored."""
    learned = config.augmentation
    if learned.simulated_share == 1 or (learned.rotate and learned.mirror):
        return 8
    return 4 if learned.rotate else 1


def predict_batch(
    model: TrainedModel, batch: Particles, tta: int | None = None, compute: Compute | None = None
) -> Predictions:
    """Predictions of a few particles at once, as `predict`; equal bit by bit only for equal batches."""
    tta = best_tta(model.config) if tta is None else tta
    numbers, turns = _copies(model, batch, tta, compute)
    posterior = _posterior(model, numbers, turns)
    posterior = OrientationPosterior(model.sharpness * posterior.concentration)
    if model.config.symmetry_handling == "domain":
        numbers, turns = numbers[:1], turns[:1]  # those of one domain
    expected = model.head.expected_error(numbers, turns, posterior, model.sharpness)
    return Predictions(posterior, expected_error_rad=expected)


def _copies(
    model: TrainedModel, batch: Particles, tta: int, compute: Compute | None
) -> tuple[list[Tensor], Tensor]:
    """The numbers of each copy of images turned by quarters, of eight half are mirrored, and its turn."""
    require(tta in TTA_COPIES, f"{', '.join(map(str, TTA_COPIES))} copies of each image", tta)
    identity = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    if tta == 1:
        return [network_numbers(model, batch, compute)], identity
    count, images = len(batch), _inputs(model, batch)
    nowhere = torch.zeros(count, 2)
    numbers, turns = [], []
    for copy in range(tta):
        angle, mirrored = torch.tensor([copy % 4 * math.pi / 2]), torch.tensor([copy >= 4])
        turned = turn_and_shift(images, angle.expand(count), mirrored.expand(count), nowhere)
        numbers.append(_read(model, turned, compute))
        turns.append(turn_orientations(identity, angle, mirrored)[0])
    return numbers, torch.stack(turns)


def _posterior(model: TrainedModel, numbers: list[Tensor], turns: Tensor) -> OrientationPosterior:
    """What the network says on average of all copies."""
    if len(numbers) == 1:
        return model.head.posterior(numbers[0])
    if model.config.symmetry_handling == "domain":
        # Turned back, answers of one domain are in several: their densities cannot be averaged as they are.
        each = [model.head.posterior(one) for one in numbers]
        return mean_posterior(each, turns, model.config.symmetry)
    return model.head.posterior_of_copies(numbers, turns)


def network_numbers(model: TrainedModel, batch: Particles, compute: Compute | None = None) -> Tensor:
    """The numbers (b, k) that the head reads of each of b images; ``compute`` as for `predict`."""
    return _read(model, _inputs(model, batch), compute)


def _inputs(model: TrainedModel, batch: Particles) -> Tensor:
    raw = batch.images[torch.arange(len(batch))]
    settings, pixel_size = model.config.preprocessing, batch.pixel_size_angstrom
    return prepare(raw, batch.ctf, pixel_size, settings, model.intensity)


def _read(model: TrainedModel, images: Tensor, compute: Compute | None) -> Tensor:
    compute = compute or compute_for()
    network = model.network.to(compute.device, memory_format=torch.channels_last)
    with torch.no_grad(), compute.autocast():
        return network(images.to(compute.device)).float().cpu()


def grid_of(model: TrainedModel) -> ImageGrid:
    """Box and pixel size of the particles that the model was trained on."""
    return ImageGrid(model.box, model.pixel_size_angstrom)


def resampled_to_model(particles: Particles, model: TrainedModel) -> Particles:
    """The particles at the model's box and pixel size, resampled as they are read; poses stay.

    Particles stay as they are where boxes are equal and pixel sizes within 1 %.
    """
    own, wanted = ImageGrid(particles.box, particles.pixel_size_angstrom), grid_of(model)
    if own.is_near(wanted):
        return particles
    images = resampled(particles.images, own, wanted)
    return replace(particles, images=images, pixel_size_angstrom=wanted.pixel_size_angstrom)


def check_compatible(model: TrainedModel, particles: Particles) -> None:
    """InputError where box or pixel size is not that of the particles that the model was trained on."""
    found = ImageGrid(particles.box, particles.pixel_size_angstrom)
    if not found.is_near(grid_of(model)):
        raise InputError(
            f"the model expects particles of {grid_of(model)}, found {found}; bring them to that with "
            "resampled_to_model"
        )
