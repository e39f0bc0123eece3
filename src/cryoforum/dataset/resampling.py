"""Square images at another box and pixel size: band-limited, as two matrix products a batch.

Pixel values are kept: at a point that lies on both grids, what both Nyquist frequencies let through is the
same. So a projection keeps its strength. White noise does, too, per area and frequency; its deviation per
pixel falls by the ratio of the pixel sizes where pixels grow, and where they shrink nothing lies beyond the
old Nyquist frequency. Pixel n // 2 stays the origin, so shifts in Å stay as they are. Images of an odd box
lose their last row and column first: pixel n // 2 of what is left is the same one.

What lies outside the new box is cut off. Outside the old box the image goes on as its own mirror image: there
is noise of the same strength, and no particle. A constant there would pass for less noise everywhere.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import Images, ImagesOnDemand
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require

LARGEST_RATIO = 100  # of two pixel sizes of one molecule


@dataclass(frozen=True)
class ResampledImages(ImagesOnDemand):
    """Images (n, old box, old box), resampled when they are asked for. matrix: (box, old box)."""

    source: Images
    matrix: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def at(self, rows: Tensor) -> Tensor:
        """Resampled ones."""
        return self.matrix @ self.source[rows] @ self.matrix.T

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box) of what indexing by all rows would give."""
        return (len(self.source), len(self.matrix), len(self.matrix))

    @property
    def identity(self) -> str:
        """Text that changes with the stacks or the grid."""
        return f"{getattr(self.source, 'identity', '')} {self.matrix.shape} {self.matrix[0, :2].tolist()}"


def resampled(images: Images, old: ImageGrid, new: ImageGrid) -> Images:
    """The images (n, box, box) on another grid; themselves where it is the same."""
    if old.is_same(new):
        return images
    return ResampledImages(images, resampling_matrix(old, new).float())


def _without_last(box: int) -> Tensor:
    """Weights (box - 1, box) that leave out the last pixel."""
    return torch.eye(box - 1, box, dtype=torch.float64)


def resampling_matrix(old: ImageGrid, new: ImageGrid) -> Tensor:
    """Weights (new box, old box), float64, by which pixels of the new, even grid follow from the old ones.

    Trigonometric interpolation of the periodic image (where the new box is the wider one: of the image and
    its mirror images), without frequencies at or beyond either Nyquist frequency.
    """
    if new.box % 2:
        raise InputError(f"expected an even box to bring images to, found {new.box} px")
    if old.box % 2:
        cropped = _without_last(old.box)
        return cropped if old.even.is_same(new) else resampling_matrix(old.even, new) @ cropped
    ratio = new.pixel_size_angstrom / old.pixel_size_angstrom
    _refuse_far_apart(ratio, f"{old} and {new}")
    width = max(old.box, 2 * math.ceil(ratio * new.box / 2))  # in old pixels, even
    highest = math.ceil(width / 2 * min(1.0, 1 / ratio) - 1e-6) - 1
    angle = 2 * math.pi / width * _distances(width, new.box, ratio)
    kernel = _sum_of_cosines(angle, highest) / width
    mirrored = _mirrored(torch.arange(width) - width // 2 + old.box // 2, old.box)
    return torch.zeros(new.box, old.box, dtype=torch.float64).index_add_(1, mirrored, kernel)


def _refuse_far_apart(ratio: float, found: str) -> None:
    """InputError where one of two pixel sizes can only be wrong; the work grows with their ratio."""
    is_near = 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO
    require(is_near, f"pixel sizes of which none is more than {LARGEST_RATIO} times the other", found)


def _sum_of_cosines(angle: Tensor, highest: int) -> Tensor:
    """The sum of exp(i k angle) over k from -highest to highest (Dirichlet's kernel)."""
    half = angle / 2
    divisor = torch.sin(half)
    at_peak = divisor.abs() < 1e-9
    ratio = torch.sin((2 * highest + 1) * half) / torch.where(at_peak, 1.0, divisor)
    # All angles are within ±π of a multiple of 2π, where the quotient of odd multiples tends to 2k + 1.
    return torch.where(at_peak, 2.0 * highest + 1, ratio)


def _mirrored(index: Tensor, box: int) -> Tensor:
    """Indices into a row that goes on, beyond either end, as its own mirror image."""
    folded = index % (2 * box)
    return torch.where(folded < box, folded, 2 * box - 1 - folded)


def resample_volume(volume: Volume, box: int, pixel_size_angstrom: float) -> Volume:
    """A map at another box and pixel size, its origin still at voxel n // 2 and its values kept.

    Band-limited: exact below the coarser of the two Nyquist frequencies, along each axis. What lies outside
    the new box is cut off, what lies outside the old one is zero.
    """
    old = ImageGrid(len(volume.voxels), volume.pixel_size_angstrom)
    ratio = pixel_size_angstrom / volume.pixel_size_angstrom
    _refuse_far_apart(ratio, f"{old} and {ImageGrid(box, pixel_size_angstrom)}")
    kernel = _sinc_kernel(old.box, box, ratio)
    voxels = volume.voxels.double()
    for _ in range(3):  # contracts the first axis and appends the new one: three turns restore z, y, x
        voxels = torch.tensordot(voxels, kernel, dims=([0], [1]))
    return Volume(voxels.float(), pixel_size_angstrom)


def _sinc_kernel(box: int, new_box: int, ratio: float) -> Tensor:
    """Weights (new_box, box) by which samples at new, ``ratio`` times as wide pixels follow from old ones.

    The band is that of `resampling_matrix`, but the signal is 0 outside the box, not periodic: the sum of
    cosines becomes an integral. A particle's noise goes on beyond its box, a map does not.
    """
    band = min(1.0, 1 / ratio)
    return band * torch.sinc(band * _distances(box, new_box, ratio))


def _distances(box: int, new_box: int, ratio: float) -> Tensor:
    """How far new pixels, ``ratio`` times as wide, are from old ones, in old pixels, (new_box, box)."""
    old = torch.arange(box, dtype=torch.float64) - box // 2
    new = (torch.arange(new_box, dtype=torch.float64) - new_box // 2) * ratio
    return new[:, None] - old
