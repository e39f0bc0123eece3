"""Particles that stand for all of a set."""

import torch
from torch import Tensor

from cryoforum.errors import InputError

OUTLIER_VARIANCE = 10.0  # of an image over the median: ice or metal, which would pass for everyone's noise


def evenly_spaced_rows(count: int, most: int) -> Tensor:
    """At most ``most`` of ``count`` rows, (m,) int64, spread evenly from the first to the last."""
    return torch.linspace(0, count - 1, min(most, count), dtype=torch.float64).round().long()


def has_usual_contrast(variance: Tensor) -> Tensor:
    """Which images are neither constant nor far stronger than the others, (n,) bool.

    Parameters
    ----------
    variance : (n,) of the pixels of each image.

    Raises
    ------
    InputError : where at least half of the images are constant.
    """
    usual = variance.median()
    if not usual > 0:
        raise InputError("expected particles with contrast, found constant images for at least half of them")
    return (variance > 0) & (variance < OUTLIER_VARIANCE * usual)
