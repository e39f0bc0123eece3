"""From maps to images and back by the doors, judged by torch-fourier-slice, torch-ctf and images of RELION's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch_ctf import calculate_ctf_2d
from torch_fourier_slice import backproject_2d_to_3d, project_3d_to_2d

import cryoforum as cf
from cryoforum.geometry.rotations import random_unitquat
from cryoforum.molecules.structures import load_structure

BOX, PIXEL_SIZE = 32, 11.2


def ribosome() -> cf.Volume:
    return load_structure("4v5d", BOX, PIXEL_SIZE)


def poses(count: int, shifts_pixel: torch.Tensor | None = None) -> cf.Poses:
    quaternions = random_unitquat(count, generator=torch.Generator().manual_seed(3))
    return cf.Poses.from_quaternions(quaternions, None if shifts_pixel is None else shifts_pixel * PIXEL_SIZE)


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(np.corrcoef(first.flatten(), second.flatten())[0, 1])


def judges_ctf(ctf: cf.CtfParameters, row: int, rfft: bool) -> torch.Tensor:
    """Its micrometres are our Å / 10⁴."""
    one = ctf[torch.tensor([row])]
    return calculate_ctf_2d(
        defocus=(one.defocus_u_angstrom + one.defocus_v_angstrom) / 2e4,
        astigmatism=(one.defocus_u_angstrom - one.defocus_v_angstrom) / 2e4,
        astigmatism_angle=one.defocus_angle_deg,
        voltage=one.voltage_kv,
        spherical_aberration=one.spherical_aberration_mm,
        amplitude_contrast=one.amplitude_contrast,
        phase_shift=one.phase_shift_deg,
        pixel_size=PIXEL_SIZE,
        image_shape=(BOX, BOX),
        rfft=rfft,
        fftshift=not rfft,
    ).reshape(BOX, -1)


def test_projections_are_the_judges_under_its_ctf_moved_by_whole_pixels() -> None:
    volume, whole = ribosome(), torch.tensor([[0, 0], [2, 0], [0, -3], [1, 4]])
    some = poses(4, whole)
    ctf = cf.CtfParameters.from_values([15000.0, 18000, 21000, 24000], 14500.0, 30.0)
    judge = project_3d_to_2d(volume.voxels, some.matrices)
    for row, image in enumerate(cf.project(volume, some, ctf)):
        centre = torch.fft.ifftshift(judge[row])
        imaged = torch.fft.fftshift(torch.fft.irfft2(torch.fft.rfft2(centre) * judges_ctf(ctf, row, True)))
        x, y = (-whole[row]).tolist()
        assert correlation(image, imaged.roll((y, x), (0, 1))) > 0.998


def test_projections_are_those_of_relion(shared_data: Path, tmp_path: Path) -> None:
    files = {
        name: shared_data / f"aspire_{name}" for name in ("ribosome_vol64.npy", "rln_proj_64_shifted.star")
    }
    if not all(file.exists() for file in files.values()):
        pytest.skip(f"no {', '.join(map(str, files.values()))}")
    for suffix in ("star", "mrcs"):  # the star file names its stack without the prefix that both have here
        name = f"rln_proj_64_shifted.{suffix}"
        (tmp_path / name).symlink_to(shared_data / f"aspire_{name}")
    particles = cf.load_particle_set([tmp_path / "rln_proj_64_shifted.star"], keep_ramp=True).particles
    voxels = torch.from_numpy(np.load(files["ribosome_vol64.npy"])).float()
    assert particles.poses is not None
    found = cf.project(cf.Volume(voxels, particles.pixel_size_angstrom), particles.poses)
    for image, expected in zip(found, particles.images[torch.arange(len(particles))], strict=True):
        assert correlation(image, expected) >= 0.999


@pytest.mark.parametrize(("what", "step"), [("map", 0.1), ("orientation", 2e-3), ("shift", 2e-2)])
def test_projections_are_differentiable_in_map_orientation_and_shift(what: str, step: float) -> None:
    """The slope along a random direction against a central difference."""
    generator = torch.Generator().manual_seed(0)
    some, voxels = poses(2), torch.randn(8, 8, 8, generator=generator)
    given = {"map": voxels, "orientation": some.quaternions, "shift": torch.rand(2, 2, generator=generator)}
    direction = torch.randn(given[what].shape, generator=generator)

    def energy(at: torch.Tensor) -> torch.Tensor:
        moved = given | {what: given[what] + at * direction}
        quaternions = torch.nn.functional.normalize(moved["orientation"], dim=-1)
        images = cf.project(cf.Volume(moved["map"], 2.0), cf.Poses(quaternions, moved["shift"]))
        return (torch.arange(8.0) * images).double().sum()

    at = torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(energy(at), at)
    found = (energy(torch.tensor(step)) - energy(torch.tensor(-step))) / (2 * step)
    assert float(slope) == pytest.approx(float(found), rel=0.03)


@pytest.mark.parametrize("row", [0, 1])
def test_pictures_of_ctfs_are_torch_ctfs(row: int) -> None:
    ctf = cf.CtfParameters.from_values(
        [15000.0, 18000], [14000.0, 17500], 40.0, voltage_kv=200, phase_shift_deg=9
    )
    found = cf.ctf_image(ctf, BOX, PIXEL_SIZE)
    torch.testing.assert_close(found[row], judges_ctf(ctf, row, False), atol=2e-3, rtol=0)


def test_backprojection_is_that_of_the_judge() -> None:
    """The same slices, divided by their weights; up to two thirds of Nyquist, where every voxel was seen."""
    volume, some = ribosome(), poses(600)
    images = cf.project(volume, some)
    found = cf.backproject(cf.Particles.from_arrays(images, PIXEL_SIZE, some)).voxels
    judge = backproject_2d_to_3d(images, some.matrices)
    near = torch.fft.fftfreq(BOX).abs() <= 1 / 3
    kept = near[:, None, None] & near[:, None] & near[: BOX // 2 + 1]
    ours, theirs = (torch.fft.irfftn(torch.fft.rfftn(one) * kept) for one in (found, judge))
    assert correlation(ours, theirs) > 0.995
    assert correlation(ours, torch.fft.irfftn(torch.fft.rfftn(volume.voxels) * kept)) > 0.995
    assert float((found * volume.voxels).sum() / volume.voxels.square().sum()) == pytest.approx(1, abs=0.05)


def test_backprojection_turns_by_the_point_group() -> None:
    images = cf.project(ribosome(), poses(50))
    found = cf.backproject(cf.Particles.from_arrays(images, PIXEL_SIZE, poses(50)), symmetry="C2").voxels
    turned = found[:, 1:, 1:].flip(1, 2)  # by half a turn about z through voxel n // 2
    assert correlation(found[:, 1:, 1:], turned) > 0.99


def test_what_does_not_fit_is_refused() -> None:
    ctf = cf.CtfParameters.from_values([1e4, 2e4])
    for wrong in (
        lambda: cf.project(ribosome(), poses(3), ctf),
        lambda: cf.CtfParameters.from_values([1e4, 2e4], [1e4, 2e4, 3e4]),
        lambda: cf.CtfParameters.from_values(1e4, voltage_kv=0),
        lambda: cf.CtfParameters.from_values(float("nan")),
        lambda: cf.ctf_image(ctf, 0, 1.0),
        lambda: cf.backproject(cf.Particles.from_arrays(torch.zeros(2, 8, 8), 1.0)),
    ):
        with pytest.raises(cf.InputError, match="^expected .*, found"):
            wrong()
