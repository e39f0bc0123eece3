"""cryoSPARC files in RELION's terms and back; what is damaged or not ours is refused in one line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cryosparc_records import only, records, refined, rotation_vectors, write
from helpers.messages import logged
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from cryoforum.cli import app
from cryoforum.config import Config, NetworkConfig, PreprocessingConfig
from cryoforum.dataset.particle_table import ParticleTable, number_column, select_rows, with_columns
from cryoforum.dataset.poses import Poses
from cryoforum.geometry.rotations import geodesic_distance
from cryoforum.io.cryosparc.records import read_records
from cryoforum.io.cryosparc.writing import records_from_table
from cryoforum.io.join import joined
from cryoforum.io.mrc.stacks import write_stack
from cryoforum.io.particle_files import read_files, read_particle_file, write_particle_file
from cryoforum.io.relion.particles import (
    ctf_from_table,
    half_sets_from_table,
    particles_from_table,
    poses_from_table,
    with_poses,
)
from cryoforum.network.model import OrientationNetwork, TrainedModel
from cryoforum.network.model_folder import save_model

ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]


def degrees_between(first: Rotation, second: Rotation) -> np.ndarray:
    return np.rad2deg((first.inv() * second).magnitude())


def rotations_of(table: ParticleTable) -> Rotation:
    return Rotation.from_euler("ZYZ", table.particles[ANGLES].astype(float), degrees=True)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A cryoSPARC project folder with a stack of six images of 32 px, each of its own brightness."""
    (tmp_path / "J1" / "extract").mkdir(parents=True)
    images = torch.arange(1.0, 7.0)[:, None, None] * torch.randn(6, 32, 32)
    write_stack(tmp_path / "J1" / "extract" / "stack.mrcs", [images], 6, 32, 1.345)
    return tmp_path


def test_poses_are_rotation_vectors_and_shifts_pixels_of_the_refinement(tmp_path: Path) -> None:
    fields = refined(200)
    table = read_particle_file(write(tmp_path / "a.cs", fields))
    expected = Rotation.from_rotvec(fields["alignments3D/pose"])
    assert degrees_between(rotations_of(table), expected).max() < 1e-4
    poses = poses_from_table(table)
    assert poses is not None
    # The refinement ran on images cropped to half the box: 2.69 Å a pixel, not the stack's 1.345.
    np.testing.assert_allclose(poses.shifts_angstrom, fields["alignments3D/shift"] * 2.69, atol=1e-3)
    assert (
        read_particle_file(tmp_path / "a.cs").particles["rlnImageName"][1] == "000002@J1/extract/stack.mrcs"
    )


def test_shift_without_its_own_pixel_size_is_in_pixels_of_the_image(tmp_path: Path) -> None:
    fields = refined()
    del fields["alignments3D/psize_A"]
    poses = poses_from_table(read_particle_file(write(tmp_path / "a.cs", fields)))
    assert poses is not None
    np.testing.assert_allclose(poses.shifts_angstrom, fields["alignments3D/shift"] * 1.345, atol=1e-3)


def test_ctf_subsets_and_exposure_groups(tmp_path: Path) -> None:
    fields = refined(ctf__accel_kv=[300, 300, 300, 300, 200, 300])
    table = read_particle_file(write(tmp_path / "a.cs", fields))
    optics, half_sets = ctf_from_table(table), half_sets_from_table(table)
    assert optics is not None and half_sets is not None and table.optics is not None
    for name, field, factor in (
        ("defocus_u_angstrom", "ctf/df1_A", 1),
        ("defocus_v_angstrom", "ctf/df2_A", 1),
        ("defocus_angle_deg", "ctf/df_angle_rad", 180 / np.pi),
        ("phase_shift_deg", "ctf/phase_shift_rad", 180 / np.pi),
        ("voltage_kv", "ctf/accel_kv", 1),
        ("spherical_aberration_mm", "ctf/cs_mm", 1),
        ("amplitude_contrast", "ctf/amp_contrast", 1),
    ):
        np.testing.assert_allclose(getattr(optics, name), fields[field] * factor, rtol=1e-5, atol=1e-5)
    assert (half_sets.numpy() == fields["alignments3D/split"] + 1).all()
    # two exposure groups, one of which was recorded at two voltages
    assert len(table.optics) == 3 and table.optics["rlnOpticsGroupName"].is_unique
    assert (number_column(table, "rlnImageSize") == 32).all()


