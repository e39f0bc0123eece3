"""Half sets: which random half each particle belongs to, drawn here and nowhere else."""

import hashlib
from collections.abc import Sequence
from pathlib import PurePosixPath

import torch
from jaxtyping import Int
from torch import Tensor

from cryoforum.dataset.particle_table import split_image_name
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError


def drawn_half_sets(names: Sequence[str], seed: int = 0) -> Int[Tensor, " n"]:
    """Half, 1 or 2, of each particle, by a hash of its image: the same wherever it is drawn again.

    An image is its slice and the base name of its stack, so a half set stays when a project moves, when names
    are spelt otherwise, when particles are added and when a watcher begins anew. Halves are about equally
    large, not exactly.

    Parameters
    ----------
    names
        Image names, as 000001@folder/stack.mrcs.
    seed
        Another one draws other half sets.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(_image(name), digest_size=1, salt=salt).digest() for name in names)
    return torch.tensor([digest[0] % 2 + 1 for digest in digests], dtype=torch.long)


def _image(name: str) -> bytes:
    number, stack = split_image_name(name)
    number = number.removesuffix("@")
    text = f"{int(number)}@{PurePosixPath(stack).name}" if number.isdecimal() else name
    return text.encode("utf-8", "surrogateescape")


def checked_half_sets(particles: Particles, seed: int = 0) -> Int[Tensor, " n"]:
    """Half, 1 or 2, of each particle: its own, else `drawn_half_sets`.

    InputError where one is neither 1 nor 2, or all are in one half.
    """
    half_sets = particles.half_sets
    if half_sets is None:
        half_sets = drawn_half_sets(particles.names, seed)
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
