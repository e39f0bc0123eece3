"""Selection keeps the surest share, in the order of the file."""

import pytest
import torch

from cryoforum.curation.selection import knee, select, share_of


def test_the_most_negative_are_kept_in_order() -> None:
    uncertainty = torch.tensor([-1.0, -9.0, -3.0, -7.0])
    assert select(uncertainty, 0.5).tolist() == [1, 3]
    assert select(uncertainty, 0.75).tolist() == [1, 2, 3]
    assert select(uncertainty, 1.0).tolist() == [0, 1, 2, 3]


def test_shares_are_rounded_and_never_empty() -> None:
    uncertainty = torch.randn(10, generator=torch.Generator().manual_seed(0))
    assert [len(select(uncertainty, keep)) for keep in (1e-9, 0.14, 0.16, 0.99)] == [1, 1, 2, 10]


def test_kept_are_surer_than_dropped_and_sets_nest() -> None:
    uncertainty = torch.randn(100, generator=torch.Generator().manual_seed(0))
    before: set[int] = set()
    for keep in (0.1, 0.4, 0.8):
        kept = select(uncertainty, keep)
        dropped = torch.ones(100, dtype=torch.bool)
        dropped[kept] = False
        assert float(uncertainty[kept].max()) < float(uncertainty[dropped].min())
        assert before < set(kept.tolist())
        before = set(kept.tolist())


def test_of_equals_the_first_come_first() -> None:
    assert select(torch.zeros(5), 0.4).tolist() == [0, 1]


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.01, float("nan")])
def test_shares_outside_are_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="share to keep"):
        select(torch.zeros(3), keep)


def test_what_is_not_a_number_is_refused_by_row() -> None:
    with pytest.raises(ValueError, match="nan in row 2"):
        select(torch.tensor([0.0, float("nan")]), 0.5)


def test_a_share_may_be_written_in_per_cent() -> None:
    assert [share_of(keep) for keep in (0.75, 75, 1, 100, 2)] == [0.75, 0.75, 1, 1, 0.02]
    for keep in (0.0, -5.0, 1.5, 101.0, float("nan")):
        with pytest.raises(ValueError, match="share to keep"):
            share_of(keep)


def test_the_knee_parts_two_populations_and_one_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    sure = torch.exp(0.2 * torch.randn(300, generator=generator))
    unsure = 40 * torch.exp(0.5 * torch.randn(100, generator=generator))
    found = knee(torch.cat([unsure, sure]))
    assert found is not None and float(sure.max()) * 0.99 <= found < float(unsure.min())
    assert knee(sure) is None and knee(sure[:2]) is None
