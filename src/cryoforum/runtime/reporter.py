"""Who is told how a long step gets on. Messages that a user should read go through `logging` instead."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training stands.

    fraction: of the schedule, 0 to 1. images: shown so far. loss: running mean. validation_median_rad: best
    median orientation error so far in radians, None before the first validation. step: how many there were.
    seconds: since the start. current_median_rad: of the last validation.
    """

    fraction: float
    images: int
    loss: float
    validation_median_rad: float | None
    step: int = 0
    seconds: float = 0.0
    current_median_rad: float | None = None


class Reporter:
    """Shows nothing; whoever wants to show progress overrides a method."""

    def progress(self, description: str, total: int) -> Callable[[int], None]:
        """Begin a step of ``total`` images by its ``description``; what is returned is told of more done."""
        return lambda count: None

    def training(self, progress: TrainingProgress) -> None:
        """Called after every step of a training, with its ``progress``."""


SILENT = Reporter()
