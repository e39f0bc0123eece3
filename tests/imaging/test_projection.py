"""The projector shows what RELION and an independent library show, and inserting is its exact adjoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fourier_slice import project_3d_to_2d

from cryoforum.geometry.rotations import random_unitquat, unitquat_to_rotmat
from cryoforum.imaging.fft import phase_shift, to_fourier, to_real
from cryoforum.imaging.projection import (
    PADDING,
    backproject,
    cropped_transform,
    empty_half_grid,
    gridding_correction,
    hermitian_sum,
    insert_slices,
    padded_transform,
    project,
    radius_of_cropped,
)
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.io.relion.star_files import read_star


def random_slices(count: int, box: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, box, box // 2 + 1, dtype=torch.complex64, generator=generator)


def smooth_map(box: int, seed: int = 0) -> torch.Tensor:
    """Gaussian blobs of random place and weight, well inside the box, (box, box, box)."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(box) - box // 2
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).float()
    centres = (torch.rand(12, 3, generator=generator) - 0.5) * box * 0.5
    weights = torch.rand(12, generator=generator) + 0.5
    distances = (grid[None] - centres[:, None, None, None]).square().sum(-1)
    return torch.einsum("b,bzyx->zyx", weights, torch.exp(-distances / (2 * 1.5**2)))


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(np.corrcoef(first.flatten(), second.flatten())[0, 1])


def test_an_unturned_projection_is_the_sum_along_z() -> None:
    """On grid points nothing is interpolated, so there the correction for it shows in full."""
    volume = smooth_map(32)
    identity = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    image = to_real(project(padded_transform(volume), identity), 32)[0]
    torch.testing.assert_close(image, (volume / gridding_correction(32)).sum(0), atol=2e-3, rtol=0)


def test_backproject_is_the_exact_adjoint_of_project() -> None:
    box, quaternions = 16, random_unitquat(5, generator=torch.Generator().manual_seed(1))
    transform = padded_transform(torch.randn(box, box, box, generator=torch.Generator().manual_seed(2)))
    slices = random_slices(5, box)
    projected = torch.view_as_real(project(transform, quaternions).to(torch.complex128))
    backprojected = backproject(slices, quaternions).double()
    in_slices = (projected * torch.view_as_real(slices).double()).sum()
    in_volume = (transform.double() * backprojected).sum()
    scale = projected.norm() * torch.view_as_real(slices).double().norm()
    assert abs(in_slices - in_volume) < 1e-5 * scale
    assert abs(in_slices) > 1e-3 * scale


def test_backproject_is_the_gradient_of_project_made_hermitian() -> None:
    box, quaternions = 12, random_unitquat(3, generator=torch.Generator().manual_seed(1))
    leaf = torch.zeros(2, *(PADDING * box,) * 3, requires_grad=True)
    slices = random_slices(3, box)
    torch.view_as_real(project(leaf, quaternions)).mul(torch.view_as_real(slices)).sum().backward()
    assert leaf.grad is not None
    gradient = torch.complex(*leaf.grad)
    mates = torch.zeros_like(gradient)
    mates[1:, 1:, 1:] = gradient[1:, 1:, 1:].flip(0, 1, 2).conj()
    expected = torch.view_as_real((gradient + mates) / 2).movedim(-1, 0)
    torch.testing.assert_close(backproject(slices, quaternions), expected, atol=1e-5, rtol=0)


