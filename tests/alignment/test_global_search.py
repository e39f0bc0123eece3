"""The search over all orientations: what a plain double loop finds, and starts that are worth a try."""

from dataclasses import replace

import pytest
import torch
from helpers.clean_images import (
    blobs,
    clean_images,
    random_ctf,
    random_poses,
    seeded,
    symmetric_blobs,
    whitened,
)
from torch import Tensor

from cryoforum.alignment import global_search as matching
from cryoforum.alignment.global_search import (
    SearchConfig,
    Templates,
    best_origins_pixel,
    candidates,
    log_likelihood_on_grid,
    make_templates,
)
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import WhitenedImages, evaluate_plainly
from cryoforum.imaging.projection import cropped_transform

BOX, RADIUS = 24, 10
FINE = SearchConfig(nside=4, highest_frequency=8, max_shift_pixel=0.0)
COARSE = SearchConfig(nside=1, highest_frequency=6, max_shift_pixel=1.0)


def particles(
    voxels: Tensor, origins: Tensor, deviation: float = 0.3, noise: bool = True
) -> tuple[WhitenedImages, Tensor]:
    """Whitened images with CTF and origins (n, 2), and their true orientations."""
    quaternions, _ = random_poses(len(origins), seed=3)
    ctf = random_ctf(len(origins))
    images = clean_images(voxels, quaternions, origins, ctf)
    if noise:
        images = images + deviation * torch.randn(images.shape, generator=seeded(1))
    return whitened(images, ctf, frequency_points(BOX, RADIUS), deviation**2), quaternions


def templates_of(voxels: Tensor, config: SearchConfig, symmetry: str = "C1") -> Templates:
    return make_templates(cropped_transform(voxels, RADIUS), BOX, config, symmetry)


