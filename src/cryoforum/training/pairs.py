"""Which pairs of images the Siamese network compares (Cryo-forum, 3.5 and Supplementary Figure 1).

Pairs are drawn when they are needed, so no list of all N² of them is ever in memory. `choices.PAIRINGS` holds
the names.
"""

import torch
from torch import Tensor

from cryoforum.geometry.point_groups import symmetric_distance

DISTANCE_BINS = 8
_CANDIDATES = 64  # drawn for each pair that is wanted; the nearest bin of uniform orientations holds 1 in 300
_ROUNDS = 16


def all_pairs(count: int) -> Tensor:
    """Every pair of ``count`` images, (2, count (count - 1) / 2)."""
    return torch.triu_indices(count, count, offset=1)


def random_pairs(particle_count: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` pairs of different particles, (2, count), each as likely as any other."""
    first = torch.randint(particle_count, (count,), generator=generator)
    step = torch.randint(1, particle_count, (count,), generator=generator)
    return torch.stack([first, (first + step) % particle_count])


def uniform_pairs(quaternions: Tensor, group: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`random_pairs` of particles, whatever their orientations (n, 4)."""
    return random_pairs(len(quaternions), count, generator)


def stratified_pairs(quaternions: Tensor, group: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Pairs of particles with as many in each of `DISTANCE_BINS` equal ranges of distance.

    Ranges go from 0 to the largest distance among some thousand pairs. Where one is empty, pairs at random
    take its place.

    Parameters
    ----------
    quaternions : Tensor
        Orientations (n, 4).
    group : Tensor
        Elements (g, 4) of the point group: distances are to the nearest equivalent.
    count : int
        How many pairs.
    generator : torch.Generator

    Returns
    -------
    Tensor
        Rows (2, count).
    """
    kept: list[Tensor] = []
    missing = torch.full((DISTANCE_BINS,), count // DISTANCE_BINS)
    missing[torch.randperm(DISTANCE_BINS, generator=generator)[: count % DISTANCE_BINS]] += 1
    reach = 0.0
    for _ in range(_ROUNDS):
        candidates = random_pairs(len(quaternions), max(_CANDIDATES * count, 4096), generator)
        distance = symmetric_distance(quaternions[candidates[0]], quaternions[candidates[1]], group)
        reach = reach or max(float(distance.max()), 1e-6)
        place = (distance / reach * DISTANCE_BINS).long().clamp_max(DISTANCE_BINS - 1)
        for one in range(DISTANCE_BINS):
            found = candidates[:, place == one][:, : missing[one]]
            kept.append(found)
            missing[one] -= found.shape[1]
        if not missing.any():
            break
    pairs = torch.cat([*kept, random_pairs(len(quaternions), int(missing.sum()), generator)], dim=1)
    return pairs[:, torch.randperm(count, generator=generator)]
