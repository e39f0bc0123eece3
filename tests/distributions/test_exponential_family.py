"""The exponential family: orthonormal on rotations, a Bingham at degree 1, read out at its mode."""

import math

import pytest
import torch
from torch import Tensor

from cryoforum.distributions import exponential_family as harmonics
from cryoforum.distributions.bingham import OrientationPosterior, log_density
from cryoforum.distributions.exponential_family import least_degree, rotation_polynomials
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid


def random_rotations(count: int, seed: int = 0) -> Tensor:
    return random_unitquat(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_orthonormal_over_all_rotations(degree: int) -> None:
    features = rotation_polynomials(degree).features(random_rotations(200_000))
    gram = features.T @ features / len(features)
    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=0.03, rtol=0)


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_size_and_length_of_the_features(degree: int) -> None:
    polynomials = rotation_polynomials(degree)
    assert polynomials.size == math.comb(2 * degree + 3, 3)
    features = polynomials.features(random_rotations(50))
    # The addition theorem: an orthonormal basis of whole bands has the same length at every rotation.
    torch.testing.assert_close(
        features.square().sum(-1), torch.full((50,), float(polynomials.size)), rtol=1e-3, atol=0
    )


def test_both_quaternions_of_a_rotation_have_the_same_features() -> None:
    q = random_rotations(20)
    features = rotation_polynomials(3).features
    torch.testing.assert_close(features(-q), features(q))


def test_features_turn_rotations_into_a_kernel_of_their_distance() -> None:
    polynomials = rotation_polynomials(2)
    a, b, turn = random_rotations(3)
    moved = [compose(turn, q) for q in (a, b)]
    kernel = polynomials.features(a) @ polynomials.features(b)
    moved_kernel = polynomials.features(moved[0]) @ polynomials.features(moved[1])
    torch.testing.assert_close(moved_kernel, kernel, rtol=1e-3, atol=1e-3)


