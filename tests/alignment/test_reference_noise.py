"""A noisy map makes poses err more than the bound says, by what its half maps tell."""

from dataclasses import replace

import pytest
import torch

from cryoforum.alignment.config import AlignmentConfig
from cryoforum.alignment.fitting import fitted_aligner
from cryoforum.alignment.reference_noise import variance_factor
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.pose_errors import orientation_errors
from cryoforum.dataset.predictions import Predictions
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.reference_map import Reference, reference_from_map, reference_from_particles
from cryoforum.simulation.config import SimulationConfig
from cryoforum.simulation.ideal import simulate

BOX, PIXEL_SIZE, SNR = 48, 7.0, 0.3
LEARNED, NEW = 240, 2000


def particles(count: int, seed: int) -> Particles:
    config = SimulationConfig(count=count, snr=SNR, max_shift_pixel=1.0, seed=seed)
    found = simulate(load_structure("4v5d", BOX, PIXEL_SIZE), config)
    return replace(found, images=found.images[torch.arange(count)])


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_from_particles(particles(LEARNED, seed=1))


@pytest.fixture(scope="module")
def new() -> Particles:
    found = particles(NEW, seed=2)
    return replace(found, half_sets=torch.arange(NEW) % 2 + 1)


@pytest.mark.parametrize("own_half_maps", [False, True])
def test_errors_are_as_large_as_is_stated(reference: Reference, new: Particles, own_half_maps: bool) -> None:
    """From the true poses on, so that what is tested is the error about a mode, and nothing else."""
    config = AlignmentConfig(max_shift_pixel=1.0)
    aligner = fitted_aligner(reference, new, None, config, own_half_maps=own_half_maps)
    found = aligner.align_batch_from_poses(new)
    assert new.poses is not None
    errors = orientation_errors(found.posterior.mode, new.poses.quaternions)
    bound = bound_of(found)
    measured = float(errors.square().mean() / bound.square().mean())
    assert measured > 1.1  # else there is nothing to count
    stated = float(found.expected_error_rad.square().mean() / bound.square().mean())
    assert stated == pytest.approx(measured, rel=0.12)
    posterior = found.posterior.root_mean_square_angle
    torch.testing.assert_close(posterior.median(), found.expected_error_rad.median(), rtol=0.05, atol=0)


def bound_of(found: Predictions) -> torch.Tensor:
    assert found.evidence is not None
    return found.evidence.bound_rad


def test_half_maps_are_noisier_than_the_whole(reference: Reference, new: Particles) -> None:
    assert reference.noise is not None
    whole, half = (variance_factor(reference, reference.noise, new, own) for own in (False, True))
    assert 1.03 < whole < half


def test_a_map_without_noise_adds_nothing(reference: Reference, new: Particles) -> None:
    noise = reference.noise
    assert noise is not None
    clean = replace(
        reference, halves=(reference.full, reference.full), fsc=torch.ones(BOX // 2 + 1, dtype=torch.float64)
    )
    assert variance_factor(clean, noise, new, own_half_maps=True) == pytest.approx(1, abs=1e-4)
    elsewhere = reference_from_map(reference.full)
    assert variance_factor(elsewhere, noise, new, own_half_maps=False) == 1
