"""Particles with poses to half maps: direct Fourier inversion.

Every image is moved back to the centre, multiplied by its CTF and inserted into a map's transform as
a central slice; CTF² is inserted beside it. Their ratio is the map's transform. Of a symmetric molecule
both are first summed over all turns of the point group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import InputError, require
from cryoforum.fields.settings import settle_settings
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import FrequencyPoints, half_transform_points, to_fourier
from cryoforum.imaging.insertion import empty_grids, hermitian_sum, insert_slices, symmetrised
from cryoforum.imaging.projection import PADDING, gridding_correction
from cryoforum.imaging.shells import mean_by_shell, radius_on_grid
from cryoforum.reconstruction.half_sets import checked_half_sets


@dataclass(frozen=True)
class ReconstructionConfig:
    """How a map is reconstructed.

    Parameters
    ----------
    batch_size
        Images held in memory at once.
    weight_floor
        Weights below this share of their shell's mean are raised to it. It keeps directions that few images
        saw from dividing noise by almost nothing, and unlike a constant added to every weight it leaves the
        scale of well-seen frequencies untouched. With RELION's 1e-3 a thousand images agree less well with
        the truth (9.12 Å at FSC 0.5, 9.08 Å with 0.3; five thousand: 7.36 Å with both).
    symmetry
        Point group of the molecule, axes as in RELION.
    """

    batch_size: int = 256
    weight_floor: float = 0.3
    symmetry: str = "C1"

    def __post_init__(self) -> None:
        settle_settings(self)
        require(self.batch_size >= 1, "a batch_size of 1 or more", self.batch_size)
        require(0 < self.weight_floor <= 1, "a weight_floor in (0, 1]", self.weight_floor)
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
    particles : with poses; without ``ctf`` it is 1; without ``half_sets`` they are drawn by ``seed``.
    config : settings.
    independent : whether the poses of the two halves know nothing of each other, passed on.
    progress : called with the number of images of each batch done.
    """
    _checked_poses(particles)
    half_sets = checked_half_sets(particles, seed)
    sums = empty_sums(particles.box, particles.pixel_size_angstrom)
    add_to_sums(sums, replace(particles, half_sets=half_sets), config.batch_size, progress)
    return finished_maps(sums, config, independent=independent)


def backproject(particles: Particles, symmetry: str = "C1") -> Volume:
    """The map of all particles at their poses, by direct Fourier inversion, on the scale of projections.

    Parameters
    ----------
    particles
        With poses; without ``ctf`` it is 1.
    symmetry
        Point group of the molecule, axes as in RELION.

    Returns
    -------
    Volume
        At the box and pixel size of the particles. Directions that few of them saw are damped; for half maps
        and their FSC see `reconstruct`.

    Raises
    ------
    InputError
        Where poses are missing or not finite, or nobody knows the point group.
    """
    group = symmetry_group(symmetry)
    everything = replace(particles, half_sets=torch.ones(len(particles), dtype=torch.long))
    sums = HalfSums(particles.box, particles.pixel_size_angstrom, *empty_grids(particles.box, 1))
    add_to_sums(sums, everything)
    data, weight = sums.data[0], sums.weight[0]
    if len(group) > 1:
        data, weight = (symmetrised(grid, group, sums.box) for grid in (data, weight))
    voxels = inverted(data, weight, sums.box, DEFAULT_CONFIG.weight_floor)
    return Volume(voxels, particles.pixel_size_angstrom)


@dataclass(frozen=True)
class HalfSums:
    """What a reconstruction adds up: sums over particles, so that more can be added at any time.

    data, weight: (2, m, m, w + 1), CTF · data and CTF² of each half, as of `insertion.empty_grids`; of all
        particles as one half, (1, m, m, w + 1).
    """

    box: int
    pixel_size_angstrom: float
    data: Tensor
    weight: Tensor


def empty_sums(box: int, pixel_size_angstrom: float) -> HalfSums:
    """Sums over no particle."""
    return HalfSums(box, pixel_size_angstrom, *empty_grids(box, 2))