def test_degree_1_is_a_bingham() -> None:
    generator = torch.Generator().manual_seed(1)
    polynomials = rotation_polynomials(1)
    coefficients = torch.randn(10, generator=generator).double()
    # A fit of qᵀ A q to the log density at a few rotations ...
    q = random_rotations(40, seed=2).double()
    row, column = torch.triu_indices(4, 4)
    products = q[:, row] * q[:, column]
    energy = -(polynomials.features(q) @ coefficients)
    upper = torch.linalg.lstsq(products, energy[:, None]).solution[:, 0]
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[row, column] = upper
    matrix = (matrix + matrix.T) / 2
    # ... holds everywhere, so that density differences are those of that Bingham.
    new = random_rotations(100, seed=3).double()
    found = polynomials.features(new) @ coefficients
    expected = log_density(OrientationPosterior(matrix.expand(100, 4, 4)), new)
    torch.testing.assert_close(found - found[0], expected - expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("degree", [1, 3])
def test_the_posterior_has_its_mode_where_the_density_has(degree: int) -> None:
    polynomials = rotation_polynomials(degree)
    q = random_rotations(30, seed=4)
    grid = rotation_grid(4)
    posterior = polynomials.mode_posterior(polynomials.features(q), grid, polynomials.features(grid))
    assert float(geodesic_distance(posterior.mode, q).max()) < 1e-3


def test_more_evidence_makes_a_narrower_posterior() -> None:
    polynomials = rotation_polynomials(3)
    q = random_rotations(1, seed=5)
    grid = rotation_grid(4)
    coefficients = polynomials.features(q) * torch.tensor([[0.1], [1.0], [10.0]])
    trace = polynomials.mode_posterior(coefficients, grid, polynomials.features(grid)).trace
    torch.testing.assert_close(trace / trace[0], torch.tensor([1.0, 10.0, 100.0]), rtol=1e-2, atol=0)


def test_the_curvature_of_a_bingham_is_the_bingham() -> None:
    polynomials = rotation_polynomials(1)
    coefficients = torch.randn(5, 10, generator=torch.Generator().manual_seed(6)) * 5
    grid = rotation_grid(4)
    posterior = polynomials.mode_posterior(coefficients, grid, polynomials.features(grid))
    q = random_rotations(50, seed=7)
    log_densities = coefficients @ polynomials.features(q).T
    energies = torch.einsum("gi,nij,gj->ng", q, posterior.concentration, q)
    constant = log_densities + energies
    torch.testing.assert_close(constant, constant[:, :1].expand_as(constant), atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize(("degree", "symmetry"), [(1, "C1"), (5, "C1"), (8, "D2"), (4, "O")])
def test_values_are_those_of_the_features(degree: int, symmetry: str) -> None:
    polynomials = rotation_polynomials(degree, symmetry)
    points = random_rotations(6 * 7, seed=11).view(6, 7, 4)
    generator = torch.Generator().manual_seed(12)
    leaf = torch.randn(6, polynomials.size, generator=generator).requires_grad_()
    weights = torch.randn(6, 7, generator=generator)
    results = []
    for found in (
        polynomials.values(leaf, points),
        (polynomials.features(points) @ leaf[..., None])[..., 0],
    ):
        (gradient,) = torch.autograd.grad((weights * found).sum(), leaf)
        results.append((found.detach(), gradient))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_the_basis_does_not_hang_on_the_rounding_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models store coefficients in this basis; eigenvectors of equal eigenvalues differ between machines."""
    polynomials = rotation_polynomials(3)
    exact_eigh = torch.linalg.eigh
    noise = torch.randn(84, 84, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: exact_eigh(a * (1 + 1e-15 * (noise + noise.T))))
    elsewhere = harmonics.rotation_polynomials.__wrapped__(3)
    scale = float(polynomials.mixing.abs().max())
    torch.testing.assert_close(elsewhere.mixing, polynomials.mixing, atol=1e-5 * scale, rtol=0)


def test_a_degree_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="degree of 1 or more, found 0"):
        rotation_polynomials(0)


@pytest.mark.parametrize(
    ("symmetry", "degree"), [("C4", 4), ("D2", 3), ("D7", 7), ("T", 4), ("O", 6), ("I1", 6)]
)
def test_symmetric_features_are_orthonormal_and_alike_at_equivalent_rotations(
    symmetry: str, degree: int
) -> None:
    polynomials = rotation_polynomials(degree, symmetry)
    group = symmetry_group(symmetry, torch.float64)
    q = random_rotations(20, seed=11).double()
    features = polynomials.features(q)
    torch.testing.assert_close(
        polynomials.features(compose(group[:, None], q)),
        features.expand(len(group), -1, -1),
        atol=1e-4,
        rtol=0,
    )
    many = polynomials.features(random_rotations(100_000))
    gram = many.T @ many / len(many)
    torch.testing.assert_close(gram, torch.eye(polynomials.size), atol=0.03, rtol=0)


@pytest.mark.parametrize(("symmetry", "degree"), [("C2", 2), ("D3", 5), ("T", 6), ("O", 4), ("I3", 6)])
def test_nothing_invariant_is_left_out(symmetry: str, degree: int) -> None:
    """The kernel of the symmetric basis is the mean over the group of the kernel of all polynomials."""
    a, b = random_rotations(40, seed=12).view(2, 20, 4).double()
    group = symmetry_group(symmetry, torch.float64)
    everything, invariant = rotation_polynomials(degree), rotation_polynomials(degree, symmetry)
    mean = everything.features(compose(group[:, None], b)).mean(0)
    expected = everything.features(a) @ mean.T
    torch.testing.assert_close(invariant.features(a) @ invariant.features(b).T, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("symmetry", ["C3", "D1", "D2", "D5", "T", "O", "I2"])
def test_from_the_least_degree_on_features_tell_apart_what_is_not_equivalent(symmetry: str) -> None:
    least, group = least_degree(symmetry), symmetry_group(symmetry)
    q, others = random_rotations(1, seed=13), random_rotations(3000, seed=14)
    # Among the others are turns about every axis of the group by less than it allows.
    axes = torch.nn.functional.normalize(group[1:, :3], dim=-1)
    partial = torch.cat([0.15 * axes, torch.full((len(axes), 1), (1 - 0.15**2) ** 0.5)], dim=-1)
    others = torch.cat([others, compose(partial, q)])
    apart = symmetric_distance(q, others, group)
    features = rotation_polynomials(least, symmetry).features
    difference = (features(others) - features(q)).norm(dim=-1)
    assert float(apart.max()) > 0.3
    assert float((difference / apart)[apart > 0.1].min()) > 0.1
    with pytest.raises(
        ValueError, match=f"degree of {least} or more for symmetry {symmetry}, found {least - 1}"
    ):
        rotation_polynomials(least - 1, symmetry)


@pytest.mark.parametrize("symmetry", ["D2", "O", "I"])
def test_the_posterior_of_a_symmetric_density_is_at_one_of_its_equivalent_modes(symmetry: str) -> None:
    polynomials, group = rotation_polynomials(6, symmetry), symmetry_group(symmetry)
    q = random_rotations(20, seed=15)
    grid = rotation_grid(6)
    posterior = polynomials.mode_posterior(polynomials.features(q), grid, polynomials.features(grid))
    assert float(symmetric_distance(posterior.mode, q, group).max()) < 1e-3
    assert float(posterior.trace.max()) < -1


def test_the_higher_of_two_sharp_peaks_is_found_between_the_rotations_of_the_grid() -> None:
    polynomials = rotation_polynomials(8)
    grid = rotation_grid(4)  # 15° apart: coarse for peaks of degree 16
    features = polynomials.features(grid)
    on_grid = grid[100:140]
    away = compose(grid[2000:2040], torch.tensor([0.03, 0.05, 0.04, 0.9975]))  # as far off as can be
    away = away / away.norm(dim=-1, keepdim=True)
    high, low = polynomials.features(away), polynomials.features(on_grid)
    coefficients = (1.03 * high + low) / 20
    looks_lower = (coefficients * low).sum(-1) > (coefficients @ features.T)[:, 1900:2140].amax(-1)
    assert bool(looks_lower.any())
    mode = polynomials.mode_posterior(coefficients, grid, features).mode
    found = (coefficients * polynomials.features(mode)).sum(-1)
    assert bool((found >= (coefficients * high).sum(-1) - 1e-3).all())