def test_one_half_set_is_no_half_set(tmp_path: Path) -> None:
    fields = refined(alignments3D__split=np.zeros(6))
    assert half_sets_from_table(read_particle_file(write(tmp_path / "a.cs", fields))) is None


def test_micrograph_and_coordinates(tmp_path: Path) -> None:
    fields = refined(
        location__micrograph_path=np.array([">J2/m.mrc"] * 6),
        location__micrograph_shape=np.full((6, 2), (4000, 6000)),
        location__center_x_frac=np.linspace(0, 1, 6),
        location__center_y_frac=np.full(6, 0.25),
    )
    table = read_particle_file(write(tmp_path / "a.cs", fields))
    assert set(table.particles["rlnMicrographName"]) == {"J2/m.mrc"}
    np.testing.assert_allclose(number_column(table, "rlnCoordinateX"), np.linspace(0, 6000, 6), atol=1e-2)
    np.testing.assert_allclose(number_column(table, "rlnCoordinateY"), np.full(6, 1000.0))


@pytest.mark.parametrize("kind", ["S", "U"])
def test_paths_in_bytes_and_in_unicode(tmp_path: Path, kind: str) -> None:
    names = np.array([">J1/a.mrcs", "J1/b.mrcs", "J1/>c.mrcs"] * 2).astype(kind)
    table = read_particle_file(write(tmp_path / "a.cs", refined(blob__path=names)))
    expected = ["000001@J1/a.mrcs", "000002@J1/b.mrcs", "000003@J1/>c.mrcs"]
    assert table.particles["rlnImageName"].tolist()[:3] == expected


def test_what_was_not_changed_is_written_bit_by_bit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cs", refined())
    write_particle_file(read_particle_file(path), tmp_path / "b.cs")
    assert (tmp_path / "b.cs").read_bytes() == path.read_bytes()


def test_only_what_was_changed_is_written_anew(tmp_path: Path) -> None:
    fields = refined()
    table = read_particle_file(write(tmp_path / "a.cs", fields))
    draw = np.random.default_rng(1)
    vectors, shifts = rotation_vectors(draw, 6), draw.normal(0, 9, (6, 2))
    quaternions = torch.from_numpy(Rotation.from_rotvec(vectors).as_quat()).float()
    table = with_poses(table, Poses(quaternions, torch.from_numpy(shifts).float()))
    table = with_columns(table, {"rlnRandomSubset": [1, 2, 2, 2, 1, 1], "rlnDefocusU": 1e4 + np.arange(6.0)})
    written = records_from_table(table)
    poses = Rotation.from_rotvec(written["alignments3D/pose"])
    assert degrees_between(poses, Rotation.from_rotvec(vectors)).max() < 1e-4
    np.testing.assert_allclose(written["alignments3D/shift"] * 2.69, shifts, atol=1e-3)
    assert written["alignments3D/split"].tolist() == [0, 1, 1, 1, 0, 0]
    assert written["ctf/df1_A"].tolist() == [10000, 10001, 10002, 10003, 10004, 10005]
    changed = {"alignments3D/pose", "alignments3D/shift", "alignments3D/split", "ctf/df1_A"}
    for name in set(fields) - changed:
        np.testing.assert_allclose(written[name], fields[name], rtol=1e-6) if fields[
            name
        ].dtype.kind == "f" else np.testing.assert_array_equal(written[name], fields[name])


def test_selected_rows_keep_their_records(tmp_path: Path) -> None:
    fields = refined()
    table = select_rows(read_particle_file(write(tmp_path / "a.cs", fields)), [4, 0])
    assert (records_from_table(table) == records(fields)[[4, 0]]).all()


