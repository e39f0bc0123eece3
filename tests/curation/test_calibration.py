"""The calibration card: orientations drawn from the stated posteriors pass, and those of wider ones do not."""

import math

import pytest
import torch

from cryoforum.curation.calibration import LEVELS, calibration_card
from cryoforum.dataset.predictions import Predictions
from cryoforum.distributions.bingham import OrientationPosterior
from cryoforum.distributions.bingham_angles import angle_probability, angle_quantile
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat

COUNT = 2400


def posteriors(sharpness: float = 1.0) -> OrientationPosterior:
    """About random orientations, of errors from under 1° to some 20°, none alike in all directions."""
    generator = torch.Generator().manual_seed(3)
    modes = random_unitquat(COUNT, generator=generator)
    axes = torch.linalg.qr(torch.randn(COUNT, 4, 4, generator=generator)).Q
    axes = torch.linalg.qr(torch.cat([modes[:, :, None], axes[:, :, 1:]], dim=2)).Q
    widths = torch.exp(
        8 * torch.rand(COUNT, 1, generator=generator) + torch.rand(COUNT, 3, generator=generator)
    )
    eigenvalues = torch.cat([torch.zeros(COUNT, 1), 20 * widths], dim=1)
    return OrientationPosterior(sharpness * axes @ torch.diag_embed(eigenvalues) @ axes.mT)


def drawn(posterior: OrientationPosterior) -> torch.Tensor:
    return posterior.sample(1, torch.Generator().manual_seed(5))[:, 0]


def stated(posterior: OrientationPosterior) -> Predictions:
    return Predictions(posterior, posterior.root_mean_square_angle)


def test_the_probability_of_an_angle_is_the_inverse_of_its_quantile() -> None:
    dispersion = posteriors()[:50].dispersion
    for probability in (0.05, 0.5, 0.99):
        found = angle_probability(dispersion, angle_quantile(dispersion, probability)[:, None])
        torch.testing.assert_close(found, torch.full_like(found, probability), atol=2e-3, rtol=0)
    ends = angle_probability(dispersion, torch.tensor([[0.0, math.pi]]).expand(50, 2))
    torch.testing.assert_close(ends, torch.tensor([[0.0, 1.0]]).expand(50, 2))


def test_truths_that_follow_their_posteriors_are_covered() -> None:
    posterior = posteriors()
    card = calibration_card(stated(posterior), drawn(posterior))
    assert len(card.coverage) == 1 + 4 + 6
    for name, one in card.coverage.items():
        for level, share in zip(LEVELS, one.shares, strict=True):
            assert abs(share - level) < 4 * math.sqrt(level * (1 - level) / one.count), name
    everything = card.coverage["all"]
    assert everything.found_rad == pytest.approx(everything.expected_rad, rel=0.05)
    assert sum(card.pit) == pytest.approx(1) and max(abs(share - 0.1) for share in card.pit) < 0.02
    assert card.rank_correlation > 0.6
    assert card.calibration_error < 0.03 and card.brier < 0.25
    assert list(card.risk.values()) == sorted(card.risk.values())


@pytest.mark.parametrize("sharpness", [0.25, 4.0])
def test_posteriors_that_are_too_wide_or_narrow_are_told(sharpness: float) -> None:
    truth, claimed = drawn(posteriors()), posteriors(sharpness)
    card = calibration_card(stated(claimed), truth)
    everything = card.coverage["all"]
    assert (everything.shares[0] > 0.8) if sharpness < 1 else (everything.shares[2] < 0.6)
    ratio = everything.found_rad / everything.expected_rad
    assert ratio == pytest.approx(math.sqrt(sharpness), rel=0.1)
    assert card.mean_log_density < calibration_card(stated(posteriors()), truth).mean_log_density


def test_of_equivalent_orientations_any_one_may_be_true() -> None:
    posterior = posteriors()
    truth, group = drawn(posterior), symmetry_group("D2")
    elsewhere = compose(group[torch.arange(COUNT) % 4], truth)
    plain, turned = (calibration_card(stated(posterior), each, "D2") for each in (truth, elsewhere))
    assert plain.coverage["all"] == turned.coverage["all"]
    assert plain.mean_log_density == pytest.approx(turned.mean_log_density, abs=1e-3)


def test_groups_are_kept_apart_and_small_ones_left_out() -> None:
    posterior = posteriors()
    truth = drawn(posterior)
    wrong = torch.arange(COUNT) % 10 == 0
    truth[wrong] = random_unitquat(int(wrong.sum()), generator=torch.Generator().manual_seed(6))
    few = torch.arange(COUNT) < 5
    card = calibration_card(stated(posterior), truth, groups={"wrong": wrong, "right": ~wrong, "few": few})
    assert "few" not in card.coverage
    assert card.coverage["wrong"].shares[-1] < 0.1
    assert card.coverage["right"].shares[-1] > 0.93
