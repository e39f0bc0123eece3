"""Particles that stand for all are spread evenly and are no outliers."""

import pytest
import torch

from cryoforum.dataset.sampling import evenly_spaced_rows, has_usual_contrast


def test_rows_are_spread_from_the_first_to_the_last() -> None:
    assert evenly_spaced_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = evenly_spaced_rows(100_000_001, 1000)
    assert len(rows) == 1000 and rows[0] == 0 and rows[-1] == 100_000_000
    assert int(rows.diff().max() - rows.diff().min()) <= 1


def test_constant_images_and_outliers_are_left_out() -> None:
    variance = torch.tensor([1.0, 2.0, 0.0, 3.0, 21.0, 19.0, 1.5])
    assert has_usual_contrast(variance).tolist() == [True, True, False, True, False, True, True]
    with pytest.raises(ValueError, match="constant images for at least half"):
        has_usual_contrast(torch.tensor([0.0, 0.0, 1.0]))
