"""All that changes while a training goes on, besides network and optimizer, so that a kill loses little."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cryoforum.errors import InputError
from cryoforum.storage.files import replacing

LOG_INTERVAL_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it."""

    fraction: float
    images: int
    loss: float
    validation_median_rad: float | None


class Course:
    """All that changes while training goes on, besides network and optimizer."""

    def __init__(self) -> None:
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.mean_loss, self.validations = 0.0, 1
        self.best_median: float | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.log: list[dict[str, float]] = []

    def next_rows(self, count: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """The next batch of a walk through all ``count`` rows in random order, then again in another."""
        size = min(batch_size, count)
        if self.position + size > len(self.order):
            self.order = torch.randperm(count, generator=generator)
            self.position = 0
        self.position += size
        return self.order[self.position - size : self.position]

    def stepped(self, loss: float, images: int, rate: float, momentum: float) -> None:
        """Count a step, and log every twentieth."""
        self.step += 1
        self.images += images
        self.mean_loss += (loss - self.mean_loss) / min(self.step, 50)
        if self.step % LOG_INTERVAL_STEPS == 0:
            self._record(learning_rate=rate, momentum=momentum, train_loss=self.mean_loss)

    def validated(self, median: float, mean: float, network: nn.Module) -> None:
        """Log a validation, and keep the weights where they are the best so far."""
        self._record(validation_median_rad=median, validation_mean_rad=mean)
        if math.isfinite(median) and (self.best_median is None or median < self.best_median):
            self.best_median = median
            self.best_weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def _record(self, **values: float) -> None:
        self.log.append({"step": self.step, "images": self.images, "seconds": self.seconds, **values})

    def state(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, Any]:
        """What `restored_course` needs to go on."""
        return {
            "course": dict(vars(self)),
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "dropout_generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }


def restored_course(
    state: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> Course:
    """The course that a `Course.state` describes; network, optimizer and generator are set to it, too."""
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["dropout_generator"])
    if state["cuda_generators"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_generators"][: torch.cuda.device_count()])
    course = Course()
    vars(course).update(state["course"])
    return course


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write what training needs to go on; the previous state stays until the new one is complete."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its way to say that the disk is full
            raise OSError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state; InputError where there is none. Tensors and plain values only."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"expected a training state to resume at {path}: {error}") from error
