"""Maps of any box, axis order, size and origin; what is no map is refused by what it is. Judge: gemmi."""

import bz2
import gzip
import itertools
import math
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from helpers.messages import messages
from typer.testing import CliRunner, Result

from cryoforum.cli import app
from cryoforum.dataset.volumes import Volume
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.maps import read_volume, write_volume
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.relion.particles import poses_from_table
from cryoforum.io.relion.star_files import read_star
from cryoforum.molecules.structures import load_structure


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def blob(shape: tuple[int, int, int], at: tuple[int, int, int], border: float = 0.0) -> np.ndarray:
    """A Gaussian of 1.5 voxels about voxel ``at`` on a constant, (z, y, x)."""
    axes = np.meshgrid(
        *[np.arange(count) - centre for count, centre in zip(shape, at, strict=True)], indexing="ij"
    )
    return (border + np.exp(-sum(axis**2 for axis in axes) / (2 * 1.5**2))).astype(np.float32)


def write_map(path: Path, voxels: np.ndarray, voxel_size: float | tuple[float, float, float] = 2.0) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(voxels)
        mrc.set_volume()
        mrc.voxel_size = voxel_size
    return path


def read_with_notices(path: Path, pixel_size: float | None = None) -> tuple[Volume, list[str]]:
    with messages() as notices:
        volume = read_volume(path, pixel_size)
    return volume, notices


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_axes_as_gemmi_reads_them(tmp_path: Path, order: tuple[int, int, int]) -> None:
    """Boxes of three lengths, so that no axis passes for another."""
    grid = gemmi.FloatGrid(4, 6, 8)
    grid.set_unit_cell(gemmi.UnitCell(8, 12, 16, 90, 90, 90))
    grid.spacegroup = gemmi.SpaceGroup("P1")
    grid.array[:] = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    path = tmp_path / "map.ccp4"
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = grid
    ccp4.update_ccp4_header()
    ccp4.write_ccp4_map(str(path))
    with mrcfile.open(path, mode="r+") as mrc:  # columns, rows and sections along other axes
        axes = [axis - 1 for axis in order]
        turned = np.ascontiguousarray(grid.array.transpose(axes[::-1]))
        mrc.set_data(turned)
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = order
        mrc.header.mx, mrc.header.my, mrc.header.mz = 4, 6, 8
        mrc.header.cella = (8.0, 12.0, 16.0)
    judge = gemmi.read_ccp4_map(str(path))
    judge.setup(0.0, gemmi.MapSetup.ReorderOnly)
    assert np.array_equal(judge.grid.array, grid.array)
    volume, _ = read_with_notices(path)
    assert volume.pixel_size_angstrom == pytest.approx(2.0)
    inner = volume.voxels.numpy()[:, 1:7, 2:6]  # in a cube of 8
    assert np.array_equal(inner, judge.grid.array.T)


