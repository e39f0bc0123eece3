"""How much larger errors are than the bound because the map that images are compared with is noisy itself.

A map m̂ = w (m + ε), with the Wiener filter w = S / (S + N), has slopes J of the molecule and of its noise ε.
Image noise n and what the map lacks, m - m̂, move the likeliest pose by

    (Σ w Re J_m̂ᴴ J_m)⁻¹ J_m̂ᴴ (n + m - m̂),

as only the molecule's own slopes pull it back, while the bound takes the map for right: (Σ |J_m̂|²)⁻¹. The two
differ in two ways. Slopes of noise are steeper than its power says: it fills the mask to the edge, where a
turn moves everything farthest. And m - m̂ lies where the molecule does, so that more of it falls on the slopes
than of noise that is everywhere in the image. Half maps show the noise: it is what they differ by.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.sampling import evenly_spaced_rows
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import Evaluation, WhitenedImages, evaluate
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.imaging.shells import filter_shells, mean_by_shell, shell_index
from cryoforum.reconstruction.reference_map import Reference

SAMPLE = 256  # particles whose CTFs count, each in a random view: the factor hardly depends on either
LEAST_WEIGHT = 0.05  # of a shell that is signal
LEAST_PULL = 0.5  # of the molecule in a map; below it is mostly noise, and no number is right


@dataclass(frozen=True)
class _NoisyMap:
    """A filtered map, its own noise with the same filter, and the filter (s,)."""

    voxels: Tensor
    noise: Tensor
    weight: Tensor


def variance_factor(
    reference: Reference, noise: NoiseModel, particles: Particles, own_half_maps: bool
) -> float:
    """By which the variance of errors is larger than the bound says, for these particles on average.

    ``own_half_maps``: whether they are compared with half maps, which are noisier than the whole one. 1 for a
    map from elsewhere, of whose noise nothing is known.
    """
    noisy = _noisy_map(reference, own_half_maps)
    if noisy is None:
        return 1.0
    images = _transfers(reference, noise, particles)
    views = random_unitquat(len(images), generator=torch.Generator().manual_seed(0))
    reach = math.ceil(float(images.points.radius[-1]))
    map_transform, noise_transform, lacking = (
        cropped_transform(voxels, reach)
        for voxels in (noisy.voxels, noisy.noise, filter_shells(noisy.noise, noisy.weight.rsqrt()))
    )

    def evaluated(transform: Tensor, found: WhitenedImages) -> Evaluation:
        return evaluate(transform, found, torch.arange(len(views)), views, torch.zeros(len(views), 2))

    def times(factor: Tensor) -> WhitenedImages:
        return replace(images, transfer=images.transfer * factor)

    seen = replace(images, values=images.transfer * slices_at(map_transform + lacking, views, images.points))
    whole = evaluated(map_transform, seen)
    steeper = times(noisy.weight.rsqrt()[images.points.shell])
    pull = evaluated(map_transform, steeper).information - evaluated(noise_transform, steeper).information
    power = _power_by_shell(noisy.noise) / noisy.weight
    counted = times(images.transfer.abs() * power.sqrt()[images.points.shell])  # in the noise of the images
    noise_of_images = whole.information - evaluated(map_transform, counted).information
    return _variance_ratio(whole.information, pull, noise_of_images, whole.gradient)


def _noisy_map(reference: Reference, own_half_maps: bool) -> _NoisyMap | None:
    if reference.halves is None or reference.fsc is None:
        return None
    half = reference.fsc.float().clamp(LEAST_WEIGHT, 1)
    difference = reference.halves[0].voxels - reference.halves[1].voxels
    if own_half_maps:
        return _NoisyMap(reference.halves[0].voxels, difference / 2**0.5, half)
    whole = 2 * half / (1 + half)
    return _NoisyMap(reference.full.voxels, filter_shells(difference / 2, whole / half), whole)


def _transfers(reference: Reference, noise: NoiseModel, particles: Particles) -> WhitenedImages:
    """A sample of the particles' images without what is in them, at the frequencies of the reference."""
    sample = particles.select(evenly_spaced_rows(len(particles), SAMPLE))
    points = frequency_points(particles.box, reference.highest_frequency)
    transfer = noise.weight(sample, points)
    if sample.ctf is not None:
        transfer = transfer * ctf_at(sample.ctf, *points.per_angstrom(particles.pixel_size_angstrom))
    return WhitenedImages(points, torch.zeros_like(transfer, dtype=torch.complex64), transfer)


def _power_by_shell(voxels: Tensor) -> Tensor:
    box = len(voxels)
    return mean_by_shell(torch.fft.rfftn(voxels).abs().square(), shell_index(box), box // 2 + 1)


def _variance_ratio(stated: Tensor, pull: Tensor, noise: Tensor, score: Tensor) -> float:
    """Mean over n views of tr(P⁻¹ (N + ggᵀ) P⁻¹) over tr(I⁻¹), of the rotations alone.

    I, P, N: the information that is stated, the pull and the noise of the images, (n, 5, 5). g: (n, 5), what
    the map lacks; of ggᵀ the mean over all views counts, where I is 1.
    """
    values, vectors = torch.linalg.eigh(stated.double())
    root = vectors @ torch.diag_embed(values.clamp_min(1e-30).rsqrt()) @ vectors.mT
    shares, axes = torch.linalg.eigh(root @ pull.double() @ root)
    back = root @ axes @ torch.diag_embed(1 / shares.clamp(LEAST_PULL, 1.0)) @ axes.mT
    lacking = root @ score.double()[:, :, None]
    moved = root @ noise.double() @ root + (lacking @ lacking.mT).mean(0)
    found, bound = back @ moved @ back.mT, root @ root
    turns = [matrix[:, :3, :3].diagonal(dim1=1, dim2=2).sum(1) for matrix in (found, bound)]
    return max(1.0, float((turns[0] / turns[1]).mean()))  # 1 also for images of nothing, which have no ratio
