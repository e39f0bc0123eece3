"""Sums and means over shells are those of their definition."""

import numpy as np
import pytest
import torch

from cryoforum.imaging.shells import filter_shells, mean_by_shell, radius_on_grid, shell_index, sum_by_shell


@pytest.mark.parametrize("shells", [None, 3, 9])
def test_sums_and_means_are_those_of_a_loop(shells: int | None) -> None:
    values = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    shell = torch.tensor([0, 1, 1, 5, 3])[torch.arange(20) % 5].view(4, 5)
    total, mean = sum_by_shell(values, shell, shells), mean_by_shell(values, shell, shells)
    assert total.shape == mean.shape == (2, 6 if shells is None else shells)
    for number in range(total.shape[1]):
        inside = values[:, shell == number]
        torch.testing.assert_close(total[:, number], inside.sum(1))
        torch.testing.assert_close(mean[:, number], inside.sum(1) / max(1, inside.shape[1]))


@pytest.mark.parametrize("box", [7, 8])
def test_shell_indices_are_rounded_distances(box: int) -> None:
    z, y, x = np.meshgrid(np.fft.fftfreq(box), np.fft.fftfreq(box), np.fft.rfftfreq(box), indexing="ij")
    expected = np.round(box * np.sqrt(z**2 + y**2 + x**2)).astype(int)
    assert np.array_equal(shell_index(box).numpy(), expected)
    plane = radius_on_grid(torch.tensor([-3.0, 4.0]), torch.tensor([0.0, 4.0, 3.0]))
    torch.testing.assert_close(plane, torch.tensor([[3.0, 5.0, 18**0.5], [4.0, 32**0.5, 5.0]]))


def test_a_filter_that_passes_everything_takes_only_the_corners() -> None:
    voxels = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = torch.fft.rfftn(filter_shells(voxels, torch.ones(5)))
    expected = torch.where(shell_index(8) <= 4, torch.fft.rfftn(voxels), 0)
    torch.testing.assert_close(kept, expected, atol=1e-4, rtol=0)
