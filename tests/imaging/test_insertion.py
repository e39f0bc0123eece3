"""Inserting slices is the exact adjoint of reading them, and symmetry is summed as if all had been inserted."""

import pytest
import torch
from torch import Tensor

from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat, unitquat_to_rotmat
from cryoforum.imaging.fft import FrequencyPoints, frequency_points, half_transform_points
from cryoforum.imaging.insertion import empty_grids, hermitian_sum, insert_slices, symmetrised
from cryoforum.imaging.projection import PADDING, slices_at


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_values(count: int, points: FrequencyPoints) -> tuple[Tensor, Tensor]:
    """Slices and powers, (count, p)."""
    shape = count, len(points.kx)
    values = torch.randn(shape, dtype=torch.complex64, generator=seeded(1))
    return values, torch.rand(shape, generator=seeded(2))


def inserted_plainly(grid: Tensor, points: FrequencyPoints, values: Tensor, quaternions: Tensor) -> None:
    """The readable twin: each value to its eight neighbours, in double precision."""
    size, width = grid.shape[0], grid.shape[2]
    axes = unitquat_to_rotmat(quaternions.double())[:, :, :2]
    position = PADDING * torch.einsum("bij,jp->bpi", axes, torch.stack([points.kx, points.ky]).double())
    mirrored = position[..., 0] < 0
    position = torch.where(mirrored[..., None], -position, position)
    values = torch.where(mirrored, values.conj(), values) if values.is_complex() else values
    corner = position.floor()
    share = position - corner
    for step in torch.cartesian_prod(*[torch.arange(2)] * 3):
        weight = torch.where(step == 1, share, 1 - share).prod(-1)
        x, y, z = (corner + step).long().unbind(-1)
        at = ((z + size // 2) * size + y + size // 2) * width + x
        grid.view(-1).index_add_(0, at.flatten(), (weight * values).to(grid.dtype).flatten())


@pytest.mark.parametrize("box", [12, 13])
def test_the_compiled_inserter_agrees_with_its_readable_twin(box: int) -> None:
    quaternions, grid_of = random_unitquat(9, generator=seeded()), torch.arange(9) % 3
    for points in (half_transform_points(box), frequency_points(box, box // 2 - 2)):
        values, powers = random_values(9, points)
        data, weight = empty_grids(box, 3)
        for part in torch.arange(9).split(4):  # sums go on
            insert_slices(data, weight, points, values[part], powers[part], quaternions[part], grid_of[part])
        for grid in range(3):
            own = grid_of == grid
            for found, inserted in ((data[grid], values), (weight[grid], powers)):
                double = torch.complex128 if found.is_complex() else torch.float64
                expected = torch.zeros(found.shape, dtype=double)
                inserted_plainly(expected, points, inserted[own], quaternions[own])
                assert float(expected.abs().max()) > 0.3
                torch.testing.assert_close(found.to(double), expected, atol=1e-4, rtol=0)


def test_inserting_is_the_exact_adjoint_of_reading() -> None:
    box, quaternions = 16, random_unitquat(5, generator=seeded(1))
    points = half_transform_points(box)
    values, powers = random_values(5, points)
    data, weight = empty_grids(box, 1)
    transform = torch.randn(*data.shape[1:], 2, generator=seeded(3))
    read = slices_at(transform, quaternions, points)
    insert_slices(data, weight, points, values, powers, quaternions, torch.zeros(5, dtype=torch.long))
    in_slices = (torch.view_as_real(read).double() * torch.view_as_real(values)).sum()
    in_map = (transform.double() * torch.view_as_real(data[0])).sum()
    scale = read.norm() * values.norm()
    assert abs(in_slices - in_map) < 1e-6 * scale
    assert abs(in_slices) > 1e-3 * scale


def test_hermitian_sum_is_the_half_transform_of_a_real_map() -> None:
    points = half_transform_points(8)
    data, weight = empty_grids(8, 1)
    pose = random_unitquat(4, generator=seeded(3)), torch.zeros(4, dtype=torch.long)
    insert_slices(data, weight, points, *random_values(4, points), *pose)
    before = data.clone()
    plane = hermitian_sum(data[0])[:, :, 0]
    assert torch.equal(data, before)
    torch.testing.assert_close(plane, plane.flip(0, 1).conj())


def test_what_would_be_written_outside_is_refused() -> None:
    points = half_transform_points(8)
    grids = empty_grids(6, 1)
    with pytest.raises(ValueError, match="2.5 cycles per box, found 3.2"):
        insert_slices(*grids, points, *random_values(1, points), torch.eye(4)[3:], torch.zeros(1).long())
    with pytest.raises(ValueError, match="length 1"):
        insert_slices(
            *empty_grids(8, 1), points, *random_values(1, points), torch.zeros(1, 4), torch.zeros(1).long()
        )


@pytest.mark.parametrize("symmetry", ["C2", "D3"])
def test_a_symmetrised_grid_is_close_to_one_with_all_copies_inserted(symmetry: str) -> None:
    """Not equal: what is inserted is spread once, what is summed afterwards twice."""
    box, group, count = 16, symmetry_group(symmetry), 40
    points, quaternions = half_transform_points(box), random_unitquat(count, generator=seeded(4))
    powers = torch.exp(-points.radius / 4).expand(count, -1)
    data, weight = empty_grids(box, 1)
    insert_slices(data, weight, points, powers + 0j, powers, quaternions, torch.zeros(count).long())
    copies = compose(group[:, None], quaternions).view(-1, 4)
    repeated = powers.repeat(len(group), 1)
    all_data, all_weight = empty_grids(box, 1)
    insert_slices(
        all_data, all_weight, points, repeated + 0j, repeated, copies, torch.zeros(len(copies)).long()
    )
    for one, expected in ((weight, all_weight), (data, all_data)):
        summed = symmetrised(one[0], group, box)
        assert summed.dtype == expected.dtype
        found = torch.view_as_real(summed + 0j).flatten()
        other = torch.view_as_real(expected[0] + 0j).flatten()
        assert float((found * other).sum() / (found.norm() * other.norm())) > 0.97
        assert float(found.sum() / other.sum()) == pytest.approx(1, abs=0.03)
