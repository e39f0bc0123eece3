"""Half sets: which random half each particle belongs to."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError


def drawn_half_sets(count: int, seed: int = 0) -> Tensor:
    """Half, 1 or 2, of each of ``count`` particles: a random even split."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % 2 + 1


def checked_half_sets(particles: Particles, seed: int) -> Tensor:
    """Half, 1 or 2, of each particle (n,): the particles' own, else a seeded even split."""
    half_sets = particles.half_sets
    if half_sets is None:
        half_sets = drawn_half_sets(len(particles), seed)
    bad = ((half_sets != 1) & (half_sets != 2)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise InputError(f"expected random subset 1 or 2, found {half_sets[row].item()} at row {row}")
    if len(half_sets.unique()) < 2:
        raise InputError(
            f"expected particles in both halves, found {len(particles)} in one; "
            "leave out rlnRandomSubset to have them drawn, or select more particles"
        )
    return half_sets


def drawn_by_name(names: Sequence[str]) -> Tensor:
    """Half, 1 or 2, of each particle, by a hash of its image name: the same wherever it is drawn again."""
    digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    return torch.tensor([digest[0] % 2 + 1 for digest in digests])
