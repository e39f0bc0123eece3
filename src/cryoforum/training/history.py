"""What a training has done so far, and the best weights it has found."""

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from cryoforum.runtime.reporter import TrainingProgress

LOG_INTERVAL_STEPS = 20
AVERAGED_STEPS = 50  # over about so many the shown loss is a mean
VALIDATIONS = 20  # times in a training that the validation error is taken


@dataclass
class TrainingHistory:
    """Counts, the log and the best weights of a training.

    Attributes
    ----------
    steps, images : int
        Optimizer steps, and training images shown in them.
    seconds : float
        Time of training, without what lay between a kill and its resumption.
    mean_loss : float
        Running mean.
    validations : int
        Number of the next validation, from 1, of `VALIDATIONS` evenly spread ones.
    best_median_rad : float, optional
        Smallest median validation error so far.
    chance_median_rad : float, optional
        What guessing would give, at the same validation.
    best_weights : dict
        State of the network that had it; empty before the first validation.
    log : list of dict
        Lines of `log.csv`: every twentieth step, and every validation.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    mean_loss: float = 0.0
    validations: int = 1
    best_median_rad: float | None = None
    chance_median_rad: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)

    def validation_is_due(self, progress: float) -> bool:
        """Whether to validate at this ``progress`` (0 to 1) through the training."""
        return progress >= 1 or (progress >= self.validations / VALIDATIONS and self.steps > 0)

    def add_step(self, loss: float, images: int, rate: float, momentum: float) -> None:
        """Count a step, and log every twentieth."""
        self.steps += 1
        self.images += images
        self.mean_loss += (loss - self.mean_loss) / min(self.steps, AVERAGED_STEPS)
        if self.steps % LOG_INTERVAL_STEPS == 0:
            self._log(learning_rate=rate, momentum=momentum, train_loss=self.mean_loss)

    def add_validation(
        self, progress: float, errors_rad: Tensor, chance_rad: Tensor, network: nn.Module
    ) -> None:
        """Log a validation, and keep the weights where the median of its errors is the least so far.

        errors_rad, chance_rad: (v,) of the network, and of its orientations dealt out to other particles.
        """
        self.validations = int(progress * VALIDATIONS) + 1
        median = errors_rad.median().item()
        self._log(validation_median_rad=median, validation_mean_rad=errors_rad.mean().item())
        if math.isfinite(median) and (self.best_median_rad is None or median < self.best_median_rad):
            self.best_median_rad = median
            self.chance_median_rad = chance_rad.median().item()
            self.best_weights = {name: w.detach().clone() for name, w in network.state_dict().items()}

    def progress(self, fraction: float) -> TrainingProgress:
        """Where the training stands, ``fraction`` of it being done."""
        known = [line["validation_median_rad"] for line in self.log if "validation_median_rad" in line]
        return TrainingProgress(
            fraction=min(fraction, 1.0),
            images=self.images,
            loss=self.mean_loss,
            validation_median_rad=self.best_median_rad,
            step=self.steps,
            seconds=self.seconds,
            current_median_rad=known[-1] if known else None,
        )

    def _log(self, **values: float) -> None:
        self.log.append({"step": self.steps, "images": self.images, "seconds": self.seconds, **values})
