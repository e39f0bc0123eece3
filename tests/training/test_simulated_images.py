"""Imitations are what real particles are: projections, CTF, origins, and noise of the same colour."""

from dataclasses import replace

import pytest
import torch
from helpers.clean_images import seeded
from scipy import stats
from torch import Tensor

from cryoforum.config import PreprocessingConfig
from cryoforum.dataset.image_grid import ImageGrid
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.imaging.masks import circular_mask
from cryoforum.imaging.noise_model import NoiseModel
from cryoforum.imaging.projection import cropped_transform
from cryoforum.molecules.structures import load_structure
from cryoforum.network.preprocessing import Intensity, prepare, prepare_all, set_intensity
from cryoforum.reconstruction.reference_map import Reference, reference_from_map, reference_from_particles
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate
from cryoforum.training.simulated_images import image_simulator

BOX, PIXEL_SIZE = 32, 11.2


@pytest.fixture(scope="module")
def volume() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


def with_flat_noise(volume: Volume, power: float = 1.0) -> Reference:
    shells = len(volume.voxels) // 2 + 1
    flat = NoiseModel((), power * torch.ones(1, shells), torch.ones(1, shells), torch.ones(1, shells))
    return Reference(volume, None, shells - 2, noise=flat)


def correlations(first: Tensor, second: Tensor) -> Tensor:
    a, b = (images.flatten(1) - images.flatten(1).mean(1, keepdim=True) for images in (first, second))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


@pytest.mark.parametrize("phase_flip", [True, False])
@pytest.mark.parametrize("box", [24, 32, 48])
def test_without_noise_they_are_images_of_the_map(volume: Volume, box: int, phase_flip: bool) -> None:
    """Of one particle, whose optics and origin are therefore those of every simulator."""
    particles = simulate(volume, SimulationConfig(count=1, seed=2, max_shift_pixel=4.0))
    assert particles.poses is not None and particles.ctf is not None
    config = PreprocessingConfig(box=box, phase_flip=phase_flip)
    simulator = image_simulator(particles, with_flat_noise(volume), config)
    simulator = replace(simulator, noise_deviation=0 * simulator.noise_deviation)
    found, quaternions = simulator.draw(12, seeded())
    one = torch.zeros(12, dtype=torch.long)
    poses = Poses(quaternions, particles.poses.shifts_angstrom[one])
    transform, grid = cropped_transform(volume.voxels), ImageGrid(len(volume.voxels), PIXEL_SIZE)
    clean = SimulatedImages(transform, grid, poses, particles.ctf[one], 1.0, None)
    expected = prepare(clean[torch.arange(12)], clean.ctf, PIXEL_SIZE, config)
    assert found.shape == expected.shape == (12, box, box)
    assert float(correlations(found, expected).min()) > 0.99
    assert float(correlations(found, expected.roll(1, 0)).mean()) < 0.9
    centred = replace(clean, poses=Poses(quaternions, 0 * poses.shifts_angstrom))
    elsewhere = prepare(centred[torch.arange(12)], clean.ctf, PIXEL_SIZE, config)
    assert float(correlations(found, elsewhere).mean()) < 0.9