@pytest.mark.parametrize("shape", [(20, 16, 14), (13, 16, 12), (15, 15, 15), (11, 13, 9), (16, 15, 16)])
def test_boxes_are_padded_to_even_cubes_about_their_centre(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    centre = tuple(count // 2 for count in shape)
    path = write_map(tmp_path / "map.mrc", blob(shape, centre, border=0.25))
    volume, notices = read_with_notices(path)
    width = math.ceil(max(shape) / 2) * 2
    expected = blob((width,) * 3, (width // 2,) * 3, border=0.25)
    assert volume.voxels.shape == expected.shape
    assert np.abs(volume.voxels.numpy() - expected).max() < 0.02
    assert len(notices) == 1
    assert (
        f"padded from {' × '.join(map(str, shape[::-1]))} voxels to {width} × {width} × {width}" in notices[0]
    )


def test_even_cubes_stay_as_they_are_in_silence(tmp_path: Path) -> None:
    voxels = blob((12, 12, 12), (4, 5, 6))
    volume, notices = read_with_notices(write_map(tmp_path / "map.mrc", voxels))
    assert np.array_equal(volume.voxels.numpy(), voxels) and not notices


@pytest.mark.parametrize(("start", "told"), [((0, 0, 0), 0), ((-6, -6, -6), 0), ((30, 31, 32), 1)])
def test_where_a_map_begins_does_not_move_it(tmp_path: Path, start: tuple[int, int, int], told: int) -> None:
    voxels = blob((12, 12, 12), (4, 5, 6))
    path = write_map(tmp_path / "map.mrc", voxels)
    with mrcfile.open(path, mode="r+") as mrc:
        mrc.nstart = start
        mrc.header.origin = (7.0, 8.0, 9.0)
    volume, notices = read_with_notices(path)
    assert np.array_equal(volume.voxels.numpy(), voxels)
    assert len(notices) == told and all("30, 31, 32" in notice for notice in notices)


def test_maps_without_a_stamp_are_read_with_a_notice(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.mrc", blob((8, 8, 8), (4, 4, 4)))
    content = bytearray(path.read_bytes())
    content[208:212] = bytes(4)
    path.write_bytes(content)
    volume, notices = read_with_notices(path)
    assert len(volume.voxels) == 8 and len(notices) == 1 and "stamp MAP" in notices[0]


@pytest.mark.parametrize(("packing", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_compressed_maps(tmp_path: Path, packing: str, pack) -> None:
    voxels = blob((8, 8, 8), (4, 5, 4))
    plain = write_map(tmp_path / "emd.map", voxels)
    path = tmp_path / f"emd.map.{packing}"
    path.write_bytes(pack(plain.read_bytes()))
    assert np.array_equal(
        load_structure(str(path), 8, 2.0).voxels.numpy(), load_structure(str(plain), 8, 2.0).voxels
    )


def test_other_kinds_of_file_are_refused_by_what_they_are(tmp_path: Path) -> None:
    write_stack(tmp_path / "stack.mrcs", [torch.zeros(8, 8, 8)], 8, 8, 2.0)
    write_map(tmp_path / "long.mrc", np.zeros((80, 8, 8), dtype=np.float32))
    write_map(tmp_path / "maps.mrc", np.zeros((8, 8, 8), dtype=np.float32))
    with mrcfile.open(tmp_path / "maps.mrc", mode="r+") as mrc:
        mrc.header.ispg, mrc.header.mz = 401, 4
    with mrcfile.new(tmp_path / "image.mrc") as mrc:
        mrc.set_data(np.zeros((8, 8), dtype=np.float32))
    write_map(tmp_path / "crystal.mrc", np.zeros((8, 8, 8), dtype=np.float32))
    with mrcfile.open(tmp_path / "crystal.mrc", mode="r+") as mrc:
        mrc.header.cellb = (90.0, 109.5, 90.0)
    for name, words in (
        ("stack.mrcs", "a stack of 8 images of 8 × 8 px"),
        ("long.mrc", "looks like a stack of images"),
        ("maps.mrc", "a stack of several maps"),
        ("image.mrc", "a single image of 8 × 8 px"),
        ("crystal.mrc", "109.5"),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            load_structure(str(tmp_path / name), 8, 2.0)
        assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((0, 0, 0), "pixel size > 0"),
        ((2, 2, 3), "one pixel size"),
        ((math.nan, 2, 2), "pixel size > 0"),
        ((2, -2, 2), "pixel size > 0"),
        ((math.inf, 2, 2), "pixel size > 0"),
    ],
)
def test_pixel_sizes_that_are_none_and_the_way_out(
    tmp_path: Path, sizes: tuple[float, float, float], words: str
) -> None:
    path = write_map(tmp_path / "map.mrc", blob((8, 8, 8), (4, 4, 4)), sizes)
    with pytest.raises(ValueError, match=words) as refusal:
        read_volume(path)
    assert "--map-pixel-size" in str(refusal.value) and "map.mrc" in str(refusal.value)
    assert read_volume(path, 3.5).pixel_size_angstrom == 3.5
    with pytest.raises(ValueError, match="above 0"):
        read_volume(path, -1.0)


def test_a_map_without_pixel_size_is_taken_once_it_is_given(tmp_path: Path) -> None:
    small = ("--box", 32, "--pixel-size", 11.2, "--n", 8, "--snr", 5, "--out", tmp_path)
    assert invoke("simulate", *small).exit_code == 0
    particles = tmp_path / "particles.star"
    write_map(tmp_path / "map.mrc", load_structure("4v5d", 32, 11.2).voxels.numpy(), 0.0)
    write_volume(load_structure("4v5d", 32, 11.2), tmp_path / "sized.mrc")
    refused = invoke("align", tmp_path / "map.mrc", particles, "--out", tmp_path / "no.star")
    assert refused.exit_code == 1 and "--map-pixel-size" in refused.stderr
    for name, more in (("map", ("--map-pixel-size", 11.2)), ("sized", ())):
        done = invoke("align", tmp_path / f"{name}.mrc", particles, "--out", tmp_path / f"{name}.star", *more)
        assert done.exit_code == 0, done.output
    found, expected = (poses_from_table(read_star(tmp_path / f"{name}.star")) for name in ("map", "sized"))
    assert found is not None and expected is not None
    torch.testing.assert_close(found.shifts_angstrom, expected.shifts_angstrom, atol=0.05, rtol=0)
    assert float(geodesic_distance(found.quaternions, expected.quaternions).max()) < 0.002
    wrong = invoke("align", "4v5d", particles, "--out", tmp_path / "no.star", "--map-pixel-size", 2)
    assert wrong.exit_code == 1 and "expected a map with --map-pixel-size" in wrong.stderr
    odd = write_map(tmp_path / "odd.mrc", blob((15, 16, 14), (7, 8, 7)), 11.2)
    told = invoke("simulate", "--structure", odd, *small[:-1], tmp_path / "again")
    assert told.exit_code == 0 and told.stderr.count("padded from 14 × 16 × 15") == 1
