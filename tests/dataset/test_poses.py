"""Poses in the words of other programs, with SciPy as the judge."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum import InputError, Poses

TRUTH = Rotation.random(50, rng=np.random.default_rng(3))
ANGLES = TRUTH.as_euler("ZYZ", degrees=True)
SHIFTS = np.random.default_rng(4).normal(size=(50, 2))


@pytest.mark.parametrize(
    "poses",
    [
        Poses.from_euler(ANGLES, SHIFTS),
        Poses.from_matrices(TRUTH.as_matrix(), SHIFTS.tolist()),
        Poses.from_quaternions(TRUTH.as_quat(), torch.from_numpy(SHIFTS)),
        Poses.from_quaternions(TRUTH.as_quat(scalar_first=True), SHIFTS, scalar_first=True),
    ],
)
def test_all_ways_in_and_out_are_scipys(poses: Poses) -> None:
    np.testing.assert_allclose(poses.matrices.numpy(), TRUTH.as_matrix(), atol=1e-6)
    back = Rotation.from_euler("ZYZ", poses.euler_deg.numpy(), degrees=True)
    assert (back * TRUTH.inv()).magnitude().max() < 1e-6
    np.testing.assert_allclose(poses.shifts_pixel(1.5).numpy(), SHIFTS / 1.5, atol=1e-6)


def test_matrices_of_half_turns_come_back() -> None:
    """Where w is 0 a quaternion cannot be read off the trace."""
    half_turns = Rotation.from_rotvec(math.pi * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0, 0.8]]))
    found = Poses.from_matrices(half_turns.as_matrix()).matrices
    np.testing.assert_allclose(found.numpy(), half_turns.as_matrix(), atol=1e-6)


def test_errors_are_scipys_angles_to_the_nearest_equivalent() -> None:
    other = Rotation.random(50, rng=np.random.default_rng(5))
    first, second = Poses.from_matrices(TRUTH.as_matrix()), Poses.from_matrices(other.as_matrix())
    plain = (TRUTH.inv() * other).magnitude()
    np.testing.assert_allclose(first.errors(second).numpy(), plain, atol=1e-5)
    turn = Rotation.from_euler("z", 180, degrees=True)
    expected = np.minimum(plain, (TRUTH.inv() * turn * other).magnitude())
    np.testing.assert_allclose(first.errors(second, "C2").numpy(), expected, atol=1e-5)


MIRROR = np.diag([1.0, 1.0, -1.0])[None]


@pytest.mark.parametrize(
    ("make", "values", "shifts", "message"),
    [
        (Poses.from_euler, [[0, 90]], None, r"angles of shape \(n, 3\), found \(1, 2\)"),
        (Poses.from_euler, [0, 90, 0], None, r"angles of shape \(n, 3\), found \(3,\)"),
        (Poses.from_euler, [[0, 0, 0], [0, math.nan, 0]], None, "finite angles, found .* at row 1"),
        (Poses.from_euler, [["a", "b", "c"]], None, "numbers for angles, found"),
        (Poses.from_euler, [[0, 0, 0]], [[0, 0]] * 2, r"shifts of shape \(1, 2\), found \(2, 2\)"),
        (Poses.from_matrices, MIRROR, None, "rotation matrices, found .* at row 0"),
        (Poses.from_matrices, 2 * np.eye(3)[None], None, "rotation matrices, found .* at row 0"),
        (Poses.from_quaternions, [[0, 0, 0, 1], [0, 0, 0, 0]], None, "of length 1, found .* at row 1"),
    ],
)
def test_what_is_no_pose_is_refused(make, values, shifts, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make(values, shifts)


def test_pixels_have_a_size() -> None:
    with pytest.raises(InputError, match="pixel size above 0"):
        Poses.from_euler([[0, 0, 0]]).shifts_pixel(0)
