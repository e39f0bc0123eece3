"""The frame of a map: the turn, move and hand by which two sets of poses of the same particles may differ.

A map from particles alone is turned in any way, off-centre, and of either hand; poses against it mean the
same as others only after their frame is taken away. A map inverted through the origin gives the same images
at R·Rz(180°), which is what another hand means for poses.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.poses import Poses
from cryoforum.errors import require
from cryoforum.geometry.point_groups import nearest_equivalent, symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, inverse, unitquat_to_rotmat

CANDIDATES = 200  # particles whose own difference is tried as that of all
NEAR_RAD = 0.1  # particles that the turn is then averaged over
HALF_TURN = (0.0, 0.0, 1.0, 0.0)  # about the view


@dataclass(frozen=True)
class Frame:
    """How poses of one map become those of another.

    Parameters
    ----------
    turn
        Unit quaternion: orientations R become turn · R.
    move_angstrom
        Of the map, which moves origins by its projection.
    mirrored
        Whether the maps are of different hands.
    """

    turn: Float[Tensor, "4"]
    move_angstrom: Float[Tensor, "3"]
    mirrored: bool

    def of(self, poses: Poses) -> Poses:
        """The poses against the other map."""
        quaternions = compose(self.turn, _of_hand(poses.quaternions, self.mirrored))
        return Poses(quaternions, poses.shifts_angstrom + _projected(quaternions, self.move_angstrom))


def common_frame(poses: Poses, others: Poses, symmetry: str = "C1") -> Frame:
    """The frame in which n poses come closest to n others of the same particles, by their median distance.

    InputError where there are not as many of each, or none.
    """
    require(len(poses) == len(others) > 0, "as many poses as others, one or more", len(poses))
    frames = [_frame(poses, others, mirrored, symmetry) for mirrored in (False, True)]
    group = symmetry_group(symmetry)

    def median(frame: Frame) -> float:
        return float(symmetric_distance(frame.of(poses).quaternions, others.quaternions, group).median())

    return min(frames, key=median)


def _frame(poses: Poses, others: Poses, mirrored: bool, symmetry: str) -> Frame:
    """The best one of one hand."""
    group, targets = symmetry_group(symmetry), others.quaternions
    quaternions = _of_hand(poses.quaternions, mirrored)
    chosen = torch.linspace(0, len(poses) - 1, min(CANDIDATES, len(poses))).long()
    candidates = compose(targets[chosen], inverse(quaternions[chosen]))
    distances = torch.stack(
        [symmetric_distance(compose(turn, quaternions), targets, group) for turn in candidates]
    )
    best = int(distances.median(1).values.argmin())
    near = distances[best] < NEAR_RAD
    turn = candidates[best]
    if near.any():
        turned = compose(turn, quaternions[near])
        equal = nearest_equivalent(targets[near], turned, group)
        turns = compose(equal, inverse(quaternions[near])).double()
        turn = torch.linalg.eigh(turns.T @ turns).eigenvectors[:, -1].float()
    else:
        near = torch.ones_like(near)
    rotations = unitquat_to_rotmat(compose(turn, quaternions[near])).double()
    differences = (others.shifts_angstrom - poses.shifts_angstrom)[near].double()
    move = torch.linalg.lstsq(rotations.mT[:, :2].flatten(0, 1), differences.flatten()[:, None]).solution[
        :, 0
    ]
    return Frame(turn, move.float(), mirrored)


def _of_hand(quaternions: Tensor, mirrored: bool) -> Tensor:
    return compose(quaternions, torch.tensor(HALF_TURN)) if mirrored else quaternions


def _projected(quaternions: Tensor, move: Tensor) -> Float[Tensor, "n 2"]:
    """A vector of the map as x and y of each view."""
    return (unitquat_to_rotmat(quaternions).mT @ move)[:, :2]
