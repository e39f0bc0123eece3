"""Soft masks of images and maps."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.shells import radius_on_grid, shell_radius

SMALLEST_REGION = 0.1  # of a molecule in a map, as a share of the largest


def soft_spherical_mask(box: int, radius_pixel: float, edge_pixel: float = 5.0) -> Float[Tensor, "n n n"]:
    """Ball around voxel box // 2, (box, box, box): 1 within the radius, then a cosine edge down to 0."""
    axis = (torch.arange(box) - box // 2).float()
    return _cosine_edge(radius_on_grid(axis, axis, axis) - radius_pixel, edge_pixel)


def soft_mask(
    average: Volume,
    low_pass_angstrom: float | None = None,
    extend_pixel: float = 3.0,
    edge_pixel: float = 6.0,
) -> Float[Tensor, "n n n"]:
    """Soft mask (n, n, n) around the molecule in a map of all particles.

    The map is low-passed (default: 8 shells of its box, or 15 Å where that is coarser). The molecule is what
    lies above a tenth of the maximum and three standard deviations of the box's corners, but for regions
    smaller than a tenth of the largest: subunits may seem apart, specks of noise are small. It grows by
    ``extend_pixel`` and ends in a cosine of ``edge_pixel``.
    """
    box = average.voxels.shape[0]
    extent = box * average.pixel_size_angstrom
    cutoff_angstrom = low_pass_angstrom or max(15.0, extent / 8)
    frequency = shell_radius(box) / extent
    gaussian = torch.exp(-math.log(2) / 2 * (frequency * cutoff_angstrom) ** 2)
    smooth = torch.fft.irfftn(torch.fft.rfftn(average.voxels.float()) * gaussian, s=(box,) * 3)
    corners = smooth[soft_spherical_mask(box, box / 2, 1) == 0]
    threshold = max(0.1 * float(smooth.max()), float(corners.mean() + 3 * corners.std()))
    regions, count = ndimage.label((smooth > threshold).numpy())
    if count == 0:
        return soft_spherical_mask(box, box / 2 - edge_pixel, edge_pixel)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0  # what lies below the threshold
    is_molecule = (sizes >= SMALLEST_REGION * sizes.max())[regions]
    distance = ndimage.distance_transform_edt(~is_molecule)
    return _cosine_edge(torch.from_numpy(distance).float() - extend_pixel, edge_pixel)


def _cosine_edge(distance_pixel: Tensor, edge_pixel: float) -> Tensor:
    """1 where the distance is ≤ 0, 0 from ``edge_pixel`` on, a half cosine between."""
    return (torch.cos(torch.pi * (distance_pixel / edge_pixel).clamp(0, 1)) + 1) / 2


def circular_mask(box: int, inner: float, outer: float) -> Float[Tensor, "n n"]:
    """(box, box): 1 within ``inner`` half boxes of the centre, falling linearly to 0 at ``outer``."""
    axis = (torch.arange(box) - box // 2) / (box / 2)
    return ((outer - radius_on_grid(axis, axis)) / (outer - inner)).clamp(0, 1)
