"""The CTF has the numbers of torch-ctf, RELION's sign and its symmetries."""

import math

import pytest
import torch
from torch_ctf import calculate_ctf_2d

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.imaging.ctf import ctf_2d, electron_wavelength_angstrom


def ctf(**changed: float) -> CtfParameters:
    values = {
        "defocus_u_angstrom": 17000.0,
        "defocus_v_angstrom": 15500.0,
        "defocus_angle_deg": 33.0,
        "voltage_kv": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift_deg": 0.0,
    }
    return CtfParameters(**{name: torch.tensor([value]) for name, value in {**values, **changed}.items()})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"voltage_kv": 200.0, "spherical_aberration_mm": 1.4},
        {"defocus_angle_deg": -71.0, "defocus_v_angstrom": 9000.0},
        {"phase_shift_deg": 60.0, "amplitude_contrast": 0.07},
    ],
)
def test_ctf_agrees_with_torch_ctf(changed: dict[str, float]) -> None:
    ours = ctf(**changed)
    # The judge takes micrometres.
    mean_um = (ours.defocus_u_angstrom + ours.defocus_v_angstrom) / 2e4
    half_difference_um = (ours.defocus_u_angstrom - ours.defocus_v_angstrom) / 2e4
    expected = calculate_ctf_2d(
        defocus=mean_um,
        astigmatism=half_difference_um,
        astigmatism_angle=ours.defocus_angle_deg,
        voltage=ours.voltage_kv,
        spherical_aberration=ours.spherical_aberration_mm,
        amplitude_contrast=ours.amplitude_contrast,
        phase_shift=ours.phase_shift_deg,
        pixel_size=1.5,
        image_shape=(48, 48),
        rfft=True,
        fftshift=False,
    )
    torch.testing.assert_close(ctf_2d(ours, 48, 1.5), expected.reshape(1, 48, 25), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("voltage_kv", "expected"), [(100.0, 0.037014), (200.0, 0.025079), (300.0, 0.019687)]
)
def test_electron_wavelength_is_that_of_the_tables(voltage_kv: float, expected: float) -> None:
    assert float(electron_wavelength_angstrom(torch.tensor(voltage_kv))) == pytest.approx(expected, abs=1e-6)


def test_at_zero_frequency_the_ctf_is_plus_the_amplitude_contrast() -> None:
    assert float(ctf_2d(ctf(), 16, 2.0)[0, 0, 0]) == pytest.approx(0.1, abs=1e-6)
    with_plate = ctf_2d(ctf(phase_shift_deg=90.0), 16, 2.0)[0, 0, 0]
    assert float(with_plate) == pytest.approx(math.cos(math.asin(0.1)), abs=1e-6)


def test_friedel_mates_have_one_value() -> None:
    column = ctf_2d(ctf(), 16, 2.0)[0, 1:, 0]
    torch.testing.assert_close(column, column.flip(0))


def test_swapping_u_and_v_is_turning_the_angle_by_ninety_degrees() -> None:
    swapped = ctf(defocus_u_angstrom=15500.0, defocus_v_angstrom=17000.0, defocus_angle_deg=123.0)
    torch.testing.assert_close(ctf_2d(swapped, 32, 1.5), ctf_2d(ctf(), 32, 1.5), atol=1e-4, rtol=0)


def test_particles_have_their_own_ctf() -> None:
    shallow, deep = ctf(), ctf(defocus_u_angstrom=25000.0)
    pairs = zip(vars(shallow).values(), vars(deep).values(), strict=True)
    both = CtfParameters(*(torch.cat(pair) for pair in pairs))
    together = ctf_2d(both, 16, 2.0)
    torch.testing.assert_close(together[1:], ctf_2d(deep, 16, 2.0))
    torch.testing.assert_close(ctf_2d(both[torch.tensor([1])], 16, 2.0), together[1:])
    assert len(both) == 2
