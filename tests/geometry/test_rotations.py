"""Rotations against SciPy, and the geodesic distance against the laws of a bi-invariant metric."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoforum.geometry.rotations import (
    compose,
    geodesic_distance,
    inverse,
    random_unitquat,
    relion_euler_to_unitquat,
    rotation_about_view_axis,
    rotvec_to_unitquat,
    unitquat_to_relion_euler,
    unitquat_to_rotmat,
    unitquat_to_rotvec,
)

ANGLES = st.floats(-360, 360, allow_nan=False)
# Half of all tilts at or near a pole, where rot and psi cannot be told apart.
TILTS = st.one_of(
    st.sampled_from([0.0, 180.0, 1e-9, 1e-5, 1e-3, 180 - 1e-5, 90.0, -90.0]), st.floats(-180, 180)
)


def rotations(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(random_unitquat(count, generator=generator).to(dtype), dim=-1)


@given(rot=ANGLES, tilt=TILTS, psi=ANGLES)
def test_relion_angles_are_scipys_intrinsic_zyz(rot: float, tilt: float, psi: float) -> None:
    quaternion = relion_euler_to_unitquat(torch.tensor([[rot, tilt, psi]], dtype=torch.float64))
    expected = Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix()
    np.testing.assert_allclose(unitquat_to_rotmat(quaternion.double())[0].numpy(), expected, atol=1e-6)


@given(rot=ANGLES, tilt=TILTS, psi=ANGLES)
def test_angles_come_back_as_the_same_rotation(rot: float, tilt: float, psi: float) -> None:
    truth = Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True)
    angles = unitquat_to_relion_euler(torch.from_numpy(truth.as_quat())[None])[0]
    assert angles.isfinite().all()
    assert 0 <= angles[1] <= 180
    assert (angles[[0, 2]].abs() <= 180 + 1e-9).all()
    back = Rotation.from_euler("ZYZ", angles.numpy(), degrees=True)
    assert (back.inv() * truth).magnitude() < 1e-7


def test_at_the_poles_rot_is_zero() -> None:
    for tilt in (0.0, 180.0):
        truth = Rotation.from_euler("ZYZ", [40.0, tilt, 30.0], degrees=True)
        rot, found_tilt, psi = unitquat_to_relion_euler(torch.from_numpy(truth.as_quat())[None])[0].tolist()
        assert (rot, found_tilt) == pytest.approx((0, tilt))
        assert psi == pytest.approx(70 if tilt == 0 else -10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_quaternions_and_rotation_vectors_are_scipys(dtype: torch.dtype) -> None:
    half_turns_and_none = torch.eye(4, dtype=torch.float64)
    nearly_none = Rotation.from_rotvec([[1e-3, 0, 0], [0, -1e-5, 1e-8], [0, 0, 1e-20]]).as_quat()
    quaternions = torch.cat([rotations(500), half_turns_and_none, torch.from_numpy(nearly_none)])
    truth, atol = Rotation.from_quat(quaternions.numpy()), 1e-6 if dtype == torch.float32 else 1e-14
    for sign in (1, -1):
        matrices = unitquat_to_rotmat(sign * quaternions.to(dtype))
        np.testing.assert_allclose(matrices.numpy(), truth.as_matrix(), atol=atol)
        vectors = unitquat_to_rotvec(sign * quaternions.to(dtype)).double()
        back = Rotation.from_rotvec(vectors.numpy())
        assert (back.inv() * truth).magnitude().max() < 4 * atol
        assert vectors.norm(dim=-1).max() <= math.pi + atol
    found = rotvec_to_unitquat(vectors.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double().norm(dim=-1), torch.ones(len(found)).double())
    assert (Rotation.from_quat(found.numpy()).inv() * truth).magnitude().max() < 4 * atol


def test_compose_is_the_matrix_product_and_inverse_undoes_it() -> None:
    first, second = rotations(20, 1), rotations(20, 2)
    product = unitquat_to_rotmat(first) @ unitquat_to_rotmat(second)
    torch.testing.assert_close(unitquat_to_rotmat(compose(first, second)), product)
    identity = rotation_about_view_axis(torch.zeros(1, dtype=torch.float64))
    assert float(geodesic_distance(compose(first, inverse(first)), identity).max()) < 1e-12
    assert compose(first[:1], second).shape == (20, 4)


def test_turning_about_the_view_axis_adds_to_psi() -> None:
    start = relion_euler_to_unitquat(torch.tensor([[10.0, 50.0, 20.0]]))
    turned = compose(start, rotation_about_view_axis(torch.tensor([math.radians(15)])))
    expected = torch.tensor([[10.0, 50.0, 35.0]], dtype=torch.float64)
    torch.testing.assert_close(unitquat_to_relion_euler(turned), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_is_exactly_zero_for_equal_rotations(dtype: torch.dtype) -> None:
    quaternions = rotations(200, dtype=dtype)
    assert not geodesic_distance(quaternions, quaternions).any()
    assert not geodesic_distance(quaternions, -quaternions).any()


def test_distance_is_scipys_angle_from_tiny_to_pi() -> None:
    start = rotations(1)
    angles = torch.tensor([1e-10, 1e-6, 1e-3, 0.5, 2.0, 3.0, math.pi - 1e-6, math.pi], dtype=torch.float64)
    turned = compose(start, rotation_about_view_axis(angles))
    torch.testing.assert_close(geodesic_distance(start, turned), angles, atol=1e-14, rtol=1e-6)
    first, second = rotations(100, 1), rotations(100, 2)
    expected = (Rotation.from_quat(first.numpy()).inv() * Rotation.from_quat(second.numpy())).magnitude()
    np.testing.assert_allclose(geodesic_distance(first, second).numpy(), expected, atol=1e-12)


def test_distance_is_symmetric_and_keeps_the_triangle_inequality() -> None:
    a, b, c = (rotations(500, seed) for seed in (1, 2, 3))
    assert torch.equal(geodesic_distance(a, b), geodesic_distance(b, a))
    assert (geodesic_distance(a, c) <= geodesic_distance(a, b) + geodesic_distance(b, c) + 1e-12).all()
    assert (geodesic_distance(a, b) <= math.pi).all()


def test_distance_does_not_change_when_both_are_turned() -> None:
    a, b, turn = (rotations(200, seed) for seed in (1, 2, 3))
    distance = geodesic_distance(a, b)
    torch.testing.assert_close(geodesic_distance(compose(turn, a), compose(turn, b)), distance)
    torch.testing.assert_close(geodesic_distance(compose(a, turn), compose(b, turn)), distance)


def test_random_rotations_are_uniform_and_seeded() -> None:
    quaternions = random_unitquat(20000, generator=torch.Generator().manual_seed(0))
    again = random_unitquat(20000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(quaternions, again)
    # Under the Haar measure E[q qᵀ] = 1/4 and the mean angle is π / 2 + 2 / π.
    moment = torch.einsum("ni,nj->ij", quaternions, quaternions) / 20000
    torch.testing.assert_close(moment, torch.eye(4) / 4, atol=0.01, rtol=0)
    angle = geodesic_distance(quaternions, torch.tensor([0.0, 0.0, 0.0, 1.0])).mean()
    assert float(angle) == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.02)
