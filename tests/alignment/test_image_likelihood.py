"""The likelihood as one object, judged by real space, finite differences and known poses."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import cryoforum as cf
from cryoforum.geometry.rotations import compose
from cryoforum.molecules.structures import load_structure

BOX, PIXEL_SIZE, COUNT = 32, 11.2, 10


@cache
def volume() -> cf.Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


@cache
def truth() -> cf.Poses:
    random = np.random.default_rng(0)
    matrices = Rotation.random(COUNT, rng=random).as_matrix()
    return cf.Poses.from_matrices(matrices, PIXEL_SIZE * random.uniform(-2, 2, (COUNT, 2)))


CTF = cf.CtfParameters.from_values(torch.linspace(15000, 25000, COUNT), 14500.0, 20.0)


@cache
def signal_deviation() -> float:
    return float(cf.project(volume(), truth(), CTF).std())


def particles(snr: float = torch.inf) -> cf.Particles:
    """Projections of deviation 1, plus noise."""
    clean = cf.project(volume(), truth(), CTF) / signal_deviation()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return cf.Particles.from_arrays(clean + snr**-0.5 * noise, PIXEL_SIZE, truth(), CTF)


def likelihood(noise: float) -> cf.ImageLikelihood:
    return cf.ImageLikelihood(volume(), noise, scale=1 / signal_deviation())


def moved(poses: cf.Poses, change: np.ndarray) -> cf.Poses:
    """Turned by ω (rad) about the axes of the view, and shifted (Å): SciPy's R exp[ω]."""
    matrices = Rotation.from_matrix(poses.matrices.double().numpy()) * Rotation.from_rotvec(change[:3])
    return cf.Poses.from_matrices(
        matrices.as_matrix(), poses.shifts_angstrom.double() + torch.from_numpy(change[3:])
    )


