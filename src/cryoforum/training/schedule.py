"""Learning rate and momentum over the training; `choices.SCHEDULES` holds the names."""

import math

WARM_UP_SHARE = 0.3  # of the one-cycle schedule
FIXED_MOMENTUM = 0.9


def fixed_rate(progress: float, max_rate: float) -> tuple[float, float]:
    """The largest rate and one momentum throughout."""
    return max_rate, FIXED_MOMENTUM


def one_cycle(progress: float, max_rate: float) -> tuple[float, float]:
    """Cosine up, cosine down (Smith 2018; Cryo-forum, Supplementary Figure 2).

    Parameters
    ----------
    progress : float
        Through the training, 0 to 1.
    max_rate : float
        The largest rate, reached after 30 %.

    Returns
    -------
    rate : float
        From max/25 to max, then to max/250 000.
    momentum : float
        0.95, 0.85 at the largest rate, 0.95.
    """
    if progress < WARM_UP_SHARE:
        u = (1 + math.cos(math.pi * progress / WARM_UP_SHARE)) / 2
        return max_rate + (max_rate / 25 - max_rate) * u, 0.85 + 0.1 * u
    u = (1 + math.cos(math.pi * (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))) / 2
    return max_rate / 250_000 + (max_rate - max_rate / 250_000) * u, 0.95 - 0.1 * u
