"""Poses of one map are those of another after one turn, move and hand."""

import pytest
import torch

from cryoforum.dataset.frames import Frame, common_frame
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat


def some_poses(count: int, seed: int = 0) -> Poses:
    generator = torch.Generator().manual_seed(seed)
    return Poses(random_unitquat(count, generator=generator), torch.randn(count, 2, generator=generator))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_frame_of_a_turned_moved_mirrored_map_is_found(mirrored: bool) -> None:
    poses = some_poses(300)
    frame = Frame(
        random_unitquat(1, generator=torch.Generator().manual_seed(5))[0],
        torch.tensor([3.0, -2.0, 5.0]),
        mirrored,
    )
    others = frame.of(poses)
    wrong = some_poses(60, seed=1)
    others.quaternions[:60], others.shifts_angstrom[:60] = wrong.quaternions, wrong.shifts_angstrom
    found = common_frame(poses, others)
    assert found.mirrored == mirrored
    again = found.of(poses)
    distance = symmetric_distance(again.quaternions, others.quaternions, symmetry_group("C1"))[60:]
    assert float(distance.max()) < 1e-3
    torch.testing.assert_close(again.shifts_angstrom[60:], others.shifts_angstrom[60:], atol=1e-2, rtol=0)


def test_equivalent_orientations_are_one() -> None:
    poses, group = some_poses(200), symmetry_group("D2")
    which = torch.arange(200) % len(group)
    others = Poses(compose(group[which], poses.quaternions), poses.shifts_angstrom)
    found = common_frame(poses, others, "D2").of(poses)
    assert float(symmetric_distance(found.quaternions, others.quaternions, group).median()) < 1e-3


def test_other_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="as many poses as others"):
        common_frame(some_poses(3), some_poses(4))
