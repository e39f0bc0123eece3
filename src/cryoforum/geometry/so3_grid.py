"""Uniform grids of rotations: HEALPix pixel centres times evenly spaced in-plane angles."""

import math

import torch
from torch import Tensor

from cryoforum.errors import InputError
from cryoforum.geometry.rotations import relion_euler_to_unitquat


def healpix_directions(nside: int) -> tuple[Tensor, Tensor]:
    """Colatitude θ and longitude φ in radians, each (12 nside²,), in RING order (Gorski et al. 2005, 5.1)."""
    if nside < 1:
        raise InputError(f"expected nside of 1 or more, found {nside}")
    pixel = torch.arange(12 * nside**2, dtype=torch.float64)
    cap_size = 2 * nside * (nside - 1)
    is_north, is_south = pixel < cap_size, pixel >= len(pixel) - cap_size
    mirrored = torch.where(is_south, len(pixel) - 1 - pixel, pixel)

    ring = torch.floor(torch.sqrt((mirrored + 1) / 2 - torch.sqrt(torch.floor((mirrored + 1) / 2)))) + 1
    step = mirrored + 1 - 2 * ring * (ring - 1)
    cap_z = 1 - ring**2 / (3 * nside**2)
    cap_phi = math.pi / (2 * ring) * (step - 0.5)

    belt = pixel - cap_size
    belt_ring = torch.floor(belt / (4 * nside)) + nside
    belt_step = torch.remainder(belt, 4 * nside) + 1
    offset = torch.where(torch.remainder(belt_ring - nside, 2) == 0, 0.5, 1.0)
    belt_z = 4 / 3 - 2 * belt_ring / (3 * nside)
    belt_phi = math.pi / (2 * nside) * (belt_step - offset)

    z = torch.where(is_north, cap_z, torch.where(is_south, -cap_z, belt_z))
    phi = torch.where(is_north, cap_phi, torch.where(is_south, 2 * math.pi - cap_phi, belt_phi))
    return torch.arccos(z), phi


def rotation_grid(nside: int) -> Tensor:
    """Near-uniform grid of unit quaternions, (12 nside² · 6 nside, 4).

    As many in-plane angles make their step equal the pixel spacing (nside 4 gives 15°, 6 gives 10°,
    8 gives 7.5°, as RELION's sampling).
    """
    count = 6 * nside
    theta, phi = healpix_directions(nside)
    psi = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    angles = torch.stack(
        [phi.repeat_interleave(count), theta.repeat_interleave(count), psi.repeat(len(phi))], dim=-1
    )
    return relion_euler_to_unitquat(torch.rad2deg(angles))
