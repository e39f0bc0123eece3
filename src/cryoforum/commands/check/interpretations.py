"""How a particle file may be read, and how well its images bear out each reading.

Half of the particles make a map under a reading; the images of the other half are compared with its
projections, and the other way round. Nothing is compared with its own noise, so what a reading explains of
the images speaks for it, and two readings differ by one number a particle, whose mean has a standard error.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particles import Particles, all_rows
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.sampling import evenly_spaced_rows, has_usual_contrast
from cryoforum.errors import InputError
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, inverse
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import FrequencyPoints, crop_or_pad, frequency_points, to_fourier
from cryoforum.imaging.insertion import empty_grids, insert_slices
from cryoforum.imaging.masks import soft_spherical_mask
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.imaging.shells import mean_by_shell, sum_by_shell
from cryoforum.reconstruction.half_sets import drawn_half_sets
from cryoforum.reconstruction.inversion import inverted

LARGEST_BOX = 64  # pixels that images are cut to in Fourier space; the field of view stays
MOST_COPIES = 4  # of a particle, turned by symmetry, that a map is made from: more cost more than they tell
WEIGHT_FLOOR = 0.3  # as of `ReconstructionConfig`
MASK_RADIUS, MASK_EDGE = 0.40, 0.08  # of the box: what lies outside is solvent


class Transfer(StrEnum):
    """What was done to the images before they were stored."""

    AS_RECORDED = "as recorded"
    FLIPPED = "phase-flipped"
    MULTIPLIED = "multiplied by their CTF"
    CORRECTED = "CTF-corrected"
    OVERFOCUS = "of the opposite defocus"


@dataclass(frozen=True)
class Interpretation:
    """What the columns of a file mean; by default what they say.

    inverse_rotation: angles are those of the inverse. shuffled: every image has the angles of another one.
    origin_factor: origins are to be multiplied by it. pixel_factor: so is the pixel size.
    origins_with_pixels: and origins in Å with it, as they are right in pixels. transfer: of the images.
    """

    inverse_rotation: bool = False
    shuffled: bool = False
    origin_factor: float = 1.0
    pixel_factor: float = 1.0
    origins_with_pixels: bool = False
    transfer: Transfer = Transfer.AS_RECORDED

    @property
    def shift_factor(self) -> float:
        """By which origins in Å are to be multiplied in all."""
        return self.origin_factor * (self.pixel_factor if self.origins_with_pixels else 1.0)


@dataclass(frozen=True)
class Sample:
    """Some particles of a file, ready to be read one way or another.

    values: (n, p) complex64, transforms of the images at ``points``, over the deviation (p,) of their shell.
    extent_angstrom: width of the images. halves: (n,) 0 or 1.
    used: (p,) bool, the points by which readings are judged.
    """

    points: FrequencyPoints
    values: Tensor
    deviation: Tensor
    extent_angstrom: float
    poses: Poses
    ctf: CtfParameters | None
    halves: Tensor
    symmetry: str
    used: Tensor

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Support:
    """How far the images bear out a reading.

    gains: (n,) log-likelihood that the map of the other half adds to each image. half_maps: (2, b, b, b).
    slices: (n, p) of the other half's map.
    """

    interpretation: Interpretation
    gains: Tensor
    half_maps: Tensor
    slices: Tensor


def as_interpreted(particles: Particles, interpretation: Interpretation) -> Particles:
    """The particles with poses and pixel size as a reading has them."""
    if particles.poses is None:
        raise InputError("expected particles with poses, found none")
    quaternions, shifts = particles.poses.quaternions, particles.poses.shifts_angstrom
    return replace(
        particles,
        poses=Poses(
            inverse(quaternions) if interpretation.inverse_rotation else quaternions,
            interpretation.shift_factor * shifts,
        ),
        pixel_size_angstrom=interpretation.pixel_factor * particles.pixel_size_angstrom,
    )


def drawn_sample(particles: Particles, count: int, symmetry: str, batch_size: int = 128) -> Sample:
    """At most ``count`` particles with poses, spread evenly over the file, without far stronger images."""
    if particles.poses is None:
        raise InputError("expected particles with poses, found none")
    rows = evenly_spaced_rows(len(particles), count)
    box = min(LARGEST_BOX, particles.box)
    points = frequency_points(box, box // 2 - 2)
    parts, variances = [], []
    for batch in all_rows(len(rows), batch_size):
        images = particles.images[rows[batch]]
        transforms = to_fourier(images)
        if box < particles.box:
            transforms = crop_or_pad(transforms, particles.box, box)
        parts.append(points.values_of(transforms))
        variances.append(images.var(dim=(1, 2)))
    values, variance = torch.cat(parts), torch.cat(variances)
    usable = has_usual_contrast(variance)
    values, rows = values[usable] / variance[usable, None].sqrt(), rows[usable]
    power = mean_by_shell(values.abs().square().mean(0), points.shell)
    deviation = power[points.shell].clamp_min(1e-12 * power.max()).sqrt()
    return Sample(
        points,
        values / deviation,
        deviation,
        particles.box * particles.pixel_size_angstrom,
        particles.poses[rows],
        None if particles.ctf is None else particles.ctf[rows],
        _halves(particles, rows),
        symmetry,
        torch.ones(len(points.kx), dtype=torch.bool),
    )


def _halves(particles: Particles, rows: Tensor) -> Tensor:
    """The file's own random subsets where both are well filled, as their poses know nothing of each other."""
    if particles.half_sets is not None:
        own = particles.half_sets[rows] - 1
        if 0.25 < float(own.float().mean()) < 0.75:
            return own
    chosen = particles.select(rows)
    return drawn_half_sets(chosen.names, sources=chosen.sources) - 1


