"""The log normalising constant of training: that of all rotations, whatever a density hides between the points of a grid."""

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from cryoforum.distributions import log_z_training as module
from cryoforum.distributions.bingham import log_normalising_constant
from cryoforum.distributions.exponential_family import rotation_polynomials
from cryoforum.distributions.log_z_training import SampledLogZ, sampled_log_z
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network import density_heads
from cryoforum.network.density_heads import ExponentialFamilyHead
from cryoforum.runtime.devices import CPU


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def coarser_exact_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact to 0.02, as `test_log_z_adaptive` shows, in a fifth of the time."""
    monkeypatch.setattr(density_heads, "LOG_Z_NSIDE", 6)


@lru_cache(maxsize=32)
def made(
    head: ExponentialFamilyHead, nside: int = 4, count: int = 2, dtype: torch.dtype = torch.float32
) -> SampledLogZ:
    return sampled_log_z(head.polynomials, nside, count, seeded(), CPU, dtype)


def peaks(head: ExponentialFamilyHead, sharpness: float, count: int = 8) -> tuple[Tensor, Tensor]:
    """Rotations, and the coefficients of densities whose highest mode is there."""
    q = random_unitquat(count, generator=seeded(1))
    return q, sharpness * head.features(q) / math.sqrt(head.size)


def near(q: Tensor, degrees: float) -> Tensor:
    """Each rotation turned by so much, about an axis at random."""
    axes = torch.nn.functional.normalize(torch.randn(len(q), 3, generator=seeded(2)), dim=1)
    half = math.radians(degrees) / 2
    turn = torch.cat([math.sin(half) * axes, torch.full((len(q), 1), math.cos(half))], dim=1)
    return compose(q, turn)


def mean_over_steps(sampled: SampledLogZ, coefficients: Tensor, truth: Tensor) -> Tensor:
    return torch.stack([sampled.log_likelihood(coefficients, truth, step) for step in range(16)]).mean(0)


@pytest.mark.parametrize(("degree", "symmetry"), [(6, "C1"), (5, "D2"), (7, "C7"), (5, "O")])
def test_agrees_with_the_exact_one(degree: int, symmetry: str) -> None:
    head = ExponentialFamilyHead(degree, symmetry)
    coefficients, truths = [], []
    for sharpness, degrees in ((0.3, 0), (3.0, 0), (1.0, 2), (3.0, 2), (0.3, 60)):
        q, peaked = peaks(head, sharpness)
        coefficients.append(peaked)
        truths.append(near(q, degrees))
    numbers, truth = torch.cat(coefficients), torch.cat(truths)
    exact = head.normalised_log_density(numbers, truth[:, None])[:, 0]
    torch.testing.assert_close(mean_over_steps(made(head, nside=5), numbers, truth), exact, atol=0.3, rtol=0)


@pytest.mark.parametrize("scale", [300.0, 3000.0, 30_000.0])
def test_agrees_with_the_exact_one_of_binghams_of_any_shape(scale: float) -> None:
    generator = seeded(10)
    frames = torch.linalg.qr(torch.randn(12, 4, 4, generator=generator, dtype=torch.float64)).Q
    concentrations = torch.tensor([0, 0.1, 0.5, 1.0], dtype=torch.float64) * scale
    matrices = frames @ concentrations.diag() @ frames.mT
    head = ExponentialFamilyHead(1)
    some = random_unitquat(50, generator=generator).double()
    values = -torch.einsum("gi,nij,gj->gn", some, matrices, some)
    coefficients = torch.linalg.lstsq(head.polynomials.features(some), values).solution.T.float()
    mode = frames[:, :, 0].float()
    found = mean_over_steps(made(head), coefficients, mode)
    exact = math.log(2 * math.pi**2) - log_normalising_constant(-concentrations.flip(-1)[None])
    torch.testing.assert_close(found.mean().double(), exact[0], atol=0.1, rtol=0)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_a_peak_between_the_points_of_a_grid_is_counted(symmetry: str) -> None:
    head = ExponentialFamilyHead(6, symmetry)
    q, coefficients = peaks(head, 30.0)
    grid = rotation_grid(4)
    alone = head.log_density(coefficients, head.features(grid)).logsumexp(1) - math.log(len(grid))
    at_truth = (coefficients * head.features(q)).sum(1)
    exact = head.normalised_log_density(coefficients, q[:, None])[:, 0]
    found = mean_over_steps(made(head), coefficients, q)
    assert float((at_truth - alone - exact).mean()) > 3  # what a grid alone would be cheated by
    torch.testing.assert_close(found, exact, atol=0.2, rtol=0)


@pytest.mark.parametrize("symmetry", ["C1", "C7", "O"])
def test_near_and_far_share_all_rotations_without_a_gap(symmetry: str) -> None:
    sampled = made(ExponentialFamilyHead(7, symmetry), nside=2, count=8)
    q = random_unitquat(200, generator=seeded(3))
    group = symmetry_group(symmetry)
    masked = torch.stack([sampled._near(q, grid).float().mean() for grid in sampled.grids]).mean()
    within = len(group) * (sampled.reach_rad - math.sin(sampled.reach_rad)) / math.pi
    torch.testing.assert_close(masked, torch.tensor(within), rtol=0.1, atol=0)
    around = sampled.log_shares.exp().sum(1).mean()
    torch.testing.assert_close(around, torch.tensor(within), rtol=0.01, atol=0)
    angles = geodesic_distance(sampled.offsets, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    assert float(angles.min()) > module.NEAREST_RAD - 1e-3 and float(angles.max()) < sampled.reach_rad + 1e-3


def test_equivalents_of_the_truth_are_near() -> None:
    sampled = made(ExponentialFamilyHead(4, "O"), nside=5)
    q = random_unitquat(4, generator=seeded(4))
    grid = sampled.grids[0]
    distance = torch.stack([symmetric_distance(one, grid, symmetry_group("O")) for one in q])
    assert torch.equal(sampled._near(q, grid), distance < sampled.reach_rad)
    turned = compose(symmetry_group("O")[5], q)
    assert torch.equal(sampled._near(turned, grid), sampled._near(q, grid))


def test_learns_how_sure_it_may_be() -> None:
    """The best sharpness by this likelihood is that which the spread of the truth has, not a sharper one."""
    head = ExponentialFamilyHead(6)
    q, _ = peaks(head, 1.0, count=24)
    turns = torch.cat([0.02 * torch.randn(24, 3, generator=seeded(5)), torch.ones(24, 1)], dim=1)
    truth = compose(q, torch.nn.functional.normalize(turns, dim=1))
    scales = torch.tensor([0.3, 1, 3, 10, 30])
    numbers = (scales[:, None, None] * head.features(q) / math.sqrt(head.size)).flatten(0, 1)
    truths = truth.repeat(len(scales), 1)
    ours = mean_over_steps(made(head), numbers, truths).view(len(scales), -1).mean(1)
    exact = head.normalised_log_density(numbers, truths[:, None]).view(len(scales), -1).mean(1)
    assert int(ours.argmax()) == int(exact.argmax()) == 2
    features = head.features(rotation_grid(4))
    alone = (numbers * head.features(truths)).sum(1) - head.log_density(numbers, features).logsumexp(1)
    assert int(alone.view(len(scales), -1).mean(1).argmax()) == 4  # a grid alone is cheated


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_rounded_features_move_the_likelihood_by_little(symmetry: str) -> None:
    head = ExponentialFamilyHead(6, symmetry)
    q, coefficients = peaks(head, 0.5, count=32)
    coefficients = coefficients + 0.1 * torch.randn(coefficients.shape, generator=seeded(11))
    truth = near(q, 4.0)
    plain, rounded = (
        made(head, dtype=dtype).log_likelihood(coefficients, truth, 0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 0 < float((plain - rounded).mean().abs()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_derivative_is_that_of_the_value(dtype: torch.dtype) -> None:
    head = ExponentialFamilyHead(4)
    q, coefficients = peaks(head, 2.0)
    noise = 0.3 * torch.randn(coefficients.shape, generator=seeded(6))
    leaf = (coefficients + noise).requires_grad_()
    truth, step = near(q, 3.0), 5
    (found,) = torch.autograd.grad(made(head, dtype=dtype).log_likelihood(leaf, truth, step).sum(), leaf)
    plain = made(head)

    def written_out(numbers: Tensor) -> Tensor:
        which = step % len(plain.grids)
        values = numbers @ plain.features[which].T
        values = values.masked_fill(plain._near(truth, plain.grids[which]), -math.inf)
        far = values.logsumexp(1) - math.log(len(plain.grids[which]))
        points = compose(truth[:, None], plain.offsets[step])
        around = (head.features(points) @ numbers[..., None])[..., 0] + plain.log_shares[step]
        own = (numbers * head.features(truth)).sum(1)
        within = own + math.log(module._share_within(module.NEAREST_RAD))
        return own - torch.cat([far[:, None], around, within[:, None]], dim=1).logsumexp(1)

    again = leaf.detach().requires_grad_()
    (expected,) = torch.autograd.grad(written_out(again).sum(), again)
    bound = 1e-3 if dtype == torch.float32 else 0.03  # rounded features
    assert float((found - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_a_density_of_hardly_any_width_is_taken_for_one_of_half_a_degree(symmetry: str) -> None:
    head = ExponentialFamilyHead(4, symmetry)
    q, coefficients = peaks(head, 1e6)
    leaf = coefficients.requires_grad_()
    value = made(head).log_likelihood(leaf, q, 0)
    share = len(symmetry_group(symmetry)) * module._share_within(module.NEAREST_RAD)
    torch.testing.assert_close(value.detach(), torch.full((8,), -math.log(share)), atol=0.5, rtol=0)
    value.sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_a_grid_of_which_nothing_is_far_holds_nothing() -> None:
    features = rotation_polynomials(1).features(rotation_grid(1))
    leaf = torch.randn(3, 10, generator=seeded(12)).requires_grad_()
    excluded = torch.ones(3, len(features), dtype=torch.bool)
    value = module._LogMeanExp.apply(leaf, features, excluded)
    assert float(value.detach().max()) < -1e30
    torch.logsumexp(torch.stack([value, torch.zeros(3)]), dim=0).sum().backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, torch.zeros(3, 10))


def test_a_grid_too_coarse_for_the_symmetry_is_refused() -> None:
    # One asymmetric unit of I is a sixtieth; some turns leave the coarsest grid without a rotation in it.
    with pytest.raises(ValueError, match="finer grid for symmetry I, found training.grid_nside of 1"):
        made(ExponentialFamilyHead(6, "I"), nside=1, count=64)


def test_knowing_nothing_is_a_likelihood_of_zero() -> None:
    head = ExponentialFamilyHead(2)
    q = random_unitquat(5, generator=seeded(7))
    found = made(head, nside=6).log_likelihood(torch.zeros(5, head.size), q, 0)
    torch.testing.assert_close(found, torch.zeros(5), atol=0.01, rtol=0)


def test_the_log_mean_over_a_grid_and_its_derivative_are_torchs() -> None:
    features = rotation_polynomials(3).features(rotation_grid(3))
    coefficients = 5 * torch.randn(5, 84, generator=seeded(8))
    excluded = torch.rand(5, len(features), generator=seeded(9)) < 0.3
    results = []
    for log_mean in (
        lambda c: module._LogMeanExp.apply(c, features, excluded),
        lambda c: (c @ features.T).masked_fill(excluded, -math.inf).logsumexp(1) - math.log(len(features)),
    ):
        leaf = coefficients.clone().requires_grad_()
        value = log_mean(leaf)
        (gradient,) = torch.autograd.grad((torch.linspace(1, 2, 5) * value).sum(), leaf)
        results.append((value.detach(), gradient))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
