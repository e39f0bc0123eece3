"""Junk is told by its strength, its gain and its expected error, whatever else is in the file."""

import torch

from cryoforum.curation.junk import is_of_usual_strength, is_probably_junk


def strengths(count: int, mean: float, deviation: float) -> torch.Tensor:
    return mean + deviation * torch.randn(count, generator=torch.Generator().manual_seed(0))


def test_each_sign_of_junk_is_enough() -> None:
    scale = torch.tensor([1.0, 0.4, 1.0, 1.0])
    gain = torch.tensor([100.0, 100.0, -1.0, 100.0])
    error = torch.tensor([1.0, 1.0, 1.0, 60.0])
    assert is_probably_junk(scale, gain, error).tolist() == [False, True, True, True]


def test_particles_are_told_from_junk_whatever_the_scale_of_both() -> None:
    particles, junk = strengths(200, 1.0, 0.1), strengths(600, 0.25, 0.05)
    for factor in (0.4, 1.0, 3.0):
        usual = is_of_usual_strength(factor * torch.cat([particles, junk]))
        assert bool(usual[:200].all()) and not usual[200:].any()


def test_a_single_population_stays_whole() -> None:
    assert bool(is_of_usual_strength(strengths(300, 1.0, 0.13)).all())
    spread = torch.exp(0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(1)))
    assert float(is_of_usual_strength(spread).float().mean()) > 0.97
