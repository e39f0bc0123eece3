"""The projector shows what RELION and an independent library show; its two forms agree."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fourier_slice import project_3d_to_2d

from cryoforum.errors import InputError
from cryoforum.geometry.rotations import random_unitquat, unitquat_to_rotmat
from cryoforum.imaging.fft import FrequencyPoints, half_transform_points, phase_shift, to_fourier, to_real
from cryoforum.imaging.projection import (
    PADDING,
    cropped_transform,
    gridding_correction,
    project,
    reach_of,
    slices_at,
    values_and_slopes,
)
from cryoforum.io.relion.particles import particles_from_table
from cryoforum.io.relion.star_files import read_star


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
    image = to_real(project(cropped_transform(volume), identity, 32), 32)[0]
    torch.testing.assert_close(image, (volume / gridding_correction(32)).sum(0), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("box", "radius", "height"), [(16, None, 0.0), (17, None, 0.0), (24, 6, 2.5), (9, 1, -1.0)]
)
def test_the_compiled_reader_agrees_with_its_readable_twin(
    box: int, radius: int | None, height: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    transform = cropped_transform(torch.randn(box, box, box, generator=generator), radius)
    points = half_transform_points(box, (reach_of(transform) ** 2 - height**2) ** 0.5)
    if radius is not None:  # between the pixels' frequencies, too
        points = FrequencyPoints(box, points.kx * 0.93, points.ky * 0.93)
    quaternions = random_unitquat(7, generator=generator)
    found = slices_at(transform, quaternions, points, height)
    rotations = unitquat_to_rotmat(quaternions.double())
    exact, _ = values_and_slopes(
        transform.double(), rotations, points.kx.double(), points.ky.double(), height
    )
    atol = 1e-4 * float(exact.abs().max())
    torch.testing.assert_close(found.to(torch.complex128), exact, atol=atol, rtol=0)
    wanted = slices_at(transform.requires_grad_(), quaternions, points, height)
    assert wanted.requires_grad
    torch.testing.assert_close(wanted.detach(), found, atol=atol, rtol=0)


def test_compiled_loops_leave_the_number_of_threads_as_it_was() -> None:
    transform, points = cropped_transform(smooth_map(16), 5), half_transform_points(16, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        slices_at(transform, random_unitquat(3, generator=torch.Generator().manual_seed(1)), points)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_would_be_read_outside_is_refused() -> None:
    transform, points = cropped_transform(smooth_map(16), 5), half_transform_points(16, 5)
    good = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert slices_at(transform, good, points).isfinite().all()
    for bad in (good * 1.01, good * torch.nan):
        with pytest.raises(ValueError, match="quaternions of length 1, .* at row 1"):
            slices_at(transform, torch.cat([good, bad]), points)
    with pytest.raises(ValueError, match="transform's 5.5 cycles per box, found 5.8"):
        slices_at(transform, good, points, height=3.0)


@pytest.mark.parametrize("lay_out", [torch.fft.rfftn, torch.fft.fftn, to_fourier])
def test_a_transform_of_another_layout_is_refused(lay_out: Callable[[Tensor], Tensor]) -> None:
    transform = torch.view_as_real(lay_out(torch.rand(8, 8, 8)))
    points = half_transform_points(8, 2.0)
    views = random_unitquat(2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"as cropped_transform gives it, .* found shape \(8, 8"):
        project(transform, views, 8)
    with pytest.raises(InputError, match="as cropped_transform gives it"):
        slices_at(transform, views, points)


def test_a_cropped_transform_gives_the_low_frequencies_of_a_projection() -> None:
    volume, quaternions = smooth_map(16), random_unitquat(3, generator=torch.Generator().manual_seed(4))
    whole, low = (project(cropped_transform(volume, radius), quaternions, 16) for radius in (None, 4))
    points, beyond = half_transform_points(16, 4.5), whole.clone()
    torch.testing.assert_close(points.values_of(low), points.values_of(whole), atol=1e-4, rtol=0)
    torch.testing.assert_close(low, points.half_transforms(points.values_of(low)), atol=0, rtol=0)
    assert beyond[:, 0, 5:8].abs().min() > 0 and not beyond[:, 0, 8].any()


def test_projection_is_differentiable_in_the_rotation() -> None:
    transform = cropped_transform(smooth_map(16)).double()
    quaternions = random_unitquat(1, generator=torch.Generator().manual_seed(5)).double().requires_grad_()

    def energy(q: torch.Tensor) -> torch.Tensor:
        return project(transform, q, 16).abs().square().sum()

    assert torch.autograd.gradcheck(energy, (quaternions,), eps=1e-7, atol=1e-2, rtol=1e-4)


def test_projections_agree_with_torch_fourier_slice() -> None:
    volume, quaternions = smooth_map(32), random_unitquat(6, generator=torch.Generator().manual_seed(4))
    ours = to_real(project(cropped_transform(volume), quaternions, 32), 32)
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
    slices = project(cropped_transform(volume), particles.poses.quaternions, particles.box)
    origins_pixel = particles.poses.shifts_angstrom / particles.pixel_size_angstrom
    ours = to_real(phase_shift(slices, -origins_pixel), particles.box)
    for image, expected in zip(ours, particles.images[torch.arange(len(particles))], strict=True):
        assert correlation(image, expected) >= 0.999


def test_to_real_inverts_to_fourier() -> None:
    images = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_real(to_fourier(images), 10), images)


@pytest.mark.parametrize(("box", "radius"), [(16, 1), (16, 5), (16, 7), (17, 6), (9, 3)])
def test_a_cropped_transform_is_the_middle_of_that_of_the_padded_map(box: int, radius: int) -> None:
    voxels = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0))
    before = PADDING * box // 2 - box // 2
    padded = torch.nn.functional.pad(voxels / gridding_correction(box), (before, box - before) * 3)
    whole = torch.view_as_real(torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(padded))))
    found = cropped_transform(voxels, radius)
    width, centre = PADDING * radius + 2, PADDING * box // 2
    assert found.shape == (2 * width + 1, 2 * width + 1, width + 1, 2) and found.is_contiguous()
    assert reach_of(found) == radius + 0.5
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
