"""What a posterior is asked for, judged by its own samples, SciPy and sums over a grid of all rotations."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from cryoforum import InputError, OrientationPosterior
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat
from cryoforum.geometry.so3_grid import rotation_grid

SPREADS = [  # eigenvalues of A: nothing known, wide, one axis unknown, sharp, very unequal
    [0, 0, 0, 0],
    [0, 1, 2, 4],
    [0, 0.5, 60, 80],
    [0, 2e3, 2e3, 2e3],
    [0, 30, 1e4, 1e6],
]


def posterior() -> OrientationPosterior:
    generator = torch.Generator().manual_seed(2)
    axes = torch.linalg.qr(torch.randn(len(SPREADS), 4, 4, generator=generator, dtype=torch.float64))[0]
    return OrientationPosterior(axes @ torch.diag_embed(torch.tensor(SPREADS).double()) @ axes.mT)


def drawn(count: int) -> torch.Tensor:
    return posterior().sample(count, torch.Generator().manual_seed(4))


def test_samples_have_the_second_moment_of_the_density() -> None:
    """On a grid of all rotations, where the densities are wide enough for it."""
    wide, grid = posterior()[torch.arange(3)], rotation_grid(12).double()
    weight = wide.log_density(grid.expand(3, -1, 4)).exp() / len(grid)
    expected = torch.einsum("ng,gi,gj->nij", weight, grid, grid)
    found = drawn(20000)[:3]
    assert found.norm(dim=-1).sub(1).abs().max() < 1e-6
    moment = torch.einsum("nci,ncj->nij", found, found) / found.shape[1]
    torch.testing.assert_close(moment, expected, atol=0.01, rtol=0)


def test_sharp_samples_are_normal_with_scipys_quantiles() -> None:
    angles = geodesic_distance(drawn(4000)[3], posterior().mode[3])
    judge = stats.chi(3, scale=math.sqrt(2 / 2e3))
    assert stats.kstest(angles.numpy(), judge.cdf).pvalue > 0.01


def test_densities_are_relative_to_the_uniform_one() -> None:
    some, grid = posterior(), rotation_grid(12).double()
    mean = some.log_density(grid.expand(len(some), -1, 4)).exp().mean(1)
    torch.testing.assert_close(mean[:3], torch.ones(3).double(), atol=0.01, rtol=0)
    nothing = some[torch.tensor([0])].log_density(random_unitquat(1, generator=torch.Generator()).double())
    assert float(nothing) == pytest.approx(0, abs=1e-6)
    # exp(-2e3 |t|²) over the two half spheres, against their whole area 2π²
    peak = some.log_density(some.mode)[3]
    assert float(peak) == pytest.approx(math.log(2 * math.pi**2 / 2 / (math.pi / 2e3) ** 1.5), abs=0.01)


@pytest.mark.parametrize("probability", [0.5, 0.95, 0.99])
def test_credible_angles_hold_as_many_samples(probability: float) -> None:
    count = 20000
    angles = geodesic_distance(drawn(count), posterior().mode[:, None])
    inside = (angles <= posterior().credible_angle(probability)[:, None]).double().mean(1)
    deviation = math.sqrt(probability * (1 - probability) / count)
    assert (inside - probability).abs().max() < 4 * deviation + 5e-4


def test_the_expected_error_is_that_of_samples() -> None:
    angles = geodesic_distance(drawn(20000), posterior().mode[:, None])
    found = posterior().expected_error_rad
    torch.testing.assert_close(angles.square().mean(1).sqrt(), found, rtol=0.03, atol=0)
    np.testing.assert_allclose(found[0], math.sqrt(math.pi**2 / 3 + 2), rtol=1e-3)  # of random rotations


def test_draws_repeat_and_shapes_are_kept() -> None:
    narrow = OrientationPosterior(posterior().concentration.float())
    first, second = (narrow.sample(3, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (len(SPREADS), 3, 4) and first.dtype == torch.float32
    assert narrow.sample(0, torch.Generator()).shape == (len(SPREADS), 0, 4)
    torch.testing.assert_close(normalize(first, dim=-1), first)
    for probability in (0.0, 1.0, 95.0):
        with pytest.raises(InputError, match="probability between 0 and 1"):
            narrow.credible_angle(probability)
