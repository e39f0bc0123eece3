"""One likelihood in two forms: compiled and readable agree, and both are what calculus and images say."""

import math
from dataclasses import fields, replace

import pytest
import torch
from helpers.clean_images import (
    PIXEL_SIZE,
    blobs,
    clean_images,
    random_ctf,
    random_poses,
    seeded,
    turned_by,
    whitened,
)
from torch import Tensor

from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import frequency_points, to_fourier
from cryoforum.imaging.likelihood import (
    Evaluation,
    WhitenedImages,
    evaluate,
    evaluate_plainly,
    whiten,
)
from cryoforum.imaging.projection import cropped_transform, project, slices_at
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate

BOX, RADIUS = 24, 10


def noisy_images(count: int, box: int = BOX, radius: int = RADIUS) -> WhitenedImages:
    """Images of the blobs under CTF, with noise of variance 1."""
    quaternions, origins = random_poses(count)
    ctf = random_ctf(count)
    images = clean_images(blobs(box), quaternions, origins, ctf)
    images = images + torch.randn(images.shape, generator=seeded(1))
    return whitened(images, ctf, frequency_points(box, radius))


def in_double(images: WhitenedImages) -> WhitenedImages:
    points = replace(images.points, kx=images.points.kx.double(), ky=images.points.ky.double())
    return WhitenedImages(points, images.values.to(torch.complex128), images.transfer.double())


def models(transform: Tensor, images: WhitenedImages, quaternions: Tensor, origins: Tensor) -> Tensor:
    """What each image would be without noise, (n, p): transfer · slice · exp(2πi k·o)."""
    points = images.points
    angle = 2 * math.pi / points.box * (points.kx * origins[:, :1] + points.ky * origins[:, 1:])
    slices = slices_at(transform, quaternions, points)
    return images.transfer * slices * torch.polar(torch.ones_like(angle), angle)


def moved(pose: tuple[Tensor, Tensor], step: Tensor) -> tuple[Tensor, Tensor]:
    """Poses after a step (n, 5), to first order exact in the rotation, and differentiable where it is 0."""
    quaternions, origins = pose
    half = torch.cat([step[:, :3] / 2, torch.ones_like(step[:, :1])], dim=1)
    x, y, z, w = quaternions.unbind(-1)
    a, b, c, d = half.unbind(-1)
    product = (  # Hamilton's, scalar last
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    )
    turned = torch.nn.functional.normalize(torch.stack(product, dim=-1), dim=-1)
    return turned, origins + step[:, 3:]


@pytest.mark.parametrize(("box", "radius"), [(24, 10), (32, 15), (25, 11)])
def test_the_compiled_kernel_agrees_with_its_readable_twin(box: int, radius: int) -> None:
    images = noisy_images(6, box, radius)
    transform = cropped_transform(blobs(box, seed=3), radius)
    rows = torch.tensor([5, 0, 0, 3, 4, 1, 2, 2, 5, 1])
    quaternions, origins = random_poses(len(rows), largest_origin_pixel=7.0, seed=4)
    found = evaluate(transform, images, rows, quaternions, origins)
    plain = evaluate_plainly(transform, images, rows, quaternions, origins)
    exact = evaluate_plainly(
        transform.double(), in_double(images), rows, quaternions.double(), origins.double()
    )
    for field in fields(Evaluation):
        expected = getattr(exact, field.name).double()
        scale = float(expected.abs().max())
        assert scale > 1
        for other in (found, plain):
            value = getattr(other, field.name).double()
            torch.testing.assert_close(value, expected, atol=1e-4 * scale, rtol=0)


def test_the_gradient_is_that_of_automatic_differentiation() -> None:
    images = in_double(noisy_images(5))
    transform = cropped_transform(blobs(BOX).double(), RADIUS)
    rows = torch.arange(5)
    quaternions, origins = (part.double() for part in random_poses(5, seed=2))
    step = torch.zeros(5, 5, dtype=torch.float64, requires_grad=True)
    found = evaluate_plainly(transform, images, rows, *moved((quaternions, origins), step))
    (expected,) = torch.autograd.grad(found.gain.sum(), step)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.gradient.detach(), expected, atol=1e-9 * scale, rtol=1e-9)