def looped(templates: Templates, transform: Tensor, images: WhitenedImages) -> Tensor:
    """Likelihood summed over all origins, relative to noise alone, of every image and template: its log."""
    low = images.within(templates.config.highest_frequency)
    rows = []
    for row in range(len(images)):
        gains = []
        for origin in templates.origins_pixel:
            count = len(templates.rotations)
            found = evaluate_plainly(
                transform,
                low,
                torch.full((count,), row),
                templates.rotations,
                origin.expand(count, 2),
            )
            gains.append(found.gain)
        rows.append(torch.logsumexp(torch.stack(gains).double(), dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("scores_at_once", [2**21, 1])
def test_one_matrix_product_is_a_loop_over_templates_and_origins(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_SCORES_AT_ONCE", scores_at_once)
    voxels = blobs(BOX)
    images, _ = particles(voxels, torch.tensor([[0.4, -0.9], [-1.0, 0.2], [0.0, 0.0]]), deviation=1.0)
    templates = templates_of(voxels, COARSE)
    assert len(templates.rotations) == 72 and len(templates.origins_pixel) == 25
    found = log_likelihood_on_grid(templates, images).double()
    expected = looped(templates, cropped_transform(voxels, RADIUS), images)
    assert float(expected.std()) > 1
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_a_reference_that_shows_nothing_is_as_likely_as_noise_at_every_origin() -> None:
    images, _ = particles(blobs(BOX), torch.zeros(2, 2))
    templates = templates_of(torch.zeros(BOX, BOX, BOX), COARSE)
    found = log_likelihood_on_grid(templates, images).exp()
    count = float(len(templates.origins_pixel))
    torch.testing.assert_close(found, torch.full((2, 72), count), rtol=1e-4, atol=0)


def test_templates_are_told_apart_by_a_noise_free_image() -> None:
    """The most likely template is one of those next to the truth, whatever origin and CTF."""
    voxels = blobs(BOX)
    origins = 2 * torch.rand(12, 2, generator=seeded(2)) - 1
    images, quaternions = particles(voxels, origins, deviation=0.1, noise=False)
    templates = templates_of(voxels, replace(FINE, max_shift_pixel=1.0))
    best = templates.rotations[log_likelihood_on_grid(templates, images).argmax(1)]
    nearest = geodesic_distance(quaternions[:, None], templates.rotations).amin(1)
    assert float(geodesic_distance(best, quaternions).max()) < 2.2 * float(nearest.max())


@pytest.mark.parametrize("symmetry", ["C4", "D2"])
def test_an_asymmetric_unit_finds_what_the_whole_grid_does(symmetry: str) -> None:
    """The grid itself has these symmetries, so nothing is lost by a part of it but the multiplicity."""
    voxels, group = symmetric_blobs(BOX, symmetry), symmetry_group(symmetry)
    images, quaternions = particles(voxels, torch.zeros(10, 2))
    whole, unit = (templates_of(voxels, FINE, name) for name in ("C1", symmetry))
    assert len(unit.rotations) == pytest.approx(len(whole.rotations) / len(group), rel=0.05)
    everywhere, there = (log_likelihood_on_grid(grid, images) for grid in (whole, unit))
    torch.testing.assert_close(there.amax(1), everywhere.amax(1), rtol=1e-4, atol=1e-2)
    best = whole.rotations[everywhere.argmax(1)]
    best_of_unit = unit.rotations[there.argmax(1)]
    assert float(symmetric_distance(best_of_unit, best, group).max()) < 1e-3
    assert float(symmetric_distance(best_of_unit, quaternions, group).median()) < 0.3
    assert float(geodesic_distance(best_of_unit, quaternions).max()) > 0.5  # some other equivalent


def test_a_part_of_the_grid_does_for_the_cube_too() -> None:
    voxels, group = symmetric_blobs(BOX, "O"), symmetry_group("O")
    images, quaternions = particles(voxels, torch.zeros(10, 2), deviation=0.05)
    whole, unit = (templates_of(voxels, FINE, name) for name in ("C1", "O"))
    for grid in (whole, unit):
        best = grid.rotations[log_likelihood_on_grid(grid, images).argmax(1)]
        assert float(symmetric_distance(best, quaternions, group).max()) < 0.35


def random_density(templates: Templates, count: int, height: float = 30.0) -> Tensor:
    """Smooth log densities (count, g) with several modes, alike at equivalent rotations."""
    group = symmetry_group(templates.symmetry)
    centres = random_unitquat(count * 6, generator=seeded(4)).view(count, 1, 6, 4)
    distance = symmetric_distance(templates.rotations[:, None], centres, group)
    weight = height * torch.rand(count, 1, 6, generator=seeded(5))
    return (weight * torch.exp(-((distance / 0.5) ** 2))).sum(-1)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O", "I1"])
def test_candidates_are_separate_modes_the_highest_first(symmetry: str) -> None:
    group = symmetry_group(symmetry)
    templates = templates_of(blobs(BOX), FINE, symmetry)
    images, _ = particles(blobs(BOX), torch.zeros(5, 2))
    density = random_density(templates, 5)
    found = candidates(templates, images, density)
    count = found.quaternions.shape[1]
    assert 1 < count <= FINE.candidates
    separation = torch.deg2rad(torch.tensor(FINE.separation_deg))
    for row in range(5):
        chosen = found.quaternions[row][found.plausible[row]]
        assert torch.equal(chosen[0], templates.rotations[density[row].argmax()])
        apart = symmetric_distance(chosen[:, None], chosen[None], group) + 9 * torch.eye(len(chosen))
        assert float(apart.min()) >= separation - 1e-3
        rows = (chosen[:, None] == templates.rotations).all(-1).double().argmax(1)
        heights = density[row][rows]
        assert bool((heights.diff() <= 0).all())
        # Nothing higher than the last one was passed over: it is next to a candidate.
        higher = templates.rotations[density[row] > heights[-1]]
        gap = symmetric_distance(higher[:, None], chosen, group).amin(1)
        assert len(higher) == 0 or float(gap.max()) <= separation + 1e-3


@pytest.mark.parametrize(("symmetry", "separation_deg"), [("I1", 16.0), ("I1", 30.0), ("C1", 90.0)])
def test_no_candidate_is_worth_a_second_try(symmetry: str, separation_deg: float) -> None:
    """Where a group or a wide separation leaves room for few, fewer are tried than wanted."""
    group = symmetry_group(symmetry)
    config = replace(FINE, separation_deg=separation_deg, plausible_margin=1e9)
    templates = templates_of(blobs(BOX), config, symmetry)
    images, _ = particles(blobs(BOX), torch.zeros(3, 2))
    found = candidates(templates, images, random_density(templates, 3))
    for row in range(3):
        tried = found.quaternions[row][found.plausible[row]]
        apart = symmetric_distance(tried[:, None], tried[None], group) + 9 * torch.eye(len(tried))
        assert len(tried) > 1
        assert float(torch.rad2deg(apart.min())) >= separation_deg - 0.1


def test_what_is_plausible_grows_with_margin_and_share() -> None:
    templates = templates_of(blobs(BOX), FINE)
    images, _ = particles(blobs(BOX), torch.zeros(4, 2))
    density = random_density(templates, 4, height=300.0)
    counts = []
    for margin, share in ((0.0, 0.0), (5.0, 0.0), (50.0, 0.0), (0.0, 0.2), (0.0, 1.0), (1e9, 0.0)):
        config = replace(FINE, plausible_margin=margin, plausible_share=share)
        found = candidates(replace(templates, config=config), images, density)
        assert bool(found.plausible[:, 0].all())
        rows = (found.quaternions[:, :, None] == templates.rotations).all(-1).double().argmax(2)
        heights = density.gather(1, rows)
        relief = heights[:, :1] - density.median(dim=1, keepdim=True).values
        close = heights[:, :1] - heights <= (share * relief).clamp_min(margin) + 1e-3
        assert torch.equal(found.plausible, close)
        counts.append(int(found.plausible.sum()))
    assert counts[:3] == sorted(counts[:3]) and counts[0] == 4 and counts[3] <= counts[4]
    assert counts[0] < counts[2] and counts[-1] == found.plausible.numel()


def test_whole_pixels_of_origin_are_found() -> None:
    origins = torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 3.0], [1.0, 3.0], [-2.0, 0.0]])
    images, quaternions = particles(blobs(BOX), origins, deviation=0.1, noise=False)
    transform = cropped_transform(blobs(BOX), RADIUS)
    config = replace(FINE, max_shift_pixel=3.0)
    assert torch.equal(best_origins_pixel(transform, images, quaternions, config), origins)
    within_one = best_origins_pixel(transform, images, quaternions, replace(FINE, max_shift_pixel=1.0))
    assert float(within_one.abs().max()) <= 1
    assert torch.equal(within_one[:1], origins[:1])