def add_to_sums(
    sums: HalfSums,
    particles: Particles,
    batch_size: int = DEFAULT_CONFIG.batch_size,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Add particles that have poses and half sets, in place: at a box of 256 a grid is half a gigabyte.

    InputError where they have none, or another box.
    """
    poses, half_sets = _checked_poses(particles), particles.half_sets
    if half_sets is None or particles.box != sums.box:
        raise InputError(f"expected particles of {sums.box} px with half sets, found {particles.box} px")
    points = half_transform_points(sums.box)
    batches = loaded_batches(particles, batch_size)
    for rows, batch in zip(all_rows(len(particles), batch_size), batches, strict=True):
        values, powers = _weighted_slices(batch, poses[rows], points)
        quaternions = poses.quaternions[rows]
        insert_slices(sums.data, sums.weight, points, values, powers, quaternions, half_sets[rows] - 1)
        progress(len(rows))


def _weighted_slices(batch: Particles, poses: Poses, points: FrequencyPoints) -> tuple[Tensor, Tensor]:
    """CTF · transform of the centred images, and CTF², each (b, p)."""
    images = batch.images[torch.arange(len(batch))]
    origins = poses.shifts_angstrom / batch.pixel_size_angstrom
    values = points.values_of(to_fourier(images)) * points.phases(origins).conj()
    transfer = torch.ones(values.shape)
    if batch.ctf is not None:
        transfer = ctf_at(batch.ctf, *points.per_angstrom(batch.pixel_size_angstrom))
    # A half transform holds column kx = 0 with its mates: each counts half.
    weighted = torch.where(points.kx == 0, 0.5, 1.0) * transfer
    return weighted * values, weighted * transfer


def finished_maps(sums: HalfSums, config: ReconstructionConfig, *, independent: bool) -> HalfMaps:
    """Half maps and full map. The sums are used up: their memory takes the sum of both halves."""
    group = symmetry_group(config.symmetry)
    if len(group) > 1:
        for grid in (*sums.data, *sums.weight):
            grid.copy_(symmetrised(grid, group, sums.box))

    def half_map(half: int) -> Volume:
        voxels = inverted(sums.data[half], sums.weight[half], sums.box, config.weight_floor)
        return Volume(voxels, sums.pixel_size_angstrom)

    half1, half2 = half_map(0), half_map(1)
    sums.data[0] += sums.data[1]
    sums.weight[0] += sums.weight[1]
    return HalfMaps(half1, half2, full=half_map(0), independent=independent)


def inverted(data: Tensor, weight: Tensor, box: int, weight_floor: float) -> Tensor:
    """Map (box, box, box) from CTF · data and CTF², each a grid (m, m, w + 1) of `insertion.insert_slices`.

    Weights below ``weight_floor`` times the mean of their shell are raised to it.
    """
    size = PADDING * box
    # The part of a grid that is the half transform of the padded map.
    weight, data = (hermitian_sum(grid)[:size, :size] for grid in (weight, data))
    # In place, on the copy that `hermitian_sum` made; as real numbers, which are faster to divide.
    torch.view_as_real(data).div_(weight.maximum(_weight_floor(weight, weight_floor))[..., None])
    transform = torch.fft.ifftshift(data, dim=(0, 1))
    padded = torch.fft.fftshift(torch.fft.irfftn(transform, s=(size,) * 3))
    kept = slice(size // 2 - box // 2, size // 2 - box // 2 + box)
    return padded[kept, kept, kept] / gridding_correction(box)


def _weight_floor(weight: Tensor, share: float) -> Tensor:
    """``share`` of the mean of ``weight`` (m, m, n + 1) over its shell; never 0."""
    size, _, width = weight.shape
    centred, column = torch.arange(size).float() - size // 2, torch.arange(width).float()
    shell = radius_on_grid(centred, centred, column).round_().to(torch.int32)
    return (share * mean_by_shell(weight, shell)).clamp_min(torch.finfo(weight.dtype).tiny)[shell]


def _checked_poses(particles: Particles) -> Poses:
    poses = particles.poses
    if poses is None:
        raise InputError("expected particles with poses, found none; predict them or use a refined star file")
    return poses