def test_the_information_is_twice_the_square_of_the_jacobian() -> None:
    images = in_double(noisy_images(3))
    transform = cropped_transform(blobs(BOX).double(), RADIUS)
    quaternions, origins = (part.double() for part in random_poses(3, seed=2))
    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)

    def parts(step: Tensor) -> Tensor:
        pose = moved((quaternions, origins), step)
        return torch.view_as_real(models(transform, images, *pose)).flatten(1)

    jacobian = torch.autograd.functional.jacobian(
        lambda step: parts(step).sum(0), torch.zeros(3, 5, dtype=torch.float64), vectorize=True
    )
    # A model depends on its own step alone, so summing over models keeps each one's derivatives apart.
    expected = 2 * torch.einsum("pni,pnj->nij", jacobian, jacobian)
    found = evaluate_plainly(transform, images, torch.arange(3), quaternions, origins).information
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_the_expected_gradient_falls_by_the_information() -> None:
    """Of an image at its expectation, the gradient a small step off is minus information times step."""
    images = in_double(noisy_images(3))
    transform = cropped_transform(blobs(BOX).double(), RADIUS)
    quaternions, origins = random_poses(3, seed=2)
    pose = quaternions.double(), origins.double()
    images = replace(images, values=models(transform, images, *pose))
    rows = torch.arange(3)
    information = evaluate_plainly(transform, images, rows, *pose).information
    width = 1e-6
    for parameter in range(5):
        step = torch.zeros(3, 5, dtype=torch.float64)
        step[:, parameter] = width
        high, low = (
            evaluate_plainly(transform, images, rows, *moved(pose, s)).gradient for s in (step, -step)
        )
        fall = (low - high) / (2 * width)
        scale = float(information.abs().max())
        torch.testing.assert_close(fall, information[:, parameter], atol=1e-6 * scale, rtol=0)


def simulated_without_noise(count: int) -> tuple[Tensor, WhitenedImages, Tensor, Tensor]:
    """Transform, whitened noise-free images, true orientations and true origins of simulated particles."""
    volume = Volume(blobs(BOX), PIXEL_SIZE)
    particles = simulate(volume, SimulationConfig(count=count, snr=1.0, max_shift_pixel=3.0, seed=5))
    assert isinstance(particles.images, SimulatedImages) and particles.poses is not None
    images = replace(particles.images, seed=None)[torch.arange(count)]
    points = frequency_points(BOX, RADIUS)
    scale = torch.full((count, len(points.kx)), particles.images.signal_scale)
    noise_power = torch.full((count, len(points.kx)), float(BOX**2))
    clean = whiten(images, particles.ctf, PIXEL_SIZE, points, noise_power, scale)
    origins = particles.poses.shifts_angstrom / PIXEL_SIZE
    return cropped_transform(volume.voxels, RADIUS), clean, particles.poses.quaternions, origins


def test_a_noise_free_image_is_fitted_at_its_true_pose() -> None:
    """The images come from the simulator, whose projector, CTF and sign of origins are RELION's."""
    transform, images, quaternions, origins = simulated_without_noise(8)
    rows = torch.arange(8)
    there = evaluate(transform, images, rows, quaternions, origins)
    torch.testing.assert_close(there.cross, there.power, rtol=1e-4, atol=0)
    torch.testing.assert_close(there.gain, there.power, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        there.power, images.values.abs().square().sum(1).to(there.power), rtol=1e-4, atol=0
    )
    off = torch.full((8, 3), 0.02)
    nearby = evaluate(transform, images, rows, turned_by(quaternions, off), origins + 0.1)
    assert bool((there.gradient.abs() < 1e-3 * nearby.gradient.abs().amax(0)).all())
    wrong_sign = evaluate(transform, images, rows, quaternions, -origins)
    assert bool((wrong_sign.gain < 0.9 * there.gain).all())


def test_nothing_is_likelier_than_the_true_pose_of_a_noise_free_image() -> None:
    transform, images, quaternions, origins = simulated_without_noise(4)
    rows = torch.arange(4)
    there = evaluate(transform, images, rows, quaternions, origins).gain
    generator = seeded(7)
    for width in (0.003, 0.03, 0.3):
        for parts in ((1, 0), (0, 1), (1, 1)):
            turns = parts[0] * width * torch.randn(4, 25, 3, generator=generator)
            moves = parts[1] * 10 * width * torch.randn(4, 25, 2, generator=generator)
            poses = turned_by(quaternions[:, None], turns).view(-1, 4)
            gain = evaluate(
                transform,
                images,
                rows.repeat_interleave(25),
                poses,
                (origins[:, None] + moves).view(-1, 2),
            ).gain.view(4, 25)
            assert bool((gain < there[:, None]).all())


