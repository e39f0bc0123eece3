"""The contrast transfer function, in RELION's sign and units (lengths in Å, defocus underfocus > 0)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.errors import require
from cryoforum.imaging.fft import frequency_grid


def electron_wavelength_angstrom(voltage_kv: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Relativistic wavelength of electrons accelerated by ``voltage_kv`` (CODATA 2018 constants)."""
    volts = voltage_kv.double() * 1e3
    wavelength = 12.264259661581491 / torch.sqrt(volts * (1 + 0.9784755917e-6 * volts))
    return wavelength.to(voltage_kv.dtype)


def ctf_2d(ctf: CtfParameters, box: int, pixel_size_angstrom: float) -> Float[Tensor, "n box half"]:
    """CTF by which RELION multiplies the transform of a projection, (n, box, box // 2 + 1).

    Layout of `torch.fft.rfft2`. Near zero frequency it equals +amplitude contrast: particles are
    bright where RELION, too, makes them bright. χ follows Mindell & Grigorieff (2003), eq. 3-5.
    """
    ky, kx = frequency_grid(box, pixel_size_angstrom)
    return ctf_at(ctf, kx, ky)


def ctf_image(ctf: CtfParameters, box: int, pixel_size_angstrom: float) -> Float[Tensor, "n box box"]:
    """CTFs as pictures, zero frequency at pixel box // 2 along both axes.

    Parameters
    ----------
    ctf
        n of them; `CtfParameters.from_values` makes them of numbers.
    box
        Width of the images that they multiply the transforms of, in pixels.
    pixel_size_angstrom
        Of these images.

    Returns
    -------
    Tensor
        (n, box, box) in [-1, 1]; +amplitude contrast at zero frequency. `ctf_2d` gives them in the layout of
        `torch.fft.rfft2`.

    Raises
    ------
    InputError
        Where box or pixel size are not above 0.
    """
    require(
        box > 0 and pixel_size_angstrom > 0, "box and pixel size above 0", f"{box}, {pixel_size_angstrom}"
    )
    axis = torch.fft.fftshift(torch.fft.fftfreq(box, d=pixel_size_angstrom))
    return ctf_at(ctf, axis[None, :], axis[:, None])


def ctf_at(ctf: CtfParameters, kx: Float[Tensor, "*a"], ky: Float[Tensor, "*b"]) -> Float[Tensor, "n ..."]:
    """CTF at the frequencies ``kx``, ``ky`` in cycles per Å that broadcast to (...): (n, ...)."""
    return torch.sin(_phase_at(ctf, kx, ky))


def ctf_defocus_slope_at(
    ctf: CtfParameters, kx: Float[Tensor, "*a"], ky: Float[Tensor, "*b"]
) -> Float[Tensor, "n ..."]:
    """Derivative of `ctf_at` by the mean defocus, (n, ...) per Å."""
    wavelength = _column(electron_wavelength_angstrom(ctf.voltage_kv), kx)
    return torch.cos(_phase_at(ctf, kx, ky)) * math.pi * wavelength * (kx**2 + ky**2)


def _phase_at(ctf: CtfParameters, kx: Tensor, ky: Tensor) -> Tensor:
    """χ, of which the CTF is the sine, (n, ...)."""
    k2 = kx**2 + ky**2
    azimuth = torch.atan2(ky, kx)
    mean = _column((ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2, k2)
    half_difference = _column((ctf.defocus_u_angstrom - ctf.defocus_v_angstrom) / 2, k2)
    angle = _column(torch.deg2rad(ctf.defocus_angle_deg), k2)
    defocus = mean + half_difference * torch.cos(2 * (azimuth - angle))
    wavelength = _column(electron_wavelength_angstrom(ctf.voltage_kv), k2)
    spherical = _column(ctf.spherical_aberration_mm, k2) * 1e7
    constant = torch.asin(ctf.amplitude_contrast) + torch.deg2rad(ctf.phase_shift_deg)
    phase = math.pi * wavelength * k2 * (defocus - 0.5 * spherical * wavelength**2 * k2)
    return phase + _column(constant, k2)


def _column(values: Tensor, frequencies: Tensor) -> Tensor:
    """One number a particle (n,), as (n, 1, …) that broadcasts against ``frequencies`` (...)."""
    return values.view(-1, *[1] * frequencies.ndim).to(frequencies.dtype)
