"""Central slices of a map and their exact adjoint.

The map is divided by sinc² (the transform of the trilinear kernel), zero-padded to twice its box and
transformed once; a projection is a trilinear read at R (kx, ky, 0). Reading is differentiable in
the map, the rotation and, through `fourier.phase_shift`, the shift.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from cryoforum.geometry.rotations import inverse, unitquat_to_rotmat
from cryoforum.imaging.fft import frequency_grid

PADDING = 2
# Points inserted in one go: their indices and weights then stay in the processor's cache.
_POINTS_AT_ONCE = 2**16


def gridding_correction(box: int) -> Tensor:
    """sinc² of trilinear interpolation on the padded grid, (box, box, box)."""
    axis = torch.sinc((torch.arange(box) - box // 2) / (PADDING * box)) ** 2
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


def padded_transform(voxels: Tensor) -> Tensor:
    """Centred transform (2, m, m, m) of a map (n, n, n), m = 2n: real and imaginary part, z y x.

    Zero frequency sits at index m // 2; phases are relative to voxel n // 2.
    """
    box = voxels.shape[-1]
    margin = (PADDING - 1) * box
    before = PADDING * box // 2 - box // 2
    padded = pad(voxels / gridding_correction(box).to(voxels), (before, margin - before) * 3)
    transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(padded)))
    return torch.view_as_real(transform).movedim(-1, 0).contiguous()


def cropped_transform(voxels: Tensor, radius: int) -> Tensor:
    """The half kx ≥ 0 of `padded_transform` up to ``radius`` cycles per box, (2w + 1, 2w + 1, w + 1, 2).

    w = 2 radius + 2. Zero frequency sits at (w, w, 0) and real and imaginary part lie side by side, so
    that the eight neighbours of a point are few cache lines; the rest of the map is not kept at all.
    """
    box = voxels.shape[-1]
    width = PADDING * radius + 2
    size = PADDING * box
    corrected = torch.fft.ifftshift(voxels / gridding_correction(box).to(voxels))
    # Voxel n // 2 is now at index 0; zeros go between the positive and the negative half.
    padded = voxels.new_zeros((size,) * 3)
    half = torch.arange(box)
    place = torch.where(half < (box + 1) // 2, half, half + size - box)
    padded[place[:, None, None], place[:, None], place] = corrected
    transform = torch.fft.rfftn(padded)
    rows = torch.arange(-width, width + 1) % size
    return torch.view_as_real(transform[rows[:, None], rows, : width + 1]).contiguous()


def radius_of_cropped(transform: Tensor) -> int:
    """Cycles per box up to which a `cropped_transform` can be read."""
    return (transform.shape[2] - 3) // PADDING


def slice_frequencies(quaternions: Tensor, box: int) -> Tensor:
    """Where images look in the map's transform: R (kx, ky, 0) in cycles per pixel, (b, box, box//2+1, 3)."""
    ky, kx = frequency_grid(box)
    ky, kx = torch.broadcast_tensors(ky.to(quaternions), kx.to(quaternions))
    rotations = unitquat_to_rotmat(quaternions)
    return torch.einsum("bij,jyx->byxi", rotations[:, :, :2], torch.stack([kx, ky]))


def project(transform: Tensor, quaternions: Tensor) -> Tensor:
    """Half transforms (b, n, n // 2 + 1) of the projections of a map along ``quaternions`` (b, 4).

    ``transform`` comes from `padded_transform`; frequencies from Nyquist on are 0. The result is what
    `fourier.to_fourier` gives for the centred projection images.
    """
    padded_box = transform.shape[-1]
    box = padded_box // PADDING
    frequencies = slice_frequencies(quaternions, box)
    # align_corners: coordinate -1 is index 0, +1 is index m - 1, and zero frequency is index m // 2.
    index = frequencies * padded_box + padded_box // 2
    normalised = 2 * index / (padded_box - 1) - 1
    values = grid_sample(transform[None], normalised[None], align_corners=True)[0]
    slices = torch.complex(values[0], values[1])
    return slices * _inside(frequencies, padded_box)


def _inside(frequencies: Tensor, padded_box: int) -> Tensor:
    """Where all eight neighbours on the padded grid exist: a ball one grid step short of Nyquist."""
    return frequencies.square().sum(-1) < (0.5 - 1 / padded_box) ** 2


def backproject(slices: Tensor, quaternions: Tensor) -> Tensor:
    """Exact adjoint of `project`: (2, m, m, m) from slices (b, n, n // 2 + 1).

    Adjoint over the transforms of real maps, so the result has their symmetry F(-k) = conj F(k).
    """
    box = slices.shape[-2]
    grid = empty_half_grid(box, slices.dtype, slices.device)
    insert_slices([grid], [slices], quaternions)
    half = hermitian_sum(grid, box) / 2
    full = half.new_zeros((PADDING * box,) * 3)
    full[..., box:] = half[..., :box]
    full[1:, 1:, 1:box] = half[1:, 1:, 1:box].flip(0, 1, 2).conj()
    return torch.view_as_real(full).movedim(-1, 0)


