"""Central slices of a map and their exact adjoint.

The map is divided by sinc² (the transform of the trilinear kernel), zero-padded to twice its box and
transformed once; a projection is a trilinear read at R (kx, ky, 0). Reading is differentiable in
the map, the rotation and, through `fourier.phase_shift`, the shift.
"""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from cryoforum.fourier import frequency_grid
from cryoforum.rotations import unitquat_to_rotmat

PADDING = 2


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
    """Exact adjoint of `project` with respect to the transform: (2, m, m, m) from (b, n, n // 2 + 1)."""
    box = slices.shape[-2]
    grid = slices.real.new_zeros(2 * (PADDING * box) ** 3)
    insert_slices(grid.view(-1, 2), torch.view_as_real(slices), quaternions)
    size = PADDING * box
    return grid.view(size, size, size, 2).movedim(-1, 0)


def insert_slices(grid: Tensor, values: Tensor, quaternions: Tensor) -> None:
    """Add ``values`` (b, n, n // 2 + 1, c) into ``grid`` ((2n)³, c), in place, with trilinear weights."""
    box = values.shape[1]
    size = PADDING * box
    frequencies = slice_frequencies(quaternions, box)
    inside = _inside(frequencies, size)
    index = frequencies[inside] * size + size // 2
    values = values[inside]
    corner = index.floor()
    weight_high = index - corner
    corner = corner.long()
    for offset in range(8):
        bits = torch.tensor([offset & 1, offset >> 1 & 1, offset >> 2])
        weight = torch.where(bits.bool(), weight_high, 1 - weight_high).prod(-1)
        x, y, z = (corner + bits).unbind(-1)
        grid.index_add_(0, (z * size + y) * size + x, weight[:, None] * values)
