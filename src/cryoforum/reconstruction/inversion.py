"""Particles with poses to half maps: direct Fourier inversion.

Every image is moved back to the centre, multiplied by its CTF and laid into the padded transform as
a central slice; CTF² is laid beside it. Their ratio is the map's transform. Of a symmetric molecule
both are first summed over all turns of the point group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_fourier
from cryoforum.imaging.projection import (
    PADDING,
    empty_half_grid,
    gridding_correction,
    hermitian_sum,
    insert_slices,
    symmetrised,
)
from cryoforum.reconstruction.half_sets import checked_half_sets


@dataclass(frozen=True)
class ReconstructionConfig:
    """batch_size: images held in memory at once.
    weight_floor: weights below this share of their shell's mean are raised to it. It keeps directions
        that few images saw from dividing noise by almost nothing, and unlike a constant added to every
        weight it leaves the scale of well-seen frequencies untouched. With RELION's 1e-3 a thousand images
        agree less well with the truth (9.12 Å at FSC 0.5, 9.08 Å with 0.3; five thousand: 7.36 Å with both).
    symmetry: point group of the molecule, axes as in RELION.
    """

    batch_size: int = 256
    weight_floor: float = 0.3
    symmetry: str = "C1"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"expected a batch_size of 1 or more, found {self.batch_size}")
        if not 0 < self.weight_floor <= 1:
            raise InputError(f"expected a weight_floor in (0, 1], found {self.weight_floor}")
        symmetry_group(self.symmetry)


DEFAULT_CONFIG = ReconstructionConfig()


def reconstruct(
    particles: Particles,
    config: ReconstructionConfig = DEFAULT_CONFIG,
    *,
    independent: bool = True,
    progress: Callable[[int], None] = lambda count: None,
    seed: int = 0,
) -> HalfMaps:
    """Two half maps and the full map of ``particles``, on the scale of their projections.

    Parameters
    ----------
    particles : with poses; without optics the CTF is 1; without subsets the halves are drawn by ``seed``.
    independent : whether the poses of the two halves know nothing of each other, passed on.
    progress : called with the number of images of each batch done.
    """
    _checked_poses(particles)
    half_sets = checked_half_sets(particles, seed)
    sums = empty_sums(particles.box, particles.pixel_size_angstrom)
    add_to_sums(sums, replace(particles, half_sets=half_sets), config.batch_size, progress)
    return finished_maps(sums, config, independent=independent)


@dataclass(frozen=True)
class HalfSums:
    """What a reconstruction adds up, for each half: CTF · data and CTF², as flat half grids.

    Sums over particles, so that more of them can be added at any time.
    """

    box: int
    pixel_size_angstrom: float
    data: tuple[Tensor, Tensor]
    weight: tuple[Tensor, Tensor]


def empty_sums(box: int, pixel_size_angstrom: float) -> HalfSums:
    """Sums over no particle."""
    # float32: even at zero frequency, where all slices meet, 10⁶ images stay far below its 2²⁴.
    first, second = (empty_half_grid(box, torch.complex64) for _ in range(2))
    weights = empty_half_grid(box, torch.float32), empty_half_grid(box, torch.float32)
    return HalfSums(box, pixel_size_angstrom, (first, second), weights)


def add_to_sums(
    sums: HalfSums,
    particles: Particles,
    batch_size: int = DEFAULT_CONFIG.batch_size,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Add particles that have poses and half sets, in place: at a box of 256 a grid is half a gigabyte."""
    poses, half_sets = _checked_poses(particles), particles.half_sets
    if half_sets is None or particles.box != sums.box:
        raise InputError(f"expected particles of {sums.box} px with half sets, found {particles.box} px")
    batches = loaded_batches(particles, batch_size)
    for rows, batch in zip(all_rows(len(particles), batch_size), batches, strict=True):
        slices, power = _weighted_slices(batch, poses[rows])
        for half in range(2):
            chosen = half_sets[rows] == half + 1
            quaternions = poses.quaternions[rows][chosen]
            insert_slices([sums.data[half], sums.weight[half]], [slices[chosen], power[chosen]], quaternions)
        progress(len(rows))


