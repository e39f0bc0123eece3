"""Each change of a training image does what it says and nothing else; orientations turn with images alone."""

from dataclasses import replace

import pytest
import torch
from helpers.augmented import augment
from helpers.clean_images import random_ctf, seeded
from torch import Tensor

from cryoforum.config import AugmentationConfig, PreprocessingConfig
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import random_unitquat, unitquat_to_rotmat
from cryoforum.imaging.masks import circular_mask
from cryoforum.network.augmentation import turn_and_shift, turn_orientations, with_defocus_error
from cryoforum.network.preprocessing import prepare, prepare_all

BOX, NETWORK_PIXEL_SIZE = 32, 6.0
OFF = AugmentationConfig(rotate=False, mirror=False, max_shift_pixel=0.0)
COUNT = 64


@pytest.fixture(scope="module")
def particles() -> Particles:
    """64 px of 3 Å, of white noise, so that every frequency counts; the network sees half of them."""
    images = torch.randn(COUNT, 64, 64, generator=seeded(5))
    poses = Poses(random_unitquat(COUNT, generator=seeded(6)), torch.zeros(COUNT, 2))
    return Particles(images, 3.0, tuple(map(str, range(COUNT))), poses, random_ctf(COUNT))


@pytest.fixture(scope="module")
def inputs(particles: Particles) -> Tensor:
    return prepare_all(particles, PreprocessingConfig(box=BOX))


def changed(
    inputs: Tensor, particles: Particles, config: AugmentationConfig, seed: int = 0
) -> tuple[Tensor, Tensor]:
    assert particles.poses is not None
    return augment(
        inputs, particles.poses.quaternions, config, seeded(seed), particles.ctf, NETWORK_PIXEL_SIZE
    )


CHANGES = {"noise": 0.5, "contrast": 0.3, "defocus_angstrom": 2000.0}


def test_with_everything_off_nothing_changes(inputs: Tensor, particles: Particles) -> None:
    assert particles.poses is not None
    images, quaternions = changed(inputs, particles, OFF)
    assert torch.equal(images, inputs) and torch.equal(quaternions, particles.poses.quaternions)


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_does_not_turn_the_image_keeps_its_orientation(
    inputs: Tensor, particles: Particles, name: str
) -> None:
    assert particles.poses is not None
    before = inputs.clone()
    images, quaternions = changed(inputs, particles, replace(OFF, **{name: CHANGES[name]}))
    assert torch.equal(quaternions, particles.poses.quaternions)
    assert not torch.equal(images, inputs) and torch.equal(inputs, before)
    again, _ = changed(inputs, particles, replace(OFF, **{name: CHANGES[name]}))
    assert torch.equal(again, images)


def test_turns_mirrors_and_shifts_come_one_by_one(inputs: Tensor, particles: Particles) -> None:
    assert particles.poses is not None
    q, still, upright = particles.poses.quaternions, torch.zeros(COUNT, 2), torch.zeros(COUNT)
    images, mirrored_q = changed(inputs, particles, replace(OFF, mirror=True))
    mirrored = (mirrored_q != q).any(1)
    assert 0.3 < float(mirrored.float().mean()) < 0.7
    torch.testing.assert_close(images, turn_and_shift(inputs, upright, mirrored, still))
    torch.testing.assert_close(mirrored_q, turn_orientations(q, upright, mirrored))
    _, turned_q = changed(inputs, particles, replace(OFF, rotate=True))
    view, turned_view = (unitquat_to_rotmat(each)[:, :, 2] for each in (q, turned_q))
    torch.testing.assert_close(turned_view, view, atol=1e-5, rtol=0)
    assert float((turned_q * q).sum(1).abs().min()) < 0.9
    images, shifted_q = changed(inputs, particles, replace(OFF, max_shift_pixel=2.0))
    torch.testing.assert_close(shifted_q, q)
    centre = (images * inputs).flatten(1).sum(1) / inputs.flatten(1).square().sum(1)
    assert float(centre.min()) < 0.9


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_noise_takes_the_place_of_the_image_and_keeps_its_deviation(noise: float) -> None:
    inputs = prepare(torch.randn(200, BOX, BOX, generator=seeded()), None, 1.0, PreprocessingConfig(box=BOX))
    images, _ = augment(inputs, torch.zeros(200, 4), replace(OFF, noise=noise), seeded(1))
    mask = circular_mask(BOX, 0.85, 0.99)
    core, outside = mask == 1, mask == 0
    assert not images[:, outside].any()
    torch.testing.assert_close(images[:, core].std(1), torch.ones(200), atol=0.1, rtol=0)
    product = (images * inputs)[:, core].mean()
    assert float(product) == pytest.approx((1 + noise**2) ** -0.5, abs=0.02)
    left = images[:, core] - inputs[:, core] / (1 + noise**2) ** 0.5
    neighbours = (left[:, 1:] * left[:, :-1]).mean() / left.square().mean()
    assert abs(float(neighbours)) < 0.02  # white


