"""How one training is run, and parts of a caller's own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cryoforum.network.model import TrainedModel
from cryoforum.runtime.reporter import TrainingProgress
from cryoforum.training.losses import Loss

OnStep = Callable[[TrainingProgress], bool | None]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainingOptions:
    """How one training is run, besides the configuration of what it makes.

    Attributes
    ----------
    seed : int
        Of first weights, dropout and batches.
    max_minutes : float, optional
        Length of the training; by default ``config.training.image_passes`` says it.
    state_path : Path, optional
        File that keeps the state of the training, so that it can be resumed after a kill.
    resume : bool
        Go on from ``state_path``.
    device, precision : str
        As in `runtime.devices.compute_for`.
    start : TrainedModel, optional
        Of the same network and preprocessing: its weights are gone on from.
    on_step : callable, optional
        Told of the progress after each step; where it returns True the training validates and ends, and what
        was best until then is kept.
    progress : bool
        Show bars in a terminal or a notebook, as the command line does; a reporter that is given goes first.
    loss : callable, optional
        As of `training.losses.Loss`, instead of the loss that the configuration names.
    network : Module, optional
        From images (b, m, m) to the numbers (b, k) of the head, trained in place, instead of a new one. A
        model of it works, but only parts that are registered can be saved.
    optimizer : callable, optional
        Makes an optimizer of two groups of parameters, weights of layers and the rest; None for AdamW. Its
        rate, and the first β if it has any, follow the schedule.
    """

    seed: int = 0
    max_minutes: float | None = None
    state_path: Path | None = None
    resume: bool = False
    device: str = "auto"
    precision: str = "auto"
    start: TrainedModel | None = None
    on_step: OnStep | None = None
    progress: bool = False
    loss: Loss | None = None
    network: nn.Module | None = None
    optimizer: MakeOptimizer | None = None


DEFAULT_OPTIONS = TrainingOptions()
