"""One step of training, and one validation: all they need, made once from particles and a configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import in_fundamental_domain, symmetric_distance, symmetry_group
from cryoforum.network.heads import head_of
from cryoforum.network.model import OrientationNetwork
from cryoforum.network.preprocessing import Intensity, prepare_all, set_intensity
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import best_device, mixed_precision, settle_on
from cryoforum.runtime.distributed import (
    average_gradients,
    averaged,
    from_first,
    joined_shares,
    own_share,
    process_rank_and_count,
    refuse_unequal_shares,
)
from cryoforum.training.batches import Batch, BatchSource, image_count, simulated_count
from cryoforum.training.losses import Loss, l2_penalty, loss_function
from cryoforum.training.simulated_images import image_simulator

VALIDATION_LIMIT = 2000  # particles it is taken on: enough for a median, and no cost on large sets
GRADIENT_NORM_LIMIT = 5.0


class Diverged(InputError):
    """The network's numbers are no longer finite."""


@dataclass(frozen=True)
class Lesson:
    """A network and what it learns from; network and optimizer change with every `learn`.

    validation_images: network inputs (v, m, m), of several processes each its share, and validation_truth:
    (v, 4) the orientations of all. intensity: where the set is standardised as a whole.
    """

    config: Config
    network: OrientationNetwork
    optimizer: torch.optim.Optimizer
    loss: Loss
    source: BatchSource
    validation_images: Tensor
    validation_truth: Tensor
    intensity: Intensity | None
    device: torch.device

    def learn(self, batch: Batch, rate: float, momentum: float, progress: float, step: int) -> float:
        """One step of the optimizer; the loss before it. `Diverged` where numbers are no longer finite.

        Processes that share the batch (see `processes`) all take the same step, that of the whole batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, group["betas"][1])
        with mixed_precision(self.device):
            numbers = self.network(batch.images.to(self.device)).float()
        if averaged(float(torch.isfinite(numbers).all())) < 1:
            raise Diverged(f"training diverged in step {step}; lower max_learning_rate")
        loss = self.loss(numbers, batch.orientations.to(self.device), batch.pairs, progress, step)
        if self.config.training.l2:
            kernels = self.optimizer.param_groups[0]["params"]
            loss = loss + self.config.training.l2 * l2_penalty(kernels)
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM_LIMIT)
        self.optimizer.step()
        return averaged(loss.item())

    def validate(self) -> tuple[float, float]:
        """Median and mean orientation error in radians, to the nearest equivalent; not finite if diverged."""
        self.network.eval()
        errors = self._validation_errors()
        self.network.train()
        errors = joined_shares(errors, len(self.validation_truth))
        return errors.median().item(), errors.mean().item()

    def _validation_errors(self) -> Tensor:
        """Of this process's share of the images; NaN where the network's numbers are not finite."""
        head = head_of(self.config.network, self.config.learned_symmetry)
        group = symmetry_group(self.config.symmetry)
        truths = self.validation_truth[own_share()]
        errors = [torch.empty(0)]
        for images, truth in zip(self.validation_images.split(256), truths.split(256), strict=True):
            if not len(images):  # more processes than images
                continue
            with torch.no_grad(), mixed_precision(self.device):
                numbers = self.network(images.to(self.device)).float().cpu()
            if torch.isfinite(numbers).all():
                errors.append(symmetric_distance(head.posterior(numbers).mode, truth, group))
            else:
                errors.append(torch.full((len(numbers),), math.nan))
        return torch.cat(errors)


def lesson_from(
    particles: Particles,
    config: Config,
    training_rows: Tensor,
    validation_rows: Tensor,
    reference: Reference | None,
    generator: torch.Generator,
    progress: Callable[[int], None] = lambda count: None,
) -> Lesson:
    """A new network, and the images of the given rows in memory.

    Of several processes each prepares its share of the images and gets those to learn from from the others.
    ``reference`` is what simulated images show. InputError: particles without poses, or no such reference.
    """
    if particles.poses is None:
        raise InputError("expected particles with rlnAngleRot, rlnAngleTilt and rlnAnglePsi to learn from")
    is_simulated = simulated_count(config) > 0
    if is_simulated and reference is None:
        raise InputError("expected a reference, as simulated_share is above 0, found none to simulate from")
    refuse_unequal_shares(image_count(config, len(training_rows)))
    device = best_device()
    settle_on(device)
    settings = config.preprocessing
    training = particles.select(training_rows)
    validation_rows = validation_rows[:VALIDATION_LIMIT]
    intensity = None
    if settings.standardise == "set":
        intensity = from_first(lambda: set_intensity(training, settings))
    _, process_count = process_rank_and_count()

    def prepared_share(rows: Tensor) -> Tensor:
        return prepare_all(
            particles.select(rows[own_share()]),
            settings,
            intensity=intensity,
            progress=lambda count: progress(count * process_count),
        )

    orientations = particles.poses.quaternions[training_rows]
    if config.symmetry_handling == "domain":
        orientations = in_fundamental_domain(orientations, symmetry_group(config.symmetry))
    simulator = None
    if is_simulated and reference is not None:
        simulator = image_simulator(training, reference, settings, intensity, device)
    source = BatchSource(
        images=joined_shares(prepared_share(training_rows), len(training_rows)),
        orientations=orientations,
        ctf=training.ctf,
        pixel_size_angstrom=particles.box * particles.pixel_size_angstrom / settings.box,
        config=config,
        simulator=simulator,
        generator=generator,
        device=device,
    )
    loss = loss_function(config, generator, device)
    network = OrientationNetwork(config.network, settings.box, config.learned_symmetry).to(device)
    network = network.to(memory_format=torch.channels_last)
    return Lesson(
        config=config,
        network=network,
        optimizer=_optimizer(network, config),
        loss=loss,
        source=source,
        validation_images=prepared_share(validation_rows),
        validation_truth=particles.poses.quaternions[validation_rows],
        intensity=intensity,
        device=device,
    )


def _optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW; weights of convolutions and dense layers are its first group, the others do not decay."""
    kernels = [weight for weight in network.parameters() if weight.ndim in (2, 4)]
    others = [weight for weight in network.parameters() if weight.ndim not in (2, 4)]
    groups = [
        {"params": kernels, "weight_decay": config.training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.training.max_learning_rate, betas=(0.95, 0.99), eps=1e-7, fused=True
    )
