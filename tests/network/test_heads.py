"""Heads: each reads the rotation that its name stands for, and its density is one."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum.choices import HEADS
from cryoforum.config import NetworkConfig, TrainingConfig
from cryoforum.distributions.log_z_training import POINT_SETS
from cryoforum.geometry.point_groups import (
    asymmetric_unit,
    nearest_equivalent,
    symmetric_distance,
    symmetry_group,
)
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat, unitquat_to_rotmat
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.heads import Head, head_of
from cryoforum.network.matrix_heads import procrustes_matrix
from cryoforum.runtime.devices import Compute

MATRIX_HEADS = ("quaternion", "gram_schmidt", "qcqp", "symmetric", "svd")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grids(nside: int, count: int) -> TrainingConfig:
    return TrainingConfig(grid_nside=nside, grid_count=count)


def rotations(count: int, seed: int = 0) -> Tensor:
    return random_unitquat(count, generator=seeded(seed)).double()


def head(name: str, symmetry: str = "C1", degree: int = 3, nside: int = 2) -> Head:
    return head_of(NetworkConfig(head=name, degree=degree, head_nside=nside), symmetry)


def random_numbers(name: str, count: int = 100, seed: int = 0) -> Tensor:
    return torch.randn(count, head(name).size, generator=seeded(seed), dtype=torch.float64)


def angles(quaternions: Tensor, matrices: NDArray) -> NDArray:
    """Between rotations, as SciPy measures it."""
    return (Rotation.from_quat(quaternions.numpy()).inv() * Rotation.from_matrix(matrices)).magnitude()


def lower_triangles(numbers: Tensor) -> NDArray:
    result = np.zeros((len(numbers), 4, 4))
    result[:, *np.tril_indices(4)] = numbers
    return result


def svd_rotations(numbers: Tensor) -> NDArray:
    u, _, vt = np.linalg.svd(numbers.view(-1, 3, 3).numpy())
    signs = np.ones((len(numbers), 3))
    signs[:, 2] = np.linalg.det(u @ vt)
    return (u * signs[:, None]) @ vt


def gram_schmidt_rotations(numbers: Tensor) -> NDArray:
    first, second = numbers[:, :3].numpy(), numbers[:, 3:].numpy()
    x = first / np.linalg.norm(first, axis=1, keepdims=True)
    y = second - (x * second).sum(1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def quaternion_rotations(numbers: Tensor) -> NDArray:
    return Rotation.from_quat(numbers.numpy()).as_matrix()


def qcqp_rotations(numbers: Tensor) -> NDArray:
    lower = lower_triangles(numbers)
    return Rotation.from_quat(np.linalg.eigh(lower @ lower.transpose(0, 2, 1))[1][:, :, 0]).as_matrix()


def symmetric_rotations(numbers: Tensor) -> NDArray:
    return Rotation.from_quat(np.linalg.eigh(lower_triangles(numbers))[1][:, :, 0]).as_matrix()


JUDGES: dict[str, Callable[[Tensor], NDArray]] = {
    "quaternion": quaternion_rotations,
    "gram_schmidt": gram_schmidt_rotations,
    "qcqp": qcqp_rotations,
    "symmetric": symmetric_rotations,
    "svd": svd_rotations,
}


@pytest.mark.parametrize("name", MATRIX_HEADS)
def test_the_orientation_is_the_one_that_the_head_is_named_after(name: str) -> None:
    numbers = random_numbers(name, 500)
    found = head(name).orientation(numbers)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(500, dtype=torch.float64))
    assert angles(found, JUDGES[name](numbers)).max() < 1e-6
    assert float(geodesic_distance(found, head(name).posterior(numbers).mode).max()) < 1e-6
    if name == "svd":  # of which half are nearer to a mirror image
        assert 150 < int((torch.linalg.det(numbers.view(-1, 3, 3)) < 0).sum()) < 350


def test_the_matrix_of_nine_numbers_is_davenports() -> None:
    numbers, q = random_numbers("svd"), rotations(100, seed=1)
    energy = torch.einsum("ni,nij,nj->n", q, procrustes_matrix(numbers), q)
    turned = Rotation.from_quat(q.numpy()).as_matrix()
    np.testing.assert_allclose(energy, -(numbers.view(-1, 3, 3).numpy() * turned).sum((1, 2)), atol=1e-6)


@pytest.mark.parametrize("name", MATRIX_HEADS)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_length_of_the_numbers_is_no_part_of_the_orientation(name: str, scale: float) -> None:
    numbers = random_numbers(name)
    found = geodesic_distance(head(name).orientation(scale * numbers), head(name).orientation(numbers))
    assert float(found.max()) < 1e-6


@pytest.mark.parametrize("name", MATRIX_HEADS)
def test_the_derivative_of_the_orientation_is_that_of_finite_differences(name: str) -> None:
    def projector(numbers: Tensor) -> Tensor:  # q qᵀ, which has no sign
        q = head(name).orientation(numbers)
        return q[:, :, None] * q[:, None, :]

    numbers = random_numbers(name, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(projector, numbers, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["usual", "zero", "one", "parallel", "tiny", "huge"])
@pytest.mark.parametrize("name", list(HEADS))
def test_gradients_are_finite_wherever_a_network_may_go(name: str, kind: str) -> None:
    usual = torch.randn(6, head(name).size, generator=seeded(2))
    numbers = {
        "usual": usual,
        "zero": 0 * usual,
        "one": torch.ones_like(usual),  # columns, rows and eigenvalues that coincide
        "parallel": usual[:, :3].repeat(1, head(name).size // 3 + 1)[:, : head(name).size],
        "tiny": 1e-6 * usual,
        "huge": 1e4 * usual,
    }[kind]
    numbers = numbers.clone().requires_grad_()
    geodesic_distance(head(name).orientation(numbers), rotations(6).float()).sum().backward()
    assert numbers.grad is not None and bool(torch.isfinite(numbers.grad).all())
    numbers.grad = None
    likelihood = head(name).likelihood(grids(2, 1), seeded(), Compute())
    likelihood(numbers, rotations(6).float(), 0).backward()
    assert numbers.grad is not None and bool(torch.isfinite(numbers.grad).all())


@pytest.mark.parametrize(
    "matrix",
    [[-1.0, -1.0, -1.0, 0.0], [-2.0, -2.0, -1.0, 1e-9], [-1.0, -1.0, -1.0, -1.0], [-3.0, -3.0, -1.0, 0.0]],
)
def test_equal_smallest_eigenvalues_of_any_sign_give_gradients_of_a_useful_size(matrix: list[float]) -> None:
    numbers = torch.zeros(1, 10)
    numbers[0, [0, 2, 5, 9]] = torch.tensor(matrix)
    numbers.requires_grad_()
    head("symmetric").orientation(numbers).sum().backward()
    assert numbers.grad is not None and float(numbers.grad.abs().max()) < 1e6


# Numbers of a rotation, continuous: none exist for three or four numbers (Zhou et al. 2019).
SECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram_schmidt": lambda q: unitquat_to_rotmat(q)[:, :, :2].mT.flatten(1),
    "svd": lambda q: unitquat_to_rotmat(q).flatten(1),
    "symmetric": lambda q: lower_part(-q[:, :, None] * q[:, None, :]),
    "qcqp": lambda q: lower_part(torch.linalg.cholesky(1.01 * torch.eye(4) - q[:, :, None] * q[:, None, :])),
}


def lower_part(matrices: Tensor) -> Tensor:
    return matrices[:, *torch.tril_indices(4, 4)]


@pytest.mark.parametrize("name", list(SECTIONS))
def test_a_full_turn_is_a_closed_path_of_numbers_without_jumps(name: str) -> None:
    """Continuity as Zhou et al. (2019) define it: every rotation has numbers that move as it moves."""
    angle = torch.linspace(0, 2 * math.pi, 361, dtype=torch.float64)
    for start, axis in zip(rotations(4), rotations(4, seed=1)[:, :3], strict=True):
        direction = torch.nn.functional.normalize(axis, dim=0)
        turns = torch.cat([torch.sin(angle / 2)[:, None] * direction, torch.cos(angle / 2)[:, None]], dim=1)
        path = compose(turns, start)
        assert float((path[0] + path[-1]).norm()) < 1e-6  # once around: the quaternion changes its sign
        numbers = SECTIONS[name](path)
        torch.testing.assert_close(numbers[0], numbers[-1])
        assert float((numbers[1:] - numbers[:-1]).norm(dim=1).max()) < 0.2
        assert float(geodesic_distance(head(name).orientation(numbers), path).max()) < 1e-5


@pytest.mark.parametrize("name", MATRIX_HEADS)
def test_orientations_move_in_smaller_steps_where_numbers_do(name: str) -> None:
    corners = random_numbers(name, 7, seed=4)
    corners[-1] = corners[0]

    def largest_step(count: int) -> float:
        share = torch.linspace(0, 1, count + 1, dtype=torch.float64)[:, None]
        path = torch.cat([start + share * (end - start) for start, end in pairwise(corners)])
        q = head(name).orientation(path)
        return float(geodesic_distance(q[1:], q[:-1]).max())

    assert largest_step(16_000) < 0.3 * largest_step(4000) < 0.06


@pytest.mark.parametrize("name", MATRIX_HEADS)
def test_the_likelihood_of_a_matrix_is_normalised_over_all_rotations(name: str) -> None:
    chosen, numbers = head(name), random_numbers(name, 5, seed=3)
    everywhere = rotation_grid(8).double()
    log_mean = chosen.log_density(numbers, chosen.features(everywhere)).logsumexp(1) - math.log(
        len(everywhere)
    )
    truth = rotations(5, seed=5)
    expected = chosen.log_density(numbers, chosen.features(truth)).diagonal() - log_mean
    likelihood = chosen.likelihood(grids(2, 1), seeded(), Compute())
    for row in range(5):
        one = slice(row, row + 1)
        assert float(likelihood(numbers[one], truth[one], 0)) == pytest.approx(float(expected[row]), abs=0.02)
    torch.testing.assert_close(likelihood(numbers, truth, 0), expected.mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
@pytest.mark.parametrize("name", [*MATRIX_HEADS, "exponential_family"])
def test_no_truth_is_as_likely_as_the_orientation(name: str, symmetry: str) -> None:
    chosen = head(name, symmetry)
    likelihood = chosen.likelihood(grids(2, 1), seeded(), Compute())
    numbers = torch.randn(3, chosen.size, generator=seeded(6))
    for row in range(3):
        one = numbers[row : row + 1]
        best = float(likelihood(one, chosen.orientation(one), 0))
        others = [float(likelihood(one, q[None], 0)) for q in rotations(50, seed=7).float()]
        assert max(others) <= best + 1e-4 and min(others) < best - 0.1


@pytest.mark.parametrize(
    ("name", "tolerance"), [*((name, 1e-3) for name in MATRIX_HEADS), ("exponential_family", 0.1)]
)
def test_scores_of_rotations_are_the_likelihood_but_for_a_constant(name: str, tolerance: float) -> None:
    """What posing adds to the comparison with a reference is what training made likely."""
    chosen, truth = head(name), rotation_grid(1)
    numbers = 0.5 * torch.randn(1, chosen.size, generator=seeded(8))
    score = chosen.log_density(numbers, chosen.features(truth))[0]
    likelihood = chosen.likelihood(grids(6, 1), seeded(), Compute())
    found = torch.stack([likelihood(numbers, q[None], 0) for q in truth])
    assert float(score.max() - score.min()) > 0.4
    torch.testing.assert_close(found - found[0], score - score[0], atol=tolerance, rtol=1e-3)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "O"])
def test_there_is_a_logit_for_each_rotation_of_one_asymmetric_unit(symmetry: str) -> None:
    grid = 12 * 4**2 * 6 * 4
    size, order = head("softmax_grid", symmetry, nside=4).size, len(symmetry_group(symmetry))
    assert size == pytest.approx(grid / order, rel=0.1) and (order > 1 or size == grid)


def grid_of(chosen: Head) -> Tensor:
    """The rotations of its logits: of each the one with the largest score where its own logit stands out."""
    everywhere = rotation_grid(2)
    places = chosen.features(everywhere)
    first = [int((places == place).nonzero()[0]) for place in range(chosen.size)]
    return everywhere[first]


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_a_logit_that_stands_out_makes_its_rotation_the_best_truth_and_the_orientation(symmetry: str) -> None:
    chosen, group = head("softmax_grid", symmetry), symmetry_group(symmetry)
    grid = grid_of(chosen)
    likelihood = chosen.likelihood(grids(2, 1), seeded(), Compute())
    for place in range(0, chosen.size, chosen.size // 5):
        numbers = torch.zeros(1, chosen.size)
        numbers[0, place] = 12
        found = torch.stack([likelihood(numbers, q[None], 0) for q in grid])
        assert int(found.argmax()) == place
        assert float(found.sort().values[-2]) < float(found.max()) - 0.1
        near = symmetric_distance(chosen.orientation(numbers), grid[place], group)
        assert float(torch.rad2deg(near)) < 1
        best = chosen.posterior(numbers)
        assert float(symmetric_distance(best.mode, chosen.orientation(numbers), group)) < 1e-3
        assert float(best.trace) < float(chosen.posterior(numbers / 3).trace) < 0


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_logits_say_more_than_the_grid_is_fine(symmetry: str) -> None:
    """Trained on one truth between the grid's rotations, the orientation is nearer to it than they are."""
    chosen, group = head("softmax_grid", symmetry, nside=3), symmetry_group(symmetry)
    truth = rotations(8, seed=9).float()
    likelihood = chosen.likelihood(grids(2, 1), seeded(), Compute())
    numbers = torch.zeros(8, chosen.size, requires_grad=True)
    # The gradient at equal logits is target - 1 / size, from which the best logits, log target, follow.
    (gradient,) = torch.autograd.grad(likelihood(numbers, truth, 0), numbers)
    target = (8 * gradient + 1 / chosen.size).clamp_min(1e-9)
    torch.testing.assert_close(target.sum(1), torch.ones(8), atol=1e-3, rtol=0)
    best = target.log()
    errors = symmetric_distance(chosen.orientation(best), truth, group)
    nearest = torch.stack([symmetric_distance(q, rotation_grid(3), group).min() for q in truth])
    assert float(errors.mean()) < 0.6 * float(nearest.mean())
    for other in (best.roll(1, 1), 2 * best, 0.5 * best):
        assert float(likelihood(other, truth, 0)) < float(likelihood(best, truth, 0))


