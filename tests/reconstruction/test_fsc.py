"""Orientation errors and Fourier shell correlation against a judge, a definition and their laws."""

import math

import numpy as np
import pytest
import torch
from torch_fourier_shell_correlation import fourier_shell_correlation as judge_fsc

from cryoforum.dataset.pose_errors import orientation_errors, summarise_errors
from cryoforum.dataset.volumes import HalfMaps, Volume
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat, rotation_about_view_axis
from cryoforum.imaging.masks import soft_mask, soft_spherical_mask
from cryoforum.reconstruction.fsc import (
    chance_of_fsc,
    fourier_shell_correlation,
    fsc_curve,
    resolution_angstrom,
)


def noise(box: int, seed: int) -> torch.Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


def low_passed(voxels: torch.Tensor, shells: float) -> torch.Tensor:
    box = voxels.shape[0]
    full, half = np.fft.fftfreq(box, 1 / box), np.fft.rfftfreq(box, 1 / box)
    squared = torch.from_numpy(full[:, None, None] ** 2 + full[None, :, None] ** 2 + half**2)
    gaussian = torch.exp(-squared / (2 * shells**2))
    return torch.fft.irfftn(torch.fft.rfftn(voxels.double()) * gaussian, s=voxels.shape).float()


def noisy_halves(box: int = 32, pixel_size_angstrom: float = 2.0) -> HalfMaps:
    """A ball with smooth texture under independent white noise."""
    texture = low_passed(noise(box, 0), box / 8)
    signal = soft_spherical_mask(box, box / 5, 2) * (1 + 0.3 * texture / texture.std())
    halves = [Volume(signal + 0.5 * noise(box, seed), pixel_size_angstrom) for seed in (1, 2)]
    full = Volume((halves[0].voxels + halves[1].voxels) / 2, pixel_size_angstrom)
    return HalfMaps(halves[0], halves[1], full, independent=True)


@pytest.mark.parametrize("box", [15, 16])
def test_fsc_is_the_correlation_of_every_full_shell(box: int) -> None:
    a, b = noise(box, 0), noise(box, 0) + noise(box, 1)
    frequency = np.fft.fftfreq(box, 1 / box)
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[frequency] * 3, indexing="ij")))
    fa, fb = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    fsc = fourier_shell_correlation(Volume(a, 1.0), Volume(b, 1.0))
    assert len(fsc) == box // 2 + 1
    for shell, value in enumerate(fsc):
        chosen = np.round(radius) == shell
        cross = (fa * fb.conj())[chosen].sum().real
        norm = np.sqrt((abs(fa[chosen]) ** 2).sum() * (abs(fb[chosen]) ** 2).sum())
        assert float(value) == pytest.approx(cross / norm, abs=1e-5)


def test_fsc_agrees_with_torch_fourier_shell_correlation() -> None:
    a = noise(48, 0)
    b = low_passed(a, 10) + 0.5 * noise(48, 1)
    ours = fourier_shell_correlation(Volume(a, 1.0), Volume(b, 1.0))
    # The judge spreads every element over two neighbouring shells, so noise differs a little.
    torch.testing.assert_close(ours[3:], judge_fsc(a, b)[3:].double(), atol=0.05, rtol=0)
    assert float(ours[3:].max() - ours[3:].min()) > 0.5


def test_fsc_of_equal_maps_is_one_of_negatives_minus_one_of_empty_zero() -> None:
    volume = Volume(noise(12, 0), 1.0)
    torch.testing.assert_close(fourier_shell_correlation(volume, volume), torch.ones(7, dtype=torch.float64))
    scaled = Volume(-3 * volume.voxels, 1.0)
    torch.testing.assert_close(fourier_shell_correlation(volume, scaled), -torch.ones(7, dtype=torch.float64))
    empty = Volume(torch.zeros(12, 12, 12), 1.0)
    assert not fourier_shell_correlation(volume, empty).any()


def test_chance_is_how_far_the_fsc_of_noise_is_from_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    found = torch.stack(
        [
            fourier_shell_correlation(
                *(Volume(torch.randn(24, 24, 24, generator=generator), 1.0) for _ in "12")
            )
            for _ in range(60)
        ]
    )
    measured = found.square().mean(0).sqrt()[3:12]
    torch.testing.assert_close(measured, chance_of_fsc(13)[3:12], rtol=0.3, atol=0)


def test_fsc_refuses_maps_of_two_boxes() -> None:
    with pytest.raises(ValueError, match="one box"):
        fourier_shell_correlation(Volume(noise(12, 0), 1.0), Volume(noise(10, 0), 1.0))


