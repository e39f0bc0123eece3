"""The log normalising constant of densities on rotations."""

import math

import pytest
import torch

from cryoforum.distributions.bingham import OrientationPosterior, log_normalising_constant
from cryoforum.distributions.exponential_family import rotation_polynomials
from cryoforum.distributions.log_z_adaptive import log_z_adaptive
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.density_heads import ExponentialFamilyHead, GridHead
from cryoforum.network.heads import Head
from cryoforum.network.matrix_heads import MatrixHead, symmetric_matrix


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_agrees_with_the_exact_constant_of_a_bingham(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(10, 4, 4, generator=generator, dtype=torch.float64)
    matrix = scale * (matrix @ matrix.mT)
    polynomials, grid = rotation_polynomials(1), rotation_grid(10)
    some = random_unitquat(50, generator=generator).double()
    values = -torch.einsum("gi,nij,gj->gn", some, matrix, some)
    coefficients = torch.linalg.lstsq(polynomials.features(some), values).solution.T.float()
    posterior = OrientationPosterior(matrix.float())
    found = log_z_adaptive(polynomials, coefficients, posterior, grid, polynomials.features(grid))
    exact = log_normalising_constant(-torch.linalg.eigvalsh(matrix).flip(-1)) - math.log(2 * math.pi**2)
    torch.testing.assert_close(found.double(), exact, atol=5e-3, rtol=0)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "C7", "O"])
def test_agrees_with_a_fine_grid_where_that_is_enough(symmetry: str) -> None:
    head = ExponentialFamilyHead(7 if symmetry == "C7" else 4, symmetry)
    generator = torch.Generator().manual_seed(1)
    numbers = 3 * torch.randn(4, head.size, generator=generator) / math.sqrt(head.size)
    fine = rotation_grid(11)
    expected = head.log_density(numbers, head.features(fine)).logsumexp(-1) - math.log(len(fine))
    coarse = rotation_grid(8)
    found = log_z_adaptive(head.polynomials, numbers, head.posterior(numbers), coarse, head.features(coarse))
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)


def test_does_not_depend_on_the_grid_where_a_grid_alone_does() -> None:
    head = ExponentialFamilyHead(4)
    truth = random_unitquat(20, generator=torch.Generator().manual_seed(2))
    numbers = 2 * head.features(truth)  # a sharp mode at each rotation
    posterior = head.posterior(numbers)
    ours, alone = [], []
    for nside in (5, 9):
        grid = rotation_grid(nside)
        features = head.features(grid)
        ours.append(log_z_adaptive(head.polynomials, numbers, posterior, grid, features))
        alone.append(head.log_density(numbers, features).logsumexp(-1) - math.log(len(grid)))
    assert (ours[0] - ours[1]).abs().max() < 0.02
    assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "head",
    [
        MatrixHead(10, symmetric_matrix),
        MatrixHead(10, symmetric_matrix, "D2"),
        ExponentialFamilyHead(3),
        ExponentialFamilyHead(3, "D2"),
        GridHead(3),
    ],
    ids=["matrix", "matrix under D2", "family", "family under D2", "grid"],
)
def test_densities_have_mean_one(head: Head) -> None:
    generator = torch.Generator().manual_seed(3)
    numbers = 0.4 * torch.randn(3, head.size, generator=generator)
    rotations = rotation_grid(7)[None].expand(3, -1, -1)
    mean = head.normalised_log_density(numbers, rotations).double().exp().mean(1)
    torch.testing.assert_close(mean, torch.ones(3).double(), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "head", [ExponentialFamilyHead(4, "D2"), MatrixHead(10, symmetric_matrix, "D2")], ids=["family", "matrix"]
)
def test_density_of_a_symmetric_head_is_alike_at_equivalents(head: Head) -> None:
    generator = torch.Generator().manual_seed(4)
    numbers = torch.randn(2, head.size, generator=generator)
    rotation = random_unitquat(2, generator=generator)
    equivalents = compose(symmetry_group("D2"), rotation[:, None])
    found = head.normalised_log_density(numbers, equivalents)
    torch.testing.assert_close(found, found[:, :1].expand(-1, 4), atol=1e-4, rtol=0)