def support(sample: Sample, interpretation: Interpretation) -> Support:
    """Half maps under a reading, and how much each explains of the images of the other half."""
    quaternions, centred, transfer = interpreted(sample, interpretation)
    half_maps = _half_maps(sample, quaternions, centred, transfer)
    slices = _slices(sample, quaternions, half_maps.flip(0))
    return Support(interpretation, _gains(sample, centred, transfer * slices), half_maps, slices)


def support_by_maps_of(other: Support, sample: Sample, interpretation: Interpretation) -> Tensor:
    """What the maps of another reading of the same orientations explain under this one, (n,): much faster."""
    _, centred, transfer = interpreted(sample, interpretation)
    return _gains(sample, centred, transfer * other.slices)


def shell_sums(sample: Sample, centred: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """Re⟨image, model⟩ and ⟨model, model⟩ of each particle by shell, (n, shells), over the judged points."""
    cross = centred.real * model.real + centred.imag * model.imag
    power = model.real.square() + model.imag.square()
    shell = sample.points.shell
    return sum_by_shell(sample.used * cross, shell), sum_by_shell(sample.used * power, shell)


def _gains(sample: Sample, centred: Tensor, model: Tensor) -> Tensor:
    """Log-likelihood (n,) of images over noise alone, for both (n, p).

    One scale a shell, from all particles: a map of few of them is too strong where it is mostly noise.
    """
    cross, power = shell_sums(sample, centred, model)
    scale = cross.sum(0) / power.sum(0).clamp_min(1e-30)
    return cross @ (2 * scale) - power @ scale.square()


def interpreted(sample: Sample, interpretation: Interpretation) -> tuple[Tensor, Tensor, Tensor]:
    """Orientations (n, 4), whitened images (n, p) moved to the centre, and their transfer (n, p)."""
    quaternions = sample.poses.quaternions
    if interpretation.shuffled:
        quaternions = quaternions.roll(1, 0)
    extent = sample.extent_angstrom * interpretation.pixel_factor
    pixel = extent / sample.points.box
    origins = sample.poses.shifts_angstrom * interpretation.shift_factor / pixel
    transfer = torch.ones(len(sample), len(sample.points.kx))
    if sample.ctf is not None:
        transfer = _transfer(sample.ctf, interpretation.transfer, sample.points, extent)
    return (
        inverse(quaternions) if interpretation.inverse_rotation else quaternions,
        sample.values * sample.points.phases(origins).conj(),
        transfer / sample.deviation,
    )


def _transfer(ctf: CtfParameters, kind: Transfer, points: FrequencyPoints, extent: float) -> Tensor:
    if kind is Transfer.CORRECTED:
        return torch.ones(len(ctf), len(points.kx))
    if kind is Transfer.OVERFOCUS:
        ctf = replace(
            ctf,
            defocus_u_angstrom=-ctf.defocus_u_angstrom,
            defocus_v_angstrom=-ctf.defocus_v_angstrom,
        )
    values = ctf_at(ctf, points.kx / extent, points.ky / extent)
    if kind is Transfer.FLIPPED:
        return values.abs()
    return values.square() if kind is Transfer.MULTIPLIED else values


def _half_maps(sample: Sample, quaternions: Tensor, centred: Tensor, transfer: Tensor) -> Tensor:
    """Maps (2, b, b, b) of either half, solvent flattened."""
    box, points = sample.points.box, sample.points
    data, weight = empty_grids(box, 2)
    values, powers = transfer * centred, transfer.square()
    group = symmetry_group(sample.symmetry)
    copies = min(len(group), MOST_COPIES)
    for copy in range(copies):
        element = (torch.arange(len(sample)) * copies + copy) % len(group)
        turned = compose(group[element], quaternions) if len(group) > 1 else quaternions
        insert_slices(data, weight, points, values, powers, turned, sample.halves)
    mask = soft_spherical_mask(box, MASK_RADIUS * box, MASK_EDGE * box)
    rim = (mask > 0) & (mask < 0.5)
    maps = [inverted(data[half], weight[half], box, WEIGHT_FLOOR) for half in range(2)]
    return torch.stack([mask * (voxels - voxels[rim].mean()) for voxels in maps])


def _slices(sample: Sample, quaternions: Tensor, maps: Tensor) -> Tensor:
    """Slices (n, p) along ``quaternions`` (n, 4), for each half of its own of ``maps`` (2, b, b, b)."""
    points = sample.points
    result = torch.empty(len(sample), len(points.kx), dtype=torch.complex64)
    for half, voxels in enumerate(maps):
        rows = sample.halves == half
        result[rows] = slices_at(cropped_transform(voxels, int(points.radius[-1])), quaternions[rows], points)
    return result
