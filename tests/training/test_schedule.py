"""Schedules, and the walk through the particles that a training is."""

import pytest
import torch

from cryoforum.choices import SCHEDULES
from cryoforum.training.batches import ShuffledRows
from cryoforum.training.schedule import one_cycle


def test_the_learning_rate_makes_one_cycle() -> None:
    rates, momenta = zip(*(one_cycle(step / 1000, 1e-3) for step in range(1001)), strict=True)
    assert rates[0] == pytest.approx(4e-5) and max(rates) == rates[300] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(4e-9)
    assert (momenta[0], momenta[300], momenta[-1]) == pytest.approx((0.95, 0.85, 0.95))
    assert list(rates[:301]) == sorted(rates[:301]) and list(rates[300:]) == sorted(rates[300:], reverse=True)


def test_the_fixed_schedule_changes_nothing_and_the_other_is_one_cycle() -> None:
    for fraction in (0.0, 0.2, 0.7, 1.0):
        assert SCHEDULES.chosen("fixed")(fraction, 3e-4) == (3e-4, 0.9)
        assert SCHEDULES.chosen("one_cycle")(fraction, 3e-4) == one_cycle(fraction, 3e-4)


@pytest.mark.parametrize("size", [3, 7, 20, 50])
def test_no_particle_comes_twice_before_all_that_fit_have_come(size: int) -> None:
    walk = ShuffledRows(20, torch.Generator().manual_seed(0))
    whole = 20 // min(size, 20)
    orders = []
    for _ in range(3):
        rows = torch.cat([walk.next(size) for _ in range(whole)])
        assert len(rows) == len(rows.unique()) == whole * min(size, 20)
        orders.append(rows)
    assert not torch.equal(orders[0], orders[1])
