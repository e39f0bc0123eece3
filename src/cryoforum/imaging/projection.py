"""Central slices of a map.

The map is divided by sinc² (the transform of the trilinear kernel), zero-padded to twice its box and
transformed once; a projection is a trilinear read at R (kx, ky, 0).

A map's transform has one layout everywhere, that of `cropped_transform`: the half kx ≥ 0 up to some
frequency, zero in the middle of z and y. It is read by a compiled loop on the CPU, and in tensor operations
on other devices or where a gradient is wanted: in the map, the rotation and, through `fft.phase_shift`, the
shift.
"""

import torch
from jaxtyping import Complex, Float, Num
from torch import Tensor

from cryoforum.errors import InputError, require
from cryoforum.geometry.rotations import unitquat_to_rotmat
from cryoforum.imaging.fft import FrequencyPoints, half_transform_points

PADDING = 2  # of a map, before it is transformed
_LENGTH_TOLERANCE = 1e-4  # of quaternions: rounding does not reach it, and all neighbours still exist


def gridding_correction(box: int) -> Float[Tensor, "n n n"]:
    """sinc² of trilinear interpolation on the padded grid, (box, box, box)."""
    axis = torch.sinc((torch.arange(box) - box // 2) / (PADDING * box)) ** 2
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


def transform_shape(box: int, radius: int | None = None) -> tuple[int, int, int]:
    """z, y and x of a `cropped_transform`: (2w + 1, 2w + 1, w + 1), in half cycles per box.

    w = 2 radius + 2; the whole transform, which is the default, has w = box.
    """
    width = box if radius is None else min(PADDING * radius + 2, box)
    return 2 * width + 1, 2 * width + 1, width + 1


def cropped_transform(voxels: Float[Tensor, "n n n"], radius: int | None = None) -> Float[Tensor, "z y x 2"]:
    """Transform of a map (n, n, n) up to ``radius`` cycles per box, (2w + 1, 2w + 1, w + 1, 2), z y x.

    Only the half kx ≥ 0 is kept; w is that of `transform_shape`. Zero frequency sits at (w, w, 0) and phases
    are relative to voxel n // 2. Real and imaginary part lie side by side, so that the eight neighbours of a
    point are few cache lines.
    """
    box = voxels.shape[-1]
    width = transform_shape(box, radius)[2] - 1
    size = PADDING * box
    corrected = torch.fft.ifftshift(voxels / gridding_correction(box).to(voxels))
    # Voxel n // 2 is now at index 0; zeros go between the positive and the negative half.
    padded = voxels.new_zeros((size,) * 3)
    half = torch.arange(box)
    place = torch.where(half < (box + 1) // 2, half, half + size - box)
    padded[place[:, None, None], place[:, None], place] = corrected
    transform = torch.fft.rfftn(padded)
    rows, columns = torch.arange(-width, width + 1) % size, torch.arange(width + 1)
    return torch.view_as_real(transform[rows[:, None, None], rows[:, None], columns]).contiguous()


def _refuse_other_layout(transform: Num[Tensor, "..."]) -> None:
    """InputError where a map's transform is laid out otherwise, as ``torch.fft`` does it."""
    shape = tuple(transform.shape)
    width = shape[2] - 1 if len(shape) in (3, 4) else 0
    wanted = (2 * width + 1, 2 * width + 1, width + 1)
    is_right = width > 0 and shape[:3] == wanted and shape[3:] in ((), (2,))
    found = f"shape {shape} of {transform.dtype}"
    require(
        is_right, "the transform of a map as cropped_transform gives it, (2w + 1, 2w + 1, w + 1, 2)", found
    )


def reach_of(transform: Num[Tensor, "z y x *c"]) -> float:
    """Cycles per box up to which a `cropped_transform` can be read: half a cycle more than its radius.

    Of a whole one, half a cycle less than Nyquist.
    """
    return (transform.shape[2] - 2) / PADDING


def project(
    transform: Float[Tensor, "z y x 2"], quaternions: Float[Tensor, "b 4"], box: int
) -> Complex[Tensor, "b box half"]:
    """Half transforms (b, box, box // 2 + 1) of a map's centred projections along ``quaternions`` (b, 4).

    They are what `fft.to_fourier` gives for the images. ``transform`` is a `cropped_transform` of a map of
    ``box`` voxels; frequencies beyond its reach, and from half a cycle below Nyquist on, are 0.
    InputError for a transform of another layout.
    """
    _refuse_other_layout(transform)
    points = half_transform_points(box, min(reach_of(transform), (box - 1) / 2))
    return points.half_transforms(slices_at(transform, quaternions, points))


def slices_at(
    transform: Float[Tensor, "z y x 2"],
    quaternions: Float[Tensor, "m 4"],
    points: FrequencyPoints,
    height: float = 0.0,
) -> Complex[Tensor, "m p"]:
    """Slices (m, p) complex of a map along ``quaternions`` (m, 4): its transform at R (kx, ky, height).

    Parameters
    ----------
    transform : a `cropped_transform`.
    height : of the slice above the central one, in cycles per box.

    Raises
    ------
    InputError : where the transform does not reach as far as the points, or a quaternion is not of length 1.
    """
    wanted = torch.is_grad_enabled() and (transform.requires_grad or quaternions.requires_grad)
    if transform.device.type != "cpu" or transform.dtype != torch.float32 or wanted:
        check_reach(transform, points, height)
        kx, ky = points.kx.to(transform.device), points.ky.to(transform.device)
        return values_and_slopes(transform, unitquat_to_rotmat(quaternions), kx, ky, height)[0]
    rotations = checked_rotations(transform, quaternions, points, height)
    from cryoforum.imaging.kernels import read_slices  # importing numba takes a second: only on first use

    return read_slices(transform, points.kx, points.ky, height, rotations)


def check_reach(transform: Num[Tensor, "z y x *c"], points: FrequencyPoints, height: float = 0.0) -> None:
    """InputError for what is no `cropped_transform`, and where ``points`` at a height go beyond it."""
    _refuse_other_layout(transform)
    reach, highest = reach_of(transform), float(torch.hypot(points.radius.max(), torch.tensor(height)))
    expected = f"frequencies up to the transform's {reach} cycles per box"
    require(highest <= reach * (1 + 1e-6), expected, f"{highest:.1f}")


def checked_rotations(
    transform: Num[Tensor, "..."],
    quaternions: Float[Tensor, "m 4"],
    points: FrequencyPoints,
    height: float = 0.0,
) -> Float[Tensor, "m 3 3"]:
    """Rotations (m, 3, 3) float32 for the compiled loops, which do not look where they read and write.

    InputError where they would leave the transform: where it does not reach as far as the points, or where a
    quaternion (m, 4) is not of length 1 or not finite.
    """
    check_reach(transform, points, height)
    is_unit = (quaternions.norm(dim=-1) - 1).abs() < _LENGTH_TOLERANCE
    if not is_unit.all():
        row = int((~is_unit).nonzero()[0])
        raise InputError(f"expected quaternions of length 1, found {quaternions[row].tolist()} at row {row}")
    return unitquat_to_rotmat(quaternions.double()).float()


def values_and_slopes(
    transform: Float[Tensor, "z y x 2"],
    rotations: Float[Tensor, "m 3 3"],
    kx: Float[Tensor, " p"],
    ky: Float[Tensor, " p"],
    height: float = 0.0,
) -> tuple[Complex[Tensor, "m p"], Complex[Tensor, "m 3 p"]]:
    """Trilinear values (m, p) at R (kx, ky, height), and their slopes (m, 3, p) along the axes of the view.

    The readable twin of the compiled loops, for any device and differentiable.
    """
    centre, width = transform.shape[0] // 2, transform.shape[2]
    frequency = rotations[:, :, 0, None] * kx + rotations[:, :, 1, None] * ky
    position = PADDING * (frequency + height * rotations[:, :, 2, None])
    mirrored = position[:, 0] < 0
    position = torch.where(mirrored[:, None], -position, position)
    corner = position.detach().floor()
    x, y, z = (position - corner).unbind(1)
    ix, iy, iz = corner.long().unbind(1)
    first = ((iz + centre) * transform.shape[1] + iy + centre) * width + ix
    flat = torch.view_as_complex(transform).view(-1)
    v = [
        [[flat[first + (a * transform.shape[1] + b) * width + c] for c in (0, 1)] for b in (0, 1)]
        for a in (0, 1)
    ]
    along_x = [[v[a][b][0] + x * (v[a][b][1] - v[a][b][0]) for b in (0, 1)] for a in (0, 1)]
    along_y = [along_x[a][0] + y * (along_x[a][1] - along_x[a][0]) for a in (0, 1)]
    value = along_y[0] + z * (along_y[1] - along_y[0])
    slope_z = along_y[1] - along_y[0]
    steps_y = [along_x[a][1] - along_x[a][0] for a in (0, 1)]
    slope_y = steps_y[0] + z * (steps_y[1] - steps_y[0])
    steps_x = [[v[a][b][1] - v[a][b][0] for b in (0, 1)] for a in (0, 1)]
    rows_x = [steps_x[a][0] + y * (steps_x[a][1] - steps_x[a][0]) for a in (0, 1)]
    slope_x = rows_x[0] + z * (rows_x[1] - rows_x[0])
    slope = PADDING * torch.stack([slope_x, slope_y, slope_z], dim=1)
    # F(-k) is the conjugate of F(k): its slope is the conjugate's, with the other sign.
    value = torch.where(mirrored, value.conj(), value)
    slope = torch.where(mirrored[:, None], -slope.conj(), slope)
    return value, torch.einsum("mji,mjp->mip", rotations.to(slope.dtype), slope)
