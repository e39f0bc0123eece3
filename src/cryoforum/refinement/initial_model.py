"""A first map from particles without poses: stochastic expectation-maximisation on small images.

Each step takes some images, compares them with the present map all over SO(3) × origins, draws one
orientation of each from its posterior, and adds its slice to running sums that forget slowly; the map is
their quotient, with a prior of the map's own spectrum. Frequencies and the grid of orientations grow on the
way. Several starts are raced and the likeliest goes on. Nothing tells the hand of the result.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int64, UInt8
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
from cryoforum.imaging.insertion import empty_grids, insert_slices
from cryoforum.imaging.likelihood import WhitenedImages, whiten
from cryoforum.imaging.masks import circular_mask, soft_spherical_mask
from cryoforum.imaging.projection import cropped_transform
from cryoforum.imaging.shells import mean_by_shell, radius_on_grid
from cryoforum.refinement.regularised import likeliest_map
from cryoforum.runtime.distributed import add_up, own_share

RING = 0.92  # of half the box: from here on images are taken for noise
IMAGE_EDGE = 0.88, 1.0  # of half the box: where images are faded out
LARGEST_SHIFT = 0.1  # of the box, along x and y
FIELD_OF_DIAMETER = 1.5  # side of what is used of an image, where the diameter of the particle is known
MAP_RADIUS = 0.8  # of half the box: the ball that holds the molecule
# Pixels of the small box: origins farther from 0 are first looked for at a low frequency. The reach is two
# steps of the grid of origins at frequency 9 in 32 pixels: a little more would double their number.
FINE_REACH, CENTRING_FREQUENCY = 0.88, 4
FIRST_IMAGES, RACE_IMAGES = 600, 600  # at random orientations in a first map; that tell which start is best
# Around the particles there is less low-frequency noise than in them, where ice and neighbours lie.
INNER_SHELLS = (2.2, 2.2, 2.0, 1.7, 1.3)


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
    classes
        Maps at once.
    starts, race
        How many random starts are raced, and for what share of the steps.
    max_shift_pixel
        Largest origin along x and y, in pixels of the particles; None for a tenth of their box.
    diameter_angstrom
        Of the particle: images are cut to half as much again around it, so that they show the more; None for
        all of the box.
    symmetry
        Point group, imposed from the start.
    seed
        Of all that is random.
    """

    box: int = 32
    steps: int = 300
    images_per_step: int = 400
    first_frequency: int = 4
    last_frequency: int = 9
    memory: float = 0.9
    classes: int = 1
    starts: int = 3
    race: float = 0.35
    max_shift_pixel: float | None = None
    diameter_angstrom: float | None = None
    symmetry: str = "C1"
    seed: int = 0

    def field_pixel(self, particles: Particles) -> int:
        """Pixels of the particles' images, along a side, that are used."""
        if self.diameter_angstrom is None:
            return particles.box
        half = round(FIELD_OF_DIAMETER * self.diameter_angstrom / particles.pixel_size_angstrom / 2)
        return min(particles.box, max(2 * half, self.box))

    def __post_init__(self) -> None:
        require(
            min(self.steps, self.starts, self.classes) >= 1, "steps, starts and classes of 1 or more", self
        )
        symmetry_group(self.symmetry)
        diameter = self.diameter_angstrom
        require(diameter is None or 0 < diameter < math.inf, "a diameter above 0 Å", diameter)
        require(self.box >= 16 and self.box % 2 == 0, "an even box of 16 or more", self.box)


@dataclass(frozen=True)
class Start:
    """One way from a random start, after some steps.

    Parameters
    ----------
    data, weight
        Running sums of each class, as of `insertion.empty_grids`.
    maps
        Of each class, small.
    priors
        Expected power of each shell of each map.
    random
        State of the generator of random numbers.
    """

    data: Complex[Tensor, "k z y x"]
    weight: Float[Tensor, "k z y x"]
    maps: Float[Tensor, "k m m m"]
    priors: Float[Tensor, "k s"]
    random: UInt8[Tensor, " r"]


@dataclass(frozen=True)
class Stage:
    """Where the search for a first map stands: steps done, and the starts that are still in the race."""

    step: int
    starts: tuple[Start, ...]


