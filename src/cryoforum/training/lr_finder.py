"""The largest learning rate of a schedule, by a range test (Smith 2017)."""

import math
from dataclasses import dataclass

import torch

from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split
from cryoforum.errors import require
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import compute_for
from cryoforum.runtime.distributed import refuse_different
from cryoforum.runtime.reporter import SILENT, Reporter
from cryoforum.training.data import training_data
from cryoforum.training.options import TrainingOptions
from cryoforum.training.schedule import FIXED_MOMENTUM
from cryoforum.training.trainer import Diverged, Trainer

SMOOTHED_RATES = 9  # steps of a range test whose median loss counts
FEWEST_RATES = 2 * SMOOTHED_RATES


@dataclass(frozen=True)
class RangeTestOptions:
    """How a range test is run.

    Attributes
    ----------
    steps : int
        Training steps, 2 or more.
    lowest, highest : float
        Learning rates of the first and the last step.
    seed : int
        Of first weights, dropout and batches.
    device, precision : str
        As in `runtime.devices.compute_for`.
    """

    steps: int = 200
    lowest: float = 1e-6
    highest: float = 1.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        require(self.steps >= 2, "2 steps or more", self.steps)


def learning_rate_range(
    particles: Particles,
    config: Config,
    split: Split,
    options: RangeTestOptions = RangeTestOptions(),
    *,
    reference: Reference | None = None,
    reporter: Reporter = SILENT,
) -> list[tuple[float, float]]:
    """Losses while the learning rate grows geometrically, step by step (Smith 2017).

    Parameters
    ----------
    particles, config, split, reference
        As in `training.loop.train`.
    options : RangeTestOptions
    reporter : Reporter
        Shows how many images are prepared, then how many steps are done.

    Returns
    -------
    list of (float, float)
        Learning rate and loss of each step, up to where the loss is no longer finite. `suggested_rate` reads
        the largest rate of a schedule from it.
    """
    compute = compute_for(options.device, options.precision)
    refuse_different((options, compute.device.type, compute.precision, len(particles)))
    data = training_data(particles, config, split, compute, reference=reference, reporter=reporter)
    trainer = Trainer(config, data, compute, TrainingOptions(options.seed))
    advance = reporter.progress("raising the rate", options.steps)
    found = []
    for step in range(options.steps):
        rate = options.lowest * (options.highest / options.lowest) ** (step / (options.steps - 1))
        try:
            loss = trainer.step(trainer.batches.next(), rate, FIXED_MOMENTUM, progress=0.5)
        except Diverged:  # where such a test is meant to end
            break
        if not math.isfinite(loss):
            break
        found.append((rate, loss))
        advance(1)
    return found


def suggested_rate(found: list[tuple[float, float]]) -> float:
    """A tenth of the rate at which the smoothed loss is smallest.

    Parameters
    ----------
    found : list of (float, float)
        From `learning_rate_range`.

    Raises
    ------
    InputError
        Where it has fewer than `FEWEST_RATES` steps.
    """
    expected = f"{FEWEST_RATES} steps or more to choose a rate from"
    fewer = f"{len(found)} before training diverged; start at a lower rate"
    require(len(found) >= FEWEST_RATES, expected, fewer)
    losses = torch.tensor([loss for _, loss in found])
    smooth = losses.unfold(0, SMOOTHED_RATES, 1).median(dim=-1).values
    return found[int(smooth.argmin()) + SMOOTHED_RATES // 2][0] / 10