def test_real_and_complex_values_get_the_same_weights_and_many_slices_add_up() -> None:
    box, quaternions = 8, random_unitquat(7, generator=torch.Generator().manual_seed(3))
    ones = torch.ones(7, box, box // 2 + 1)
    complex_grid, real_grid = empty_half_grid(box, torch.complex64), empty_half_grid(box, torch.float32)
    insert_slices([complex_grid, real_grid], [ones.to(torch.complex64), ones], quaternions)
    assert torch.equal(complex_grid.real, real_grid) and not complex_grid.imag.any()
    one_by_one = empty_half_grid(box, torch.float32)
    for row in range(7):
        insert_slices([one_by_one], [ones[row : row + 1]], quaternions[row : row + 1])
    torch.testing.assert_close(real_grid, one_by_one)


def test_hermitian_sum_is_the_half_transform_of_a_real_map() -> None:
    box, quaternions = 8, random_unitquat(4, generator=torch.Generator().manual_seed(3))
    grid = empty_half_grid(box, torch.complex64)
    insert_slices([grid], [random_slices(4, box)], quaternions)
    before = grid.clone()
    half = hermitian_sum(grid, box)
    assert torch.equal(grid, before)
    plane = half[1:, 1:, 0]
    torch.testing.assert_close(plane, plane.flip(0, 1).conj())


def test_projection_is_differentiable_in_the_rotation() -> None:
    transform = padded_transform(smooth_map(16)).double()
    quaternions = random_unitquat(1, generator=torch.Generator().manual_seed(5)).double().requires_grad_()

    def energy(q: torch.Tensor) -> torch.Tensor:
        return project(transform, q).abs().square().sum()

    assert torch.autograd.gradcheck(energy, (quaternions,), eps=1e-7, atol=1e-2, rtol=1e-4)


def test_projections_agree_with_torch_fourier_slice() -> None:
    volume, quaternions = smooth_map(32), random_unitquat(6, generator=torch.Generator().manual_seed(4))
    ours = to_real(project(padded_transform(volume), quaternions), 32)
    judge = project_3d_to_2d(volume, unitquat_to_rotmat(quaternions))
    for image, expected in zip(ours, judge, strict=True):
        assert correlation(image, expected) > 0.999
    assert float((ours * judge).sum() / judge.square().sum()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("stack", ["centered", "shifted"])
def test_projections_agree_with_relion_images(shared_data: Path, tmp_path: Path, stack: str) -> None:
    volume_file = shared_data / "aspire_ribosome_vol64.npy"
    if not volume_file.exists():
        pytest.skip(f"no {volume_file}")
    volume = torch.from_numpy(np.load(volume_file)).float()
    # The star file names its stack without the prefix that both files have here.
    for suffix in ("star", "mrcs"):
        name = f"rln_proj_64_{stack}.{suffix}"
        (tmp_path / name).symlink_to(shared_data / f"aspire_{name}")
    particles = particles_from_table(read_star(tmp_path / f"rln_proj_64_{stack}.star"))
    assert particles.poses is not None
    slices = project(padded_transform(volume), particles.poses.quaternions)
    origins_pixel = particles.poses.shifts_angstrom / particles.pixel_size_angstrom
    ours = to_real(phase_shift(slices, -origins_pixel), particles.box)
    for image, expected in zip(ours, particles.images[torch.arange(len(particles))], strict=True):
        assert correlation(image, expected) >= 0.999


def test_to_real_inverts_to_fourier() -> None:
    images = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_real(to_fourier(images), 10), images)


@pytest.mark.parametrize(("box", "radius"), [(16, 1), (16, 5), (16, 7), (17, 6), (9, 3)])
def test_a_cropped_transform_is_the_middle_of_the_padded_one(box: int, radius: int) -> None:
    voxels = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0))
    whole = padded_transform(voxels).movedim(0, -1)
    found = cropped_transform(voxels, radius)
    width, centre = PADDING * radius + 2, PADDING * box // 2
    assert found.shape == (2 * width + 1, 2 * width + 1, width + 1, 2) and found.is_contiguous()
    assert radius_of_cropped(found) == radius
    # Where the crop reaches around Nyquist, rows of the transform repeat as they do in the whole.
    rows = (torch.arange(-width, width + 1) + centre) % (PADDING * box)
    columns = (torch.arange(width + 1) + centre) % (PADDING * box)
    expected = whole[rows[:, None, None], rows[:, None], columns]
    torch.testing.assert_close(found, expected, atol=1e-4 * float(whole.abs().max()), rtol=0)


def test_the_plane_where_a_cropped_transform_meets_its_mates_is_hermitian() -> None:
    found = torch.view_as_complex(cropped_transform(smooth_map(16), 5))
    plane = found[:, :, 0]
    torch.testing.assert_close(plane, plane.flip(0, 1).conj(), atol=1e-5 * float(plane.abs().max()), rtol=0)
    centre = found.shape[0] // 2
    total = (smooth_map(16) / gridding_correction(16)).sum()
    assert float(found[centre, centre, 0].real) == pytest.approx(float(total), rel=1e-5)


def test_cropping_leaves_the_map_as_it_was_and_is_linear_in_it() -> None:
    voxels, other = smooth_map(12), smooth_map(12, seed=1)
    before = voxels.clone()
    first, second = cropped_transform(voxels, 4), cropped_transform(other, 4)
    assert torch.equal(voxels, before)
    both = cropped_transform(2 * voxels - 3 * other, 4)
    torch.testing.assert_close(both, 2 * first - 3 * second, atol=1e-4 * float(both.abs().max()), rtol=0)
