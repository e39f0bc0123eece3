"""Endless simulated particles that look like those of a training set.

Projections of the map made of the training particles, in random directions, with the defocus, the origins and
the noise spectrum of the particles themselves, so that no image is seen twice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum.config import PreprocessingConfig
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.ctf import ctf_at
from cryoforum.imaging.fft import FrequencyPoints, frequency_points, to_real
from cryoforum.imaging.projection import cropped_transform, slices_at
from cryoforum.network.preprocessing import Intensity, masked_and_standardised
from cryoforum.reconstruction.reference_map import Reference
from cryoforum.runtime.devices import CPU

EVERY = slice(None)


@dataclass(frozen=True)
class ImageSimulator:
    """What simulated network inputs are drawn from; made by `image_simulator`.

    Attributes
    ----------
    transform : Tensor
        `projection.cropped_transform` of the map, on the device where images are made.
    points : FrequencyPoints
        Where it is read, in the plane of an image.
    particles : Particles
        Whose CTF parameters and origins are drawn.
    noise_deviation, signal_scale : Tensor
        (rows, m, m // 2 + 1) and (rows, points), of each row of the noise model.
    noise_rows : Tensor
        The row of each particle, (n,).
    config : PreprocessingConfig
    intensity : Intensity, optional
        As in `preprocessing.prepare`.
    """

    transform: Tensor
    points: FrequencyPoints
    particles: Particles
    noise_deviation: Tensor
    signal_scale: Tensor
    noise_rows: Tensor
    config: PreprocessingConfig
    intensity: Intensity | None

    def draw(
        self, count: int, generator: torch.Generator, chosen: slice | Tensor = EVERY
    ) -> tuple[Tensor, Tensor]:
        """Simulated particles in uniformly random orientations.

        Parameters
        ----------
        count : int
            How many are drawn.
        generator : torch.Generator
        chosen : slice or Tensor
            Rows of those of which images are made; by default all.

        Returns
        -------
        images : Tensor
            Network inputs (c, m, m).
        quaternions : Tensor
            Orientations (count, 4) of all.
        """
        rows, other_rows = torch.randint(len(self.particles), (2, count), generator=generator)
        quaternions = random_unitquat(count, generator=generator)
        # White noise of pixels has the transform of a real image, whatever the weights on it.
        noise = torch.randn(count, self.config.box, self.config.box, generator=generator)
        images = self._images(rows[chosen], other_rows[chosen], quaternions[chosen], noise[chosen])
        return images, quaternions

    def _images(self, rows: Tensor, other_rows: Tensor, quaternions: Tensor, noise: Tensor) -> Tensor:
        """Inputs (c, m, m) with the CTF of ``rows``, the origins of ``other_rows`` and white ``noise``."""
        device, box = self.transform.device, self.config.box
        if len(rows) == 0:
            return torch.empty(0, box, box, device=device)
        noise_rows = self.noise_rows[rows]
        signal = slices_at(self.transform, quaternions.to(device), self.points)
        signal = signal * self.signal_scale[noise_rows].to(device)
        ctf = self.particles.ctf
        if ctf is not None:
            frequencies = self.points.per_angstrom(self.particles.pixel_size_angstrom)
            transfer = ctf_at(ctf[rows], *frequencies).to(device)
            signal = signal * (transfer.abs() if self.config.phase_flip else transfer)
        poses = self.particles.poses
        if poses is not None:
            origins = poses.shifts_angstrom[other_rows] / self.particles.pixel_size_angstrom
            signal = signal * self.points.phases(origins.to(device))
        transforms = torch.fft.rfft2(noise.to(device) / box) * self.noise_deviation[noise_rows].to(device)
        row, column = self.points.ky.long() % box, self.points.kx.long()
        transforms[:, row, column] += signal
        axis = column == 0  # of k and -k only one is among the points, but the column holds both
        transforms[:, -row[axis] % box, 0] += signal[:, axis].conj()
        images = to_real(transforms * (box / self.particles.box) ** 2, box)
        if self.intensity is not None:  # the level of the set, which the signal alone does not have
            images = images + self.intensity.mean
        return masked_and_standardised(images, self.config, self.intensity)


def image_simulator(
    particles: Particles,
    reference: Reference,
    config: PreprocessingConfig,
    intensity: Intensity | None = None,
    device: torch.device = CPU,
) -> ImageSimulator:
    """A simulator of images that look like those of ``particles``.

    Parameters
    ----------
    particles : Particles
    reference : Reference
        Their map and noise.
    config : PreprocessingConfig
        Of the network inputs.
    intensity : Intensity, optional
        As in `preprocessing.prepare`.
    device : torch.device
        Where images are made, from numbers drawn on the CPU.

    Raises
    ------
    InputError
        Where the reference has no noise.
    """
    if reference.noise is None:
        raise InputError("expected a reference made from particles, found a map without their noise")
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
    return ImageSimulator(
        transform=cropped_transform(reference.full.voxels, radius).to(device),
        points=points,
        particles=particles,
        noise_deviation=deviation,
        signal_scale=reference.noise.scale[:, points.shell],
        noise_rows=reference.noise.rows_of(particles),
        config=config,
        intensity=intensity,
    )
