"""Half sets: which random half each particle belongs to."""

import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles


def drawn_subsets(count: int, seed: int = 0) -> Tensor:
    """Half, 1 or 2, of each of ``count`` particles: a random even split."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % 2 + 1


def checked_subsets(particles: Particles, seed: int) -> Tensor:
    """Half, 1 or 2, of each particle (n,): the particles' own, else a seeded even split."""
    subsets = particles.subsets
    if subsets is None:
        subsets = drawn_subsets(len(particles), seed)
    bad = ((subsets != 1) & (subsets != 2)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"expected random subset 1 or 2, found {subsets[row].item()} at row {row}")
    if len(subsets.unique()) < 2:
        raise ValueError(
            f"expected particles in both halves, found {len(particles)} in one; "
            "leave out rlnRandomSubset to have them drawn, or select more particles"
        )
    return subsets
