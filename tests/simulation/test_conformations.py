"""States of a molecule: what moves, what stays, and how much of it."""

import math

import pytest
import torch
from scipy import ndimage

from cryoforum.dataset.volumes import Volume
from cryoforum.errors import InputError
from cryoforum.molecules.structures import load_structure
from cryoforum.simulation.conformations import DOMAIN_SHARE, conformations, half_of, radius_angstrom

BOX, PIXEL_SIZE = 48, 7.5


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


def test_the_first_state_is_the_molecule_and_an_angle_of_none_changes_nothing(molecule: Volume) -> None:
    first, second = conformations(molecule, 2, 0.0)
    assert first is molecule
    torch.testing.assert_close(
        second.voxels, molecule.voxels, atol=1e-5 * float(molecule.voxels.max()), rtol=0
    )


def test_a_domain_moves_as_a_whole_and_the_body_stays(molecule: Volume) -> None:
    states = conformations(molecule, 3, 10.0)
    mass = molecule.voxels.sum()
    for number, state in enumerate(states[1:], 1):
        assert float(state.voxels.sum() / mass) == pytest.approx(1, abs=0.02)
        changed = (state.voxels - molecule.voxels).abs() > 0.05 * molecule.voxels.max()
        share = float(molecule.voxels[changed].sum() / mass)
        assert DOMAIN_SHARE - 0.15 < share < DOMAIN_SHARE + 0.1
        # About a fixed axis every point of the domain moves on a circle: so does the domain's centre of mass.
        difference = state.voxels - molecule.voxels
        axis = (torch.arange(BOX) - BOX // 2).float()
        centre_moved = torch.stack(
            [(difference * a).sum() for a in (axis, axis[:, None], axis[:, None, None])]
        ) / (DOMAIN_SHARE * mass)
        radius = float(centre_moved.norm()) / (2 * math.sin(math.radians(number * 10.0) / 2))
        assert 3 < radius < 12, "voxels from the hinge to the domain's centre of mass"


def test_twice_the_angle_is_the_third_state(molecule: Volume) -> None:
    torch.testing.assert_close(
        conformations(molecule, 3, 6.0)[2].voxels, conformations(molecule, 2, 12.0)[1].voxels
    )


def test_the_turned_domain_is_that_of_scipys_rotation() -> None:
    # A rod along x: its far end turns about y (the second axis of a flat bar), out of the plane.
    voxels = torch.zeros(BOX, BOX, BOX)
    voxels[23:26, 19:30, 8:41] = 1.0
    bar = Volume(torch.from_numpy(ndimage.gaussian_filter(voxels.numpy(), 1.0)), 1.0)
    turned = conformations(bar, 2, 20.0)[1].voxels
    places = (turned > 0.4).nonzero().float()
    height, along = places[:, 0] - BOX // 2, places[:, 2]
    tip = torch.maximum(height[along > 34].abs().mean(), height[along < 13].abs().mean())
    hinge_to_tip = 0.85 * DOMAIN_SHARE * 33
    assert float(tip) == pytest.approx(hinge_to_tip * math.sin(math.radians(20)), abs=1.0)


def test_half_of_a_molecule_has_about_half_of_its_mass(molecule: Volume) -> None:
    half = half_of(molecule).voxels
    assert float(half.sum() / molecule.voxels.sum()) == pytest.approx(0.5, abs=0.08)
    assert (half <= molecule.voxels + 1e-6).all()


def test_the_radius_of_a_ball() -> None:
    axis = (torch.arange(BOX) - BOX // 2).float()
    square = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    ball = Volume((square < 15**2).float(), 2.0)
    assert radius_angstrom(ball) == pytest.approx(2 * 15 * 0.98 ** (1 / 3), rel=0.02)


def test_an_empty_map_is_refused() -> None:
    with pytest.raises(InputError, match="expected a map with a molecule"):
        conformations(Volume(torch.zeros(8, 8, 8), 1.0), 2, 7.0)