def test_moving_an_image_by_whole_pixels_moves_its_origin_back() -> None:
    quaternions, origins = random_poses(3, seed=2)
    images = clean_images(blobs(BOX), quaternions, origins)
    images = images + torch.randn(images.shape, generator=seeded(3))
    points, transform = frequency_points(BOX, RADIUS), cropped_transform(blobs(BOX), RADIUS)
    x, y = 3, -2
    moved_images = torch.roll(images, (y, x), dims=(1, 2))
    rows, elsewhere = torch.arange(3), torch.tensor([0.3, -0.8]) + origins
    before = evaluate(transform, whitened(images, None, points), rows, quaternions, elsewhere)
    after = evaluate(
        transform, whitened(moved_images, None, points), rows, quaternions, elsewhere - torch.tensor([x, y])
    )
    for field in fields(Evaluation):
        one, other = getattr(before, field.name), getattr(after, field.name)
        torch.testing.assert_close(one, other, atol=1e-4 * float(one.abs().max()), rtol=0)


def test_slices_are_those_of_the_projector() -> None:
    for box in (24, 25):
        voxels, radius = blobs(box), 10
        quaternions, _ = random_poses(5)
        points = frequency_points(box, radius)
        found = slices_at(cropped_transform(voxels, radius), quaternions, points)
        whole = project(cropped_transform(voxels), quaternions, box)
        torch.testing.assert_close(
            found, points.values_of(whole), atol=1e-4 * float(whole.abs().max()), rtol=0
        )


@pytest.mark.parametrize(("box", "radius"), [(24, 11), (24, 1), (25, 12), (9, 4)])
def test_of_opposite_frequencies_exactly_one_is_a_point(box: int, radius: int) -> None:
    points = frequency_points(box, radius)
    found = set(zip(points.kx.int().tolist(), points.ky.int().tolist(), strict=True))
    assert len(found) == len(points.kx)
    for kx in range(-radius, radius + 1):
        for ky in range(-radius, radius + 1):
            within = 0 < kx**2 + ky**2 <= radius**2
            assert ((kx, ky) in found) + ((-kx, -ky) in found) == within
    assert bool((points.radius.diff() >= 0).all()) and bool((points.kx >= 0).all())
    assert bool(((points.radius - points.shell).abs() <= 0.5).all())
    half = points.within(radius / 2)
    assert len(half.kx) == int((points.radius <= radius / 2).sum())
    torch.testing.assert_close(half.kx, points.kx[: len(half.kx)], atol=0, rtol=0)


def test_white_noise_becomes_noise_of_power_one_and_the_transfer_is_the_ctf() -> None:
    points, ctf = frequency_points(BOX, RADIUS), random_ctf(200)
    deviation = 3.0
    images = deviation * torch.randn(200, BOX, BOX, generator=seeded(0))
    found = whitened(images, ctf, points, noise_variance=deviation**2)
    power = found.values.abs().square()
    assert float(power.mean()) == pytest.approx(1, abs=4 / power.numel() ** 0.5)
    assert float(found.values.mean().abs()) < 4 / power.numel() ** 0.5
    expected = ctf_2d(ctf, BOX, PIXEL_SIZE)[:, points.ky.long() % BOX, points.kx.long()]
    torch.testing.assert_close(found.transfer, expected / (deviation * BOX), atol=1e-5, rtol=1e-3)
    values = to_fourier(images)[:, points.ky.long() % BOX, points.kx.long()]
    torch.testing.assert_close(found.values * deviation * BOX, values, rtol=1e-4, atol=1e-3)


def test_rows_and_low_frequencies_of_images_are_what_they_were() -> None:
    images = noisy_images(6)
    chosen = images[torch.tensor([4, 1])]
    assert len(chosen) == 2 and torch.equal(chosen.values, images.values[[4, 1]])
    low = images.within(5)
    count = len(low.points.kx)
    assert float(low.points.radius.max()) <= 5 < float(images.points.radius[count])
    assert torch.equal(low.transfer, images.transfer[:, :count])


def test_frequencies_that_are_not_there_are_refused() -> None:
    for radius in (0, -3, BOX // 2, BOX):
        with pytest.raises(ValueError, match="cycles per box"):
            frequency_points(BOX, radius)
    images, transform = noisy_images(2), cropped_transform(blobs(BOX), RADIUS - 1)
    pose = random_poses(2)
    for refusing in (
        lambda: evaluate(transform, images, torch.arange(2), *pose),
        lambda: slices_at(transform, pose[0], images.points),
    ):
        with pytest.raises(ValueError, match=f"transform's {RADIUS - 0.5} cycles per box, found {RADIUS}"):
            refusing()
    just_enough = cropped_transform(blobs(BOX), RADIUS)
    assert bool(evaluate(just_enough, images, torch.arange(2), *pose).gain.isfinite().all())
