"""Which images hold no particle, by what their comparison with a reference says."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Below half of the expected strength an image without a particle is the likelier explanation: the gain of the
# log-likelihood is negative. It is not 0 in noise, as the best of many poses always fits a little: up to 0.46
# in noise beside particles of signal-to-noise ratio 0.1, more where particles are fainter.
JUNK_SCALE = 0.5
JUNK_ERROR_DEG = 20.0  # a pose with such an expected error says nothing, whatever the image holds
_STRONG = 0.9  # quantile of the strength that is taken for that of particles at first


def is_probably_junk(
    signal_scale: Float[Tensor, " n"], gain: Float[Tensor, " n"], expected_error_deg: Float[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Images with a signal scale below `JUNK_SCALE`, no gain, or an error beyond `JUNK_ERROR_DEG`.

    Parameters
    ----------
    signal_scale, gain
        Strength of the particle, and log-likelihood of the image with it over that of noise alone.
    expected_error_deg
        Of the orientation.
    """
    return (signal_scale < JUNK_SCALE) | (gain < 0) | (expected_error_deg > JUNK_ERROR_DEG)


def is_of_usual_strength(signal_scale: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Images at least `JUNK_SCALE` times as strong as the median of all such images.

    Only ratios count, so the scale may be a first guess that junk has lowered. Up to nine in ten images may
    be junk; where all are alike, all are usual.
    """
    usual = torch.ones_like(signal_scale, dtype=torch.bool)
    strength = signal_scale.quantile(_STRONG)
    while True:
        smaller = signal_scale >= JUNK_SCALE * strength
        if torch.equal(smaller, usual) or not smaller.any():
            return usual
        usual = smaller
        strength = signal_scale[usual].median()
