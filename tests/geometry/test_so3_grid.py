"""HEALPix centres are healpy's, and the rotation grid is as even as it promises."""

import math

import healpy
import numpy as np
import pytest
import torch

from cryoforum.geometry.rotations import geodesic_distance, random_unitquat, unitquat_to_rotmat
from cryoforum.geometry.so3_grid import healpix_directions, rotation_grid


@pytest.mark.parametrize("nside", [1, 2, 3, 4, 6, 8, 16, 64])
def test_directions_are_the_pixel_centres_of_healpy(nside: int) -> None:
    theta, phi = healpix_directions(nside)
    expected_theta, expected_phi = healpy.pix2ang(nside, np.arange(12 * nside**2))
    np.testing.assert_allclose(theta.numpy(), expected_theta, atol=1e-12)
    np.testing.assert_allclose(phi.numpy(), expected_phi, atol=1e-12)


def test_nside_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="nside of 1 or more"):
        healpix_directions(0)


@pytest.mark.parametrize(("nside", "count"), [(1, 72), (2, 576), (4, 4608)])
def test_grid_has_its_size_and_unit_quaternions(nside: int, count: int) -> None:
    grid = rotation_grid(nside)
    assert grid.shape == (count, 4)
    torch.testing.assert_close(grid.norm(dim=-1), torch.ones(count))


def test_no_two_rotations_are_the_same_and_none_is_far_from_the_grid() -> None:
    grid = rotation_grid(2)
    apart = geodesic_distance(grid[:, None], grid[None])
    spacing = 2 * math.pi / 12
    assert float((apart + 10 * torch.eye(len(grid))).min()) > 0.5 * spacing
    anywhere = random_unitquat(500, generator=torch.Generator().manual_seed(0))
    assert float(geodesic_distance(anywhere[:, None], grid[None]).min(dim=1).values.max()) < 1.25 * spacing


def test_grid_is_balanced() -> None:
    mean = unitquat_to_rotmat(rotation_grid(2)).mean(0)
    torch.testing.assert_close(mean, torch.zeros(3, 3), atol=1e-5, rtol=0)
