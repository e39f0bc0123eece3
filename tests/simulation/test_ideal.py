"""Simulated particles: the asked signal-to-noise ratio, shifts and seeds, image by image."""

from dataclasses import replace

import pytest
import torch

from cryoforum.dataset.particles import Particles
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.fft import phase_shift, to_fourier, to_real
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import SimulatedImages, simulate

BOX, PIXEL_SIZE = 32, 11.2


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


def clean_images(particles: Particles, rows: torch.Tensor) -> torch.Tensor:
    assert isinstance(particles.images, SimulatedImages)
    return replace(particles.images, seed=None)[rows]


@pytest.mark.parametrize("snr", [0.01, 0.1, 2.0])
def test_signal_to_noise_is_as_asked(molecule: Volume, snr: float) -> None:
    particles = simulate(molecule, SimulationConfig(count=150, snr=snr))
    rows = torch.arange(150)
    clean = clean_images(particles, rows)
    noise = particles.images[rows] - clean
    assert float(noise.var()) == pytest.approx(1, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(clean.var((1, 2)).mean() / noise.var()) == pytest.approx(snr, rel=0.03)
    independent = torch.corrcoef(noise[:20].flatten(1)) - torch.eye(20)
    assert float(independent.abs().max()) < 0.15


def test_a_row_gives_one_image_however_it_is_read(molecule: Volume) -> None:
    config = SimulationConfig(count=20, seed=5)
    particles, again = simulate(molecule, config), simulate(molecule, config)
    whole = particles.images[torch.arange(20)]
    assert whole.shape == (20, BOX, BOX) == particles.images.shape
    pieces = torch.cat([again.images[torch.tensor([row])] for row in range(20)])
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)
    backwards = particles.images[torch.arange(19, -1, -1)]
    torch.testing.assert_close(backwards.flip(0), whole, atol=1e-4, rtol=1e-4)


def test_another_seed_gives_other_particles(molecule: Volume) -> None:
    first, other = (simulate(molecule, SimulationConfig(count=5, seed=seed)) for seed in (0, 1))
    assert first.poses is not None and other.poses is not None
    assert not torch.allclose(first.poses.quaternions, other.poses.quaternions)
    rows = torch.arange(5)
    noises = [p.images[rows] - clean_images(p, rows) for p in (first, other)]
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noises]))[0, 1])) < 0.1


def test_images_are_the_centred_ones_moved_by_minus_the_origin(molecule: Volume) -> None:
    particles = simulate(molecule, SimulationConfig(count=12, max_shift_pixel=3.0))
    assert isinstance(particles.images, SimulatedImages) and particles.poses is not None
    shifts = particles.poses.shifts_angstrom
    assert float(shifts.abs().max()) <= 3 * PIXEL_SIZE and float(shifts.abs().max()) > PIXEL_SIZE
    rows = torch.arange(12)
    centred_poses = replace(particles.poses, shifts_angstrom=torch.zeros_like(shifts))
    centred = replace(particles.images, poses=centred_poses, seed=None)[rows]
    expected = to_real(phase_shift(to_fourier(centred), -shifts / PIXEL_SIZE), BOX)
    torch.testing.assert_close(clean_images(particles, rows), expected, atol=1e-4, rtol=1e-3)


def test_a_whole_pixel_of_origin_moves_the_image_back(molecule: Volume) -> None:
    particles = simulate(molecule, SimulationConfig(count=1, max_shift_pixel=0.0))
    assert isinstance(particles.images, SimulatedImages) and particles.poses is not None
    origin = torch.tensor([[2 * PIXEL_SIZE, -1 * PIXEL_SIZE]])
    moved_images = replace(
        particles.images, poses=replace(particles.poses, shifts_angstrom=origin), seed=None
    )
    row = torch.tensor([0])
    expected = clean_images(particles, row).roll((1, -2), dims=(1, 2))
    torch.testing.assert_close(moved_images[row], expected, atol=1e-4, rtol=1e-3)


def test_random_orientations_are_uniform_and_grid_ones_even(molecule: Volume) -> None:
    random = simulate(molecule, SimulationConfig(count=576)).poses
    even = simulate(molecule, SimulationConfig(count=576, orientations="grid")).poses
    assert random is not None and even is not None
    for quaternions in (random.quaternions, even.quaternions):
        moment = 4 * quaternions.T @ quaternions / 576
        torch.testing.assert_close(moment, torch.eye(4), atol=0.25, rtol=0)

    def nearest(quaternions: torch.Tensor) -> torch.Tensor:
        distances = geodesic_distance(quaternions[:, None], quaternions[None])
        return (distances + 10 * torch.eye(len(quaternions))).min(1).values

    assert float(nearest(even.quaternions).min()) > 5 * float(nearest(random.quaternions).min())
    # It is the grid of that many rotations, turned as a whole.
    expected = nearest(rotation_grid(2)).sort().values
    torch.testing.assert_close(nearest(even.quaternions).sort().values, expected, atol=1e-3, rtol=1e-3)


def test_optics_lie_in_the_asked_range(molecule: Volume) -> None:
    config = SimulationConfig(
        count=100, min_defocus_angstrom=8000, max_defocus_angstrom=9000, max_astigmatism_angstrom=300
    )
    ctf = simulate(molecule, config).ctf
    assert ctf is not None
    mean = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2
    assert float(mean.min()) > 7999 and float(mean.max()) < 9001
    difference = ctf.defocus_u_angstrom - ctf.defocus_v_angstrom
    assert float(difference.min()) >= 0 and 200 < float(difference.max()) <= 300.01
    assert len(set(simulate(molecule, config).names)) == 100


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 0}, "count of at least 1 particle, found 0"),
        ({"snr": 0.0}, "snr above 0, found 0"),
        ({"snr": -1.0}, "snr above 0, found -1"),
        ({"snr": float("nan")}, "for snr, such as 0.1, found nan"),
        ({"max_shift_pixel": float("inf")}, "finite number for max_shift_pixel"),
        ({"seed": -1}, "seed of 0"),
        ({"min_defocus_angstrom": 2e4, "max_defocus_angstrom": 1e4}, "defocus"),
    ],
)
def test_settings_that_make_no_sense_are_refused(molecule: Volume, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        simulate(molecule, replace(SimulationConfig(), **changes))


def test_empty_and_odd_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="even box of 8 px or more, found 17"):
        simulate(Volume(torch.zeros(17, 17, 17), 5.0), SimulationConfig(count=3))
    with pytest.raises(ValueError, match="contrast"):
        simulate(Volume(torch.zeros(16, 16, 16), 5.0), SimulationConfig(count=3))
