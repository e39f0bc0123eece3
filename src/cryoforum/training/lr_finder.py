"""The largest learning rate of a schedule, by a range test (Smith 2017)."""

import math
from collections.abc import Callable

import torch

from cryoforum.config import Config
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.split import Split
from cryoforum.errors import InputError
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.training.schedule import FIXED_MOMENTUM
from cryoforum.training.state import Course
from cryoforum.training.trainer import Diverged, lesson_from

SMOOTHED_RATES = 9  # steps of a range test whose median loss counts


FEWEST_RATES = 2 * SMOOTHED_RATES


def learning_rate_range(
    particles: Particles,
    config: Config,
    split: Split,
    *,
    reference: Reference | None = None,
    steps: int = 200,
    lowest: float = 1e-6,
    highest: float = 1.0,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, float]]:
    """Rates that grow from ``lowest`` to ``highest``, a step each, and the loss at them (Smith 2017).

    `suggested_rate` reads the largest rate of a schedule from it. It ends where the loss is not finite.
    """
    if steps < 2:
        raise InputError(f"expected 2 steps or more, found {steps}")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    lesson = lesson_from(particles, config, split.train, split.validation, reference, generator)
    course = Course()
    found = []
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        batch = lesson.source.next(course)
        try:
            loss = lesson.learn(batch, rate, FIXED_MOMENTUM, 0.5, step)
        except Diverged:  # where such a test is meant to end
            break
        if not math.isfinite(loss):
            break
        course.stepped(loss, len(batch.orientations), rate, FIXED_MOMENTUM)
        found.append((rate, loss))
        on_step(1)
    return found


def suggested_rate(found: list[tuple[float, float]]) -> float:
    """A tenth of the rate at which the smoothed loss of `learning_rate_range` is smallest."""
    if len(found) < FEWEST_RATES:
        raise InputError(
            f"expected {FEWEST_RATES} steps or more to choose a rate from, found {len(found)} before "
            "training diverged; start at a lower rate"
        )
    losses = torch.tensor([loss for _, loss in found])
    smooth = losses.unfold(0, SMOOTHED_RATES, 1).median(dim=-1).values
    return found[int(smooth.argmin()) + SMOOTHED_RATES // 2][0] / 10
