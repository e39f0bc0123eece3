"""Turning the image turns the orientation; masks, phases and sizes do what they say."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.augmented import augment
from torch import Tensor

from cryoforum.config import AugmentationConfig, PreprocessingConfig
from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_fourier, to_real
from cryoforum.imaging.masks import circular_mask
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.molecules.structures import load_structure
from cryoforum.network.augmentation import turn_and_shift, turn_orientations
from cryoforum.network.preprocessing import Intensity, prepare, prepare_all, set_intensity

BOX = 48


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("4v5d", BOX, 7.0)


def projections(volume: Volume, quaternions: Tensor) -> Tensor:
    return to_real(
        project(cropped_transform(volume.voxels), quaternions, len(volume.voxels)), len(volume.voxels)
    )


def correlations(first: Tensor, second: Tensor) -> Tensor:
    a, b = (images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (first, second))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def ctf(count: int) -> CtfParameters:
    columns = [torch.full((count,), value) for value in (15000.0, 14500.0, 30.0, 300.0, 2.7, 0.1, 0.0)]
    return CtfParameters(*columns)


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.0, -3.0)])
def test_turning_the_image_turns_the_orientation(
    molecule: Volume, is_mirrored: bool, shift: tuple[float, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = random_unitquat(8, generator=generator)
    angles = torch.linspace(-3, 3, 8)
    mirrored = torch.full((8,), is_mirrored)
    shifts = torch.tensor(shift).expand(8, 2)
    turned = turn_and_shift(projections(molecule, q), angles, mirrored, shifts)
    expected_slices = project(cropped_transform(molecule.voxels), turn_orientations(q, angles, mirrored), BOX)
    expected = to_real(phase_shift(expected_slices, shifts), BOX)
    assert float(correlations(turned, expected).min()) > 0.99
    wrong = projections(molecule, turn_orientations(q, -angles, mirrored))
    assert float(correlations(turned, wrong).mean()) < 0.97


def test_quarter_turns_and_mirrors_are_exact(molecule: Volume) -> None:
    q = random_unitquat(1, generator=torch.Generator().manual_seed(1))
    image = projections(molecule, q)
    turned = turn_and_shift(image, torch.tensor([math.pi / 2]), torch.tensor([False]), torch.zeros(1, 2))
    # (x, y) goes to (-y, x) around pixel BOX // 2
    torch.testing.assert_close(turned[0, 1:, 1:], image[0, 1:, 1:].T.flip(1), atol=1e-3, rtol=1e-3)
    mirrored = turn_and_shift(image, torch.zeros(1), torch.tensor([True]), torch.zeros(1, 2))
    torch.testing.assert_close(mirrored[0, 1:], image[0, 1:].flip(0), atol=1e-3, rtol=1e-3)
    shifted = turn_and_shift(image, torch.zeros(1), torch.tensor([False]), torch.tensor([[3.0, 5.0]]))
    torch.testing.assert_close(shifted[0, 5:, 3:], image[0, :-5, :-3], atol=1e-3, rtol=1e-3)


def test_augmentation_is_seeded_and_changes_no_argument(molecule: Volume) -> None:
    q = random_unitquat(6, generator=torch.Generator().manual_seed(2))
    images = projections(molecule, q)
    before = images.clone(), q.clone()
    config = AugmentationConfig()
    first, again = (augment(images, q, config, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(images, before[0]) and torch.equal(q, before[1])
    torch.testing.assert_close(first[1].norm(dim=1), torch.ones(6))
    unmoved = augment(images, q, replace(config, max_shift_pixel=0.0), torch.Generator().manual_seed(3))
    assert float(correlations(unmoved[0], projections(molecule, unmoved[1])).min()) > 0.99


def test_mask_is_one_inside_and_zero_outside() -> None:
    mask = circular_mask(64, 0.85, 0.99)
    axis = (torch.arange(64) - 32) / 32
    radius = torch.hypot(axis[:, None], axis[None, :])
    assert bool((mask[radius <= 0.85] == 1).all() and (mask[radius >= 0.99] == 0).all())
    edge = (radius > 0.86) & (radius < 0.98)
    assert bool(((mask[edge] > 0) & (mask[edge] < 1)).all())


def test_inputs_are_standardised_whatever_the_contrast() -> None:
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    config = PreprocessingConfig(box=32)
    inputs = prepare(images, None, 1.0, config)
    mask = circular_mask(32, config.mask_inner, config.mask_outer)
    core = mask == 1
    torch.testing.assert_close(inputs[:, core].mean(1), torch.zeros(4), atol=0.06, rtol=0)
    torch.testing.assert_close(inputs[:, core].std(1), torch.ones(4), atol=0.06, rtol=0)
    assert not inputs[:, mask == 0].any()
    torch.testing.assert_close(prepare(7 * images - 30, None, 1.0, config), inputs, atol=1e-3, rtol=1e-3)
    assert bool(torch.isfinite(prepare(torch.ones(1, 32, 32), None, 1.0, config)).all())


@pytest.mark.parametrize("count", [1, 30, 1500])
def test_a_set_is_standardised_as_a_whole(count: int) -> None:
    """Its images keep their contrast and level relative to each other."""
    generator = torch.Generator().manual_seed(4)
    level = torch.randn(count, 1, 1, generator=generator)
    contrast = torch.rand(count, 1, 1, generator=generator) + 0.5
    images = 30 + 7 * (level + contrast * torch.randn(count, 32, 32, generator=generator))
    particles = Particles(images, 3.0, tuple(map(str, range(count))))
    config = PreprocessingConfig(box=32, standardise="set")
    intensity = set_intensity(particles, config)
    inputs = prepare_all(particles, config, intensity=intensity)
    mask = circular_mask(32, config.mask_inner, config.mask_outer)
    core = mask == 1
    assert float(inputs[:, core].mean()) == pytest.approx(0, abs=0.03)
    assert float(inputs[:, core].std()) == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(inputs, (images - intensity.mean) * mask / intensity.deviation)
    weighted = float((images * mask).sum() / (count * mask.sum()))
    sample = 1e-6 if count <= 1000 else 0.02
    assert intensity.mean == pytest.approx(weighted, rel=max(sample, 1e-5))
    assert isinstance(intensity, Intensity) and intensity.deviation > 0


def test_a_set_cannot_be_standardised_without_knowing_its_intensity() -> None:
    with pytest.raises(ValueError, match="expected the intensity of a set"):
        prepare(torch.zeros(1, 32, 32), None, 1.0, PreprocessingConfig(box=32, standardise="set"))


def test_phase_flipping_makes_the_transfer_positive() -> None:
    two = ctf(2)
    transfer = ctf_2d(two, 64, 3.0)
    impulse = torch.zeros(2, 64, 64)
    impulse[:, 32, 32] = 1
    images = to_real(to_fourier(impulse) * transfer, 64)
    no_mask = PreprocessingConfig(box=64, mask_inner=10.0, mask_outer=11.0)
    flipped = to_fourier(prepare(images, two, 3.0, no_mask))[:, 1:32, 1:32].real
    assert bool((transfer[:, 1:32, 1:32] < -0.1).any())
    assert float(flipped.min()) > -1e-3
    plain = to_fourier(prepare(images, two, 3.0, replace(no_mask, phase_flip=False)))[:, 1:32, 1:32].real
    assert float(plain.min()) < -1
    torch.testing.assert_close(plain.abs(), flipped, atol=1e-3, rtol=1e-3)


def test_resizing_keeps_the_field_of_view(molecule: Volume) -> None:
    """A smooth image keeps its values at the pixels that both sizes share."""
    axis = torch.arange(64) - 32
    image = torch.exp(-((axis[:, None] - 4) ** 2 + (axis[None, :] + 8) ** 2) / 60.0)[None]
    small, large = (prepare(image, None, 1.0, PreprocessingConfig(box=box)) for box in (32, 64))
    shared = slice(8, 24)
    torch.testing.assert_close(
        small[0, shared, shared], large[0, ::2, ::2][shared, shared], atol=0.05, rtol=0.05
    )
    peak = divmod(int(small[0].argmax()), 32)
    assert peak == (16 + 2, 16 - 4)


def test_all_particles_come_in_order_and_are_counted() -> None:
    images = torch.randn(10, 32, 32)
    particles = Particles(images, 3.0, tuple(map(str, range(10))), ctf=ctf(10))
    done: list[int] = []
    config = PreprocessingConfig(box=16)
    inputs = prepare_all(particles, config, batch_size=4, progress=done.append)
    assert done == [4, 4, 2] and inputs.shape == (10, 16, 16)
    torch.testing.assert_close(inputs, prepare(images, particles.ctf, 3.0, config))
    assert prepare_all(particles.select(torch.arange(0)), config).shape == (0, 16, 16)


def test_odd_images_are_refused() -> None:
    with pytest.raises(ValueError, match="even box"):
        prepare(torch.zeros(1, 33, 33), None, 1.0, PreprocessingConfig(box=32))
