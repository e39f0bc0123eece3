"""Images in several rows: what is a symmetry expansion, and what an oversight."""

import math
from collections.abc import Sequence

import pytest
import torch

from cryoforum.dataset.poses import Poses
from cryoforum.dataset.repeats import found_repeats


def poses(turns_deg: Sequence[float], origins: Sequence[float] | None = None) -> Poses:
    """Turned about z by so much, at these origins along x."""
    half = torch.deg2rad(torch.tensor(turns_deg, dtype=torch.float64)) / 2
    zeros = torch.zeros_like(half)
    shifts = torch.zeros(len(half), 2)
    if origins is not None:
        shifts[:, 0] = torch.tensor(origins)
    return Poses(torch.stack([zeros, zeros, half.sin(), half.cos()], dim=-1), shifts)


def test_single_images_are_no_repeats() -> None:
    assert found_repeats(torch.tensor([5, -3, 2**62]), None) is None


def test_copies_under_other_poses_are_an_expansion() -> None:
    found = found_repeats(torch.tensor([7, 8, 7, 8, 7]), poses([0, 0, 90, 120, 180]))
    assert found is not None and found.is_expansion and not found.have_one_pose
    assert (found.row_count, found.image_count) == (5, 2)
    assert found.rows.tolist() == [2, 3, 4] and found.first.tolist() == [0, 1, 0]
    assert "symmetry-expanded" in str(found) and "5 rows of 2 images" in str(found)
    assert "rows 1 and 3" in str(found)


def test_an_expansion_may_hold_a_few_copies_that_a_refinement_brought_together() -> None:
    """Not as many as two refinements of the same images would."""
    images, turns = torch.arange(50).repeat(4), [90.0 * copy for copy in range(4) for _ in range(50)]
    turns[60] = turns[10] + 0.1
    found = found_repeats(images, poses(turns))
    assert found is not None and found.is_expansion and found.have_one_pose
    assert found.listed == "1 of 200 rows with the image of an earlier one and its pose: 61 (as 11)"
    twice = found_repeats(images[:100], poses([*turns[:50], *(turn + 0.4 for turn in turns[:50])]))
    assert twice is not None and not twice.is_expansion


@pytest.mark.parametrize("first", [10.0, -170.0])
def test_one_copy_under_the_same_pose_is_an_oversight(first: float) -> None:
    """As of two refinements of one image; also where the quaternion has the other sign."""
    found = found_repeats(torch.tensor([7, 8, 7, 8, 7]), poses([first, 0, 90, 120, first + 360.3]))
    assert found is not None and not found.is_expansion
    assert found.rows.tolist() == [4] and found.first.tolist() == [0]
    assert str(found) == "1 of 5 rows with the image of an earlier one: 5 (as 1)"


def test_without_poses_all_copies_are_oversights_and_the_first_are_listed() -> None:
    found = found_repeats(torch.tensor([1, 1, 1, 1, 1]), None)
    assert found is not None and not found.is_expansion
    assert found.rows.tolist() == [1, 2, 3, 4] and found.first.tolist() == [0] * 4
    assert str(found) == "4 of 5 rows with the image of an earlier one: 2 (as 1), 3 (as 1), 4 (as 1), …"


def test_a_helix_without_twist_is_expanded_by_origins() -> None:
    found = found_repeats(torch.tensor([1, 1]), poses([30, 30], [0.0, 82.0]))
    assert found is not None and found.is_expansion
    near = found_repeats(torch.tensor([1, 1]), poses([30, 30], [0.0, 0.5]))
    assert near is not None and not near.is_expansion


def test_many_copies_of_one_among_many_images() -> None:
    """Sixty copies each, in any order."""
    images = torch.arange(50).repeat(60)
    turns = [360 * copy / 60 for copy in range(60) for _ in range(50)]
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    found = found_repeats(images[order], poses([turns[row] for row in order.tolist()]))
    assert found is not None and found.is_expansion and found.image_count == 50
    assert len(found.rows) == 2950
    assert math.isclose(found.row_count / found.image_count, 60)
