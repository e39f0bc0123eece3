"""Noise and signal strength that were put into images are measured in them."""

from dataclasses import replace

import pytest
import torch
from helpers.clean_images import PIXEL_SIZE, blobs, clean_images, random_ctf, random_poses, seeded
from torch import Tensor

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.fft import crop_or_pad, frequency_grid, frequency_points, to_fourier, to_real
from cryoforum.imaging.noise_model import (
    FEWEST_OF_A_GROUP,
    NoiseModel,
    background_noise,
    explained_share,
    measured_noise,
)
from cryoforum.imaging.projection import cropped_transform

BOX, HIGHEST, COUNT = 24, 9, 200
SHELLS = BOX // 2 + 1
POINTS_OF_SHELL = torch.bincount(frequency_points(BOX, BOX // 2 - 1).shell, minlength=SHELLS)


def coloured(count: int, spectrum: Tensor, seed: int = 0) -> Tensor:
    """Noise images whose power per pixel of the transform, over box², is ``spectrum`` of the shell."""
    white = to_fourier(torch.randn(count, BOX, BOX, generator=seeded(seed)))
    shell = torch.hypot(*frequency_grid(BOX)).mul(BOX).round().long().clamp_max(SHELLS - 1)
    return to_real(white * spectrum.sqrt()[shell], BOX)


def particles(
    scales: Tensor, noise: Tensor, groups: Tensor | None = None, voxels: Tensor | None = None
) -> Particles:
    """Images of the blobs, ``scales`` (n,) times as strong as the reference says, with CTF, and noise."""
    quaternions, origins = random_poses(COUNT, seed=3)
    ctf = random_ctf(COUNT)
    clean = clean_images(blobs(BOX) if voxels is None else voxels, quaternions, origins, ctf)
    return Particles(
        scales[:, None, None] * clean + noise,
        PIXEL_SIZE,
        tuple(str(row) for row in range(COUNT)),
        Poses(quaternions, origins * PIXEL_SIZE),
        ctf,
        optics_groups=groups,
    )


def measured(found: Particles, rows: Tensor | None = None, highest: int = HIGHEST) -> NoiseModel:
    """Noise at the true poses, by the map that made the images."""
    rows = torch.arange(len(found)) if rows is None else rows
    transform = cropped_transform(blobs(BOX), highest)
    assert found.poses is not None
    which = torch.zeros(len(rows), dtype=torch.long)
    return measured_noise(found.select(rows), found.poses[rows], (transform,), which, highest)


def agree(power: Tensor, expected: Tensor, count: int) -> None:
    """Per shell up to the highest frequency, within five deviations of a mean of so many powers."""
    shells = slice(1, HIGHEST + 1)
    tolerance = 5 / (count * POINTS_OF_SHELL[shells]).double().sqrt()
    error = power[shells].double() / expected[shells].double() - 1
    assert bool((error.abs() < tolerance).all()), (error, tolerance)


def test_white_noise_and_scale_of_each_optics_group_are_recovered() -> None:
    groups = 3 + 4 * (torch.arange(COUNT) % 2)
    deviation = torch.where(groups == 3, 0.5, 1.5)
    scales = torch.where(groups == 3, 2.0, 0.7)
    noise = deviation[:, None, None] * torch.randn(COUNT, BOX, BOX, generator=seeded(1))
    found = measured(particles(scales, noise, groups))
    assert found.groups == (3, 7) and found.power.shape == found.scale.shape == (3, SHELLS)
    shells = slice(1, HIGHEST + 1)
    for row, (level, scale) in enumerate(((0.5, 2.0), (1.5, 0.7)), start=1):
        agree(found.power[row], torch.full((SHELLS,), BOX**2 * level**2), COUNT // 2)
        strength = found.signal[row] / found.scale[row] ** 2 * COUNT / 2 * POINTS_OF_SHELL
        # The regression's deviation: noise over the root of all that the model holds.
        uncertainty = 5 * BOX * level / strength.sqrt()
        assert bool(((found.scale[row] - scale).abs() < uncertainty)[shells].all())
        assert float((found.scale[row] - scale).abs()[2 : HIGHEST + 1].median()) < 0.05 * scale
    assert bool((found.power[1][shells] < found.power[0][shells]).all())
    assert bool((found.power[0][shells] < found.power[2][shells]).all())


def test_coloured_noise_keeps_its_shape() -> None:
    spectrum = 0.2 + 3 * torch.exp(-torch.arange(SHELLS) / 3)
    found = measured(particles(torch.ones(COUNT), coloured(COUNT, spectrum)))
    agree(found.power[0], BOX**2 * spectrum, COUNT)
    rows = found.rows_of(particles(torch.ones(COUNT), torch.zeros(COUNT, BOX, BOX)))
    torch.testing.assert_close(found.power[rows], found.power[:1].expand(COUNT, -1))


def test_what_lies_above_the_highest_frequency_is_noise() -> None:
    """Signal there, which the reference is not asked for, is counted as noise, and nothing has a scale."""
    quiet = 0.01 * torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = measured(particles(torch.ones(COUNT), quiet), highest=5)
    above = slice(6, SHELLS - 1)
    assert bool((found.scale[0, above] == 0).all()) and bool((found.signal[0, above] == 0).all())
    assert bool((found.power[0, 6:9] > 10 * BOX**2 * 1e-4).all())
    assert bool((found.power[0, 1:5] < 2 * BOX**2 * 1e-4).all())
    assert bool((found.power > 0).all()) and bool(found.power.isfinite().all())


def test_the_last_shell_in_use_holds_no_signal_of_what_lies_above() -> None:
    """Its outer half is beyond the highest frequency: no model is made there, so it must not count."""
    quiet = 0.01 * torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = measured(particles(torch.ones(COUNT), quiet), highest=5)
    assert float(found.power[0, 5]) < 2 * BOX**2 * 1e-4


def test_a_reference_that_shows_less_and_less_gets_a_scale_that_falls_to_zero() -> None:
    """Where the reference is another map, nothing of it is in the images."""
    noise = 0.3 * torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = particles(torch.ones(COUNT), noise)
    assert found.poses is not None
    transform = cropped_transform(blobs(BOX), HIGHEST).clone()
    other = cropped_transform(blobs(BOX, seed=5), HIGHEST)
    width = transform.shape[2] - 1
    axis = torch.arange(-width, width + 1).float()
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + torch.arange(width + 1) ** 2).sqrt() / 2
    transform[radius > 5] = other[radius > 5]
    which = torch.zeros(COUNT, dtype=torch.long)
    result = measured_noise(found, found.poses, (transform,), which, HIGHEST)
    torch.testing.assert_close(result.scale[0, 1:5], torch.ones(4), atol=0.1, rtol=0)
    assert float(result.scale[0, 8 : HIGHEST + 1].max()) < 0.25  # measured over neighbouring shells


def test_each_particle_is_compared_with_its_own_reference() -> None:
    noise = 0.5 * torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = particles(torch.ones(COUNT), noise)
    assert found.poses is not None
    right, wrong = cropped_transform(blobs(BOX), HIGHEST), cropped_transform(blobs(BOX, seed=5), HIGHEST)
    rows = torch.arange(COUNT)
    which = rows % 2
    mixed = measured_noise(found, found.poses, (right, wrong), which, HIGHEST)
    own = [rows[which == at] for at in (0, 1)]
    alone = [
        measured_noise(found.select(r), found.poses[r], (t,), torch.zeros_like(r), HIGHEST)
        for r, t in zip(own, (right, wrong), strict=True)
    ]
    assert float(alone[0].scale[0, 2:HIGHEST].mean()) > 0.9 > 0.3 > float(alone[1].scale[0, 2:HIGHEST].mean())
    low = slice(2, HIGHEST + 1)
    assert bool((alone[0].scale[0, low] > mixed.scale[0, low]).all())
    assert bool((mixed.scale[0, low] > alone[1].scale[0, low]).all())
    swapped = measured_noise(found, found.poses, (wrong, right), 1 - which, HIGHEST)
    torch.testing.assert_close(swapped.power, mixed.power)


def test_small_groups_and_unknown_ones_take_the_noise_of_all() -> None:
    groups = torch.ones(COUNT, dtype=torch.long)
    groups[: FEWEST_OF_A_GROUP - 1] = 2
    noise = torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = particles(torch.ones(COUNT), noise, groups)
    model = measured(found)
    assert model.groups == (1,)
    assert model.rows_of(found).tolist() == [0] * (FEWEST_OF_A_GROUP - 1) + [1] * (
        COUNT - FEWEST_OF_A_GROUP + 1
    )
    assert not model.rows_of(replace(found, optics_groups=None)).any()
    assert not model.rows_of(replace(found, optics_groups=groups + 5)).any()


def test_whitening_divides_by_the_deviation_of_each_group() -> None:
    groups = 1 + torch.arange(COUNT) % 2
    level = torch.where(groups == 1, 0.5, 2.0)[:, None, None]
    images = level * torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = replace(particles(torch.zeros(COUNT), images, groups), poses=None)
    flat = torch.ones(3, SHELLS)
    squares = torch.tensor([1.0, 0.25, 4.0])[:, None] * BOX**2
    scales = torch.tensor([1.0, 3.0, 5.0])[:, None]
    model = NoiseModel((1, 2), squares * flat, flat, scales * flat)
    points = frequency_points(BOX, HIGHEST)
    rows = torch.arange(10, 150)
    white = model.whiten(found.select(rows), points)
    assert len(white) == 140
    for group, scale in ((1, 3.0), (2, 5.0)):
        own = groups[rows] == group
        power = white.values[own].abs().square()
        assert float(power.mean()) == pytest.approx(1, abs=5 / power.numel() ** 0.5)
        deviation = (0.5 if group == 1 else 2.0) * BOX
        bare = white.transfer[own] * deviation / scale
        assert 0.5 < float(bare.abs().max()) <= 1 + 1e-4  # the CTF alone is left


def test_noise_around_the_particles_is_a_first_guess() -> None:
    spectrum = 0.3 + 2 * torch.exp(-torch.arange(SHELLS) / 4)
    rows = torch.arange(0, COUNT, 2)
    transform = cropped_transform(blobs(BOX), HIGHEST)
    for strength in (0.5, 2.0):
        found = particles(torch.full((COUNT,), strength), coloured(COUNT, spectrum))
        guess = background_noise(found.select(rows), transform, HIGHEST)
        assert guess.groups == () and guess.power.shape == (1, SHELLS)
        ratio = guess.power[0, 2:-1] / (BOX**2 * spectrum[2:-1])
        assert bool((ratio > 0.6).all()) and bool((ratio < 1.8).all())
        assert float(guess.scale[0, 0]) == pytest.approx(strength, rel=0.5)
        assert bool((guess.scale == guess.scale[0, 0]).all())


def share_of(found: Particles, poses: Poses | None = None) -> float | None:
    """What the blobs explain of images at their poses, or at others."""
    transform = cropped_transform(blobs(BOX), HIGHEST)
    poses = found.poses if poses is None else poses
    assert poses is not None
    which = torch.zeros(len(found), dtype=torch.long)
    background = background_noise(found, transform, HIGHEST)
    return explained_share(found, poses, (transform,), which, background, HIGHEST)


def test_the_right_map_explains_the_signal_and_another_molecule_does_not() -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    right = particles(torch.ones(COUNT), noise)
    assert share_of(right) == pytest.approx(1, abs=0.15)
    wrong = share_of(particles(torch.ones(COUNT), noise, voxels=blobs(BOX, seed=5)))
    assert wrong is not None and wrong < 0.25
    assert share_of(particles(torch.full((COUNT,), -1.0), noise)) == 0
    # The right map at orientations out of the hat explains as little as another.
    assert right.poses is not None
    lost = Poses(random_unitquat(COUNT, generator=seeded(8)), right.poses.shifts_angstrom)
    share = share_of(right, lost)
    assert share is not None and share < 0.25


def test_of_noise_nothing_is_explained_and_in_a_crowd_nobody_can_tell() -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    assert share_of(particles(torch.zeros(COUNT), noise)) == 0
    # Around the particles as much power as on them, as other particles bring it.
    axis = torch.arange(BOX) - BOX // 2
    around = (axis[:, None].square() + axis.square()).sqrt() > 0.8 * BOX / 2
    loud = 4 * torch.randn(COUNT, BOX, BOX, generator=seeded(3)) * around
    assert share_of(particles(torch.full((COUNT,), 3.0), noise + loud)) is None


def test_images_without_ctf_or_signal_are_no_trouble() -> None:
    noise = torch.randn(COUNT, BOX, BOX, generator=seeded(0))
    found = replace(particles(torch.zeros(COUNT), noise), ctf=None)
    model = measured(found)
    agree(model.power[0], torch.full((SHELLS,), float(BOX**2)), COUNT)
    assert float(model.scale[0, 1 : HIGHEST + 1].max()) < 0.1 and bool((model.scale >= 0).all())
    guess = background_noise(found, cropped_transform(blobs(BOX), HIGHEST), HIGHEST)
    for values in (guess.power, guess.scale, guess.signal):
        assert bool(values.isfinite().all()) and bool((values >= 0).all())
    assert bool(guess.power.gt(0).all())


def test_nothing_is_looked_for_where_images_hold_nothing() -> None:
    """Images that came with twice as wide pixels: their shells from 8 on hold rounding alone."""
    noise = torch.randn(COUNT, BOX, BOX, generator=seeded(1))
    full = particles(torch.ones(COUNT), noise, voxels=None)
    narrow = to_real(crop_or_pad(to_fourier(full.images[torch.arange(COUNT)]), BOX, BOX // 2), BOX // 2)
    found = replace(full, images=to_real(crop_or_pad(to_fourier(narrow), BOX // 2, BOX), BOX))
    empty = torch.arange(SHELLS) > 7
    transform = cropped_transform(blobs(BOX), HIGHEST)
    background = background_noise(found, transform, HIGHEST)
    known = measured(full)
    for model in (measured(found), background, known.adapted_to(background)):
        assert not model.scale[:, empty].any() and bool((model.scale[:, 1:6] > 0).all())
        white = model.whiten(found, frequency_points(BOX, HIGHEST))
        assert white.transfer.isfinite().all() and white.values.isfinite().all()
        assert not white.transfer[:, white.points.shell > 7].any()
    # the shells that are there say how strong the noise is, not those that are empty
    assert float(known.adapted_to(background).power[0, 3] / known.power[0, 3]) == pytest.approx(1, abs=0.3)
