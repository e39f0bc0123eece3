"""Files that other programs wrote, and what must come out of them."""

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from helpers.messages import logged

from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.imaging.fft import phase_shift, to_real
from cryoforum.imaging.projection import cropped_transform, project
from cryoforum.io.join import joined
from cryoforum.io.mrc.stacks import LazyImages
from cryoforum.io.particle_files import particle_set_of
from cryoforum.io.relion.particles import particles_from_table, poses_from_table
from cryoforum.io.relion.star_files import read_star, write_star


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def test_real_relion_dialects(shared_data: Path, tmp_path: Path) -> None:
    """The two files agree in images and CTF, not in pixel size, and in all angles but those of row 15."""
    (tmp_path / "sample.mrcs").symlink_to(shared_data / "aspire_sample.mrcs")
    old, new = (
        particles_from_table(
            read_star(shared_data / f"aspire_sample_particles_relion{version}.star"), tmp_path
        )
        for version in ("30", "31")
    )
    assert old.pixel_size_angstrom == pytest.approx(5e4 / 37369.207031)
    assert new.pixel_size_angstrom == 1.4
    distances = geodesic_distance(old.poses.quaternions, new.poses.quaternions)
    assert torch.equal(torch.nonzero(distances > 1e-5).flatten(), rows(14))
    assert old.poses.shifts_angstrom[0].tolist() == pytest.approx([0.1996 * 5e4 / 37369.207031] * 2)
    assert new.poses.shifts_angstrom[0].tolist() == pytest.approx([0.1996] * 2)
    assert torch.equal(old.images[rows(3, 16)], new.images[rows(3, 16)])
    assert torch.equal(old.ctf.defocus_u_angstrom, new.ctf.defocus_u_angstrom)


def test_real_blocks_in_either_order(shared_data: Path) -> None:
    first, second = (read_star(shared_data / f"cryodrgn_relion31{version}.star") for version in ("", ".v2"))
    assert first.particles.equals(second.particles) and first.optics.equals(second.optics)


def test_real_names_that_look_like_numbers(shared_data: Path, tmp_path: Path) -> None:
    table = read_star(shared_data / "cryodrgn_empiar_10076_7.star")
    assert table.particles["rlnMicrographName"].tolist() == list("1234567")
    assert table.particles["rlnImageName"][0] == "1@empiar_10076_7.mrc"
    assert poses_from_table(table) is None
    write_star(table, tmp_path / "copy.star")
    assert read_star(tmp_path / "copy.star").particles.equals(table.particles)


def test_real_projections_are_read(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "rln_proj_64_shifted.mrcs").symlink_to(shared_data / "aspire_rln_proj_64_shifted.mrcs")
    particles = particles_from_table(read_star(shared_data / "aspire_rln_proj_64_shifted.star"), tmp_path)
    with mrcfile.open(shared_data / "aspire_rln_proj_64_shifted.mrcs") as mrc:
        assert np.array_equal(particles.images[rows(3, 1)].numpy(), mrc.data[[3, 1]])
    assert particles.poses.shifts_angstrom[0].tolist() == [6.0, 10.0]
    assert particles.ctf is None


