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


def drawn_half_sets(
    names: Sequence[str], seed: int = 0, sources: Int[Tensor, " n"] | None = None
) -> Int[Tensor, " n"]:
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
    sources
        `Particles.sources`: images of one place are in one half, also where links give them other names.
    """
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(_image(name), digest_size=1, salt=salt).digest() for name in names)
    drawn = torch.tensor([digest[0] % 2 + 1 for digest in digests], dtype=torch.long)
    if sources is None:
        return drawn
    _, image_of_row = sources.unique(return_inverse=True)
    # Of several names that would be drawn apart, the one in half 1 counts, in whatever order they are.
    of_image = torch.full((len(drawn),), 2).scatter_reduce(0, image_of_row, drawn, "amin")
    return of_image[image_of_row]


def _image(name: str) -> bytes:
    number, stack = split_image_name(name)
    number = number.removesuffix("@") or "1"
    text = f"{int(number)}@{PurePosixPath(stack).name}" if number.isdecimal() else name
    return text.encode("utf-8", "surrogateescape")


def checked_half_sets(particles: Particles, seed: int = 0) -> Int[Tensor, " n"]:
    """Half, 1 or 2, of each particle: its own, else `drawn_half_sets`.

    InputError where one is neither 1 nor 2, all are in one half, or an image is in both.
    """
    half_sets = particles.half_sets
    if half_sets is None:
        half_sets = drawn_half_sets(particles.names, seed, particles.sources)
    bad = ((half_sets != 1) & (half_sets != 2)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise InputError(f"expected random subset 1 or 2, found {half_sets[row].item()} at row {row}")
    if len(half_sets.unique()) < 2:
        raise InputError(
            f"expected particles in both halves, found {len(particles)} in one; "
            "leave out rlnRandomSubset to have them drawn, or select more particles"
        )
    _refuse_images_in_both(particles, half_sets)
    return half_sets


def _refuse_images_in_both(particles: Particles, half_sets: Tensor) -> None:
    """Copies of one image in both half maps would make them agree by its noise."""
    _, image_of_row = particles.image_numbers.unique(return_inverse=True)
    first = torch.full((len(half_sets),), 2).scatter_reduce(0, image_of_row, half_sets, "amin")
    last = torch.ones(len(half_sets), dtype=torch.long).scatter_reduce(0, image_of_row, half_sets, "amax")
    torn = (first != last)[image_of_row].nonzero()[:, 0]
    if len(torn):
        row = int(torn[0])
        other = int((image_of_row == image_of_row[row]).logical_and(half_sets != half_sets[row]).nonzero()[0])
        raise InputError(
            f"expected copies of one image in one half set, found {particles.names[row]} in both, rows "
            f"{row + 1} and {other + 1} ({len(torn)} rows in all); correct rlnRandomSubset, or leave it out "
            "to have it drawn"
        )