def test_every_candidate_comes_with_the_origin_that_fits_it_best() -> None:
    voxels, count = blobs(BOX), 6
    origins = 4 * torch.rand(count, 2, generator=seeded(2)) - 2
    images, quaternions = particles(voxels, origins)
    templates = templates_of(voxels, replace(FINE, max_shift_pixel=2.0))
    found = candidates(templates, images, log_likelihood_on_grid(templates, images))
    transform, low = cropped_transform(voxels, RADIUS), images.within(FINE.highest_frequency)
    grid = templates.origins_pixel
    for row in range(count):
        for candidate in (0, 5):
            gains = evaluate_plainly(
                transform,
                low,
                torch.full((len(grid),), row),
                found.quaternions[row, candidate].expand(len(grid), 4),
                grid,
            ).gain
            chosen = (grid == found.origins_pixel[row, candidate]).all(1)
            assert float(gains.max() - gains[chosen]) < 1e-2
    near = geodesic_distance(found.quaternions[:, 0], quaternions) < 0.2
    assert int(near.sum()) >= 3
    assert float((found.origins_pixel[:, 0] - origins).abs()[near].max()) < 0.8


def test_origins_lie_on_a_square_that_reaches_as_far_as_asked() -> None:
    for largest in (0.0, 0.4, 1.0, 3.0):
        origins = templates_of(blobs(BOX), replace(COARSE, max_shift_pixel=largest)).origins_pixel
        assert float(origins.abs().max()) == pytest.approx(largest)
        assert bool((origins == 0).all(1).any())
        steps = origins[:, 0].unique().diff()
        assert not len(steps) or float(steps.max()) <= BOX / (8 * COARSE.highest_frequency) + 1e-6
        assert len(origins) == len(origins.unique(dim=0)) == (len(steps) + 1) ** 2


def test_settings_and_frequencies_that_do_not_fit_are_refused() -> None:
    for wrong in ({"nside": 0}, {"highest_frequency": 0}, {"candidates": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            SearchConfig(**wrong)
    for shift, message in ((-1.0, "largest shift of 0 or more pixels"), (float("nan"), "finite number")):
        with pytest.raises(ValueError, match=message):
            SearchConfig(max_shift_pixel=shift)
    transform = cropped_transform(blobs(BOX), 5)
    with pytest.raises(ValueError, match="transform's 5.5 cycles per box, found 6"):
        make_templates(transform, BOX, COARSE)
    with pytest.raises(ValueError, match="cycles per box"):
        make_templates(transform, BOX, SearchConfig(highest_frequency=BOX))
    images, quaternions = particles(blobs(BOX), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="transform's 5.5 cycles per box, found 6"):
        best_origins_pixel(transform, images, quaternions, COARSE)