def test_poses_of_particles_that_had_none(tmp_path: Path) -> None:
    fields = only(refined(), "blob", "ctf")
    table = read_particle_file(write(tmp_path / "a.cs", fields))
    assert poses_from_table(table) is None
    quaternions = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    write_particle_file(with_poses(table, Poses(quaternions, torch.ones(6, 2))), tmp_path / "b.cs")
    found = poses_from_table(read_particle_file(tmp_path / "b.cs"))
    assert found is not None
    assert torch.rad2deg(geodesic_distance(found.quaternions, quaternions)).max() < 1e-4
    np.testing.assert_allclose(found.shifts_angstrom, np.ones((6, 2)), atol=1e-3)


def test_our_columns_are_fields_and_columns_again(tmp_path: Path) -> None:
    table = read_particle_file(write(tmp_path / "a.cs", refined()))
    trace = np.linspace(-9, -1, 6)
    write_particle_file(with_columns(table, {"cryoforumTrace": trace}), tmp_path / "b.cs")
    assert np.load(tmp_path / "b.cs")["cryoforum/Trace"].dtype == np.float32
    run("filter", tmp_path / "b.cs", "--keep", "0.5", "--out", tmp_path / "kept.cs")
    kept = np.load(tmp_path / "kept.cs")
    assert (kept["uid"] == refined()["uid"][:3]).all()
    np.testing.assert_allclose(kept["cryoforum/Trace"], trace[:3], rtol=1e-6)
    without = replace(table, dataset=kept, particles=table.particles.iloc[:3])
    assert not any(name.startswith("cryoforum/") for name in records_from_table(without).dtype.names)


def test_passthrough_is_merged_by_uid(tmp_path: Path) -> None:
    fields = refined()
    main = write(tmp_path / "J7_005_particles.cs", only(fields, "alignments3D"))
    more = refined(9, uid=np.append(fields["uid"], np.arange(3, dtype="<u8")), ctf__df1_A=np.arange(9) + 1e4)
    order = np.random.default_rng(3).permutation(9)
    shuffled = {name: values[order] for name, values in only(more, "blob", "ctf").items()}
    passthrough = write(tmp_path / "elsewhere" / "passthrough.cs", shuffled)
    (table,) = read_files([main, passthrough])
    np.testing.assert_array_equal(number_column(table, "rlnDefocusU"), np.arange(6) + 1e4)
    assert [name[:6] for name in table.particles["rlnImageName"]] == [f"{row:06d}" for row in range(1, 7)]
    assert table.companions == (passthrough,)


@pytest.mark.parametrize(
    ("main", "beside"),
    [
        ("J7_005_particles.cs", "J7_passthrough_particles.cs"),
        ("P1_J7_005_particles.cs", "P1_J7_passthrough_particles.cs"),
        ("J7_005_particles.cs", "P1_J7_passthrough_particles.cs"),
        ("particles.cs", "passthrough_particles.cs"),
    ],
)
def test_passthrough_beside_is_found(tmp_path: Path, main: str, beside: str) -> None:
    fields = refined()
    write(tmp_path / main, only(fields, "alignments3D"))
    write(tmp_path / beside, only(fields, "blob", "ctf"))
    write(tmp_path / "J8_passthrough_particles.cs", only(refined(seed=8), "blob"))
    table = read_particle_file(tmp_path / main)
    assert table.companions == (tmp_path / beside,)
    assert ctf_from_table(table) is not None and poses_from_table(table) is not None


def test_passthrough_is_not_taken_where_nothing_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "J7_passthrough_particles.cs", only(refined(seed=8), "blob"))
    assert read_particle_file(write(tmp_path / "J7_005_particles.cs", refined())).companions == ()


def test_passthrough_of_another_job_or_two_of_them_are_refused(tmp_path: Path) -> None:
    fields = refined()
    main = write(tmp_path / "J7_005_particles.cs", only(fields, "alignments3D"))
    refused(main, "blob/path", "nor a passthrough file", "cryoforum convert")
    for name in ("J7_passthrough_particles_class_0.cs", "J7_passthrough_particles_class_1.cs"):
        other = write(tmp_path / name, {k: v[1:] for k, v in only(fields, "blob").items()})
    refused(main, "class_0.cs", "class_1.cs", "cryoforum convert")
    with pytest.raises(
        ValueError, match=rf"class_1.cs: expected uid {fields['uid'][0]} of row 1 in .*\(1 of 6"
    ):
        read_files([main, other])