def test_log_likelihood_is_that_of_white_noise_in_real_space() -> None:
    some, wrong = particles(snr=1.0), moved(truth(), np.array([0.1, 0, 0.05, 3, -2]))
    own = likelihood(1.0)
    frequency = torch.fft.fftfreq(BOX, 1 / BOX)
    radius = torch.hypot(frequency[:, None], frequency[: BOX // 2 + 1].abs())
    compared = (radius <= own.reference.highest_frequency) & (radius > 0)

    def filtered(images: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(images) * compared)

    for poses in (truth(), wrong):
        images = filtered(some.images[torch.arange(COUNT)])
        model = filtered(cf.project(volume(), poses, CTF) / signal_deviation())
        expected = (images.square() - (images - model).square()).sum((1, 2)) / 2
        torch.testing.assert_close(own.log_likelihood(some, poses), expected, rtol=1e-3, atol=0.2)


def test_gradient_and_information_are_finite_differences() -> None:
    """Without noise the information is the curvature at the truth (half a turn of a trilinear read apart)."""
    own, some, near = likelihood(1.0), particles(), moved(truth(), np.array([0.03, -0.02, 0.03, 2, 1]))
    found, step = own.gradient(some, near).numpy(), np.array([4e-3, 4e-3, 4e-3, 0.1, 0.1])
    for axis, length in enumerate(step):
        change = length * np.eye(5)[axis]
        ahead, behind = (own.log_likelihood(some, moved(near, sign * change)) for sign in (1, -1))
        expected = (ahead - behind).numpy() / (2 * length)
        assert np.corrcoef(found[:, axis], expected)[0, 1] > 0.999
        assert np.median(found[:, axis] / expected) == pytest.approx(1, abs=0.02)
    information = own.information(some, truth()).numpy()
    for axis, length in enumerate(3 * step):
        change = length * np.eye(5)[axis]
        ahead, behind = (own.gradient(some, moved(truth(), sign * change)) for sign in (1, -1))
        slopes = (behind - ahead).numpy() / (2 * length)
        assert np.corrcoef(information[:, axis].flatten(), slopes.flatten())[0, 1] > 0.99
        assert np.median(information[:, axis, axis] / slopes[:, axis]) == pytest.approx(1, abs=0.1)


def test_autograd_agrees_with_the_compiled_gradient_and_reaches_the_map() -> None:
    some, near = particles(snr=1.0), moved(truth(), np.array([0.03, -0.02, 0.03, 2, 1]))
    voxels = volume().voxels.clone().requires_grad_()
    own = cf.ImageLikelihood(cf.Volume(voxels, PIXEL_SIZE), 1.0, scale=1 / signal_deviation())
    quaternions, shifts = near.quaternions.clone().requires_grad_(), near.shifts_angstrom.requires_grad_()
    for _ in range(2):  # what one call walked back through is there for the next
        total = own.log_likelihood(some, cf.Poses(quaternions, shifts)).sum()
        of_map, of_orientation, of_shift = torch.autograd.grad(total, (voxels, quaternions, shifts))
    expected = own.gradient(some, near)
    torch.testing.assert_close(of_shift, expected[:, 3:], rtol=1e-2, atol=0.05)
    for axis in range(3):
        half = torch.cat([0.5 * torch.eye(3)[axis], torch.zeros(1)])
        turned = (of_orientation * compose(near.quaternions, half)).sum(-1)
        torch.testing.assert_close(turned, expected[:, axis], rtol=1e-2, atol=2.0)
    uphill = cf.Volume((voxels + 1e-3 * of_map / of_map.abs().max() * voxels.std()).detach(), PIXEL_SIZE)
    better = cf.ImageLikelihood(uphill, 1.0, scale=1 / signal_deviation())
    pose = cf.Poses(near.quaternions, near.shifts_angstrom.detach())
    assert better.log_likelihood(some, pose).sum() > total


def test_search_and_refinement_find_the_poses() -> None:
    some, own = particles(snr=1.0), likelihood(1.0)
    found = own.search(some)
    assert float(found.poses.errors(truth()).median()) < 0.05
    start = moved(truth(), np.array([0.08, -0.05, 0.1, 6, -6]))
    refined = own.refine(some, start)
    assert float(refined.poses.errors(truth()).median()) < 0.05
    assert (own.log_likelihood(some, refined.poses) >= own.log_likelihood(some, start)).all()
    assert found.evidence is not None
    gains = own.log_likelihood(some, found.poses)
    torch.testing.assert_close(found.evidence.log_likelihood_gain, gains, rtol=1e-3, atol=0.2)


def test_noise_is_measured_where_poses_are_known() -> None:
    own = cf.ImageLikelihood.fitted(volume(), particles(snr=0.25))
    shells = slice(3, 12)
    deviation = own.noise_model.power[0, shells].mean().sqrt() / BOX
    assert float(deviation) == pytest.approx(2.0, rel=0.05)
    assert float(own.noise_model.scale[0, shells].median()) == pytest.approx(1 / signal_deviation(), rel=0.1)


def test_particles_do_not_measure_their_noise_by_a_map_of_their_own_half() -> None:
    """Each half of the reference holds the noise of its particles: here nothing else."""
    some = particles(snr=1.0)
    half_sets = torch.arange(COUNT) % 2 + 1
    own = cf.backproject(replace(some.select((half_sets == 1).nonzero()[:, 0]), half_sets=None))
    nothing = cf.Volume(torch.zeros_like(own.voxels), PIXEL_SIZE)
    reference = cf.Reference(own, (own, nothing), 10)
    first = replace(some.select((half_sets == 1).nonzero()[:, 0]), half_sets=torch.ones(COUNT // 2).long())
    noise = cf.ImageLikelihood.fitted(reference, first).noise_model
    assert float(noise.signal.max()) == 0
    assert float(cf.ImageLikelihood.fitted(own, first).noise_model.signal[0, 3:10].min()) > 0


def test_what_does_not_fit_is_refused() -> None:
    own, some = likelihood(1.0), particles()
    other = cf.Particles.from_arrays(torch.zeros(COUNT, BOX, BOX), 2 * PIXEL_SIZE)
    for wrong in (
        lambda: cf.ImageLikelihood(volume()),
        lambda: cf.ImageLikelihood(volume(), 0.0),
        lambda: cf.ImageLikelihood(volume(), own.noise_model, scale=2.0),
        lambda: own.log_likelihood(some, truth()[torch.arange(3)]),
        lambda: own.refine(some, truth()[torch.arange(3)]),
        lambda: own.gradient(other, truth()),
        lambda: own.search(other),
        lambda: cf.ImageLikelihood.fitted(volume(), other),
    ):
        with pytest.raises(cf.InputError, match="^expected .*, found"):
            wrong()
