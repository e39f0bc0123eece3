"""Orientations drawn from Bingham distributions."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cryoforum.errors import require

DIMENSION = 4
HALVINGS = 60  # of the interval that holds b


def drawn(
    concentration: Float[Tensor, "n 4 4"], count: int, generator: torch.Generator
) -> Float[Tensor, "n c 4"]:
    """Unit quaternions (n, count, 4) from densities ∝ exp(-qᵀ A q) with A = ``concentration``.

    By rejection from an angular central Gaussian (Kent, Ganeiber & Mardia 2013, arXiv:1310.8110), which is
    exact and accepts about half of the trials however sharp the density is. InputError for a count below 0.
    """
    require(count >= 0, "a count of 0 or more", count)
    eigenvalues, axes = torch.linalg.eigh(concentration.double().cpu())
    spread = eigenvalues - eigenvalues[:, :1]
    b = _envelope(spread)
    precision = 1 + 2 * spread / b[:, None]
    bound = DIMENSION / 2 * torch.log(DIMENSION / b) - (DIMENSION - b) / 2
    owner = torch.arange(len(spread)).repeat_interleave(count)
    found = torch.zeros(len(owner), DIMENSION, dtype=torch.float64)
    missing = torch.arange(len(owner))
    while len(missing):
        own = owner[missing]
        normal = torch.randn(len(own), DIMENSION, generator=generator, dtype=torch.float64)
        trial = normalize(normal * precision[own].rsqrt(), dim=-1)
        squares = trial.square()
        log_target = -(spread[own] * squares).sum(-1)
        log_envelope = bound[own] - DIMENSION / 2 * torch.log((precision[own] * squares).sum(-1))
        chance = torch.rand(len(own), generator=generator, dtype=torch.float64)
        accepted = torch.log(chance) < log_target - log_envelope
        found[missing[accepted]] = trial[accepted]
        missing = missing[~accepted]
    turned = torch.einsum("nij,ncj->nci", axes, found.view(len(axes), count, DIMENSION))
    return turned.to(concentration)


def _envelope(spread: Tensor) -> Tensor:
    """b in (0, 4] with Σ 1 / (b + 2 λᵢ) = 1, (n,): the envelope that accepts most."""
    low, high = torch.ones(len(spread), dtype=torch.float64), torch.full((len(spread),), 4.0).double()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_above = (1 / (middle[:, None] + 2 * spread)).sum(-1) > 1
        low, high = torch.where(is_above, middle, low), torch.where(is_above, high, middle)
    return high
