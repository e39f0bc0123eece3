"""cryoSPARC's records with values that cannot be right, several classes, filaments, and what no column says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cryosparc_records import only, records, refined, rotation_vectors, write
from helpers.messages import logged, messages, silence

from cryoforum.dataset.particle_table import number_column
from cryoforum.dataset.poses import Poses
from cryoforum.errors import InputError
from cryoforum.io.cryosparc.reading import read_cryosparc
from cryoforum.io.cryosparc.writing import records_from_table
from cryoforum.io.particle_files import check_writable
from cryoforum.io.relion.particles import has_only_2d_alignments, poses_from_table, with_poses

COUNT = 6
BEST = np.array([0, 1, 1, 0, 1, 1])  # the most probable class of each particle


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alignments3D__psize_A": np.zeros(COUNT)}, "alignments3D/psize_A.*found 0 .so it is in all 6 rows"),
        ({"alignments3D__psize_A": np.r_[2, 2, 2, 0, 0, 2]}, "row 4 .*in 2 of 6 rows: 4, 5.*--drop-unusable"),
        ({"blob__psize_A": np.zeros(COUNT)}, "pixel size > 0 Å in field blob/psize_A, found 0"),
        ({"ctf__accel_kv": np.zeros(COUNT)}, "ctf/accel_kv from 10 to 1000 kV, found 0"),
        ({"ctf__accel_kv": np.full(COUNT, 3e5)}, "seems to be in V: multiply it by 0.001"),
        ({"ctf__cs_mm": np.full(COUNT, 2700)}, "seems to be in µm: multiply it by 0.001"),
        ({"ctf__amp_contrast": np.full(COUNT, 10)}, "seems to be in percent"),
        ({"blob__path": np.array([b"a.mrcs", b"", b"a.mrcs", b"", b">", b"a.mrcs"])}, "row 2.*3 of 6 rows"),
    ],
)
def test_values_that_cannot_be_right_are_refused(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        read_cryosparc(write(tmp_path / "a.cs", refined(**changes)))


def test_values_that_are_rare_are_taken(tmp_path: Path) -> None:
    """A corrected microscope, particles without shifts whose pixel size nobody filled, overfocus."""
    rare = refined(
        ctf__cs_mm=np.array([0, 0.001, -0.01, 0, 0, 0]),
        ctf__df1_A=np.full(COUNT, -8000.0),
        alignments3D__shift=np.zeros((COUNT, 2)),
        alignments3D__psize_A=np.zeros(COUNT),
    )
    with silence():
        table = read_cryosparc(write(tmp_path / "a.cs", rare))
    poses = poses_from_table(table)
    assert poses is not None and not poses.shifts_angstrom.any()
    moved = with_poses(table, Poses(poses.quaternions, torch.full((COUNT, 2), 13.45)))
    written = records_from_table(moved)
    np.testing.assert_allclose(written["alignments3D/psize_A"], 1.345)
    np.testing.assert_allclose(written["alignments3D/shift"], 10, rtol=1e-5)


def test_particles_that_cannot_be_used_are_left_out_and_told(tmp_path: Path) -> None:
    fields = refined()
    fields["ctf/df1_A"][2], fields["alignments3D/pose"][4, 1] = np.nan, np.inf
    path = write(tmp_path / "a.cs", fields)
    with messages() as found:
        table = read_cryosparc(path, drop_unusable=True)
    assert (records_from_table(table) == records(fields)[[0, 1, 3, 5]]).all()
    assert [line.split(": ", 1)[1] for line in found] == [
        "1 of 6 particles are left out (rows 3): expected a number in field ctf/df1_A, found nan",
        f"1 of 6 particles are left out (rows 5): expected a number in field alignments3D/pose, found "
        f"{fields['alignments3D/pose'][4].astype(float)}",
    ]
    with pytest.raises(InputError, match="found none"):
        read_cryosparc(write(tmp_path / "b.cs", refined(blob__psize_A=np.zeros(COUNT))), drop_unusable=True)


def test_a_uid_of_two_images_is_refused_where_files_are_merged(tmp_path: Path) -> None:
    fields = refined()
    fields["uid"][3] = fields["uid"][0]
    poses = write(tmp_path / "J7_005_particles.cs", only(fields, "alignments3D", "ctf"))
    images = write(tmp_path / "J7_passthrough_particles.cs", only(fields, "blob"))
    with pytest.raises(InputError, match=f"found {fields['uid'][0]} in rows 1 and 4, which differ"):
        read_cryosparc(poses, [images])
    with logged(f"found {fields['uid'][0]} in rows 1 and 4; cryoSPARC takes them for one particle"):
        table = read_cryosparc(write(tmp_path / "a.cs", fields))
    assert len(set(table.particles["rlnImageName"])) == COUNT


def test_a_uid_that_is_repeated_whole_stands_for_one_image(tmp_path: Path) -> None:
    """Copies of one particle, as symmetry expansion makes them, beside images that are listed once or twice."""
    fields = refined()
    fields["uid"][3] = fields["uid"][0]
    images = only(fields, "blob")
    images = {name: values[[0, 1, 2, 0, 4, 5]] for name, values in images.items()}
    poses = write(tmp_path / "J7_005_particles.cs", only(fields, "alignments3D", "ctf"))
    companion = write(tmp_path / "J7_passthrough_particles.cs", images)
    with silence():
        table = read_cryosparc(poses, [companion])
    names = table.particles["rlnImageName"]
    assert names[3] == names[0] and len(set(names)) == COUNT - 1


def classified(fields: dict[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """The same particles as a classification in two classes says them, of which ``BEST`` are right."""
    wrong = rotation_vectors(np.random.default_rng(5), COUNT).astype("<f4")
    pose = np.stack([np.where((k == BEST)[:, None], fields["alignments3D/pose"], wrong) for k in (0, 1)], 1)
    posterior = np.stack([np.where(k == BEST, 0.9, 0.1) for k in (0, 1)], 1).astype("<f4")
    shift = np.repeat(fields["alignments3D/shift"][:, None], 2, axis=1)
    shared = {name: fields[f"alignments3D/{name}"] for name in ("psize_A", "split")}
    rest = {name: values for name, values in fields.items() if not name.startswith("alignments3D/")}
    if form == "multi":
        of_classes = {"pose": pose, "shift": shift, "class_posterior": posterior} | shared
        return rest | {f"alignments3D_multi/{name}": values for name, values in of_classes.items()}
    for k in (0, 1):
        of_class = {"pose": pose[:, k], "shift": shift[:, k], "class_posterior": posterior[:, k]} | shared
        rest |= {f"alignments_class3D_{k}/{name}": values for name, values in of_class.items()}
    return rest


@pytest.mark.parametrize("form", ["multi", "a prefix for each class"])
def test_of_several_classes_the_most_probable_counts(tmp_path: Path, form: str) -> None:
    fields = refined()
    expected = read_cryosparc(write(tmp_path / "one.cs", fields)).particles
    path = write(tmp_path / "classes.cs", classified(fields, form))
    with logged(r"most probable class are read \(rlnClassNumber 1: 2, 2: 4\)"):
        table = read_cryosparc(path)
    assert table.particles["rlnClassNumber"].tolist() == [str(k + 1) for k in BEST]
    assert table.particles[expected.columns].equals(expected)
    with logged("left out of the .star file: .*alignments"):
        check_writable(table, tmp_path / "out.star")
    assert records_from_table(table).dtype == table.dataset.dtype  # nothing changed, so nothing is added


def test_poses_of_classes_that_change_are_written_as_of_one(tmp_path: Path) -> None:
    table = read_cryosparc(write(tmp_path / "classes.cs", classified(refined(), "multi")))
    poses = poses_from_table(table)
    assert poses is not None
    written = records_from_table(with_poses(table, Poses(poses.quaternions, 2 * poses.shifts_angstrom)))
    np.testing.assert_allclose(written["alignments3D/pose"], refined()["alignments3D/pose"], atol=1e-5)
    np.testing.assert_allclose(
        written["alignments3D/shift"] * 1.345,
        2 * 2.69 * refined()["alignments3D/shift"],
        rtol=1e-4,
        atol=1e-4,
    )
    assert written["alignments3D/class"].tolist() == BEST.tolist()
    assert written["alignments3D/split"].tolist() == refined()["alignments3D/split"].tolist()


def test_classes_pass_through_new_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cs", refined(alignments3D__class=BEST))
    table = read_cryosparc(path)
    assert table.particles["rlnClassNumber"].tolist() == [str(k + 1) for k in BEST]
    assert records_from_table(replace(table, dataset=None))["alignments3D/class"].tolist() == BEST.tolist()


def test_2d_classes_are_columns_and_the_rest_is_told(tmp_path: Path) -> None:
    aligned = {"alignments2D/class": BEST.astype("<u4"), "alignments2D/pose": np.zeros(COUNT, "<f4")}
    fields = only(refined(), "blob", "ctf") | aligned
    table = read_cryosparc(write(tmp_path / "a.cs", fields))
    assert table.particles["rlnClassNumber"].tolist() == [str(k + 1) for k in BEST]
    assert has_only_2d_alignments(table)
    with logged("left out of the .star file: alignments2D/pose; keep a.cs, too"):
        check_writable(table, tmp_path / "out.star")
    both = read_cryosparc(write(tmp_path / "b.cs", refined() | aligned))
    assert "rlnClassNumber" not in both.particles  # the poses are of one map
    with logged("alignments2D/class, alignments2D/pose"):
        check_writable(both, tmp_path / "out.star")


def test_filaments_are_columns(tmp_path: Path) -> None:
    filaments = {
        "location/micrograph_path": np.array([b"a.mrc"] * 4 + [b"b.mrc"] * 2),
        "filament/filament_uid": np.array([2**63, 5, 2**63, 2**63 + 1, 9, 9], "<u8"),
        "filament/position_A": np.array([0, 0, 40, 0, 80, 120], "<f4"),
        "filament/filament_pose": np.zeros(COUNT, "<f4"),
    }
    table = read_cryosparc(write(tmp_path / "a.cs", refined() | filaments))
    assert table.particles["rlnHelicalTubeID"].tolist() == ["2", "1", "2", "3", "1", "1"]
    length = number_column(table, "rlnHelicalTrackLengthAngst")
    assert length is not None and length.tolist() == [0, 0, 40, 0, 80, 120]
    with logged("left out of the .star file: filament/filament_pose; keep"):
        check_writable(table, tmp_path / "out.star")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (("location/center_x_frac", "location/micrograph_path"), "picks without images; extract"),
        (("micrograph_blob/path", "mscope_params/accel_kv"), "a dataset of micrographs"),
        (("movie_blob/path",), "a dataset of movies"),
        (("map/path", "map_half_A/path"), "a dataset of volumes"),
    ],
)
def test_other_datasets_are_refused_by_name(tmp_path: Path, fields: tuple[str, ...], told: str) -> None:
    values = {name: np.full(COUNT, b"a") if "path" in name else np.zeros(COUNT) for name in fields}
    with pytest.raises(InputError, match=told):
        read_cryosparc(write(tmp_path / "a.cs", {"uid": refined()["uid"]} | values))


@pytest.mark.parametrize("first", [0x94, 0x95, 0x96])
def test_every_version_of_the_stream_format_is_refused_by_name(tmp_path: Path, first: int) -> None:
    (tmp_path / "a.cs").write_bytes(bytes([first]) + b"CSDAT\0\0\0\0")
    with pytest.raises(InputError, match=r"stream format; .*Dataset.load\('a.cs'\).save\('a_numpy.cs'\)"):
        read_cryosparc(tmp_path / "a.cs")
