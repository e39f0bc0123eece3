"""How strong noise and signal are in the images: by shell, and by optics group."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool1d

from cryoforum.dataset.particles import Particles, all_rows, loaded_batches
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.fft import FrequencyPoints, frequency_points, to_fourier
from cryoforum.imaging.likelihood import WhitenedImages, whiten
from cryoforum.imaging.masks import circular_mask
from cryoforum.imaging.projection import slices_at
from cryoforum.imaging.shells import mean_by_shell, sum_by_shell

FEWEST_OF_A_GROUP = 50  # particles from which a group's own spectrum is better than that of all
SCALE_WINDOW = 2  # shells; wider ones do not bring faint particles nearer to their bound
LEAST_BACKGROUND = 1e-3  # of the power in the images: around particles that were masked there is nothing
# Of the strongest shell's power: beyond the Nyquist frequency of images that came with larger pixels there
# is less, rounding alone. No scale is measured there, as none of a particle can be seen.
NOTHING = 1e-10
HIDDEN_EVERY = 4
LEAST_FOUND = 2e-3  # of the power in the images: below, the reference explains nothing of them
MOST_EXPLAINED = 1.3  # of the power above the background: beyond, the background is that of a crowd
BACKGROUND_INNER, BACKGROUND_OUTER = 0.8, 0.95  # of half the box: from here on an image is taken for noise


@dataclass(frozen=True)
class NoiseModel:
    """Noise power and signal scale of each optics group; the first row is for all groups together.

    groups: labels (rlnOpticsGroup) of rows 1, 2, …. power: (1 + groups, shells) mean |noise|² of an
    image's transform (unnormalised). signal: (1 + groups, shells), the same of what the reference explains.
    scale: (1 + groups, shells), by which projections of the reference are multiplied in the images.
    Shells are 0 … box // 2.
    """

    groups: tuple[int, ...]
    power: Float[Tensor, "g s"]
    signal: Float[Tensor, "g s"]
    scale: Float[Tensor, "g s"]

    def rows_of(self, particles: Particles) -> Int[Tensor, " n"]:
        """The row of each particle, (n,); that of all where its group is not known."""
        result = torch.zeros(len(particles), dtype=torch.long)
        if particles.optics_groups is not None:
            for row, group in enumerate(self.groups):
                result[particles.optics_groups == group] = row + 1
        return result

    def adapted_to(self, background: "NoiseModel") -> "NoiseModel":
        """That of all groups, in the units of images with another ``background``.

        Groups of the same number may be other microscopes, and every program normalises in its own way.
        """
        seen = background.scale[:1] > 0
        ratio = (background.power[:1] / self.power[:1])[:, 1:][seen[:, 1:]].median()
        scale = torch.where(seen, ratio.sqrt() * self.scale[:1], 0.0)
        return NoiseModel((), ratio * self.power[:1], ratio * self.signal[:1], scale)

    def weight(self, particles: Particles, points: FrequencyPoints) -> Float[Tensor, "n p"]:
        """How strong a projection is in each whitened image, the CTF apart, (n, p)."""
        groups = self.rows_of(particles)
        return (self.scale[groups] / self.power[groups].sqrt())[:, points.shell]

    def whiten(self, particles: Particles, points: FrequencyPoints) -> WhitenedImages:
        """The images of all particles, divided by the deviation of their noise."""
        groups = self.rows_of(particles)
        power, scale = (of[groups][:, points.shell] for of in (self.power, self.scale))
        images = particles.images[torch.arange(len(particles))]
        return whiten(images, particles.ctf, particles.pixel_size_angstrom, points, power, scale)


def background_noise(
    particles: Particles, transform: Float[Tensor, "z y x 2"], highest_frequency: int
) -> NoiseModel:
    """A first guess without poses: noise from around the particles, scale from the power above it.

    One scale for all shells, from those up to ``highest_frequency``; one row, for all groups.
    """
    box = particles.box
    points = frequency_points(box, box // 2 - 1)
    around = 1 - circular_mask(box, BACKGROUND_INNER, BACKGROUND_OUTER)
    images = particles.images[torch.arange(len(particles))]
    level = (images * around).sum((1, 2), keepdim=True) / around.sum()
    power = _powers(images, points)
    background = _powers((images - level) * around, points) / around.square().mean()
    background = background.maximum(LEAST_BACKGROUND * power)
    low = points.within(highest_frequency)
    random = random_unitquat(len(particles), generator=torch.Generator().manual_seed(0))
    bare = _undivided(replace(particles, images=images), low)
    found = bare.values.abs().square().mean(0)
    signal = (bare.transfer * slices_at(transform, random, low)).abs().square().mean(0)
    above = (found - background[low.shell]).sum().clamp_min(0.01 * found.sum())
    scale = (above / signal.sum().clamp_min(torch.finfo(torch.float32).tiny)).sqrt()
    excess = (power - background).clamp_min(0)
    scales = torch.where(power > NOTHING * power.max(), scale, 0.0)
    return NoiseModel((), background[None], excess[None], scales[None])


def measured_noise(
    particles: Particles,
    poses: Poses,
    transforms: Sequence[Float[Tensor, "_ _ _ 2"]],
    which: Int[Tensor, " n"],
    highest_frequency: int,
) -> NoiseModel:
    """Noise and scale from what projections at known poses leave of the images.

    Shell by shell the scale is the regression of the images on the projections: it falls to 0 where the
    reference no longer shows what is in the images, whatever its own filtering. Above
    ``highest_frequency`` everything counts as noise.

    Parameters
    ----------
    particles, poses : n of them.
    transforms, which : `projection.cropped_transform` of one or two references, and the one (n,) of each.
    """
    sums, counts = _products(particles, poses, transforms, which, highest_frequency)
    count = len(particles)
    labels = torch.zeros(count).long() if particles.optics_groups is None else particles.optics_groups
    found, members = labels.unique(return_counts=True)
    groups = [int(g) for g, n in zip(found, members, strict=True) if n >= FEWEST_OF_A_GROUP]
    chosen_rows = [torch.ones(count, dtype=torch.bool), *(labels == group for group in groups)]
    power, explained, scale = zip(
        *(_regression(sums[:, own], counts * int(own.sum())) for own in chosen_rows), strict=True
    )
    return NoiseModel(tuple(groups), torch.stack(power), torch.stack(explained), torch.stack(scale))


def _products(
    particles: Particles,
    poses: Poses,
    transforms: Sequence[Float[Tensor, "_ _ _ 2"]],
    which: Int[Tensor, " n"],
    highest_frequency: int,
) -> tuple[Tensor, Tensor]:
    """X·M, M² and X² of images and projections, summed over each shell: (3, n, shells); points of a shell."""
    count, box, shells = len(particles), particles.box, particles.box // 2 + 1
    points = frequency_points(box, box // 2 - 1)
    low = points.within(highest_frequency)
    # Points of the last shell in use that lie beyond the highest frequency belong with those above it.
    beyond = (points.radius > highest_frequency) & (points.shell <= highest_frequency)
    shell = points.shell + beyond.long()
    sums = torch.zeros(3, count, shells, dtype=torch.float64)
    for rows, batch in zip(all_rows(count, 128), loaded_batches(particles, 128), strict=True):
        bare = _undivided(batch, points)
        model = torch.zeros_like(bare.values)
        for at, transform in enumerate(transforms):
            own = which[rows] == at
            model[own, : len(low.kx)] = slices_at(transform, poses.quaternions[rows][own], low)
        origins = poses.shifts_angstrom[rows] / particles.pixel_size_angstrom
        model = bare.transfer * model * points.phases(origins)
        products = ((bare.values * model.conj()).real, model.abs().square(), bare.values.abs().square())
        for total, product in zip(sums, products, strict=True):
            total[rows] = sum_by_shell(product, shell, shells).double()
    return sums, torch.bincount(shell, minlength=shells)


def hidden_shells(highest_frequency: int) -> Int[Tensor, " h"]:
    """Every fourth shell, as far as the two lowest and the highest: poses can do without them.

    What a reference explains there it was not fitted to, while the best match to noise explains nothing.
    """
    return torch.arange(min(HIDDEN_EVERY, highest_frequency), highest_frequency + 1, HIDDEN_EVERY)


def explained_share(
    particles: Particles,
    poses: Poses,
    transforms: Sequence[Float[Tensor, "_ _ _ 2"]],
    which: Int[Tensor, " n"],
    background: NoiseModel,
    highest_frequency: int,
) -> float | None:
    """How much of the power above the background the reference explains in `hidden_shells`.

    About 1 for the right molecule at the right poses, whatever the noise, and about 0 for noise.

    Parameters
    ----------
    particles, poses : n of them; the poses were found without the hidden shells.
    transforms, which : as of `measured_noise`.
    background : `background_noise` of the particles.

    Returns
    -------
    float or None : None where nobody can tell, as what is around the particles is nearly as strong as they
        are: the field is crowded.
    """
    shells = hidden_shells(highest_frequency)
    sums, counts = _products(particles, poses, transforms, which, highest_frequency)
    cross, model, image = sums.sum(1)[:, shells]
    explained = cross.clamp_min(0).square() / model.clamp_min(torch.finfo(model.dtype).tiny)
    total = image.sum()
    # A reference of nothing explains as much as one real number a shell can.
    by_chance = len(shells) * total / (2 * counts[shells].sum() * len(particles))
    found = float((explained.sum() - by_chance).clamp_min(0) / total)
    expected = (background.power[0, shells].double() * counts[shells]).sum() * len(particles)
    above = 1 - float(expected / total)
    if found < LEAST_FOUND:
        return 0.0
    return found / above if found < MOST_EXPLAINED * above else None


def _undivided(particles: Particles, points: FrequencyPoints) -> WhitenedImages:
    """The images as they are, with the CTF alone as their transfer."""
    images, flat = particles.images[torch.arange(len(particles))], torch.ones(len(particles), len(points.kx))
    return whiten(images, particles.ctf, particles.pixel_size_angstrom, points, flat, flat)


def _regression(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise power, explained power and scale per shell from sums (3, m, shells) of X·M, M² and X².

    The scale changes slowly from shell to shell: that of a shell is the regression over its neighbours, too.
    """
    cross, model, image = sums.sum(1)
    near_cross, near_model = (_windowed(values) for values in (cross, model))
    scale = torch.where(model > 0, (near_cross / near_model.clamp_min(1e-30)).clamp_min(0), 0.0)
    scale = torch.where(image > NOTHING * counts * (image / counts.clamp_min(1)).max(), scale, 0.0)
    explained = (2 * scale * cross - scale.square() * model).clamp_min(0) / counts.clamp_min(1)
    power = image / counts.clamp_min(1) - explained
    # Shells without points (zero frequency, the corners) take part in nothing, but must not divide by 0.
    return torch.where(power > 0, power, power.max()).float(), explained.float(), scale.float()


def _windowed(values: Tensor) -> Tensor:
    """Sums over each shell (s,) and `SCALE_WINDOW` shells on either side."""
    width = 2 * SCALE_WINDOW + 1
    return width * avg_pool1d(values[None], width, stride=1, padding=SCALE_WINDOW)[0]


def _powers(images: Tensor, points: FrequencyPoints) -> Tensor:
    """Mean |transform|² of images in each shell, (box // 2 + 1,), of `frequency_points` as far as they go.

    Zero frequency and the last shell, which hold no points, take the power of their neighbours.
    """
    power = points.values_of(to_fourier(images)).abs().square().mean(0)
    means = mean_by_shell(power, points.shell)
    return torch.cat([means[1:2], means[1:], means[-1:]])
