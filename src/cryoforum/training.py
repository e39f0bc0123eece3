"""Learn orientations from particles whose poses are known."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cryoforum.bingham import psd_from_lower_triangle, smallest_eigenvector
from cryoforum.checkpoint import TrainedModel, load_state, save_state
from cryoforum.compute import best_device, mixed_precision
from cryoforum.config import Config, as_plain_dict
from cryoforum.harmonics import mean_log_likelihood, rotation_polynomials
from cryoforum.losses import l2_penalty, pair_loss
from cryoforum.network import OrientationNetwork
from cryoforum.network.heads import beliefs
from cryoforum.particles import Particles
from cryoforum.preprocessing import augment, prepare_all
from cryoforum.rotations import compose, random_unitquat
from cryoforum.so3grid import rotation_grid
from cryoforum.symmetry import symmetric_distance, symmetry_group

VALIDATIONS = 20  # times in a training that the validation error is taken
VALIDATION_LIMIT = 2000  # particles it is taken on: enough for a median, and no cost on large sets
STATE_INTERVAL_SECONDS = 30.0
GRADIENT_NORM_LIMIT = 5.0
WARM_UP_SHARE = 0.3  # of the one-cycle schedule
LOG_INTERVAL_STEPS = 20


@dataclass(frozen=True)
class Split:
    """Disjoint rows: to learn from, to choose the best weights by, to report on."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it."""

    fraction: float
    images: int
    loss: float
    validation_median_rad: float | None


def split_rows(
    count: int, validation_share: float = 0.1675, test_share: float = 0.33, *, seed: int = 0
) -> Split:
    """A random split; the defaults give 2512/838/1650 of 5000, as Cryo-forum has it."""
    if not (validation_share > 0 and test_share >= 0 and validation_share + test_share < 1):
        raise ValueError(
            "expected shares for validation above 0 and test of 0 or more with room left to train, "
            f"found {validation_share} and {test_share}"
        )
    test = round(count * test_share)
    validation = math.ceil(count * validation_share)
    if count - test - validation < 2:
        raise ValueError(f"expected more particles to split, found {count}; add some or change --split")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = test + validation
    return Split(order[held_out:], order[test:held_out], order[:test])


def train(
    particles: Particles,
    config: Config,
    split: Split,
    *,
    seed: int = 0,
    max_minutes: float | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    on_prepare: Callable[[int], None] = lambda count: None,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> TrainedModel:
    """The model with the smallest validation error of one one-cycle training.

    The schedule spans ``config.training.image_passes``, or ``max_minutes`` where given. A state is
    kept at ``state_path`` so that ``resume`` goes on after a kill. ValueError: particles without poses.
    """
    if particles.poses is None:
        raise ValueError("expected particles with rlnAngleRot, rlnAngleTilt and rlnAnglePsi to learn from")
    device = best_device()
    images = prepare_all(particles, config.preprocessing, progress=on_prepare)
    truth = particles.poses.quaternions
    settings = config.training
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    loss_of = _loss_function(config, generator, device)
    network = OrientationNetwork(config.network, config.preprocessing.box, config.symmetry).to(device)
    network = network.to(memory_format=torch.channels_last)
    optimizer = _optimizer(network, config)
    kernels = optimizer.param_groups[0]["params"]
    course = _Course()
    made_with = {
        "config": as_plain_dict(config),
        "seed": seed,
        "max_minutes": max_minutes,
        "particles": _fingerprint(particles, split),
    }
    if resume:
        state = load_state(_needed(state_path))
        if state.get("made_with") != made_with:
            raise ValueError(
                "expected the settings, seed and particles of the training to be resumed, found others; "
                "give the same STAR file, --preset, --config, --split, --seed and --max-minutes"
            )
        course = _restored(state, network, optimizer, generator)
    start = time.monotonic() - course.seconds
    saved = time.monotonic()
    while True:
        course.seconds = time.monotonic() - start
        fraction = (
            course.images / settings.image_passes
            if max_minutes is None
            else course.seconds / (60 * max_minutes)
        )
        done = fraction >= 1
        if done or fraction >= course.validations / VALIDATIONS and course.step > 0:
            median, mean = _validation_error(network, images, truth, split.validation, config, device)
            course.validations = int(fraction * VALIDATIONS) + 1
            course.validated(median, mean, network)
            on_step(Progress(min(fraction, 1), course.images, course.mean_loss, course.best_median))
        if done:
            break
        rate, momentum = one_cycle(fraction, settings.max_learning_rate)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, group["betas"][1])

        rows = course.next_rows(split.train, settings.batch_size, generator)
        batch, orientation = images[rows], truth[rows]
        if settings.augment:
            batch, orientation = augment(batch, orientation, settings.max_shift_pixel, generator)
        with mixed_precision(device):
            numbers = network(batch.to(device)).float()
        if not torch.isfinite(numbers).all():
            raise ValueError(f"training diverged after {course.images} images; lower max_learning_rate")
        loss = loss_of(numbers, orientation.to(device), fraction, course.step)
        if settings.l2:
            loss = loss + settings.l2 * l2_penalty(kernels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM_LIMIT)
        optimizer.step()

        course.stepped(loss.item(), len(rows), rate, momentum)
        on_step(Progress(fraction, course.images, course.mean_loss, course.best_median))
        if state_path is not None and time.monotonic() - saved > STATE_INTERVAL_SECONDS:
            state = course.state(network, optimizer, generator)
            save_state({**state, "made_with": made_with}, state_path)
            saved = time.monotonic()

    if not course.best_weights:
        raise ValueError("training found no finite validation error; lower the learning rate")
    network.load_state_dict(course.best_weights)
    return TrainedModel(
        network=network.cpu().eval(),
        config=config,
        box=particles.box,
        pixel_size_angstrom=particles.pixel_size_angstrom,
        validation_median_rad=course.best_median or math.inf,
        log=course.log,
        parts=_parts(particles, split),
    )