def test_real_file_with_only_in_plane_angles_has_no_poses(shared_data: Path) -> None:
    assert poses_from_table(read_star(shared_data / "cryojax_ribosome_4ug0_particles.star")) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("starfile_empty_loop.star", "empty table"),
        ("starfile_postprocess.star", "post-processing"),
        ("cryocat_relion_3.0.star", "subtomograms"),
        ("aspire_sample.star", "expected 4 values"),
        ("xmipp_symop.star", "expected a data_particles block, found data_1, data_2"),
        ("aspire_sample.mrcs", "binary"),
    ],
)
def test_real_other_files_are_refused_by_name(shared_data: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        read_star(shared_data / name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_real_missing_and_truncated_stacks(shared_data: Path) -> None:
    with pytest.raises(ValueError, match=r"row 1 .*FinalRefinement-OriginalParticles-PfCRT.mrcs not found"):
        particles_from_table(read_star(shared_data / "cryodrgn_FinalRefinement-OriginalParticles-PfCRT.star"))
    with pytest.raises(ValueError, match="expected 722797568 bytes .* found 66560"):
        LazyImages([shared_data / "drgnai_00256_Ribosomes_1.70A.mrcs"], [0])


@pytest.mark.parametrize("kind", ["centered", "shifted"])
def test_real_projections_are_ours(shared_data: Path, tmp_path: Path, kind: str) -> None:
    """RELION's projections of a map, the shifted ones with optics groups but origins in pixels."""
    (tmp_path / f"rln_proj_64_{kind}.mrcs").symlink_to(shared_data / f"aspire_rln_proj_64_{kind}.mrcs")
    found = particles_from_table(read_star(shared_data / f"aspire_rln_proj_64_{kind}.star"), tmp_path)
    voxels = torch.from_numpy(np.load(shared_data / "aspire_ribosome_vol64.npy").astype(np.float32))
    slices = project(cropped_transform(voxels), found.poses.quaternions, 64)
    slices = phase_shift(slices, -found.poses.shifts_angstrom / found.pixel_size_angstrom)
    for ours, theirs in zip(to_real(slices, 64), found.images[torch.arange(4)], strict=True):
        assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] > 0.999


def test_real_files_are_read_and_come_back_or_are_refused_in_one_line(
    shared_data: Path, tmp_path: Path
) -> None:
    read, refused = {}, []
    for path in sorted(shared_data.glob("*.star")):
        try:
            read[path.name] = read_star(path)
        except ValueError as error:
            assert path.name in str(error) and "\n" not in str(error)
            refused.append(path.stem)
    others = ["cryocat_relion_3.0", "starfile_empty_loop", "starfile_postprocess", "xmipp_symop"]
    assert refused == ["aspire_sample", *others]
    for name, table in read.items():
        write_star(table, tmp_path / name)
        again = read_star(tmp_path / name)
        assert again.particles.equals(table.particles), name
        assert (again.optics is None) == (table.optics is None)
        assert table.optics is None or again.optics.equals(table.optics), name


def test_real_ctf_that_lacks_something_is_refused(shared_data: Path) -> None:
    for name, lacking in (
        ("aspire_sample_incomplete_ctf_params", "rlnVoltage"),
        ("cryodrgn_FinalRefinement-OriginalParticles-PfCRT", "rlnAmplitudeContrast"),
    ):
        with pytest.raises(ValueError, match=f"{name}.star: expected {lacking} for the CTF, found none"):
            particle_set_of(read_star(shared_data / f"{name}.star"))


def test_real_loop_of_one_row(shared_data: Path) -> None:
    table = read_star(shared_data / "aspire_sample_relion_one_image.star")
    assert len(table) == 1 and poses_from_table(table).shifts_angstrom.shape == (1, 2)


def test_real_dialects_join(shared_data: Path, tmp_path: Path) -> None:
    """The two dialects of one data set, of which the old one has its images in a file of another name."""
    (tmp_path / "sample.mrcs").symlink_to(shared_data / "aspire_sample.mrcs")
    shutil.copy(shared_data / "aspire_sample.mrcs", tmp_path / "copy.mrcs")
    for version, name in (("30", "copy"), ("31", "sample")):
        text = (shared_data / f"aspire_sample_particles_relion{version}.star").read_text()
        (tmp_path / f"{version}.star").write_text(text.replace("@sample", f"@{name}"))
    old, new = (read_star(tmp_path / f"{version}.star") for version in ("30", "31"))
    with logged("left out"):
        both = joined([old, new])
    assert len(both) == 34 and len(both.optics) == 4  # both have two voltages
    expected = torch.cat([poses_from_table(table).shifts_angstrom for table in (old, new)])
    assert torch.allclose(poses_from_table(both).shifts_angstrom, expected, atol=1e-5)
    with logged("17 of 34 particles are resampled from 200 px"):
        particles = particles_from_table(both)
    assert particles.half_sets is not None and particles.ctf is not None
    with pytest.raises(ValueError, match="the image is already in"):
        (tmp_path / "copy.mrcs").unlink()
        (tmp_path / "copy.mrcs").symlink_to(tmp_path / "sample.mrcs")
        joined([old, new])
