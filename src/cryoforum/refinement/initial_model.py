"""A first map from particles without poses: stochastic expectation-maximisation on small images.

Each step takes some images, compares them with the present map all over SO(3) × origins, draws one
orientation of each from its posterior, and adds its slice to running sums that forget slowly; the map is
their quotient, with a prior of the map's own spectrum. Frequencies and the grid of orientations grow on the
way. Several starts are raced and the likeliest goes on. Nothing tells the hand of the result.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.alignment.global_search import (
    SearchConfig,
    Templates,
    log_likelihood_on_grid,
    make_templates,
    template_origins_pixel,
)
from cryoforum.dataset.levelling import without_ramp
from cryoforum.dataset.particles import Particles, loaded_batches
from cryoforum.dataset.resampling import resample_volume
from cryoforum.dataset.volumes import Volume
from cryoforum.errors import require
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.fft import crop_or_pad, frequency_points, to_fourier, to_real
from cryoforum.imaging.insertion import empty_grids, hermitian_sum, insert_slices, symmetrised
from cryoforum.imaging.likelihood import WhitenedImages, whiten
from cryoforum.imaging.masks import circular_mask, soft_spherical_mask
from cryoforum.imaging.projection import PADDING, cropped_transform, gridding_correction
from cryoforum.imaging.shells import mean_by_shell, radius_on_grid

RING = 0.92  # of half the box: from here on images are taken for noise
IMAGE_EDGE = 0.88, 1.0  # of half the box: where images are faded out
MAP_RADIUS = 0.8  # of half the box: the ball that holds the molecule
# Around the particles there is less low-frequency noise than in them, where ice and neighbours lie.
INNER_SHELLS = (2.2, 2.2, 2.0, 1.7, 1.3)
LEAST_PRIOR = 1e-3  # of the strongest shell of a map, below which no shell's prior falls


@dataclass(frozen=True)
class InitialModelConfig:
    """How a first map is looked for.

    Parameters
    ----------
    box
        Pixels to which images are shrunk.
    steps, images_per_step
        Of stochastic expectation-maximisation; images at the start, half as many again at the end.
    first_frequency, last_frequency
        Cycles per box that are used at the start and from four fifths of the way on.
    memory
        Share of the sums that a step keeps; more at the end.
    starts, race
        How many random starts are raced, and for what share of the steps.
    max_shift_pixel
        Largest origin along x and y, in pixels of the particles.
    symmetry
        Point group, imposed from the start.
    seed
        Of all that is random.
    """

    box: int = 32
    steps: int = 200
    images_per_step: int = 400
    first_frequency: int = 4
    last_frequency: int = 9
    memory: float = 0.9
    starts: int = 3
    race: float = 0.35
    max_shift_pixel: float = 3.2
    symmetry: str = "C1"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.box >= 16 and self.box % 2 == 0, "an even box of 16 or more", self.box)


@dataclass(frozen=True)
class _Start:
    """One run: its sums, its map and the prior that follows from it."""

    data: Tensor
    weight: Tensor
    map: Tensor
    prior: Tensor
    generator: torch.Generator


def initial_model(
    particles: Particles,
    config: InitialModelConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> Volume:
    """A map of the molecule at the particles' box and pixel size, of either hand and turned in any way."""
    images = small_images(particles, config)
    pixel_size = particles.pixel_size_angstrom * particles.box / config.box
    largest = config.max_shift_pixel * config.box / particles.box
    starts = [_random_start(images, config, number) for number in range(config.starts)]
    race = round(config.race * config.steps)
    for step in range(config.steps):
        if step == race and len(starts) > 1:
            starts = [max(starts, key=lambda start: _likelihood(start, images, config, largest))]
        starts = [_next(start, images, config, step, largest) for start in starts]
        progress(1)
    return resample_volume(Volume(starts[0].map, pixel_size), particles.box, particles.pixel_size_angstrom)


