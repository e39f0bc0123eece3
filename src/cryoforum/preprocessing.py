"""From particle images to what the network sees, and the exact changes that teach it invariance."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cryoforum.config import PreprocessingConfig
from cryoforum.ctf import Optics, ctf
from cryoforum.fourier import crop_or_pad, to_fourier, to_real
from cryoforum.particles import Particles, all_rows
from cryoforum.rotations import compose, rotation_about_view_axis


def prepare(
    images: Tensor, optics: Optics | None, pixel_size_angstrom: float, config: PreprocessingConfig
) -> Tensor:
    """Network inputs (b, m, m) of particle images (b, n, n): phase flip, resize, standardise, mask.

    Resizing cuts frequencies (the field of view stays). Mean and deviation are those inside the soft
    circular mask, image by image, so contrast and background of a micrograph cancel.
    """
    box = images.shape[-1]
    transforms = to_fourier(images)
    if config.phase_flip and optics is not None:
        transforms = transforms * torch.sign(ctf(optics, box, pixel_size_angstrom))
    if box != config.box:
        transforms = crop_or_pad(transforms, box, config.box)
    resized = to_real(transforms, config.box)
    mask = circular_mask(config.box, config.mask_inner, config.mask_outer)
    mean = (resized * mask).sum((1, 2), keepdim=True) / mask.sum()
    centred = resized - mean
    variance = (centred.square() * mask).sum((1, 2), keepdim=True) / mask.sum()
    return centred * mask / variance.sqrt().clamp_min(1e-12)


def prepare_all(
    particles: Particles,
    config: PreprocessingConfig,
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Network inputs of every particle, (n, m, m) float32; images are read batch by batch."""
    result = torch.empty(len(particles), config.box, config.box)
    for rows in all_rows(len(particles), batch_size):
        optics = None if particles.optics is None else particles.optics[rows]
        result[rows] = prepare(particles.images[rows], optics, particles.pixel_size_angstrom, config)
        progress(len(rows))
    return result


def circular_mask(box: int, inner: float, outer: float) -> Tensor:
    """(box, box): 1 within ``inner`` half boxes of the centre, falling linearly to 0 at ``outer``."""
    axis = (torch.arange(box) - box // 2) / (box / 2)
    radius = torch.hypot(axis[:, None], axis[None, :])
    return ((outer - radius) / (outer - inner)).clamp(0, 1)


def augment(
    images: Tensor, quaternions: Tensor, max_shift_pixel: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images (b, m, m) turned by a random angle, mirrored at random, shifted; and their orientations.

    Both laws are exact for projections. Turning the image by α about the view axis makes the
    orientation R Rz(-α); mirroring y shows the molecule from behind, R Rx(π).
    """
    count = len(images)
    angles = 2 * math.pi * torch.rand(count, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    shifts = (2 * torch.rand(count, 2, generator=generator) - 1) * max_shift_pixel
    return turn_and_shift(images, angles, mirrored, shifts), turn_orientations(quaternions, angles, mirrored)


def turn_orientations(quaternions: Tensor, angles_rad: Tensor, mirrored: Tensor) -> Tensor:
    """Orientations (b, 4) of images that were mirrored in y where said, then turned by ``angles_rad``."""
    half_turn_about_x = quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    mirrored_pose = compose(quaternions, half_turn_about_x)
    start = torch.where(mirrored[:, None], mirrored_pose, quaternions)
    return compose(start, rotation_about_view_axis(-angles_rad).to(quaternions))


def turn_and_shift(images: Tensor, angles_rad: Tensor, mirrored: Tensor, shifts_pixel: Tensor) -> Tensor:
    """Images (b, m, m) mirrored in y, turned by ``angles_rad`` from x to y, then shifted; bilinear."""
    box = images.shape[-1]
    cosine, sine = torch.cos(angles_rad), torch.sin(angles_rad)
    flip = torch.where(mirrored, -1.0, 1.0)
    # Output position p reads the input at F Rz(-α) (p - shift); positions relative to pixel box // 2.
    matrix = torch.stack(
        [torch.stack([cosine, sine], -1), torch.stack([-sine * flip, cosine * flip], -1)], dim=1
    )
    origin = torch.tensor([1 / box, 1 / box])  # pixel box // 2 in coordinates where edges are ±1
    moved = -(matrix @ (origin + 2 * shifts_pixel / box)[..., None])[..., 0] + origin
    theta = torch.cat([matrix, moved[..., None]], dim=-1).to(images)
    grid = affine_grid(theta, [len(images), 1, box, box], align_corners=False)
    return grid_sample(images[:, None], grid, align_corners=False)[:, 0]
