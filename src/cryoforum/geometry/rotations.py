"""Rotations, and the one place that names our convention.

A rotation ``R`` maps view coordinates to volume coordinates (x, y, z): the central slice that an
image shows is sampled at ``R @ (kx, ky, 0)``. RELION's angles are intrinsic ZYZ,
``R = scipy Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True)``.

Quaternions are unit, **scalar last** (x, y, z, w), as in SciPy; q and -q are one rotation.
The last axis of a tensor holds the four numbers.
"""

import math

import torch
from torch import Tensor

QUATERNION_DTYPE = torch.float32


def unitquat_to_rotmat(quaternions: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of unit quaternions (..., 4)."""
    x, y, z, w = quaternions.unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def rotmat_to_unitquat(matrices: Tensor) -> Tensor:
    """Unit quaternions (..., 4) of rotation matrices (..., 3, 3)."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrices.unbind(-2))
    entries = [
        *(1 + xx - yy - zz, xy + yx, xz + zx, zy - yz),
        *(xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx),
        *(xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy),
        *(zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz),
    ]
    outer_product = torch.stack(entries, dim=-1).unflatten(-1, (4, 4))  # 4 q qᵀ: each row is along q
    longest = outer_product.diagonal(dim1=-2, dim2=-1).argmax(-1)
    rows = outer_product.take_along_dim(longest[..., None, None], dim=-2).squeeze(-2)
    return torch.nn.functional.normalize(rows, dim=-1)


def rotvec_to_unitquat(vectors: Tensor) -> Tensor:
    """Unit quaternions (..., 4) of rotation vectors (..., 3): axis times angle in radians."""
    half = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) / 2
    return torch.cat([vectors / 2 * torch.sinc(half / math.pi), torch.cos(half)], dim=-1)


def unitquat_to_rotvec(quaternions: Tensor) -> Tensor:
    """Rotation vectors (..., 3), at most π long, of unit quaternions (..., 4)."""
    vector, w = torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions).split([3, 1], dim=-1)
    sine = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector * torch.where(sine > 0, 2 * torch.atan2(sine, w) / sine, 2.0)


def relion_euler_to_unitquat(angles_deg: Tensor) -> Tensor:
    """Unit quaternions (n, 4) of RELION's (rot, tilt, psi) in degrees, shape (n, 3)."""
    rot, tilt, psi = torch.deg2rad(angles_deg.double()).unbind(-1)
    half_tilt, half_sum, half_difference = tilt / 2, (psi + rot) / 2, (psi - rot) / 2
    components = [
        torch.sin(half_tilt) * torch.sin(half_difference),
        torch.sin(half_tilt) * torch.cos(half_difference),
        torch.cos(half_tilt) * torch.sin(half_sum),
        torch.cos(half_tilt) * torch.cos(half_sum),
    ]
    return torch.stack(components, dim=-1).to(QUATERNION_DTYPE)


def unitquat_to_relion_euler(quaternions: Tensor) -> Tensor:
    """RELION's (rot, tilt, psi) in degrees, (n, 3) float64, of unit quaternions (n, 4).

    tilt lies in [0, 180]; where it is 0 or 180 only rot ± psi is defined and rot is 0.
    """
    x, y, z, w = quaternions.double().unbind(-1)
    half_tilt = torch.atan2(torch.hypot(x, y), torch.hypot(z, w))
    half_sum = torch.atan2(z, w)
    half_difference = torch.atan2(x, y)  # rot - psi = -2 atan2(x, y), as q = Rz Ry Rz shows
    pole = torch.minimum(torch.hypot(x, y), torch.hypot(z, w)) < 1e-9
    rot = torch.where(pole, 0.0, half_sum - half_difference)
    psi = torch.where(
        pole,
        torch.where(torch.hypot(x, y) < 1e-9, 2 * half_sum, 2 * half_difference),
        half_sum + half_difference,
    )
    angles = torch.stack([_wrapped(rot), 2 * half_tilt, _wrapped(psi)], dim=-1)
    return torch.rad2deg(angles)


def geodesic_distance(first: Tensor, second: Tensor) -> Tensor:
    """Angle in radians, [0, π], between rotations given as unit quaternions (..., 4); broadcasts.

    Equal to 2 arccos|⟨q₁, q₂⟩| (Cryo-forum, eq. 1) but written with the chord's half angle, which is
    exactly 0 for equal inputs and precise everywhere, near π too.
    """
    same_side = torch.where((first * second).sum(-1, keepdim=True) < 0, -second, second)
    chord = torch.linalg.vector_norm(first - same_side, dim=-1)
    sum_length = torch.linalg.vector_norm(first + same_side, dim=-1)
    return 4 * torch.atan2(chord, sum_length)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Quaternion of the rotation ``R_outer @ R_inner``; shapes (..., 4), broadcasting."""
    x1, y1, z1, w1 = outer.unbind(-1)
    x2, y2, z2, w2 = inner.unbind(-1)
    components = [
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
    ]
    return torch.stack(components, dim=-1)


def left_matrix(outer: Tensor) -> Tensor:
    """L (..., 4, 4) with L q = ``outer``∘q for all q."""
    return compose(outer[..., None, :], torch.eye(4).to(outer)).mT


def right_matrix(inner: Tensor) -> Tensor:
    """R (..., 4, 4) with R q = q∘``inner`` for all q."""
    return compose(torch.eye(4).to(inner), inner[..., None, :]).mT


def inverse(quaternions: Tensor) -> Tensor:
    """Quaternion (..., 4) of the inverse rotation."""
    return torch.cat([-quaternions[..., :3], quaternions[..., 3:]], dim=-1)


def rotation_about_view_axis(angles_rad: Tensor) -> Tensor:
    """Quaternions (n, 4) that turn by ``angles_rad`` (n,) about z."""
    zero = torch.zeros_like(angles_rad)
    return torch.stack([zero, zero, torch.sin(angles_rad / 2), torch.cos(angles_rad / 2)], dim=-1)


def random_unitquat(count: int, *, generator: torch.Generator) -> Tensor:
    """Uniformly distributed rotations, (count, 4)."""
    normal = torch.randn(count, 4, generator=generator)
    return torch.nn.functional.normalize(normal, dim=-1)


def _wrapped(angles_rad: Tensor) -> Tensor:
    """The same angles in [-π, π)."""
    return torch.remainder(angles_rad + math.pi, 2 * math.pi) - math.pi