def empty_half_grid(box: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Zeros for `insert_slices`: the half kx ≥ 0 of a padded transform, flat, z y x."""
    return torch.zeros((PADDING * box) ** 2 * (box + 1), dtype=dtype, device=device)


def insert_slices(grids: Sequence[Tensor], values: Sequence[Tensor], quaternions: Tensor) -> None:
    """Add each of ``values`` (b, n, n // 2 + 1) to its flat half grid, in place, with trilinear weights.

    A point with kx < 0 goes, conjugated, to its mate -k, so that half a grid holds everything;
    `hermitian_sum` adds the mates. Values are complex or real; all share one computation of weights.
    """
    box = values[0].shape[1]
    for rows in torch.arange(len(quaternions)).split(max(1, _POINTS_AT_ONCE // box**2)):
        inside, mirrored, first_corner, weights = _trilinear_weights(quaternions[rows], box)
        for grid, value in zip(grids, values, strict=True):
            points = value[rows][inside]
            points = torch.where(mirrored, points.conj(), points) if points.is_complex() else points
            for offset, weight in weights:
                grid.scatter_add_(0, first_corner + offset, weight * points)


def _trilinear_weights(
    quaternions: Tensor, box: int
) -> tuple[Tensor, Tensor, Tensor, list[tuple[int, Tensor]]]:
    """Which points are inside, which of these are mirrored to kx ≥ 0, and their eight neighbours.

    The neighbours are the flat index of the lowest one, (points,), and offset and weight of each.
    """
    size, width = PADDING * box, box + 1
    frequencies = slice_frequencies(quaternions, box)
    inside = _inside(frequencies, size)
    index = frequencies[inside] * size
    mirrored = index[:, 0] < 0
    index = torch.where(mirrored[:, None], -index, index)
    corner = index.floor()
    high = (index - corner).unbind(-1)
    low = tuple(1 - weight for weight in high)
    x, y, z = corner.long().unbind(-1)
    first_corner = ((z + box) * size + y + box) * width + x
    weights = []
    for step_z, weight_z in enumerate((low[2], high[2])):
        for step_y, weight_y in enumerate((low[1], high[1])):
            weight_zy = weight_z * weight_y
            for step_x, weight_x in enumerate((low[0], high[0])):
                weights.append(((step_z * size + step_y) * width + step_x, weight_zy * weight_x))
    return inside, mirrored, first_corner, weights


def hermitian_sum(grid: Tensor, box: int) -> Tensor:
    """G(k) + conj G(-k), (m, m, n + 1), of what `insert_slices` gathered; kx = 0 is where mates meet.

    ``grid`` is left as it is; ky and kz have zero at m // 2 = n, kx at 0.
    """
    size = PADDING * box
    result = grid.clone().view(size, size, box + 1)
    plane = grid.view(size, size, box + 1)[1:, 1:, 0]
    result[1:, 1:, 0] += plane.flip(0, 1).conj()
    return result


def symmetrised(data: Tensor, weight: Tensor, group: Tensor, box: int) -> tuple[Tensor, Tensor]:
    """Flat half grids, complex and real, as if every slice had been inserted at S·R for all S as well.

    Each is the sum over ``group`` (g, 4) of itself turned by S, read with trilinear weights: the cost
    does not grow with the number of slices. The rim that slices touch with a neighbour's weight is 0.
    """
    size = PADDING * box
    summed = hermitian_sum(data, box)
    values = torch.stack([summed.real, summed.imag, hermitian_sum(weight, box)])
    turns = unitquat_to_rotmat(inverse(group))
    axis = torch.arange(size, dtype=torch.float32) - box
    y, x = torch.meshgrid(axis, torch.arange(box + 1, dtype=torch.float32), indexing="ij")
    origin = torch.tensor([0.0, box, box])
    half_extent = torch.tensor([box, size - 1, size - 1]) / 2
    result = torch.zeros_like(values)
    for plane, z in enumerate(axis.tolist()):
        inside = x**2 + y**2 + z**2 <= (box - 1) ** 2
        if not inside.any():
            continue
        k = torch.stack([x, y, torch.full_like(x, z)], dim=-1)[inside] @ turns.mT
        mirrored = k[..., 0] < 0
        index = torch.where(mirrored[..., None], -k, k) + origin
        found = grid_sample(
            values.expand(len(group), *values.shape),
            (index / half_extent - 1)[:, None, None],
            align_corners=True,
        )[:, :, 0, 0]
        found[:, 1] = torch.where(mirrored, -found[:, 1], found[:, 1])
        result[:, plane, inside] = found.sum(0)
    result[..., 0] /= 2  # mates meet at kx = 0, where `hermitian_sum` adds them
    return torch.complex(result[0], result[1]).flatten(), result[2].flatten()
