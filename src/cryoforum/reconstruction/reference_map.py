"""The map that images are compared with: of particles with poses, or from elsewhere."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.sampling import evenly_spaced_rows
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import InputError, require
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.imaging.masks import soft_mask, soft_spherical_mask
from cryoforum.imaging.noise_model import NoiseModel, measured_noise
from cryoforum.imaging.projection import cropped_transform
from cryoforum.imaging.shells import filter_shells, mean_by_shell, shell_index
from cryoforum.reconstruction.fsc import FSC_THRESHOLD, chance_of_fsc, fsc_curve
from cryoforum.reconstruction.half_sets import checked_half_sets
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct
from cryoforum.reconstruction.postprocess import randomised_fsc, without_randomised

logger = logging.getLogger(__name__)

# Of a map that comes without half maps nobody knows how far it is right. The scale measured shell by
# shell against the images takes care of that up to here, in units of Nyquist.
HIGHEST_OF_NYQUIST = 0.9
# Agreement by chance: less than so many standard deviations of the FSC of noise in so many shells in a row,
# as hollow molecules have single shells without signal. Where these are more than the last number, the
# frequencies of a shell are too few to tell.
SIGNIFICANCE, IN_A_ROW, TELLING = 3.0, 3, 0.25
# What counts as noise around the molecule: beyond so many pixels of it, in at least this share of the box,
# and with at least this share of the power inside in some shell.
OUTSIDE_PIXEL, LEAST_OUTSIDE, LEAST_NOISE = 6.0, 0.02, 0.1


@dataclass(frozen=True)
class Reference:
    """A map to compare images with.

    full: from all particles; halves: from each half of them, None for a map from elsewhere.
    highest_frequency: cycles per box up to which it is used. symmetry: point group.
    fsc: (box // 2 + 1,) of the halves, masked.
    noise, origin_reach_angstrom: of the particles it was made from: their noise, and how far their origins
        are off along x and y, but for one in a hundred; None for a map from elsewhere.
    file_pixel_size_angstrom: of the file of a map from elsewhere, which was resampled; None where unknown.
    """

    full: Volume
    halves: tuple[Volume, Volume] | None
    highest_frequency: int
    symmetry: str = "C1"
    fsc: Tensor | None = None
    noise: NoiseModel | None = None
    origin_reach_angstrom: float | None = None
    file_pixel_size_angstrom: float | None = None


def reference_from_half_maps(maps: HalfMaps, symmetry: str = "C1") -> Reference:
    """Masked maps, each weighted by what its FSC says is signal, up to where the FSC falls to 0.143.

    The weight is the Wiener filter S / (S + N): FSC for a half, 2 FSC / (1 + FSC) for the whole
    (Rosenthal & Henderson 2003). From the shell on in which whole boxes agree by chance alone, what the mask
    carries there is taken off: in noise a refinement would walk from shell to shell.
    """
    mask = soft_mask(maps.full)
    curve = fsc_curve(maps, mask)
    fsc, chance = curve.masked, _agrees_by_chance(curve.unmasked, len(symmetry_group(symmetry)))
    if chance.any():
        first = int(chance.nonzero()[0])
        fsc = without_randomised(fsc, randomised_fsc(maps, mask, first), first)
    below = (fsc < FSC_THRESHOLD)[1:].nonzero()
    shells = len(fsc) - 1
    highest = min(int(below[0]) if len(below) else shells, shells - 1)
    if highest < 2:
        raise InputError(
            "expected half maps that agree, found an FSC below 0.143 from the start; "
            "the poses are wrong or the particles too few"
        )
    usable = torch.where(torch.arange(len(fsc)) <= highest, fsc.clamp(0, 1), 0.0)

    def weighted(volume: Volume, weight: Tensor) -> Volume:
        return Volume(mask * filter_shells(volume.voxels, weight), volume.pixel_size_angstrom)

    return Reference(
        full=weighted(maps.full, 2 * usable / (1 + usable)),
        halves=(weighted(maps.half1, usable), weighted(maps.half2, usable)),
        highest_frequency=highest,
        symmetry=symmetry,
        fsc=fsc,
    )


def _agrees_by_chance(unmasked: Tensor, symmetry_order: int) -> Tensor:
    """Whether an FSC of whole boxes, from each shell on, is no higher than that of noise."""
    chance = SIGNIFICANCE * chance_of_fsc(len(unmasked), symmetry_order)
    no_more = (unmasked < chance) & (chance < TELLING)
    return pad(no_more, (0, IN_A_ROW - 1), value=True).unfold(0, IN_A_ROW, 1).all(1)


def reference_from_map(
    volume: Volume, symmetry: str = "C1", resolution_angstrom: float | None = None
) -> Reference:
    """A ``volume`` from elsewhere, at the particles' box and pixel size; used up to ``resolution_angstrom``.

    InputError for a resolution of less than two shells. ``symmetry``: its point group.
    """
    extent = len(volume.voxels) * volume.pixel_size_angstrom
    nyquist = len(volume.voxels) // 2
    highest = int(HIGHEST_OF_NYQUIST * nyquist)
    if resolution_angstrom is not None:
        expected = f"a resolution above 0 and at most {extent / 2:.0f} Å"
        require(0 < resolution_angstrom <= extent / 2, expected, resolution_angstrom)
        highest = min(round(extent / resolution_angstrom), nyquist - 1)
    return Reference(volume, None, highest, symmetry)


def without_visible_noise(reference: Reference) -> Reference:
    """A map from elsewhere, masked, weighted and cut by its signal where noise shows around the molecule.

    Noise of the very particles that are compared with it passes for signal: poses settle on it, and seem
    surer than they are. Outside the molecule is no signal, so each shell's share of signal inside follows
    from the ratio of both powers: the Wiener filter S / (S + N), up to where it is that of an FSC of 0.143.
    A map with hardly anything around the molecule stays as it is.
    """
    volume, box = reference.full, len(reference.full.voxels)
    mask = soft_mask(volume)
    outside = (1 - soft_mask(volume, extend_pixel=OUTSIDE_PIXEL)) * soft_spherical_mask(box, box / 2 - 2, 2)
    if float(outside.square().mean()) < LEAST_OUTSIDE:
        return reference
    inside_power, noise = (_power_by_shell(volume.voxels, weight) for weight in (mask, outside))
    signal = (1 - noise / inside_power.clamp_min(torch.finfo(noise.dtype).tiny)).clamp(0, 1)
    signal[0] = 1  # the mean was taken away outside
    used = slice(1, reference.highest_frequency + 1)
    if float(signal[used].min()) > 1 - LEAST_NOISE:
        return reference
    bad = (signal[used] < 2 * FSC_THRESHOLD / (1 + FSC_THRESHOLD)).nonzero()
    highest = reference.highest_frequency if not len(bad) else max(int(bad[0]), 2)
    extent = box * volume.pixel_size_angstrom
    logger.warning(
        f"the reference has noise around the molecule: it is masked, weighted by its signal, and used up to "
        f"{extent / highest:.1f} Å"
    )
    weight = torch.where(torch.arange(len(signal)) <= highest, signal, 0.0)
    voxels = mask * filter_shells(volume.voxels, weight)
    return replace(reference, full=replace(volume, voxels=voxels), highest_frequency=highest)


def _power_by_shell(voxels: Tensor, weight: Tensor) -> Tensor:
    """Mean |transform|² of each shell of a map multiplied by ``weight``, per voxel that is left."""
    power = torch.fft.rfftn(weight * (voxels - (weight * voxels).sum() / weight.sum())).abs().square()
    box = len(voxels)
    return mean_by_shell(power, shell_index(box), box // 2 + 1) / weight.square().mean()


def masked_reference(reference: Reference, mask: Tensor) -> Reference:
    """The same reference, its maps multiplied by a mask (n, n, n) of their box."""

    def masked(volume: Volume) -> Volume:
        return replace(volume, voxels=volume.voxels * mask)

    halves = reference.halves and (masked(reference.halves[0]), masked(reference.halves[1]))
    return replace(reference, full=masked(reference.full), halves=halves)


def noise_of_halves(reference: Reference, particles: Particles) -> NoiseModel:
    """Noise and scale of particles with known poses, each compared with the map of the other half.

    That map holds none of the particle's own noise, which would pass for signal.
    """
    poses, half_sets = particles.poses, particles.half_sets
    if reference.halves is None or poses is None or half_sets is None:
        raise InputError("expected half maps and particles with poses and half sets, found none")
    first, second = (cropped_transform(half.voxels, reference.highest_frequency) for half in reference.halves)
    return measured_noise(particles, poses, (second, first), half_sets - 1, reference.highest_frequency)


def origin_reach_angstrom(poses: Poses) -> float:
    """How far origins are off along x and y, but for one in a hundred."""
    return float(np.quantile(poses.shifts_angstrom.abs().amax(1).numpy(), 0.99))


NOISE_SAMPLE = 1000  # training particles on which noise and signal scale are measured


def reference_from_particles(
    particles: Particles,
    symmetry: str = "C1",
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> Reference:
    """The map of particles with known poses, of each half of them, and their noise.

    InputError where there are no poses, or the half maps do not agree. ``symmetry``: its point group;
    ``progress``: called with the number of images of each batch done.
    """
    if particles.poses is None:
        raise InputError("expected particles with poses to make a reference of, found none")
    particles = replace(particles, half_sets=checked_half_sets(particles))
    maps = reconstruct(particles, ReconstructionConfig(symmetry=symmetry), progress=progress)
    return reference_with_noise(maps, particles, symmetry)


def reference_with_noise(maps: HalfMaps, particles: Particles, symmetry: str = "C1") -> Reference:
    """The reference of half maps, and the noise of the particles with poses and half sets they are made of.

    InputError where the half maps do not agree.
    """
    assert particles.poses is not None
    reach = origin_reach_angstrom(particles.poses)
    reference = reference_from_half_maps(maps, symmetry)
    sample = particles.select(evenly_spaced_rows(len(particles), NOISE_SAMPLE))
    return replace(reference, noise=noise_of_halves(reference, sample), origin_reach_angstrom=reach)
