"""Make particle images of a known map: projection, CTF, shift, white noise."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.images import ImagesOnDemand
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError, require
from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_real
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.simulation.config import SimulationConfig

NOISE_CALIBRATION_COUNT = 200  # images from which the mean signal variance is taken


def simulate(volume: Volume, config: SimulationConfig) -> Particles:
    """Particles of ``volume`` with true poses and optics; noise has variance 1, the signal ``config.snr``.

    Images are made when they are read, each from its own seed, so a set of any size needs the
    memory of one batch, and one row always gives one image.
    """
    _check(volume)
    generator = torch.Generator().manual_seed(config.seed)
    quaternions = _orientations(config, generator)
    shifts_pixel = (2 * torch.rand(config.count, 2, generator=generator) - 1) * config.max_shift_pixel
    poses = Poses(quaternions, shifts_pixel * volume.pixel_size_angstrom)
    ctf = _optics(config, generator)
    grid = ImageGrid(len(volume.voxels), volume.pixel_size_angstrom)
    clean = SimulatedImages(cropped_transform(volume.voxels), grid, poses, ctf, 1.0, None)
    signal = clean[torch.arange(min(config.count, NOISE_CALIBRATION_COUNT))]
    variance = signal.var(dim=(1, 2)).mean().item()
    if variance == 0:
        raise InputError("expected a map with contrast, found one whose projections are constant")
    images = replace(clean, signal_scale=math.sqrt(config.snr / variance), seed=config.seed)
    width = max(6, len(str(config.count)))
    names = tuple(f"{row + 1:0{width}d}@particles.mrcs" for row in range(config.count))
    return Particles(images, volume.pixel_size_angstrom, names, poses, ctf)


@dataclass(frozen=True)
class SimulatedImages(ImagesOnDemand):
    """A stack whose images are computed on reading.

    transform: whole `cropped_transform` of the map. grid: of map and images. signal_scale: factor of the
    projections. seed: of white noise of variance 1; None for images without noise.
    """

    transform: Float[Tensor, "z y x 2"]
    grid: ImageGrid
    poses: Poses
    ctf: CtfParameters
    signal_scale: float
    seed: int | None

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, box, box) of what indexing by all rows would give."""
        return (len(self), self.grid.box, self.grid.box)

    def at(self, rows: Int[Tensor, " n"]) -> Float[Tensor, "n box box"]:
        """Those of the rows, each from its own seed."""
        box, pixel_size, poses = self.grid.box, self.grid.pixel_size_angstrom, self.poses[rows]
        slices = project(self.transform, poses.quaternions, box)
        slices = slices * ctf_2d(self.ctf[rows], box, pixel_size)
        slices = phase_shift(slices, -poses.shifts_angstrom / pixel_size)
        images = self.signal_scale * to_real(slices, box)
        if self.seed is None:
            return images
        return images + torch.stack([white_noise(self.seed, row, box) for row in rows.tolist()])


def white_noise(seed: int, row: int, box: int) -> Float[Tensor, "box box"]:
    """Noise of variance 1 of one image of a set, (box, box)."""
    # A multiplier keeps the streams of neighbouring seeds of a user apart from those of rows.
    return torch.randn(box, box, generator=torch.Generator().manual_seed(seed * 1_000_003 + row))


def _check(volume: Volume) -> None:
    box = len(volume.voxels)
    require(box % 2 == 0 and box >= 8, "an even box of 8 px or more", box)


def _orientations(config: SimulationConfig, generator: torch.Generator) -> Tensor:
    if config.orientations == "random":
        return random_unitquat(config.count, generator=generator)
    nside = 1
    while 72 * nside**3 < config.count:
        nside += 1
    grid = rotation_grid(nside)
    chosen = grid[torch.randperm(len(grid), generator=generator)[: config.count]]
    # One random turn of the whole grid, as RELION perturbs its own, so that no set sees poles twice.
    return compose(random_unitquat(1, generator=generator), chosen)


def _optics(config: SimulationConfig, generator: torch.Generator) -> CtfParameters:
    count = config.count

    def constant(value: float) -> Tensor:
        return torch.full((count,), value)

    spread = config.max_defocus_angstrom - config.min_defocus_angstrom
    mean = config.min_defocus_angstrom + spread * torch.rand(count, generator=generator)
    astigmatism = config.max_astigmatism_angstrom * torch.rand(count, generator=generator)
    return CtfParameters(
        defocus_u_angstrom=mean + astigmatism / 2,
        defocus_v_angstrom=mean - astigmatism / 2,
        defocus_angle_deg=180 * torch.rand(count, generator=generator),
        voltage_kv=constant(config.voltage_kv),
        spherical_aberration_mm=constant(config.spherical_aberration_mm),
        amplitude_contrast=constant(config.amplitude_contrast),
        phase_shift_deg=constant(0.0),
    )