def test_files_that_share_particles_are_duplicates_and_no_passthrough(project: Path, model: Path) -> None:
    """None of them lacks anything: three of the particles would be dropped without a word."""
    fields = refined()
    whole = write(project / "J7" / "all.cs", fields)
    part = write(project / "J7" / "class_3.cs", {name: values[:3] for name, values in fields.items()})
    assert [len(table) for table in read_files([part, whole])] == [3, 6]
    for command in (("predict", model, part, whole), ("convert", part, whole)):
        message = run(*command, "--out", project / "out.cs", code=1)
        assert "already in" in message or "expected one particle file" in message
    unposed = write(project / "J7" / "unposed.cs", only(fields, "blob", "ctf"))
    assert [len(table) for table in read_files([part, unposed])] == [3, 6]
    more = write(project / "J7" / "more.cs", {"uid": fields["uid"], "myFields/score": np.arange(6.0)})
    (table,) = read_files([part, more])  # it has no images, so it can be nothing else
    assert table.companions == (more,) and table.dataset["myFields/score"].tolist() == [0, 1, 2]


def test_joined_files_keep_their_records(project: Path) -> None:
    """Their common fields; paths as they were, or, in files of several projects, from their common folder."""
    first, second = refined(3), refined(6, seed=1)
    second = {name: values[3:] for name, values in second.items() if name != "ctf/tilt_A"}
    paths = [write(project / "J7" / "a.cs", first), write(project / "J8" / "b.cs", second)]
    with logged("left out ctf/tilt_A") as told:
        table = joined(read_files(paths))
    assert len(told) == 1 + sum("optics group" in one or "found from" in one for one in told)
    found = records_from_table(table)
    assert set(found.dtype.names) == set(second)
    for name in second:
        np.testing.assert_array_equal(found[name], np.concatenate([first[name], second[name]]), name)
    other = refined(6, seed=2, blob__path=np.array([b"s.mrcs"] * 6))
    (project / "elsewhere").mkdir()
    write_stack(project / "elsewhere" / "s.mrcs", [torch.randn(6, 32, 32)], 6, 32, 1.345)
    table = joined(read_files([paths[0], write(project / "elsewhere" / "c.cs", other)]))
    write_particle_file(table, project / "joined.cs")
    particles = particles_from_table(read_particle_file(project / "joined.cs"))
    alone = [
        particles_from_table(table).images for table in read_files([paths[0], project / "elsewhere" / "c.cs"])
    ]
    expected = torch.cat([images[torch.arange(len(images))] for images in alone])
    assert torch.equal(particles.images[torch.arange(9)], expected)


def test_records_are_left_out_beside_a_star_file_and_that_is_told(project: Path) -> None:
    paths = [write(project / name, refined(6, seed)) for seed, name in enumerate(("a.cs", "b.cs"))]
    shifted = refined(6, 1, blob__path=np.array([b"J1/extract/other.mrcs"] * 6))
    write(paths[1], shifted)
    (project / "J1" / "extract" / "other.mrcs").write_bytes(
        (project / "J1" / "extract" / "stack.mrcs").read_bytes()
    )
    write_particle_file(read_particle_file(paths[1]), project / "b.star")
    with logged("cryoSPARC's other fields are left out"):
        assert joined(read_files([paths[0], project / "b.star"])).dataset is None


