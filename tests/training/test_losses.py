"""What is minimised: zero at the truth, blind to a common turn, moved by its curriculum, on one device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoforum.choices import AUXILIARIES, HEADS, LOSSES
from cryoforum.config import Config, NetworkConfig, TrainingConfig
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, geodesic_distance, random_unitquat
from cryoforum.network.heads import head_of
from cryoforum.runtime.devices import Compute
from cryoforum.training.losses import curriculum, l2_penalty, pair_loss
from cryoforum.training.pairs import all_pairs

C1, EVERY = symmetry_group("C1"), all_pairs(8)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return random_unitquat(8, generator=generator), random_unitquat(8, generator=generator)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_zero_at_the_truth_with_either_sign(pair: tuple[Tensor, Tensor], weight: float) -> None:
    _, true = pair
    signs = torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    assert float(pair_loss(signs * true, true, EVERY, weight, C1)) == pytest.approx(0, abs=1e-6)


def test_the_weight_goes_from_pairs_to_single_images(pair: tuple[Tensor, Tensor]) -> None:
    predicted, true = pair
    single = geodesic_distance(predicted, true).mean()
    distances = [
        (geodesic_distance(predicted[i], predicted[j]) - geodesic_distance(true[i], true[j])).abs()
        for i in range(8)
        for j in range(i)
    ]
    pairs = torch.stack(distances).mean()
    torch.testing.assert_close(pair_loss(predicted, true, EVERY, 0.0, C1), pairs)
    torch.testing.assert_close(pair_loss(predicted, true, EVERY, 1.0, C1), single)
    torch.testing.assert_close(pair_loss(predicted, true, EVERY, 0.25, C1), 0.25 * single + 0.75 * pairs)


def test_only_the_given_pairs_count(pair: tuple[Tensor, Tensor]) -> None:
    predicted, true = pair
    some = torch.tensor([[0, 2], [1, 0]])
    error = geodesic_distance(predicted, true)
    torch.testing.assert_close(
        pair_loss(predicted, true, some, 1.0, C1), (2 * error[0] + error[1] + error[2]) / 4
    )
    changed = predicted.clone()
    changed[3:] = true[3:]
    for weight in (0.0, 0.5, 1.0):
        found = pair_loss(changed, true, some, weight, C1)
        torch.testing.assert_close(found, pair_loss(predicted, true, some, weight, C1))


def test_the_curriculum_is_the_papers() -> None:
    weights = [curriculum(progress, 0.5) for progress in (0.0, 0.25, 0.81, 1.0)]
    assert weights == pytest.approx([0, 0.5, 0.9, 1])
    assert curriculum(0.5, 2.0) == pytest.approx(0.25)
    for progress in (0.0, 0.3, 1.0):
        assert AUXILIARIES.chosen("constant")(progress, 0.5) == 0.5
        assert AUXILIARIES.chosen("none")(progress, 0.5) == 1


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_a_common_turn_of_both_changes_nothing(pair: tuple[Tensor, Tensor], weight: float) -> None:
    predicted, true = pair
    turn = random_unitquat(1, generator=torch.Generator().manual_seed(1))
    loss = pair_loss(predicted, true, EVERY, weight, C1)
    for turned in (
        pair_loss(compose(turn, predicted), compose(turn, true), EVERY, weight, C1),
        pair_loss(compose(predicted, turn), compose(true, turn), EVERY, weight, C1),
    ):
        torch.testing.assert_close(turned, loss)


def test_of_pairs_alone_a_turn_of_the_predictions_costs_nothing(pair: tuple[Tensor, Tensor]) -> None:
    _, true = pair
    turned = compose(random_unitquat(1, generator=torch.Generator().manual_seed(1)), true)
    assert float(pair_loss(turned, true, EVERY, 0.0, C1)) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(turned, true, EVERY, 1.0, C1)) > 0.1


def test_gradients_are_finite_even_at_the_truth(pair: tuple[Tensor, Tensor]) -> None:
    for start in pair:
        predicted = start.clone().requires_grad_()
        pair_loss(predicted, pair[1], EVERY, 0.7, C1).backward()
        assert predicted.grad is not None and bool(torch.isfinite(predicted.grad).all())


def test_l2_is_the_sum_of_squares() -> None:
    assert float(l2_penalty([torch.full((2, 3), 2.0), torch.tensor([3.0])])) == 33.0


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_under_symmetry_any_equivalent_of_any_image_is_as_good(
    pair: tuple[Tensor, Tensor], weight: float
) -> None:
    predicted, true = pair
    group = symmetry_group("T")
    swapped = compose(group[[0, 3, 5, 7, 11, 2, 4, 1]], predicted)
    loss = pair_loss(predicted, true, EVERY, weight, group)
    torch.testing.assert_close(pair_loss(swapped, true, EVERY, weight, group), loss)
    equivalent = compose(group[[1, 2, 3, 4, 5, 6, 7, 8]], true)
    assert float(pair_loss(equivalent, true, EVERY, weight, group)) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(equivalent, true, EVERY, weight, C1)) > 0.1


def settings(head: str, symmetry: str = "C1", handling: Any = "group", **training: Any) -> Config:
    network = NetworkConfig(head=head, degree=3, head_nside=2)
    small = TrainingConfig(grid_nside=2, grid_count=1, **training)
    return Config(network=network, training=small, symmetry=symmetry, symmetry_handling=handling)


def loss_of(config: Config, numbers: Tensor, truth: Tensor, progress: float = 0.25) -> Tensor:
    loss = LOSSES.chosen(config.training.loss)(
        config, torch.Generator().manual_seed(0), Compute(numbers.device)
    )
    return loss(numbers, truth, all_pairs(len(truth)), progress, 0)


def random_numbers(config: Config, count: int = 8) -> Tensor:
    size = head_of(config.network, config.learned_symmetry).size
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
@pytest.mark.parametrize("head", list(HEADS))
def test_every_head_can_be_taught_in_one_and_two_branches(
    pair: tuple[Tensor, Tensor], head: str, symmetry: str
) -> None:
    """One branch is the mean orientation error; two weigh it against pairs as the settings say."""
    truth, group = pair[1], symmetry_group(symmetry)
    config = settings(head, symmetry)
    numbers = random_numbers(config)
    orientation = head_of(config.network, symmetry).orientation(numbers)
    every = torch.stack([geodesic_distance(orientation, compose(element, truth)) for element in group])
    single = every.amin(0).mean()
    torch.testing.assert_close(loss_of(settings(head, symmetry, loss="regression"), numbers, truth), single)
    for auxiliary, weight in (("none", 1.0), ("constant", 0.5), ("curriculum", 0.25)):
        two = settings(head, symmetry, loss="pairs", auxiliary=auxiliary, curriculum_exponent=1.0)
        expected = pair_loss(orientation, truth, EVERY, weight, group)
        torch.testing.assert_close(loss_of(two, numbers, truth), expected)
        if auxiliary == "none":
            torch.testing.assert_close(expected, single)


@pytest.mark.parametrize("loss", ["likelihood", "regression", "pairs"])
@pytest.mark.parametrize("head", list(HEADS))
def test_with_a_group_any_equivalent_truth_is_as_good_and_in_one_domain_it_is_not(
    pair: tuple[Tensor, Tensor], head: str, loss: str
) -> None:
    truth, group = pair[1], symmetry_group("D2")
    equivalent = compose(group[[1, 2, 3, 1, 2, 3, 0, 1]], truth)
    for handling, same in (("group", True), ("domain", False)):
        config = settings(head, "D2", handling, loss=loss)
        numbers = random_numbers(config)
        found, other = (loss_of(config, numbers, q) for q in (truth, equivalent))
        assert (abs(float(found - other)) < 1e-3 * max(1, abs(float(found)))) is same


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU refuses: tensors of different devices in one operation, but for copies and rows."""

    MAY = ("aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim > 0]
        if func.name().partition(".")[0] not in self.MAY:
            assert len({t.device for t in tensors}) <= 1, f"{func.name()} of tensors on different devices"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
@pytest.mark.parametrize("loss", ["likelihood", "regression", "pairs"])
@pytest.mark.parametrize("head", list(HEADS))
def test_a_loss_stays_on_the_device_of_its_numbers(head: str, loss: str, symmetry: str) -> None:
    """Without a GPU to try it on: torch's meta device, which holds shapes but no numbers."""
    config = settings(head, symmetry, loss=loss)
    numbers = random_numbers(config).to("meta")
    with OneDevice():
        found = loss_of(config, numbers, torch.empty(8, 4, device="meta"))
    assert found.device.type == "meta"
