"""RefinedPoses poses are as exact as the Fisher information allows, and obey the laws of a maximum."""

from dataclasses import fields

import pytest
import torch
from helpers.clean_images import (
    blobs,
    clean_images,
    random_ctf,
    random_poses,
    rotation_vectors_between,
    seeded,
    symmetric_blobs,
    turned,
    turned_by,
    whitened,
)
from torch import Tensor

from cryoforum.alignment.local_refinement import (
    LocalRefinementConfig,
    RefinedPoses,
    image_posterior,
    orientation_covariance,
    orientation_information,
    origin_covariance_pixel2,
    refine_locally,
    rms_error_rad,
)
from cryoforum.distributions.bingham import log_density
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.imaging.fft import frequency_points
from cryoforum.imaging.likelihood import WhitenedImages, evaluate
from cryoforum.imaging.projection import cropped_transform

BOX, RADIUS = 32, 14
QUARTER_TURN = torch.tensor([0.0, 0.0, 0.5**0.5, 0.5**0.5])


def particles(
    voxels: Tensor, count: int, deviation: float, seed: int = 0
) -> tuple[WhitenedImages, Tensor, Tensor]:
    """Whitened noisy images with CTF, their true orientations (n, 4) and origins (n, 2)."""
    quaternions, origins = random_poses(count, seed=seed)
    ctf = random_ctf(count, seed)
    images = clean_images(voxels, quaternions, origins, ctf)
    images = images + deviation * torch.randn(images.shape, generator=seeded(seed + 1))
    return whitened(images, ctf, frequency_points(BOX, RADIUS), deviation**2), quaternions, origins


def starts_near(
    quaternions: Tensor, origins: Tensor, turn_rad: float, move_pixel: float, count: int = 1
) -> tuple[Tensor, Tensor]:
    """Starts (n, count, 4) and (n, count, 2), each exactly so far off in a direction of its own."""
    generator = seeded(9)
    shape = (len(quaternions), count)
    turns = torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator), dim=-1)
    moves = torch.nn.functional.normalize(torch.randn(*shape, 2, generator=generator), dim=-1)
    return turned_by(quaternions[:, None], turn_rad * turns), origins[:, None] + move_pixel * moves


def same(first: RefinedPoses, second: RefinedPoses, turn: float = 1e-4) -> None:
    """Both hold the same poses, the same gains and the same certainty."""
    assert float(geodesic_distance(first.quaternions, second.quaternions).max()) < turn
    for name in ("origins_pixel", "signal_scale", "mode_probability", "other_modes_rad2"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), atol=10 * turn, rtol=0)
    torch.testing.assert_close(first.gain, second.gain, atol=0.05, rtol=1e-4)


@pytest.fixture(scope="module")
def transform() -> Tensor:
    return cropped_transform(blobs(BOX), RADIUS)


def test_errors_of_a_thousand_copies_are_those_of_the_fisher_information(transform: Tensor) -> None:
    count, deviation = 1000, 0.2
    quaternions, origins = random_poses(1, seed=4)
    ctf = random_ctf(1)
    clean = clean_images(blobs(BOX), quaternions, origins, ctf)
    points = frequency_points(BOX, RADIUS)
    truth = evaluate(
        transform,
        whitened(clean, ctf, points, deviation**2),
        torch.zeros(1, dtype=torch.long),
        quaternions,
        origins,
    )
    noise = deviation * torch.randn(count, BOX, BOX, generator=seeded(4))
    copies = torch.zeros(count, dtype=torch.long)
    images = whitened(clean + noise, ctf[copies], points, deviation**2)
    poses, places = quaternions.expand(count, 4), origins.expand(count, 2)
    found = refine_locally(transform, images, poses[:, None], places[:, None])
    turns = rotation_vectors_between(poses, found.quaternions)
    moves = (found.origins_pixel - places).double()
    for errors, covariance in (
        (turns, orientation_covariance(truth.information)[0]),
        (moves, origin_covariance_pixel2(truth.information)[0]),
    ):
        # In units of the bound, errors have the identity for covariance; that of a sample is Wishart.
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance.double()))
        units = errors @ whitening.T
        eigenvalues = torch.linalg.eigvalsh(units.T @ units / count)
        assert float(eigenvalues.min()) > 0.85 and float(eigenvalues.max()) < 1.15
        mean_squared = count * units.mean(0).square().sum()
        assert float(mean_squared) < 16.3  # χ² of 3 degrees of freedom is above it once in a thousand
    together = torch.cat([turns, moves], dim=1)
    expected = torch.linalg.inv(truth.information[0].double())
    correlation, theirs = (
        c / (c.diagonal()[:, None] * c.diagonal()).sqrt() for c in (together.T @ together / count, expected)
    )
    assert float((correlation - theirs).abs().max()) < 4 / count**0.5
    assert float(found.signal_scale.mean()) == pytest.approx(1, abs=0.02)


