"""cryoforum convert: what goes in comes out in other words, for RELION as an outside judge, too."""

import subprocess
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.cryosparc_records import only, records, refined, write
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.commands.simulate import SimulateRequest, simulate
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows, with_columns
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import read_particle_file
from cryoforum.io.relion.lengths import pixel_size_from_table
from cryoforum.io.relion.particles import (
    ANGLE_COLUMNS,
    ctf_from_table,
    half_sets_from_table,
    particles_from_table,
    poses_from_table,
)
from cryoforum.io.relion.star_files import read_star, write_star
from cryoforum.simulation.config import SimulationConfig

CTF_FIELDS = ("df1_A", "df2_A", "df_angle_rad", "phase_shift_rad", "accel_kv", "cs_mm", "amp_contrast")


def convert(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """particles.star of 40 simulated ribosomes of 32 px, with poses, CTF and half sets."""
    folder = tmp_path_factory.mktemp("simulated")
    return simulate(SimulateRequest(folder, "4v5d", 32, 11.2, SimulationConfig(count=40, snr=5)))


@pytest.fixture
def two_groups(simulated: Path) -> Path:
    """The same in two optics groups of other voltages, with columns that only a person would know."""
    table = read_star(simulated)
    assert table.optics is not None
    optics = pd.concat([table.optics] * 2, ignore_index=True)
    optics["rlnOpticsGroup"], optics["rlnVoltage"] = ["1", "2"], ["300.0", "200"]
    optics["rlnOpticsGroupName"] = ["first", "second"]
    table = ParticleTable(table.path, optics, table.particles)
    table = with_columns(
        table, {"rlnOpticsGroup": np.arange(40) % 2 + 1, "myNote": [f"00{n}" for n in range(40)]}
    )
    path = simulated.with_name("groups.star")
    write_star(table, path)
    return path


def assert_same_particles(first: ParticleTable, second: ParticleTable) -> None:
    """Poses to 1e-4 degrees, shifts to 1e-3 Å, CTF and half sets agree."""
    poses, others = poses_from_table(first), poses_from_table(second)
    assert poses is not None and others is not None
    assert torch.rad2deg(geodesic_distance(poses.quaternions, others.quaternions)).max() < 1e-4
    np.testing.assert_allclose(poses.shifts_angstrom, others.shifts_angstrom, rtol=0, atol=1e-3)
    for name, values in vars(ctf_from_table(first)).items():
        np.testing.assert_allclose(values, getattr(ctf_from_table(second), name), rtol=1e-6, atol=1e-4)
    assert torch.equal(half_sets_from_table(first), half_sets_from_table(second))
    assert first.particles["rlnImageName"].tolist() == second.particles["rlnImageName"].tolist()


def test_cryosparc_to_star_and_back(tmp_path: Path) -> None:
    fields = refined(50)
    convert(write(tmp_path / "a.cs", fields), "--out", tmp_path / "b.star")
    convert(tmp_path / "b.star", "--out", tmp_path / "c.cs")
    back = np.load(tmp_path / "c.cs")
    turns = Rotation.from_rotvec(fields["alignments3D/pose"]).inv() * Rotation.from_rotvec(
        back["alignments3D/pose"]
    )
    assert np.rad2deg(turns.magnitude()).max() < 1e-4
    np.testing.assert_allclose(
        back["alignments3D/shift"] * back["alignments3D/psize_A"][:, None],
        fields["alignments3D/shift"] * 2.69,
        atol=1e-3,
    )
    for name in CTF_FIELDS:
        np.testing.assert_allclose(back[f"ctf/{name}"], fields[f"ctf/{name}"], rtol=1e-6, atol=1e-6)
    assert (back["alignments3D/split"] == fields["alignments3D/split"]).all()
    assert (back["blob/shape"] == 32).all() and (back["blob/idx"] == fields["blob/idx"]).all()
    assert set(back["blob/path"]) == {b"J1/extract/stack.mrcs"} and (back["blob/sign"] == -1).all()
    assert len(np.unique(back["uid"])) == 50


def test_star_to_cryosparc_and_back(two_groups: Path, tmp_path: Path) -> None:
    convert(two_groups, "--out", tmp_path / "a.cs")
    convert(tmp_path / "a.cs", "--out", tmp_path / "b.star")
    first, second = read_star(two_groups), read_star(tmp_path / "b.star")
    assert_same_particles(first, second)
    for column in ("rlnImagePixelSize", "rlnImageSize", "rlnVoltage"):
        np.testing.assert_allclose(number_column(first, column), number_column(second, column), rtol=1e-6)
    convert(two_groups, "--out", tmp_path / "again.cs")
    assert (tmp_path / "again.cs").read_bytes() == (tmp_path / "a.cs").read_bytes()


def test_merged_with_its_passthrough(tmp_path: Path) -> None:
    fields = refined()
    main = write(tmp_path / "J7_005_particles.cs", only(fields, "alignments3D"))
    other = write(tmp_path / "other.cs", only(fields, "blob", "ctf"))
    output = convert(main, other, "--out", tmp_path / "a.cs")
    assert f"merged with {other}" in output and "6 particles" in output
    merged = np.load(tmp_path / "a.cs")
    assert (merged[list(fields)] == records(fields)).all()


def test_what_a_star_file_cannot_say_is_told(tmp_path: Path) -> None:
    names = np.array([b">J1/stack.mrc"] * 6)
    output = convert(write(tmp_path / "a.cs", refined(blob__path=names)), "--out", tmp_path / "a.star")
    assert "ctf/tilt_A" in output and "ctf/anisomag" not in output and ".mrcs" in output


def test_relion_31_to_30_and_back(two_groups: Path, tmp_path: Path) -> None:
    convert(two_groups, "--relion", "3.0", "--out", tmp_path / "a.star")
    old, first = read_star(tmp_path / "a.star"), read_star(two_groups)
    assert old.optics is None and first.optics is not None
    assert_same_particles(first, old)
    assert not [name for name in old.particles if name.endswith("Angst")]
    convert(tmp_path / "a.star", "--relion", "3.1", "--out", tmp_path / "b.star")
    new = read_star(tmp_path / "b.star")
    assert new.optics is not None and set(new.particles) == set(first.particles)
    assert_same_particles(first, new)
    for column in ("myNote", "rlnOpticsGroup", "rlnDefocusU", "rlnAngleRot", "rlnRandomSubset"):
        assert new.particles[column].tolist() == first.particles[column].tolist()
    for column in first.optics:
        if column != "rlnImagePixelSize":
            assert new.optics[column].tolist() == first.optics[column].tolist()


def test_optics_groups_are_the_distinct_optics(tmp_path: Path) -> None:
    write_stack(tmp_path / "x.mrcs", [torch.zeros(4, 16, 16)], 4, 16, 2.0)
    columns = "ImageName Voltage SphericalAberration AmplitudeContrast DetectorPixelSize Magnification OriginX OriginY"
    rows = [
        "300 2.7 0.1 5 25000 1 -2",
        "200 2.7 0.1 5 25000 0 0",
        "300.00 2.7 0.1 5 25000 0 3",
        "300 2.7 0.1 5 20000 2 0",
    ]
    lines = ["data_", "", "loop_", *(f"_rln{name}" for name in columns.split())]
    text = "\n".join([*lines, *(f"{row}@x.mrcs {rest}" for row, rest in enumerate(rows, 1))]) + "\n"
    (tmp_path / "old.star").write_text(text)
    convert(tmp_path / "old.star", "--out", tmp_path / "new.star")
    new = read_star(tmp_path / "new.star")
    assert new.optics is not None
    assert new.particles["rlnOpticsGroup"].tolist() == ["1", "2", "1", "3"]
    assert new.optics["rlnVoltage"].astype(float).tolist() == [300, 200, 300]
    assert new.optics["rlnImagePixelSize"].astype(float).tolist() == [2, 2, 2.5]
    assert new.optics["rlnImageSize"].tolist() == ["16"] * 3
    assert new.particles["rlnOriginXAngst"].astype(float).tolist() == [2, 0, 0, 5]
    assert new.particles["rlnOriginYAngst"].astype(float).tolist() == [-4, 0, 6, 0]
    assert new.particles["rlnImageName"].tolist() == [f"{row}@x.mrcs" for row in range(1, 5)]


@pytest.mark.parametrize("kind", ["3.1", "3.0", "cs"])
def test_corrections_in_every_format(simulated: Path, tmp_path: Path, kind: str) -> None:
    source, suffix = simulated, ".cs" if kind == "cs" else ".star"
    more = ("--root", simulated.parent)
    if kind != "3.1":
        source = tmp_path / f"source{suffix}"
        convert(simulated, "--out", source, *more, *(("--relion", "3.0") if kind == "3.0" else ()))
    once, twice = tmp_path / f"once{suffix}", tmp_path / f"twice{suffix}"
    flags = ("--invert-rotations", *more)
    convert(source, "--out", once, "--scale-origins", -2, *flags)
    convert(once, "--out", twice, "--scale-origins", -0.5, *flags)
    tables = [read_particle_file(path) for path in (source, once, twice)]
    before, between, after = (poses_from_table(table) for table in tables)
    assert before is not None and between is not None and after is not None
    turned = Rotation.from_quat(before.quaternions) * Rotation.from_quat(between.quaternions)
    assert turned.magnitude().max() < 1e-5
    np.testing.assert_allclose(between.shifts_angstrom, -2 * before.shifts_angstrom, atol=1e-3)
    assert_same_particles(tables[0], tables[2])
    assert (tables[2].optics is None) == (kind == "3.0")
    sized = tmp_path / f"sized{suffix}"
    convert(source, "--out", sized, "--scale-pixel-size", 0.5, *more)
    found = read_particle_file(sized)
    assert pixel_size_from_table(found) == pytest.approx(5.6)
    assert (found.optics is None) == (kind == "3.0")
    origin = "rlnOriginX" if kind == "3.0" else "rlnOriginXAngst"  # what the file says of origins stays
    np.testing.assert_allclose(number_column(found, origin), number_column(tables[0], origin), atol=1e-3)


def test_every_optics_group_keeps_its_own_pixel_size(two_groups: Path, tmp_path: Path) -> None:
    table = read_star(two_groups)
    sizes = table.optics.assign(rlnImagePixelSize=["7.0", "8.0"])
    write_star(ParticleTable(table.path, sizes, table.particles), tmp_path / "mixed.star")
    convert(tmp_path / "mixed.star", "--out", tmp_path / "a.star", "--scale-pixel-size", 0.8)
    found = read_star(tmp_path / "a.star").optics["rlnImagePixelSize"]
    assert found.astype(float).tolist() == pytest.approx([5.6, 6.4])


def test_a_pixel_size_that_stands_there_twice_is_changed_in_both_places(
    simulated: Path, tmp_path: Path
) -> None:
    convert(simulated, "--out", tmp_path / "old.star", "--relion", "3.0")
    old = with_columns(read_star(tmp_path / "old.star"), {"rlnImagePixelSize": np.full(40, 11.2)})
    write_star(old, tmp_path / "both.star")
    convert(tmp_path / "both.star", "--out", tmp_path / "a.star", "--scale-pixel-size", 0.5)
    found = read_star(tmp_path / "a.star")
    assert pixel_size_from_table(found) == pytest.approx(5.6)
    without = ParticleTable(found.path, None, found.particles.drop(columns="rlnImagePixelSize"))
    assert pixel_size_from_table(without) == pytest.approx(5.6)


def test_origins_in_angstrom_count_beside_optics_groups(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    stale = {f"rlnOrigin{axis}": np.full(40, 99.0) for axis in "XY"}
    write_star(with_columns(table, stale), tmp_path / "both.star")
    convert(tmp_path / "both.star", "--relion", "3.0", "--out", tmp_path / "old.star")
    old = read_star(tmp_path / "old.star")
    assert not {"rlnOriginXAngst", "rlnOriginYAngst"} & set(old.particles)
    assert_same_particles(table, old)


def test_group_numbers_with_decimals_have_the_box_of_their_own_stack(
    two_groups: Path, tmp_path: Path
) -> None:
    """An odd box, which no other command would take, is written as it is, too."""
    table = read_star(two_groups)
    with mrcfile.new(tmp_path / "odd.mrcs") as file:
        file.set_data(np.zeros((40, 63, 63), np.float32))
    names = [
        name if row % 2 else f"{row + 1}@odd.mrcs" for row, name in enumerate(table.particles["rlnImageName"])
    ]
    groups = [f"{group}.000000" for group in table.particles["rlnOpticsGroup"]]
    table = with_columns(table, {"rlnImageName": names, "rlnOpticsGroup": groups})
    optics = table.optics.drop(columns="rlnImageSize")
    write_star(ParticleTable(table.path, optics, table.particles), tmp_path / "a.star")
    (tmp_path / "particles.mrcs").symlink_to(two_groups.with_name("particles.mrcs"))
    convert(tmp_path / "a.star", "--out", tmp_path / "a.cs")
    assert np.load(tmp_path / "a.cs")["blob/shape"][:, 0].tolist() == [63, 32] * 20


def test_images_need_not_be_there(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    assert table.optics is not None
    without = ParticleTable(table.path, table.optics.drop(columns="rlnImageSize"), table.particles)
    alone = tmp_path / "alone"
    alone.mkdir()
    write_star(without, alone / "particles.star")
    assert "--root" in convert(alone / "particles.star", "--out", alone / "a.cs")
    assert "blob/shape" not in np.load(alone / "a.cs").dtype.names
    convert(alone / "particles.star", "--root", simulated.parent, "--out", alone / "b.cs")
    assert (np.load(alone / "b.cs")["blob/shape"] == 32).all()


def test_refusals_leave_nothing_behind(simulated: Path, tmp_path: Path) -> None:
    cs = write(tmp_path / "a.cs", refined())
    out = tmp_path / "out.star"
    for arguments, words in (
        ((simulated, "--out", out), "RELION 3.1 already: nothing to convert"),
        ((cs, "--out", tmp_path / "b.cs"), "cryoSPARC already: nothing to convert"),
        ((cs, "--out", cs, "--overwrite"), "expected another name"),
        ((simulated, "--out", tmp_path / "b.cs", "--relion", "3.0"), "--relion with a .star file"),
        ((simulated, simulated, "--out", out), "the image is already in"),
        ((cs, "--out", tmp_path / "b.csv"), "found the suffix '.csv'"),
        ((simulated, "--out", out, "--scale-pixel-size", "0"), "expected --scale-pixel-size above 0"),
        ((simulated, "--out", out, "--scale-origins", "nan"), "expected a number for --scale-origins"),
        ((cs, "--out", tmp_path / "no" / "further" / "b.star"), "create it first"),
    ):
        assert words in convert(*arguments, code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cs"]
    convert(cs, "--out", out)
    written = out.read_bytes()
    assert "--overwrite" in convert(cs, "--out", out, code=1)
    assert out.read_bytes() == written
    convert(cs, "--out", out, "--relion", "3.0", "--overwrite")
    assert read_star(out).optics is None


def test_what_a_cs_file_cannot_say(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    write_star(with_columns(table, {"rlnBeamTiltX": np.ones(40)}), tmp_path / "tilted.star")
    said = convert(tmp_path / "tilted.star", "--out", tmp_path / "tilted.cs")
    assert "left out of the .cs file: rlnBeamTiltX; keep tilted.star" in said
    flipped = with_columns(table, {"rlnCtfDataArePhaseFlipped": np.ones(40, dtype=int)})
    write_star(flipped, tmp_path / "flipped.star")
    assert "phase flipped" in convert(tmp_path / "flipped.star", "--out", tmp_path / "flipped.cs", code=1)


def test_columns_that_a_cs_file_has_no_field_for_are_told_and_no_others(
    two_groups: Path, tmp_path: Path
) -> None:
    table = read_star(two_groups)
    table = replace(table, particles=table.particles.drop(columns="myNote"))
    write_star(table, tmp_path / "plain.star")
    assert "left out" not in convert(tmp_path / "plain.star", "--out", tmp_path / "plain.cs")
    extra = {"rlnMicrographName": "m.mrc", "rlnClassNumber": "3"}
    table = replace(table, particles=table.particles.assign(**extra))
    write_star(table, tmp_path / "more.star")
    said = convert(tmp_path / "more.star", "--out", tmp_path / "more.cs")
    assert "left out of the .cs file: rlnMicrographName; keep more.star" in said
    assert (np.load(tmp_path / "more.cs")["alignments3D/class"] == 2).all()
    convert(tmp_path / "more.cs", "--out", tmp_path / "back.star")
    back = read_star(tmp_path / "back.star")
    assert set(table.particles) - set(back.particles) - set(back.optics) == set(extra)


def test_half_a_ctf_is_refused(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    assert table.optics is not None
    broken = ParticleTable(table.path, table.optics.drop(columns="rlnVoltage"), table.particles)
    write_star(broken, tmp_path / "a.star")
    assert "rlnVoltage" in convert(tmp_path / "a.star", "--out", tmp_path / "a.cs", code=1)
    assert not (tmp_path / "a.cs").exists()


def relion_map(relion: Path, table: Path, out: Path) -> np.ndarray:
    command = [relion.with_name("relion_reconstruct"), "--i", table.name, "--ctf", "--o", out]
    subprocess.run(command, cwd=table.parent, check=True, capture_output=True)
    with mrcfile.open(out) as mrc:
        return np.array(mrc.data)


def test_relion_reconstructs_the_same_map_from_every_format(relion: Path, two_groups: Path) -> None:
    folder = two_groups.parent
    convert(two_groups, "--out", folder / "a.cs", "--overwrite")
    convert(folder / "a.cs", "--out", folder / "from_cs.star", "--overwrite")
    convert(two_groups, "--relion", "3.0", "--out", folder / "old.star", "--overwrite")
    expected = relion_map(relion, two_groups, folder / "expected.mrc")
    # RELION leaves out what falls on the other side of a threshold, so that 1e-5 degrees, the precision of
    # cryoSPARC's poses, change a map of 40 particles a little (turned shifts: correlation 0.74); with the very
    # same angles nothing changes.
    same_angles = {name: read_star(two_groups).particles[name].tolist() for name in ANGLE_COLUMNS}
    write_star(with_columns(read_star(folder / "from_cs.star"), same_angles), folder / "same_angles.star")
    for name in ("same_angles.star", "old.star"):
        found = relion_map(relion, folder / name, folder / "found.mrc")
        assert np.abs(found - expected).max() < 1e-5 * expected.std(), name
    found = relion_map(relion, folder / "from_cs.star", folder / "found.mrc")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_relion_handles_what_comes_from_cryosparc(relion: Path, tmp_path: Path) -> None:
    convert(write(tmp_path / "a.cs", refined()), "--out", tmp_path / "a.star")
    handler = relion.with_name("relion_star_handler")
    command = [handler, "--i", "a.star", "--o", "b.star", "--select", "rlnAngleTilt", "--minval", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert_same_particles(read_star(tmp_path / "a.star"), read_star(tmp_path / "b.star"))


def test_particles_of_all_formats_train_alike(two_groups: Path) -> None:
    folder = two_groups.parent
    convert(two_groups, "--out", folder / "a.cs", "--overwrite")
    first = particles_from_table(read_star(two_groups))
    second = particles_from_table(read_particle_file(folder / "a.cs"))
    assert first.names == second.names
    assert torch.equal(first.images[torch.arange(40)], second.images[torch.arange(40)])
    assert_same_particles(read_star(two_groups), select_rows(read_particle_file(folder / "a.cs"), range(40)))


def test_what_cannot_be_used_is_refused_or_left_out_and_told(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    angles, defocus = table.particles["rlnAngleTilt"].copy(), table.particles["rlnDefocusU"].copy()
    angles[3], angles[7], defocus[7], defocus[9] = "nan", "inf", "", "3e6"
    damaged = replace(table, particles=table.particles.assign(rlnAngleTilt=angles, rlnDefocusU=defocus))
    write_star(damaged, tmp_path / "damaged.star")
    refused = convert(tmp_path / "damaged.star", "--relion", "3.0", "--out", tmp_path / "old.star", code=1)
    assert "row 8" in refused and "--drop-unusable" in refused
    assert not (tmp_path / "old.star").exists()
    told = convert(tmp_path / "damaged.star", "--drop-unusable", "--out", tmp_path / "usable.star")
    assert "2 of 40 particles are left out (rows 4, 8): expected a number in column rlnAngleTilt" in told
    assert "2 of 40 particles are left out (rows 8, 10): expected rlnDefocusU from" in told
    assert "37 particles" in told
    kept = [row for row in range(40) if row not in (3, 7, 9)]
    expected = select_rows(damaged, kept)
    assert read_star(tmp_path / "usable.star").particles.equals(expected.particles)


def test_a_pixel_size_in_nanometres_is_corrected(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    assert table.optics is not None
    wrong = replace(table, optics=table.optics.assign(rlnImagePixelSize="0.09"))
    write_star(wrong, tmp_path / "wrong.star")
    refused = convert(tmp_path / "wrong.star", "--relion", "3.0", "--out", tmp_path / "old.star", code=1)
    assert "found 0.09; it seems to be in nm: multiply it by 10" in refused
    convert(tmp_path / "wrong.star", "--scale-pixel-size", 10, "--out", tmp_path / "right.star")
    assert pixel_size_from_table(read_star(tmp_path / "right.star")) == pytest.approx(0.9)


def test_files_are_joined_and_what_is_filled_or_left_out_is_told(simulated: Path, tmp_path: Path) -> None:
    table = read_star(simulated)
    old, new = simulated.with_name("old.star"), simulated.with_name("new.star")
    write_star(with_columns(select_rows(table, range(25)), {"rlnClassNumber": np.ones(25, int)}), old)
    newer = select_rows(table, range(25, 40))
    left = newer.particles.drop(columns=["rlnRandomSubset", "rlnOriginXAngst", "rlnOriginYAngst"])
    predicted = with_columns(
        replace(newer, particles=left),
        {"cryoforumTrace": np.ones(15), "cryoforumReferenceHalf": np.zeros(15)},
    )
    write_star(predicted, new)
    output = convert(old, new, "--out", tmp_path / "joined.star", "--root", simulated.parent)
    for words in (
        "new.star: no rlnRandomSubset, which other files have: half sets are drawn",
        "new.star: filled rlnOriginXAngst with 0.000000, rlnOriginYAngst with 0.000000",
        "new.star: left out cryoforumTrace, cryoforumReferenceHalf",
        "no longer says that one reference aligned both half sets",
        "40 particles in",
    ):
        assert words in output
    joined = read_star(tmp_path / "joined.star")
    assert len(joined) == 40 and set(joined.particles["rlnRandomSubset"]) == {"1", "2"}
    for name in ANGLE_COLUMNS:
        np.testing.assert_allclose(number_column(joined, name), number_column(table, name))


@pytest.mark.parametrize("kind", ["star", "cs"])
def test_a_plain_file_has_none_of_our_columns(simulated: Path, tmp_path: Path, kind: str) -> None:
    path = simulated.with_name("ours.star")
    own = {"cryoforumTrace": np.ones(40), "cryoforumExpectedErrorDeg": np.full(40, 0.5)}
    write_star(with_columns(read_star(simulated), own), path)
    if kind == "cs":
        convert(path, "--out", tmp_path / "ours.cs")
        path = tmp_path / "ours.cs"
        assert "cryoforum/Trace" in (np.load(path).dtype.names or ())
    out = tmp_path / f"plain.{kind}"
    assert "left out cryoforumTrace" in convert(path, "--plain", "--out", out)
    plain = read_particle_file(out)
    assert len(plain) == 40 and not [name for name in plain.particles if name.startswith("cryoforum")]
    if kind == "cs":
        assert not [name for name in np.load(out).dtype.names or () if name.startswith("cryoforum")]
    else:
        assert set(plain.particles) == set(read_star(simulated).particles)


def test_an_optics_group_whose_numbers_cannot_be_goes_with_its_particles(
    two_groups: Path, tmp_path: Path
) -> None:
    table = read_star(two_groups)
    assert table.optics is not None
    wrong = replace(table, optics=table.optics.assign(rlnVoltage=["300", "nan"]))
    write_star(wrong, tmp_path / "wrong.star")
    told = convert(tmp_path / "wrong.star", "--drop-unusable", "--out", tmp_path / "usable.star")
    assert "20 of 40 particles are left out (rows 2, 4, 6, 8, 10, …)" in told
    found = read_star(tmp_path / "usable.star")
    assert found.optics is not None and found.optics["rlnOpticsGroupName"].tolist() == ["first"]
    assert len(found) == 20 and ctf_from_table(found) is not None
