"""The contrast transfer function, in RELION's sign and units (lengths in Å, defocus underfocus > 0)."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cryoforum.fourier import frequency_grid


@dataclass(frozen=True)
class Optics:
    """What bends the electrons, one number a particle: every field is an (n,) float tensor."""

    defocus_u_angstrom: Tensor
    defocus_v_angstrom: Tensor
    defocus_angle_deg: Tensor
    voltage_kv: Tensor
    spherical_aberration_mm: Tensor
    amplitude_contrast: Tensor
    phase_shift_deg: Tensor

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, rows: Tensor) -> "Optics":
        return Optics(*(getattr(self, field.name)[rows] for field in fields(self)))


def electron_wavelength_angstrom(voltage_kv: Tensor) -> Tensor:
    """Relativistic wavelength of electrons accelerated by ``voltage_kv`` (CODATA 2018 constants)."""
    volts = voltage_kv.double() * 1e3
    wavelength = 12.264259661581491 / torch.sqrt(volts * (1 + 0.9784755917e-6 * volts))
    return wavelength.to(voltage_kv.dtype)


def ctf(optics: Optics, box: int, pixel_size_angstrom: float) -> Tensor:
    """CTF by which RELION multiplies the transform of a projection, (n, box, box // 2 + 1).

    Layout of `torch.fft.rfft2`. Near zero frequency it equals +amplitude contrast: particles are
    bright where RELION, too, makes them bright. χ follows Mindell & Grigorieff (2003), eq. 3-5.
    """
    ky, kx = frequency_grid(box, pixel_size_angstrom)
    return ctf_at(optics, kx, ky)


def ctf_at(optics: Optics, kx: Tensor, ky: Tensor) -> Tensor:
    """CTF at the frequencies ``kx``, ``ky`` in cycles per Å that broadcast to (...): (n, ...)."""
    k2 = kx**2 + ky**2
    azimuth = torch.atan2(ky, kx)

    def column(values: Tensor) -> Tensor:
        return values.view(-1, *[1] * k2.ndim).to(k2.dtype)

    mean = column((optics.defocus_u_angstrom + optics.defocus_v_angstrom) / 2)
    half_difference = column((optics.defocus_u_angstrom - optics.defocus_v_angstrom) / 2)
    angle = column(torch.deg2rad(optics.defocus_angle_deg))
    defocus = mean + half_difference * torch.cos(2 * (azimuth - angle))
    wavelength = column(electron_wavelength_angstrom(optics.voltage_kv))
    spherical = column(optics.spherical_aberration_mm) * 1e7
    contrast = column(optics.amplitude_contrast)
    constant = torch.asin(contrast) + column(torch.deg2rad(optics.phase_shift_deg))
    phase = math.pi * wavelength * k2 * (defocus - 0.5 * spherical * wavelength**2 * k2)
    return torch.sin(phase + constant)