@pytest.mark.parametrize(
    ("fsc", "expected"),
    [
        ([1, 1, 1, 1, 1], 2 * 1.5),  # never below: Nyquist
        ([1, 1, 0.643, -0.357, 1], 8 * 1.5 / 2.5),  # half way between shells 2 and 3
        ([1, 1, 0.1, 1, 1], 8 * 1.5 / (1 + 0.857 / 0.9)),  # the first crossing counts
        ([1, 0, 0, 0, 0], 8 * 1.5),
        ([0, 0, 0, 0, 0], 8 * 1.5),
    ],
)
def test_resolution_is_the_first_crossing(fsc: list[float], expected: float) -> None:
    assert resolution_angstrom(torch.tensor(fsc), 8, 1.5) == pytest.approx(expected, rel=1e-5)


def test_masks_are_soft_and_between_zero_and_one() -> None:
    ball = soft_spherical_mask(32, 8, 4)
    assert ball[16, 16, 16 + 8] == 1 and ball[16, 16, 16 + 12] == 0
    assert float(ball[16, 16, 16 + 10]) == pytest.approx(0.5)
    assert float(ball.min()) == 0 and float(ball.max()) == 1


def test_soft_mask_holds_the_molecule_and_leaves_the_solvent_out() -> None:
    mask = soft_mask(noisy_halves(40).full, extend_pixel=1, edge_pixel=2)
    assert float(mask[soft_spherical_mask(40, 7, 1) == 1].min()) > 0.9
    assert float(mask[soft_spherical_mask(40, 17, 1) == 0].max()) == 0


def test_soft_mask_holds_subunits_that_lie_apart_and_no_specks() -> None:
    axis = torch.arange(48) - 24.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")

    def blob(at: tuple[int, int, int], width: float) -> torch.Tensor:
        squares = (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2
        return torch.exp(-squares / (2 * width**2))

    voxels = blob((0, -9, 0), 3.0) + blob((0, 9, 2), 2.5) + 0.8 * blob((18, 18, -18), 0.8)
    mask = soft_mask(Volume(voxels, 2.0), low_pass_angstrom=4.0, extend_pixel=1, edge_pixel=2)
    assert mask[24, 15, 24] == 1 and mask[24, 33, 26] == 1
    assert mask[42, 42, 6] == 0 and mask[24, 24, 40] == 0


def test_soft_mask_of_nothing_is_a_ball() -> None:
    mask = soft_mask(Volume(torch.zeros(16, 16, 16), 3.0))
    assert mask[8, 8, 8] == 1 and mask[0, 0, 0] == 0


def test_masking_solvent_noise_raises_the_fsc() -> None:
    halves = noisy_halves()
    curve = fsc_curve(halves)
    table = curve.table()
    assert list(table.columns) == [
        "shell",
        "frequency_per_angstrom",
        "resolution_angstrom",
        "fsc_unmasked",
        "fsc_masked",
    ]
    assert len(table) == 17 and table.resolution_angstrom.iloc[-1] == pytest.approx(4.0)
    assert np.isinf(table.resolution_angstrom[0])
    assert table.fsc_masked[3:8].mean() > table.fsc_unmasked[3:8].mean()
    assert curve.masked_resolution_angstrom <= curve.unmasked_resolution_angstrom


def test_orientation_errors_are_the_turned_angle() -> None:
    truth = random_unitquat(4, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor([0.0, 0.1, 1.0, 3.0])
    turned = compose(truth, rotation_about_view_axis(angles))
    torch.testing.assert_close(orientation_errors(-turned, truth), angles, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="as many"):
        orientation_errors(truth[:2], truth)


def test_summary_of_errors() -> None:
    summary = summarise_errors(torch.tensor([0.1, 0.2, 0.3, 0.4, 1.5]))
    assert summary.count == 5
    assert summary.median_rad == pytest.approx(0.3)
    assert summary.mean_rad == pytest.approx(0.5)
    assert (summary.lower_quartile_rad, summary.upper_quartile_rad) == pytest.approx((0.2, 0.4))
    assert summarise_errors(torch.tensor([0.2, 0.4])).share_above_0_3_rad == 0.5
    written = summary.to_dict()
    assert written["median_deg"] == pytest.approx(math.degrees(0.3))
    assert written["share_above_0_3_rad"] == summary.share_above_0_3_rad
    with pytest.raises(ValueError, match="at least one"):
        summarise_errors(torch.zeros(0))


def test_equivalent_orientations_are_no_error() -> None:
    truth = random_unitquat(6, generator=torch.Generator().manual_seed(0))
    turned = compose(truth, rotation_about_view_axis(torch.full((6,), 0.1)))
    equivalent = compose(symmetry_group("D3"), turned)
    errors = orientation_errors(equivalent, truth, "D3")
    torch.testing.assert_close(errors, torch.full((6,), 0.1), atol=1e-5, rtol=0)
    assert float(orientation_errors(equivalent, truth)[1:].min()) > 1
    with pytest.raises(ValueError, match="point group"):
        orientation_errors(truth, truth, "E8")