def refused(path: Path, *words: str) -> None:
    """The file is refused in one line that has all these words and the file's name."""
    with pytest.raises(ValueError) as refusal:
        read_particle_file(path)
    message = str(refusal.value)
    assert "\n" not in message
    for word in (path.name, *words):
        assert word in message, message


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.cs", refined()).read_bytes()
    for cut in (1, 7, 9, 60, 400, len(whole) - 5):
        (tmp_path / "cut.cs").write_bytes(whole[:cut])
        refused(tmp_path / "cut.cs", "damaged")
    np.save(tmp_path / "o.npy", np.array([{"uid": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "o.npy").rename(tmp_path / "o.cs")
    refused(tmp_path / "o.cs", "Python objects")
    for name, array in (("plain", np.zeros((3, 2))), ("nothing", records(refined())[:0])):
        np.save(tmp_path / "x.npy", array)
        (tmp_path / "x.npy").rename(tmp_path / f"{name}.cs")
    refused(tmp_path / "plain.cs", "records of a cryoSPARC dataset", "(3, 2)")
    refused(tmp_path / "nothing.cs", "empty")
    for name, start, word in (
        ("s", b"\x94CSDAT1", "stream"),
        ("p", b"PAR1xxxx", "Parquet"),
        ("t", b"data_", "else"),
    ):
        (tmp_path / f"{name}.cs").write_bytes(start)
        refused(tmp_path / f"{name}.cs", word)
    refused(tmp_path / "missing.cs", "not found")
    (tmp_path / "images.mrcs").write_bytes(whole)
    refused(tmp_path / "images.mrcs", "images; give the .star or .cs")
    refused(tmp_path / "particles.csg", "result group")
    refused(tmp_path / "particles.txt", ".star or .cs", "'.txt'")


def test_odd_fields_are_refused(tmp_path: Path) -> None:
    fields = refined()
    del fields["uid"]
    with open(tmp_path / "a.cs", "wb") as file:
        np.save(file, records(fields | {"uid": refined()["uid"]})[list(fields)])
    refused(tmp_path / "a.cs", "uid", "blob/path")
    nan = refined()
    nan["ctf/df1_A"][2] = np.nan
    refused(write(tmp_path / "b.cs", nan), "row 3", f"uid {nan['uid'][2]}", "ctf/df1_A", "nan")
    flat = refined(alignments3D__pose=np.zeros(6))
    refused(write(tmp_path / "c.cs", flat), "3 numbers", "alignments3D/pose")
    words = refined(ctf__cs_mm=np.array([b"2.7"] * 6))
    refused(write(tmp_path / "d.cs", words), "a number", "ctf/cs_mm")


def test_headers_beyond_the_default_limit_of_numpy(tmp_path: Path) -> None:
    classes = {
        f"alignments_class3D_{k}__{name}": np.zeros(6) for k in range(150) for name in ("alpha", "error")
    }
    path = write(tmp_path / "a.cs", refined(**classes))
    with pytest.raises(ValueError, match="large"):
        np.load(path)
    assert len(read_particle_file(path)) == 6


def test_images_are_found_from_the_project_folder(project: Path) -> None:
    table = read_particle_file(write(project / "J7" / "J7_005_particles.cs", refined()))
    particles = particles_from_table(table)
    assert particles.box == 32 and particles.pixel_size_angstrom == pytest.approx(1.345)


def test_dark_particles_are_inverted_and_kept_out_of_star_files(project: Path) -> None:
    light, dark = refined(), refined(blob__sign=[-1, 1, 1, -1, 1, 1])
    images = [
        particles_from_table(read_particle_file(write(project / "J7" / name, fields))).images[torch.arange(6)]
        for name, fields in (("light.cs", light), ("dark.cs", dark))
    ]
    signs = torch.tensor([1.0, -1, -1, 1, -1, -1])[:, None, None]
    assert torch.equal(images[1], signs * images[0])
    table = read_particle_file(project / "J7" / "dark.cs")
    with pytest.raises(ValueError, match=r"dark on light \(blob/sign 1\).*out.cs instead"):
        write_particle_file(table, project / "out.star")
    assert not (project / "out.star").exists()
    write_particle_file(select_rows(table, [0, 3]), project / "out.star")


def test_training_refuses_2d_alignments_with_the_reason(project: Path) -> None:
    fields = only(refined(), "blob", "ctf")
    aligned = {"alignments2D/pose": np.zeros(6, "<f4"), "alignments2D/shift": np.zeros((6, 2), "<f4")}
    path = write(project / "J7" / "J7_particles.cs", fields | aligned)
    assert poses_from_table(read_particle_file(path)) is None
    message = run("train", path, "--out", project / "model", code=1)
    assert "2D alignments only; run a 3D refinement" in message and path.name in message
    assert not (project / "model").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder whose network knows nothing, without a reference: origins stay as they are."""
    torch.manual_seed(0)
    config = Config(PreprocessingConfig(box=32), network=NetworkConfig(widths=(8, 16), degree=2))
    network = OrientationNetwork(config.network, 32)
    torch.nn.init.normal_(network.dense.weight)
    log = [{"step": 1, "images": 1, "seconds": 1.0}]
    save_model(TrainedModel(network, config, 32, 1.345, 1.0, log, {"nothing": "train"}), tmp_path / "model")
    return tmp_path / "model"


def test_predictions_in_the_records_they_came_from(project: Path, model: Path) -> None:
    fields = refined()
    path = write(project / "J7" / "J7_005_particles.cs", fields)
    run("predict", model, path, "--out", project / "J7" / "predicted.cs")
    run("predict", model, path, "--out", project / "J7" / "predicted.star")
    found = np.load(project / "J7" / "predicted.cs")
    poses = rotations_of(read_particle_file(project / "J7" / "predicted.star"))
    assert degrees_between(Rotation.from_rotvec(found["alignments3D/pose"]), poses).max() < 1e-4
    assert degrees_between(Rotation.from_rotvec(fields["alignments3D/pose"]), poses).min() > 1
    for name in set(fields) - {"alignments3D/pose"}:
        assert (found[name] == fields[name]).all()
    assert np.isfinite(found["cryoforum/ExpectedErrorDeg"]).all()
    run("filter", project / "J7" / "predicted.cs", "--keep", "0.5", "--out", project / "J7" / "kept.cs")
    assert len(np.load(project / "J7" / "kept.cs")) == 3


def test_another_passthrough_file_starts_a_prediction_anew(
    project: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = refined()
    path = write(project / "J7" / "J7_005_particles.cs", only(fields, "alignments3D"))
    beside = project / "J7" / "J7_passthrough_particles.cs"
    command = ("predict", model, path, "--out", project / "J7" / "out.cs")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    for defocus, words in ((0, "merged with"), (0, "continuing"), (100, "starting anew")):
        write(beside, only(refined(ctf__df1_A=fields["ctf/df1_A"] + defocus), "blob", "ctf"))
        with monkeypatch.context() as patch:
            patch.setattr("cryoforum.commands.pose_files.write_particle_file", interrupted)
            assert words in run(*command, code=130)
    assert "6 poses" in run(*command)


def test_cryosparc_tools_read_what_we_write(tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="cryosparc-tools are not installed")
    table = read_particle_file(write(tmp_path / "a.cs", refined()))
    write_particle_file(replace(table, dataset=None), tmp_path / "new.cs")
    loaded = dataset.Dataset.load(tmp_path / "new.cs")
    assert len(loaded) == 6 and {"blob", "ctf", "alignments3D"} <= set(loaded.prefixes())
    assert loaded["blob/path"][0] == "J1/extract/stack.mrcs"


def test_real_2d_classification(shared_data: Path) -> None:
    table = read_particle_file(shared_data / "cryosparc_J2_particles_exported.cs")
    assert len(table) == 22 and poses_from_table(table) is None
    assert table.particles["rlnImageName"][0].startswith("000001@J1/imported/0000903")


def test_real_files_of_both_programs_agree(shared_data: Path) -> None:
    ours = read_particle_file(shared_data / "empiar_10076_7.cs")
    theirs = read_particle_file(shared_data / "cryodrgn_empiar_10076_7.star")
    for column, tolerance in (("rlnDefocusU", 1e-2), ("rlnDefocusV", 1e-2), ("rlnDefocusAngle", 1e-4)):
        np.testing.assert_allclose(
            number_column(ours, column), number_column(theirs, column), rtol=0, atol=tolerance
        )
    assert ours.particles["rlnImageName"][6] == "000007@empiar_10076_7.mrc"


def test_a_header_beyond_a_megabyte_is_refused(tmp_path: Path) -> None:
    names = "".join(f"('field{number:06d}', '<f4'), " for number in range(50_000))
    header = f"{{'descr': [('uid', '<u8'), {names}], 'fortran_order': False, 'shape': (1,)}}\n".encode()
    path = tmp_path / "particles.cs"
    path.write_bytes(b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(200_008))
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_records(path)
