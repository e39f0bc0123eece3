"""One step of training, and one validation: all they need, made once from particles and a configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cryoforum.batches import Batch, BatchSource, simulated_count
from cryoforum.compute import best_device, mixed_precision
from cryoforum.config import Config
from cryoforum.imitation import imitation_of
from cryoforum.losses import Loss, l2_penalty, loss_function
from cryoforum.network import OrientationNetwork
from cryoforum.network.heads import head_of
from cryoforum.particles import Particles
from cryoforum.preprocessing import Intensity, prepare_all, set_intensity
from cryoforum.reference import Reference
from cryoforum.symmetry import in_fundamental_domain, symmetric_distance, symmetry_group

VALIDATION_LIMIT = 2000  # particles it is taken on: enough for a median, and no cost on large sets
GRADIENT_NORM_LIMIT = 5.0


class Diverged(ValueError):
    """The network's numbers are no longer finite."""


@dataclass(frozen=True)
class Lesson:
    """A network and what it learns from; network and optimizer change with every `learn`.

    validation_images: (v, m, m) network inputs, and validation_truth: (v, 4) their orientations. intensity:
    where the set is standardised as a whole.
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
        """One step of the optimizer; the loss before it. `Diverged` where numbers are no longer finite."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, group["betas"][1])
        with mixed_precision(self.device):
            numbers = self.network(batch.images.to(self.device)).float()
        if not torch.isfinite(numbers).all():
            raise Diverged(f"training diverged in step {step}; lower max_learning_rate")
        loss = self.loss(numbers, batch.orientations.to(self.device), batch.pairs, progress, step)
        if self.config.training.l2:
            kernels = self.optimizer.param_groups[0]["params"]
            loss = loss + self.config.training.l2 * l2_penalty(kernels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM_LIMIT)
        self.optimizer.step()
        return loss.item()

    def validate(self) -> tuple[float, float]:
        """Median and mean orientation error in radians, to the nearest equivalent; not finite if diverged."""
        head = head_of(self.config.network, self.config.learned_symmetry)
        self.network.eval()
        modes = []
        for images in self.validation_images.split(256):
            with torch.no_grad(), mixed_precision(self.device):
                numbers = self.network(images.to(self.device)).float().cpu()
            if not torch.isfinite(numbers).all():
                self.network.train()
                return math.nan, math.nan
            modes.append(head.belief(numbers).mode)
        self.network.train()
        group = symmetry_group(self.config.symmetry)
        errors = symmetric_distance(torch.cat(modes), self.validation_truth, group)
        return errors.median().item(), errors.mean().item()


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

    ``reference`` is what simulated images show. ValueError: particles without poses, or no such reference.
    """
    if particles.poses is None:
        raise ValueError("expected particles with rlnAngleRot, rlnAngleTilt and rlnAnglePsi to learn from")
    is_simulated = simulated_count(config) > 0
    if is_simulated and reference is None:
        raise ValueError("expected a reference, as simulated_share is above 0, found none to simulate from")
    device = best_device()
    settings = config.preprocessing
    training = particles.select(training_rows)
    validation_rows = validation_rows[:VALIDATION_LIMIT]
    intensity = set_intensity(training, settings) if settings.standardise == "set" else None

    def prepared(rows: Tensor) -> Tensor:
        return prepare_all(particles.select(rows), settings, intensity=intensity, progress=progress)

    orientations = particles.poses.quaternions[training_rows]
    if config.symmetry_handling == "domain":
        orientations = in_fundamental_domain(orientations, symmetry_group(config.symmetry))
    imitation = None
    if is_simulated and reference is not None:
        imitation = imitation_of(training, reference, settings, intensity)
    source = BatchSource(
        images=prepared(training_rows),
        orientations=orientations,
        optics=training.optics,
        pixel_size_angstrom=particles.box * particles.pixel_size_angstrom / settings.box,
        config=config,
        imitation=imitation,
        generator=generator,
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
        validation_images=prepared(validation_rows),
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