def test_the_bounds_are_blocks_of_the_inverse_information(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 20, 1.0)
    information = evaluate(transform, images, torch.arange(20), quaternions, origins).information
    inverse = torch.linalg.inv(information.double())
    for found, expected in (
        (orientation_covariance(information), inverse[:, :3, :3]),
        (origin_covariance_pixel2(information), inverse[:, 3:, 3:]),
        (torch.linalg.inv(orientation_information(information)), inverse[:, :3, :3]),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_poses_are_found_from_far_off(transform: Tensor) -> None:
    count = 60
    images, quaternions, origins = particles(blobs(BOX), count, 0.2)
    starts = starts_near(quaternions, origins, 0.2, 2.0)
    found = refine_locally(transform, images, *starts)
    bound = rms_error_rad(orientation_covariance(found.information))
    errors = geodesic_distance(found.quaternions, quaternions)
    assert float(errors.median()) < 1.2 * float(bound.median()) < 0.02
    assert float((errors < 4 * bound).double().mean()) >= 0.95
    moves = torch.linalg.vector_norm(found.origins_pixel - origins, dim=1)
    bound_pixel = origin_covariance_pixel2(found.information).diagonal(dim1=1, dim2=2).sum(1).sqrt()
    assert float((moves < 4 * bound_pixel).double().mean()) >= 0.95


def test_an_image_of_noise_alone_does_not_break_anything(transform: Tensor) -> None:
    points = frequency_points(BOX, RADIUS)
    images = torch.randn(3, BOX, BOX, generator=seeded(0))
    images[1] = 0
    quaternions, origins = random_poses(6)
    starts = quaternions.view(3, 2, 4), origins.view(3, 2, 2)
    for reference in (transform, torch.zeros_like(transform)):
        found = refine_locally(reference, whitened(images, None, points), *starts)
        for field in fields(RefinedPoses):
            assert bool(getattr(found, field.name).isfinite().all()), field.name
        torch.testing.assert_close(found.quaternions.norm(dim=1), torch.ones(3))
        assert bool(orientation_covariance(found.information).isfinite().all())
        assert bool(image_posterior(found).mode.isfinite().all())
    assert bool((found.gain == 0).all()) and bool((found.signal_scale == 0).all())


def test_neither_batches_nor_the_order_of_particles_matter(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 24, 0.5)
    starts = starts_near(quaternions, origins, 0.25, 1.0, count=5)
    whole = refine_locally(transform, images, *starts)
    order = torch.randperm(24, generator=seeded(2))
    shuffled = refine_locally(transform, images[order], starts[0][order], starts[1][order])
    parts = [
        refine_locally(transform, images[rows], starts[0][rows], starts[1][rows])
        for rows in torch.arange(24).split(7)
    ]
    back = torch.argsort(order)
    same(whole, RefinedPoses(**{f.name: getattr(shuffled, f.name)[back] for f in fields(RefinedPoses)}))
    same(
        whole,
        RefinedPoses(
            **{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(RefinedPoses)}
        ),
    )


def test_the_result_is_never_less_likely_than_the_first_start(transform: Tensor) -> None:
    """Starts of all kinds: anywhere, near the truth, and at the truth among others that lead elsewhere."""
    images, quaternions, origins = particles(blobs(BOX), 40, 1.0)
    near = starts_near(quaternions, origins, 0.3, 2.0, count=3)
    anywhere = random_unitquat(120, generator=seeded(5)).view(40, 3, 4)
    for starts in ((anywhere, torch.zeros(40, 3, 2)), near, (anywhere.flip(0), near[1])):
        given = evaluate(transform, images, torch.arange(40), starts[0][:, 0], starts[1][:, 0]).gain
        for config in (LocalRefinementConfig(), LocalRefinementConfig((3,), (1,), 0.0, 2, 1)):
            found = refine_locally(transform, images, *starts, config)
            assert bool((found.gain >= given.float() - 1e-3).all())
            there = evaluate(transform, images, torch.arange(40), found.quaternions, found.origins_pixel)
            torch.testing.assert_close(there.gain.float(), found.gain, atol=0.02, rtol=1e-4)


def test_more_starts_and_the_best_first_are_only_better(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 30, 0.5)
    poses, places = starts_near(quaternions, origins, 0.15, 1.0, count=2)
    wrong = random_unitquat(30, generator=seeded(6))[:, None]
    alone = refine_locally(transform, images, wrong, places[:, :1])
    helped = refine_locally(transform, images, torch.cat([wrong, poses], 1), places[:, [0, 0, 1]])
    assert bool((helped.gain >= alone.gain - 0.05).all())
    assert float(geodesic_distance(helped.quaternions, quaternions).median()) < 0.1
    assert float(geodesic_distance(alone.quaternions, quaternions).median()) > 0.3


def test_only_plausible_starts_are_tried_and_the_first_one_always(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 10, 0.3)
    wrong = random_unitquat(10, generator=seeded(6))
    places = origins[:, None].expand(-1, 2, -1)
    for first, second in ((wrong, quaternions), (quaternions, wrong)):
        starts = torch.stack([first, second], dim=1)
        nothing = torch.zeros(10, 2, dtype=torch.bool)
        found = refine_locally(transform, images, starts, places, plausible=nothing)
        same(found, refine_locally(transform, images, starts[:, :1], places[:, :1]))
        assert not nothing.any()
        assert float(geodesic_distance(found.quaternions, first).median()) < 0.5
    both = refine_locally(transform, images, torch.stack([wrong, quaternions], dim=1), places)
    assert float(geodesic_distance(both.quaternions, quaternions).max()) < 0.1


def test_turning_the_map_turns_all_answers_with_it(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 24, 0.5)
    poses, places = starts_near(quaternions, origins, 0.2, 1.5, count=3)
    straight = refine_locally(transform, images, poses, places)
    turned_transform = cropped_transform(turned(blobs(BOX), QUARTER_TURN), RADIUS)
    found = refine_locally(turned_transform, images, compose(QUARTER_TURN, poses), places)
    back = compose(QUARTER_TURN * torch.tensor([-1.0, -1.0, -1.0, 1.0]), found.quaternions)
    same(straight, RefinedPoses(**{**vars(found), "quaternions": back}), turn=1e-3)
    scale = float(straight.information.abs().max())
    torch.testing.assert_close(found.information, straight.information, atol=2e-3 * scale, rtol=0)
    # The same images tell something else about the turned map from poses that were left where they are.
    unturned = refine_locally(turned_transform, images, poses, places)
    assert float(geodesic_distance(unturned.quaternions, straight.quaternions).median()) > 0.05


@pytest.mark.parametrize("symmetry", ["C4", "D2", "O"])
def test_equivalent_starts_give_equivalent_answers(symmetry: str) -> None:
    voxels, group = symmetric_blobs(BOX, symmetry), symmetry_group(symmetry)
    transform = cropped_transform(voxels, RADIUS)
    images, quaternions, origins = particles(voxels, 8, 0.3)
    poses, places = starts_near(quaternions, origins, 0.1, 1.0)
    first = refine_locally(transform, images, poses, places, symmetry=symmetry)
    for element in group[1 :: max(1, len(group) // 5)]:
        found = refine_locally(transform, images, compose(element, poses), places, symmetry=symmetry)
        apart = geodesic_distance(found.quaternions, compose(element, first.quaternions))
        deviation = rms_error_rad(orientation_covariance(first.information))
        assert bool((apart < 0.25 * deviation).all())  # steps end where they promise next to nothing
        torch.testing.assert_close(found.gain, first.gain, atol=0.05, rtol=1e-4)
    everywhere = compose(group, poses), places.expand(-1, len(group), -1)
    config = LocalRefinementConfig(stage_survivors=(len(group), len(group)))
    found = refine_locally(transform, images, *everywhere, config, symmetry=symmetry)
    deviation = rms_error_rad(orientation_covariance(found.information))
    assert bool((symmetric_distance(found.quaternions, quaternions, group) < 4 * deviation).all())
    # With all equivalents as starts there is still one mode, unless nobody says that they are equivalent.
    torch.testing.assert_close(found.mode_probability, torch.ones(8), atol=0.01, rtol=0)
    at_once = refine_locally(transform, images, *everywhere, LocalRefinementConfig((), ()), symmetry=symmetry)
    torch.testing.assert_close(at_once.mode_probability, torch.ones(8), atol=0.01, rtol=0)
    unsaid = refine_locally(transform, images, *everywhere, config)
    expected = torch.full((8,), 1 / len(group))
    torch.testing.assert_close(unsaid.mode_probability, expected, atol=0.02, rtol=0.1)


def test_two_equal_modes_share_the_probability_and_tell_how_far_apart_they_are() -> None:
    """A two-fold map whose symmetry nobody names: the other mode is half a turn away."""
    voxels = symmetric_blobs(BOX, "C2")
    images, quaternions, origins = particles(voxels, 6, 0.3)
    half_turn = symmetry_group("C2")[1]
    starts = torch.stack([quaternions, compose(half_turn, quaternions)], dim=1)
    found = refine_locally(
        cropped_transform(voxels, RADIUS), images, starts, origins[:, None].expand(-1, 2, -1)
    )
    torch.testing.assert_close(found.mode_probability, torch.full((6,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(found.other_modes_rad2, torch.full((6,), torch.pi**2), atol=0.3, rtol=0)
    alone = refine_locally(cropped_transform(voxels, RADIUS), images, starts[:, :1], origins[:, None])
    assert bool((alone.mode_probability == 1).all()) and bool((alone.other_modes_rad2 == 0).all())


def test_probability_is_that_of_the_difference_in_likelihood() -> None:
    """A map that is two-fold but for a little: one of two modes is likelier by as much as the images say."""
    voxels = symmetric_blobs(BOX, "C2") + 0.03 * blobs(BOX, seed=1)
    transform = cropped_transform(voxels, RADIUS)
    images, quaternions, origins = particles(voxels, 20, 0.3)
    starts = torch.stack([quaternions, compose(symmetry_group("C2")[1], quaternions)], dim=1)
    both = refine_locally(transform, images, starts, origins[:, None].expand(-1, 2, -1))
    gains = torch.stack(
        [refine_locally(transform, images, starts[:, [i]], origins[:, None]).gain for i in (0, 1)], dim=1
    )
    expected = gains.softmax(dim=1).amax(1)
    assert 0.5 < float(expected.min()) < 0.8 < float(expected.max()) < 1
    torch.testing.assert_close(both.mode_probability, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_particle_of_other_strength_is_measured_and_believed_accordingly(
    transform: Tensor, share: float
) -> None:
    deviation = 0.2
    quaternions, origins = random_poses(20)
    ctf = random_ctf(20)
    clean = clean_images(blobs(BOX), quaternions, origins, ctf)
    noise = deviation * torch.randn(clean.shape, generator=seeded(1))
    points = frequency_points(BOX, RADIUS)
    found = refine_locally(
        transform,
        whitened(share * clean + noise, ctf, points, deviation**2),
        quaternions[:, None],
        origins[:, None],
    )
    assert float(found.signal_scale.mean()) == pytest.approx(share, rel=0.06)
    # A signal so many times as strong is so many times as well known: E cos² falls short of 1 by the square.
    variance = orientation_covariance(found.information).diagonal(dim1=1, dim2=2).sum(1)
    shortfall = 1 - image_posterior(found).mode_moment.double()
    expected = variance.double() / (4 * found.signal_scale.double().square())
    torch.testing.assert_close(shortfall, expected, rtol=0.02, atol=1e-7)


def test_the_posterior_falls_around_its_mode_as_the_information_says(transform: Tensor) -> None:
    images, quaternions, origins = particles(blobs(BOX), 10, 0.3)
    found = refine_locally(transform, images, quaternions[:, None], origins[:, None])
    posterior = image_posterior(found)
    assert float(geodesic_distance(posterior.mode, found.quaternions).max()) < 1e-3
    information = orientation_information(found.information).double()
    information = information * found.signal_scale.double().square()[:, None, None]
    deviation = information.diagonal(dim1=1, dim2=2).amax(1).rsqrt()
    mode = found.quaternions.double()
    exact = type(posterior)(posterior.concentration.double())
    for direction in torch.randn(5, 3, generator=seeded(2), dtype=torch.float64):
        step = 2 * deviation[:, None] * torch.nn.functional.normalize(direction, dim=0)
        fall = log_density(exact, turned_by(mode, step)) - log_density(exact, mode)
        expected = -torch.einsum("ni,nij,nj->n", step, information, step) / 2
        torch.testing.assert_close(fall, expected, rtol=0.02, atol=0.02)


def random_covariances(count: int) -> Tensor:
    """Round ones, flat ones, long ones and all between, (count, 3, 3)."""
    generator = seeded(0)
    axes = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)).Q
    spread = 3 * torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    variances = torch.exp(spread * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    return axes * (1e-4 * variances)[:, None, :] @ axes.mT


def test_the_root_mean_square_is_that_of_normal_errors() -> None:
    covariances = random_covariances(12)
    normal = torch.randn(200_000, 3, generator=seeded(1), dtype=torch.float64)
    rms = rms_error_rad(covariances)
    for row, covariance in enumerate(covariances):
        angle = torch.linalg.vector_norm(normal @ torch.linalg.cholesky(covariance).T, dim=1)
        assert float(rms[row]) == pytest.approx(float(angle.square().mean().sqrt()), rel=0.01)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="as many stage_survivors as stage_shells, found 2 and 1"):
        LocalRefinementConfig(stage_shells=(10,))
    with pytest.raises(ValueError, match="1 or more"):
        LocalRefinementConfig(last_steps=0)
    with pytest.raises(ValueError, match="1 or more"):
        LocalRefinementConfig(stage_shells=(5,), stage_survivors=(0,))
