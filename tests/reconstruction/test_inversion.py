"""Projecting and reconstructing gives back the map; shift, CTF, halves and poses are respected."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.point_groups import symmetry_group
from cryoforum.geometry.rotations import compose, random_unitquat
from cryoforum.imaging.ctf import ctf_2d
from cryoforum.imaging.fft import phase_shift, to_real
from cryoforum.imaging.masks import soft_spherical_mask
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.io.mrc.maps import read_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import table_from_particles
from cryoforum.io.relion.star_files import write_star
from cryoforum.molecules.structures import load_structure
from cryoforum.reconstruction.fsc import fourier_shell_correlation, fsc_curve
from cryoforum.reconstruction.inversion import ReconstructionConfig, reconstruct

BOX = 32
PIXEL_SIZE = 9.0


@pytest.fixture(scope="module")
def molecule() -> Volume:
    return load_structure("6z6u", BOX, PIXEL_SIZE)


def random_ctf(count: int, generator: torch.Generator) -> CtfParameters:
    def constant(value: float) -> torch.Tensor:
        return torch.full((count,), value)

    defocus = 12000 + 16000 * torch.rand(count, generator=generator)
    return CtfParameters(
        defocus_u_angstrom=defocus,
        defocus_v_angstrom=defocus - 900,
        defocus_angle_deg=180 * torch.rand(count, generator=generator),
        voltage_kv=constant(300.0),
        spherical_aberration_mm=constant(2.7),
        amplitude_contrast=constant(0.1),
        phase_shift_deg=constant(0.0),
    )


def simulated(
    volume: Volume, count: int, *, shift_pixel: float = 0.0, with_ctf: bool = False, noise: float = 0.0
) -> Particles:
    """Projections with shifts up to ``shift_pixel`` and noise of ``noise`` times their deviation."""
    generator = torch.Generator().manual_seed(0)
    box, pixel_size = volume.voxels.shape[0], volume.pixel_size_angstrom
    quaternions = random_unitquat(count, generator=generator)
    shifts = (2 * torch.rand(count, 2, generator=generator) - 1) * shift_pixel * pixel_size
    slices = project(cropped_transform(volume.voxels), quaternions, box)
    slices = phase_shift(slices, -shifts / pixel_size)
    ctf = random_ctf(count, generator) if with_ctf else None
    if ctf is not None:
        slices = slices * ctf_2d(ctf, box, pixel_size)
    images = to_real(slices, box)
    images = images + noise * images.std() * torch.randn(images.shape, generator=generator)
    names = tuple(f"{row + 1:06d}@particles.mrcs" for row in range(count))
    half_sets = torch.arange(count) % 2 + 1
    return Particles(images, pixel_size, names, Poses(quaternions, shifts), ctf, half_sets)


def agreement(first: Volume, second: Volume) -> tuple[torch.Tensor, float]:
    """FSC and scale of ``second`` relative to ``first`` in the ball that projections see."""
    box = first.voxels.shape[0]
    ball = soft_spherical_mask(box, 0.42 * box, 2)
    a, b = first.voxels * ball, second.voxels * ball
    fsc = fourier_shell_correlation(Volume(a, 1.0), Volume(b, 1.0))
    return fsc, float((a * b).sum() / a.square().sum())


@pytest.mark.parametrize(
    ("shift_pixel", "with_ctf", "count"), [(0.0, False, 300), (3.0, False, 300), (3.0, True, 600)]
)
def test_reconstructing_projections_gives_back_the_map(
    molecule: Volume, shift_pixel: float, with_ctf: bool, count: int
) -> None:
    maps = reconstruct(simulated(molecule, count, shift_pixel=shift_pixel, with_ctf=with_ctf))
    fsc, scale = agreement(molecule, maps.full)
    assert float(fsc[1 : int(0.8 * BOX / 2) + 1].min()) > 0.99
    assert scale == pytest.approx(1, abs=0.02)
    for half in (maps.half1, maps.half2):
        assert half.pixel_size_angstrom == PIXEL_SIZE
        assert float(agreement(molecule, half)[0][1:10].min()) > 0.98


def test_ignoring_shifts_or_ctf_ruins_the_map(molecule: Volume) -> None:
    particles = simulated(molecule, 300, shift_pixel=3, with_ctf=True)
    assert particles.poses is not None
    unshifted = particles.with_poses(Poses(particles.poses.quaternions, torch.zeros(300, 2)))
    ball = soft_spherical_mask(BOX, 0.42 * BOX, 2)
    for wrong, least in ((particles, 0.0), (unshifted, 0.3), (replace(particles, ctf=None), 0.3)):
        difference = (reconstruct(wrong).full.voxels - molecule.voxels) * ball
        error = float(difference.norm() / (molecule.voxels * ball).norm())
        assert least <= error < (0.1 if wrong is particles else 10)


def test_turning_all_poses_turns_the_map(molecule: Volume) -> None:
    particles = simulated(molecule, 300)
    assert particles.poses is not None
    quarter_turn_z = torch.tensor([0.0, 0.0, 0.5**0.5, 0.5**0.5])
    turned_poses = Poses(
        compose(quarter_turn_z, particles.poses.quaternions), particles.poses.shifts_angstrom
    )
    straight = reconstruct(particles).full.voxels
    turned = reconstruct(particles.with_poses(turned_poses)).full.voxels
    # (x, y) goes to (-y, x); voxel 0 has no partner on the other side of the origin.
    expected = straight.transpose(1, 2).flip(2)[1:, 1:, :-1]
    correlation = torch.corrcoef(torch.stack([turned[1:, 1:, 1:].flatten(), expected.flatten()]))[0, 1]
    assert float(correlation) > 0.9999


def test_each_half_is_made_of_its_subset(molecule: Volume) -> None:
    particles = simulated(molecule, 40)
    assert particles.half_sets is not None
    whole = reconstruct(particles)
    spoiled = particles.images[torch.arange(40)].clone()
    spoiled[particles.half_sets == 2] = 0
    maps = reconstruct(replace(particles, images=spoiled))
    torch.testing.assert_close(maps.half1.voxels, whole.half1.voxels)
    assert not maps.half2.voxels.any()


def test_without_subsets_the_seed_draws_even_halves(molecule: Volume) -> None:
    particles = replace(simulated(molecule, 40), half_sets=None)
    first, again, other = (reconstruct(particles, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.half1.voxels, again.half1.voxels)
    assert not torch.allclose(first.half1.voxels, other.half1.voxels)
    torch.testing.assert_close(first.full.voxels, other.full.voxels, atol=1e-4, rtol=1e-3)


def test_batches_do_not_matter_and_are_counted(molecule: Volume) -> None:
    particles = simulated(molecule, 50)
    done: list[int] = []
    small = reconstruct(
        particles, ReconstructionConfig(batch_size=7), independent=False, progress=done.append
    )
    assert sum(done) == 50 and max(done) == 7
    assert not small.independent
    large = reconstruct(particles)
    assert large.independent
    scale = float(large.full.voxels.abs().max())
    torch.testing.assert_close(small.full.voxels, large.full.voxels, atol=1e-4 * scale, rtol=0)


def test_particles_that_cannot_be_reconstructed_are_refused(molecule: Volume) -> None:
    particles = simulated(molecule, 4)
    assert particles.poses is not None
    with pytest.raises(ValueError, match="with poses"):
        reconstruct(replace(particles, poses=None))
    with pytest.raises(ValueError, match="both halves"):
        reconstruct(replace(particles, half_sets=torch.ones(4, dtype=torch.long)))
    with pytest.raises(ValueError, match="found 3 at row 1"):
        reconstruct(replace(particles, half_sets=torch.tensor([1, 3, 2, 2])))
    with pytest.raises(ValueError, match="batch_size"):
        ReconstructionConfig(batch_size=0)
    with pytest.raises(ValueError, match="weight_floor"):
        ReconstructionConfig(weight_floor=0)


def test_the_map_agrees_with_relion_reconstruct(molecule: Volume, tmp_path: Path) -> None:
    program = shutil.which("relion_reconstruct")
    if program is None:
        pytest.skip("RELION is not installed: no relion_reconstruct on PATH")
    particles = simulated(molecule, 300, shift_pixel=3, with_ctf=True, noise=2.0)
    maps = reconstruct(particles)
    images = particles.images[torch.arange(300)]
    write_stack(tmp_path / "particles.mrcs", [images], 300, BOX, PIXEL_SIZE)
    write_star(table_from_particles(particles, particles.names), tmp_path / "particles.star")
    command = [program, "--i", "particles.star", "--o", "relion.mrc", "--ctf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    fsc, scale = agreement(read_volume(tmp_path / "relion.mrc"), maps.full)
    reached = int(BOX * PIXEL_SIZE / fsc_curve(maps).unmasked_resolution_angstrom)
    assert reached >= 6
    assert float(fsc[1 : reached + 1].min()) >= 0.95
    assert scale == pytest.approx(1, abs=0.05)


def turned_copies(volume: Volume, group: torch.Tensor) -> Volume:
    """A symmetric map: the projections of another, reconstructed at all equivalent poses."""
    particles = simulated(volume, 300)
    assert particles.poses is not None
    quaternions = compose(group[:, None], particles.poses.quaternions).view(-1, 4)
    poses = Poses(quaternions, torch.zeros(len(quaternions), 2))
    images = particles.images[torch.arange(300)].repeat(len(group), 1, 1)
    names = tuple(str(row) for row in range(len(images)))
    half_sets = torch.arange(len(images)) % 2 + 1
    return reconstruct(Particles(images, PIXEL_SIZE, names, poses, None, half_sets)).full


@pytest.mark.parametrize("symmetry", ["C4", "D3", "T"])
def test_symmetry_is_as_good_as_inserting_every_image_at_all_equivalent_poses(symmetry: str) -> None:
    asymmetric = load_structure("4v5d", BOX, 11.2)
    truth = turned_copies(Volume(asymmetric.voxels, PIXEL_SIZE), symmetry_group(symmetry))
    particles = simulated(truth, 60, shift_pixel=2, with_ctf=True, noise=2.0)
    alone = agreement(truth, reconstruct(particles).full)[0]
    maps = reconstruct(particles, ReconstructionConfig(symmetry=symmetry))
    together, scale = agreement(truth, maps.full)
    shells = slice(2, 12)
    assert float(together[shells].mean()) > float(alone[shells].mean()) + 0.1
    assert scale == pytest.approx(1, abs=0.05)
    group = symmetry_group(symmetry)
    assert particles.poses is not None
    copies = replace(
        particles,
        images=particles.images[torch.arange(60)].repeat(len(group), 1, 1),
        names=particles.names * len(group),
        poses=Poses(
            compose(group[:, None], particles.poses.quaternions).view(-1, 4),
            particles.poses.shifts_angstrom.repeat(len(group), 1),
        ),
        ctf=particles.ctf[torch.arange(60).repeat(len(group))] if particles.ctf else None,
        half_sets=(torch.arange(60) % 2 + 1).repeat(len(group)),
    )
    inserted = agreement(truth, reconstruct(copies).full)[0]
    assert float((together - inserted)[shells].min()) > -0.03


def test_a_symmetric_reconstruction_has_the_symmetry(molecule: Volume) -> None:
    particles = simulated(molecule, 20, noise=1.0)
    maps = reconstruct(particles, ReconstructionConfig(symmetry="C4"))
    turned = maps.half1.voxels.transpose(1, 2).flip(2)[1:, 1:, :-1]
    straight = maps.half1.voxels[1:, 1:, 1:]
    assert float((turned - straight).norm() / straight.norm()) < 1e-3
    plain = reconstruct(particles).half1.voxels
    quarter = plain.transpose(1, 2).flip(2)[1:, 1:, :-1]
    assert float((quarter - plain[1:, 1:, 1:]).norm() / plain.norm()) > 0.1
    with pytest.raises(ValueError, match="point group"):
        ReconstructionConfig(symmetry="Q")
