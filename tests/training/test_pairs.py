"""Pairs of the Siamese network: any two, or as many of every distance; of a large set, too."""

import numpy as np
import pytest
import torch
from scipy import stats

from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat, rotation_about_view_axis
from cryoforum.training.pairs import DISTANCE_BINS, all_pairs, random_pairs, stratified_pairs


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_pairs_are_all_and_none_twice() -> None:
    pairs = all_pairs(6)
    assert sorted(map(tuple, pairs.T.tolist())) == [(i, j) for i in range(6) for j in range(i + 1, 6)]


def test_random_pairs_are_of_different_particles_and_uniform() -> None:
    pairs = random_pairs(7, 42_000, seeded())
    assert pairs.shape == (2, 42_000) and int(pairs.min()) >= 0 and int(pairs.max()) < 7
    assert bool((pairs[0] != pairs[1]).all())
    counts = torch.bincount(7 * pairs[0] + pairs[1], minlength=49).view(7, 7)
    ordered = counts[~torch.eye(7, dtype=torch.bool)]  # 42 kinds
    assert stats.chisquare(ordered.numpy()).pvalue > 0.001
    assert torch.equal(random_pairs(7, 50, seeded(1)), random_pairs(7, 50, seeded(1)))
    assert set(random_pairs(2, 20, seeded()).sum(0).tolist()) == {1}


def counts_by_distance(
    pairs: torch.Tensor, quaternions: torch.Tensor, symmetry: str, reach: float
) -> list[int]:
    distance = symmetric_distance(*quaternions[pairs], symmetry_group(symmetry))
    return np.histogram(distance, bins=DISTANCE_BINS, range=(0, reach + 1e-3))[0].tolist()


# How far two rotations can be apart: half a turn, or what a group leaves of it.
@pytest.mark.parametrize(("symmetry", "reach"), [("C1", 180.0), ("C2", 180.0), ("D2", 120.0), ("O", 62.8)])
@pytest.mark.parametrize("count", [400, 403])
def test_every_distance_gets_as_many_pairs(symmetry: str, reach: float, count: int) -> None:
    quaternions = random_unitquat(3000, generator=seeded())
    pairs = stratified_pairs(quaternions, symmetry_group(symmetry), count, seeded(1))
    assert pairs.shape == (2, count) and bool((pairs[0] != pairs[1]).all())
    distance = symmetric_distance(*quaternions[pairs], symmetry_group(symmetry))
    furthest = float(distance.max())
    assert 0.93 * reach < np.rad2deg(furthest) < reach + 0.1
    found = counts_by_distance(pairs, quaternions, symmetry, furthest)
    # The bins end at the furthest of the candidates, which need not be among the pairs.
    assert sum(found) == count and max(found) - min(found) <= 1 + 0.04 * count
    by_chance = counts_by_distance(random_pairs(3000, count, seeded(2)), quaternions, symmetry, furthest)
    assert max(by_chance) - min(by_chance) > 0.15 * count


@pytest.mark.parametrize("count", [3, 8, 50, 64, 67])
def test_no_distance_gets_two_pairs_more_than_another(count: int) -> None:
    quaternions = random_unitquat(3000, generator=seeded(3))
    pairs = stratified_pairs(quaternions, symmetry_group("C1"), count, seeded(4))
    found = counts_by_distance(pairs, quaternions, "C1", np.pi)
    assert sum(found) == count and max(found) - min(found) <= 1


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_of_alike_orientations_there_are_as_many_pairs_as_asked_for(spread: float) -> None:
    turns = rotation_about_view_axis(spread * torch.rand(40, generator=seeded()))
    quaternions = compose(turns, random_unitquat(1, generator=seeded(1)))
    pairs = stratified_pairs(quaternions, symmetry_group("C1"), 30, seeded())
    assert pairs.shape == (2, 30) and bool((pairs[0] != pairs[1]).all())
    assert int(pairs.min()) >= 0 and int(pairs.max()) < 40


def test_two_particles_make_one_pair_again_and_again() -> None:
    quaternions = random_unitquat(2, generator=seeded())
    pairs = stratified_pairs(quaternions, symmetry_group("C1"), 5, seeded())
    assert sorted(set(map(tuple, pairs.sort(0).values.T.tolist()))) == [(0, 1)]


def test_a_million_particles_are_no_trouble() -> None:
    """Of all their pairs a list would take eight terabytes."""
    quaternions = random_unitquat(1_000_000, generator=seeded())
    for seed in range(20):
        pairs = stratified_pairs(quaternions, symmetry_group("D2"), 128, seeded(seed))
        assert pairs.shape == (2, 128)
    assert int(pairs.max()) > 500_000
