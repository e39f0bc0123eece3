"""STAR and MRC files: what goes in comes out, in our conventions and in RELION's."""

import pickle
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch

from cryoforum.dataset.ctf_parameters import CtfParameters
from cryoforum.dataset.particle_table import ParticleTable, select_rows, with_columns
from cryoforum.dataset.particles import Particles
from cryoforum.dataset.poses import Poses
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import geodesic_distance, random_unitquat, relion_euler_to_unitquat
from cryoforum.io.image_paths import find_file
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import LazyImages, write_stack
from cryoforum.io.relion.particles import (
    particles_from_table,
    poses_from_table,
    table_from_particles,
    with_poses,
)
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.storage.files import refuse_to_overwrite, replacing

OPTICS_BLOCK = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
first   1   300.000000   2.700000   0.100000   1.500000   8   2
second  7   200.000000   0.010000   0.070000   1.500000   8   2
"""
PARTICLES_BLOCK = """
# version 30001

data_particles

loop_
_rlnMicrographName #1
_rlnImageName #2
_rlnOpticsGroup #3
_rlnAngleTilt #4
_rlnAngleRot #5
_rlnAnglePsi #6
_rlnOriginYAngst #7
_rlnOriginXAngst #8
_rlnDefocusU #9
_rlnDefocusV #10
_rlnDefocusAngle #11
_rlnRandomSubset #12
_labComment #13
007 000003@stack.mrcs 7 20.0 10.0 30.0 -2.5 1.25 15000.0 14000.0 45.0 1 "two words"
data_7/x.mrc 000001@stack.mrcs 1 120.0 -10.0 3.0 0 0 12000.0 11000.0 -45.0 2 it's#fine
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two particles in a project folder whose stack lies above the STAR file."""
    write_stack(tmp_path / "stack.mrcs", [ramp_images(4)], 4, 8, 1.5)
    job = tmp_path / "Refine3D" / "job001"
    job.mkdir(parents=True)
    (job / "run_data.star").write_text(OPTICS_BLOCK + PARTICLES_BLOCK)
    return job / "run_data.star"


def ramp_images(count: int, box: int = 8) -> torch.Tensor:
    """Images of which every pixel is another number."""
    return torch.arange(count * box * box, dtype=torch.float32).reshape(count, box, box)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def test_star_text_is_kept_as_read(path: Path) -> None:
    table = read_star(path)
    assert table.particles["rlnMicrographName"].tolist() == ["007", "data_7/x.mrc"]
    assert table.particles["labComment"].tolist() == ["two words", "it's#fine"]
    assert table.particles["rlnDefocusU"].tolist() == ["15000.0", "12000.0"]
    assert table.optics["rlnVoltage"].tolist() == ["300.000000", "200.000000"]


def test_star_becomes_particles(path: Path) -> None:
    particles = particles_from_table(read_star(path))
    assert particles.names == ("000003@stack.mrcs", "000001@stack.mrcs")
    assert particles.pixel_size_angstrom == 1.5
    expected = relion_euler_to_unitquat(torch.tensor([[10.0, 20.0, 30.0], [-10.0, 120.0, 3.0]]))
    assert geodesic_distance(particles.poses.quaternions, expected).max() < 1e-5
    assert particles.poses.shifts_angstrom.tolist() == [[1.25, -2.5], [0.0, 0.0]]
    assert particles.half_sets.tolist() == [1, 2]
    assert particles.ctf.voltage_kv.tolist() == [200.0, 300.0]
    assert particles.ctf.defocus_angle_deg.tolist() == [45.0, -45.0]
    assert particles.ctf.phase_shift_deg.tolist() == [0.0, 0.0]
    assert torch.equal(particles.images[rows(0, 1)], ramp_images(4)[[2, 0]])


def test_order_of_blocks_does_not_matter(path: Path) -> None:
    table = read_star(path)
    path.write_text(PARTICLES_BLOCK + OPTICS_BLOCK)
    swapped = read_star(path)
    assert swapped.optics.equals(table.optics) and swapped.particles.equals(table.particles)


def test_star_write_and_read_is_identity(path: Path, tmp_path: Path) -> None:
    table = read_star(path)
    write_star(table, tmp_path / "copy.star")
    copy = read_star(tmp_path / "copy.star")
    assert copy.optics.equals(table.optics) and copy.particles.equals(table.particles)
    text = (tmp_path / "copy.star").read_text()
    assert text.count("# version 30001") == 2 and "_rlnImageName #2\n" in text


def test_missing_pose_or_ctf_columns_give_none(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("_rlnAngleTilt", "_labTilt").replace("_rlnVoltage", "_labVoltage"))
    particles = particles_from_table(read_star(path))
    assert particles.poses is None and particles.ctf is None


def test_origins_in_pixels_and_absent(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace("Angst #", " #"))
    assert poses_from_table(read_star(path)).shifts_angstrom.tolist() == [[1.875, -3.75], [0.0, 0.0]]
    path.write_text(text.replace("_rlnOrigin", "_labOrigin"))
    assert not poses_from_table(read_star(path)).shifts_angstrom.any()


def test_with_columns_is_pure_and_keeps_precision(path: Path) -> None:
    table = read_star(path)
    values = np.array([1.5, 1.23456789e-7])
    changed = with_columns(
        table, {"labNew": values, "rlnMicrographName": ["a", "b"], "labCount": np.array([3, 4])}
    )
    assert "labNew" not in table.particles and table.particles["rlnMicrographName"][0] == "007"
    assert changed.particles["labNew"].tolist() == ["1.500000", "1.23456789e-07"]
    assert changed.particles["labCount"].tolist() == ["3", "4"]
    assert list(changed.particles.columns[:2]) == ["rlnMicrographName", "rlnImageName"]
    with pytest.raises(ValueError, match="expected 2 values of labNew, found 3"):
        with_columns(table, {"labNew": np.zeros(3)})
    with pytest.raises(ValueError, match="labNew: row 2 is nan"):
        with_columns(table, {"labNew": np.array([0.0, np.nan])})


def test_with_poses_round_trip_and_one_unit_only(path: Path, tmp_path: Path) -> None:
    path.write_text(path.read_text().replace("Angst #", " #"))
    poses = Poses(
        random_unitquat(2, generator=torch.Generator().manual_seed(3)), torch.tensor([[3.0, -1.5], [0, 6]])
    )
    write_star(with_poses(read_star(path), poses), tmp_path / "posed.star")
    table = read_star(tmp_path / "posed.star")
    assert "rlnOriginX" not in table.particles
    found = poses_from_table(table)
    assert geodesic_distance(found.quaternions, poses.quaternions).max() < 1e-5
    assert torch.allclose(found.shifts_angstrom, poses.shifts_angstrom)


def test_select_rows_by_number_and_mask(path: Path) -> None:
    table = read_star(path)
    assert select_rows(table, rows(1, 0)).particles["rlnRandomSubset"].tolist() == ["2", "1"]
    assert select_rows(table, torch.tensor([False, True])).particles["rlnRandomSubset"].tolist() == ["2"]


def test_fresh_particles_round_trip(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.rand(3, generator=generator) * 1e4 for _ in range(3)]
    microscope = [torch.full((3,), value) for value in (200.0, 2.7, 0.07, 90.0)]
    poses = Poses(random_unitquat(3, generator=generator), torch.randn(3, 2, generator=generator))
    half_sets = torch.tensor([1, 2, 1])
    images = ramp_images(3)
    names = [f"{number:06d}@fresh.mrcs" for number in (1, 2, 3)]
    fresh = Particles(images, 1.25, tuple(names), poses, CtfParameters(*numbers, *microscope), half_sets)
    write_stack(tmp_path / "fresh.mrcs", images.split(2), 3, 8, 1.25)
    write_star(table_from_particles(fresh, names), tmp_path / "fresh.star")
    found = particles_from_table(read_star(tmp_path / "fresh.star"))
    assert found.names == fresh.names and found.pixel_size_angstrom == 1.25
    assert torch.equal(found.images[rows(0, 1, 2)], images) and torch.equal(found.half_sets, half_sets)
    assert geodesic_distance(found.poses.quaternions, poses.quaternions).max() < 1e-5
    assert torch.allclose(found.poses.shifts_angstrom, poses.shifts_angstrom, atol=1e-5)
    for name, values in vars(fresh.ctf).items():
        assert torch.allclose(getattr(found.ctf, name), values), name
    bare = table_from_particles(Particles(images, 1.25, tuple(names)), names)
    assert len(bare.optics) == 1 and poses_from_table(bare) is None


@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("kind", ["i1", "i2", "f4", "u2", "f2"])
def test_every_mode_byte_order_and_extended_header(tmp_path: Path, kind: str, byte_order: str) -> None:
    path = tmp_path / "stack.mrcs"
    images = np.arange(3 * 16).reshape(3, 4, 4)
    with mrcfile.new(path) as mrc:
        mrc.set_data(images.astype(byte_order + kind))
        mrc.set_extended_header(np.zeros(96, dtype="u1"))
    lazy = LazyImages([path] * 3, [2, 0, 1])
    assert lazy.shape == (3, 4, 4) and len(lazy) == 3
    found = lazy[rows(1, 0, 1)]
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), images[[0, 2, 0]])


def test_many_stacks_stay_in_order_and_travel_to_workers(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.mrcs" for number in range(40)]
    for number, path in enumerate(paths):
        write_stack(path, [torch.full((1, 4, 4), float(number))], 1, 4, 1.0)
    lazy = pickle.loads(pickle.dumps(LazyImages(paths, [0] * 40)))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lazy[order][:, 0, 0], order.float())


def test_a_replaced_stack_is_read_afresh(tmp_path: Path) -> None:
    path = tmp_path / "stack.mrcs"
    for value in (1.0, 2.0):
        write_stack(path, [torch.full((1, 4, 4), value)], 1, 4, 1.0)
        assert LazyImages([path], [0])[rows(0)].unique().tolist() == [value]


def test_written_stack_is_a_valid_mrc_with_statistics(tmp_path: Path) -> None:
    images = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(2)) + 3
    write_stack(tmp_path / "stack.mrcs", images.split(2), 5, 8, 1.7)
    assert mrcfile.validate(tmp_path / "stack.mrcs")
    with mrcfile.open(tmp_path / "stack.mrcs") as mrc:
        assert mrc.is_image_stack() and mrc.voxel_size.x == pytest.approx(1.7)
        assert np.array_equal(mrc.data, images.numpy())
        assert float(mrc.header.dmean) == pytest.approx(images.mean().item(), rel=1e-5)
        assert float(mrc.header.rms) == pytest.approx(images.std(correction=0).item(), rel=1e-5)


def test_volume_round_trip_and_axis_order(tmp_path: Path) -> None:
    voxels = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(4))
    write_volume(Volume(voxels, 2.1), tmp_path / "map.mrc")
    assert mrcfile.validate(tmp_path / "map.mrc")
    found = read_volume(tmp_path / "map.mrc")
    assert torch.equal(found.voxels, voxels) and found.pixel_size_angstrom == pytest.approx(2.1)
    with mrcfile.open(tmp_path / "map.mrc", mode="r+") as mrc:
        mrc.set_data(np.ascontiguousarray(voxels.numpy().transpose(1, 2, 0)))  # sections y, rows x, columns z
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = 2, 1, 3
    assert torch.equal(read_volume(tmp_path / "map.mrc").voxels, voxels)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_nothing_torn(tmp_path: Path, failure: type[BaseException]) -> None:
    target = tmp_path / "model.json"
    target.write_text("old")
    with pytest.raises(failure), replacing(target) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("half of the ne")
        raise failure
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_stack_writing_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def breaking_batches():
        yield ramp_images(1)
        raise RuntimeError("simulation failed")

    with pytest.raises(RuntimeError, match="simulation failed"):
        write_stack(tmp_path / "stack.mrcs", breaking_batches(), 2, 8, 1.0)
    with pytest.raises(ValueError, match="expected 2 images, found 1"):
        write_stack(tmp_path / "stack.mrcs", [ramp_images(1)], 2, 8, 1.0)
    assert not list(tmp_path.iterdir())


def test_refuse_to_overwrite(tmp_path: Path) -> None:
    refuse_to_overwrite(tmp_path / "new", overwrite=False)
    (tmp_path / "old").touch()
    refuse_to_overwrite(tmp_path / "old", overwrite=True)
    with pytest.raises(ValueError, match="--overwrite"):
        refuse_to_overwrite(tmp_path / "old", overwrite=False)


def test_root_comes_first_then_parents(tmp_path: Path) -> None:
    job, root = tmp_path / "project" / "job", tmp_path / "root"
    job.mkdir(parents=True)
    root.mkdir()
    (tmp_path / "project" / "a.mrcs").touch()
    assert find_file("a.mrcs", job, root) == tmp_path / "project" / "a.mrcs"
    (root / "a.mrcs").touch()
    assert find_file("a.mrcs", job, root) == root / "a.mrcs"
    assert find_file("/gone/a.mrcs", job, root) == root / "a.mrcs"


def test_relion_30_says_the_same_as_31(path: Path) -> None:
    new = particles_from_table(read_star(path))
    path.write_text(
        "data_\n\nloop_\n_rlnImageName\n_rlnAngleRot\n_rlnAngleTilt\n_rlnAnglePsi\n_rlnOriginX\n_rlnOriginY\n"
        "_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnVoltage\n_rlnSphericalAberration\n"
        "_rlnAmplitudeContrast\n_rlnMagnification\n_rlnDetectorPixelSize\n"
        "3@stack.mrcs 10 20 30 0.8333333 -1.6666667 15000 14000 45 200 0.01 0.07 40000 6\n"
        "1@stack.mrcs -10 120 3 0 0 12000 11000 -45 300 2.7 0.1 40000 6\n"
    )
    old = particles_from_table(read_star(path))
    assert old.pixel_size_angstrom == pytest.approx(new.pixel_size_angstrom)
    assert torch.equal(old.poses.quaternions, new.poses.quaternions)
    assert torch.allclose(old.poses.shifts_angstrom, new.poses.shifts_angstrom)
    for name, values in vars(new.ctf).items():
        assert torch.equal(getattr(old.ctf, name), values), name
    assert torch.equal(old.images[rows(0, 1)], new.images[rows(0, 1)])


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_tables_longer_than_a_chunk_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("cryoforum.io.relion.star_text._CHUNK_ROWS", 2)
    names = [f"{row + 1}@a.mrcs" for row in range(count)]
    labels = ["two words", "", "#7", "_x", "data_x"][:count]
    table = pd.DataFrame({"rlnImageName": names, "label": labels}, dtype=str)
    write_star(ParticleTable(tmp_path, None, table), tmp_path / "long.star")
    found = read_star(tmp_path / "long.star").particles
    assert found.to_dict("list") == {"rlnImageName": names, "label": labels}


@pytest.mark.parametrize("first", ["_rlnTomoName", "data_7/x.mrc", "loop_", "plain"])
@pytest.mark.parametrize("width", [1, 3])
def test_values_that_look_like_keywords_come_back(tmp_path: Path, first: str, width: int) -> None:
    row = [first, "_x", "data_y"][:width]
    table = pd.DataFrame([row, row], columns=["rlnImageName", "a", "b"][:width], dtype=str)
    write_star(ParticleTable(tmp_path, None, table), tmp_path / "odd.star")
    assert read_star(tmp_path / "odd.star").particles.to_dict("list") == table.to_dict("list")
