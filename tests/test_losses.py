"""The paper's pair loss: zero at the truth, blind to a common turn, and moved by its curriculum."""

import pytest
import torch
from torch import Tensor

from cryoforum.losses import l2_penalty, pair_loss
from cryoforum.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.symmetry import symmetry_group


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return random_unitquat(8, generator=generator), random_unitquat(8, generator=generator)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_zero_at_the_truth_with_either_sign(pair: tuple[Tensor, Tensor], progress: float) -> None:
    _, true = pair
    signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    assert float(pair_loss(signs * true, true, progress)) == pytest.approx(0, abs=1e-6)


def test_the_curriculum_goes_from_pairs_to_single_images(pair: tuple[Tensor, Tensor]) -> None:
    predicted, true = pair
    single = geodesic_distance(predicted, true).mean()
    distances = [
        (geodesic_distance(predicted[i], predicted[j]) - geodesic_distance(true[i], true[j])).abs()
        for i in range(8)
        for j in range(i)
    ]
    pairs = torch.stack(distances).mean()
    torch.testing.assert_close(pair_loss(predicted, true, 0.0), pairs)
    torch.testing.assert_close(pair_loss(predicted, true, 1.0), single)
    torch.testing.assert_close(pair_loss(predicted, true, 0.25), (single + pairs) / 2)
    torch.testing.assert_close(pair_loss(predicted, true, 0.25, exponent=1.0), 0.25 * single + 0.75 * pairs)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_common_turn_of_both_changes_nothing(pair: tuple[Tensor, Tensor], progress: float) -> None:
    predicted, true = pair
    turn = random_unitquat(1, generator=torch.Generator().manual_seed(1))
    loss = pair_loss(predicted, true, progress)
    torch.testing.assert_close(pair_loss(compose(turn, predicted), compose(turn, true), progress), loss)
    torch.testing.assert_close(pair_loss(compose(predicted, turn), compose(true, turn), progress), loss)


def test_at_first_a_turn_of_the_predictions_alone_costs_nothing(pair: tuple[Tensor, Tensor]) -> None:
    _, true = pair
    turned = compose(random_unitquat(1, generator=torch.Generator().manual_seed(1)), true)
    assert float(pair_loss(turned, true, 0.0)) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(turned, true, 1.0)) > 0.1


def test_gradients_are_finite_even_at_the_truth(pair: tuple[Tensor, Tensor]) -> None:
    for start in pair:
        predicted = start.clone().requires_grad_()
        pair_loss(predicted, pair[1], 0.5).backward()
        assert predicted.grad is not None and bool(torch.isfinite(predicted.grad).all())


def test_l2_is_the_sum_of_squares() -> None:
    assert float(l2_penalty([torch.full((2, 3), 2.0), torch.tensor([3.0])])) == 33.0


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_under_symmetry_any_equivalent_of_any_image_is_as_good(
    pair: tuple[Tensor, Tensor], progress: float
) -> None:
    predicted, true = pair
    group = symmetry_group("T")
    swapped = compose(group[[0, 3, 5, 7, 11, 2, 4, 1]], predicted)
    loss = pair_loss(predicted, true, progress, symmetry="T")
    torch.testing.assert_close(pair_loss(swapped, true, progress, symmetry="T"), loss)
    equivalent = compose(group[[1, 2, 3, 4, 5, 6, 7, 8]], true)
    assert float(pair_loss(equivalent, true, progress, symmetry="T")) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(equivalent, true, progress)) > 0.1