def test_they_have_the_optics_and_origins_of_the_particles(volume: Volume) -> None:
    """Of two that differ as much as can be, each comes as often as the other, origins apart from optics."""
    particles = simulate(volume, SimulationConfig(count=2, max_shift_pixel=0.0))
    assert particles.poses is not None and particles.ctf is not None
    ctf = particles.ctf.defocused_by(torch.tensor([0.0, 10_000.0]))
    poses = Poses(particles.poses.quaternions, torch.tensor([[-3.0, 0.0], [3.0, 0.0]]) * PIXEL_SIZE)
    config = PreprocessingConfig(box=BOX, phase_flip=False)
    particles = replace(particles, ctf=ctf, poses=poses)
    simulator = image_simulator(particles, with_flat_noise(volume), config)
    simulator = replace(simulator, noise_deviation=0 * simulator.noise_deviation)
    count = 100
    found, quaternions = simulator.draw(count, seeded())
    best, transform = [], cropped_transform(volume.voxels)
    grid = ImageGrid(len(volume.voxels), PIXEL_SIZE)
    for kind in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row, other = (torch.full((count,), value) for value in kind)
        chosen = Poses(quaternions, poses.shifts_angstrom[other])
        clean = SimulatedImages(transform, grid, chosen, ctf[row], 1.0, None)
        best.append(correlations(found, prepare(clean[torch.arange(count)], None, PIXEL_SIZE, config)))
    table = torch.stack(best)
    assert float(table.amax(0).min()) > 0.99
    counts = torch.bincount(table.argmax(0), minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001


def test_orientations_are_uniform_and_a_seed_makes_the_same(volume: Volume) -> None:
    particles = simulate(volume, SimulationConfig(count=3))
    simulator = image_simulator(particles, with_flat_noise(volume), PreprocessingConfig(box=16))
    images, quaternions = simulator.draw(2000, seeded(1))
    # Of uniform rotations every number of the quaternion is one of a uniform point of the sphere.
    for axis in range(4):
        beta = (quaternions[:, axis].double() + 1) / 2
        assert stats.kstest(beta.numpy(), stats.beta(1.5, 1.5).cdf).pvalue > 0.001
    again, same = simulator.draw(2000, seeded(1))
    assert torch.equal(again, images) and torch.equal(same, quaternions)
    other, _ = simulator.draw(2000, seeded(2))
    assert not torch.equal(other, images)


def shell_power(images: Tensor) -> Tensor:
    box = images.shape[-1]
    frequency = torch.fft.fftfreq(box, d=1 / box)
    shell = torch.hypot(frequency[:, None], frequency[: box // 2 + 1]).round().long().flatten()
    power = torch.fft.rfft2(images).abs().square().mean(0).flatten()
    return torch.zeros(int(shell.max()) + 1).index_add_(0, shell, power) / torch.bincount(shell)


def coloured(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise whose power falls tenfold from low to high frequencies."""
    frequency = torch.fft.fftfreq(BOX, d=1 / BOX)
    radius = torch.hypot(frequency[:, None], frequency[: BOX // 2 + 1])
    deviation = (0.3 + 3 * torch.exp(-((radius / 5) ** 2))).sqrt()
    return torch.fft.irfft2(torch.fft.rfft2(torch.randn(shape, generator=generator)) * deviation, s=shape[1:])


@pytest.fixture(scope="module")
def noisy(volume: Volume) -> Particles:
    count = 400
    lazy = simulate(volume, SimulationConfig(count=count, snr=1.0))
    assert isinstance(lazy.images, SimulatedImages)
    signal = replace(lazy.images, seed=None)[torch.arange(count)]
    return replace(lazy, images=signal + coloured((count, BOX, BOX), seeded(3)))


@pytest.fixture(scope="module")
def reference(noisy: Particles) -> Reference:
    assert noisy.poses is not None
    return reference_from_particles(noisy)


@pytest.mark.parametrize("box", [16, 24, 32, 40])
def test_their_power_is_that_of_the_particles_at_every_frequency(
    noisy: Particles, reference: Reference, box: int
) -> None:
    config = PreprocessingConfig(box=box)
    real = shell_power(prepare_all(noisy, config))[1:]
    imitations, _ = image_simulator(noisy, reference, config).draw(1200, seeded(4))
    found = shell_power(imitations)[1:]
    # What the mask spreads from strong frequencies to those where there is nothing is no matter.
    assert float(((found - real).abs() - 0.002 * real.max()).div(real).max()) < 0.12


def test_imitations_of_a_set_are_as_strong_as_its_images(noisy: Particles, reference: Reference) -> None:
    config = PreprocessingConfig(box=24, standardise="set")
    intensity = set_intensity(noisy, config)
    real = prepare_all(noisy, config, intensity=intensity)
    found, _ = image_simulator(noisy, reference, config, intensity).draw(800, seeded(5))
    core = circular_mask(24, config.mask_inner, config.mask_outer) == 1
    assert float(found[:, core].std()) == pytest.approx(float(real[:, core].std()), rel=0.05)
    twice = Intensity(intensity.mean, 2 * intensity.deviation)
    weaker, _ = image_simulator(noisy, reference, config, twice).draw(800, seeded(5))
    torch.testing.assert_close(2 * weaker, found)


def test_a_network_can_tell_them_from_particles_by_nothing_obvious(
    noisy: Particles, reference: Reference
) -> None:
    """Moments of the pixels, and where in the image they are."""
    config = PreprocessingConfig(box=24)
    real = prepare_all(noisy, config)
    found, _ = image_simulator(noisy, reference, config).draw(800, seeded(6))
    core = circular_mask(24, config.mask_inner, config.mask_outer) == 1
    for moment in (1, 2, 3, 4):
        difference = found[:, core].pow(moment).mean() - real[:, core].pow(moment).mean()
        assert abs(float(difference)) < 0.05 * moment**2
    maps = torch.stack([found.square().mean(0)[core], real.square().mean(0)[core]])
    assert float(torch.corrcoef(maps)[0, 1]) > 0.6


def test_a_map_from_elsewhere_has_no_noise_to_imitate(noisy: Particles, volume: Volume) -> None:
    with pytest.raises(ValueError, match="expected a reference made from particles"):
        image_simulator(noisy, reference_from_map(volume), PreprocessingConfig(box=16))
