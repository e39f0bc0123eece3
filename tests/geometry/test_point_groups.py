"""Point groups: group laws, distances, asymmetric units and domains, RELION as judge of the axes."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum.geometry.point_groups import (
    asymmetric_unit,
    distance_to_domain_border,
    in_fundamental_domain,
    nearest_equivalent,
    symmetric_distance,
    symmetry_group,
)
from cryoforum.geometry.rotations import (
    compose,
    geodesic_distance,
    inverse,
    random_unitquat,
    unitquat_to_rotmat,
)
from cryoforum.geometry.so3_grid import rotation_grid
from cryoforum.imaging.fft import to_real
from cryoforum.imaging.projection import cropped_transform, project

ORDERS = {"C1": 1, "C4": 4, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24} | dict.fromkeys(
    ("I", "I1", "I2", "I3", "I4"), 60
)
CYCLIC = tuple(f"C{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 17))
DIHEDRAL = tuple(f"D{n}" for n in (1, 2, 3, 4, 5, 6, 7, 12))
MIRRORED = ("Ci", "Cs", "C2v", "C3h", "S4", "D2h", "D3v", "Td", "Th", "Oh", "Ih", "I2h")


def relions_operators(relion: Path, name: str, folder: Path) -> Tensor:
    """The matrices (g, 3, 3) of a point group as `relion_refine` prints them."""
    command = [relion.parent / "relion_refine", "--sym", name, "--print_symmetry_ops"]
    text = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    numbers = [re.findall(r"\S+", block)[:9] for block in re.split(r"R\(\d+\)=", text)[1:]]
    return torch.tensor([[float(n) for n in block] for block in numbers]).view(-1, 3, 3)


def random_rotations(count: int, seed: int = 0) -> Tensor:
    return random_unitquat(count, generator=torch.Generator().manual_seed(seed))


def widest_gap(found: Tensor, expected: Tensor) -> float:
    """How far any rotation of ``expected`` is from the nearest of ``found``."""
    return float(geodesic_distance(found[:, None], expected[None]).amin(0).max())


def symmetric_blobs(name: str, box: int) -> Tensor:
    """Gaussian blobs in general positions and all that the group makes of them."""
    group = symmetry_group(name)
    count = max(1, 24 // len(group))
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    centres = direction * (0.3 + 0.05 * torch.rand(count, 1, generator=generator)) * box
    everywhere = torch.einsum("gij,nj->gni", unitquat_to_rotmat(group), centres)
    axis = (torch.arange(box) - box // 2).float()
    voxels = torch.zeros(box, box, box)
    for centre in everywhere.reshape(-1, 3):
        x, y, z = (torch.exp(-((axis - c) ** 2) / (2 * 1.3**2)) for c in centre)
        voxels += z[:, None, None] * y[:, None] * x
    return voxels


@pytest.mark.parametrize("name", list(ORDERS))
def test_they_are_groups_of_the_right_order(name: str) -> None:
    group = symmetry_group(name)
    assert group.shape == (ORDERS[name], 4)
    assert group[0].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(group.norm(dim=-1), torch.ones(len(group)))
    apart = geodesic_distance(group[:, None], group[None]) + 9 * torch.eye(len(group))
    assert float(apart.min()) > 0.1
    products = compose(group[:, None], group[None]).view(-1, 4)
    assert widest_gap(group, products) < 1e-5
    assert widest_gap(group, inverse(group)) < 1e-5


@pytest.mark.parametrize(
    "name", [*CYCLIC, *DIHEDRAL, "T", "O", "I", "I1", "I2", "I3", "I4", "c4", "d3", "i3"]
)
def test_the_axes_are_those_of_relion(relion: Path, tmp_path: Path, name: str) -> None:
    ours, matrices = symmetry_group(name), relions_operators(relion, name, tmp_path)
    theirs = torch.from_numpy(Rotation.from_matrix(matrices.numpy()).as_quat()).float()
    assert len(theirs) == len(ours)
    # RELION writes five to six digits. A group holds its inverses, so either reading of R will do.
    assert widest_gap(ours, theirs) < 1e-3 and widest_gap(theirs, ours) < 1e-3


@pytest.mark.parametrize("name", MIRRORED)
def test_groups_that_relion_gives_mirrors_are_refused_with_the_reason(
    relion: Path, tmp_path: Path, name: str
) -> None:
    determinants = torch.linalg.det(relions_operators(relion, name, tmp_path))
    assert float(determinants.min()) < -0.9
    with pytest.raises(ValueError, match="of the other hand"):
        symmetry_group(name)


def test_the_setting_that_relion_names_but_lacks_is_refused(relion: Path, tmp_path: Path) -> None:
    assert len(relions_operators(relion, "I5", tmp_path)) == 0
    with pytest.raises(ValueError, match="no operators"):
        symmetry_group("I5")


@pytest.mark.parametrize("name", ["c4", " D2", "i1", "t"])
def test_names_may_be_written_small(name: str) -> None:
    assert torch.equal(symmetry_group(name), symmetry_group(name.strip().upper()))


@pytest.mark.parametrize("name", ["", "C0", "C", "C100", "D", "X", "I5", "C2v", "C-2", "TD", "42"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"C1 to C99, D1 to D99, T, O, I, I1, I2, I3, I4, found '{name}'")
    ):
        symmetry_group(name)


@pytest.mark.parametrize("name", ["C1", "C4", "D7", "T", "I1"])
def test_distances_are_the_smallest_over_all_equivalents(name: str) -> None:
    group = symmetry_group(name)
    a, b, c = random_rotations(150).view(3, 50, 4)
    found = symmetric_distance(a, b, group)
    every = geodesic_distance(a, compose(group[:, None], b))
    torch.testing.assert_close(found, every.amin(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, symmetric_distance(b, a, group), atol=1e-5, rtol=0)
    for element in group:
        torch.testing.assert_close(
            symmetric_distance(compose(element, a), -b, group), found, atol=1e-5, rtol=0
        )
        assert float(symmetric_distance(a, compose(element, a), group).max()) < 1e-5
    detour = found + symmetric_distance(b, c, group)
    assert bool((symmetric_distance(a, c, group) <= detour + 1e-5).all())


def test_without_symmetry_distances_are_the_geodesic_ones_to_the_last_bit() -> None:
    a, b = random_rotations(200).view(2, 100, 4)
    assert torch.equal(symmetric_distance(a, b, symmetry_group("C1")), geodesic_distance(a, b))


@pytest.mark.parametrize("name", ["D2", "O"])
def test_the_nearest_equivalent_is_one_and_is_nearest(name: str) -> None:
    group = symmetry_group(name)
    q, reference = random_rotations(100).view(2, 50, 4)
    found = nearest_equivalent(q, reference, group)
    assert float(symmetric_distance(found, q, group).max()) < 1e-5
    torch.testing.assert_close(geodesic_distance(found, reference), symmetric_distance(q, reference, group))


def test_a_hundred_thousand_pairs_and_gradients_are_no_trouble() -> None:
    a, b = random_rotations(200_000).view(2, 100_000, 4)
    a.requires_grad_()
    symmetric_distance(a, b, symmetry_group("I")).sum().backward()
    assert a.grad is not None and bool(torch.isfinite(a.grad).all())


@pytest.mark.parametrize("name", ["C1", "C4", "D2", "D7", "T", "O", "I1", "I2", "I3", "I4"])
def test_an_asymmetric_unit_stands_for_the_whole_grid(name: str) -> None:
    group, grid = symmetry_group(name), rotation_grid(6)
    kept = asymmetric_unit(grid, group)
    assert len(kept) == pytest.approx(len(grid) / len(group), rel=0.05)
    nearest = geodesic_distance(kept, group[0])
    smallest = symmetric_distance(group[0], kept, group)
    torch.testing.assert_close(nearest, smallest, atol=2e-3, rtol=0)
    anywhere = random_rotations(100, seed=1)
    gaps = torch.stack([symmetric_distance(q, kept, group).min() for q in anywhere])
    assert float(torch.rad2deg(gaps).max()) < 10  # the grid's spacing


@pytest.mark.parametrize("name", ["C4", "D2", "O"])
def test_of_equivalent_grid_points_exactly_one_is_kept(name: str) -> None:
    group = symmetry_group(name)
    orbits = compose(group[:, None], rotation_grid(2)[::17])
    kept = asymmetric_unit(orbits.view(-1, 4), group)
    apart = symmetric_distance(kept[:, None], orbits[:1, :], group)
    assert bool(((apart < 1e-3).sum(0) >= 1).all())
    again = symmetric_distance(kept[:, None], kept[None], group) < 1e-3
    same = geodesic_distance(kept[:, None], kept[None]) < 1e-3
    assert torch.equal(again, same)


@pytest.mark.parametrize("name", ["C1", "C4", "D2", "D7", "O", "I1"])
def test_of_all_equivalents_one_is_in_the_fundamental_domain(name: str) -> None:
    group, q = symmetry_group(name), random_rotations(200)
    found = in_fundamental_domain(q, group)
    assert found.dtype == q.dtype
    assert float(symmetric_distance(found, q, group).max()) < 1e-5
    torch.testing.assert_close(
        geodesic_distance(found, group[0]), symmetric_distance(q, group[0], group), atol=2e-3, rtol=0
    )
    assert float(geodesic_distance(in_fundamental_domain(found, group), found).max()) < 1e-5
    for element in group:
        same = in_fundamental_domain(compose(element, -q), group)
        assert float(geodesic_distance(same, found).max()) < 1e-5
    assert len(asymmetric_unit(found, group)) == len(q)
    if name == "C1":
        assert torch.equal(found, q)


@pytest.mark.parametrize("name", ["C2", "C4", "D2", "O"])
def test_the_border_of_the_domain_is_half_way_to_an_equivalent(name: str) -> None:
    group = symmetry_group(name)
    order, identity = len(group), group[:1]
    assert float(distance_to_domain_border(identity, group)) == pytest.approx(
        float(geodesic_distance(group[1:], identity).min()) / 2, abs=1e-3
    )
    # Half of the way from the identity to each element both are equally near.
    half = torch.nn.functional.normalize(group + identity, dim=-1)[1:]
    half = half[(geodesic_distance(half, identity) <= symmetric_distance(half, identity, group) + 1e-4)]
    assert 0 < len(half) < order
    assert float(distance_to_domain_border(half, group).max()) < 1e-3


@pytest.mark.parametrize("name", ["C4", "D2", "O", "I1"])
def test_nearer_than_the_border_no_turn_leads_out_of_the_domain(name: str) -> None:
    group = symmetry_group(name)
    q = in_fundamental_domain(random_rotations(400), group)
    border = distance_to_domain_border(q, group)
    assert bool((border >= 0).all()) and float(border.max()) > 0.1
    axis = torch.nn.functional.normalize(random_rotations(400, seed=2)[:, :3], dim=-1)

    def turned_by(angle: Tensor) -> Tensor:
        return compose(torch.cat([torch.sin(angle / 2) * axis, torch.cos(angle / 2)], dim=-1), q)

    inside = turned_by(0.99 * border[:, None])
    assert float(geodesic_distance(in_fundamental_domain(inside, group), inside).max()) < 1e-3
    outside = turned_by(border[:, None] + 0.5)
    left = geodesic_distance(in_fundamental_domain(outside, group), outside) > 1e-3
    assert float(left.float().mean()) > 0.1


def test_without_symmetry_there_is_no_border() -> None:
    assert distance_to_domain_border(random_rotations(5), symmetry_group("C1")).tolist() == [float("inf")] * 5


@pytest.mark.parametrize("name", ["C4", "D2", "T", "I1"])
def test_a_symmetric_map_looks_alike_at_equivalent_orientations(name: str) -> None:
    box, group = 32, symmetry_group(name)
    transform = cropped_transform(symmetric_blobs(name, box))
    q = random_rotations(3)
    images = to_real(project(transform, q, box), box)
    contrast = images.std(dim=(1, 2))
    for element in group[:: max(1, len(group) // 6)]:
        again = to_real(project(transform, compose(element, q), box), box)
        assert float(((again - images).std(dim=(1, 2)) / contrast).max()) < 0.05
    other = to_real(project(transform, compose(q, group[1]), box), box)  # from the wrong side
    assert float(((other - images).std(dim=(1, 2)) / contrast).min()) > 0.1