@pytest.mark.parametrize("contrast", [0.1, 0.5])
def test_contrast_is_one_factor_an_image(inputs: Tensor, particles: Particles, contrast: float) -> None:
    images, _ = changed(inputs, particles, replace(OFF, contrast=contrast))
    factor = (images * inputs).sum((1, 2)) / inputs.square().sum((1, 2))
    torch.testing.assert_close(images, factor[:, None, None] * inputs)
    assert float(factor.log().std()) == pytest.approx(contrast, rel=0.3)
    assert abs(float(factor.log().mean())) < contrast / 2


def test_no_error_in_defocus_changes_nothing(inputs: Tensor, particles: Particles) -> None:
    assert particles.ctf is not None
    found = with_defocus_error(inputs, particles.ctf, torch.zeros(COUNT), NETWORK_PIXEL_SIZE)
    torch.testing.assert_close(found, inputs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [300.0, -1500.0, 5000.0])
def test_an_error_in_defocus_is_phase_flipping_with_the_wrong_ctf(particles: Particles, size: float) -> None:
    assert particles.ctf is not None
    unmasked = PreprocessingConfig(box=BOX, mask_inner=10.0, mask_outer=11.0)
    images, change = particles.images[torch.arange(COUNT)], size * torch.linspace(0.5, 1, COUNT)
    right, wrong = (
        prepare(images, ctf, 3.0, unmasked) for ctf in (particles.ctf, particles.ctf.defocused_by(change))
    )
    found = with_defocus_error(right, particles.ctf, change, NETWORK_PIXEL_SIZE)
    torch.testing.assert_close(found, wrong, atol=1e-3, rtol=0)
    assert float((wrong - right).square().mean()) > 0.01
    other_pixel = with_defocus_error(right, particles.ctf, change, 3.0)
    assert float((other_pixel - wrong).square().mean()) > 0.01


def test_errors_in_defocus_flip_phases_and_come_in_the_given_size(particles: Particles) -> None:
    unmasked = PreprocessingConfig(box=BOX, mask_inner=10.0, mask_outer=11.0)
    inputs = prepare_all(particles, unmasked)
    transforms = torch.fft.fft2(inputs)[:, 1:16, 1:16]
    flipped = {}
    for size in (100.0, 1000.0):
        images, _ = changed(inputs, particles, replace(OFF, defocus_angstrom=size))
        ratio = torch.fft.fft2(images)[:, 1:16, 1:16] / transforms
        strong = transforms.abs() > 1
        torch.testing.assert_close(ratio.abs()[strong], torch.ones(int(strong.sum())), atol=0.01, rtol=0)
        flipped[size] = float((ratio.real[strong] < 0).float().mean())
    assert 0 < 4 * flipped[100.0] < flipped[1000.0] < 0.5


@pytest.mark.parametrize("names", [("defocus_angstrom",), ("defocus_angstrom", "noise"), tuple(CHANGES)])
def test_outside_the_mask_there_is_nothing_after_any_change(
    inputs: Tensor, particles: Particles, names: tuple[str, ...]
) -> None:
    images, _ = changed(inputs, particles, replace(OFF, **{name: CHANGES[name] for name in names}))
    assert not images[:, circular_mask(BOX, 0.85, 0.99) == 0].any()


def test_without_optics_there_is_no_error_in_defocus(inputs: Tensor) -> None:
    images, _ = augment(inputs, torch.zeros(COUNT, 4), replace(OFF, defocus_angstrom=1000.0), seeded())
    assert torch.equal(images, inputs)


def test_images_are_changed_by_their_own_optics(inputs: Tensor, particles: Particles) -> None:
    ctf = particles.ctf
    assert isinstance(ctf, CtfParameters)
    change = torch.full((COUNT,), 2000.0)
    whole = with_defocus_error(inputs, ctf, change, NETWORK_PIXEL_SIZE)
    rows = torch.tensor([9, 3, 40])
    some = with_defocus_error(inputs[rows], ctf[rows], change[rows], NETWORK_PIXEL_SIZE)
    torch.testing.assert_close(some, whole[rows], atol=1e-5, rtol=0)