def initial_model(
    particles: Particles,
    config: InitialModelConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[Volume, ...]:
    """A map of each class at the particles' box and pixel size, of either hand and turned in any way.

    ``config``: how it is looked for; ``progress``: called with 1 after each step.
    """
    maps: tuple[Volume, ...] = ()
    for stage in stages(particles, config):
        progress(1)
        if stage.step == config.steps:
            maps = volumes_of(stage, particles, config)
    return maps


def stages(particles: Particles, config: InitialModelConfig, last: Stage | None = None) -> Iterator[Stage]:
    """All steps one by one, or those after ``last``; at the end the first start is the likeliest."""
    images = small_images(particles, config)
    reach = config.max_shift_pixel
    reach = LARGEST_SHIFT * particles.box if reach is None else reach
    largest = reach * config.box / config.field_pixel(particles)
    race = round(config.race * config.steps)
    if last is None:
        last = Stage(0, tuple(_random_start(images, config, number) for number in range(config.starts)))
    for step in range(last.step, config.steps):
        starts = last.starts
        if step == race:
            starts = (max(starts, key=lambda start: _likelihood(start, images, config, largest)),)
        last = Stage(step + 1, tuple(_next(start, images, config, step, largest) for start in starts))
        yield last


def volumes_of(stage: Stage, particles: Particles, config: InitialModelConfig) -> tuple[Volume, ...]:
    """The maps of the first start at the particles' box and pixel size."""
    maps = stage.starts[0].maps
    pixel_size = particles.pixel_size_angstrom * config.field_pixel(particles) / maps.shape[-1]
    grid = particles.box, particles.pixel_size_angstrom
    return tuple(resample_volume(Volume(voxels, pixel_size), *grid) for voxels in maps)


def small_images(particles: Particles, config: InitialModelConfig) -> WhitenedImages:
    """All images at ``config.box`` pixels, without ramps, faded out and whitened."""
    box, field = config.box, config.field_pixel(particles)
    cut = slice((particles.box - field) // 2, (particles.box + field) // 2)
    axis = (torch.arange(box) - box // 2) / (box / 2)
    ring = radius_on_grid(axis, axis) > RING
    images = []
    for batch in loaded_batches(particles, 256):
        whole = to_fourier(batch.images[torch.arange(len(batch))][:, cut, cut])
        flat = without_ramp(to_real(crop_or_pad(whole, field, box), box))
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
    pixel_size = particles.pixel_size_angstrom * field / box
    return whiten(faded, particles.ctf, pixel_size, points, by_shell[points.shell] * one, one)


def _random_start(images: WhitenedImages, config: InitialModelConfig, number: int) -> Start:
    """Maps of images at random orientations."""
    generator = torch.Generator().manual_seed(config.seed * 1009 + number)
    low = images.within(config.first_frequency)
    rows = torch.randperm(len(images), generator=generator)[: FIRST_IMAGES * config.classes]
    rotations = random_unitquat(len(rows), generator=generator)
    classes = torch.arange(len(rows)) % config.classes
    data, weight = _slices(low[rows], rotations, torch.zeros(len(rows), 2), classes, config.classes)
    prior = 1 / (0.3 * weight.mean()).expand(config.classes, config.box + 1)
    maps, priors = _maps(data, weight, prior, config, config.first_frequency + 1)
    return Start(data, weight, maps, priors, generator.get_state())


def _next(
    start: Start, images: WhitenedImages, config: InitialModelConfig, step: int, largest: float
) -> Start:
    """One step of stochastic expectation-maximisation."""
    frequency, nside, count, memory = _schedule(step / config.steps, config)
    generator = torch.Generator()
    generator.set_state(start.random)
    turn = random_unitquat(1, generator=generator)[0]
    templates = _templates(start.maps, config, frequency, nside, min(largest, FINE_REACH), turn)
    rows = torch.randperm(len(images), generator=generator)[:count]
    chance = torch.rand(len(rows), generator=generator)
    rows, chance = rows[own_share()], chance[own_share()]  # of each process, which all draw the same
    chosen = images[rows].within(frequency)
    chosen = _centred(chosen, start.maps, config, largest)
    scores = torch.cat([log_likelihood_on_grid(one, chosen) for one in templates], dim=1)
    drawn = _drawn(scores.softmax(1), chance)
    rotations = templates[0].rotations
    classes, at = drawn // len(rotations), drawn % len(rotations)
    origins = torch.zeros(len(rows), 2)
    for number, one in enumerate(templates):
        own = classes == number
        origins[own] = template_origins_pixel(one, chosen[own], at[own, None])[:, 0]
    new_data, new_weight = _slices(chosen, rotations[at], origins, classes, config.classes)
    add_up(torch.view_as_real(new_data))
    add_up(new_weight)
    data, weight = start.data * memory + new_data, start.weight * memory + new_weight
    maps, found = _maps(data, weight, start.priors, config, frequency)
    return Start(data, weight, maps, (start.priors + found) / 2, generator.get_state())


def _centred(
    images: WhitenedImages, maps: Tensor, config: InitialModelConfig, largest: float
) -> WhitenedImages:
    """Images moved to where each particle roughly lies: the whole reach of origins, at low frequencies."""
    if largest <= FINE_REACH:
        return images
    templates = _templates(maps, config, CENTRING_FREQUENCY, 2, largest)
    scores = torch.stack([log_likelihood_on_grid(one, images) for one in templates])
    which, centres = scores.amax(2).argmax(0), torch.zeros(len(images), 2)
    for number, one in enumerate(templates):
        own = which == number
        best = scores[number, own].argmax(1)
        centres[own] = template_origins_pixel(one, images[own], best[:, None])[:, 0]
    return replace(images, values=images.values * images.points.phases(centres).conj())


def _drawn(probabilities: Float[Tensor, "n g"], chance: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """One of each row, by a number from 0 to 1 each: where the sum of the probabilities passes it."""
    sums = probabilities.cumsum(1)
    return torch.searchsorted(sums, chance[:, None] * sums[:, -1:])[:, 0].clamp_max(sums.shape[1] - 1)


def _schedule(progress: float, config: InitialModelConfig) -> tuple[int, int, int, float]:
    """Highest frequency, nside of the grid, images and memory of a step."""
    first, last = config.first_frequency, config.last_frequency
    frequency = round(first + (last - first) * min(1.0, progress / 0.8))
    nside = 2 if progress < 0.35 else 3 if progress < 0.85 else 4
    late = progress >= 0.7
    return frequency, nside, round(config.images_per_step * (1.5 if late else 1)), config.memory + 0.03 * late


def _templates(
    maps: Tensor,
    config: InitialModelConfig,
    frequency: int,
    nside: int,
    largest: float,
    turn: Tensor | None = None,
) -> list[Templates]:
    search = SearchConfig(nside=nside, highest_frequency=frequency, max_shift_pixel=largest)
    transforms = (cropped_transform(voxels, frequency) for voxels in maps)
    return [make_templates(one, config.box, search, config.symmetry, turn) for one in transforms]


def _likelihood(start: Start, images: WhitenedImages, config: InitialModelConfig, largest: float) -> float:
    """How well the maps of a start explain some images, the same of every start."""
    frequency, nside, _, _ = _schedule(config.race, config)
    templates = _templates(start.maps, config, frequency, nside, min(largest, FINE_REACH))
    chosen = images[torch.arange(min(len(images), RACE_IMAGES))].within(frequency)
    chosen = _centred(chosen, start.maps, config, largest)
    scores = [log_likelihood_on_grid(one, chosen) for one in templates]
    return float(torch.cat(scores, dim=1).logsumexp(1).mean())


def _slices(
    images: WhitenedImages, rotations: Tensor, origins: Tensor, classes: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Sums over the images of each class at these poses."""
    values = images.transfer * images.values * images.points.phases(origins).conj()
    data, weight = empty_grids(images.points.box, count)
    insert_slices(data, weight, images.points, values, images.transfer.square(), rotations, classes)
    return data, weight


def _maps(
    data: Tensor, weight: Tensor, priors: Tensor, config: InitialModelConfig, frequency: int
) -> tuple[Tensor, Tensor]:
    """`likeliest_map` of each class in a soft ball, and its power by shell."""
    ball = soft_spherical_mask(config.box, MAP_RADIUS * config.box / 2, 3.0)
    found = [
        likeliest_map((data[at], weight[at]), config.box, priors[at], frequency, ball, config.symmetry)
        for at in range(len(data))
    ]
    maps, powers = zip(*found, strict=True)
    return torch.stack(maps), torch.stack(powers)
