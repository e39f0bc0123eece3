"""The error that a whole density means, against sums over a fine grid."""

import pytest
import torch
from torch import Tensor

from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.geometry.point_groups import symmetric_distance, symmetry_group
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.network.density_heads import ExponentialFamilyHead

NO_TURN = torch.tensor([[0.0, 0.0, 0.0, 1.0]])


def stated(
    head: ExponentialFamilyHead, numbers: Tensor, sharpness: float = 1.0
) -> tuple[Tensor, OrientationPosterior]:
    """The expected errors of one copy of each image, and its sharpened posterior."""
    posterior = OrientationPosterior(sharpness * head.posterior(numbers).concentration)
    return head.expected_error([numbers], NO_TURN, posterior, sharpness), posterior


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_further_modes_count_in_the_error(symmetry: str, scale: float) -> None:
    head, sharpness = ExponentialFamilyHead(3, symmetry), 0.8
    numbers = scale * torch.randn(6, head.size, generator=torch.Generator().manual_seed(2))
    found, posterior = stated(head, numbers, sharpness)
    grid, group = rotation_grid(14), symmetry_group(symmetry)
    weight = (sharpness * head.log_density(numbers, head.features(grid))).softmax(1)
    square = torch.stack(
        [symmetric_distance(grid, one.expand_as(grid), group) for one in posterior.mode]
    ).square()
    exact = (weight * square).sum(1).sqrt()
    torch.testing.assert_close(found, exact, rtol=0.12, atol=0.01)
    if scale < 1:  # one mode of several says far too little
        assert float((posterior.root_mean_square_angle / exact).median()) < 0.7


def test_nothing_known_is_the_error_of_a_uniform_density() -> None:
    head = ExponentialFamilyHead(3)
    numbers = 1e-3 * torch.randn(4, head.size, generator=torch.Generator().manual_seed(1))
    found = stated(head, numbers)[0]
    torch.testing.assert_close(found, torch.full((4,), 2.30), rtol=0.01, atol=0)


def test_images_do_not_depend_on_each_other() -> None:
    head = ExponentialFamilyHead(3)
    numbers = 3 * torch.randn(5, head.size, generator=torch.Generator().manual_seed(4))
    together = stated(head, numbers)[0]
    alone = torch.cat([stated(head, one)[0] for one in numbers[:, None]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
