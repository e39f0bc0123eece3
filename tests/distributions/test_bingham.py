"""The Bingham posterior against quadrature, Monte Carlo and its own laws."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special
from torch.nn.functional import normalize

from cryoforum.distributions.bingham import (
    OrientationPosterior,
    likeliest_sharpness,
    log_density,
    log_normalising_constant,
    posterior_from_curvature,
    posterior_from_moment,
    psd_from_lower_triangle,
    smallest_eigenvector,
    tangent_basis,
)
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat


def random_posterior(count: int, seed: int = 0, scale: float = 3.0) -> OrientationPosterior:
    numbers = scale * torch.randn(count, 10, generator=torch.Generator().manual_seed(seed))
    return OrientationPosterior(psd_from_lower_triangle(numbers))


def sharp_posterior(mode: torch.Tensor, concentration: float) -> OrientationPosterior:
    """The same confidence about every axis: A = concentration · (1 - q qᵀ)."""
    projection = torch.eye(4) - mode[:, :, None] * mode[:, None, :]
    return OrientationPosterior(concentration * projection)


@pytest.mark.parametrize(
    "exponents", [[0, 0, 0, 0], [-5, -3, -1, 0], [-40, -40, -2, 0], [-2, -1, 3, 8], [-12, -6, -6, -6]]
)
def test_the_log_normalising_constant_agrees_with_monte_carlo(exponents: list[float]) -> None:
    values = torch.tensor([exponents], dtype=torch.float64)
    quaternions = random_unitquat(2_000_000, generator=torch.Generator().manual_seed(0))
    samples = torch.exp((quaternions.double().square() * values).sum(-1))
    expected = math.log(2 * math.pi**2 * float(samples.mean()))
    error = float(samples.std() / samples.mean()) / math.sqrt(len(samples))
    assert float(log_normalising_constant(values)) == pytest.approx(expected, abs=4 * error + 1e-9)


@pytest.mark.parametrize(
    "exponents",
    [[-3, -2, -1, 0], [-100, -50, -20, 0], [-900, -900, -900, 0], [-900, -1, -1, 0], [-900, -5, 0, 0]],
)
def test_the_log_normalising_constant_agrees_with_adaptive_quadrature(exponents: list[float]) -> None:
    l1, l2, l3, l4 = exponents

    def integrand(u: float) -> float:
        s = math.sin(u) ** 2
        high, low = s * (l4 - l3) / 2, (1 - s) * (l2 - l1) / 2
        exponent = s * (l3 + l4) / 2 + (1 - s) * (l1 + l2) / 2 + high + low
        return math.exp(exponent) * special.i0e(high) * special.i0e(low) * math.sin(2 * u)

    points = [math.pi / 2 - 0.1, math.pi / 2 - 0.02]
    integral, _ = integrate.quad(integrand, 0, math.pi / 2, points=points, epsabs=0, epsrel=1e-10, limit=400)
    expected = math.log(2 * math.pi**2 * integral)
    found = log_normalising_constant(torch.tensor([exponents], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_log_normalising_constant_shifts_with_its_exponents_and_is_differentiable() -> None:
    exponents = torch.tensor([[-30.0, -7.0, -2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        log_normalising_constant(exponents + 5), log_normalising_constant(exponents) + 5
    )
    assert torch.autograd.gradcheck(log_normalising_constant, (exponents,))
    (moments,) = torch.autograd.grad(log_normalising_constant(exponents).sum(), exponents)
    assert float(moments.sum()) == pytest.approx(1)  # E[qᵢ²] of a unit quaternion


@pytest.mark.parametrize("exponents", [[0, 0, 0, 0], [-4, -4, 0, 0], [-9, -2, 0, 0], [-5, -5, -1, 0]])
def test_moments_are_right_where_exponents_are_equal(exponents: list[float]) -> None:
    values = torch.tensor([exponents], dtype=torch.float64, requires_grad=True)
    (moments,) = torch.autograd.grad(log_normalising_constant(values).sum(), values)
    quaternions = random_unitquat(400_000, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.softmax((quaternions.square() * values.detach()).sum(-1), dim=0)
    torch.testing.assert_close(moments[0], weights @ quaternions.square(), atol=3e-3, rtol=0)


def test_density_integrates_to_one() -> None:
    quaternions = random_unitquat(20_000, generator=torch.Generator().manual_seed(1))
    posterior = random_posterior(1, scale=1.0)
    spread = OrientationPosterior(posterior.concentration.expand(len(quaternions), 4, 4))
    mean = torch.exp(log_density(spread, quaternions)).double().mean()
    assert float(mean) * 2 * math.pi**2 == pytest.approx(1, abs=0.05)


def test_triangle_makes_positive_matrices_row_by_row() -> None:
    numbers = torch.arange(1.0, 11.0)[None]
    lower = np.array([[1, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 0], [7, 8, 9, 10]], dtype=np.float32)
    np.testing.assert_allclose(psd_from_lower_triangle(numbers)[0].numpy(), lower @ lower.T)
    assert (torch.linalg.eigvalsh(random_posterior(20).concentration.double()) > -1e-4).all()


def test_smallest_eigenvector_minimises_the_energy() -> None:
    matrices = random_posterior(30).concentration.double()
    mode = smallest_eigenvector(matrices)
    energy = torch.einsum("ni,nij,nj->n", mode, matrices, mode)
    torch.testing.assert_close(energy, torch.linalg.eigvalsh(matrices)[:, 0])


def test_smallest_eigenvector_has_the_right_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)).Q
    matrices = basis * torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64) @ basis.mT
    target = random_unitquat(3, generator=generator).double()

    def squared_overlap(numbers: torch.Tensor) -> torch.Tensor:
        # Symmetric inputs only, and a result that does not depend on the eigenvector's sign.
        return (smallest_eigenvector((numbers + numbers.mT) / 2) * target).sum(-1).square()

    assert torch.autograd.gradcheck(squared_overlap, (matrices.requires_grad_(),))


@pytest.mark.parametrize("eigenvalues", [[1, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1 + 1e-7, 5, 5]])
def test_gradient_stays_finite_at_equal_eigenvalues(eigenvalues: list[float]) -> None:
    matrix = torch.diag(torch.tensor(eigenvalues, dtype=torch.float32))[None].requires_grad_()
    target = random_unitquat(1, generator=torch.Generator().manual_seed(0))
    (smallest_eigenvector(matrix) * target).sum().square().backward()
    assert matrix.grad is not None and matrix.grad.isfinite().all()


def test_posteriors_add_as_densities_multiply() -> None:
    first, second = random_posterior(6, 1, 1.0), random_posterior(6, 2, 1.0)
    both = first + second
    torch.testing.assert_close(both.concentration, first.concentration + second.concentration)
    one, other = (random_unitquat(6, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
    ratio = log_density(both, one) - log_density(both, other)
    separate = sum(
        log_density(posterior, one) - log_density(posterior, other) for posterior in (first, second)
    )
    torch.testing.assert_close(ratio, separate, atol=1e-3, rtol=1e-4)


def test_agreeing_evidence_is_surer_and_keeps_the_mode() -> None:
    posterior = random_posterior(10)
    twice = posterior + posterior
    assert float(geodesic_distance(posterior.mode, twice.mode).max()) < 1e-3
    assert (twice.mode_moment > posterior.mode_moment).all()
    torch.testing.assert_close(twice.dispersion, 2 * posterior.dispersion, atol=1e-3, rtol=1e-4)


def test_dispersion_is_never_positive_and_ascends() -> None:
    posterior = random_posterior(50)
    assert (posterior.dispersion <= 0).all()
    assert (posterior.dispersion.diff(dim=-1) >= 0).all()
    assert torch.equal(posterior.lambda_max, posterior.dispersion[:, 2])
    torch.testing.assert_close(posterior.trace, posterior.dispersion.sum(-1))


def test_the_eigengap_is_that_of_the_two_smallest_eigenvalues() -> None:
    posterior = random_posterior(20, seed=9)
    eigenvalues = np.linalg.eigvalsh(posterior.concentration.double().numpy())
    np.testing.assert_allclose(posterior.eigengap, eigenvalues[:, 1] - eigenvalues[:, 0], rtol=1e-3)


def test_dispersion_does_not_depend_on_a_constant_on_the_diagonal() -> None:
    posterior = random_posterior(5)
    raised = posterior + OrientationPosterior(7 * torch.eye(4).expand(5, 4, 4))
    torch.testing.assert_close(raised.dispersion, posterior.dispersion, atol=1e-3, rtol=1e-4)


def test_mode_moment_goes_from_a_quarter_to_one() -> None:
    mode = random_unitquat(1, generator=torch.Generator().manual_seed(0))
    moments = [float(sharp_posterior(mode, value).mode_moment) for value in (0.0, 0.1, 1.0, 10.0, 1e2, 1e4)]
    assert moments[0] == pytest.approx(0.25, abs=1e-6)
    assert moments == sorted(moments) and moments[-1] > 0.999
    # Where sharp, each of three directions has variance 1 / (2 · concentration).
    assert moments[4] == pytest.approx(1 - 3 / 200, abs=1e-3)


def test_mode_moment_is_the_mean_over_the_density() -> None:
    posterior = random_posterior(1, scale=1.0)
    quaternions = random_unitquat(400_000, generator=torch.Generator().manual_seed(2))
    energy = torch.einsum("ni,ij,nj->n", quaternions, posterior.concentration[0], quaternions)
    weights = torch.softmax(-energy.double(), dim=0)
    expected = (weights * (quaternions @ posterior.mode[0]).double().square()).sum()
    assert float(posterior.mode_moment) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize(
    "widths", [(0.0, 0.0, 0.0), (1.0, 2.0, 3.0), (20.0, 20.0, 20.0), (0.1, 50.0, 50.0), (2.0, 300.0, 300.0)]
)
def test_the_root_mean_square_angle_is_that_of_the_density(widths: tuple[float, ...]) -> None:
    concentration = torch.diag(torch.tensor([0.0, *widths], dtype=torch.float64))
    quaternions = random_unitquat(1_000_000, generator=torch.Generator().manual_seed(2)).double()
    weights = torch.softmax(-(quaternions.square() @ concentration.diagonal()), dim=0)
    angles = 2 * torch.acos(quaternions[:, 0].abs().clamp(max=1))
    expected = float((weights * angles.square()).sum().sqrt())
    assert float(OrientationPosterior(concentration[None]).root_mean_square_angle) == pytest.approx(
        expected, rel=0.02
    )


def test_the_root_mean_square_angle_of_nothing_and_of_narrow_densities() -> None:
    concentration = torch.zeros(41, 4, 4, dtype=torch.float64)
    strengths = torch.logspace(1.5, 8, 40, dtype=torch.float64)
    concentration[1:, 1:, 1:] = strengths[:, None, None] * torch.eye(3, dtype=torch.float64)
    found = OrientationPosterior(concentration).root_mean_square_angle
    assert float(found[0]) == pytest.approx((math.pi**2 / 3 + 2) ** 0.5, abs=1e-6)  # of uniform rotations
    # Each of three half angles has variance 1 / (2 · strength), to first order.
    assert torch.all((found[1:] / (6 / strengths).sqrt() - 1).abs() < 1 / strengths + 2e-3)


def test_tangent_basis_is_orthonormal_and_orthogonal_to_the_rotation() -> None:
    quaternions = random_unitquat(8, generator=torch.Generator().manual_seed(0))
    basis = tangent_basis(quaternions)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3).expand(8, 3, 3))
    torch.testing.assert_close((basis.mT @ quaternions[..., None]), torch.zeros(8, 3, 1))


def test_posterior_from_curvature_has_that_mode_and_curvature() -> None:
    mode = random_unitquat(4, generator=torch.Generator().manual_seed(0))
    curvature = torch.diag(torch.tensor([50.0, 80.0, 200.0])).expand(4, 3, 3)
    posterior = posterior_from_curvature(mode, curvature)
    assert float(geodesic_distance(posterior.mode, mode).max()) < 1e-3
    expected = -torch.tensor([200.0, 80.0, 50.0]) / 2
    torch.testing.assert_close(posterior.dispersion, expected.expand(4, 3), atol=1e-2, rtol=1e-3)


def test_directions_without_information_stay_open() -> None:
    mode = random_unitquat(1, generator=torch.Generator().manual_seed(0))
    posterior = posterior_from_curvature(mode, torch.diag(torch.tensor([-3.0, 0.0, 100.0]))[None])
    assert (posterior.dispersion <= 0).all()
    assert float(posterior.lambda_max) == pytest.approx(-0.005, abs=1e-3)


def moments_of(posterior: OrientationPosterior) -> torch.Tensor:
    """E q qᵀ of each posterior, (n, 4, 4) float64, by the derivatives of the normalising constant."""
    eigenvalues, directions = torch.linalg.eigh(-posterior.concentration.double())
    leaf = eigenvalues.detach().requires_grad_()
    (squares,) = torch.autograd.grad(log_normalising_constant(leaf).sum(), leaf)
    return directions * squares[:, None, :] @ directions.mT


def test_nothing_known_is_a_flat_posterior() -> None:
    posterior = posterior_from_moment(torch.eye(4)[None] / 4)
    torch.testing.assert_close(posterior.concentration, torch.zeros(1, 4, 4), atol=1e-6, rtol=0)
    assert float(posterior.mode_moment) == pytest.approx(0.25, abs=1e-6)


def test_a_narrow_posterior_is_found_again_from_its_moment() -> None:
    mode = random_unitquat(6, generator=torch.Generator().manual_seed(0))
    curvature = torch.diag(torch.tensor([400.0, 900.0, 4000.0])).expand(6, 3, 3)
    posterior = posterior_from_curvature(mode, curvature)
    found = posterior_from_moment(moments_of(posterior))
    assert float(geodesic_distance(found.mode.float(), mode).max()) < 1e-3
    torch.testing.assert_close(found.dispersion, posterior.dispersion.double(), rtol=0.02, atol=0)
    torch.testing.assert_close(found.mode_moment, posterior.mode_moment.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("concentration", [0.1, 1.0, 5.0, 30.0, 300.0])
def test_a_posterior_from_its_own_moment_has_about_that_moment(concentration: float) -> None:
    """Exact at both ends, where nothing and where all is known, and never far off between them."""
    mode = random_unitquat(3, generator=torch.Generator().manual_seed(1))
    posterior = sharp_posterior(mode, concentration)
    moment = moments_of(posterior)
    found = moments_of(posterior_from_moment(moment))
    torch.testing.assert_close(found, moment, atol=0.12, rtol=0)
    assert float(geodesic_distance(posterior_from_moment(moment).mode.float(), mode).max()) < 0.01


def test_turning_a_moment_turns_the_posterior() -> None:
    moment = moments_of(random_posterior(5))
    turn = torch.linalg.qr(
        torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ).Q
    straight, turned = posterior_from_moment(moment), posterior_from_moment(turn @ moment @ turn.T)
    expected = turn @ straight.concentration @ turn.T
    scale = float(expected.abs().max())
    torch.testing.assert_close(turned.concentration, expected, atol=1e-6 * scale, rtol=1e-6)


def test_a_wider_moment_is_a_less_certain_posterior() -> None:
    sharp = moments_of(sharp_posterior(random_unitquat(1, generator=torch.Generator().manual_seed(0)), 50.0))
    flat = torch.eye(4, dtype=torch.float64) / 4
    merits = [
        float(posterior_from_moment((1 - share) * sharp + share * flat).mode_moment)
        for share in (0.0, 0.05, 0.2, 0.5, 0.9, 1.0)
    ]
    assert merits == sorted(merits, reverse=True) and merits[0] > merits[-1] + 0.5


def test_a_moment_of_one_point_gives_a_finite_posterior() -> None:
    mode = random_unitquat(2, generator=torch.Generator().manual_seed(0))
    posterior = posterior_from_moment(mode[:, :, None] * mode[:, None, :])
    assert bool(posterior.concentration.isfinite().all())
    assert float(geodesic_distance(posterior.mode, mode).max()) < 1e-2


def test_rows_are_chosen_and_counted() -> None:
    posterior = random_posterior(5)
    assert len(posterior) == 5
    assert torch.equal(posterior[torch.tensor([3, 1])].concentration, posterior.concentration[[3, 1]])


def test_the_likeliest_sharpness_undoes_too_much_certainty() -> None:
    """Of orientations drawn from posteriors that are then said to be k times as sure, 1/k is the likeliest."""
    generator = torch.Generator().manual_seed(4)
    mode = random_unitquat(1500, generator=generator)
    deviation = 0.01 + 0.05 * torch.rand(1500, 1, generator=generator)
    steps = deviation * torch.randn(1500, 3, generator=generator)
    drawn = normalize(mode + torch.einsum("nij,nj->ni", tangent_basis(mode), steps), dim=1)
    right = posterior_from_curvature(mode, torch.eye(3) / deviation[..., None].square())
    for wrong in (0.5, 1.0, 4.0):
        posterior = OrientationPosterior(wrong * right.concentration)
        assert likeliest_sharpness(posterior, drawn) == pytest.approx(1 / wrong, rel=0.06)