def one_cycle(fraction: float, max_rate: float) -> tuple[float, float]:
    """Learning rate and momentum at ``fraction`` of training (Smith 2018): cosine up, cosine down.

    Rate from max/25 to max in the first 30 %, then to max/250 000; momentum 0.95, 0.85, 0.95.
    """
    if fraction < WARM_UP_SHARE:
        u = (1 + math.cos(math.pi * fraction / WARM_UP_SHARE)) / 2
        return max_rate + (max_rate / 25 - max_rate) * u, 0.85 + 0.1 * u
    u = (1 + math.cos(math.pi * (fraction - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))) / 2
    return max_rate / 250_000 + (max_rate - max_rate / 250_000) * u, 0.95 - 0.1 * u


class _Course:
    """All that changes while training goes on, besides network and optimizer."""

    def __init__(self) -> None:
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.mean_loss, self.validations = 0.0, 1
        self.best_median: float | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.log: list[dict[str, float]] = []

    def next_rows(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The next batch of a walk through all rows in random order, then again in another."""
        size = min(batch_size, len(rows))
        if self.position + size > len(self.order):
            self.order = rows[torch.randperm(len(rows), generator=generator)]
            self.position = 0
        self.position += size
        return self.order[self.position - size : self.position]

    def stepped(self, loss: float, images: int, rate: float, momentum: float) -> None:
        self.step += 1
        self.images += images
        self.mean_loss += (loss - self.mean_loss) / min(self.step, 50)
        if self.step % LOG_INTERVAL_STEPS == 0:
            self._record(learning_rate=rate, momentum=momentum, train_loss=self.mean_loss)

    def validated(self, median: float, mean: float, network: nn.Module) -> None:
        self._record(validation_median_rad=median, validation_mean_rad=mean)
        if math.isfinite(median) and (self.best_median is None or median < self.best_median):
            self.best_median = median
            self.best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def _record(self, **values: float) -> None:
        self.log.append({"step": self.step, "images": self.images, "seconds": self.seconds, **values})

    def state(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, Any]:
        return {
            "course": dict(vars(self)),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "dropout_generator": torch.get_rng_state(),
        }


def _restored(
    state: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> _Course:
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["dropout_generator"])
    course = _Course()
    vars(course).update(state["course"])
    return course


def _needed(state_path: Path | None) -> Path:
    if state_path is None:
        raise ValueError("expected state_path, the file to resume from")
    return state_path


def _optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    kernels = [weight for weight in network.parameters() if weight.ndim in (2, 4)]
    others = [weight for weight in network.parameters() if weight.ndim not in (2, 4)]
    groups = [
        {"params": kernels, "weight_decay": config.training.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.training.max_learning_rate, betas=(0.95, 0.99), eps=1e-7)


def _loss_function(
    config: Config, generator: torch.Generator, device: torch.device
) -> Callable[[Tensor, Tensor, float, int], Tensor]:
    """The loss of (numbers, true orientations, fraction of training, step) that belongs to the head."""
    settings = config.training
    if config.network.head == "qcqp":

        def paper_loss(numbers: Tensor, truth: Tensor, fraction: float, step: int) -> Tensor:
            predicted = smallest_eigenvector(psd_from_lower_triangle(numbers))
            return pair_loss(predicted, truth, fraction, settings.curriculum_exponent, config.symmetry)

        return paper_loss

    polynomials = rotation_polynomials(config.network.degree, config.symmetry)
    base = rotation_grid(settings.grid_nside)
    # Turned copies in turn: a density that hides its mass between the points of one is caught by the next.
    turns = random_unitquat(settings.grid_count, generator=generator)
    grids = [polynomials.features(compose(turn, base)).to(device) for turn in turns]

    def likelihood_loss(numbers: Tensor, truth: Tensor, fraction: float, step: int) -> Tensor:
        grid = grids[step % len(grids)]
        return -mean_log_likelihood(numbers, polynomials.features(truth), grid)

    return likelihood_loss


def _validation_error(
    network: nn.Module,
    images: Tensor,
    truth: Tensor,
    rows: Tensor,
    config: Config,
    device: torch.device,
) -> tuple[float, float]:
    """Median and mean orientation error in radians, to the nearest equivalent."""
    rows = rows[:VALIDATION_LIMIT]
    network.eval()
    modes = []
    for part in rows.split(256):
        with torch.no_grad(), mixed_precision(device):
            numbers = network(images[part].to(device)).float().cpu()
        if not torch.isfinite(numbers).all():
            network.train()
            return math.nan, math.nan
        modes.append(beliefs(numbers, config.network, config.symmetry).mode)
    network.train()
    errors = symmetric_distance(torch.cat(modes), truth[rows], symmetry_group(config.symmetry))
    return errors.median().item(), errors.mean().item()


def _fingerprint(particles: Particles, split: Split) -> str:
    """Tells one training set from another: names, orientations and what each particle is used for."""
    digest = hashlib.sha256("\n".join(particles.names).encode())
    poses = particles.poses.quaternions if particles.poses is not None else torch.empty(0)
    for values in (poses, split.train, split.validation, split.test):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _parts(particles: Particles, split: Split) -> dict[str, str]:
    parts = {}
    for part in ("train", "validation", "test"):
        parts.update({particles.names[row]: part for row in getattr(split, part).tolist()})
    return parts