@pytest.mark.parametrize("symmetry", ["D2", "O"])
def test_any_equivalent_truth_is_as_good_for_logits(symmetry: str) -> None:
    chosen = head("softmax_grid", symmetry)
    likelihood = chosen.likelihood(grids(2, 1), seeded(), Compute())
    numbers, truth = 3 * torch.randn(5, chosen.size, generator=seeded(10)), rotations(5, seed=11).float()
    expected = likelihood(numbers, truth, 0)
    for element in symmetry_group(symmetry):
        torch.testing.assert_close(
            likelihood(numbers, compose(element, -truth), 0), expected, atol=1e-3, rtol=0
        )
    assert abs(float(likelihood(numbers, rotations(5, seed=12).float(), 0) - expected)) > 0.01


def test_probabilities_of_logits_have_a_mean_of_one() -> None:
    chosen = head("softmax_grid")
    numbers = 3 * torch.randn(4, chosen.size, generator=seeded(13))
    density = chosen.log_density(numbers, chosen.features(rotation_grid(2))).exp()
    torch.testing.assert_close(density.mean(1), torch.ones(4))
    nothing = chosen.posterior(torch.zeros(1, chosen.size))
    assert float(nothing.trace.abs()) < 0.2


def coefficients(symmetry: str, height: float, count: int = 4) -> Tensor:
    """Of densities of degree 4 with one mode, that is not of the same width in all directions."""
    chosen = head("exponential_family", symmetry, 4)
    bump = height / chosen.size * chosen.features(rotations(count, seed=14))
    noise = torch.randn(count, chosen.size, generator=seeded(15), dtype=torch.float64)
    return bump + height / 130 * noise


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_the_mode_of_a_density_moves_with_its_coefficients_as_the_gradient_says(symmetry: str) -> None:
    chosen, group = head("exponential_family", symmetry, 4), symmetry_group(symmetry)
    numbers = coefficients(symmetry, 40).requires_grad_()
    found = chosen.orientation(numbers)
    assert float(geodesic_distance(found, chosen.posterior(numbers).mode).detach().max()) < 1e-6
    for seed in range(5):
        generator = seeded(seed)
        weight, change = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in (found.shape, numbers.shape)
        )
        change = 1e-4 * change
        (gradient,) = torch.autograd.grad((found * weight).sum(), numbers, retain_graph=True)
        after, before = (
            nearest_equivalent(
                chosen.posterior((numbers + sign * change).detach()).mode, found.detach(), group
            )
            for sign in (1, -1)
        )
        after, before = (q * (q * found).detach().sum(1, keepdim=True).sign() for q in (after, before))
        expected = ((after - before) / 2 * weight).sum(1)
        assert float(expected.abs().max()) > 1e-6
        torch.testing.assert_close((gradient * change).sum(1), expected, atol=1e-8, rtol=1e-2)


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_the_likelihood_of_a_family_is_normalised_at_every_step(symmetry: str) -> None:
    chosen = head("exponential_family", symmetry, 4)
    numbers, truth = coefficients(symmetry, 12).float(), rotations(4, seed=16).float()
    everywhere = chosen.features(random_unitquat(100_000, generator=seeded(17)))
    log_mean = (numbers @ everywhere.T).logsumexp(1) - math.log(len(everywhere))
    expected = ((numbers * chosen.features(truth)).sum(1) - log_mean).mean()
    likelihood = chosen.likelihood(grids(5, 3), seeded(), Compute())
    found = torch.stack([likelihood(numbers, truth, step) for step in range(6)])
    torch.testing.assert_close(found, expected.expand(6), atol=0.05, rtol=0)
    assert len(found.unique()) == 6
    again = likelihood(numbers, truth, 3 * POINT_SETS)  # what is random was drawn before the first step
    assert torch.equal(again, found[0])


@pytest.mark.parametrize("name", ["quaternion", "qcqp"])
@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_of_one_asymmetric_unit_the_equivalent_of_the_mode_is_the_best_rotation(
    name: Any, symmetry: str
) -> None:
    head = head_of(NetworkConfig(head=name), symmetry)
    group = symmetry_group(symmetry)
    unit = asymmetric_unit(rotation_grid(4), group)
    numbers = torch.randn(20, head.size, generator=torch.Generator().manual_seed(0))
    best = unit[head.log_density(numbers, head.features(unit)).argmax(1)]
    away = symmetric_distance(best, head.posterior(numbers).mode, group)
    assert float(away.median()) < math.radians(15)