def finished_maps(sums: HalfSums, config: ReconstructionConfig, *, independent: bool) -> HalfMaps:
    """Half maps and full map. The sums are used up: their memory takes the sum of both halves."""
    box, data, weight = sums.box, list(sums.data), list(sums.weight)
    group = symmetry_group(config.symmetry)
    if len(group) > 1:
        for half in range(2):
            data[half], weight[half] = symmetrised(data[half], weight[half], group, box)

    def volume(data: Tensor, weight: Tensor) -> Volume:
        return Volume(inverted(data, weight, box, config.weight_floor), sums.pixel_size_angstrom)

    half1, half2 = volume(data[0], weight[0]), volume(data[1], weight[1])
    data[0] += data[1]
    weight[0] += weight[1]
    return HalfMaps(half1, half2, full=volume(data[0], weight[0]), independent=independent)


def _weighted_slices(batch: Particles, poses: Poses) -> tuple[Tensor, Tensor]:
    """CTF · transform of the centred images, and CTF², each (b, n, n // 2 + 1)."""
    box, pixel_size = batch.box, batch.pixel_size_angstrom
    images = batch.images[torch.arange(len(batch))]
    # The image is the centred projection moved by minus its origin, so plus the origin undoes it.
    slices = phase_shift(to_fourier(images), poses.shifts_angstrom / pixel_size)
    power = torch.ones(slices.shape)
    if batch.ctf is not None:
        transfer = ctf_2d(batch.ctf, box, pixel_size)
        slices, power = slices * transfer, transfer.square()
    # A half transform holds column kx = 0 with its mates: each counts half.
    power[..., 0] /= 2
    slices[..., 0] /= 2
    return slices, power


def inverted(data: Tensor, weight: Tensor, box: int, weight_floor: float) -> Tensor:
    """Map (n, n, n) from the flat half grids of CTF · data and of CTF², as `insert_slices` fills them."""
    size = PADDING * box
    weight = hermitian_sum(weight, box)
    transform = hermitian_sum(data, box) / weight.maximum(_weight_floor(weight, weight_floor))
    transform = torch.fft.ifftshift(transform, dim=(0, 1))
    padded = torch.fft.fftshift(torch.fft.irfftn(transform, s=(size,) * 3))
    kept = slice(size // 2 - box // 2, size // 2 - box // 2 + box)
    return padded[kept, kept, kept] / gridding_correction(box)


def _weight_floor(weight: Tensor, share: float) -> Tensor:
    """``share`` of the mean of ``weight`` (m, m, n + 1) over its shell; never 0."""
    size, _, width = weight.shape
    centred = torch.arange(size, dtype=torch.float32) - size // 2
    column = torch.arange(width, dtype=torch.float32)
    radius = (centred[:, None, None] ** 2 + centred[None, :, None] ** 2 + column**2).sqrt()
    shell = radius.round_().to(torch.int32).view(-1)
    count = torch.bincount(shell)
    total = torch.bincount(shell, weight.view(-1), minlength=len(count))
    floor = (share * total / count.clamp_min(1)).clamp_min(torch.finfo(torch.float32).tiny)
    return floor.to(weight.dtype)[shell].view(weight.shape)


def _checked_poses(particles: Particles) -> Poses:
    poses = particles.poses
    if poses is None:
        raise InputError("expected particles with poses, found none; predict them or use a refined star file")
    bad = ~(poses.quaternions.isfinite().all(-1) & poses.shifts_angstrom.isfinite().all(-1))
    if bad.any():
        row = int(bad.nonzero()[0])
        found = (*poses.quaternions[row].tolist(), *poses.shifts_angstrom[row].tolist())
        raise InputError(f"expected finite poses, found {found} at row {row}; leave that particle out")
    return poses
