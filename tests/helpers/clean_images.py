"""Maps that can be turned exactly, their noise-free images, and both as likelihood and search take them."""

import torch
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat, unitquat_to_rotmat
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import FrequencyPoints, phase_shift, to_real
from cryoforum.imaging.likelihood import WhitenedImages, whiten
from cryoforum.imaging.projection import cropped_transform, project

PIXEL_SIZE = 4.0


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(box: int, seed: int = 0) -> Tensor:
    """A map without symmetry whose images have a variance of about 1; planes of index 0 are empty."""
    generator = seeded(seed)
    axis = (torch.arange(box) - box // 2).float()
    voxels = torch.zeros(box, box, box)
    for _ in range(24):
        direction = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
        x, y, z = direction * 0.3 * box * torch.rand(1, generator=generator) ** (1 / 3)
        weight = 0.5 + torch.rand(1, generator=generator)
        along = [torch.exp(-((axis - centre) ** 2) / (2 * 1.2**2)) for centre in (z, y, x)]
        voxels += weight * along[0][:, None, None] * along[1][:, None] * along[2]
    voxels[0], voxels[:, 0], voxels[:, :, 0] = 0, 0, 0
    return voxels / voxels.sum(0).std()


def turned(voxels: Tensor, quaternion: Tensor) -> Tensor:
    """The map turned about voxel n // 2 by a rotation that takes voxels to voxels: no interpolation."""
    box = len(voxels)
    matrix = unitquat_to_rotmat(quaternion.double()).round().long()
    axis = torch.arange(1, box) - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    source = torch.stack([x, y, z], dim=-1) @ matrix + box // 2  # R⁻¹ r, as R is orthogonal
    result = torch.zeros_like(voxels)
    result[1:, 1:, 1:] = voxels[source[..., 2], source[..., 1], source[..., 0]]
    return result


def symmetric_blobs(box: int, symmetry: str, seed: int = 0) -> Tensor:
    """An exactly symmetric map, for the groups whose elements take voxels to voxels: C2, C4, D2, O."""
    voxels, group = blobs(box, seed), symmetry_group(symmetry)
    total = torch.stack([turned(voxels, element) for element in group]).sum(0)
    return total / total.sum(0).std()


def random_ctf(count: int, seed: int = 0) -> CtfParameters:
    generator = seeded(seed)
    defocus = 8000 + 8000 * torch.rand(count, generator=generator)
    values = (300.0, 2.7, 0.1, 0.0)
    return CtfParameters(
        defocus + 200,
        defocus - 200,
        180 * torch.rand(count, generator=generator),
        *(torch.full((count,), value) for value in values),
    )


def clean_images(
    voxels: Tensor, quaternions: Tensor, origins_pixel: Tensor, ctf: CtfParameters | None = None
) -> Tensor:
    """Images (n, box, box) by the projector: centred projections, moved by minus the origins."""
    box = len(voxels)
    slices = phase_shift(project(cropped_transform(voxels), quaternions, len(voxels)), -origins_pixel)
    if ctf is not None:
        slices = slices * ctf_2d(ctf, box, PIXEL_SIZE)
    return to_real(slices, box)


def whitened(
    images: Tensor, ctf: CtfParameters | None, points: FrequencyPoints, noise_variance: float = 1.0
) -> WhitenedImages:
    """Images with white noise of a known variance and signal of scale 1."""
    ones = torch.ones(len(images), len(points.kx))
    return whiten(images, ctf, PIXEL_SIZE, points, points.box**2 * noise_variance * ones, ones)


def turned_by(quaternions: Tensor, rotation_vectors: Tensor) -> Tensor:
    """R exp[ω]× as quaternions; ω (…, 3) in radians about the axes of the view."""
    angle = torch.linalg.vector_norm(rotation_vectors, dim=-1, keepdim=True)
    half = torch.cat(
        [torch.sinc(angle / (2 * torch.pi)) * rotation_vectors / 2, torch.cos(angle / 2)], dim=-1
    )
    return compose(quaternions, half)


def rotation_vectors_between(start: Tensor, end: Tensor) -> Tensor:
    """ω (…, 3) with R_end = R_start exp[ω]×."""
    conjugate = start.double() * torch.tensor([-1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    between = compose(conjugate, end.double())
    between = torch.where(between[..., 3:] < 0, -between, between)
    length = torch.linalg.vector_norm(between[..., :3], dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, between[..., 3:])
    return between[..., :3] * angle / length.clamp_min(1e-30)


def random_poses(count: int, largest_origin_pixel: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Quaternions (count, 4) and origins (count, 2)."""
    generator = seeded(seed)
    quaternions = random_unitquat(count, generator=generator)
    return quaternions, (2 * torch.rand(count, 2, generator=generator) - 1) * largest_origin_pixel