def small_images(particles: Particles, config: InitialModelConfig) -> WhitenedImages:
    """All images at ``config.box`` pixels, without ramps, faded out and whitened."""
    box = config.box
    axis = (torch.arange(box) - box // 2) / (box / 2)
    ring = radius_on_grid(axis, axis) > RING
    images = []
    for batch in loaded_batches(particles, 256):
        whole = to_fourier(batch.images[torch.arange(len(batch))])
        flat = without_ramp(to_real(crop_or_pad(whole, particles.box, box), box))
        images.append(flat - flat[:, ring].mean(1)[:, None, None])
    stack = torch.cat(images)
    points = frequency_points(box, config.last_frequency)
    around = 1 - circular_mask(box, *IMAGE_EDGE)
    power = points.values_of(to_fourier(stack * around)).abs().square().mean(0) / around.square().mean()
    by_shell = mean_by_shell(power, points.shell)
    first = len(INNER_SHELLS)
    by_shell[:first] = by_shell[first] * torch.tensor(INNER_SHELLS)
    faded = stack * circular_mask(box, *IMAGE_EDGE)
    one = torch.ones(len(stack), len(points.kx))
    pixel_size = particles.pixel_size_angstrom * particles.box / box
    return whiten(faded, particles.ctf, pixel_size, points, by_shell[points.shell] * one, one)


def _random_start(images: WhitenedImages, config: InitialModelConfig, number: int) -> _Start:
    """A map of images at random orientations."""
    generator = torch.Generator().manual_seed(config.seed * 1009 + number)
    data, weight = empty_grids(config.box, 1)
    rows = torch.randperm(len(images), generator=generator)[:600]
    rotations = random_unitquat(len(rows), generator=generator)
    low = images[rows].within(config.first_frequency)
    _insert(data, weight, low, rotations, torch.zeros(len(rows), 2))
    prior = 1 / (0.3 * weight.mean()).expand(config.box + 1)
    voxels, found = _solved(data, weight, prior, config, config.first_frequency + 1)
    return _Start(data, weight, voxels, found, generator)


def _next(
    start: _Start, images: WhitenedImages, config: InitialModelConfig, step: int, largest: float
) -> _Start:
    """One step of stochastic expectation-maximisation."""
    progress, generator = step / config.steps, start.generator
    frequency, nside, count, memory = _schedule(progress, config)
    turn = random_unitquat(1, generator=generator)[0]
    templates = _templates(start.map, config, frequency, nside, largest, turn)
    rows = torch.randperm(len(images), generator=generator)[:count]
    chosen = images[rows].within(frequency)
    posterior = log_likelihood_on_grid(templates, chosen).softmax(1)
    drawn = torch.multinomial(posterior, 1, generator=generator)
    origins = template_origins_pixel(templates, chosen, drawn)[:, 0]
    data, weight = start.data * memory, start.weight * memory
    _insert(data, weight, chosen, templates.rotations[drawn[:, 0]], origins)
    voxels, found = _solved(data, weight, start.prior, config, frequency)
    return _Start(data, weight, voxels, 0.5 * start.prior + 0.5 * found, generator)


def _schedule(progress: float, config: InitialModelConfig) -> tuple[int, int, int, float]:
    """Highest frequency, nside of the grid, images and memory of a step."""
    first, last = config.first_frequency, config.last_frequency
    frequency = round(first + (last - first) * min(1.0, progress / 0.8))
    nside = 2 if progress < 0.35 else 3 if progress < 0.85 else 4
    late = progress >= 0.7
    return frequency, nside, round(config.images_per_step * (1.5 if late else 1)), config.memory + 0.03 * late


def _templates(
    voxels: Tensor,
    config: InitialModelConfig,
    frequency: int,
    nside: int,
    largest: float,
    turn: Tensor | None = None,
) -> Templates:
    search = SearchConfig(nside=nside, highest_frequency=frequency, max_shift_pixel=largest)
    return make_templates(cropped_transform(voxels, frequency), config.box, search, config.symmetry, turn)


def _likelihood(start: _Start, images: WhitenedImages, config: InitialModelConfig, largest: float) -> float:
    """How well the map of a start explains some images, the same of every start."""
    frequency, nside, _, _ = _schedule(config.race, config)
    templates = _templates(start.map, config, frequency, nside, largest)
    rows = torch.arange(min(len(images), 600))
    chosen = images[rows].within(frequency)
    return float(log_likelihood_on_grid(templates, chosen).logsumexp(1).mean())


def _insert(data: Tensor, weight: Tensor, images: WhitenedImages, rotations: Tensor, origins: Tensor) -> None:
    values = images.transfer * images.values * images.points.phases(origins).conj()
    grid_of = torch.zeros(len(rotations), dtype=torch.long)
    insert_slices(data, weight, images.points, values, images.transfer.square(), rotations, grid_of)


def _solved(
    data: Tensor, weight: Tensor, prior: Float[Tensor, " s"], config: InitialModelConfig, frequency: int
) -> tuple[Tensor, Tensor]:
    """The map (n, n, n) up to a frequency, of highest posterior probability, and its power by shell."""
    box, size = config.box, PADDING * config.box
    group = symmetry_group(config.symmetry)
    grids = [data[0], weight[0]]
    if len(group) > 1:
        grids = [symmetrised(grid, group, box) for grid in grids]
    summed, total = (hermitian_sum(grid)[:size, :size] for grid in grids)
    axis = (torch.arange(size) - size // 2) / PADDING
    radius = radius_on_grid(axis, axis, torch.arange(box + 1) / PADDING)
    shell = radius.round().long().clamp_max(box)
    transform = summed / (total + (1 / prior)[shell]) * torch.sigmoid(2 * (frequency + 0.5 - radius))
    power = mean_by_shell(transform.abs().square(), shell, box + 1)
    padded = torch.fft.irfftn(torch.fft.ifftshift(transform, dim=(0, 1)), s=(size,) * 3)
    kept = slice(size // 2 - box // 2, size // 2 + box // 2)
    voxels = torch.fft.fftshift(padded)[kept, kept, kept] / gridding_correction(box)
    return voxels * soft_spherical_mask(box, MAP_RADIUS * box / 2, 3.0), power.clamp_min(
        LEAST_PRIOR * power.max()
    )
