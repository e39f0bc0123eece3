"""Two states of a molecule told apart: by how particles vary, and by the likelihood under uncertain maps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoforum.alignment.class_likelihood import UncertainMap, class_probabilities, predicted_gain
from cryoforum.dataset.particles import Particles
from cryoforum.errors import InputError
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.imaging.fft import FrequencyPoints, frequency_points
from cryoforum.imaging.likelihood import WhitenedImages, evaluate
from cryoforum.imaging.projection import cropped_transform
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.half_sets import checked_half_sets
from cryoforum.reconstruction.reference_map import reference_from_particles
from cryoforum.refinement.classes import first_classes
from cryoforum.refinement.refine import RefinementConfig, refine
from cryoforum.simulation.config import Imperfections, SimulationConfig
from cryoforum.simulation.realistic import SimulatedSet, simulate_realistic

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 400
REACH = 1.0  # pixels that particles are off-centre, and that searches go
TWO_STATES = Imperfections(conformation_shares=(0.6, 0.4), hinge_angle_deg=25.0, strength_spread=0.15)


def made(imperfections: Imperfections) -> tuple[SimulatedSet, Particles]:
    """A set, and its particles at the true poses, in memory."""
    config = SimulationConfig(count=COUNT, snr=0.3, max_shift_pixel=REACH)
    found = simulate_realistic(load_structure("4v5d", BOX, PIXEL_SIZE), config, imperfections)
    images = found.truth.images[torch.arange(COUNT)]
    return found, replace(found.truth, images=images, half_sets=checked_half_sets(found.truth))


@pytest.fixture(scope="module")
def two_states() -> tuple[SimulatedSet, Particles]:
    return made(TWO_STATES)


def right_share(classes: Tensor, truth: Tensor) -> float:
    """Of the particles in the class that is most of their state, for two classes from 0."""
    right = float((classes == truth).float().mean())
    return max(right, 1 - right)


def test_particles_are_parted_by_how_they_vary(two_states: tuple[SimulatedSet, Particles]) -> None:
    simulated, particles = two_states
    classes = first_classes(particles, reference_from_particles(particles), 2)
    assert right_share(classes, simulated.conformation_numbers - 1) > 0.93


def test_strength_is_no_class() -> None:
    """Particles of one state whose strength varies are parted at random, not by their strength."""
    simulated, particles = made(Imperfections(strength_spread=0.4))
    classes = first_classes(particles, reference_from_particles(particles), 2)
    plain, strong = (images.images[torch.arange(COUNT)] for images in (made(Imperfections())[1], particles))
    strength = (strong * plain).sum((1, 2)) / plain.square().sum((1, 2))
    ranks = strength.argsort().argsort().float()
    larger, smaller = ranks[classes == 0].mean(), ranks[classes == 1].mean()
    assert abs(float(larger - smaller)) < 0.2 * COUNT


def test_an_exact_map_has_the_likelihood_of_all_steps() -> None:
    half_map, images, quaternions, origins = one_map_and_images(variance=0.0)
    expected = evaluate(half_map.transform, images, torch.arange(4), quaternions, origins).gain
    found = predicted_gain(half_map, images, quaternions, origins)
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-3)


def test_what_is_not_known_of_a_map_is_integrated_over() -> None:
    """In one frequency against the mean likelihood of many maps, drawn about the given one."""
    half_map, images, *pose = one_map_and_images(variance=0.8)
    points = FrequencyPoints(16, images.points.kx[:1], images.points.ky[:1])
    one = WhitenedImages(points, images.values[:, :1], images.transfer[:, :1])
    power = one.values.abs().square()[:, 0]
    exact = replace(half_map, variance=torch.zeros_like(half_map.variance))
    residual = (power - predicted_gain(exact, one, *pose)).sqrt()
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(200_000, 4, dtype=torch.complex64, generator=generator) * 0.8**0.5
    likelihood = torch.exp(-(residual - one.transfer[:, 0] * drawn).abs().square()).mean(0)
    found = torch.exp(predicted_gain(half_map, one, *pose) - power)
    torch.testing.assert_close(found, likelihood, rtol=0.02, atol=0)


def test_shares_of_classes_are_the_likeliest() -> None:
    sure = torch.tensor([[30.0, 0.0]] * 3 + [[0.0, 30.0]])
    unsure = torch.zeros(1, 2)
    found = class_probabilities(torch.cat([sure, unsure]))
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    assert float(found[-1, 0]) == pytest.approx(0.75, abs=1e-3)  # no evidence of its own: as the others are


def test_two_maps_and_the_class_of_each_particle(two_states: tuple[SimulatedSet, Particles]) -> None:
    simulated, particles = two_states
    config = RefinementConfig(
        50.0, classes=2, search_rounds=1, most_rounds=3, still=5.0, max_shift_pixel=REACH
    )
    *shared, last = refine(particles, [simulated.maps[0]], config)
    assert not any(found.parted for found in shared) and shared[-1].stands_still
    assert len(last.references) == 2 and last.parted
    assert right_share(last.classes, simulated.conformation_numbers - 1) > 0.75
    torch.testing.assert_close(last.class_probabilities.sum(1), torch.ones(COUNT))


def test_maps_of_other_classes_are_refused(two_states: tuple[SimulatedSet, Particles]) -> None:
    simulated, particles = two_states
    with pytest.raises(InputError, match="one map to start from, or 3, one of each class, found 2"):
        next(refine(particles, simulated.maps, RefinementConfig(classes=3)))


def test_a_class_that_empties_is_told(
    two_states: tuple[SimulatedSet, Particles], caplog: pytest.LogCaptureFixture
) -> None:
    simulated, particles = two_states
    noise = replace(simulated.maps[0], voxels=torch.zeros(BOX, BOX, BOX))
    noise.voxels[BOX // 2, BOX // 2, BOX // 2] = simulated.maps[0].voxels.max()
    config = RefinementConfig(
        initial_resolution_angstrom=50.0, classes=2, most_rounds=1, max_shift_pixel=REACH
    )
    with caplog.at_level("WARNING", logger="cryoforum"):
        found = next(refine(particles, [simulated.maps[0], noise], config))
    assert len(found.references) == 1 and not found.classes.any()
    assert "class 2 has emptied" in caplog.text


def one_map_and_images(variance: float) -> tuple[UncertainMap, WhitenedImages, Tensor, Tensor]:
    """A map whose shells are known up to a variance, and four images at random poses."""
    generator = torch.Generator().manual_seed(0)
    points = frequency_points(16, 5)
    transform = cropped_transform(torch.randn(16, 16, 16, generator=generator) / 64, 5)
    shape = 4, len(points.kx)
    values = torch.randn(shape, dtype=torch.complex64, generator=generator)
    images = WhitenedImages(points, values, torch.rand(shape, generator=generator))
    half_map = UncertainMap(transform, torch.full((9,), variance))
    return half_map, images, random_unitquat(4, generator=generator), torch.randn(4, 2, generator=generator)
