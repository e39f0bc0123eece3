"""Learning rate and momentum over the training."""

import math

WARM_UP_SHARE = 0.3  # of the one-cycle schedule


FIXED_MOMENTUM = 0.9


def learning_rate_and_momentum(schedule: str, fraction: float, max_rate: float) -> tuple[float, float]:
    """Both at ``fraction`` of training: `one_cycle`, or "fixed" at the largest rate."""
    return one_cycle(fraction, max_rate) if schedule == "one_cycle" else (max_rate, FIXED_MOMENTUM)


def one_cycle(fraction: float, max_rate: float) -> tuple[float, float]:
    """Learning rate and momentum at ``fraction`` of training (Smith 2018): cosine up, cosine down.

    Rate from max/25 to max in the first 30 %, then to max/250 000; momentum 0.95, 0.85, 0.95 (Cryo-forum,
    Supplementary Figure 2).
    """
    if fraction < WARM_UP_SHARE:
        u = (1 + math.cos(math.pi * fraction / WARM_UP_SHARE)) / 2
        return max_rate + (max_rate / 25 - max_rate) * u, 0.85 + 0.1 * u
    u = (1 + math.cos(math.pi * (fraction - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))) / 2
    return max_rate / 250_000 + (max_rate - max_rate / 250_000) * u, 0.95 - 0.1 * u
