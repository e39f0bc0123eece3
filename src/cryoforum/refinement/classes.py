"""Which of several maps shows each particle: the likelihood of its image under every class.

No image is judged by a map that holds its own noise: that of the other half set is used. And no map is
taken for the truth: what is alike in all classes is known from all particles, and what sets a class apart is
believed as far as the halves of the class agree in it, shell by shell. The rest is noise in the prediction of
an image. Otherwise every particle stays where it is, or the class of most particles, whose map is the least
noisy, takes those of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from torch import Tensor

from cryoforum.alignment.class_likelihood import ClassMaps, UncertainMap, class_maps_with_noise
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.sampling import evenly_spaced_rows
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.errors import require
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import WhitenedImages
from cryoforum.imaging.masks import soft_mask
from cryoforum.imaging.projection import cropped_transform
from cryoforum.imaging.shells import filter_shells, mean_by_shell, shell_index
from cryoforum.reconstruction.fsc import FSC_THRESHOLD, fourier_shell_correlation
from cryoforum.reconstruction.reference_map import NOISE_SAMPLE, Reference
from cryoforum.refinement.variability import strongest_components

# To which particles are first parted, and at least so many cycles per box: states differ at low resolution.
PARTED_ANGSTROM, FEWEST_SHELLS = 20.0, 8


def class_maps(maps: Sequence[HalfMaps], particles: Particles, classes: Int[Tensor, " n"]) -> ClassMaps:
    """What particles with poses and half sets are compared with: the half maps of their classes, from 0."""
    shares = (torch.bincount(classes, minlength=len(maps)) / len(classes))[:, None, None, None, None]
    pairs = torch.stack([torch.stack([one.half1.voxels, one.half2.voxels]) for one in maps])
    mean = (shares * pairs).sum(0)
    mask = soft_mask(replace(maps[0].full, voxels=mean.mean(0)))
    alike = _believed(mean * mask)
    highest = _highest_frequency(alike.fsc)
    halves = []
    for pair in pairs:
        apart = _believed((pair - mean) * mask)
        variance = alike.variance + apart.variance
        first, second = (
            UncertainMap(cropped_transform(half, highest), variance) for half in alike.halves + apart.halves
        )
        halves.append((first, second))
    sample = evenly_spaced_rows(len(particles), NOISE_SAMPLE)
    return class_maps_with_noise(tuple(halves), particles.select(sample), classes[sample], highest)


@dataclass(frozen=True)
class _Believed:
    """Two independent halves of one map, as far as they agree, and what is not known of them, by shell."""

    halves: Float[Tensor, "2 n n n"]
    variance: Float[Tensor, " s"]
    fsc: Float[Tensor, " s"]


def _believed(halves: Float[Tensor, "2 n n n"]) -> _Believed:
    """The Wiener filter S / (S + N) = FSC, whose error has the variance S N / (S + N)."""
    first, second = (Volume(half, 1.0) for half in halves)
    fsc = fourier_shell_correlation(first, second).float().clamp(0, 1)
    box = halves.shape[-1]
    power = torch.fft.rfftn(halves, dim=(1, 2, 3)).abs().square().mean(0)
    variance = fsc * (1 - fsc) * mean_by_shell(power, shell_index(box), box // 2 + 1)
    return _Believed(torch.stack([filter_shells(half, fsc) for half in halves]), variance, fsc)


def _highest_frequency(fsc: Tensor) -> int:
    """Cycles per box up to which two halves agree; InputError where they hardly do."""
    below = (fsc[1:] < FSC_THRESHOLD).nonzero()
    highest = min(int(below[0]) if len(below) else len(fsc) - 1, len(fsc) - 2)
    require(highest >= 2, "half maps that agree", "an FSC below 0.143 from the start")
    return highest


def first_classes(particles: Particles, reference: Reference, count: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Classes, from 0, of particles that share one map at their poses, by how they vary at low resolution."""
    assert particles.poses is not None and reference.noise is not None
    extent = particles.box * particles.pixel_size_angstrom
    frequency = min(reference.highest_frequency, max(FEWEST_SHELLS, round(extent / PARTED_ANGSTROM)))
    points = frequency_points(particles.box, frequency)
    parts = [reference.noise.whiten(batch, points) for batch in loaded_batches(particles, 256)]
    images = WhitenedImages(
        points, torch.cat([p.values for p in parts]), torch.cat([p.transfer for p in parts])
    )
    box = min(particles.box, 2 * frequency + 8)
    small = resample_volume(reference.full, box, extent / box)
    mask = soft_mask(small, extend_pixel=1.0, edge_pixel=3.0)
    origins = particles.poses.shifts_angstrom / particles.pixel_size_angstrom
    coordinates = strongest_components(
        images, particles.poses.quaternions, origins, mask, count - 1, seed=seed
    )
    _, classes = kmeans2(coordinates.double().numpy(), count, minit="++", rng=seed)
    return torch.from_numpy(classes).long()
