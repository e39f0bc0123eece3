"""Endless simulated particles that look like those of a training set.

Projections of the map made of the training particles, in random directions, with the defocus, the origins and
the noise spectrum of the particles themselves. A network that learns from them never sees an image twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.config import PreprocessingConfig
from cryoforum.ctf import ctf_at
from cryoforum.fourier import to_real
from cryoforum.likelihood import FrequencyPoints, frequency_points, slices_at
from cryoforum.particles import Particles
from cryoforum.preprocessing import Intensity, masked_and_standardised
from cryoforum.projection import cropped_transform
from cryoforum.reference import Reference
from cryoforum.rotations import random_unitquat


@dataclass(frozen=True)
class Imitation:
    """What simulated network inputs are drawn from; made by `imitation_of`.

    transform: `projection.cropped_transform` of the map. points: where it is read, in the plane of an image.
    particles: whose optics and origins are drawn. noise_deviation: (rows, m, m // 2 + 1) and signal_scale:
    (rows, points) of each row of the noise model; noise_rows: (n,) the row of each particle.
    """

    transform: Tensor
    points: FrequencyPoints
    particles: Particles
    noise_deviation: Tensor
    signal_scale: Tensor
    noise_rows: Tensor
    config: PreprocessingConfig
    intensity: Intensity | None

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` network inputs (count, m, m) and their orientations (count, 4), uniform."""
        rows, other_rows = torch.randint(len(self.particles), (2, count), generator=generator)
        quaternions = random_unitquat(count, generator=generator)
        noise_rows = self.noise_rows[rows]
        signal = slices_at(self.transform, quaternions, self.points) * self.signal_scale[noise_rows]
        optics = self.particles.optics
        if optics is not None:
            extent = self.particles.box * self.particles.pixel_size_angstrom
            transfer = ctf_at(optics[rows], self.points.kx / extent, self.points.ky / extent)
            signal = signal * (transfer.abs() if self.config.phase_flip else transfer)
        poses = self.particles.poses
        if poses is not None:
            origins = poses.shifts_angstrom[other_rows] / self.particles.pixel_size_angstrom
            signal = signal * self.points.phases(origins)
        box = self.config.box
        # White noise of pixels has the transform of a real image, whatever the weights on it.
        noise = torch.fft.rfft2(torch.randn(count, box, box, generator=generator) / box)
        transforms = noise * self.noise_deviation[noise_rows]
        row, column = self.points.ky.long() % box, self.points.kx.long()
        transforms[:, row, column] += signal
        axis = column == 0  # of k and -k only one is among the points, but the column holds both
        transforms[:, -row[axis] % box, 0] += signal[:, axis].conj()
        images = to_real(transforms * (box / self.particles.box) ** 2, box)
        if self.intensity is not None:  # the level of the set, which the signal alone does not have
            images = images + self.intensity.mean
        return masked_and_standardised(images, self.config, self.intensity), quaternions


def imitation_of(
    particles: Particles,
    reference: Reference,
    config: PreprocessingConfig,
    intensity: Intensity | None = None,
) -> Imitation:
    """Imitations of ``particles``, whose map and noise ``reference`` holds; ValueError where it has no noise.

    ``intensity`` as in `preprocessing.prepare`.
    """
    if reference.noise is None:
        raise ValueError("expected a reference made from particles, found a map without their noise")
    box = config.box
    radius = min(reference.highest_frequency, particles.box // 2 - 1)
    points = frequency_points(particles.box, radius)
    kept = (points.kx < box / 2) & (points.ky.abs() < box / 2)  # a square, as resizing leaves it
    points = FrequencyPoints(points.box, points.kx[kept], points.ky[kept])
    frequency = torch.fft.fftfreq(box, d=1 / box)
    shells = torch.hypot(frequency[:, None], frequency[: box // 2 + 1]).round().long()
    power = reference.noise.power
    # Nothing is measured at zero frequency and from the last shell on, in the corners.
    deviation = power[:, shells.clamp(1, power.shape[1] - 2)].sqrt()
    if box != particles.box:  # a resized image has nothing at and beyond the smaller box's Nyquist frequency
        inside = frequency.abs() < min(box, particles.box) // 2
        deviation = deviation * (inside[:, None] & inside[: box // 2 + 1])
    return Imitation(
        transform=cropped_transform(reference.full.voxels, radius),
        points=points,
        particles=particles,
        noise_deviation=deviation,
        signal_scale=reference.noise.scale[:, points.shell],
        noise_rows=reference.noise.rows_of(particles),
        config=config,
        intensity=intensity,
    )
